"""Persistent chains in their file: how they begin, are visited, saved and restored, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch

from textebm import chains
from textebm.chains import FILE, ChainMemory
from textebm.config import PriorConfig
from textebm.errors import CheckpointError
from textebm.model.energy import GaussianPrior
from textebm.model.inference import Chains

CPU = torch.device("cpu")
PRIOR = GaussianPrior(PriorConfig(kind="gaussian", latent_dim=3, sigma=1.7))


def begin(folder: Path, sentences: int = 10, seed: int = 0) -> ChainMemory:
    folder.mkdir(exist_ok=True)
    return ChainMemory.begin(folder, sentences, PRIOR, seed)


class TestBegin:
    def test_in_the_reference_gaussian(self, tmp_path: Path) -> None:
        n = 20_000
        positions = begin(tmp_path, n).positions
        assert positions.shape == (n, 3)
        assert positions.dtype == np.float32
        assert (abs(positions.mean(0)) < 5 * 1.7 / n**0.5).all()
        assert (abs(positions.var(0) / 1.7**2 - 1) < 5 * (2 / n) ** 0.5).all()

    def test_the_seed_decides_and_the_file_is_a_plain_array(self, tmp_path: Path) -> None:
        one, same, other = (begin(tmp_path / str(i), seed=seed).positions for i, seed in enumerate((1, 1, 2)))
        assert np.array_equal(one, same)
        assert not np.array_equal(one, other)
        assert np.array_equal(np.load(tmp_path / "0" / FILE), one)

    def test_blocks_differ(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(chains, "ROWS_AT_ONCE", 4)
        positions = begin(tmp_path, 10).positions
        assert len(np.unique(positions)) == positions.size == 30


class TestVisit:
    def test_what_is_written_is_read_and_nothing_else_moves(self, tmp_path: Path) -> None:
        memory = begin(tmp_path)
        before, rows = memory.positions.copy(), np.array([7, 2])
        visited = memory.of(rows, CPU)
        assert isinstance(visited, Chains)
        assert torch.equal(visited.read(), torch.from_numpy(before[rows]))
        z = torch.tensor([[1.0, 2, 3], [4, 5, 6]], requires_grad=True)
        visited.write(z)
        assert torch.equal(memory.of(rows, CPU).read(), z.detach())
        others = np.setdiff1d(np.arange(10), rows)
        assert np.array_equal(memory.positions[others], before[others])
        memory.positions.flush()
        assert np.array_equal(np.load(tmp_path / FILE), memory.positions)

    def test_what_was_read_does_not_change_with_what_is_written(self, tmp_path: Path) -> None:
        visited = begin(tmp_path).of(np.array([3]), CPU)
        read = visited.read()
        known = read.clone()
        visited.write(known + 1)
        assert torch.equal(read, known)


class TestRestore:
    def test_they_stand_where_they_stood_when_saved(self, tmp_path: Path) -> None:
        memory, folder = begin(tmp_path / "run"), tmp_path / "checkpoint"
        folder.mkdir()
        memory.save(folder)
        saved = memory.positions.copy()
        memory.of(np.arange(10), CPU).write(torch.zeros(10, 3))
        restored = ChainMemory.restore(folder, tmp_path / "run", 10, 3)
        assert np.array_equal(restored.positions, saved)
        restored.of(np.arange(10), CPU).write(torch.ones(10, 3))
        assert np.array_equal(np.load(folder / FILE), saved)  # the checkpoint's own copy stays

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (None, "cannot be read"),
            (b"", "cannot be read"),
            (b"nonsense", "cannot be read"),
            ("short", "cannot be read"),
            ((9, 3), r"float32 of shape \(9, 3\), not the chains of 10 sentences in 3 dimensions"),
            ((10, 4), r"float32 of shape \(10, 4\), not the chains of 10"),
        ],
    )
    def test_a_broken_file_is_named(self, tmp_path: Path, content: object, said: str) -> None:
        path = tmp_path / FILE
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, tuple):
            np.save(path, np.zeros(content, dtype=np.float32))
        elif content == "short":
            begin(tmp_path)
            path.write_bytes(path.read_bytes()[:-5])
        with pytest.raises(CheckpointError, match=said) as raised:
            ChainMemory.restore(tmp_path, tmp_path / "run", 10, 3)
        assert str(path) in str(raised.value)
