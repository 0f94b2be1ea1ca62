"""Anomaly detection: scores against closed forms, figures over epochs and seeds, and the whole of it by the program."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from textebm import checkpoint
from textebm.anomaly import figures, held_out
from textebm.anomaly.figures import Spread
from textebm.anomaly.held_out import Cell, Sitting
from textebm.anomaly.scores import EpochScores, Sampling, Scores, score
from textebm.config import ConvolutionConfig, GeneratorConfig, InferenceConfig, PriorConfig, load_config
from textebm.data.images import consecutive
from textebm.errors import CheckpointError
from textebm.lm_eval.signature import Signature
from textebm.model.image_batch import ImageBatch, ImageShape
from textebm.model.inference import Request
from textebm.model.latent_model import LatentModel, ModelConfig
from textebm.model.random import stream

EPOCHS = 4
LAST = 2
SIDE = 8


class Floats:
    """Images that need not be of 8 bits."""

    def __init__(self, pixels: torch.Tensor) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, rows: np.ndarray) -> ImageBatch:
        return ImageBatch(self.pixels[torch.from_numpy(rows)])

    def groups(self, rows: np.ndarray, size: int) -> list[np.ndarray]:
        return consecutive(len(rows), size)


def model_of_images(prior: str = "ebm", steps: int = 5, step_size: float = 0.1, sigma: float = 0.5) -> LatentModel:
    convolution = ConvolutionConfig(width=2, start=4, multiples=(1,), output="linear", sigma=sigma)
    config = ModelConfig(
        prior=PriorConfig(kind=prior, latent_dim=2, sigma=1.3, width=8),
        generator=GeneratorConfig(kind="convolutional", convolution=convolution),
        inference=InferenceConfig(steps=steps, step_size=step_size),
        image=ImageShape(1, SIDE, SIDE),
    )
    return LatentModel(config, seed=1).eval()


class TestScores:
    def test_they_are_minus_the_log_of_the_joint_density_up_to_a_constant(self) -> None:
        model = model_of_images()
        pixels = torch.rand(7, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1
        found = score(model, Floats(pixels), seed=3)
        x = ImageBatch(pixels)
        with torch.no_grad():
            noise = stream(3, "anomaly", 0, 0)
            z = model.posterior(Request(x, model.condition(x), model.config.inference, noise)).z
            joint = model.log_prob(x, z) + model.prior.tilt(z) + model.prior.log_reference(z)
        constant = np.log(2 * np.pi * 1.3**2)  # ½ d log 2πσ², d = 2
        np.testing.assert_allclose(found.total, -joint.double().numpy() - constant, rtol=1e-5)
        np.testing.assert_allclose(found.energy, model.energy(z).double().numpy(), rtol=1e-5)

    def test_of_a_linear_gaussian_model_the_mean_is_known(self) -> None:
        """g(z) = Wz + b and a Gaussian prior: the posterior is N(m, C), and a Langevin chain of step s on it has the
        covariance C (I − Cˉ¹s²/4)ˉ¹."""
        model = model_of_images("gaussian", steps=150, step_size=0.15)
        first, last = (m for m in model.generator.modules() if isinstance(m, torch.nn.ConvTranspose2d))
        with torch.no_grad():
            first.bias.fill_(50.0)  # the activation stays where it is a straight line
            last.bias.zero_()
            last.bias.copy_(-model.painter(torch.zeros(1, 2)).mean())
            at = model.painter(torch.cat([torch.zeros(1, 2), torch.eye(2)])).flatten(1).double()
        offset, slopes = at[0], (at[1:] - at[0]).T  # (64,), (64, 2)
        noise, prior, step = 0.5**2, 1.3**2, 0.15**2
        curvature = torch.eye(2, dtype=torch.float64) / prior + slopes.T @ slopes / noise
        assert torch.linalg.eigvalsh(curvature).max() * step < 2
        image = offset + slopes @ torch.tensor([0.8, -0.5], dtype=torch.float64) + 0.1
        mean = torch.linalg.solve(curvature, slopes.T @ (image - offset) / noise)
        spread = torch.linalg.inv(curvature @ (torch.eye(2, dtype=torch.float64) - curvature * step / 4))
        gaussian = (mean @ mean + spread.trace()) / (2 * prior)
        error = (image - offset - slopes @ mean).square().sum() + (slopes @ spread @ slopes.T).trace()
        nll = error / (2 * noise) + len(image) / 2 * np.log(2 * np.pi * noise)
        copies = image.float().view(1, 1, SIDE, SIDE).expand(500, -1, -1, -1)
        found = score(model, Floats(copies), seed=0, sampling=Sampling(2))
        assert found.energy.tolist() == [0] * 500
        for part, wanted in ((found.gaussian, gaussian), (found.nll, nll), (found.total, gaussian + nll)):
            assert part.mean() == pytest.approx(float(wanted), abs=5 * part.std() / len(part) ** 0.5)
        assert found.total.std() < 2

    def test_several_samples_are_averaged(self) -> None:
        model, data = model_of_images(), Floats(torch.zeros(300, 1, SIDE, SIDE))
        one, four = (score(model, data, 0, Sampling(samples)).total for samples in (1, 4))
        assert four.std() == pytest.approx(one.std() / 2, rel=0.25)
        assert four.mean() == pytest.approx(one.mean(), abs=4 * one.std() / 300**0.5)

    def test_a_seed_is_the_same_chains(self) -> None:
        model, data = model_of_images(), Floats(torch.zeros(5, 1, SIDE, SIDE))
        one, same, other = (score(model, data, seed).total for seed in (0, 0, 1))
        np.testing.assert_array_equal(one, same)
        assert not np.array_equal(one, other)

    def test_some_of_the_data_are_scored_as_if_they_were_all(self) -> None:
        model, pixels = model_of_images(), torch.rand(9, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
        rows = np.array([8, 2, 5])
        some = score(model, Floats(pixels), 0, rows=rows).total
        np.testing.assert_array_equal(some, score(model, Floats(pixels[rows]), 0).total)

    def test_chains_in_16_bits_and_scores_in_32(self) -> None:
        model, pixels = model_of_images(), torch.rand(400, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
        wide, narrow = (score(model, Floats(pixels), 0, Sampling(precision=p)) for p in ("fp32", "bf16"))
        assert not np.array_equal(wide.total, narrow.total)  # other chains
        assert narrow.total.mean() == pytest.approx(wide.total.mean(), abs=4 * wide.total.std() / 400**0.5)
        x = ImageBatch(pixels[:256])
        with torch.no_grad():
            chain = model.condition(x, precision="bf16")
            z = model.posterior(Request(x, chain, model.config.inference, stream(0, "anomaly", 0, 0))).z
            np.testing.assert_array_equal(narrow.nll[:256], -model.log_prob(x, z).double().numpy())

    def test_chains_of_other_lengths_are_those_of_a_model_that_has_them(self) -> None:
        pixels = torch.rand(9, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
        five, forty = (model_of_images(steps=steps) for steps in (5, 40))
        longer = score(five, Floats(pixels), 0, Sampling(steps=40)).total
        np.testing.assert_array_equal(longer, score(forty, Floats(pixels), 0).total)
        assert not np.array_equal(longer, score(five, Floats(pixels), 0).total)

    def test_a_score_that_is_no_number_is_an_error(self) -> None:
        model = model_of_images(step_size=100.0)
        with pytest.raises(CheckpointError, match=r"\d+ of 5 scores are not finite"):
            score(model, Floats(torch.zeros(5, 1, SIDE, SIDE)), 0)

    def test_pictures_that_a_model_cannot_make_score_higher(self) -> None:
        model = model_of_images()
        made = model.paint(torch.randn(40, 2, generator=torch.Generator().manual_seed(0)))
        noise = torch.rand(made.shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
        found = score(model, Floats(torch.cat([made, noise])), 0).total
        assert found[:40].max() < found[40:].min()


def scores(total: np.ndarray) -> Scores:
    return Scores(np.zeros(len(total)), np.zeros(len(total)), total)


class TestFigures:
    def test_spreads(self) -> None:
        found = Spread.of([[0.1, 0.3], [0.5, 0.9]])
        assert found.mean == pytest.approx(0.45)
        assert found.sd == pytest.approx(np.std([0.1, 0.3, 0.5, 0.9], ddof=1))
        assert found.sd_epochs == pytest.approx(((0.02 + 0.08) / 2) ** 0.5)
        assert found.sd_seeds == pytest.approx(np.std([0.2, 0.7], ddof=1))
        assert Spread.of([[0.4]]) == Spread(0.4, None, None, None)

    def test_a_figure_is_the_mean_over_epochs_and_runs_and_never_the_best(self) -> None:
        source = np.random.default_rng(0)
        anomalous = np.arange(300) < 60
        runs = [
            (seed, [EpochScores(e, 10 * e, scores(source.normal(size=300) + e * anomalous)) for e in (1, 2, 3)])
            for seed in (0, 1)
        ]
        found = figures.detect(anomalous, runs, resamples=200)
        values = [epoch["auprc"] for run in found.described["runs"] for epoch in run["epochs"]]
        assert len(values) == 6
        assert found.described["auprc"]["mean"] == pytest.approx(np.mean(values))
        assert found.described["auprc"]["sd"] == pytest.approx(np.std(values, ddof=1))
        assert found.interval[0] < np.mean(values) < found.interval[1] < max(values)
        assert found.described["chance"] == {"auprc": 0.2, "auroc": 0.5}
        assert found.described["worst"]["auprc"] < 0.2
        assert (found.described["anomalies"], found.described["samples"]) == (60, 300)

    def test_curves_hold_every_sample_and_the_whole_curve(self) -> None:
        source = np.random.default_rng(0)
        anomalous = np.arange(3000) < 600
        found = figures.curves(source.normal(size=3000) + anomalous, anomalous)
        assert (sum(found["histogram"]["normal"]), sum(found["histogram"]["anomalous"])) == (2400, 600)
        recall, precision = (np.array(found["precision_recall"][key]) for key in ("recall", "precision"))
        assert len(recall) <= figures.POINTS
        assert (np.diff(recall) > 0).all()
        assert (recall[-1], precision[-1]) == (1, pytest.approx(0.2, abs=0.01))


def test_half_of_a_short_run_is_scored() -> None:
    assert [held_out.last_epochs(epochs) for epochs in (1, 2, 5, 6, 19, 20, 200)] == [1, 1, 3, 3, 10, 10, 10]


class TestKept:
    def test_scores_come_back_as_they_were_and_only_for_the_same_test(self, tmp_path: Path) -> None:
        one = EpochScores(7, 70, Scores(*np.random.default_rng(0).normal(size=(4, 20))))
        how = Sampling(precision="bf16")
        held_out.keep(tmp_path, one, "digest", how)
        again = held_out.kept(tmp_path, 7, "digest", how)
        assert again is not None
        assert (again.epoch, again.step) == (7, 70)
        assert again.scores.arrays.keys() == {"energy", "gaussian", "nll", "adjusted"}
        for name, values in one.scores.arrays.items():
            np.testing.assert_array_equal(again.scores.arrays[name], values)
        for other in (Sampling(2, precision="bf16"), Sampling(), Sampling(steps=40, precision="bf16")):
            assert held_out.kept(tmp_path, 7, "digest", other) is None
        for epoch, digest in ((8, "digest"), (7, "other")):
            assert held_out.kept(tmp_path, epoch, digest, how) is None
        longer = EpochScores(7, 70, Scores(*np.random.default_rng(1).normal(size=(4, 20))))
        held_out.keep(tmp_path, longer, "digest", Sampling(steps=40, precision="bf16"))
        beside, again = (held_out.kept(tmp_path, 7, "digest", Sampling(steps=s, precision="bf16")) for s in (40, None))
        assert beside is not None
        assert again is not None
        np.testing.assert_array_equal(beside.scores.nll, longer.scores.nll)
        np.testing.assert_array_equal(again.scores.nll, one.scores.nll)
        damaged = tmp_path / "anomaly" / "epoch-7.safetensors"
        damaged.write_bytes(damaged.read_bytes()[:-1])
        assert held_out.kept(tmp_path, 7, "digest", how) is None


# ---- the program


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Squares at the top left (a) and the top right (b), and checkers (odd); with train, valid and test."""
    folder = tmp_path_factory.mktemp("images") / "shapes"
    source = np.random.default_rng(0)
    for split, count in {"train": 30, "valid": 6, "test": 10}.items():
        for kind in ("a", "b", "odd"):
            (folder / split / kind).mkdir(parents=True)
            for number in range(count):
                pixels = source.integers(0, 30, (SIDE, SIDE), dtype=np.uint8)
                if kind == "odd":
                    pixels[::2, ::2] = 255
                    pixels[1::2, 1::2] = 255
                else:
                    pixels[:5, :5] = 200
                Image.fromarray(pixels if kind != "b" else pixels[:, ::-1].copy()).save(
                    folder / split / kind / f"{number:02}.png"
                )
    return folder


@pytest.fixture(scope="module")
def tiny(pictures: Path) -> Path:
    path = pictures.parent / "tiny.yaml"
    path.write_text(
        f"""\
data: {pictures}
prior: {{latent_dim: 2, width: 8, steps: 4}}
generator: {{kind: convolutional, convolution: {{width: 4, start: 4, multiples: [2], sigma: 0.5}}}}
inference: {{steps: 5, step_size: 0.1}}
optimiser: {{lr: 0.03, betas: [0.5, 0.999]}}
evaluation: {{sentences: 4, active_unit_sentences: 0, samples: 0}}
batch_size: 10
epochs: {EPOCHS}
""",
        encoding="utf-8",
    )
    return path


WORDS = ("--held-out", "odd", "--last", LAST, "--resamples", 50, "--run-dir", "runs")


class TestProgram:
    def test_both_splits_of_a_class(self, tiny: Path, command, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib")
        done = command("anomaly", "--config", tiny, *WORDS, "--seeds", 2, "--plot", "plots", "--output", "found.json")
        assert done.code == 0, done.err
        assert done.out == ""
        found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
        assert found["metric"] == "auprc"
        assert found["auprc"] == {"odd": {key: found["details"]["cells"][0]["auprc"][key] for key in ("mean", "sd")}}
        assert found["interval"][0] <= found["score"] <= found["interval"][1]
        assert found["details"]["unfinished"] == []
        a, b = found["details"]["cells"]
        assert (a["split"], a["samples"], a["anomalies"]) == ("A", 92 - int(0.8 * 92) + 46, 46)
        assert (b["split"], b["samples"], b["anomalies"]) == ("B", 30, 10)
        for cell in (a, b):
            assert cell["auprc"]["mean"] > cell["base_rate"] + 0.2  # checkers were never seen
            assert [run["seed"] for run in cell["runs"]] == [0, 1]
            assert [[e["epoch"] for e in run["epochs"]] for run in cell["runs"]] == [[EPOCHS - 1, EPOCHS]] * 2
            facts = Signature.parse(cell["signature"])
            assert (facts["anomaly"], facts["anomaly-split"], facts["run-seeds"]) == ("odd", cell["split"], "0,1")
        assert {path.name for path in (tmp_path / "plots").iterdir()} == {
            f"{split}-2{ending}" for split in "AB" for ending in (".json", "-scores.png", "-precision-recall.png")
        }
        numbers = json.loads((tmp_path / "plots" / "B-2.json").read_text(encoding="utf-8"))
        assert sum(numbers["histogram"]["anomalous"]) == 10
        assert numbers["score"] == "−log p(x, z), nats, up to a constant"

    def test_one_side_of_the_score(self, tiny: Path, command) -> None:
        words = ("anomaly", "--config", tiny, *WORDS, "--splits", "B")
        names = ("joint", "prior", "likelihood", "adjusted")
        by = {name: json.loads(command(*words, "--ranked-by", name).out) for name in names}
        for name, found in by.items():
            assert f"|ranked-by:{name}{'-jpeg2000' * (name == 'adjusted')}|" in found["signature"]
            assert {each: found["score"] for each, found in by.items()} == found["details"]["cells"][0]["auprc_by"]
        assert by["prior"]["score"] < by["joint"]["score"]  # what is odd about these images is in their pixels

    def test_a_run_is_the_one_that_train_makes(self, tiny: Path, command, tmp_path: Path) -> None:
        assert command("anomaly", "--config", tiny, *WORDS, "--splits", "A", "--output", "one.json").code == 0
        words = ("--images.exclude-class", "odd", "--images.pool", "True", "--run-dir", "plain")
        assert command("train", "--config", tiny, *words).code == 0
        last = [checkpoint.pointed_at(tmp_path / name, "last") for name in ("runs/A-class-2-seed-0", "plain")]
        weights = [(folder / "model.safetensors").read_bytes() for folder in last if folder is not None]
        assert len(weights) == 2
        assert weights[0] == weights[1]
        done = command("anomaly", "--model", "plain", "--resamples", 50)
        assert done.code == 0, done.err
        scored = json.loads(done.out)["details"]["cells"][0]
        before = json.loads((tmp_path / "one.json").read_text(encoding="utf-8"))["details"]["cells"][0]
        weights_of_plain = last[1] / "model.safetensors"
        weights_of_plain.write_bytes(weights_of_plain.read_bytes()[:-1] + b"x")
        damaged = command("anomaly", "--model", "plain", "--resamples", 50)
        assert damaged.code != 0
        assert "is not as it was written" in damaged.err
        assert scored["runs"][0]["epochs"] == before["runs"][0]["epochs"][-1:]

    def test_what_was_cut_goes_on_and_what_is_done_is_not_done_again(
        self, tiny: Path, command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        words = ("anomaly", "--config", tiny, *WORDS, "--splits", "B")
        whole = command(*words)
        assert whole.code == 0, whole.err
        shutil.rmtree(tmp_path / "runs")
        counted = []

        def is_over(sitting: Sitting) -> bool:
            counted.append(sitting)
            return len(counted) > 2

        with monkeypatch.context() as patch:
            patch.setattr(Sitting, "is_over", is_over)
            cut = command(*words)
        assert cut.code == 0, cut.err
        assert "not done: B-class-2-seed-0. The same command goes on" in cut.err
        assert cut.out == ""
        assert (tmp_path / "runs/B-class-2-seed-0/anomaly/epoch-3.json").exists()
        again = command(*words)
        assert json.loads(again.out) == json.loads(whole.out)
        monkeypatch.setattr(held_out, "score", lambda *ignored: pytest.fail("scored before"))
        assert json.loads(command(*words).out) == json.loads(whole.out)

    def test_a_run_that_has_left_epochs_behind_is_scored_at_its_end(self, tiny: Path, command, tmp_path: Path) -> None:
        words = ("--images.exclude-class", "odd", "--run-dir", "runs/B-class-2-seed-0")
        assert command("train", "--config", tiny, *words).code == 0
        done = command("anomaly", "--config", tiny, *WORDS, "--splits", "B")
        assert done.code == 0, done.err
        assert "had left epochs behind unscored: 1 are scored" in done.err
        assert len(json.loads(done.out)["details"]["cells"][0]["runs"][0]["epochs"]) == 1

    def test_every_class_and_a_table_for_people(self, tiny: Path, command) -> None:
        words = ("--held-out", "all", "--last", 1, "--epochs", 1, "--splits", "B", "--resamples", 20)
        done = command("anomaly", "--config", tiny, *words, "--format", "text")
        assert done.code == 0, done.err
        rows = {line.split("  ")[0].strip(): line.split() for line in done.lines if line}
        assert done.lines[3].split() == ["a", "b", "odd"]
        assert rows["chance (base rate)"][-3:] == ["0.333"] * 3
        assert {"AUPRC", "AUROC", "lowest possible"} <= rows.keys()
        assert "anomaly:a,b,odd|anomaly-split:B" in done.out

    def test_published_figures_stand_beside_those_of_mnist(self) -> None:
        from textebm.commands.anomaly import _published_rows
        from textebm.lm_eval.published import published_tables

        (table,) = published_tables("anomaly", "mnist")
        described = {"columns": table.columns, "rows": table.rows}
        rows = {row[0]: row[1:] for row in _published_rows(described, ["1", "2", "9"])}
        assert rows["LEBM (published)"] == ["0.336 ± 0.008", "-", "0.413 ± 0.010"]
        assert _published_rows(described, ["2", "3"]) == []

    @pytest.mark.parametrize(
        ("words", "code", "said"),
        [
            ((), 2, "--held-out names the class to be detected, or all"),
            (("--held-out", "lion"), 2, "has no class 'lion'; its classes: a, b, odd"),
            (("--held-out", "a", "--seeds", 0), 2, "seeds is 0"),
            (("--held-out", "a", "--posterior-steps", 0), 2, "posterior_steps is 0"),
            (
                ("--held-out", "a", "--method", "vae", "--posterior-steps", 9),
                2,
                "--posterior-steps is of a posterior chain, and inference.kind amortised has none",
            ),
            (("--held-out", "a", "--max-minutes", 0), 2, "max_minutes is 0"),
            (("--anomalies", "other.txt"), 2, "--config is of runs to be trained"),
            (("--held-out", "a", "--per-token"), 2, "--per-token is of sentences"),
        ],
    )
    def test_what_makes_no_sense_is_said(self, words, code, said, tiny: Path, command) -> None:
        done = command("anomaly", "--config", tiny, *words)
        assert done.code == code
        assert said in " ".join(done.err.split())

    def test_a_model_of_every_class_knows_no_anomaly(self, tiny: Path, command) -> None:
        assert command("train", "--config", tiny, "--run-dir", "all", "--max-steps", 1).code == 0
        done = command("anomaly", "--model", "all", "--held-out", "odd")
        assert done.code == 2
        assert "was trained on every class" in done.err
        done = command("anomaly", "--model", "all", "--prior.steps", 7)
        assert done.code == 2
        assert "its settings are its own: prior.steps was 4 and is 7" in done.err

    def test_options_of_training_say_nothing_to_a_trained_model(self, tiny: Path, command) -> None:
        assert command("train", "--config", tiny, "--run-dir", "all", "--max-steps", 1).code == 0
        for words in (("--splits", "B"), ("--seeds", 3), ("--last", 2), ("--method", "sri")):
            done = command("anomaly", "--model", "all", *words)
            assert done.code == 2
            assert f"{words[0]} is of runs to be trained, and a trained model is scored" in done.err


class TestText:
    def test_sentences_of_another_kind(self, trained_run: Path, command, tmp_path: Path) -> None:
        lines = ["old the ship every sees no", "king king today small a the a", "at follows night the"] * 8
        (tmp_path / "other.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        words = ("anomaly", "--model", trained_run, "--anomalies", "other.txt", "--resamples", 50)
        done = command(*words)
        assert done.code == 0, done.err
        found = json.loads(done.out)
        cell = found["details"]["cells"][0]
        assert (cell["samples"], cell["anomalies"]) == (84, 24)
        assert "ranked-by:joint|" in found["signature"]
        per_token = json.loads(command(*words, "--per-token").out)
        assert "ranked-by:joint-per-token|" in per_token["signature"]
        assert per_token["score"] != found["score"]
        assert per_token["score"] == per_token["details"]["cells"][0]["auprc_by"]["joint"]
        assert per_token["score"] > cell["base_rate"] + 0.2  # word order is off: more nats a word
        lines = command(*words, "--format", "text").lines
        assert any(line.startswith("AUROC") for line in lines)

    def test_the_newest_run_is_taken(self, trained_run: Path, command, tmp_path: Path) -> None:
        (tmp_path / "other.txt").write_text("king king today small a the a\n" * 8, encoding="utf-8")
        words = ("anomaly", "--anomalies", "other.txt", "--resamples", 20)
        named = command(*words, "--model", trained_run)
        shutil.copytree(trained_run, tmp_path / "runs" / "mine")
        done = command(*words)
        assert done.code == 0, done.err
        assert "model: the newest run, runs/mine" in done.err
        assert json.loads(done.out) == json.loads(named.out)
        refused = command(*words, "--held-out", "1")
        assert refused.code == 2
        assert "--held-out is of classes of images, and the model writes sentences" in refused.err

    def test_it_wants_sentences(self, trained_run: Path, command, tmp_path: Path) -> None:
        (tmp_path / "other.txt").write_text("king king\n", encoding="utf-8")
        for words, said in (
            ((), "wants --anomalies"),
            (("--anomalies", "none.txt"), "none.txt does not exist"),
            (
                ("--anomalies", "other.txt", "--ranked-by", "adjusted"),
                "adjusted is of images; of sentences, --per-token",
            ),
        ):
            done = command("anomaly", "--model", trained_run, *words)
            assert done.code == 2
            assert said in done.err


def test_settings_of_a_cell() -> None:
    settings = load_config("mnist-anomaly")
    a, b = (Cell(split, "9", 9, 3).config(settings) for split in ("A", "B"))
    assert (a.images.exclude_class, a.images.pool, a.seed) == ("9", True, 3)
    assert (b.images.exclude_class, b.images.pool, b.seed) == ("9", False, 3)
    assert a.images.whole_train
