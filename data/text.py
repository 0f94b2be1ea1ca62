"""Text as numbers: the vocabulary, encoded sentences, and batches of similar lengths."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from textebm.data.registry import Sentences
from textebm.errors import CheckpointError, ConfigError, DataError
from textebm.model.recurrent import BOS, EOS, PAD, SPECIAL_TOKENS, UNK, TextBatch

if TYPE_CHECKING:
    from tokenizers import Tokenizer

POOL_BATCHES = 50  # batches that are sorted by length together: enough for little padding, few enough to stay random
ENCODED_AT_ONCE = 10_000
TOKENIZER_FILE, TOKENIZER_CONFIG_FILE = "tokenizer.json", "tokenizer_config.json"


def build_tokenizer(sentences: Iterable[str], vocab_size: int) -> "Tokenizer":
    """A word-level tokenizer: words are what stands between blanks.

    Args:
        sentences: the training split.
        vocab_size: largest number of entries, the four special tokens included.

    Returns:
        A tokenizer whose ids are <pad> 0, <bos> 1, <eos> 2, <unk> 3, then the words by falling count, equal counts in
        alphabetical order.

    Raises:
        ConfigError: `vocab_size` leaves no room for a word.
        DataError: there is no word but special tokens.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    if vocab_size <= len(SPECIAL_TOKENS):
        raise ConfigError(f"vocab_size is {vocab_size}: it must be at least 5, four special tokens and one word")
    counts = Counter(word for sentence in sentences for word in sentence.split())
    for token in SPECIAL_TOKENS:
        counts.pop(token, None)
    if not counts:
        raise DataError("the training split has no word to make a vocabulary of: it is empty or holds blank lines only")
    ranked = sorted(counts, key=lambda word: (-counts[word], word))[: vocab_size - len(SPECIAL_TOKENS)]
    vocabulary = {word: index for index, word in enumerate((*SPECIAL_TOKENS, *ranked))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=SPECIAL_TOKENS[UNK]))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def save_tokenizer(tokenizer: "Tokenizer", folder: str | Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, which `transformers.AutoTokenizer.from_pretrained` reads."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = ("pad_token", "bos_token", "eos_token", "unk_token")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **dict(zip(names, SPECIAL_TOKENS, strict=True)),
        "clean_up_tokenization_spaces": False,
    }
    tokenizer.save(str(folder / TOKENIZER_FILE))
    (folder / TOKENIZER_CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_tokenizer(folder: str | Path) -> "Tokenizer":
    """The tokenizer that `save_tokenizer` wrote.

    Raises:
        CheckpointError: the file is missing, broken, or has other special tokens than ours.
    """
    from tokenizers import Tokenizer

    path = Path(folder) / TOKENIZER_FILE
    if not path.is_file():
        raise CheckpointError(f"there is no {path}: is {str(folder)!r} a folder that textebm saved a model in?")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise CheckpointError(f"{path} is broken: {error}") from None
    if [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] != [PAD, BOS, EOS, UNK]:
        raise CheckpointError(f"{path} is not ours: its first four tokens must be {', '.join(SPECIAL_TOKENS)}")
    return tokenizer


def decode(tokenizer: "Tokenizer", ids: Iterable[int]) -> str:
    """The sentence that ids stand for, words joined by blanks: up to the first <eos>, without <pad> and <bos>."""
    words = []
    for index in map(int, ids):
        if index == EOS:
            break
        if index not in (PAD, BOS):
            words.append(index)
    return tokenizer.decode(words, skip_special_tokens=False)


@dataclass
class EncodingReport:
    """What became of a split when it was encoded."""

    sentences: int = 0
    """Sentences kept."""
    dropped: int = 0
    """Sentences left out because they are longer than the longest allowed."""
    cut: int = 0
    """Sentences cut to the longest allowed; they are among `sentences`."""
    blank_lines: int = 0
    """Lines without a word, left out."""
    words: int = 0
    """Words of the sentences kept, end of sentence not counted."""
    unknown_words: int = 0
    """Those of them that are <unk>: outside the vocabulary, or <unk> in the text."""
    special_words: int = 0
    """Those of them that are written <pad>, <bos> or <eos> in the text; they become <unk>."""

    @property
    def unknown_rate(self) -> float:
        """Share of the words that are <unk>."""
        return self.unknown_words / self.words if self.words else 0.0

    def __str__(self) -> str:
        parts = [f"{self.sentences:,} sentences", f"{self.words:,} words", f"{self.unknown_rate:.2%} unknown"]
        counted = {
            "dropped as too long": self.dropped,
            "cut": self.cut,
            "blank lines left out": self.blank_lines,
            "words written as special tokens": self.special_words,
        }
        return ", ".join(parts + [f"{count:,} {what}" for what, count in counted.items() if count])


@dataclass(frozen=True)
class EncodedText:
    """Encoded sentences, one after the other in one array, so that they can be mapped from a file.

    ids: (words,) int32, without <bos> and <eos>. offsets: (sentences + 1,) int64; sentence i is
    ids[offsets[i]:offsets[i + 1]].
    """

    ids: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    report: EncodingReport

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """(sentences,) words of each sentence, end of sentence not counted."""
        return np.diff(self.offsets)

    def batch(self, indices: Sequence[int] | npt.NDArray[np.integer]) -> TextBatch:
        """The sentences with these indices as one padded batch, in the order given."""
        import torch

        rows = np.asarray(indices, dtype=np.int64)
        starts, ends = self.offsets[rows], self.offsets[rows + 1]
        lengths = ends - starts
        width = int(lengths.max(initial=0))
        is_word = np.arange(width) < lengths[:, None]  # (batch, width)
        flat = np.concatenate([self.ids[s:e] for s, e in zip(starts, ends, strict=True)]) if len(rows) else self.ids[:0]
        inputs = np.full((len(rows), width + 1), PAD, dtype=np.int64)
        targets = inputs.copy()
        inputs[:, 0] = BOS
        inputs[:, 1:][is_word] = flat
        targets[:, :-1][is_word] = flat
        targets[np.arange(len(rows)), lengths] = EOS
        return TextBatch(torch.from_numpy(inputs), torch.from_numpy(targets), torch.from_numpy(lengths + 1))


def encode(
    sentences: Iterable[str],
    tokenizer: "Tokenizer",
    max_length: int | None = None,
    overlong: Literal["drop", "cut"] = "drop",
) -> EncodedText:
    """Sentences as ids, with a report of what was dropped, cut and unknown.

    Args:
        sentences: words between blanks; blank sentences are left out and counted.
        tokenizer: of `build_tokenizer`.
        max_length: longest sentence in words, end of sentence not counted; None: no limit.
        overlong: whether longer sentences are dropped or cut to `max_length`.

    Raises:
        DataError: no sentence is left; the message says why.
    """
    from tokenizers import Tokenizer

    report = EncodingReport()
    pieces: list[npt.NDArray[np.int32]] = []
    lengths: list[int] = []
    # The text's own <pad>, <bos>, <eos> must be words like others here, and the caller's tokenizer must not change.
    plain = Tokenizer.from_str(tokenizer.to_str())
    plain.encode_special_tokens = True
    for chunk in _chunks(sentences, ENCODED_AT_ONCE):
        if kept := list(_encode_chunk(chunk, plain, max_length, overlong, report)):
            pieces.append(np.concatenate(kept))
            lengths += map(len, kept)
    if isinstance(sentences, Sentences):
        report.blank_lines += sentences.blank_lines
    if not lengths:
        raise DataError(
            f"no sentence is left: {report.blank_lines} blank lines, and {report.dropped} sentences longer than "
            f"max_length = {max_length} words dropped. Give more text, raise max_length, or cut instead of dropping."
        )
    report.sentences = len(lengths)
    return EncodedText(np.concatenate(pieces), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), report)


def _encode_chunk(
    chunk: list[str],
    tokenizer: "Tokenizer",
    max_length: int | None,
    overlong: Literal["drop", "cut"],
    report: EncodingReport,
) -> Iterator[npt.NDArray[np.int32]]:
    """Ids of each sentence of a chunk that is kept; `report` is brought up to date."""
    for encoding in tokenizer.encode_batch_fast(chunk, add_special_tokens=False):
        ids = np.array(encoding.ids, dtype=np.int32)
        if not len(ids):
            report.blank_lines += 1
            continue
        if max_length is not None and len(ids) > max_length:
            if overlong == "drop":
                report.dropped += 1
                continue
            report.cut += 1
            ids = ids[:max_length]
        special = ids < UNK
        ids[special] = UNK
        report.words += len(ids)
        report.unknown_words += int((ids == UNK).sum())
        report.special_words += int(special.sum())
        yield ids


def _chunks(sentences: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(sentences)
    while chunk := list(islice(iterator, size)):
        yield chunk


def bucketed_batches(
    lengths: npt.NDArray[np.integer], batch_size: int, seed: int, epoch: int
) -> list[npt.NDArray[np.int64]]:
    """Indices of the sentences in shuffled batches of similar length: every sentence once, little padding.

    A pure function of its arguments, so that a resumed run sees the batches it would have seen. All sentences are
    shuffled and cut in pools of 50 batches; each pool is sorted by length and cut in batches; the batches are shuffled.
    The last batch cut is smaller where the sentences do not come out even.

    Args:
        lengths: (sentences,) words of each sentence.
        batch_size: sentences in a batch.
        seed: of the run's data order.
        epoch: each epoch has another order.
    """
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(lengths))
    pool = POOL_BATCHES * batch_size
    batches = []
    for start in range(0, len(order), pool):
        members = order[start : start + pool]
        # A stable sort leaves equal lengths in the shuffled order.
        batches += _cut(members[np.argsort(lengths[members], kind="stable")], batch_size)
    return [batches[index] for index in random.permutation(len(batches))]


def token_batches(
    lengths: npt.NDArray[np.integer], batch_tokens: int, seed: int, epoch: int
) -> list[npt.NDArray[np.int64]]:
    """Indices of the sentences in shuffled batches of similar length that are bounded by words, not by sentences.

    A batch of n sentences, the longest of w words, counts n (w + 1) tokens: padding and ends of sentence included. A
    sentence that is longer than the bound is a batch by itself. All sentences are sorted by length, equal lengths in a
    new random order each epoch, and cut as late as the bound allows: so every epoch has as many batches as any other.

    Args:
        lengths: (sentences,) words of each sentence.
        batch_tokens: most tokens of a batch.
        seed: of the run's data order.
        epoch: each epoch has another order.
    """
    random = np.random.default_rng([seed, epoch])
    shuffled = random.permutation(len(lengths))
    order = shuffled[np.argsort(lengths[shuffled], kind="stable")]
    cuts, begin = [], 0
    for place, length in enumerate(lengths[order].tolist()):
        if place > begin and (place - begin + 1) * (length + 1) > batch_tokens:
            cuts.append(place)
            begin = place
    batches = np.split(order, cuts)
    return [batches[index] for index in random.permutation(len(batches))]


def sequential_batches(lengths: npt.NDArray[np.integer], batch_size: int) -> list[npt.NDArray[np.int64]]:
    """Indices of the sentences in batches from the shortest sentence to the longest, for evaluation."""
    return _cut(np.argsort(lengths, kind="stable"), batch_size)


def _cut(indices: npt.NDArray[np.int64], batch_size: int) -> list[npt.NDArray[np.int64]]:
    return [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
