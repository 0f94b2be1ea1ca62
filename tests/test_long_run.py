"""What says whether a long job grows: its verdict, and that it watches what it says it watches."""

import mmap
import os
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def script(root: Path) -> ModuleType:
    spec = spec_from_file_location("long_run", root / "scripts" / "long_run.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measured(memory: list[float]) -> list[dict[str, float]]:
    return [
        {"step": 250 * (n + 1), "memory_mb": mb, "open_files": 7, "threads": 5, "log_bytes": 6000 * (n + 1)}
        for n, mb in enumerate(memory)
    ]


class TestVerdict:
    def test_what_fills_its_caches_at_first_is_flat(self, script: ModuleType) -> None:
        found = script.verdict(measured([300.0, 350, 380, 390, 395, 398, 399, 400] + 32 * [400.0]))
        assert found["memory_is_flat"]
        assert found["memory_mb_in_1000_steps"] == pytest.approx(0, abs=1e-9)

    def test_a_leak_is_told(self, script: ModuleType) -> None:
        found = script.verdict(measured([400 + 0.5 * n for n in range(40)]))  # 0.5 MB in 250 steps
        assert found["memory_mb_in_1000_steps"] == pytest.approx(2)
        assert not found["memory_is_flat"]

    def test_files_threads_and_log(self, script: ModuleType) -> None:
        found = script.verdict(measured(40 * [400.0]))
        assert (found["open_files"], found["threads"], found["log_bytes_a_step"]) == ([7], [5], 24)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc, as Linux has it")
class TestMeasuring:
    def test_sees_memory_and_files_of_this_process(self, script: ModuleType, tmp_path: Path) -> None:
        before = script.measure_process()
        with (tmp_path / "file").open("w"):
            held = mmap.mmap(-1, 64 << 20)  # not of the heap, which may hold as much that other tests gave back
            held.write(os.urandom(1 << 20) * 64)
            during = script.measure_process()
        assert during["open_files"] == before["open_files"] + 1
        assert during["memory_mb"] - before["memory_mb"] == pytest.approx(len(held) / 1e6, abs=10)

    def test_sees_the_most_memory_that_a_process_held(self, script: ModuleType) -> None:
        assert script.most_memory(os.getpid()) >= script.measure_process()["memory_mb"] - 1

    def test_watches_a_run(self, script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(script, "STEPS_AN_EPOCH", 10)
        found = script.train(tmp_path, steps=12, every=4, precision="fp32")
        assert [each["step"] for each in found["measured"]] == [4, 8, 12]
        assert found["steps"] == 12
        assert (tmp_path / "run" / "checkpoints" / "last.json").exists()
