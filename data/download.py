"""Published files, fetched once into TEXTEBM_HOME: checked against their sums, resumed where they broke off."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from textebm.errors import DataError
from textebm.home import home, offline

if TYPE_CHECKING:
    from requests import Response

Key = TypeVar("Key")

CONNECT_SECONDS = 5.0
READ_SECONDS = 20.0
"""Silence after which a server is given up."""
ATTEMPTS = 3
"""How often a download that was under way is taken up again in one call."""
LOCK_SECONDS = 3600.0
PIECE = 1 << 13
"""Bytes written at once: as much is lost of what has come where a download breaks off."""


@dataclass(frozen=True)
class Published:
    """One file that is published somewhere."""

    name: str
    url: str
    sha256: str


@dataclass(frozen=True)
class Fetched:
    """What became of one file."""

    path: Path
    downloaded: bool
    """False: it was there already, with the right content."""


def folder_of(corpus: str) -> Path:
    """Where downloads of a corpus are kept."""
    return home() / "data" / corpus


def fetch(corpus: str, files: Mapping[Key, Published], advice: str) -> dict[Key, Fetched]:
    """Have the files of a corpus in `TEXTEBM_HOME/data/CORPUS/`; those that are there already are only checked.

    Two processes may ask at once: the second waits and finds the files.

    Args:
        corpus: its name.
        files: what is wanted, by any key.
        advice: where to get the files by hand, for messages.

    Raises:
        DataError: there is no network, or TEXTEBM_OFFLINE or HF_HUB_OFFLINE forbids its use; a server refuses, falls
            silent, or sends something else than what was published, which is not kept. What a broken download had
            brought is kept, and the next one goes on from there.
    """
    if variable := offline():
        raise DataError(f"{corpus} is not on this machine, and {variable} forbids to download it. {advice}")
    folder = folder_of(corpus)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone_in(folder):
        return {key: _fetch_one(file, folder, advice) for key, file in files.items()}


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    try:
        with FileLock(folder / ".lock", timeout=LOCK_SECONDS):
            yield
    except Timeout:
        raise DataError(f"another process has been downloading into {folder} for an hour; stop it") from None


def _fetch_one(file: Published, folder: Path, advice: str) -> Fetched:
    import pooch
    import requests

    pooch.get_logger().setLevel("ERROR")  # what it has to say comes back in our own messages
    for first in (True, False):
        download = Resumable(file)
        try:
            path = pooch.retrieve(file.url, f"sha256:{file.sha256}", file.name, folder, downloader=download)
        except requests.RequestException as error:
            raise DataError(
                f"{file.name} could not be downloaded from {file.url}: {_reason(error)}. {advice}"
            ) from None
        except ValueError as error:  # not the content that was published
            if first and download.resumed:
                continue  # what a broken download had left may have been of another file: once more, from the start
            raise DataError(
                f"{file.url} sends something else than {file.name} as it was published: {error} Nothing of it is "
                f"kept. {advice}"
            ) from None
        break
    return Fetched(Path(path), download.used)


def _reason(error: Exception) -> str:
    """Why a request failed, in a few words: the libraries nest their errors, and the innermost says it."""
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server answers with {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.ConnectTimeout):
        return f"no connection within {CONNECT_SECONDS:g} seconds"
    if isinstance(error, requests.Timeout) or "Read timed out" in str(error):
        return f"the server has been silent for {READ_SECONDS:g} seconds; what came is kept, and the next call goes on"
    inner: BaseException = error
    while (deeper := inner.__cause__ or inner.__context__) is not None:
        inner = deeper
    return f"{inner}" or type(inner).__name__


class Resumable:
    """A downloader for pooch that goes on where a broken download stopped, if the server can (HTTP Range).

    What has come so far stands in a file of its own beside the target, named after the sum of what it is part of.
    """

    def __init__(self, file: Published) -> None:
        self.file = file
        self.used = False
        """Whether it was called at all: pooch calls it only for what is not there."""
        self.resumed = False
        """Whether it went on from what was there."""

    def __call__(self, url: str, output_file: str, pooch: object) -> None:
        """Download `url` to the file `output_file`, in as many as three attempts as long as each brings something."""
        import requests

        self.used = True
        part = Path(output_file).parent / f".{self.file.name}.{self.file.sha256[:12]}.part"
        for attempt in range(1, ATTEMPTS + 1):
            before = _size(part)
            try:
                self._go_on(url, part)
                break
            except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError):
                if attempt == ATTEMPTS or _size(part) <= before:  # nobody there, or nothing more comes
                    raise
        part.replace(output_file)

    def _go_on(self, url: str, part: Path) -> None:
        """Append to `part` what it lacks, or write it anew where the server knows no ranges."""
        import requests

        have = _size(part)
        headers = {"Accept-Encoding": "identity"}  # ranges count the bytes that are sent
        if have:
            headers["Range"] = f"bytes={have}-"
        with requests.get(url, headers=headers, stream=True, timeout=(CONNECT_SECONDS, READ_SECONDS)) as response:
            if response.status_code == requests.codes.requested_range_not_satisfiable:
                if response.headers.get("Content-Range") == f"bytes */{have}":
                    self.resumed = True  # it broke off between the last byte and the move
                    return
                part.unlink()
                self._go_on(url, part)
                return
            response.raise_for_status()
            continues = response.status_code == requests.codes.partial_content and response.headers.get(
                "Content-Range", ""
            ).startswith(f"bytes {have}-")
            self.resumed = continues
            self._write(response, part, have if continues else 0)

    def _write(self, response: "Response", part: Path, start: int) -> None:
        from tqdm import tqdm

        announced = response.headers.get("Content-Length")
        total = start + int(announced) if announced is not None else None
        with (
            part.open("ab" if start else "wb") as file,
            tqdm(
                desc=self.file.name,
                total=total,
                initial=start,
                unit="B",
                unit_scale=True,
                disable=not sys.stderr.isatty(),
            ) as bar,
        ):
            for piece in response.iter_content(PIECE):
                file.write(piece)
                bar.update(len(piece))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
