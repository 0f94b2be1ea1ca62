"""Trackers: they change nothing of a run, get every line once, and may fail."""

import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from textebm import tracking
from textebm.config import Config, load_config
from textebm.errors import UsageError
from textebm.plots import read_log
from textebm.training import Limits, Silent, train

pytest.importorskip("accelerate", reason="trackers need accelerate: pip install 'textebm[track]'")
pytest.importorskip("tensorboard", reason="needs TensorBoard: pip install 'textebm[track]'")


def scalar_steps(run_dir: Path, tag: str) -> list[int]:
    """Steps of a scalar as TensorBoard shows them."""
    return [event.step for event in accumulated(run_dir).Scalars(tag)]


def accumulated(run_dir: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0}).Reload()


def logged(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    return [line for line in read_log(run_dir) if line["kind"] == kind]


class StandIn(ModuleType):
    """A module that takes what accelerate sends to wandb or trackio, and keeps it."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.started: list[dict[str, Any]] = []
        self.settings: dict[str, Any] = {}
        self.lines: list[tuple[int, dict[str, Any]]] = []
        self.finished = 0
        self.fails_at: int | None = None
        self.config = self

    def init(self, **given: Any) -> "StandIn":
        self.started.append(given)
        return self

    def update(self, values: dict[str, Any], allow_val_change: bool) -> None:
        assert allow_val_change
        self.settings.update(values)

    def log(self, values: dict[str, Any], step: int, **ignored: Any) -> None:
        if self.fails_at is not None and step >= self.fails_at:
            raise ConnectionError("the server is gone")
        self.lines.append((step, dict(values)))

    def finish(self) -> None:
        self.finished += 1

    @staticmethod
    def Table(columns: Sequence[str], data: list[list[str]], dataframe: None) -> dict[str, Any]:  # noqa: N802
        return {"columns": columns, "data": data}

    @staticmethod
    def Image(picture: Any, **ignored: Any) -> Any:  # noqa: N802
        return picture

    def steps(self, key: str) -> list[int]:
        return [step for step, values in self.lines if key in values]


@pytest.fixture(params=["wandb", "trackio"])
def service(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A tracker that keeps its figures elsewhere."""
    module = StandIn(request.param)
    monkeypatch.setitem(sys.modules, request.param, module)
    yield module


def sitting(config: Config, run_dir: Path, names: Sequence[Any], *, resume: bool = False, **limits: Any) -> list[str]:
    """Train with trackers; returns what they warned of."""
    from textebm.materials import material_of

    said: list[str] = []
    with tracking.Tracking(Silent(), names, run_dir, config, said.append) as watched:
        corpus = material_of(config).resolve(config)
        train(config, corpus, run_dir, Limits(**limits), resume=resume, observer=watched)
    return said


@pytest.fixture
def config(tiny_config: Path) -> Config:
    return load_config(str(tiny_config))


def test_a_run_is_the_same_with_and_without(trained_run: Path, tiny_config: Path, command, tmp_path: Path) -> None:
    done = command("train", "--config", tiny_config, "--run-dir", "tracked", "--track", "tensorboard")
    assert done.code == 0, done.err
    files = ["model.safetensors", "optimiser.safetensors"]
    for file in files:
        tracked = tmp_path / "tracked" / "checkpoints" / "step-30" / file
        assert tracked.read_bytes() == (trained_run / "checkpoints" / "step-30" / file).read_bytes()
    timed = {"seconds", "device", "threads", "precision", "commit", "hardware"}
    for ours, plain in zip(read_log(tmp_path / "tracked"), read_log(trained_run), strict=True):
        assert {k: v for k, v in ours.items() if k not in timed} == {k: v for k, v in plain.items() if k not in timed}
    assert json.loads((tmp_path / "tracked" / "config.json").read_text()) == json.loads(
        (trained_run / "config.json").read_text()
    )


class TestTensorBoard:
    def test_has_every_figure_of_the_log(self, config: Config, tmp_path: Path) -> None:
        assert sitting(config, tmp_path, ["tensorboard"]) == []
        board = accumulated(tmp_path)
        for kind in ("train", "valid"):
            lines = logged(tmp_path, kind)
            assert lines
            for key, value in lines[0].items():
                if isinstance(value, int | float) and not isinstance(value, bool) and key != "step":
                    shown = board.Scalars(f"{kind}/{key}")
                    assert [event.step for event in shown] == [line["step"] for line in lines]
                    assert [event.value for event in shown] == pytest.approx([line[key] for line in lines], rel=1e-6)
        assert "valid/best" not in board.Tags()["scalars"]

    def test_has_the_sentences(self, config: Config, tmp_path: Path) -> None:
        sitting(config, tmp_path, ["tensorboard"], max_epochs=1)
        (event,) = accumulated(tmp_path).Tensors("valid/samples/text_summary")
        (shown,) = event.tensor_proto.string_val
        (line,) = logged(tmp_path, "valid")
        assert shown.decode() == "\n".join("    " + sample for sample in line["samples"])

    def test_has_the_settings(self, config: Config, tmp_path: Path) -> None:
        import yaml

        sitting(config, tmp_path, ["tensorboard"], max_steps=1)
        (file,) = (tmp_path / "tensorboard").glob("*/hparams.yml")
        settings = yaml.safe_load(file.read_text())
        assert settings["prior.steps"] == 5
        assert settings["inference.step_size"] == 0.3
        assert settings["run.device"] == "cpu"
        assert settings["optimiser.betas"] == json.dumps(list(config.optimiser.betas))

    def test_a_resumed_run_doubles_no_step(self, config: Config, tmp_path: Path) -> None:
        """As after a crash: the log and the tracker know more than the checkpoint from which the run goes on."""
        sitting(config, tmp_path, ["tensorboard"], max_steps=10)
        shutil.copytree(tmp_path / "checkpoints", tmp_path / "kept")
        sitting(config, tmp_path, ["tensorboard"], resume=True, max_steps=23)
        assert scalar_steps(tmp_path, "train/log_prob") == [10, 20, 23]
        shutil.rmtree(tmp_path / "checkpoints")
        (tmp_path / "kept").rename(tmp_path / "checkpoints")
        sitting(config, tmp_path, ["tensorboard"], resume=True)
        for kind in ("train", "valid"):
            steps = [line["step"] for line in logged(tmp_path, kind)]
            assert scalar_steps(tmp_path, f"{kind}/seconds") == steps == sorted(set(steps))
        assert len([*(tmp_path / "tensorboard").glob("*/hparams.yml")]) == 1

    def test_sittings_of_one_second_are_read_in_their_order(
        self, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The last part of a file's name is a count, which sorts by its digits: 10 before 9."""
        from tensorboard.summary.writer import event_file_writer

        sitting(config, tmp_path, ["tensorboard"], max_steps=10)
        monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
        for file in [*(tmp_path / "tensorboard").rglob("events.out.tfevents.*")]:
            *name, _ = file.name.split(".")
            name[3] = str(int(time.time()))
            file.rename(file.with_name(".".join([*name, "9"])))
        sitting(config, tmp_path, ["tensorboard"], resume=True, max_steps=23)
        assert scalar_steps(tmp_path, "train/log_prob") == [10, 20, 23]

    def test_images(self, tmp_path: Path, tiny_image_config: Path) -> None:
        pytest.importorskip("PIL", reason="needs Pillow")
        assert sitting(load_config(str(tiny_image_config)), tmp_path, ["tensorboard"]) == []
        (line,) = logged(tmp_path, "valid")
        (event,) = accumulated(tmp_path).Images("valid/samples")
        assert event.step == line["step"]
        from PIL import Image

        with Image.open(tmp_path / line["samples"][0]) as picture:
            assert (event.width, event.height) == picture.size


class TestServices:
    def test_get_figures_sentences_and_settings(self, config: Config, tmp_path: Path, service: StandIn) -> None:
        assert sitting(config, tmp_path / "run", [service.__name__], max_epochs=2) == []
        (started,) = service.started
        assert started["project"] == "textebm"
        assert started["name"].startswith("run")
        assert service.settings["prior.width"] == 16
        for kind in ("train", "valid"):
            assert service.steps(f"{kind}/seconds") == [line["step"] for line in logged(tmp_path / "run", kind)]
        samples = [values["valid/samples"] for _, values in service.lines if "valid/samples" in values]
        assert len(samples) == 2
        assert logged(tmp_path / "run", "valid")[0]["samples"][0] in str(samples[0])
        assert service.finished == 1

    def test_a_resumed_run_goes_on_in_the_same_place(self, config: Config, tmp_path: Path, service: StandIn) -> None:
        name = service.__name__
        sitting(config, tmp_path, [name], max_steps=10)
        shutil.copytree(tmp_path / "checkpoints", tmp_path / "kept")
        sitting(config, tmp_path, [name], resume=True, max_steps=23)
        shutil.rmtree(tmp_path / "checkpoints")
        (tmp_path / "kept").rename(tmp_path / "checkpoints")
        sitting(config, tmp_path, [name], resume=True)
        identity = {started.get("id", started["name"]) for started in service.started}
        assert len(service.started) == 3
        assert len(identity) == 1
        assert all(started["resume"] == "allow" for started in service.started)
        steps = service.steps("train/log_prob")
        assert steps == sorted(set(steps))
        assert steps[-1] == 30

    def test_a_new_run_in_the_folder_is_another_run(self, config: Config, tmp_path: Path, service: StandIn) -> None:
        sitting(config, tmp_path, [service.__name__], max_steps=1)
        shutil.rmtree(tmp_path / "checkpoints")
        sitting(config, tmp_path, [service.__name__], max_steps=1)
        first, second = (started.get("id", started["name"]) for started in service.started)
        assert first != second
        assert service.steps("train/log_prob") == [1, 1]

    def test_one_that_comes_later_gets_all(self, config: Config, tmp_path: Path, service: StandIn) -> None:
        sitting(config, tmp_path, [], max_epochs=1)
        sitting(config, tmp_path, [service.__name__], resume=True)
        assert service.steps("valid/seconds") == [10, 20, 30]
        assert service.settings["prior.width"] == 16

    def test_one_that_fails_ends_no_run(self, config: Config, tmp_path: Path, service: StandIn) -> None:
        service.fails_at = 20
        (said,) = sitting(config, tmp_path, [service.__name__, "tensorboard"], max_epochs=2)
        assert f"{service.__name__} failed (the server is gone)" in said
        assert "log.jsonl" in said
        assert service.steps("train/log_prob") == [10]
        assert scalar_steps(tmp_path, "valid/seconds") == [10, 20]
        service.fails_at = None
        assert sitting(config, tmp_path, [service.__name__], resume=True) == []
        assert service.steps("train/log_prob") == [10, 20, 30]
        assert service.steps("valid/seconds") == [10, 20, 30]

    def test_one_that_does_not_start(
        self, config: Config, tmp_path: Path, service: StandIn, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def init(**ignored: Any) -> None:
            raise RuntimeError("not logged in")

        monkeypatch.setattr(service, "init", init)
        (said,) = sitting(config, tmp_path, [service.__name__], max_steps=1)
        assert "not logged in" in said
        assert logged(tmp_path, "train")

    def test_a_damaged_state(self, config: Config, tmp_path: Path, service: StandIn) -> None:
        sitting(config, tmp_path, [service.__name__], max_steps=1)
        (tmp_path / tracking.STATE).write_text("{")
        (said,) = sitting(config, tmp_path, [service.__name__], resume=True, max_steps=2)
        assert "tracking.json is damaged" in said
        assert service.steps("train/log_prob") == [1, 1, 2]


class TestScalars:
    def test_numbers_alone_by_kind(self) -> None:
        line = {"kind": "valid", "step": 3, "kl": 1, "nll": "nan", "best": True, "samples": ["a"], "density": "x"}
        assert tracking.scalars(line) == {"valid/kl": 1}


class TestMissing:
    def test_names_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tracking, "find_spec", lambda package: None)
        with pytest.raises(UsageError, match=r"accelerate and tensorboard.*pip install 'textebm\[track\]'$"):
            tracking.require(["tensorboard"])
        with pytest.raises(UsageError, match=r"accelerate and wandb.*pip install 'textebm\[track\]' wandb$"):
            tracking.require(["wandb"])

    def test_ends_the_command_before_training(
        self, tiny_config: Path, command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tracking, "find_spec", lambda package: None if package == "trackio" else True)
        done = command("train", "--config", tiny_config, "--run-dir", "run", "--track", "tensorboard", "trackio")
        assert done.code == 2
        assert "--track trackio needs trackio" in done.err
        assert not (tmp_path / "run").exists()
