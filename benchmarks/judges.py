"""How fast judges are trained and how fast they score, against what people write and against KenLM's own programs.

    python benchmarks/judges.py                 all of it, into results/bench-judges-HARDWARE.json; some minutes
    python benchmarks/judges.py --quick         small sizes, one pair each: does it run
    python benchmarks/judges.py --only kenlm    rows whose name contains a word

The text is Penn Treebank where there is a copy (TEXTEBM_DATA), else random words of Zipf's law in sentences of PTB's
lengths. Generated text is imitated by walks over it: follow a sentence, and jump at times to another place of the same
word.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

# Threads that spin while they wait take the cores from the threads that work. Read once, when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # large tensors on large pages, as the command line sets it

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
import harness
from harness import Bench

from textebm import hardware
from textebm.data.registry import resolve
from textebm.errors import DataError
from textebm.hardware import native_precision
from textebm.lm_eval.corpus import Vocabulary
from textebm.lm_eval.neural import Encoder, padded
from textebm.lm_eval.neural_training import Task, _Batch, _Trainer
from textebm.lm_eval.ngram import NgramJudge, _spell, _Spelling, find_lmplz
from textebm.lm_eval.recipes import Recipe, get_recipe


class Text:
    """Real text, or text of its shape."""

    def __init__(self, quick: bool) -> None:
        try:
            self.sentences, self.name = list(resolve("ptb").sentences("train")), "ptb"
        except DataError:
            self.sentences, self.name = list(zipf_sentences(42_068)), "zipf"
        if quick:
            self.sentences = self.sentences[:2000]
        self.vocabulary = Vocabulary.from_sentences(self.sentences)

    def walks(self, n: int) -> Iterator[str]:
        """Sentences that are new and look like the text: a step in five jumps to another place of the same word."""
        split = [sentence.split() for sentence in self.sentences]
        places: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for number, words in enumerate(split):
            for at, word in enumerate(words):
                places[word].append((number, at))
        source = random.Random(0)
        for _ in range(n):
            words, at, written = source.choice(split), 0, list[str]()
            while at < len(words) and len(written) < 80:
                written.append(words[at])
                if source.random() < 0.2:
                    number, at = source.choice(places[words[at]])
                    words = split[number]
                at += 1
            yield " ".join(written)


def zipf_sentences(n: int, types: int = 9_999) -> Iterator[str]:
    """Random words, and lengths spread as PTB's are (mean 21, a tail to 82)."""
    source = np.random.default_rng(0)
    for length in np.clip(source.gamma(3.7, 21.1 / 3.7, n), 1, 82).astype(int):
        yield " ".join(f"w{rank}" for rank in (types ** source.random(length)).astype(int))


class PlainModel(nn.Module):
    """The language model that people write."""

    def __init__(self, recipe: Recipe, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, recipe.embedding)
        self.lstm = nn.LSTM(recipe.embedding, recipe.hidden, batch_first=True)
        self.output = nn.Linear(recipe.hidden, classes, bias=recipe.output_bias)
        self.dropout = nn.Dropout(recipe.dropout_in)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden, _ = self.lstm(self.dropout(self.embedding(inputs)))
        logits: torch.Tensor = self.output(self.dropout(hidden))
        return logits


class LstmCase:
    """Both ways of training a judge, on the same text."""

    def __init__(self, text: Text, recipe: Recipe, device: torch.device, steps: int) -> None:
        self.recipe, self.device, self.steps = recipe, device, steps
        self.encoded = Encoder(text.vocabulary).text(text.sentences)
        self.end = len(text.vocabulary)
        self.text = text
        self.shapes = {
            "text": text.name,
            "sentences": len(text.sentences),
            "classes": self.end + 1,
            "embedding": recipe.embedding,
            "hidden": recipe.hidden,
            "batch": recipe.batch,
            "steps": steps,
            "recipe": recipe.name,
        }

    def ours(self, precision: str) -> Iterator[tuple[float, int]]:
        """Seconds and tokens of so many steps at a time, over the batches in their random order."""
        task = Task(self.encoded, self.encoded, self.text.vocabulary, self.recipe, 0, precision)  # type: ignore[arg-type]
        trainer = _Trainer(task, self.encoded, self.encoded, self.device, lambda event: None)
        dropout = torch.Generator(self.device).manual_seed(0)
        while True:
            trainer.progress.epoch += 1
            batches = trainer._batches()
            while chosen := list(islice(batches, self.steps)):
                yield harness.seconds(lambda c=chosen: self._steps(trainer, c, dropout), self.device), _tokens(chosen)

    @staticmethod
    def _steps(trainer: _Trainer, batches: Sequence[_Batch], dropout: torch.Generator) -> None:
        for batch in batches:
            trainer._step(batch, trainer.network.start(batch.inputs.shape[1]), dropout)

    def plain(self) -> Iterator[tuple[float, int]]:
        """The same of the loop that people write: random sentences, padded to the longest."""
        model = PlainModel(self.recipe, self.end + 1).to(self.device).train()
        optimiser = torch.optim.SGD(model.parameters(), lr=self.recipe.lr)
        source = np.random.default_rng(0)
        while True:
            order = source.permutation(len(self.encoded))
            groups = [order[i : i + self.recipe.batch] for i in range(0, len(order), self.recipe.batch)]
            for begin in range(0, len(groups), self.steps):
                chosen = groups[begin : begin + self.steps]
                tokens = int(sum(self.encoded.lengths[group].sum() for group in chosen))
                yield harness.seconds(lambda c=chosen: self._plain_steps(model, optimiser, c), self.device), tokens

    def _plain_steps(
        self, model: PlainModel, optimiser: torch.optim.Optimizer, groups: Sequence[np.ndarray[Any, Any]]
    ) -> None:
        for group in groups:
            inputs, targets = (torch.from_numpy(part.T.copy()) for part in padded(self.encoded, group, self.end))
            real = torch.from_numpy(np.arange(inputs.shape[1]) < self.encoded.lengths[group][:, None])
            optimiser.zero_grad()
            logits = model(inputs.to(self.device))
            wanted = targets.where(real, -100).to(self.device)
            loss = nn.functional.cross_entropy(
                logits.flatten(0, 1), wanted.flatten(), ignore_index=-100, reduction="sum"
            )
            (loss / len(group)).backward()
            nn.utils.clip_grad_norm_(model.parameters(), self.recipe.clip)
            optimiser.step()


def _tokens(batches: Sequence[_Batch]) -> int:
    return sum(batch.tokens for batch in batches)


def lstm_rows(bench: Bench, text: Text, recipe: Recipe, steps: int, wanted: str) -> None:
    """Training: ours in each precision against the plain loop, in seconds for 1,000 real tokens."""
    case = LstmCase(text, recipe, bench.device, steps)
    precisions = ["fp32"] + (["bf16"] if native_precision(bench.device) == "bf16" else [])
    for precision in precisions:
        name = f"lstm-train-{precision}"
        if wanted not in f"judges/{name}":
            continue
        ours, plain = case.ours(precision), case.plain()
        for _ in range(2):  # the first steps of each shape make oneDNN's kernels
            next(ours), next(plain)
        pairs = []
        for number in range(bench.repeats):
            order = (ours, plain) if number % 2 == 0 else (plain, ours)
            found = {id(way): next(way) for way in order}
            pairs.append(tuple(1e3 * found[id(way)][0] / found[id(way)][1] for way in (ours, plain)))
        ratios = [theirs / mine for mine, theirs in pairs]
        mine = statistics.median(pair[0] for pair in pairs)
        bench.add(
            name,
            precision,
            {**case.shapes, "unit": "1,000 real tokens"},
            ours_s=mine,
            reference_s=statistics.median(pair[1] for pair in pairs),
            ratio=statistics.median(ratios),
            min=min(ratios),
            max=max(ratios),
            repeats=len(pairs),
            against="nn.LSTM, cross-entropy, random padded batches, fp32",
            tokens_per_second=1e3 / mine,
        )


def kenlm_score_row(bench: Bench, text: Text, copies: int) -> None:
    """Scoring: our path over Python strings against KenLM's query, which reads a file and a model of its own format."""
    lmplz = find_lmplz()
    query, build = ((lmplz.parent / name) if lmplz else Path() for name in ("query", "build_binary"))
    if not (query.is_file() and build.is_file()):
        return bench.skip("kenlm-score", "no query program beside lmplz: bash scripts/build_lmplz.sh makes it")
    sentences = text.sentences * copies
    judge = NgramJudge.train(text.sentences, text.vocabulary, 5, lmplz, "kenlm")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        spelling = _Spelling(text.vocabulary)
        spelt = folder / "text.txt"
        spelt.write_text("".join(" ".join(_spell(s, spelling)) + "\n" for s in sentences), encoding="utf-8")
        once = folder / "once.txt"
        once.write_text("".join(" ".join(_spell(s, spelling)) + "\n" for s in text.sentences), encoding="utf-8")
        pad = str(len(text.vocabulary) + 1)
        options = ["-o", "5", "-S", "512M", "--vocab_pad", pad, "--discount_fallback", "-T", f"{folder}/"]
        run([str(lmplz), *options, "--text", once, "--arpa", folder / "model.arpa"])
        run([build, folder / "model.arpa", folder / "model.bin"])
        bench.compare(
            "kenlm-score",
            lambda: judge.score(sentences),
            lambda: run([query, "-v", "sentence", folder / "model.bin"], spelt),
            "fp32",
            {"text": text.name, "sentences": len(sentences), "order": 5},
            against="KenLM's query on a binary model, the time to load it (milliseconds) included",
        )
    return None


def run(command: Sequence[object], text: Path | None = None) -> None:
    """Run a program, its output thrown away."""
    with (text or Path(os.devnull)).open("rb") as source:
        subprocess.run([str(part) for part in command], stdin=source, capture_output=True, check=True)


# A process inherits the figure that getrusage gives of itself from the one that started it; VmHWM is its own.
PEAK = """
import json, re, resource, sys
from pathlib import Path
from textebm.lm_eval.corpus import Corpus, Vocabulary
from textebm.lm_eval.ngram import NgramJudge, find_lmplz
train, scored = Corpus(Path(sys.argv[1]), keep_blank=True), Corpus(Path(sys.argv[2]), keep_blank=True)
judge = NgramJudge.train(train, Vocabulary.from_sentences(Corpus(Path(sys.argv[3]))), 5, find_lmplz())
tokens = judge.score(scored).total_tokens
print(json.dumps({"self": int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]),
                  "lmplz": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, "tokens": tokens}))
"""


def peak_memory(train: Path, scored: Path, real: Path) -> dict[str, float]:
    """MiB that training on one file and scoring another take at most; each in a process of its own."""
    command = [sys.executable, "-c", PEAK, str(train), str(scored), str(real)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    return {key: value if key == "tokens" else round(value / 1024, 1) for key, value in found.items()}


def kenlm_file_rows(bench: Bench, text: Text, quick: bool, wanted: str) -> None:
    """Memory of scoring and training as files grow, and the whole of `textebm rppl` on 100,000 sentences."""
    sizes = [100, 1000] if quick else [10_000, 100_000, 1_000_000]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        real, walks = folder / "real.txt", folder / "walks.txt"
        real.write_text("".join(f"{s}\n" for s in text.sentences), encoding="utf-8")
        with walks.open("w", encoding="utf-8") as file:
            file.writelines(f"{s}\n" for s in text.walks(sizes[-1]))
        files = {}
        for size in sizes:
            files[size] = folder / f"{size}.txt"
            with walks.open("rb") as source, files[size].open("wb") as file:
                file.writelines(islice(source, size))
        if wanted in "judges/kenlm-rppl":
            rppl_row(bench, text, files[sizes[-2]], sizes[-2], folder)
        if wanted in "judges/kenlm-memory":
            scoring = {str(size): peak_memory(real, files[size], real) for size in sizes}
            bench.add(
                "kenlm-memory-score",
                "fp32",
                {"text": text.name, "sentences": sizes},
                peak_mib={size: found["self"] for size, found in scoring.items()},
                remark=", ".join(f"{int(size):,}: {found['self']} MiB" for size, found in scoring.items()),
            )
            largest = peak_memory(files[sizes[-1]], files[sizes[0]], real)
            bench.add(
                "kenlm-memory-train",
                "fp32",
                {"text": text.name, "sentences": sizes[-1]},
                peak_mib={"process": largest["self"], "lmplz": largest["lmplz"]},
                remark=f"{sizes[-1]:,} sentences: process {largest['self']} MiB, lmplz {largest['lmplz']} MiB",
            )


def rppl_row(bench: Bench, text: Text, samples: Path, size: int, folder: Path) -> None:
    """`textebm rppl` as a user runs it, everything included."""
    corpus = folder / "corpus"
    corpus.mkdir()
    held_out = len(text.sentences) // 12
    parts = {"test": text.sentences[:held_out], "valid": text.sentences[:held_out], "train": text.sentences}
    for split, sentences in parts.items():
        (corpus / f"{split}.txt").write_text("".join(f"{s}\n" for s in sentences), encoding="utf-8")
    command = [sys.executable, "-m", "textebm", "rppl", "--samples", samples, "--data", corpus]
    times = [harness.seconds(lambda: run(command), bench.device) for _ in range(max(1, bench.repeats // 2))]
    bench.add(
        "kenlm-rppl",
        "fp32",
        {"text": text.name, "samples": size},
        ours_s=statistics.median(times),
        repeats=len(times),
        remark=f"{min(times):.1f} to {max(times):.1f} s: the whole command, both judges, intervals, side figures",
    )


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--device", default="cpu", help="cpu, cuda, or all: both, where there is a GPU; KenLM is on the CPU"
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--quick", action="store_true", help="small sizes, one pair")
    parser.add_argument("--output", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    for device in harness.devices(chosen.device):
        measure(chosen, device)


def measure(chosen: argparse.Namespace, device: torch.device) -> None:
    """All rows that are asked for, on a device; those of KenLM on the CPU."""
    bench = Bench("judges", device, 1 if chosen.quick else chosen.repeats)
    text = Text(chosen.quick)
    recipe = get_recipe("tiny" if chosen.quick else "lstm-sentence-ptb")
    path = chosen.output or harness.RESULTS / f"bench-judges-{hardware.hardware_class(device)}.json"
    print(harness.HEADER)
    lstm_rows(bench, text, recipe, 5 if chosen.quick else 10, chosen.only)
    bench.write(path, chosen.only)  # at once: what comes next takes minutes
    print(path)
    if device.type == "cuda":
        return
    if chosen.only in "judges/kenlm-score":
        kenlm_score_row(bench, text, 1 if chosen.quick else 3)
        bench.write(path, chosen.only)
    if any(chosen.only in f"judges/kenlm-{name}" for name in ("memory", "rppl")):
        kenlm_file_rows(bench, text, chosen.quick, chosen.only)
        bench.write(path, chosen.only)


if __name__ == "__main__":
    main()
