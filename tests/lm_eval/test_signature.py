"""Signatures survive being written and read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textebm.errors import UsageError
from textebm.lm_eval.signature import Signature

KEYS = st.text(st.characters(exclude_characters=":|%\n"), min_size=1).filter(lambda key: key.strip() == key)
VALUES = st.text().filter(lambda value: value.strip() == value)


@given(st.dictionaries(KEYS, VALUES, min_size=1))
def test_round_trip(facts: dict[str, str]) -> None:
    signature = Signature(facts)
    again = Signature.parse(str(signature))
    assert dict(again) == facts
    assert list(again) == list(facts)
    assert again == signature
    assert "\n" not in str(signature)


def test_format() -> None:
    signature = Signature({"metric": "fppl", "n": 42068, "data": "a|b: 100 %"})
    assert str(signature) == "metric:fppl|n:42068|data:a%7Cb: 100 %25"
    assert signature["n"] == "42068"
    assert Signature.parse(f" {signature}\n")["data"] == "a|b: 100 %"


@pytest.mark.parametrize("text", ["", "fppl", "metric:fppl|", "metric:fppl|n", "n:1|n:2", ":1"])
def test_not_a_signature(text: str) -> None:
    with pytest.raises(UsageError, match="signature"):
        Signature.parse(text)


@pytest.mark.parametrize("key", ["", "a:b", "a|b"])
def test_not_a_key(key: str) -> None:
    with pytest.raises(UsageError, match="key of a signature"):
        Signature({key: 1})


class TestWhatItSays:
    BASE = (
        "metric:fppl|data:ptb|train:5145926136ee|n:42068|decoding:sample-t1|judge:kenlm5|order:5|estimator:lmplz-0.3.0|"
        "vocabulary:train-9999|eos:yes|interval:bootstrap-1000|seed:0|version:0.1.0"
    )

    def test_every_fact_is_explained(self) -> None:
        explained = Signature.parse(self.BASE + "|made_up:1").explain()
        assert [key for key, _, _ in explained] == [*Signature.parse(self.BASE), "made_up"]
        assert all(len(meaning) > 10 for _, _, meaning in explained)
        assert "does not know" in explained[-1][2]

    @pytest.mark.parametrize(
        ("change", "weight"),
        [
            (("n:42068", "n:1000"), "decisive"),
            (("decoding:sample-t1", "decoding:greedy"), "decisive"),
            (("eos:yes", "eos:no"), "decisive"),
            (("judge:kenlm5", "judge:fang2019"), "decisive"),
            (("train:5145926136ee", "train:000000000000"), "decisive"),
            (("|eos", "|text:lower|eos"), "decisive"),
            (("|eos", "|made_up:1|eos"), "decisive"),
            (("|eos", "|epochs:3-cut|eos"), "decisive"),
            (("lmplz-0.3.0", "built-in"), "implementation"),
            (("version:0.1.0", "version:0.2.0"), "implementation"),
            (("bootstrap-1000", "bootstrap-100"), "uncertainty"),
            (("seed:0", "seed:1"), "uncertainty"),
            (("|eos", "|epochs:30-converged|eos"), "uncertainty"),
        ],
    )
    def test_what_compares(self, change: tuple[str, str], weight: str) -> None:
        first, second = Signature.parse(self.BASE), Signature.parse(self.BASE.replace(*change))
        for verdict in (first.compare(second), second.compare(first)):
            assert verdict.comparable == (weight != "decisive")
            differing = {name: getattr(verdict, name) for name in ("decisive", "implementation", "uncertainty")}
            assert {name for name, keys in differing.items() if keys} == {weight}
        assert (first.decisive == second.decisive) == (weight != "decisive")

    def test_training_that_was_cut_short_compares_with_its_like_alone(self) -> None:
        cut, other = (Signature({"epochs": value}) for value in ("3-cut", "4-cut"))
        assert not cut.compare(other).comparable
        assert cut.compare(cut).comparable
        assert Signature({"epochs": "30-converged"}).compare(Signature({"epochs": "41-converged"})).comparable
