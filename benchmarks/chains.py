"""How fast chains, learning steps and generation are, against the straightforward loop and against peers.

    python benchmarks/chains.py                 all of it, into results/bench-HARDWARE.json; some minutes
    python benchmarks/chains.py --quick         small sizes, one pair each: does it run
    python benchmarks/chains.py --only chain    rows whose name contains a word

The sizes are those of Penn Treebank: 64 sentences of 24 words, all real (no advantage from padding), 10,000 classes,
embedding and hidden state 256, z of 32 dimensions, 20 posterior and 60 prior steps.
"""

import argparse
import dataclasses
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# Threads that spin while they wait take the cores from the threads that work. Read once, when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # large tensors on large pages, as the command line sets it
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
import harness
from harness import Bench
from straightforward import Shape, Straightforward

from textebm.config import Config, GeneratorConfig, InferenceConfig, OptimiserConfig, PriorConfig
from textebm.hardware import native_precision
from textebm.model import inference
from textebm.model.candidates import Candidates
from textebm.model.decoding import Decoding, decode
from textebm.model.energy import EBMPrior
from textebm.model.latent_model import LatentModel, ModelConfig
from textebm.model.learner import Learner
from textebm.model.recurrent import TextBatch

SAMPLED_WORDS = 512
TABLE_MS = {1: (305.0, 305.0), 2: (199.0, 144.0)}
"""Published with the benchmark's design, by threads: softmax and its gradient by autograd; its two products alone."""

Curve = dict[str, list[float]]


class Case:
    """One shape: both models with the same weights, and one batch, in the form of each."""

    def __init__(self, shape: Shape, device: torch.device, cell: str = "lstm") -> None:
        self.shape, self.device = shape, device
        self.config = ModelConfig(
            shape.vocabulary,
            PriorConfig(latent_dim=shape.latent, width=shape.width, steps=shape.prior_steps),
            GeneratorConfig(cell=cell, embedding_dim=shape.embedding, hidden_dim=shape.hidden),  # type: ignore[arg-type]
            InferenceConfig(steps=shape.posterior_steps, step_size=0.3),
        )
        self.model = LatentModel(self.config, seed=0).to(device)
        self.plain = Straightforward(shape).to(device)
        if cell == "lstm":
            self.plain.load_state_dict(
                {
                    name.removeprefix("generator.").replace("prior.mlp", "energy"): value
                    for name, value in self.model.state_dict().items()
                }
            )
        self.inputs, self.targets = self._words().to(device), self._words().to(device)
        self.lengths = torch.full((shape.batch,), shape.time)
        self.real = torch.ones(shape.batch, shape.time, device=device)

    def _words(self) -> Tensor:
        """Words of Zipf's law: ranks whose logarithms are uniform, as in natural text."""
        source = torch.Generator().manual_seed(1)
        size = (self.shape.batch, self.shape.time)
        ranks = ((self.shape.vocabulary - 4) ** torch.rand(size, generator=source)).long()
        return (ranks + 3).clamp_(max=self.shape.vocabulary - 1)

    def source(self) -> torch.Generator:
        return torch.Generator(device=self.device).manual_seed(2)

    def batch(self) -> TextBatch:
        return TextBatch(self.inputs, self.targets, self.lengths)

    def padded(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.inputs, self.targets - 2, self.real

    def posterior_chain(self, precision: str, sampled: int = 0) -> Tensor:
        """Our chain, with all that is made once for it."""
        candidates = Candidates(sampled, self.source()) if sampled else None
        text = self.model.condition(self.batch(), None, precision, "fast", candidates)  # type: ignore[arg-type]
        settings, n = self.config.inference, self.shape.batch
        return inference.short_run_posterior(self.model.prior, text, n, settings, self.source())[0]

    def plain_chain(self) -> Tensor:
        return self.plain.posterior_chain(*self.padded(), self.shape.posterior_steps, 0.3, self.source())

    def learner(self, precision: str, sampled: int = 0, **optimiser: Any) -> Callable[[], object]:  # noqa: ANN401
        """One learning step of ours, on a model of its own."""
        model = LatentModel(self.config, seed=0).to(self.device)
        config = Config(
            prior=self.config.prior,
            generator=self.config.generator,
            inference=dataclasses.replace(self.config.inference, sampled_softmax=sampled),
            optimiser=OptimiserConfig(**optimiser),
            precision=precision,  # type: ignore[arg-type]
        )
        learner = Learner(model, config, steps_per_epoch=100)
        return lambda: learner.step(self.batch(), 0)

    def plain_learner(self) -> Callable[[], object]:
        model = Straightforward(self.shape).to(self.device)
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
        return lambda: model.learning_step(optimiser, self.padded(), self.shape, self.source())


def shapes(shape: Shape, **more: Any) -> dict[str, Any]:  # noqa: ANN401
    return {**dataclasses.asdict(shape), **more}


def products(bench: Bench, case: Case) -> None:
    """What the reference must reproduce: softmax by autograd against its two products alone, as in the table."""
    shape = case.shape
    hidden = torch.randn(shape.batch * shape.time, shape.hidden, device=case.device) * 0.3
    weight, bias = case.plain.output.weight.detach(), case.plain.output.bias.detach()
    targets = case.targets.flatten() - 2
    probabilities = (hidden @ weight.T).softmax(1)

    def limit() -> None:
        hidden @ weight.T
        probabilities @ weight

    def autograd() -> None:
        point = hidden.detach().requires_grad_()
        loss = nn.functional.cross_entropy(nn.functional.linear(point, weight, bias), targets, reduction="sum")
        torch.autograd.grad(loss, point)

    name, pairs = "reference/softmax-by-autograd-over-its-products", 2 * bench.repeats
    row = bench.compare(name, limit, autograd, "fp32", shapes(shape), pairs)
    if torch.get_num_threads() in TABLE_MS and case.device.type == "cpu":
        beside_the_table(row, *TABLE_MS[torch.get_num_threads()])


def beside_the_table(row: harness.Row, autograd_ms: float, limit_ms: float) -> None:
    """Add to the row what the table has, by two readings, and print both.

    All of it scaled by the rate of products: right where the processor is as much faster in its passes over the matrix
    of logits as in its products. Only the products scaled, the passes as they were: right where memory bounds them.
    """
    row["table_ratio"] = autograd_ms / limit_ms
    passes_ms = 1000 * (row["reference_s"] - row["ours_s"])
    expected_ms = 1000 * row["ours_s"] + autograd_ms - limit_ms
    row["passes_ms"], row["table_passes_ms"] = passes_ms, autograd_ms - limit_ms
    row["over_scaled_table"] = row["ratio"] / row["table_ratio"]
    row["over_table_with_its_passes"] = 1000 * row["reference_s"] / expected_ms
    print(
        f"{'':44s}table: {row['table_ratio']:.2f}, here over there {row['over_scaled_table']:.2f}; passes beside the "
        f"products {passes_ms:.0f} ms, in the table {row['table_passes_ms']:.0f}; here over there with those "
        f"{row['over_table_with_its_passes']:.2f}"
    )


def kinds_of(bench: Bench, part: str) -> list[tuple[str, int]]:
    """Precision of the products, and sampled words, of the rows of a part; bf16 where the device multiplies in it."""
    if native_precision(bench.device) == "bf16":
        return [("fp32", 0), ("bf16", 0), ("fp32", SAMPLED_WORDS), ("bf16", SAMPLED_WORDS)]
    bench.skip(f"{part}/bf16", "this device has no bf16 products of its own: they would be slower than fp32")
    return [("fp32", 0), ("fp32", SAMPLED_WORDS)]


def posterior(bench: Bench, case: Case) -> None:
    """Whole posterior chains, preparation included."""
    kinds = kinds_of(bench, "posterior-chain")
    variants = [
        (
            f"posterior-chain/{name_of(precision, sampled)}",
            lambda precision=precision, sampled=sampled: case.posterior_chain(precision, sampled),
            precision,
            shapes(case.shape, sampled=sampled),
        )
        for precision, sampled in kinds
    ]
    bench.compare_all(case.plain_chain, variants)


def name_of(precision: str, sampled: int) -> str:
    return f"sampled-{sampled}-{precision}" if sampled else precision


def learning(bench: Bench, case: Case) -> None:
    """Whole learning steps: both chains, both gradients, both optimisers."""
    kinds = kinds_of(bench, "learning-step")
    variants = [
        (
            f"learning-step/{name_of(precision, sampled)}",
            case.learner(precision, sampled),
            precision,
            shapes(case.shape, sampled=sampled),
        )
        for precision, sampled in kinds
    ]
    bench.compare_all(case.plain_learner(), variants)
    if ("bf16", 0) not in kinds:
        return
    ours, reference = (
        next(row for row in bench.rows if row["name"].endswith(f"learning-step/{precision}"))
        for precision in ("bf16", "fp32")
    )
    bench.add(
        "precision/learning-step-bf16-over-fp32",
        "bf16",
        shapes(case.shape),
        ours_s=ours["ours_s"],
        reference_s=reference["ours_s"],
        ratio=reference["ours_s"] / ours["ours_s"],
        repeats=ours["repeats"],
    )


def optimisers(bench: Bench, case: Case) -> None:
    """The optimisers alone, on the model's own parameters."""
    from textebm.model.optimisers import adam

    def made(kind: str) -> Callable[[], object]:
        parameters = [nn.Parameter(p.detach().clone()) for p in case.model.parameters()]
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        optimiser = adam(kind, parameters, 1e-3, (0.9, 0.999))
        return optimiser.step

    bench.compare("optimiser/fused-over-plain", made("fused"), made("plain"), "fp32", shapes(case.shape))
    if find_spec("apex") is None:
        bench.skip("optimiser/apex-over-plain", "NVIDIA Apex is not installed")
    else:
        bench.compare("optimiser/apex-over-plain", made("apex"), made("plain"), "fp32", shapes(case.shape))


def prior(bench: Bench, case: Case) -> None:
    """The prior chain at batch 100, z of 100 dimensions, width 200, 60 steps, on one thread."""
    device, size, n = case.device, 0.4, 100
    ours = EBMPrior(PriorConfig(latent_dim=100, width=200, steps=60, step_size=size)).to(device)
    plain = Straightforward(Shape(latent=100, vocabulary=10, embedding=2, hidden=2)).to(device)
    plain.energy.load_state_dict(ours.mlp.state_dict())
    source = case.source()
    what = {"batch": n, "latent": 100, "width": 200, "prior_steps": 60}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def chain() -> Tensor:
        return ours.sample(n, source)

    bench.compare("prior-chain/plain-loop", chain, lambda: plain.prior_chain(n, 60, size, source), "fp32", what, 9)
    if find_spec("jax") is None:
        bench.skip("prior-chain/jax-scan", "jax is not installed (pip install 'textebm[bench]')")
    elif device.type == "cuda":
        bench.skip("prior-chain/jax-scan", "measured on the CPU")
    else:
        scan = jax_chain(ours, n, 60, size)
        bench.compare("prior-chain/jax-scan", chain, scan, "fp32", what, 9, remark="both free to use any core")
        if hasattr(os, "sched_setaffinity"):
            pinned(bench, what)
    if find_spec("torchebm") is None:
        bench.skip("prior-chain/torchebm", "torchebm is not installed (pip install 'textebm[bench]')")
    else:
        bench.compare("prior-chain/torchebm", chain, torchebm_chain(ours, n, 60, size), "fp32", what, 9)
    torch.set_num_threads(threads)


def pinned(bench: Bench, what: dict[str, Any]) -> None:
    """Ours against JAX with the whole process on one core: JAX heeds no other limit. In a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--pinned-prior"], capture_output=True, text=True, check=True, env=os.environ
    )
    bench.add("prior-chain/jax-scan-on-one-core", "fp32", what, **json.loads(done.stdout.splitlines()[-1]))


def measure_pinned() -> None:
    """What `pinned` runs: print the row's figures as JSON."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    ours = EBMPrior(PriorConfig(latent_dim=100, width=200, steps=60, step_size=0.4))
    source = torch.Generator().manual_seed(2)
    works = [lambda: ours.sample(100, source), jax_chain(ours, 100, 60, 0.4)]
    pairs = [(mine, theirs) for mine, theirs in harness.rounds(works, 9, torch.device("cpu"))]
    print(json.dumps({**harness.figures(pairs), "threads": 1}))


def jax_chain(prior_: EBMPrior, n: int, steps: int, size: float) -> Callable[[], object]:
    """The same chain as a compiled `jax.lax.scan`."""
    import jax
    import jax.numpy as jnp

    layers = [
        (jnp.array(m.weight.detach().cpu().numpy().T), jnp.array(m.bias.detach().cpu().numpy()))
        for m in prior_.mlp
        if isinstance(m, nn.Linear)
    ]
    latent = prior_.config.latent_dim

    def potential(z: Any) -> Any:  # noqa: ANN401
        value = z
        for weight, bias in layers[:-1]:
            value = jax.nn.gelu(value @ weight + bias, approximate=False)
        return 0.5 * (z**2).sum() - (value @ layers[-1][0] + layers[-1][1]).sum()

    slope = jax.grad(potential)

    @jax.jit
    def chain(key: Any) -> Any:  # noqa: ANN401
        first, rest = jax.random.split(key)

        def step(z: Any, key: Any) -> Any:  # noqa: ANN401
            return z - 0.5 * size**2 * slope(z) + size * jax.random.normal(key, z.shape), None

        return jax.lax.scan(step, jax.random.normal(first, (n, latent)), jax.random.split(rest, steps))[0]

    numbers = iter(range(10**9))
    return lambda: chain(jax.random.PRNGKey(next(numbers))).block_until_ready()


def torchebm_chain(prior_: EBMPrior, n: int, steps: int, size: float) -> Callable[[], object]:
    """The same chain by torchebm's sampler, whose step η is ½s²: its noise is then √(2η) = s."""
    from torchebm.core import BaseModel
    from torchebm.samplers import LangevinDynamics

    class Potential(BaseModel):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.prior = prior_

        def forward(self, x: Tensor) -> Tensor:
            return 0.5 * x.square().sum(1) - self.prior.tilt(x)

    sampler = LangevinDynamics(Potential(), step_size=0.5 * size**2, noise_scale=1.0, device=prior_.origin.device)
    return lambda: sampler.sample(dim=prior_.config.latent_dim, n_steps=steps, n_samples=n)


def generation(bench: Bench, case: Case, sentences: int) -> None:
    """Sentences of Penn Treebank's mean length, 21 words: ours against a plain batched loop and one at a time."""
    model, plain, longest = case.model.generator, case.plain, 82
    with torch.no_grad():
        for output in (model.output, plain.output):
            output.bias[0] = torch.tensor((case.shape.vocabulary - 2) / 21).log()  # chance 1 in 22 to end
    from textebm.generation import WRITTEN_AT_ONCE

    decoding = Decoding(max_length=longest)
    z = torch.randn(sentences, case.shape.latent, generator=case.source(), device=case.device)

    def ours(rows: Tensor) -> list[list[int]]:
        source, written = case.source(), []
        for part in rows.split(WRITTEN_AT_ONCE):  # type: ignore[no-untyped-call]
            written += decode(model, part, decoding, source)
        return written

    def batched(rows: Tensor) -> list[list[int]]:
        source, written = case.source(), []
        for part in rows.split(256):  # type: ignore[no-untyped-call]
            written += plain.sentences(part, longest, source)
        return written

    def singly(rows: Tensor) -> list[list[int]]:
        source = case.source()
        return [plain.sentences(row[None], longest, source)[0] for row in rows]

    ours(z[:200])
    seconds = harness.seconds(lambda: ours(z), case.device)
    words = sum(map(len, ours(z[:500]))) / len(z[:500])
    what = shapes(case.shape, sentences=len(z), mean_words=words, longest=longest)
    for name, way, rows in (
        ("plain-batched-loop", batched, z[:1024]),
        ("one-sentence-at-a-time", singly, z[: max(16, min(100, sentences // 10))]),
    ):
        way(rows[:16])
        theirs = harness.seconds(lambda way=way, rows=rows: way(rows), case.device) / len(rows)
        bench.add(
            f"generation/{name}",
            "fp32",
            {**what, "reference_sentences": len(rows)},
            ours_s=seconds / len(z),
            reference_s=theirs,
            ratio=theirs * len(z) / seconds,
            repeats=1,
            job_s=seconds,
            remark=f"a sentence; all {len(z):,} in {seconds:.0f} s",
        )


def memory(bench: Bench, shape: Shape, vocabularies: tuple[int, int]) -> None:
    """Peak memory of a process that makes learning steps, at two vocabularies, against what the weights account for."""
    peaks, weights = [], []
    for vocabulary in vocabularies:
        of_process = ["--peak-memory", str(vocabulary), "--hidden", str(shape.hidden), "--device", bench.device.type]
        command = [sys.executable, __file__, *of_process]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
        figures = json.loads(done.stdout.splitlines()[-1])
        peaks.append(figures["peak"])
        weights.append(figures["weights"])
    growth, expected = peaks[1] - peaks[0], 4 * (weights[1] - weights[0])  # weight, gradient, Adam's two moments
    bench.add(
        "memory/growth-over-that-of-weights-and-their-optimiser",
        "fp32",
        shapes(shape, vocabularies=list(vocabularies)),
        ratio=growth / expected,
        repeats=1,
        peak_bytes=peaks,
        growth_bytes=growth,
        expected_bytes=expected,
    )


def measure_memory(vocabulary: int, hidden: int, device: torch.device) -> None:
    """What `memory` runs: two learning steps in a process of its own, whose peak is then known to be theirs."""
    shape = Shape(vocabulary=vocabulary, hidden=hidden, embedding=hidden, posterior_steps=2, prior_steps=2)
    case = Case.__new__(Case)  # without the straightforward model, which would count
    case.shape, case.device = shape, device
    case.config = ModelConfig(
        vocabulary,
        PriorConfig(steps=2),
        GeneratorConfig(embedding_dim=hidden, hidden_dim=hidden),
        InferenceConfig(steps=2, step_size=0.3),
    )
    case.inputs, case.targets = case._words().to(device), case._words().to(device)
    case.lengths = torch.full((shape.batch,), shape.time)
    step = case.learner("fp32")
    step()
    step()
    generator = case.config.generator
    rows = vocabulary * generator.embedding_dim + (vocabulary - 2) * (generator.hidden_dim + 1)
    print(json.dumps({"peak": peak_bytes(device), "weights": 4 * rows}))


def peak_bytes(device: torch.device) -> int:
    """The most memory that this process has held, on a GPU in tensors there. Linux's getrusage would count what its
    parent held at the fork.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def costs(bench: Bench, quick: bool) -> dict[str, Curve]:
    """Seconds of a learning step against batch, length, K0 and K1, each from a quarter to fourfold."""
    base = Shape(batch=32, time=16, vocabulary=5_002, embedding=128, hidden=128, posterior_steps=10, prior_steps=40)
    device, precision = bench.device, native_precision(bench.device)
    curves: dict[str, Curve] = {}
    factors = (0.5, 1.0, 2.0) if quick else (0.25, 0.5, 1.0, 2.0, 4.0)
    for name in ("batch", "time", "prior_steps", "posterior_steps"):
        sizes = [int(getattr(base, name) * factor) for factor in factors]
        times = []
        for size in sizes:
            step = Case(dataclasses.replace(base, **{name: size}), device).learner(precision)
            step()
            times.append(min(harness.seconds(step, device) for _ in range(2 if quick else 5)))
        curves[name] = {"sizes": [float(s) for s in sizes], "seconds": times}
        power = harness.linear_fit(sizes, times)
        what = shapes(base, **{name: sizes})
        bench.add(f"cost/{name}", precision, what, seconds=times, exponent=power, repeats=5, remark=f"size^{power:.2f}")
    return curves


def plot(curves: dict[str, Curve], path: Path) -> None:
    """Cost against each size, with a line of slope 1 to compare with."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    titles = {"batch": "sentences", "time": "words a sentence", "prior_steps": "K0", "posterior_steps": "K1"}
    figure, axes = pyplot.subplots(1, 4, figsize=(11, 2.9), sharey=True, layout="constrained")
    for axis, (name, curve) in zip(axes, curves.items(), strict=True):
        sizes, milliseconds = curve["sizes"], [1e3 * s for s in curve["seconds"]]
        middle = len(sizes) // 2
        linear = [milliseconds[middle] * size / sizes[middle] for size in sizes]
        axis.loglog(sizes, milliseconds, "o-", label="measured")
        axis.loglog(sizes, linear, "--", color="grey", label="linear")
        axis.set_xticks(sizes, [f"{size:g}" for size in sizes])
        axis.minorticks_off()
        axis.set_xlabel(titles[name])
    low, high = axes[0].get_ylim()
    ticks = [tick for tick in (20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000) if low <= tick <= high]
    axes[0].set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes[0].minorticks_off()
    axes[0].set_ylabel("ms a learning step")
    axes[0].legend()
    figure.savefig(path)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, one pair each")
    parser.add_argument("--only", default="", help="only the parts whose name contains this word")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (default: torch's own choice)")
    parser.add_argument("--device", default="all", help="cpu, cuda, or all: both, where there is a GPU (default: all)")
    parser.add_argument("--repeats", type=int, default=None, help="pairs a row (default: 9)")
    parser.add_argument("--sentences", type=int, default=None, help="sentences to generate (default: 2,000)")
    parser.add_argument(
        "--output", type=Path, default=None, help="file of results (default: results/bench-HARDWARE.json)"
    )
    parser.add_argument("--no-write", action="store_true", help="print the table only")
    parser.add_argument("--plot", type=Path, default=None, help="draw the cost curves into this file")
    for hidden_option in ("--peak-memory", "--hidden"):
        parser.add_argument(hidden_option, type=int, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--pinned-prior", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.peak_memory is not None:
        measure_memory(
            chosen.peak_memory, chosen.hidden, torch.device("cpu" if chosen.device == "all" else chosen.device)
        )
        return 0
    if chosen.pinned_prior:
        measure_pinned()
        return 0
    if chosen.threads is not None:
        torch.set_num_threads(chosen.threads)
        os.environ["OMP_NUM_THREADS"] = str(chosen.threads)
    harness.keep_memory()
    for device in harness.devices(chosen.device):
        run(chosen, device)
    return 0


def run(chosen: argparse.Namespace, device: torch.device) -> None:
    """All parts that are asked for, on a device."""
    quick = chosen.quick
    shape = Shape(batch=16, time=8, vocabulary=2_002, posterior_steps=3, prior_steps=5) if quick else Shape()
    bench = Bench("chains", device, chosen.repeats or (1 if quick else 9))
    case = Case(shape, device)
    sentences = chosen.sentences or (200 if quick else 2_000)
    curves: dict[str, Curve] = {}
    parts: dict[str, Callable[[], object]] = {
        "reference": lambda: products(bench, case),
        "posterior-chain": lambda: posterior(bench, case),
        "prior-chain": lambda: prior(bench, case),
        "learning-step": lambda: learning(bench, case),
        "optimiser": lambda: optimisers(bench, case),
        "memory": lambda: memory(bench, shape, (1_002, 10_002) if quick else (10_002, 100_002)),
        "cost": lambda: curves.update(costs(bench, quick)),
        "generation": lambda: generation(bench, case, sentences),
    }
    print(harness.HEADER)
    for name, part in parts.items():
        if chosen.only in name:
            part()
    if chosen.plot is not None and curves:
        plot(curves, chosen.plot)
    if not chosen.no_write:
        print(f"written: {bench.write(chosen.output, chosen.only).name}")


if __name__ == "__main__":
    sys.exit(main())
