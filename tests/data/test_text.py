"""Vocabulary, encoding and batches: laws first."""

import json
import warnings

import numpy as np
import pytest
import torch

from textebm.data.registry import resolve
from textebm.data.text import (
    bucketed_batches,
    build_tokenizer,
    decode,
    encode,
    load_tokenizer,
    save_tokenizer,
    sequential_batches,
    token_batches,
)
from textebm.errors import CheckpointError, ConfigError, DataError
from textebm.model.recurrent import BOS, EOS, PAD, SPECIAL_TOKENS, UNK

TEXT = ["the cat sat", "the cat ran", "a dog ran home , quickly", "the end"]


@pytest.fixture
def tokenizer():
    return build_tokenizer(TEXT, 100)


def ptb_like_lengths(count: int) -> np.ndarray:
    """Lengths with the mean (21), spread (about 10) and tail (82) of PTB's sentences."""
    return np.random.default_rng(1).gamma(4.4, 4.8, count).round().clip(1, 82).astype(np.int64)


# --- vocabulary ---


def test_ids_are_specials_then_words_by_falling_count_then_alphabet(tokenizer):
    words = [tokenizer.id_to_token(index) for index in range(tokenizer.get_vocab_size())]
    assert words == [*SPECIAL_TOKENS, "the", "cat", "ran", ",", "a", "dog", "end", "home", "quickly", "sat"]


def test_vocabulary_does_not_depend_on_the_order_of_sentences(tokenizer):
    assert build_tokenizer(reversed(TEXT), 100).get_vocab() == tokenizer.get_vocab()


def test_vocab_size_counts_the_specials_and_cuts_the_rarest():
    tokenizer = build_tokenizer(TEXT, 6)
    assert tokenizer.get_vocab_size() == 6
    assert encode(["the cat ran"], tokenizer).ids.tolist() == [4, 5, UNK]


def test_vocabulary_of_one_word():
    tokenizer = build_tokenizer(["word"], 5)
    assert decode(tokenizer, encode(["word word"], tokenizer).ids) == "word word"


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
    encoded = encode(TEXT, load_tokenizer(tmp_path))
    sentences = [
        decode(tokenizer, encoded.ids[s:e]) for s, e in zip(encoded.offsets, encoded.offsets[1:], strict=False)
    ]
    assert sentences == TEXT


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
        assert theirs("the cat flew")["input_ids"] == encode(["the cat flew"], tokenizer).ids.tolist()
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


# --- encoding ---


def test_words_round_trip_on_real_sentences():
    sentences = list(resolve("demo").sentences("valid"))
    tokenizer = build_tokenizer(sentences, 100_000)
    encoded = encode(sentences, tokenizer)
    assert encoded.report.unknown_words == 0
    starts_and_ends = zip(encoded.offsets[:-1], encoded.offsets[1:], strict=True)
    assert [decode(tokenizer, encoded.ids[start:end]) for start, end in starts_and_ends] == sentences
    assert encoded.lengths.tolist() == [len(sentence.split()) for sentence in sentences]
    assert (encoded.ids.dtype, encoded.offsets.dtype) == (np.int32, np.int64)


def test_special_tokens_in_the_text_become_unknown_and_are_counted(tokenizer):
    encoded = encode(["the <pad> <bos> cat <eos> <unk> the<eos>cat"], tokenizer)
    assert encoded.ids.tolist() == [4, UNK, UNK, 5, UNK, UNK, UNK]
    assert (encoded.report.special_words, encoded.report.unknown_words, encoded.report.words) == (3, 5, 7)
    assert tokenizer.encode_special_tokens is False  # the caller's tokenizer is as it was


def test_every_kind_of_blank_separates_words_alike(tokenizer):
    assert (
        encode(["the\u00a0cat\u2003ran\u3000home"], tokenizer).ids.tolist()
        == encode(["the cat ran home"], tokenizer).ids.tolist()
    )


def test_overlong_sentences_are_dropped_and_counted(tokenizer):
    encoded = encode(TEXT, tokenizer, max_length=3, overlong="drop")
    assert (len(encoded), encoded.report.sentences, encoded.report.dropped, encoded.report.cut) == (3, 3, 1, 0)
    assert encoded.report.words == 8 and encoded.lengths.max() == 3


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
    with pytest.raises(DataError, match="0 blank lines, and 4 sentences longer than max_length = 1 words dropped"):
        encode(TEXT, tokenizer, max_length=1)
    with pytest.raises(DataError, match="no sentence is left"):
        encode([], tokenizer)


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


# --- batches ---


@pytest.mark.parametrize(("count", "batch_size"), [(1, 32), (31, 32), (32, 32), (33, 32), (5000, 64), (4999, 1)])
def test_batches_are_a_partition(count, batch_size):
    lengths = ptb_like_lengths(count)
    for batches in (bucketed_batches(lengths, batch_size, 0, 0), sequential_batches(lengths, batch_size)):
        assert sorted(np.concatenate(batches).tolist()) == list(range(count))
        assert sorted(map(len, batches), reverse=True)[:-1] == [batch_size] * (len(batches) - 1)
        assert len(batches) == -(-count // batch_size)


def test_batches_are_a_pure_function_of_seed_and_epoch():
    lengths = ptb_like_lengths(3000)

    def order(seed, epoch):
        return [batch.tolist() for batch in bucketed_batches(lengths, 32, seed, epoch)]

    assert order(3, 4) == order(3, 4)
    assert order(3, 4) != order(4, 3)
    assert order(3, 4) != order(3, 5)
    # Another epoch has other batches, not the same ones in another order.
    assert not {tuple(sorted(batch)) for batch in order(3, 4)} & {tuple(sorted(batch)) for batch in order(3, 5)}


@pytest.mark.parametrize("batch_size", [32, 64, 128])
def test_little_padding_on_ptb_like_lengths(batch_size):
    lengths = ptb_like_lengths(42_068)
    targets = lengths + 1
    cells = sum(len(batch) * targets[batch].max() for batch in bucketed_batches(lengths, batch_size, 0, 0))
    assert 1 - targets.sum() / cells < 0.10


def test_batches_come_in_no_order_of_length():
    lengths = ptb_like_lengths(20_000)
    means = [lengths[batch].mean() for batch in bucketed_batches(lengths, 32, 0, 0)]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.15


def test_equal_lengths_are_shuffled():
    first = bucketed_batches(np.full(1000, 7), 1000, 0, 0)[0]
    assert first.tolist() != sorted(first.tolist())


def test_sequential_batches_rise_in_length():
    lengths = ptb_like_lengths(1000)
    ordered = lengths[np.concatenate(sequential_batches(lengths, 64))]
    assert (np.diff(ordered) >= 0).all()


# --- batches bounded by words ---


@pytest.mark.parametrize("bound", [1, 50, 700, 10**9])
def test_token_batches_are_a_partition_within_the_bound(bound):
    lengths = ptb_like_lengths(3000)
    batches = token_batches(lengths, bound, 0, 0)
    assert sorted(np.concatenate(batches).tolist()) == list(range(3000))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * (lengths[batch].max() + 1) <= bound


def test_every_epoch_has_as_many_token_batches():
    lengths = ptb_like_lengths(3000)
    assert {len(token_batches(lengths, 700, seed, epoch)) for seed in range(3) for epoch in range(5)} == {
        len(token_batches(lengths, 700, 0, 0))
    }


def test_token_batches_are_a_pure_function_of_seed_and_epoch():
    lengths = ptb_like_lengths(3000)

    def order(seed, epoch):
        return [batch.tolist() for batch in token_batches(lengths, 700, seed, epoch)]

    assert order(3, 4) == order(3, 4)
    assert order(3, 4) != order(4, 3)
    repeated = {tuple(sorted(batch)) for batch in order(3, 4)} & {tuple(sorted(batch)) for batch in order(3, 5)}
    assert len(repeated) < 0.1 * len(order(3, 4))  # lengths that few sentences have leave few choices


def test_token_batches_hold_little_padding_and_fill_the_bound():
    lengths = ptb_like_lengths(42_068)
    batches = token_batches(lengths, 1500, 0, 0)
    cells = sum(len(batch) * (lengths[batch].max() + 1) for batch in batches)
    assert 1 - (lengths + 1).sum() / cells < 0.02
    assert cells > 0.9 * 1500 * len(batches)
