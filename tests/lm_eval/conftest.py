"""KenLM's programs and module, where they are; small texts."""

import random
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from textebm.lm_eval.ngram import find_lmplz

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden() -> Path:
    """A small text of our own, and what KenLM's lmplz and query say of it."""
    return GOLDEN


@pytest.fixture(scope="session")
def lmplz() -> Path:
    """KenLM's estimator."""
    found = find_lmplz()
    if found is None:
        pytest.skip("there is no lmplz here: bash scripts/build_lmplz.sh makes it")
    return found


@pytest.fixture(params=["lmplz", "built-in"])
def estimator(request: pytest.FixtureRequest) -> Path | None:
    """Each estimator, as `NgramJudge.train` takes it."""
    return None if request.param == "built-in" else request.getfixturevalue("lmplz")


@pytest.fixture(params=["kenlm", "built-in"])
def query(request: pytest.FixtureRequest) -> str:
    """Each reader of a model."""
    if request.param == "kenlm" and find_spec("kenlm") is None:
        pytest.skip("KenLM's Python module is not installed: pip install 'textebm[kenlm]'")
    return request.param


@pytest.fixture
def make_text() -> Callable[..., list[str]]:
    """Random sentences: words as rare as in language, some sentences empty, from a seed."""

    def make(seed: int, sentences: int = 60, words: int = 20, longest: int = 9) -> list[str]:
        source = random.Random(seed)
        lengths = [source.randint(0, longest) for _ in range(sentences)]
        return [" ".join(f"w{int(source.paretovariate(0.8)) % words}" for _ in range(n)) for n in lengths]

    return make
