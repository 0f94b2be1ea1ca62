"""Writing sentences: from latents to token ids, by sampling, greedily, or with a beam.

Sentences that are finished leave the batch, so the cost is that of the words written, not of the longest sentence.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from textebm.errors import ConfigError
from textebm.model.recurrent import BOS, EOS, FIRST_OUTPUT, RecurrentGenerator


@dataclass(frozen=True)
class Decoding:
    """How words are chosen. The headline protocol of FPPL and RPPL is the default: sampling from the model itself."""

    method: Literal["sample", "greedy", "beam"] = "sample"
    """sample: draw each word; greedy: the likeliest word; beam: the likeliest sentence found."""
    temperature: float = 1.0
    """Logits are divided by this before sampling."""
    top_k: int = 0
    """Sample among the k likeliest words only (0: all)."""
    top_p: float = 1.0
    """Sample among the likeliest words that together reach this probability."""
    beam_size: int = 5
    """Hypotheses kept by the beam."""
    max_length: int = 200
    """Longest sentence in words; a longer one ends there."""

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ConfigError(
                f"temperature is {self.temperature}: it must be positive (use greedy decoding for the limit 0)"
            )
        if self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ConfigError(f"top_k is {self.top_k} and top_p {self.top_p}: they must be ≥ 0 and in (0, 1]")
        if self.beam_size < 1 or self.max_length < 1:
            raise ConfigError(
                f"beam_size is {self.beam_size} and max_length {self.max_length}: both must be at least 1"
            )

    def describe(self) -> str:
        """A short name for signatures, such as `sample-t1` or `beam5`."""
        if self.method != "sample":
            return self.method if self.method == "greedy" else f"beam{self.beam_size}"
        parts = [f"sample-t{self.temperature:g}"]
        parts += [f"k{self.top_k}"] if self.top_k else []
        parts += [f"p{self.top_p:g}"] if self.top_p < 1 else []
        return "-".join(parts)


def truncate(logits: Float[Tensor, "batch classes"], decoding: Decoding) -> Float[Tensor, "batch classes"]:
    """Temperature, then top-k, then top-p: what is left out gets a logit of −∞."""
    if decoding.temperature != 1:
        logits = logits / decoding.temperature
    if 0 < decoding.top_k < logits.shape[1]:
        smallest = logits.topk(decoding.top_k, dim=1).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if decoding.top_p < 1:
        ordered, order = logits.sort(dim=1, descending=True)
        probabilities = ordered.softmax(1)
        before = probabilities.cumsum(1) - probabilities  # mass of the words ahead of this one
        ordered = ordered.masked_fill(before >= decoding.top_p, -torch.inf)
        logits = torch.empty_like(logits).scatter_(1, order, ordered)
    return logits


GROUP = 128
"""Words that are summed together when one is drawn: near the square root of a usual vocabulary."""
ROWS_AT_ONCE = 256
"""Sentences whose next words are chosen together on a CPU, so that their logits stay in its cache."""


def _uniform(size: int, device: torch.device, generator: torch.Generator) -> Float[Tensor, " {size}"]:
    return torch.rand(size, generator=generator, device=device, dtype=torch.float64)


def invert(probabilities: Float[Tensor, "batch classes"], uniform: Float[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    """The class of each row in whose part of the unit interval the row's number falls; rows need not sum to 1.

    The distribution is accumulated over groups of classes, and then over the classes of the group that is hit: few
    numbers twice, instead of all once. Cumulative sums run in float64, so that rare words at the end of the vocabulary
    keep their probabilities.
    """
    classes = probabilities.shape[1]
    whole = classes // GROUP * GROUP
    masses = probabilities[:, :whole].reshape(len(probabilities), -1, GROUP).sum(2)
    masses = torch.cat([masses, probabilities[:, whole:].sum(1, keepdim=True)], dim=1)
    upto = nn.functional.pad(masses.cumsum(1, dtype=torch.float64), (1, 0))  # (batch, 1 + groups)
    mark = uniform[:, None] * upto[:, -1:]
    group = torch.searchsorted(upto[:, 1:].contiguous(), mark, right=True).clamp_(max=masses.shape[1] - 1)
    share = (mark - upto.gather(1, group)) / masses.gather(1, group)  # how far into the group, from 0 to 1
    members = group * GROUP + torch.arange(GROUP, device=group.device)  # (batch, GROUP)
    inside = members < classes
    mass = torch.where(inside, probabilities.gather(1, members.clamp(max=classes - 1)), 0)
    within = mass.cumsum(1, dtype=torch.float64)
    place = torch.searchsorted(within, share * within[:, -1:], right=True)
    return (group * GROUP + place).squeeze(1).clamp_(max=classes - 1)


@torch.no_grad()
def decode(
    model: RecurrentGenerator, z: Float[Tensor, "batch latent"], decoding: Decoding, generator: torch.Generator
) -> list[list[int]]:
    """One sentence for each latent.

    Args:
        model: the text generator.
        z: latents.
        decoding: how words are chosen.
        generator: source of randomness for sampling, on the device of z.

    Returns:
        Token ids of each sentence, without begin and end of sentence.
    """

    def numbers(owners: Tensor, place: int) -> Tensor:
        return _uniform(len(owners), owners.device, generator)

    return _write(model, z, decoding, numbers)


@torch.no_grad()
def decode_by(
    model: RecurrentGenerator,
    z: Float[Tensor, "batch latent"],
    decoding: Decoding,
    uniform: Float[Tensor, "batch places"],
) -> list[list[int]]:
    """One sentence for each latent, by given numbers: what a sentence becomes depends on its own latent and row alone.

    So two sentences by the same row differ only as far as their latents do, which `decode` cannot promise: there a
    sentence that ends shifts the numbers of all others.

    Args:
        model: the text generator.
        z: latents.
        decoding: how words are chosen; only sampling uses the numbers.
        uniform: in [0, 1), float64, on the device of z: the number by which each sentence's word at each place is
            drawn. There must be as many places as `decoding.max_length`.

    Returns:
        Token ids of each sentence, without begin and end of sentence.
    """
    return _write(model, z, decoding, lambda owners, place: uniform[owners, place])


Numbers = Callable[[Tensor, int], Tensor]
"""Which sentences go on, and at which place they are -> a uniform number for each."""


def _write(
    model: RecurrentGenerator, z: Float[Tensor, "batch latent"], decoding: Decoding, numbers: Numbers
) -> list[list[int]]:
    """Token ids of each sentence."""
    if decoding.method == "beam":
        return [_beam(model, z[i : i + 1], decoding) for i in range(len(z))]
    sentences: list[list[int]] = [[] for _ in range(len(z))]
    for owners, words in _steps(model, z, decoding, numbers):
        for owner, word in zip(owners, words, strict=True):
            sentences[owner].append(word)
    return sentences


def _steps(
    model: RecurrentGenerator, z: Float[Tensor, "batch latent"], decoding: Decoding, numbers: Numbers
) -> Iterator[tuple[list[int], list[int]]]:
    """For each time step: which sentences go on, and their next words."""
    state = model.initial_state(z)
    words = torch.full((len(z),), BOS, device=z.device)
    owners = torch.arange(len(z), device=z.device)
    for place in range(decoding.max_length):
        hidden, state = model.next_hidden(words, z, state)
        uniform = numbers(owners, place) if decoding.method == "sample" else None
        words = _choose(model, hidden, decoding, uniform) + FIRST_OUTPUT
        alive = (words != EOS).nonzero().squeeze(1)
        if len(alive) < len(words):
            words, owners, z = words[alive], owners[alive], z[alive]
            state = tuple(part[:, alive] for part in state)
        if len(words) == 0:
            return
        yield owners.tolist(), words.tolist()


def _choose(
    model: RecurrentGenerator,
    hidden: Float[Tensor, "batch hidden"],
    decoding: Decoding,
    uniform: Float[Tensor, " batch"] | None,
) -> Int[Tensor, " batch"]:
    """The class of each sentence's next word. How many sentences are worked on at once changes no choice."""
    at_once = ROWS_AT_ONCE if hidden.device.type == "cpu" else len(hidden)
    classes = []
    for number, rows in enumerate(hidden.split(at_once)):  # type: ignore[no-untyped-call]
        logits = model.output(rows)
        if uniform is None:
            classes.append(logits.argmax(1))
        else:
            mine = uniform[number * at_once :][: len(rows)]
            classes.append(invert(truncate(logits, decoding).softmax(1), mine))
    return torch.cat(classes)


def _beam(model: RecurrentGenerator, z: Float[Tensor, "1 latent"], decoding: Decoding) -> list[int]:
    """The likeliest sentence of at most max_length words that a beam search finds (no length reward)."""
    state = model.initial_state(z)
    words = torch.full((1,), BOS, device=z.device)
    scores = z.new_zeros(1)
    prefixes: list[list[int]] = [[]]
    best, best_score = prefixes[0], -float("inf")
    for _ in range(decoding.max_length):
        logits, state = model.next_word_logits(words, z.expand(len(words), -1), state)
        total = scores[:, None] + logits.log_softmax(1)
        top, where = total.flatten().topk(min(decoding.beam_size, total.numel()))
        rows = torch.div(where, logits.shape[1], rounding_mode="floor")
        tokens = where % logits.shape[1] + FIRST_OUTPUT
        kept: list[int] = []
        for rank, (score, row, token) in enumerate(zip(top.tolist(), rows.tolist(), tokens.tolist(), strict=True)):
            if token != EOS:
                kept.append(rank)
            elif score > best_score:
                best, best_score = prefixes[row], score
        if not kept or top[kept[0]] <= best_score:  # no prefix can overtake: log-probabilities only fall
            return best
        keep = torch.tensor(kept, device=z.device)
        prefixes = [[*prefixes[int(rows[r])], int(tokens[r])] for r in kept]
        words, scores = tokens[keep], top[keep]
        state = tuple(part[:, rows[keep]] for part in state)
    logits, _ = model.next_word_logits(words, z.expand(len(words), -1), state)
    ended = scores + logits.log_softmax(1)[:, EOS - FIRST_OUTPUT]  # the longest prefixes can only end now
    return prefixes[int(ended.argmax())] if ended.max() > best_score else best
