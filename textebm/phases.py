"""The phases of a run, for which the loop asks: pre-training as an autoencoder, aggressive updates of the encoder."""

import dataclasses

import torch
from torch import Tensor

from textebm.checkpoint import Progress
from textebm.config import BoundConfig
from textebm.model.bound import autoencoder_steps, last_change


@dataclasses.dataclass(frozen=True)
class Phases:
    """What a run's configuration says of its phases; a pure function of how far the run has come."""

    config: BoundConfig
    steps: int
    """Learning steps of the whole run."""

    def generator_starts_anew(self, progress: Progress) -> bool:
        """Whether the pre-training as an autoencoder has just ended: what is saved here has not begun anew yet."""
        return progress.step > 0 and progress.step == autoencoder_steps(self.config, self.steps)

    def is_provisional(self, step: int | None) -> bool:
        """Whether what was measured after so many steps learned by another KL weight than the last one.

        The best of such measurements is no longer the best when the weight has changed: the less the KL term weighs,
        the better a model reconstructs.
        """
        return step is not None and step < last_change(self.config, self.steps)

    def encoder_updates(self, progress: Progress) -> int:
        """Most updates of the encoder alone before the next learning step."""
        return 0 if progress.encoder_caught_up else self.config.aggressive_updates

    def after_epoch(self, progress: Progress, mutual_information: float) -> Progress:
        """The progress after an epoch with such updates: they end for good when the mutual information falls.

        Source: He et al., "Lagging inference networks and posterior collapse in variational autoencoders", ICLR 2019.
        """
        fell = mutual_information < (progress.mutual_information or 0.0)
        return dataclasses.replace(progress, mutual_information=mutual_information, encoder_caught_up=fell)


class Improvement:
    """Whether updates of the encoder still improve the bound, judged by windows of several updates each.

    Source: the windows of 15 batches are those of the authors of the paper above, in their code.
    """

    WINDOW = 15

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.tokens = 0
        self.before = float("inf")

    def goes_on(self, loss: Tensor, tokens: int) -> bool:
        """Take in one more update; false when a window of them was worse than the one before.

        Args:
            loss: what it descended, summed over its batch, in nats; it is read once a window, which waits for it.
            tokens: of the batch, so that batches of short and of long sentences compare.
        """
        self.losses.append(loss)
        self.tokens += tokens
        if len(self.losses) < self.WINDOW:
            return True
        now = float(torch.stack(self.losses).sum()) / self.tokens
        no_worse = now <= self.before
        self.losses, self.tokens, self.before = [], 0, now
        return no_worse
