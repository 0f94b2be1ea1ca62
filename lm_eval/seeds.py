"""Two methods, each trained with several seeds: how much lower is the perplexity of one, and how sure is that?

A run with one seed says nothing about the next one, and sentences of one run say nothing about seeds. So both are drawn
with replacement: pairs of runs that share a seed, then the judges, then the sentences that were scored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from textebm.errors import UsageError
from textebm.lm_eval.bootstrap import LEVEL, ends, resampled
from textebm.lm_eval.perplexity import SentenceScores

LEAST_SEEDS = 2

Runs = Mapping[int, Sequence[SentenceScores]]
"""Seed of the model -> scores of the sentences by each judge, the judges in one order everywhere."""


@dataclass(frozen=True)
class SeedsDifference:
    """By how much the perplexity of a method differs from another's, over seeds.

    Args:
        log_difference: mean log-perplexity of the first minus that of the second, in nats a token; negative where the
            first is more probable.
        interval: of the log-difference, at `level`.
        difference: the same in perplexity, of means over runs.
        difference_interval: of that.
        seeds: number of pairs of runs.
        judges: number of judges a run.
        level: share of the time that such intervals hold the truth.
        method: `paired-sentences` where both methods were scored on the same sentences, which are then drawn together;
            `independent-sentences` where each run has sentences of its own.
    """

    log_difference: float
    interval: tuple[float, float]
    difference: float
    difference_interval: tuple[float, float]
    seeds: int
    judges: int
    level: float
    method: Literal["paired-sentences", "independent-sentences"]

    @property
    def ratio(self) -> float:
        """Perplexity of the first over that of the second (geometric means over runs)."""
        return float(np.exp(self.log_difference))

    @property
    def ratio_interval(self) -> tuple[float, float]:
        """Of the ratio."""
        low, high = np.exp(self.interval)
        return float(low), float(high)


def seeds_difference(
    first: Runs, second: Runs, *, paired: bool, resamples: int = 1000, level: float = LEVEL, seed: int = 0
) -> SeedsDifference:
    """The difference of two methods' perplexities over seeds: a hierarchical bootstrap, seeds and then sentences.

    A resample draws as many pairs of runs as there are (a pair shares its seed, so that the order of the data and the
    like cancel), as many judges as there are, and in each run as many sentences as it has, all with replacement. The
    interval is the resamples' percentile interval, in which the part that the drawn seeds add is widened: among S
    seeds, drawing with replacement finds only (S − 1)/S of their variance, and S values tell that variance badly. The
    factor √(S/(S − 1)) · t/z, with the quantiles of Student's t of S − 1 degrees of freedom and of the normal
    distribution, makes up for both (after the expanded percentile interval of Hesterberg, The American Statistician 69,
    2015). It is 2.69 for three seeds and goes to 1 for many. Without it, intervals from three seeds that say 95 % hold
    the truth in some 70 % of cases.

    Args:
        first, second: runs of either method by seed; both have the same seeds, or they could not be paired.
        paired: whether all runs were scored on the same sentences in the same order (RPPL: the test split); a resample
            then takes the same sentences everywhere. Else (FPPL) each run's own sentences are drawn by themselves.
        resamples: number of resamples.
        level: share of the resamples between the ends.
        seed: of the draws.

    Raises:
        UsageError: the methods have other seeds, fewer than two, other numbers of judges, one sentence only, or
            sentences that are not the same where they should be.
    """
    seeds = _check(first, second, paired)
    judges = len(first[seeds[0]])
    drawn = _drawn_perplexities(first, second, seeds, paired, resamples, seed)
    whole = np.array([[[run.perplexity for run in runs[s]] for s in seeds] for runs in (first, second)])
    chosen = _Chosen.draw(np.random.default_rng([seed, 0]), resamples, len(seeds), judges)
    factor = _widening(len(seeds), level)
    logs = chosen.ends(np.log(whole[0]) - np.log(whole[1]), np.log(drawn[0]) - np.log(drawn[1]), factor, level)
    points = chosen.ends(whole[0] - whole[1], drawn[0] - drawn[1], factor, level)
    return SeedsDifference(
        log_difference=float(np.mean(np.log(whole[0]) - np.log(whole[1]))),
        interval=logs,
        difference=float(np.mean(whole[0] - whole[1])),
        difference_interval=points,
        seeds=len(seeds),
        judges=judges,
        level=level,
        method="paired-sentences" if paired else "independent-sentences",
    )


def _check(first: Runs, second: Runs, paired: bool) -> list[int]:
    """The seeds, in order."""
    if set(first) != set(second):
        raise UsageError(
            f"runs are paired by seed, and the methods have other seeds: {sorted(first)}, {sorted(second)}"
        )
    seeds = sorted(first)
    if len(seeds) < LEAST_SEEDS:
        raise UsageError(
            f"a difference between methods needs runs with at least {LEAST_SEEDS} seeds, and there are {len(seeds)}: "
            "one run says nothing about the next"
        )
    runs = [run for runs in (first, second) for s in seeds for run in runs[s]]
    if len({len(each) for each in (*first.values(), *second.values())}) != 1:
        raise UsageError("every run must have been scored by the same number of judges")
    if min(len(run.tokens) for run in runs) < 2:
        raise UsageError("a run with one sentence says nothing about the next sentence: at least 2 are needed")
    if paired and any(not np.array_equal(run.tokens, runs[0].tokens) for run in runs):
        raise UsageError("these runs were not scored on the same sentences, so they cannot be paired by sentence")
    return seeds


def _drawn_perplexities(
    first: Runs, second: Runs, seeds: Sequence[int], paired: bool, resamples: int, seed: int
) -> NDArray[np.float64]:
    """Perplexities when only sentences are drawn; shape (2, seeds, judges, resamples)."""
    by_run = [list(runs[s]) for runs in (first, second) for s in seeds]
    if paired:
        flat = resampled([run for judged in by_run for run in judged], resamples, [seed, 1])
    else:
        flat = np.concatenate([resampled(judged, resamples, [seed, 1, n]) for n, judged in enumerate(by_run)])
    return flat.reshape(2, len(seeds), -1, resamples)


@dataclass(frozen=True)
class _Chosen:
    """Which seeds and which judges each resample takes: shapes (resamples, seeds), (resamples, judges)."""

    seeds: NDArray[np.int64]
    judges: NDArray[np.int64]

    @classmethod
    def draw(cls, random: np.random.Generator, resamples: int, seeds: int, judges: int) -> "_Chosen":
        return cls(random.integers(seeds, size=(resamples, seeds)), random.integers(judges, size=(resamples, judges)))

    def ends(
        self, whole: NDArray[np.float64], drawn: NDArray[np.float64], factor: float, level: float
    ) -> tuple[float, float]:
        """The interval of the mean difference.

        Args:
            whole: difference of each pair of runs; shape (seeds, judges).
            drawn: the same when sentences are drawn; shape (seeds, judges, resamples).
            factor: by how much the part of the seeds is widened.
            level: share of the resamples between the ends.
        """
        number = np.arange(len(self.seeds))[:, None, None]
        all_drawn = drawn.transpose(2, 0, 1)[number, self.seeds[:, :, None], self.judges[:, None, :]].mean((1, 2))
        of_seeds = whole.mean(1)[self.seeds].mean(1)
        values = whole.mean() + factor * (of_seeds - whole.mean()) + (all_drawn - of_seeds)
        return ends(values, level)


def _widening(seeds: int, level: float) -> float:
    """√(S/(S − 1)) · t/z; see `seeds_difference`."""
    upper = (1 + level) / 2
    return float(np.sqrt(seeds / (seeds - 1)) * student_quantile(upper, seeds - 1) / NormalDist().inv_cdf(upper))


def student_quantile(probability: float, degrees: int) -> float:
    """The quantile of Student's t distribution, by bisection on its distribution function.

    Args:
        probability: at least one half.
        degrees: of freedom, at least 1.
    """
    low, high = 0.0, 1.0
    while _student_cdf(high, degrees) < probability:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_cdf(middle, degrees) < probability else (low, middle)
    return (low + high) / 2


def _student_cdf(t: float, degrees: int) -> float:
    """P(T ≤ t) for t ≥ 0: the finite sums of Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle = np.arctan2(t, np.sqrt(degrees))
    sine, cosine = np.sin(angle), np.cos(angle)
    odd = degrees % 2 == 1
    term, total = (cosine, cosine) if odd else (1.0, 1.0)
    for k in range(3 if odd else 2, degrees - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    if odd:
        inner = 2 / np.pi * (angle + (sine * total if degrees > 1 else 0.0))
    else:
        inner = sine * total
    return float((1 + inner) / 2)
