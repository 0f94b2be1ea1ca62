"""The score of an image or a sentence, in its parts."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from textebm.data.dataset import Dataset
from textebm.errors import CheckpointError
from textebm.model.latent_model import LatentModel
from textebm.model.random import stream
from textebm.model.softmax import Precision

RankedBy = Literal["joint", "prior", "likelihood", "adjusted"]
"""joint: −log p(x, z), the published score; prior: −log p(z) alone, how odd z is; likelihood: −log p(x|z) alone, how
badly x is made again; all up to constants. adjusted: of images, the joint score beside those of images of training that
are as complex (`complexity`)."""

BATCH = 256
"""Samples scored at once; part of what a seed means, since each batch has its own random streams."""


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """The parts of −log p(x, z) of each sample of x, means over its posterior samples, in nats.

    energy: (samples,) −f(z). gaussian: (samples,) ‖z‖²/2σ². nll: (samples,) −log p(x|z). adjusted: (samples,) their
    sum, in spreads above what is usual at the image's complexity; None for sentences.
    """

    energy: NDArray[np.float64]
    gaussian: NDArray[np.float64]
    nll: NDArray[np.float64]
    adjusted: NDArray[np.float64] | None = None

    @property
    def total(self) -> NDArray[np.float64]:
        """(samples,) the score: a larger one is more anomalous."""
        return self.energy + self.gaussian + self.nll

    @property
    def rankings(self) -> dict[RankedBy, NDArray[np.float64]]:
        """Everything that samples can be ranked by, (samples,) each."""
        found: dict[RankedBy, NDArray[np.float64]] = {
            "joint": self.total,
            "prior": self.energy + self.gaussian,
            "likelihood": self.nll,
        }
        return found if self.adjusted is None else found | {"adjusted": self.adjusted}

    @property
    def parts(self) -> dict[str, NDArray[np.float64]]:
        """Each part of the sum by name."""
        return {"energy": self.energy, "gaussian": self.gaussian, "nll": self.nll}

    @property
    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """Everything that is kept."""
        return self.parts if self.adjusted is None else self.parts | {"adjusted": self.adjusted}

    def per_token(self, tokens: NDArray[np.int64]) -> "Scores":
        """Those of sentences, divided by the tokens of each, (samples,)."""
        return Scores(*(part / tokens for part in self.parts.values()))


@dataclasses.dataclass(frozen=True)
class EpochScores:
    """The scores of a run at the end of an epoch."""

    epoch: int
    step: int
    scores: Scores


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How z is inferred from what is scored.

    samples: of the posterior for each x, by as many chains; the score is their mean (published: 1). steps: of a chain;
    None: as many as in training (published). precision: of the products in the chains; whatever it is, the parts of a
    score are computed in fp32.
    """

    samples: int = 1
    steps: int | None = None
    precision: Precision = "fp32"


ONE_CHAIN = Sampling()
"""As published."""


def score(
    model: LatentModel,
    data: Dataset,
    seed: int,
    sampling: Sampling = ONE_CHAIN,
    watch: Callable[[int], object] = lambda done: None,
    rows: NDArray[np.int64] | None = None,
) -> Scores:
    """Score samples of x, images or sentences.

    Args:
        model: the model, on its device.
        data: what is scored.
        seed: of the posterior chains.
        sampling: how z is inferred.
        watch: told how many samples of x are just done.
        rows: which of the data, in this order; None: all.

    Raises:
        CheckpointError: a score is not finite.
    """
    rows = np.arange(len(data), dtype=np.int64) if rows is None else rows
    found = np.empty((3, len(rows)))
    for number, places in enumerate(data.groups(rows, BATCH)):
        found[:, places] = _score_batch(model, data, rows[places], seed, number, sampling).cpu().numpy()
        watch(len(places))
    if broken := int((~np.isfinite(found).all(axis=0)).sum()):
        raise CheckpointError(
            f"{broken} of {len(rows)} scores are not finite: posterior chains exploded, or the model is broken"
        )
    return Scores(*found)


def _score_batch(
    model: LatentModel, data: Dataset, rows: NDArray[np.int64], seed: int, number: int, sampling: Sampling
) -> torch.Tensor:
    """(3, batch) the parts of the scores of one batch, in float64."""
    x = data.batch(rows).to(model.device)
    total = torch.zeros(3, len(rows), dtype=torch.float64, device=model.device)
    with torch.no_grad():
        conditioned = model.condition(x)
        for sample in range(sampling.samples):
            if model.has_latent:
                noise = stream(seed, "anomaly", number, sample, device=model.device)
                z = model.infer(x, noise, sampling.steps, sampling.precision)
            else:  # a plain language model: its likelihood is exact
                z = model.prior.origin.expand(len(rows), -1)
            gaussian = z.double().square().sum(1) / (2 * model.config.prior.sigma**2)
            total += torch.stack([model.energy(z).double(), gaussian, -conditioned.log_prob(z).double()])
    return total / sampling.samples
