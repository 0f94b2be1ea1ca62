"""The whole model: a latent prior, a generator, and a way to infer z; and how it is saved and loaded.

A model folder holds `config.json` (what the model is) and `model.safetensors` (its weights), and for text the
tokeniser's files beside them. `GENERATORS` and `ENCODERS` name what x may be; nothing else in here knows.
"""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from textebm import plain_json
from textebm.config import (
    EncoderConfig,
    GeneratorConfig,
    InferenceConfig,
    PriorConfig,
    SamplerConfig,
    from_dict,
    require_one_kind_of_data,
    require_one_latent,
)
from textebm.errors import CheckpointError, ConfigError, UsageError
from textebm.model import inference
from textebm.model.candidates import Candidates
from textebm.model.convolutional import ConvolutionalGenerator
from textebm.model.decoding import Decoding, decode
from textebm.model.encoder import DiagonalGaussian, SentenceEncoder
from textebm.model.energy import GaussianPrior, make_prior
from textebm.model.generators import Batch, Computation, ConditionedLikelihood, Generator
from textebm.model.image_batch import ImageShape
from textebm.model.image_encoder import ImageEncoder
from textebm.model.inference import InferenceMethod, Inferred, Request
from textebm.model.random import Noise, stream
from textebm.model.recurrent import RecurrentGenerator
from textebm.model.sampler import DiffusionSampler
from textebm.model.softmax import Precision

FORMAT = 1
WEIGHTS, CONFIG = "model.safetensors", "config.json"
OF_TEXT = "this is a model of text, and a model of images is wanted: name one with --model"


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What a model is, apart from its weights."""

    vocab_size: int = 0
    """Number of token ids, special tokens included; 0 where x is no text."""
    prior: PriorConfig = dataclasses.field(default_factory=PriorConfig)
    """The prior and its chain."""
    generator: GeneratorConfig = dataclasses.field(default_factory=GeneratorConfig)
    """The generator."""
    inference: InferenceConfig = dataclasses.field(default_factory=InferenceConfig)
    """How z is inferred."""
    encoder: EncoderConfig = dataclasses.field(default_factory=EncoderConfig)
    """The encoder, where z is inferred by one."""
    sampler: SamplerConfig = dataclasses.field(default_factory=SamplerConfig)
    """The learned sampler, where chains start from its draws."""
    longest: int = 200
    """Length in words of the longest training sentence: what generation allows by default."""
    image: ImageShape | None = None
    """Channels, height and width, where x is an image."""

    def __post_init__(self) -> None:
        require_one_latent(self.prior, self.inference)
        require_one_kind_of_data(self.prior, self.generator, self.inference)
        if self.generator.kind == "recurrent" and self.vocab_size < 1:
            raise ConfigError("a recurrent generator needs vocab_size, the number of token ids")
        if self.generator.kind == "convolutional" and self.image is None:
            raise ConfigError("a convolutional generator needs image: channels, height and width")

    @property
    def image_shape(self) -> ImageShape:
        """The shape of images, in a model of images."""
        assert self.image is not None  # `__post_init__` has seen to it
        return self.image


def _recurrent(config: ModelConfig) -> RecurrentGenerator:
    return RecurrentGenerator(config.generator, config.vocab_size, config.prior.dimensions)


def _convolutional(config: ModelConfig) -> ConvolutionalGenerator:
    return ConvolutionalGenerator(config.generator.convolution, config.image_shape, config.prior.dimensions)


def _sentence_encoder(config: ModelConfig, numbers: int) -> SentenceEncoder:
    return SentenceEncoder(config.encoder, config.generator, config.vocab_size, numbers)


def _image_encoder(config: ModelConfig, numbers: int) -> ImageEncoder:
    return ImageEncoder(config.encoder, config.generator.convolution, config.image_shape, numbers)


GENERATORS: dict[str, Callable[[ModelConfig], Generator]] = {"recurrent": _recurrent, "convolutional": _convolutional}
"""Kind of generator -> what makes one."""
ENCODERS: dict[str, Callable[[ModelConfig, int], SentenceEncoder | ImageEncoder]] = {
    "recurrent": _sentence_encoder,
    "convolutional": _image_encoder,
}
"""Kind of generator -> what makes the encoder of its x, whose mean has so many numbers."""


class LatentModel(nn.Module):
    """Latent space energy-based prior model of text or images (Pang et al., NeurIPS 2020)."""

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        """A new model with random weights.

        Args:
            config: what the model is.
            seed: of the stream that the initial weights are drawn from.
        """
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would reset the CUDA generators of the caller too, and nothing would put them back
            torch.default_generator.manual_seed(stream(seed, "initialisation").initial_seed())
            self.prior = make_prior(config.prior)
            kind = config.generator.kind
            self.generator = GENERATORS[kind](config)
            self.encoder = ENCODERS[kind](config, config.prior.dimensions) if self.method.has_encoder else None
            self.sampler = self._new_sampler() if self.method.has_sampler else None

    def _new_sampler(self) -> DiffusionSampler:
        """The learned sampler, which reads x by an encoder of its own."""
        config = self.config
        tells = ENCODERS[config.generator.kind](config, config.sampler.features // 2)
        return DiffusionSampler(config.sampler, tells, config.prior.dimensions, config.prior.sigma)

    @property
    def has_latent(self) -> bool:
        """Whether there is a z: a plain language model has none."""
        return self.config.prior.dimensions > 0

    @property
    def method(self) -> InferenceMethod:
        """How z is inferred."""
        return inference.METHODS[self.config.inference.kind]

    @property
    def inference_prior(self) -> GaussianPrior:
        """Under which z is inferred: the prior, or the reference Gaussian that it tilts (`inference.prior`)."""
        return self.prior if self.config.inference.prior == "learned" else self.prior.reference

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.prior.origin.device

    @property
    def writer(self) -> RecurrentGenerator:
        """The generator of a model of text.

        Raises:
            UsageError: it is a model of images.
        """
        if not isinstance(self.generator, RecurrentGenerator):
            raise UsageError("this is a model of images, and a model of text is wanted: name one with --model")
        return self.generator

    @property
    def painter(self) -> ConvolutionalGenerator:
        """The generator of a model of images.

        Raises:
            UsageError: it is a model of text.
        """
        if not isinstance(self.generator, ConvolutionalGenerator):
            raise UsageError(OF_TEXT)
        return self.generator

    def condition(
        self,
        x: Batch,
        dropout: torch.Generator | None = None,
        precision: Precision = "fp32",
        path: Computation = "fast",
        candidates: Candidates | None = None,
    ) -> ConditionedLikelihood:
        """log p(x|z) of a batch as a function of z (see `Generator.condition`)."""
        return self.generator.condition(x, dropout, precision, path, candidates)

    @property
    def draws_prior_starts(self) -> bool:
        """Whether prior chains start from draws of the learned sampler, and not from the reference Gaussian."""
        asked = self.config.sampler.prior_start != "reference"
        return self.sampler is not None and self.config.prior.kind == "ebm" and asked

    def prior_start(
        self, reference: Float[Tensor, "batch latent"], noise: torch.Generator
    ) -> Float[Tensor, "batch latent"]:
        """Where prior chains start: at samples of the reference Gaussian, or at what a learned sampler makes of them.

        Args:
            reference: samples of the reference Gaussian.
            noise: source of what the sampler adds on the way.
        """
        if self.sampler is None or not self.draws_prior_starts:
            return reference
        return self.sampler.draw(reference, noise)

    def sample_prior(self, n: int, generator: torch.Generator, steps: int | None = None) -> Float[Tensor, "{n} latent"]:
        """Samples of z by the short-run prior chain; `steps` overrides its length."""
        start = self.prior_start(self.prior.sample_reference(n, generator), generator)
        return self.prior.move(start, generator, steps)

    def encode(
        self, x: Batch, dropout: torch.Generator | None = None, precision: Precision = "fp32"
    ) -> DiagonalGaussian:
        """The encoder's q(z|x) of each sample of x (see `SentenceEncoder.forward` and `ImageEncoder.forward`).

        Raises:
            UsageError: the model's way to infer z has no encoder.
        """
        if self.encoder is None:
            raise UsageError(f"a model with inference.kind = {self.config.inference.kind} has no encoder")
        q: DiagonalGaussian = self.encoder(x, dropout, precision)
        return q

    def posterior(self, request: Request) -> Inferred:
        """Posterior samples of z, one for each sample of x, with where they come from."""
        return self.method.infer(self, request)

    def infer(
        self, x: Batch, generator: Noise, steps: int | None = None, precision: Precision = "fp32"
    ) -> Float[Tensor, "batch latent"]:
        """Posterior samples of z, one for each sample of x, inferred as in training, without dropout.

        A persistent chain belongs to a training sample; here its place is taken by a short-run chain.

        Args:
            x: a batch of sentences or images on the model's device.
            generator: source of the samples' randomness.
            steps: overrides the chain's length K1, where there is a chain.
            precision: of the chain's products.
        """
        config = self.config.inference
        config = config if steps is None else dataclasses.replace(config, steps=steps)
        with torch.no_grad():
            return self.posterior(Request(x, self.condition(x, precision=precision), config, generator)).z

    def log_prob(self, x: Batch, z: Float[Tensor, "batch latent"]) -> Float[Tensor, " batch"]:
        """log p(x|z) of each sample in nats (of a sentence, its end included), without dropout, in float32."""
        with torch.no_grad():
            return self.condition(x).log_prob(z)

    def log_likelihood(self, x: Batch) -> Float[Tensor, " batch"]:
        """log p(x) of each sample in nats, exact: of a model without z."""
        assert not self.has_latent  # whoever asks has seen to it
        return self.log_prob(x, self.prior.origin.expand(x.batch_size, -1))

    def generate(
        self,
        n: int,
        latents: torch.Generator,
        decoding_stream: torch.Generator,
        decoding: Decoding | None = None,
        steps: int | None = None,
    ) -> list[list[int]]:
        """Token ids of n sentences, by a model of text: prior chain, then decoding.

        Args:
            n: number of sentences.
            latents: source of the prior chain's randomness.
            decoding_stream: source of the words' randomness.
            decoding: how words are chosen (default: sampling up to the longest training sentence).
            steps: overrides the prior chain's length K0.

        Raises:
            UsageError: it is a model of images.
        """
        decoding = decoding or Decoding(max_length=self.config.longest)
        return decode(self.writer, self.sample_prior(n, latents, steps), decoding, decoding_stream)

    def paint(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch channels height width"]:
        """The mean image g(z) of each latent, by a model of images; pixels in [−1, 1] (with output tanh).

        Raises:
            UsageError: it is a model of text.
        """
        with torch.no_grad():
            mean: Tensor = self.painter(z)
            return mean

    def energy(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, " batch"]:
        """energy(z) = −f(z) of each latent, in nats (0 under a Gaussian prior)."""
        with torch.no_grad():
            return -self.prior.tilt(z)

    def save_pretrained(self, folder: Path | str, dtype: torch.dtype | None = None) -> None:
        """Write config.json and model.safetensors into `folder` (made if need be).

        Args:
            folder: where to write.
            dtype: what floating-point weights are stored as (default: as they are).
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: t.detach().to("cpu", dtype or t.dtype).contiguous() for name, t in self.state_dict().items()}
        save_tensors(weights, folder / WEIGHTS)
        described = {"model_type": "textebm", "format": FORMAT, **dataclasses.asdict(self.config)}
        (folder / CONFIG).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: Path | str, device: torch.device | str = "cpu") -> "LatentModel":
        """Load a model that `save_pretrained` wrote; weights become float32.

        Raises:
            CheckpointError: a file is missing, broken, or of another format.
        """
        folder = Path(folder)
        config = read_model_config(folder)
        weights = load_tensors(folder / WEIGHTS)
        try:
            with _Allowance(sum(t.numel() for t in weights.values())):  # a config.json may ask for any size
                model = cls(config)
            _require_fit(weights, {name: tensor.shape for name, tensor in model.state_dict().items()})
            model.load_state_dict({name: t.float() for name, t in weights.items()})
        except (RuntimeError, TypeError, ValueError, OverflowError) as error:  # the latter: a size beyond all numbers
            raise CheckpointError(f"{folder / WEIGHTS} does not fit {folder / CONFIG}: {error}") from None
        return model.to(device)


class _Allowance(TorchFunctionMode):
    """Refuses to make more numbers than the weights in a file leave room for, before memory is set aside for them.

    Args:
        weights: numbers in the file. As many may be made beside them, and a million: tables, and what is passed over.
    """

    BY_SIZE = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn)
    BY_END = (torch.arange, torch.linspace, torch.eye)

    def __init__(self, weights: int) -> None:
        super().__init__()
        self.left = 2 * weights + 1_000_000

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        if func in self.BY_SIZE or func in self.BY_END:
            given = kwargs.get("size", args[0] if args and isinstance(args[0], list | tuple) else args)
            sizes = [number for number in given if isinstance(number, int)]
            self.left -= math.prod(sizes) if func in self.BY_SIZE else max(map(abs, sizes), default=0)
            if self.left < 0:
                raise ValueError("the model is larger than its weights")
        return func(*args, **kwargs)


def _require_fit(weights: dict[str, Tensor], wanted: dict[str, torch.Size]) -> None:
    """Check that weights are those of a model.

    Raises:
        ValueError: they are not; the message names the first that differs.
    """
    for name, shape in wanted.items():
        if name not in weights:
            raise ValueError(f"{name} is missing")
        if weights[name].shape != shape:
            raise ValueError(f"{name} is of shape {tuple(weights[name].shape)}, and {tuple(shape)} is wanted")
    if unknown := sorted(weights.keys() - wanted.keys()):
        raise ValueError(f"{unknown[0]} is not of this model")


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file, as any other file is written: the library's own writer makes it private.

    Raises:
        OSError: it cannot be written; a full disk, say.
    """
    from safetensors.torch import save

    path.write_bytes(save(tensors, metadata={"format": "pt"}))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        CheckpointError: the file is missing or broken.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}") from None


def read_model_config(folder: Path) -> ModelConfig:
    """The description of a saved model.

    Raises:
        CheckpointError: there is none, or it is not one of ours.
    """
    path = folder / CONFIG
    if not path.exists():
        raise CheckpointError(f"{folder} is no model folder: it holds no {CONFIG}")
    described: dict[str, Any] = plain_json.read(path, CheckpointError)
    if not isinstance(described, dict) or described.pop("model_type", None) != "textebm":
        raise CheckpointError(f"{path} does not describe a textebm model")
    written = described.pop("format", None)
    if written != FORMAT:
        raise CheckpointError(f"{path} has format {written}; this version of textebm reads format {FORMAT}")
    try:
        return from_dict(described, ModelConfig)
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from None
