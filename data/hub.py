"""Data sets in the forms that the library `datasets` reads: of the Hugging Face hub, and local ones (extra `hub`)."""

import hashlib
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from textebm.data.sources import DEFAULT_TEXT_FIELD, HUB_PREFIX
from textebm.errors import DataError
from textebm.home import offline
from textebm.lm_eval.corpus import check_text, shown

if TYPE_CHECKING:
    from datasets import Dataset, Features

ROWS_AT_ONCE = 1000
CONNECT_SECONDS = 5
BUILDERS = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".txt": "text",
}
"""Which reader of `datasets` a single file goes to, by its ending."""


@dataclass(frozen=True)
class Reference:
    """What stands behind `hf:`: a name on the hub with what it may be narrowed to, or a local path."""

    name: str
    revision: str | None = None
    config: str | None = None
    path: Path | None = None
    """Where it lies, if it is local."""

    @classmethod
    def parse(cls, data: str) -> "Reference":
        """The reference in `hf:NAME`, `hf:NAME:CONFIG`, `hf:NAME@REVISION`, `hf:NAME@REVISION:CONFIG` or `hf:PATH`.

        A folder or file of that name wins over the hub, as in `datasets` itself.

        Raises:
            DataError: it has another form, or is a path that leads nowhere.
        """
        text = data.removeprefix(HUB_PREFIX)
        path = Path(text).expanduser()
        if text and path.exists():
            return cls(text, path=path)
        if text.startswith((".", "/", "~")):
            raise DataError(f"{HUB_PREFIX}{shown(text)}: no such file or folder")
        form = re.fullmatch(r"([\w.-]+(?:/[\w.-]+)?)(?:@([\w./-]+))?(?::([\w.+ -]+))?", text)
        if form is None:
            raise DataError(
                f"{shown(data)!s} is no data set: give hf:NAME, hf:NAME:CONFIG, hf:NAME@REVISION or hf:./FOLDER, as in "
                "hf:stanfordnlp/imdb"
            )
        return cls(form[1], form[2], form[3])

    @property
    def short(self) -> str:
        """The last part of the name, and the configuration if one is named, for the names of runs and scores."""
        if self.path is not None:
            return self.path.resolve().name.split(".")[0] or "data"
        return "-".join(filter(None, (self.name.rpartition("/")[2], self.config)))

    def __str__(self) -> str:
        if self.path is not None:
            return f"{HUB_PREFIX}{shown(self.name)}"
        revision = f"@{self.revision}" if self.revision else ""
        config = f":{self.config}" if self.config else ""
        return f"{HUB_PREFIX}{self.name}{revision}{config}"


@dataclass(frozen=True, eq=False)
class Column:
    """A source: the texts in one column of one split of a data set. A text of several lines is one sentence."""

    name: str
    """The data set's."""
    column: str
    split: str
    rows: "Dataset"

    def describe(self) -> str:
        """Data set, column and split."""
        return f"{self.name}, column {self.column}, split {self.split}"

    def sentences(self) -> Iterator[str]:
        """The texts, words joined by single blanks; a missing one is "".

        Raises (while it is read):
            DataError: a text holds a NUL character.
        """
        for number, text in enumerate(self._texts(), start=1):
            yield " ".join(check_text(text, f"{self.describe()}, row {number}").split())

    def digest(self) -> str:
        """SHA-256 of the texts: where they lie, and in which format, does not matter."""
        digest = hashlib.sha256()
        for text in self._texts():
            raw = text.encode()
            digest.update(len(raw).to_bytes(8, "big") + raw)
        return digest.hexdigest()

    def _texts(self) -> Iterator[str]:
        for batch in self.rows.select_columns([self.column]).iter(batch_size=ROWS_AT_ONCE):
            for text in batch[self.column]:
                yield text or ""


@dataclass(frozen=True)
class HubData:
    """A data set: what it is called, and its splits."""

    name: str
    splits: "dict[str, Dataset]"

    @property
    def features(self) -> "Features":
        """Columns and their types."""
        features: Features = next(iter(self.splits.values())).features
        return features

    @property
    def columns(self) -> dict[str, str]:
        """Columns, and in a word what each holds."""
        return {name: _kind_of(feature) for name, feature in self.features.items()}

    @property
    def kind(self) -> Literal["text", "image", "other"]:
        """Whether it is a data set of images, of texts, or of neither."""
        kinds = set(self.columns.values())
        return "image" if "image" in kinds else "text" if "string" in kinds else "other"

    def text_column(self, text_field: str | None) -> str:
        """The column that holds the text: the one named, else `text`, else the only one of strings.

        Raises:
            DataError: there is no such column, or it is not plain which is meant.
        """
        there = ", ".join(f"{name} ({kind})" for name, kind in self.columns.items())
        strings = [name for name, kind in self.columns.items() if kind == "string"]
        if text_field is not None:
            if text_field in strings:
                return text_field
            raise DataError(f"{self.name} has no column of strings named {text_field!r}; its columns: {there}")
        if self.kind == "image":
            hint = f"; its strings are read with --text-field {strings[0]}" if strings else ""
            raise DataError(f"{self.name} is an image data set, and text is wanted; its columns: {there}{hint}")
        if DEFAULT_TEXT_FIELD in strings:
            return DEFAULT_TEXT_FIELD
        if len(strings) == 1:
            return strings[0]
        if strings:
            raise DataError(f"{self.name} has several columns of strings: name one with --text-field. Columns: {there}")
        raise DataError(f"{self.name} has no column of strings, and text is wanted; its columns: {there}")


def _kind_of(feature: object) -> str:
    """A column's type in a word: string, image, or what `datasets` calls it."""
    kind = type(feature).__name__
    if kind == "Value":
        written = str(getattr(feature, "dtype", "value"))
        return "string" if written in ("string", "large_string", "string_view") else written
    return kind.lower()


def load(reference: Reference) -> HubData:
    """A data set, from the hub (its cache is HF_HOME) or from a local file or folder, mapped from the disk.

    Code that comes with a data set is never run.

    Raises:
        DataError: the library is not installed, the data set does not exist, is broken, or cannot be had: offline
            (HF_HUB_OFFLINE, TEXTEBM_OFFLINE), or because the hub does not answer within seconds.
    """
    try:
        import datasets
    except ImportError:
        raise DataError(f"{reference} needs the library datasets: pip install 'textebm[hub]'") from None
    unreachable = _unreachable(reference)
    with _as_the_network_is(offline=unreachable is not None):
        try:
            found = _from_disk(reference.path) if reference.path is not None else None
            if found is None:
                found = datasets.load_dataset(reference.name, reference.config, revision=reference.revision)
        except Exception as error:  # the library's readers raise what theirs raise: pyarrow, pandas, fsspec, httpx
            raise DataError(_why_not(reference, error, unreachable)) from error
    splits = dict(found) if isinstance(found, datasets.DatasetDict) else {"train": found}
    if not splits:
        raise DataError(f"{reference} has no splits")
    return HubData(str(reference), splits)


def _from_disk(path: Path) -> "dict[str, Dataset] | Dataset":
    import datasets

    if path.is_dir():
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            return datasets.load_from_disk(str(path))
        return datasets.load_dataset(str(path.resolve()))
    ending = next((end for end in reversed(path.suffixes) if end in BUILDERS), "")
    if not ending:
        raise DataError(f"{HUB_PREFIX}{shown(path)}: its name ends in none of {', '.join(BUILDERS)}; give such a file")
    options = {"sep": "\t"} if ending == ".tsv" else {}
    return datasets.load_dataset(BUILDERS[ending], data_files=str(path), **options)


def _unreachable(reference: Reference) -> str | None:
    """Why the hub cannot be asked, or None where it can, or need not."""
    return None if reference.path is not None and not offline() else hub_unreachable()


def hub_unreachable() -> str | None:
    """Why the Hugging Face Hub cannot be asked, or None where it can.

    One short question: the libraries themselves try again for minutes before they give up.
    """
    if variable := offline():
        return f"{variable} is set"
    from huggingface_hub import constants, get_session

    try:
        answer = get_session().head(constants.ENDPOINT, timeout=CONNECT_SECONDS)
    except Exception as error:  # of whichever HTTP library huggingface_hub uses
        return f"{constants.ENDPOINT} does not answer: {str(error) or type(error).__name__}"
    return f"{constants.ENDPOINT} answers with {answer.status_code}" if answer.status_code >= 500 else None


@contextmanager
def _as_the_network_is(*, offline: bool) -> Iterator[None]:
    """Keep the libraries off a network that does not answer, and off a screen that is not a terminal."""
    import datasets
    import huggingface_hub

    was_offline = datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE
    verbosity = datasets.logging.get_verbosity()
    bars = datasets.are_progress_bars_disabled()
    if offline:
        datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what matters of it comes back in our own message
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE = was_offline
        datasets.logging.set_verbosity(verbosity)
        if not bars:
            datasets.enable_progress_bars()


def _why_not(reference: Reference, error: Exception, unreachable: str | None) -> str:
    """The message for what `datasets` could not load."""
    if isinstance(error, DataError):
        return str(error)
    said = " ".join(str(error).split())
    if len(said) > 300:
        said = f"{said[:300]} ..."
    if "config" in said.lower() and isinstance(error, ValueError):
        return f"{reference}: {said} A configuration is named behind a colon, as in {HUB_PREFIX}{reference.name}:CONFIG"
    if reference.path is None and unreachable is not None:
        cache = os.environ.get("HF_HOME", "~/.cache/huggingface")
        return (
            f"{reference}: it is not in the cache ({cache}), and the hub cannot be asked ({unreachable}). Load it once "
            "with network, point HF_HOME at a cache that has it, or name a local copy: --data hf:./FOLDER"
        )
    if type(error).__name__ == "DatasetNotFoundError":
        return (
            f"{reference}: {said}. Check the name; a private or gated data set needs a login (hf auth login) that may "
            "read it"
        )
    if "scripts are no longer supported" in said:
        return f"{reference}: it comes with code that would have to be run, which textebm does not do ({said})"
    return f"{reference}: it cannot be loaded ({type(error).__name__}: {said})"
