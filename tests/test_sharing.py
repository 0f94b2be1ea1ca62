"""Sharing: a folder that loads anywhere to the same samples, a card that the Hub reads, what would be sent there."""

import dataclasses
import inspect
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from textebm import checkpoint, model_card, sharing
from textebm.config import Config
from textebm.errors import CheckpointError, UsageError
from textebm.interface import ImageEBM, LatentEBM, TextEBM
from textebm.model_card import CardOptions, Origin

MODEL_FILES = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "run.json"}
SIGNATURE = "metric:fppl|data:corpus|train:0a0a0a0a0a0a|n:300|decoding:sample-t1|judge:kenlm5"
EVIL = "<script>alert(1)</script> | `code` ``` **bold** [link](x) <unk>"


@pytest.fixture
def scores_file(tmp_path: Path) -> Path:
    """A score of the model, as `textebm fppl` writes it."""
    path = tmp_path / "fppl.json"
    details = {
        "real_row": {"perplexity": 99.25},
        "warnings": ["mind the gap"],
        "headline_reasons": ["too few | of them"],
    }
    score = {"metric": "fppl", "score": 120.5, "interval": [118.0, 123.0], "signature": SIGNATURE, "details": details}
    path.write_text(json.dumps(score), encoding="utf-8")
    return path


@pytest.fixture
def without_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where huggingface_hub is not installed."""
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "huggingface_hub" else real(name, *more)
    )
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)


def read_card(folder: Path) -> tuple[dict[str, Any], str]:
    """The metadata of a card, and its prose."""
    card = (folder / "README.md").read_text(encoding="utf-8")
    _, written, prose = card.split("---\n", 2)
    return yaml.safe_load(written), prose


class TestFolder:
    def test_of_text_gives_the_same_sentences(self, trained_run: Path, tmp_path: Path, without_hub: None) -> None:
        model = TextEBM.from_pretrained(trained_run, device="cpu")
        assert model.save_pretrained(tmp_path / "shared") is None
        assert {path.name for path in (tmp_path / "shared").iterdir()} == MODEL_FILES | {"README.md"}
        again = LatentEBM.from_pretrained(tmp_path / "shared", device="cpu")
        assert isinstance(again, TextEBM)
        assert again.generate(20, seed=5) == model.generate(20, seed=5)
        sentence = "the old dog sees a king"
        assert again.score(sentence, seed=1) == model.score(sentence, seed=1)

    def test_of_images_gives_the_same_images(self, trained_image_run: Path, tmp_path: Path) -> None:
        model = ImageEBM.from_pretrained(trained_image_run, device="cpu")
        model.save_pretrained(tmp_path / "shared")
        again = LatentEBM.from_pretrained(tmp_path / "shared", device="cpu")
        assert torch.equal(again.generate(4, seed=5), model.generate(4, seed=5))
        assert (tmp_path / "shared" / "samples.png").read_bytes().startswith(b"\x89PNG")
        assert "![Images drawn from the model, side by side](samples.png)" in read_card(tmp_path / "shared")[1]

    def test_is_known_to_be_whole(self, trained_run: Path, tmp_path: Path) -> None:
        LatentEBM.from_pretrained(trained_run, device="cpu").save_pretrained(tmp_path / "shared")
        checkpoint.verify(tmp_path / "shared")
        card = tmp_path / "shared" / "README.md"
        card.write_text(card.read_text(encoding="utf-8") + "More.\n", encoding="utf-8")  # as people do on the Hub
        checkpoint.verify(tmp_path / "shared")
        weights = tmp_path / "shared" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"\0\0")
        with pytest.raises(CheckpointError, match=r"model\.safetensors is not as it was written"):
            LatentEBM.from_pretrained(tmp_path / "shared", device="cpu")

    def test_knows_what_the_model_was_trained_on(self, trained_run: Path, tmp_path: Path) -> None:
        LatentEBM.from_pretrained(trained_run, device="cpu").save_pretrained(tmp_path / "shared")
        (before, progress), (after, same) = map(
            checkpoint.read_run, (checkpoint.find_model(str(trained_run))[0], tmp_path / "shared")
        )
        assert same == progress
        assert after == dataclasses.replace(before, data="corpus", data_dir=None)
        contents = [
            checkpoint.read_contents(f) for f in (checkpoint.find_model(str(trained_run))[0], tmp_path / "shared")
        ]
        assert contents[0] == contents[1]

    def test_no_path_of_this_machine_goes_out(self, trained_run: Path, tmp_path: Path, scores_file: Path) -> None:
        options = CardOptions(results=(scores_file,))
        LatentEBM.from_pretrained(trained_run, device="cpu").save_pretrained(tmp_path / "shared", card=options)
        for path in (tmp_path / "shared").iterdir():
            assert str(tmp_path.parent).encode() not in path.read_bytes()

    def test_may_be_written_again_and_keeps_what_else_is_there(self, trained_run: Path, tmp_path: Path) -> None:
        model = LatentEBM.from_pretrained(trained_run, device="cpu")
        (tmp_path / "shared").mkdir()
        (tmp_path / "shared" / "notes.txt").write_text("mine", encoding="utf-8")
        for _ in range(2):
            model.save_pretrained(tmp_path / "shared")
        assert {p.name for p in (tmp_path / "shared").iterdir()} == MODEL_FILES | {"README.md", "notes.txt"}
        assert [p.name for p in tmp_path.iterdir()] == ["shared"], "nothing is left beside it"

    def test_of_a_model_that_nobody_knows_the_run_of(self, trained_model: Path, tmp_path: Path) -> None:
        shutil.copytree(trained_model, tmp_path / "bare")
        (tmp_path / "bare" / "run.json").unlink()
        model = TextEBM.from_pretrained(tmp_path / "bare", device="cpu")
        model.save_pretrained(tmp_path / "shared")
        assert {p.name for p in (tmp_path / "shared").iterdir()} == MODEL_FILES - {"run.json"} | {"README.md"}
        assert TextEBM.from_pretrained(tmp_path / "shared", device="cpu").generate(3) == model.generate(3)

    def test_what_was_shared_keeps_its_card(self, trained_run: Path, tmp_path: Path, scores_file: Path) -> None:
        options = CardOptions(results=(scores_file,))
        LatentEBM.from_pretrained(trained_run, device="cpu").save_pretrained(tmp_path / "first", card=options)
        LatentEBM.from_pretrained(tmp_path / "first", device="cpu").save_pretrained(tmp_path / "second")
        for name in (*MODEL_FILES, "README.md"):
            assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()

    @pytest.mark.parametrize("inside", ["", "checkpoints", "checkpoints/step-30"])
    def test_never_lies_in_a_run_folder(self, inside: str, trained_run: Path, tmp_path: Path) -> None:
        shutil.copytree(trained_run, tmp_path / "run")
        before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
        with pytest.raises(UsageError, match="is, or lies in, a run folder: name another"):
            LatentEBM.from_pretrained(tmp_path / "run", device="cpu").save_pretrained(tmp_path / "run" / inside)
        assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before

    def test_may_lie_beside_any_other_folder(self, trained_run: Path, tmp_path: Path) -> None:
        (tmp_path / "checkpoints").mkdir()
        shutil.copytree(trained_run, tmp_path / "run")
        LatentEBM.from_pretrained(tmp_path / "run", device="cpu").save_pretrained(tmp_path / "shared")
        assert (tmp_path / "shared" / "README.md").exists()

    def test_that_cannot_be_written(self, trained_run: Path, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(UsageError, match="cannot be written"):
            LatentEBM.from_pretrained(trained_run, device="cpu").save_pretrained(tmp_path / "file" / "model")


class TestPlaces:
    """Of a path its last part stays; names stay."""

    @pytest.mark.parametrize(
        ("data", "public"),
        [
            ("ptb", "ptb"),
            ("hf:stanfordnlp/imdb", "hf:stanfordnlp/imdb"),
            ("hf:stanfordnlp/imdb@main:plain_text", "hf:stanfordnlp/imdb@main:plain_text"),
            ("/srv/me/secret/letters.txt", "letters.txt"),
            ("../letters", "letters"),
            ("hf:/srv/me/secret/letters", "letters"),
        ],
    )
    def test_of_data(self, data: str, public: str) -> None:
        config = dataclasses.replace(Config(), data=data, data_dir="/srv/me/data")
        after = model_card.without_places(config)
        assert (after.data, after.data_dir) == (public, None)

    def test_of_data_in_this_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "letters").mkdir()
        monkeypatch.chdir(tmp_path / "letters")
        assert model_card.without_places(dataclasses.replace(Config(), data=".")).data == "letters"
        monkeypatch.chdir(tmp_path)
        assert model_card.without_places(dataclasses.replace(Config(), data="hf:letters")).data == "letters"


class TestCard:
    @pytest.fixture
    def shared(self, trained_run: Path, tmp_path: Path, scores_file: Path) -> Path:
        options = CardOptions(license="mit", language=("en",), results=(scores_file,), samples=4, seed=7)
        LatentEBM.from_pretrained(trained_run, device="cpu").save_pretrained(
            tmp_path / "shared", repo_id="me/dogs-and-kings", card=options
        )
        return tmp_path / "shared"

    def test_the_hub_reads_its_metadata(self, shared: Path) -> None:
        """huggingface_hub parses it, checks its model index, and gives the same metadata back."""
        hub = pytest.importorskip("huggingface_hub", reason="the Hub's own reader checks cards")
        card = hub.ModelCard.load(shared / "README.md")
        written, _ = read_card(shared)
        assert card.data.to_dict() == written
        assert (card.data.license, card.data.language, card.data.library_name) == ("mit", ["en"], "textebm")
        assert card.data.pipeline_tag == "text-generation"
        assert set(card.data.tags) == {"textebm", "latent-variable-model", "langevin-dynamics", "energy-based-model"}
        (result,) = card.data.eval_results
        assert (result.metric_type, result.metric_value, result.metric_name) == ("fppl", 120.5, "FPPL")
        assert (result.task_type, result.dataset_type) == ("text-generation", "corpus")
        assert result.metric_args == {"signature": SIGNATURE, "interval": [118.0, 123.0]}
        assert card.data.model_name == "dogs-and-kings"

    def test_scores_stand_with_interval_signature_and_remarks(self, shared: Path) -> None:
        prose = read_card(shared)[1]
        assert "- **FPPL**: 120.5 (95 % interval 118 to 123); real text under the same judge: 99.25\n" in prose
        assert f"\n  ```text\n  {SIGNATURE}\n  ```\n" in prose
        assert "\n  - too few \\| of them\n  - mind the gap\n" in prose

    def test_quotes_the_sentences_that_its_command_writes(self, shared: Path, command) -> None:
        prose = read_card(shared)[1]
        done = command("generate", "-n", 4, "--seed", 7, "--model", shared, "--device", "cpu")
        assert "The first 4 sentences with seed 7; nothing is chosen or left out.\n\n```text\n" + done.out in prose

    def test_says_what_it_learned_from_and_how(self, shared: Path, trained_run: Path) -> None:
        prose = read_card(shared)[1]
        assert "| data | corpus |" in prose
        assert "| splits | 300 sentences in train, 60 sentences in valid, 60 sentences in test |" in prose
        assert "| prior | ebm, z of 4 dimensions; 5 Langevin steps of size 0.4, temperature 1.0 |" in prose
        settings = json.loads(prose.split("```text\n")[1].split("\n```")[0])
        assert settings["prior"]["width"] == 16
        log = [json.loads(line) for line in (trained_run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        step = checkpoint.read_run(shared)[1].step
        (valid,) = (line for line in log if line["kind"] == "valid" and line["step"] == step)
        assert f"| perplexity on valid, reconstructing | {valid['reconstruction_perplexity']:.4g} |" in prose

    def test_says_how_to_load_it(self, shared: Path) -> None:
        prose = read_card(shared)[1]
        assert "textebm generate -n 10 --seed 0 --model hf:me/dogs-and-kings\n" in prose
        assert 'model = LatentEBM.from_pretrained("me/dogs-and-kings")\n' in prose

    def test_how_to_load_a_folder_is_true(self, trained_run: Path, tmp_path: Path, monkeypatch) -> None:
        LatentEBM.from_pretrained(trained_run, device="cpu").save_pretrained(tmp_path / "here")
        (program,) = re.findall(r"```python\n(.*?)```", read_card(tmp_path / "here")[1], re.DOTALL)
        monkeypatch.chdir(tmp_path)
        namespace: dict[str, Any] = {}
        exec(program, namespace)
        assert isinstance(namespace["model"], TextEBM)

    def test_how_to_load_a_folder_with_a_blank_in_its_name(self, trained_run: Path, tmp_path: Path) -> None:
        LatentEBM.from_pretrained(trained_run, device="cpu").save_pretrained(tmp_path / "my model")
        assert "--model './my model'\n" in read_card(tmp_path / "my model")[1]

    def test_has_no_figure_that_was_not_measured(self, trained_model: Path, tmp_path: Path) -> None:
        shutil.copytree(trained_model, tmp_path / "alone")
        LatentEBM.from_pretrained(tmp_path / "alone", device="cpu").save_pretrained(tmp_path / "shared")
        metadata, prose = read_card(tmp_path / "shared")
        assert {"metrics", "model-index", "license"}.isdisjoint(metadata)
        assert "No score of it was measured when it was shared." in prose
        assert "validation split" not in prose
        assert "No licence was chosen for the weights" in prose

    def test_finds_the_scores_in_the_run_folder(self, trained_run: Path, tmp_path: Path, scores_file: Path) -> None:
        shutil.copytree(trained_run, tmp_path / "run")
        (tmp_path / "run" / "scores").mkdir()
        shutil.copy(scores_file, tmp_path / "run" / "scores" / "fppl.json")
        LatentEBM.from_pretrained(tmp_path / "run", device="cpu").save_pretrained(tmp_path / "shared")
        assert [
            each["metrics"][0]["value"] for each in read_card(tmp_path / "shared")[0]["model-index"][0]["results"]
        ] == [120.5]

    def test_a_data_set_of_the_hub_is_named_as_such(self, trained_model: Path) -> None:
        model = LatentEBM.from_pretrained(trained_model, device="cpu").model
        origin = Origin(dataclasses.replace(Config(), data="hf:stanfordnlp/imdb@main"))
        assert model_card.metadata(model, origin, "me/it", CardOptions(), [])["datasets"] == ["stanfordnlp/imdb"]

    def test_the_licence_of_a_named_corpus_is_told(self, trained_model: Path, tmp_path: Path) -> None:
        model = TextEBM.from_pretrained(trained_model, device="cpu")
        origin = Origin(dataclasses.replace(Config(), data="ptb"))
        model_card.write(model.model, model.tokenizer, origin, tmp_path, "me/it")
        assert "What it learned from: Penn Treebank" in read_card(tmp_path)[1]
        assert "Linguistic Data Consortium" in read_card(tmp_path)[1]

    def test_whatever_a_text_says_stays_text(self) -> None:
        block = model_card.as_block(EVIL)
        assert block == f"````text\n{EVIL}\n````"
        cell = model_card.as_cell(EVIL)
        assert not re.search(r"[<>]|(?<!\\)[|`*\[]", cell)

    @pytest.mark.parametrize(
        ("wrong", "said"),
        [
            ({"license": "My Licence"}, "license is 'My Licence': it must be an identifier"),
            ({"language": ("English",)}, "language is 'English': it must be a code"),
            ({"samples": -1}, "samples is -1: it must be 0 or more"),
        ],
    )
    def test_options_that_make_no_sense(self, wrong: dict[str, Any], said: str) -> None:
        with pytest.raises(UsageError, match=said):
            CardOptions(**wrong)


class StandIn:
    """In the place of the Hub: what would be sent there."""

    def __init__(self) -> None:
        self.made: list[dict[str, Any]] = []
        self.uploads: list[dict[str, Any]] = []
        self.refuses: Exception | None = None

    def create_repo(self, **given: Any) -> Any:
        if self.refuses is not None:
            raise self.refuses
        self.made.append(given)
        return dataclasses.make_dataclass("RepoUrl", ["repo_id"])(given["repo_id"])

    def upload_folder(self, **given: Any) -> Any:
        from huggingface_hub.utils import filter_repo_objects

        folder = Path(given["folder_path"])
        every = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        sent = {
            name: (folder / name).read_bytes()
            for name in filter_repo_objects(every, allow_patterns=given["allow_patterns"])
        }
        self.uploads.append(given | {"sent": sent})
        return dataclasses.make_dataclass("CommitInfo", ["commit_url"])("https://hub/commit/1")


class TestPush:
    @pytest.fixture
    def hub(self, monkeypatch: pytest.MonkeyPatch) -> StandIn:
        pytest.importorskip("huggingface_hub", reason="models are pushed by it")
        stand_in = StandIn()
        monkeypatch.setattr("huggingface_hub.HfApi", lambda **_: stand_in)
        monkeypatch.setattr("textebm.data.hub.hub_unreachable", lambda: None)
        return stand_in

    def test_sends_the_model_and_its_card_in_one_commit(self, hub: StandIn, trained_run: Path) -> None:
        model = TextEBM.from_pretrained(trained_run, device="cpu")
        assert model.push_to_hub("me/dogs", private=True, branch="next") == "https://hub/commit/1"
        assert hub.made == [{"repo_id": "me/dogs", "private": True, "exist_ok": True}]
        (upload,) = hub.uploads
        assert set(upload["sent"]) == MODEL_FILES | {"README.md"}
        assert (upload["repo_id"], upload["repo_type"], upload["revision"]) == ("me/dogs", "model", "next")
        assert b'from_pretrained("me/dogs")' in upload["sent"]["README.md"]

    def test_of_a_folder_with_other_files_sends_none_of_them(
        self, hub: StandIn, trained_run: Path, tmp_path: Path
    ) -> None:
        model = TextEBM.from_pretrained(trained_run, device="cpu")
        for name in ("shared/secrets.env", "shared/pytorch_model.bin", "shared/runs/config.json"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        address = model.save_pretrained(tmp_path / "shared", repo_id="me/dogs", push_to_hub=True, commit_message="Mine")
        assert address == "https://hub/commit/1"
        assert set(hub.uploads[0]["sent"]) == MODEL_FILES | {"README.md"}
        assert hub.uploads[0]["commit_message"] == "Mine"

    def test_what_was_sent_loads_to_the_same_samples(
        self, hub: StandIn, trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = TextEBM.from_pretrained(trained_run, device="cpu")
        model.push_to_hub("me/dogs")
        asked: list[tuple[str, dict[str, Any]]] = []

        def snapshot(name: str, **given: Any) -> str:
            asked.append((name, given))
            for file, content in hub.uploads[0]["sent"].items():
                (tmp_path / file).write_bytes(content)
            return str(tmp_path)

        monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
        monkeypatch.chdir(tmp_path)
        for name, revision in (("me/dogs", None), ("hf:me/dogs", None), ("hf:me/dogs@next", "next")):
            again = TextEBM.from_pretrained(name, device="cpu")
            assert again.generate(5, seed=3) == model.generate(5, seed=3)
            assert (asked[-1][0], asked[-1][1]["revision"]) == ("me/dogs", revision)
        assert set(asked[0][1]["allow_patterns"]) == set(sharing.FILES), "no pickle and no code is ever downloaded"

    def test_a_refusal_is_told(self, hub: StandIn, trained_run: Path) -> None:
        hub.refuses = ValueError("401 Unauthorized:\n you may not")
        with pytest.raises(CheckpointError, match=r"me/dogs cannot be pushed: 401 Unauthorized: you may not \(hf auth"):
            TextEBM.from_pretrained(trained_run, device="cpu").push_to_hub("me/dogs")

    def test_an_unreachable_hub_is_told(self, trained_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("huggingface_hub")
        monkeypatch.setenv("TEXTEBM_OFFLINE", "1")
        with pytest.raises(CheckpointError, match="me/dogs cannot be pushed: TEXTEBM_OFFLINE is set"):
            TextEBM.from_pretrained(trained_run, device="cpu").push_to_hub("me/dogs")

    @pytest.mark.parametrize("name", ["dogs", "me/dogs/more", "me/ dogs", "../dogs", ""])
    def test_a_name_that_is_none(self, hub: StandIn, trained_run: Path, name: str) -> None:
        with pytest.raises(UsageError, match="is no name on the Hugging Face Hub"):
            TextEBM.from_pretrained(trained_run, device="cpu").push_to_hub(name)
        assert hub.made == []

    def test_where_to_is_wanted(self, trained_run: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="push_to_hub wants repo_id"):
            TextEBM.from_pretrained(trained_run, device="cpu").save_pretrained(tmp_path / "x", push_to_hub=True)

    def test_without_the_library_says_what_to_install(self, trained_run: Path, without_hub: None) -> None:
        with pytest.raises(UsageError, match=r"needs the library huggingface_hub: pip install 'textebm\[hub\]'"):
            TextEBM.from_pretrained(trained_run, device="cpu").push_to_hub("me/dogs")
        with pytest.raises(UsageError, match=r"me/dogs on the Hugging Face Hub needs the library huggingface_hub"):
            TextEBM.from_pretrained("me/dogs", device="cpu")

    def test_methods_take_what_the_mixin_of_the_hub_takes(self) -> None:
        """Whoever knows `ModelHubMixin` knows these: same names, same kinds, same defaults."""
        hub = pytest.importorskip("huggingface_hub")
        own = {"card", "name", "device", "commit_message"}
        renamed = {"name": "pretrained_model_name_or_path"}
        for method in ("save_pretrained", "push_to_hub", "from_pretrained"):
            theirs = inspect.signature(getattr(hub.ModelHubMixin, method)).parameters
            for name, parameter in inspect.signature(getattr(LatentEBM, method)).parameters.items():
                assert name in own or theirs[name].default == parameter.default
                assert name in own or theirs[name].kind == parameter.kind
                assert renamed.get(name, name) in theirs or name in own


class TestFetch:
    def test_a_model_that_is_not_cached_offline(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        pytest.importorskip("huggingface_hub")
        monkeypatch.setenv("TEXTEBM_OFFLINE", "1")
        with pytest.raises(
            CheckpointError, match=r"cannot be loaded: it is not in the cache, and the hub cannot be asked"
        ):
            sharing.fetch("me/dogs", cache_dir=tmp_path)

    @pytest.mark.parametrize("name", ["hf:dogs", "hf:", "hf:me/dogs/more", "hf:../../etc"])
    def test_a_name_that_is_none(self, name: str) -> None:
        with pytest.raises(UsageError, match=r"give hf:OWNER/NAME\[@REVISION\]"):
            sharing.fetch(name)

    def test_a_run_that_is_not_there_is_not_looked_for_on_the_hub(self, tmp_path: Path, monkeypatch) -> None:
        (tmp_path / "runs").mkdir()
        monkeypatch.chdir(tmp_path)
        with pytest.raises(
            CheckpointError, match=r"no run and no model folder 'runs/ptb'; hf:runs/ptb names a model on"
        ):
            LatentEBM.from_pretrained("runs/ptb", device="cpu")


class TestCommand:
    def test_writes_a_folder_that_generates(self, trained_run: Path, command, scores_file: Path) -> None:
        words = ("--output", "shared", "--license", "mit", "--language", "en", "--results", scores_file)
        done = command("share", trained_run, *words)
        assert (done.code, done.out) == (0, "shared\n"), done.err
        shared = command("generate", "-n", 5, "--seed", 2, "--model", "shared")
        assert shared.out == command("generate", "-n", 5, "--seed", 2, "--model", trained_run).out

    def test_pushes(self, trained_run: Path, command, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("huggingface_hub")
        hub = StandIn()
        monkeypatch.setattr("huggingface_hub.HfApi", lambda **_: hub)
        monkeypatch.setattr("textebm.data.hub.hub_unreachable", lambda: None)
        done = command("share", trained_run, "--push", "me/dogs", "--message", "Mine")
        assert (done.code, done.out) == (0, "https://hub/commit/1\n"), done.err
        assert "no --license: the card says that none was chosen" in done.err
        assert set(hub.uploads[0]["sent"]) == MODEL_FILES | {"README.md"}

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            ([], "share wants --output, a folder to write, or --push"),
            (["--push", "dogs"], "'dogs' is no name on the Hugging Face Hub"),
            (["--output", "x", "--results", "nothing.json"], "--results: nothing.json does not exist"),
            (["--output", "x", "--license", "My Own"], "license is 'My Own'"),
        ],
    )
    def test_wrong_usage(self, words: list[str], said: str, trained_run: Path, command, tmp_path: Path) -> None:
        done = command("share", trained_run, *words)
        assert done.code == 2
        assert said in done.err
        assert list(tmp_path.iterdir()) == []
