"""Text as numbers: encoded sentences, in memory or mapped from a file.

Nothing here grows with the corpus but what `encode` is asked to hold in memory: a mapped text is read where a batch
needs it.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from textebm.data.batches import IntArray, sequential_batches
from textebm.data.registry import Sentences
from textebm.data.vocabulary import SENTENCES_AT_ONCE, chunks, is_word_level, split_words
from textebm.errors import ConfigError, DataError
from textebm.model.recurrent import BOS, EOS, PAD, UNK, TextBatch

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Overlong = Literal["drop", "cut"]
UnknownWords = Literal["replace", "drop", "refuse"]
Progress = Callable[[int], object]
"""Called with the number of sentences that have just been worked on."""

SENTENCES_A_PIECE = 1 << 16


@dataclass
class EncodingReport:
    """What became of a split when it was encoded."""

    sentences: int = 0
    """Sentences kept."""
    dropped: int = 0
    """Sentences left out because they are longer than the longest allowed."""
    cut: int = 0
    """Sentences cut to the longest allowed; they are among `sentences`."""
    dropped_unknown: int = 0
    """Sentences left out because they hold a word outside the vocabulary."""
    blank_lines: int = 0
    """Lines without a word, left out."""
    words: int = 0
    """Words of the sentences kept, end of sentence not counted."""
    tokens: int = 0
    """Their tokens, end of sentence not counted; in a vocabulary of words as many as words."""
    unknown_words: int = 0
    """Words that are <unk>: outside the vocabulary, or <unk> in the text."""
    special_words: int = 0
    """Words that are written <pad>, <bos> or <eos> in the text; they become <unk>."""
    longest: int = 0
    """Tokens of the longest sentence kept, end of sentence not counted."""

    @property
    def unknown_rate(self) -> float:
        """Share of the words that are <unk>."""
        return self.unknown_words / self.words if self.words else 0.0

    def add(self, other: "EncodingReport") -> None:
        """Take in what became of a further part of the split."""
        for key in (f.name for f in fields(self)):
            ours, theirs = getattr(self, key), getattr(other, key)
            setattr(self, key, max(ours, theirs) if key == "longest" else ours + theirs)

    def __str__(self) -> str:
        parts = [f"{self.sentences:,} sentences", f"{self.words:,} words", f"{self.unknown_rate:.2%} unknown"]
        counted = {
            "dropped as too long": self.dropped,
            "cut": self.cut,
            "dropped for an unknown word": self.dropped_unknown,
            "blank lines left out": self.blank_lines,
            "words written as special tokens": self.special_words,
        }
        return ", ".join(parts + [f"{count:,} {what}" for what, count in counted.items() if count])


@dataclass(frozen=True)
class Piece:
    """Encoded sentences, one after the other.

    ids: (tokens,) int32, without <bos> and <eos>. offsets: (sentences + 1,) int64; sentence i is
    ids[offsets[i]:offsets[i + 1]]. words: (sentences,) int32, words of each sentence.
    """

    ids: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    words: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.words)


class EncodedText:
    """An encoded split, in pieces of 65,536 sentences (the last one shorter), so that it can be mapped from a file.

    Args:
        pieces: in order.
        report: what became of the split.
    """

    def __init__(self, pieces: Iterable[Piece], report: EncodingReport) -> None:
        self.pieces, self.report = tuple(pieces), report

    def __len__(self) -> int:
        return self.report.sentences

    def sentence(self, row: int) -> npt.NDArray[np.int32]:
        """(tokens,) the ids of one sentence."""
        piece, index = self.pieces[row // SENTENCES_A_PIECE], row % SENTENCES_A_PIECE
        return piece.ids[piece.offsets[index] : piece.offsets[index + 1]]

    @property
    def lengths(self) -> "PieceLengths":
        """Tokens of each sentence by number, end of sentence not counted."""
        return PieceLengths(self.pieces)

    def words(self, rows: IntArray) -> npt.NDArray[np.int32]:
        """(rows,) words of these sentences, end of sentence not counted."""
        return _by_piece(np.asarray(rows, dtype=np.int64), lambda n, index: self.pieces[n].words[index]).astype(
            np.int32
        )

    def groups(self, rows: npt.NDArray[np.int64], size: int) -> list[npt.NDArray[np.int64]]:
        """Places in `rows` of the sentences that are worked on together outside training: those of similar length."""
        return sequential_batches(self.lengths[rows], size)

    def batch(self, indices: Sequence[int] | IntArray) -> TextBatch:
        """The sentences with these indices as one padded batch, in the order given."""
        import torch

        sentences = [self.sentence(int(row)) for row in indices]
        lengths = np.array([len(sentence) for sentence in sentences], dtype=np.int64)
        width = int(lengths.max(initial=0))
        is_token = np.arange(width) < lengths[:, None]  # (batch, width)
        flat = np.concatenate(sentences) if sentences else np.zeros(0, dtype=np.int32)
        inputs = np.full((len(sentences), width + 1), PAD, dtype=np.int64)
        targets = inputs.copy()
        inputs[:, 0] = BOS
        inputs[:, 1:][is_token] = flat
        targets[:, :-1][is_token] = flat
        targets[np.arange(len(sentences)), lengths] = EOS
        return TextBatch(torch.from_numpy(inputs), torch.from_numpy(targets), torch.from_numpy(lengths + 1))


class PieceLengths:
    """The lengths of a text's sentences, looked up in its pieces."""

    def __init__(self, pieces: tuple[Piece, ...]) -> None:
        self.pieces = pieces

    def __len__(self) -> int:
        return sum(map(len, self.pieces))

    def __getitem__(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        def of(number: int, index: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
            offsets = self.pieces[number].offsets
            return offsets[index + 1] - offsets[index]

        return _by_piece(rows, of)


def _by_piece(
    rows: npt.NDArray[np.int64], look_up: Callable[[int, npt.NDArray[np.int64]], IntArray]
) -> npt.NDArray[np.int64]:
    """What `look_up(piece, rows within it)` says of each row."""
    result = np.empty(len(rows), dtype=np.int64)
    numbers, indices = np.divmod(rows, SENTENCES_A_PIECE)
    for number in np.unique(numbers):
        here = numbers == number
        result[here] = look_up(int(number), indices[here])
    return result


# ---- encoding


@dataclass(frozen=True)
class EncodingOptions:
    """What is done with sentences that do not fit.

    Args:
        max_length: longest sentence in words, end of sentence not counted; None: no limit.
        overlong: whether longer sentences are dropped or cut to `max_length`.
        unknown_words: whether words outside the vocabulary become <unk>, their sentences are dropped, or the text is
            refused.
    """

    max_length: int | None = None
    overlong: Overlong = "drop"
    unknown_words: UnknownWords = "replace"


@dataclass
class Chunk:
    """Some encoded sentences, as (tokens,) ids with (sentences,) lengths in tokens and in words."""

    ids: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int64]
    words: npt.NDArray[np.int64]
    report: EncodingReport = field(default_factory=EncodingReport)

    def only(self, kept: npt.NDArray[np.bool_]) -> "Chunk":
        """The sentences where `kept` is true."""
        return Chunk(self.ids[np.repeat(kept, self.lengths)], self.lengths[kept], self.words[kept], self.report)


def encode(
    sentences: Iterable[str],
    tokenizer: "Tokenizer",
    max_length: int | None = None,
    overlong: Overlong = "drop",
    unknown_words: UnknownWords = "replace",
) -> EncodedText:
    """Sentences as ids, in memory, with a report of what was dropped, cut and unknown.

    Args:
        sentences: words between blanks; blank sentences are left out and counted.
        tokenizer: of `build_tokenizer`.
        max_length, overlong, unknown_words: see `EncodingOptions`.

    Raises:
        DataError: no sentence is left (the message says why), or there is an unknown word where none is allowed.
        ConfigError: unknown words are asked for where there are none, in a vocabulary of bytes.
    """
    options = EncodingOptions(max_length, overlong, unknown_words)
    report = EncodingReport()
    pieces = list(pieces_of(encode_chunks(sentences, tokenizer, options), report))
    require_sentences(report, sentences, options)
    return EncodedText(pieces, report)


def require_sentences(report: EncodingReport, sentences: Iterable[str], options: EncodingOptions) -> None:
    """Complete the report by what the reader has left out, and check that something is left."""
    if isinstance(sentences, Sentences):
        report.blank_lines += sentences.blank_lines
    if report.sentences:
        return
    lost = [f"{report.blank_lines} blank lines"]
    advice = ["give more text"]
    if report.dropped:
        lost.append(f"{report.dropped} sentences longer than max_length = {options.max_length} words dropped")
        advice.append("raise max_length, or cut instead of dropping (overlong)")
    if report.dropped_unknown:
        lost.append(f"{report.dropped_unknown} sentences dropped for a word outside the vocabulary")
        advice.append("raise vocab_size, or choose another way with unknown_words")
    raise DataError(f"no sentence is left: {', '.join(lost)}. What helps: {'; or '.join(advice)}.")


def encode_chunks(sentences: Iterable[str], tokenizer: "Tokenizer", options: EncodingOptions) -> Iterator[Chunk]:
    """Encoded chunks of a text in its order, worked on by all cores, in bounded memory."""
    encoder = _Encoder(tokenizer, options)
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    waiting: deque[Future[Chunk]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for chunk in chunks(sentences, SENTENCES_AT_ONCE):
            waiting.append(pool.submit(encoder, chunk))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class _Encoder:
    """Encodes lists of sentences; the heavy parts run outside the interpreter's lock."""

    def __init__(self, tokenizer: "Tokenizer", options: EncodingOptions) -> None:
        import pyarrow as pa
        from tokenizers import Tokenizer

        self.options = options
        self.words = is_word_level(tokenizer)
        if not self.words and options.unknown_words != "replace":
            raise ConfigError(f"unknown_words is {options.unknown_words}, and with tokenizer = bpe no word is unknown")
        self.normaliser = tokenizer.normalizer
        # The text's own <pad>, <bos>, <eos> must be words like others here, and the caller's tokenizer must not change.
        self.tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self.tokenizer.encode_special_tokens = True
        if self.words:
            known = tokenizer.get_vocab(with_added_tokens=True)
            self.known = pa.array(sorted(known, key=known.__getitem__), pa.large_string())

    def __call__(self, sentences: list[str]) -> Chunk:
        """Encode sentences; the report tells what became of them."""
        kept = [sentence for sentence in sentences if sentence and not sentence.isspace()]
        chunk = self._by_words(kept) if self.words else self._by_pairs(kept)
        report = chunk.report
        report.blank_lines += len(sentences) - len(kept)
        report.sentences, report.words, report.tokens = len(chunk.lengths), int(chunk.words.sum()), len(chunk.ids)
        report.longest = int(chunk.lengths.max(initial=0))
        return chunk

    def _by_words(self, sentences: list[str]) -> Chunk:
        import pyarrow.compute as pc

        if self.normaliser is not None:
            sentences = [self.normaliser.normalize_str(sentence) for sentence in sentences]
        words, offsets = split_words(sentences)
        found = pc.index_in(words, value_set=self.known)
        lengths = np.diff(offsets)
        outside = found.is_null().to_numpy(zero_copy_only=False)
        ids = found.fill_null(UNK).to_numpy(zero_copy_only=False).astype(np.int32)
        if self.options.unknown_words == "refuse" and outside.any():
            first = int(np.argmax(outside))
            sentence = sentences[int(np.searchsorted(offsets, first, side="right")) - 1]
            word = words[first].as_py()
            raise DataError(
                f"the word {word!r} is not in the vocabulary (in: {shorten(sentence)}), and unknown_words = refuse. "
                "Raise vocab_size, lower min_count, or choose replace or drop."
            )
        chunk = Chunk(ids, lengths, lengths)
        if (limit := self.options.max_length) is not None:
            outside = outside[self._within(lengths, limit)]
            chunk = self._fit(chunk, limit)
        if self.options.unknown_words == "drop" and len(chunk.lengths):
            begins = np.concatenate([[0], np.cumsum(chunk.lengths)[:-1]])
            known = ~np.logical_or.reduceat(outside, begins)
            chunk.report.dropped_unknown += int((~known).sum())
            chunk = chunk.only(known)
        special = chunk.ids < UNK
        chunk.ids[special] = UNK
        chunk.report.special_words += int(special.sum())
        chunk.report.unknown_words += int((chunk.ids == UNK).sum())
        return chunk

    def _within(self, lengths: npt.NDArray[np.int64], limit: int) -> npt.NDArray[np.bool_]:
        """(tokens,) which tokens stay under the limit on a sentence's length."""
        if self.options.overlong == "drop":
            return np.repeat(lengths <= limit, lengths)
        ends = np.cumsum(lengths)
        return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths) < limit

    def _fit(self, chunk: Chunk, limit: int) -> Chunk:
        """The sentences within the limit on their length: others are dropped or cut, and counted."""
        too_long = chunk.lengths > limit
        if self.options.overlong == "drop":
            chunk.report.dropped += int(too_long.sum())
            return chunk.only(~too_long)
        chunk.report.cut += int(too_long.sum())
        lengths = np.minimum(chunk.lengths, limit)
        return Chunk(chunk.ids[self._within(chunk.lengths, limit)], lengths, lengths, chunk.report)

    def _by_pairs(self, sentences: list[str]) -> Chunk:
        report = EncodingReport()
        words = [sentence.split() for sentence in sentences]
        if (limit := self.options.max_length) is not None:
            too_long = sum(len(sentence) > limit for sentence in words)
            if self.options.overlong == "drop":
                report.dropped += too_long
                words = [sentence for sentence in words if len(sentence) <= limit]
            else:
                report.cut += too_long
                words = [sentence[:limit] for sentence in words]
        encodings = self.tokenizer.encode_batch_fast([" ".join(s) for s in words], add_special_tokens=False)
        ids = [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]
        report.unknown_words = sum(sentence.count("<unk>") for sentence in words)
        flat = np.concatenate(ids) if ids else np.zeros(0, dtype=np.int32)
        lengths = np.array([len(i) for i in ids], dtype=np.int64)
        return Chunk(flat, lengths, np.array([len(sentence) for sentence in words], dtype=np.int64), report)


def pieces_of(encoded: Iterable[Chunk], report: EncodingReport) -> Iterator[Piece]:
    """The chunks put together in pieces of 65,536 sentences; `report` takes in those of the chunks."""
    rest: list[Chunk] = []
    for chunk in encoded:
        report.add(chunk.report)
        rest.append(chunk)
        while sum(len(c.lengths) for c in rest) >= SENTENCES_A_PIECE:
            whole = _joined(rest)
            first = np.arange(len(whole.lengths)) < SENTENCES_A_PIECE
            yield _piece(whole.only(first))
            rest = [whole.only(~first)]
    if any(len(c.lengths) for c in rest):
        yield _piece(_joined(rest))


def _joined(parts: list[Chunk]) -> Chunk:
    ids, lengths, words = (np.concatenate([getattr(c, key) for c in parts]) for key in ("ids", "lengths", "words"))
    return Chunk(ids, lengths, words)


def _piece(chunk: Chunk) -> Piece:
    offsets = np.concatenate([[0], np.cumsum(chunk.lengths)]).astype(np.int64)
    return Piece(chunk.ids, offsets, chunk.words.astype(np.int32))


def shorten(text: str, longest: int = 80) -> str:
    """A text for a message: its beginning, where it is long."""
    return text if len(text) <= longest else text[:longest] + " ..."
