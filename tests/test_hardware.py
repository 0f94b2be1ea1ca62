"""What a figure was measured on: the commit is that of our own checkout, or nobody's."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import textebm
from textebm import hardware


def test_installed_within_another_checkout_its_commit_is_not_ours(tmp_path: Path) -> None:
    shutil.copytree(
        Path(textebm.__file__).parent, tmp_path / "site" / "textebm", ignore=shutil.ignore_patterns("pretrained")
    )
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org"]
    (tmp_path / "readme").write_text("theirs")
    for words in (["init", "-q"], ["add", "readme"], ["commit", "-qm", "theirs"]):
        subprocess.run([*git, *words], cwd=tmp_path, check=True)
    program = "import importlib.util as u; s = u.spec_from_file_location('h', 'site/textebm/hardware.py'); "
    program += "m = u.module_from_spec(s); s.loader.exec_module(m); print(m.commit())"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"


def test_in_a_checkout_it_is_the_commit_that_is_checked_out() -> None:
    here = Path(__file__).parent
    wanted = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True).stdout
    found = hardware.commit()
    assert found is not None
    assert found.removesuffix("-dirty") == wanted.strip()


def test_changes_are_marked_but_for_those_of_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, result = tmp_path / "textebm" / "hardware.py", tmp_path / "results" / "bench.json"
    for path in (package, result):
        path.parent.mkdir()
        path.write_text("1")
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "ours"]):
        subprocess.run([*git, *words], cwd=tmp_path, check=True)
    monkeypatch.setattr(hardware, "__file__", str(package))
    clean = hardware.commit()
    assert clean is not None
    assert len(clean) == 40
    result.write_text("2")
    assert hardware.commit() == clean
    package.write_text("2")
    assert hardware.commit() == f"{clean}-dirty"


def test_the_last_cache_is_larger_than_the_first_or_not_known() -> None:
    assert hardware.last_cache() == 0 or hardware.last_cache() >= 2**16
