"""`textebm transition`, from the command line."""

import csv
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from PIL import Image

from textebm.cli import main
from textebm.config import ConvolutionConfig, GeneratorConfig, PriorConfig
from textebm.lm_eval.signature import Signature
from textebm.model.image_batch import ImageShape
from textebm.model.latent_model import LatentModel, ModelConfig

DEMO = Path(__file__).resolve().parents[1] / "textebm" / "pretrained" / "demo"
SHORT = ("--steps", 12, "--marks", 0, 5, 12, "-n", 6, "--shown", 2)


@pytest.fixture(scope="module")
def painter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model of images with random weights."""
    folder = tmp_path_factory.mktemp("painter")
    config = ModelConfig(
        prior=PriorConfig(latent_dim=4, width=8, steps=5, step_size=0.5),
        generator=GeneratorConfig(kind="convolutional", convolution=ConvolutionConfig(2, 4, (2,))),
        image=ImageShape(3, 8, 8),
    )
    LatentModel(config, 1).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def plotted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that all that there is of a tiny run is written to."""
    return tmp_path_factory.mktemp("everything")


@pytest.fixture(scope="module")
def everything(trained_run: Path, plotted: Path) -> dict:
    """That: the JSON object, with a plot and a table beside it."""
    options = (
        *("transition", "--model", trained_run, *SHORT, "--quality", "--quality-steps", 0, 5, "--samples", 60),
        *("--lmplz", "built-in", "--diagnostics", "--diagnostic-steps", 40, "--posteriors", 2, "--posterior-steps", 12),
        *("--posterior-samples", 10, "--ais-steps", 30, "--plot", plotted / "plot.svg", "--csv", plotted / "plot.csv"),
        *("--output", plotted / "found.json", "--device", "cpu"),
    )
    assert main([str(word) for word in options]) == 0
    return json.loads((plotted / "found.json").read_text(encoding="utf-8"))


class TestText:
    def test_json_of_the_model_that_ships(self, command) -> None:
        done = command("transition", "--model", DEMO, *SHORT)
        assert done.code == 0, done.err
        found = json.loads(done.out)
        assert list(found) == ["metric", "score", "interval", "signature", "details"]
        assert found["metric"] == "prior-energy-change"
        assert found["interval"][0] < found["score"] < found["interval"][1] < -20
        signature = Signature.parse(found["signature"])
        assert (signature["steps"], signature["chains"], signature["seed"]) == ("12", "6", "0")
        details = found["details"]
        assert details["marks"] == [0, 5, 12]
        energy = details["energy"]["mean"]
        assert energy[12] - energy[0] == pytest.approx(found["score"], abs=1e-4)
        assert [len(chain["texts"]) for chain in details["shown"]] == [3, 3]
        assert details["quality"] is details["diagnostics"] is None

    def test_table_for_people(self, command) -> None:
        """One chain a block, one mark a line; the same seed is the same table."""
        first, again, other = (
            command("transition", "--model", DEMO, *SHORT, "--format", "text", "--seed", seed) for seed in (0, 0, 1)
        )
        assert first.out == again.out != other.out
        assert first.lines[0].startswith("energy changes by -")
        blocks = first.out.split("\n\n")
        chains = [block.splitlines() for block in blocks if block.startswith("chain ")]
        assert [block[0] for block in chains] == ["chain 1", "chain 2"]
        for block in chains:
            assert [line.split()[0] for line in block[1:]] == ["0", "5", "12"]
            assert all(re.match(r" +\d+ +-?\d+\.\d\d", line) for line in block[1:])

    def test_greedy_decoding_and_a_file(self, command, tmp_path: Path) -> None:
        done = command("transition", "--model", DEMO, *SHORT, "--decoding", "greedy", "--output", "found.json")
        assert (done.code, done.out) == (0, "")
        texts = [chain["texts"][2] for chain in json.loads((tmp_path / "found.json").read_text())["details"]["shown"]]
        sampled = json.loads(command("transition", "--model", DEMO, *SHORT).out)["details"]["shown"]
        assert texts != [chain["texts"][2] for chain in sampled]

    def test_the_marks_are_the_length(self, command) -> None:
        found = json.loads(command("transition", "--model", DEMO, "-n", 2, "--marks", 7, 3).out)["details"]
        assert (found["steps"], found["marks"]) == (7, [3, 7])

    def test_a_gaussian_prior_is_warned_of(self, tiny_config: Path, command) -> None:
        train = command(
            "train", "--config", tiny_config, "--prior.kind", "gaussian", "--max-steps", 2, "--run-dir", "g"
        )
        assert train.code == 0, train.err
        done = command("transition", "--model", "g", *SHORT)
        assert done.code == 0
        assert "warning: the prior is the reference Gaussian" in done.err
        assert json.loads(done.out)["score"] == pytest.approx(0, abs=1e-6)


class TestEverything:
    def test_quality(self, everything: dict) -> None:
        quality = everything["details"]["quality"]
        assert (quality["metric"], quality["samples"]) == ("fppl", 60)
        assert [point["steps"] for point in quality["points"]] == [0, 5]
        for point in quality["points"]:
            assert point["interval"][0] < point["score"] < point["interval"][1]
        assert quality["real"] < quality["points"][1]["score"]
        assert [Signature.parse(point["signature"])["decoding"] for point in quality["points"]] == [
            "sample-t1+prior-steps-0",
            "sample-t1",
        ]

    def test_diagnostics(self, everything: dict) -> None:
        found = everything["details"]["diagnostics"]
        assert (found["prior"]["steps"], found["posterior"]["steps"]) == (40, 12)
        assert found["posterior"]["posteriors"] == 2
        assert sum(found["short_and_long"]["posterior"]) == 10
        assert 0 < found["short_and_long"]["mmd"]["p_value"] <= 1

    def test_every_plotted_number_is_in_the_table_and_in_json(self, everything: dict, plotted: Path) -> None:
        details = everything["details"]
        with (plotted / "plot.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        series: dict[str, list[dict[str, str]]] = {}
        for row in rows:
            series.setdefault(row["series"], []).append(row)
        for name in ("energy", "norm", "displacement"):
            assert [float(row["value"]) for row in series[name]] == details[name]["mean"]
            width = [float(row["high"]) - float(row["value"]) for row in series[name]]
            assert width == pytest.approx(details[name]["sd"])
        assert [float(row["value"]) for row in series["fppl"]] == [p["score"] for p in details["quality"]["points"]]
        beside = details["diagnostics"]["short_and_long"]
        assert [int(row["value"]) for row in series["energies of short-run samples"]] == beside["short"]
        assert [int(row["value"]) for row in series["energies of ends of 40 steps"]] == beside["long"]
        assert [int(row["value"]) for row in series["energies of posterior samples"]] == beside["posterior"]
        acceptance = [float(row["value"]) for row in series["acceptance of posterior steps"]]
        assert acceptance == details["diagnostics"]["posterior"]["acceptance"]
        assert [int(row["x"]) for row in series["mark"]] == details["marks"]

    def test_the_plot_has_its_panels(
        self, everything: dict, plotted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from matplotlib import rcParams

        from textebm import pictures

        monkeypatch.setitem(rcParams, "svg.fonttype", "none")
        pictures.transition(everything["details"], tmp_path / "again.svg")
        texts = [element.text for element in ET.parse(tmp_path / "again.svg").iter() if element.tag.endswith("text")]
        said = " ".join(filter(None, texts))
        for words in (
            *("energy along prior chains", "where the chains are", "FPPL over prior steps", "energies of samples"),
            *("acceptance", "length in training (5)", "real text", "ends of 40 steps"),
        ):
            assert words in said
        assert (plotted / "plot.svg").stat().st_size > 10_000  # the command's own

    def test_for_people(self, everything: dict) -> None:
        from textebm.commands.transition import describe

        said = describe(everything)
        assert "fppl of 60 samples over prior steps" in said
        assert "as in training" in said
        for words in (
            "R-hat: potential",
            "effective samples of",
            "kl_bound",
            "MMD²",
            "posterior: 8 chains of each of 2",
        ):
            assert words in said


class TestImages:
    def test_a_strip(self, painter: Path, command, tmp_path: Path) -> None:
        done = command("transition", "--model", painter, *SHORT, "--strip", "strip.png", "--plot", "plot.png")
        assert done.code == 0, done.err
        with Image.open(tmp_path / "strip.png") as strip:
            assert strip.size == (3 * 8 + 2 * 2, 2 * 8 + 2)  # a column a mark, a row a chain
        assert (tmp_path / "plot.png").exists()
        assert "texts" not in json.loads(done.out)["details"]["shown"][0]

    def test_its_columns_are_the_images_of_generate(self, painter: Path, command, tmp_path: Path) -> None:
        command("transition", "--model", painter, "-n", 4, "--shown", 4, "--marks", 5)
        command("generate", "--model", painter, "-n", 4, "--format", "png", "--output", "made")
        with Image.open(tmp_path / "transition.png") as strip:
            for number in range(4):
                with Image.open(tmp_path / "made" / f"{number:05}.png") as image:
                    cut = strip.crop((0, 10 * number, 8, 10 * number + 8))
                    assert cut.tobytes() == image.tobytes()


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--marks", 5, 200, "--steps", 100), 2, "--marks has 200, and the chains have 100 steps"),
        (("-n", 1), 2, "n is 1: it must be at least 2"),
        (("--marks", -1), 2, "0 or more"),
        (("--strip", "a.png"), 2, "--strip is of images"),
        (("--quality-steps", 3), 2, "--quality-steps is of --quality"),
        (("--posteriors", 4), 2, "--posteriors is of --diagnostics"),
        (("--data", "ptb"), 2, "--data is of --quality and --diagnostics"),
        (("--quality", "--real-n", 100), 2, "--real-n is of images, and the model writes text"),
        (("--plot", "nowhere/plot.png", *SHORT), 2, "nowhere/plot.png cannot be written"),
        (("--csv", "nowhere/plot.csv", *SHORT), 2, "--csv nowhere/plot.csv cannot be written"),
        (("--diagnostics", "--diagnostic-steps", 4), 2, "diagnostic_steps is 4: it must be at least 8"),
        (("--diagnostics", "-n", 3), 2, "diagnostics want at least 4 chains"),
    ],
)
def test_what_makes_no_sense_is_said(options, code, said, command) -> None:
    done = command("transition", "--model", DEMO, *options)
    assert done.code == code
    assert said in done.err


def test_without_arviz_its_extra_is_named(command, monkeypatch: pytest.MonkeyPatch) -> None:
    from textebm import diagnostics

    monkeypatch.setattr(diagnostics, "find_spec", lambda name: None)
    done = command("transition", "--model", DEMO, "--diagnostics")
    assert done.code == 2
    assert "pip install 'textebm[diagnostics]'" in done.err
