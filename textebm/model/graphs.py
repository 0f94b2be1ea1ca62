"""Chains as CUDA graphs: what is launched kernel by kernel once is replayed as one.

A Langevin chain in a small z is thousands of small kernels, and a GPU is done with each before the next is launched. So
on CUDA a prior chain is recorded whole, once for each number of samples; a posterior chain is recorded for one step,
once a batch, and replayed for every step. Noise is drawn outside, by the calls that `langevin.step` would make, so that
a seed means the same with and without a recording.

A recording reads weights where they are: optimisers change them in place, and the next replay sees the change.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from textebm.model import langevin
from textebm.model.random import Noise, refill

USE = True
"""Whether chains on CUDA are recorded; tests switch it off to compare."""

MOST_CHAINS = 8
"""Recorded prior chains that are kept (one a number of samples)."""


@runtime_checkable
class Recording(Protocol):
    """Work that can be done again."""

    def replay(self) -> None:
        """Do it again, on what stands in the same places now."""


Recorder = Callable[[Callable[[], None]], Recording]


def record(work: Callable[[], None]) -> Recording:
    """Work on the current CUDA device as a graph; it is done once before, so that libraries are set up."""
    current = torch.cuda.current_stream()
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    graph = torch.cuda.CUDAGraph()
    aside.wait_stream(current)
    with torch.cuda.stream(aside):
        work()
        # not torch.cuda.graph, which waits for the device; and only this thread's calls, since another makes batches
        graph.capture_begin(capture_error_mode="thread_local")
        work()
        graph.capture_end()
    current.wait_stream(aside)
    return graph


def possible(z: Tensor) -> bool:
    """Whether chains of z are to be recorded."""
    return USE and z.is_cuda


class Chain:
    """A whole chain, for starts of one shape and a fixed schedule."""

    def __init__(
        self,
        like: Float[Tensor, "batch latent"],
        potential: langevin.Potential,
        plan: langevin.Schedule,
        recorder: Recorder | None = None,
    ) -> None:
        """Record the chain.

        Args:
            like: a start, for its shape, dtype and device.
            potential: U and ∇U; what it reads must stay where it is.
            plan: step sizes and temperatures.
            recorder: how work is recorded (default: as a CUDA graph).
        """
        self.plan = plan
        self.potential = potential  # what it allocates for its steps is where the recording reads and writes
        self.start, self.end = like.clone(), like.clone()
        self.noise = like.new_zeros(plan.steps, *like.shape)

        def work() -> None:
            z = self.start
            for number, (size, temperature) in enumerate(zip(plan.step_sizes, plan.temperatures, strict=True)):
                z = torch.add(z, potential(z)[1], alpha=-0.5 * size**2)
                if temperature > 0:
                    z.add_(self.noise[number], alpha=size * temperature)
            self.end.copy_(z)

        self.recording = (recorder or record)(work)

    def run(self, start: Float[Tensor, "batch latent"], generator: torch.Generator) -> Float[Tensor, "batch latent"]:
        """Where the chain leads from new starts, with new noise."""
        self.start.copy_(start)
        for noise, temperature in zip(self.noise, self.plan.temperatures, strict=True):
            if temperature > 0:
                noise.normal_(generator=generator)
        self.recording.replay()
        return self.end.clone()


def run_by_steps(
    start: Float[Tensor, "batch latent"],
    potential: langevin.Potential,
    plan: langevin.Schedule,
    generator: Noise,
    recorder: Recorder | None = None,
) -> Float[Tensor, "batch latent"]:
    """A chain of which one step is recorded and replayed for all.

    Args:
        start: starting points.
        potential: U and ∇U.
        plan: step sizes and temperatures.
        generator: source of the noise.
        recorder: how work is recorded (default: as a CUDA graph).
    """
    z, noise = start.clone(), torch.zeros_like(start)
    pairs = zip(plan.step_sizes, plan.temperatures, strict=True)
    table = torch.tensor([(-0.5 * s**2, s * t) for s, t in pairs], dtype=start.dtype)
    table = table.pin_memory().to(start.device, non_blocking=True) if start.is_cuda else table
    now = torch.zeros_like(table[0])  # a step of size 0 while recording: z stays where it is

    def work() -> None:
        gradient = potential(z)[1]
        z.addcmul_(gradient, now[0]).addcmul_(noise, now[1])

    recording = (recorder or record)(work)
    for number, temperature in enumerate(plan.temperatures):
        now.copy_(table[number])
        if temperature > 0:
            refill(noise, generator)
        recording.replay()
    return z
