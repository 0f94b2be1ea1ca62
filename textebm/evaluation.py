"""What a model says about held-out sentences or images: likelihood under posterior and prior samples, use of z."""

import dataclasses
import math
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from textebm.data.dataset import Dataset
from textebm.data.text import EncodedText
from textebm.data.vocabulary import decode as to_text
from textebm.errors import UsageError
from textebm.model import information
from textebm.model.bound import kl_divergence
from textebm.model.decoding import Decoding, decode
from textebm.model.encoder import DiagonalGaussian
from textebm.model.generators import Batch
from textebm.model.inference import Request
from textebm.model.latent_model import LatentModel
from textebm.model.random import stream
from textebm.model.recurrent import EOS, FIRST_OUTPUT
from textebm.processes import ALONE, World

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SelectBy = Literal["reconstruction_nll", "prior_nll", "negative_elbo"]

Density = Literal["fitted-gaussian", "encoder"]

ACTIVE_VARIANCE = 0.01
"""A dimension of z is active when the variance over sentences of its posterior mean exceeds this."""


@dataclasses.dataclass(frozen=True)
class LatentFigures:
    """What is measured on held-out samples of x, whatever x is. NLL in nats a sample."""

    reconstruction_nll: float
    """Mean −log p(x|z), z inferred as in training (one sample, no dropout; see `LatentModel.infer`)."""
    prior_nll: float
    """Mean −log p(x|z), z from the prior chain, unrelated to x."""
    gaussian_nll: float
    """Mean −log p(x|z), z from the reference Gaussian: where prior chains start, if no learned sampler says where."""
    posterior_energy: float
    """Mean −f(z) of posterior samples, in nats."""
    prior_energy: float
    """Mean −f(z) of prior samples."""
    gaussian_energy: float
    """Mean −f(z) of samples of the reference Gaussian."""
    posterior_norm: float
    """Mean ‖z‖ of posterior samples."""
    prior_norm: float
    """Mean ‖z‖ of prior samples."""
    posterior_displacement: float
    """Mean distance that a posterior chain ends from its start; 0 where there is no chain."""
    prior_displacement: float
    """Mean distance that a prior chain ends from its start."""

    derived: ClassVar[tuple[str, ...]] = ("nll_gap",)
    """Names of the properties that `to_dict` tells too."""

    @property
    def nll_gap(self) -> float:
        """By how many nats a sample the NLL is lower under posterior samples than under prior samples: 0 where z says
        nothing of x."""
        return self.prior_nll - self.reconstruction_nll

    def score(self, select_by: SelectBy) -> float:
        """What makes a checkpoint the best: lower is better."""
        value: float = getattr(self, select_by)
        return value

    def to_dict(self) -> dict[str, float]:
        """All figures by name, derived ones included."""
        return {**dataclasses.asdict(self), **{name: getattr(self, name) for name in self.derived}}


@dataclasses.dataclass(frozen=True)
class EncoderFigures(LatentFigures):
    """What is measured besides where an encoder gives a bound (see `has_bound`)."""

    kl: float
    """Mean KL(q(z|x) ‖ p(z)) a sample in nats, from one sample of q."""
    negative_elbo: float
    """Mean −log p(x|z) + KL(q(z|x) ‖ p(z)) at the same sample: an upper bound on −log p(x)."""


@dataclasses.dataclass(frozen=True)
class Validation(LatentFigures):
    """What is measured on held-out sentences. NLL in nats a sentence; perplexity a word, end of sentence counted.

    So the figures of vocabularies of words and of byte pairs compare.
    """

    sentences: int
    """Sentences scored."""
    tokens: int
    """Their tokens, end of sentence included."""
    words: int
    """Their words, end of sentence included; in a vocabulary of words as many as tokens."""

    derived = ("reconstruction_perplexity", "prior_perplexity", "gaussian_perplexity", "nll_gap")

    @property
    def reconstruction_perplexity(self) -> float:
        """exp of the NLL a word under posterior samples."""
        return self._perplexity(self.reconstruction_nll)

    @property
    def prior_perplexity(self) -> float:
        """exp of the NLL a word under prior samples."""
        return self._perplexity(self.prior_nll)

    @property
    def gaussian_perplexity(self) -> float:
        """exp of the NLL a word under samples of the reference Gaussian."""
        return self._perplexity(self.gaussian_nll)

    def _perplexity(self, nll: float) -> float:
        return perplexity_a_word(nll, self.sentences, self.words)


@dataclasses.dataclass(frozen=True)
class EncoderValidation(Validation, EncoderFigures):
    """What is measured on held-out sentences where there is an encoder."""


@dataclasses.dataclass(frozen=True)
class ImageValidation(LatentFigures):
    """What is measured on held-out images. NLL in nats an image, of a density of pixels in [−1, 1].

    The likelihood being Gaussian, a mean squared error is another way to write an NLL. It is a mean over images,
    channels and pixels: in [−1, 1], and in [0, 1] a quarter of that.
    """

    images: int
    """Images scored."""
    dimensions: int
    """Numbers that an image consists of."""
    sigma: float
    """σ_x of the generator."""

    derived = ("reconstruction_mse", "reconstruction_mse_unit", "prior_mse", "gaussian_mse", "nll_gap")

    @property
    def reconstruction_mse(self) -> float:
        """Mean squared error of g(z) under posterior samples, pixels in [−1, 1]."""
        return self._mse(self.reconstruction_nll)

    @property
    def reconstruction_mse_unit(self) -> float:
        """The same, pixels in [0, 1]."""
        return self.reconstruction_mse / 4

    @property
    def prior_mse(self) -> float:
        """Mean squared error of g(z) under prior samples, pixels in [−1, 1]."""
        return self._mse(self.prior_nll)

    @property
    def gaussian_mse(self) -> float:
        """Mean squared error of g(z) under samples of the reference Gaussian, pixels in [−1, 1]."""
        return self._mse(self.gaussian_nll)

    def _mse(self, nll: float) -> float:
        return mean_squared_error(nll, self.dimensions, self.sigma)


@dataclasses.dataclass(frozen=True)
class ImageEncoderValidation(ImageValidation, EncoderFigures):
    """What is measured on held-out images where there is an encoder."""


@dataclasses.dataclass(frozen=True)
class ExactValidation:
    """What is measured of a plain language model: since nothing is latent, one likelihood, and it is exact."""

    sentences: int
    """Sentences scored."""
    tokens: int
    """Their tokens, end of sentence included."""
    words: int
    """Their words, end of sentence included; in a vocabulary of words as many as tokens."""
    nll: float
    """Mean −log p(x) a sentence, in nats (no dropout)."""

    @property
    def perplexity(self) -> float:
        """exp of the NLL a word."""
        return perplexity_a_word(self.nll, self.sentences, self.words)

    def score(self, select_by: SelectBy) -> float:
        """What makes a checkpoint the best, however others are selected: lower is better."""
        return self.nll

    def to_dict(self) -> dict[str, float]:
        """All figures by name, the perplexity included."""
        return {**dataclasses.asdict(self), "perplexity": self.perplexity}


def perplexity_a_word(nll: float, sentences: int, words: int) -> float:
    """exp of the NLL a word.

    Args:
        nll: mean over the sentences, in nats.
        sentences: how many.
        words: of all of them, ends of sentence included.
    """
    return math.exp(min(nll * sentences / words, 700.0))


def mean_squared_error(nll: float, dimensions: int, sigma: float) -> float:
    """The mean squared error a pixel that belongs to an NLL.

    Args:
        nll: −log N(x; g, σ²I) in nats, a mean over images.
        dimensions: numbers that an image consists of.
        sigma: σ.
    """
    return (2 * nll / dimensions - math.log(2 * math.pi * sigma**2)) * sigma**2


def validate(
    model: LatentModel,
    text: EncodedText,
    seed: int,
    sentences: int = 0,
    batch_size: int = 64,
    prior_steps: int | None = None,
    world: World = ALONE,
) -> Validation | ExactValidation:
    """Score held-out sentences; a plain language model is scored exactly.

    Args:
        model: the model, on its device.
        text: the held-out sentences.
        seed: of the chains; the same seed gives the same chains, so that epochs compare.
        sentences: score only this many, spread evenly over the text (0: all).
        batch_size: sentences scored at once.
        prior_steps: length of the prior chain (default: K0 as in training).
        world: the processes that share the batches; the figures are those of one process.
    """
    rows = spread(len(text), sentences)
    tokens, words = int(text.lengths[rows].sum()) + len(rows), len(rows) + int(text.words(rows).sum())
    if not model.has_latent:
        return ExactValidation(len(rows), tokens, words, _exact_nll(model, text, rows, batch_size, world))
    figures = latent_figures(model, text, seed, rows, batch_size, prior_steps, world)
    kind = EncoderValidation if has_bound(model) else Validation
    return kind(**figures, sentences=len(rows), tokens=tokens, words=words)


def validate_images(
    model: LatentModel,
    images: Dataset,
    seed: int,
    most: int = 0,
    batch_size: int = 64,
    prior_steps: int | None = None,
    world: World = ALONE,
) -> ImageValidation:
    """Score held-out images.

    Args:
        model: a model of images, on its device.
        images: the held-out images.
        seed: of the chains; the same seed gives the same chains, so that epochs compare.
        most: score only this many, spread evenly (0: all).
        batch_size: images scored at once.
        prior_steps: length of the prior chain (default: K0 as in training).
        world: the processes that share the batches; the figures are those of one process.
    """
    rows = spread(len(images), most)
    figures = latent_figures(model, images, seed, rows, batch_size, prior_steps, world)
    kind = ImageEncoderValidation if has_bound(model) else ImageValidation
    painter = model.painter
    return kind(**figures, images=len(rows), dimensions=painter.shape.dimensions, sigma=painter.config.sigma)


def latent_figures(
    model: LatentModel,
    data: Dataset,
    seed: int,
    rows: NDArray[np.int64],
    batch_size: int = 64,
    prior_steps: int | None = None,
    world: World = ALONE,
) -> dict[str, float]:
    """The figures of `LatentFigures`, or of `EncoderFigures`, by name.

    Args:
        model: the model, on its device.
        data: the held-out samples of x.
        seed: of the chains.
        rows: which samples are scored.
        batch_size: samples scored at once.
        prior_steps: length of the prior chain (default: K0 as in training).
        world: the processes that share the batches; the figures are those of one process.
    """
    kind = EncoderFigures if has_bound(model) else LatentFigures
    names = [f.name for f in dataclasses.fields(kind)]
    groups = data.groups(rows, batch_size)

    def score(number: int) -> Tensor:
        return _score_batch(model, data.batch(rows[groups[number]]).to(model.device), seed, number, prior_steps)

    return dict(zip(names, (_summed(score, len(groups), len(names), world) / len(rows)).tolist(), strict=True))


def _summed(score: Callable[[int], Tensor], batches: int, figures: int, world: World) -> Float[Tensor, " figures"]:
    """The sums of figures over batches, of which processes take turns; added up in one order by all of them."""
    scores = torch.zeros(batches, figures, dtype=torch.float64)
    for number in filter(world.owns, range(batches)):
        scores[number] = score(number).cpu()
    world.sum([scores])
    totals = torch.zeros(figures, dtype=torch.float64)
    for of_batch in scores:
        totals += of_batch
    return totals


def _exact_nll(model: LatentModel, text: EncodedText, rows: NDArray[np.int64], batch_size: int, world: World) -> float:
    """Mean −log p(x) under a plain language model."""
    groups = text.groups(rows, batch_size)

    def score(number: int) -> Tensor:
        x = text.batch(rows[groups[number]]).to(model.device)
        return -model.log_likelihood(x).double().sum()[None]

    return float(_summed(score, len(groups), 1, world)) / len(rows)


def _score_batch(
    model: LatentModel, x: Batch, seed: int, number: int, prior_steps: int | None
) -> Float[Tensor, " figures"]:
    """Sums over one batch, in the order of the fields of LatentFigures, or of EncoderFigures."""
    n = x.batch_size
    conditioned = model.condition(x)
    noise = stream(seed, "evaluation", number, 0, device=model.device)
    moves = stream(seed, "evaluation", number, 1, device=model.device)
    gaussian = model.prior.sample_reference(n, moves)
    begun = model.prior_start(gaussian, moves)
    prior = model.prior.move(begun, moves, prior_steps)
    with torch.no_grad():
        posterior, start, q = model.posterior(Request(x, conditioned, model.config.inference, noise))
        latents = (posterior, prior, gaussian)
        figures = [-conditioned.log_prob(z) for z in latents]
        figures += [model.energy(z) for z in latents]
        figures += [z.norm(dim=1) for z in (posterior, prior, posterior - start, prior - begun)]
        if q is not None and has_bound(model):  # start is the sample of q
            kl = kl_divergence(q, start, model.prior)
            figures += [kl, kl - conditioned.log_prob(start)]
    return torch.stack([f.double().sum() for f in figures])


def encoded(model: LatentModel, data: Dataset, samples: int = 0, batch_size: int = 64) -> DiagonalGaussian:
    """What the encoder says of held-out samples of x, in float64 on the CPU.

    Args:
        model: a model with an encoder, on its device.
        data: the held-out samples.
        samples: take only this many, spread evenly (0: all).
        batch_size: samples encoded at once.
    """
    rows = spread(len(data), samples)
    mean = torch.empty(len(rows), model.config.prior.dimensions, dtype=torch.float64)
    log_variance = torch.empty_like(mean)
    for batch in data.groups(rows, batch_size):
        with torch.no_grad():
            q = model.encode(data.batch(rows[batch]).to(model.device))
        mean[torch.from_numpy(batch)] = q.mean.double().cpu()
        log_variance[torch.from_numpy(batch)] = q.log_variance.double().cpu()
    return DiagonalGaussian(mean, log_variance)


def mutual_information(model: LatentModel, data: Dataset, seed: int, samples: int = 0) -> float:
    """Mutual information of x and z under the encoder in nats, over held-out samples of x (see `information`).

    Args:
        model: a model with an encoder, on its device.
        data: the held-out samples.
        seed: of the samples of q, one each.
        samples: take only this many, spread evenly (0: all).
    """
    q = encoded(model, data, samples)
    z = q.sample(stream(seed, "evaluation", 0, 4))
    return information.mutual_information(z[:, None], q.mean, q.log_variance).item()


def active_units(
    model: LatentModel, data: Dataset, seed: int, sentences: int = 100, chains: int = 10, batch_size: int = 64
) -> tuple[int, list[float]]:
    """Dimensions of z whose posterior mean varies over sentences, or images, by more than 0.01 (Burda et al., 2016).

    The mean over a sentence's chains still carries 1/chains of the posterior's own variance, which alone would exceed
    the threshold; that share is estimated from the spread within sentences and taken off (one-way analysis of
    variance). Where z is a sample of an encoder's, its mean is known, and no chain is run.

    Args:
        model: the model.
        data: held-out sentences or images.
        seed: of the chains.
        sentences: how many of them, spread evenly; among fewer than 2 nothing varies, and no unit is active.
        chains: posterior chains of each, at least 2.
        batch_size: chains run at once.

    Returns:
        The number of active units, and the corrected variance of each dimension.
    """
    if has_density(model):
        variance = _variance(encoded(model, data, sentences, batch_size).mean)
    else:
        variance = information.variance_of_means(posterior_chains(model, data, seed, sentences, chains, batch_size))
    return int((variance > ACTIVE_VARIANCE).sum()), variance.tolist()


def has_bound(model: LatentModel) -> bool:
    """Whether an encoder gives a bound on the likelihood: under a tilted prior it would be one up to log Z."""
    return model.encoder is not None and not model.config.prior.is_tilted


def has_density(model: LatentModel) -> bool:
    """Whether z is a sample of a q(z|x) that is known: an encoder's, with no chain after it."""
    return model.encoder is not None and not model.method.has_chain


def posterior_chains(
    model: LatentModel,
    data: Dataset,
    seed: int,
    samples: int = 100,
    chains: int = 10,
    batch_size: int = 64,
    world: World = ALONE,
) -> Float[Tensor, "samples chains latent"]:
    """Several posterior samples of z for each of some held-out samples of x, in float64 on the CPU.

    Args:
        model: the model.
        data: the held-out samples.
        seed: of the chains.
        samples: how many of them, spread evenly (0: all).
        chains: posterior chains of each.
        batch_size: chains run at once.
        world: the processes that share the batches; the chains are those of one process.
    """
    rows = spread(len(data), samples).repeat(chains)
    latents = torch.zeros(len(rows), model.config.prior.dimensions, dtype=torch.float64)
    for number, batch in enumerate(data.groups(rows, batch_size)):
        if not world.owns(number):
            continue
        x = data.batch(rows[batch]).to(model.device)
        z = model.infer(x, stream(seed, "evaluation", number, 3, device=model.device))
        latents[torch.from_numpy(batch)] = z.double().cpu()
    world.sum([latents])
    return latents.view(-1, chains, latents.shape[1])


@dataclasses.dataclass(frozen=True)
class UseOfLatents:
    """Whether z is used, on a subset of held-out samples of x. A figure that is not known is None."""

    latent_chains: int
    """Posterior chains of each sample."""
    active_units: int
    """Dimensions of z whose posterior mean varies over samples (see `active_units`)."""
    density: Density
    """What q(z|x) is in the two figures below: Gaussians fitted to the chains, or the encoder's own."""
    mutual_information: float
    """I_q(x; z) in nats, log of the number of samples at most (see `information`)."""
    kl: float | None
    """Mean KL(q(z|x) ‖ p(z)) in nats, without bias, so a small one may fall below 0; None without the prior's log Z."""

    def to_dict(self) -> dict[str, float | str]:
        """The figures that are known, by name."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


@dataclasses.dataclass(frozen=True)
class LatentUse(UseOfLatents):
    """Whether a model of text uses z."""

    latent_sentences: int
    """Sentences that the figures are of."""
    reconstruction_bleu: float | None
    """Corpus BLEU (sacrebleu, text as it is) of greedy reconstructions, 100 for copies; None without sacrebleu."""


@dataclasses.dataclass(frozen=True)
class ImageLatentUse(UseOfLatents):
    """Whether a model of images uses z."""

    latent_images: int
    """Images that the figures are of."""


def latent_use(
    model: LatentModel,
    text: EncodedText,
    tokenizer: "Tokenizer",
    seed: int,
    sentences: int = 100,
    chains: int = 10,
    log_normaliser: float | None = None,
    world: World = ALONE,
) -> LatentUse:
    """Measure whether z is used.

    Args:
        model: the model.
        text: held-out sentences.
        tokenizer: the model's.
        seed: of the chains.
        sentences: how many sentences, at least 2, spread evenly over the text (0: all).
        chains: posterior chains a sentence, at least 2.
        log_normaliser: log Z of an EBM prior, for the KL; that of a Gaussian is 0.
        world: the processes that share the chains; the figures are those of one process.
    """
    samples = posterior_chains(model, text, seed, sentences, chains, world=world)
    use = _use_of(samples, model, text, log_normaliser)
    bleu_score = _reconstruction_bleu(model, text, tokenizer, seed, samples[:, 0])
    return LatentUse(**vars(use), latent_sentences=len(samples), reconstruction_bleu=bleu_score)


def latent_use_of_images(
    model: LatentModel,
    images: Dataset,
    seed: int,
    most: int = 100,
    chains: int = 10,
    log_normaliser: float | None = None,
    world: World = ALONE,
) -> ImageLatentUse:
    """Measure whether z is used by a model of images.

    Args:
        model: the model.
        images: held-out images.
        seed: of the chains.
        most: how many images, at least 2, spread evenly (0: all).
        chains: posterior chains an image, at least 2.
        log_normaliser: log Z of an EBM prior, for the KL; that of a Gaussian is 0.
        world: the processes that share the chains; the figures are those of one process.
    """
    samples = posterior_chains(model, images, seed, most, chains, world=world)
    return ImageLatentUse(**vars(_use_of(samples, model, images, log_normaliser)), latent_images=len(samples))


def _use_of(
    samples: Float[Tensor, "samples chains latent"], model: LatentModel, data: Dataset, log_normaliser: float | None
) -> UseOfLatents:
    """The figures that posterior chains tell; `samples` are those of as many samples of x, spread evenly."""
    known = log_normaliser if model.config.prior.is_tilted else 0.0
    density: Density
    if has_density(model):
        q = encoded(model, data, len(samples))
        variance = _variance(q.mean)
        told = information.mutual_information(samples, *q).item()
        density, entropies = "encoder", information.entropy(q.log_variance)
    else:
        variance = information.variance_of_means(samples)
        told = (
            information.mutual_information(samples, *information.fitted_gaussian(samples)).item()
            if len(samples) > 1
            else 0.0
        )
        density, entropies = "fitted-gaussian", information.entropy_of_chains(samples)
    return UseOfLatents(
        latent_chains=samples.shape[1],
        active_units=int((variance > ACTIVE_VARIANCE).sum()),
        density=density,
        mutual_information=told,
        kl=None if known is None else _kl(model, samples, entropies, known),
    )


def _variance(means: Float[Tensor, "samples latent"]) -> Float[Tensor, " latent"]:
    """Variance over samples of x of the mean of q; 0 of a single one."""
    return means.var(0) if len(means) > 1 else torch.zeros_like(means[0])


def _kl(
    model: LatentModel,
    samples: Float[Tensor, "sentences chains latent"],
    entropies: Float[Tensor, " sentences"],
    log_normaliser: float,
) -> float:
    z = samples.to(model.prior.origin.dtype).to(model.device)
    return information.kl_to_prior(z, entropies, model.prior, log_normaliser).mean().item()


def _reconstruction_bleu(
    model: LatentModel,
    text: EncodedText,
    tokenizer: "Tokenizer",
    seed: int,
    latents: Float[Tensor, "sentences latent"],
) -> float | None:
    """BLEU of sentences written greedily from one posterior sample each."""
    if find_spec("sacrebleu") is None:
        return None
    originals = [to_text(tokenizer, text.sentence(int(row))) for row in spread(len(text), len(latents))]
    z = latents.to(model.prior.origin.dtype).to(model.device)
    greedy = Decoding("greedy", max_length=model.config.longest)
    ids = decode(model.writer, z, greedy, stream(seed, "decoding", 0, device=model.device))
    return bleu([to_text(tokenizer, words) for words in ids], originals)[0]


def bleu(written: list[str], originals: list[str]) -> tuple[float, str]:
    """Corpus BLEU of sentences against the ones that they should be, and sacrebleu's signature.

    Words are what stands between blanks: the text is tokenised already.

    Raises:
        UsageError: sacrebleu is not installed.
    """
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError:
        raise UsageError("BLEU needs sacrebleu: pip install 'textebm[bleu]'") from None
    metric = BLEU(tokenize="none", force=True)
    score = metric.corpus_score(written, [originals])
    return score.score, str(metric.get_signature())


def spread(available: int, wanted: int) -> NDArray[np.int64]:
    """`wanted` row numbers spread evenly over `available` rows (0: all of them)."""
    if wanted == 0 or wanted >= available:
        return np.arange(available, dtype=np.int64)
    return np.linspace(0, available - 1, wanted).round().astype(np.int64)


def unigram_perplexity(train: EncodedText, held_out: EncodedText, vocab_size: int) -> float:
    """Perplexity a word of an add-one unigram model of the training split: the least to be beaten.

    Args:
        train: what the words are counted in.
        held_out: what is scored.
        vocab_size: number of token ids; every one but <pad> and <bos> may be written.
    """
    counts = _counts(train, vocab_size)[FIRST_OUTPUT:] + 1
    log_probs = np.log(counts / counts.sum())
    total = float(_counts(held_out, vocab_size)[FIRST_OUTPUT:] @ log_probs)
    return math.exp(-total / (held_out.report.words + len(held_out)))


def _counts(text: EncodedText, vocab_size: int) -> NDArray[np.float64]:
    """(vocabulary,) how often each token id occurs, one end of sentence for each sentence."""
    counts = np.zeros(vocab_size)
    for piece in text.pieces:
        counts += np.bincount(piece.ids, minlength=vocab_size)
    counts[EOS] = len(text)
    return counts
