"""Looking at the latent space: transitions of prior chains, and quality over their steps (`diagnostics.py` has more).

    from textebm import analysis, generation
    model, tokenizer = generation.load(folder)
    found = analysis.transition(model, tokenizer, steps=100, marks=(0, 40, 100))
    found.energy.mean          # of every step, in nats
    found.texts[0]             # one chain, a sentence a mark

Everything that is returned has `as_dict()`, which gives it in JSON types. Energies and slopes are in nats, norms and
displacements in units of z, steps are counted from 0, the start.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Unpack

import torch
from jaxtyping import Float
from torch import Tensor

from textebm.data.vocabulary import decode as to_text
from textebm.errors import UsageError
from textebm.generation import WRITTEN_AT_ONCE
from textebm.image_generation import BATCH as PAINTED_AT_ONCE
from textebm.lm_eval import scores as text_scores
from textebm.lm_eval.protocols import HEADLINE_DECODING
from textebm.model import langevin
from textebm.model.decoding import Decoding, decode_by
from textebm.model.latent_model import LatentModel
from textebm.model.metropolis import Point
from textebm.model.random import stream
from textebm.model.short_run import visits
from textebm.png import to_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from textebm.image_eval.features import FeatureExtractor
    from textebm.image_eval.images import ImageSet

MARKS = (0, 40, 100)
"""Steps at which the paper shows samples."""
LONG_MARK = 1000
"""One more in long chains."""
QUALITY_STEPS = (0, 5, 10, 20, 40, 60, 100)
"""Steps at which quality is measured."""
RANGE = 0.95
"""Central share of reference samples that makes the range which an oversaturated chain has left."""
STANDARD_ERRORS = 3.0
"""By so many a slope must differ from 0 to be a drift."""
LEAST_DRIFT = 0.1
"""And the energy must move by this share of its standard deviation over chains, in the last half of the chain."""


def no_tick(_: int) -> None:
    """Progress that nobody watches."""


# ---- transitions


@dataclasses.dataclass(frozen=True)
class Trace:
    """A figure of every step of chains, from step 0 to the last."""

    mean: list[float]
    """Over chains."""
    sd: list[float]
    """Standard deviation over chains."""

    def as_dict(self) -> dict[str, Any]:
        """In JSON types."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Drift:
    """Whether the mean energy still moves in the last half of chains.

    Each chain's energy is fitted by a straight line over the steps of the last half. The slope is the mean over chains,
    and its standard error comes from their spread: chains are independent, steps are not. Chains drift if the slope is
    at least `STANDARD_ERRORS` standard errors away from 0, and moves the energy by at least `LEAST_DRIFT` of its
    standard deviation over chains while the last half lasts: less is seen with enough chains, and matters to nobody.
    """

    slope: float
    """Nats a step."""
    standard_error: float
    """Of the slope."""
    change: float
    """What the slope makes of the last half, in standard deviations of the energy over chains at the last step."""
    first_step: int
    """Where the last half begins."""

    @property
    def drifts(self) -> bool:
        """The verdict."""
        significant = abs(self.slope) >= STANDARD_ERRORS * self.standard_error
        return significant and abs(self.change) >= LEAST_DRIFT

    def as_dict(self) -> dict[str, Any]:
        """In JSON types."""
        return dataclasses.asdict(self) | {"drifts": self.drifts}


@dataclasses.dataclass(frozen=True)
class Range:
    """The last states of chains against the range of reference samples, in one figure.

    The range holds the central `RANGE` of the short-run samples, and of posterior samples too where there are some.
    """

    low: float
    high: float
    below: float
    """Share of the chains that ended below it."""
    above: float
    """Share of the chains that ended above it."""

    @property
    def is_left(self) -> bool:
        """Whether more than half of the chains ended on one side of it."""
        return max(self.below, self.above) > 0.5

    def as_dict(self) -> dict[str, Any]:
        """In JSON types."""
        return dataclasses.asdict(self) | {"is_left": self.is_left}


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What long chains do: whether they drift, and whether they oversaturate; nothing of it where some exploded."""

    drift: Drift | None
    """None of chains of fewer than 4 steps."""
    energy: Range | None
    """−f(z), in nats; None where the chain is no longer than that of training."""
    norm: Range | None
    """‖z‖."""
    chains: int
    exploded: int
    """How many of them ended with ‖z‖ above `langevin.EXPLODED`, or with none."""

    @property
    def oversaturates(self) -> bool | None:
        """Whether energy or norm have left the range of short-run (and posterior) samples; None: cannot be told."""
        if self.energy is None or self.norm is None:
            return None
        return self.energy.is_left or self.norm.is_left

    @property
    def words(self) -> str:
        """The verdict in a sentence or two."""
        if self.exploded:
            share = f"{self.exploded} of {self.chains} chains exploded"
            return f"{share}, so nothing is said of drift and oversaturation: take smaller steps, or another model."
        return " ".join(filter(None, [_drift_in_words(self.drift), *self._saturation_in_words()]))

    def _saturation_in_words(self) -> list[str]:
        if self.energy is None or self.norm is None:
            return ["No longer than the chain of training: nothing is said of oversaturation."]
        left = [
            f"{share:.0%} of the chains ended with {name} {side} its range"
            for name, range_ in (("an energy", self.energy), ("a norm", self.norm))
            for side, share in (("below", range_.below), ("above", range_.above))
            if share > 0.5
        ]
        if not left:
            return ["It does not oversaturate: energy and norm stay in the range of short-run samples."]
        return [f"It oversaturates: {', '.join(left)}."]

    def as_dict(self) -> dict[str, Any]:
        """In JSON types."""
        parts = {name: getattr(self, name) for name in ("drift", "energy", "norm")}
        described = {name: None if part is None else part.as_dict() for name, part in parts.items()}
        counts = {"chains": self.chains, "exploded": self.exploded}
        return {"words": self.words, "oversaturates": self.oversaturates, **described, **counts}


def _drift_in_words(drift: Drift | None) -> str:
    if drift is None:
        return "Too short a chain to tell whether it drifts."
    figures = (
        f"{drift.slope:+.2g} ± {drift.standard_error:.1g} nats a step, {drift.change:+.2f} standard deviations over "
        "the last half"
    )
    if drift.drifts:
        return f"The chain drifts: its energy still {'falls' if drift.slope < 0 else 'rises'}, by {figures}."
    return f"The chain does not drift: its energy moves by {figures}."


@dataclasses.dataclass(frozen=True)
class Transition:
    """Prior chains from p_0 toward p_α: figures of every step, and samples at the marks.

    Step 0 is where the chains start, the reference Gaussian or a learned sampler's draws.
    """

    steps: int
    """Length of the chains."""
    marks: tuple[int, ...]
    """Steps at which they are shown, rising."""
    short_run_steps: int
    """K0: steps of the chain of training; 0 of a Gaussian prior, which is sampled exactly."""
    chains: int
    """Chains behind the figures."""
    energy: Trace
    """−f(z) in nats: 0 under a Gaussian prior."""
    norm: Trace
    """‖z‖."""
    displacement: Trace
    """‖z − start‖."""
    mark_energy: list[list[float]]
    """Of each chain that is shown, at each mark, in nats."""
    mark_norm: list[list[float]]
    """Of each chain that is shown, at each mark."""
    change: list[float]
    """Energy at the last step less that at the start, of each chain, in nats."""
    verdict: Verdict
    """Whether the chains drift or oversaturate."""
    texts: list[list[str]] | None = None
    """texts[chain][mark], of a model of text: words are drawn by the same numbers at every mark, so that only z
    differs."""
    images: Float[Tensor, "shown marks channels height width"] | None = None
    """Mean images in [−1, 1], of a model of images."""
    latents: Float[Tensor, "marks chains latent"] | None = None
    """Where all chains stand at each mark, on the CPU."""

    def as_dict(self) -> dict[str, Any]:
        """In JSON types; images and latents are left out."""
        return {
            "steps": self.steps,
            "marks": list(self.marks),
            "short_run_steps": self.short_run_steps,
            "chains": self.chains,
            **{name: getattr(self, name).as_dict() for name in ("energy", "norm", "displacement")},
            "shown": [
                {
                    "energy": self.mark_energy[chain],
                    "norm": self.mark_norm[chain],
                    **({} if self.texts is None else {"texts": self.texts[chain]}),
                }
                for chain in range(len(self.mark_energy))
            ],
            "verdict": self.verdict.as_dict(),
        }


def default_marks(steps: int) -> tuple[int, ...]:
    """Those of the paper as far as the chain goes, one more in a long chain, and its last step."""
    return tuple(sorted({mark for mark in (*MARKS, LONG_MARK) if mark < steps} | {steps}))


def transition(
    model: LatentModel,
    tokenizer: "Tokenizer | None" = None,
    *,
    chains: int = 256,
    shown: int = 8,
    steps: int = 100,
    marks: Sequence[int] | None = None,
    seed: int = 0,
    decoding: Decoding | None = None,
    posterior: Float[Tensor, "samples latent"] | None = None,
    tick: Callable[[int], object] = no_tick,
) -> Transition:
    """Run prior chains, and look at every step of them.

    Memory does not grow with the number of steps but by a few figures a step: states are kept at the marks alone.
    The chains are those of `generation.generate` (and of images) for the same seed, up to as many as are worked on at
    once there; where K0 is longer than its list of step sizes, the last one goes on.

    Args:
        model: a model with z, of text or of images, on its device.
        tokenizer: of a model of text; without it no text is written.
        chains: chains behind the figures, at least two.
        shown: how many of them are decoded at the marks.
        steps: their length, at least 1.
        marks: steps at which they are decoded (default: `default_marks`).
        seed: of everything random.
        decoding: how words are chosen (default: sampling up to the longest training sentence).
        posterior: posterior samples of z, whose range of energies and norms the verdict adds to the short-run's.
        tick: told of each step that is made (progress).

    Raises:
        UsageError: the model has no z, or a number makes no sense.
    """
    require_latent(model)
    marks = tuple(sorted(set(default_marks(steps) if marks is None else marks)))
    if chains < 2 or steps < 1 or shown < 0:
        raise UsageError(f"{chains} chains of {steps} steps, {shown} shown: there must be at least 2, 1 and 0")
    if not marks or marks[0] < 0 or marks[-1] > steps:
        raise UsageError(f"the marks {', '.join(map(str, marks))} must lie between 0 and the last step, {steps}")
    noise = stream(seed, "prior", 0, device=model.device)
    start = model.prior_start(model.prior.sample_reference(chains, noise), noise)
    short = short_run_steps(model)
    walked = walk(model, start, steps, {*marks, min(short, steps), steps}, noise, tick)
    shown = min(shown, chains)
    at_marks = [walked.states[mark] for mark in marks]
    few = [z[:shown] for z in at_marks]
    mark_energy, mark_norm = (
        torch.stack([figure(z) for z in few], 1).tolist() for figure in (model.energy, lambda z: z.norm(dim=1))
    )
    return Transition(
        steps=steps,
        marks=marks,
        short_run_steps=short,
        chains=chains,
        energy=walked.trace(0),
        norm=walked.trace(1),
        displacement=walked.trace(2),
        mark_energy=mark_energy,
        mark_norm=mark_norm,
        change=(model.energy(walked.states[steps]) - model.energy(start)).tolist(),
        verdict=_verdict(model, walked, short, posterior),
        texts=None if tokenizer is None else _write(model, tokenizer, few, seed, decoding),
        images=None if model.config.image is None else torch.stack([_paint(model, z) for z in few], 1),
        latents=torch.stack(at_marks).cpu(),
    )


def require_latent(model: LatentModel) -> None:
    """Check that a model has z.

    Raises:
        UsageError: it is a plain language model.
    """
    if not model.has_latent:
        raise UsageError(
            "this model is a plain language model (prior.kind: none): it has no z, and so no chain to look at; give a "
            "model with a prior by --model"
        )


def short_run_steps(model: LatentModel) -> int:
    """K0, the steps of the chain of training; 0 of a Gaussian prior, which is sampled exactly."""
    return model.config.prior.steps if model.config.prior.is_tilted else 0


def prior_plan(model: LatentModel, steps: int) -> langevin.Schedule:
    """The schedule of the training chain, for so many steps; under a Gaussian prior too, which it leaves as it is but
    for the error of its step size."""
    return langevin.schedule(steps, model.config.prior.step_size, model.config.prior.temperature)


@dataclasses.dataclass(frozen=True)
class Walk:
    """What was seen of chains on the way.

    statistics: mean and standard deviation over chains of energy, norm and displacement at every step. slopes: of each
    chain's energy over the last half, in nats a step; None where that has fewer than 3 states. states: where chains
    stood at the marks.
    """

    steps: int
    statistics: Float[Tensor, "states 3 2"]
    slopes: Float[Tensor, " chains"] | None
    states: dict[int, Tensor]

    def trace(self, figure: int) -> Trace:
        """Of energy (0), norm (1) or displacement (2)."""
        mean, sd = self.statistics[:, figure].T.tolist()
        return Trace(mean, sd)


@torch.no_grad()
def walk(
    model: LatentModel,
    start: Float[Tensor, "chains latent"],
    steps: int,
    marks: set[int],
    noise: torch.Generator,
    tick: Callable[[int], object] = no_tick,
) -> Walk:
    """Run prior chains from given points; nothing in here waits for the device.

    Args:
        model: the model.
        start: where the chains start, at least two.
        steps: their length.
        marks: steps at which their states are kept.
        noise: of the moves, on the model's device.
        tick: told of each step that is made.
    """
    statistics = torch.empty(steps + 1, 3, 2, dtype=torch.float64, device=start.device)
    slopes = torch.zeros(len(start), dtype=torch.float64, device=start.device)
    half, squares = steps // 2, 0.0
    centre, kept = (half + steps) / 2, {}
    for number, point in enumerate(visits(start, model.prior.frozen(), prior_plan(model, steps), noise)):
        energy = energy_of(point, model.config.prior.sigma)
        seen = torch.stack([energy, point.z.norm(dim=1), (point.z - start).norm(dim=1)])
        statistics[number] = torch.stack([seen.mean(1), seen.std(1)], 1)
        if number >= half:
            slopes.add_(energy, alpha=number - centre)
            squares += (number - centre) ** 2
        if number in marks:
            kept[number] = point.z
        tick(1)
    return Walk(steps, statistics, slopes.div_(squares) if steps >= 4 else None, kept)


def energy_of(point: Point, sigma: float) -> Float[Tensor, " batch"]:
    """−f(z) out of a prior's potential, in nats and float64."""
    z = point.z.double()
    energy: Tensor = point.potential.double() - torch.linalg.vecdot(z, z) / (2 * sigma**2)
    return energy


def _verdict(model: LatentModel, walked: Walk, short: int, posterior: Tensor | None) -> Verdict:
    last = walked.states[walked.steps]
    if lost := int(langevin.exploded(last).sum()):
        return Verdict(None, None, None, len(last), lost)
    drift = None if walked.slopes is None else _drift(walked.slopes, model.energy(last).double(), walked.steps)
    if walked.steps <= short:
        return Verdict(drift, None, None, len(last), 0)
    references = [walked.states[short], *([] if posterior is None else [posterior.to(last)])]
    figures: list[Callable[[Tensor], Tensor]] = [model.energy, lambda z: z.norm(dim=1)]
    energy, norm = (_range(figure(last), [figure(z) for z in references]) for figure in figures)
    return Verdict(drift, energy, norm, len(last), 0)


def _drift(slopes: Float[Tensor, " chains"], last: Float[Tensor, " chains"], steps: int) -> Drift:
    slope, first = float(slopes.mean()), steps // 2
    error = float(slopes.std()) / math.sqrt(len(slopes))
    spread = float(last.std())
    moved = slope * (steps - first)
    return Drift(slope, error, moved / spread if spread > 0 else 0.0, first)


def _range(values: Float[Tensor, " chains"], references: list[Tensor]) -> Range:
    ends = torch.tensor([(1 - RANGE) / 2, (1 + RANGE) / 2], dtype=torch.float64, device=values.device)
    quantiles = torch.stack([torch.quantile(reference.double(), ends) for reference in references])
    low, high = float(quantiles[:, 0].min()), float(quantiles[:, 1].max())
    return Range(low, high, float((values < low).double().mean()), float((values > high).double().mean()))


def _write(
    model: LatentModel, tokenizer: "Tokenizer", states: list[Tensor], seed: int, decoding: Decoding | None
) -> list[list[str]]:
    """texts[chain][mark]: the numbers by which a chain's words are drawn are the same at every mark."""
    decoding = decoding or Decoding(max_length=model.config.longest)
    uniform = decoding_numbers(model, len(states[0]), decoding, seed)
    written = [decode_by(model.writer, z, decoding, uniform) for z in states]
    return [[to_text(tokenizer, ids) for ids in of_chain] for of_chain in zip(*written, strict=True)]


def decoding_numbers(
    model: LatentModel, sentences: int, decoding: Decoding, seed: int, number: int = 0
) -> Float[Tensor, "{sentences} places"]:
    """The numbers in [0, 1) by which words are drawn, of each sentence at each place."""
    source = stream(seed, "decoding", number, device=model.device)
    size = (sentences, decoding.max_length)
    return torch.rand(size, generator=source, device=model.device, dtype=torch.float64)


def _paint(model: LatentModel, z: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch channels height width"]:
    parts = [model.paint(part).float().cpu() for part in z.split(PAINTED_AT_ONCE)]  # type: ignore[no-untyped-call]
    return torch.cat(parts) if parts else z.new_empty(0, *dataclasses.astuple(model.config.image_shape)).cpu()


# ---- quality over steps


class Rated(Protocol):
    """A score of samples, such as `lm_eval.scores.Score` and `image_eval.scores.Score`."""

    @property
    def metric(self) -> str:
        """Its name."""
        ...

    @property
    def score(self) -> float:
        """The figure."""
        ...

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval, where there is one."""
        ...

    @property
    def signature(self) -> object:
        """How it was computed."""
        ...

    @property
    def details(self) -> dict[str, Any]:
        """What stands beside it."""
        ...


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Samples of a model after so many prior steps, as a judge gets them."""

    steps: int
    """Of the prior chain."""
    as_in_training: bool
    """Whether that is K0."""
    texts: list[str] | None = None
    """Of a model of text."""
    images: "NDArray[np.uint8] | None" = None
    """(samples, channels, height, width) of a model of images."""


Judge = Callable[[Drawn], Rated]
"""What measures samples; lower scores are better."""


def text_judge(
    train: text_scores.Text, test: text_scores.Text | None = None, **options: Unpack[text_scores.Options]
) -> Judge:
    """FPPL: perplexity of sentences under a language model of real training text, which is trained once.

    Args:
        train: the real training split.
        test: the real test split, which gives the real row.
        options: of `textebm.lm_eval.fppl`, but for `decoding`.

    Raises:
        DataError, UsageError, JudgeError: see `textebm.lm_eval.fppl`.
    """
    settings = text_scores.Settings(**options)
    real = text_scores.Real(train, test, None, settings)

    def judge(drawn: Drawn) -> Rated:
        how = HEADLINE_DECODING + ("" if drawn.as_in_training else f"+prior-steps-{drawn.steps}")
        own = dataclasses.replace(settings, decoding=how)
        return text_scores.forward(real, text_scores.Samples(drawn.texts or [], real, own))

    return judge


def image_judge(
    real: "ImageSet", extractor: "FeatureExtractor", facts: dict[str, str], real_n: int | None = None
) -> Judge:
    """Fréchet distance of images from real ones: the FID, where features are the published Inception's.

    Args:
        real: the real images.
        extractor: of features.
        facts: what a signature says of the real images: `data`, `against`.
        real_n: how many of them, spread evenly (default: all).
    """
    from textebm.image_eval.images import ArrayImages
    from textebm.image_eval.scores import Settings, frechet_score

    def judge(drawn: Drawn) -> Rated:
        assert drawn.images is not None  # the model is one of images
        more = {} if drawn.as_in_training else {"prior-steps": str(drawn.steps)}
        settings = Settings(real_n=real_n, others=False)
        return frechet_score(ArrayImages("drawn", drawn.images), real, extractor, settings, facts=facts | more)

    return judge


@dataclasses.dataclass(frozen=True)
class QualityPoint:
    """Quality after so many prior steps."""

    steps: int
    """Of the prior chain."""
    score: float
    """Lower is better."""
    interval: tuple[float, float] | None
    """95 % interval over samples; the chains and the numbers that words are drawn by are the same at every point, so
    differences between points are surer than their intervals."""
    signature: str
    """How it was computed."""
    warnings: tuple[str, ...] = ()
    """What a reader must know of this point, and not of all of them."""

    def as_dict(self) -> dict[str, Any]:
        """In JSON types."""
        interval = None if self.interval is None else list(self.interval)
        return dataclasses.asdict(self) | {"interval": interval, "warnings": list(self.warnings)}


@dataclasses.dataclass(frozen=True)
class QualityCurve:
    """Quality of samples against the number of prior steps."""

    metric: str
    """What was measured: fppl, fid, or a Fréchet distance of other features."""
    samples: int
    """Sentences or images at each point."""
    points: tuple[QualityPoint, ...]
    """In the order of steps."""
    real: float | None = None
    """What real held-out text scores in the place of samples, where that is known."""
    warnings: tuple[str, ...] = ()
    """What a reader must know of all the points."""

    def as_dict(self) -> dict[str, Any]:
        """In JSON types."""
        points = [point.as_dict() for point in self.points]
        return dataclasses.asdict(self) | {"points": points, "warnings": list(self.warnings)}


def quality_curve(
    model: LatentModel,
    judge: Judge,
    tokenizer: "Tokenizer | None" = None,
    *,
    steps: Sequence[int] = QUALITY_STEPS,
    samples: int = 1000,
    seed: int = 0,
    tick: Callable[[int], object] = no_tick,
) -> QualityCurve:
    """Measure samples of the same chains after different numbers of prior steps.

    Args:
        model: a model with z, on its device.
        judge: what measures samples, such as `text_judge(...)`.
        tokenizer: of a model of text.
        steps: numbers of prior steps.
        samples: sentences or images at each of them.
        seed: of everything random; latents are those of `generation.generate` for this seed.
        tick: told of every sample that is made, at each of the steps.

    Raises:
        UsageError: the model has no z, or a number makes no sense.
    """
    require_latent(model)
    marks = tuple(sorted(set(steps)))
    if not marks or marks[0] < 0 or samples < 2:
        raise UsageError("quality is measured at 0 or more prior steps, of at least 2 samples")
    scores = [judge(drawn) for drawn in _drawn(model, tokenizer, marks, samples, seed, tick)]
    said = [list(score.details.get("warnings", ())) for score in scores]
    of_all = [warning for warning in said[0] if all(warning in each for each in said)]
    points = [
        QualityPoint(
            steps=mark,
            score=score.score,
            interval=score.interval,
            signature=str(score.signature),
            warnings=tuple(warning for warning in own if warning not in of_all),
        )
        for mark, score, own in zip(marks, scores, said, strict=True)
    ]
    real = scores[0].details.get("real_row")
    row = None if real is None else real["perplexity"]
    return QualityCurve(scores[0].metric, samples, tuple(points), row, tuple(of_all))


def _drawn(
    model: LatentModel,
    tokenizer: "Tokenizer | None",
    marks: tuple[int, ...],
    samples: int,
    seed: int,
    tick: Callable[[int], object],
) -> list[Drawn]:
    """Samples of the same chains at each of the marks, a batch of chains at a time."""
    of_text = model.config.image is None
    if of_text and tokenizer is None:
        raise UsageError("samples of a model of text are written with its tokenizer")
    at_once = WRITTEN_AT_ONCE if of_text else PAINTED_AT_ONCE
    texts: dict[int, list[str]] = {mark: [] for mark in marks}
    images: dict[int, list[Tensor]] = {mark: [] for mark in marks}
    for number, begin in enumerate(range(0, samples, at_once)):
        size = min(at_once, samples - begin)
        decoding = Decoding(max_length=model.config.longest)
        uniform = decoding_numbers(model, size, decoding, seed, number) if of_text else None
        for mark, z in _states(model, marks, size, stream(seed, "prior", number, device=model.device)):
            if tokenizer is not None and uniform is not None:
                texts[mark] += [to_text(tokenizer, ids) for ids in decode_by(model.writer, z, decoding, uniform)]
            else:
                images[mark].append(to_bytes(_paint(model, z)))
            tick(size)
    short = short_run_steps(model)
    return [
        Drawn(mark, mark == short, texts[mark] if of_text else None, None if of_text else _joined(images[mark]))
        for mark in marks
    ]


def _joined(parts: list[Tensor]) -> "NDArray[np.uint8]":
    pixels: NDArray[np.uint8] = torch.cat(parts).numpy()
    return pixels


@torch.no_grad()
def _states(
    model: LatentModel, marks: tuple[int, ...], chains: int, noise: torch.Generator
) -> list[tuple[int, Float[Tensor, "chains latent"]]]:
    """Where chains stand at each mark."""
    start = model.prior_start(model.prior.sample_reference(chains, noise), noise)
    places = enumerate(visits(start, model.prior.frozen(), prior_plan(model, marks[-1]), noise))
    return [(number, point.z) for number, point in places if number in marks]
