"""`textebm experiment`."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from textebm import options
from textebm.commands.terminal import choose_device, find_corpus, parse, say
from textebm.errors import DivergenceError, UsageError

if TYPE_CHECKING:
    from textebm import experiment as experiments


def experiment(arguments: Sequence[str]) -> int:
    """`textebm experiment`."""
    chosen = parse(options.Experiment, "experiment", arguments)
    from textebm import experiment as experiments
    from textebm import hardware

    if chosen.max_minutes is not None and not chosen.max_minutes > 0:
        raise UsageError(f"--max-minutes is {chosen.max_minutes}: it must be positive")
    if chosen.list:
        named = [chosen.name] if chosen.name is not None else list(experiments.EXPERIMENTS)
        sitting = _sitting(chosen, "cpu")
        for name in named:
            _list(experiments.get_experiment(name), chosen, sitting)
        return 0
    if chosen.name is None:
        raise UsageError(f"which experiment? {', '.join(experiments.EXPERIMENTS)}; --list shows their cells")
    found = experiments.get_experiment(chosen.name)
    plan = _plan(found, chosen)
    for method in plan.missing:
        say(f"note: the method {method} is not available in this version, and is left out")
    sitting = _sitting(chosen, str(choose_device(chosen.device)))
    if (hardware.commit() or "").endswith("-dirty"):
        say("warning: this checkout has changes on top of its commit, so a result cannot say exactly what made it")
    if (done := sum(sitting.state(cell) == "done" for cell in plan.cells)) < len(plan.cells):
        return _work(plan.cells, sitting)
    say(f"all {done} cells are done: {sitting.results / found.name}")
    return 0


def _plan(found: "experiments.Experiment", chosen: options.Experiment) -> "experiments.Plan":
    from textebm import experiment as experiments

    return experiments.plan(
        found,
        size=chosen.size,
        only=chosen.only,
        methods=chosen.methods,
        seeds=chosen.seeds,
        settings=experiments.parse_settings(chosen.set),
    )


def _sitting(chosen: options.Experiment, device: str) -> "experiments.Sitting":
    from textebm import cli
    from textebm import experiment as experiments

    return experiments.Sitting(
        run=lambda name, words: cli.command(name)(words),
        find_corpus=lambda config: find_corpus(config.data, chosen.data_dir, config.text_field),
        results=Path(chosen.results),
        runs=Path(chosen.runs),
        device=device,
        data_dir=chosen.data_dir,
        protocols=chosen.protocols,
        judge_seeds=chosen.judge_seeds,
        deadline=None if chosen.max_minutes is None else time.monotonic() + 60 * chosen.max_minutes,
    )


def _work(cells: "Sequence[experiments.Cell]", sitting: "experiments.Sitting") -> int:
    """Work on every cell; says how each ended."""
    left, code = 0, 0
    for number, cell in enumerate(cells, start=1):
        head = f"[{number}/{len(cells)}] {cell.experiment.name} {cell.name}"
        if sitting.state(cell) == "done":
            say(f"{head}: done before")
            continue
        if sitting.is_over():
            left += 1
            continue
        say(f"{head}: {sitting.state(cell)}")
        try:
            outcome = sitting.work_on(cell)
        except DivergenceError as error:  # a finding about this cell; the others are none the worse for it
            say(f"{head}: {error}")
            left, code = left + 1, error.exit_code
            continue
        if outcome == "interrupted":
            say(f"interrupted; the same command goes on with {cell.name}")
            return 130
        if outcome == "done":
            print(sitting.result_file(cell), flush=True)
            continue
        left += 1
        say(f"{head}: " + ("another process works on it" if outcome == "busy" else "cut; the same command goes on"))
    say("all cells are done" if not left else f"{left} of {len(cells)} cells are not done: give the command again")
    return code


def _list(found: "experiments.Experiment", chosen: options.Experiment, sitting: "experiments.Sitting") -> None:
    """The cells of an experiment, and how far each is."""
    sizes = [size for size in (chosen.size, *found.presets) if size in found.presets]
    plan = _plan(found, dataclasses.replace(chosen, size=sizes[0]))
    print(f"{found.name}: {found.description}")
    for cell in plan.cells:
        try:
            state: str = sitting.state(cell)
        except UsageError as error:
            state = str(error)
        print(f"  {cell.name}: {state}")
    for method in plan.missing:
        print(f"  {method}: not available")
