"""Experiments: the cells of a table, each trained and measured by the commands that a user would give.

A cell is a preset, a method and a seed. It is trained, its best checkpoint (by valid) is measured, and everything that
is reported of it goes into one file, RESULTS/EXPERIMENT/CELL.json. Whatever is done already is not done again, so a
cell that was cut or interrupted goes on where it stopped. An experiment is an entry of `EXPERIMENTS`.
"""

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from textebm import checkpoint, evaluation, generation, hardware, plots, training
from textebm.config import Config, from_dict, load_config, method_names, to_dict
from textebm.data.registry import Corpus
from textebm.errors import CheckpointError, ConfigError, UsageError
from textebm.lm_eval.kept import grouped, keep_scores, kept_scores
from textebm.lm_eval.protocols import DEFAULT_PROTOCOL, get_protocol
from textebm.materials.text import batches_an_epoch, load_splits

SAMPLES = 20
"""Generated sentences that a result quotes."""
LEARNING_CURVE_LINES = 10
HELD_OUT_SENTENCES = 2000
"""At most so many sentences of valid and of test are scored, spread evenly, the same ones for every method."""
LIKELIHOOD_SENTENCES = 200
"""Of valid, whose marginal likelihood is estimated, spread evenly: 500 samples of z each cost as much as an epoch."""
ACTIVE_UNIT_SENTENCES = 200
CHECKPOINT_EVERY = 500
"""Learning steps between two checkpoints, beside those at the ends of epochs: what a crash costs at most."""

Size = Literal["small", "full"]
Metric = Literal["fppl", "rppl"]
METRICS: tuple[Metric, ...] = ("fppl", "rppl")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The cells of a table.

    Args:
        name: of the experiment, and of its folders.
        description: one line.
        presets: presets (or configuration files) at each size: `small`, for a CPU; `full`, as published.
        methods: rows: methods laid over each preset (`textebm.config.method_names`); one that is not there yet is left
            out, and said so.
        settings: dotted key -> value, laid over preset and method in every cell.
        max_steps: learning steps at most.
        samples: sentences for FPPL and RPPL; None for as many as the protocol prescribes.
    """

    name: str
    description: str
    presets: Mapping[Size, tuple[str, ...]]
    methods: tuple[str, ...]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    max_steps: int | None = None
    samples: int | None = None


TABLE2 = Experiment(
    "table2",
    "FPPL, RPPL and NLL of text: the paper's Table 2, with its baselines and its successors",
    {"small": ("ptb-small", "snli-small"), "full": ("ptb", "snli", "yahoo")},
    (
        "lebm",
        "sri",
        "vae",
        "vae-cyclical",
        "fb-vae",
        "lagging-vae",
        "lebm-amortised",
        "lebm-amortised-langevin",
        "abp",
        "lebm-persistent",
        "lebm-tempered-t05",
        "sri-tempered-t05",
        "lebm-tempered",
        "lstm-lm",
    ),
)

SMOKE = Experiment(
    "smoke",
    "a few steps on the demo corpus: whether everything works, nothing about how well",
    {"small": ("demo",)},
    ("lebm", "sri"),
    {
        "vocab_size": 500,
        "generator.embedding_dim": 8,
        "generator.hidden_dim": 16,
        "prior.steps": 5,
        "inference.steps": 3,
        "evaluation.sentences": 20,
        "evaluation.active_unit_sentences": 4,
    },
    max_steps=4,
    samples=300,
)

EXPERIMENTS = {experiment.name: experiment for experiment in (TABLE2, SMOKE)}


def get_experiment(name: str) -> Experiment:
    """The experiment of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in EXPERIMENTS:
        raise UsageError(f"there is no experiment {name!r}; experiments: {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]


# ---------------------------------------------------------------------------------------------------------------- cells


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of an experiment.

    Args:
        experiment: what it belongs to.
        preset: where its settings start.
        method: what is laid over them.
        seed: of the run.
        settings: dotted key -> value, laid over both.
    """

    experiment: Experiment
    preset: str
    method: str
    seed: int
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """As in the names of its files."""
        return f"{Path(self.preset).stem}-{self.method}-seed{self.seed}"

    @property
    def config(self) -> Config:
        """The settings of the run."""
        base = load_config(self.preset, self.method)
        return from_dict({**_nested(self.settings), "seed": self.seed}, base=base)

    @property
    def words(self) -> list[str]:
        """The arguments of `textebm train` that decide the outcome."""
        words = ["--config", self.preset, "--method", self.method, "--seed", str(self.seed)]
        for key, value in self.settings.items():
            words += [f"--{key.replace('_', '-')}", *map(str, value if isinstance(value, list | tuple) else [value])]
        steps = self.experiment.max_steps
        return words + ([] if steps is None else ["--max-steps", str(steps)])

    def is_trained(self, run_dir: Path) -> bool:
        """Whether the run in this folder has reached its end."""
        last = checkpoint.pointed_at(run_dir, "last") if run_dir.is_dir() else None
        if last is None:
            return False
        config, progress = checkpoint.read_run(last)
        steps = self.experiment.max_steps
        return progress.epoch >= config.epochs or (steps is not None and progress.step >= steps)


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as mappings within mappings."""
    nested: dict[str, Any] = {}
    for key, value in settings.items():
        *above, last = key.split(".")
        place = nested
        for part in above:
            place = place.setdefault(part, {})
        place[last] = value
    return nested


def parse_settings(given: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE words as dotted key -> value, the value read as YAML.

    Raises:
        UsageError: a word is not of that form.
    """
    import yaml

    settings = {}
    for word in given:
        key, equals, value = word.partition("=")
        try:
            settings[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            equals = ""
        if not key or not equals:
            raise UsageError(f"--set {word}: KEY=VALUE is wanted, such as precision=fp32 or inference.steps=20")
    return settings


@dataclasses.dataclass(frozen=True)
class Plan:
    """What an experiment comes to.

    Args:
        cells: in the order in which they are worked on: one seed of every row before the next seed, so that a table
            that is not finished is even.
        missing: methods of the experiment that this version does not have.
    """

    cells: tuple[Cell, ...]
    missing: tuple[str, ...]


def plan(
    experiment: Experiment,
    *,
    size: Size = "small",
    only: Sequence[str] = (),
    methods: Sequence[str] = (),
    seeds: int = 3,
    settings: Mapping[str, Any] | None = None,
) -> Plan:
    """The cells of an experiment.

    Args:
        experiment: the experiment.
        size: of its presets.
        only: presets, or corpora, to which it is limited.
        methods: methods to which it is limited.
        seeds: runs of each row, with seeds 0, 1, ...
        settings: dotted key -> value, laid over every cell.

    Raises:
        UsageError: nothing is left, or a method that was asked for is not there.
        ConfigError: a setting is unknown or wrong.
    """
    if seeds < 1:
        raise UsageError(f"seeds is {seeds}: it must be at least 1")
    offered = experiment.presets.get(size, ())
    presets = [name for name in offered if not only or {name, load_config(name).data} & set(only)]
    unknown = [word for word in only if not any(word in (name, load_config(name).data) for name in offered)]
    if unknown or not presets:
        raise UsageError(
            f"{experiment.name} at size {size} has no preset or corpus {', '.join(unknown) or '(none at this size)'}; "
            f"presets: {', '.join(offered) or 'none'}"
        )
    known = method_names()
    if absent := [name for name in methods if name not in known]:
        raise UsageError(f"no method {', '.join(absent)}; methods: {', '.join(known)}")
    chosen = [name for name in methods or experiment.methods if name in known]
    overlaid = {**experiment.settings, **(settings or {})}
    cells = [
        Cell(experiment, preset, method, seed, overlaid)
        for seed in range(seeds)
        for preset in presets
        for method in chosen
    ]
    for cell in cells:
        _ = cell.config  # a wrong setting is told before anything is trained
    missing = () if methods else tuple(name for name in experiment.methods if name not in known)
    return Plan(tuple(cells), missing)


# -------------------------------------------------------------------------------------------------------------- sitting

Outcome = Literal["done", "cut", "interrupted", "busy"]
"""Of work on a cell. cut: the sitting's time is over; busy: another process works on it."""

State = Literal["done", "trained", "training", "not begun"]


@dataclasses.dataclass(frozen=True)
class Sitting:
    """One call of an experiment: where its files are, how it measures, and how long it may take.

    Args:
        run: runs a command of textebm, given its name and its arguments, and returns the exit code.
        results: folder of results.
        runs: folder of runs.
        device: where to compute.
        data_dir: folder with local copies of named corpora.
        protocols: under which samples are measured; the default one is always among them.
        judge_seeds: neural judges trained for each score.
        likelihood: whether there is a command `likelihood` to be run.
        find_corpus: the corpus that a run's settings mean.
        deadline: reading of `time.monotonic` at which work ends; None for no limit.
    """

    run: Callable[[str, Sequence[str]], int]
    find_corpus: Callable[[Config], Corpus]
    results: Path = Path("results")
    runs: Path = Path("runs")
    device: str = "cpu"
    data_dir: str | None = None
    protocols: tuple[str, ...] = (DEFAULT_PROTOCOL,)
    judge_seeds: int = 1
    likelihood: bool = False
    deadline: float | None = None

    def __post_init__(self) -> None:
        if self.judge_seeds < 1:
            raise UsageError(f"judge_seeds is {self.judge_seeds}: it must be at least 1")
        for name in self.protocols:
            if get_protocol(name).judge == "causal":
                raise UsageError(f"the protocol {name} trains no judge, so there is no RPPL under it")
        others = [name for name in dict.fromkeys(self.protocols) if name != DEFAULT_PROTOCOL]
        object.__setattr__(self, "protocols", (DEFAULT_PROTOCOL, *others))

    def run_dir(self, cell: Cell) -> Path:
        """The run folder of a cell."""
        return self.runs / cell.experiment.name / cell.name

    def result_file(self, cell: Cell) -> Path:
        """The file of a cell's result."""
        return self.results / cell.experiment.name / f"{cell.name}.json"

    def minutes_left(self) -> float | None:
        """Until the deadline; None where there is none."""
        return None if self.deadline is None else (self.deadline - time.monotonic()) / 60

    def is_over(self) -> bool:
        """Whether the deadline has passed."""
        left = self.minutes_left()
        return left is not None and left <= 0

    def repeats(self, protocol: str) -> int:
        """Judges of a protocol: several only where their seeds change something."""
        return self.judge_seeds if get_protocol(protocol).judge == "lstm" else 1

    @property
    def _common(self) -> list[str]:
        return ["--device", self.device, *(["--data-dir", self.data_dir] if self.data_dir else [])]

    # ---- how far a cell is

    def state(self, cell: Cell) -> State:
        """How far a cell is.

        Raises:
            UsageError: its result, or its run, is one of other settings.
        """
        path, run_dir = self.result_file(cell), self.run_dir(cell)
        if path.exists():
            result = checkpoint.read_json(path)
            _require_same(path, result.get("config"), cell)
            if all(self._is_measured(_scores_of(result, protocol), protocol) for protocol in self.protocols):
                return "done"
        if not (run_dir / "checkpoints" / "last.json").exists():
            return "not begun"
        _require_same(run_dir, checkpoint.read_json(run_dir / "config.json"), cell)
        return "trained" if cell.is_trained(run_dir) else "training"

    def _is_measured(self, scores: Mapping[str, Any], protocol: str) -> bool:
        return all(
            metric in scores and scores[metric]["details"]["repeats"]["runs"] >= self.repeats(protocol)
            for metric in METRICS
        )

    # ---- work on a cell

    def work_on(self, cell: Cell) -> Outcome:
        """Train and measure a cell as far as time allows, and write its result when all is there.

        Raises:
            TextebmError: training diverged, or something cannot be read, written or measured.
        """
        with _claimed(self.run_dir(cell)) as free:
            return self._work_on(cell) if free else "busy"

    def _work_on(self, cell: Cell) -> Outcome:
        state = self.state(cell)
        if state == "done":
            return "done"
        if self.is_over():
            return "cut"
        if state != "trained":
            if self.run("train", self._training_words(cell)) != 0:
                return "interrupted"
            if not cell.is_trained(self.run_dir(cell)):
                return "cut"
        for measure in self._measurements(cell):
            if self.is_over():
                return "cut"
            if measure() != 0:
                return "interrupted"
        self._write_result(cell)
        return "done"

    def _training_words(self, cell: Cell) -> list[str]:
        folder = ["--run-dir", str(self.run_dir(cell)), "--resume", "auto"]
        left = self.minutes_left()
        limit = [] if left is None else ["--max-minutes", f"{left:.4f}"]
        return [*cell.words, *folder, *self._common, "--checkpoint-every", str(CHECKPOINT_EVERY), *limit]

    def _measurements(self, cell: Cell) -> Iterator[Callable[[], int]]:
        """What is still to be measured, each a call that returns an exit code."""
        folder = self._scores_dir(cell)
        folder.mkdir(exist_ok=True)
        if not (folder / FIGURES).exists():
            yield functools.partial(self._measure_figures, cell)
        model = ["--model", str(self.run_dir(cell)), *self._common]
        if self.likelihood and not (folder / LIKELIHOOD).exists():
            few = ["-n", str(LIKELIHOOD_SENTENCES), "--output", str(folder / LIKELIHOOD)]
            yield functools.partial(self.run, "likelihood", [*model, *few])
        for protocol in self.protocols:
            if not self._is_measured(self._read_scores(cell, protocol), protocol):
                for metric in METRICS:
                    yield functools.partial(self._measure_score, cell, protocol, metric, model)

    def _measure_score(self, cell: Cell, protocol: str, metric: Metric, model: Sequence[str]) -> int:
        """FPPL or RPPL of samples that are drawn with seed 0, as the judges' seeds are 0, 1, ... in every cell."""
        wanted = cell.experiment.samples
        number = [] if wanted is None else ["-n", str(wanted)]
        repeats = self.repeats(protocol)
        seeds = ["--repeats", str(repeats)] if repeats > 1 else []
        scores, sentences = (self._scores_dir(cell) / f"{protocol}-{metric}.{ending}" for ending in ("json", "npz"))
        files = ["--sentence-scores", str(sentences), "--output", str(scores)]
        return self.run(metric, [*model, "--protocol", protocol, *number, *seeds, *files])

    def _measure_figures(self, cell: Cell) -> int:
        config = cell.config
        found = figures(self.run_dir(cell), self.find_corpus(config), self.device)
        checkpoint.write_text(self._scores_dir(cell) / FIGURES, _as_json(found))
        return 0

    def _scores_dir(self, cell: Cell) -> Path:
        return self.run_dir(cell) / SCORES

    def _read_scores(self, cell: Cell, protocol: str) -> dict[str, Any]:
        paths = {metric: self._scores_dir(cell) / f"{protocol}-{metric}.json" for metric in METRICS}
        kept = [metric for metric, path in paths.items() if path.exists() and path.with_suffix(".npz").exists()]
        return {metric: checkpoint.read_json(paths[metric]) for metric in kept}

    def _write_result(self, cell: Cell) -> None:
        """Everything about a cell in one file; nothing in it names a place on this machine."""
        place = f"{SCORES}/{cell.name}"
        own = {
            "name": cell.name,
            "experiment": cell.experiment.name,
            "preset": cell.preset,
            "method": cell.method,
            "command": f"textebm train {' '.join(cell.words)}",
            "seed": cell.seed,
            "config": to_dict(_anywhere(cell.config)),
            "sentence_scores": place,
        }
        found = checkpoint.read_json(self._scores_dir(cell) / FIGURES)
        likelihood = self._scores_dir(cell) / LIKELIHOOD
        if likelihood.exists():
            found["likelihood"] = checkpoint.read_json(likelihood)
        by_protocol = {protocol: self._read_scores(cell, protocol) for protocol in self._kept_protocols(cell)}
        scores = by_protocol.pop(DEFAULT_PROTOCOL)
        judges = {"judges": by_protocol} if by_protocol else {}
        path = self.result_file(cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._write_sentence_scores(cell, path.parent / place)
        checkpoint.write_text(path, _as_json({**own, **found, **scores, **judges}))

    def _write_sentence_scores(self, cell: Cell, folder: Path) -> None:
        """What intervals of differences need beside the result, small enough to keep where the run is not kept."""
        folder.mkdir(parents=True, exist_ok=True)
        for protocol in self._kept_protocols(cell):
            for metric in METRICS:
                name = f"{protocol}-{metric}.npz"
                kept = kept_scores(self._scores_dir(cell) / name)
                keep_scores(folder / name, kept.signature, grouped(kept.runs))

    def _kept_protocols(self, cell: Cell) -> list[str]:
        """Those that were measured, in this sitting or an earlier one."""
        names = {path.stem.removesuffix("-fppl") for path in self._scores_dir(cell).glob("*-fppl.json")}
        return [name for name in dict.fromkeys((*self.protocols, *sorted(names))) if self._read_scores(cell, name)]


SCORES, FIGURES, LIKELIHOOD = "scores", "figures.json", "likelihood.json"
"""In a run folder: what was measured of its best checkpoint, and the scores of each sentence behind it. A folder of
results has SCORES too, for sums over groups of sentences."""


def _scores_of(result: Mapping[str, Any], protocol: str) -> dict[str, Any]:
    """FPPL and RPPL under a protocol in a result."""
    of_protocol = result if protocol == DEFAULT_PROTOCOL else result.get("judges", {}).get(protocol, {})
    return {metric: of_protocol[metric] for metric in METRICS if metric in of_protocol}


@contextmanager
def _claimed(run_dir: Path) -> Iterator[bool]:
    """Whether no other process works on this run; none can begin to meanwhile."""
    from filelock import FileLock, Timeout

    try:
        run_dir.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"the folder of runs {run_dir.parent} cannot be made: {error.strerror}") from None
    lock = FileLock(run_dir.with_name(f".{run_dir.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _require_same(where: Path, written: object, cell: Cell) -> None:
    """Check that what is there was made with the settings of the cell.

    Raises:
        UsageError: it was not.
    """
    try:
        before: Config = from_dict(written)  # type: ignore[arg-type]
    except ConfigError as error:
        raise UsageError(f"{where} holds settings that this version cannot read: {error}") from None
    changed = training.differences(to_dict(before), to_dict(cell.config))
    if changed:
        raise UsageError(
            f"{where} was made with other settings than {cell.name} has now: {', '.join(changed)}. Move it away, name "
            "another --results or --runs, or give --set as before"
        )


def _anywhere(config: Config) -> Config:
    """The settings without the place of the data."""
    return dataclasses.replace(config, data_dir=None)


def _as_json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


# -------------------------------------------------------------------------------------------------------------- figures


def figures(run_dir: Path, corpus: Corpus, device: torch.device | str) -> dict[str, Any]:
    """What is reported of a run beside FPPL and RPPL: how it was made, held-out figures, its learning curve, samples.

    Args:
        run_dir: a run folder; its best checkpoint is measured.
        corpus: the corpus of the run.
        device: where to compute.

    Returns:
        In JSON types. `valid` and `test` are measured on `HELD_OUT_SENTENCES` sentences at most, with the chains of
        training.

    Raises:
        CheckpointError: the folder holds no run.
    """
    folder, _ = checkpoint.find_model(str(run_dir))
    config, progress = checkpoint.read_run(folder)
    last = checkpoint.pointed_at(run_dir, "last")
    if last is None:
        raise CheckpointError(f"{run_dir} holds no run")
    trained = checkpoint.read_run(last)[1]
    model, tokenizer = generation.load(folder, device)
    splits = load_splits(corpus, config, tokenizer)
    log = plots.read_log(run_dir)
    sittings = [line for line in log if line["kind"] in ("start", "resume")]
    curve = [line for line in log if line["kind"] == "valid"]
    epochs = progress.epoch + progress.batch / batches_an_epoch(config, splits.train)
    held_out: dict[str, dict[str, Any]] = {
        split: evaluation.validate(model, text, config.seed, HELD_OUT_SENTENCES).to_dict()
        for split, text in (("valid", splits.valid), ("test", splits.test))
    }
    if config.evaluation.active_unit_sentences and config.prior.dimensions:
        units = evaluation.active_units(model, splits.valid, config.seed, ACTIVE_UNIT_SENTENCES)
        held_out["valid"] |= dict(zip(("active_units", "active_unit_variances"), units, strict=True))
    return {
        "commit": sittings[0].get("commit"),
        "commits": list(dict.fromkeys(line.get("commit") for line in sittings)),
        "hardware": sittings[0].get("hardware"),
        "versions": hardware.versions(),
        "steps": progress.step,
        "epochs": epochs,
        "steps_trained": trained.step,
        "minutes": round(trained.seconds / 60, 1),
        "sittings": len(sittings),
        "learning_curve": curve[-LEARNING_CURVE_LINES:],
        **{split: training.finite(values) for split, values in held_out.items()},
        "unigram_perplexity": evaluation.unigram_perplexity(splits.train, splits.valid, tokenizer.get_vocab_size()),
        "samples": [dataclasses.asdict(s) for s in generation.generate(model, tokenizer, SAMPLES, config.seed)],
    }
