"""Several processes: shares of a batch, the law that N of them make the steps of one, and whole jobs by torchrun.

The laws are tried with threads in the place of processes, which makes many cases quick; the jobs are real ones.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from textebm import evaluation, generation, image_generation, processes, training
from textebm.config import Config, ConvolutionConfig, InferenceConfig, PriorConfig, load_config
from textebm.data.text import encode
from textebm.errors import ConfigError, ProcessError, UsageError
from textebm.model.image_batch import ImageBatch, ImageShape
from textebm.model.latent_model import LatentModel, ModelConfig
from textebm.model.learner import Learner, StepReport
from textebm.model.recurrent import BOS, EOS, PAD, TextBatch
from textebm.processes import ALONE, World, cut, part_size

# ---- shares


@given(samples=st.integers(1, 300), full=st.integers(1, 300), micro_batch=st.integers(0, 40), count=st.integers(1, 12))
def test_shares_partition_any_batch(samples, full, micro_batch, count):
    """Every sample once, in order; parts numbered through the batch, cut as one process with that micro_batch cuts."""
    size = part_size(samples, full, micro_batch, count)
    rows = range(samples)
    shares = [cut(samples, size, rank, count) for rank in range(count)]
    assert [row for share in shares for row in rows[share.rows]] == list(rows)
    whole = [list(rows[begin : begin + size]) for begin in range(0, samples, size)]
    for share in shares:
        own = list(rows[share.rows])
        parts = [own[begin : begin + size] for begin in range(0, len(own), size)]
        assert parts == whole[share.first : share.first + len(parts)]
    assert size == part_size(samples, full, size, 1)
    assert micro_batch == 0 or size <= micro_batch


@given(samples=st.integers(1, 300), count=st.integers(1, 12))
def test_shares_of_a_full_batch_are_as_even_as_possible(samples, count):
    size = part_size(samples, samples, 0, count)
    largest = max(len(range(samples)[cut(samples, size, rank, count).rows]) for rank in range(count))
    assert largest == -(-samples // count)


# ---- the law, with threads for processes


class Meeting:
    """Where threads that stand for processes meet."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.barrier = threading.Barrier(count, timeout=120)
        self.brought: list[Any] = [None] * count


class Member(World):
    """One thread of several, in the place of a process."""

    def __init__(self, meeting: Meeting, rank: int) -> None:
        self.meeting, self.rank, self.count, self.local_count = meeting, rank, meeting.count, meeting.count

    def exchanged(self, mine: Any) -> list[Any]:
        self.meeting.brought[self.rank] = mine
        self.meeting.barrier.wait()
        brought = list(self.meeting.brought)
        self.meeting.barrier.wait()
        return brought

    def sum(self, tensors: Sequence[Tensor]) -> None:
        with torch.no_grad():
            every = self.exchanged([tensor.clone() for tensor in tensors])
            for place, tensor in enumerate(tensors):
                tensor.copy_(torch.stack([of_one[place] for of_one in every]).sum(0))

    def in_turn(self, jobs, make, pack, unpack):
        for begin in range(0, jobs, self.count):
            mine = begin + self.rank
            every = self.exchanged(pack(make(mine)) if mine < jobs else b"")
            yield from (unpack(content) for content in every[: jobs - begin] if self.first)


def together(count: int, work: Callable[[World], Any]) -> list[Any]:
    """What each of several threads makes of its place in the world."""
    meeting, made = Meeting(count), [None] * count

    def run(rank: int) -> None:
        try:
            made[rank] = work(Member(meeting, rank))
        except BaseException:
            meeting.barrier.abort()
            raise

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not meeting.barrier.broken
    return made


SENTENCES = [[4, 5, 4], [5], [4, 4], [5, 5, 5, 5], [4], [5, 4, 5, 5], [4, 5], [5, 5, 4]]
BATCHES = [[0, 1, 2, 3, 4], [5, 6, 7, 0, 2], [3], [6, 1, 4, 7]]
"""Rows of the samples in four joint batches; one is so small that most processes have none of it."""


def sentences(rows: Sequence[int]) -> TextBatch:
    chosen = [SENTENCES[row] for row in rows]
    width = max(map(len, chosen)) + 1
    inputs = torch.tensor([[BOS, *s] + [PAD] * (width - 1 - len(s)) for s in chosen])
    targets = torch.tensor([[*s, EOS] + [PAD] * (width - 1 - len(s)) for s in chosen])
    return TextBatch(inputs, targets, torch.tensor([len(s) + 1 for s in chosen]))


def pictures(rows: Sequence[int]) -> ImageBatch:
    pixels = torch.linspace(-1, 1, 8 * 3 * 64, dtype=torch.float64).sin().view(8, 3, 8, 8)
    return ImageBatch(pixels[list(rows)])


class Memory:
    """Persistent chains of all samples, which threads share."""

    def __init__(self, z: Tensor) -> None:
        self.z = z

    def of(self, rows: Sequence[int]) -> "Memory.Some":
        return Memory.Some(self, list(rows))

    class Some:
        def __init__(self, memory: "Memory", rows: list[int]) -> None:
            self.memory, self.rows = memory, rows

        def read(self) -> Tensor:
            return self.memory.z[self.rows]

        def write(self, z: Tensor) -> None:
            self.memory.z[self.rows] = z


MAKING = threading.Lock()
"""Initial weights come from torch's global generator, which threads share and processes do not."""


def settings(kind: str) -> Config:
    """A small model of each kind that a learning step treats in its own way."""
    of_images = kind == "images"
    base = load_config("demo", kind if kind in {"damc", "lebm-ratio", "fb-vae"} else None)
    latent = {"latent_dim": 2, "width": 5, "steps": 3, "step_size": 0.3}
    chain = {"steps": 2, "step_size": 0.3}
    changed: dict[str, Any] = {
        "prior": dataclasses.replace(base.prior, **latent),
        "generator": dataclasses.replace(
            base.generator,
            kind="convolutional" if of_images else "recurrent",
            embedding_dim=3,
            hidden_dim=4,
            dropout=0.3,
            init_range=0.6,
            convolution=ConvolutionConfig(width=2, start=4, multiples=(2,), loss="squared-error"),
        ),
        "inference": dataclasses.replace(base.inference, **chain),
        "optimiser": dataclasses.replace(base.optimiser, lr=0.02, energy_lr=0.02, clip=0.7, energy_clip=0.05),
        "sampler": dataclasses.replace(base.sampler, steps=3, width=6, depth=1, features=4, updates=2),
        "batch_size": 5,
    }
    if kind in ("amortised-langevin", "persistent"):
        changed["inference"] = InferenceConfig(kind, **chain)
    if kind == "plain":
        changed["prior"], changed["inference"] = PriorConfig("none"), InferenceConfig("none")
    if kind == "kept":
        changed["prior"] = dataclasses.replace(changed["prior"], persistent=7)
    if kind == "average":
        changed["optimiser"] = dataclasses.replace(changed["optimiser"], ema=0.8)
        changed["prior"] = dataclasses.replace(changed["prior"], spectral_norm=True)
    return dataclasses.replace(base, **changed)


def learned(config: Config, world: World, memory: Memory) -> tuple[dict[str, Tensor], list[StepReport], list[Tensor]]:
    """Weights, reports and losses of encoder updates after the steps of `BATCHES`, made by one of several processes."""
    of_images = config.generator.kind == "convolutional"
    sizes = (config.prior, config.generator, config.inference, config.encoder, config.sampler)
    described = ModelConfig(0 if of_images else 6, *sizes, image=ImageShape(3, 8, 8) if of_images else None)
    with MAKING:
        model = LatentModel(described, seed=5).double().train()
    learner = Learner(model, config, 4, world)
    reports, losses = [], []
    for number, batch in enumerate(BATCHES):
        own = batch[learner.cut(len(batch)).rows]
        x = (pictures if of_images else sentences)(own) if own else None
        if model.encoder is not None:
            losses.append(learner.encoder_step(x, number, 1, len(batch)))
        kept = memory.of(own) if model.method.is_persistent else None
        reports.append(learner.step(x, number, kept, samples=len(batch)))
    result = {**model.state_dict(), **{f"kept.{name}": tensor for name, tensor in learner.state().items()}}
    return result, reports, losses


KINDS = [
    "text",
    "fb-vae",
    "amortised-langevin",
    "damc",
    "lebm-ratio",
    "persistent",
    "kept",
    "average",
    "plain",
    "images",
]


@pytest.mark.parametrize(("count", "micro_batch"), [(2, 0), (4, 0), (2, 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_several_make_the_steps_of_one(kind, count, micro_batch):
    """N processes on batches of B make the steps of one with micro_batch = B / N, up to the order of summation."""
    config = dataclasses.replace(settings(kind), micro_batch=micro_batch)
    start = torch.linspace(-1, 1, 16, dtype=torch.float64).view(8, 2)
    shared, own = Memory(start.clone()), Memory(start.clone())
    several = together(count, lambda world: learned(config, world, shared))
    alone = dataclasses.replace(config, micro_batch=part_size(5, 5, micro_batch, count))
    weights, reports, losses = learned(alone, ALONE, own)
    for name, expected in weights.items():
        for of_one in several:
            assert torch.equal(of_one[0][name], several[0][0][name]), name
        torch.testing.assert_close(several[0][0][name], expected, rtol=1e-7, atol=1e-9, msg=name)
    torch.testing.assert_close(several[0][2], losses)
    torch.testing.assert_close(shared.z, own.z)
    for of_several, of_one in zip(several[-1][1], reports, strict=True):
        for name, expected in vars(of_one).items():
            found = getattr(of_several, name)
            torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9, msg=name)


class Unheard(World):
    """The first of two processes, the other of which says nothing."""

    count = 2


def test_a_share_matters():
    """The law would notice a process whose gradient is lost."""
    config = settings("text")
    memory = Memory(torch.zeros(8, 2))
    one = learned(dataclasses.replace(config, micro_batch=3), ALONE, memory)[0]
    lost = learned(config, Unheard(), memory)[0]
    assert any((lost[name] - one[name]).abs().max() > 1e-4 for name in one)


@pytest.mark.parametrize("count", [2, 3])
def test_validation_is_that_of_one_process_to_the_bit(saved_model, corpus_folder, count):
    model, tokenizer = generation.load(saved_model)
    lines = (corpus_folder / "valid.txt").read_text(encoding="utf-8").splitlines()
    text = encode(lines, tokenizer, max_length=None, overlong="cut")

    def measured(world: World) -> tuple[Any, Any]:
        figures = evaluation.validate(model, text, 3, 50, batch_size=16, world=world)
        return figures, evaluation.posterior_chains(model, text, 3, 12, 3, batch_size=8, world=world)

    expected = measured(ALONE)
    for figures, chains in together(count, measured):
        assert figures == expected[0]
        assert torch.equal(chains, expected[1])


def test_what_is_drawn_is_what_one_process_draws(saved_model, trained_image_run, monkeypatch):
    monkeypatch.setattr(generation, "WRITTEN_AT_ONCE", 7)
    monkeypatch.setattr(image_generation, "BATCH", 4)
    model, tokenizer = generation.load(saved_model)
    several = together(3, lambda world: list(generation.generate(model, tokenizer, 31, 5, world=world)))
    assert several == [list(generation.generate(model, tokenizer, 31, 5)), [], []]
    painter = image_generation.load(trained_image_run / "checkpoints" / "step-3")
    drawn = together(3, lambda world: list(image_generation.generate(painter, 18, 5, world=world)))
    assert drawn[1:] == [[], []]
    for mine, theirs in zip(drawn[0], image_generation.generate(painter, 18, 5), strict=True):
        assert torch.equal(mine.images, theirs.images)
        assert torch.equal(mine.energies, theirs.energies)


# ---- one process, and who is refused


def test_a_world_of_one_does_nothing():
    tensor = torch.ones(3)
    ALONE.sum([tensor])
    assert tensor.tolist() == [1, 1, 1]
    assert ALONE.told(lambda: 5) == ALONE.first_then_all(lambda: 5) == 5
    assert [ALONE.any(flag) for flag in (True, False)] == [True, False]
    assert ALONE.same([tensor])
    assert list(ALONE.in_turn(3, lambda number: number, lambda _: b"", lambda _: 0)) == [0, 1, 2]


def test_without_a_launcher_there_is_one_process(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with processes.joined() as world:
        assert world is ALONE is processes.world()


class Two(World):
    """Two processes on two machines."""

    count = 2


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"inference": InferenceConfig("persistent")}, "inference.kind"),
        (
            {
                "generator": dataclasses.replace(
                    settings("images").generator, convolution=ConvolutionConfig(normalisation="batch")
                )
            },
            "generator.convolution.normalisation",
        ),
    ],
)
def test_what_cannot_be_shared_is_refused_by_name(change, named):
    config = dataclasses.replace(Config(), **change)
    training.require_shareable(config, ALONE)
    with pytest.raises(ConfigError, match=named):
        training.require_shareable(config, Two())


def test_devices(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert processes.device_of("cuda:1", ALONE) == "cuda:1"
    assert [processes.device_of(name, Two()) for name in ("auto", "cuda", "cpu")] == ["cuda:0", "cuda:0", "cpu"]
    with pytest.raises(UsageError, match="one device"):
        processes.device_of("cuda:1", Two())
    crowded = Two()
    crowded.local_count = 2
    with pytest.raises(UsageError, match="1 CUDA devices"):
        processes.device_of("auto", crowded)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert processes.device_of("auto", crowded) == "cpu"


@pytest.mark.parametrize(
    ("environment", "missing", "said"),
    [({}, "accelerate", "textebm[processes]"), ({}, None, "RANK is not set")],
)
def test_a_job_that_cannot_begin_says_why(command, monkeypatch, environment, missing, said):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    if missing:
        monkeypatch.setitem(sys.modules, missing, None)
    done = command("train")
    assert done.code == 2
    assert said in done.err


# ---- real jobs

CPU_ONLY = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
QUIET = ("--evaluation.samples", 0, "--evaluation.active-unit-sentences", 0)


TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", 2)
ACCELERATE = ("accelerate.commands.launch", "--multi_gpu", "--num_processes", 2, "--main_process_port", 0)


def launch(launcher: Sequence[object], *words: object, cwd: Path) -> "subprocess.Popen[str]":
    """A job of two processes on this machine."""
    line = [sys.executable, "-m", *map(str, launcher), *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(line, cwd=cwd, env=CPU_ONLY, **pipes)


def torchrun(*words: object, cwd: Path) -> "subprocess.Popen[str]":
    """The same by torchrun."""
    return launch(TORCHRUN, *words, cwd=cwd)


JOB = '''
"""Commands by two processes, one after the other, and what is left in each process after them."""
import errno, hashlib, json, sys, time
from textebm import checkpoint, cli, processes, training
from textebm.processes import Group

learners, codes, facts = [], [], {}
Learner = training.Learner
training.Learner = lambda *given: learners.append(Learner(*given)) or learners[-1]
Group.leave = lambda self: None  # the next command is of the same job

def weights():
    hashed = hashlib.sha256()
    for parameter in learners[-1].model.parameters():
        hashed.update(parameter.detach().numpy().tobytes())
    return hashed.hexdigest()

def full(*given, **more):
    raise OSError(errno.ENOSPC, "No space left on device")

save = checkpoint.save
for words in json.loads(sys.argv[1]):
    checkpoint.save = full if "FULL" in words else save
    codes.append(cli.main([word for word in words if word != "FULL"]))
    facts[str(len(codes))] = weights() if learners else None

with processes.joined() as world:
    import torch
    counted = torch.tensor([world.rank + 1.0, 10.0])
    world.sum([counted[:1], counted[1:].view(1, 1)])
    facts["sum"] = counted.tolist()
    facts["any"] = [world.any(world.rank == 1), world.any(False)]
    facts["same"] = [world.same([torch.ones(3)]), world.same([torch.full((3,), float(world.rank))])]
    facts["told"] = world.told(lambda: {"rank": world.rank})
    facts["all"] = world.first_then_all(lambda: world.rank)
    turns = world.in_turn(5, lambda job: f"{job} by {world.rank}" * (job + 1), str.encode, bytes.decode)
    facts["turns"] = list(turns)
    begun = time.monotonic()
    if world.first:
        time.sleep(0.5)
    world.wait()
    facts["waited"] = time.monotonic() - begun
    facts["tells"] = [world.tells(ValueError("of all")), world.tells(ValueError(f"of {world.rank}"))]
    try:
        world.told(lambda: 1 / 0)
    except Exception as error:
        facts["error"] = [type(error).__name__, str(error)]
    with open(f"facts-{world.rank}.json", "w") as file:
        json.dump({"codes": codes, **facts}, file)
'''


@dataclasses.dataclass(frozen=True)
class Job:
    """What a job left behind."""

    folder: Path
    facts: list[dict[str, Any]]
    err: str


@pytest.fixture(scope="module")
def job(tiny_config, tiny_image_config, saved_model, corpus_folder, tmp_path_factory) -> Job:
    """A job that trains, stops, goes on, draws and fails in every way that it should."""
    folder = tmp_path_factory.mktemp("job")
    tiny, images = ["train", "--config", str(tiny_config)], ["train", "--config", str(tiny_image_config)]
    short = [str(word) for word in QUIET]
    lines = [
        [*tiny, "--run-dir", "whole", "--max-steps", "16"],
        [*tiny, "--run-dir", "parts", "--max-steps", "13"],
        ["train", "--resume", "parts", "--max-steps", "16"],
        [*tiny, "--run-dir", "chains", "--max-steps", "3", *short, "--inference.kind", "persistent"],
        [*images, "--run-dir", "images", *short],
        ["generate", "-n", "2100", "--model", str(saved_model), "--output", "drawn.txt"],
        ["evaluate", "-n", "40", "--model", "whole", "--lmplz", "built-in", "--output", "scores.json"],
        [*tiny, "--run-dir", "full", "--max-steps", "2", "FULL"],
        [*tiny, "--run-dir", "wild", "--max-steps", "20", *short, "--inference.step-size", "1e6"],
        [*tiny, "--run-dir", "whole"],
        ["train", "--data", "no-such-file"],
        ["train", "--no-such-option", "1"],
        ["score", "text.txt"],
    ]
    (folder / "job.py").write_text(JOB, encoding="utf-8")
    lines[-2:-1] = []  # a wrong option ends the program: tried on its own below
    process = torchrun("job.py", json.dumps(lines), cwd=folder)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    facts = [json.loads((folder / f"facts-{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]
    return Job(folder, facts, err)


def log_of(run: Path, *kinds: str) -> list[dict[str, Any]]:
    """The lines of a log, without times."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines if line["kind"] in kinds]


def saved(run: Path, name: str, step: int = 16) -> bytes:
    return (run / "checkpoints" / f"step-{step}" / name).read_bytes()


@pytest.mark.slow
class TestJob:
    def test_the_world_is_what_it_says(self, job):
        for rank, facts in enumerate(job.facts):
            assert facts["sum"] == [3, 20]
            assert facts["any"] == [True, False]
            assert facts["same"] == [True, False]
            assert facts["told"] == {"rank": 0}
            assert facts["all"] == rank
            assert facts["waited"] > 0.4
        assert job.facts[0]["turns"] == [f"{number} by {number % 2}" * (number + 1) for number in range(5)]
        assert job.facts[1]["turns"] == []
        assert job.facts[0]["tells"] == [True, True]
        assert job.facts[1]["tells"] == [False, True]
        assert job.facts[0]["error"] == ["ZeroDivisionError", "division by zero"]
        assert job.facts[1]["error"] == ["ProcessError", "division by zero"]

    def test_all_processes_end_alike(self, job):
        assert job.facts[0]["codes"] == job.facts[1]["codes"] == [0, 0, 0, 0, 0, 0, 0, 1, 3, 1, 2, 2]

    def test_all_processes_hold_the_same_weights(self, job):
        for run in ("1", "2", "3", "4", "5"):
            assert job.facts[0][run] == job.facts[1][run], run

    def test_a_stopped_job_ends_with_the_same_bits(self, job):
        for name in ("model.safetensors", "optimiser.safetensors"):
            assert saved(job.folder / "parts", name) == saved(job.folder / "whole", name)
        valid = [log_of(job.folder / run, "valid")[-1] for run in ("parts", "whole")]
        assert valid[0] == valid[1]

    def test_accelerate_launches_the_same(self, job, tiny_config, tmp_path):
        words = ("-m", "textebm", "train", "--config", tiny_config, "--run-dir", "run", "--max-steps", 16)
        process = launch(ACCELERATE, *words, cwd=tmp_path)
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        assert [line["processes"] for line in log_of(tmp_path / "run", "start")] == [2]
        for name in ("model.safetensors", "optimiser.safetensors"):
            assert saved(tmp_path / "run", name) == saved(job.folder / "whole", name)

    def test_the_log_counts_processes(self, job, command, tiny_config):
        assert [line["processes"] for line in log_of(job.folder / "parts", "start", "resume")] == [2, 2]
        run = job.folder / "alone"
        done = command("train", "--config", tiny_config, "--run-dir", run, "--max-steps", 1, *QUIET)
        assert done.code == 0, done.err
        assert log_of(run, "start")[0]["processes"] == 1

    def test_it_is_the_run_of_one_process(self, job, command, tiny_config, tmp_path):
        """Same data, same random streams; the weights differ by the order of sums alone."""
        from safetensors.torch import load

        words = ("train", "--config", tiny_config, "--run-dir", tmp_path / "one", "--max-steps", 16)
        done = command(*words, "--micro-batch", 15)
        assert done.code == 0, done.err
        one, two = (load(saved(run, "model.safetensors")) for run in (tmp_path / "one", job.folder / "whole"))
        for name, expected in one.items():
            torch.testing.assert_close(two[name], expected, rtol=2e-3, atol=2e-4, msg=name)
        for mine, theirs in zip(
            *(log_of(run, "train", "valid") for run in (tmp_path / "one", job.folder / "whole")), strict=True
        ):
            assert mine.keys() == theirs.keys()
            assert mine["step"] == theirs["step"]
            for name in set(mine) & {"tokens", "sentences", "words"}:
                assert mine[name] == theirs[name]
            for name in set(mine) & {"log_prob", "posterior_energy", "gradient_norm", "reconstruction_nll"}:
                assert theirs[name] == pytest.approx(mine[name], rel=1e-3, abs=1e-3)

    def test_one_process_goes_on_with_what_two_began(self, job, command, tmp_path):
        shutil.copytree(job.folder / "parts", tmp_path / "run")
        done = command("train", "--resume", tmp_path / "run", "--max-steps", 20)
        assert done.code == 0, done.err
        assert [line["processes"] for line in log_of(tmp_path / "run", "start", "resume")] == [2, 2, 1]

    def test_persistent_chains_of_all_processes_are_saved(self, job, corpus_folder):
        import numpy as np

        from textebm.chains import ChainMemory
        from textebm.model.energy import GaussianPrior

        prior = GaussianPrior(PriorConfig(latent_dim=4))
        begun = ChainMemory.begin(job.folder, 300, prior, 0)
        moved = np.load(job.folder / "chains" / "checkpoints" / "step-3" / "chains.npy") != begun.positions
        assert moved.any(1).sum() == 90  # three batches of 30, every sentence of them once

    def test_sentences_are_those_of_one_process(self, job, command, saved_model):
        done = command("generate", "-n", 2100, "--model", saved_model, "--output", job.folder / "one.txt")
        assert done.code == 0, done.err
        assert (job.folder / "drawn.txt").read_text() == (job.folder / "one.txt").read_text()

    def test_scores_are_those_of_one_process(self, job, command):
        shutil.rmtree(job.folder / "whole" / "samples")
        words = ("evaluate", "-n", 40, "--model", "whole", "--lmplz", "built-in", "--output", "one.json")
        done = command(*words, cwd=job.folder)
        assert done.code == 0, done.err
        assert (job.folder / "scores.json").read_text() == (job.folder / "one.json").read_text()

    @pytest.mark.parametrize(
        "said",
        [
            "cannot be written at step 2: No space left on device",
            "training diverged before step",
            "whole holds a run already",
            "no-such-file",
            "textebm score works in one process",
        ],
    )
    def test_an_error_of_all_is_told_once(self, job, said):
        assert job.err.count(said) == 1, job.err
        assert "process 1:" not in job.err
        assert "has ended" not in job.err

    def test_only_the_first_process_talks(self, job):
        assert job.err.count("run folder: whole") == 2  # as one process would say it
        assert job.err.count("done: whole") == 1


def processes_of(job: "subprocess.Popen[str]") -> dict[int, int]:
    """Rank -> id of the processes that a launcher has started."""
    found = {}
    for child in Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split():
        with contextlib.suppress(OSError):
            environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            ranks = [int(entry[5:]) for entry in environment if entry.startswith(b"RANK=")]
            found |= dict.fromkeys(ranks, int(child))
    return found


def wait_for_step(job: "subprocess.Popen[str]", log: Path) -> None:
    """Until a job has made steps."""
    deadline = time.monotonic() + 300
    while not (log.exists() and '"kind": "train"' in log.read_text(encoding="utf-8")):
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the processes of a job as Linux tells of them")
def test_a_job_that_is_interrupted_saves_and_one_that_loses_a_process_ends(tiny_config, tmp_path):
    """SIGTERM to the launcher, as a cluster sends it; then, in the same run, SIGKILL to one process."""
    words = ("-m", "textebm", "train", "--config", tiny_config, "--run-dir", "run", "--epochs", 100_000, *QUIET)
    job = torchrun(*words, cwd=tmp_path)
    wait_for_step(job, tmp_path / "run" / "log.jsonl")
    job.send_signal(signal.SIGTERM)
    _, err = job.communicate(timeout=120)
    assert job.returncode != 0
    assert err.count("interrupted; everything is saved") == 1, err
    last = json.loads((tmp_path / "run" / "checkpoints" / "last.json").read_text())["folder"]
    logged = log_of(tmp_path / "run", "train")[-1]["step"]
    assert int(last.removeprefix("step-")) == logged  # it saved where it stopped, and not at the end of an epoch

    before = (tmp_path / "run" / "log.jsonl").stat().st_size
    again = torchrun("-m", "textebm", "train", "--resume", "run", cwd=tmp_path)
    deadline = time.monotonic() + 300
    while (tmp_path / "run" / "log.jsonl").stat().st_size <= before + 2000:
        assert again.poll() is None, again.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(processes_of(again)[1], signal.SIGKILL)
    began = time.monotonic()
    _, err = again.communicate(timeout=120)
    assert again.returncode != 0
    assert time.monotonic() - began < 60
    assert err.count("textebm: another process of this job has ended") == 1, err


def test_a_process_that_is_alone_in_an_error_says_who_it_is(monkeypatch, capsys):
    from textebm.commands.terminal import complain

    class Second(World):
        rank, count = 1, 2

    monkeypatch.setattr(processes, "_current", Second())
    complain(ProcessError("broken"), "textebm: broken")
    assert capsys.readouterr().err == "process 1: textebm: broken\n"
