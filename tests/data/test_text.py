"""Encoding: laws first."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from textebm.data import text as text_module
from textebm.data.registry import resolve
from textebm.data.text import encode
from textebm.data.vocabulary import build_tokenizer, decode
from textebm.errors import ConfigError, DataError
from textebm.model.recurrent import BOS, EOS, PAD, SPECIAL_TOKENS, UNK

TEXT = ["the cat sat", "the cat ran", "a dog ran home , quickly", "the end"]


@pytest.fixture
def tokenizer():
    return build_tokenizer(TEXT, 100)


# --- encoding ---


def test_words_round_trip_on_real_sentences():
    sentences = list(resolve("demo").sentences("valid"))
    tokenizer = build_tokenizer(sentences, 100_000)
    encoded = encode(sentences, tokenizer)
    assert encoded.report.unknown_words == 0
    rows = np.arange(len(encoded))
    assert [decode(tokenizer, encoded.sentence(row)) for row in rows] == sentences
    assert encoded.lengths[rows].tolist() == encoded.words(rows).tolist() == [len(s.split()) for s in sentences]
    assert encoded.report.longest == max(encoded.lengths[rows])
    assert encoded.sentence(0).dtype == np.int32


words_of_text = st.sampled_from(
    ["the", "cat", "sat", "dog", "<unk>", "<eos>", "<pad>", "Zebra", "zebra", "<eos>x", "é"]
)


@given(
    st.lists(st.lists(words_of_text, max_size=6).map(" ".join), min_size=1, max_size=40),
    st.one_of(st.none(), st.integers(1, 5)),
    st.sampled_from(["drop", "cut"]),
    st.sampled_from(["replace", "drop"]),
)
def test_encoding_is_what_a_plain_loop_over_words_gives(sentences, max_length, overlong, unknown_words):
    tokenizer = build_tokenizer(TEXT, 100)
    known = tokenizer.get_vocab()
    expected, report = [], dict.fromkeys(("dropped", "cut", "dropped_unknown", "blank_lines", "special_words"), 0)
    for sentence in sentences:
        words = sentence.split()
        if not words:
            report["blank_lines"] += 1
            continue
        if max_length is not None and len(words) > max_length:
            report["dropped" if overlong == "drop" else "cut"] += 1
            if overlong == "drop":
                continue
            words = words[:max_length]
        if unknown_words == "drop" and any(word not in known for word in words):
            report["dropped_unknown"] += 1
            continue
        report["special_words"] += sum(word in SPECIAL_TOKENS[:UNK] for word in words)
        ids = [known.get(word, UNK) for word in words]
        expected.append([UNK if index < UNK else index for index in ids])
    if not expected:
        with pytest.raises(DataError, match="no sentence is left"):
            encode(sentences, tokenizer, max_length, overlong, unknown_words)
        return
    encoded = encode(sentences, tokenizer, max_length, overlong, unknown_words)
    assert [encoded.sentence(row).tolist() for row in range(len(encoded))] == expected
    assert {key: getattr(encoded.report, key) for key in report} == report
    assert encoded.report.words == encoded.report.tokens == sum(map(len, expected))
    assert encoded.report.unknown_words == sum(ids.count(UNK) for ids in expected)


def test_the_order_of_sentences_is_kept_over_chunks_and_pieces(monkeypatch):
    sentences = [f"w{index % 97} w{index % 89}" for index in range(1000)]
    tokenizer = build_tokenizer(sentences, 1000)
    whole = [encode(sentences, tokenizer).sentence(row).tolist() for row in range(1000)]
    monkeypatch.setattr(text_module, "SENTENCES_AT_ONCE", 7)
    monkeypatch.setattr(text_module, "SENTENCES_A_PIECE", 64)
    encoded = encode(sentences, tokenizer)
    assert [len(piece) for piece in encoded.pieces] == [64] * 15 + [40]
    assert [encoded.sentence(row).tolist() for row in range(1000)] == whole
    rows = np.array([999, 0, 63, 64, 500, 0])
    assert encoded.lengths[rows].tolist() == encoded.words(rows).tolist() == [2] * 6
    assert torch.equal(encoded.batch(rows).targets[0, :2], torch.tensor(whole[999]))


def test_refused_unknown_words_are_named_with_their_sentence():
    tokenizer = build_tokenizer(TEXT, 100)
    with pytest.raises(DataError, match=r"the word 'zebra' is not in the vocabulary \(in: a zebra ran\).*vocab_size"):
        encode(["the <unk> cat", "a zebra ran", "no"], tokenizer, unknown_words="refuse")
    assert len(encode(["the <unk> cat"], tokenizer, unknown_words="refuse")) == 1
    with pytest.raises(ConfigError, match="no word is unknown"):
        encode(["a"], build_tokenizer(["a"], 300, "bpe"), unknown_words="drop")


@pytest.mark.parametrize("overlong", ["drop", "cut"])
def test_lengths_are_limited_in_words_for_byte_pairs_too(overlong):
    tokenizer = build_tokenizer(TEXT, 300, "bpe")
    encoded = encode(TEXT, tokenizer, 3, overlong)
    kept = [" ".join(s.split()[:3]) for s in TEXT if overlong == "cut" or len(s.split()) <= 3]
    assert [decode(tokenizer, encoded.sentence(row)) for row in range(len(encoded))] == kept
    assert (encoded.report.dropped, encoded.report.cut) == ((1, 0) if overlong == "drop" else (0, 1))


def test_special_tokens_in_the_text_become_unknown_and_are_counted(tokenizer):
    encoded = encode(["the <pad> <bos> cat <eos> <unk> the<eos>cat"], tokenizer)
    assert encoded.sentence(0).tolist() == [4, UNK, UNK, 5, UNK, UNK, UNK]
    assert (encoded.report.special_words, encoded.report.unknown_words, encoded.report.words) == (3, 5, 7)
    assert tokenizer.encode_special_tokens is False  # the caller's tokenizer is as it was


def test_every_kind_of_blank_separates_words_alike(tokenizer):
    assert (
        encode(["the\u00a0cat\u2003ran\u3000home"], tokenizer).sentence(0).tolist()
        == encode(["the cat ran home"], tokenizer).sentence(0).tolist()
    )


def test_overlong_sentences_are_dropped_and_counted(tokenizer):
    encoded = encode(TEXT, tokenizer, max_length=3, overlong="drop")
    assert (len(encoded), encoded.report.sentences, encoded.report.dropped, encoded.report.cut) == (3, 3, 1, 0)
    assert encoded.report.words == 8 and encoded.report.longest == 3


def test_overlong_sentences_are_cut_and_counted(tokenizer):
    encoded = encode(TEXT, tokenizer, max_length=3, overlong="cut")
    assert (len(encoded), encoded.report.sentences, encoded.report.dropped, encoded.report.cut) == (4, 4, 0, 1)
    assert decode(tokenizer, encoded.batch([2]).targets[0]) == "a dog ran"
    assert encoded.report.words == 11


def test_blank_lines_are_counted_whether_the_reader_or_the_encoder_meets_them(tokenizer, tmp_path):
    assert encode(["the cat", "", "  "], tokenizer).report.blank_lines == 2
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_text("the cat\n\n \nran\n", encoding="utf-8")
    report = encode(resolve(str(tmp_path)).sentences("train"), tokenizer).report
    assert (report.blank_lines, report.sentences) == (2, 2)
    assert "2 blank lines left out" in str(report)


def test_nothing_left_says_why(tokenizer):
    with pytest.raises(
        DataError,
        match=r"0 blank lines, 4 sentences longer than max_length = 1 words dropped\. What helps: .*raise max_length",
    ):
        encode(TEXT, tokenizer, max_length=1)
    with pytest.raises(DataError, match=r"no sentence is left: 0 blank lines\. What helps: give more text\."):
        encode([], tokenizer)
    with pytest.raises(DataError, match=r"1 sentences dropped for a word outside the vocabulary\. .*raise vocab_size"):
        encode(["zebra"], tokenizer, unknown_words="drop")


def test_batch_is_padded_text_between_bos_and_eos(tokenizer):
    encoded = encode(TEXT, tokenizer)
    inputs, targets, lengths = encoded.batch(np.array([3, 2]))
    assert lengths.tolist() == [3, 7]
    assert inputs.tolist() == [[BOS, 4, 10, PAD, PAD, PAD, PAD], [BOS, 8, 9, 6, 11, 7, 12]]
    assert targets.tolist() == [[4, 10, EOS, PAD, PAD, PAD, PAD], [8, 9, 6, 11, 7, 12, EOS]]
    assert {tensor.dtype for tensor in (inputs, targets, lengths)} == {torch.int64}


def test_a_sentence_is_the_same_in_every_batch():
    sentences = list(resolve("demo").sentences("test"))[:200]
    encoded = encode(sentences, build_tokenizer(sentences, 300))
    together = encoded.batch(range(200))
    for index in range(200):
        alone = encoded.batch([index])
        length = int(alone.lengths[0])
        assert torch.equal(together.inputs[index, :length], alone.inputs[0])
        assert torch.equal(together.targets[index, :length], alone.targets[0])
        assert not together.inputs[index, length:].any() and not together.targets[index, length:].any()
