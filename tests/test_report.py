"""Reports: what they gather, the page that is made of it, and how it looks in a real browser."""

import json
import re
import shutil
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from textebm import charts, report, report_page
from textebm.charts import Chart, Line
from textebm.errors import DamagedError, DataError, UsageError
from textebm.plots import read_log
from textebm.report import Picture, Report, Section, Size, Table

pytest.importorskip("jinja2", reason="reports need Jinja2, which torch brings")

SMALL = Size(samples=3, reconstructions=2, chains=8, steps=12, shown=2, diagnostic_steps=16)
KEYS = ["about", "learning", "samples", "reconstructions", "transition", "diagnostics", "scores"]
EVIL = '</script><script>alert("x")</script><img src=x onerror=alert(1)> & <unk>'


def signature(**facts: str) -> str:
    return "|".join(f"{key}:{value}" for key, value in facts.items())


FACTS = {"data": "corpus", "train": "0a0a0a0a0a0a", "n": "42068", "decoding": "sample-t1", "judge": "kenlm5"}
SCORES: dict[str, Any] = {
    "name": "a-cell",
    "command": "textebm train --config corpus-small --seed 3",
    "fppl": {
        "metric": "fppl",
        "score": 120.5,
        "interval": [118.0, 123.0],
        "signature": signature(metric="fppl", **FACTS),
        "details": {"headline": True, "warnings": ["mind the gap"], "real_row": {"perplexity": 99.25}},
    },
    "rppl": {
        "metric": "rppl",
        "score": 210.25,
        "interval": None,
        "signature": signature(metric="rppl", test="1b1b1b1b1b1b", **FACTS),
        "details": {"headline": True, "warnings": []},
    },
    "likelihood": {
        "metric": "marginal-nll",
        "score": None,
        "interval": None,
        "signature": "metric:marginal-nll|data:corpus",
        "details": {"withheld": "log Z differs", "warnings": []},
    },
}


@pytest.fixture(scope="module")
def scores_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("results") / "a-cell.json"
    path.write_text(json.dumps(SCORES), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def of_text(trained_run: Path, scores_file: Path) -> Report:
    return report.gather(trained_run, [scores_file], SMALL)


@pytest.fixture(scope="module")
def of_images(trained_image_run: Path) -> Report:
    return report.gather(trained_image_run, size=SMALL)


class TestGathering:
    def test_has_its_sections_in_order(self, of_text: Report, of_images: Report) -> None:
        assert [section.key for section in of_text.sections] == KEYS
        assert [section.key for section in of_images.sections] == KEYS

    def test_says_what_the_model_is(self, of_text: Report, trained_run: Path) -> None:
        about = of_text.section("about")
        facts = dict(about.tables[0].rows)
        (start,) = (line for line in read_log(trained_run) if line["kind"] == "start")
        assert facts["hardware"] == start["hardware"]
        assert facts["command"] == SCORES["command"]
        assert facts["splits"] == "300 sentences in train, 60 sentences in valid, 60 sentences in test"
        assert facts["checkpoint"] == f"step {best_step(trained_run)}, the best on valid by reconstruction_nll"
        settings = dict(about.tables[1].rows)
        assert about.tables[1].folded
        assert settings["prior.width"] == "16"
        assert settings["inference.step_size"] == "0.3"

    def test_of_another_checkpoint_it_does_not_say_that_it_is_the_best(self, trained_run: Path) -> None:
        folders = sorted((trained_run / "checkpoints").glob("step-*"))
        other = next(folder for folder in folders if folder.name != f"step-{best_step(trained_run)}")
        found = report.gather(other, size=Size(1, 1, 4, 2, 1, 0))
        assert dict(found.section("about").tables[0].rows)["checkpoint"] == other.name.replace("-", " ")

    def test_a_damaged_model_is_refused(self, trained_run: Path, tmp_path: Path) -> None:
        shutil.copytree(trained_run, tmp_path / "run", symlinks=True)
        weights = tmp_path / "run" / "checkpoints" / f"step-{best_step(trained_run)}" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"x")
        with pytest.raises(DamagedError, match="is not as it was written"):
            report.gather(tmp_path / "run", size=SMALL)

    def test_curves_are_the_numbers_of_the_log(self, of_text: Report, trained_run: Path) -> None:
        drawn = {chart.key: chart for chart in of_text.section("learning").charts}
        assert {"perplexity", "likelihood", "energy", "norm", "gradient", "gap", "units", "information"} <= drawn.keys()
        valid = [line for line in read_log(trained_run) if line["kind"] == "valid"]
        (line,) = drawn["gap"].lines
        assert line.x == [10, 20, 30]
        assert line.y == [each["nll_gap"] for each in valid]

    def test_samples_are_those_of_generate(self, of_text: Report, trained_run: Path, command) -> None:
        (table,) = of_text.section("samples").tables
        done = command("generate", "-n", 3, "--model", trained_run)
        assert [row[-1] for row in table.rows] == done.lines

    def test_reconstructions_are_of_valid_sentences(self, of_text: Report, corpus_folder: Path) -> None:
        (table,) = of_text.section("reconstructions").tables
        valid = (corpus_folder / "valid.txt").read_text(encoding="utf-8").splitlines()
        assert len(table.rows) == 2
        assert all(row[0] in valid for row in table.rows)

    def test_the_transition_has_every_step_and_sentences_at_marks(self, of_text: Report) -> None:
        section = of_text.section("transition")
        energy = next(chart for chart in section.charts if chart.key == "transition-energy")
        assert energy.lines[0].x == list(range(13))
        assert energy.marks == [0, 12]
        (table,) = section.tables
        assert [row[:2] for row in table.rows] == [["1", "0"], ["1", "12"], ["2", "0"], ["2", "12"]]
        assert section.data["transition"]["steps"] == 12

    def test_quality_over_steps_is_drawn_where_it_was_measured(self, tmp_path: Path) -> None:
        points = [
            {"steps": steps, "score": score, "interval": [score - 5, score + 5]}
            for steps, score in ((0, 900.0), (20, 300.0), (60, 250.0))
        ]
        curve = {"metric": "fppl", "samples": 1000, "points": points, "real": 100.0}
        (tmp_path / "transition.json").write_text(json.dumps({"details": {"quality": curve}}))
        (drawn,) = report._quality_charts(report._results_of(None, [tmp_path / "transition.json"]))
        line, real = drawn.lines
        assert (line.x, line.y) == ([0, 20, 60], [900, 300, 250])
        assert (line.low, line.high) == ([895, 295, 245], [905, 305, 255])
        assert real.y == [100, 100]
        assert element(drawn).attrib["role"] == "img"

    def test_diagnostics_are_of_prior_and_posterior(self, of_text: Report) -> None:
        pytest.importorskip("arviz", reason="diagnostics need arviz")
        section = of_text.section("diagnostics")
        (table,) = section.tables
        assert table.header == ["", "prior", "posterior"]
        histogram = next(chart for chart in section.charts if chart.key == "energies")
        assert all(len(line.x) == len(line.y) + 1 for line in histogram.lines)
        assert [sum(line.y) for line in histogram.lines] == [8, 8, 8]

    def test_scores_stand_with_interval_and_signature(self, of_text: Report) -> None:
        section = of_text.section("scores")
        every = section.tables[-1]
        assert ["fppl", "120.50", "118.00 – 123.00", SCORES["fppl"]["signature"]] in normalised(every)
        assert [row[0] for row in every.rows] == ["fppl", "rppl", "marginal-nll"]
        assert "mind the gap" in section.remarks

    def test_published_rows_stay_out_where_they_do_not_compare(self, of_text: Report) -> None:
        section = of_text.section("scores")
        assert not any("published" in cell for table in section.tables for row in table.rows for cell in row)
        assert any("published rows are left out" in remark for remark in section.remarks)
        assert section.tables[0].rows[0] == ["real text", "99.25", "-", "-", "-", "-"]

    def test_published_rows_stand_beside_what_compares(self, tmp_path: Path) -> None:
        judge = {"judge": "lstm-sentence", "recipe": "lstm-sentence-ptb"}
        facts = FACTS | {"data": "ptb", "train": "5145926136ee"} | judge
        score = {**SCORES["fppl"], "signature": signature(metric="fppl", **facts)}
        (tmp_path / "ours.json").write_text(json.dumps(score))
        section = report._scores(report._results_of(None, [tmp_path / "ours.json"]))
        systems = [row[0] for row in section.tables[0].rows]
        assert "LEBM (published)" in systems

    def test_finds_the_scores_of_an_experiment_in_the_run_folder(self, tmp_path: Path) -> None:
        (tmp_path / "scores").mkdir()
        (tmp_path / "scores" / "kenlm5-fppl.json").write_text(json.dumps(SCORES["fppl"]))
        again = tmp_path / "again.json"  # the same score in another file is one score
        again.write_text(json.dumps(SCORES))
        section = report._scores(report._results_of(tmp_path, [again]))
        assert [row[0] for row in section.tables[-1].rows] == ["fppl", "rppl", "marginal-nll"]

    def test_without_scores_says_how_to_get_them(self, of_images: Report) -> None:
        (remark,) = of_images.section("scores").remarks
        assert "--measure" in remark

    def test_images_come_as_pictures(self, of_images: Report) -> None:
        from io import BytesIO

        from PIL import Image

        for key, size in (("samples", (4 * 10 - 2, 4 * 10 - 2)), ("reconstructions", (8 * 10 - 2, 2 * 10 - 2))):
            (picture,) = of_images.section(key).pictures
            with Image.open(BytesIO(picture.png)) as image:
                assert image.size == (picture.width, picture.height) == size
            assert picture.enlargement == 6  # its images have 8 by 8 pixels
        (strip,) = of_images.section("transition").pictures
        assert strip.width == 2 * 10 - 2  # a column for each mark

    def test_a_model_without_its_run(self, trained_run: Path, tmp_path: Path) -> None:
        shutil.copytree(trained_run / "checkpoints" / f"step-{best_step(trained_run)}", tmp_path / "model")
        found = report.gather(tmp_path / "model", size=Size(1, 1, 4, 2, 1, 0))
        assert "without its run" in found.section("about").remarks[0]
        assert found.section("learning").charts == []
        assert found.section("diagnostics").remarks == ["They were not asked for."]

    def test_data_that_are_gone(self, trained_run: Path, tmp_path: Path) -> None:
        run = tmp_path / "run"
        shutil.copytree(trained_run, run)
        for path in run.rglob("*.json"):
            text = path.read_text(encoding="utf-8")
            described = json.loads(re.sub(r'"data": "[^"]+"', '"data": "no-such-corpus"', text))
            kept = {key: value for key, value in described.items() if key not in ("files", "sha256")}  # no seal
            path.write_text(json.dumps(kept), encoding="utf-8")
        found = report.gather(run, size=Size(1, 1, 4, 2, 1, 0))
        (remark,) = found.section("reconstructions").remarks
        assert "not here" in remark
        assert found.section("samples").tables[0].rows

    def test_data_that_would_have_to_be_downloaded(
        self, trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from textebm.materials import TextMaterial

        monkeypatch.setattr(TextMaterial, "download", staticmethod(lambda config: "much"))
        found = report.gather(trained_run, size=Size(1, 1, 4, 2, 1, 0))
        (remark,) = found.section("reconstructions").remarks
        assert "downloads nothing" in remark

    def test_a_damaged_file_of_results(self, trained_run: Path, tmp_path: Path) -> None:
        (tmp_path / "scores.json").write_text("{")
        with pytest.raises(DataError, match=r"scores\.json cannot be read as JSON"):
            report.gather(trained_run, [tmp_path / "scores.json"], SMALL)

    @pytest.mark.parametrize("content", ['{"metric": "fppl"}', '{"details": 3}', '{"details": {"quality": 3}}'])
    def test_a_file_without_scores(self, content: str, trained_run: Path, tmp_path: Path) -> None:
        (tmp_path / "scores.json").write_text(content)
        with pytest.raises(DataError, match=r"scores\.json holds no score"):
            report.gather(trained_run, [tmp_path / "scores.json"], SMALL)

    @pytest.mark.parametrize("wrong", [{"samples": 0}, {"chains": 3}, {"diagnostic_steps": 5}])
    def test_sizes_that_make_no_sense(self, wrong: dict[str, int]) -> None:
        with pytest.raises(UsageError, match=next(iter(wrong))):
            Size(**wrong)


def best_step(run: Path) -> int:
    return int(json.loads((run / "checkpoints" / "best.json").read_text())["folder"].removeprefix("step-"))


def normalised(table: Table) -> list[list[str]]:
    """Rows with one kind of dash between the ends of an interval."""
    return [
        [re.sub(r"(?<=\d) ?(?:-|–|to|\.\.) ?(?=\d)", " – ", cell) if n == 2 else cell for n, cell in enumerate(row)]
        for row in table.rows
    ]


class TestLanguageModel:
    def test_has_samples_and_says_why_the_rest_is_missing(self, tiny_config: Path, command, tmp_path: Path) -> None:
        done = command("train", "--config", tiny_config, "--method", "lstm-lm", "--run-dir", "run", "--max-epochs", 1)
        assert done.code == 0, done.err
        found = report.gather(tmp_path / "run", size=SMALL)
        assert found.section("learning").charts[0].key == "perplexity-exact"
        assert len(found.section("samples").tables[0].rows) == 3
        for key in ("reconstructions", "transition", "diagnostics"):
            (remark,) = found.section(key).remarks
            assert "plain language model" in remark


# ---- the page


def chart(**changes: Any) -> Chart:
    lines = [Line("first", [0, 1, 2], [5.0, 1.0, 3.0]), Line("second", [0, 2], [2.0, 4.0], form="dots")]
    return Chart(**{"key": "chart", "title": "A chart", "x_label": "step", "lines": lines} | changes)


def element(drawn: Chart) -> ET.Element:
    return ET.fromstring(str(report_page.chart_svg(drawn)))


def evil_report() -> Report:
    section = Section(
        "evil",
        EVIL,
        [EVIL],
        [chart(title=EVIL, lines=[Line(EVIL, [0, 1], [0.0, float("nan")])])],
        [Table(EVIL, [EVIL], [[EVIL]])],
        [Picture(EVIL, b"", 1, 1)],
        [EVIL],
        {"text": EVIL},
    )
    return Report(EVIL, EVIL, [(EVIL, EVIL)], [section])


class Tags(HTMLParser):
    """Which elements a page has, and its headings."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.scripts: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts.append(data)


class TestCharts:
    def test_are_drawn_within_their_box(self) -> None:
        for drawn in (chart(), chart(logarithmic=True)):
            for line in element(drawn).iter("polyline"):
                for point in line.attrib["points"].split():
                    x, y = map(float, point.split(","))
                    assert report_page.LEFT <= x <= report_page.WIDTH - report_page.RIGHT
                    assert report_page.TOP <= y <= report_page.HEIGHT - report_page.BOTTOM

    def test_equal_steps_are_equally_far_and_of_a_logarithm_equal_ratios(self) -> None:
        def heights(values: list[float], logarithmic: bool) -> list[float]:
            drawn = chart(lines=[Line("a", [0, 1, 2], values)], logarithmic=logarithmic)
            (line,) = element(drawn).iter("polyline")
            return [float(point.split(",")[1]) for point in line.attrib["points"].split()]

        for values, logarithmic in (([1.0, 2.0, 3.0], False), ([10.0, 100.0, 1000.0], True)):
            low, middle, high = heights(values, logarithmic)
            assert low > middle > high  # upward on the page
            assert low - middle == pytest.approx(middle - high, abs=0.2)

    def test_say_in_words_what_they_show(self) -> None:
        drawn = element(chart())
        assert drawn.find("title").text == "A chart"  # type: ignore[union-attr]
        words = drawn.find("desc").text  # type: ignore[union-attr]
        assert "first: from 5 at step 0 to 3 at 2, between 1 and 5." in words  # type: ignore[operator]
        labelled = drawn.attrib["aria-labelledby"].split()
        assert labelled == [drawn.find(tag).attrib["id"] for tag in ("title", "desc")]  # type: ignore[union-attr]

    def test_a_histogram_has_the_area_of_its_counts(self) -> None:
        drawn = chart(lines=[Line("counts", [0, 1, 2, 3], [2.0, 0.0, 4.0], form="stairs")])
        (path,) = element(drawn).iter("path")
        points = [tuple(map(float, each.split(","))) for each in re.split("[ML]", path.attrib["d"]) if each]
        assert points[0][1] == points[-1][1] == report_page.HEIGHT - report_page.BOTTOM
        heights = [points[0][1] - y for _, y in points[1:-1:2]]
        assert heights[2] == pytest.approx(2 * heights[0], abs=0.2)
        assert heights[1] == 0

    @pytest.mark.parametrize("low,high", [(0, 1), (-190, 40), (0.0031, 0.0032), (0, 45000), (5, 5)])
    def test_ticks_are_round_and_within(self, low: float, high: float) -> None:
        axis = report_page._Axis.fit([low, high], 0, 100, False)
        ticks = axis.ticks()
        assert 2 <= len(ticks) <= 8
        assert all(axis.low - 1e-9 <= tick <= axis.high + 1e-9 for tick in ticks)
        assert len({report_page.tick_label(tick) for tick in ticks}) == len(ticks)

    def test_a_long_line_is_thinned_evenly_and_keeps_its_ends(self) -> None:
        x = [float(step) for step in range(20, 1_000_020, 20)]
        long = Line("a", x, [2 * step for step in x], low=[step - 1 for step in x], form="dots")
        short = Line("b", [0, 1, 2], [1.0, 2.0, 3.0])
        thin, same = charts.thinned(chart(lines=[long, short])).lines
        assert same is short
        assert len(thin.x) == charts.POINTS
        assert (thin.x[0], thin.x[-1], thin.form, thin.high) == (20, 1_000_000, "dots", None)
        assert thin.low is not None
        assert all(y == 2 * step and low == step - 1 for step, y, low in zip(thin.x, thin.y, thin.low, strict=True))
        distances = [after - before for before, after in pairwise(thin.x)]
        assert max(distances) - min(distances) <= 20

    def test_a_single_point_is_seen(self) -> None:
        drawn = element(chart(lines=[Line("one", [3], [7.0])]))
        assert len([*drawn.iter("circle")]) == 1

    def test_a_value_that_is_not_finite_is_left_out(self) -> None:
        drawn = element(chart(lines=[Line("a", [0, 1, 2], [1.0, float("inf"), 2.0])]))
        (line,) = drawn.iter("polyline")
        assert len(line.attrib["points"].split()) == 2

    def test_csv_has_every_number(self, tmp_path: Path) -> None:
        charts.write_csv([chart()], tmp_path / "numbers.csv")
        rows = (tmp_path / "numbers.csv").read_text().splitlines()
        assert rows == [
            "chart,line,x,y",
            *(f"chart,first,{x},{y}" for x, y in zip([0, 1, 2], [5.0, 1.0, 3.0], strict=True)),
            *(f"chart,second,{x},{y}" for x, y in zip([0, 2], [2.0, 4.0], strict=True)),
        ]


class TestPage:
    def test_whatever_a_corpus_says_is_text(self) -> None:
        tags = Tags(report_page.render(evil_report()))
        assert tags.tags.count("script") == 1
        assert tags.tags.count("img") == 1  # the picture
        assert not any("onerror" in attributes for _, attributes in tags.attributes)
        (embedded,) = tags.scripts
        assert json.loads(embedded)["sections"]["evil"]["paragraphs"] == [EVIL]

    def test_its_json_has_every_plotted_number(self, of_text: Report) -> None:
        (script,) = Tags(report_page.render(of_text)).scripts
        sections = json.loads(script)["sections"]
        for section in of_text.sections:
            for drawn, known in zip(section.charts, sections[section.key]["charts"], strict=True):
                assert [line["y"] for line in known["lines"]] == [line.y for line in drawn.lines]

    def test_a_figure_that_is_not_finite_is_null(self) -> None:
        assert json.loads(report.to_json(evil_report()))["sections"]["evil"]["charts"][0]["lines"][0]["y"] == [
            0.0,
            None,
        ]

    def test_headings_come_in_order_and_names_are_unique(self, of_text: Report) -> None:
        tags = Tags(report_page.render(of_text))
        levels = [int(tag[1]) for tag in tags.tags if re.fullmatch("h[1-6]", tag)]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))
        names = [attributes["id"] for _, attributes in tags.attributes if "id" in attributes]
        assert len(set(names)) == len(names)

    def test_needs_no_other_file(self, of_text: Report, of_images: Report) -> None:
        for found in (of_text, of_images):
            for tag, attributes in Tags(report_page.render(found)).attributes:
                for name in ("src", "href"):
                    assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)


class TestCommand:
    def test_writes_page_and_data(self, trained_run: Path, scores_file: Path, command, tmp_path: Path) -> None:
        small = ["--samples", 2, "--reconstructions", 1, "--chains", 4, "--steps", 3, "--diagnostic-steps", 0]
        done = command("report", trained_run, *small, "--data", "d.json", "--results", scores_file)
        assert done.code == 0, done.err
        assert done.lines == ["report.html"]
        assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
        written = json.loads((tmp_path / "d.json").read_text(encoding="utf-8"))
        assert [*written["sections"]] == KEYS
        assert written["figures"]["FPPL"] == "120.5"

    def test_measures(self, trained_run: Path, command, tmp_path: Path) -> None:
        small = ["--samples", 1, "--reconstructions", 1, "--chains", 4, "--steps", 2, "--diagnostic-steps", 0]
        done = command("report", trained_run, *small, "--measure", "-n", 50, "--data", "d.json")
        assert done.code == 0, done.err
        scores = json.loads((tmp_path / "d.json").read_text(encoding="utf-8"))["sections"]["scores"]["data"]["scores"]
        assert [score["metric"] for score in scores] == ["fppl", "rppl"]
        assert "n:50|" in scores[0]["signature"]

    def test_results_that_are_not_there(self, trained_run: Path, command) -> None:
        done = command("report", trained_run, "--results", "nowhere.json")
        assert done.code == 2
        assert "nowhere.json does not exist" in done.err

    def test_a_folder_that_cannot_be_written_to(self, trained_run: Path, command) -> None:
        small = ["--samples", 1, "--reconstructions", 1, "--chains", 4, "--steps", 2, "--diagnostic-steps", 0]
        done = command("report", trained_run, *small, "--output", "nowhere/report.html")
        assert done.code == 2
        assert "nowhere/report.html cannot be written" in done.err


FIGURES_SEEN = """() => [...document.querySelectorAll('figure')].map(figure => {
    const box = figure.getBoundingClientRect();
    const sizes = [...figure.querySelectorAll('polyline, path, circle, img')]
        .map(shown => shown.getBoundingClientRect()).flatMap(inside => [inside.width, inside.height]);
    const image = figure.querySelector('img');
    const broken = image !== null && !(image.complete && image.naturalWidth > 0);
    return {id: figure.id, wide: box.width, drawn: Math.max(0, ...sizes), broken};
})"""
CONTRASTS = """() => {
    const light = text => { const [r, g, b] = text.match(/[\\d.]+/g).map(Number).map(v => v / 255)
        .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b; };
    const ground = element => { for (; element; element = element.parentElement) {
        const colour = getComputedStyle(element).backgroundColor; if (!colour.endsWith(', 0)')) return colour; } };
    return [...document.querySelectorAll('h1, h2, h3, p, td, th, caption, a, li, figcaption, text, footer, summary')]
        .map(element => { const style = getComputedStyle(element);
            const pair = [light(element.tagName == 'text' ? style.fill : style.color), light(ground(element))];
            return [element.tagName, (Math.max(...pair) + .05) / (Math.min(...pair) + .05)]; });
}"""


class TestInABrowser:
    """The page as a person sees it: on a phone and on a desktop, in light and dark."""

    @pytest.fixture(scope="class")
    def pages(self, of_text: Report, of_images: Report, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
        folder = tmp_path_factory.mktemp("pages")
        found = {"text": of_text, "images": of_images, "evil": evil_report()}
        for name, each in found.items():
            (folder / f"{name}.html").write_text(report_page.render(each), encoding="utf-8")
        return {name: folder / f"{name}.html" for name in found}

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.parametrize("width", [360, 1280])
    @pytest.mark.parametrize("name", ["text", "images"])
    def test_every_figure_is_there_and_nothing_is_amiss(
        self, pages: dict[str, Path], browser, name: str, width: int, scheme: str
    ) -> None:
        address = pages[name].as_uri()
        with browser.visit(address, width, scheme) as visit:
            figures = visit.page.evaluate(FIGURES_SEEN)
            assert len(figures) == pages[name].read_text(encoding="utf-8").count("<figure")
            assert len(figures) >= 8
            for figure in figures:
                assert figure["drawn"] > 4, figure  # a dot, where there was one validation alone
                assert figure["wide"] <= width
                assert not figure["broken"]
            assert not visit.overflows()
            low = [(tag, ratio) for tag, ratio in visit.page.evaluate(CONTRASTS) if ratio < 4.5]
            assert low == []
            ground = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (sum(map(int, re.findall(r"\d+", ground))) < 200) == (scheme == "dark")
        assert visit.complaints == []
        assert visit.requests == [address]

    def test_corpus_text_runs_nothing(self, pages: dict[str, Path], browser) -> None:
        with browser.visit(pages["evil"].as_uri(), 360) as visit:
            assert not visit.overflows()
            assert visit.page.locator("td").first.inner_text() == EVIL
        assert visit.complaints == []
        assert visit.requests == [pages["evil"].as_uri()]

    def test_prints(self, pages: dict[str, Path], browser) -> None:
        with browser.visit(pages["text"].as_uri(), 1280, "dark") as visit:
            visit.page.emulate_media(media="print")
            assert visit.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
            assert visit.page.pdf().startswith(b"%PDF")
