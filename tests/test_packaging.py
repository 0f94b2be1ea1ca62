"""What a user installs: the wheel's files, its place beside other packages, its start-up, the checkout's hygiene."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from dataclasses import replace
from importlib.metadata import PathDistribution, version
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from textebm._version import __version__

FOLDERS = {"textebm": "textebm", "lm_eval": "textebm/lm_eval", "data": "textebm/data"}
"""Folder of the checkout -> where its files install."""

HELP_SECONDS = 0.5


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Standard output of a command that must end well."""
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build_wheel(source: Path, target: Path) -> Path:
    """The wheel of the project in `source`, built by this environment's own setuptools, offline."""
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", target]
    run(sys.executable, "-m", "pip", "wheel", *options, source, cwd=source)
    (wheel,) = target.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def source(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the wheel is built from: a build leaves nothing in the checkout and finds none of an old one."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, copy)
    for folder in FOLDERS:
        shutil.copytree(root / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our wheel."""
    return build_wheel(source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def harness_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stand-in for the evaluation harness that owns the top-level names lm_eval and, here, data."""
    project = tmp_path_factory.mktemp("harness")
    for name in ("lm_eval", "data"):
        (project / name).mkdir()
        (project / name / "__init__.py").write_text("OWNER = 'the other project'\n")
    (project / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "stand-in-harness"\nversion = "1.0"\n'
        '[tool.setuptools]\npackages = ["lm_eval", "data"]\n'
    )
    return build_wheel(project, tmp_path_factory.mktemp("harness-wheel"))


class Environment:
    """A virtual environment of its own, to install in, import in and uninstall from; it sees our dependencies."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=False, symlinks=True)
        self.folder = folder
        self.python = folder / "bin" / "python"
        self.site = Path(self.inside("import sysconfig; print(sysconfig.get_path('purelib'))").strip())
        # A folder that a .pth file names has its own .pth files left alone: the checkout's editable install stays out.
        (self.site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def inside(self, code: str) -> str:
        """What `code` prints there: -I keeps the current folder and PYTHONPATH out."""
        return run(self.python, "-I", "-c", code, cwd=self.folder)

    def pip(self, command: str, *arguments: str | Path) -> None:
        """This environment's pip, working on that one."""
        run(sys.executable, "-m", "pip", "--python", self.python, command, *arguments, cwd=self.folder)

    def install(self, *wheels: Path) -> None:
        """Install wheels without their dependencies."""
        self.pip("install", "--no-deps", "--no-index", *wheels)

    def uninstall(self, name: str) -> None:
        """Uninstall a distribution."""
        self.pip("uninstall", "--yes", name)


OURS = """
import json, textebm.lm_eval, textebm.data, textebm.cli
print(json.dumps([m.__file__ for m in (textebm, textebm.lm_eval, textebm.data, textebm.cli)]))
"""
THEIRS = """
import json, lm_eval, data
print(json.dumps([lm_eval.OWNER, data.OWNER, lm_eval.__file__, data.__file__]))
"""


def check_ours(environment: Environment) -> None:
    files = [Path(f).relative_to(environment.site).as_posix() for f in json.loads(environment.inside(OURS))]
    assert files == [
        "textebm/__init__.py",
        "textebm/lm_eval/__init__.py",
        "textebm/data/__init__.py",
        "textebm/cli.py",
    ]


def check_theirs(environment: Environment) -> None:
    *owners, lm_eval_file, data_file = json.loads(environment.inside(THEIRS))
    assert owners == ["the other project"] * 2
    files = [Path(f).relative_to(environment.site).as_posix() for f in (lm_eval_file, data_file)]
    assert files == ["lm_eval/__init__.py", "data/__init__.py"]


class TestWheel:
    def test_every_file_lies_under_textebm(self, wheel: Path) -> None:
        allowed = (re.escape(f"textebm-{__version__}.dist-info/"), "textebm/")
        names = zipfile.ZipFile(wheel).namelist()
        assert [n for n in names if not re.match("|".join(allowed), n)] == []

    def test_holds_exactly_the_files_of_the_checkout(self, wheel: Path, source: Path) -> None:
        """Package data and new packages are easily forgotten in pyproject.toml, and only users would notice."""
        expected = {
            (Path(target) / path.relative_to(source / folder)).as_posix()
            for folder, target in FOLDERS.items()
            for path in (source / folder).rglob("*")
            if path.is_file()
        }
        assert {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n} == expected

    def test_carries_its_licences_types_and_command(self, wheel: Path) -> None:
        names = zipfile.ZipFile(wheel).namelist()
        info = f"textebm-{__version__}.dist-info"
        assert f"{info}/licenses/LICENSE" in names
        assert f"{info}/licenses/data/demo/LICENSE-wordnet.txt" in names
        assert "textebm/py.typed" in names
        assert "textebm = textebm.cli:main" in zipfile.ZipFile(wheel).read(f"{info}/entry_points.txt").decode()

    def test_version_is_the_same_everywhere(self, wheel: Path) -> None:
        assert version("textebm") == __version__ == wheel.name.split("-")[1]


class TestSourceDistribution:
    """What the wheel of a release is built from, and what systems' own packages are."""

    @pytest.fixture(scope="class")
    def sdist(self, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """Built from a copy of the checkout, by this environment's own setuptools, offline."""
        copy, target = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("sdist")
        for path in everything(root):
            (copy / path.relative_to(root)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy / path.relative_to(root))
        run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", target, copy, cwd=copy)
        (built,) = target.iterdir()
        return built

    def test_has_every_file_of_the_checkout(self, sdist: Path, root: Path) -> None:
        """Licences, tests and documentation; and nothing else but what says how it is built."""
        prefix = f"textebm-{__version__}/"
        with tarfile.open(sdist) as archive:
            names = {member.name.removeprefix(prefix) for member in archive.getmembers() if member.isfile()}
        made = {"PKG-INFO", "setup.cfg", *(name for name in names if name.startswith("textebm.egg-info/"))}
        assert names - made == {p.relative_to(root).as_posix() for p in everything(root)} - {".gitignore"}
        assert {"LICENSE", "data/demo/LICENSE-wordnet.txt", "tests/test_packaging.py", "docs/licences.md"} <= names

    def test_installs_the_files_of_the_wheel_without_network(self, sdist: Path, wheel: Path, tmp_path: Path) -> None:
        environment = Environment(tmp_path / "venv")
        environment.pip("install", "--no-deps", "--no-index", "--no-build-isolation", sdist)
        check_ours(environment)
        installed = {
            path.relative_to(environment.site).as_posix(): path.read_bytes()
            for path in (environment.site / "textebm").rglob("*")
            if path.is_file() and path.suffix != ".pyc"
        }
        with zipfile.ZipFile(wheel) as archive:
            assert installed == {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}


class TestDependencies:
    """Every package that textebm brings is pinned, and is under a licence that has been looked at."""

    @pytest.fixture(scope="class")
    def licences(self, root: Path) -> ModuleType:
        pytest.importorskip("packaging")
        return load_script(root / "scripts" / "licences.py")

    @pytest.fixture(scope="class")
    def packages(self, licences: ModuleType) -> list[Any]:
        return list(licences.installed())

    def test_those_installed_are_pinned_and_allowed(self, licences: ModuleType, packages: list[Any]) -> None:
        assert licences.complaints(packages) == []

    def test_the_page_names_each_with_its_licence(self, licences: ModuleType, packages: list[Any], root: Path) -> None:
        written = (root / "docs" / "licences.md").read_text(encoding="utf-8")
        assert licences.differences(packages, written) == []

    def test_whatever_is_asked_for_by_name_is_on_the_page(self, licences: ModuleType, root: Path) -> None:
        project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        lines = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
        asked = {licences.canonicalize_name(re.split(r"[>\[]", line)[0]) for line in lines} - {"textebm"}
        assert asked <= licences.listed((root / "docs" / "licences.md").read_text(encoding="utf-8")).keys()

    def test_what_brings_a_package_is_told(self, packages: list[Any]) -> None:
        brought_by = {package.name: package.brought_by for package in packages}
        assert (brought_by["torch"], brought_by["safetensors"], brought_by["urllib3"]) == ("textebm",) * 3
        assert (brought_by["sacrebleu"], brought_by["datasets"], brought_by["ruff"]) == ("bleu", "hub", "dev")

    def test_what_is_not_pinned_or_not_allowed_is_told(self, licences: ModuleType) -> None:
        strange = licences.Package("strange", "1.0", "AGPL-3.0-only", "", "textebm")
        nameless = licences.Package("numpy", "0.1", None, "", "textebm")
        pinned = licences.pinned()["numpy"]
        assert licences.complaints([strange, nameless]) == [
            "strange 1.0 is not pinned in constraints.txt",
            "strange: AGPL-3.0-only is not in the list; look at it by hand",
            f"numpy is 0.1, and constraints.txt has {pinned}",
            "numpy: its metadata name no licence that is allowed; look at it by hand",
        ]
        assert licences.differences([strange], licences.page([nameless])) == ["strange is not on the page"]
        assert licences.differences([strange], licences.page([replace(strange, licence="MIT")])) == [
            "strange is under AGPL-3.0-only, and the page says MIT"
        ]

    @pytest.mark.parametrize(
        ("metadata", "licence"),
        [
            ("License-Expression: MIT AND PSF-2.0", "MIT AND PSF-2.0"),
            ("License: Apache 2.0", "Apache-2.0"),
            ("License: A long text\nClassifier: License :: OSI Approved :: ISC License (ISCL)", "ISC"),
            ("Classifier: License :: OSI Approved :: GNU General Public License v3 (GPLv3)", None),
            ("License: UNKNOWN", None),
        ],
    )
    def test_licences_are_read_from_metadata(
        self, licences: ModuleType, metadata: str, licence: str | None, tmp_path: Path
    ) -> None:
        (tmp_path / "METADATA").write_text(f"Metadata-Version: 2.4\nName: x\nVersion: 1\n{metadata}\n")
        assert licences.licence_of(PathDistribution(tmp_path)) == licence


class TestBesideTheHarness:
    """EleutherAI's harness installs a top-level lm_eval: neither it nor we may overwrite or take away the other's."""

    @pytest.mark.parametrize("ours_first", [True, False])
    def test_both_import_and_each_survives_the_other(
        self, wheel: Path, harness_wheel: Path, tmp_path: Path, ours_first: bool
    ) -> None:
        environment = Environment(tmp_path / "venv")
        for one in (wheel, harness_wheel) if ours_first else (harness_wheel, wheel):
            environment.install(one)
        check_ours(environment)
        check_theirs(environment)

        environment.uninstall("textebm")
        assert not (environment.site / "textebm").exists()
        check_theirs(environment)

        environment.install(wheel)
        environment.uninstall("stand-in-harness")
        assert not (environment.site / "lm_eval").exists()
        check_ours(environment)

    def test_without_the_harness_no_top_level_name_appears(self, wheel: Path, tmp_path: Path) -> None:
        environment = Environment(tmp_path / "venv")
        before = {p.name for p in environment.site.iterdir()}
        environment.install(wheel)
        added = {p.name for p in environment.site.iterdir()} - before
        assert added == {"textebm", f"textebm-{__version__}.dist-info"}


class TestStartUp:
    @pytest.mark.parametrize(
        "module", ["textebm", "textebm.lm_eval", "textebm.image_eval", "textebm.data", "textebm.cli"]
    )
    def test_import_takes_no_heavy_library(self, module: str, tmp_path: Path) -> None:
        heavy = {"torch", "kenlm", "datasets", "transformers", "tokenizers", "matplotlib", "scipy", "sklearn"}
        code = f"import sys, {module}; print(*sorted(set(sys.modules) & {heavy!r}))"
        assert run(sys.executable, "-c", code, cwd=tmp_path).split() == []

    def test_module_and_console_script_are_the_same_program(self, tmp_path: Path) -> None:
        script = Path(sysconfig.get_path("scripts")) / "textebm"
        by_script = run(script, "--help", cwd=tmp_path, COLUMNS="100")
        by_module = run(sys.executable, "-m", "textebm", "--help", cwd=tmp_path, COLUMNS="100")
        assert "usage: textebm" in by_script
        assert by_module == by_script
        assert __version__ in run(script, "--version", cwd=tmp_path)

    def test_help_comes_at_once(self, tmp_path: Path) -> None:
        """Least of five, in seconds of the processor: what the program costs, whatever else the machine is doing."""
        script = Path(sysconfig.get_path("scripts")) / "textebm"
        seconds = []
        for _ in range(5):
            before = processor_seconds_of_children()
            run(script, "--help", cwd=tmp_path)
            seconds.append(processor_seconds_of_children() - before)
        assert min(seconds) < HELP_SECONDS, seconds


def processor_seconds_of_children() -> float:
    """Of the processes that this one has waited for."""
    used = os.times()
    return used.children_user + used.children_system


class TestCheckout:
    @pytest.mark.parametrize(
        "line", ["import lm_eval", "import data", "from lm_eval import x", "from data.text import x"]
    )
    def test_ruff_forbids_the_top_level_names(self, root: Path, line: str) -> None:
        command = [sys.executable, "-m", "ruff", "check", "--select", "TID251", "--stdin-filename", "textebm/x.py", "-"]
        done = subprocess.run(command, cwd=root, input=line + "\n", capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert "TID251" in done.stdout

    def test_no_file_names_a_path_of_one_machine(self, root: Path) -> None:
        personal = re.compile(rb"(?<![\w.~:/-])/(?:home|root|Users|work|opt|mnt)/[\w.-]+")
        found = []
        for path in tracked(root):
            found += [f"{path.relative_to(root)}: {m.decode()}" for m in personal.findall(path.read_bytes())]
        assert found == []


def everything(root: Path) -> list[Path]:
    """The files of the checkout, new ones included, that git does not ignore."""
    if not (root / ".git").exists():
        pytest.skip("not a git checkout")
    names = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=root).split("\0")
    return [path for path in (root / n for n in names if n) if path.is_file()]


def tracked(root: Path) -> list[Path]:
    """Those of them that are text."""
    return [path for path in everything(root) if path.suffix not in {".xz", ".gz", ".safetensors", ".png"}]


def load_script(path: Path) -> ModuleType:
    """A script as a module."""
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[path.stem] = module  # where dataclasses look for the module that they stand in
    spec.loader.exec_module(module)
    return module
