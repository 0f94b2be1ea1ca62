"""Fuzz the readers of the program, guided by coverage: any bytes in, and only errors of ours may come out.

    pip install -c constraints.txt -e '.[fuzz]'
    python fuzz/run.py --inputs 5000                       # every target
    python fuzz/run.py --target tar --inputs 100000 --seed 7
    python fuzz/run.py --inputs 8000 --output results/fuzzing.json

An input may take 10 seconds and a gigabyte of memory. What is found lies in --findings, with its traceback; when it is
mended, the input goes to tests/fuzz_corpus/TARGET, which the tests replay. --write-seeds makes the valid files there.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import re
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CORPUS = ROOT / "tests" / "fuzz_corpus"
MEMORY_MB = 1024
"""Address space that a target may ask for beyond what it has after its first inputs."""
SLOW_AT_LEAST = 2000
"""Inputs of a slow target, unless fewer are asked for."""
SECONDS = 10
"""That one input may take."""


def fuzz(name: str, inputs: int, seed: int, findings: Path, longest: int) -> dict[str, Any]:
    """Fuzz one target.

    Args:
        name: of the target.
        inputs: how many are tried, those of the standing corpus included.
        seed: of libFuzzer.
        findings: folder for inputs that are faults.
        longest: bytes of the longest input.

    Returns:
        What was counted.
    """
    import worker

    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="textebm-fuzz-") as place:
        new, statistics = Path(place) / "corpus", Path(place) / "statistics"
        new.mkdir()
        standing = CORPUS / name
        standing.mkdir(parents=True, exist_ok=True)
        words = [
            *(f"-runs={inputs}", f"-seed={seed}", f"-timeout={SECONDS}", "-rss_limit_mb=6144", "-print_final_stats=1"),
            *(f"-max_len={longest}", f"-artifact_prefix={findings}/{name}-", str(new), str(standing)),
        ]
        code, said = worker.fuzz(name, words, statistics, findings, MEMORY_MB)
        found = worker.read(statistics)
    edges = re.findall(r"cov: (\d+)", said)
    ended = code == 0 and found["executed"] > 0
    if not ended:  # taken down by an input, which libFuzzer has written beside the other findings
        (findings / f"{name}-ended.txt").write_text(said[-20_000:], encoding="utf-8")
    return {
        "inputs": found["executed"],
        "read": found["accepted"],
        "refused": found["refused"],
        "faults": found["faults"] + (not ended),
        "edges": int(edges[-1]) if edges else 0,
        "longest_s": round(found["longest_ns"] / 1e9, 3),
        "memory_mb": round(max(0, found["peak_kb"] - found["start_kb"]) / 1024, 1),
        "seconds": round(time.monotonic() - began, 1),
    }


def write_seeds(names: list[str]) -> None:
    """Write the valid files of targets into the standing corpus."""
    targets = known_targets()
    for name in names:
        folder = CORPUS / name
        folder.mkdir(parents=True, exist_ok=True)
        for number, content in enumerate(targets[name].seeds()):
            (folder / f"valid-{number}").write_bytes(content)


def known_targets() -> dict[str, Any]:
    """The table of targets, instrumented where the fuzzer is installed."""
    sys.path.insert(0, str(Path(__file__).parent))
    if importlib.util.find_spec("atheris") is not None:
        import worker  # noqa: F401  (it imports the targets under instrumentation)
    import targets

    return targets.TARGETS


def main() -> int:
    """Run what the command line asks for; 1 where a fault was found."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--target", action="append", help="a target (default: every one; may be given several times)")
    options.add_argument("--inputs", type=int, default=5000, help="inputs of each target (default: 5000)")
    options.add_argument("--seed", type=int, default=1, help="of libFuzzer (default: 1)")
    options.add_argument("--findings", type=Path, default=Path("fuzz-findings"), help="folder for what is found")
    options.add_argument("--output", type=Path, help="JSON file for the figures")
    options.add_argument("--list", action="store_true", help="name the targets")
    options.add_argument("--write-seeds", action="store_true", help="write the valid files of the standing corpus")
    chosen = options.parse_args()
    targets = known_targets()
    names = chosen.target or list(targets)
    if unknown := sorted(set(names) - targets.keys()):
        options.error(f"no target {', '.join(unknown)}; targets: {', '.join(targets)}")
    if chosen.list:
        print("\n".join(f"{name:18} {targets[name].read.__doc__.splitlines()[0]}" for name in names))
        return 0
    if chosen.write_seeds:
        write_seeds(names)
        return 0
    if importlib.util.find_spec("atheris") is None:
        print(
            "the fuzzer is atheris, which is not installed: pip install -c constraints.txt -e '.[fuzz]'",
            file=sys.stderr,
        )
        return 2
    chosen.findings.mkdir(parents=True, exist_ok=True)
    import worker

    from textebm import hardware

    chosen.commit = hardware.commit()  # of what is fuzzed: the results that are written come later
    worker.warm_up(names)
    figures: dict[str, dict[str, Any]] = {}
    if chosen.target and chosen.output is not None and chosen.output.exists():  # what other targets gave stays
        figures = json.loads(chosen.output.read_text(encoding="utf-8"))["targets"]
    for name in names:
        inputs = max(SLOW_AT_LEAST, chosen.inputs // 4) if targets[name].is_slow else chosen.inputs
        found = fuzz(name, min(inputs, chosen.inputs), chosen.seed, chosen.findings, targets[name].longest)
        figures[name] = {**found, "commit": chosen.commit}
        print(f"{name:18} {json.dumps(figures[name])}", flush=True)
        write(figures, chosen)
    print(f"{'all':18} {json.dumps(sums(figures))}")
    faults = sum(figures[name]["faults"] for name in names)
    if faults:
        print(f"{faults} inputs are faults; the first of each kind is in {chosen.findings}", file=sys.stderr)
    return 1 if faults else 0


def sums(figures: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Over all targets: counts added up, and of times and memory the largest."""
    added = ("inputs", "read", "refused", "faults", "edges")
    largest = ("longest_s", "memory_mb")
    every = figures.values()
    return {key: sum(f[key] for f in every) for key in added} | {key: max(f[key] for f in every) for key in largest}


def write(figures: dict[str, dict[str, Any]], chosen: argparse.Namespace) -> None:
    """Write what is known so far, where that is asked for."""
    if chosen.output is None:
        return
    from textebm import hardware

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        described = {
            "name": "fuzzing",
            "command": f"python fuzz/run.py --inputs {chosen.inputs} --seed {chosen.seed}",
            "seed": chosen.seed,
            "hardware": hardware.hardware_class("cpu"),
            "versions": {**hardware.versions(), "atheris": importlib.metadata.version("atheris")},
            "limits": {"seconds": SECONDS, "memory_mb": MEMORY_MB},
            "all": sums(figures),
            "targets": figures,
        }
    chosen.output.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
