"""fp16: losses are scaled before their backward passes, so that small gradients survive and large ones do no harm."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from textebm.config import Config, ConvolutionConfig, GeneratorConfig, InferenceConfig, OptimiserConfig, PriorConfig
from textebm.errors import CheckpointError
from textebm.model.convolutional import ConvolutionalGenerator
from textebm.model.image_batch import ImageBatch, ImageShape
from textebm.model.latent_model import LatentModel, ModelConfig
from textebm.model.learner import Learner
from textebm.model.recurrent import TextBatch

SHAPE = ImageShape(3, 16, 16)
FIRST_SCALE = 2.0**16


def image_learner(precision: str, sigma: float = 0.3, kind: str = "short-run", computation: Any = "fast") -> Learner:
    """A learner of small images whose steps change no weight to speak of, and whose gradients are not clipped."""
    sizes = ConvolutionConfig(width=4, start=4, multiples=(2, 1), last="double", sigma=sigma, loss="density")
    generator = GeneratorConfig("convolutional", convolution=sizes)
    prior, inference = PriorConfig(latent_dim=5, width=8, steps=2), InferenceConfig(kind=kind, steps=2)
    model = LatentModel(ModelConfig(prior=prior, generator=generator, inference=inference, image=SHAPE), seed=3)
    rates = OptimiserConfig(lr=1e-30, energy_lr=1e-30, clip=0.0)
    config = Config(prior=prior, generator=generator, inference=inference, optimiser=rates, precision=precision)
    return Learner(model, dataclasses.replace(config, computation=computation), 1)


def images() -> ImageBatch:
    return ImageBatch(torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1)


def gradients(learner: Learner) -> Tensor:
    learner.step(images(), 0)
    found = [p.grad.flatten() for p in learner.model.generator.parameters() if p.grad is not None]
    return torch.cat(found)


def text_learner(precision: str = "fp16", **optimiser: Any) -> Learner:
    prior, inference = PriorConfig(latent_dim=2, width=8, steps=2), InferenceConfig(steps=2)
    generator = GeneratorConfig(embedding_dim=4, hidden_dim=8)
    model = LatentModel(ModelConfig(9, prior, generator, inference), seed=3)
    rates = OptimiserConfig(**optimiser)
    return Learner(model, Config(prior, generator, inference, optimiser=rates, precision=precision), 1)


def sentences() -> TextBatch:
    words = torch.tensor([[5, 6, 7, 3], [5, 3, 0, 0], [8, 8, 3, 0]])
    return TextBatch(torch.cat([torch.full((3, 1), 2), words[:, :-1]], 1), words, torch.tensor([4, 2, 3]))


def weights(learner: Learner) -> list[Tensor]:
    return [p.detach().clone() for p in learner.model.generator.parameters()]


@pytest.mark.parametrize("computation", ["fast", "plain"])
def test_gradients_too_small_for_16_bits_survive(computation: str) -> None:
    """With σ = 30,000 gradients are some 1e-8 and less, where fp16 has no numbers left."""
    wanted = gradients(image_learner("fp32", 3e4, computation=computation))
    scaled = gradients(image_learner("fp16", 3e4, computation=computation))
    assert (scaled - wanted).norm() < 0.02 * wanted.norm()
    learner = image_learner("fp16", 3e4, computation=computation)
    learner.scaler = torch.amp.GradScaler("cpu", enabled=False)
    assert (gradients(learner) - wanted).norm() > 0.1 * wanted.norm()


def test_a_gradient_that_overflows_moves_nothing_and_halves_the_scale() -> None:
    learner = text_learner(lr=0.01, energy_lr=0.01)
    learner.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    before, energy = weights(learner), [p.detach().clone() for p in learner.model.prior.parameters()]
    seen = learner.step(sentences(), 0)
    assert seen.loss_scale == 2.0**60
    assert seen.gradient_norm == 0
    assert all(map(torch.equal, weights(learner), before))
    assert not all(map(torch.equal, learner.model.prior.parameters(), energy))  # fp32: it learns all the same
    assert learner.scaler.get_scale() == 2.0**59


@pytest.mark.parametrize("kind", ["fused", "plain"])
def test_it_learns_as_soon_as_the_scale_is_small_enough(kind: str) -> None:
    learner = text_learner(lr=0.01, kind=kind)
    learner.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
    before = weights(learner)
    norms = [float(learner.step(sentences(), number).gradient_norm) for number in range(10)]
    left_out = norms.count(0)
    assert norms[0] == 0
    assert left_out < 10
    assert learner.scaler.get_scale() == 2.0 ** (24 - left_out)
    assert not any(map(torch.equal, weights(learner), before))
    state = learner.generator_optimiser.state_dict()["state"].values()
    assert {float(of["step"]) for of in state} == {10 - left_out}


def test_fp32_is_not_scaled() -> None:
    learner = text_learner("fp32")
    assert learner.step(sentences(), 0).loss_scale == 1
    assert learner.state() == {}


def test_the_scale_goes_on_where_it_stood() -> None:
    one, other = text_learner(), text_learner()
    for number in range(3):
        one.step(sentences(), number)
    other.restore(one.state())
    assert other.scaler.state_dict() == one.scaler.state_dict()
    assert other.scaler.state_dict()["_growth_tracker"] == 3
    assert other.scaler.get_scale() == FIRST_SCALE
    with pytest.raises(CheckpointError, match="not those of this model"):
        text_learner("fp32").restore(one.state())


@pytest.mark.parametrize("kind", ["amortised", "amortised-langevin"])
def test_encoders_learn_with_scaled_losses(kind: str) -> None:
    learner = image_learner("fp16", kind=kind)
    learner.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)  # their gradients are large
    assert isinstance(learner.model.generator, ConvolutionalGenerator)
    seen = learner.step(images(), 0)
    wanted = image_learner("fp32", kind=kind).step(images(), 0)
    for name in ("gradient_norm", "encoder_gradient_norm"):
        assert float(getattr(seen, name)) == pytest.approx(float(getattr(wanted, name)), rel=0.05)
    learner.encoder_step(images(), 1, 1)
    assert learner.scaler.state_dict()["_growth_tracker"] == 2
