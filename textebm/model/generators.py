"""What a generator p(x|z) must answer, whatever x is.

A generator, given a batch of data, returns a *conditioned likelihood*: an object that has computed once what does not
change along a chain, and then answers log p(x|z) and its gradient in z as often as the chain asks. Fast paths live
behind that one door.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from textebm.model.candidates import Candidates
from textebm.model.softmax import Precision

Computation = Literal["fast", "plain"]


@runtime_checkable
class Batch(Protocol):
    """Samples of x that are worked on together."""

    @property
    def batch_size(self) -> int:
        """How many there are."""
        ...

    @property
    def units(self) -> int:
        """What progress is counted in: tokens of text, images."""
        ...

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on `device`."""
        ...

    def repeated(self, copies: int) -> "Batch":
        """Each sample so many times in a row."""
        ...

    def split(self, size: int) -> "Sequence[Batch]":
        """Its samples in batches of so many, the last one of what is left."""
        ...


class ConditionedLikelihood(ABC):
    """log p(x|z) of one fixed batch x, as a function of z."""

    recordable = False
    """Whether `log_prob_and_grad` can be recorded as a CUDA graph, after it was called once."""

    @abstractmethod
    def log_prob(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, " batch"]:
        """log p(x|z) of each sample, in nats, differentiable in z and in the generator's parameters."""

    @abstractmethod
    def log_prob_and_grad(
        self, z: Float[Tensor, "batch latent"]
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch latent"]]:
        """log p(x|z) and its gradient in z, without an autograd graph."""

    def with_fresh_masks(self, generator: torch.Generator) -> "ConditionedLikelihood":
        """The same likelihood under new dropout masks: itself, where there is no dropout."""
        return self


class Generator(nn.Module, ABC):
    """p(x|z). Subclasses say what a batch x is."""

    latent_dim: int

    plain_has_bf16: ClassVar[bool] = True
    """Whether the path `plain` can compute in bf16 where the device does not do so natively."""

    loss_scale: float = 1.0
    """Factor on the gradient of −log p(x|z) that the generator's own parameters learn from; 1 is maximum likelihood."""

    @abstractmethod
    def condition(
        self,
        x: Any,  # noqa: ANN401 (a batch of whatever it generates)
        generator: torch.Generator | None = None,
        precision: Precision = "fp32",
        path: Computation = "fast",
        candidates: Candidates | None = None,
    ) -> ConditionedLikelihood:
        """The likelihood of the batch x as a function of z.

        Args:
            x: a batch, on the generator's device.
            generator: source of dropout masks in a learning step; None means no dropout, as in evaluation.
            precision: of the products.
            path: `fast`, or `plain`: straightforward autograd, to check the other one by.
            candidates: makes a softmax over a vocabulary a sampled one.

        Raises:
            ValueError: candidates are given, and there is no such softmax.
        """

    @abstractmethod
    def reset(self, generator: torch.Generator | None = None) -> None:
        """Give every weight a new start.

        Args:
            generator: source of the weights (default: torch's global one).
        """
