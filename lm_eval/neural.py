"""The LSTM judge: a recurrent language model of a text, over a fixed vocabulary.

Each word of the vocabulary and the end of sentence is a class of one softmax, so the probabilities of all that can come
add up to 1. A word outside the vocabulary is `<unk>`. `<s>` and `</s>` in a text are words like any other: the judge's
own end of sentence is no word, so no text can spell it.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from textebm.errors import JudgeError
from textebm.hardware import native_precision
from textebm.home import home
from textebm.lm_eval.corpus import UNKNOWN, Vocabulary
from textebm.lm_eval.large_softmax import Precision, log_probs
from textebm.lm_eval.perplexity import SentenceScores
from textebm.lm_eval.recipes import Recipe, get_recipe

State = list[tuple[Tensor, Tensor]]
"""(h, c) of each layer; each (1, batch, size)."""

Observe = Callable[[Mapping[str, Any]], None]
"""Told what happens in training: `kind` is start, resume, step, epoch, done, cached, damaged or waiting."""

SENTENCES_AT_ONCE = 10_000
"""Sentences that are read ahead, to be scored with others of their length."""
TOKENS_AT_ONCE = 512
"""Places of a batch that go through the network in one go: bounds the memory that a very long sentence takes."""


def judge_folder() -> Path:
    """Where trained judges are kept unless another folder is named: under TEXTEBM_HOME."""
    return home() / "judges"


# ----------------------------------------------------------------------------------------------------- text as numbers


@dataclass(frozen=True)
class EncodedText:
    """Sentences as classes, one after the other, each with its end.

    Args:
        ids: words and ends; shape (tokens,).
        offsets: sentence i is ids[offsets[i]:offsets[i + 1]]; shape (sentences + 1,).
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sentence, its end included; shape (sentences,)."""
        return np.diff(self.offsets)

    def take(self, chosen: NDArray[np.int64]) -> "EncodedText":
        """Some of the sentences, in the order given."""
        pieces = [self.ids[self.offsets[i] : self.offsets[i + 1]] for i in chosen]
        offsets = np.concatenate([[0], np.cumsum(self.lengths[chosen])])
        return EncodedText(np.concatenate(pieces) if pieces else self.ids[:0], offsets.astype(np.int64))


class Encoder:
    """Words to classes: the vocabulary in its order, then the end of sentence."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._class = {word: index for index, word in enumerate(vocabulary)}
        self.unknown = self._class[UNKNOWN]
        self.end = len(vocabulary)

    def sentence(self, sentence: str) -> list[int]:
        """Classes of the words; then the end."""
        get, unknown = self._class.get, self.unknown
        return [*(get(word, unknown) for word in sentence.split()), self.end]

    def text(self, sentences: Iterable[str]) -> EncodedText:
        """A whole text."""
        pieces = [np.array(self.sentence(sentence), dtype=np.int32) for sentence in sentences]
        ids = np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int32)
        return EncodedText(ids, np.cumsum([0, *map(len, pieces)], dtype=np.int64))


# ---------------------------------------------------------------------------------------------------------- the network


class LstmNetwork(nn.Module):
    """Embedding, LSTM layers, and the weights of a softmax.

    Args:
        recipe: its shape, dropout and initial weights.
        classes: words and the end of sentence; the end is also what a sentence begins with.
        generator: draws the initial weights; on the CPU.
    """

    def __init__(self, recipe: Recipe, classes: int, generator: torch.Generator) -> None:
        super().__init__()
        self.recipe = recipe
        self.embedding = nn.Parameter(torch.empty(classes, recipe.embedding))
        inputs = [recipe.embedding, *recipe.sizes[:-1]]
        self.layers = nn.ModuleList(nn.LSTM(i, o) for i, o in zip(inputs, recipe.sizes, strict=True))
        self.weight = None if recipe.tied else nn.Parameter(torch.empty(classes, recipe.sizes[-1]))
        self.bias = nn.Parameter(torch.zeros(classes)) if recipe.output_bias else None
        self._initialise(generator)

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator) -> None:
        recipe = self.recipe
        for layer, size in zip(self.layers, recipe.sizes, strict=True):
            for parameter in layer.parameters():
                bound = size**-0.5 if recipe.init is None else recipe.init
                parameter.uniform_(-bound, bound, generator=generator)
        if self.weight is not None:
            bound = recipe.init_embedding if recipe.init is None else recipe.init
            self.weight.uniform_(-bound, bound, generator=generator)
        if self.bias is not None and recipe.init is not None:
            self.bias.uniform_(-recipe.init, recipe.init, generator=generator)
        self.embedding.uniform_(-recipe.init_embedding, recipe.init_embedding, generator=generator)

    @property
    def output(self) -> nn.Parameter:
        """Weights of the softmax; shape (classes, size of the last layer)."""
        return self.embedding if self.weight is None else self.weight

    def start(self, batch: int) -> State:
        """The state before the first token."""
        zeros = [self.embedding.new_zeros(1, batch, size) for size in self.recipe.sizes]
        return [(zero, zero) for zero in zeros]

    def forward(
        self, inputs: Tensor, state: State, dropout: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, State]:
        """Run over some tokens.

        Args:
            inputs: classes; shape (places, batch).
            state: before the first of them.
            dropout: draws the masks; None for no dropout.

        Returns:
            what the softmax sees, (places, batch, size); the same before dropout; and the state after the last token.
        """
        recipe = self.recipe
        table: Tensor = self.embedding
        if dropout is not None and recipe.dropout_words:
            table = table * self._mask((len(table), 1), recipe.dropout_words, dropout)
        x = self._drop(nn.functional.embedding(inputs, table), recipe.dropout_in, dropout)
        after: State = []
        raw = x
        for index, layer in enumerate(self.layers):
            raw, reached = self._layer(layer, x, state[index], dropout)
            after.append(reached)
            last = index == len(self.layers) - 1
            x = self._drop(raw, recipe.dropout_out if last else recipe.dropout_between, dropout)
        return x, raw, after

    def _layer(
        self, layer: nn.Module, x: Tensor, state: tuple[Tensor, Tensor], dropout: torch.Generator | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        rate = self.recipe.dropout_recurrent
        if dropout is None or not rate:
            result = layer(x, state)
        else:
            weight = layer.get_parameter("weight_hh_l0")
            masked = weight * self._mask(weight.shape, rate, dropout)
            with warnings.catch_warnings():  # cuDNN packs the weights again at every step, and says so
                warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous chunk")
                result = functional_call(layer, {"weight_hh_l0": masked}, (x, state))
        output: tuple[Tensor, tuple[Tensor, Tensor]] = result
        return output

    def _drop(self, x: Tensor, rate: float, dropout: torch.Generator | None) -> Tensor:
        if dropout is None or not rate:
            return x
        return x * self._mask((1, *x.shape[1:]) if self.recipe.locked else x.shape, rate, dropout)

    def _mask(self, shape: Sequence[int], rate: float, generator: torch.Generator) -> Tensor:
        """0 with probability `rate`, else 1 / (1 − rate)."""
        drawn = torch.rand(shape, generator=generator, device=self.embedding.device)
        return (drawn >= rate).to(drawn.dtype).mul_(1 / (1 - rate))


# ------------------------------------------------------------------------------------------------------------ the judge


@dataclass(frozen=True)
class Training:
    """How a judge came about.

    Args:
        seed: of initial weights, order, dropout, and of what was held out.
        held_out: what weights and rates were chosen on: `given`, or `N-of-the-training-text`.
        precision: of the products in training; scores are computed in float32.
        epochs: passes made.
        ended: `converged`, `all-epochs`, or `cut`: it was ended early and can be gone on with.
        best_epoch: whose weights it has.
        longest: tokens of the longest training sentence, its end included.
        device: the kind of device.
        torch: its version.
        curve: one entry an epoch: `epoch`, `lr`, `train_perplexity` (with dropout), `valid_perplexity`, `seconds`,
            `tokens_per_second` (of the training part), `best`.
    """

    seed: int
    held_out: str
    precision: Precision
    epochs: int
    ended: str
    best_epoch: int
    longest: int
    device: str
    torch: str
    curve: tuple[dict[str, Any], ...]


class LstmJudge:
    """An LSTM language model of a text. Made by `train`.

    Args:
        vocabulary: the words that it gives probability to; any other becomes `<unk>`.
        network: its weights; on the device where it computes.
        training: how it came about.
        unseen: how many words of the vocabulary do not occur in the training text.
    """

    def __init__(self, vocabulary: Vocabulary, network: LstmNetwork, training: Training, unseen: int) -> None:
        self.vocabulary = vocabulary
        self.network = network.eval().requires_grad_(False)
        self.training = training
        self.unseen = unseen
        self._encoder = Encoder(vocabulary)

    @classmethod
    def train(
        cls,
        sentences: Iterable[str],
        vocabulary: Vocabulary,
        recipe: Recipe | str,
        *,
        seed: int = 0,
        held_out: Iterable[str] | None = None,
        device: torch.device | str = "cpu",
        precision: Literal["auto", "fp32", "bf16"] = "auto",
        cache: Path | None = None,
        observe: Observe | None = None,
        max_epochs: int | None = None,
        max_minutes: float | None = None,
    ) -> "LstmJudge":
        """Train a judge, or take it from where it was kept, or go on training it.

        Args:
            sentences: the training text; an empty sentence counts as one that ends at once.
            vocabulary: of the real training split; a word outside it is trained on as `<unk>`.
            recipe: or its name.
            seed: of everything random in it.
            held_out: text on which weights and learning rates are chosen, such as the real valid split for FPPL. None
                for a share of `sentences` that the seed chooses, which is then not trained on: the headline rule of
                RPPL, whose judge never sees real text.
            device: where to compute.
            precision: of the products in training; `auto` for bf16 where the device has it natively.
            cache: folder in which judges are kept, such as `judge_folder()`; None to keep none. Training that was
                interrupted goes on from its last epoch.
            observe: is told what happens.
            max_epochs: end the training early when so many epochs are done in all.
            max_minutes: end it early, before an epoch that would not fit. One epoch is made in any case.

        Raises:
            JudgeError: there is too little text, or the cache cannot be written.
            DivergenceError: the loss is not finite any more.
            UsageError: no recipe has that name, or a limit or the seed is out of range.
        """
        from textebm.lm_eval import neural_training

        device = torch.device(device)
        return neural_training.train(
            neural_training.Task(
                Encoder(vocabulary).text(sentences),
                None if held_out is None else Encoder(vocabulary).text(held_out),
                vocabulary,
                get_recipe(recipe) if isinstance(recipe, str) else recipe,
                seed,
                native_precision(device) if precision == "auto" else precision,
            ),
            device,
            neural_training.Limits(max_epochs, max_minutes),
            cache,
            observe,
        )

    @property
    def recipe(self) -> Recipe:
        """What it was trained by."""
        return self.network.recipe

    @property
    def curve(self) -> tuple[dict[str, Any], ...]:
        """How training went, one entry an epoch: see `Training`."""
        return self.training.curve

    @property
    def settings(self) -> dict[str, str]:
        """What a signature says of this judge."""
        training = self.training
        return {
            "recipe": self.recipe.label,
            "epochs": f"{training.epochs}-{training.ended}",
            "held-out": training.held_out,
            "state": "carried-on" if self.recipe.batching == "stream" else "each-sentence",
            "precision": training.precision,
            "judge-seed": str(training.seed),
            "trained-on": f"{training.device}-torch-{training.torch}",
        }

    @property
    def _device(self) -> torch.device:
        return self.network.embedding.device

    def score(self, sentences: Iterable[str], *, batch_size: int = 64) -> SentenceScores:
        """Log-probability and number of tokens of each sentence, in constant memory but for the result.

        A sentence's score does not depend on the others, nor on `batch_size`; but where the recipe's state is carried
        on, it depends on the sentences before it.

        Args:
            sentences: the text.
            batch_size: sentences that are computed together; it changes the speed alone.
        """
        totals, tokens = [], []
        remaining = iter(sentences)
        state = self.network.start(1)
        while batch := list(islice(remaining, SENTENCES_AT_ONCE)):
            text = self._encoder.text(batch)
            if self.recipe.batching == "stream":
                found, state = stream_log_probs(self.network, text, state)
            else:
                found = sentence_log_probs(self.network, text, batch_size)
            totals.append(found)
            tokens.append(text.lengths)
        if not tokens:
            return SentenceScores(np.zeros(0), np.zeros(0, dtype=np.int64))
        return SentenceScores(np.concatenate(totals), np.concatenate(tokens))

    def token_log_probs(self, sentence: str) -> NDArray[np.float64]:
        """Log-probability of each word and of the end of sentence, at the start of a text, in nats; (words + 1,)."""
        text = self._encoder.text([sentence])
        found, _ = _token_log_probs(self.network, _columns(text.ids[None], self._encoder.end), self.network.start(1))
        return found[:, 0]

    def sample(self, n: int, seed: int = 0, *, max_length: int | None = None, batch: int = 256) -> Iterator[str]:
        """Sentences of the judge itself, at temperature 1: the plain language model as a generator.

        Args:
            n: how many.
            seed: the same one gives the same sentences on one machine.
            max_length: most words of a sentence; by default as many as the longest training sentence has.
            batch: sentences that are drawn together.
        """
        generator = torch.Generator(self._device).manual_seed(seed)
        longest = self.training.longest - 1 if max_length is None else max_length
        words = self.vocabulary.words
        for begin in range(0, n, batch):
            for ids in _draw(self.network, min(batch, n - begin), longest, generator):
                yield " ".join(words[i] for i in ids)


def exact_products() -> AbstractContextManager[None]:
    """A context in which cuDNN does not round factors to TF32, so that a score is the same in every batch."""
    context: AbstractContextManager[None] = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    return context


def sentence_log_probs(network: LstmNetwork, text: EncodedText, batch_size: int) -> NDArray[np.float64]:
    """Log-probability of each sentence, each from the start; shape (sentences,), nats.

    Sentences of similar lengths are computed together; what they are padded with is never counted.
    """
    order = np.argsort(text.lengths, kind="stable")
    result = np.zeros(len(text))
    for begin in range(0, len(order), batch_size):
        chosen = order[begin : begin + batch_size]
        inputs, targets = padded(text, chosen, network.embedding.shape[0] - 1)
        found, _ = _token_log_probs(network, (inputs, targets), network.start(len(chosen)))
        real = np.arange(len(targets))[:, None] < text.lengths[chosen]
        result[chosen] = np.where(real, found, 0).sum(0)
    return result


def stream_log_probs(network: LstmNetwork, text: EncodedText, state: State) -> tuple[NDArray[np.float64], State]:
    """Log-probability of each sentence of a stream, (sentences,) in nats; and the state after it."""
    found, state = _token_log_probs(network, _columns(text.ids[None], network.embedding.shape[0] - 1), state)
    return np.add.reduceat(found[:, 0], text.offsets[:-1]), state


def padded(text: EncodedText, chosen: NDArray[np.int64], end: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Inputs and targets of some sentences, both (places, sentences); behind a shorter sentence stand ends."""
    starts, lengths = text.offsets[chosen], text.lengths[chosen]
    places = np.arange(int(lengths.max()))
    at = starts[:, None] + np.minimum(places, lengths[:, None] - 1)  # the last token of each is its end
    return _columns(text.ids[at], end)


def _columns(rows: NDArray[np.int32], end: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Inputs and targets of rows of tokens that begin a text; both (places, rows)."""
    targets = rows.T.astype(np.int64)
    return np.concatenate([np.full((1, len(rows)), end), targets[:-1]]), targets


@torch.no_grad()
def _token_log_probs(
    network: LstmNetwork, columns: tuple[NDArray[np.int64], NDArray[np.int64]], state: State
) -> tuple[NDArray[np.float64], State]:
    """log p of each target given those above it; shape (places, batch); and the state after them."""
    device = network.embedding.device
    inputs, targets = (torch.from_numpy(part) for part in columns)
    result = torch.empty(targets.shape, dtype=torch.float64)
    with exact_products():
        for begin in range(0, len(inputs), TOKENS_AT_ONCE):
            places = slice(begin, begin + TOKENS_AT_ONCE)
            hidden, _, state = network(inputs[places].to(device), state)
            found = log_probs(hidden.flatten(0, 1), network.output, network.bias, targets[places].to(device).flatten())
            result[places] = found.cpu().view(targets[places].shape)
    return result.numpy(), state


@torch.no_grad()
def _draw(network: LstmNetwork, n: int, longest: int, generator: torch.Generator) -> list[list[int]]:
    """n sentences as classes, without their ends."""
    end = network.embedding.shape[0] - 1
    sentences: list[list[int]] = [[] for _ in range(n)]
    owners = list(range(n))
    state = network.start(n)
    last = torch.full((1, n), end, device=network.embedding.device)
    for _ in range(longest):
        hidden, _, state = network(last, state)
        logits = nn.functional.linear(hidden[0], network.output, network.bias)
        # Inverting the distribution function costs less than torch.multinomial.
        cumulative = logits.softmax(1).cumsum(1)
        thresholds = torch.rand((len(owners), 1), generator=generator, device=logits.device) * cumulative[:, -1:]
        drawn = torch.searchsorted(cumulative, thresholds, right=True).clamp_(max=end).squeeze(1)
        alive = (drawn != end).nonzero().squeeze(1)
        owners = [owners[i] for i in alive.tolist()]
        if not owners:
            break
        last = drawn[alive][None]
        state = [(h[:, alive], c[:, alive]) for h, c in state]
        for owner, word in zip(owners, last[0].tolist(), strict=True):
            sentences[owner].append(word)
    return sentences


def require_text(text: EncodedText, wanted: int, what: str) -> None:
    """Check that there is enough text.

    Raises:
        JudgeError: there is not.
    """
    if len(text) == 0:
        raise JudgeError(f"{what}: a language model cannot be estimated from no sentence")
    if len(text) < wanted:
        raise JudgeError(
            f"{what}: an LSTM judge needs at least {wanted} sentences, one of them held out, and there is {len(text)}; "
            "give more sentences, or use an n-gram judge"
        )
