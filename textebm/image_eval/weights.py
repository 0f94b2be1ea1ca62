"""Published weights of feature networks: where they are looked for, and whether a file is what was published."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from textebm import whole_files
from textebm.data import download
from textebm.errors import DataError
from textebm.home import offline


@dataclass(frozen=True)
class PublishedWeights:
    """A file of weights as it is published.

    Args:
        name: of the network, and of the folder in TEXTEBM_HOME that a download goes to.
        file: its name.
        url: its address.
        sha256: of its content.
        licence: of the weights.
        other_names: under which others publish the same content.
        package: an installed package that may bring it, and where in it.
        install: how to get that package.
        instead: what can be done without them.
    """

    name: str
    file: str
    url: str
    sha256: str
    licence: str
    other_names: Sequence[str] = ()
    package: tuple[str, str] | None = None
    install: str | None = None
    instead: str | None = None

    @property
    def advice(self) -> str:
        """Where to get it by hand."""
        by_package = f"install it with {self.install}, or " if self.install else ""
        without = f"; {self.instead}" if self.instead else ""
        return f"To have it, {by_package}get {self.file} from {self.url} and name it with --weights{without}"

    def candidates(self) -> list[Path]:
        """Where a copy may lie: earlier downloads, ours and those of torch's hub, and the package that brings it."""
        names = [self.file, *self.other_names]
        hub = Path(torch.hub.get_dir()) / "checkpoints"
        places = [folder / name for folder in (download.folder_of(self.name), hub) for name in names]
        if self.package is not None:
            module, inside = self.package
            spec = find_spec(module)  # found, not imported: a package of weights has no code that is wanted here
            places += [Path(folder) / inside for folder in (spec.submodule_search_locations or [] if spec else [])]
        return places


@dataclass(frozen=True)
class Weights:
    """Weights that were read.

    Args:
        state: name -> tensor.
        path: the file.
        sha256: of its content.
        published: whether that is the published content.
    """

    state: dict[str, Tensor]
    path: Path
    sha256: str
    published: bool


def find(
    published: PublishedWeights, given: str | Path | None = None, notice: Callable[[str], object] | None = None
) -> Weights:
    """The weights of a network: those of the file given, else a copy on this machine, else downloaded.

    Args:
        published: what is wanted.
        given: a file in safetensors, or one that torch saved, of which nothing but tensors is ever read.
        notice: told before something is downloaded.

    Raises:
        DataError: the file cannot be read, or there is none on this machine and it cannot be downloaded.
    """
    if given is not None:
        return read(Path(given), published)
    for path in published.candidates():
        if path.is_file() and whole_files.sha256(path) == published.sha256:
            return read(path, published)
    if notice is not None and offline() is None:
        notice(f"downloading {published.file} from {published.url}. Licence: {published.licence}")
    wanted = {0: download.Published(published.file, published.url, published.sha256)}
    return read(download.fetch(published.name, wanted, f"{published.advice}.")[0].path, published)


def read(path: Path, published: PublishedWeights) -> Weights:
    """Read a file of weights.

    Raises:
        DataError: it is not there, or is neither safetensors nor a file of tensors that torch saved.
    """
    if not path.is_file():
        raise DataError(f"weights {path}: there is no such file. {published.advice}")
    digest = whole_files.sha256(path)
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            state: dict[str, Tensor] = load_file(path)
        except SafetensorError as error:
            raise DataError(f"weights {path}: not a whole safetensors file ({error}). {published.advice}") from None
    else:
        state = _saved_by_torch(path, published)
    return Weights(state, path, digest, digest == published.sha256)


def _saved_by_torch(path: Path, published: PublishedWeights) -> dict[str, Tensor]:
    try:
        # From memory: a file would be asked for as many bytes at once as a number in it says.
        found = torch.load(io.BytesIO(path.read_bytes()), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a foreign or a cut file makes of the unpickler
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"weights {path}: not a file of tensors that torch saved ({reason}). {published.advice}"
        ) from None
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise DataError(f"weights {path}: holds something else than named tensors. {published.advice}")
    return dict(found)
