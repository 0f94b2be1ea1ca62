"""What storage and clocks do to runs and caches, through the program: nothing is lost, and what is wrong is said."""

import builtins
import errno
import io
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from textebm import checkpoint

CUT = 12  # steps, of the 30 of the tiny configuration: in the second epoch


def weights(run: Path) -> bytes:
    return (checkpoint.pointed_at(run, "last") / "model.safetensors").read_bytes()


@pytest.fixture
def half(tiny_config: Path, command, tmp_path: Path) -> Path:
    """A run that was cut in its second epoch."""
    done = command("train", "--config", tiny_config, "--run-dir", "half", "--max-steps", CUT)
    assert done.code == 0, done.err
    return tmp_path / "half"


def set_times(folder: Path, seconds: float) -> None:
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, (seconds, seconds))


class TestClocks:
    """Clocks are set, and copies have any time: nothing but the choice of the newest run looks at them."""

    YEARS = 365.25 * 24 * 3600

    @pytest.mark.parametrize("seconds", [0, 200 * YEARS], ids=["1970", "the future"])
    def test_files_of_any_time(self, seconds: float, half: Path, trained_run: Path, command) -> None:
        set_times(half, seconds)
        for pointer in (half / "checkpoints").glob("*.json"):  # the best looks newer than the last
            os.utime(pointer, (seconds + (pointer.stem == "best"),) * 2)
        done = command("train", "--resume", half)
        assert done.code == 0, done.err
        assert weights(half) == weights(trained_run)

    def test_a_clock_that_jumps(
        self, tiny_config: Path, trained_run: Path, command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real, jumps = time.time, iter([1e9, -1e9, 5e9, 0.0] * 10_000)
        monkeypatch.setattr(time, "time", lambda: max(0.0, real() + next(jumps)))
        words = ("--config", tiny_config, "--run-dir", "run", "--checkpoint-every", 3)
        assert command("train", *words, "--max-steps", CUT).code == 0
        done = command("train", "--resume", "run", "--checkpoint-every", 3)
        assert done.code == 0, done.err
        assert weights(tmp_path / "run") == weights(trained_run)
        seconds = [json.loads(line)["seconds"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
        assert seconds == sorted(seconds) and 0 <= seconds[-1] < 3600

    def test_a_cache_of_samples_knows_models_by_their_content(self, saved_model: Path, tmp_path: Path) -> None:
        from textebm import generation
        from textebm.model.latent_model import LatentModel

        model, tokenizer = generation.load(saved_model, "cpu")
        paths = []
        for seed in (1, 2):
            folder = tmp_path / str(seed) / "model"
            LatentModel(model.config, seed).save_pretrained(folder)
            set_times(folder, 1e9)
            other = LatentModel.from_pretrained(folder)
            paths.append(generation.cached_samples(folder, other, tokenizer, 3, 0, tmp_path / "cache"))
        assert paths[0] != paths[1]
        copy = shutil.copytree(tmp_path / "1" / "model", tmp_path / "copy" / "model")
        os.utime(copy / "model.safetensors", (5, 5))
        again = generation.cached_samples(copy, LatentModel.from_pretrained(copy), tokenizer, 3, 0, tmp_path / "cache")
        assert again == paths[0]


class TestMoved:
    def test_a_run_goes_on_and_is_sampled_wherever_it_lies(
        self, half: Path, trained_run: Path, command, tmp_path: Path
    ) -> None:
        before = command("generate", "--model", half, "-n", 5).out
        place = tmp_path / "another place" / "-r\u00fcn\n\u8d70"
        place.parent.mkdir()
        copy = Path(shutil.copytree(half, tmp_path / "copy"))
        half.rename(place)
        assert command("generate", "--model", place, "-n", 5).out == before
        for run in (place, copy):
            done = command("train", "--resume", run)
            assert done.code == 0, done.err
            assert weights(run) == weights(trained_run)
        assert not half.exists()

    def test_no_file_of_a_run_names_its_folder(self, trained_run: Path, trained_image_run: Path) -> None:
        for run in (trained_run, trained_image_run):
            for path in filter(Path.is_file, run.rglob("*")):
                assert os.fsencode(run) not in path.read_bytes(), path


@contextmanager
def read_only(patch: pytest.MonkeyPatch, folder: Path) -> Iterator[None]:
    """A folder on a file system that is read only: tests may run as root, whom permissions do not keep from writing."""

    def inside(path: object) -> bool:
        return isinstance(path, str | os.PathLike) and Path(os.path.abspath(path)).is_relative_to(folder)  # noqa: PTH100

    def refuse(path: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    def guarded(real: Callable[..., object], is_writing: Callable[..., bool]) -> Callable[..., object]:
        def call(path: object, *arguments: object, **options: object) -> object:
            if inside(path) and is_writing(*arguments, **options):
                refuse(path)
            return real(path, *arguments, **options)

        return call

    def opens_to_write(mode: str = "r", *_: object, **__: object) -> bool:
        return any(letter in mode for letter in "wax+")

    def flags_to_write(flags: int, *_: object, **__: object) -> bool:
        return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))

    with patch.context() as within:
        within.setattr(io, "open", guarded(io.open, opens_to_write))
        within.setattr(builtins, "open", guarded(builtins.open, opens_to_write))
        within.setattr(os, "open", guarded(os.open, flags_to_write))
        for name in ("mkdir", "unlink", "rename", "replace", "rmdir"):
            within.setattr(os, name, guarded(getattr(os, name), lambda *_, **__: True))
        yield


class TestReadOnly:
    def contents(self, folder: Path) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def test_a_run_is_sampled_and_not_gone_on_with(self, half: Path, command, monkeypatch: pytest.MonkeyPatch) -> None:
        before = self.contents(half)
        expected = command("generate", "--model", half, "-n", 3).out
        with read_only(monkeypatch, half):
            assert command("generate", "--model", half, "-n", 3).out == expected
            done = command("train", "--resume", half)
        assert done.code in (1, 2)
        assert "Traceback" not in done.err
        assert f"the run folder {half} cannot be written: Read-only file system" in done.err
        assert self.contents(half) == before

    def test_and_is_measured_with_what_must_be_written_elsewhere(
        self, half: Path, command, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        words = ("fppl", "--model", half, "-n", 20, "--lmplz", "built-in")
        with read_only(monkeypatch, half):
            done = command(*words)
        assert done.code == 0, done.err
        again = command(*words)
        assert json.loads(again.out)["score"] == json.loads(done.out)["score"]

    def test_a_cache(self, tiny_config: Path, command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        home = tmp_path / "home"
        home.mkdir()
        monkeypatch.setenv("TEXTEBM_HOME", str(home))
        with read_only(monkeypatch, home):
            done = command("train", "--config", tiny_config, "--run-dir", "run", "--max-steps", 1)
        assert done.code == 2
        assert "the cache of encoded text in" in done.err and "TEXTEBM_HOME" in done.err
        assert not list(home.iterdir())


class TestDamagedCache:
    """What a disk has changed in a cache is built anew; no run ever sees it."""

    @pytest.mark.parametrize("ending", [".arrow", ".vocabulary.json", ".vocabulary.sha256", ".json"])
    def test_of_text(
        self,
        ending: str,
        tiny_config: Path,
        trained_run: Path,
        command,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        home = tmp_path / "home"
        monkeypatch.setenv("TEXTEBM_HOME", str(home))
        words = ("train", "--config", tiny_config, "--max-steps", 1, "--run-dir")
        assert command(*words, "first").code == 0
        entries = [path for path in (home / "encoded").iterdir() if path.name.endswith(ending)]
        whole = {path: path.read_bytes() for path in entries if ending != ".json" or "vocabulary" not in path.name}
        assert whole
        for path, content in whole.items():
            at = content.rindex(b"dog") if ending == ".vocabulary.json" else len(content) // 2
            path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert command(*words, "second").code == 0
        assert {path: path.read_bytes() for path in whole} == whole
        assert weights(tmp_path / "first") == weights(tmp_path / "second")


NAMES = (
    "two words.txt",
    "line\nbreak.txt",
    "\u6f22\u5b57 \u00e9\u0301\u05d0.txt",
    "--help",
    "-n",
    "a;touch b;.txt",
    "%s{0}$HOME.txt",
)
"""File names that a command, or a shell, might take for something else."""


class TestNames:
    """Files and folders of any name, in every command that takes or writes some."""

    @pytest.mark.parametrize("name", NAMES[1:4])
    def test_from_training_to_the_report(
        self, name: str, corpus_folder: Path, tiny_config: Path, command, tmp_path: Path
    ) -> None:
        lines = (corpus_folder / "train.txt").read_text(encoding="utf-8").splitlines()
        (tmp_path / name).write_text("\n".join(lines[:90]), encoding="utf-8")
        folder = tmp_path / "work"
        folder.mkdir()
        written = {kind: f"{kind} {name}" for kind in ("run", "samples", "fppl", "rppl", "table", "page", "curves")}
        # Given as `--option=NAME`, or with ./ before it, as everywhere where a name may begin with a dash.
        data, run, samples = f"--data=../{name}", f"--run-dir=./{written['run']}", f"./{written['samples']}"

        def ran(*words: object) -> str:
            done = command(*words, cwd=folder)
            assert done.code == 0, done.err
            assert "Traceback" not in done.err
            return done.out

        ran("train", "--config", tiny_config, data, run, "--max-steps", 2)
        ran("train", f"--resume={written['run']}", "--max-steps", 3)
        model = f"--model={written['run']}"
        ran("generate", model, "-n", 8, f"--output={written['samples']}")
        assert len((folder / written["samples"]).read_text(encoding="utf-8").splitlines()) == 8
        assert len(ran("reconstruct", samples, model).splitlines()) >= 1
        for metric in ("fppl", "rppl"):
            given = (f"--data={corpus_folder}", f"--samples=../{name}", f"--output={written[metric]}")
            ran(metric, *given, "--lmplz", "built-in")
        ran("compare", f"./{written['fppl']}", f"./{written['rppl']}", f"--output={written['table']}")
        table = (folder / written["table"]).read_text(encoding="utf-8")
        assert "kenlm5" in table
        sizes = ("--chains", 4, "--steps", 2, "--diagnostic-steps", 0)
        ran("report", model, f"--output={written['page']}.html", *sizes)
        ran("plot", f"./{written['run']}", f"--csv={written['curves']}")
        found = {path.name.removesuffix(".html") for path in folder.iterdir()}
        assert found == set(written.values())
        assert {path.name for path in tmp_path.iterdir()} == {name, "work"}

    @pytest.mark.parametrize("name", NAMES)
    def test_as_given(self, name: str, corpus_folder: Path, tiny_config: Path, command, tmp_path: Path) -> None:
        """In the folder where the command runs, a dash first."""
        (tmp_path / name).write_text((corpus_folder / "train.txt").read_text(encoding="utf-8"), encoding="utf-8")
        done = command("train", "--config", tiny_config, f"--data={name}", "--run-dir=run", "--max-steps", 1)
        assert done.code == 0, done.err
