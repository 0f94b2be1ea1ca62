"""Vocabularies: words and byte pairs, text policies, and what is saved of them."""

import json
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from textebm.data.registry import resolve
from textebm.data.text import encode
from textebm.data.vocabulary import (
    apply_policy,
    build_tokenizer,
    count_words,
    decode,
    is_word_level,
    load_tokenizer,
    save_tokenizer,
)
from textebm.errors import CheckpointError, ConfigError, DataError
from textebm.model.recurrent import BOS, EOS, PAD, SPECIAL_TOKENS, UNK

TEXT = ["the cat sat", "the cat ran", "a dog ran home , quickly", "the end"]


@pytest.fixture
def tokenizer():
    return build_tokenizer(TEXT, 100)


@pytest.fixture(scope="module")
def demo():
    return list(resolve("demo").sentences("valid"))


# --- words ---


def test_ids_are_specials_then_words_by_falling_count_then_alphabet(tokenizer):
    words = [tokenizer.id_to_token(index) for index in range(tokenizer.get_vocab_size())]
    assert words == [*SPECIAL_TOKENS, "the", "cat", "ran", ",", "a", "dog", "end", "home", "quickly", "sat"]


def test_vocabulary_does_not_depend_on_the_order_of_sentences(tokenizer):
    assert build_tokenizer(reversed(TEXT), 100).get_vocab() == tokenizer.get_vocab()


def test_vocab_size_counts_the_specials_and_cuts_the_rarest():
    tokenizer = build_tokenizer(TEXT, 6)
    assert tokenizer.get_vocab_size() == 6
    assert encode(["the cat ran"], tokenizer).sentence(0).tolist() == [4, 5, UNK]


def test_vocabulary_of_one_word():
    tokenizer = build_tokenizer(["word"], 5)
    assert decode(tokenizer, encode(["word word"], tokenizer).sentence(0)) == "word word"


def test_special_tokens_in_the_text_do_not_enter_the_vocabulary_twice():
    tokenizer = build_tokenizer(["<unk> <pad> <eos> <bos> word", "<unk>"], 100)
    assert tokenizer.get_vocab_size() == 5


def test_vocabulary_errors():
    with pytest.raises(ConfigError, match="vocab_size is 4: it must be at least 5"):
        build_tokenizer(TEXT, 4)
    for nothing in ([], ["", "  "], ["<unk> <unk>"]):
        with pytest.raises(DataError, match="no word to make a vocabulary"):
            build_tokenizer(nothing, 100)


def test_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path)
    assert load_tokenizer(tmp_path).to_str() == tokenizer.to_str()
    assert written(encode(TEXT, load_tokenizer(tmp_path)), tokenizer) == TEXT


def test_transformers_loads_it(tokenizer, tmp_path):
    with warnings.catch_warnings():  # transformers' own deprecations are not ours to fix
        warnings.simplefilter("ignore")
        transformers = pytest.importorskip("transformers")
    save_tokenizer(tokenizer, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"data": "demo"}), encoding="utf-8")  # a run's own, not a model's
    for loader in (transformers.AutoTokenizer, transformers.PreTrainedTokenizerFast):
        theirs = loader.from_pretrained(str(tmp_path))
        assert len(theirs) == tokenizer.get_vocab_size()
        ids = (theirs.pad_token_id, theirs.bos_token_id, theirs.eos_token_id, theirs.unk_token_id)
        assert ids == (PAD, BOS, EOS, UNK)
        assert theirs("the cat flew")["input_ids"] == encode(["the cat flew"], tokenizer).sentence(0).tolist()
        assert theirs.decode([4, 5, UNK]) == "the cat <unk>"


def test_load_errors(tmp_path, tokenizer):
    with pytest.raises(CheckpointError, match=r"there is no .*tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": ', encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is broken"):
        load_tokenizer(tmp_path)
    foreign = tokenizer.to_str().replace("<bos>", "<s>")
    (tmp_path / "tokenizer.json").write_text(foreign, encoding="utf-8")
    with pytest.raises(CheckpointError, match="is not ours"):
        load_tokenizer(tmp_path)


def test_decode_stops_at_the_end_and_keeps_unknown_words(tokenizer):
    assert decode(tokenizer, [BOS, 4, UNK, 5, EOS, 4, PAD]) == "the <unk> cat"
    assert decode(tokenizer, torch.tensor([EOS, 4])) == ""


def written(encoded, tokenizer):
    """Every sentence of an encoded text as text."""
    return [decode(tokenizer, encoded.sentence(row)) for row in range(len(encoded))]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=30))
def test_words_are_counted_as_python_would(sentences):
    by_hand = {}
    for sentence in sentences:
        for word in sentence.split():
            by_hand[word] = by_hand.get(word, 0) + 1
    assert dict(count_words(sentences)) == by_hand


def test_rare_words_stay_out():
    assert set(build_tokenizer(TEXT, 100, min_count=2).get_vocab()) == {*SPECIAL_TOKENS, "the", "cat", "ran"}
    with pytest.raises(
        DataError, match="no word occurs 9 times: the most frequent of the training split occurs 3 times"
    ):
        build_tokenizer(TEXT, 100, min_count=9)


# --- text policies ---


@pytest.mark.parametrize(
    ("settings", "text", "expected"),
    [
        ({"lowercase": True}, "The CAT É <UNK>", "the cat é <unk>"),
        ({"numbers": "N"}, "in 1990 , -3 or 1,234.5 x3 3% .25 1990s 4", "in N , N or N x3 3% N 1990s N"),
        ({"numbers": "digits"}, "in 1990 x3", "in 0000 x0"),
        ({"lowercase": True, "numbers": "N"}, "A 7 N n", "a n n n"),
        ({}, "As It 1s", "As It 1s"),
    ],
)
@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_a_text_policy_holds_for_the_vocabulary_and_for_later_text(settings, text, expected, kind, tmp_path):
    tokenizer = build_tokenizer([text], 300, kind, **settings)
    save_tokenizer(tokenizer, tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert list(apply_policy(tokenizer, [text])) == [expected]
    assert written(encode([text, expected], tokenizer), tokenizer) == [expected, expected]


# --- byte pairs ---


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), min_size=1, max_size=10))
def test_byte_pairs_write_any_text_again(demo_pairs, sentences):
    plain = [" ".join(sentence.replace("\0", "").split()) for sentence in sentences]
    encoded = encode([*plain, "end"], demo_pairs)
    assert written(encoded, demo_pairs) == [*filter(None, plain), "end"]
    assert encoded.words(range(len(encoded))).tolist() == [len(s.split()) for s in [*filter(None, plain), "end"]]


@pytest.fixture(scope="module")
def demo_pairs(demo):
    return build_tokenizer(demo, 600, "bpe")


def test_byte_pairs_are_the_bytes_and_the_most_frequent_pairs(demo_pairs):
    assert demo_pairs.get_vocab_size() == 600
    assert [demo_pairs.id_to_token(i) for i in range(4)] == list(SPECIAL_TOKENS)
    assert not is_word_level(demo_pairs)
    assert "\u0120the" in demo_pairs.get_vocab()


def test_ids_of_byte_pairs_fall_with_their_count(demo, demo_pairs):
    """As those of words do: the sampled softmax draws by rank."""
    encoded = encode(demo, demo_pairs)
    tokens = np.concatenate([encoded.sentence(row) for row in range(len(encoded))])
    counts = np.bincount(tokens, minlength=600)[len(SPECIAL_TOKENS) :]
    assert counts[0] > 0
    assert (np.diff(counts) <= 0).all()


def test_longer_vocabularies_give_shorter_texts(demo):
    tokens = [encode(demo, build_tokenizer(demo, size, "bpe")).report.tokens for size in (260, 600, 2000)]
    assert tokens == sorted(tokens, reverse=True) and tokens[0] == sum(len(f" {s}".encode()) for s in demo)


def test_specials_and_unknown_words_in_the_text_are_text_like_other():
    tokenizer = build_tokenizer(["<unk> <eos> a"], 300, "bpe")
    encoded = encode(["<unk> <eos> <pad> b"], tokenizer)
    assert written(encoded, tokenizer) == ["<unk> <eos> <pad> b"]
    assert encoded.sentence(0).min() > UNK
    assert (encoded.report.unknown_words, encoded.report.words, encoded.report.special_words) == (1, 4, 0)


def test_bytes_that_are_no_text_cannot_break_a_line():
    tokenizer = build_tokenizer(["a b"], 300, "bpe")
    vocabulary = tokenizer.get_vocab()
    newline, nul, blank, half = (vocabulary[t] for t in ("\u010a", "\u0100", "\u0120", "\u00c3"))
    assert decode(tokenizer, [vocabulary["a"], newline, nul, blank, blank, vocabulary["b"], half]) == "a b\ufffd"


def test_byte_pairs_need_room_for_the_bytes():
    with pytest.raises(ConfigError, match="vocab_size is 259: it must be at least 260"):
        build_tokenizer(TEXT, 259, "bpe")
    with pytest.raises(DataError, match="no word to make a vocabulary"):
        build_tokenizer(["", " "], 300, "bpe")


def test_transformers_reads_byte_pairs_alike(demo, demo_pairs, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = pytest.importorskip("transformers")
    save_tokenizer(demo_pairs, tmp_path)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(str(tmp_path))
    encoded = encode(demo[:50], demo_pairs)
    for row, sentence in enumerate(demo[:50]):
        assert theirs(sentence)["input_ids"] == encoded.sentence(row).tolist()
