"""Models of images on CUDA: agreement with the CPU, chains that never wait, learning in 16 bits, drawing.

Every test here is skipped, with the reason, where torch sees no CUDA device.
"""

import pytest
import torch

from textebm import image_generation
from textebm.config import Config, ConvolutionConfig, EncoderConfig, GeneratorConfig, InferenceConfig, PriorConfig
from textebm.model import inference
from textebm.model.image_batch import ImageBatch, ImageShape
from textebm.model.latent_model import LatentModel, ModelConfig
from textebm.model.learner import Learner
from textebm.model.random import stream

pytestmark = [
    pytest.mark.gpu,
    # torch calls its debug mode a prototype, and the switches of TF32 old, whenever they are used
    pytest.mark.filterwarnings("ignore:.*ynchronization debug mode"),
    pytest.mark.filterwarnings("ignore:.*TF32"),
]

SHAPE, LATENT, IMAGES = ImageShape(3, 16, 16), 8, 12
SMALL = {"width": 8, "start": 4, "multiples": (2, 1), "last": "double"}


def make_config(kind: str = "short-run", prior: str = "ebm", **convolution: object) -> ModelConfig:
    return ModelConfig(
        prior=PriorConfig(kind=prior, latent_dim=LATENT, width=32, steps=10),
        generator=GeneratorConfig(kind="convolutional", convolution=ConvolutionConfig(**{**SMALL, **convolution})),
        inference=InferenceConfig(kind=kind, steps=10, step_size=0.1, temperature=0.0),
        encoder=EncoderConfig(),
        image=SHAPE,
    )


def make_learner(model: LatentModel, precision: str = "fp32", micro_batch: int = 0) -> Learner:
    made = model.config
    config = Config(
        prior=made.prior,
        generator=made.generator,
        inference=made.inference,
        encoder=made.encoder,
        precision=precision,
        micro_batch=micro_batch,
    )
    return Learner(model, config, 10)


@pytest.fixture
def batch() -> ImageBatch:
    """Images on the CPU."""
    source = torch.Generator().manual_seed(3)
    return ImageBatch(torch.rand(IMAGES, SHAPE.channels, SHAPE.height, SHAPE.width, generator=source) * 2 - 1)


@pytest.mark.parametrize("normalisation", ["none", "batch"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_likelihood_agrees_with_the_cpu(full_precision, batch, precision, normalisation):
    """In fp32 up to the order of sums; in bf16 up to some roundings to bfloat16 (2⁻⁸) besides."""
    model = LatentModel(make_config(normalisation=normalisation), seed=1).eval()
    z = torch.randn(IMAGES, LATENT, generator=torch.Generator().manual_seed(2))
    on_cpu = model.condition(batch).log_prob_and_grad(z)
    model.to("cuda")
    on_cuda = model.condition(batch.to("cuda"), None, precision).log_prob_and_grad(z.cuda())
    tolerance = 1e-4 if precision == "fp32" else 2**-4
    for here, there in zip(on_cpu, on_cuda, strict=True):
        assert there.is_cuda
        assert (here - there.cpu()).norm() < tolerance * here.norm()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_posterior_chain_never_waits(batch, no_waiting, cuda_generator, precision):
    model = LatentModel(make_config(), seed=1).to("cuda")
    conditioned = model.condition(batch.to("cuda"), None, precision)

    def chain() -> torch.Tensor:
        settings = model.config.inference
        return inference.short_run_posterior(model.prior, conditioned, IMAGES, settings, cuda_generator)[0]

    chain()  # libraries may wait while they set themselves up
    with no_waiting():
        z = chain()
    assert z.isfinite().all()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("micro_batch", [0, 5])
def test_learning_step(batch, precision, micro_batch):
    model = LatentModel(make_config(), seed=1).to("cuda")
    learner, x = make_learner(model, precision, micro_batch), batch.to("cuda")
    before = [p.detach().clone() for p in model.generator.parameters()]
    for number in range(20 if precision == "fp16" else 3):  # its scale of gradients is found by steps left out
        report = learner.step(x, number)
        assert all(value.is_cuda and value.isfinite() for value in report.__dict__.values())
    assert any(not torch.equal(p, b) for p, b in zip(model.generator.parameters(), before, strict=True))


@pytest.mark.parametrize("prior", ["ebm", "gaussian"])
@pytest.mark.parametrize("kind", ["short-run", "amortised", "amortised-langevin"])
def test_ways_to_infer_z(batch, kind, prior):
    model = LatentModel(make_config(kind, prior), seed=1).to("cuda")
    learner, x = make_learner(model), batch.to("cuda")
    for number in range(2):
        assert learner.step(x, number).log_prob.isfinite()
    z = [model.train(mode).infer(x, stream(0, "posterior", device="cuda")) for mode in (True, False)]
    torch.testing.assert_close(*z, rtol=1e-3, atol=1e-4)


def test_drawn_images_are_those_of_their_latents(full_precision):
    """Painted on the device and on the CPU."""
    model = LatentModel(make_config(), seed=1).eval()
    z = torch.randn(IMAGES, LATENT, generator=torch.Generator().manual_seed(2))
    on_cpu = model.paint(z)
    model.to("cuda")
    torch.testing.assert_close(model.paint(z.cuda()).cpu(), on_cpu, rtol=1e-3, atol=1e-4)
    (drawn,) = image_generation.generate(model, IMAGES)
    assert drawn.images.shape == (IMAGES, SHAPE.channels, SHAPE.height, SHAPE.width)
    assert drawn.images.isfinite().all()
