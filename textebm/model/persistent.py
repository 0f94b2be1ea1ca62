"""Prior chains that go on from one learning step to the next, instead of beginning anew at each.

Source: Tieleman, "Training Restricted Boltzmann Machines using Approximations to the Likelihood Gradient", ICML 2008
(persistent contrastive divergence); that a share of the chains begins anew is after Du and Mordatch, "Implicit
Generation and Modeling with Energy-Based Models", NeurIPS 2019.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from textebm.model.energy import GaussianPrior
from textebm.model.langevin import exploded, put_back


class PersistentChains:
    """Many chains of which each learning step moves as many as it needs, so that they follow the prior as it learns."""

    def __init__(
        self, prior: GaussianPrior, count: int, restart: float, generator: torch.Generator, reject: bool = False
    ) -> None:
        """Chains that stand at samples of the reference Gaussian.

        Args:
            prior: whose chain moves them.
            count: how many are kept.
            restart: share of the moved chains that begin anew at the reference Gaussian.
            generator: source of the starting points, on the prior's device.
            reject: whether chains that explode are put back to where they stood.
        """
        self.prior = prior
        self.restart = restart
        self.reject = reject
        self.z = prior.sample_reference(count, generator)

    def advance(
        self, n: int, choice: torch.Generator, noise: torch.Generator
    ) -> tuple[Float[Tensor, "moved latent"], Int[Tensor, ""]]:
        """Move n chains, drawn at random, by the K0 steps of the prior chain, and keep where they end.

        Args:
            n: how many to move; all of them, where fewer are kept.
            choice: decides which chains move and which of those begin anew.
            noise: source of the chains' noise.

        Returns:
            Their end points, min(n, kept) of them; and how many of them had exploded.
        """
        device = self.z.device
        rows = torch.randperm(len(self.z), generator=choice, device=device)[:n]
        anew = torch.rand(len(rows), 1, generator=choice, device=device) < self.restart
        start = torch.where(anew, self.prior.sample_reference(len(rows), choice), self.z[rows])
        end = self.prior.move(start, noise)
        number = exploded(end).sum()
        end = put_back(end, start) if self.reject else end
        self.z[rows] = end
        return end, number
