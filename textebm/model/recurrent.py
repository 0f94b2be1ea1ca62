"""Recurrent generators of text: p(x|z) = ∏ p(word t | words before it, z), with an LSTM or a GRU.

z reaches the recurrence in up to three ways, each of which can be switched off: a linear map sets the initial hidden
state, another one the initial cell state, and z is concatenated to every word embedding.
Source of the form: Pang et al., "Short-run inference for text" (EACL 2021) and Pang and Wu, SVEBM (ICML 2021).
"""

import copy
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from textebm.config import GeneratorConfig
from textebm.model import softmax
from textebm.model.generators import ConditionedLikelihood, Generator

PAD, BOS, EOS, UNK = 0, 1, 2, 3
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")
FIRST_OUTPUT = EOS  # the generator never writes <pad> or <bos>: its classes are the ids from here on

State = tuple[Tensor, ...]
"""Recurrent state: (h,) of a GRU or (h, c) of an LSTM, each (1, batch, hidden)."""


class TextBatch(NamedTuple):
    """Sentences of one batch, padded on the right with PAD.

    inputs: (batch, time) int64, BOS then the words. targets: (batch, time) int64, the words then EOS.
    lengths: (batch,) int64, number of targets of each sentence (words + 1).
    """

    inputs: Tensor
    targets: Tensor
    lengths: Tensor

    def to(self, device: torch.device | str) -> "TextBatch":
        """The same batch on `device`."""
        return TextBatch(*(t.to(device, non_blocking=True) for t in self))


class RecurrentGenerator(Generator):
    """An LSTM or GRU that writes a sentence given z."""

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
            latent_dim: number of dimensions of z.
            generator: source of the initial weights.
        """
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.latent_dim = latent_dim
        self.embedding = nn.Embedding(vocab_size, config.embedding_dim)
        cell = nn.LSTM if config.cell == "lstm" else nn.GRU
        inputs = config.embedding_dim + latent_dim * config.z_to_input
        self.rnn = cell(inputs, config.hidden_dim, batch_first=True)
        self.state_map = nn.Linear(latent_dim, config.hidden_dim) if config.z_to_state else None
        self.cell_map = nn.Linear(latent_dim, config.hidden_dim) if config.z_to_cell else None
        self.output = nn.Linear(config.hidden_dim, vocab_size - FIRST_OUTPUT)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -config.init_range, config.init_range, generator=generator)

    def train(self, mode: bool = True) -> "RecurrentGenerator":
        """Set training mode, which nothing in this module depends on.

        The recurrence stays in training mode for good: cuDNN refuses to back-propagate through one in evaluation
        mode, and posterior chains need that gradient at test time too. It has no dropout of its own, so its output is
        the same.
        """
        super().train(mode)
        self.rnn.train(True)
        return self

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
        if self.config.z_to_input:
            every_word = z[:, None, :].expand(-1, embeddings.shape[1], -1)
            embeddings = torch.cat([embeddings, every_word], dim=2)  # (batch, time, embedding + latent)
        outputs, last = self.rnn(embeddings, state if self.config.cell == "lstm" else state[0])
        return outputs, last if self.config.cell == "lstm" else (last,)

    def next_word_logits(
        self, words: Int[Tensor, " batch"], z: Float[Tensor, "batch latent"], state: State
    ) -> tuple[Float[Tensor, "batch classes"], State]:
        """Logits of the next word (class k is token id k + FIRST_OUTPUT) after one more word, and the new state."""
        outputs, state = self.hidden_states(self.embedding(words)[:, None], z, state)
        logits: Tensor = self.output(outputs[:, 0])
        return logits, state

    def condition(
        self, x: TextBatch, generator: torch.Generator | None = None, precision: softmax.Precision = "fp32"
    ) -> "ConditionedText":
        """log p(x|z) of a batch of sentences as a function of z.

        Args:
            x: the sentences, on the generator's device.
            generator: source of dropout masks, drawn once here; None means no dropout.
            precision: dtype of the vocabulary-sized products.
        """
        return ConditionedText(self, x, generator, precision)


class ConditionedText(ConditionedLikelihood):
    """log p(x|z) of a batch of sentences; embeddings, dropout masks and the places of real words are kept."""

    def __init__(
        self,
        model: RecurrentGenerator,
        x: TextBatch,
        generator: torch.Generator | None,
        precision: softmax.Precision,
    ) -> None:
        self.model = model
        self.x = x
        self.precision = precision
        real = torch.arange(x.inputs.shape[1], device=x.lengths.device) < x.lengths[:, None]
        self.positions = real.flatten().nonzero().squeeze(1)  # (tokens,): padding never enters the softmax
        self.targets = x.targets.flatten()[self.positions] - FIRST_OUTPUT
        self.input_mask: Tensor | None = None
        self.output_mask: Tensor | None = None
        self.output_weight = softmax.output_weights(model.output.weight, precision)
        self._draw_masks(generator)

    def with_fresh_masks(self, generator: torch.Generator) -> "ConditionedText":
        """The same likelihood under new dropout masks; unlike `condition`, it does not wait for the device."""
        fresh = copy.copy(self)
        fresh._draw_masks(generator)
        return fresh

    def _draw_masks(self, generator: torch.Generator | None) -> None:
        config = self.model.config
        if generator is not None and config.dropout > 0:
            self.input_mask = self._mask((*self.x.inputs.shape, config.embedding_dim), generator)
            self.output_mask = self._mask((len(self.positions), config.hidden_dim), generator)
        self.embeddings = self._embed().detach()

    def _mask(self, size: tuple[int, ...], generator: torch.Generator) -> Tensor:
        like, dropout = self.model.output.weight, self.model.config.dropout
        kept = torch.rand(size, generator=generator, device=like.device, dtype=like.dtype) >= dropout
        return kept.to(like.dtype) / (1 - dropout)

    def _embed(self) -> Float[Tensor, "batch time embedding"]:
        embeddings: Tensor = self.model.embedding(self.x.inputs)
        return embeddings if self.input_mask is None else embeddings * self.input_mask

    def _hidden(self, embeddings: Tensor, z: Float[Tensor, "batch latent"]) -> Float[Tensor, "tokens hidden"]:
        outputs, _ = self.model.hidden_states(embeddings, z, self.model.initial_state(z))
        real = outputs.flatten(0, 1)[self.positions]
        return real if self.output_mask is None else real * self.output_mask

    def _sum_by_sentence(self, log_probs: Float[Tensor, " tokens"]) -> Float[Tensor, " batch"]:
        every = log_probs.new_zeros(self.x.inputs.numel()).index_put((self.positions,), log_probs)
        return every.view(self.x.inputs.shape).sum(1)

    def log_prob(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, " batch"]:
        """log p(x|z) of each sentence, end of sentence included, in nats; differentiable in z and in the parameters."""
        hidden = self._hidden(self._embed(), z)
        output = self.model.output
        if self.precision == "bf16":
            product = hidden.to(torch.bfloat16) @ output.weight.to(torch.bfloat16).T
            logits = product.to(hidden.dtype) + output.bias
        else:
            logits = output(hidden)
        return self._sum_by_sentence(-nn.functional.cross_entropy(logits, self.targets, reduction="none"))

    def log_prob_and_grad(
        self, z: Float[Tensor, "batch latent"]
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch latent"]]:
        """log p(x|z) of each sentence and its gradient in z; no gradient of a weight is formed."""
        with torch.enable_grad():
            point = z.detach().requires_grad_()
            hidden = self._hidden(self.embeddings, point)
        with torch.no_grad():
            bias = self.model.output.bias
            log_probs, slope = softmax.log_prob_and_grad(hidden.detach(), self.output_weight, bias, self.targets)
        (gradient,) = torch.autograd.grad(hidden, point, slope)
        return self._sum_by_sentence(log_probs), gradient
