"""Perplexity: the one place where log-probabilities and tokens are summed."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from textebm.errors import JudgeError


@dataclass(frozen=True)
class SentenceScores:
    """What a judge says of each sentence: 16 bytes a sentence, in double precision.

    Args:
        log_probs: log-probability of each sentence in nats, end of sentence included where that is counted; shape
            (sentences,).
        tokens: number of tokens that it covers: words, and 1 for the end where that is counted; shape (sentences,).
    """

    log_probs: NDArray[np.float64]
    tokens: NDArray[np.int64]

    @property
    def total_tokens(self) -> int:
        """Number of tokens of the whole text."""
        return int(self.tokens.sum())

    @property
    def perplexity(self) -> float:
        """Perplexity of the whole text (not a mean over sentences).

        Raises:
            JudgeError: it is not finite, since the judge gives some sentence the probability 0, or there is no token.
        """
        if self.total_tokens == 0:
            raise JudgeError("there is no token to compute a perplexity over")
        score = float(perplexity(self.log_probs, self.tokens))
        if not np.isfinite(score):
            first = int(np.argmin(np.isfinite(self.log_probs))) + 1
            raise JudgeError(f"the judge gives sentence {first} the probability 0: its training text is too small")
        return score


def perplexity(log_probs: NDArray[np.float64], tokens: NDArray[np.int64]) -> np.float64 | NDArray[np.float64]:
    """exp(−Σ log p / Σ tokens), summed over the last axis.

    Args:
        log_probs: log-probability of each sentence in nats; shape (..., sentences).
        tokens: tokens of each sentence; the same shape.

    Returns:
        Perplexities; shape (...,).
    """
    result: np.float64 | NDArray[np.float64] = perplexity_of_sums(log_probs.sum(axis=-1), tokens.sum(axis=-1))
    return result


def perplexity_of_sums(log_prob: NDArray[np.float64], tokens: NDArray[np.number]) -> NDArray[np.float64]:
    """exp(−log p / tokens), element by element, where both are sums already."""
    result: NDArray[np.float64] = np.exp(-log_prob / tokens)
    return result
