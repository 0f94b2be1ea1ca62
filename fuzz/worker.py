"""Targets under libFuzzer: all that they import is instrumented once, and each then runs in a process of its own.

An input is a fault that ends in an error which is not ours, asks for more memory than the limit, or takes too long. The
first of each kind is written into a folder, and the target goes on; libFuzzer itself ends it where an input hangs or
takes the process down.
"""

import contextlib
import hashlib
import io
import mmap
import os
import resource
import sys
import tempfile
import time
import traceback
from pathlib import Path
from random import Random

import atheris
import numpy  # noqa: F401  (what comes before the instrumentation is not slowed down by it)
import tokenizers  # noqa: F401
import torch  # noqa: F401

sys.path.insert(0, str(Path(__file__).parent))
import mutations

INSTRUMENTED = ["textebm", "targets", "yaml", "PIL", "tarfile", "zipfile"]
with atheris.instrument_imports(include=INSTRUMENTED):
    import tarfile  # noqa: F401  (where nothing has imported it before)

    import targets

COUNTERS = ("executed", "accepted", "refused", "faults", "longest_ns", "start_kb", "peak_kb")


class Statistics:
    """Counters in a mapped file, which outlives whatever an input does to the process."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(8 * len(COUNTERS)))
        with path.open("r+b") as file:
            self.values = memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")

    def __getitem__(self, name: str) -> int:
        return self.values[COUNTERS.index(name)]

    def __setitem__(self, name: str, value: int) -> None:
        self.values[COUNTERS.index(name)] = value


def read(path: Path) -> dict[str, int]:
    """The counters in a file."""
    return dict(zip(COUNTERS, memoryview(path.read_bytes()).cast("Q"), strict=True))


def peak_kb() -> int:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def limit_memory(megabytes: int) -> None:
    """Let this process ask for so much more than it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def where(error: BaseException) -> str:
    """What tells one fault from another: its kind, and the last place of ours that it came through."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/fuzz/" in f.filename or "textebm" in f.filename]
    frames = [f for f in frames if Path(f.filename).name not in ("worker.py", "targets.py")] or frames
    return f"{type(error).__name__} at {Path(frames[-1].filename).name}:{frames[-1].lineno}"


class Fuzzer:
    """Gives inputs to a target, counts, and keeps the first input of each fault."""

    def __init__(self, name: str, statistics: Statistics, findings: Path, folder: Path) -> None:
        self.name, self.statistics, self.findings, self.folder = name, statistics, findings, folder
        self.known: set[str] = set()

    def __call__(self, data: bytes) -> None:
        """Try an input."""
        began = time.perf_counter_ns()
        try:
            accepted = targets.accepts(self.name, data, self.folder)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of a library in Rust is no Exception
            self.statistics["faults"] += 1
            self._keep(error, data)
        else:
            self.statistics["accepted" if accepted else "refused"] += 1
        spent = time.perf_counter_ns() - began
        statistics = self.statistics
        statistics["executed"] += 1
        statistics["longest_ns"] = max(statistics["longest_ns"], spent)
        if statistics["executed"] % 64 == 0:
            statistics["peak_kb"] = peak_kb()

    def _keep(self, error: BaseException, data: bytes) -> None:
        fault = where(error)
        if fault in self.known:
            return
        self.known.add(fault)
        name = f"{self.name}-{hashlib.sha256(data).hexdigest()[:12]}"
        (self.findings / name).write_bytes(data)
        said = "".join(traceback.format_exception(error)[-8:])
        (self.findings / f"{name}.txt").write_text(f"{fault}\n{said}", encoding="utf-8", errors="replace")


def _mutated(data: bytes, longest: int, seed: int) -> bytes:
    """A mutation of libFuzzer's; or, every other time, one that leaves JSON what it is."""
    random = Random(seed)
    if data[:1] in (b"{", b"[") and random.random() < 0.5:
        found = mutations.changed(data, random)
        if found != data and len(found) <= longest:
            return found
    return atheris.Mutate(data, longest)  # type: ignore[no-any-return]


def warm_up(names: list[str]) -> None:
    """Let targets import, instrumented, what they import when they are first called."""
    with atheris.instrument_imports(include=INSTRUMENTED), tempfile.TemporaryDirectory() as place:
        for name in names:
            folder = Path(place) / name
            folder.mkdir()
            for seed in targets.TARGETS[name].seeds():
                with contextlib.suppress(Exception):  # a fault, which the fuzzer will meet again
                    targets.accepts(name, seed, folder)


def fuzz(name: str, words: list[str], statistics: Path, findings: Path, megabytes: int) -> tuple[int, str]:
    """Fuzz one target in a child of this process.

    Args:
        name: of the target.
        words: libFuzzer's arguments.
        statistics: file for the counters.
        findings: folder for inputs that are faults.
        megabytes: that the target may ask for beyond what it has.

    Returns:
        The child's exit code, and what libFuzzer said.
    """
    quick = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="textebm-fuzz-", dir=quick if quick.is_dir() else None) as place:
        said, folder = Path(place) / "said", Path(place) / "folder"
        folder.mkdir()
        child = os.fork()
        if child == 0:
            try:
                with said.open("wb") as file:
                    os.dup2(file.fileno(), sys.stderr.fileno())
                counters = Statistics(statistics)
                limit_memory(megabytes)
                counters["start_kb"] = counters["peak_kb"] = peak_kb()
                fuzzer = Fuzzer(name, counters, findings, folder)
                atheris.Setup([f"fuzz-{name}", *words], fuzzer, custom_mutator=_mutated)
                with contextlib.redirect_stdout(io.StringIO()):
                    atheris.Fuzz()  # it ends the process
            finally:
                os._exit(1)  # what this process cleans up at its end belongs to its parent
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return code, said.read_text(encoding="utf-8", errors="replace")
