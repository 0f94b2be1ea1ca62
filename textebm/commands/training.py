"""`textebm train`."""

import dataclasses
import json
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textebm import options
from textebm.commands.terminal import choose_device, describe_use, find_corpus, parse, progress_bar, say
from textebm.config import Config, load_config, preset_names, to_dict
from textebm.errors import CheckpointError

if TYPE_CHECKING:
    from tqdm import tqdm


OWN_CORPUS_PRESET = "ptb-small"
"""What `train --data FILE` starts from: the settings that were tried most, at a size that a CPU bears."""


def preset_of(arguments: Sequence[str]) -> tuple[Config, str]:
    """The settings that a command line starts from, and where they come from.

    `--config` names them; else they are the preset named like `--data`, or the one for a corpus of one's own. Those of
    `--method` are laid over them.
    """
    named = {"--config": "", "--data": "", "--method": ""}
    for index, argument in enumerate(arguments):
        key, _, value = argument.partition("=")
        if key in named:
            named[key] = value or (arguments[index + 1] if index + 1 < len(arguments) else "")
    data, config, method = named["--data"], named["--config"], named["--method"] or None
    over = f" with method {method}" if method else ""
    if config:
        return load_config(config, method), config + over
    name = (data or "demo") if data in (*preset_names(), "") else OWN_CORPUS_PRESET
    return load_config(name, method), f"preset {name}{over}"


def train(arguments: Sequence[str]) -> int:
    """`textebm train`."""
    settings, origin = preset_of(arguments)
    chosen = parse(options.Train, "train", arguments, options.Train(settings=settings))
    if chosen.print_config:
        print(json.dumps(to_dict(chosen.settings), indent=2))
        return 0
    from textebm import training
    from textebm.data.registry import settled

    given = chosen.settings.data
    data = settled(given, chosen.settings.text_field)  # standard input can be read but once, so before all else
    chosen = _with_data(chosen, data)
    run_dir, resume = _run_folder(chosen)
    if resume:  # the run's own settings; options that say otherwise are then refused, but for --data-dir
        own = load_config(str(run_dir / "config.json"))
        chosen = parse(options.Train, "train", arguments, options.Train(settings=own))
        chosen = _with_data(chosen, data) if chosen.settings.data == given else chosen
    config = chosen.settings
    corpus = find_corpus(config.data, config.data_dir, config.text_field)
    device = choose_device(chosen.device)
    say(f"settings: {run_dir / 'config.json' if resume else origin}; run folder: {run_dir}")
    with _interrupts() as interrupted, _TrainingView() as view:
        limits = training.Limits(
            chosen.max_epochs, chosen.max_steps, chosen.max_minutes, chosen.checkpoint_every, lambda: interrupted() > 0
        )
        training.train(config, corpus, run_dir, limits, device, resume, view)
    if interrupted():
        say(f"interrupted; everything is saved. Go on with: textebm train --resume {run_dir}")
        return 130
    say(f"done: {run_dir}. Next: textebm generate -n 10, textebm fppl, textebm rppl, textebm plot")
    return 0


def _with_data(chosen: options.Train, data: str) -> options.Train:
    return dataclasses.replace(chosen, settings=dataclasses.replace(chosen.settings, data=data))


def _run_folder(chosen: options.Train) -> tuple[Path, bool]:
    """The run folder, and whether there is a run in it to go on with."""
    from textebm.data.registry import short_name

    if chosen.resume not in (None, "auto"):
        folder = Path(str(chosen.resume))
        if not (folder / "checkpoints" / "last.json").exists():
            raise CheckpointError(f"--resume {folder}: there is no checkpoint to go on from")
        return folder, True
    if chosen.run_dir is not None:
        folder = Path(chosen.run_dir)
        return folder, chosen.resume == "auto" and (folder / "checkpoints" / "last.json").exists()
    name = short_name(chosen.settings.data)
    if chosen.resume == "auto":
        of_this_data = re.compile(re.escape(name) + r"-\d{8}-\d{6}")
        found = [p for p in Path("runs").glob("*/checkpoints/last.json") if of_this_data.fullmatch(p.parts[-3])]
        if found:
            return max(found, key=lambda p: p.stat().st_mtime).parent.parent, True
    return Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}", False


@contextmanager
def _interrupts() -> Iterator[Callable[[], int]]:
    """Count SIGINT and SIGTERM instead of dying of them; a second one is an ordinary interrupt again."""
    count = 0

    def handle(number: int, frame: object) -> None:
        nonlocal count
        count += 1
        if count > 1:
            raise KeyboardInterrupt
        say("stopping after this step (once more to stop at once, without saving) ...")

    before = {which: signal.signal(which, handle) for which in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: count
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)


class _TrainingView:
    """Shows a run: a progress bar on a terminal, a few lines a validation anywhere."""

    def __init__(self) -> None:
        self.bar: tqdm[Any] | None = None
        self.prepared: tqdm[Any] | None = None
        self.preparing = ""
        self.tokens, self.since = 0, time.monotonic()

    def __enter__(self) -> "_TrainingView":
        return self

    def __exit__(self, *ignored: object) -> None:
        self._close_prepared()
        if self.bar is not None:
            self.bar.close()

    def prepare(self, what: str, sentences: int) -> None:
        if self.prepared is None or self.preparing != what:
            self._close_prepared()
            self.preparing = what
            self.prepared = progress_bar(None, " sentences", what=what)
        self.prepared.update(sentences)

    def _close_prepared(self) -> None:
        if self.prepared is not None:
            self.prepared.close()

    def begin(self, steps: int, done: int) -> None:
        self._close_prepared()
        self.bar = progress_bar(steps, "step", initial=done)

    def step(self, tokens: int) -> None:
        assert self.bar is not None
        self.tokens += tokens
        self.bar.update()

    def record(self, line: dict[str, Any]) -> None:
        if line["kind"] == "train" and self.bar is not None:
            now = time.monotonic()
            speed, self.tokens, self.since = self.tokens / (now - self.since), 0, now
            self.bar.set_postfix_str(f"nll {-line['log_prob']:.1f}, {speed:,.0f} tokens/s")
        elif line["kind"] in ("start", "resume"):
            say(_describe_data(line["data"], f"{line['device']}, products in {line['precision']}"))
            if line["annealing_steps"] >= line["last_step"]:
                say(
                    f"note: this run ends at step {line['last_step']}, before the chain has its full noise (at "
                    f"step {line['annealing_steps']}); --inference.annealing-steps shortens that"
                )
        elif line["kind"] == "valid":
            self.write(_describe_validation(line))
            self.tokens, self.since = 0, time.monotonic()

    def write(self, text: str) -> None:
        if self.bar is not None:
            self.bar.clear()
        say(text)


def _describe_data(data: dict[str, Any], device: str) -> str:
    units = "entries (byte pairs)" if data["tokenizer"] == "bpe" else "entries"
    covered = f", covers {1 - data['train']['unknown_rate']:.2%} of the training words" * (data["tokenizer"] == "word")
    lines = [f"{data['name']}: vocabulary of {data['vocabulary']:,} {units}{covered}; on {device}"]
    for split in ("train", "valid", "test"):
        report = data[split]
        lost = {
            "dropped as too long": report["dropped"],
            "cut as too long": report["cut"],
            "dropped for an unknown word": report["dropped_unknown"],
            "blank lines left out": report["blank_lines"],
        }
        said = "".join(f", {count:,} {what}" for what, count in lost.items() if count)
        lines.append(
            f"  {split}: {report['sentences']:,} sentences, {report['words']:,} words, "
            f"{report['unknown_rate']:.2%} <unk>{said}"
        )
    return "\n".join(lines)


def _describe_validation(line: dict[str, Any]) -> str:
    head = (
        f"epoch {line['epoch']:.2f}, step {line['step']}, {line['seconds'] / 60:.1f} min: valid perplexity "
        f"{_describe_perplexities(line)}{' (best so far)' if line['best'] else ''}"
    )
    return "\n".join([head, *(f"  | {sample}" for sample in line["samples"])])


def _describe_perplexities(line: dict[str, Any]) -> str:
    if "perplexity" in line:  # of a plain language model
        return f"{line['perplexity']:.1f}"
    units = f"; KL {line['kl']:.2f}" if "kl" in line else ""
    units += f"; {describe_use(line)}" if "active_units" in line else ""
    return (
        f"{line['reconstruction_perplexity']:.1f} reconstructing, {line['prior_perplexity']:.1f} under prior samples, "
        f"{line['gaussian_perplexity']:.1f} under Gaussian samples; energy {line['posterior_energy']:.2f} posterior, "
        f"{line['prior_energy']:.2f} prior{units}"
    )
