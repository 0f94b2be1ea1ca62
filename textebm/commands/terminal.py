"""What commands share: remarks, bars, output files, devices, models."""

import dataclasses
import math
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import tyro

from textebm import options, processes
from textebm.errors import DataError, UsageError

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from tqdm import tqdm

    from textebm.config import Config
    from textebm.data.images import ImageCorpus
    from textebm.data.registry import Corpus, Split
    from textebm.data.text import EncodedText

T = TypeVar("T")


def say(text: str) -> None:
    """A remark for the person at the terminal; of several processes the first one makes it."""
    if processes.world().first:
        print(text, file=sys.stderr, flush=True)


def complain(error: BaseException, text: str) -> None:
    """Tell of an error that ends the command; one that several processes have is told once.

    Args:
        error: what was raised.
        text: what is told of it.
    """
    world = processes.world()
    if world.tells(error):
        print(text if world.first else f"process {world.rank}: {text}", file=sys.stderr, flush=True)


def parse(kind: type[T], command: str, arguments: Sequence[str], default: T | None = None) -> T:
    """The options of a command; a wrong one ends the program with exit code 2."""
    settings: dict[str, Any] = {} if default is None else {"default": default}
    with nullcontext() if processes.world().first else redirect_stderr(StringIO()):  # all read the same words
        chosen: T = tyro.cli(
            kind, prog=f"textebm {command}", args=list(arguments), config=(tyro.conf.FlagCreatePairsOff,), **settings
        )
    return chosen


def progress_bar(total: int | None, unit: str, initial: int = 0, what: str | None = None) -> "tqdm[Any]":
    """A progress bar on standard error, silent when that is not a terminal; without a total it goes when it is done."""
    from tqdm import tqdm

    quiet, leave = not (processes.world().first and sys.stderr.isatty()), total is not None
    return tqdm(desc=what, total=total, initial=initial, unit=unit, leave=leave, disable=quiet, dynamic_ncols=True)


def read_lines(file: str) -> list[str]:
    """The sentences of a text file, or of standard input (-), one a line.

    Raises:
        DataError: it is missing or no text, a line is empty, or there is none.
    """
    from textebm.lm_eval.corpus import read_sentences, shown

    name = "standard input" if file == "-" else shown(file)
    if file == "-":
        try:
            lines = [" ".join(line.decode("utf-8").split()) for line in sys.stdin.buffer]
        except UnicodeDecodeError as error:
            raise DataError(f"{name} is not UTF-8: {error.reason}") from None
    else:
        lines = list(read_sentences(Path(file), keep_blank=True))
    if not any(lines):
        raise DataError(f"{name} holds no sentence")
    if "" in lines:
        raise DataError(f"{name}, line {lines.index('') + 1} is empty: z cannot be inferred for it; take it out")
    return lines


def beside_text(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of figures, on the right of their columns, whose last column is text."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header) - 1)]
    lines = []
    for row in (header, *rows):
        cells = [cell.rjust(width) for cell, width in zip(row[:-1], widths, strict=True)]
        lines.append("  ".join([*cells, row[-1]]).rstrip())
    return "\n".join(lines)


def write(text: str, output: str | None) -> None:
    """Results to standard output, or to exactly the file named."""
    if output is None:
        print(text)
        return
    with writing(output):
        Path(output).write_text(text + "\n", encoding="utf-8")


@contextmanager
def writing(output: str, option: str = "--output") -> Iterator[None]:
    """Say which file it is that cannot be written."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{option} {output} cannot be written: {error.strerror}") from None


@contextmanager
def ended_as_interrupted() -> Iterator[None]:
    """Let SIGTERM, as clusters send it, end what stands inside as Ctrl-C does: what was half written is taken away."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def model_folder(chosen: options.ModelOptions) -> Path:
    """The model folder that the options name; says which it is."""
    from textebm import checkpoint

    folder, description = checkpoint.find_model(chosen.model)
    say(f"model: {description}")
    return folder


def refuse(chosen: Any, why: str, *names: str) -> None:  # noqa: ANN401 (the options of any command)
    """Check that options which would do nothing here are as they are by default.

    Args:
        chosen: the options.
        why: they would, as in `--n WHY`.
        names: of the options.

    Raises:
        UsageError: one is not.
    """
    for field in dataclasses.fields(chosen):
        if field.name in names and getattr(chosen, field.name) != field.default:
            raise UsageError(f"--{field.name.replace('_', '-')} {why}")


def require_text(config: "Config", folder: Path) -> None:
    """Check that a model is one of text.

    Args:
        config: of the run that it comes from.
        folder: the model's.

    Raises:
        UsageError: it is one of images.
    """
    if config.generator.kind != "recurrent":
        raise UsageError(f"{folder} is a model of images, and this command measures text: name another with --model")


def require_file(option: str, name: str) -> None:
    """Check that an option names a file that is there.

    Raises:
        UsageError: it does not.
    """
    path = Path(name)
    if path.is_file():
        return
    if path.is_dir():
        raise UsageError(f"{option}: {path} is a folder, where a text file is wanted")
    if path.exists():
        raise UsageError(f"{option}: {path} is no regular file, and it is read several times; write it to one first")
    raise UsageError(f"{option}: {path} does not exist")


def figure(value: float | None) -> str:
    """A count, a rate or a mean in few characters."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def describe_use(use: Mapping[str, Any]) -> str:
    """Whether z is used, for people: figures of `evaluation.LatentUse` by name, those that are known."""
    parts = [f"active units {use['active_units']}"]
    if use.get("reconstruction_bleu") is not None:
        parts.append(f"BLEU of reconstructions {use['reconstruction_bleu']:.1f}")
    most = math.log(use["latent_sentences"] if "latent_sentences" in use else use["latent_images"])
    parts.append(f"mutual information {use['mutual_information']:.2f} nats of at most {most:.2f}")
    if use.get("kl") is not None:
        parts.append(f"KL {use['kl']:.2f} nats")
    return f"{', '.join(parts)} ({use['density']})"


def find_corpus(data: str, data_dir: str | None, text_field: str | None) -> "Corpus":
    """The corpus that the options mean; says when it has to be downloaded, and what is odd about it."""
    from textebm.data import registry

    if (download := registry.download_notice(data, data_dir)) is not None:
        say(f"downloading {download}")
    corpus = processes.world().first_then_all(lambda: registry.resolve(data, data_dir, text_field))
    for warning in corpus.warnings():
        say(f"warning: {warning}")
    return corpus


def find_text(
    model: Path,
    tokenizer: "Tokenizer",
    split: "Split",
    data: str | None,
    data_dir: str | None,
    text_field: str | None,
) -> tuple["Corpus", "EncodedText"]:
    """A split of the corpus that a model was trained on, or of another, as the model reads it; says what it holds.

    Args:
        model: its folder.
        tokenizer: the model's.
        split: which.
        data, data_dir, text_field: another corpus than the run's own, and where it is.

    Raises:
        DataError: there is none, or it holds no usable sentence.
    """
    from textebm import checkpoint
    from textebm.data import cache
    from textebm.materials.text import encoding_options

    config = checkpoint.read_run(model)[0]
    corpus = find_corpus(data or config.data, data_dir or config.data_dir, text_field or config.text_field)
    text = cache.encoded(corpus, split, tokenizer, encoding_options(config))
    say(f"{corpus.name}, {split}: {text.report}")
    return corpus, text


def find_images(model: Path, data: str | None, data_dir: str | None, whole_train: bool | None = None) -> "ImageCorpus":
    """The images that a model was trained on, or others; says when they have to be downloaded.

    Args:
        model, data, data_dir, whole_train: see `ImageMaterial.resolve_for`.

    Raises:
        DataError: there are none.
        UsageError: it is a model of text.
    """
    from textebm import checkpoint
    from textebm.data.images import download_notice
    from textebm.materials import ImageMaterial

    config = checkpoint.read_run(model)[0]
    if (download := download_notice(data or config.data, data_dir or config.data_dir)) is not None:
        say(f"downloading {download}")
    return ImageMaterial.resolve_for(model, data, data_dir, whole_train)


def choose_device(name: str) -> "torch.device":
    """The device that `--device` means; says what `auto` chose and why. Of several processes each has its own.

    Raises:
        UsageError: there is no such device here, or it cannot be shared.
    """
    import torch

    from textebm.hardware import find_device

    device = find_device(processes.device_of(name, processes.world()), "--device")
    if name == "auto":
        cuda = device.type == "cuda"
        say(f"device: {device} ({torch.cuda.get_device_name(device) if cuda else 'no CUDA device was found'})")
    return device
