"""The encoder q(z|x) = N(μ(x), diag σ²(x)) of amortised inference: a recurrence over the sentence in both directions.

It reads the words and the end of the sentence; the last states of both directions give μ and log σ² by a linear map.
Source of the idea: Kingma and Welling, "Auto-encoding variational Bayes", ICLR 2014; with a recurrent encoder of text:
Bowman et al., "Generating sentences from a continuous space", CoNLL 2016.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from textebm.config import EncoderConfig, GeneratorConfig
from textebm.model import information, recurrence, softmax
from textebm.model.random import Noise, normal
from textebm.model.recurrent import TextBatch


class DiagonalGaussian(NamedTuple):
    """N(mean, diag exp(log_variance)) for each sentence of a batch. Both: (batch, latent)."""

    mean: Float[Tensor, "batch latent"]
    log_variance: Float[Tensor, "batch latent"]

    def sample(self, noise: Noise) -> Float[Tensor, "batch latent"]:
        """One sample each, as a differentiable function of mean and variance (the reparameterisation)."""
        epsilon = normal(tuple(self.mean.shape), noise, self.mean)
        return self.mean + epsilon * (0.5 * self.log_variance).exp()

    def log_prob(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, " batch"]:
        """log q(z) of one point each, in nats."""
        return information.log_density(z, self.mean, self.log_variance)

    def kl_from_reference(self, sigma: float) -> Float[Tensor, "batch latent"]:
        """KL(q ‖ N(0, σ²)) of each dimension in nats, in closed form."""
        variance = sigma**2
        moment = (self.mean.square() + self.log_variance.exp()) / variance
        return 0.5 * (moment - 1 - self.log_variance + math.log(variance))


def drop(values: Tensor, share: float, generator: torch.Generator | None) -> Tensor:
    """Dropout whose mask has a source of its own: `share` of the values is 0, the others make up for them.

    Args:
        values: any shape.
        share: from 0 to below 1.
        generator: of the mask, on the device of the values; None: nothing is dropped.
    """
    if generator is None or share == 0:
        return values
    kept = torch.rand(values.shape, generator=generator, device=values.device, dtype=values.dtype) >= share
    return values * kept / (1 - share)


class SentenceEncoder(nn.Module):
    """q(z|x) of sentences, by an LSTM or a GRU in both directions."""

    def __init__(self, config: EncoderConfig, generator: GeneratorConfig, vocab_size: int, latent_dim: int) -> None:
        """Weights start uniform in ±config.init_range.

        Args:
            config: cell, sizes, dropout.
            generator: gives the sizes that `config` leaves open.
            vocab_size: number of token ids.
            latent_dim: number of dimensions of z.
        """
        super().__init__()
        self.config = config
        embedding_dim = config.embedding_dim or generator.embedding_dim
        self.hidden_dim = config.hidden_dim or generator.hidden_dim
        self.embedding = nn.Embedding(vocab_size, embedding_dim)
        cell = nn.LSTM if config.cell == "lstm" else nn.GRU
        self.rnn = cell(embedding_dim, self.hidden_dim, batch_first=True, bidirectional=True)
        self.output = nn.Linear(2 * self.hidden_dim, 2 * latent_dim)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -config.init_range, config.init_range)

    def forward(
        self, x: TextBatch, dropout: torch.Generator | None = None, precision: softmax.Precision = "fp32"
    ) -> DiagonalGaussian:
        """q(z|x) of each sentence.

        Args:
            x: the sentences, on the encoder's device.
            dropout: source of dropout masks; None means no dropout, as in evaluation.
            precision: of the recurrence's matrix products.
        """
        packing = recurrence.pack(x.lengths, x.targets.shape[1], x.targets.device)
        places = _Places.of(x, packing)
        ends = [
            self._last_states(x.targets.flatten()[positions], suffix, packing, places.last, dropout, precision)
            for positions, suffix in ((packing.positions, ""), (places.reversed, "_reverse"))
        ]
        states = drop(torch.cat(ends, 1)[packing.inverse], self.config.dropout, dropout)  # (batch, 2 hidden)
        mean, log_variance = self.output(states).chunk(2, dim=1)
        return DiagonalGaussian(mean, log_variance)

    def _last_states(
        self,
        words: Int[Tensor, " tokens"],
        suffix: str,
        packing: recurrence.Packing,
        last: Int[Tensor, " batch"],
        dropout: torch.Generator | None,
        precision: softmax.Precision,
    ) -> Float[Tensor, "batch hidden"]:
        """The state of one direction after the last of its words; sentences in the packing's order."""
        names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
        entry, recurrent, bias, recurrent_bias = (getattr(self.rnn, name + suffix) for name in names)
        is_gru = self.config.cell == "gru"
        dtype = softmax.product_dtype(precision, recurrent)
        embedded = drop(self.embedding(words), self.config.dropout, dropout)
        start = embedded.new_zeros(len(last), self.hidden_dim)
        states = recurrence.differentiable(
            self.config.cell,
            packing,
            dtype,
            nn.functional.linear(embedded.to(dtype), entry.to(dtype)),
            (bias if is_gru else bias + recurrent_bias).expand(len(last), -1),
            start,
            None if is_gru else start,
            recurrent,
            recurrent_bias if is_gru else None,
        )
        return states[last]


class _Places(NamedTuple):
    """Where a packed batch is read backwards, and where each sentence ends.

    reversed: (tokens,) place in the flattened (batch, time) matrix of each word, last words first.
    last: (batch,) packed row of the last word of each sentence, in the packing's order.
    """

    reversed: Int[Tensor, " tokens"]
    last: Int[Tensor, " batch"]

    @classmethod
    def of(cls, x: TextBatch, packing: recurrence.Packing) -> "_Places":
        """Those of a batch; nothing waits for the device."""
        device, time = x.targets.device, x.targets.shape[1]
        lengths = recurrence.to_device(x.lengths, device)
        starts = recurrence.to_device(torch.tensor(packing.starts), device)
        sentence, step = packing.positions // time, packing.positions % time
        backwards = sentence * time + lengths[sentence] - 1 - step
        by_length = lengths[packing.order]
        return cls(backwards, starts[by_length - 1] + torch.arange(len(by_length), device=device))
