"""What a generator p(x|z) must answer, whatever x is.

A generator, given a batch of data, returns a *conditioned likelihood*: an object that has computed once what does not
change along a chain, and then answers log p(x|z) and its gradient in z as often as the chain asks. Fast paths live
behind that one door.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


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


class Generator(nn.Module, ABC):
    """p(x|z). Subclasses say what a batch x is."""

    latent_dim: int

    @abstractmethod
    def condition(self, x: Any, generator: torch.Generator | None = None) -> ConditionedLikelihood:  # noqa: ANN401
        """The likelihood of the batch x as a function of z.

        Args:
            x: a batch, on the generator's device.
            generator: source of dropout masks; None means no dropout, as in evaluation.
        """
