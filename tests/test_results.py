"""Every committed result says how it was obtained, and the README quotes no figure that is not in one."""

import importlib.util
import itertools
import json
import re
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest

from textebm.comparison.images import ImageSystems, read_image_run
from textebm.comparison.text import Systems, read_run
from textebm.config import from_dict, load_config, to_dict
from textebm.lm_eval import Signature

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = ROOT / "docs" / "experiments.md"
OTHERS = (
    "bench-",
    "calibration-",
    "corpus-",
    "fuzzing",
    "judges-",
    "kill-",
    "long-",
    "mnist-anomaly",
    "scaling-",
    "tilt-",
    "transition-",
)
"""Beginnings of names of results that are no experiments."""
RESULTS = [
    path
    for path in sorted([*(ROOT / "results").glob("*.json"), *(ROOT / "results").glob("*/*.json")])
    if not path.stem.startswith(OTHERS)
]
CELLS = [path for path in RESULTS if path.parent.name != "results"]
IMAGES = [path for path in CELLS if path.parent.name == "images"]
TEXTS = [path for path in RESULTS if path not in IMAGES]
TRANSITIONS = sorted((ROOT / "results").glob("transition-*.json"))
CALIBRATIONS = sorted((ROOT / "results").glob("calibration-*.json"))
TILTS = sorted((ROOT / "results").glob("tilt-*.json"))
JUDGES = sorted((ROOT / "results").glob("judges-*.json"))
BENCHMARKS = sorted((ROOT / "results").glob("bench-*.json"))


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_there_are_results() -> None:
    assert any(path.name.startswith("ptb-") for path in RESULTS)


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_result_says_how_it_was_obtained(path: Path) -> None:
    result = read(path)
    assert result["name"] == path.stem
    words = result["command"].split()
    assert words[:2] == ["textebm", "train"]
    load_config(words[words.index("--config") + 1])
    assert re.fullmatch("[0-9a-f]{40}", result["commit"]), "measured on a commit, without changes on top"
    assert re.fullmatch(r"(cpu\d+-|nvidia-)[a-z0-9-]+", result["hardware"])
    assert isinstance(result["seed"], int)
    assert path in IMAGES or len(result["samples"]) == 20
    assert [line["step"] for line in result["learning_curve"]] == sorted(
        {line["step"] for line in result["learning_curve"]}
    )


def test_long_jobs_stay_in_bounded_memory() -> None:
    found = read(ROOT / "results" / "long-run.json")
    assert re.fullmatch("[0-9a-f]{40}(-dirty)?", found["commit"])
    training = found["training"]
    assert training["steps"] == 10_000 == training["measured"][-1]["step"]
    assert training["memory_is_flat"]
    assert training["memory_mb_in_1000_steps"] < training["bound_mb_in_1000_steps"]
    assert len(training["open_files"]) == len(training["threads"]) == 1
    for what in ("generate", "fppl"):
        sizes = [each["sentences"] for each in found[what]]
        assert sizes == [10_000, 100_000, 1_000_000]
    few, *_, many = (each["most_memory_mb"] for each in found["generate"])
    assert many < 1.5 * few
    assert found["interrupted"]["files_left"] == []


@pytest.mark.parametrize("path", TILTS, ids=lambda path: path.stem)
def test_runs_that_differ_in_a_setting_say_in_which(path: Path, command) -> None:
    runs = read(path)["runs"]
    assert len({run["command"] for run in runs}) == len(runs)
    for run in runs:
        settings = json.loads(command(*run["command"].split()[1:], "--print-config").out)
        assert settings["data"] == Signature.parse(run["fppl"]["signature"])["data"]
        assert re.fullmatch("[0-9a-f]{40}", run["commit"])
        for metric in ("fppl", "rppl"):
            assert Signature.parse(run[metric]["signature"])["metric"] == metric
            low, high = run[metric]["interval"]
            assert low < run[metric]["score"] < high


@pytest.mark.parametrize("path", CELLS, ids=lambda path: path.stem)
def test_the_command_of_a_cell_means_its_settings(path: Path, command) -> None:
    result = read(path)
    assert (path.parent.name, result["name"]) == (result["experiment"], path.stem)
    words = result["command"].split()[1:]
    known = to_dict(from_dict(result["config"]))  # options that came later stand at their defaults
    assert json.loads(command(*words, "--print-config").out) == known
    assert words[words.index("--method") + 1] == result["method"]


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.stem)
def test_a_cell_of_images_has_its_scores(path: Path) -> None:
    result = read(path)
    for metric, named in (("mse", "reconstruction-mse"), ("frechet", "frechet-mobilenetv2")):
        signature = Signature.parse(result[metric]["signature"])
        assert signature["metric"] == result[metric]["metric"] == named
        low, high = result[metric]["interval"]
        assert low < result[metric]["score"] < high


@pytest.mark.parametrize("path", TRANSITIONS, ids=lambda path: path.stem)
def test_quality_over_prior_steps_improves(path: Path) -> None:
    """As in the paper: from the reference Gaussian toward the prior samples get better, and then stay as good."""
    result = read(path)
    assert Signature.parse(result["signature"])["metric"] == "prior-energy-change"
    details, quality = result["details"], result["details"]["quality"]
    points = {point["steps"]: point for point in quality["points"]}
    for steps, point in points.items():
        signature = Signature.parse(point["signature"])
        assert signature["metric"] == quality["metric"]
        low, high = point["interval"]
        assert low < point["score"] < high, steps
    trained = points[details["short_run_steps"]]
    assert trained["interval"][1] < points[0]["interval"][0]
    assert len(details["energy"]["mean"]) == details["steps"] + 1


@pytest.mark.parametrize("metric", ["fppl", "rppl"])
@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_a_score_has_its_signature_its_interval_and_real_text_beside(path: Path, metric: str) -> None:
    score = read(path)[metric]
    signature = Signature.parse(score["signature"])
    assert signature["metric"] == metric
    low, high = score["interval"]
    assert low < score["score"] < high
    details = score["details"]
    assert details["headline"] and signature["n"] == str(details["headline_sentences"])
    assert details["real_row"]["perplexity"] < score["score"]


@pytest.mark.parametrize("path", JUDGES, ids=lambda path: path.stem)
def test_rows_under_judges_have_signatures_and_intervals(path: Path) -> None:
    result = read(path)
    assert result["name"] == path.stem
    assert result["command"].startswith("python scripts/judges.py ")
    assert re.fullmatch("[0-9a-f]{40}", result["commit"]), "measured on a commit, without changes on top"
    assert {"seed", "hardware", "versions", "minutes"} <= result.keys()
    protocols = {row["protocol"] for row in result["rows"]}
    for row in result["rows"]:
        for metric in {"fppl", "rppl"} & row.keys():
            low, high = row[metric]["interval"]
            if row["name"] == "real text":
                assert low < row[metric]["perplexity"] < high
                continue
            assert low < row[metric]["score"] < high
            signature = Signature.parse(row[metric]["signature"])
            assert (signature["metric"], signature["judge"]) == (metric, row["protocol"])
            departs = bool(row[metric]["details"]["headline_reasons"])
            assert row[metric]["details"]["headline"] != departs
    assert {row["protocol"] for row in result["rows"] if row["name"] == "real text"} == protocols


@pytest.mark.parametrize("path", CALIBRATIONS, ids=lambda path: path.stem)
def test_a_calibration_says_how_it_was_obtained_and_what_is_known(path: Path) -> None:
    result = read(path)
    assert result["command"].startswith("textebm calibrate --data ")
    assert re.fullmatch("[0-9a-f]{40}", result["commit"])
    assert re.fullmatch(r"(cpu\d+-|nvidia-)[a-z0-9-]+", result["hardware"])
    for name, row in result["details"]["judges"].items():
        assert Signature.parse(row["signature"])["judge"] == name
        low, high = row["interval"]
        assert low < row["score"] < high
        known = row["details"]["known"]
        assert known["difference"] == pytest.approx(row["score"] / known["perplexity"] - 1)


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_a_row_of_a_benchmark_says_how_it_was_obtained(path: Path) -> None:
    rows = json.loads(path.read_text(encoding="utf-8"))
    assert len({row["name"] for row in rows}) == len(rows)
    figures = {"ours_s", "reference_s", "ratio", "min", "max", "repeats"}
    for row in rows:
        assert {"name", "device", "dtype", "threads", "shapes", "versions", "commit"} | figures <= row.keys()
        if row["min"] is not None:
            assert row["min"] <= row["ratio"] <= row["max"]


def test_the_readme_quotes_the_results() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    ptb = read(ROOT / "results" / "ptb-small.json")
    for metric in ("fppl", "rppl"):
        score, real = ptb[metric], ptb[metric]["details"]["real_row"]["perplexity"]
        low, high = score["interval"]
        row = f"| {metric.upper()} | {score['score']:.1f} | {low:.1f} to {high:.1f} | {real:.1f} |"
        assert row in readme
        assert score["signature"] in readme
    for z, name in (("Gaussian", "gaussian"), ("EBM prior's chain", "prior"), ("(reconstruction)", "reconstruction")):
        figures = f"| {ptb['valid'][f'{name}_perplexity']:.1f} | {ptb['valid'][f'{name}_nll']:.1f} |"
        assert any(z in line and figures in line for line in readme.splitlines()), figures
    sentences = {sample["text"] for sample in ptb["samples"]}
    quoted = re.findall(r"\*([^*]+)\*", " ".join(readme.split()).split("of its sentences:")[1].split("The preset")[0])
    assert len(quoted) == 3
    assert set(quoted) <= sentences


def test_the_readme_quotes_quality_over_steps() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    points = read(ROOT / "results" / "transition-ptb-small.json")["details"]["quality"]["points"]
    assert f"| prior steps | {' | '.join(str(point['steps']) for point in points)} |" in readme
    scores = " | ".join(format(point["score"], ",.0f") for point in points)
    assert f"| FPPL (`kenlm5`) | {scores} |" in readme
    points = read(ROOT / "results" / "transition-mnist-small.json")["details"]["quality"]["points"]
    scores = " | ".join(format(point["score"], ".1f") for point in points)
    assert f"| `frechet-mobilenetv2`, which is no FID | {scores} |" in readme


def test_the_readme_quotes_what_the_tilt_is_worth() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for corpus in ("ptb", "snli"):
        paths = sorted((ROOT / "results" / "table2").glob(f"{corpus}-small-*ebm-tempered-t05-seed*.json"))
        paths += sorted((ROOT / "results" / "table2").glob(f"{corpus}-small-sri-tempered-t05-seed*.json"))
        runs = [read_run(path) for path in paths]
        for name, method in (("EBM prior", "lebm-tempered-t05"), ("Gaussian prior", "sri-tempered-t05")):
            of_method = [run.content for run in runs if run.method == method]
            assert len(of_method) == 3
            columns = [[run[metric]["score"] for run in of_method] for metric in ("fppl", "rppl")]
            columns += [[run["test"][figure] for run in of_method] for figure in ("reconstruction_nll", "prior_nll")]
            cells = " | ".join(f"{mean(column):.1f} ± {stdev(column):.1f}" for column in columns)
            assert f"| {corpus.upper()}, {name} | {cells} |" in readme
        (differences,) = Systems(runs, against=["sri-tempered-t05"]).differences
        cells = []
        for difference in differences:
            low, high = difference.difference_interval
            assert high < 0
            cells.append(f"{difference.difference:.1f} ({low:.1f} to {high:.1f})".replace("-", "−"))
        assert f"| {corpus.upper()}, difference (95 % interval) | {' | '.join(cells)} | | |" in readme
        assert all(cell in EXPERIMENTS.read_text(encoding="utf-8") for cell in cells)


def test_the_readme_quotes_the_tilt_beside_the_generator() -> None:
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    cell = read(ROOT / "results" / "table2" / "ptb-small-lebm-decoupled-tempered-t05-seed0.json")
    fppl, rppl, test = cell["fppl"]["score"], cell["rppl"]["score"], cell["test"]
    assert (
        f"FPPL {fppl:.1f} and RPPL {rppl:.1f}, NLL {test['reconstruction_nll']:.1f} reconstructing and "
        f"{test['prior_nll']:.1f} with z from the prior" in text
    )


def test_the_readme_quotes_the_two_priors_at_temperature_1() -> None:
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    quoted, seeds = [], []
    for corpus in ("ptb", "snli"):
        folder = ROOT / "results" / "table2"
        paths = [path for name in ("lebm", "sri") for path in sorted(folder.glob(f"{corpus}-small-{name}-seed*.json"))]
        (differences,) = Systems([read_run(path) for path in paths], against=["sri"]).differences
        for difference in differences:
            low, high = difference.difference_interval
            quoted.append(f"{difference.difference:.1f} ({low:.1f} to {high:.1f})".replace("-", "−"))
            seeds.append({2: "two", 3: "three"}[difference.seeds])
    fppl, rppl, fppl_snli, rppl_snli = quoted
    assert f"on PTB FPPL {fppl} and RPPL {rppl}, on SNLI {fppl_snli} and {rppl_snli}." in text
    assert all(cell in EXPERIMENTS.read_text(encoding="utf-8") for cell in quoted)
    assert f"EBM less Gaussian over {seeds[0]} seeds on PTB and {seeds[-1]} on SNLI" in text
    language_models = [read(path) for path in sorted(folder.glob("ptb-small-lstm-lm-seed*.json"))]
    figures = [f"{mean(run[metric]['score'] for run in language_models):.1f}" for metric in ("fppl", "rppl")]
    assert f"A plain language model of the same size has {figures[0]} and {figures[1]} on PTB" in text


def figure(value: float, places: int = 3) -> str:
    """As areas, errors and their differences are written."""
    text = f"{abs(value):.{places}f}"
    return "−" * (value < 0) + (text.lstrip("0") if places > 1 else text)


def test_the_readme_quotes_the_comparison_of_images() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = ImageSystems([read_image_run(path) for path in IMAGES], against=["sri", "vae", "sri-long-step"])
    presets, places = {"mnist-small": 5, "cifar10-small": 3}, {"frechet": 1, "mse": 4}  # seeds, digits
    assert set(found.presets) == set(presets)
    names = {
        "lebm": "EBM prior",
        "sri": "Gaussian prior",
        "vae": "VAE",
        "lebm-long-step": "EBM prior, step .2",
        "sri-long-step": "Gaussian prior, step .2",
    }
    for method, name in names.items():
        cells = []
        for preset, metric in itertools.product(presets, places):
            scores = [run.scores[metric] for run in found.row(preset, method).values()]
            assert len(scores) == presets[preset]
            cells.append(" ± ".join(figure(each, places[metric]) for each in (mean(scores), stdev(scores))))
        assert f"| {name} | {' | '.join(cells)} |" in readme
    pairs = [("lebm", "sri"), *itertools.product(["lebm-long-step"], ["sri", "vae", "sri-long-step"])]
    for pair in pairs:
        cells = []
        for preset, metric in itertools.product(presets, places):
            (one,) = (
                each
                for each in found.differences
                if (each.preset, each.first, each.second, each.metric) == (preset, *pair, metric)
            )
            assert one.interval is not None
            value, low, high = (figure(each, places[metric]) for each in (one.difference, *one.interval))
            cells.append(f"{value} ({low} to {high})")
            if pair[0] == "lebm-long-step":
                assert one.interval[1] < 0
        assert f"| {names[pair[0]]}, less {names[pair[1]]} | {' | '.join(cells)} |" in readme


def test_the_table_of_anomalies_is_that_of_the_result() -> None:
    found = read(ROOT / "results" / "mnist-anomaly.json")
    cells = found["details"]["cells"]
    assert found["details"]["unfinished"] == found["details"]["warnings"] == []
    assert [cell["held_out"] for cell in cells] == ["1", "4", "5", "7", "9"]
    text = (ROOT / "docs" / "anomaly.md").read_text(encoding="utf-8")
    for cell in cells:
        assert (cell["split"], [run["seed"] for run in cell["runs"]]) == ("A", [0, 1, 2])
        assert found["auprc"][cell["held_out"]] == {key: cell["auprc"][key] for key in ("mean", "sd")}
        every = [epoch["auprc"] for run in cell["runs"] for epoch in run["epochs"]]
        assert cell["auprc"]["mean"] == pytest.approx(mean(every), abs=1e-12)
        assert cell["auprc"]["mean"] == cell["auprc_by"]["adjusted"]
    (published,) = found["details"]["published"]
    row = next(row for row in published["rows"] if row[0] == "LEBM")
    beside = dict(zip(published["columns"], row[1:], strict=True))
    rows = {
        "adjusted for complexity": [
            f"{figure(cell['auprc']['mean'])} ± {figure(cell['auprc']['sd'])}" for cell in cells
        ],
        "95 % interval": [" to ".join(map(figure, cell["interval"])) for cell in cells],
        "published score": [figure(cell["auprc_by"]["joint"]) for cell in cells],
        "−log p(z) alone": [figure(cell["auprc_by"]["prior"]) for cell in cells],
        "LEBM, Pang et al.": [beside[cell["held_out"]].replace("0.", ".") for cell in cells],
        "chance": [figure(cell["base_rate"]) for cell in cells],
        "AUROC, adjusted": [figure(cell["auroc"]["mean"]) for cell in cells],
    }
    for name, figures in rows.items():
        assert f"| {name} | {' | '.join(figures)} |" in text
    listed = {
        "AUPRC of": [figure(cell["auprc"]["mean"]) for cell in cells],
        "published:": [beside[cell["held_out"]].split(" ")[0].lstrip("0") for cell in cells],
    }
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for words, (*figures, last) in listed.items():
        assert f"{words} {', '.join(figures)} and {last}" in readme
    above = {c["held_out"]: c["auprc"]["mean"] > float(beside[c["held_out"]].split(" ")[0]) for c in cells}
    assert all(above.values())
    assert all(c["interval"][0] > c["base_rate"] for c in cells)


def test_the_readme_quotes_the_published_size() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    paths = [ROOT / "results" / "table2" / f"ptb-fast-{name}-seed0.json" for name in ("lebm", "sri")]
    for path, name in zip(paths, ("EBM", "Gaussian"), strict=True):
        run = read(path)
        marginal, test = run["likelihood"], run["test"]
        scores = " | ".join(f"{run[metric]['score']:.1f}" for metric in ("fppl", "rppl"))
        losses = " | ".join(f"{test[figure]:.1f}" for figure in ("reconstruction_nll", "prior_nll"))
        exact = f"{marginal['score']:.1f} ({marginal['perplexity']:.1f})"
        use = f"{marginal['details']['reconstruction']['kl']:.2f} | {run['valid']['active_units']}"
        assert f"| {name} prior | {scores} | {losses} | {exact} | {use} |" in readme
    (differences,) = Systems([read_run(path) for path in paths], against=["sri"]).differences
    cells = []
    for difference in differences:
        low, high = difference.difference_interval
        cells.append(f"{difference.difference:.1f} ({low:.1f} to {high:.1f})".replace("-", "−"))
    assert f"| difference (95 % interval) | {' | '.join(cells)} |" in readme
    assert " and ".join(cells) in EXPERIMENTS.read_text(encoding="utf-8")


def test_the_table_of_the_ablation_is_that_of_its_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("ablation", ROOT / "scripts" / "ablation.py")
    assert spec is not None and spec.loader is not None
    ablation = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "ablation", ablation)  # where its dataclasses look for their module
    spec.loader.exec_module(ablation)
    table = ablation.table(ROOT / "results" / "ablation" / "demo").strip()
    page = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    assert table in page
    for path in (ROOT / "results" / "ablation" / "demo").glob("*.json"):
        cell = read(path)
        assert f"{cell['name']}-seed{cell['seed']}" == path.stem
        assert re.fullmatch("[0-9a-f]{40}", cell["commit"])
    base = [read(path) for path in (ROOT / "results" / "ablation" / "demo").glob("lebm-seed*.json")]
    fppl, rppl = ([run[metric]["score"] for run in base] for metric in ("fppl", "rppl"))
    spread = f"FPPL is {mean(fppl):.1f} ± {stdev(fppl):.1f} and RPPL {mean(rppl):.1f} ± {stdev(rppl):.1f}"
    assert spread in " ".join(page.split())


def test_no_killed_run_was_lost() -> None:
    found = read(ROOT / "results" / "kill-and-resume.json")
    assert found["kills"] >= 50 and found["kills_in_a_save"] > 0
    assert found["lost_runs"] == found["differing"] == []
    assert re.fullmatch("[0-9a-f]{40}", found["commit"])


def test_the_table_of_processes_is_that_of_the_results() -> None:
    rows = read(ROOT / "results" / "scaling-cpu2-avx2.json")["rows"]
    page = (ROOT / "docs" / "processes.md").read_text(encoding="utf-8")
    for row in rows:
        name = "" if row["processes"] == 1 else row["table"]
        speedup = "1" if row["processes"] == 1 else f"{row['speedup']:.2f}"
        figures = f"{row['batch']} | {1000 * row['step_s']:.0f} ms | {row['samples_a_second']:.0f} | {speedup} |"
        assert f"| {row['processes']} | {figures}" in page, name
