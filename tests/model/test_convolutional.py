"""Convolutional generators: an exact density, one gradient by every path, chains that change nothing but z."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from textebm.config import Config, ConvolutionConfig, GeneratorConfig, InferenceConfig, PriorConfig, load_config
from textebm.errors import ConfigError, UsageError
from textebm.model import convolutional
from textebm.model.candidates import Candidates
from textebm.model.convolutional import ConvolutionalGenerator, layers
from textebm.model.energy import make_prior
from textebm.model.image_batch import ImageBatch, ImageShape
from textebm.model.inference import posterior_chain
from textebm.model.latent_model import LatentModel, ModelConfig
from textebm.model.learner import Learner

SHAPE = ImageShape(3, 16, 16)
LATENT = 5
SIZES: dict[str, Any] = {"width": 4, "start": 4, "multiples": (2, 1), "last": "double"}
IMAGE_PRESETS = ("svhn", "cifar10", "cifar10-small", "celeba64", "celeba128", "mnist", "mnist-small")


def make_generator(seed: int = 1, shape: ImageShape = SHAPE, **config: Any) -> ConvolutionalGenerator:
    source = torch.Generator().manual_seed(seed)
    return ConvolutionalGenerator(ConvolutionConfig(**{**SIZES, **config}), shape, LATENT, source).double()


def make_batch(n: int = 6, shape: ImageShape = SHAPE, seed: int = 2) -> ImageBatch:
    source = torch.Generator().manual_seed(seed)
    return ImageBatch(torch.rand(n, shape.channels, shape.height, shape.width, generator=source) * 2 - 1)


def latents(n: int = 6, seed: int = 3) -> Tensor:
    return torch.randn(n, LATENT, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def settled(model: ConvolutionalGenerator) -> ConvolutionalGenerator:
    """With running statistics of batch normalisation that differ from those it began with."""
    for _ in range(5):
        model.condition(make_batch(), torch.Generator()).log_prob(latents())
    return model


class TestLayers:
    @pytest.mark.parametrize("preset", IMAGE_PRESETS)
    def test_every_preset_makes_images_of_its_data_s_size(self, preset: str) -> None:
        config = load_config(preset)
        convolution = config.generator.convolution
        side = {"celeba64": 64, "celeba128": 128, "mnist": 28, "mnist-small": 28}.get(preset, 32)
        shape = ImageShape(1 if "mnist" in preset else 3, side, side)
        with torch.device("meta"):
            model = ConvolutionalGenerator(convolution, shape, config.prior.latent_dim)
            assert model(torch.empty(2, config.prior.latent_dim)).shape == (2, shape.channels, side, side)

    @pytest.mark.parametrize(
        ("preset", "described"),
        [
            ("svhn", [(4, 1, 512, 4), (4, 2, 256, 8), (4, 2, 128, 16), (4, 2, 3, 32)]),
            ("cifar10", [(8, 1, 1024, 8), (4, 2, 512, 16), (4, 2, 256, 32), (3, 1, 3, 32)]),
            ("celeba64", [(4, 1, 1024, 4), (4, 2, 512, 8), (4, 2, 256, 16), (4, 2, 128, 32), (4, 2, 3, 64)]),
            (
                "celeba128",
                [(4, 1, 2048, 4), (4, 2, 1024, 8), (4, 2, 512, 16), (4, 2, 256, 32), (4, 2, 128, 64), (4, 2, 3, 128)],
            ),
            ("mnist", [(7, 1, 1024, 7), (4, 2, 512, 14), (4, 2, 256, 28), (3, 1, 1, 28)]),
        ],
    )
    def test_they_are_the_published_ones(self, preset: str, described: list[tuple[int, int, int, int]]) -> None:
        """Kernel, stride, channels and side of each."""
        config = load_config(preset)
        *_, (_, _, channels, side) = described
        made = layers(config.generator.convolution, config.prior.latent_dim, ImageShape(channels, side, side))
        assert [(layer.kernel, layer.stride, layer.outputs, layer.side) for layer in made] == described
        assert made[0].inputs == config.prior.latent_dim

    def test_another_size_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="makes images of 16×16 pixels, and those of the data have 28×28"):
            make_generator(shape=ImageShape(1, 28, 28))
        with pytest.raises(ConfigError, match="these have 1×16×16"):
            make_generator().condition(make_batch(shape=ImageShape(1, 16, 16)))


class TestDensity:
    @pytest.mark.parametrize("sigma", [0.1, 0.3, 1.0])
    @pytest.mark.parametrize("path", ["fast", "plain"])
    def test_it_is_the_gaussian_s(self, sigma: float, path: Any) -> None:
        model, x, z = make_generator(sigma=sigma), make_batch(), latents()
        pixels = x.pixels.double()
        wanted = torch.distributions.Normal(model(z), sigma).log_prob(pixels).flatten(1).sum(1)
        conditioned = model.condition(x, path=path)
        assert torch.allclose(conditioned.log_prob(z), wanted, rtol=1e-12)
        assert torch.allclose(conditioned.log_prob_and_grad(z)[0], wanted, rtol=1e-12)

    def test_in_float32_sums_are_of_float32(self) -> None:
        model, z = make_generator().float(), latents().float()
        exact = make_generator().condition(make_batch()).log_prob(latents())
        assert torch.allclose(model.condition(make_batch()).log_prob(z).double(), exact, rtol=1e-5)
        narrow = model.condition(make_batch(), precision="bf16")
        for found in (narrow.log_prob(z), narrow.log_prob_and_grad(z)[0]):
            assert found.dtype == torch.float32
            assert torch.allclose(found.double(), exact, rtol=0.05, atol=5.0)


class TestGradient:
    @pytest.mark.parametrize("activation", ["lrelu", "relu", "gelu", "silu"])
    @pytest.mark.parametrize("normalisation", ["none", "batch", "group"])
    @pytest.mark.parametrize("last", ["double", "keep"])
    def test_fast_and_plain_are_equal(self, activation: str, normalisation: str, last: str) -> None:
        multiples = (2, 1) if last == "double" else (2, 2, 1)
        choice = {"activation": activation, "normalisation": normalisation, "last": last, "multiples": multiples}
        model = settled(make_generator(**choice, sigma=0.5))
        x, z = make_batch(), latents()
        plain, fast = (model.condition(x, path=path).log_prob_and_grad(z) for path in ("plain", "fast"))
        for one, other in zip(plain, fast, strict=True):
            assert torch.allclose(one, other, rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize("output", ["tanh", "linear"])
    def test_it_is_the_slope_of_the_density(self, output: str, step: float = 1e-6) -> None:
        conditioned = make_generator(output=output, activation="gelu").condition(make_batch())
        z = latents()
        _, gradient = conditioned.log_prob_and_grad(z)
        for dimension in range(LATENT):
            move = torch.zeros_like(z)
            move[:, dimension] = step
            slope = (conditioned.log_prob(z + move) - conditioned.log_prob(z - move)).detach() / (2 * step)
            assert torch.allclose(gradient[:, dimension], slope, rtol=1e-5, atol=1e-4)

    def test_it_does_not_depend_on_how_many_images_are_worked_on_together(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, x, z = make_generator(), make_batch(7), latents(7)
        whole = model.condition(x).log_prob_and_grad(z)
        monkeypatch.setattr(convolutional, "ELEMENTS_AT_ONCE", 3 * model.elements)
        for one, other in zip(whole, model.condition(x).log_prob_and_grad(z), strict=True):
            assert torch.allclose(one, other, rtol=1e-12)

    @pytest.mark.parametrize("path", ["fast", "plain"])
    def test_no_gradient_of_a_weight_is_formed(self, path: Any) -> None:
        model = make_generator(normalisation="batch")
        log_prob, gradient = model.condition(make_batch(), path=path).log_prob_and_grad(latents())
        assert not log_prob.requires_grad
        assert not gradient.requires_grad
        assert all(parameter.grad is None for parameter in model.parameters())

    def test_the_fast_path_reads_the_weights_of_its_first_call(self) -> None:
        """A conditioned likelihood belongs to a chain; the next one sees what the learner changed."""
        model, x, z = make_generator(), make_batch(), latents()
        before = model.condition(x).log_prob_and_grad(z)[0]
        with torch.no_grad():
            model.convolutions[0].weight.mul_(1.5)
        after = model.condition(x).log_prob_and_grad(z)[0]
        assert not torch.allclose(before, after)
        assert torch.allclose(after, model.condition(x, path="plain").log_prob_and_grad(z)[0], rtol=1e-12)


class TestBatchNormalisation:
    def statistics(self, model: ConvolutionalGenerator) -> list[Tensor]:
        return [buffer.clone() for buffer in model.buffers()]

    def test_only_the_learner_s_likelihood_changes_the_statistics(self) -> None:
        model, x, z = settled(make_generator(normalisation="batch")), make_batch(), latents()
        before = self.statistics(model)
        learning = model.condition(x, torch.Generator())
        for path in ("fast", "plain"):
            model.condition(x, torch.Generator(), path=path).log_prob_and_grad(z)
        model.condition(x).log_prob(z)
        assert all(map(torch.equal, before, self.statistics(model)))
        learning.log_prob(z)
        assert not any(map(torch.equal, before, self.statistics(model)))

    def test_a_chain_s_likelihood_of_an_image_does_not_depend_on_the_others(self) -> None:
        model = settled(make_generator(normalisation="batch"))
        x, z = make_batch(), latents()
        whole = model.condition(x, torch.Generator()).log_prob_and_grad(z)
        alone = model.condition(ImageBatch(x.pixels[:1]), torch.Generator()).log_prob_and_grad(z[:1])
        for one, other in zip(whole, alone, strict=True):
            assert torch.allclose(one[:1], other, rtol=1e-12)


def test_a_chain_on_a_linear_generator_has_the_closed_form(chains: int = 20_000) -> None:
    """Mean and covariance of z after K steps on the posterior of x = Az + b + noise, from N(0, I).

    A large bias keeps the leaky ReLU on its upper branch, where it is the identity.
    """
    config = ConvolutionConfig(width=2, start=2, multiples=(1,), last="keep", output="linear", sigma=0.8)
    shape = ImageShape(1, 2, 2)
    model = ConvolutionalGenerator(config, shape, 2, torch.Generator().manual_seed(5)).double()
    with torch.no_grad():
        model.convolutions[0].bias.fill_(1e3)
        model.convolutions[1].bias.sub_(model(torch.zeros(1, 2, dtype=torch.float64)).mean())
        offset = model(torch.zeros(1, 2, dtype=torch.float64)).flatten()
        columns = model(torch.eye(2, dtype=torch.float64)).flatten(1) - offset  # (latent, pixels)
    x = ImageBatch(torch.tensor([[[[0.5, -0.2], [0.1, 0.9]]]])).repeated(chains)
    prior = make_prior(PriorConfig(kind="gaussian", latent_dim=2)).double()
    chain = InferenceConfig(steps=15, step_size=0.3)
    noise = torch.Generator().manual_seed(6)
    start = torch.randn(chains, 2, generator=noise, dtype=torch.float64)
    z = posterior_chain(prior, model.condition(x), start, chain, noise)

    curvature = torch.eye(2, dtype=torch.float64) + columns @ columns.T / config.sigma**2
    pull = columns @ (x.pixels[0].flatten().double() - offset) / config.sigma**2
    mean, covariance = torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    shrink = torch.eye(2, dtype=torch.float64) - 0.5 * 0.3**2 * curvature
    for _ in range(15):
        mean = shrink @ mean + 0.5 * 0.3**2 * pull
        covariance = shrink @ covariance @ shrink.T + 0.3**2 * torch.eye(2, dtype=torch.float64)
    error = 5 * covariance.diagonal().sqrt() / math.sqrt(chains)
    assert ((z.mean(0) - mean).abs() < error).all()
    assert torch.allclose(torch.cov(z.T), covariance, atol=0.03 * float(covariance.diagonal().max()))


class TestLoss:
    """The generator's own loss, and how the encoder's is left alone."""

    def gradients(self, loss: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Tensor]]:
        convolution = ConvolutionConfig(**SIZES, loss=loss, sigma=0.4)  # type: ignore[arg-type]
        prior = PriorConfig(kind="gaussian", latent_dim=LATENT)
        generator = GeneratorConfig("convolutional", convolution=convolution)
        inference = InferenceConfig(kind, steps=2)  # type: ignore[arg-type]
        config = Config(generator=generator, prior=prior, inference=inference)
        config = dataclasses.replace(config, optimiser=dataclasses.replace(config.optimiser, clip=0.0))
        model = LatentModel(ModelConfig(prior=prior, generator=generator, inference=inference, image=SHAPE), seed=4)
        learner, found = Learner(model, config, 1), {}
        for name, optimiser in learner.optimisers().items():
            part = getattr(model, name)
            monkeypatch.setattr(
                optimiser,
                "step",
                lambda name=name, part=part: found.update({name: [p.grad.clone() for p in part.parameters()]}),
            )
        learner.step(make_batch(), 0)
        return found

    @pytest.mark.parametrize("kind", ["short-run", "amortised"])
    def test_squared_error_is_a_multiple_of_the_density(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        density, squares = (self.gradients(loss, kind, monkeypatch) for loss in ("density", "squared-error"))
        for one, other in zip(density["generator"], squares["generator"], strict=True):
            assert torch.allclose(2 * 0.4**2 * one, other, rtol=1e-5, atol=1e-7)
        if kind == "amortised":
            assert all(map(torch.equal, density["encoder"], squares["encoder"]))

    def test_squared_error_is_what_its_name_says(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = make_generator(loss="squared-error", sigma=0.4)
        x, z = make_batch(), latents()
        wanted = torch.autograd.grad((x.pixels - model(z)).square().sum() / len(x), [*model.parameters()])
        of_density = torch.autograd.grad(-model.condition(x).log_prob(z).mean(), [*model.parameters()])
        for one, other in zip(wanted, of_density, strict=True):
            assert torch.allclose(one, model.loss_scale * other, rtol=1e-10)


class TestStart:
    def test_a_seed_decides_the_weights(self) -> None:
        one, again, other = (make_generator(seed) for seed in (1, 1, 2))
        assert all(map(torch.equal, one.parameters(), again.parameters()))
        assert not any(map(torch.equal, one.parameters(), other.parameters()))

    def test_a_new_start_leaves_nothing_of_the_old_one(self) -> None:
        model = settled(make_generator(normalisation="batch"))
        model.reset(torch.Generator().manual_seed(1))
        fresh = make_generator(1, normalisation="batch").state_dict()
        double = {name: tensor.float() for name, tensor in model.state_dict().items()}
        assert all(torch.allclose(double[name], tensor.float(), atol=0.5) for name, tensor in fresh.items())
        assert all(torch.equal(b, torch.full_like(b, float(number % 2))) for number, b in enumerate(model.buffers()))

    def test_convolutions_begin_xavier_normal(self) -> None:
        weight = make_generator(width=32).convolutions[1].weight
        fan_in, fan_out = weight[0].numel(), weight[:, 0].numel()
        assert weight.std().item() == pytest.approx(math.sqrt(2 / (fan_in + fan_out)), rel=0.05)


class TestModel:
    def config(self, **inference: Any) -> ModelConfig:
        generator = GeneratorConfig("convolutional", convolution=ConvolutionConfig(**SIZES, normalisation="batch"))
        prior = PriorConfig(latent_dim=LATENT, width=8, steps=2)
        return ModelConfig(prior=prior, generator=generator, inference=InferenceConfig(**inference), image=SHAPE)

    @pytest.mark.parametrize("kind", ["short-run", "amortised"])
    def test_it_is_saved_and_loaded(self, kind: str, tmp_path: Any) -> None:
        model = LatentModel(self.config(kind=kind), seed=3)
        model.condition(make_batch(), torch.Generator()).log_prob(latents().float())
        model.save_pretrained(tmp_path)
        loaded = LatentModel.from_pretrained(tmp_path)
        assert loaded.config == model.config
        assert model.state_dict().keys() == loaded.state_dict().keys()
        assert all(map(torch.equal, model.state_dict().values(), loaded.state_dict().values()))

    def test_it_is_no_model_of_text(self) -> None:
        model = LatentModel(self.config())
        with pytest.raises(UsageError, match="a model of images, and a model of text is wanted"):
            model.generate(1, torch.Generator(), torch.Generator())
        text = LatentModel(ModelConfig(vocab_size=9))
        with pytest.raises(UsageError, match="a model of text, and a model of images is wanted"):
            text.paint(torch.zeros(1, 32))

    def test_what_only_text_has_is_refused(self) -> None:
        with pytest.raises(ValueError, match="no softmax"):
            make_generator().condition(make_batch(), candidates=Candidates(3, torch.Generator()))
        with pytest.raises(ConfigError, match="sampled_softmax"):
            self.config(sampled_softmax=3)
        with pytest.raises(ConfigError, match="needs image"):
            dataclasses.replace(self.config(), image=None)
        with pytest.raises(ConfigError, match="vocab_size"):
            ModelConfig()


class TestEncoder:
    def encoder(self, **config: Any) -> Any:
        model = TestModel().config(kind="amortised")
        model = dataclasses.replace(model, encoder=dataclasses.replace(model.encoder, **config))
        return LatentModel(model, seed=3).double().encoder

    def test_it_describes_each_image_by_itself(self) -> None:
        encoder, x = self.encoder(), make_batch()
        whole = encoder(x)
        assert whole.mean.shape == whole.log_variance.shape == (6, LATENT)
        for row in range(6):
            alone = encoder(ImageBatch(x.pixels[row : row + 1]))
            assert torch.allclose(alone.mean[0], whole.mean[row], rtol=1e-10)
            assert torch.allclose(alone.log_variance[0], whole.log_variance[row], rtol=1e-10)

    def test_every_parameter_and_every_pixel_has_a_part_in_it(self) -> None:
        encoder, x = self.encoder(), make_batch()
        pixels = x.pixels.double().requires_grad_()
        q = encoder(ImageBatch(pixels))
        (q.mean.sum() + q.log_variance.sum()).backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())
        assert (pixels.grad.abs().amax((0, 1)) > 0).all()

    def test_dropout_has_a_mask_of_its_own_source(self) -> None:
        encoder, x = self.encoder(dropout=0.5), make_batch()
        sources = [torch.Generator().manual_seed(seed) for seed in (1, 1, 2)]
        one, again, other = (encoder(x, source).mean for source in sources)
        assert torch.equal(one, again)
        assert not torch.allclose(one, other)
        assert torch.equal(encoder(x).mean, encoder(x).mean)

    def test_its_width_may_be_another(self) -> None:
        assert self.encoder(width=3).convolutions[0].weight.shape[0] == 3
        assert self.encoder().convolutions[0].weight.shape[0] == 4


def test_batches_move_and_repeat() -> None:
    x = make_batch(3)
    assert (x.batch_size, x.units, x.shape) == (3, 3, SHAPE)
    repeated = x.repeated(2).pixels.numpy()
    assert np.array_equal(repeated, np.repeat(x.pixels.numpy(), 2, axis=0))
