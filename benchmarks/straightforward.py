"""The model written as one writes it first: what the benchmarks compare with. It shares no code with textebm/model.

torch's own embedding, recurrence over padded sentences, linear layer and cross-entropy over all logits at once; every
gradient by autograd; fp32.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Shape:
    """Sizes of a model and a batch."""

    batch: int = 64
    time: int = 24
    vocabulary: int = 10_002
    embedding: int = 256
    hidden: int = 256
    latent: int = 32
    width: int = 200
    prior_steps: int = 60
    posterior_steps: int = 20


class Straightforward(nn.Module):
    """An LSTM that z enters by its first state and by every word, and an energy of two hidden layers."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.vocabulary, shape.embedding)
        self.rnn = nn.LSTM(shape.embedding + shape.latent, shape.hidden, batch_first=True)
        self.state_map = nn.Linear(shape.latent, shape.hidden)
        self.output = nn.Linear(shape.hidden, shape.vocabulary - 2)
        self.energy = nn.Sequential(
            nn.Linear(shape.latent, shape.width),
            nn.GELU(),
            nn.Linear(shape.width, shape.width),
            nn.GELU(),
            nn.Linear(shape.width, 1),
        )

    def log_prob(self, inputs: Tensor, targets: Tensor, real: Tensor, z: Tensor) -> Tensor:
        """Sum of log p(word) over the real words of a padded batch; targets are classes."""
        every_word = z[:, None].expand(-1, inputs.shape[1], -1)
        hidden = self.state_map(z)[None]
        outputs, _ = self.rnn(torch.cat([self.embedding(inputs), every_word], 2), (hidden, torch.zeros_like(hidden)))
        logits = self.output(outputs)
        losses = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        return -(losses * real.flatten()).sum()

    def posterior_chain(
        self, inputs: Tensor, targets: Tensor, real: Tensor, steps: int, size: float, source: torch.Generator
    ) -> Tensor:
        """Langevin on −f(z) + ‖z‖²/2 − log p(x|z)."""
        latent = self.state_map.in_features
        z = torch.randn(len(inputs), latent, generator=source, device=inputs.device)
        for _ in range(steps):
            z.requires_grad_()
            potential = 0.5 * z.square().sum() - self.energy(z).sum() - self.log_prob(inputs, targets, real, z)
            (slope,) = torch.autograd.grad(potential, z)
            noise = torch.randn(z.shape, generator=source, device=z.device)
            z = z.detach() - 0.5 * size**2 * slope + size * noise
        return z

    def prior_chain(self, n: int, steps: int, size: float, source: torch.Generator) -> Tensor:
        """Langevin on −f(z) + ‖z‖²/2."""
        device = self.state_map.weight.device
        z = torch.randn(n, self.state_map.in_features, generator=source, device=device)
        for _ in range(steps):
            z.requires_grad_()
            potential = 0.5 * z.square().sum() - self.energy(z).sum()
            (slope,) = torch.autograd.grad(potential, z)
            noise = torch.randn(z.shape, generator=source, device=z.device)
            z = z.detach() - 0.5 * size**2 * slope + size * noise
        return z

    def learning_step(
        self,
        optimiser: torch.optim.Optimizer,
        batch: tuple[Tensor, Tensor, Tensor],
        shape: Shape,
        source: torch.Generator,
    ) -> None:
        """Both chains and both gradients, with one optimiser for all."""
        positive = self.posterior_chain(*batch, shape.posterior_steps, 0.3, source)
        negative = self.prior_chain(shape.batch, shape.prior_steps, 0.4, source)
        loss = -self.log_prob(*batch, positive) / shape.batch
        loss = loss + self.energy(negative).mean() - self.energy(positive).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters(), 5.0)
        optimiser.step()

    def sentences(self, z: Tensor, longest: int, source: torch.Generator) -> list[list[int]]:
        """Sample every sentence of a batch up to the longest; finished ones are carried along."""
        with torch.no_grad():
            state = (self.state_map(z)[None], torch.zeros_like(self.state_map(z))[None])
            words = torch.ones(len(z), 1, dtype=torch.long, device=z.device)
            written = []
            done = torch.zeros(len(z), dtype=torch.bool, device=z.device)
            for _ in range(longest):
                inputs = torch.cat([self.embedding(words), z[:, None]], 2)
                outputs, state = self.rnn(inputs, state)
                words = torch.multinomial(self.output(outputs[:, 0]).softmax(1), 1, generator=source) + 2
                done |= words[:, 0] == 2
                written.append(words[:, 0])
                if bool(done.all()):
                    break
        rows = torch.stack(written, 1).tolist()
        return [row[: row.index(2)] if 2 in row else row for row in rows]
