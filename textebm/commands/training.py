"""`textebm train`."""

import dataclasses
import json
import re
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from textebm import options, processes
from textebm.commands.terminal import choose_device, describe_use, parse, progress_bar, say
from textebm.config import Config, load_config, preset_names, to_dict
from textebm.errors import CheckpointError

if TYPE_CHECKING:
    from tqdm import tqdm

    from textebm.materials import Corpus

OWN_CORPUS_PRESET = "ptb-small"
"""What `train --data FILE` starts from: the settings that were tried most, at a size that a CPU bears."""
OWN_IMAGES_PRESET = "cifar10-small"
"""What `train --data FOLDER-OF-IMAGES` starts from: colour images of 32 by 32 pixels, at a size that a CPU bears."""


def preset_of(arguments: Sequence[str]) -> tuple[Config, str]:
    """The settings that a command line starts from, and where they come from.

    `--config` names them; else they are the preset named like `--data`, or the one for text or images of one's own.
    Those of `--method` are laid over them.
    """
    named = given(arguments, "--config", "--data", "--method")
    data, config, method = named.get("--data", ""), named.get("--config"), named.get("--method") or None
    over = f" with method {method}" if method else ""
    if config:
        return load_config(config, method), config + over
    name = (data or "demo") if data in (*preset_names(), "") else _preset_for(data)
    return load_config(name, method), f"preset {name}{over}"


def given(arguments: Sequence[str], *options: str) -> dict[str, str]:
    """What stands behind each of these options on a command line that has not been parsed yet; the last one counts."""
    found = {}
    for index, argument in enumerate(arguments):
        key, _, value = argument.partition("=")
        if key in options:
            found[key] = value or (arguments[index + 1] if index + 1 < len(arguments) else "")
    return found


def _preset_for(data: str) -> str:
    """The preset for data of one's own: for images if it is images, else for text."""
    from textebm.data.images import is_image_data

    return OWN_IMAGES_PRESET if is_image_data(data) else OWN_CORPUS_PRESET


def train(arguments: Sequence[str]) -> int:
    """`textebm train`."""
    settings, origin = preset_of(arguments)
    chosen = parse(options.Train, "train", arguments, options.Train(settings=settings))
    if chosen.print_config:
        print(json.dumps(to_dict(chosen.settings), indent=2))
        return 0
    from textebm import tracking, training
    from textebm.data.registry import settled
    from textebm.idle_settings import idle_settings

    world = processes.world()
    tracking.require(chosen.track)
    given, field = chosen.settings.data, chosen.settings.text_field
    data = world.told(lambda: settled(given, field))  # standard input can be read but once, so before all else
    chosen = _with_data(chosen, data)
    named, resume = world.told(lambda: _run_folder(chosen))
    run_dir = Path(named)
    if resume:  # the run's own settings; options that say otherwise are then refused, but for --data-dir
        own = load_config(str(run_dir / "config.json"))
        chosen = parse(options.Train, "train", arguments, options.Train(settings=own))
        chosen = _with_data(chosen, data) if chosen.settings.data == given else chosen
    config = chosen.settings
    corpus = world.first_then_all(lambda: _corpus(config))
    device = choose_device(chosen.device)
    say(f"settings: {run_dir / 'config.json' if resume else origin}; run folder: {run_dir}")
    if not resume:
        for name, why in idle_settings(config, dataclasses.replace(settings, data=config.data)).items():
            say(f"warning: --{name.replace('_', '-')} does nothing here: {why}")
    view = VIEWS[config.generator.kind]()
    track = chosen.track if world.first else ()
    with interrupts() as interrupted, view, tracking.Tracking(view, track, run_dir, config, say) as watched:
        limits = training.Limits(
            chosen.max_epochs, chosen.max_steps, chosen.max_minutes, chosen.checkpoint_every, lambda: interrupted() > 0
        )
        training.train(config, corpus, run_dir, limits, device, resume, watched, world)
    if world.any(interrupted() > 0):
        say(f"interrupted; everything is saved. Go on with: textebm train --resume {run_dir}")
        world.wait()  # a launcher ends all processes as soon as one has ended so
        return processes.INTERRUPTED
    say(f"done: {run_dir}. Next: {view.next_commands}")
    return 0


def _corpus(config: Config) -> "Corpus":
    """What the settings name; says when it has to be downloaded, and what is odd about it."""
    from textebm.materials import material_of

    kind = material_of(config)
    if (download := kind.download(config)) is not None:
        say(f"downloading {download}")
    corpus = kind.resolve(config)
    for warning in corpus.warnings():
        say(f"warning: {warning}")
    return corpus


def _with_data(chosen: options.Train, data: str) -> options.Train:
    return dataclasses.replace(chosen, settings=dataclasses.replace(chosen.settings, data=data))


def _run_folder(chosen: options.Train) -> tuple[str, bool]:
    """The run folder, and whether there is a run in it to go on with."""
    from textebm import checkpoint
    from textebm.data.registry import short_name

    if chosen.resume not in (None, "auto"):
        folder = Path(str(chosen.resume))
        if not checkpoint.holds_run(folder):
            raise CheckpointError(f"--resume {folder}: there is no checkpoint to go on from")
        return str(folder), True
    if chosen.run_dir is not None:
        folder = Path(chosen.run_dir)
        return chosen.run_dir, chosen.resume == "auto" and checkpoint.holds_run(folder)
    name = short_name(chosen.settings.data)
    if chosen.resume == "auto":
        of_this_data = re.compile(re.escape(name) + r"-\d{8}-\d{6}")
        found = [p for p in Path("runs").glob("*/checkpoints/last.json") if of_this_data.fullmatch(p.parts[-3])]
        if found:
            return str(max(found, key=lambda p: p.stat().st_mtime).parent.parent), True
    return str(Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"), False


@contextmanager
def interrupts() -> Iterator[Callable[[], int]]:
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


class _TrainingView(ABC):
    """Shows a run: a progress bar on a terminal, a few lines a validation anywhere."""

    unit: ClassVar[str]
    """What speed is counted in."""
    sample: ClassVar[str]
    """What data are prepared one by one."""
    next_commands: ClassVar[str]
    """What may be done when the run has ended."""

    @abstractmethod
    def describe_data(self, data: dict[str, Any], device: str) -> str:
        """What it is trained on, for people."""

    @abstractmethod
    def describe_validation(self, line: dict[str, Any]) -> str:
        """A validation, for people: what its figures say."""

    @abstractmethod
    def describe_samples(self, samples: list[str]) -> list[str]:
        """Lines that show what was drawn."""

    def __init__(self) -> None:
        self.bar: tqdm[Any] | None = None
        self.prepared: tqdm[Any] | None = None
        self.preparing = ""
        self.told = False  # that chains explode
        self.units, self.since = 0, time.monotonic()

    def __enter__(self) -> "_TrainingView":
        return self

    def __exit__(self, *ignored: object) -> None:
        self._close_prepared()
        if self.bar is not None:
            self.bar.close()

    def prepare(self, what: str, samples: int) -> None:
        if self.prepared is None or self.preparing != what:
            self._close_prepared()
            self.preparing = what
            self.prepared = progress_bar(None, f" {self.sample}s", what=what)
        self.prepared.update(samples)

    def _close_prepared(self) -> None:
        if self.prepared is not None:
            self.prepared.close()

    def begin(self, steps: int, done: int) -> None:
        self._close_prepared()
        self.bar = progress_bar(steps, "step", initial=done)

    def step(self, units: int) -> None:
        assert self.bar is not None
        self.units += units
        self.bar.update()

    def record(self, line: dict[str, Any]) -> None:
        if line["kind"] == "train" and line["exploded_chains"] and not self.told:
            self.told = True
            self.write(
                f"warning: chains explode, {line['exploded_chains']:.3g} a step before step {line['step']}; the log "
                "counts them (exploded_chains)"
            )
        if line["kind"] == "train" and self.bar is not None:
            now = time.monotonic()
            speed, self.units, self.since = self.units / (now - self.since), 0, now
            self.bar.set_postfix_str(f"nll {-line['log_prob']:.1f}, {speed:,.0f} {self.unit}/s")
        elif line["kind"] in ("start", "resume"):
            for damage in line.get("damage", ()):
                say(f"warning: {damage}; going on from step {line['step']}, the newest checkpoint that is whole")
            sampled = line["sampled_softmax"]
            how = f"{line['device']}, products in {line['precision']}"
            how += f", training chains over {sampled} sampled words" if sampled else ""
            say(self.describe_data(line["data"], how))
            if line["annealing_steps"] >= line["last_step"]:
                say(
                    f"note: this run ends at step {line['last_step']}, before the chain has its full noise (at "
                    f"step {line['annealing_steps']}); --inference.annealing-steps shortens that"
                )
        elif line["kind"] == "valid":
            self.write(self._validation(line))
            self.units, self.since = 0, time.monotonic()

    def write(self, text: str) -> None:
        if self.bar is not None:
            self.bar.clear()
        say(text)

    def _validation(self, line: dict[str, Any]) -> str:
        head = (
            f"epoch {line['epoch']:.2f}, step {line['step']}, {line['seconds'] / 60:.1f} min: valid "
            f"{self.describe_validation(line)}"
        )
        return "\n".join([head, *self.describe_samples(line["samples"])])


class _TextView(_TrainingView):
    unit, sample = "tokens", "sentence"
    next_commands = "textebm generate -n 10, textebm fppl, textebm rppl, textebm plot"

    def describe_data(self, data: dict[str, Any], device: str) -> str:
        return _describe_text(data, device)

    def describe_validation(self, line: dict[str, Any]) -> str:
        return f"perplexity {_describe_perplexities(line)}{' (best so far)' if line['best'] else ''}"

    def describe_samples(self, samples: list[str]) -> list[str]:
        return [f"  | {sample}" for sample in samples]


class _ImageView(_TrainingView):
    unit, sample = "images", "image"
    next_commands = "textebm generate, textebm reconstruct, textebm interpolate, textebm plot"

    def describe_data(self, data: dict[str, Any], device: str) -> str:
        return _describe_images(data, device)

    def describe_validation(self, line: dict[str, Any]) -> str:
        return f"MSE {_describe_errors(line)}{' (best so far)' if line['best'] else ''}"

    def describe_samples(self, samples: list[str]) -> list[str]:
        return [f"  samples: {sample}" for sample in samples]


VIEWS: dict[str, type[_TrainingView]] = {"recurrent": _TextView, "convolutional": _ImageView}
"""Kind of generator -> how its training is shown."""


def _describe_images(data: dict[str, Any], device: str) -> str:
    from textebm.data.image_cache import remarks

    shape = data["shape"]
    size = f"{shape['width']}×{shape['height']} pixels, {'grey' if shape['channels'] == 1 else 'colour'}"
    lines = [f"{data['name']}: images of {size}; on {device}"]
    for split in ("train", "valid", "test"):
        report = data[split]
        parts = [f"{report['count']:,} images", *remarks(report["labels"], report["converted"], report["left_out"])]
        lines.append(f"  {split}: {', '.join(parts)}")
        lines += [f"    {problem}" for problem in report["problems"]]
    return "\n".join(lines)


def _describe_errors(line: dict[str, Any]) -> str:
    units = f"; KL {line['kl']:.2f}" if "kl" in line and "density" not in line else ""
    units += f"; {describe_use(line)}" if "active_units" in line else ""
    return (
        f"{line['reconstruction_mse']:.4f} reconstructing ({line['reconstruction_mse_unit']:.4f} in [0, 1]), "
        f"{line['prior_mse']:.4f} under prior samples; energy {line['posterior_energy']:.2f} posterior, "
        f"{line['prior_energy']:.2f} prior; norm {line['posterior_norm']:.2f} posterior, {line['prior_norm']:.2f} prior"
        f"{units}"
    )


def _describe_text(data: dict[str, Any], device: str) -> str:
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


def _describe_perplexities(line: dict[str, Any]) -> str:
    if "perplexity" in line:  # of a plain language model
        return f"{line['perplexity']:.1f}"
    units = f"; KL {line['kl']:.2f}" if "kl" in line and "density" not in line else ""
    units += f"; {describe_use(line)}" if "active_units" in line else ""
    return (
        f"{line['reconstruction_perplexity']:.1f} reconstructing, {line['prior_perplexity']:.1f} under prior samples, "
        f"{line['gaussian_perplexity']:.1f} under Gaussian samples; energy {line['posterior_energy']:.2f} posterior, "
        f"{line['prior_energy']:.2f} prior{units}"
    )
