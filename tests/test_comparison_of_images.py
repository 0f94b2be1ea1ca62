"""Rows of methods on images: means over seeds, paired differences, what does not compare."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from textebm.comparison.images import METRICS, ImageSystems, paired_difference, read_image_run
from textebm.errors import DataError, UsageError

MSE = "metric:mse|data:mnist|split:test|seed:0|images:100|scale:-1..1|inference:short-run|steps:20|version:1"
FRECHET = "metric:frechet-mobilenetv2|data:mnist|against:test|real:abc|real-n:100|n:50|version:1"
SCORES = {
    "lebm": {0: (0.010, 20.0), 1: (0.012, 22.0), 2: (0.011, 21.0)},
    "sri": {0: (0.013, 25.0), 1: (0.014, 28.0), 2: (0.015, 26.0)},
}


@pytest.fixture
def results(tmp_path: Path) -> dict[tuple[str, int], Path]:
    """Results of two methods with three seeds."""
    return {
        (method, seed): write(tmp_path, method, seed, scores)
        for method, of_seeds in SCORES.items()
        for seed, scores in of_seeds.items()
    }


def write(folder: Path, method: str, seed: int, scores: tuple[float, float], **other: str) -> Path:
    signatures = {"mse": MSE, "frechet": FRECHET, **other}
    path = folder / f"{method}-seed{seed}.json"
    content = {"name": path.stem, "preset": "mnist-small", "method": method, "seed": seed, "minutes": 5.0}
    for metric, score in zip(METRICS, scores, strict=True):
        content[metric] = {"score": score, "signature": signatures[metric]}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def systems(paths, against: Sequence[str] = ("sri",)) -> ImageSystems:
    return ImageSystems([read_image_run(path) for path in paths], against=against)


class TestDifference:
    def test_it_is_the_paired_t_interval(self) -> None:
        first, second = np.array([1.0, 2.0, 4.0]), np.array([0.5, 1.0, 4.5])
        mean, interval = paired_difference(first, second)
        expected = stats.ttest_rel(first, second).confidence_interval(0.95)
        assert mean == pytest.approx((first - second).mean())
        assert interval == pytest.approx((expected.low, expected.high))

    def test_one_pair_has_none(self) -> None:
        assert paired_difference([1.0], [3.0]) == (-2.0, None)

    def test_it_holds_the_truth_as_often_as_it_says(self) -> None:
        source = np.random.default_rng(0)
        held = 0
        for _ in range(2000):
            base = source.normal(5, 3, 3)  # what a seed does to both
            low, high = paired_difference(base + source.normal(0.7, 1, 3), base)[1]
            held += low <= 0.7 <= high
        assert held / 2000 == pytest.approx(0.95, abs=0.015)


class TestTable:
    def test_one_row_a_method_with_its_spread(self, results) -> None:
        text = systems(results.values()).render("text")
        row = next(line for line in text.splitlines() if line.startswith("lebm "))
        assert "0, 1, 2" in row and "0.011 ± 0.001" in row and "21 ± 1" in row
        assert "frechet-mobilenetv2" in text  # never FID
        assert "50 generated images against 100 of test" in text

    def test_differences_are_of_the_same_seeds(self, results) -> None:
        of_mse, of_frechet = systems(results.values()).differences
        assert of_mse.difference == pytest.approx(-0.003)
        assert of_frechet.difference == pytest.approx(-16 / 3)
        assert of_mse.interval[1] < 0 and of_frechet.interval[1] < 0
        assert of_mse.seeds == 3

    def test_from_each_of_several_methods_and_each_pair_once(self, results, tmp_path: Path) -> None:
        vae = [write(tmp_path, "vae", seed, (0.02, 30.0)) for seed in range(3)]
        found = systems([*results.values(), *vae], ["sri", "vae"]).differences
        pairs = [(each.first, each.second) for each in found if each.metric == "mse"]
        assert pairs == [("lebm", "sri"), ("vae", "sri"), ("lebm", "vae")]
        assert found[4].difference == pytest.approx(np.mean([0.010, 0.011, 0.012]) - 0.02)

    def test_a_seed_of_one_method_alone_is_left_out_and_said(self, results) -> None:
        del results["sri", 2]
        found = systems(results.values())
        assert found.differences[0].seeds == 2
        assert "one only has the seeds 2" in found.warnings[0]

    def test_one_seed_has_no_interval(self, results) -> None:
        found = systems([results["lebm", 0], results["sri", 0]])
        assert found.differences[0].interval is None
        assert "says nothing about the next one" in found.warnings[0]

    def test_methods_may_infer_z_in_their_own_way(self, results, tmp_path: Path) -> None:
        amortised = MSE.replace("short-run|steps:20", "amortised")
        vae = write(tmp_path, "vae", 0, (0.02, 30.0), mse=amortised)
        assert systems([*results.values(), vae]).methods("mnist-small") == ["lebm", "sri", "vae"]

    @pytest.mark.parametrize(
        ("metric", "change", "named"),
        [
            ("mse", MSE.replace("images:100", "images:90"), "images"),
            ("frechet", FRECHET.replace("|n:50", "|n:60"), "n"),
            ("frechet", FRECHET.replace("real:abc", "real:abd"), "real"),
        ],
    )
    def test_what_was_measured_in_another_way_is_refused(self, results, tmp_path: Path, metric, change, named) -> None:
        other = write(tmp_path, "vae", 0, (0.02, 30.0), **{metric: change})
        with pytest.raises(DataError, match=f"do not compare: they differ in {named}$"):
            systems([*results.values(), other])

    def test_an_unknown_method_and_a_name_twice(self, results) -> None:
        with pytest.raises(UsageError, match="there is no run of it; methods: lebm, sri"):
            systems(results.values(), against=["vae"])
        with pytest.raises(DataError, match="name lebm-seed0"):
            systems([results["lebm", 0], results["lebm", 0]], against=())

    @pytest.mark.parametrize("text", ["{}", "[1]", "no JSON", '{"mse": 1, "frechet": 2}'])
    def test_what_is_no_such_result(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "other.json"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=r"other\.json"):
            read_image_run(path)


class TestCommand:
    def test_markdown(self, command, results) -> None:
        done = command("compare", *results.values(), "--against", "sri", "--format", "markdown")
        assert done.code == 0
        assert "| lebm − sri | mse | 3 |" in done.out

    def test_json_has_every_figure(self, command, results) -> None:
        found = json.loads(command("compare", *results.values(), "--against", "sri", "--format", "json").out)
        rows = found["tables"][0]["rows"]
        assert rows["lebm"]["1"] == {"mse": 0.012, "frechet": 22.0}
        assert [each["metric"] for each in found["differences"]] == ["mse", "frechet"]

    def test_csv(self, command, results) -> None:
        lines = command("compare", *results.values(), "--format", "csv").out.splitlines()
        assert lines[0] == "preset,method,seeds,mse,frechet-mobilenetv2,minutes"
        assert len(lines) == 3

    def test_text_and_images_do_not_share_a_table(self, command, results, tmp_path: Path) -> None:
        text = tmp_path / "text.json"
        text.write_text("{}", encoding="utf-8")
        done = command("compare", *results.values(), text)
        assert done.code == 2
        assert "compare them apart" in done.err

    def test_there_are_no_published_rows_for_it(self, command, results) -> None:
        assert "leave it out" in command("compare", *results.values(), "--published").err
