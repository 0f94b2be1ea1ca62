"""Images as what a run learns from."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from textebm import checkpoint, evaluation, image_generation, png
from textebm.config import Config, ImagesConfig
from textebm.data.images import EncodedImages, ImageCorpus, download_notice, image_batches, resolve_images
from textebm.data.registry import SPLITS
from textebm.errors import DataError, UsageError
from textebm.materials.base import Corpus, Material, Measured, Watch
from textebm.model.latent_model import OF_TEXT, LatentModel, ModelConfig, read_model_config
from textebm.processes import ALONE, World


class ImageMaterial(Material):
    """Decoded images."""

    noun, verb, unit, sample = "images", "are", "images", "image"

    def __init__(self, config: Config, train: EncodedImages, valid: EncodedImages, test: EncodedImages) -> None:
        """Use `load`."""
        self.config, self.test = config, test
        self.train: EncodedImages = train
        self.valid: EncodedImages = valid

    @staticmethod
    def download(config: Config) -> str | None:
        """What `resolve` will have to download, and its licence, for people; None: nothing."""
        return download_notice(config.data, config.data_dir)

    @staticmethod
    def resolve(config: Config) -> ImageCorpus:
        """The images that a configuration names, in the size that its generator makes.

        Raises:
            DataError: there are none.
        """
        wanted = config.images
        return resolve_images(
            config.data,
            config.data_dir,
            wanted.size or config.generator.convolution.side,
            wanted.crop,
            channels=wanted.channels,
            max_images=wanted.max_images,
            whole_train=wanted.whole_train,
            skip_bad=wanted.skip_bad,
            image_column=wanted.image_column,
            label_column=wanted.label_column,
            exclude_class=wanted.exclude_class,
            pool=wanted.pool,
        )

    @staticmethod
    def resolve_for(
        model: Path, data: str | None, data_dir: str | None, whole_train: bool | None = None
    ) -> ImageCorpus:
        """The images that a model was trained on, or others, in the size and the channels of those that it makes.

        What its run chose among its own (a class left out, pooled splits, at most so many) is not chosen among others.

        Args:
            model: its folder, a checkpoint.
            data: which images (default: its own).
            data_dir: where local copies are (default: where they were).
            whole_train: whether train is the published one: with what its run holds out as valid, and all images
                where its run takes some (default: as in its run).

        Raises:
            DataError: there are none.
            UsageError: it is a model of text.
        """
        config, _ = checkpoint.read_run(model)
        shape = read_model_config(model).image
        if shape is None:
            raise UsageError(OF_TEXT)
        chosen = config.images if data in (None, config.data) else ImagesConfig(skip_bad=config.images.skip_bad)
        images = dataclasses.replace(chosen, size=shape.height, channels=1 if shape.channels == 1 else 3)
        if whole_train is not None:
            most = None if whole_train else images.max_images
            images = dataclasses.replace(images, whole_train=whole_train, max_images=most)
        data, data_dir = data or config.data, data_dir or config.data_dir
        return ImageMaterial.resolve(dataclasses.replace(config, images=images, data=data, data_dir=data_dir))

    @classmethod
    def load(
        cls, config: Config, corpus: Corpus, model: Path | None = None, watch: Watch | None = None
    ) -> "ImageMaterial":
        """The decoded splits, built or from the cache.

        Raises:
            DataError: a split is missing or damaged.
            UsageError: samples are to be written, and Pillow is not installed.
        """
        if config.evaluation.samples:
            png.require_pillow()
        if not isinstance(corpus, ImageCorpus):
            raise DataError(f"{corpus.name} holds no images, and generator.kind is convolutional")
        return cls(config, *(corpus.encoded(split, watch) for split in SPLITS))

    @property
    def batches_an_epoch(self) -> int:
        """How many batches there are in every epoch."""
        return math.ceil(len(self.train) / self.config.batch_size)

    def batches(self, epoch: int, first: int = 0) -> Iterator[NDArray[np.int64]]:
        """The images of each batch of an epoch from batch `first` on."""
        return image_batches(len(self.train), self.config.batch_size, self.config.seed, epoch, first)

    def units(self, rows: NDArray[np.int64]) -> int:
        """Images."""
        return len(rows)

    def model_config(self) -> ModelConfig:
        """A model of images of this shape."""
        config = self.config
        return ModelConfig(
            prior=config.prior,
            generator=config.generator,
            inference=config.inference,
            encoder=config.encoder,
            sampler=config.sampler,
            image=self.train.shape,
        )

    def describe(self, name: str) -> dict[str, Any]:
        """The shape, and what became of each split."""
        reports = {split: getattr(self, split).report for split in SPLITS}
        shape = dataclasses.asdict(self.train.shape)
        return {"name": name, "shape": shape, **{split: dataclasses.asdict(r) for split, r in reports.items()}}

    def validate(self, model: LatentModel, world: World = ALONE) -> Measured:
        """Likelihoods, mean squared errors, energies and norms."""
        settings = self.config.evaluation
        return evaluation.validate_images(model, self.valid, self.config.seed, settings.sentences, world=world)

    def latent_use(self, model: LatentModel, world: World = ALONE) -> dict[str, float | str]:
        """Active units, mutual information, KL."""
        settings = self.config.evaluation
        most, chains = settings.active_unit_sentences, settings.active_unit_chains
        seed = self.config.seed
        return evaluation.latent_use_of_images(model, self.valid, seed, most, chains, world=world).to_dict()

    def draw(self, model: LatentModel, run_dir: Path, step: int) -> list[str]:
        """A grid of images, `samples/step-N.png`."""
        settings = self.config.evaluation
        if settings.samples == 0:
            return []
        drawn = image_generation.generate(model, settings.samples, self.config.seed)
        name = Path("samples") / f"step-{step}.png"
        (run_dir / name).parent.mkdir(exist_ok=True)
        png.write_grid(run_dir / name, torch.cat([part.images for part in drawn]))
        return [str(name)]
