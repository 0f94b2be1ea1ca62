"""The ablation script on a small corpus: every cell a file, none done twice, one table of all."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from textebm.config import method_names


@pytest.fixture(scope="module")
def ablation(root: Path) -> ModuleType:
    """scripts/ablation.py as a module."""
    spec = importlib.util.spec_from_file_location("ablation_script", root / "scripts" / "ablation.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_each_cell_is_a_method_that_ships_and_differs_from_the_base(ablation: ModuleType) -> None:
    for name, option in ablation.OPTIONS.items():
        assert option.method in method_names(), name
    same = [[name for name in ablation.OPTIONS if ablation.is_base(name, preset)] for preset in ("demo", "ptb-small")]
    assert same == [["lebm-exact-softmax"], ["lebm-sampled-softmax"]]  # which are left out there


def test_cells_share_a_run_only_where_it_is_trained_alike(ablation: ModuleType) -> None:
    trained: dict[str, tuple[object, ...]] = {}
    for name, option in ablation.OPTIONS.items():
        assert trained.setdefault(option.run, (option.method, option.settings)) == (option.method, option.settings), (
            name
        )
    assert ablation.OPTIONS["lebm-sampled-softmax"].run != ablation.OPTIONS["lebm"].run


def test_cells_are_trained_measured_and_not_done_twice(
    ablation: ModuleType, command, tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    called: list[str] = []

    def in_this_process(*words: str) -> str:
        called.append(words[0])
        done = command(*words)
        assert done.code == 0, done.err
        return done.out

    monkeypatch.setattr(ablation, "textebm", in_this_process)
    monkeypatch.chdir(tmp_path)
    places = ("--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results"), "--lmplz", "built-in")
    words = ["--config", str(tiny_config), *places, "--device", "cpu", "--only", "lebm", "longer-prior-chain-5"]
    words += ["--", "--max-steps", "5"]
    ablation.main(words)
    assert called.count("train") == 1  # or --max-minutes would train the second cell's model further
    files = sorted((tmp_path / "results" / "tiny").iterdir())
    assert [path.name for path in files] == ["lebm-seed1.json", "longer-prior-chain-5-seed1.json"]
    base, longer = (json.loads(path.read_text(encoding="utf-8")) for path in files)
    assert (base["prior_steps"], longer["prior_steps"]) == (5, 25)
    assert base["valid"]["reconstruction_nll"] == longer["valid"]["reconstruction_nll"]
    assert base["valid"]["prior_nll"] != longer["valid"]["prior_nll"]
    assert "prior-steps-25" in longer["fppl"]["signature"]
    assert "prior-steps" not in base["rppl"]["signature"]
    shown = capsys.readouterr().out
    assert [line.split("|")[1].strip() for line in shown.splitlines()[2:]] == ["lebm", "longer-prior-chain-5"]
    assert f"{base['fppl']['score']:.2f}" in shown

    called.clear()
    ablation.main(words)
    assert called == []
    assert capsys.readouterr().out == shown
