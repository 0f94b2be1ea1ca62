"""An average of a model's weights along its training, which is then what is measured and generated from.

Source: Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", SIAM Journal on Control and
Optimization 1992; here with weights that fall off exponentially, and with Adam's correction of the start (Kingma and
Ba, 2015).
"""

import copy

import torch
from torch import nn

from textebm.model.latent_model import LatentModel


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, decay: float, updates: int) -> None:
    """Let the weights of now take part in their average θ̄ (see `WeightAverage`).

    Args:
        average: holds θ̄ of the updates before; of no meaning before the first.
        model: whose weights are averaged.
        decay: d.
        updates: t, how often the weights have changed, the last time included.
    """
    share = (1 - decay) / (1 - decay**updates)
    for averaged, now in zip(average.parameters(), model.parameters(), strict=True):
        averaged.lerp_(now, share)


class WeightAverage:
    """The exponential moving average θ̄ of the weights θ after each learning step:

        θ̄_t = (1 − d) Σ_i d^(t−i) θ_i / (1 − d^t),   i = 1 … t.

    The initial weights have no part in it, and after one step the average is what that step left.
    """

    def __init__(self, model: LatentModel, decay: float) -> None:
        """An average that begins with the weights of now, until the first update.

        Args:
            model: whose weights are averaged.
            decay: d, in [0, 1).
        """
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def restart(self, model: LatentModel) -> None:
        """Begin again with the weights of now: those before are of another generator.

        Args:
            model: whose weights are averaged.
        """
        self.model.load_state_dict(model.state_dict())

    @torch.no_grad()
    def update(self, model: LatentModel, updates: int) -> None:
        """Let the weights of now take part.

        Args:
            model: whose weights are averaged.
            updates: t, the learning steps made, this one included.
        """
        follow(self.model, model, self.decay, updates)
        for kept, statistic in zip(self.model.generator.buffers(), model.generator.buffers(), strict=True):
            kept.copy_(statistic)  # of batch normalisation, averages already
        self.model.prior.refine_norms()
