"""How fast chains and learning steps of images are, against the straightforward loop.

    python benchmarks/images.py                 all of it, into results/bench-HARDWARE.json; some minutes
    python benchmarks/images.py --quick         small sizes, one pair each: does it run

The generators are those of CIFAR-10 and of CelebA at 128 by 128 pixels, with half and a quarter of the published
channels. fp32, 16 bits where the device multiplies in them, and a batch whose gradients are summed over two parts.
"""

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path

# Threads that spin while they wait take the cores from the threads that work. Read once, when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # large tensors on large pages, as the command line sets it

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import harness
from harness import Bench
from straightforward_images import ImageSizes, StraightforwardImages

from textebm.config import Config, ConvolutionConfig, GeneratorConfig, InferenceConfig, OptimiserConfig, PriorConfig
from textebm.hardware import native_precision
from textebm.model import inference
from textebm.model.image_batch import ImageBatch, ImageShape
from textebm.model.latent_model import LatentModel, ModelConfig
from textebm.model.learner import Learner

SIZES = {
    "cifar10": ImageSizes(),
    "celeba128": ImageSizes(
        batch=8,
        side=128,
        start=4,
        channels=(512, 256, 128, 64, 32),
        last="double",
        latent=100,
        prior_steps=80,
        posterior_steps=10,
    ),
}
"""Name of the data set -> sizes, such that a CPU is done in minutes."""
QUICK = ImageSizes(batch=4, side=8, start=4, channels=(8, 4), latent=5, width=8, prior_steps=2, posterior_steps=2)


class Case:
    """One shape: both models with the same weights, and one batch."""

    def __init__(self, sizes: ImageSizes, device: torch.device) -> None:
        self.sizes, self.device = sizes, device
        width = sizes.channels[-1]
        form = ConvolutionConfig(
            width=width,
            start=sizes.start,
            multiples=tuple(channels // width for channels in sizes.channels),
            last=sizes.last,  # type: ignore[arg-type]
            sigma=sizes.sigma,
            loss="squared-error",
        )
        self.config = ModelConfig(
            prior=PriorConfig(latent_dim=sizes.latent, width=sizes.width, steps=sizes.prior_steps),
            generator=GeneratorConfig(kind="convolutional", convolution=form),
            inference=InferenceConfig(steps=sizes.posterior_steps, step_size=0.1),
            image=ImageShape(sizes.colours, sizes.side, sizes.side),
        )
        self.model = LatentModel(self.config, seed=0).to(device)
        self.plain = StraightforwardImages(sizes).to(device)
        self.plain.load_state_dict(
            {
                name.removeprefix("generator.").replace("prior.mlp", "energy"): value
                for name, value in self.model.state_dict().items()
                if name != "prior.origin"
            }
        )
        shape = (sizes.batch, sizes.colours, sizes.side, sizes.side)
        self.pixels = (torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1).to(device)

    def source(self) -> torch.Generator:
        return torch.Generator(device=self.device).manual_seed(2)

    def posterior_chain(self, precision: str) -> Tensor:
        """Our chain, with all that is made once for it."""
        images = self.model.condition(ImageBatch(self.pixels), None, precision)  # type: ignore[arg-type]
        settings, n = self.config.inference, self.sizes.batch
        return inference.short_run_posterior(self.model.prior, images, n, settings, self.source())[0]

    def learner(self, precision: str, micro_batch: int = 0) -> Callable[[], object]:
        """One learning step of ours, on a model of its own."""
        model = LatentModel(self.config, seed=0).to(self.device)
        config = Config(
            prior=self.config.prior,
            generator=self.config.generator,
            inference=self.config.inference,
            optimiser=OptimiserConfig(clip=0.0, energy_clip=0.0),
            precision=precision,  # type: ignore[arg-type]
            micro_batch=micro_batch,
        )
        learner = Learner(model, config, steps_per_epoch=100)
        return lambda: learner.step(ImageBatch(self.pixels), 0)

    def plain_learner(self) -> Callable[[], object]:
        model = StraightforwardImages(self.sizes).to(self.device)
        parts = (model.convolutions, model.energy)
        optimisers = [torch.optim.Adam(part.parameters(), lr=1e-4, betas=(0.5, 0.999)) for part in parts]
        return lambda: model.learning_step(optimisers, self.pixels, self.source())


def measure(bench: Bench, name: str, case: Case) -> None:
    """Whole posterior chains and whole learning steps of one shape."""
    precisions = ["fp32"]
    if native_precision(bench.device) == "bf16":
        precisions.append("bf16")
    else:
        bench.skip(f"{name}/bf16", "this device has no bf16 products of its own: they would be slower than fp32")
    sizes = dataclasses.asdict(case.sizes)
    bench.compare_all(
        lambda: case.plain.posterior_chain(case.pixels, 0.1, case.source()),
        [
            (f"{name}/posterior-chain/{p}", lambda p=p: case.posterior_chain(p), p, sizes)  # type: ignore[misc]
            for p in precisions
        ],
    )
    half = case.sizes.batch // 2
    variants = [(f"{name}/learning-step/{p}", case.learner(p), p, sizes) for p in precisions]
    best = precisions[-1]
    parts = sizes | {"micro_batch": half}
    variants.append((f"{name}/learning-step/{best}-in-two-parts", case.learner(best, half), best, parts))
    bench.compare_all(case.plain_learner(), variants)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, one pair each")
    parser.add_argument("--only", default="", help="only the shapes whose name contains this word")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (default: torch's own choice)")
    parser.add_argument("--device", default="all", help="cpu, cuda, or all: both, where there is a GPU (default: all)")
    parser.add_argument("--repeats", type=int, default=None, help="pairs a row (default: 5)")
    parser.add_argument(
        "--output", type=Path, default=None, help="file of results (default: results/bench-HARDWARE.json)"
    )
    parser.add_argument("--no-write", action="store_true", help="print the table only")
    chosen = parser.parse_args()
    if chosen.threads is not None:
        torch.set_num_threads(chosen.threads)
    harness.keep_memory()
    for device in harness.devices(chosen.device):
        bench = Bench("images", device, chosen.repeats or (1 if chosen.quick else 5))
        print(harness.HEADER)
        for name, sizes in SIZES.items():
            if chosen.only in name:
                measure(bench, name, Case(QUICK if chosen.quick else sizes, device))
        if not chosen.no_write:
            print(f"written: {bench.write(chosen.output, chosen.only).name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
