"""The difference of two methods over seeds: its laws, and how often its interval holds the truth."""

import math

import numpy as np
import pytest
from scipy import stats

from textebm.errors import UsageError
from textebm.lm_eval import seeds
from textebm.lm_eval.perplexity import SentenceScores
from textebm.lm_eval.seeds import SeedsDifference, seeds_difference

SENTENCES = 100
Runs = dict[int, list[SentenceScores]]


def sentences(source: np.random.Generator, spread: float, count: int = SENTENCES) -> tuple[np.ndarray, np.ndarray]:
    """How hard each sentence is, in nats a token, and its tokens."""
    return source.normal(size=count) * spread, source.integers(1, 21, size=count)


def methods(
    seed: int,
    *,
    apart: float,
    number: int = 3,
    between_seeds: float = 0.05,
    between_sentences: float = 0.1,
    paired: bool = True,
    judges: int = 1,
) -> tuple[Runs, Runs]:
    """Runs of two methods whose log-perplexities differ by `apart` in truth, each run by some luck of its own."""
    source = np.random.default_rng(seed)
    shared = sentences(source, between_sentences)

    def run(level: float) -> list[SentenceScores]:
        hard, tokens = shared if paired else sentences(source, between_sentences)
        level = 3 + level + between_seeds * source.normal()
        rates = [
            level + hard + 0.3 * between_sentences * source.normal(size=len(hard)) + 0.01 * source.normal()
            for _ in range(judges)
        ]
        return [SentenceScores(-rate * tokens, tokens) for rate in rates]

    return {s: run(apart) for s in range(number)}, {s: run(0.0) for s in range(number)}


class TestTheDifference:
    def test_is_the_mean_over_runs_and_judges(self) -> None:
        first, second = methods(0, apart=0.1, judges=2)
        found = seeds_difference(first, second, paired=True)
        logs = [[math.log(run.perplexity) for runs in method.values() for run in runs] for method in (first, second)]
        assert found.log_difference == pytest.approx(np.mean(logs[0]) - np.mean(logs[1]))
        assert found.difference == pytest.approx(np.mean(np.exp(logs[0])) - np.mean(np.exp(logs[1])))
        assert found.ratio == pytest.approx(math.exp(found.log_difference))
        assert found.ratio_interval == pytest.approx(np.exp(found.interval))
        assert (found.seeds, found.judges, found.method) == (3, 2, "paired-sentences")
        assert found.interval[0] < found.log_difference < found.interval[1]
        assert found.difference_interval[0] < found.difference < found.difference_interval[1]

    def test_changes_sign_with_the_methods(self) -> None:
        first, second = methods(0, apart=0.1)
        one, other = (seeds_difference(*pair, paired=True) for pair in ((first, second), (second, first)))
        assert other.log_difference == -one.log_difference
        assert other.interval == pytest.approx([-one.interval[1], -one.interval[0]])

    @pytest.mark.parametrize("paired", [True, False])
    def test_the_order_in_which_runs_are_given_says_nothing(self, paired: bool) -> None:
        first, second = methods(0, apart=0.1, paired=paired)
        backwards = dict(reversed(first.items()))
        assert seeds_difference(first, second, paired=paired) == seeds_difference(backwards, second, paired=paired)

    def test_the_same_draws_give_the_same_interval(self) -> None:
        first, second = methods(0, apart=0.1)
        found = [seeds_difference(first, second, paired=True, seed=seed) for seed in (0, 0, 1)]
        assert found[0] == found[1] != found[2]
        assert found[0].log_difference == found[2].log_difference

    def test_a_method_does_not_differ_from_itself(self) -> None:
        first, _ = methods(0, apart=0.1, judges=2)
        found = seeds_difference(first, first, paired=True)
        assert found.log_difference == found.difference == 0
        assert found.interval == pytest.approx((0, 0), abs=1e-12)

    def test_pairing_takes_out_what_sentences_share(self) -> None:
        first, second = methods(0, apart=0.05, between_seeds=0.001, between_sentences=1.0)
        paired, independent = (seeds_difference(first, second, paired=each) for each in (True, False))
        widths = [found.interval[1] - found.interval[0] for found in (paired, independent)]
        assert widths[1] > 1.5 * widths[0]

    def test_runs_that_agree_leave_the_doubt_of_the_sentences(self) -> None:
        """Seeds without luck: the interval is that of sentences, and narrows with the root of their number."""
        widths = []
        for count in (200, 3200):
            source = np.random.default_rng(0)
            hard, tokens = sentences(source, 0.5, count)
            other = hard + 0.2 * source.normal(size=count)
            first = {s: [SentenceScores(-(3 + other) * tokens, tokens)] for s in range(3)}
            second = {s: [SentenceScores(-(3 + hard) * tokens, tokens)] for s in range(3)}
            found = seeds_difference(first, second, paired=True)
            widths.append(found.interval[1] - found.interval[0])
        assert widths[0] / widths[1] == pytest.approx(4, rel=0.25)


class TestCoverage:
    @staticmethod
    def holds(apart: float, trial: int, **world: object) -> tuple[bool, SeedsDifference]:
        first, second = methods(trial, apart=apart, **world)  # type: ignore[arg-type]
        found = seeds_difference(first, second, paired=bool(world.get("paired", True)), resamples=300, seed=trial)
        return found.interval[0] <= apart <= found.interval[1], found

    @pytest.mark.parametrize("paired", [True, False])
    def test_three_seeds_hold_the_truth_as_often_as_they_say(self, paired: bool) -> None:
        """At 95 % in 200 trials: 190 ± 3.1 (one standard deviation), where seeds differ more than sentences do."""
        held = sum(self.holds(0.1, trial, paired=paired)[0] for trial in range(200))
        assert 181 <= held <= 199

    def test_without_the_widening_they_do_not(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What the factor is for: the plain hierarchical bootstrap over three seeds is far too sure of itself."""
        monkeypatch.setattr(seeds, "_widening", lambda number, level: 1.0)
        assert sum(self.holds(0.1, trial)[0] for trial in range(200)) < 165

    def test_methods_that_are_equal_are_seldom_told_apart(self) -> None:
        """Zero lies outside in 5 % of 200 trials: 10 ± 3.1."""
        assert sum(not self.holds(0.0, trial)[0] for trial in range(200)) <= 19

    def test_a_difference_well_above_the_luck_of_seeds_is_seen(self) -> None:
        found = [self.holds(0.3, trial, between_seeds=0.02)[1].interval for trial in range(50)]
        assert sum(low > 0 for low, _ in found) >= 45

    @pytest.mark.parametrize("degrees", [1, 2, 3, 4, 9, 30])
    @pytest.mark.parametrize("probability", [0.5, 0.9, 0.975, 0.995])
    def test_quantiles_of_students_t(self, degrees: int, probability: float) -> None:
        assert seeds.student_quantile(probability, degrees) == pytest.approx(
            stats.t.ppf(probability, degrees), abs=1e-6
        )


class TestRefusals:
    def test_one_seed_says_nothing_about_the_next(self) -> None:
        with pytest.raises(UsageError, match="at least 2 seeds, and there are 1"):
            seeds_difference(*methods(0, apart=0.1, number=1), paired=True)

    def test_other_seeds_cannot_be_paired(self) -> None:
        first, second = methods(0, apart=0.1)
        with pytest.raises(UsageError, match=r"other seeds: \[0, 1, 2\], \[0, 1\]"):
            seeds_difference(first, {0: second[0], 1: second[1]}, paired=True)

    def test_one_sentence_says_nothing_about_the_next(self) -> None:
        one = {s: [SentenceScores(np.array([-3.0]), np.array([1]))] for s in range(3)}
        with pytest.raises(UsageError, match="one sentence"):
            seeds_difference(one, one, paired=False)

    def test_other_numbers_of_judges(self) -> None:
        first, _ = methods(0, apart=0.1)
        _, second = methods(0, apart=0.1, judges=2)
        with pytest.raises(UsageError, match="same number of judges"):
            seeds_difference(first, second, paired=True)

    def test_sentences_that_are_not_the_same(self) -> None:
        first, second = methods(0, apart=0.1, paired=False)
        with pytest.raises(UsageError, match="not scored on the same sentences"):
            seeds_difference(first, second, paired=True)
        assert seeds_difference(first, second, paired=False).method == "independent-sentences"
