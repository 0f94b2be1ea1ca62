"""What a report of a run says: its settings, its learning curves, what its model makes, its chains and its scores.

    from textebm import report, report_page
    found = report.gather(Path("runs/ptb"))
    Path("report.html").write_text(report_page.render(found))

A report is data alone: sections of paragraphs, tables, charts and pictures. `report_page.py` makes a page of it. What
cannot be shown (the data are not on this machine, a package is missing) is said in the section where it would stand.
"""

import dataclasses
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textebm import checkpoint, plain_json, plots, whole_files
from textebm.charts import Chart, Line, learning_charts, thinned
from textebm.config import Config, flat
from textebm.errors import CheckpointError, DataError, TextebmError, UsageError
from textebm.lm_eval import compare, tables
from textebm.plain_json import is_finite

if TYPE_CHECKING:
    from textebm.analysis import Transition
    from textebm.data.dataset import Dataset
    from textebm.diagnostics import ChainDiagnostics, Diagnostics, ShortAndLong, Spread
    from textebm.model.latent_model import LatentModel

# ---- what a report is made of


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows under a header."""

    caption: str
    header: list[str]
    rows: list[list[str]]
    folded: bool = False
    """Whether the page shows it only where it is asked for."""


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image that is part of the page."""

    alternative: str
    """What it shows, in words."""
    png: bytes = dataclasses.field(repr=False)
    width: int
    """In pixels."""
    height: int
    """In pixels."""

    @property
    def enlargement(self) -> int:
        """Pixels of the page that each of its own takes, on a side: small images would not be seen."""
        return max(1, min(6, 480 // self.width))


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of a report under a heading."""

    key: str
    title: str
    paragraphs: list[str] = dataclasses.field(default_factory=list)
    charts: list[Chart] = dataclasses.field(default_factory=list)
    tables: list[Table] = dataclasses.field(default_factory=list)
    pictures: list[Picture] = dataclasses.field(default_factory=list)
    remarks: list[str] = dataclasses.field(default_factory=list)
    """Warnings, and what is missing and why."""
    data: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Whatever else is known, in JSON types."""

    def as_dict(self) -> dict[str, Any]:
        """In JSON types; of pictures the words alone."""
        described = dataclasses.asdict(self)
        return described | {"pictures": [picture.alternative for picture in self.pictures]}


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything that a page says."""

    title: str
    subtitle: str
    figures: list[tuple[str, str]]
    """The few numbers that one looks for first: name and figure."""
    sections: list[Section]

    def section(self, key: str) -> Section:
        """One of the sections."""
        return next(section for section in self.sections if section.key == key)

    def as_dict(self) -> dict[str, Any]:
        """In JSON types: every number that the page shows."""
        sections = {section.key: section.as_dict() for section in self.sections}
        return {"title": self.title, "subtitle": self.subtitle, "figures": dict(self.figures), "sections": sections}


@dataclasses.dataclass(frozen=True)
class Size:
    """How much of a model a report shows, and so how long it takes."""

    samples: int = 12
    """Sentences; of images five times as many."""
    reconstructions: int = 6
    """Sentences; of images four times as many."""
    chains: int = 64
    """Prior chains behind the figures of transitions and diagnostics."""
    steps: int = 100
    """Length of the chains of the transition."""
    shown: int = 3
    """Chains of it that are shown."""
    diagnostic_steps: int = 500
    """Length of the prior chains of the diagnostics; 0: there are none."""

    def __post_init__(self) -> None:
        for name, least in (("samples", 1), ("reconstructions", 1), ("chains", 4), ("steps", 1), ("shown", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} is {getattr(self, name)}: it must be at least {least}")
        if 0 < self.diagnostic_steps < 16 or self.diagnostic_steps < 0:
            raise UsageError(f"diagnostic_steps is {self.diagnostic_steps}: it must be at least 16, or 0 for none")


OF_VALID = {
    "perplexity": "perplexity on valid, exact",
    "reconstruction_perplexity": "perplexity on valid, reconstructing",
    "prior_perplexity": "perplexity on valid under prior samples",
    "reconstruction_mse": "MSE on valid, reconstructing",
    "active_units": "active units",
}
"""Figures of a validation that one looks for first, and what they are called."""
OF_SCORES = {"fppl": "FPPL", "rppl": "RPPL", "fid": "FID", "marginal-nll": "marginal NLL, nats a sentence"}
"""Metrics by the names that people give them."""

# ---- gathering


def gather(
    model: Path,
    results: Sequence[Path] = (),
    size: Size | None = None,
    seed: int = 0,
    device: str = "cpu",
    data_dir: str | None = None,
    tell: Callable[[str], object] = lambda _: None,
) -> Report:
    """Everything that is known of a run, and what its best model makes.

    Args:
        model: a run folder, or a model folder, of which there is no log.
        results: JSON files with scores, besides those in the run folder.
        size: how much is shown.
        seed: of everything random.
        device: where to compute.
        data_dir: folder that holds local copies of named data (default: where they were).
        tell: told what is being made.

    Raises:
        CheckpointError: there is no model, or the run is damaged.
        DataError: a file of results is no JSON, or holds no score.
    """
    run = _Run.open(model, size or Size(), seed, device, data_dir)
    found = _results_of(run.run_dir, results)
    parts: list[tuple[str, Callable[[], Section]]] = [
        ("the settings", lambda: _about(run, found)),
        ("learning curves", lambda: _learning(run)),
        ("samples", lambda: _samples(run)),
        ("reconstructions", lambda: _reconstructions(run)),
        ("the transition", lambda: _transition(run, found)),
        ("diagnostics", lambda: _diagnostics(run)),
        ("scores", lambda: _scores(found)),
    ]
    sections = []
    for what, make in parts:
        tell(what)
        sections.append(make())
    return Report(run.name, run.subtitle, _figures(run, found), sections)


def _results_of(run_dir: Path | None, given: Sequence[Path]) -> list[dict[str, Any]]:
    """What stands in the files that were given, and in those of the run folder, which `textebm experiment` writes."""
    own = [] if run_dir is None else sorted((run_dir / "scores").glob("*.json"))
    found = []
    for path in dict.fromkeys([*given, *own]):
        try:
            found.append(checkpoint.read_json(path))
        except CheckpointError as error:
            raise DataError(str(error)) from None
        if path in given and not _scores_in(found[-1:]) and not _quality_in(found[-1]):
            raise DataError(
                f"{path} holds no score: wanted is what fppl, rppl, evaluate, fid or experiment write as JSON"
            )
    return found


def scores_of(run_dir: Path | None, given: Sequence[Path] = ()) -> list[dict[str, Any]]:
    """Every score in files of results and in those of a run folder, each once: metric, score, interval, signature.

    Raises:
        DataError: a file is no JSON, or one that was given holds no score.
    """
    return _scores_in(_results_of(run_dir, given))


class _Run:
    """A model, what it was trained with, and what can still be found of its run."""

    def __init__(
        self, run_dir: Path | None, folder: Path, model: "LatentModel", size: Size, seed: int, data_dir: str | None
    ) -> None:
        """Use `open`."""
        self.run_dir, self.folder, self.model, self.size, self.seed = run_dir, folder, model, size, seed
        config, self.progress = checkpoint.read_run(folder)
        self.config = dataclasses.replace(config, data_dir=data_dir or config.data_dir)
        self.log = [] if run_dir is None else plots.read_log(run_dir)
        self._held_out: Dataset | str | None = None

    @classmethod
    def open(cls, given: Path, size: Size, seed: int, device: str, data_dir: str | None) -> "_Run":
        """The model that a path means, in evaluation mode."""
        folder, _ = checkpoint.find_model(str(given))
        run_dir = folder.parent.parent if folder.parent.name == "checkpoints" else None
        return cls(run_dir, folder, checkpoint.load_model(folder, device), size, seed, data_dir)

    @property
    def of_images(self) -> bool:
        """Whether x is an image."""
        return self.model.config.image is not None

    @property
    def has_latent(self) -> bool:
        """Whether there is a z: a plain language model has none."""
        return self.model.has_latent

    @property
    def name(self) -> str:
        """What the report calls the run."""
        return (self.run_dir or self.folder).resolve().name

    @property
    def subtitle(self) -> str:
        """What it is, in a line."""
        if not self.has_latent:
            return f"A plain language model of {self.config.data}"
        prior = {"ebm": "an energy-based prior", "gaussian": "a Gaussian prior"}
        named = prior.get(self.config.prior.kind, f"a prior of kind {self.config.prior.kind}")
        what = "images" if self.of_images else "text"
        return f"A latent variable model of {what}: {self.config.data}, with {named}"

    def lines(self, kind: str) -> list[dict[str, Any]]:
        """Lines of the log."""
        return [line for line in self.log if line["kind"] == kind]

    @property
    def best(self) -> dict[str, Any]:
        """The validation of the checkpoint that the report is of; empty where there is no log of it."""
        return next((line for line in self.lines("valid") if line["step"] == self.progress.step), {})

    def held_out(self) -> "Dataset | str":
        """Some of the validation split, spread evenly over it; or why there is none. Nothing is ever downloaded."""
        if self._held_out is None:
            try:
                self._held_out = self._find_held_out()
            except TextebmError as error:
                self._held_out = f"The data are not here ({error})."
        return self._held_out

    def _find_held_out(self) -> "Dataset | str":
        from textebm.materials import material_of

        if material_of(self.config).download(self.config) is not None:
            return f"The data, {self.config.data}, are not on this machine, and a report downloads nothing."
        return self._pictures() if self.of_images else self._sentences()

    def _pictures(self) -> "Dataset":
        from textebm.materials.images import ImageMaterial

        return ImageMaterial.resolve_for(self.folder, None, self.config.data_dir).encoded("valid")

    def _sentences(self) -> "Dataset":
        from textebm.data.text import encode

        return encode(self.sentences(), self.tokenizer(), max_length=None, overlong="cut")

    def sentences(self) -> list[str]:
        """Validation sentences, as they are read, spread evenly over the split."""
        from textebm.data.registry import resolve
        from textebm.evaluation import spread

        corpus = resolve(self.config.data, self.config.data_dir, self.config.text_field)
        every = [sentence for sentence in corpus.sentences("valid") if sentence.strip()]
        return [every[row] for row in spread(len(every), self.size.chains)]

    def tokenizer(self) -> Any:  # noqa: ANN401
        """Of a model of text."""
        from textebm.data.vocabulary import load_tokenizer

        return load_tokenizer(self.folder)


# ---- what it is


def _about(run: _Run, results: Sequence[dict[str, Any]]) -> Section:
    """The model, its data, and how it was made."""
    first = next((line for line in run.log if line["kind"] == "start"), {})
    facts = [
        *describe_data(run.config, first.get("data", {})),
        *describe_model(run.model),
        *_of_making(run, first, results),
    ]
    settings = Table(
        "All settings", ["setting", "value"], [[k, str(v)] for k, v in flat(run.config).items()], folded=True
    )
    table = Table("The model and its run", ["what", "value"], [[name, value] for name, value in facts if value])
    remarks = [] if run.run_dir is not None else ["This is a model without its run: there is no log of its training."]
    return Section("about", "What this is", tables=[table, settings], remarks=remarks)


def describe_data(config: Config, data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What a run learned from, as names and values.

    Args:
        config: of the run.
        data: what its log says of them (`data` in the line `start`); empty where there is no log.
    """
    yield "data", config.data
    unit = "images" if "shape" in data else "sentences"
    counts = [
        f"{report.get('sentences', report.get('count', 0)):,} {unit} in {split}"
        for split in ("train", "valid", "test")
        if (report := data.get(split))
    ]
    yield "splits", ", ".join(counts)
    if "vocabulary" in data:
        yield "vocabulary", f"{data['vocabulary']:,} entries ({data.get('tokenizer', 'word')})"


def describe_model(model: "LatentModel") -> Iterator[tuple[str, str]]:
    """What a model is made of, as names and values."""
    config = model.config
    prior, inference, generator = config.prior, config.inference, config.generator
    if prior.dimensions:
        chain = f"{prior.steps} Langevin steps of size {prior.step_size}"
        yield (
            "prior",
            f"{prior.kind}, z of {prior.latent_dim} dimensions"
            + (f"; {chain}, temperature {prior.temperature}" if prior.is_tilted else ""),
        )
        yield (
            "inference",
            f"{inference.kind}"
            + (
                f"; {inference.steps} steps of size {inference.step_size}, temperature {inference.temperature}"
                if model.method.has_chain
                else ""
            ),
        )
    if config.image is not None:
        shape = config.image
        yield "generator", f"convolutional, {shape.channels} × {shape.height} × {shape.width} pixels"
    else:
        yield "generator", f"{generator.cell}, {generator.hidden_dim} units, embeddings of {generator.embedding_dim}"
    yield "parameters", f"{sum(weights.numel() for weights in model.parameters()):,}"


def _of_making(run: _Run, first: Mapping[str, Any], results: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    progress, told = run.progress, next((result for result in results if "command" in result), {})
    is_best = run.run_dir is not None and checkpoint.pointed_at(run.run_dir, "best") == run.folder
    why = f", the best on valid by {run.config.evaluation.select_by}" if is_best else ""
    yield "checkpoint", f"step {progress.step:,}{why}"
    if run.log:
        last = run.log[-1]
        yield "trained", f"{last['step']:,} steps, {last['epoch']:.2f} epochs, {last['seconds'] / 60:.1f} minutes"
    again = "" if run.run_dir is None else f"textebm train --config {run.run_dir / 'config.json'}"
    yield "command", told.get("command") or again
    yield "seed", str(run.config.seed)
    yield "commit", first.get("commit") or ""
    yield "hardware", first.get("hardware") or ""
    yield "precision", first.get("precision") or str(run.config.precision)


# ---- learning curves


def _learning(run: _Run) -> Section:
    """Every figure of the log that says how learning went."""
    train, valid = run.lines("train"), run.lines("valid")
    charts = [thinned(chart) for chart in learning_charts(train, valid) if chart.lines]
    remarks = [] if charts else ["Nothing was logged: there are no learning curves."]
    return Section("learning", "Learning", charts=charts, remarks=remarks)


# ---- what the model makes


def _samples(run: _Run) -> Section:
    """What it makes from its prior."""
    title, why = "Samples", "z from the prior chain, then the generator; nothing is chosen or left out."
    if run.of_images:
        import torch

        from textebm import image_generation

        n = 5 * run.size.samples
        drawn = torch.cat([part.images for part in image_generation.generate(run.model, n, run.seed)])
        picture = _picture(drawn, f"{n} images drawn from the model, side by side")
        return Section("samples", title, [why], pictures=[picture])
    from textebm import generation

    written = list(generation.generate(run.model, run.tokenizer(), run.size.samples, run.seed))
    if not run.has_latent:
        return Section("samples", title, tables=[Table("Samples", ["sentence"], [[each.text] for each in written])])
    rows = [[f"{each.energy:.1f}", each.text] for each in written]
    return Section("samples", title, [why], tables=[Table("Samples", ["energy, nats", "sentence"], rows)])


def _reconstructions(run: _Run) -> Section:
    """Held-out x, and what the model makes of one posterior sample of z for each."""
    key, title, data = "reconstructions", "Reconstructions", run.held_out()
    if not run.has_latent:
        return Section(key, title, remarks=["A plain language model has no z, and reconstructs nothing."])
    if isinstance(data, str):
        return Section(key, title, remarks=[data])
    why = "Of the validation split: z inferred as in training, one sample for each, then the generator."
    if run.of_images:
        return Section(key, title, [why], pictures=[_pairs(run, data)])
    from textebm import generation

    originals = run.sentences()[: run.size.reconstructions]
    written = generation.reconstruct(run.model, run.tokenizer(), originals, run.seed)
    rows = [[first, second] for first, second in zip(originals, written, strict=True)]
    return Section(
        key, title, [f"{why} Words are chosen greedily."], tables=[Table(title, ["sentence", "again"], rows)]
    )


def _pairs(run: _Run, data: "Dataset") -> Picture:
    import torch

    from textebm import image_generation
    from textebm.evaluation import spread

    n, columns = 4 * run.size.reconstructions, 8
    made = [*image_generation.reconstruct(run.model, data, spread(len(data), n), run.seed)]
    above, below = torch.cat([part.originals for part in made]), torch.cat([part.images for part in made])
    rows = [part[place : place + columns] for place in range(0, len(above), columns) for part in (above, below)]
    short = columns - len(rows[-1])
    filled = [torch.cat([row, row.new_ones(short, *row.shape[1:])]) if len(row) < columns else row for row in rows]
    return _picture(torch.cat(filled), f"{len(above)} images, each above its reconstruction", columns)


def _picture(pixels: Any, alternative: str, columns: int | None = None) -> Picture:  # noqa: ANN401
    from PIL import Image

    from textebm import png

    written = io.BytesIO()
    image = Image.fromarray(png.grid(pixels, columns))
    image.save(written, format="PNG")
    return Picture(alternative, written.getvalue(), image.width, image.height)


# ---- chains


def _transition(run: _Run, results: Sequence[dict[str, Any]]) -> Section:
    """Prior chains on their way from p_0 to p_α; the quality of samples on the way, where it was measured."""
    key, title = "transition", "From the reference Gaussian to the prior"
    if not run.has_latent:
        return Section(key, title, remarks=["A plain language model has no z, and so no chain."])
    from textebm import analysis

    size = run.size
    found = analysis.transition(
        run.model,
        None if run.of_images else run.tokenizer(),
        chains=size.chains,
        shown=min(size.shown if not run.of_images else 2 * size.shown, size.chains),
        steps=size.steps,
        seed=run.seed,
    )
    words = f"{found.chains} chains of {found.steps} steps; training's have {found.short_run_steps}. "
    return Section(
        key,
        title,
        [words + found.verdict.words],
        [*_transition_charts(found), *_quality_charts(results)],
        _transition_tables(found),
        _transition_pictures(found),
        data={"transition": found.as_dict()},
    )


def _transition_charts(found: "Transition") -> list[Chart]:
    traces = (
        ("transition-energy", "Energy −f(z) over Langevin steps, nats", found.energy),
        ("transition-norm", "Norm of z over Langevin steps", found.norm),
        ("transition-displacement", "Distance from the start", found.displacement),
    )
    return [
        Chart(key, title, "Langevin step", [_band("mean ± sd over chains", trace.mean, trace.sd)], marks=[*found.marks])
        for key, title, trace in traces
    ]


def _quality_in(result: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The curve of quality over prior steps in a result of `textebm transition --quality`."""
    details = result.get("details")
    curve = details.get("quality") if isinstance(details, Mapping) else None
    return curve if isinstance(curve, Mapping) else None


def _quality_charts(results: Sequence[dict[str, Any]]) -> Iterator[Chart]:
    """Quality against prior steps, out of results of `textebm transition --quality`."""
    for number, curve in enumerate(filter(None, map(_quality_in, results))):
        points = curve["points"]
        known = all(point["interval"] is not None for point in points)
        low, high = ([point["interval"][end] for point in points] if known else None for end in (0, 1))
        steps, scores = ([float(point[key]) for point in points] for key in ("steps", "score"))
        name = f"{curve['samples']:,} samples"
        key, title = "quality" + (f"-{number + 1}" if number else ""), f"{curve['metric'].upper()} over prior steps"
        yield Chart(
            key,
            f"{title} (lower is better)",
            "steps of the prior chain",
            [
                Line(name, steps, scores, low, high, "dots"),
                *([] if curve.get("real") is None else [Line("real text", [steps[0], steps[-1]], [curve["real"]] * 2)]),
            ],
            logarithmic=True,
        )


def _band(name: str, mean: Sequence[float], sd: Sequence[float]) -> Line:
    low, high = ([m + sign * s for m, s in zip(mean, sd, strict=True)] for sign in (-1, 1))
    return Line(name, [float(step) for step in range(len(mean))], list(mean), low, high)


def _transition_tables(found: "Transition") -> list[Table]:
    if found.texts is None:
        return []
    rows = [
        [str(chain + 1), str(mark), f"{found.mark_energy[chain][place]:.1f}", found.texts[chain][place]]
        for chain in range(len(found.texts))
        for place, mark in enumerate(found.marks)
    ]
    return [
        Table(
            "Chains, with the same numbers behind the words at every mark",
            ["chain", "step", "energy", "sentence"],
            rows,
        )
    ]


def _transition_pictures(found: "Transition") -> list[Picture]:
    if found.images is None:
        return []
    steps = ", ".join(map(str, found.marks))
    words = f"{len(found.images)} chains, one a row, with the image of z at steps {steps}"
    return [_picture(found.images.flatten(0, 1), words, len(found.marks))]


def _diagnostics(run: _Run) -> Section:
    """Whether chains have arrived."""
    key, title, size = "diagnostics", "Diagnostics of the chains", run.size
    if not run.has_latent or size.diagnostic_steps == 0:
        why = "They were not asked for." if run.has_latent else "A plain language model has no chain."
        return Section(key, title, remarks=[why])
    from textebm import diagnostics

    data = run.held_out()
    held_out = None if isinstance(data, str) else data
    try:
        posterior = None
        if held_out is not None:
            posterior = diagnostics.posterior_samples(run.model, held_out, run.seed, min(size.chains, len(held_out)))
        found = diagnostics.diagnose(
            run.model,
            held_out,
            steps=size.diagnostic_steps,
            chains=size.chains,
            posteriors=4,
            posterior_chains=4,
            posterior_steps=max(8, size.diagnostic_steps // 4),
            posterior=posterior,
            seed=run.seed,
        )
    except UsageError as error:  # arviz is not installed
        return Section(key, title, remarks=[str(error)])
    remarks = [] if found.posterior_withheld is None else [f"Posterior chains: {found.posterior_withheld}."]
    return Section(
        key,
        title,
        [_mmd_in_words(found.short_and_long)],
        _diagnostic_charts(found),
        [_diagnostic_table(found)],
        remarks=remarks,
        data={"diagnostics": found.as_dict()},
    )


def _mmd_in_words(found: "ShortAndLong") -> str:
    mmd = found.mmd
    return (
        f"Short-run samples against the ends of chains of {found.long_steps:,} steps, {found.samples} of each: squared "
        f"maximum mean discrepancy {mmd.squared:.4f}, p-value {mmd.p_value:.3f} (a small one: they differ)."
    )


def _diagnostic_table(found: "Diagnostics") -> Table:
    columns = [each for each in (found.prior, found.posterior) if each is not None]
    rows = [["chains", *(f"{each.posteriors * each.chains}" for each in columns)]]
    rows += [["steps", *(f"{each.steps}, the first {each.burn_in} left out" for each in columns)]]
    for name, values, digits in (("R-hat", "rhat", ".3f"), ("effective sample size", "ess", ",.0f")):
        for figure in ("potential", "energy", "norm", "coordinates"):
            found_here = [_spread(getattr(each, values)[figure], digits) for each in columns]
            rows.append([f"{name}, {figure}", *found_here])
    for name, values in (("in the short run", "short_run_acceptance"), ("in the long run", "long_run_acceptance")):
        rows.append([f"Metropolis acceptance {name}", *(_or_none(getattr(each, values)) for each in columns)])
    return Table("Worst of the chains", ["", *(each.target for each in columns)], rows)


def _spread(spread: "Spread | None", digits: str) -> str:
    return "does not move" if spread is None else format(spread.worst, digits)


def _or_none(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _diagnostic_charts(found: "Diagnostics") -> list[Chart]:
    beside = found.short_and_long
    kinds = (("short run", beside.short), ("long run", beside.long), ("posterior", beside.posterior))
    bars = [Line(name, beside.edges, [float(n) for n in counts], form="stairs") for name, counts in kinds if counts]
    chains: tuple[ChainDiagnostics | None, ...] = (found.prior, found.posterior)
    accepted = [
        Line(each.target, [float(step + 1) for step in range(len(each.acceptance))], each.acceptance)
        for each in chains
        if each is not None and each.acceptance
    ]
    histogram = Chart("energies", "Energies −f(z) of samples, nats: how many", "energy, nats", bars)
    acceptance = Chart("acceptance", "Metropolis acceptance of the same steps", "Langevin step", accepted)
    return [chart for chart in (histogram, acceptance) if chart.lines]


# ---- scores


def _scores(results: Sequence[dict[str, Any]]) -> Section:
    """Scores with their signatures, and published rows where they may stand beside them."""
    key, title = "scores", "Scores"
    scores = _scores_in(results)
    if not scores:
        how = "textebm report --measure measures them, and --results names a file that has them."
        return Section(key, title, remarks=[f"The run has no scores: {how}"])
    rows = [
        [score["metric"], _in_short(score["score"]), _between(score.get("interval")), score["signature"]]
        for score in scores
    ]
    every = Table("Scores and how they were computed", ["metric", "score", "95 % interval", "signature"], rows)
    beside, remarks = _beside_published(scores)
    said = [w for score in scores for w in (score.get("details") or {}).get("warnings") or ()]
    return Section(
        key, title, tables=[*beside, every], remarks=[*dict.fromkeys([*remarks, *said])], data={"scores": scores}
    )


def _scores_in(results: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return list(_distinct(score for result in results for score in _every_score(result)))


def _every_score(value: object) -> Iterator[dict[str, Any]]:
    """Every object with a metric, a score and a signature."""
    if isinstance(value, list):
        for element in value:
            yield from _every_score(element)
    if isinstance(value, dict):
        if {"metric", "score", "signature"} <= value.keys() and isinstance(value["score"], int | float | None):
            yield value
            return
        for element in value.values():
            yield from _every_score(element)


def _distinct(scores: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Each score once: the files of an experiment repeat those in the run folder."""
    seen = set()
    for score in scores:
        key = (score["metric"], score["score"], score["signature"])
        if key not in seen:
            seen.add(key)
            yield score


def _beside_published(scores: Sequence[dict[str, Any]]) -> tuple[list[Table], list[str]]:
    """FPPL and RPPL in tables of what compares, published rows among them where they do; and what is said of it."""
    items = compare.items_of([*scores], "this model")
    found = compare.compare_items(items, published=True)
    made = []
    for table in found.tables:
        real = {item.metric: item.real for item in table.of() if item.real is not None}
        cells = [cell for metric in compare.METRICS for cell in (tables.perplexity(real.get(metric)), "-")]
        rows = [*([["real text", *cells, "-"]] if real else []), *table.rows()]
        made.append(Table(f"FPPL and RPPL: {table.title}", ["system", *compare.HEADER[1:]], rows))
    return made, found.warnings


def _figures(run: _Run, results: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """The numbers that one looks for first."""
    figures = [(name, _short(run.best[key])) for key, name in OF_VALID.items() if is_finite(run.best.get(key))]
    scores = [score for result in results for score in _every_score(result) if is_finite(score["score"])]
    named = [(OF_SCORES.get(score["metric"], score["metric"]), _short(score["score"])) for score in _distinct(scores)]
    return figures + named


def _short(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def write_data(report: Report, path: Path) -> None:
    """Write everything that a page shows as one JSON object, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    whole_files.write_text(path, to_json(report, indent=2) + "\n")


def to_json(report: Report, indent: int | None = None) -> str:
    """Everything that a page shows as JSON; a figure that is not finite becomes null."""
    return json.dumps(plain_json.finite(report.as_dict()), ensure_ascii=False, allow_nan=False, indent=indent)


def _in_short(value: float | None) -> str:
    """A score of any size: two digits behind the point, and four digits of what is below 1."""
    return tables.perplexity(value) if value is None or abs(value) >= 1 else f"{value:.4g}"


def _between(interval: Sequence[float] | None) -> str:
    """An interval of such scores; a dash for none."""
    return "-" if interval is None else " to ".join(map(_in_short, interval))
