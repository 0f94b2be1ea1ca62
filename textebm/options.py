"""The options of every command, each a typed definition from which the command line and its help are made.

A command's docstring is what its `--help` begins with.
"""

import dataclasses
from typing import Annotated, Literal

import tyro

from textebm.config import Config
from textebm.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class DeviceOptions:
    """Where to compute."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


@dataclasses.dataclass(frozen=True)
class ModelOptions(DeviceOptions):
    """Which model, and the seed."""

    model: str | None = None
    """Run folder, model folder, or hf:OWNER/NAME on the Hugging Face Hub (default: the newest run, else the demo model
    that ships, which demo names too)."""
    seed: int = 0
    """The same seed gives the same result on one machine."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}: it must be 0 or more")


@dataclasses.dataclass(frozen=True)
class DecodingOptions:
    """How words are chosen."""

    decoding: Literal["sample", "greedy", "beam"] = "sample"
    """How words are chosen."""
    temperature: float = 1.0
    """Logits are divided by this before sampling."""
    top_k: int = 0
    """Sample among the k likeliest words (0: all)."""
    top_p: float = 1.0
    """Sample among the likeliest words that together reach this probability."""
    beam_size: int = 5
    """Hypotheses kept by --decoding beam."""
    max_length: int | None = None
    """Longest sentence in tokens, which are words or byte pairs (default: that of the longest training sentence)."""


@dataclasses.dataclass(frozen=True)
class Train(DeviceOptions):
    """Train a model: EBM prior and a generator of text or images, by short-run Langevin in z.

    The settings are those of the preset named like the corpus; --config names another preset or file, and single
    settings are overridden by name (--prior.steps 40).

    examples:
      textebm train --data ptb
      textebm train --config ptb-small --max-minutes 60
      textebm train --config ptb-small --method sri
      textebm train --data my-corpus.txt --vocab-size 8000 --prior.kind gaussian
      textebm train --config runs/ptb-20260101-120000/config.json --seed 1
      textebm train --data ptb --run-dir runs/ptb --resume auto
      textebm train --data mnist --config mnist-small
    """

    settings: Annotated[Config, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff] = dataclasses.field(
        default_factory=Config
    )
    """What decides the outcome of the run."""
    config: str | None = None
    """Preset or file (YAML or JSON) that the settings start from (default: the preset named like the corpus)."""
    method: str | None = None
    """Which row of the comparison: settings laid over the preset's (lebm: EBM prior, short-run inference; sri: the same
    under a Gaussian prior; vae, vae-cyclical, fb-vae, lagging-vae; lebm-amortised, lebm-amortised-langevin,
    lebm-persistent; damc: a learned sampler; abp; lstm-lm: a plain language model, without z; docs/options.md has
    more)."""
    run_dir: str | None = None
    """Run folder (default: runs/DATA-TIME)."""
    resume: str | None = None
    """auto: go on with --run-dir, or else with the newest run of the same data; or a run folder."""
    max_epochs: int | None = None
    """Stop when so many epochs are done."""
    max_steps: int | None = None
    """Stop when so many learning steps are done."""
    max_minutes: float | None = None
    """Stop after so many minutes."""
    checkpoint_every: int | None = None
    """Save every so many steps, besides the end of each epoch."""
    track: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Live views to send the log to, one or several (extra track; docs/report.md)."""
    print_config: bool = False
    """Print the configuration as JSON and stop."""


@dataclasses.dataclass(frozen=True)
class Generate(DecodingOptions, ModelOptions):
    """Write sentences, or make images, with a trained model: z from the prior chain, then the generator.

    examples:
      textebm generate -n 1000
      textebm generate -n 20 --decoding greedy --model runs/ptb
      textebm generate -n 100000 --output samples.txt
      textebm generate -n 64 --model runs/mnist --output digits.png
      textebm generate -n 1000 --model runs/mnist --format png --output digits
    """

    n: Annotated[int | None, tyro.conf.arg(aliases=("-n",))] = None
    """Number of sentences (default: 10) or images (default: 64)."""
    prior_steps: int | None = None
    """Langevin steps of the prior chain (default: as in training; 0: its start, the reference Gaussian or a learned
    sampler's draws)."""
    format: Literal["text", "jsonl", "grid", "png"] | None = None
    """Of sentences: plain text (the default), or JSON lines with the energy of each latent. Of images: one PNG file
    with all of them (the default), or one each."""
    output: str | None = None
    """File to write to (default: standard output, of images generated.png), or with --format png the folder (default:
    generated)."""


@dataclasses.dataclass(frozen=True)
class Reconstruct(DecodingOptions, ModelOptions):
    """Infer z for each line of a text file and write the sentence again; or for images, and make them again.

    Of images the mean squared error is told: over images, channels and pixels, from one posterior sample by the chain
    of training; with pixels in [-1, 1], and beside it in [0, 1].

    examples:
      textebm reconstruct sentences.txt
      textebm reconstruct sentences.txt --decoding beam --format json
      textebm reconstruct --model runs/mnist --format json
      textebm reconstruct my-pictures --model runs/mnist
    """

    file: tyro.conf.Positional[str | None] = None
    """Text file, one sentence a line; or a picture, or a folder or an archive of pictures (default: a split of the
    model's data)."""
    split: Literal["train", "valid", "test"] = "test"
    """Which images, where none are named."""
    n: Annotated[int | None, tyro.conf.arg(aliases=("-n",))] = None
    """Number of images, spread evenly over the split or the pictures (default: all)."""
    data: str | None = None
    """Images to take the split of (default: those that the model was trained on)."""
    data_dir: str | None = None
    """Folder that holds local copies of named sets of images; else TEXTEBM_DATA."""
    grid: str | None = None
    """PNG file for images above their reconstructions (default: reconstructions.png)."""
    pairs: int = 32
    """Images in it, at most, spread evenly over those that are made again."""
    decoding: Literal["sample", "greedy", "beam"] = "greedy"
    """How words are chosen."""
    format: Literal["text", "json"] = "text"
    """Sentences, or one JSON object with each pair and the BLEU score of all of them. Of images: lines for people, or
    one JSON object."""
    output: str | None = None
    """File to write to (default: standard output)."""


@dataclasses.dataclass(frozen=True)
class Interpolate(DecodingOptions, ModelOptions):
    """Write sentences, or make images, along the line between the latents of two sentences or images.

    examples:
      textebm interpolate "the market fell sharply" "he was a good man"
      textebm interpolate a.png b.png --model runs/mnist
      textebm interpolate --model runs/mnist --lines 8 --output lines.png
    """

    first: tyro.conf.Positional[str | None] = None
    """Where the line begins: a sentence, or a picture (of a model of images, without it: test images)."""
    last: tyro.conf.Positional[str | None] = None
    """Where it ends."""
    decoding: Literal["sample", "greedy", "beam"] = "greedy"
    """How words are chosen."""
    points: int = 7
    """Sentences or images of a line, both ends included."""
    lines: int = 8
    """Lines between pairs of test images, where no pictures are named."""
    data: str | None = None
    """Images to take them from (default: those that the model was trained on)."""
    data_dir: str | None = None
    """Folder that holds local copies of named sets of images; else TEXTEBM_DATA."""
    output: str | None = None
    """File to write to (default: standard output; of images, which are in one PNG file, interpolation.png)."""


@dataclasses.dataclass(frozen=True)
class TextOptions(ModelOptions):
    """Generated text and the real text that it is measured against."""

    data: str | None = None
    """Corpus to measure against (default: the one that the model was trained on)."""
    data_dir: str | None = None
    """Folder that holds local copies of named corpora; else TEXTEBM_DATA."""
    text_field: str | None = None
    """Field of JSON lines, or column of a hub data set, that holds the text (default: that of the run, else text)."""
    train: str | None = None
    """Real training text, a file, in place of a corpus; with --reference it needs neither model nor corpus."""
    reference: str | None = None
    """Real test text, a file, beside --train."""
    valid: str | None = None
    """Real validation text, a file, beside --train: it stops a neural judge of real text."""
    vocab_size: int | None = None
    """Largest vocabulary of the real text (default: that of the model if it is one of words, else all words)."""
    n: Annotated[int | None, tyro.conf.arg(aliases=("-n",))] = None
    """Sentences to draw when there are no --samples (default: as many as the protocol prescribes)."""
    decoding: str | None = None
    """How the sentences of --samples were decoded, for the signature, such as sample-t1 (the headline protocol's)."""
    prior_steps: int | None = None
    """Langevin steps of the prior chain of sentences to draw (default: as in training); the signature has it."""
    filtering: str | None = None
    """What was left out of --samples, in a word or two, for the signature (default: nothing)."""
    max_length: int | None = None
    """Longest sentence in words that could stand in --samples, where that was limited."""
    protocol: str = "kenlm5"
    """How it is measured: kenlm5, lstm-sentence, arae-ngram, arae-rnn, fang2019, dgmvae, causal (docs/protocols.md)."""
    lmplz: str | None = None
    """KenLM's lmplz (default: TEXTEBM_LMPLZ, the PATH, the project's own build, else a built-in estimator)."""
    recipe: str | None = None
    """Recipe of a neural judge, in place of the protocol's own."""
    judge_model: str | None = None
    """Causal language model of the protocol causal: a folder, a GGUF file, or a name on the hub."""
    judge_epochs: int | None = None
    """End the training of a neural judge after so many epochs."""
    repeats: int = 1
    """Neural judges to train, with seeds SEED, SEED + 1, ...; the score is their mean."""
    resamples: int = 1000
    """Resampled texts behind each interval."""


@dataclasses.dataclass(frozen=True)
class PerplexityOptions(TextOptions):
    """What FPPL and RPPL are measured on."""

    samples: str | None = None
    """Generated text, one sentence a line (default: drawn from the model as the protocol prescribes, and cached)."""
    sentence_scores: str | None = None
    """File (.npz) for the log-probability of each sentence that was scored, which compare --against needs."""
    format: Literal["json", "text"] = "json"
    """One JSON object, or lines for people."""
    output: str | None = None
    """File to write to (default: standard output)."""


@dataclasses.dataclass(frozen=True)
class Fppl(PerplexityOptions):
    """Forward perplexity: generated sentences under a language model trained on the real training split.

    examples:
      textebm fppl
      textebm fppl --model runs/ptb --format text
      textebm fppl --samples samples.txt --data ptb --decoding sample-t1
      textebm fppl --samples samples.txt --train train.txt --reference test.txt
      textebm fppl --protocol arae-ngram
    """


@dataclasses.dataclass(frozen=True)
class Rppl(PerplexityOptions):
    """Reverse perplexity: the real test split under a language model trained on generated sentences.

    examples:
      textebm rppl
      textebm rppl --samples samples.txt --data ptb --format text
      textebm rppl --samples samples.txt --reference test.txt --train train.txt
      textebm rppl --samples samples.txt --data ptb --protocol lstm-sentence --repeats 3
    """


@dataclasses.dataclass(frozen=True)
class Evaluate(TextOptions):
    """Everything that is measured of generated text, beside the two limits of every table: real text, and the judge
    itself as a generator.

    examples:
      textebm evaluate
      textebm evaluate --samples a.txt b.txt c.txt --data ptb --decoding sample-t1 --format markdown
      textebm evaluate --samples a.txt b.txt --train train.txt --reference test.txt --no-limits
    """

    samples: tuple[str, ...] = ()
    """Generated texts, each one sentence a line (default: drawn from the model as the protocol prescribes)."""
    no_limits: bool = False
    """Leave out the judge as a generator, which takes as long as one more text."""
    mauve: str | None = None
    """MAUVE of each text, on states of an LSTM judge of this recipe, such as lstm-sentence-ptb (extra mauve)."""
    latent_sentences: int = 200
    """Test sentences over which the use of z is measured, where sentences are drawn from a model (0: not)."""
    log_normaliser: float | None = None
    """log Z of the model's EBM prior, in nats, where it is known: then KL(q‖p) is measured too."""
    format: Literal["json", "text", "markdown", "csv"] = "text"
    """A table for people, for Markdown, for a spreadsheet; or everything in one JSON object."""
    output: str | None = None
    """File to write to (default: standard output)."""


@dataclasses.dataclass(frozen=True)
class Likelihood(ModelOptions):
    """Marginal likelihood of held-out sentences: mean −log p(x) a sentence in nats, and the perplexity a word.

    Of a plain language model it is exact. Of a model with z it is an upper bound of the NLL in expectation, by
    importance weighting, up to the error of an EBM prior's normaliser; that is estimated from two sides, and there is
    no score where the two disagree (docs/likelihood.md).

    examples:
      textebm likelihood --n 20 --format text
      textebm likelihood --model runs/ptb --split test --output likelihood.json
      textebm likelihood --samples 5000 --ais-steps 5000
    """

    data: str | None = None
    """Corpus to score (default: the one that the model was trained on)."""
    data_dir: str | None = None
    """Folder that holds local copies of named corpora; else TEXTEBM_DATA."""
    text_field: str | None = None
    """Field of JSON lines, or column of a hub data set, that holds the text (default: that of the run, else text)."""
    split: Literal["valid", "test"] = "valid"
    """Which split of it."""
    n: Annotated[int | None, tyro.conf.arg(aliases=("-n",))] = None
    """Score only so many sentences, spread evenly over the split (default: all)."""
    samples: int = 500
    """Samples of z a sentence: the more, the nearer the bound."""
    proposal: Literal["auto", "chains", "encoder"] = "auto"
    """Where they come from: a Gaussian fitted to posterior chains, or the encoder (auto: it, where there is one)."""
    chains: int = 8
    """Posterior chains a sentence that a Gaussian is fitted to."""
    chain_steps: int = 60
    """Steps of each chain: the first half adapts the step size, the second half is fitted."""
    covariance: Literal["diagonal", "full"] = "diagonal"
    """Of the proposal; full needs many more --chain-steps than z has dimensions."""
    widening: float = 1.1
    """Factor on the proposal's standard deviations."""
    defensive: float = 0.05
    """Share of the reference Gaussian that is mixed into the proposal (0: none)."""
    ais_chains: int = 256
    """Chains of each annealed run for log Z."""
    ais_steps: int = 1000
    """Densities between the Gaussian and the prior."""
    ais_leapfrogs: int = 1
    """Leapfrogs of each move: 1 is Metropolis-adjusted Langevin, more is Hamiltonian Monte Carlo."""
    ais_path: Literal["sigmoid", "linear"] = "sigmoid"
    """How the densities are spaced."""
    ais_settling: int = 1000
    """Moves of the long chains that the reverse run starts from."""
    sentences_at_once: int = 16
    """Sentences worked on together: memory and speed, not the figures."""
    resamples: int = 1000
    """Resampled texts behind each interval."""
    format: Literal["json", "text"] = "json"
    """One JSON object, or lines for people."""
    output: str | None = None
    """File to write to (default: standard output)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        least = {"n": 1, "samples": 1, "chains": 1, "chain_steps": 2, "ais_chains": 2, "ais_steps": 1}
        least |= {"ais_leapfrogs": 1, "ais_settling": 0, "sentences_at_once": 1, "resamples": 1}
        _require_at_least(self, least)
        if not self.widening > 0:
            raise ConfigError(f"widening is {self.widening}: it must be positive")
        if not 0 <= self.defensive < 1:
            raise ConfigError(f"defensive is {self.defensive}: it must be in [0, 1)")


@dataclasses.dataclass(frozen=True)
class Score(ModelOptions):
    """Energy, reconstruction and marginal NLL of each line of a text file, or of images: one JSON object a line.

    energy is -f(z) and log_likelihood is log p(x|z), in nats: means over posterior samples by the chain of training.
    marginal_nll is -log p(x) as textebm likelihood measures it, with --samples; where the two estimates of log Z
    disagree it is null, and withheld says why.

    examples:
      textebm score sentences.txt
      textebm score sentences.txt --samples 500 --format text
      zcat sentences.gz | textebm score - --model runs/ptb --output scores.jsonl
      textebm score --model runs/mnist --split test -n 100
      textebm score my-pictures --model runs/mnist
    """

    file: tyro.conf.Positional[str | None] = None
    """Text file, one sentence a line, or - for standard input; or a picture, or a folder or an archive of pictures
    (default: of a model of images, a split of its data)."""
    split: Literal["train", "valid", "test"] = "test"
    """Which images, where none are named."""
    n: Annotated[int | None, tyro.conf.arg(aliases=("-n",))] = None
    """Number of images, spread evenly over the split or the pictures (default: all)."""
    data: str | None = None
    """Images to take the split of (default: those that the model was trained on)."""
    data_dir: str | None = None
    """Folder that holds local copies of named sets of images; else TEXTEBM_DATA."""
    chains: int = 1
    """Posterior samples that energy and log-likelihood are means over."""
    steps: int | None = None
    """Langevin steps of those posterior chains (default: as in training)."""
    samples: int = 0
    """Samples of z a sentence behind its marginal NLL (0: it is left out; 500 are a good number, and log Z of an EBM
    prior has to be found first)."""
    ais_steps: int = 1000
    """Densities between the Gaussian and the prior, for log Z."""
    format: Literal["jsonl", "text"] = "jsonl"
    """A JSON object a line, or a table for people."""
    output: str | None = None
    """File to write to (default: standard output)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_at_least(self, {"n": 1, "chains": 1, "steps": 1, "samples": 0, "ais_steps": 1})


@dataclasses.dataclass(frozen=True)
class LatentOptions(ModelOptions):
    """Which sentences or images are looked at in the latent space, and how their z is inferred."""

    split: Literal["train", "valid", "test"] = "valid"
    """Which split of the data."""
    n: Annotated[int, tyro.conf.arg(aliases=("-n",))] = 300
    """How many of it, spread evenly over the split (0: all)."""
    data: str | None = None
    """Data to take the split of (default: those that the model was trained on)."""
    data_dir: str | None = None
    """Folder that holds local copies of named data; else TEXTEBM_DATA."""
    text_field: str | None = None
    """Field of JSON lines, or column of a hub data set, that holds the text (default: that of the run, else text)."""
    chains: int = 4
    """Posterior chains of each sentence or image, over which the mean is taken."""
    steps: int | None = None
    """Their Langevin steps (default: as in training)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_at_least(self, {"n": 0, "chains": 1, "steps": 1})


@dataclasses.dataclass(frozen=True)
class Map(LatentOptions):
    """Draw where sentences or images lie in the latent space: posterior means, projected to two dimensions.

    --landscape draws the energy -f(z), and -log p(z), over the first two principal directions, with prior and posterior
    samples (docs/latent-space.md).

    examples:
      textebm map
      textebm map --model runs/ptb --colour energy --plot map.svg
      textebm map sentences.txt --csv map.csv
      textebm map --landscape landscape.png --format json --output map.json
      textebm map --model runs/mnist -n 1000 --plot digits.png
    """

    file: tyro.conf.Positional[str | None] = None
    """Text file, one sentence a line, or - for standard input; or a folder of pictures (default: a split of the data).
    All of it is taken."""
    method: Literal["pca", "umap"] = "pca"
    """Principal components; or UMAP, where umap-learn is installed."""
    colour: Literal["length", "energy", "label"] | None = None
    """By what points are coloured (default: label, where images have some; else length of sentences, energy of
    images)."""
    plot: str | None = None
    """PNG or SVG file of the map (default: map.png, where no other file is asked for)."""
    landscape: str | None = None
    """PNG or SVG file of the energy along the first two principal directions."""
    prior_samples: int = 500
    """Prior samples on it."""
    csv: str | None = None
    """File for the points, a line each."""
    format: Literal["text", "json"] = "text"
    """What is printed: a line for people, or one JSON object with everything that is drawn."""
    output: str | None = None
    """File to write that to (default: standard output)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_at_least(self, {"prior_samples": 1})


@dataclasses.dataclass(frozen=True)
class Neighbours(LatentOptions):
    """Find the sentences of a corpus whose posterior means are nearest to that of a sentence.

    The latents of the corpus are kept in TEXTEBM_HOME: a second question about it is answered at once.

    examples:
      textebm neighbours "the market fell sharply"
      textebm neighbours "he was a good man" --model runs/ptb --split train -n 5000 --count 20
      textebm neighbours "a dog" --data my-corpus.txt --format json
    """

    sentence: tyro.conf.Positional[str | None] = None
    """The sentence, in quotation marks."""
    count: int = 10
    """How many neighbours."""
    format: Literal["text", "json"] = "text"
    """A table, or one JSON object."""
    output: str | None = None
    """File to write to (default: standard output)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_at_least(self, {"count": 1})


@dataclasses.dataclass(frozen=True)
class Arithmetic(DecodingOptions, ModelOptions):
    """Add and subtract the latents of sentences, and write the sentence of the sum.

    Sentences, in quotation marks, alternate with + and -; each is taken by its posterior mean.

    examples:
      textebm arithmetic "the man sleeps" - "the man" + "the dog"
      textebm arithmetic "prices rose" + "prices fell" --decoding beam --format json
    """

    terms: tyro.conf.Positional[tuple[str, ...]] = ()
    """Sentences with + or - between them, each a word of its own: "A" - "B" + "C"."""
    decoding: Literal["sample", "greedy", "beam"] = "greedy"
    """How words are chosen."""
    chains: int = 4
    """Posterior chains of each sentence, over which the mean is taken."""
    steps: int | None = None
    """Their Langevin steps (default: as in training)."""
    format: Literal["text", "json"] = "text"
    """The sentences, or one JSON object."""
    output: str | None = None
    """File to write to (default: standard output)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_at_least(self, {"chains": 1, "steps": 1})


def _require_at_least(chosen: object, least: dict[str, int]) -> None:
    """Check numbers of options by name; what is left open may be.

    Raises:
        ConfigError: one is too small.
    """
    for name, smallest in least.items():
        value = getattr(chosen, name)
        if value is not None and value < smallest:
            raise ConfigError(f"{name} is {value}: it must be at least {smallest}")


@dataclasses.dataclass(frozen=True)
class Fid(ModelOptions):
    """FID of generated images: the Fréchet distance of Inception's features of them and of real images.

    KID, precision, recall, density and coverage stand beside it in the details. Without Inception's published weights
    --features mobilenetv2 gives a substitute, which is no FID (docs/image-metrics.md).

    examples:
      textebm fid --model runs/cifar10 -n 10000
      textebm fid --samples samples/ --data cifar10
      textebm fid --samples samples.npz --data cifar10 --against test -n 10000 --features mobilenetv2 --format text
      textebm fid --samples cifar10:test --data cifar10 --weights pt_inception-2015-12-05-6726825d.pth
      textebm fid --samples samples.zip --data real-images/
    """

    samples: str | None = None
    """Generated images: files in a folder or an archive, an array of uint8 (.npy, .npz), or NAME:SPLIT (default: drawn
    from the model)."""
    data: str | None = None
    """Real images: a named data set or hf:NAME; or a folder, an archive or an array, all of which is taken (default:
    the data that the model was trained on)."""
    against: Literal["train", "valid", "test"] | None = None
    """Split of a data set (default: train, the images that are held out of it included)."""
    data_dir: str | None = None
    """Folder that holds local copies of named data sets; else TEXTEBM_DATA."""
    n: Annotated[int | None, tyro.conf.arg(aliases=("-n",))] = None
    """Images to draw from the model (default: 10,000), or to take of --samples, spread evenly over them (default:
    all)."""
    prior_steps: int | None = None
    """Langevin steps of the prior chain of images to draw (default: as in training); the signature has it."""
    real_n: int | None = None
    """Real images to take, likewise."""
    features: Literal["inception", "inception-pytorch-fid", "mobilenetv2"] = "inception"
    """Whose features: the published Inception's, images resized as by TensorFlow (and torch-fidelity) or as by
    pytorch-fid; or MobileNetV2's."""
    weights: str | None = None
    """File of the network's weights (default: one on this machine, else a checked download)."""
    frechet_only: bool = False
    """Leave out KID, precision, recall, density and coverage."""
    kid_subsets: int = 100
    """Random subsets that KID is the mean of."""
    kid_subset_size: int = 1000
    """Images of either side in each."""
    neighbours: int = 3
    """k of precision and recall."""
    skip_bad: bool = False
    """Leave out files that cannot be read, and say how many they are."""
    format: Literal["json", "text"] = "json"
    """One JSON object, or lines for people."""
    output: str | None = None
    """File to write to (default: standard output)."""


@dataclasses.dataclass(frozen=True)
class Transition(DecodingOptions, ModelOptions):
    """Watch prior chains on their way from the reference Gaussian to the learned prior: energy, norm and displacement
    at every step, and samples at some of them, decoded by the same random numbers, so that only z differs.

    The score is the change of the mean energy over the chain, in nats. A verdict says whether the chains drift, and
    whether they oversaturate (docs/transitions.md).

    examples:
      textebm transition --format text
      textebm transition --model runs/ptb --marks 0 40 100 --plot transition.png
      textebm transition --steps 2500 --format text
      textebm transition --quality --samples 5000 --plot quality.svg --csv quality.csv
      textebm transition --model runs/svhn --strip strip.png --quality --features mobilenetv2
      textebm transition --diagnostics --format text
    """

    n: Annotated[int, tyro.conf.arg(aliases=("-n",))] = 256
    """Chains behind the figures."""
    shown: int = 8
    """How many of them are decoded at the marks."""
    steps: int | None = None
    """Steps of the chains (default: the last mark, else 100)."""
    marks: tuple[int, ...] = ()
    """Steps at which chains are decoded (default: 0, 40, 100 and 1000, as far as the chain goes, and its last step)."""
    quality: bool = False
    """Measure samples after different numbers of prior steps: FPPL of sentences, Fréchet distance of images."""
    quality_steps: tuple[int, ...] = ()
    """Those numbers (default: 0, 5, 10, 20, 40, 60, 100, and the marks)."""
    samples: int = 1000
    """Sentences or images at each of them."""
    diagnostics: bool = False
    """R-hat, effective sample size, acceptance of prior and posterior chains; short-run against long-run samples (extra
    diagnostics)."""
    diagnostic_steps: int = 1000
    """Steps of the prior chains that are diagnosed; their first half is left out of R-hat."""
    posteriors: int = 8
    """Held-out sentences or images whose posterior chains are diagnosed."""
    posterior_chains: int = 8
    """Chains of each."""
    posterior_steps: int = 200
    """Their steps."""
    posterior_samples: int = 256
    """Held-out sentences or images with one posterior sample each, for the histograms."""
    ais_steps: int = 1000
    """Densities between the Gaussian and the prior by which log Z is found, for the bound on the short run's divergence
    (0: no bound)."""
    data: str | None = None
    """Corpus or images to measure against, and to take held-out samples of (default: what the model was trained on)."""
    data_dir: str | None = None
    """Folder that holds local copies of named data; else TEXTEBM_DATA."""
    text_field: str | None = None
    """Field of JSON lines, or column of a hub data set, that holds the text (default: that of the run, else text)."""
    lmplz: str | None = None
    """KenLM's lmplz (default: TEXTEBM_LMPLZ, the PATH, the project's own build, else a built-in estimator)."""
    features: Literal["inception", "inception-pytorch-fid", "mobilenetv2"] = "inception"
    """Whose features of images are compared (see textebm fid)."""
    weights: str | None = None
    """File of that network's weights (default: one on this machine, else a checked download)."""
    real_n: int | None = None
    """Real images to compare with, spread evenly over the training split (default: all)."""
    plot: str | None = None
    """PNG, SVG or PDF file to draw energy, norm and whatever else was measured into."""
    csv: str | None = None
    """CSV file for every number of the plot."""
    strip: str | None = None
    """PNG file for images, a row a chain, a column a mark (default: transition.png)."""
    format: Literal["json", "text"] = "json"
    """One JSON object, or a table for people."""
    output: str | None = None
    """File to write to (default: standard output)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        least = {"n": 2, "shown": 0, "steps": 1, "samples": 2, "diagnostic_steps": 8, "posteriors": 1, "ais_steps": 0}
        least |= {"posterior_chains": 2, "posterior_steps": 8, "posterior_samples": 1, "real_n": 2}
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise ConfigError(f"{name} is {value}: it must be at least {smallest}")
        if any(step < 0 for step in (*self.marks, *self.quality_steps)):
            raise ConfigError("marks and quality_steps are steps of a chain: each must be 0 or more")
        if self.diagnostics and self.n < 4:
            raise ConfigError(f"n is {self.n}: diagnostics want at least 4 chains")


@dataclasses.dataclass(frozen=True)
class ExplainSignature:
    """Explain a signature, fact by fact; or say whether the scores that two signatures belong to compare.

    examples:
      textebm signature "metric:fppl|data:ptb|n:42068|judge:kenlm5"
      textebm signature "metric:fppl|n:42068" "metric:fppl|n:1000"
    """

    signatures: tyro.conf.Positional[tuple[str, ...]] = ()
    """One signature, or two, in quotation marks."""
    format: Literal["text", "json"] = "text"
    """Lines for people, or one JSON object."""


@dataclasses.dataclass(frozen=True)
class Compare:
    """Put scores into tables: those that compare side by side, others apart, and why.

    Results of textebm experiment can be shown one row a method, with mean and spread over seeds and with the difference
    from one method: a hierarchical bootstrap over seeds, judges and sentences.

    examples:
      textebm compare a.json b.json
      textebm compare a.json b.json --published --format markdown
      textebm compare results/table2/*.json --against sri sri-tempered-t05 --published --format markdown
      textebm compare results/images/*.json --against sri vae
      textebm compare --published
    """

    files: tyro.conf.Positional[tuple[str, ...]] = ()
    """Results of fppl, rppl or evaluate in JSON."""
    published: bool = False
    """Published rows too: beside ours only under lstm-sentence, and only where the data compare. Without files: every
    published table that is known."""
    by_method: bool = False
    """One row a method, over seeds (results of textebm experiment)."""
    against: tuple[str, ...] = ()
    """Method from which the others' differences are taken, with intervals; implies --by-method. Of several, each method
    is compared with the one that it shares most settings with; of images, with each of them."""
    resamples: int = 1000
    """Resamples behind each interval of --against."""
    format: Literal["text", "markdown", "csv", "json"] = "text"
    """A table for people, for Markdown, for a spreadsheet; or JSON."""
    output: str | None = None
    """File to write to (default: standard output)."""


@dataclasses.dataclass(frozen=True)
class Experiment(DeviceOptions):
    """Train and measure every cell of a table: preset by method by seed.

    What is done is not done again: a cell that was cut or interrupted goes on where it stopped, inside training too.
    The same command in several terminals shares the work. A result is one file, RESULTS/EXPERIMENT/CELL.json.

    examples:
      textebm experiment --list
      textebm experiment table2 --only ptb --methods lebm sri --seeds 3
      textebm experiment table2 --max-minutes 60
      textebm experiment table2 --size full --only ptb --seeds 1 --protocols kenlm5 lstm-sentence --judge-seeds 2
    """

    name: tyro.conf.Positional[str | None] = None
    """Which experiment: table2, images, smoke."""
    only: tuple[str, ...] = ()
    """Presets, or corpora, to which it is limited (default: all)."""
    methods: tuple[str, ...] = ()
    """Rows to which it is limited (default: all that this version has)."""
    seeds: int = 3
    """Runs of each row, with seeds 0, 1, ..."""
    size: Literal["small", "fast", "full"] = "small"
    """Presets for a CPU, or those of published size; fast: of published size, with fast
    chains and a quarter of the updates, for a CPU."""
    set: tuple[str, ...] = ()
    """KEY=VALUE ...: settings laid over every cell, such as precision=fp32 where the CPU is slow in 16 bits."""
    protocols: tuple[str, ...] = ("kenlm5",)
    """How samples are measured; kenlm5 always is."""
    judge_seeds: int = 2
    """Neural judges a score, with seeds 0, 1, ... (kenlm5 is deterministic: one)."""
    results: str = "results"
    """Folder of results."""
    runs: str = "runs"
    """Folder of runs."""
    data_dir: str | None = None
    """Folder that holds local copies of named corpora; else TEXTEBM_DATA."""
    max_minutes: float | None = None
    """End this sitting after so many minutes; the next one goes on."""
    list: bool = False
    """Say which cells there are and how far each is, and do nothing."""


@dataclasses.dataclass(frozen=True)
class Anomaly(DeviceOptions):
    """Tell images of a class that no model was trained on, or sentences of another kind: area under the
    precision-recall curve (AUPRC), anomalies being positive.

    The score of x is -log p(x, z) up to a constant, z a posterior sample by the chain of training. Of images a model is
    trained for each class, split and seed, and scored at the end of each of its last epochs; the figure is their mean.
    What is done is not done again: the same command goes on. The settings are those of the preset DATA-anomaly, else
    DATA; single ones are overridden by name, as for textebm train.

    examples:
      textebm anomaly --data mnist --held-out 1
      textebm anomaly --data mnist --held-out all --splits A --seeds 3 --output anomaly.json
      textebm anomaly --data cifar10 --config cifar10-small --held-out cat --epochs 20 --plot plots
      textebm anomaly --model runs/anomaly-mnist/A-class-1-seed-0 --samples 10
      textebm anomaly --data snli --anomalies other.txt
    """

    settings: Annotated[Config, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff] = dataclasses.field(
        default_factory=Config
    )
    """What decides the outcome of each run (with --model: its own)."""
    held_out: tuple[str, ...] = ()
    """Classes of images, by name or number, each held out of training by itself; all: every class."""
    anomalies: str | None = None
    """Text file of anomalous sentences, one a line, to be told from the test split."""
    model: str | None = None
    """Run folder or model folder that is scored, its newest checkpoint, and nothing is trained (with --anomalies: by
    default the newest run)."""
    config: str | None = None
    """Preset or file that the settings start from."""
    method: str | None = None
    """Which row of the comparison: settings laid over the preset's, as for textebm train."""
    splits: tuple[Literal["A", "B"], ...] = ("A", "B")
    """A: all published splits pooled, 80 % of the other classes for training, the rest and all of the class that is
    held out for test; B: the published splits. Each needs runs of its own."""
    seeds: int = 1
    """Runs of each class and split, with seeds from --seed on."""
    last: int | None = None
    """Epochs at the end of a run that are scored (default: ten, or half of a run of fewer than twenty)."""
    samples: int = 1
    """Posterior samples of each image or sentence, over which the score is a mean."""
    posterior_steps: int | None = None
    """Steps of the posterior chains that score (default: as many as in training)."""
    ranked_by: Literal["joint", "prior", "likelihood", "adjusted"] = "joint"
    """joint: by -log p(x, z), the published score; prior: by -log p(z) alone; likelihood: by -log p(x|z) alone;
    adjusted: of images, by the joint score beside those of images of training that are as complex."""
    per_token: bool = False
    """Divide a sentence's score by its tokens, end of sentence included."""
    run_dir: str | None = None
    """Folder of the run folders (default: runs/anomaly-DATA)."""
    max_minutes: float | None = None
    """End this sitting after so many minutes; the next one goes on."""
    resamples: int = 1000
    """Resampled tests behind each interval."""
    plot: str | None = None
    """Folder to draw histograms of scores and precision-recall curves into, with their numbers as JSON."""
    format: Literal["json", "text"] = "json"
    """One JSON object, or tables for people, with published figures beside."""
    output: str | None = None
    """File to write to (default: standard output)."""

    def __post_init__(self) -> None:
        for name in ("seeds", "last", "samples", "posterior_steps", "resamples"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} is {value}: it must be at least 1")
        if not self.splits:
            raise ConfigError("splits is empty: it must name A, B or both")
        if self.max_minutes is not None and not self.max_minutes > 0:
            raise ConfigError(f"max_minutes is {self.max_minutes}: it must be positive")


@dataclasses.dataclass(frozen=True)
class Calibrate(DeviceOptions):
    """What real text scores under each judge, beside the known figures: a judge that misses them is another judge.

    Each judge is trained on the real training split, chosen on valid, and scores test. A training that was ended early
    or interrupted goes on when the same command is given again.

    examples:
      textebm calibrate --data ptb --judge kenlm5
      textebm calibrate --data ptb --judge lstm-sentence --max-minutes 60
      textebm calibrate --data demo --judge all --recipe tiny --format text
    """

    data: str = "ptb"
    """Named corpus, text file or folder."""
    data_dir: str | None = None
    """Folder that holds local copies of named corpora; else TEXTEBM_DATA."""
    judge: Literal["kenlm5", "lstm-sentence", "all"] = "all"
    """Which judge."""
    recipe: str | None = None
    """Recipe of the LSTM judge (default: lstm-sentence-DATA, for a corpus without one lstm-sentence-ptb)."""
    epochs: int | None = None
    """End the LSTM judge's training when so many epochs are done in all."""
    max_minutes: float | None = None
    """End it early, before an epoch that would end later than so many minutes from now."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the products in training (auto: bf16 where the device has it natively); scores are computed in fp32."""
    seed: int = 0
    """Of the LSTM judge and of the bootstrap."""
    lmplz: str | None = None
    """KenLM's lmplz (default: TEXTEBM_LMPLZ, the PATH, the project's own build, else a built-in estimator)."""
    format: Literal["json", "text"] = "json"
    """One JSON object, or lines for people."""
    output: str | None = None
    """File to write to (default: standard output)."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}: it must be 0 or more")


@dataclasses.dataclass(frozen=True)
class Plot:
    """Draw a run's learning curves: likelihood, energies, norms; with --all every figure of its log, a PNG each.

    examples:
      textebm plot runs/ptb --output curves.png
      textebm plot runs/ptb --all figures --csv figures.csv
    """

    run: tyro.conf.Positional[str | None] = None
    """Run folder (default: the newest run)."""
    output: str | None = None
    """PNG or SVG to write (default: curves.png in the run folder)."""
    all: str | None = None
    """Folder to draw one PNG for each chart of the log into, made if need be."""
    csv: str | None = None
    """CSV file for the numbers of those charts: chart, line, step, value."""


@dataclasses.dataclass(frozen=True)
class Report(ModelOptions):
    """Put everything about a run onto one page of HTML that needs no network: settings, learning curves, samples,
    reconstructions, the transition from the reference Gaussian to the prior, diagnostics of chains, and scores.

    Scores are read from the run folder and from --results; --measure measures FPPL and RPPL of text, or the Fréchet
    distance of images, which takes much longer than all the rest.

    examples:
      textebm report runs/ptb
      textebm report runs/ptb --output ptb.html --data ptb.json
      textebm report runs/ptb --results results/table2/ptb-lebm-seed0.json
      textebm report --measure
    """

    run: tyro.conf.Positional[str | None] = None
    """Run folder or model folder (default: --model, else the newest run, else the demo model that ships)."""
    output: str = "report.html"
    """HTML file to write."""
    data: str | None = None
    """JSON file to write every number of the page to."""
    results: tuple[str, ...] = ()
    """JSON files with scores: of fppl, rppl, likelihood, fid, evaluate or experiment."""
    measure: bool = False
    """Measure scores that the page lacks otherwise."""
    n: Annotated[int | None, tyro.conf.arg(aliases=("-n",))] = None
    """Sentences or images to draw for --measure (default: as many as the measure prescribes)."""
    features: Literal["inception", "inception-pytorch-fid", "mobilenetv2"] = "inception"
    """Whose features --measure takes of images; without Inception's weights, mobilenetv2's."""
    samples: int = 12
    """Sentences on the page; of images five times as many."""
    reconstructions: int = 6
    """Reconstructed sentences; of images four times as many."""
    chains: int = 64
    """Prior chains behind the figures of the transition and the diagnostics."""
    steps: int = 100
    """Length of the transition's chains."""
    diagnostic_steps: int = 500
    """Length of the chains of the diagnostics (0: none)."""
    data_dir: str | None = None
    """Folder that holds local copies of named data (default: where they were in training; else TEXTEBM_DATA)."""


@dataclasses.dataclass(frozen=True)
class Share:
    """Put a trained model into a folder of its own, with all that it needs to be used and a card that says what it is,
    or push it to the Hugging Face Hub (extra hub; a token that may write is stored by hf auth login).

    The card has the scores of the run folder and of --results, with their signatures. No path of this machine goes into
    it, and no data but the sentences that the model writes.

    examples:
      textebm share runs/ptb --output ptb-lebm
      textebm share runs/ptb --output ptb-lebm --results fppl.json rppl.json --license mit --language en
      textebm share runs/ptb --push me/ptb-lebm --private
    """

    run: tyro.conf.Positional[str | None] = None
    """Run folder (its best checkpoint is meant) or model folder (default: the newest run)."""
    output: str | None = None
    """Folder to write, made if need be."""
    push: str | None = None
    """OWNER/NAME on the Hugging Face Hub to upload to, made if need be."""
    private: bool = False
    """Make a new repository private."""
    branch: str | None = None
    """Branch to push to (default: main)."""
    message: str = "Share a model of textebm"
    """Of the commit."""
    name: str | None = None
    """By which the card says the model is loaded (default: --push, else the name of --output)."""
    license: str | None = None
    """The Hub's identifier of the licence that you give the weights under, such as mit or cc-by-sa-4.0."""
    language: tuple[str, ...] = ()
    """Codes of the languages of a model of text, such as en."""
    results: tuple[str, ...] = ()
    """JSON files with scores of this model: of fppl, rppl, likelihood, fid, evaluate or experiment."""
    samples: int = 5
    """Sentences that the card quotes."""
    seed: int = 0
    """Of those sentences, or of the images."""


@dataclasses.dataclass(frozen=True)
class App(ModelOptions):
    """Open a page in the browser that makes sentences as one turns the knobs (extra app): generate, interpolate, watch
    a chain's energy.

    The page is served to this machine alone, and asks nothing of any other.

    examples:
      textebm app
      textebm app --model runs/ptb --port 7861
    """

    host: str = "127.0.0.1"
    """Address to serve: 0.0.0.0 opens the page to the network that this machine is in, and to whoever is there."""
    port: int | None = None
    """Port (default: the first free one from 7860 on)."""
    open_browser: bool = False
    """Open the page in the browser."""

    def __post_init__(self) -> None:
        if self.port is not None and not 1 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port}: it must be from 1 to 65535")


@dataclasses.dataclass(frozen=True)
class DataImages:
    """How images are read."""

    size: int | None = None
    """Height and width in pixels that images are resized to (default: the set's own, or that of the first image)."""
    crop: Literal["authors", "centre"] | None = None
    """What is kept of CelebA's images (default: as the card says)."""
    skip_bad: bool = False
    """Leave out images that cannot be decoded, and count them; else one is an error."""
    image_column: str | None = None
    """Column of a hub data set that holds the images (default: its only one of images)."""
    label_column: str | None = None
    """Column of a hub data set that holds class labels (default: its only one, if it has one)."""


@dataclasses.dataclass(frozen=True)
class Data:
    """Corpora: list the named ones, show what is known of one, download it, check what is on this machine.

    check reads a corpus to its end; of a named one every split must have the sum and the counts of its card. It ends
    with exit code 1 where something differs or cannot be read.

    examples:
      textebm data list
      textebm data show ptb
      textebm data fetch ptb
      textebm data check ptb
      textebm data check my-corpus.txt --format json
      textebm data show hf:stanfordnlp/imdb
      textebm data check mnist
      textebm data check my-photographs --images.size 64 --images.skip-bad True
    """

    action: tyro.conf.Positional[Literal["list", "show", "fetch", "check"]] = tyro.MISSING
    """What to do."""
    name: tyro.conf.Positional[str | None] = None
    """Named corpus; for show and check also a text file, a folder, - for standard input, or hf:NAME."""
    data_dir: str | None = None
    """Folder that holds local copies of named corpora; else TEXTEBM_DATA."""
    text_field: str | None = None
    """Field of JSON lines, or column of a hub data set, that holds the text."""
    images: Annotated[DataImages, tyro.conf.FlagConversionOff] = dataclasses.field(default_factory=DataImages)
    """How images are read."""
    format: Literal["text", "json"] = "text"
    """Lines for people, or JSON."""


@dataclasses.dataclass(frozen=True)
class Env:
    """Say what textebm finds on this machine: versions, devices, KenLM.

    examples:
      textebm env
    """
