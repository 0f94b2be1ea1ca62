"""scripts/build_lmplz.sh: quick where there is nothing to do, and no obstacle where it cannot be built."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

TOOLS = ["bash", "cat", "command", "dirname", "mkdir", "mktemp", "rm", "tail"]


def run(root: Path, home: Path, *arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"TEXTEBM_HOME": str(home)} | ({} if path is None else {"PATH": path})
    command = [shutil.which("bash") or "bash", str(root / "scripts" / "build_lmplz.sh"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def no_compiler(tmp_path: Path) -> str:
    """A PATH with the shell's tools and nothing else."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in TOOLS:
        if (found := shutil.which(name)) is not None:
            (folder / name).symlink_to(found)
    return str(folder)


def install(home: Path, script: str, version: str) -> Path:
    program = home / "kenlm" / "bin" / "lmplz"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    (home / "kenlm" / "VERSION").write_text(f"{version}\n")
    return program


def test_without_a_compiler_setup_goes_on(root: Path, tmp_path: Path, no_compiler: str) -> None:
    done = run(root, tmp_path / "home", path=no_compiler)
    assert done.returncode == 0
    assert "no C++ compiler" in done.stderr
    assert "built-in estimator" in done.stderr
    assert list((tmp_path / "home").iterdir()) == []


def test_without_a_compiler_required_fails(root: Path, tmp_path: Path, no_compiler: str) -> None:
    done = run(root, tmp_path / "home", "--required", path=no_compiler)
    assert done.returncode == 1
    assert "no C++ compiler" in done.stderr


def identity(file: Path) -> tuple[int, int, int]:
    """What changes when a file is written or replaced, but not when it is merely run (its access time does)."""
    status = file.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def test_what_is_built_is_kept(root: Path, tmp_path: Path, no_compiler: str) -> None:
    program = install(tmp_path / "home", "exit 0", "0.3.0")
    before = identity(program)
    done = run(root, tmp_path / "home", "--required", path=no_compiler)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert identity(program) == before


@pytest.mark.parametrize(("script", "version"), [("exit 127", "0.3.0"), ("exit 0", "0.2.0")])
def test_what_is_broken_or_old_is_not(root: Path, tmp_path: Path, no_compiler: str, script: str, version: str) -> None:
    install(tmp_path / "home", script, version)
    assert run(root, tmp_path / "home", "--required", path=no_compiler).returncode == 1


def test_usage(root: Path, tmp_path: Path) -> None:
    done = run(root, tmp_path, "--help")
    assert done.returncode == 2
    assert "usage: bash scripts/build_lmplz.sh [--required]" in done.stderr
