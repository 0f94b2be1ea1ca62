"""From a trained model to sentences: generation, reconstruction, interpolation, and the cached samples of a run."""

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from textebm import checkpoint, whole_files
from textebm.data.text import EncodedText, encode
from textebm.data.vocabulary import decode as to_text
from textebm.data.vocabulary import load_tokenizer
from textebm.errors import DataError, UsageError
from textebm.home import home
from textebm.model.decoding import Decoding, decode
from textebm.model.latent_model import LatentModel
from textebm.model.random import stream
from textebm.processes import ALONE, World

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BATCH = 256
"""Sentences inferred at once; part of what a seed means, since each batch has its own random streams."""
WRITTEN_AT_ONCE = 1024
"""Sentences generated at once, part of what a seed means too. Finished ones leave, so the batch begins large."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """A generated sentence, and −f(z) of its latent in nats."""

    text: str
    energy: float


def load(folder: Path, device: torch.device | str = "cpu") -> tuple[LatentModel, "Tokenizer"]:
    """A saved model and its tokeniser.

    Raises:
        CheckpointError: the folder holds no readable model, or one that is not as it was written.
        UsageError: the model is one of images.
    """
    model = checkpoint.load_model(folder, device)
    _ = model.writer
    return model, load_tokenizer(folder)


def generate(
    model: LatentModel,
    tokenizer: "Tokenizer",
    n: int,
    seed: int = 0,
    decoding: Decoding | None = None,
    prior_steps: int | None = None,
    world: World = ALONE,
) -> Iterator[Sample]:
    """Sentences from the prior: z by the short-run chain, then decoding.

    Several processes draw what one would, 1024 sentences each in turn; the first one gets them all, the others none.

    Args:
        model: the model.
        tokenizer: its tokeniser.
        n: number of sentences.
        seed: the same seed gives the same sentences on one machine.
        decoding: how words are chosen (default: sampling at temperature 1, up to the longest training sentence).
        prior_steps: length of the prior chain (default: K0 as in training).
        world: the processes that share the work; all of them must go through the result to its end.
    """
    decoding = decoding or Decoding(max_length=model.config.longest)

    def block(number: int) -> list[Sample]:
        size = min(WRITTEN_AT_ONCE, n - number * WRITTEN_AT_ONCE)
        z = model.sample_prior(size, stream(seed, "prior", number, device=model.device), prior_steps)
        words = decode(model.writer, z, decoding, stream(seed, "decoding", number, device=model.device))
        return [Sample(to_text(tokenizer, ids), e) for ids, e in zip(words, model.energy(z).tolist(), strict=True)]

    blocks = world.in_turn(-(-n // WRITTEN_AT_ONCE), block, _pack, _unpack)
    return itertools.chain.from_iterable(blocks)


def _pack(samples: list[Sample]) -> bytes:
    return json.dumps([(sample.text, sample.energy) for sample in samples]).encode()


def _unpack(content: bytes) -> list[Sample]:
    return [Sample(text, energy) for text, energy in json.loads(content)]


def require_latent(model: LatentModel) -> None:
    """Check that a model has z.

    Raises:
        UsageError: it is a plain language model.
    """
    if not model.has_latent:
        raise UsageError(
            "this model is a plain language model (prior.kind: none): it has no z to infer from a sentence, so it can "
            "neither reconstruct nor interpolate; give a model with a prior by --model"
        )


def encode_all(tokenizer: "Tokenizer", sentences: Sequence[str]) -> EncodedText:
    """Sentences as ids, each one of them and as long as it is.

    Raises:
        DataError: there is no sentence, or one is empty.
    """
    text = encode(sentences, tokenizer, max_length=None, overlong="cut")
    if len(text) != len(sentences):
        raise DataError(
            f"{len(sentences) - len(text)} of {len(sentences)} sentences are empty: z cannot be inferred for them"
        )
    return text


def infer(
    model: LatentModel, tokenizer: "Tokenizer", sentences: Sequence[str], seed: int = 0, steps: int | None = None
) -> torch.Tensor:
    """One posterior sample of z for each sentence, (sentences, latent), in the sentences' order.

    Args:
        model: the model.
        tokenizer: its tokeniser.
        sentences: none may be empty.
        seed: of the chains.
        steps: overrides the chain's length K1.

    Raises:
        UsageError: the model is a plain language model, which has no z.
        DataError: there is no sentence, or one is empty.
    """
    require_latent(model)
    text = encode_all(tokenizer, sentences)
    latents = []
    for number, begin in enumerate(range(0, len(text), BATCH)):
        rows = list(range(begin, min(begin + BATCH, len(text))))
        x = text.batch(rows).to(model.device)
        latents.append(model.infer(x, stream(seed, "posterior", number, device=model.device), steps))
    return torch.cat(latents)


def reconstruct(
    model: LatentModel,
    tokenizer: "Tokenizer",
    sentences: Sequence[str],
    seed: int = 0,
    decoding: Decoding | None = None,
    steps: int | None = None,
) -> list[str]:
    """Each sentence, inferred (z from its posterior chain) and written again.

    Args:
        model: the model.
        tokenizer: its tokeniser.
        sentences: what to reconstruct; none may be empty.
        seed: of chains and decoding.
        decoding: how words are chosen (default: greedy).
        steps: overrides the posterior chain's length K1.
    """
    decoding = decoding or Decoding("greedy", max_length=model.config.longest)
    z = infer(model, tokenizer, sentences, seed, steps)
    written: list[str] = []
    for number, rows in enumerate(torch.split(z, BATCH)):
        ids = decode(model.writer, rows, decoding, stream(seed, "decoding", number, device=model.device))
        written += [to_text(tokenizer, words) for words in ids]
    return written


def interpolate(
    model: LatentModel,
    tokenizer: "Tokenizer",
    first: str,
    last: str,
    points: int = 7,
    seed: int = 0,
    decoding: Decoding | None = None,
) -> list[Sample]:
    """Sentences along the straight line between the latents of two sentences.

    Args:
        model: the model.
        tokenizer: its tokeniser.
        first: where the line begins.
        last: where it ends.
        points: sentences written, both ends included (at least 2).
        seed: of the two posterior chains and of decoding.
        decoding: how words are chosen (default: greedy).
    """
    decoding = decoding or Decoding("greedy", max_length=model.config.longest)
    ends = infer(model, tokenizer, [first, last], seed)
    weights = torch.linspace(0, 1, points, device=ends.device)[:, None]
    return write(model, tokenizer, ends[:1] * (1 - weights) + ends[1:] * weights, decoding, seed)


def write(
    model: LatentModel, tokenizer: "Tokenizer", z: torch.Tensor, decoding: Decoding, seed: int = 0
) -> list[Sample]:
    """The sentences of some latents.

    Args:
        model: the model.
        tokenizer: its tokeniser.
        z: (sentences, latent) in the model's dtype, on its device.
        decoding: how words are chosen.
        seed: of decoding.
    """
    ids = decode(model.writer, z, decoding, stream(seed, "decoding", 0, device=model.device))
    return [Sample(to_text(tokenizer, w), e) for w, e in zip(ids, model.energy(z).tolist(), strict=True)]


def write_samples(
    path: Path, samples: Iterator[Sample], as_json: bool = False, tick: Callable[[], object] | None = None
) -> None:
    """Write one sample a line, through a temporary file, so that `path` is whole or as it was.

    Args:
        path: where to, in a folder that exists; a device or a named pipe is written to directly.
        samples: what to write.
        as_json: JSON lines with the energy, instead of plain text.
        tick: called after each sample (progress).
    """
    direct = path.exists() and not path.is_file()
    with (
        contextlib.nullcontext(path) if direct else whole_files.appearing(path) as place,
        place.open("w", encoding="utf-8") as stream_,
    ):
        for sample in samples:
            stream_.write(format_sample(sample, as_json) + "\n")
            if tick is not None:
                tick()


def format_sample(sample: Sample, as_json: bool) -> str:
    """A sample as a line of text or of JSON."""
    return json.dumps(dataclasses.asdict(sample), ensure_ascii=False) if as_json else sample.text


def other_chain(model: LatentModel, prior_steps: int | None) -> int | None:
    """`prior_steps` where it makes another chain than training's; a prior without a tilt has none."""
    prior = model.config.prior
    return prior_steps if prior.is_tilted and prior_steps != prior.steps else None


def cache_folder() -> Path:
    """Where samples of models outside run folders are kept: in TEXTEBM_HOME (by default ~/.cache/textebm)."""
    return home() / "samples"


def cached_samples(
    folder: Path,
    model: LatentModel,
    tokenizer: "Tokenizer",
    n: int,
    seed: int,
    cache: Path,
    tick: Callable[[], object] | None = None,
    decoding: Decoding | None = None,
    prior_steps: int | None = None,
    world: World = ALONE,
) -> Path:
    """The file of n samples of a checkpoint, nothing filtered, written if it is not there.

    Args:
        folder: the model folder; its name and a digest of the model are part of the file's name.
        model: the model in it.
        tokenizer: its tokeniser.
        n: number of sentences.
        seed: of the samples.
        cache: folder of such files.
        tick: called after each sample that is drawn (progress).
        decoding: how words are chosen (default: the headline protocol's, sampling at temperature 1).
        prior_steps: length of the prior chain (default: K0 as in training).
        world: the processes that share the work, all of which call this.
    """
    key = f"{folder.name}-{checkpoint.model_digest(folder)}"
    how = "" if decoding is None else f"-{decoding.describe()}-max{decoding.max_length}"
    other = other_chain(model, prior_steps)
    how += "" if other is None else f"-prior{other}"
    path = cache / f"{key}-n{n}-seed{seed}{how}.txt"
    if not world.told(path.exists):
        samples = generate(model, tokenizer, n, seed, decoding, prior_steps, world)
        if world.first:
            cache.mkdir(parents=True, exist_ok=True)
            write_samples(path, samples, tick=tick)
        else:
            take_part(samples)
    return path


def take_part(samples: Iterator[object]) -> None:
    """Do this process's share of what the first one gets."""
    for _ in samples:
        pass
