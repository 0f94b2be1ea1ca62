"""Recurrent generators of text: p(x|z) = ∏ p(word t | words before it, z), with an LSTM or a GRU.

z reaches the recurrence in up to three ways, each of which can be switched off: a linear map sets the initial hidden
state, another one the initial cell state, and z is concatenated to every word embedding. A z of no dimensions reaches
it in none: the recurrence starts at 0 and is a plain language model.
Source of the form: Pang et al., "Short-run inference for text" (EACL 2021) and Pang and Wu, SVEBM (ICML 2021).
"""

import copy
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from textebm.config import GeneratorConfig
from textebm.model import recurrence, softmax
from textebm.model.candidates import Candidates
from textebm.model.generators import Computation, ConditionedLikelihood, Generator

PAD, BOS, EOS, UNK = 0, 1, 2, 3
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")
FIRST_OUTPUT = EOS  # the generator never writes <pad> or <bos>: its classes are the ids from here on

State = tuple[Tensor, ...]
"""Recurrent state: (h,) of a GRU or (h, c) of an LSTM, each (1, batch, hidden)."""


class TextBatch(NamedTuple):
    """Sentences of one batch, padded on the right with PAD.

    inputs: (batch, time) int64, BOS then the words. targets: (batch, time) int64, the words then EOS.
    lengths: (batch,) int64, number of targets of each sentence (words + 1); on the CPU, where batches are planned.
    """

    inputs: Tensor
    targets: Tensor
    lengths: Tensor

    @property
    def batch_size(self) -> int:
        """Number of sentences."""
        return len(self.lengths)

    @property
    def units(self) -> int:
        """Number of tokens, ends of sentence included, which is what progress is counted in."""
        return int(self.lengths.sum())

    def to(self, device: torch.device | str) -> "TextBatch":
        """The same batch on `device`; lengths stay where they are, so that to plan is not to wait for a GPU."""
        if torch.device(device).type == "cuda" and not self.inputs.is_cuda:  # only pinned memory is copied in passing
            return TextBatch(self.inputs.pin_memory(), self.targets.pin_memory(), self.lengths)._moved(device)
        return self._moved(device)

    def repeated(self, copies: int) -> "TextBatch":
        """Each sentence so many times in a row."""
        return TextBatch(*(part.repeat_interleave(copies, dim=0) for part in self))

    def split(self, size: int) -> "list[TextBatch]":
        """Its sentences in batches of so many, the last one of what is left; each as wide as its longest."""
        parts = zip(*(torch.split(part, size) for part in self), strict=True)
        return [TextBatch(x[:, : int(n.max())], y[:, : int(n.max())], n) for x, y, n in parts]

    def _moved(self, device: torch.device | str) -> "TextBatch":
        inputs, targets = (t.to(device, non_blocking=True) for t in (self.inputs, self.targets))
        return TextBatch(inputs, targets, self.lengths)


class Layer(NamedTuple):
    """A recurrence's weights. Rows are gates, in torch's order.

    words: (gates, embedding). entry: (gates, latent), or None where z does not enter there.
    recurrent: (gates, hidden). bias: (gates,), added at every word.
    recurrent_bias: (gates,), a GRU's, which is kept apart since a gate multiplies it.
    """

    words: Tensor
    entry: Tensor | None
    recurrent: Tensor
    bias: Tensor
    recurrent_bias: Tensor | None


class RecurrentGenerator(Generator):
    """An LSTM or GRU that writes a sentence given z."""

    plain_has_bf16 = False

    def __init__(
        self,
        config: GeneratorConfig,
        vocab_size: int,
        latent_dim: int,
        generator: torch.Generator | None = None,
    ) -> None:
        """Weights start uniform in ±config.init_range.

        Args:
            config: sizes, cell and where z enters.
            vocab_size: number of token ids, special tokens included.
            latent_dim: number of dimensions of z; 0 makes a plain language model.
            generator: source of the initial weights.
        """
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.latent_dim = latent_dim
        self.embedding = nn.Embedding(vocab_size, config.embedding_dim)
        cell = nn.LSTM if config.cell == "lstm" else nn.GRU
        self.z_to_input = config.z_to_input and latent_dim > 0
        inputs = config.embedding_dim + latent_dim * self.z_to_input
        self.rnn = cell(inputs, config.hidden_dim, batch_first=True)
        self.state_map = nn.Linear(latent_dim, config.hidden_dim) if config.z_to_state and latent_dim else None
        self.cell_map = nn.Linear(latent_dim, config.hidden_dim) if config.z_to_cell and latent_dim else None
        self.output = nn.Linear(config.hidden_dim, vocab_size - FIRST_OUTPUT)
        self.reset(generator)

    def reset(self, generator: torch.Generator | None = None) -> None:
        """Give every weight a new start, uniform in ±config.init_range."""
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -self.config.init_range, self.config.init_range, generator=generator)

    def train(self, mode: bool = True) -> "RecurrentGenerator":
        """Set training mode, which nothing in this module depends on.

        The recurrence stays in training mode for good: cuDNN refuses to back-propagate through one in evaluation
        mode, and posterior chains need that gradient at test time too. It has no dropout of its own, so its output is
        the same.
        """
        super().train(mode)
        self.rnn.train(True)
        return self

    def layer(self) -> "Layer":
        """The recurrence's weights, as its packed form takes them."""
        names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
        inputs, recurrent, bias, recurrent_bias = (getattr(self.rnn, name) for name in names)
        size = self.config.embedding_dim
        entry = inputs[:, size:] if self.z_to_input else None
        if self.config.cell == "gru":
            return Layer(inputs[:, :size], entry, recurrent, bias, recurrent_bias)
        return Layer(inputs[:, :size], entry, recurrent, bias + recurrent_bias, None)

    def start(
        self, z: Float[Tensor, "batch latent"]
    ) -> tuple[Float[Tensor, "batch hidden"], Float[Tensor, "batch hidden"] | None]:
        """Hidden and (of an LSTM) cell state before the first word."""
        hidden, *cell = (part[0] for part in self.initial_state(z))
        return hidden, cell[0] if cell else None

    def initial_state(self, z: Float[Tensor, "batch latent"]) -> State:
        """The recurrent state before the first word."""
        zeros = z.new_zeros(len(z), self.config.hidden_dim)
        hidden = zeros if self.state_map is None else self.state_map(z)
        if self.config.cell == "gru":
            return (hidden[None],)
        cell = zeros if self.cell_map is None else self.cell_map(z)
        return hidden[None], cell[None]

    def hidden_states(
        self, embeddings: Float[Tensor, "batch time embedding"], z: Float[Tensor, "batch latent"], state: State
    ) -> tuple[Float[Tensor, "batch time hidden"], State]:
        """Run the recurrence over embedded words from a state; returns the outputs and the last state."""
        if self.z_to_input:
            every_word = z[:, None, :].expand(-1, embeddings.shape[1], -1)
            embeddings = torch.cat([embeddings, every_word], dim=2)  # (batch, time, embedding + latent)
        outputs, last = self.rnn(embeddings, state if self.config.cell == "lstm" else state[0])
        return outputs, last if self.config.cell == "lstm" else (last,)

    def next_word_logits(
        self, words: Int[Tensor, " batch"], z: Float[Tensor, "batch latent"], state: State
    ) -> tuple[Float[Tensor, "batch classes"], State]:
        """Logits of the next word (class k is token id k + FIRST_OUTPUT) after one more word, and the new state."""
        hidden, state = self.next_hidden(words, z, state)
        logits: Tensor = self.output(hidden)
        return logits, state

    def next_hidden(
        self, words: Int[Tensor, " batch"], z: Float[Tensor, "batch latent"], state: State
    ) -> tuple[Float[Tensor, "batch hidden"], State]:
        """What the output layer makes the next word's logits of, after one more word, and the new state."""
        outputs, state = self.hidden_states(self.embedding(words)[:, None], z, state)
        return outputs[:, 0], state

    def condition(
        self,
        x: TextBatch,
        generator: torch.Generator | None = None,
        precision: softmax.Precision = "fp32",
        path: Computation = "fast",
        candidates: Candidates | None = None,
    ) -> "ConditionedText":
        """log p(x|z) of a batch of sentences as a function of z.

        Args:
            x: the sentences, on the generator's device.
            generator: source of dropout masks, drawn once here; None means no dropout.
            precision: of the matrix products.
            path: `fast`, or `plain`: straightforward autograd over padded sentences, to check the other one by.
            candidates: makes the softmax of `log_prob_and_grad` a sampled one; that of `log_prob` is always exact.
        """
        kind = PlainText if path == "plain" else FastText
        return kind(self, x, generator, precision, candidates)


class ConditionedText(ConditionedLikelihood):
    """log p(x|z) of a batch of sentences: what both paths have in common.

    Dropout masks, and which words are dropped, stay until fresh ones are drawn. `inputs` (words as they are),
    `words` (as they are read), `targets` and the masks are packed (see `recurrence.Packing`): padding never enters the
    softmax.
    """

    def __init__(
        self,
        model: RecurrentGenerator,
        x: TextBatch,
        generator: torch.Generator | None,
        precision: softmax.Precision,
        candidates: Candidates | None,
    ) -> None:
        self.model, self.precision = model, precision
        self.size = x.inputs.shape  # (batch, time)
        self.packing = recurrence.pack(x.lengths, x.inputs.shape[1], x.inputs.device)
        self.inputs = self.words = x.inputs.flatten()[self.packing.positions]
        self.targets = x.targets.flatten()[self.packing.positions] - FIRST_OUTPUT
        self.input_mask: Tensor | None = None
        self.output_mask: Tensor | None = None
        self.drawn = None if candidates is None else candidates.draw(self.targets, len(model.output.weight))
        self._draw_masks(generator)
        self._prepare()

    def with_fresh_masks(self, generator: torch.Generator) -> "ConditionedText":
        """The same likelihood under new dropout masks; unlike `condition`, it does not wait for the device."""
        fresh = copy.copy(self)
        fresh._draw_masks(generator)
        fresh._prepare()
        return fresh

    def _draw_masks(self, generator: torch.Generator | None) -> None:
        config = self.model.config
        if generator is not None and config.word_dropout > 0:
            self.words = self._unknown_in_places(config.word_dropout, generator)
        if generator is not None and config.dropout > 0:
            self.input_mask = self._mask((len(self.words), config.embedding_dim), generator)
            self.output_mask = self._mask((len(self.words), config.hidden_dim), generator)

    def _unknown_in_places(self, share: float, generator: torch.Generator) -> Int[Tensor, " tokens"]:
        """The words that are read, a share of them replaced by <unk>; <bos> is no word (Bowman et al., CoNLL 2016)."""
        chance = torch.rand(self.inputs.shape, generator=generator, device=self.inputs.device)
        return self.inputs.masked_fill((chance < share) & (self.inputs != BOS), UNK)

    def _mask(self, size: tuple[int, int], generator: torch.Generator) -> Float[Tensor, "tokens units"]:
        like, dropout = self.model.output.weight, self.model.config.dropout
        kept = torch.rand(size, generator=generator, device=like.device, dtype=like.dtype) >= dropout
        return kept.to(like.dtype) / (1 - dropout)

    def _prepare(self) -> None:
        """Compute what z does not touch."""

    def _embed(self) -> Float[Tensor, "tokens embedding"]:
        embeddings: Tensor = self.model.embedding(self.words)
        return _masked(embeddings, self.input_mask)

    def _drop(self, hidden: Float[Tensor, "tokens hidden"]) -> Float[Tensor, "tokens hidden"]:
        return _masked(hidden, self.output_mask)

    def _sum_by_sentence(self, log_probs: Float[Tensor, " tokens"]) -> Float[Tensor, " batch"]:
        every = log_probs.new_zeros(self.size.numel()).index_put((self.packing.positions,), log_probs)
        return every.view(self.size).sum(1)


class FastText(ConditionedText):
    """Packed sentences, analytic gradients, a softmax in blocks; no autograd graph along a chain."""

    recordable = True

    def _prepare(self) -> None:
        self.chain: _Chain | None = None  # made when first asked for: the learner alone does not need it

    def log_prob(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, " batch"]:
        """log p(x|z) of each sentence, end of sentence included, in nats; differentiable in z and in the parameters."""
        model, layer, output = self.model, self.model.layer(), self.model.output
        dtype = softmax.product_dtype(self.precision, layer.recurrent)
        z = z[self.packing.order]
        states = recurrence.differentiable(
            model.config.cell,
            self.packing,
            dtype,
            _product(self._embed(), layer.words, dtype),
            _enter(z, layer),
            *model.start(z),
            layer.recurrent,
            layer.recurrent_bias,
        )
        log_probs = softmax.log_prob(self._drop(states), output.weight, output.bias, self.targets, self.precision)
        return self._sum_by_sentence(log_probs)

    @torch.no_grad()
    def log_prob_and_grad(
        self, z: Float[Tensor, "batch latent"]
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch latent"]]:
        """log p(x|z) of each sentence and its gradient in z; no gradient of a weight is formed."""
        if self.chain is None:
            self.chain = _Chain(self)
        log_probs, gradient = self.chain(z[self.packing.order])
        return self._sum_by_sentence(log_probs), gradient[self.packing.inverse]


class _Chain:
    """What a chain over one batch computes once, with the weights of that time, and its space to work in.

    It does not hold the text that holds it: the space of a batch is free as soon as the batch is done with.
    """

    def __init__(self, text: FastText) -> None:
        model, self.output_mask = text.model, text.output_mask
        self.model, self.layer = model, model.layer()
        dtype = softmax.product_dtype(text.precision, self.layer.recurrent)
        self.inputs = _product(text._embed(), self.layer.words, dtype)
        weights = (self.layer.recurrent, self.layer.recurrent_bias)
        self.recurrence = recurrence.packed(model.config.cell, text.packing, *weights, dtype, of_words=False)
        weight, bias, self.targets = model.output.weight.detach(), model.output.bias.detach(), text.targets
        if text.drawn is not None:
            weight, bias = weight[text.drawn.classes], bias[text.drawn.classes] + text.drawn.correction
            self.targets = text.drawn.targets
        self.output = softmax.prepare(weight, bias, text.precision)

    def __call__(
        self, z: Float[Tensor, "batch latent"]
    ) -> tuple[Float[Tensor, " tokens"], Float[Tensor, "batch latent"]]:
        """log p of each word, and the gradient of each sentence's in z; sentences in the packing's order."""
        model = self.model
        with recurrence.fitting_threads(self.layer.recurrent, len(z)):
            states = self.recurrence.forward(self.inputs, _enter(z, self.layer), *model.start(z))
        states = _masked(states, self.output_mask)
        log_probs, slope = softmax.log_prob_and_grad(states, self.output, self.targets)
        with recurrence.fitting_threads(self.layer.recurrent, len(z)):
            slopes = self.recurrence.backward(_masked(slope, self.output_mask))
        gradient = torch.zeros_like(z)
        if self.layer.entry is not None:
            gradient.addmm_(slopes.per_sentence, self.layer.entry)
        if model.state_map is not None:
            gradient.addmm_(slopes.hidden, model.state_map.weight)
        if model.cell_map is not None and slopes.cell is not None:
            gradient.addmm_(slopes.cell, model.cell_map.weight)
        return log_probs, gradient


class PlainText(ConditionedText):
    """Straightforward autograd: torch's own recurrence over padded sentences, and all logits at once.

    Slow, and easy to see through: what `FastText` is checked by. Reduced precision is torch.amp's.
    """

    def log_prob(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, " batch"]:
        """log p(x|z) of each sentence, end of sentence included, in nats; differentiable in z and in the parameters."""
        with self._autocast():
            logits = self.model.output(self._hidden(z))
            log_probs = -nn.functional.cross_entropy(logits, self.targets, reduction="none")
        return self._sum_by_sentence(log_probs.to(z.dtype))

    def log_prob_and_grad(
        self, z: Float[Tensor, "batch latent"]
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch latent"]]:
        """log p(x|z) of each sentence and its gradient in z, by autograd."""
        with torch.enable_grad():
            point = z.detach().requires_grad_()
            log_prob = self._sampled(point) if self.drawn is not None else self.log_prob(point)
            (gradient,) = torch.autograd.grad(log_prob.sum(), point)
        return log_prob.detach(), gradient

    def _sampled(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, " batch"]:
        assert self.drawn is not None
        output, drawn = self.model.output, self.drawn
        with self._autocast():
            product = nn.functional.linear(self._hidden(z), output.weight[drawn.classes])
            logits = product + output.bias[drawn.classes] + drawn.correction
            log_probs = -nn.functional.cross_entropy(logits, drawn.targets, reduction="none")
        return self._sum_by_sentence(log_probs.to(z.dtype))

    def _hidden(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, "tokens hidden"]:
        embeddings = self._embed()
        padded = embeddings.new_zeros(self.size.numel(), embeddings.shape[1])
        padded = padded.index_put((self.packing.positions,), embeddings).view(*self.size, -1)
        outputs, _ = self.model.hidden_states(padded, z, self.model.initial_state(z))
        return self._drop(outputs.flatten(0, 1)[self.packing.positions])

    def _autocast(self) -> AbstractContextManager[object]:
        narrow = softmax.NARROW.get(self.precision)
        return nullcontext() if narrow is None else torch.autocast(self.words.device.type, narrow)


def _masked(values: Float[Tensor, "tokens width"], mask: Tensor | None) -> Float[Tensor, "tokens width"]:
    """Values under a dropout mask, where there is one."""
    return values if mask is None else values * mask


def _enter(z: Float[Tensor, "batch latent"], layer: Layer) -> Float[Tensor, "batch gates"]:
    """What z and the bias add to the gates at every word."""
    if layer.entry is None:
        return layer.bias.expand(len(z), -1)
    return nn.functional.linear(z, layer.entry, layer.bias)


def _product(
    left: Float[Tensor, "rows inner"], weight: Float[Tensor, "columns inner"], dtype: torch.dtype
) -> Float[Tensor, "rows columns"]:
    """left weightᵀ in `dtype`."""
    return nn.functional.linear(left.to(dtype), weight.to(dtype))
