"""The benchmarks run, write what results/ is to hold, and the memory of a learning step grows as it should."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch

from textebm.hardware import native_precision

CPU = torch.device("cpu")


@pytest.fixture
def harness(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_harness", root / "benchmarks" / "harness.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def program(root: Path, *words: object, name: str = "chains") -> str:
    command = [sys.executable, root / "benchmarks" / f"{name}.py", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_ratios_are_of_pairs_and_their_median(harness, capsys):
    """A machine that slows down tenfold half way leaves the ratio as it is."""
    pace = iter([1, 1, *[1] * 4, *[4] * 6])

    def work(milliseconds):
        return lambda: time.sleep(milliseconds * next(pace) / 1000)

    row = harness.Bench("suite", CPU, 5).compare("name", work(4), work(20), "fp32", {"batch": 1})
    assert 3 < row["ratio"] < 7
    assert row["min"] <= row["ratio"] <= row["max"]
    assert row["repeats"] == 5
    assert "suite/name" in capsys.readouterr().out


def test_a_suite_replaces_its_own_rows_only(harness, tmp_path):
    path = tmp_path / "bench.json"
    for suite, name in (("one", "a"), ("two", "b"), ("one", "c")):
        bench = harness.Bench(suite, CPU, 1)
        bench.add(name, "fp32", {})
        bench.write(path)
    assert [row["name"] for row in json.loads(path.read_text())] == ["two/b", "one/c"]


def test_a_part_of_a_suite_replaces_its_own_rows_only(harness, tmp_path):
    path = tmp_path / "bench.json"
    for names, only in ((("a", "b"), ""), (("b",), "b")):
        bench = harness.Bench("one", CPU, 1)
        for name in names:
            bench.add(name, "fp32", {"only": only})
        bench.write(path, only)
    assert [(row["name"], row["shapes"]["only"]) for row in json.loads(path.read_text())] == [
        ("one/a", ""),
        ("one/b", "b"),
    ]


def test_a_device_replaces_its_own_rows_only(harness, tmp_path):
    path = tmp_path / "bench.json"
    for device in ("cpu", "meta", "cpu"):
        bench = harness.Bench("one", torch.device(device), 1)
        bench.add("a", "fp32", {})
        bench.write(path)
    assert [row["device"] for row in json.loads(path.read_text())] == ["meta", "cpu"]


def test_a_device_that_is_not_there_is_named(harness, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert harness.devices("all") == [CPU]
    assert harness.devices("cuda:1") == []
    assert capsys.readouterr().out.count("torch sees no CUDA device here") == 2
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert harness.devices("all") == [CPU, torch.device("cuda")]


def test_the_images_of_the_reference_are_ours(root, monkeypatch):
    """Same weights: the same mean image, and along a chain the same slope up to the constant of the density."""
    monkeypatch.syspath_prepend(root / "benchmarks")
    spec = importlib.util.spec_from_file_location("benchmark_images", root / "benchmarks" / "images.py")
    images = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(images)
    case = images.Case(images.QUICK, CPU)
    z = torch.randn(4, 5, generator=case.source()).requires_grad_()
    torch.testing.assert_close(case.plain.paint(z), case.model.paint(z))
    (slope,) = torch.autograd.grad(case.plain.log_prob(case.pixels, z), z)
    conditioned = case.model.condition(images.ImageBatch(case.pixels))
    torch.testing.assert_close(conditioned.log_prob_and_grad(z.detach())[1], slope, rtol=1e-4, atol=1e-4)


def test_a_small_run_of_the_images(root, tmp_path):
    path = tmp_path / "bench.json"
    out = program(root, "--quick", "--threads", 1, "--only", "cifar10", "--output", path, name="images")
    rows = json.loads(path.read_text())
    precisions = ["fp32", "bf16"] if native_precision(CPU) == "bf16" else ["fp32"]
    for precision in precisions:
        assert f"images/cifar10/learning-step/{precision}" in out
    assert {row["name"].split("/")[2] for row in rows} == {"posterior-chain", "learning-step"}
    assert rows[-1]["shapes"]["micro_batch"] == 2
    assert all(row["ratio"] > 0 and row["ours_s"] > 0 for row in rows)


def test_a_small_run_of_the_chains(root, tmp_path):
    path = tmp_path / "bench.json"
    out = program(root, "--quick", "--threads", 1, "--only", "posterior", "--output", path)
    rows = json.loads(path.read_text())
    names = {row["name"] for row in rows}
    assert names >= {"chains/posterior-chain/fp32", "chains/posterior-chain/sampled-512-fp32"}
    if native_precision(torch.device("cpu")) == "bf16":
        assert "chains/posterior-chain/bf16" in names
    else:
        assert "skipped: this device has no bf16 products of its own" in out
    assert all(row["ratio"] > 0 and row["threads"] == 1 and row["commit"] for row in rows)
    assert "ratio" in out
    assert "skipped: cuda, torch sees no CUDA device here" in out or torch.cuda.is_available()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read as Linux reports it")
def test_memory_grows_with_the_vocabulary_by_weights_and_optimiser_state_only(root):
    """Weights, their gradients and Adam's two moments; a matrix of logits would add six times as much here.

    What else a process holds at its peak varies by tens of MB from run to run, in pages of 2 MB, and only adds: so the
    lower of two runs, and a bound that stands far from both.
    """

    def measured(vocabulary):
        runs = [json.loads(program(root, "--peak-memory", vocabulary, "--hidden", 32)) for _ in range(2)]
        return min(runs, key=lambda run: run["peak"])

    small, large = measured(5_002), measured(85_002)
    growth = large["peak"] - small["peak"]
    expected = 4 * (large["weights"] - small["weights"])
    logits = 64 * 24 * 80_000 * 4
    assert logits > 5 * expected
    assert 0.6 * expected < growth < 2 * expected
