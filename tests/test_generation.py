"""From a model to sentences: the same seed, every way of decoding, files that are whole or absent."""

import json
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen

import pytest
import torch

from textebm import generation
from textebm.errors import ConfigError, DataError
from textebm.generation import Sample
from textebm.model.decoding import Decoding
from textebm.model.random import stream


@pytest.fixture(scope="session")
def loaded(trained_model: Path):
    """The trained model and its tokeniser."""
    return generation.load(trained_model, "cpu")


def sentences(corpus_folder: Path, count: int) -> list[str]:
    return (corpus_folder / "test.txt").read_text(encoding="utf-8").splitlines()[:count]


class TestGenerate:
    def test_writes_n_lines_and_names_the_model(self, trained_run: Path, command) -> None:
        done = command("generate", "-n", 7, "--model", trained_run)
        assert done.code == 0
        assert len(done.lines) == 7
        assert f"model: {trained_run}" in done.err
        assert "device: cpu" in done.err

    def test_writes_words_of_the_corpus(self, trained_run: Path, corpus_folder: Path, command) -> None:
        done = command("generate", "-n", 20, "--model", trained_run)
        known = set((corpus_folder / "train.txt").read_text(encoding="utf-8").split()) | {"<unk>"}
        assert set(done.out.split()) <= known

    def test_the_newest_run_is_the_default(self, trained_run: Path, command, tmp_path: Path) -> None:
        shutil.copytree(trained_run, tmp_path / "runs" / "mine")
        done = command("generate", "-n", 2)
        assert done.code == 0
        assert "model: the newest run, runs/mine" in done.err

    def test_the_same_seed_gives_the_same_sentences_and_another_seed_others(self, trained_run: Path, command) -> None:
        first, again, other = (command("generate", "-n", 6, "--model", trained_run, "--seed", s) for s in (3, 3, 4))
        assert first.out == again.out
        assert first.out != other.out

    def test_more_than_one_batch(self, loaded, monkeypatch: pytest.MonkeyPatch) -> None:
        """Batches have streams of their own: no two are the same, and one does not depend on those after it."""
        monkeypatch.setattr(generation, "WRITTEN_AT_ONCE", 8)
        model, tokenizer = loaded
        samples = list(generation.generate(model, tokenizer, 21, seed=1))
        assert len(samples) == 21
        assert samples[:8] == list(generation.generate(model, tokenizer, 8, seed=1))
        assert not {sample.energy for sample in samples[:8]} & {sample.energy for sample in samples[8:16]}
        assert [sample.text for sample in samples[:8]] != [sample.text for sample in samples[8:16]]

    def test_jsonl_has_text_and_energy(self, trained_run: Path, loaded, command) -> None:
        as_text = command("generate", "-n", 5, "--model", trained_run, "--seed", 2)
        as_json = command("generate", "-n", 5, "--model", trained_run, "--seed", 2, "--format", "jsonl")
        records = [json.loads(line) for line in as_json.lines]
        assert [record["text"] for record in records] == as_text.lines
        model, _ = loaded
        z = model.sample_prior(5, stream(2, "prior", 0))
        assert [record["energy"] for record in records] == pytest.approx(model.energy(z).tolist(), rel=1e-5)

    def test_prior_steps(self, trained_run: Path, loaded, command) -> None:
        """0 steps: the reference Gaussian; the steps of training: as if nothing had been said."""
        model, _ = loaded

        def energies(*options: object) -> list[float]:
            done = command("generate", "-n", 4, "--model", trained_run, "--format", "jsonl", *options)
            return [json.loads(line)["energy"] for line in done.lines]

        reference = model.prior.sample_reference(4, stream(0, "prior", 0))
        assert energies("--prior-steps", 0) == pytest.approx(model.energy(reference).tolist(), rel=1e-5)
        assert energies("--prior-steps", model.config.prior.steps) == energies()
        assert energies("--prior-steps", 50) != energies()

    @pytest.mark.parametrize(
        "options",
        [
            ("--decoding", "greedy"),
            ("--decoding", "beam"),
            ("--decoding", "beam", "--beam-size", 2),
            ("--top-k", 3),
            ("--top-p", 0.5),
            ("--temperature", 0.7),
            ("--temperature", 1.5, "--top-k", 4, "--top-p", 0.9),
            ("--max-length", 4),
        ],
    )
    def test_ways_of_decoding(self, options, trained_run: Path, command) -> None:
        done, again = (command("generate", "-n", 8, "--model", trained_run, *options) for _ in range(2))
        assert done.code == 0, done.err
        assert len(done.lines) == 8
        assert done.out == again.out
        assert done.out != command("generate", "-n", 8, "--model", trained_run).out

    @pytest.mark.parametrize(
        "options",
        [("--top-k", 1), ("--top-p", 1e-6), ("--temperature", 1e-4), ("--decoding", "beam", "--beam-size", 1)],
    )
    def test_four_ways_to_be_greedy(self, options, trained_run: Path, command) -> None:
        """One word to choose from, or one hypothesis, is greedy decoding: same latents, same sentences."""
        greedy = command("generate", "-n", 12, "--model", trained_run, "--decoding", "greedy")
        assert command("generate", "-n", 12, "--model", trained_run, *options).out == greedy.out

    def test_max_length_is_respected_and_reached(self, loaded) -> None:
        model, tokenizer = loaded
        samples = generation.generate(model, tokenizer, 50, 0, Decoding(max_length=3))
        lengths = [len(sample.text.split()) for sample in samples]
        assert max(lengths) == 3

    def test_no_sentence_is_longer_than_the_longest_of_training(self, loaded, corpus_folder: Path) -> None:
        model, tokenizer = loaded
        lines = (corpus_folder / "train.txt").read_text(encoding="utf-8").splitlines()
        longest = max(len(line.split()) for line in lines)
        assert model.config.longest == longest
        hot = Decoding(temperature=100.0, max_length=model.config.longest)
        samples = [*generation.generate(model, tokenizer, 100), *generation.generate(model, tokenizer, 100, 0, hot)]
        assert max(len(sample.text.split()) for sample in samples) <= longest

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (("-n", 0), "-n is 0"),
            (("-n", -3), "-n is -3"),
            (("-n", "many"), "many"),
            (("--prior-steps", -1), "--prior-steps is -1"),
            (("--seed", -1), "seed is -1"),
            (("--temperature", 0), "temperature is 0"),
            (("--temperature", -1), "temperature is -1"),
            (("--top-k", -1), "top_k is -1"),
            (("--top-p", 0), "top_p 0"),
            (("--top-p", 1.5), "top_p 1.5"),
            (("--beam-size", 0), "beam_size is 0"),
            (("--max-length", 0), "max_length 0"),
            (("--decoding", "greedily"), "greedily"),
            (("--format", "xml"), "xml"),
            (("--temprature", 1), "--temperature"),
        ],
    )
    def test_wrong_values(self, options, said: str, trained_run: Path, command) -> None:
        done = command("generate", "--model", trained_run, *options)
        assert done.code == 2
        assert said in done.err
        assert done.out == ""

    def test_the_global_random_state_plays_no_part(self, loaded) -> None:
        model, tokenizer = loaded
        torch.manual_seed(0)
        first = list(generation.generate(model, tokenizer, 4))
        state = torch.random.get_rng_state()
        torch.manual_seed(1)
        assert list(generation.generate(model, tokenizer, 4)) == first
        torch.manual_seed(0)
        assert torch.equal(torch.random.get_rng_state(), state)


class TestOutput:
    def test_writes_exactly_that_file(self, trained_run: Path, command, tmp_path: Path) -> None:
        done = command("generate", "-n", 5, "--model", trained_run, "--output", "samples.txt")
        assert done.code == 0
        assert done.out == ""
        assert [path.name for path in tmp_path.iterdir()] == ["samples.txt"]
        plain = command("generate", "-n", 5, "--model", trained_run)
        assert (tmp_path / "samples.txt").read_text(encoding="utf-8") == plain.out

    def test_replaces_what_was_there(self, trained_run: Path, command, tmp_path: Path) -> None:
        (tmp_path / "samples.txt").write_text("old\n" * 100)
        command("generate", "-n", 2, "--model", trained_run, "--output", "samples.txt")
        assert len((tmp_path / "samples.txt").read_text().splitlines()) == 2

    @pytest.mark.parametrize("output", ["nowhere/samples.txt", "folder", "file/samples.txt"])
    def test_what_cannot_be_written_is_named(self, output: str, trained_run: Path, command, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        (tmp_path / "file").touch()
        before = set(tmp_path.rglob("*"))
        done = command("generate", "-n", 2, "--model", trained_run, "--output", output)
        assert done.code == 2
        assert f"--output {output} cannot be written" in done.err
        assert set(tmp_path.rglob("*")) == before

    def test_a_device_stays_a_device(self, trained_run: Path, command) -> None:
        assert command("generate", "-n", 2, "--model", trained_run, "--output", "/dev/null").code == 0
        assert Path("/dev/null").is_char_device()

    def test_an_error_in_the_middle_leaves_what_was_there(self, tmp_path: Path) -> None:
        def broken():
            yield Sample("one", 0.0)
            raise DataError("no more")

        path = tmp_path / "samples.txt"
        path.write_text("old\n")
        with pytest.raises(DataError):
            generation.write_samples(path, broken())
        assert path.read_text() == "old\n"
        assert [p.name for p in tmp_path.iterdir()] == ["samples.txt"]

    def test_ticks_once_a_sample(self, tmp_path: Path) -> None:
        ticks: list[int] = []
        samples = iter([Sample("ein Öl", -1.5), Sample("", 0.0)])
        generation.write_samples(tmp_path / "s.jsonl", samples, as_json=True, tick=lambda: ticks.append(1))
        assert len(ticks) == 2
        lines = (tmp_path / "s.jsonl").read_text(encoding="utf-8").splitlines()
        assert lines == ['{"text": "ein Öl", "energy": -1.5}', '{"text": "", "energy": 0.0}']


class TestInterrupted:
    @pytest.mark.skipif(sys.platform == "win32", reason="signals as clusters send them")
    @pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
    def test_nothing_half_written_is_left(
        self, which: signal.Signals, trained_run: Path, start_process: Callable[..., Popen[str]], tmp_path: Path
    ) -> None:
        if signal.getsignal(which) is signal.SIG_IGN:
            pytest.skip("started in the background, where this shell lets programs ignore Ctrl-C")
        (tmp_path / "out.txt").write_text("as it was", encoding="utf-8")
        process = start_process("generate", "--model", trained_run, "-n", 100_000_000, "--output", "out.txt")
        try:
            while not any(path.stat().st_size for path in tmp_path.glob(".out.txt.*.tmp")):
                assert process.poll() is None, process.communicate()
                time.sleep(0.05)
            process.send_signal(which)
            _, err = process.communicate(timeout=120)
        finally:
            process.kill()
        assert process.returncode == 130
        assert err.splitlines()[-1] == "interrupted"
        assert [path.name for path in tmp_path.iterdir()] == ["out.txt"]
        assert (tmp_path / "out.txt").read_text(encoding="utf-8") == "as it was"


class TestReconstruct:
    @pytest.fixture
    def file(self, corpus_folder: Path, tmp_path: Path) -> Path:
        path = tmp_path / "sentences.txt"
        path.write_text("".join(f"{line}\n" for line in sentences(corpus_folder, 5)), encoding="utf-8")
        return path

    def test_text(self, file: Path, trained_run: Path, command) -> None:
        done = command("reconstruct", file, "--model", trained_run)
        assert done.code == 0
        assert len(done.lines) == 5
        assert command("reconstruct", file, "--model", trained_run).out == done.out

    def test_json_has_each_pair_and_the_bleu_score(self, file: Path, trained_run: Path, command) -> None:
        sacrebleu = pytest.importorskip("sacrebleu", reason="the BLEU score needs sacrebleu")
        as_text = command("reconstruct", file, "--model", trained_run)
        done = command("reconstruct", file, "--model", trained_run, "--format", "json")
        assert done.code == 0, done.err
        found = json.loads(done.out)
        given = file.read_text(encoding="utf-8").splitlines()
        assert [pair["text"] for pair in found["sentences"]] == given
        assert [pair["reconstruction"] for pair in found["sentences"]] == as_text.lines
        known = sacrebleu.corpus_bleu(as_text.lines, [given], tokenize="none", force=True)
        assert found["metric"] == "bleu"
        assert found["score"] == pytest.approx(known.score)
        assert "tok:none" in found["signature"]

    def test_output(self, file: Path, trained_run: Path, command, tmp_path: Path) -> None:
        plain = command("reconstruct", file, "--model", trained_run)
        done = command("reconstruct", file, "--model", trained_run, "--output", "again.txt")
        assert done.out == ""
        assert (tmp_path / "again.txt").read_text(encoding="utf-8") == plain.out
        done = command("reconstruct", file, "--model", trained_run, "--output", "nowhere/again.txt")
        assert done.code == 2
        assert "--output nowhere/again.txt cannot be written" in done.err

    @pytest.mark.parametrize("content", ["", "\n\n"])
    def test_a_file_without_a_sentence(self, content: str, trained_run: Path, command, tmp_path: Path) -> None:
        (tmp_path / "blank.txt").write_text(content)
        done = command("reconstruct", "blank.txt", "--model", trained_run)
        assert done.code == 2
        assert "no sentence" in done.err

    def test_a_file_that_is_not_there(self, trained_run: Path, command) -> None:
        done = command("reconstruct", "nowhere.txt", "--model", trained_run)
        assert done.code == 2
        assert "nowhere.txt: no such file" in done.err

    def test_the_order_of_sentences_is_kept_over_batches(self, loaded, monkeypatch: pytest.MonkeyPatch) -> None:
        """Chains without noise from one point: each latent depends on its sentence alone, wherever that stands."""
        model, tokenizer = loaded
        monkeypatch.setattr(model.prior, "sample_reference", lambda n, _: torch.zeros(n, 4))
        monkeypatch.setattr(torch, "randn", lambda size, **_: torch.zeros(size))
        monkeypatch.setattr(generation, "BATCH", 2)
        given = ["the dog sees a king", "no ship", "a red wolf finds the old river today", "every king", "a dog"]
        together = generation.infer(model, tokenizer, given)
        alone = torch.cat([generation.infer(model, tokenizer, [sentence]) for sentence in given])
        assert torch.allclose(together, alone, atol=1e-5)
        assert not torch.allclose(together[0], together[1], atol=1e-3)


class TestInterpolate:
    FIRST, LAST = "the old dog sees a king", "no ship follows every wolf today"

    def test_the_ends_are_the_reconstructions_of_the_two_sentences(
        self, trained_run: Path, command, tmp_path: Path
    ) -> None:
        (tmp_path / "ends.txt").write_text(f"{self.FIRST}\n{self.LAST}\n")
        ends = command("reconstruct", "ends.txt", "--model", trained_run, "--seed", 3).lines
        done = command("interpolate", self.FIRST, self.LAST, "--model", trained_run, "--seed", 3)
        assert done.code == 0
        assert len(done.lines) == 7
        assert [done.lines[0], done.lines[-1]] == ends

    def test_points(self, loaded, trained_run: Path, command) -> None:
        done = command("interpolate", self.FIRST, self.LAST, "--model", trained_run, "--points", 3)
        assert len(done.lines) == 3
        model, tokenizer = loaded
        line = generation.interpolate(model, tokenizer, self.FIRST, self.LAST, 3)
        assert [sample.text for sample in line] == done.lines
        ends = generation.infer(model, tokenizer, [self.FIRST, self.LAST])
        assert line[1].energy == pytest.approx(model.energy(ends.mean(0, keepdim=True)).item(), rel=1e-4)

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("a dog", "a king", "--points", 1), "--points is 1"),
            (("a dog", ""), "1 of 2 sentences are empty"),
            (("", " "), "no sentence is left"),
            (("a dog",), "where it ends"),
        ],
    )
    def test_wrong_arguments(self, arguments, said: str, trained_run: Path, command) -> None:
        done = command("interpolate", *arguments, "--model", trained_run)
        assert done.code == 2
        assert said in done.err


class TestCachedSamples:
    @pytest.fixture
    def folder(self, trained_model: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(trained_model, tmp_path / "step-30"))

    def test_are_drawn_once_and_kept(self, folder: Path, loaded, tmp_path: Path) -> None:
        model, tokenizer = loaded
        ticks: list[int] = []

        def draw(**options: int) -> Path:
            given = {"n": 5, "seed": 1} | options
            return generation.cached_samples(
                folder, model, tokenizer, given["n"], given["seed"], tmp_path / "cache", lambda: ticks.append(1)
            )

        first = draw()
        written = first.stat().st_mtime_ns
        assert draw() == first
        assert first.stat().st_mtime_ns == written
        assert len(ticks) == 5
        expected = [sample.text for sample in generation.generate(model, tokenizer, 5, 1)]
        assert first.read_text(encoding="utf-8").splitlines() == expected
        assert len({first, draw(n=6), draw(seed=2)}) == 3

    def test_a_changed_checkpoint_has_samples_of_its_own(self, folder: Path, loaded, tmp_path: Path) -> None:
        model, tokenizer = loaded
        first = generation.cached_samples(folder, model, tokenizer, 3, 0, tmp_path / "cache")
        weights = folder / "model.safetensors"
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1  # of the same size
        weights.unlink()
        weights.write_bytes(content)
        second = generation.cached_samples(folder, model, tokenizer, 3, 0, tmp_path / "cache")
        assert first != second
        assert first.exists()
        assert second.exists()

    def test_the_name_says_what_they_are(self, folder: Path, loaded, tmp_path: Path) -> None:
        model, tokenizer = loaded
        path = generation.cached_samples(folder, model, tokenizer, 3, 4, tmp_path / "cache")
        assert re.fullmatch(r"step-30-[0-9a-f]{16}-n3-seed4\.txt", path.name)


class TestDecodingSettings:
    @pytest.mark.parametrize(
        "wrong",
        [{"temperature": 0.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.01}, {"beam_size": 0}, {"max_length": 0}],
    )
    def test_are_checked(self, wrong) -> None:
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            Decoding(**wrong)


class TestShippedModel:
    @pytest.fixture
    def shipped(self) -> Path:
        folder = Path(generation.__file__).parent / "pretrained" / "demo"
        if not (folder / "model.safetensors").exists():
            pytest.skip("the demo model has not been made yet")
        return folder

    def test_is_used_and_named_where_there_is_no_run(self, shipped: Path, command) -> None:
        done = command("generate", "-n", 4)
        assert done.code == 0, done.err
        assert len(done.lines) == 4
        assert "model: the demo model that ships with textebm" in done.err

    def test_is_small(self, shipped: Path) -> None:
        assert sum(path.stat().st_size for path in shipped.iterdir()) < 4_000_000
