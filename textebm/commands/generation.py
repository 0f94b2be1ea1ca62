"""`textebm generate`, `reconstruct` and `interpolate`: what a model of text or of images makes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from textebm import options
from textebm.commands.terminal import model_folder, parse
from textebm.errors import UsageError

if TYPE_CHECKING:
    from types import ModuleType


def generate(arguments: Sequence[str]) -> int:
    """`textebm generate`."""
    chosen = parse(options.Generate, "generate", arguments)
    if chosen.n is not None and chosen.n < 1:
        raise UsageError(f"-n is {chosen.n}: it must be at least 1")
    if chosen.prior_steps is not None and chosen.prior_steps < 0:
        raise UsageError(f"--prior-steps is {chosen.prior_steps}: it must be 0 or more")
    folder = model_folder(chosen)
    run: Callable[[options.Generate, Path], int] = _of_kind(folder).generate
    return run(chosen, folder)


def reconstruct(arguments: Sequence[str]) -> int:
    """`textebm reconstruct`."""
    chosen = parse(options.Reconstruct, "reconstruct", arguments)
    if chosen.n is not None and chosen.n < 1:
        raise UsageError(f"-n is {chosen.n}: it must be at least 1")
    if chosen.pairs < 1:
        raise UsageError(f"--pairs is {chosen.pairs}: it must be at least 1")
    folder = model_folder(chosen)
    run: Callable[[options.Reconstruct, Path], int] = _of_kind(folder).reconstruct
    return run(chosen, folder)


def interpolate(arguments: Sequence[str]) -> int:
    """`textebm interpolate`."""
    chosen = parse(options.Interpolate, "interpolate", arguments)
    if chosen.points < 2:
        raise UsageError(f"--points is {chosen.points}: it must be at least 2, the two ends")
    if chosen.lines < 1:
        raise UsageError(f"--lines is {chosen.lines}: it must be at least 1")
    folder = model_folder(chosen)
    run: Callable[[options.Interpolate, Path], int] = _of_kind(folder).interpolate
    return run(chosen, folder)


def _of_kind(folder: Path) -> "ModuleType":
    """The module that does it with what the model in a folder makes."""
    from textebm.commands import images, sentences
    from textebm.model.latent_model import read_model_config

    kinds = {"recurrent": sentences, "convolutional": images}
    return kinds[read_model_config(folder).generator.kind]
