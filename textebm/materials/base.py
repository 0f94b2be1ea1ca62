"""The protocol between the training loop and what a run learns from."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from textebm.config import Config
from textebm.data.dataset import Dataset
from textebm.data.registry import Split
from textebm.evaluation import SelectBy
from textebm.model.latent_model import LatentModel, ModelConfig
from textebm.processes import ALONE, World

Watch = Callable[[str, int], object]
"""Called while data are prepared, with what is being made and how many sentences or images are just done."""


class Corpus(Protocol):
    """Where three splits come from."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    def digest(self, split: Split) -> str:
        """SHA-256 of what decides the samples of a split."""
        ...

    def describe(self, split: Split) -> str:
        """What messages call the place where a split lies."""
        ...

    def warnings(self) -> list[str]:
        """What a person ought to know before they use it."""
        ...


class Measured(Protocol):
    """What a validation found."""

    def score(self, select_by: SelectBy) -> float:
        """What makes a checkpoint the best: lower is better."""
        ...

    def to_dict(self) -> dict[str, float]:
        """All figures by name."""
        ...


class Material(ABC):
    """Three splits, ready to use, and all that the loop has to know of what they hold."""

    noun: ClassVar[str]
    """What messages call it: text, images."""
    verb: ClassVar[str]
    """The verb that goes with it: is, are."""
    unit: ClassVar[str]
    """What progress is counted in: tokens, images."""
    sample: ClassVar[str]
    """What a sample is called: sentence, image."""

    config: Config
    """Of the run."""
    train: Dataset
    valid: Dataset

    @staticmethod
    @abstractmethod
    def download(config: Config) -> str | None:
        """What `resolve` will have to download, and its licence, for people; None: nothing."""

    @staticmethod
    @abstractmethod
    def resolve(config: Config) -> Corpus:
        """The corpus that a configuration names.

        Raises:
            DataError: there is none, or it holds something else.
        """

    @classmethod
    @abstractmethod
    def load(cls, config: Config, corpus: Corpus, model: Path | None = None, watch: Watch | None = None) -> "Material":
        """The splits of a corpus, built or from the cache.

        Args:
            config: of the run.
            corpus: as `resolve` makes one.
            model: folder of the checkpoint that a run goes on from, where it does.
            watch: told of what is being prepared.

        Raises:
            DataError: a split is missing or unusable.
        """

    @property
    @abstractmethod
    def batches_an_epoch(self) -> int:
        """How many batches there are in every epoch."""

    @abstractmethod
    def batches(self, epoch: int, first: int = 0) -> Iterator[NDArray[np.int64]]:
        """The training samples of each batch of an epoch from batch `first` on: a pure function, so resuming is
        exact."""

    @abstractmethod
    def units(self, rows: NDArray[np.int64]) -> int:
        """What training samples count in progress, by their numbers: as `Batch.units` of a batch of them."""

    @abstractmethod
    def model_config(self) -> ModelConfig:
        """The description of a model that is made for it."""

    @abstractmethod
    def describe(self, name: str) -> dict[str, Any]:
        """What the log says of it, in JSON types; `name` is the corpus's."""

    @abstractmethod
    def validate(self, model: LatentModel, world: World = ALONE) -> Measured:
        """Score a model on the validation split, as `evaluation` in the configuration says; `world` shares the work."""

    @abstractmethod
    def latent_use(self, model: LatentModel, world: World = ALONE) -> dict[str, float | str]:
        """Whether the model uses z, by name, on the validation split; `world` shares the work."""

    @abstractmethod
    def draw(self, model: LatentModel, run_dir: Path, step: int) -> list[str]:
        """Samples of a model for the log: themselves, or the files in the run folder that they were written to."""

    def save(self, folder: Path) -> None:  # noqa: B027 (most have nothing to write)
        """Write beside a model's weights what the model cannot be used without.

        Raises:
            OSError: it cannot be written; a full disk, say.
        """
