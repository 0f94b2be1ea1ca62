"""The typed configuration of a run: the one definition behind the command line, preset files and a run's config.json.

A preset is a YAML file in `textebm/configs`; keys it does not name keep the defaults written here. A method is one in
`textebm/configs/methods`: the keys in which a row of the comparison differs, laid over a preset. Values are checked
when a configuration is made, so a wrong one never reaches training.
"""

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from textebm.errors import ConfigError

Schedule = float | tuple[float, ...]
"""One value for every Langevin step, or one value a step (the last one repeats)."""

LONGEST_TEXT = 1 << 20
"""Characters of a configuration file."""
MOST_LAYERS = 1000
"""Of a network: more are a slip, and would only be noticed when the memory is full."""

T = TypeVar("T")


def _require(condition: bool, key: str, value: object, wanted: str) -> None:
    if not condition:
        raise ConfigError(f"{key} is {value!r}: it must be {wanted}")


def _require_schedule(key: str, value: Schedule, *, zero_allowed: bool) -> None:
    values = value if isinstance(value, tuple) else (value,)
    enough = all((v >= 0 if zero_allowed else v > 0) for v in values)
    wanted = "one number or several, none negative" if zero_allowed else "one positive number or several"
    _require(len(values) > 0 and enough, key, value, wanted)


@dataclasses.dataclass(frozen=True)
class PriorConfig:
    """The prior p(z) ∝ exp(f(z)) N(z; 0, σ²I) and its short-run chain."""

    kind: Literal["ebm", "gaussian", "ratio", "none"] = "ebm"
    """ebm: the learned tilt f; gaussian: f = 0, sampled exactly, without a chain; ratio: f is a sum of log density
    ratios, learned one after the other by logistic regression (Xiao and Han, NeurIPS 2022); none: no z, a plain LM."""
    latent_dim: int = 32
    """Number of dimensions of z (with kind = none it says nothing)."""
    sigma: float = 1.0
    """Standard deviation σ of the reference Gaussian."""
    width: int = 200
    """Hidden units in each layer of the energy MLP."""
    depth: int = 2
    """Hidden layers of the energy MLP."""
    activation: Literal["gelu", "lrelu", "silu", "tanh"] = "gelu"
    """Activation of the energy MLP (lrelu: slope 0.2)."""
    steps: int = 60
    """K0: Langevin steps of the prior chain."""
    step_size: Schedule = 0.4
    """s0: step size, z ← z − ½s²∇U + sTε."""
    temperature: Schedule = 1.0
    """T: noise temperature; 1 is Langevin dynamics proper."""
    outputs: int = 1
    """K: outputs of the energy MLP; f is their log-sum-exp, a soft maximum of K energies (Pang and Wu, ICML 2021)."""
    spectral_norm: bool = False
    """Divide each weight matrix of the energy MLP by its largest singular value (Miyato et al., ICLR 2018)."""
    persistent: int = 0
    """Prior chains kept from one learning step to the next (Tieleman, ICML 2008); 0: each begins at the Gaussian."""
    restart: float = 0.05
    """Share of the kept chains that begin anew at each step that moves them."""
    stages: int = 3
    """Density ratios of kind ratio."""
    stage_steps: int = 500
    """Learning steps for each of them but the last, which is learned until the end."""

    def __post_init__(self) -> None:
        _require(self.latent_dim > 0, "prior.latent_dim", self.latent_dim, "at least 1")
        _require(self.sigma > 0, "prior.sigma", self.sigma, "positive")
        _require(self.width > 0, "prior.width", self.width, "at least 1")
        _require(0 <= self.depth <= MOST_LAYERS, "prior.depth", self.depth, f"from 0 to {MOST_LAYERS:,}")
        _require(self.steps >= 0, "prior.steps", self.steps, "0 or more")
        _require_schedule("prior.step_size", self.step_size, zero_allowed=False)
        _require_schedule("prior.temperature", self.temperature, zero_allowed=True)
        _require(self.outputs > 0, "prior.outputs", self.outputs, "at least 1")
        _require(self.persistent >= 0, "prior.persistent", self.persistent, "0 or more")
        _require(0 <= self.restart <= 1, "prior.restart", self.restart, "in [0, 1]")
        _require(0 < self.stages <= MOST_LAYERS, "prior.stages", self.stages, f"from 1 to {MOST_LAYERS:,}")
        _require(self.stage_steps > 0, "prior.stage_steps", self.stage_steps, "at least 1")
        if self.kind == "ratio":  # each ratio begins as 1, its last layer as 0
            _require(self.outputs == 1, "prior.outputs", self.outputs, "1 with prior.kind = ratio")
            _require(not self.spectral_norm, "prior.spectral_norm", self.spectral_norm, "false with prior.kind = ratio")

    @property
    def dimensions(self) -> int:
        """Dimensions that z has: 0 in a plain language model."""
        return 0 if self.kind == "none" else self.latent_dim

    @property
    def is_tilted(self) -> bool:
        """Whether anything is learned of it: else there is no chain to sample it by, and log Z is 0."""
        return self.kind in ("ebm", "ratio")


@dataclasses.dataclass(frozen=True)
class ConvolutionConfig:
    """The convolutional generator of images, p(x|z) = N(x; g(z), σ²I): a stack of transposed convolutions.

    The first layer makes a square map of z; each layer after it doubles the side, the last one too or not.
    """

    width: int = 64
    """ngf: the unit in which channels are counted."""
    start: int = 4
    """Side of the first map in pixels; also the kernel of the layer that makes it."""
    multiples: tuple[int, ...] = (8, 4, 2)
    """Channels after each layer but the last, in units of width."""
    last: Literal["double", "keep"] = "double"
    """The last layer: a kernel of 4 and a stride of 2, which doubles the side; or one of 3 and 1, which keeps it."""
    activation: Literal["lrelu", "relu", "gelu", "silu"] = "lrelu"
    """Between layers (lrelu: slope 0.2)."""
    normalisation: Literal["none", "batch", "group"] = "none"
    """After each layer but the last (batch: chains take the running statistics and never change them)."""
    output: Literal["tanh", "linear"] = "tanh"
    """What the mean g(z) leaves the last layer through."""
    sigma: float = 0.3
    """σ_x: standard deviation of a pixel around the mean, where pixels are in [−1, 1]."""
    loss: Literal["density", "squared-error"] = "density"
    """What the generator's own parameters descend: −log p(x|z), or ‖x − g(z)‖², its multiple by 2σ² (the authors'
    code)."""

    def __post_init__(self) -> None:
        _require(self.width > 0, "generator.convolution.width", self.width, "at least 1")
        _require(self.start > 0, "generator.convolution.start", self.start, "at least 1")
        enough = len(self.multiples) > 0 and all(m > 0 for m in self.multiples)
        _require(enough, "generator.convolution.multiples", self.multiples, "one positive whole number or several")
        _require(self.sigma > 0, "generator.convolution.sigma", self.sigma, "positive")

    @property
    def side(self) -> int:
        """Height and width of the images that it makes."""
        doublings = len(self.multiples) - 1 + (self.last == "double")
        return int(self.start * 2**doublings)


@dataclasses.dataclass(frozen=True)
class GeneratorConfig:
    """The generator p(x|z): of text, recurrent, and of images, convolutional."""

    kind: Literal["recurrent", "convolutional"] = "recurrent"
    """recurrent: an LSTM or a GRU, which writes text (cell to init_range); convolutional: makes images
    (convolution)."""
    cell: Literal["lstm", "gru"] = "lstm"
    """Recurrent cell (one layer)."""
    embedding_dim: int = 256
    """Size of a word embedding."""
    hidden_dim: int = 256
    """Size of the recurrent state."""
    z_to_state: bool = True
    """z sets the initial hidden state by a linear map."""
    z_to_cell: bool = False
    """z sets the initial LSTM cell state too (else it is 0)."""
    z_to_input: bool = True
    """z is concatenated to every word embedding."""
    dropout: float = 0.0
    """Dropout on embeddings and on outputs."""
    word_dropout: float = 0.0
    """Share of the words it reads that are replaced by <unk> in training."""
    init_range: float = 0.1
    """Weights start uniform in ±this."""
    convolution: ConvolutionConfig = dataclasses.field(default_factory=ConvolutionConfig)

    def __post_init__(self) -> None:
        _require(self.embedding_dim > 0, "generator.embedding_dim", self.embedding_dim, "at least 1")
        _require(self.hidden_dim > 0, "generator.hidden_dim", self.hidden_dim, "at least 1")
        _require(0 <= self.dropout < 1, "generator.dropout", self.dropout, "in [0, 1)")
        _require(0 <= self.word_dropout <= 1, "generator.word_dropout", self.word_dropout, "in [0, 1]")
        _require(self.init_range > 0, "generator.init_range", self.init_range, "positive")
        _require(
            self.z_to_state or self.z_to_cell or self.z_to_input,
            "generator.z_to_state, z_to_cell and z_to_input",
            False,
            "true for at least one, or z never reaches the generator",
        )
        _require(
            not (self.z_to_cell and self.cell == "gru"),
            "generator.z_to_cell",
            True,
            "false for a GRU, which has no cell",
        )


@dataclasses.dataclass(frozen=True)
class InferenceConfig:
    """How z is inferred from a sentence or an image: by a Langevin chain on the posterior, an encoder, or both."""

    kind: Literal["short-run", "amortised", "amortised-langevin", "diffusion-langevin", "persistent", "none"] = (
        "short-run"
    )
    """short-run: a chain from the reference Gaussian; amortised: an encoder; amortised-langevin: a chain from where the
    encoder says; diffusion-langevin: one from where a learned sampler says; persistent: a chain a training sentence,
    which goes on at each visit; none: there is no z."""
    steps: int = 20
    """K1: Langevin steps of the posterior chain."""
    step_size: Schedule = 0.1
    """s1: step size, z ← z − ½s²∇U + sTε."""
    temperature: Schedule = 1.0
    """T: noise temperature; below 1 it targets a sharpened posterior p(z|x)^(1/T²)."""
    annealing_start: float = 1.0
    """Factor on T at the first learning step; it rises linearly to 1. The counterpart of KL annealing."""
    annealing_steps: int = 0
    """Learning steps over which that factor rises to 1."""
    dropout_mask: Literal["chain", "step"] = "chain"
    """One dropout mask for the whole chain and the learner's step, or a fresh one at every step."""
    sampled_softmax: int = 0
    """Words beside the batch's own that stand for the vocabulary in training chains (0: all, the exact softmax)."""
    preconditioner: Literal["none", "rms"] = "none"
    """rms: each dimension's step is divided by the running RMS of its gradients over the batch (pSGLD, Li et al., AAAI
    2016)."""
    prior: Literal["learned", "reference"] = "learned"
    """Under which prior z is inferred: the learned one, as in the paper; or the reference Gaussian, so that the
    generator is that of a Gaussian prior, and the tilt learns where its posteriors lie without moving them."""

    def __post_init__(self) -> None:
        _require(self.steps >= 1, "inference.steps", self.steps, "1 or more")
        _require_schedule("inference.step_size", self.step_size, zero_allowed=False)
        _require_schedule("inference.temperature", self.temperature, zero_allowed=True)
        _require(0 <= self.annealing_start <= 1, "inference.annealing_start", self.annealing_start, "in [0, 1]")
        _require(self.annealing_steps >= 0, "inference.annealing_steps", self.annealing_steps, "0 or more")
        _require(self.sampled_softmax >= 0, "inference.sampled_softmax", self.sampled_softmax, "0 or more")


def require_one_latent(prior: PriorConfig, inference: InferenceConfig) -> None:
    """Check that prior and inference agree on whether there is a z.

    Raises:
        ConfigError: one has none and the other one has.
    """
    if (prior.kind == "none") != (inference.kind == "none"):
        raise ConfigError(
            f"prior.kind is {prior.kind!r} and inference.kind is {inference.kind!r}: a plain language model has none "
            "of both, any other model one of each"
        )


def require_one_kind_of_data(prior: PriorConfig, generator: GeneratorConfig, inference: InferenceConfig) -> None:
    """Check that a generator of images is asked for nothing that only text has.

    Raises:
        ConfigError: it is.
    """
    if generator.kind == "recurrent":
        return
    of_text = "with generator.kind = convolutional"
    wanted = f"another one {of_text}: only text has a language model without z"
    _require(prior.kind != "none", "prior.kind", prior.kind, wanted)
    _require(
        inference.sampled_softmax == 0,
        "inference.sampled_softmax",
        inference.sampled_softmax,
        f"0 {of_text}: no softmax",
    )


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """The encoder q(z|x) of amortised inference.

    Of text a recurrence over the sentence in both directions (cell to init_range), of images the generator's layers
    the other way round (width, dropout).
    """

    cell: Literal["lstm", "gru"] = "lstm"
    """Recurrent cell (one layer)."""
    embedding_dim: int | None = None
    """Size of a word embedding (default: the generator's)."""
    hidden_dim: int | None = None
    """Size of the recurrent state of each direction (default: the generator's)."""
    dropout: float = 0.0
    """Dropout on embeddings and on the last states; of images, on the last map."""
    init_range: float = 0.1
    """Weights start uniform in ±this."""
    width: int | None = None
    """Of images: the unit in which channels are counted (default: the generator's)."""

    def __post_init__(self) -> None:
        for key in ("embedding_dim", "hidden_dim", "width"):
            value = getattr(self, key)
            _require(value is None or value > 0, f"encoder.{key}", value, "at least 1")
        _require(0 <= self.dropout < 1, "encoder.dropout", self.dropout, "in [0, 1)")
        _require(self.init_range > 0, "encoder.init_range", self.init_range, "positive")


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """The learned sampler of inference.kind diffusion-langevin: a diffusion model in z that draws where chains start,
    and learns from where they end (DAMC: Yu et al., NeurIPS 2023)."""

    steps: int = 100
    """Diffusion steps of a draw."""
    log_snr_min: float = -5.1
    """Log signal-to-noise ratio where a draw begins; a cosine schedule leads to the other end."""
    log_snr_max: float = 9.8
    """Log signal-to-noise ratio where a draw ends."""
    variance: Literal["large", "small"] = "large"
    """Variance of a diffusion step: right where z has unit variance, or where it is known."""
    width: int = 128
    """Hidden units in each layer of the denoising MLP."""
    depth: int = 3
    """Hidden layers of the denoising MLP."""
    features: int = 128
    """Numbers by which its encoder (settings: encoder) tells it of x."""
    condition_dropout: float = 0.2
    """Share of the points that it learns from without being told of x, so that it can draw without x, too."""
    updates: int = 6
    """Updates of the sampler a learning step, all on the same ends of chains."""
    ema: float = 0.9995
    """Decay a learning step of the average of its weights, which is what draws."""
    prior_start: Literal["posterior", "unconditional", "reference"] = "posterior"
    """Where an EBM prior's chains start. posterior: in training one for each x where its posterior chain did, and one
    in the reference Gaussian; afterwards at draws without x. unconditional: at draws without x, in training too.
    reference: in the reference Gaussian."""

    def __post_init__(self) -> None:
        for key in ("width", "depth", "updates"):
            _require(getattr(self, key) > 0, f"sampler.{key}", getattr(self, key), "at least 1")
        _require(self.depth <= MOST_LAYERS, "sampler.depth", self.depth, f"at most {MOST_LAYERS:,}")
        _require(2 <= self.steps <= 100_000, "sampler.steps", self.steps, "from 2 to 100,000")
        _require(self.features >= 2 and self.features % 2 == 0, "sampler.features", self.features, "even, 2 or more")
        _require(
            self.log_snr_min < self.log_snr_max,
            "sampler.log_snr_min",
            self.log_snr_min,
            f"less than sampler.log_snr_max, which is {self.log_snr_max}",
        )
        _require(0 <= self.condition_dropout <= 1, "sampler.condition_dropout", self.condition_dropout, "in [0, 1]")
        _require(0 <= self.ema < 1, "sampler.ema", self.ema, "in [0, 1)")


@dataclasses.dataclass(frozen=True)
class BoundConfig:
    """The bound on log p(x) that amortised inference maximises: E[log p(x|z)] − weight · KL(q(z|x) ‖ p(z))."""

    kl_schedule: Literal["constant", "linear", "cyclical"] = "constant"
    """The KL weight over the run: constant, a rise in a line, or several such rises, one after the other."""
    kl_weight: float = 1.0
    """The weight at the end; 1 makes it the evidence lower bound."""
    kl_start: float = 0.0
    """The weight where a rise begins."""
    kl_annealing: float = 0.5
    """How long a rise lasts: a share of the run (linear) or of a cycle (cyclical)."""
    kl_cycles: int = 4
    """Cycles of the run (cyclical)."""
    free_bits: float = 0.0
    """Nats that all dimensions of z together may carry at no cost, an equal share each."""
    free_bits_over: Literal["sentence", "batch"] = "sentence"
    """Whether a dimension's KL is held against its share sentence by sentence (or image by image), or on the mean of a
    batch."""
    autoencoder: float = 0.0
    """Share of the run that pre-trains without the KL term; the generator then starts anew."""
    aggressive_updates: int = 0
    """Most updates of the encoder alone before each of the generator (0: both learn together); they end for good when
    the mutual information of x and z stops rising."""

    def __post_init__(self) -> None:
        for key in ("kl_weight", "kl_start", "free_bits"):
            _require(getattr(self, key) >= 0, f"bound.{key}", getattr(self, key), "0 or more")
        _require(0 < self.kl_annealing <= 1, "bound.kl_annealing", self.kl_annealing, "in (0, 1]")
        _require(self.kl_cycles >= 1, "bound.kl_cycles", self.kl_cycles, "1 or more")
        _require(0 <= self.autoencoder < 1, "bound.autoencoder", self.autoencoder, "in [0, 1)")
        _require(self.aggressive_updates >= 0, "bound.aggressive_updates", self.aggressive_updates, "0 or more")


@dataclasses.dataclass(frozen=True)
class OptimiserConfig:
    """Adam for each part, with its own rate, decay and clipping."""

    kind: Annotated[Literal["fused", "plain", "apex"], tyro.conf.arg(aliases=("--optimizer",))] = "fused"
    """Whose Adam: torch's fused kernel, torch's plain loop, or NVIDIA Apex's FusedAdam (where it is installed)."""
    lr: float = 1e-3
    """Learning rate of the generator."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's β₁ and β₂, every part."""
    clip: float = 5.0
    """Largest gradient norm of the generator (0: no clipping)."""
    energy_lr: float = 1e-4
    """Learning rate of the EBM."""
    energy_start: float = 0.0
    """Share of the run's learning steps during which the EBM stands still, and learns afterwards."""
    energy_weight_decay: float = 0.0
    """Weight decay of the EBM, added to its gradient (Adam's L2)."""
    energy_clip: float = 1.0
    """Largest gradient norm of the EBM (0: no clipping)."""
    encoder_lr: float | None = None
    """Learning rate of the encoder (default: the generator's)."""
    encoder_clip: float | None = None
    """Largest gradient norm of the encoder (0: no clipping; default: the generator's)."""
    sampler_lr: float | None = None
    """Learning rate of the learned sampler (default: the generator's)."""
    sampler_clip: float = 100.0
    """Largest gradient norm of the learned sampler (0: no clipping)."""
    schedule: Literal["constant", "exponential", "linear", "cosine"] = "constant"
    """The rates over time: exponential multiplies by `decay` an epoch; linear and cosine fall to 0 at the end."""
    decay: float = 0.998
    """Factor an epoch of the exponential schedule."""
    warmup_steps: int = 0
    """Steps over which the rates rise linearly from 0."""
    ema: float = 0.0
    """Decay a step of an exponential moving average of all weights, which is then what is validated, saved and
    generated from (Polyak and Juditsky, 1992); 0: none."""

    def __post_init__(self) -> None:
        for key in ("lr", "energy_lr"):
            _require(getattr(self, key) > 0, f"optimiser.{key}", getattr(self, key), "positive")
        for key in ("clip", "energy_clip", "energy_weight_decay", "sampler_clip"):
            _require(getattr(self, key) >= 0, f"optimiser.{key}", getattr(self, key), "0 or more")
        _require(0 <= self.energy_start < 1, "optimiser.energy_start", self.energy_start, "in [0, 1)")
        for key in ("encoder_lr", "sampler_lr"):
            rate = getattr(self, key)
            _require(rate is None or rate > 0, f"optimiser.{key}", rate, "positive")
        norm = self.encoder_clip
        _require(norm is None or norm >= 0, "optimiser.encoder_clip", norm, "0 or more")
        _require(all(0 <= b < 1 for b in self.betas), "optimiser.betas", self.betas, "two numbers in [0, 1)")
        _require(0 < self.decay <= 1, "optimiser.decay", self.decay, "in (0, 1]")
        _require(self.warmup_steps >= 0, "optimiser.warmup_steps", self.warmup_steps, "0 or more")
        _require(0 <= self.ema < 1, "optimiser.ema", self.ema, "in [0, 1)")


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What is measured on the validation split at the end of each epoch."""

    sentences: int = 500
    """Validation sentences, or images, that are scored (0: all), the same ones each time."""
    active_unit_sentences: int = 100
    """Sentences, or images, over which the use of z is measured: active units, mutual information, of sentences
    reconstruction BLEU (0: not)."""
    active_unit_chains: int = 10
    """Posterior chains of each for them."""
    samples: int = 5
    """Generated sentences written to the log, or images written to the run folder."""
    select_by: Literal["reconstruction_nll", "prior_nll", "negative_elbo"] = "reconstruction_nll"
    """Which of them makes a checkpoint the best (negative_elbo: with an encoder and a Gaussian prior alone)."""

    def __post_init__(self) -> None:
        for key in ("sentences", "active_unit_sentences", "samples"):
            _require(getattr(self, key) >= 0, f"evaluation.{key}", getattr(self, key), "0 or more")
        _require(self.active_unit_chains >= 2, "evaluation.active_unit_chains", self.active_unit_chains, "2 or more")


@dataclasses.dataclass(frozen=True)
class ImagesConfig:
    """Which images a convolutional generator learns from."""

    size: int | None = None
    """Height and width in pixels that images are resized to (default: what the generator makes)."""
    crop: Literal["authors", "centre"] | None = None
    """Part of a picture that is kept: the largest square in its middle, or of CelebA that of the authors' code
    (default: of a named set its own)."""
    channels: Literal[1, 3] | None = None
    """1: grey, 3: colour (default: of a named set its own, else as the first picture has)."""
    max_images: int | None = None
    """Most training images that are taken (default: all)."""
    whole_train: bool = False
    """Train on the images too that are held out of a published training set as valid."""
    skip_bad: bool = False
    """Leave out, and count, pictures that cannot be read; else one is an error."""
    image_column: str | None = None
    """Column of a hub data set that holds the images (default: its only one of images)."""
    label_column: str | None = None
    """Column of a hub data set that holds class labels (default: its only one, if it has one)."""
    exclude_class: str | None = None
    """Name or number of a class that is left out of train and valid, and stays in test: the anomaly to be detected."""
    pool: bool = False
    """Take the images of all splits together, and draw 80 % of them for train and 20 % for test; of exclude_class, all
    for test."""

    def __post_init__(self) -> None:
        for key in ("size", "max_images"):
            value = getattr(self, key)
            _require(value is None or value > 0, f"images.{key}", value, "at least 1")


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides the outcome of a training run."""

    data: str = "demo"
    """Named corpus (demo, ptb, snli, yahoo; svhn, cifar10, celeba64, celeba128, mnist), text file, folder (of train,
    valid and test, of any text files, or of images), - for standard input, or hf:NAME for a data set of the hub or a
    local one."""
    data_dir: str | None = None
    """Folder that holds local copies of named corpora; else the environment variable TEXTEBM_DATA."""
    text_field: str | None = None
    """Field of JSON lines, or column of a hub data set, that holds the text (default: text, or a data set's only column
    of strings)."""
    tokenizer: Literal["word", "bpe"] = "word"
    """word: a token is what stands between blanks; bpe: byte-pair encoding, in which no word is unknown."""
    vocab_size: int = 20_000
    """Largest vocabulary, special tokens included; rarer words become <unk>."""
    min_count: int = 1
    """Words that occur less often become <unk> (bpe: pairs that occur less often are not merged)."""
    unknown_words: Literal["replace", "drop", "refuse"] = "replace"
    """Words outside the vocabulary: replace them by <unk>, drop their sentences, or refuse the text."""
    lowercase: bool = False
    """Put text in lower case."""
    numbers: Literal["keep", "N", "digits"] = "keep"
    """Words that are numbers: keep them, or replace each by N (lowercase: n); digits: replace every digit by 0."""
    max_length: int | None = None
    """Longest sentence in words, end of sentence not counted (default: no limit)."""
    overlong: Literal["drop", "cut"] = "drop"
    """What happens to longer sentences."""
    images: ImagesConfig = dataclasses.field(default_factory=ImagesConfig)
    prior: PriorConfig = dataclasses.field(default_factory=PriorConfig)
    generator: GeneratorConfig = dataclasses.field(default_factory=GeneratorConfig)
    inference: InferenceConfig = dataclasses.field(default_factory=InferenceConfig)
    encoder: EncoderConfig = dataclasses.field(default_factory=EncoderConfig)
    sampler: SamplerConfig = dataclasses.field(default_factory=SamplerConfig)
    bound: BoundConfig = dataclasses.field(default_factory=BoundConfig)
    optimiser: OptimiserConfig = dataclasses.field(default_factory=OptimiserConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    batch_size: int = 64
    """Sentences, or images, in a batch."""
    batch_tokens: int | None = None
    """Words in a batch, padding and ends of sentence included; then batch_size says nothing."""
    micro_batch: int = 0
    """Samples that a learning step works on at once, their gradients summed over the batch, so that memory is that of
    a part (0: the whole batch). Free bits and batch normalisation then count over parts."""
    epochs: int = 30
    """Passes over the training split; learning-rate schedules end here."""
    seed: int = 0
    """Seed of every random stream."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    """What the generator's products take in training; weights, states and sums stay in fp32. auto: bf16 where
    the device multiplies in it natively, else fp32, which is then faster."""
    computation: Literal["fast", "plain"] = "fast"
    """How p(x|z) and its gradients are computed; plain: straightforward autograd, to check the fast way by."""

    on_divergence: Literal["stop", "reject"] = "stop"
    """What becomes of a run whose chains explode (a norm above 1000, or not a number): stop it; or put those chains
    back to where they started, count them, and go on. Losses and energies that run away stop it either way."""

    def __post_init__(self) -> None:
        _require(self.vocab_size >= 5, "vocab_size", self.vocab_size, "at least 5: four special tokens and one word")
        _require(self.min_count >= 1, "min_count", self.min_count, "at least 1")
        _require(
            self.tokenizer == "word" or self.vocab_size >= 260,
            "vocab_size",
            self.vocab_size,
            "at least 260 with tokenizer = bpe: four special tokens and the 256 bytes",
        )
        _require(
            self.tokenizer == "word" or self.unknown_words == "replace",
            "unknown_words",
            self.unknown_words,
            "replace with tokenizer = bpe, in which no word is unknown",
        )
        _require(self.max_length is None or self.max_length >= 1, "max_length", self.max_length, "at least 1")
        _require(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")
        _require(self.batch_tokens is None or self.batch_tokens >= 1, "batch_tokens", self.batch_tokens, "at least 1")
        _require(self.micro_batch >= 0, "micro_batch", self.micro_batch, "0 or more")
        _require(self.epochs >= 1, "epochs", self.epochs, "at least 1")
        _require(self.seed >= 0, "seed", self.seed, "0 or more")
        require_one_latent(self.prior, self.inference)
        require_one_kind_of_data(self.prior, self.generator, self.inference)
        _require(
            self.batch_tokens is None or self.generator.kind == "recurrent",
            "batch_tokens",
            self.batch_tokens,
            "left out with generator.kind = convolutional: batches of images are counted by batch_size",
        )
        _require(
            self.prior.persistent == 0
            or self.inference.kind != "diffusion-langevin"
            or self.sampler.prior_start == "reference",
            "prior.persistent",
            self.prior.persistent,
            f"0 with sampler.prior_start = {self.sampler.prior_start}, where the start of each prior chain is drawn",
        )
        _require(
            self.optimiser.energy_start == 0 or self.prior.kind != "ratio",
            "optimiser.energy_start",
            self.optimiser.energy_start,
            "0 with prior.kind = ratio, whose ratios are learned in an order of their own",
        )
        self._require_an_encoder_where_one_is_needed()

    def _require_an_encoder_where_one_is_needed(self) -> None:
        kind = self.inference.kind
        for field in dataclasses.fields(self.bound):
            value = getattr(self.bound, field.name)
            wanted = f"{field.default!r}, its default, with inference.kind = {kind}, which has no bound"
            _require(kind == "amortised" or value == field.default, f"bound.{field.name}", value, wanted)
        chosen = self.evaluation.select_by
        _require(
            chosen != "negative_elbo" or (kind.startswith("amortised") and self.prior.kind == "gaussian"),
            "evaluation.select_by",
            chosen,
            f"another one with inference.kind = {kind} and prior.kind = {self.prior.kind}: the bound needs an encoder, "
            "and an EBM prior's changes with its unknown normaliser",
        )

    @property
    def text_policy(self) -> str:
        """What is done to text before anything else, for signatures: `as-is`, `lower`, `lower+numbers-N`."""
        parts = ["lower"] if self.lowercase else []
        parts += [f"numbers-{self.numbers}"] if self.numbers != "keep" else []
        return "+".join(parts) or "as-is"


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as nested plain types, as written to config.json."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def flat(config: Config) -> dict[str, bool | int | float | str]:
    """The settings by dotted name, such as `prior.steps`; a value that is neither a number nor a word is JSON."""

    def settings(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, bool | int | float | str]]:
        for key, value in values.items():
            if isinstance(value, dict):
                yield from settings(value, f"{prefix}{key}.")
            else:
                yield prefix + key, value if isinstance(value, bool | int | float | str) else json.dumps(value)

    return dict(settings(to_dict(config), ""))


def from_dict(values: dict[str, Any], cls: type[T] = Config, base: T | None = None, where: str = "") -> T:  # type: ignore[assignment]
    """A configuration from nested plain types; keys not named keep the value of `base`, or the default.

    Raises:
        ConfigError: a key is unknown (the message names the nearest), or a value has the wrong type or range.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{where or 'the configuration'} must be a mapping of keys to values, not {values!r}")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    known: dict[str, Any] = {name: getattr(base, name) for name in fields} if base is not None else {}
    for key, value in values.items():
        path = f"{where}.{key}" if where else str(key)
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1, cutoff=0.4)
            hint = f"; the nearest known key is {near[0]!r}" if near else f"; known keys: {', '.join(fields)}"
            raise ConfigError(f"unknown configuration key {path!r}{hint}")
        if dataclasses.is_dataclass(hints[key]):
            known[key] = from_dict(value, hints[key], known.get(key), path)
        else:
            known[key] = _typed(value, hints[key], path)
    return cls(**known)


def _typed(value: Any, hint: Any, path: str) -> Any:  # noqa: ANN401 (a value straight out of a YAML or JSON file)
    """`value` as the type `hint` says, or a ConfigError that names the key."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for option in args:
            try:
                return _typed(value, option, path)
            except ConfigError:
                continue
    elif origin is Literal:
        if value in args:
            return value
        raise ConfigError(f"{path} is {value!r}: it must be one of {', '.join(map(str, args))}")
    elif origin is tuple and isinstance(value, list | tuple):
        if args[-1] is Ellipsis:
            return tuple(_typed(v, args[0], path) for v in value)
        if len(args) == len(value):
            return tuple(_typed(v, a, path) for v, a in zip(value, args, strict=True))
    elif dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_dict(value, hint, where=path)
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            pass
    elif hint is float and isinstance(value, str):  # YAML 1.1 reads 1e-3 as a string
        try:
            return float(value)
        except ValueError:
            pass
    elif hint in (int, str, bool, types.NoneType) and type(value) is hint:
        return value
    name = getattr(hint, "__name__", None) or str(hint)
    raise ConfigError(f"{path} is {value!r}, which is no {name if origin is None else hint}")


def preset_names() -> list[str]:
    """Names of the presets that ship with the package."""
    return _names(resources.files("textebm.configs"))


def method_names() -> list[str]:
    """Names of the methods that ship with the package: settings to lay over a preset."""
    return _names(resources.files("textebm.configs") / "methods")


def _names(folder: Traversable) -> list[str]:
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))


def load_config(name_or_path: str, method: str | None = None) -> Config:
    """A configuration from a shipped preset's name or from a YAML or JSON file.

    Args:
        name_or_path: the preset or the file.
        method: name of a method whose settings replace those of the preset.

    Raises:
        ConfigError: no such preset, file or method, not YAML, an unknown key, or a value of the wrong type or range.
    """
    path = Path(name_or_path)
    if path.is_dir():
        path = path / "config.json"
    if name_or_path in preset_names():
        text = (resources.files("textebm.configs") / f"{name_or_path}.yaml").read_text(encoding="utf-8")
    elif path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{name_or_path} cannot be read as a YAML or JSON file: {error}") from None
    else:
        raise ConfigError(f"no preset and no file {name_or_path!r}; presets: {', '.join(preset_names())}")
    values = _mapping(text, name_or_path)
    if method is not None:
        if method not in method_names():
            raise ConfigError(f"no method {method!r}; methods: {', '.join(method_names())}")
        overlay = (resources.files("textebm.configs") / "methods" / f"{method}.yaml").read_text(encoding="utf-8")
        values = _overlaid(values, _mapping(overlay, f"method {method}"))
        name_or_path += f" with method {method}"
    try:
        return from_dict(values)
    except ConfigError as error:
        raise ConfigError(f"{name_or_path}: {error}") from None


def _mapping(text: str, name: str) -> dict[str, Any]:
    """What a YAML text says: a mapping, empty where it says nothing."""
    import yaml

    if len(text) > LONGEST_TEXT:
        raise ConfigError(f"{name} has more than {LONGEST_TEXT:,} characters, and no configuration is so long")
    try:
        # A few aliases of aliases stand for more values than any memory holds.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise ConfigError(f"{name} has an alias (*name), which is not read: write the value where it is wanted")
        values = yaml.safe_load(text) or {}
    except ConfigError:
        raise
    except RecursionError:
        raise ConfigError(f"{name} is not valid YAML: it is nested too deeply") from None
    except Exception as error:  # beside its own errors, whatever its readers of dates, numbers and the like raise
        raise ConfigError(f"{name} is not valid YAML: {str(error) or type(error).__name__}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{name}: the configuration must be a mapping of keys to values, not {values!r}")
    return values


def _overlaid(values: dict[str, Any], overlay: dict[str, Any]) -> dict[str, Any]:
    """`values` where `overlay` says nothing, at every depth."""
    joined = dict(values)
    for key, value in overlay.items():
        below = joined.get(key)
        joined[key] = _overlaid(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return joined
