"""Every reader, on inputs that a fuzzer has found and on new ones: it reads them, or says what is wrong with them.

The readers stand in `fuzz/targets.py`; `python fuzz/run.py` searches on, guided by coverage.
"""

import importlib.util
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("PIL", reason="pictures need Pillow")
ROOT = Path(__file__).resolve().parents[1]
CORPUS = ROOT / "tests" / "fuzz_corpus"
LONGEST_SECONDS = 5


def load(name: str) -> ModuleType:
    """A module of the folder fuzz, which is no package."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / "fuzz" / f"{name.removeprefix('fuzz_')}.py")
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


targets, mutations = load("fuzz_targets"), load("fuzz_mutations")
FILES = sorted(path for path in CORPUS.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder for each target, which keeps what it has made there; the target has run once, and so imported."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            targets.accepts(name, (CORPUS / name / "valid-0").read_bytes(), made[name])
        return made[name]

    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_standing_corpus(path: Path, folder_of) -> None:
    folder, began = folder_of(path.parent.name), time.process_time()
    accepted = targets.accepts(path.parent.name, path.read_bytes(), folder)
    assert time.process_time() - began < LONGEST_SECONDS
    if path.name.startswith("valid"):
        assert accepted, "a valid file is refused"


def test_every_target_has_a_valid_file_and_every_folder_a_target() -> None:
    assert {path.parent.name for path in FILES if path.name.startswith("valid")} == set(targets.TARGETS)
    assert {path.parent.name for path in FILES} == set(targets.TARGETS)


def test_the_standing_corpus_is_small() -> None:
    assert sum(path.stat().st_size for path in FILES) < 300_000


def test_the_figures_are_of_every_target_and_without_a_fault() -> None:
    found = json.loads((ROOT / "results" / "fuzzing.json").read_text(encoding="utf-8"))
    assert found["targets"].keys() == targets.TARGETS.keys()
    assert found["all"]["inputs"] == sum(each["inputs"] for each in found["targets"].values()) >= 200_000
    for each in found["targets"].values():
        assert re.fullmatch("[0-9a-f]{40}", each["commit"])
        assert each["faults"] == 0
        assert each["inputs"] == each["read"] + each["refused"] >= 2000
        assert each["read"] > 0 and each["edges"] > 0
        assert each["longest_s"] < found["limits"]["seconds"]
        assert each["memory_mb"] < found["limits"]["memory_mb"]


def test_a_seed_makes_the_same_change_whatever_was_changed_before() -> None:
    def made() -> list[bytes]:
        return [mutations.changed(b'{"a": {"b": [1, 2]}, "c": "x"}', Random(seed)) for seed in range(400)]

    assert made() == made()


@st.composite
def spoilt(draw: st.DrawFn, whole: list[bytes]) -> bytes:
    """A valid file with a few bytes changed, cut, doubled or put in; or JSON with other values in it."""
    raw = draw(st.sampled_from(whole))
    if raw[:1] in (b"{", b"[") and draw(st.booleans()):
        return mutations.changed(raw, draw(st.randoms(use_true_random=False)))
    for _ in range(draw(st.integers(1, 3))):
        first, second = sorted(draw(st.integers(0, len(raw))) for _ in range(2))
        put = draw(
            st.sampled_from([b"", b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", raw[first:second], b"\n", b"9" * 20])
        )
        if draw(st.booleans()):
            second = min(second, first + draw(st.integers(0, 8)))
        raw = raw[:first] + put + raw[second:]
    return raw


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", targets.TARGETS)
def test_spoilt_files(name: str, folder_of) -> None:
    folder, whole = folder_of(name), targets.TARGETS[name].seeds()

    @given(raw=spoilt(whole))
    @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
    def read(raw: bytes) -> None:
        targets.accepts(name, raw, folder)

    read()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", targets.TARGETS)
def test_any_bytes(name: str, folder_of) -> None:
    folder = folder_of(name)

    @given(raw=st.binary(max_size=300))
    @settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
    def read(raw: bytes) -> None:
        targets.accepts(name, raw, folder)

    read()


class TestTheTable:
    """What counts as a fault is one, so that a run without faults says something."""

    @pytest.fixture
    def reader(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception | None], None]:
        def reads_like(error: Exception | None) -> None:
            def read(_data: bytes, _folder: Path) -> None:
                if error is not None:
                    raise error

            monkeypatch.setitem(targets.TARGETS, "x", targets.Target(read, list))

        return reads_like

    def test_our_errors_are_none(self, reader, tmp_path) -> None:
        from textebm.errors import DataError

        reader(DataError("it is damaged"))
        assert targets.accepts("x", b"", tmp_path) is False
        reader(None)
        assert targets.accepts("x", b"", tmp_path) is True

    @pytest.mark.parametrize("error", [KeyError("a"), OSError("b"), RecursionError(), MemoryError()])
    def test_others_are(self, error, reader, tmp_path) -> None:
        reader(error)
        with pytest.raises(type(error)):
            targets.accepts("x", b"", tmp_path)

    def test_memory_that_ran_out_is_one_behind_an_error_of_ours_too(self, monkeypatch, tmp_path) -> None:
        from textebm.errors import DataError

        def read(_data: bytes, _folder: Path) -> None:
            try:
                raise MemoryError
            except MemoryError:
                raise DataError("it is damaged") from None

        monkeypatch.setitem(targets.TARGETS, "x", targets.Target(read, list))
        with pytest.raises(targets.OutOfMemoryError):
            targets.accepts("x", b"", tmp_path)
