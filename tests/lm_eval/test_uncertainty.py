"""Perplexity and its bootstrap interval."""

import math

import numpy as np
import pytest

from textebm.errors import JudgeError
from textebm.lm_eval import bootstrap
from textebm.lm_eval.perplexity import SentenceScores, perplexity


def make_scores(source: np.random.Generator, sentences: int) -> SentenceScores:
    """Sentences of 1 to 20 tokens, whose tokens have a mean log-probability of −3 that varies by sentence."""
    tokens = source.integers(1, 21, size=sentences)
    rate = 3 + source.normal(size=sentences) * 0.5
    return SentenceScores(-tokens * rate, tokens)


class TestPerplexity:
    def test_by_hand(self) -> None:
        """Two tokens of probability 1/2 and one of 1/8: the geometric mean of 2, 2 and 8 is the cube root of 32."""
        scores = SentenceScores(np.log([1 / 4, 1 / 8]), np.array([2, 1]))
        assert scores.perplexity == pytest.approx(32 ** (1 / 3))
        assert scores.total_tokens == 3

    def test_is_of_the_corpus_not_a_mean_over_sentences(self) -> None:
        scores = SentenceScores(np.log([1 / 2, 1 / 8**9]), np.array([1, 9]))
        assert scores.perplexity == pytest.approx(math.exp((math.log(2) + 9 * math.log(8)) / 10))

    def test_sums_over_the_last_axis(self) -> None:
        log_probs, tokens = np.log([[1 / 4, 1 / 8], [1 / 3, 1 / 3]]), np.array([[2, 1], [1, 1]])
        assert perplexity(log_probs, tokens) == pytest.approx([32 ** (1 / 3), 3])

    def test_probability_zero_is_an_error(self) -> None:
        with pytest.raises(JudgeError, match="sentence 2"):
            _ = SentenceScores(np.array([-1.0, -np.inf, -2.0]), np.array([1, 1, 1])).perplexity


class TestBootstrap:
    def test_same_seed_same_interval(self) -> None:
        scores = make_scores(np.random.default_rng(0), 100)
        assert bootstrap.interval(scores) == bootstrap.interval(scores) != bootstrap.interval(scores, seed=1)

    def test_does_not_depend_on_how_many_are_drawn_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        scores = make_scores(np.random.default_rng(0), 100)
        whole = bootstrap.interval(scores)
        monkeypatch.setattr(bootstrap, "DRAWS_AT_ONCE", 333)
        assert bootstrap.interval(scores) == whole

    def test_one_sentence_or_equal_ones_leave_no_doubt(self) -> None:
        for n in (1, 9):
            scores = SentenceScores(np.full(n, -6.0), np.full(n, 3))
            assert bootstrap.interval(scores) == pytest.approx((math.e**2, math.e**2))

    def test_the_interval_of_a_mean_is_that_of_the_normal_approximation(self) -> None:
        values = np.random.default_rng(0).exponential(size=4000) + 5
        low, high = bootstrap.mean_interval(values, resamples=4000)
        half = 1.96 * values.std() / math.sqrt(len(values))
        assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)
        assert bootstrap.mean_interval(values, seed=1) == bootstrap.mean_interval(values, seed=1) != (low, high)
        assert bootstrap.mean_interval(np.full(7, 3.0)) == pytest.approx((3, 3))

    def test_it_draws_the_same_sentences_as_the_perplexitys(self) -> None:
        """With one token a sentence the perplexity is exp of the mean, and so are the ends."""
        values = np.random.default_rng(0).normal(size=50)
        scores = SentenceScores(-values, np.ones(50, dtype=np.int64))
        assert np.log(bootstrap.interval(scores)) == pytest.approx(bootstrap.mean_interval(values), abs=0.02)

    def test_narrows_with_the_square_root_of_the_sentences_and_widens_with_the_level(self) -> None:
        source = np.random.default_rng(0)
        low, high = bootstrap.interval(make_scores(source, 400))
        narrow_low, narrow_high = bootstrap.interval(make_scores(source, 6400))
        assert (high - low) / (narrow_high - narrow_low) == pytest.approx(4, rel=0.2)
        scores = make_scores(source, 400)
        wide, tight = (bootstrap.interval(scores, level=level) for level in (0.99, 0.5))
        assert wide[0] < tight[0] < scores.perplexity < tight[1] < wide[1]

    def test_covers_the_truth_as_often_as_it_says(self) -> None:
        """True perplexity e³; 95 % of 400 intervals, so 380 ± 4.4 (one standard deviation)."""
        source = np.random.default_rng(1)
        ends = [bootstrap.interval(make_scores(source, 120), resamples=400, seed=n) for n in range(400)]
        covered = sum(low <= math.exp(3) <= high for low, high in ends)
        assert 360 <= covered <= 395

    def test_memory_is_bounded_within_one_resample_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        scores = make_scores(np.random.default_rng(0), 100)
        monkeypatch.setattr(bootstrap, "DRAWS_AT_ONCE", 7)
        low, high = bootstrap.interval(scores, resamples=400)
        monkeypatch.undo()
        expected = bootstrap.interval(scores, resamples=400)
        assert (low, high) == pytest.approx(expected, rel=0.02)

    def test_of_several_judges_it_is_that_of_their_mean(self) -> None:
        """Judges that differ by a factor: the mean's interval is the mean of theirs."""
        first = make_scores(np.random.default_rng(0), 100)
        second = SentenceScores(first.log_probs - 0.5 * first.tokens, first.tokens)
        ends = [bootstrap.interval(each) for each in (first, second, [first, second])]
        assert ends[2] == pytest.approx(np.mean(ends[:2], axis=0))
        assert bootstrap.interval([first]) == ends[0]

    def test_sentences_without_a_token_are_no_obstacle(self) -> None:
        """Where ends are not counted, a resample may hold empty sentences alone."""
        scores = SentenceScores(np.array([0.0, -3.0]), np.array([0, 1]))
        assert bootstrap.interval(scores) == pytest.approx((math.e**3, math.e**3))


class TestDifference:
    def judges(self, seed: int, apart: float, sentences: int = 200) -> tuple[SentenceScores, SentenceScores]:
        """Two judges of the same sentences: what makes a sentence hard is shared, and a little is a judge's own."""
        source = np.random.default_rng(seed)
        shared = make_scores(source, sentences)
        own = [source.normal(size=sentences) * 0.1 * shared.tokens for _ in range(2)]
        return tuple(
            SentenceScores(shared.log_probs + noise + shift * shared.tokens, shared.tokens)
            for noise, shift in zip(own, (-apart, 0), strict=True)
        )

    def test_by_sign(self) -> None:
        worse, better = self.judges(0, apart=0.1)
        found = bootstrap.difference([worse], [better], paired=True)
        assert found.difference == worse.perplexity - better.perplexity > 0
        assert found.interval[0] < found.difference < found.interval[1]
        other = bootstrap.difference([better], [worse], paired=True)
        assert other.difference == -found.difference
        assert other.interval == pytest.approx([-found.interval[1], -found.interval[0]])
        assert other.p_value == found.p_value
        assert found.method == "paired-bootstrap"

    def test_of_several_judges_is_that_of_their_means(self) -> None:
        """A judge of which both texts have the same scores halves the difference, and no judge is left out."""
        worse, better = self.judges(0, apart=0.1)
        alone = bootstrap.difference([worse], [better], paired=True)
        found = bootstrap.difference([better, worse], [better, better], paired=True)
        assert found.difference == pytest.approx(alone.difference / 2)
        assert found.interval == pytest.approx([end / 2 for end in alone.interval])

    def test_pairing_takes_out_what_sentences_share(self) -> None:
        """The interval narrows several times, and a small difference is then seen."""
        worse, better = self.judges(0, apart=0.03)
        paired, independent = (bootstrap.difference([worse], [better], paired=paired) for paired in (True, False))
        width = [found.interval[1] - found.interval[0] for found in (paired, independent)]
        assert width[1] > 3 * width[0]
        assert paired.p_value < 0.01
        assert independent.p_value > 0.1
        assert independent.method == "independent-bootstrap"

    @pytest.mark.parametrize("paired", [True, False])
    def test_no_difference_is_rejected_as_often_as_it_should_be(self, paired: bool) -> None:
        """At 10 % in 300 trials: 30 ± 5.2 (one standard deviation)."""
        rejected = 0
        for seed in range(300):
            if paired:
                first, second = self.judges(seed, apart=0)
            else:
                source = np.random.default_rng(seed)
                first, second = make_scores(source, 150), make_scores(source, 150)
            found = bootstrap.difference([first], [second], paired=paired, resamples=200, seed=seed)
            rejected += found.p_value < 0.1
        assert 14 <= rejected <= 50

    def test_paired_scores_are_of_the_same_sentences(self) -> None:
        source = np.random.default_rng(0)
        with pytest.raises(ValueError, match="same sentences"):
            bootstrap.difference([make_scores(source, 5)], [make_scores(source, 6)], paired=True)
