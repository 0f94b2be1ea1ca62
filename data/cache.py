"""Vocabularies and encoded splits, built once and kept: keyed by content and settings, mapped from Arrow files.

    TEXTEBM_HOME/encoded/KEY.vocabulary.json    a tokenizer; KEY.vocabulary.sha256, written last, is its sum
    TEXTEBM_HOME/encoded/KEY.arrow              an encoded split: a record batch for every 65,536 sentences
    TEXTEBM_HOME/encoded/KEY.json               its report and sums; written last, so what has one is whole

A key is a hash of the content of the text and of every setting that shapes the result, so nothing is ever out of date,
and a text that moves keeps its entry. What a disk has damaged is known by its sum, and built anew. Entries are
independent: any of them may be deleted at any time.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from textebm import whole_files
from textebm.data.entries import building, sealed, unsealed
from textebm.data.registry import Corpus, Split
from textebm.data.text import (
    Chunk,
    EncodedText,
    EncodingOptions,
    EncodingReport,
    Piece,
    encode_chunks,
    pieces_of,
    require_sentences,
)
from textebm.data.vocabulary import (
    SENTENCES_AT_ONCE,
    Kind,
    Numbers,
    build_tokenizer,
    chunks,
    read_tokenizer,
    write_tokenizer,
)
from textebm.errors import DataError
from textebm.home import home

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FORMAT = 1
"""Of keys and files: another number, and everything is built anew."""

CHECKED_WHOLE = 1 << 30
"""Bytes of an encoded split up to which its sum is checked whenever it is opened: it takes a second or two."""

Watch = Callable[[str, int], object]
"""Called while an entry is built, with what is being made (`vocabulary`, or a split) and the sentences just done."""


def folder() -> Path:
    """Where entries are kept."""
    return home() / "encoded"


@dataclasses.dataclass(frozen=True)
class VocabularyOptions:
    """What a vocabulary is made by: the arguments of `build_tokenizer`."""

    vocab_size: int
    kind: Kind = "word"
    min_count: int = 1
    lowercase: bool = False
    numbers: Numbers = "keep"


def vocabulary(corpus: Corpus, options: VocabularyOptions, watch: Watch | None = None) -> "Tokenizer":
    """The vocabulary of a corpus's training split, built or from the cache.

    Raises:
        DataError: the text is unusable, or the cache folder cannot be written.
        ConfigError: the vocabulary's size leaves no room.
    """
    path = folder() / f"{_key(corpus.digest('train'), options)}.vocabulary.json"
    with building(path, lambda: _is_whole_vocabulary(path)) as found:
        if not found:
            sentences = _watched(corpus.sentences("train"), watch)
            tokenizer = build_tokenizer(sentences, **dataclasses.asdict(options))
            with whole_files.appearing(path) as temporary:
                write_tokenizer(tokenizer, temporary)
            whole_files.write_text(_sum_of(path), whole_files.sha256(path))
    return read_tokenizer(path)


def _sum_of(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _is_whole_vocabulary(path: Path) -> bool:
    """Whether a vocabulary is there, as it was written."""
    try:
        return _sum_of(path).read_text(encoding="utf-8") == whole_files.sha256(path)
    except (OSError, ValueError):
        return False


def encoded(
    corpus: Corpus, split: Split, tokenizer: "Tokenizer", options: EncodingOptions, watch: Watch | None = None
) -> EncodedText:
    """An encoded split, mapped from the cache, where it is put if it is not there.

    Raises:
        DataError: the split is missing, or holds no usable sentence, or the cache folder cannot be written; the message
            names the split.
    """
    settings = {"tokenizer": tokenizer.to_str(), **dataclasses.asdict(options)}
    path = folder() / f"{_key(corpus.digest(split), settings)}.json"
    try:
        with building(path, lambda: _is_whole(path)) as found:
            if not found:
                _encode(corpus, split, tokenizer, options, path, watch)
    except DataError as error:
        raise DataError(f"{corpus.describe(split)} ({split}): {error}") from None
    return _opened(path)


def _key(*parts: object) -> str:
    plain = [dataclasses.asdict(part) if dataclasses.is_dataclass(part) else part for part in parts]  # type: ignore[arg-type]
    written = json.dumps([FORMAT, *plain], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(written.encode()).hexdigest()[:32]


def _watched(sentences: Iterable[str], watch: Watch | None) -> Iterator[str]:
    """The sentences, counted as they pass."""
    for chunk in chunks(sentences, SENTENCES_AT_ONCE):
        yield from chunk
        if watch is not None:
            watch("vocabulary", len(chunk))


def _watched_chunks(encoded_chunks: Iterable[Chunk], split: Split, watch: Watch | None) -> Iterator[Chunk]:
    for chunk in encoded_chunks:
        yield chunk
        if watch is not None:
            watch(split, len(chunk.lengths))


def _encode(
    corpus: Corpus, split: Split, tokenizer: "Tokenizer", options: EncodingOptions, path: Path, watch: Watch | None
) -> None:
    import pyarrow as pa

    sentences = corpus.sentences(split)
    report = EncodingReport()
    schema = pa.schema([("ids", pa.large_list(pa.int32())), ("words", pa.int32())])
    arrow = path.with_suffix(".arrow")
    with whole_files.appearing(arrow) as temporary:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            chunks_of_split = _watched_chunks(encode_chunks(sentences, tokenizer, options), split, watch)
            for piece in pieces_of(chunks_of_split, report):
                ids = pa.LargeListArray.from_arrays(pa.array(piece.offsets), pa.array(piece.ids))
                writer.write_batch(pa.record_batch([ids, pa.array(piece.words)], schema=schema))
        require_sentences(report, sentences, options)
    size, digest = arrow.stat().st_size, whole_files.sha256(arrow)
    whole_files.write_text(path, sealed({"report": dataclasses.asdict(report), "size": size, "sha256": digest}))


def _is_whole(path: Path) -> bool:
    """Whether an entry is complete and undamaged; of a very large one, whether it has its size."""
    try:
        described = unsealed(path)
        arrow = path.with_suffix(".arrow")
        size = arrow.stat().st_size
        return bool(
            size == described["size"] and (size > CHECKED_WHOLE or whole_files.sha256(arrow) == described["sha256"])
        )
    except (OSError, ValueError, KeyError):
        return False


def _opened(path: Path) -> EncodedText:
    described = unsealed(path)
    return EncodedText(_mapped(path.with_suffix(".arrow")), EncodingReport(**described["report"]))


def _mapped(path: Path) -> Iterator[Piece]:
    """The pieces of an encoded split, mapped from its file: they take no memory of this process's own."""
    import pyarrow as pa

    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    for number in range(reader.num_record_batches):
        ids, words = reader.get_batch(number).columns
        yield Piece(
            ids.values.to_numpy(zero_copy_only=True),
            ids.offsets.to_numpy(zero_copy_only=True).astype(np.int64, copy=False),
            words.to_numpy(zero_copy_only=True),
        )
