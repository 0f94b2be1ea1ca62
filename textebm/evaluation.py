"""What a model says about held-out sentences: likelihood under posterior and prior samples, energies, active units."""

import dataclasses
import math

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from textebm.data.batches import sequential_batches
from textebm.data.text import EncodedText
from textebm.model import encoder
from textebm.model.bound import kl_divergence
from textebm.model.inference import Request
from textebm.model.latent_ebm import LatentEBM
from textebm.model.random import stream
from textebm.model.recurrent import EOS, FIRST_OUTPUT, TextBatch

ACTIVE_VARIANCE = 0.01
"""A dimension of z is active when the variance over sentences of its posterior mean exceeds this."""


@dataclasses.dataclass(frozen=True)
class Validation:
    """What is measured on held-out sentences. NLL in nats a sentence; perplexity a word, end of sentence counted.

    So the figures of vocabularies of words and of byte pairs compare.
    """

    sentences: int
    """Sentences scored."""
    tokens: int
    """Their tokens, end of sentence included."""
    words: int
    """Their words, end of sentence included; in a vocabulary of words as many as tokens."""
    reconstruction_nll: float
    """Mean −log p(x|z), z inferred as in training (one sample, no dropout; see `LatentEBM.infer`)."""
    prior_nll: float
    """Mean −log p(x|z), z from the prior chain, unrelated to x."""
    gaussian_nll: float
    """Mean −log p(x|z), z from the reference Gaussian: the points where the prior chains start."""
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
        return math.exp(min(nll * self.sentences / self.words, 700.0))

    def to_dict(self) -> dict[str, float]:
        """All figures by name, perplexities included."""
        perplexities = ("reconstruction_perplexity", "prior_perplexity", "gaussian_perplexity")
        return {**dataclasses.asdict(self), **{name: getattr(self, name) for name in perplexities}}


@dataclasses.dataclass(frozen=True)
class EncoderValidation(Validation):
    """What is measured besides where there is an encoder."""

    kl: float
    """Mean KL(q(z|x) ‖ p(z)) a sentence in nats, up to log Z of an EBM prior, from one sample of q."""
    negative_elbo: float
    """Mean −log p(x|z) + KL(q(z|x) ‖ p(z)) at the same sample: with a Gaussian prior, an upper bound on −log p(x)."""


def validate(model: LatentEBM, text: EncodedText, seed: int, sentences: int = 0, batch_size: int = 64) -> Validation:
    """Score held-out sentences.

    Args:
        model: the model, on its device.
        text: the held-out sentences.
        seed: of the chains; the same seed gives the same chains, so that epochs compare.
        sentences: score only this many, spread evenly over the text (0: all).
        batch_size: sentences scored at once.
    """
    kind = Validation if model.encoder is None else EncoderValidation
    names = [f.name for f in dataclasses.fields(kind)][3:]
    rows = _spread(len(text), sentences)
    totals = torch.zeros(len(names), dtype=torch.float64)
    tokens, words = 0, len(rows) + int(text.words(rows).sum())
    for number, batch in enumerate(sequential_batches(text.lengths[rows], batch_size)):
        x = text.batch(rows[batch]).to(model.device)
        tokens += int(x.lengths.sum())
        totals += _validate_batch(model, x, seed, number).cpu()
    means = (totals / len(rows)).tolist()
    return kind(sentences=len(rows), tokens=tokens, words=words, **dict(zip(names, means, strict=True)))


def _validate_batch(model: LatentEBM, x: TextBatch, seed: int, number: int) -> Float[Tensor, " figures"]:
    """Sums over one batch, in the order of the fields of Validation, or of EncoderValidation."""
    n = len(x.lengths)
    conditioned = model.condition(x)
    noise = stream(seed, "evaluation", number, 0, device=model.device)
    moves = stream(seed, "evaluation", number, 1, device=model.device)
    gaussian = model.prior.sample_reference(n, moves)
    prior = model.prior.move(gaussian, moves)
    with torch.no_grad():
        posterior, start, q = model.posterior(Request(x, conditioned, model.config.inference, noise))
        latents = (posterior, prior, gaussian)
        figures = [-conditioned.log_prob(z) for z in latents]
        figures += [model.energy(z) for z in latents]
        figures += [z.norm(dim=1) for z in (posterior, prior, posterior - start, prior - gaussian)]
        if q is not None:  # start is the sample of q
            kl = kl_divergence(q, start, model.prior)
            figures += [kl, kl - conditioned.log_prob(start)]
    return torch.stack([f.double().sum() for f in figures])


def mutual_information(
    model: LatentEBM, text: EncodedText, seed: int, sentences: int = 0, batch_size: int = 64
) -> float:
    """Mutual information of x and z under the encoder in nats, over held-out sentences (see `encoder`).

    Args:
        model: a model with an encoder, on its device.
        text: the held-out sentences.
        seed: of the samples of q.
        sentences: take only this many, spread evenly over the text (0: all).
        batch_size: sentences encoded at once.
    """
    rows = _spread(len(text), sentences)
    batches = sequential_batches(text.lengths[rows], batch_size)
    with torch.no_grad():
        of_batches = [model.encode(text.batch(rows[batch]).to(model.device)) for batch in batches]
        q = encoder.DiagonalGaussian(*(torch.cat(parts) for parts in zip(*of_batches, strict=True)))
        z = q.sample(stream(seed, "evaluation", 0, 4, device=model.device))
        return float(encoder.mutual_information(q, z))


def active_units(
    model: LatentEBM, text: EncodedText, seed: int, sentences: int = 100, chains: int = 10, batch_size: int = 64
) -> tuple[int, list[float]]:
    """Dimensions of z whose posterior mean varies over sentences by more than 0.01 (Burda et al., 2016).

    The mean over a sentence's chains still carries 1/chains of the posterior's own variance, which alone would exceed
    the threshold; that share is estimated from the spread within sentences and taken off (one-way analysis of
    variance).

    Args:
        model: the model.
        text: held-out sentences.
        seed: of the chains.
        sentences: how many sentences, spread evenly over the text; among fewer than 2 nothing varies, and no unit is
            active.
        chains: posterior chains a sentence, at least 2.
        batch_size: chains run at once.

    Returns:
        The number of active units, and the corrected variance of each dimension.
    """
    rows = _spread(len(text), sentences).repeat(chains)
    samples = torch.empty(len(rows), model.config.prior.latent_dim, dtype=torch.float64)
    for number, batch in enumerate(sequential_batches(text.lengths[rows], batch_size)):
        x = text.batch(rows[batch]).to(model.device)
        z = model.infer(x, stream(seed, "evaluation", number, 3, device=model.device))
        samples[torch.from_numpy(batch)] = z.double().cpu()
    if len(rows) < 2 * chains:
        return 0, [0.0] * samples.shape[1]
    by_sentence = samples.view(-1, chains, samples.shape[1])
    variance = by_sentence.mean(1).var(0) - by_sentence.var(1).mean(0) / chains
    return int((variance > ACTIVE_VARIANCE).sum()), variance.tolist()


def _spread(available: int, wanted: int) -> NDArray[np.int64]:
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
