"""The marginal likelihood of held-out sentences, log p(x): estimated for a model with z, exact for one without.

What is summed up here is defined in `textebm.model.likelihood` and `textebm.model.ais`.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from textebm import evaluation
from textebm._version import __version__
from textebm.data.batches import sequential_batches
from textebm.data.text import EncodedText
from textebm.errors import UsageError
from textebm.lm_eval import bootstrap
from textebm.lm_eval.perplexity import SentenceScores
from textebm.lm_eval.signature import Signature
from textebm.model import ais, likelihood
from textebm.model.ais import LogNormaliser
from textebm.model.generators import ConditionedLikelihood
from textebm.model.latent_model import LatentModel
from textebm.model.proposals import Fit, FittedToChains, FromEncoder, Proposer
from textebm.model.random import stream
from textebm.model.recurrent import TextBatch

ProposalKind = Literal["auto", "chains", "encoder"]

TOKENS_AT_ONCE = 16_384
"""Tokens whose likelihood is computed together: it bounds the memory and changes no figure."""
FEW_SAMPLES = 0.02
"""Share of the samples below which the effective ones are too few for the bound to be near."""
FEW_CHAINS = 10
"""Effective chains of an annealed run below which its standard error says little."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the likelihood is estimated."""

    samples: int = 500
    """Samples of z a sentence."""
    fit: Fit = dataclasses.field(default_factory=Fit)
    """The proposal that they come from, where none is given."""
    plan: ais.Plan = dataclasses.field(default_factory=ais.Plan)
    """How log Z is found, where the prior is an EBM."""
    sentences_at_once: int = 16
    """Sentences worked on together; it changes no figure but by rounding."""


@dataclasses.dataclass(frozen=True)
class Marginal:
    """What was found of each sentence, and of the prior."""

    log_means: NDArray[np.float64]
    """(sentences,) log E_{p_0}[exp(f(z)) p(x|z)], estimated from below; of a model without z log p(x) itself."""
    log_likelihoods: NDArray[np.float64]
    """(sentences,) E[log p(x|z)] under the posterior."""
    effective_samples: NDArray[np.float64] | None
    """(sentences,) of the samples of z; None where nothing is estimated."""
    words: NDArray[np.int64]
    """(sentences,) words, ends of sentence included."""
    tokens: int
    """Of all sentences, ends included."""
    log_normaliser: LogNormaliser | None
    """log Z from both sides; None where it is exactly 0."""
    proposal: str | None
    """What the samples come from."""
    acceptance: float | None
    """Share of accepted moves in the chains that the proposal was fitted to."""

    @property
    def exact(self) -> bool:
        """Whether nothing is latent, so that nothing is estimated."""
        return self.effective_samples is None

    @property
    def log_z(self) -> float:
        """The larger estimate of log Z, in nats."""
        return 0.0 if self.log_normaliser is None else self.log_normaliser.larger

    @property
    def withheld(self) -> str | None:
        """Why there is no score, if there is none."""
        found = self.log_normaliser
        broken = int((~np.isfinite(self.log_means)).sum())
        if broken:
            return f"the likelihood of {broken} of {len(self.log_means)} sentences is not finite: the model is broken"
        if found is None or found.agrees:
            return None
        up, down = (run.log_normaliser.value for run in (found.forward, found.reverse))
        return (
            f"log Z is {up:.2f} by the forward and {down:.2f} by the reverse run: they differ by {abs(found.gap):.2f} "
            f"nats, more than {ais.LARGEST_GAP}, so neither is believed; more --ais-steps or --ais-settling may bring "
            "them together"
        )


@torch.no_grad()
def estimate(
    model: LatentModel,
    text: EncodedText,
    seed: int,
    settings: Settings | None = None,
    sentences: int = 0,
    proposer: Proposer | None = None,
    tick: Callable[[int], object] = lambda scored: None,
) -> Marginal:
    """The marginal likelihood of held-out sentences.

    Args:
        model: the model, on its device.
        text: the sentences.
        seed: of everything random; each sentence has streams of its own, so its figure depends on no other sentence.
        settings: how much is spent on it.
        sentences: score only this many, spread evenly over the text (0: all).
        proposer: where samples of z come from (default: see `make_proposer`).
        tick: called with a number of sentences whenever so many more are scored (progress).
    """
    settings = settings or Settings()
    proposer = proposer or make_proposer(model, settings.fit)
    rows = evaluation.spread(len(text), sentences)
    log_means, log_likelihoods, effective = (np.zeros(len(rows)) for _ in range(3))
    starts, accepted, tokens = [], [], 0
    for batch in sequential_batches(text.lengths[rows], settings.sentences_at_once):
        x = text.batch(rows[batch]).to(model.device)
        tokens += int(x.lengths.sum())
        if model.has_latent:
            weights, acceptance, start = _weigh(model, x, rows[batch], seed, settings.samples, proposer)
            log_means[batch] = weights.log_mean().cpu().numpy()
            log_likelihoods[batch] = weights.reconstruction().cpu().numpy()
            effective[batch] = weights.effective_samples().cpu().numpy()
            starts.append(start)
            accepted.append(acceptance)
        else:
            log_means[batch] = log_likelihoods[batch] = model.log_likelihood(x).double().cpu().numpy()
        tick(len(batch))
    known = [a for a in accepted if a is not None]
    return Marginal(
        log_means=log_means,
        log_likelihoods=log_likelihoods,
        effective_samples=effective if model.has_latent else None,
        words=1 + text.words(rows).astype(np.int64),
        tokens=tokens,
        log_normaliser=(
            ais.estimate(model.prior, settings.plan, seed, starts=torch.cat(starts))
            if model.config.prior.is_tilted
            else None
        ),
        proposal=proposer.name if model.has_latent else None,
        acceptance=float(np.mean(known)) if known else None,
    )


def make_proposer(model: LatentModel, fit: Fit, kind: ProposalKind = "auto") -> Proposer:
    """Where samples of z come from.

    Args:
        model: the model.
        fit: how a Gaussian is fitted to posterior chains, widened and mixed.
        kind: those chains, or the model's encoder; auto: the encoder where there is one.

    Raises:
        UsageError: an encoder is asked for, and the model has none.
    """
    if kind == "encoder" and model.encoder is None:
        raise UsageError("this model has no encoder to propose z: --proposal chains fits a Gaussian to chains")
    if kind == "chains" or model.encoder is None:
        return FittedToChains(model.prior, fit)
    return FromEncoder(model.prior, model.encode, fit)


def _weigh(
    model: LatentModel, x: TextBatch, rows: NDArray[np.int64], seed: int, samples: int, proposer: Proposer
) -> tuple[likelihood.Weights, float | None, torch.Tensor]:
    """The importance weights of a batch, the acceptance of its chains, and a posterior sample of each sentence."""

    def conditioned(copies: int) -> ConditionedLikelihood:
        return model.condition(x.repeated(copies))

    def sources(use: int) -> list[torch.Generator]:
        return [stream(seed, "likelihood", SENTENCES, int(row), use) for row in rows]

    proposal, acceptance = proposer(x, conditioned, sources(0))
    at_once = max(1, TOKENS_AT_ONCE // int(x.lengths.sum()))
    weights = likelihood.importance_weights(model.prior, conditioned, proposal, samples, sources(1), at_once)
    return weights, acceptance, weights.resampled(sources(2))


SENTENCES = 3
"""Key of the streams of sentences; those before it are of the runs of `ais.estimate`."""


@dataclasses.dataclass(frozen=True)
class Score:
    """The marginal NLL of a text, how sure it is, how it was computed, and what stands beside it."""

    score: float | None
    """Mean −log p(x) a sentence in nats; None where it is withheld."""
    interval: tuple[float, float] | None
    """95 % bootstrap interval over sentences: it says nothing about how near the bound is."""
    perplexity: float | None
    """exp of the NLL a word, end of sentence included."""
    perplexity_interval: tuple[float, float] | None
    """The same of the perplexity."""
    signature: Signature
    """How it was computed."""
    details: dict[str, Any]
    """What it is made of, in JSON types."""

    def to_json(self) -> str:
        """The score as one JSON object."""
        described = {
            "metric": METRIC,
            "score": self.score,
            "interval": self.interval,
            "perplexity": self.perplexity,
            "perplexity_interval": self.perplexity_interval,
            "signature": str(self.signature),
            "details": self.details,
        }
        return json.dumps(described, ensure_ascii=False, indent=2, allow_nan=False)


METRIC = "marginal-nll"


def summarise(
    found: Marginal, facts: dict[str, str], settings: Settings, resamples: int = 1000, seed: int = 0
) -> Score:
    """The score of a text out of what was found of its sentences.

    Args:
        found: of each sentence, and of the prior.
        facts: what was scored, for the signature.
        settings: how it was estimated.
        resamples: resampled texts behind the intervals.
        seed: of the estimate and of the intervals.
    """
    signature = Signature(
        {
            "metric": METRIC,
            **facts,
            "sentences": len(found.words),
            "eos": "yes",
            "bound": "exact" if found.exact else "upper",
            **({} if found.exact else {"samples": settings.samples, "proposal": found.proposal}),
            **({} if found.exact else {"log-normaliser": _method(found, settings.plan)}),
            "interval": f"bootstrap-{resamples}",
            "seed": seed,
            "version": __version__,
        }
    )
    details = {
        "sentences": len(found.words),
        "words": int(found.words.sum()),
        "tokens": found.tokens,
        "bound": EXACT if found.exact else BOUND,
        "withheld": found.withheld,
        "log_normaliser": _describe_log_normaliser(found, settings.plan),
        "importance": _describe_importance(found, settings.samples),
        "reconstruction": _describe_reconstruction(found),
        "warnings": _warnings(found, settings.samples),
    }
    if found.withheld is not None:
        return Score(None, None, None, None, signature, details)
    log_probs = found.log_means - found.log_z
    scores = SentenceScores(log_probs, found.words)
    return Score(
        score=float(-log_probs.mean()),
        interval=bootstrap.mean_interval(-log_probs, resamples=resamples, seed=seed),
        perplexity=scores.perplexity,
        perplexity_interval=bootstrap.interval(scores, resamples=resamples, seed=seed),
        signature=signature,
        details=details,
    )


EXACT = "exact: nothing is latent, and nothing is estimated"
BOUND = (
    "upper: the importance-weighted NLL is in expectation at least the true one, up to the error of log Z, of which "
    "the larger estimate is taken"
)


def text_digest(text: EncodedText, sentences: int = 0) -> str:
    """First digits of the SHA-256 of the token ids that are scored."""
    digest = hashlib.sha256()
    for row in evaluation.spread(len(text), sentences):
        digest.update(f"{' '.join(map(str, text.sentence(int(row)).tolist()))}\n".encode())
    return digest.hexdigest()[:12]


def vocabulary_digest(words: dict[str, int]) -> str:
    """`model-SIZE-DIGITS`: the size of a vocabulary, and first digits of the SHA-256 of its entries in order."""
    entries = sorted(words, key=words.__getitem__)
    return f"model-{len(entries)}-{hashlib.sha256(json.dumps(entries).encode()).hexdigest()[:12]}"


def _method(found: Marginal, plan: ais.Plan) -> str:
    if found.log_normaliser is None:
        return "0"
    kernel = "mala" if plan.leapfrogs == 1 else f"hmc{plan.leapfrogs}"
    return f"ais-{plan.chains}x{plan.steps}-{plan.path}-{kernel}-settling{plan.settling}-larger-of-two"


def _describe_log_normaliser(found: Marginal, plan: ais.Plan) -> dict[str, Any]:
    both = found.log_normaliser
    if both is None:
        return {"method": "exact", "used": 0.0}
    start = "exact samples of the prior: a bound from above" if both.exact_start else "long chains: an estimate"
    return {
        "method": _method(found, plan),
        "used": _finite(both.larger),
        "difference": _finite(both.gap),
        "largest_difference": ais.LARGEST_GAP,
        "forward": {**_describe_run(both.forward), "start": "the reference Gaussian: a bound from below"},
        "reverse": {**_describe_run(both.reverse), "start": start},
    }


def _describe_run(run: ais.Run) -> dict[str, float | None]:
    of_mean = {key: _finite(value) for key, value in dataclasses.asdict(run.log_normaliser).items()}
    return {**of_mean, "acceptance": run.acceptance}


def _finite(value: float) -> float | None:
    """JSON has no number for what is none."""
    return float(value) if math.isfinite(value) else None


def _describe_importance(found: Marginal, samples: int) -> dict[str, Any] | None:
    if found.effective_samples is None:
        return None
    quantiles = np.quantile(found.effective_samples, (0, 0.05, 0.5)).tolist()
    return {
        "samples": samples,
        "proposal": found.proposal,
        "acceptance_of_its_chains": found.acceptance,
        "effective_samples": {
            "mean": float(found.effective_samples.mean()),
            **dict(zip(("smallest", "5 %", "median"), quantiles, strict=True)),
        },
        "nll_before_log_z": _finite(-found.log_means.mean()),
    }


def _describe_reconstruction(found: Marginal) -> dict[str, Any] | None:
    """The two parts of the NLL: −log p(x) = E[−log p(x|z)] + KL(p(z|x) ‖ p(z)), both under the posterior."""
    if found.exact:
        return None
    divergence = (found.log_likelihoods - found.log_means).mean() + found.log_z
    return {
        "nll": _finite(-found.log_likelihoods.mean()),
        "kl": _finite(divergence) if found.withheld is None else None,
        "under": "the posterior, by the importance weights",
    }


def _warnings(found: Marginal, samples: int) -> list[str]:
    warnings = []
    if found.effective_samples is not None and np.median(found.effective_samples) < FEW_SAMPLES * samples:
        warnings.append(
            f"the median sentence has {np.median(found.effective_samples):.1f} effective samples out of {samples}: the "
            "bound may be far off; try more --samples, more --chain-steps, or the other --covariance"
        )
    if found.log_normaliser is not None:
        runs = (found.log_normaliser.forward, found.log_normaliser.reverse)
        fewest = min(run.log_normaliser.effective_samples for run in runs)
        if fewest < FEW_CHAINS:
            warnings.append(
                f"an estimate of log Z rests on {fewest:.1f} effective chains, too few for its standard error to mean "
                "much; try more --ais-steps or --ais-chains"
            )
    return warnings
