"""Free memory goes back to the system, and training lets it go."""

import sys
from pathlib import Path

import pytest

from textebm import memory


def resident() -> float:
    """Memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 / 1e6


@pytest.mark.skipif(memory._trim() is None, reason="the C library is not glibc")
def test_what_lies_between_living_blocks_is_given_back() -> None:
    blocks = [
        bytes(2000) for _ in range(50_000)
    ]  # too large for Python's own allocator, too small for pages of their own
    alive = blocks[::500]
    blocks.clear()
    before = resident()
    memory.give_back()
    assert before - resident() > 40
    assert len(alive) == 100


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    memory._trim.cache_clear()
    try:
        assert memory._trim() is None
        memory.give_back()
    finally:
        memory._trim.cache_clear()


def test_training_does_so_after_each_validation(tiny_config: Path, command, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[None] = []
    monkeypatch.setattr(memory, "give_back", lambda: calls.append(None))
    assert command("train", "--config", tiny_config, "--run-dir", "run", "--max-steps", 15).code == 0
    assert len(calls) == 2  # at the end of the first epoch, and where the run stopped
