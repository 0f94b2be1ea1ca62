"""Pictures of a run."""

import csv
import json
import shutil
import tracemalloc
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from textebm import plots
from textebm.errors import CheckpointError, UsageError

matplotlib = pytest.importorskip("matplotlib", reason="plots need matplotlib")


class TestLearningCurves:
    def test_png(self, trained_run: Path, tmp_path: Path) -> None:
        from matplotlib.image import imread

        plots.learning_curves(trained_run, tmp_path / "curves.png")
        pixels = imread(tmp_path / "curves.png")
        height, width, _ = pixels.shape
        assert (width, height) == (1650, 540)
        for third in range(3):  # each panel has lines of several colours
            panel = pixels[:, third * 550 : (third + 1) * 550, :3].reshape(-1, 3)
            colourful = panel[panel.max(1) - panel.min(1) > 0.3]
            assert len({tuple((colour * 4).round()) for colour in colourful}) >= 2

    def test_svg_has_the_three_panels(self, trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")
        plots.learning_curves(trained_run, tmp_path / "curves.svg")
        texts = [element.text for element in ET.parse(tmp_path / "curves.svg").iter() if element.tag.endswith("text")]
        said = " ".join(filter(None, texts))
        for words in ("perplexity on valid", "energy", "chains", "prior samples", "posterior", "step"):
            assert words in said

    def test_neither_the_backend_nor_the_style_of_the_caller_changes(self, trained_run: Path, tmp_path: Path) -> None:
        before = dict(matplotlib.rcParams)
        plots.learning_curves(trained_run, tmp_path / "curves.png")
        assert dict(matplotlib.rcParams) == before

    def test_a_kind_of_file_that_nobody_knows(self, trained_run: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"curves\.foo cannot be written"):
            plots.learning_curves(trained_run, tmp_path / "curves.foo")

    def test_a_folder_that_is_not_there(self, trained_run: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="cannot be written"):
            plots.learning_curves(trained_run, tmp_path / "nowhere" / "curves.png")

    def test_a_run_before_its_first_validation(self, trained_run: Path, tmp_path: Path) -> None:
        first = (trained_run / "log.jsonl").read_text(encoding="utf-8").splitlines()[0]
        (tmp_path / "log.jsonl").write_text(first + "\n")
        with pytest.raises(CheckpointError, match="nothing to draw"):
            plots.learning_curves(tmp_path, tmp_path / "curves.png")

    def test_of_a_run_that_diverged_numbers_are_drawn_and_nothing_else(
        self, trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The log has what is no number as text, which must not become an axis of words."""
        lines = [json.loads(line) for line in (trained_run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        last = [line for line in lines if line["kind"] == "train"][-1]
        lines.append(last | {"posterior_energy": "nan", "step": last["step"] + 1})
        (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")
        plots.learning_curves(tmp_path, tmp_path / "curves.svg")
        assert ">nan<" not in (tmp_path / "curves.svg").read_text(encoding="utf-8")


class TestEveryCurve:
    def test_a_png_for_each_chart_of_the_log(self, trained_run: Path, command, tmp_path: Path) -> None:
        from matplotlib.image import imread

        done = command("plot", trained_run, "--all", "figures", "--csv", "numbers.csv")
        assert done.code == 0, done.err
        names = {Path(line).name for line in done.lines} - {"numbers.csv"}
        assert names == {path.name for path in (tmp_path / "figures").iterdir()}
        assert {"perplexity.png", "energy.png", "norm.png", "gradient.png", "units.png"} <= names
        assert not (trained_run / "curves.png").exists()
        for name in names:
            pixels = imread(tmp_path / "figures" / name)[:, :, :3].reshape(-1, 3)
            assert (pixels.max(1) - pixels.min(1) > 0.3).sum() > 20  # a line in colour

    def test_the_csv_has_the_numbers_of_the_log(self, trained_run: Path, command, tmp_path: Path) -> None:
        done = command("plot", trained_run, "--csv", "numbers.csv")
        assert done.lines == ["numbers.csv"]
        with (tmp_path / "numbers.csv").open(encoding="utf-8") as stream:
            rows = [row for row in csv.DictReader(stream) if row["chart"] == "gap"]
        known = [line for line in plots.read_log(trained_run) if line["kind"] == "valid"]
        assert [(int(row["x"]), float(row["y"])) for row in rows] == [(each["step"], each["nll_gap"]) for each in known]

    def test_nothing_was_logged(self, tmp_path: Path) -> None:
        (tmp_path / "log.jsonl").write_text('{"kind": "start", "step": 0}\n')
        with pytest.raises(CheckpointError, match="nothing to draw"):
            plots.every_curve(tmp_path, tmp_path / "figures")


class TestLog:
    def test_a_folder_that_is_no_run(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="is no run folder"):
            plots.read_log(tmp_path)

    def test_memory_stays_near_the_size_of_the_file(self, tmp_path: Path) -> None:
        """Of a run of millions of steps too: names of figures, and the text of the file, are not kept for each line."""
        names = [f"the_name_of_a_figure_{number}" for number in range(20)]
        line = json.dumps({"kind": "train", "step": 1, **dict.fromkeys(names, 1.5)}) + "\n"
        (tmp_path / "log.jsonl").write_text(line * 5000, encoding="utf-8")
        tracemalloc.start()
        lines = plots.read_log(tmp_path)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(lines) == 5000
        assert most < 3 * len(line) * 5000

    def test_a_damaged_line(self, tmp_path: Path) -> None:
        (tmp_path / "log.jsonl").write_text('{"kind": "start"}\n{"kind": "tr')
        with pytest.raises(CheckpointError, match=r"log\.jsonl is damaged"):
            plots.read_log(tmp_path)


class TestCommand:
    def test_draws_into_the_run_folder_by_default(self, trained_run: Path, command, tmp_path: Path) -> None:
        shutil.copytree(trained_run, tmp_path / "runs" / "mine")
        done = command("plot")
        assert done.code == 0, done.err
        assert done.lines == ["runs/mine/curves.png"]
        assert (tmp_path / "runs" / "mine" / "curves.png").read_bytes().startswith(b"\x89PNG")

    def test_draws_exactly_the_file_named(self, trained_run: Path, command, tmp_path: Path) -> None:
        done = command("plot", trained_run, "--output", "mine.svg")
        assert done.code == 0
        assert [path.name for path in tmp_path.iterdir()] == ["mine.svg"]

    def test_without_a_run(self, command) -> None:
        done = command("plot")
        assert done.code == 1
        assert "textebm train" in done.err
