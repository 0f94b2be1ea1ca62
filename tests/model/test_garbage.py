"""A learning step leaves nothing to the garbage collector: what a batch needed is free when the step is done.

Tensors that wait for the collector are memory that a run seems to need, and fragments of it once they are gone.
"""

import gc
from collections.abc import Callable

import pytest
import torch

from textebm.config import (
    Config,
    ConvolutionConfig,
    EncoderConfig,
    GeneratorConfig,
    InferenceConfig,
    PriorConfig,
    SamplerConfig,
)
from textebm.model.image_batch import ImageBatch, ImageShape
from textebm.model.latent_model import LatentModel, ModelConfig
from textebm.model.learner import Learner
from textebm.model.recurrent import TextBatch

SHAPE = ImageShape(1, 16, 16)
PRIOR = PriorConfig(latent_dim=3, width=4, steps=2)


def text_learner(kind: str, cell: str, computation: str) -> Learner:
    generator = GeneratorConfig(cell=cell, embedding_dim=4, hidden_dim=6, dropout=0.5)  # type: ignore[arg-type]
    inference = InferenceConfig(kind, steps=2, sampled_softmax=3 if kind == "short-run" else 0)  # type: ignore[arg-type]
    encoder, sampler = EncoderConfig(hidden_dim=4), SamplerConfig(steps=2, width=4, depth=1, features=2)
    config = Config(
        prior=PRIOR,
        generator=generator,
        inference=inference,
        encoder=encoder,
        sampler=sampler,
        computation=computation,  # type: ignore[arg-type]
    )
    described = ModelConfig(9, PRIOR, generator, inference, encoder=encoder, sampler=sampler)
    return Learner(LatentModel(described, seed=1), config, 1)


def image_learner(kind: str) -> Learner:
    sizes = ConvolutionConfig(width=4, start=4, multiples=(2, 1), last="double")
    generator, inference = GeneratorConfig("convolutional", convolution=sizes), InferenceConfig(kind, steps=2)  # type: ignore[arg-type]
    config = Config(prior=PRIOR, generator=generator, inference=inference)
    described = ModelConfig(prior=PRIOR, generator=generator, inference=inference, image=SHAPE)
    return Learner(LatentModel(described, seed=1), config, 1)


def left_by(work: Callable[[int], object]) -> list[str]:
    """Kinds of things that only the collector can free after some work has been done three times; it did warm up."""
    for number in range(2):
        work(number)
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for number in range(2, 5):
            work(number)
        gc.collect()
        return sorted({type(thing).__name__ for thing in gc.garbage})
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@pytest.mark.parametrize("computation", ["fast", "plain"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("kind", ["short-run", "amortised", "amortised-langevin", "diffusion-langevin"])
def test_a_step_on_text_leaves_none(
    kind: str, cell: str, computation: str, make_batch: Callable[..., TextBatch]
) -> None:
    learner, x = text_learner(kind, cell, computation), make_batch([[5, 6, 7], [5], [8, 8]])
    assert left_by(lambda number: learner.step(x, number)) == []


@pytest.mark.parametrize("kind", ["short-run", "amortised"])
def test_a_step_on_images_leaves_none(kind: str) -> None:
    learner, x = image_learner(kind), ImageBatch(torch.rand(4, 1, 16, 16) * 2 - 1)
    assert left_by(lambda number: learner.step(x, number)) == []
