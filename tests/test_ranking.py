"""Areas under curves against their definitions, one threshold and one pair at a time; their invariances."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from textebm.ranking import Ranking, lowest_average_precision, resampled

samples = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=25).filter(
    lambda found: 0 < sum(positive for _, positive in found) < len(found)
)
"""Few different scores, so that there are many ties."""


def arrays(found):
    return np.array([score for score, _ in found], dtype=np.float64), np.array([positive for _, positive in found])


def precision_by_threshold(scores, positive):
    """Precision and recall where everything at a threshold or above is called positive."""
    for threshold in sorted(set(scores), reverse=True):
        called = scores >= threshold
        yield positive[called].mean(), positive[called].sum() / positive.sum()


@given(samples)
def test_average_precision_is_its_definition(found):
    scores, positive = arrays(found)
    total, before = 0.0, 0.0
    for precision, recall in precision_by_threshold(scores, positive):
        total, before = total + (recall - before) * precision, recall
    assert Ranking(scores, positive).average_precision() == pytest.approx(total, abs=1e-12)


@given(samples)
def test_the_area_under_the_roc_curve_is_a_share_of_pairs(found):
    scores, positive = arrays(found)
    gaps = scores[positive][:, None] - scores[~positive][None, :]
    wanted = ((gaps > 0) + (gaps == 0) / 2).mean()
    assert Ranking(scores, positive).auroc() == pytest.approx(wanted, abs=1e-12)


@given(samples)
def test_the_curve_is_that_of_each_threshold(found):
    scores, positive = arrays(found)
    precision, recall = Ranking(scores, positive).precision_recall()
    wanted = np.array(list(precision_by_threshold(scores, positive)))
    np.testing.assert_allclose(np.stack([precision, recall], 1), wanted, atol=1e-12)


@given(samples, st.randoms(use_true_random=False))
def test_the_order_of_the_samples_and_the_unit_of_the_scores_say_nothing(found, source):
    shuffled = list(found)
    source.shuffle(shuffled)
    scores, positive = arrays(found)
    one, other = Ranking(scores, positive), Ranking(np.exp(arrays(shuffled)[0]), arrays(shuffled)[1])
    assert one.average_precision() == pytest.approx(other.average_precision(), abs=1e-12)
    assert one.auroc() == pytest.approx(other.auroc(), abs=1e-12)


@given(samples, st.data())
def test_counts_are_so_many_copies(found, data):
    scores, positive = arrays(found)
    counts = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(found), max_size=len(found))))
    counts[[np.flatnonzero(positive)[0], np.flatnonzero(~positive)[0]]] += 1
    whole, copies = Ranking(scores, positive), Ranking(np.repeat(scores, counts), np.repeat(positive, counts))
    assert whole.average_precision(counts) == pytest.approx(copies.average_precision(), abs=1e-12)
    assert whole.auroc(counts) == pytest.approx(copies.auroc(), abs=1e-12)


@given(samples)
def test_both_lie_between_the_worst_order_and_the_best(found):
    scores, positive = arrays(found)
    ranking, best = Ranking(scores, positive), Ranking(positive.astype(np.float64), positive)
    assert best.average_precision() == best.auroc() == 1
    assert lowest_average_precision(positive) <= ranking.average_precision() + 1e-12
    assert Ranking(-scores, positive).auroc() == pytest.approx(1 - ranking.auroc(), abs=1e-12)


def test_the_lowest_value_in_closed_form():
    """k positives behind m negatives: the mean of i / (m + i)."""
    positive = np.isin(np.arange(10), [1, 2, 5, 9])
    assert lowest_average_precision(positive) == pytest.approx(np.mean([i / (6 + i) for i in range(1, 5)]))


def test_chance_is_the_base_rate():
    source = np.random.default_rng(0)
    positive = np.arange(20_000) < 6_000
    ranking = Ranking(source.normal(size=20_000), positive)
    assert ranking.average_precision() == pytest.approx(0.3, abs=0.015)
    assert ranking.auroc() == pytest.approx(0.5, abs=0.015)


def test_one_score_for_all_is_chance():
    positive = np.arange(10) < 3
    ranking = Ranking(np.zeros(10), positive)
    assert (ranking.average_precision(), ranking.auroc()) == (pytest.approx(0.3), pytest.approx(0.5))


@pytest.mark.parametrize(
    ("scores", "positive"), [([1.0, np.nan], [True, False]), ([1.0, 2.0], [True, True]), ([1.0, 2.0], [False, False])]
)
def test_what_cannot_be_ranked(scores, positive):
    with pytest.raises(ValueError, match="rank"):
        Ranking(np.array(scores), np.array(positive))


def two_rankings():
    """100 of 400 samples are positive, and score higher by a standard deviation."""
    positive = np.arange(400) < 100
    return [Ranking(noise + positive, positive) for noise in np.random.default_rng(1).normal(size=(2, 400))]


class TestBootstrap:
    rankings = two_rankings()

    def test_it_is_centred_on_the_mean_and_as_wide_as_theory_says(self):
        drawn = resampled(self.rankings[:1], Ranking.auroc, 600, 0)
        area = self.rankings[0].auroc()
        assert drawn.mean() == pytest.approx(area, abs=0.01)
        # Hanley and McNeil 1982: the variance of an area under the ROC curve
        q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
        wanted = ((area * (1 - area) + 99 * (q1 - area**2) + 299 * (q2 - area**2)) / (100 * 300)) ** 0.5
        assert drawn.std() == pytest.approx(wanted, rel=0.25)

    def test_rankings_are_drawn_together(self):
        one, two = (resampled([each], Ranking.average_precision, 20, 3) for each in self.rankings)
        both = resampled(self.rankings, Ranking.average_precision, 20, 3)
        np.testing.assert_allclose(both, (one + two) / 2)

    def test_seed_and_number_decide_the_draws(self):
        drawn = [resampled(self.rankings, Ranking.auroc, 5, *key).tolist() for key in ((0, 0), (0, 0), (1, 0), (0, 1))]
        assert drawn[0] == drawn[1]
        assert drawn[0] != drawn[2] != drawn[3] != drawn[0]
