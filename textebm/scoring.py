"""What a model says of each sentence, or image: the energy of its latents, its reconstruction, its marginal likelihood.

    from textebm import generation, scoring
    model, tokenizer = generation.load(folder)
    for score in scoring.score_sentences(model, tokenizer, ["the market fell", "he was a good man"]):
        print(score.text, score.energy, score.log_likelihood_per_word)

Energies and log-likelihoods are means over posterior samples by the chain of training, whose noise is keyed by the
content of x (see `latent_space`): they depend on nothing that is scored beside it. The marginal likelihood is that of
`marginal`, the one that `textebm likelihood` measures.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from textebm import evaluation, latent_space, marginal
from textebm.data.dataset import Dataset
from textebm.data.text import EncodedText
from textebm.errors import CheckpointError
from textebm.latent_space import unwatched
from textebm.model.latent_model import LatentModel
from textebm.model.recurrent import UNK

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BATCH = 64
"""Sentences of a plain language model that are scored together: memory and speed, not the figures."""


@dataclasses.dataclass(frozen=True)
class SentenceScore:
    """What a model says of a sentence. NLL and log-likelihoods in nats."""

    text: str
    """The sentence."""
    words: int
    """Its words, the end of the sentence included."""
    unknown_words: int
    """Tokens of it that are <unk>, as which words outside the vocabulary are read."""
    energy: float | None
    """−f(z), a mean over its posterior samples; None of a plain language model, which has no z."""
    log_likelihood: float
    """log p(x|z), a mean over the same samples; of a plain language model log p(x)."""
    log_likelihood_per_word: float
    """The same, divided by `words`."""
    marginal_nll: float | None
    """−log p(x), an upper bound in expectation (exact of a plain language model); None where it is withheld."""
    marginal_nll_per_word: float | None
    """The same, divided by `words`."""
    effective_samples: float | None
    """Of the samples behind `marginal_nll`; None where nothing is estimated."""
    withheld: str | None
    """Why there is no `marginal_nll`, where there is none."""

    def as_dict(self) -> dict[str, Any]:
        """In JSON types."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class ImageScore:
    """What a model says of an image. Log-likelihoods in nats, of a density of pixels in [−1, 1]."""

    image: str
    """Its name: a file, or its number in a split."""
    energy: float
    """−f(z), a mean over its posterior samples."""
    log_likelihood: float
    """log p(x|z), a mean over the same samples."""
    mse: float
    """Mean squared error of g(z) over channels and pixels in [−1, 1], a mean over the same samples."""
    marginal_nll: None
    """Not estimated of images."""
    withheld: str
    """Why."""

    def as_dict(self) -> dict[str, Any]:
        """In JSON types."""
        return dataclasses.asdict(self)


NOT_ASKED_FOR = "it was not asked for: --samples says how many samples of z a sentence estimate it"
OF_IMAGES = "the marginal likelihood is estimated of sentences alone"


def score_sentences(
    model: LatentModel,
    tokenizer: "Tokenizer",
    sentences: Sequence[str],
    seed: int = 0,
    chains: int = 1,
    steps: int | None = None,
    settings: marginal.Settings | None = None,
    watch: Callable[[int], object] = unwatched,
) -> list[SentenceScore]:
    """Score sentences, in their order.

    Args:
        model: a model of text, on its device.
        tokenizer: its tokeniser.
        sentences: none may be empty, and of each at least a word must be known.
        seed: of the chains, and of the marginal likelihood.
        chains: posterior samples of each that energy and log-likelihood are means over.
        steps: overrides the length K1 of those chains.
        settings: how the marginal likelihood is estimated; None: it is left out.
        watch: told how many sentences are just done, once for each of the two parts.

    Raises:
        DataError: a sentence is empty, or no word of it is known.
        CheckpointError: the model is broken: a figure is not finite.
    """
    text = latent_space.typed(tokenizer, sentences)
    if model.has_latent:
        found = latent_space.posterior(model, text, seed, chains=chains, steps=steps, watch=watch)
        energies: Sequence[float | None] = _finite(found.energies.mean(1))
        log_likelihoods = _finite(found.log_likelihoods.mean(1))
        estimated = None if settings is None else marginal.estimate(model, text, seed, settings, tick=watch)
        nll, effective, withheld = _marginal(estimated, len(text))
    else:  # nothing is latent, and nothing is estimated
        log_likelihoods = _finite(_exact(model, text, watch))
        energies = [None] * len(text)
        nll, effective, withheld = [-value for value in log_likelihoods], [None] * len(text), None
    words = (1 + text.words(evaluation.spread(len(text), 0))).tolist()
    return [
        SentenceScore(
            text=sentence,
            words=words[row],
            unknown_words=int((text.sentence(row) == UNK).sum()),
            energy=energies[row],
            log_likelihood=log_likelihoods[row],
            log_likelihood_per_word=log_likelihoods[row] / words[row],
            marginal_nll=nll[row],
            marginal_nll_per_word=None if nll[row] is None else nll[row] / words[row],
            effective_samples=effective[row],
            withheld=withheld,
        )
        for row, sentence in enumerate(sentences)
    ]


def score_images(
    model: LatentModel,
    images: Dataset,
    names: Sequence[str],
    seed: int = 0,
    n: int = 0,
    chains: int = 1,
    steps: int | None = None,
    watch: Callable[[int], object] = unwatched,
) -> list[ImageScore]:
    """Score images, in their order.

    Args:
        model: a model of images, on its device.
        images: what is scored.
        names: of those that are.
        seed: of the chains.
        n: score only so many, spread evenly (0: all).
        chains: posterior samples of each.
        steps: overrides the length K1 of the chains.
        watch: told how many images are just done.

    Raises:
        UsageError: it is a model of text.
        CheckpointError: the model is broken: a figure is not finite.
    """
    size, sigma = model.painter.shape.dimensions, model.painter.config.sigma
    found = latent_space.posterior(model, images, seed, n, chains, steps, watch)
    energies, log_likelihoods = _finite(found.energies.mean(1)), _finite(found.log_likelihoods.mean(1))
    return [
        ImageScore(name, energy, value, evaluation.mean_squared_error(-value, size, sigma), None, OF_IMAGES)
        for name, energy, value in zip(names, energies, log_likelihoods, strict=True)
    ]


def _finite(values: torch.Tensor) -> list[float]:
    """The figures of a model that works."""
    if not values.isfinite().all():
        broken = int((~values.isfinite()).sum())
        raise CheckpointError(f"{broken} of {len(values)} figures are not finite: the model is broken")
    numbers: list[float] = values.tolist()
    return numbers


def _exact(model: LatentModel, text: EncodedText, watch: Callable[[int], object]) -> torch.Tensor:
    """(sentences,) log p(x) under a plain language model."""
    found = torch.empty(len(text), dtype=torch.float64)
    rows = evaluation.spread(len(text), 0)
    for places in text.groups(rows, BATCH):
        x = text.batch(places).to(model.device)
        found[torch.from_numpy(places)] = model.log_likelihood(x).double().cpu()
        watch(len(places))
    return found


def _marginal(
    found: marginal.Marginal | None, sentences: int
) -> tuple[list[float | None], list[float | None], str | None]:
    """−log p(x) of each sentence, the effective samples behind it, and why it is withheld, if it is."""
    nothing: list[float | None] = [None] * sentences
    if found is None:
        return nothing, nothing, NOT_ASKED_FOR
    effective: list[float | None] = nothing if found.effective_samples is None else found.effective_samples.tolist()
    if found.withheld is not None:
        return nothing, effective, found.withheld
    nll: list[float | None] = (found.log_z - found.log_means).tolist()
    return nll, effective, None


@dataclasses.dataclass(frozen=True)
class Summary:
    """Scores of several sentences in one line each figure."""

    sentences: int
    words: int
    """Ends of sentences included."""
    energy: float | None
    """Mean a sentence."""
    log_likelihood: float
    """Mean a sentence."""
    perplexity: float
    """exp of the negative log-likelihood a word, under posterior samples."""
    marginal_nll: float | None
    """Mean a sentence."""
    marginal_perplexity: float | None
    """exp of it a word."""
    withheld: str | None


def summarise(scores: Sequence[SentenceScore]) -> Summary:
    """Means over sentences; perplexities are of all words together."""
    words = sum(score.words for score in scores)
    log_likelihood = math.fsum(score.log_likelihood for score in scores) / len(scores)
    energies = [score.energy for score in scores if score.energy is not None]
    known = [score.marginal_nll for score in scores if score.marginal_nll is not None]
    nll = math.fsum(known) / len(known) if known else None
    return Summary(
        sentences=len(scores),
        words=words,
        energy=math.fsum(energies) / len(energies) if energies else None,
        log_likelihood=log_likelihood,
        perplexity=evaluation.perplexity_a_word(-log_likelihood, len(scores), words),
        marginal_nll=nll,
        marginal_perplexity=None if nll is None else evaluation.perplexity_a_word(nll, len(scores), words),
        withheld=scores[0].withheld,
    )
