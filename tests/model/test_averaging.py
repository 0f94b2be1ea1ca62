"""The average of weights is what its formula says, and the run's result."""

import pytest
import torch

from textebm.config import BoundConfig, Config, GeneratorConfig, InferenceConfig, OptimiserConfig, PriorConfig
from textebm.model.averaging import WeightAverage
from textebm.model.latent_model import LatentModel, ModelConfig
from textebm.model.learner import Learner

PRIOR = PriorConfig(latent_dim=2, width=4, steps=2)
SIZES = GeneratorConfig(embedding_dim=2, hidden_dim=3)
CHAIN = InferenceConfig(steps=2, step_size=0.2)


def new_model() -> LatentModel:
    return LatentModel(ModelConfig(6, PRIOR, SIZES, CHAIN), seed=5).double()


def flat(model: LatentModel) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()]).clone()


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_it_is_the_closed_form(decay, generator):
    model = new_model()
    average = WeightAverage(model, decay)
    seen = []
    for t in range(1, 31):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
        seen.append(flat(model))
        average.update(model, t)
        weights = torch.tensor([decay ** (t - i) for i in range(1, t + 1)], dtype=torch.float64)
        expected = (1 - decay) * weights @ torch.stack(seen) / (1 - decay**t)
        torch.testing.assert_close(flat(average.model), expected, rtol=1e-10, atol=1e-12)


def test_weights_that_stand_still_are_their_own_average():
    model = new_model()
    average = WeightAverage(model, 0.99)
    for t in range(1, 5):
        average.update(model, t)
    assert torch.equal(flat(average.model), flat(model))


def test_an_average_that_begins_again_knows_nothing_of_before(generator):
    model = new_model()
    average = WeightAverage(model, 0.9)
    average.update(model, 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    average.restart(model)
    assert torch.equal(flat(average.model), flat(model))


def test_a_generator_with_new_weights_is_averaged_anew(make_batch):
    """Pre-training as an autoencoder for 2 of 4 steps: after the reset, the average is of the steps since."""
    decay = 0.8
    config = Config(
        prior=PriorConfig(kind="gaussian", latent_dim=PRIOR.latent_dim),
        generator=SIZES,
        inference=InferenceConfig(kind="amortised"),
        bound=BoundConfig(autoencoder=0.5),
        optimiser=OptimiserConfig(lr=0.1, ema=decay),
        epochs=4,
    )
    model = LatentModel(ModelConfig(6, config.prior, SIZES, config.inference), seed=5).double()
    learner = Learner(model, config, 1)
    seen = []
    for number in range(4):
        if number == 2:
            learner.reset_generator(number)
        learner.step(make_batch([[5, 5], [4]]), number)
        seen.append(flat(model))
    weights = torch.tensor([decay, 1.0], dtype=torch.float64)
    torch.testing.assert_close(flat(learner.result), weights @ torch.stack(seen[2:]) / weights.sum())


def test_the_learner_averages_what_its_steps_leave_and_the_average_stays_apart(make_batch):
    decay = 0.8
    config = Config(prior=PRIOR, generator=SIZES, inference=CHAIN, optimiser=OptimiserConfig(lr=0.1, ema=decay))
    model = new_model()
    learner = Learner(model, config, 1)
    seen = []
    for number in range(6):
        learner.step(make_batch([[5, 5], [4]]), number)
        seen.append(flat(model))
    weights = torch.tensor([decay ** (6 - i) for i in range(1, 7)], dtype=torch.float64)
    torch.testing.assert_close(flat(learner.result), weights @ torch.stack(seen) / weights.sum())
    assert learner.model is model
    assert all(p.grad is None and not p.requires_grad for p in learner.result.parameters())


def test_without_a_decay_the_model_is_the_result():
    model = new_model()
    learner = Learner(model, Config(prior=PRIOR, generator=SIZES, inference=CHAIN), 1)
    assert learner.result is model
    assert learner.state() == {}
