"""The vocabulary: which tokens a text is made of, how raw text becomes them, and how they become text again.

Two kinds. `word`: a token is what stands between blanks, and words outside the vocabulary are <unk>. `bpe`: byte-level
byte-pair encoding (Sennrich et al., ACL 2016; on bytes as in GPT-2), in which no word is unknown. A tokenizer carries
its text policy (lower case, numbers) as its normaliser, so one that was saved treats later text as it treated the
training text.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from textebm import plain_json
from textebm.errors import CheckpointError, ConfigError, DataError
from textebm.model.recurrent import BOS, EOS, PAD, SPECIAL_TOKENS, UNK

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.normalizers import Normalizer

Kind = Literal["word", "bpe"]
Numbers = Literal["keep", "N", "digits"]

NUMBER = r"(?<!\S)[-+]?(?:\d+(?:[.,]\d+)*|\.\d+)(?!\S)"
"""A word that is a number, for `numbers: N`: 1990, 1,234.5, -3, .25."""
BYTES = 256
"""Smallest units of the byte-level encoding."""
SENTENCES_AT_ONCE = 10_000
TOKENIZER_FILE, TOKENIZER_CONFIG_FILE = "tokenizer.json", "tokenizer_config.json"


def build_tokenizer(
    sentences: Iterable[str],
    vocab_size: int,
    kind: Kind = "word",
    min_count: int = 1,
    lowercase: bool = False,
    numbers: Numbers = "keep",
) -> "Tokenizer":
    """A tokenizer of a training split.

    Args:
        sentences: the training split; gone through once, in memory that grows with the number of different words only.
        vocab_size: largest number of entries, the four special tokens included.
        kind: `word` or `bpe`.
        min_count: words that occur less often do not enter the vocabulary (`bpe`: pairs that occur less often are not
            merged).
        lowercase: whether text is put in lower case first.
        numbers: `keep` them, replace each word that is a number by `N` (as Penn Treebank does; with `lowercase`: n),
            or each of the `digits` by 0.

    Returns:
        A tokenizer whose ids are <pad> 0, <bos> 1, <eos> 2, <unk> 3, then by falling count for `word` the words, equal
        counts in alphabetical order; for `bpe` the bytes and the merged pairs, equal counts in the order of merging.

    Raises:
        ConfigError: `vocab_size` leaves no room for a word, or for the bytes.
        DataError: there is no word but special tokens, or none is frequent enough.
    """
    units, smallest = (BYTES, "the bytes") if kind == "bpe" else (1, "one word")
    if vocab_size < len(SPECIAL_TOKENS) + units:
        needed = len(SPECIAL_TOKENS) + units
        raise ConfigError(
            f"vocab_size is {vocab_size}: it must be at least {needed}, four special tokens and {smallest}"
        )
    make = _byte_pair_tokenizer if kind == "bpe" else _word_tokenizer
    tokenizer = make(sentences, vocab_size, min_count, _normaliser(lowercase, numbers))
    return tokenizer


def _word_tokenizer(
    sentences: Iterable[str], vocab_size: int, min_count: int, normaliser: "Normalizer | None"
) -> "Tokenizer":
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    counts = count_words(_normalised(sentences, normaliser))
    for token in SPECIAL_TOKENS:
        counts.pop(token, None)
    if not counts:
        raise DataError("the training split has no word to make a vocabulary of: it is empty or holds blank lines only")
    often = [word for word, count in counts.items() if count >= min_count]
    if not often:
        raise DataError(
            f"no word occurs {min_count} times: the most frequent of the training split occurs "
            f"{max(counts.values())} times. Lower min_count."
        )
    ranked = sorted(often, key=lambda word: (-counts[word], word))[: vocab_size - len(SPECIAL_TOKENS)]
    vocabulary = {word: index for index, word in enumerate((*SPECIAL_TOKENS, *ranked))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=SPECIAL_TOKENS[UNK]))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    if normaliser is not None:
        tokenizer.normalizer = normaliser
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def _byte_pair_tokenizer(
    sentences: Iterable[str], vocab_size: int, min_count: int, normaliser: "Normalizer | None"
) -> "Tokenizer":
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer

    tokenizer = Tokenizer(BPE(unk_token=SPECIAL_TOKENS[UNK]))
    if normaliser is not None:
        tokenizer.normalizer = normaliser
    # Every word begins with a blank of its own, so that pairs never reach across words and text can be put together.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_count,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words: Counter[str] = Counter()
    tokenizer.train_from_iterator(_counted(sentences, words), trainer)
    if not words:
        raise DataError("the training split has no word to make a vocabulary of: it is empty or holds blank lines only")
    return _by_falling_count(tokenizer, words)


def _counted(sentences: Iterable[str], words: "Counter[str]") -> Iterator[str]:
    """The sentences, whose words are counted as they go by."""
    for sentence in sentences:
        words.update(sentence.split())
        yield sentence


def _by_falling_count(tokenizer: "Tokenizer", words: "Counter[str]") -> "Tokenizer":
    """The same tokenizer, its ids in the order of how often these words have each token."""
    from tokenizers import Tokenizer

    counts: Counter[int] = Counter()
    different = list(words)
    for first in range(0, len(different), SENTENCES_AT_ONCE):
        some = different[first : first + SENTENCES_AT_ONCE]
        for word, found in zip(some, tokenizer.encode_batch(some, add_special_tokens=False), strict=True):
            for token in found.ids:
                counts[token] += words[word]
    described = json.loads(tokenizer.to_str())
    ids: dict[str, int] = described["model"]["vocab"]
    special = [token for token in SPECIAL_TOKENS if token in ids]
    others = sorted(ids.keys() - set(special), key=lambda token: (-counts[ids[token]], ids[token]))
    described["model"]["vocab"] = {token: index for index, token in enumerate([*special, *others])}
    return Tokenizer.from_str(json.dumps(described))


def _normaliser(lowercase: bool, numbers: Numbers) -> "Normalizer | None":
    """The text policy as a normaliser of `tokenizers`; None leaves text as it is."""
    from tokenizers import Regex, normalizers

    parts: list[normalizers.Normalizer] = []
    if numbers == "N":
        parts.append(normalizers.Replace(Regex(NUMBER), "N"))
    elif numbers == "digits":
        parts.append(normalizers.Replace(Regex("[0-9]"), "0"))
    if lowercase:  # last, so that the policy leaves alone what it has made: N becomes n, in the text's own N too
        parts.append(normalizers.Lowercase())
    return normalizers.Sequence(parts) if parts else None


def _normalised(sentences: Iterable[str], normaliser: "Normalizer | None") -> Iterable[str]:
    return sentences if normaliser is None else map(normaliser.normalize_str, sentences)


def apply_policy(tokenizer: "Tokenizer", sentences: Iterable[str]) -> Iterable[str]:
    """Sentences as the tokenizer's text policy has them: what a model of that tokenizer would write."""
    return _normalised(sentences, tokenizer.normalizer)


def is_word_level(tokenizer: "Tokenizer") -> bool:
    """Whether a token is a word."""
    from tokenizers.models import WordLevel

    return isinstance(tokenizer.model, WordLevel)


def count_words(sentences: Iterable[str]) -> Counter[str]:
    """How often each word occurs, in memory that grows with the number of different words only."""
    import pyarrow.compute as pc

    counts: Counter[str] = Counter()
    for chunk in chunks(sentences, SENTENCES_AT_ONCE):
        words, _ = split_words(chunk)
        for pair in pc.value_counts(words).to_pylist():
            counts[pair["values"]] += pair["counts"]
    counts.pop("", None)  # a blank sentence splits into one empty word
    return counts


def split_words(sentences: list[str]):  # type: ignore[no-untyped-def] # noqa: ANN201 (pyarrow has no types)
    """The words of sentences as one Arrow array of strings, and where each sentence begins: (sentences + 1,) offsets.

    Several times faster than a loop in Python, and it leaves the interpreter free for other threads.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    lists = pc.split_pattern(pa.array([" ".join(s.split()) for s in sentences], pa.large_string()), " ")
    return lists.flatten(), lists.offsets.to_numpy()


def chunks(items: Iterable[str], size: int) -> Iterator[list[str]]:
    """The items in lists of `size`, the last one shorter."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def decode(tokenizer: "Tokenizer", ids: Iterable[int]) -> str:
    """The sentence that ids stand for, words joined by blanks: up to the first <eos>, without <pad> and <bos>."""
    kept = []
    for index in map(int, ids):
        if index == EOS:
            break
        if index not in (PAD, BOS):
            kept.append(index)
    text = tokenizer.decode(kept, skip_special_tokens=False)
    if tokenizer.decoder is None:  # words
        return text
    return " ".join(
        text.replace("\0", "").split()
    )  # bytes can spell a line break or a NUL, which no line of text holds


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
    write_tokenizer(tokenizer, folder / TOKENIZER_FILE)
    (folder / TOKENIZER_CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def write_tokenizer(tokenizer: "Tokenizer", path: Path) -> None:
    """Write a tokenizer's JSON file; unlike `Tokenizer.save` it fails with an OSError that says why."""
    path.write_text(tokenizer.to_str(pretty=True), encoding="utf-8")


def load_tokenizer(folder: str | Path) -> "Tokenizer":
    """The tokenizer that `save_tokenizer` wrote.

    Raises:
        CheckpointError: the file is missing, broken, or has other special tokens than ours.
    """
    path = Path(folder) / TOKENIZER_FILE
    if not path.is_file():
        raise CheckpointError(f"there is no {path}: is {str(folder)!r} a folder that textebm saved a model in?")
    return read_tokenizer(path)


PARTS = {
    "normalizer": ("Sequence", "Replace", "Lowercase"),
    "pre_tokenizer": ("Sequence", "WhitespaceSplit", "ByteLevel"),
    "decoder": ("ByteLevel",),
    "post_processor": (),
    "truncation": (),
    "padding": (),
}
"""What a tokenizer of ours has beside its model; `Replace` has one of our two patterns."""


def _require_ours(described: dict[str, Any]) -> None:
    """Check that a tokenizer's JSON is of the form that we write.

    The library that reads it trusts it: a number of a token that is too large, a merge of unknown parts or a regular
    expression of another's making end in an abort, or never.

    Raises:
        ValueError: it is not; anything else where it has not even the shape.
    """
    model = described["model"]
    vocabulary = model["vocab"]
    if model["type"] not in ("WordLevel", "BPE") or described.get("version") != "1.0":
        raise ValueError("it is of another kind")
    if not all(type(number) is int for number in vocabulary.values()):
        raise ValueError("a token without a number")
    if sorted(vocabulary.values()) != list(range(len(vocabulary))):
        raise ValueError(f"its {len(vocabulary):,} tokens are not numbered from 0 on, each once")
    for pair in model.get("merges", ()):
        first, second = pair.split(" ") if isinstance(pair, str) else pair
        if not {first, second, first + second} <= vocabulary.keys():
            raise ValueError(f"a merge of {first!r} and {second!r}, which are not in its vocabulary")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key) is not None:
            raise ValueError(f"it has a {key}")
    for token in described["added_tokens"]:
        if vocabulary.get(token["content"]) != token["id"] or not isinstance(token["id"], int):
            raise ValueError(f"a token {token['content']!r} that is not in its vocabulary")
    for name, kinds in PARTS.items():
        for part in _parts(described.get(name)):
            if part["type"] not in kinds:
                raise ValueError(f"a {name} of another kind")
            if part["type"] == "Replace" and part["pattern"] not in ({"Regex": NUMBER}, {"Regex": "[0-9]"}):
                raise ValueError("it replaces another pattern")


def _parts(described: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401 (whatever is in it)
    """A part of a tokenizer, and those that it is a sequence of."""
    if described is None:
        return
    yield described
    if described["type"] == "Sequence":
        for key in ("normalizers", "pretokenizers"):
            for inner in described.get(key, ()):
                if inner["type"] == "Sequence":
                    raise ValueError("a sequence of sequences")
                yield inner


def read_tokenizer(path: Path) -> "Tokenizer":
    """A tokenizer from its JSON file; see `load_tokenizer`."""
    from tokenizers import Tokenizer

    try:
        written = path.read_text(encoding="utf-8")
        _require_ours(plain_json.parse(written))
        tokenizer = Tokenizer.from_str(written)
    except Exception as error:  # tokenizers raises bare Exception; and what is not of our form any
        raise CheckpointError(f"{path} is broken: {error or type(error).__name__}") from None
    if [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] != [PAD, BOS, EOS, UNK]:
        raise CheckpointError(f"{path} is not ours: its first four tokens must be {', '.join(SPECIAL_TOKENS)}")
    return tokenizer
