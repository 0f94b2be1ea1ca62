"""Text as what a run learns from."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from textebm import evaluation, generation
from textebm.config import Config
from textebm.data import cache, registry
from textebm.data.batches import bucketed_batches, token_batches
from textebm.data.images import is_image_data
from textebm.data.registry import SPLITS
from textebm.data.text import EncodedText, EncodingOptions
from textebm.data.vocabulary import load_tokenizer, save_tokenizer
from textebm.errors import DataError
from textebm.materials.base import Corpus, Material, Measured, Watch
from textebm.model.latent_model import LatentModel, ModelConfig
from textebm.processes import ALONE, World


@dataclasses.dataclass(frozen=True)
class Splits:
    """A corpus, encoded."""

    tokenizer: Tokenizer
    train: EncodedText
    valid: EncodedText
    test: EncodedText
    """Not used in training; here so that it is seen at the start whether it can be used later."""


def load_splits(
    corpus: registry.Corpus, config: Config, tokenizer: Tokenizer | None = None, watch: Watch | None = None
) -> Splits:
    """The vocabulary of the training split (or `tokenizer`) and the encoded splits, built or from the cache.

    Raises:
        DataError: a split is missing, or holds no usable sentence.
    """
    tokenizer = tokenizer or cache.vocabulary(corpus, vocabulary_options(config), watch)
    options = encoding_options(config)
    return Splits(tokenizer, *(cache.encoded(corpus, split, tokenizer, options, watch) for split in SPLITS))


def encoding_options(config: Config) -> EncodingOptions:
    """How a run's sentences are encoded."""
    return EncodingOptions(config.max_length, config.overlong, config.unknown_words)


def vocabulary_options(config: Config) -> cache.VocabularyOptions:
    """What a run's vocabulary is made by."""
    return cache.VocabularyOptions(
        config.vocab_size, config.tokenizer, config.min_count, config.lowercase, config.numbers
    )


def epoch_batches(config: Config, text: EncodedText, epoch: int, first: int = 0) -> Iterator[NDArray[np.int64]]:
    """The sentences of each batch of an epoch from batch `first` on: a pure function, so resuming is exact."""
    if config.batch_tokens is not None:
        yield from token_batches(text.lengths, config.batch_tokens, config.seed, epoch)[first:]
    else:
        yield from bucketed_batches(text.lengths, config.batch_size, config.seed, epoch, first)


def batches_an_epoch(config: Config, text: EncodedText) -> int:
    """How many batches there are in every epoch."""
    if config.batch_tokens is not None:
        return len(token_batches(text.lengths, config.batch_tokens, config.seed, 0))
    return math.ceil(len(text) / config.batch_size)


class TextMaterial(Material):
    """Encoded sentences, and the vocabulary that they are encoded by."""

    noun, verb, unit, sample = "text", "is", "tokens", "sentence"

    def __init__(self, config: Config, splits: Splits) -> None:
        """Use `load`."""
        self.config, self.splits = config, splits
        self.train: EncodedText = splits.train
        self.valid: EncodedText = splits.valid
        self.batches_in_one = batches_an_epoch(config, splits.train)

    @staticmethod
    def download(config: Config) -> str | None:
        """What `resolve` will have to download, and its licence, for people; None: nothing."""
        return registry.download_notice(config.data, config.data_dir)

    @staticmethod
    def resolve(config: Config) -> registry.Corpus:
        """The corpus of sentences that a configuration names.

        Raises:
            DataError: there is none, or it holds images.
        """
        try:
            return registry.resolve(config.data, config.data_dir, config.text_field)
        except DataError:
            if is_image_data(config.data, config.data_dir):
                raise DataError(
                    f"{config.data} is images, and the settings are of a model of text (generator.kind is recurrent): "
                    "--config names settings of images, such as mnist or svhn"
                ) from None
            raise

    @classmethod
    def load(
        cls, config: Config, corpus: Corpus, model: Path | None = None, watch: Watch | None = None
    ) -> "TextMaterial":
        """The vocabulary (that of `model`, where a run goes on) and the encoded splits, built or from the cache.

        Raises:
            DataError: a split is missing, or holds no usable sentence.
        """
        if not isinstance(corpus, registry.Corpus):
            raise DataError(f"{corpus.name} holds no text, and generator.kind is recurrent")
        tokenizer = None if model is None else load_tokenizer(model)
        return cls(config, load_splits(corpus, config, tokenizer, watch))

    @property
    def batches_an_epoch(self) -> int:
        """How many batches there are in every epoch."""
        return self.batches_in_one

    def batches(self, epoch: int, first: int = 0) -> Iterator[NDArray[np.int64]]:
        """The sentences of each batch of an epoch from batch `first` on."""
        return epoch_batches(self.config, self.train, epoch, first)

    def units(self, rows: NDArray[np.int64]) -> int:
        """Tokens, ends of sentences included."""
        return int(self.train.lengths[rows].sum()) + len(rows)

    def model_config(self) -> ModelConfig:
        """A model of this vocabulary."""
        config = self.config
        return ModelConfig(
            vocab_size=self.splits.tokenizer.get_vocab_size(),
            prior=config.prior,
            generator=config.generator,
            inference=config.inference,
            encoder=config.encoder,
            sampler=config.sampler,
            longest=self.train.report.longest,
        )

    def describe(self, name: str) -> dict[str, Any]:
        """The vocabulary, and what became of each split."""
        reports = {split: getattr(self.splits, split).report for split in SPLITS}
        described: dict[str, Any] = {
            split: {**dataclasses.asdict(report), "unknown_rate": report.unknown_rate}
            for split, report in reports.items()
        }
        vocabulary = {"vocabulary": self.splits.tokenizer.get_vocab_size(), "tokenizer": self.config.tokenizer}
        return {"name": name, **vocabulary, **described}

    def validate(self, model: LatentModel, world: World = ALONE) -> Measured:
        """Likelihoods, energies and norms."""
        settings = self.config.evaluation
        return evaluation.validate(model, self.valid, self.config.seed, settings.sentences, world=world)

    def latent_use(self, model: LatentModel, world: World = ALONE) -> dict[str, float | str]:
        """Active units, BLEU of reconstructions, mutual information, KL."""
        settings = self.config.evaluation
        sentences, chains = settings.active_unit_sentences, settings.active_unit_chains
        tokenizer, seed = self.splits.tokenizer, self.config.seed
        return evaluation.latent_use(model, self.valid, tokenizer, seed, sentences, chains, world=world).to_dict()

    def draw(self, model: LatentModel, run_dir: Path, step: int) -> list[str]:
        """Sentences."""
        settings = self.config.evaluation
        drawn = generation.generate(model, self.splits.tokenizer, settings.samples, self.config.seed)
        return [sample.text for sample in drawn]

    def save(self, folder: Path) -> None:
        """The tokeniser's files."""
        save_tokenizer(self.splits.tokenizer, folder)
