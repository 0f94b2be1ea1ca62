"""The Python interface: a trained model that generates, infers, reconstructs, scores, and shows its latent space.

    from textebm import LatentEBM
    model = LatentEBM.from_pretrained("runs/ptb")
    model.generate(3, seed=1)
    model.score(["the market fell sharply"])

Every method returns data, prints nothing and takes a seed; the commands run the same functions, so the same seed gives
the same sentences. A model of text is a `TextEBM`, one of images an `ImageEBM`; `LatentEBM.from_pretrained` gives
whichever it is.
"""

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from textebm import (
    analysis,
    checkpoint,
    generation,
    given_images,
    hardware,
    image_generation,
    latent_space,
    scoring,
    sharing,
)
from textebm.errors import UsageError
from textebm.latent_space import CHAINS, Arithmetic, LatentMap, Method, Neighbour
from textebm.marginal import Settings
from textebm.model.decoding import Decoding
from textebm.model.image_batch import ImageBatch
from textebm.model.latent_model import LatentModel, read_model_config
from textebm.model.random import stream
from textebm.model_card import CardOptions
from textebm.scoring import ImageScore, SentenceScore

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Images = Float[Tensor, "images channels height width"]
"""Pixels in [0, 1]."""
OneImage = Float[Tensor, "channels height width"] | str | Path
"""Pixels in [0, 1], or a file."""


class LatentEBM(ABC):
    """A trained latent space energy-based prior model (Pang et al., NeurIPS 2020), ready to use.

    `model` is the network itself, `folder` where it was loaded from.
    """

    kind: ClassVar[str]
    """What it makes: text or images."""

    def __init__(self, model: LatentModel, folder: Path) -> None:
        """Use `from_pretrained`."""
        self.model, self.folder = model, folder

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path | None = None,
        device: str = "auto",
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> Self:
        """Load a model. What stands behind the device is of models on the Hub (see `sharing.fetch`).

        Args:
            name: a run folder (its best checkpoint is meant), a model folder or a checkpoint; OWNER/NAME on the
                Hugging Face Hub, where no folder has this name; None, or `demo` where no folder has this name: the
                small model that ships with the package.
            device: auto (a CUDA device where there is one), cpu, cuda, cuda:N or mps.
            revision: a branch, tag or commit.
            token: that may read it.
            cache_dir: in place of the Hub's cache.
            force_download: download what is in the cache again.
            local_files_only: take what is in the cache.

        Returns:
            A `TextEBM` or an `ImageEBM`; of these classes themselves, one of their own.

        Raises:
            CheckpointError: there is no readable model of that name.
            UsageError: there is no such device, the model is of the other kind, or huggingface_hub is not installed.
        """
        if sharing.is_on_hub(name):
            folder = sharing.fetch(
                str(name),
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
            )
        else:
            folder = checkpoint.SHIPPED if name is None else checkpoint.find_model(str(name))[0]
        found = KINDS[read_model_config(folder).generator.kind]
        if not issubclass(found, cls):
            raise UsageError(f"{folder} is a model of {found.kind}, and {cls.__name__} is one of {cls.kind}")
        return found.load(folder, hardware.find_device(device))

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, device: torch.device) -> Self:
        """The model in a model folder; see `from_pretrained`."""

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        card: CardOptions | None = None,
        **push_to_hub_kwargs: Any,  # noqa: ANN401
    ) -> str | None:
        """Write the model into a folder of its own, with a card, as `textebm share` does; no network is needed.

        The arguments are those of `huggingface_hub.ModelHubMixin`; `card` has the place of its `model_card_kwargs`.

        Args:
            save_directory: the folder, made if need be.
            repo_id: OWNER/NAME by which the card says it is loaded (default: the folder's name).
            push_to_hub: push it as well (to `repo_id`).
            card: what else the card says.
            push_to_hub_kwargs: further arguments of `push_to_hub`.

        Returns:
            The commit's address, if it was pushed.

        Raises:
            UsageError: the folder is, or lies in, a run folder, or cannot be written; or as of `push_to_hub`.
            CheckpointError: what is known of the model's run is damaged; or as of `push_to_hub`.
        """
        if push_to_hub and repo_id is None:
            raise UsageError("push_to_hub wants repo_id, OWNER/NAME on the Hugging Face Hub")
        folder = sharing.export(self.model, self._tokenizer(), self.folder, Path(save_directory), repo_id, card)
        return sharing.push(folder, str(repo_id), **push_to_hub_kwargs) if push_to_hub else None

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = sharing.COMMIT_MESSAGE,
        private: bool | None = None,
        token: str | None = None,
        branch: str | None = None,
        create_pr: bool | None = None,
        card: CardOptions | None = None,
    ) -> str:
        """Upload the model and its card to the Hugging Face Hub, in one commit (extra hub).

        Args:
            repo_id: OWNER/NAME, made if need be.
            commit_message: of the commit.
            private: whether a new repository is private (default: as its owner's settings say).
            token: that may write there (default: that of `hf auth login`).
            branch: which one (default: main).
            create_pr: propose the commit instead of making it.
            card: what else the card says.

        Returns:
            The commit's address.

        Raises:
            UsageError: the name is none, or huggingface_hub is not installed.
            CheckpointError: the Hub cannot be reached, or refuses.
        """
        sharing.require_repository(repo_id)
        with tempfile.TemporaryDirectory() as place:
            return str(
                self.save_pretrained(
                    Path(place) / repo_id.rpartition("/")[2],
                    repo_id=repo_id,
                    push_to_hub=True,
                    card=card,
                    commit_message=commit_message,
                    private=private,
                    token=token,
                    branch=branch,
                    create_pr=create_pr,
                )
            )

    def __repr__(self) -> str:
        prior, inference = self.model.config.prior, self.model.config.inference
        described = f"prior={prior.kind!r}, dimensions={prior.dimensions}, inference={inference.kind!r}"
        return f"{type(self).__name__}({str(self.folder)!r}, {described}, device={str(self.model.device)!r})"

    @abstractmethod
    def generate(self, n: int, seed: int = 0, temperature: float = 1.0, steps: int | None = None) -> list[str] | Images:
        """New sentences, or images; see the classes of either."""

    @abstractmethod
    def infer(self, x: Any, seed: int = 0, steps: int | None = None) -> Float[Tensor, "samples latent"]:  # noqa: ANN401
        """One posterior sample of z for each sentence, or image."""

    @abstractmethod
    def reconstruct(self, x: Any, seed: int = 0, steps: int | None = None) -> list[str] | Images:  # noqa: ANN401
        """Each sentence, or image, inferred and made again."""

    @abstractmethod
    def interpolate(self, a: Any, b: Any, points: int = 7, seed: int = 0) -> list[str] | Images:  # noqa: ANN401
        """Sentences, or images, along the line between the latents of two."""

    @abstractmethod
    def score(self, x: Any, seed: int = 0) -> list[SentenceScore] | list[ImageScore]:  # noqa: ANN401
        """What the model says of each sentence, or image."""

    def sample(self, n: int, seed: int = 0, steps: int | None = None) -> Float[Tensor, "{n} latent"]:
        """Samples of z by the short-run prior chain, on the CPU; `steps` overrides its length K0."""
        _at_least(1, n=n)
        _not_negative(seed=seed, steps=steps)
        noise = stream(seed, "prior", 0, device=self.model.device)
        return self.model.sample_prior(n, noise, steps).cpu()

    def energy(self, z: Float[Tensor, "samples latent"]) -> Float[Tensor, " samples"]:
        """−f(z) of each latent in nats (0 under a Gaussian prior), on the CPU."""
        return self.model.energy(z.to(self.model.prior.origin)).cpu()

    def transition(
        self,
        steps: int = 100,
        marks: Sequence[int] | None = None,
        chains: int = 256,
        shown: int = 8,
        seed: int = 0,
        decoding: Decoding | None = None,
    ) -> analysis.Transition:
        """Prior chains from p_0 toward p_α, with samples made at some of their steps (see `analysis.transition`).

        Args:
            steps: length of the chains.
            marks: steps at which samples are made (default: 0, 40, 100 as far as the chain goes, and the last).
            chains: behind the figures.
            shown: how many of them are made samples of.
            seed: of everything random.
            decoding: how words are chosen, by a model of text (default: sampling).

        Raises:
            UsageError: the model has no z, or a number makes no sense.
        """
        _not_negative(seed=seed)
        return analysis.transition(
            self.model,
            self._tokenizer(),
            chains=chains,
            shown=shown,
            steps=steps,
            marks=marks,
            seed=seed,
            decoding=decoding,
        )

    def _tokenizer(self) -> "Tokenizer | None":
        """That of a model of text."""
        return None


class TextEBM(LatentEBM):
    """A trained model of sentences. `tokenizer` is its vocabulary."""

    kind = "text"

    def __init__(self, model: LatentModel, folder: Path, tokenizer: "Tokenizer") -> None:
        """Use `from_pretrained`."""
        super().__init__(model, folder)
        self.tokenizer = tokenizer

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> Self:
        """The model in a model folder; see `from_pretrained`."""
        model, tokenizer = generation.load(folder, device)
        return cls(model, folder, tokenizer)

    def _tokenizer(self) -> "Tokenizer | None":
        return self.tokenizer

    def generate(
        self,
        n: int = 10,
        seed: int = 0,
        temperature: float = 1.0,
        steps: int | None = None,
        decoding: Decoding | None = None,
    ) -> list[str]:
        """Sentences from the prior, as `textebm generate` writes them.

        Args:
            n: how many.
            seed: of z and of the words.
            temperature: logits are divided by this before a word is sampled.
            steps: length of the prior chain (default: K0 as in training; 0: the reference Gaussian).
            decoding: how words are chosen, in place of sampling at `temperature`.

        Raises:
            UsageError: a number makes no sense.
        """
        _at_least(1, n=n)
        _not_negative(seed=seed, steps=steps)
        decoding = decoding or Decoding(temperature=temperature, max_length=self.model.config.longest)
        return [sample.text for sample in generation.generate(self.model, self.tokenizer, n, seed, decoding, steps)]

    def infer(
        self, x: Sequence[str] | str, seed: int = 0, steps: int | None = None
    ) -> Float[Tensor, "sentences latent"]:
        """One posterior sample of z for each sentence, on the CPU, as `textebm reconstruct` infers it.

        Args:
            x: sentences, or one; none may be empty.
            seed: of the chains.
            steps: their length (default: K1 as in training).

        Raises:
            DataError: a sentence is empty, or there is none.
            UsageError: the model is a plain language model, which has no z.
        """
        _at_least(1, steps=steps)
        _not_negative(seed=seed)
        return generation.infer(self.model, self.tokenizer, _several(x), seed, steps).cpu()

    def decode(
        self, z: Float[Tensor, "sentences latent"], seed: int = 0, decoding: Decoding | None = None
    ) -> list[str]:
        """The sentences of some latents.

        Args:
            z: from `infer`, `sample`, or made of these.
            seed: of the words.
            decoding: how they are chosen (default: greedy).
        """
        _not_negative(seed=seed)
        written = generation.write(
            self.model, self.tokenizer, z.to(self.model.prior.origin), decoding or self._greedy(), seed
        )
        return [sample.text for sample in written]

    def reconstruct(
        self, x: Sequence[str] | str, seed: int = 0, steps: int | None = None, decoding: Decoding | None = None
    ) -> list[str]:
        """Each sentence, inferred and written again, as `textebm reconstruct` does.

        Args:
            x: sentences, or one; none may be empty.
            seed: of chains and words.
            steps: length of the posterior chains (default: K1 as in training).
            decoding: how words are chosen (default: greedy).

        Raises:
            DataError: a sentence is empty, or there is none.
            UsageError: the model is a plain language model, which has no z.
        """
        _at_least(1, steps=steps)
        _not_negative(seed=seed)
        return generation.reconstruct(self.model, self.tokenizer, _several(x), seed, decoding, steps)

    def interpolate(
        self, a: str, b: str, points: int = 7, seed: int = 0, decoding: Decoding | None = None
    ) -> list[str]:
        """Sentences along the straight line between the latents of two, as `textebm interpolate` writes them.

        Args:
            a: where the line begins.
            b: where it ends.
            points: sentences, both ends included (at least 2).
            seed: of the two posterior chains and of the words.
            decoding: how words are chosen (default: greedy).

        Raises:
            DataError: a sentence is empty.
            UsageError: there are fewer than two points, or the model is a plain language model.
        """
        _at_least(2, points=points)
        _not_negative(seed=seed)
        line = generation.interpolate(self.model, self.tokenizer, a, b, points, seed, decoding)
        return [sample.text for sample in line]

    def score(
        self, x: Sequence[str] | str, seed: int = 0, samples: int = 0, chains: int = 1, steps: int | None = None
    ) -> list[SentenceScore]:
        """Energy, reconstruction and marginal NLL of each sentence, as `textebm score` tells them.

        Args:
            x: sentences, or one.
            seed: of chains and of the marginal likelihood.
            samples: of z behind the marginal likelihood of each (0: it is left out, which is much quicker).
            chains: posterior samples that energy and reconstruction are means over.
            steps: length of those chains (default: K1 as in training).

        Raises:
            DataError: a sentence is empty, or no word of it is known.
        """
        _at_least(1, chains=chains, steps=steps)
        _not_negative(seed=seed, samples=samples)
        settings = Settings(samples=samples) if samples else None
        return scoring.score_sentences(self.model, self.tokenizer, _several(x), seed, chains, steps, settings)

    def means(self, x: Sequence[str] | str, seed: int = 0, chains: int = CHAINS) -> Float[Tensor, "sentences latent"]:
        """The posterior mean of z of each sentence, over several chains, in float64 on the CPU.

        Raises:
            DataError: a sentence is empty, or no word of it is known.
            UsageError: the model is a plain language model.
        """
        return self._posterior(_several(x), seed, chains).means

    def map(self, x: Sequence[str], seed: int = 0, chains: int = CHAINS, method: Method = "pca") -> LatentMap:
        """Posterior means of sentences in two dimensions, as `textebm map` draws them.

        Args:
            x: at least 3 sentences.
            seed: of the chains.
            chains: of each sentence.
            method: pca, or umap where umap-learn is installed.

        Raises:
            DataError: a sentence is empty, or no word of it is known.
            UsageError: there are too few sentences, UMAP is not installed, or the model is a plain language model.
        """
        text = latent_space.typed(self.tokenizer, x)
        found = self._posterior(x, seed, chains)
        return latent_space.latent_map(text, found, list(x), method=method, seed=seed)

    def neighbours(
        self, sentence: str, corpus: Sequence[str], count: int = 10, seed: int = 0, chains: int = CHAINS
    ) -> list[Neighbour]:
        """The sentences of a corpus whose posterior means are nearest to that of a sentence.

        Args:
            sentence: whose neighbours are wanted.
            corpus: the sentences that are searched.
            count: how many are wanted.
            seed: of the chains.
            chains: of each sentence.

        Raises:
            DataError: a sentence is empty, or no word of it is known.
            UsageError: a number makes no sense, or the model is a plain language model.
        """
        _at_least(1, count=count)
        found = self._posterior(corpus, seed, chains)
        return latent_space.neighbours(self.model, self.tokenizer, sentence, corpus, found, count, seed)

    def arithmetic(
        self,
        plus: Sequence[str] | str,
        minus: Sequence[str] | str = (),
        seed: int = 0,
        chains: int = CHAINS,
        decoding: Decoding | None = None,
    ) -> Arithmetic:
        """Add and subtract the posterior means of sentences, and write the sentence of the sum.

        Args:
            plus: what is added.
            minus: what is subtracted.
            seed: of chains and words.
            chains: of each sentence.
            decoding: how words are chosen (default: greedy).

        Raises:
            DataError: a sentence is empty, or no word of it is known.
            UsageError: nothing is added, or the model is a plain language model.
        """
        terms = [(1, text) for text in _several(plus)] + [(-1, text) for text in _several(minus)]
        _at_least(1, chains=chains)
        _not_negative(seed=seed)
        if not terms:
            raise UsageError("a sum of no sentences is none: name at least one")
        return latent_space.arithmetic(self.model, self.tokenizer, terms, seed, decoding, chains)

    def _posterior(self, sentences: Sequence[str], seed: int, chains: int) -> latent_space.Posterior:
        _at_least(1, chains=chains)
        _not_negative(seed=seed)
        return latent_space.posterior(self.model, latent_space.typed(self.tokenizer, sentences), seed, chains=chains)

    def _greedy(self) -> Decoding:
        return Decoding("greedy", max_length=self.model.config.longest)


class ImageEBM(LatentEBM):
    """A trained model of images. Images go in as files or as pixels in [0, 1], and come out as pixels in [0, 1]."""

    kind = "images"

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> Self:
        """The model in a model folder; see `from_pretrained`."""
        return cls(image_generation.load(folder, device), folder)

    def generate(self, n: int = 64, seed: int = 0, temperature: float = 1.0, steps: int | None = None) -> Images:
        """Images from the prior, as `textebm generate` makes them: the mean image of each z.

        Args:
            n: how many.
            seed: of z.
            temperature: of words; images are made without, and only 1 is allowed.
            steps: length of the prior chain (default: K0 as in training; 0: the reference Gaussian).

        Raises:
            UsageError: a number makes no sense.
        """
        _at_least(1, n=n)
        _not_negative(seed=seed, steps=steps)
        if temperature != 1:
            raise UsageError(f"temperature is {temperature}: it is how words are sampled, and this model makes images")
        return _unit(torch.cat([part.images for part in image_generation.generate(self.model, n, seed, steps)]))

    def infer(
        self, x: Images | Sequence[str | Path], seed: int = 0, steps: int | None = None
    ) -> Float[Tensor, "images latent"]:
        """One posterior sample of z for each image, on the CPU, as `textebm reconstruct` infers it.

        Args:
            x: pixels in [0, 1] of the shape that the model makes, or files, which are cropped and resized.
            seed: of the chains.
            steps: their length (default: K1 as in training).

        Raises:
            DataError: a file is missing or no picture.
            UsageError: the pixels are of another shape, or not in [0, 1].
        """
        _at_least(1, steps=steps)
        _not_negative(seed=seed)
        data = self._data(x)
        return image_generation.infer(self.model, data, np.arange(len(data)), seed, steps).cpu()

    def decode(self, z: Float[Tensor, "images latent"]) -> Images:
        """The mean images of some latents."""
        return _unit(self.model.paint(z.to(self.model.prior.origin)).float().cpu())

    def reconstruct(self, x: Images | Sequence[str | Path], seed: int = 0, steps: int | None = None) -> Images:
        """Each image, inferred and made again, as `textebm reconstruct` does; arguments and errors as of `infer`."""
        _at_least(1, steps=steps)
        _not_negative(seed=seed)
        data = self._data(x)
        parts = image_generation.reconstruct(self.model, data, np.arange(len(data)), seed, steps)
        return _unit(torch.cat([part.images for part in parts]))

    def interpolate(self, a: OneImage, b: OneImage, points: int = 7, seed: int = 0) -> Images:
        """Images along the straight line between the latents of two, as `textebm interpolate` makes them.

        Args:
            a: where the line begins: pixels in [0, 1], or a file.
            b: where it ends.
            points: images, both ends included (at least 2).
            seed: of the posterior chains.

        Raises:
            DataError: a file is missing or no picture.
            UsageError: the pixels are of another shape, or there are fewer than two points.
        """
        _at_least(2, points=points)
        _not_negative(seed=seed)
        one = [x[None] if isinstance(x, Tensor) else [x] for x in (a, b)]
        ends = ImageBatch(torch.cat([self._data(x).batch(np.arange(1)).pixels for x in one]))
        return _unit(image_generation.interpolate(self.model, ends, points, seed))

    def score(
        self, x: Images | Sequence[str | Path], seed: int = 0, chains: int = 1, steps: int | None = None
    ) -> list[ImageScore]:
        """Energy, reconstruction and mean squared error of each image, as `textebm score` tells them.

        Args:
            x: as of `infer`.
            seed: of the chains.
            chains: posterior samples that the figures are means over.
            steps: length of those chains (default: K1 as in training).

        Raises:
            DataError: a file is missing or no picture.
            UsageError: the pixels are of another shape, or not in [0, 1].
        """
        _at_least(1, chains=chains, steps=steps)
        _not_negative(seed=seed)
        data = self._data(x)
        numbers = [str(number) for number in range(len(data))]
        names = data.names if isinstance(data, given_images.Pictures) else numbers
        return scoring.score_images(self.model, data, names, seed, chains=chains, steps=steps)

    def _data(self, x: Images | Sequence[str | Path]) -> given_images.Given:
        """Images as a data set."""
        x = [x] if isinstance(x, str | Path) else x
        shape = self.model.painter.shape
        if len(x) == 0:
            raise UsageError("there is no image")
        if not isinstance(x, Tensor):
            return given_images.Pictures(map(Path, x), shape, given_images.crop_of(self.folder))
        wanted = (shape.channels, shape.height, shape.width)
        if tuple(x.shape[1:]) != wanted:
            raise UsageError(f"the images are {tuple(x.shape)}: this model's are (n, {', '.join(map(str, wanted))})")
        if not ((x >= 0) & (x <= 1)).all():
            raise UsageError(f"pixels must be in [0, 1], and these are in [{float(x.min()):g}, {float(x.max()):g}]")
        return given_images.Given(x.float().cpu() * 2 - 1)


KINDS: dict[str, type[TextEBM] | type[ImageEBM]] = {"recurrent": TextEBM, "convolutional": ImageEBM}
"""Kind of generator -> the class of its models."""


def _several(sentences: Sequence[str] | str) -> list[str]:
    """Sentences, where one may stand for a list of one."""
    return [sentences] if isinstance(sentences, str) else list(sentences)


def _unit(pixels: Images) -> Images:
    """Pixels in [−1, 1] as pixels in [0, 1]."""
    return ((pixels + 1) / 2).clamp(0, 1)


def _at_least(least: int, **named: int | None) -> None:
    """Check counts; what is left open may be.

    Raises:
        UsageError: one is too small.
    """
    for name, value in named.items():
        if value is not None and value < least:
            raise UsageError(f"{name} is {value}: it must be at least {least}")


def _not_negative(**named: int | None) -> None:
    """Check numbers that may be left open.

    Raises:
        UsageError: one is below 0.
    """
    for name, value in named.items():
        if value is not None and value < 0:
            raise UsageError(f"{name} is {value}: it must be 0 or more")
