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
