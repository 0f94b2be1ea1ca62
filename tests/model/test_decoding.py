"""Decoding: words are drawn with the model's own probabilities; greedy and beam search; truncation by hand."""

import itertools
import math

import pytest
import torch
from scipy import stats

from textebm.errors import ConfigError
from textebm.model.decoding import Decoding, decode, decode_by, invert, truncate
from textebm.model.recurrent import BOS, EOS, FIRST_OUTPUT, UNK

VOCABULARY = 7  # four special ids and three words: the generator writes <eos>, <unk> and the words
WORDS = range(UNK, VOCABULARY)
CELLS = ["lstm", "gru"]


@pytest.fixture
def latents(generator):
    return torch.randn(40, 3, generator=generator, dtype=torch.float64)


def log_prob(model, make_batch, sentences, z):
    return model.condition(make_batch(sentences)).log_prob(z).detach()


def next_word_probabilities(model, prefix, z, decoding):
    """p(next word | prefix, z) after truncation, by a loop over the words of one sentence."""
    state, word = model.initial_state(z), BOS
    for following in [*prefix, None]:
        logits, state = model.next_word_logits(torch.tensor([word]), z, state)
        word = following
    return truncate(logits, decoding).softmax(1)[0].detach()


def distribution(model, z, decoding):
    """The probability of every outcome of sampling, sentences that are cut at max_length included."""
    outcomes, open_prefixes = {}, {(): 1.0}
    for _ in range(decoding.max_length):
        longer = {}
        for prefix, mass in open_prefixes.items():
            probabilities = next_word_probabilities(model, prefix, z, decoding).tolist()
            for token, p in enumerate(probabilities, start=FIRST_OUTPUT):
                if token == EOS:
                    outcomes[prefix] = mass * p
                else:
                    longer[(*prefix, token)] = mass * p
        open_prefixes = longer
    return outcomes | open_prefixes


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.6}, {"temperature": 2.0}, {"top_k": 2}, {"top_p": 0.7}, {"top_k": 3, "top_p": 0.8}],
)
@pytest.mark.parametrize("cell", CELLS)
def test_sampling_follows_the_model(make_generator, generator, cell, options):
    """Chi-square over all sentences of up to two words, for two latents whose rows alternate."""
    model = make_generator(cell=cell, vocab_size=VOCABULARY, init_range=1.0)
    decoding = Decoding(max_length=2, **options)
    z = torch.tensor([[1.5, -1.0, 0.5], [-2.0, 0.3, 1.0]], dtype=torch.float64)
    rows = 4000
    sentences = decode(model, z.repeat(rows, 1), decoding, generator)
    expected = [distribution(model, z[i : i + 1], decoding) for i in range(2)]
    for i, probabilities in enumerate(expected):
        counts = dict.fromkeys(probabilities, 0)
        for sentence in sentences[i::2]:
            counts[tuple(sentence)] += 1  # a KeyError would be an impossible sentence
        assert all(counts[s] == 0 for s, p in probabilities.items() if p == 0)
        common = [s for s, p in probabilities.items() if p * rows >= 5]  # the rest go into one bin
        observed = [counts[s] for s in common]
        wanted = [probabilities[s] * rows for s in common]
        rest = rows - sum(wanted)
        if rest > 1:
            observed, wanted = [*observed, rows - sum(observed)], [*wanted, rest]
        assert stats.chisquare(observed, [w * rows / sum(wanted) for w in wanted]).pvalue > 1e-4
    apart = sum(abs(expected[0][s] - expected[1][s]) for s in expected[0].keys() & expected[1].keys())
    assert apart > 0.1  # the two latents speak differently, so a row that took the other's words would show


def test_uniform_numbers_invert_the_cumulative_distribution(generator):
    probabilities = torch.tensor([[0.0, 0.5, 0.0, 0.3, 0.2, 0.0]]).expand(20_000, -1)
    uniform = torch.rand(20_000, generator=generator, dtype=torch.float64)
    counts = invert(probabilities, uniform).bincount(minlength=6)
    assert counts[[0, 2, 5]].tolist() == [0, 0, 0]
    assert stats.chisquare(counts[[1, 3, 4]].numpy(), [10_000, 6_000, 4_000]).pvalue > 1e-3


@pytest.mark.parametrize("cell", CELLS)
def test_greedy_is_the_path_of_likeliest_words(make_generator, generator, latents, cell):
    model = make_generator(cell=cell, vocab_size=VOCABULARY, init_range=1.5)
    decoding = Decoding(method="greedy", max_length=6)
    sentences = decode(model, latents, decoding, generator)
    assert len({tuple(s) for s in sentences}) > 3
    for z, sentence in zip(latents.split(1), sentences, strict=True):
        path = []
        while len(path) < 6:
            token = int(next_word_probabilities(model, path, z, Decoding()).argmax()) + FIRST_OUTPUT
            if token == EOS:
                break
            path.append(token)
        assert sentence == path


@pytest.mark.parametrize("cell", CELLS)
class TestBeam:
    def test_of_one_is_greedy(self, make_generator, generator, latents, cell):
        model = make_generator(cell=cell, vocab_size=VOCABULARY, init_range=1.5)
        beam, greedy = (
            decode(model, latents, Decoding(method=method, beam_size=1, max_length=6), generator)
            for method in ("beam", "greedy")
        )
        assert beam == greedy

    def test_large_finds_the_likeliest_of_all_sentences(self, make_generator, make_batch, generator, latents, cell):
        """Exhaustive over the sentences of at most 3 words, for a beam that holds every prefix."""
        model = make_generator(cell=cell, vocab_size=VOCABULARY, init_range=3.0)  # sure of itself: words cost little
        sentences = [list(s) for n in range(4) for s in itertools.product(WORDS, repeat=n)]
        found = decode(model, latents, Decoding(method="beam", beam_size=5**3, max_length=3), generator)
        for z, sentence in zip(latents.split(1), found, strict=True):
            every = log_prob(model, make_batch, sentences, z.expand(len(sentences), -1))
            assert sentence == sentences[int(every.argmax())]
        assert {len(s) for s in found} >= {0, 3}  # the empty sentence and the longest allowed are among them

    def test_beats_greedy(self, make_generator, make_batch, generator, latents, cell):
        """Not a theorem, since a beam can lose the greedy path; so on fixed latents, and strictly somewhere."""
        model = make_generator(cell=cell, vocab_size=VOCABULARY, init_range=1.5)
        scores = [
            log_prob(model, make_batch, decode(model, latents, Decoding(method=m, max_length=8), generator), latents)
            for m in ("beam", "greedy")
        ]
        assert (scores[0] >= scores[1] - 1e-9).all()
        assert (scores[0] > scores[1] + 0.01).any()


class TestTruncate:
    LOGITS = torch.tensor([[0.4, 0.1, 0.3, 0.2]]).log()  # probabilities in no order

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({}, [0.4, 0.1, 0.3, 0.2]),
            ({"temperature": 0.5}, [16 / 30, 1 / 30, 9 / 30, 4 / 30]),  # squares, normalised
            ({"top_k": 1}, [1, 0, 0, 0]),
            ({"top_k": 3}, [4 / 9, 0, 3 / 9, 2 / 9]),
            ({"top_k": 9}, [0.4, 0.1, 0.3, 0.2]),
            ({"top_p": 0.39}, [1, 0, 0, 0]),  # the likeliest word stays whatever p is
            ({"top_p": 0.41}, [4 / 7, 0, 3 / 7, 0]),
            ({"top_p": 0.65}, [4 / 7, 0, 3 / 7, 0]),
            ({"top_p": 0.75}, [4 / 9, 0, 3 / 9, 2 / 9]),  # the word that reaches p belongs to them
            ({"top_k": 3, "top_p": 0.7}, [4 / 7, 0, 3 / 7, 0]),  # p counts among the three left: 4/9 + 3/9 > 0.7
            ({"temperature": 0.5, "top_p": 0.8}, [16 / 25, 0, 9 / 25, 0]),  # p counts after the temperature
        ],
    )
    def test_by_hand(self, options, expected):
        kept = truncate(self.LOGITS, Decoding(**options)).softmax(1)[0]
        torch.testing.assert_close(kept, torch.tensor(expected, dtype=torch.float32))

    def test_each_row_is_its_own(self):
        logits = torch.tensor([[3.0, 2.0, 1.0], [0.0, 1.0, 5.0]])
        kept = truncate(logits, Decoding(top_k=1)).isfinite()
        assert kept.tolist() == [[True, False, False], [False, False, True]]


class TestOutcome:
    @pytest.mark.parametrize("method", ["sample", "greedy", "beam"])
    @pytest.mark.parametrize("longest", [1, 4])
    def test_length_and_ids(self, make_generator, generator, latents, method, longest):
        model = make_generator(vocab_size=VOCABULARY)
        with torch.no_grad():
            model.output.bias[EOS - FIRST_OUTPUT] = -20.0  # nothing ends early
        sentences = decode(model, latents, Decoding(method=method, max_length=longest), generator)
        assert len(sentences) == len(latents)
        assert max(map(len, sentences)) <= longest
        if method != "beam":  # the likeliest whole sentence is short when every word costs and the end costs once
            assert min(map(len, sentences)) == longest
        assert {word for s in sentences for word in s} <= set(WORDS)

    def test_the_seed_decides_sampling(self, make_generator, latents):
        model = make_generator(vocab_size=VOCABULARY)

        def sentences(seed):
            return decode(model, latents, Decoding(max_length=9), torch.Generator().manual_seed(seed))

        assert sentences(1) == sentences(1)
        assert sentences(1) != sentences(2)

    @pytest.mark.parametrize("method", ["greedy", "beam"])
    def test_search_draws_nothing(self, make_generator, latents, generator, method):
        before = generator.get_state()
        decode(make_generator(vocab_size=VOCABULARY), latents[:3], Decoding(method=method, max_length=3), generator)
        assert torch.equal(generator.get_state(), before)

    def test_a_sentence_that_ends_at_once_is_empty(self, make_generator, latents, generator):
        model = make_generator(vocab_size=VOCABULARY)
        with torch.no_grad():
            model.output.bias[EOS - FIRST_OUTPUT] = 100.0
        for method in ("sample", "greedy", "beam"):
            assert decode(model, latents, Decoding(method=method), generator) == [[]] * len(latents)


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": 0.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}, {"beam_size": 0}, {"max_length": 0}],
)
def test_values_out_of_range(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Decoding(**wrong)


def test_names_for_signatures():
    assert Decoding().describe() == "sample-t1"
    assert Decoding(temperature=0.8, top_k=40, top_p=0.9).describe() == "sample-t0.8-k40-p0.9"
    assert Decoding(method="greedy", temperature=0.8).describe() == "greedy"
    assert Decoding(method="beam", beam_size=3).describe() == "beam3"


def test_reference_distribution_sums_to_one(make_generator):
    """The yardstick of the chi-square test itself."""
    model = make_generator(vocab_size=VOCABULARY)
    z = torch.zeros(1, 3, dtype=torch.float64)
    assert math.isclose(sum(distribution(model, z, Decoding(max_length=2)).values()), 1, rel_tol=1e-9)


class TestByGivenNumbers:
    """`decode_by`: a sentence depends on its own latent and its own row of numbers."""

    HOW = Decoding(max_length=9)

    def test_it_is_decode_by_the_numbers_that_decode_draws(self, make_generator, latents):
        model = make_generator()
        for seed, z in enumerate(latents.split(1)):
            source = torch.Generator().manual_seed(seed)
            uniform = torch.cat([torch.rand(1, generator=source, dtype=torch.float64) for _ in range(9)])[None]
            known = decode(model, z, self.HOW, torch.Generator().manual_seed(seed))
            assert decode_by(model, z, self.HOW, uniform) == known

    def test_other_rows_change_nothing(self, make_generator, latents, generator):
        model = make_generator()
        uniform = torch.rand(40, 9, generator=generator, dtype=torch.float64)
        written = decode_by(model, latents, self.HOW, uniform)
        assert len({len(sentence) for sentence in written}) > 3
        rows = torch.tensor([31, 2, 17])
        assert decode_by(model, latents[rows], self.HOW, uniform[rows]) == [written[row] for row in rows]
        moved = latents.clone()
        moved[5] = -3 * moved[5]
        again = decode_by(model, moved, self.HOW, uniform)
        assert again[:5] + again[6:] == written[:5] + written[6:]

    def test_the_same_latent_and_row_are_the_same_sentence(self, make_generator, latents, generator):
        model = make_generator()
        row = torch.rand(1, 9, generator=generator, dtype=torch.float64)
        one, *others = decode_by(model, latents[:1].expand(4, -1), self.HOW, row.expand(4, -1))
        assert others == [one] * 3

    @pytest.mark.parametrize("how", ["greedy", "beam"])
    def test_without_sampling_the_numbers_are_not_used(self, make_generator, latents, generator, how):
        model, decoding = make_generator(), Decoding(how, max_length=5, beam_size=2)
        known = decode(model, latents[:4], decoding, generator)
        assert decode_by(model, latents[:4], decoding, torch.zeros(4, 5, dtype=torch.float64)) == known
