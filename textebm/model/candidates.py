"""A sampled softmax: the normaliser over some words only, the others represented by a sample.

log p(target) = logit − log Σ exp(logit of every word). The sum is replaced by

    Σ over the batch's own targets of exp(logit)  +  Σ over n sampled words of exp(logit) / π,

where π is the probability with which a word is in the sample. The words are drawn without replacement, so the second
sum is an unbiased estimate of that over all other words, of small variance where π follows the words' probabilities:
here π is proportional to 1/rank among the other words by frequency (Zipf's law), and 1 for the most frequent of them.

What it does to a chain: one sample serves a whole chain, so within it the potential is a fixed, slightly different one.
The estimated sum has the right mean, so log p is too large by about half its relative variance (Jensen), and the
gradient leans away from the sampled words alone instead of from all. Where n covers the vocabulary it is the exact
softmax.
Source of the idea: Bengio and Senécal, "Adaptive importance sampling to accelerate training of a neural probabilistic
language model", 2008; of the sampling: systematic sampling with probability proportional to size (Madow, 1949).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

CAPPING_ROUNDS = 30  # each round settles more of the words whose π would exceed 1; a handful is enough


class Drawn(NamedTuple):
    """The classes that take part, for one batch.

    classes: (candidates,) the targets of the batch, then the sampled others. correction: (candidates,) −log π, added to
    logits. targets: (tokens,) the place of each token's target among the classes.
    """

    classes: Int[Tensor, " candidates"]
    correction: Float[Tensor, " candidates"]
    targets: Int[Tensor, " tokens"]


class Candidates:
    """Draws the words that stand for all others."""

    def __init__(self, number: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> None:
        """Draw `number` words beside the targets.

        Args:
            number: sampled words, at least 1.
            generator: source of randomness, on the device of the targets.
            dtype: of the corrections.
        """
        self.number, self.generator, self.dtype = number, generator, dtype

    def draw(self, targets: Int[Tensor, " tokens"], classes: int) -> Drawn:
        """The candidates for a batch. Which words are targets is asked of the device: this waits for it.

        Args:
            targets: class of each token; classes stand in the order of falling frequency.
            classes: number of classes.
        """
        own, places = targets.unique(return_inverse=True)  # type: ignore[no-untyped-call]
        others = torch.ones(classes, dtype=torch.bool, device=targets.device)
        others[own] = False
        rest = others.nonzero().squeeze(1)
        if len(rest) <= self.number:
            chosen, chance = rest, torch.ones(len(rest), dtype=torch.float64, device=targets.device)
        else:
            chance = inclusion(len(rest), self.number, targets.device)
            picked = systematic(chance, self.number, self.generator)
            chosen, chance = rest[picked], chance[picked]
        correction = torch.cat([chance.new_zeros(len(own)), -chance.log()]).to(self.dtype)
        return Drawn(torch.cat([own, chosen]), correction, places)


def inclusion(words: int, number: int, device: torch.device | str = "cpu") -> Float[Tensor, " words"]:
    """Probabilities ∝ 1/rank, none above 1, that sum to `number` < `words`."""
    weight = 1 / torch.arange(1, words + 1, dtype=torch.float64, device=device)
    chance = weight * (number / weight.sum())
    for _ in range(CAPPING_ROUNDS):
        certain = chance >= 1
        free = torch.where(certain, 0.0, weight)
        chance = torch.where(certain, 1.0, weight * (number - certain.sum()) / free.sum())
    return chance.clamp(max=1)


def systematic(chance: Float[Tensor, " words"], number: int, generator: torch.Generator) -> Int[Tensor, " number"]:
    """`number` different words, each with its probability: where the cumulative sum passes u, u + 1, u + 2, ..."""
    cumulative = chance.cumsum(0)
    cumulative = cumulative * (number / cumulative[-1])  # the last digits
    start = torch.rand((), generator=generator, device=chance.device, dtype=torch.float64)
    marks = torch.arange(number, device=chance.device) + start
    return torch.searchsorted(cumulative, marks, right=True).clamp_(max=len(chance) - 1)
