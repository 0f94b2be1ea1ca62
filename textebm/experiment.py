"""Experiments: the cells of a table, each trained and measured by the commands that a user would give.

A cell is a preset, a method and a seed. It is trained, its best checkpoint (by valid) is measured, and everything that
is reported of it goes into one file, RESULTS/EXPERIMENT/CELL.json. Whatever is done already is not done again, so a
cell that was cut or interrupted goes on where it stopped. An experiment is an entry of `EXPERIMENTS`.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from textebm import checkpoint, training, whole_files
from textebm.config import Config, from_dict, load_config, method_names, to_dict
from textebm.data.registry import Corpus
from textebm.errors import ConfigError, UsageError
from textebm.lm_eval.protocols import DEFAULT_PROTOCOL, get_protocol
from textebm.measures import MEASURES, SCORES, Measures, as_json

GO_ON = {"on_divergence": "reject"}
"""Of every cell of a table: one chain in a million that explodes must not end it. Its result counts them."""

CHECKPOINT_EVERY = 500
"""Learning steps between two checkpoints, beside those at the ends of epochs: what a crash costs at most."""

Size = Literal["small", "fast", "full"]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The cells of a table.

    Args:
        name: of the experiment, and of its folders.
        description: one line.
        presets: presets (or configuration files) at each size: `small`, for a CPU; `full`, as published; `fast`, of
            published size, fast chains and a quarter of the updates, which a CPU bears.
        methods: rows: methods laid over each preset (`textebm.config.method_names`); one that is not there yet is left
            out, and said so.
        settings: dotted key -> value, laid over preset and method in every cell.
        max_steps: learning steps at most.
        samples: sentences for FPPL and RPPL, or images; None for as many as the protocol, or `measures`, prescribes.
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
    {"small": ("ptb-small", "snli-small"), "fast": ("ptb-fast",), "full": ("ptb", "snli", "yahoo")},
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
        "lebm-decoupled",
        "lebm-decoupled-tempered-t05",
        "lebm-tempered",
        "lstm-lm",
    ),
    GO_ON,
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

IMAGES = Experiment(
    "images",
    "MSE and a Fréchet distance of images: what the tilt brings over a Gaussian prior and a VAE",
    {"small": ("mnist-small", "cifar10-small"), "full": ("svhn", "cifar10", "celeba64")},
    ("lebm", "sri", "vae", "lebm-long-step", "sri-long-step"),
    GO_ON,
)

EXPERIMENTS = {experiment.name: experiment for experiment in (TABLE2, IMAGES, SMOKE)}


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
        find_corpus: the corpus of text that a run's settings mean.
        results: folder of results.
        runs: folder of runs.
        device: where to compute.
        data_dir: folder with local copies of named corpora.
        protocols: under which samples are measured; the default one is always among them.
        judge_seeds: neural judges trained for each score.
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
    def common(self) -> list[str]:
        """The arguments that every command gets."""
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
            if self.measures(cell).is_complete(result):
                return "done"
        if not (run_dir / "checkpoints" / "last.json").exists():
            return "not begun"
        _require_same(run_dir, checkpoint.read_json(run_dir / "config.json"), cell)
        return "trained" if cell.is_trained(run_dir) else "training"

    def measures(self, cell: Cell) -> Measures:
        """What is measured of a cell."""
        return MEASURES[cell.config.generator.kind](self)

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
        self.scores_dir(cell).mkdir(exist_ok=True)
        for measure in self.measures(cell).steps(cell):
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
        return [*cell.words, *folder, *self.common, "--checkpoint-every", str(CHECKPOINT_EVERY), *limit]

    def scores_dir(self, cell: Cell) -> Path:
        """The folder in a cell's run of what was measured of it."""
        return self.run_dir(cell) / SCORES

    def _write_result(self, cell: Cell) -> None:
        """Everything about a cell in one file; nothing in it names a place on this machine."""
        path = self.result_file(cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        own = {
            "name": cell.name,
            "experiment": cell.experiment.name,
            "preset": cell.preset,
            "method": cell.method,
            "command": f"textebm train {' '.join(cell.words)}",
            "seed": cell.seed,
            "config": to_dict(_anywhere(cell.config)),
        }
        whole_files.write_text(path, as_json({**own, **self.measures(cell).found(cell, path.parent)}))


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
