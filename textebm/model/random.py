"""One seed, many independent random streams.

Every consumer of randomness has a named stream, and every use is keyed by the step it belongs to. So a resumed run
draws what an uninterrupted one would have drawn, without any generator state being saved, and a change in how one
stream is used leaves all the others as they were.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

STREAMS = (
    *("data", "prior", "posterior", "dropout", "decoding", "initialisation", "evaluation", "candidates"),
    *("likelihood", "persistent", "chains", "aggressive", "sampler", "anomaly", "bootstrap", "diagnostics"),
    "latents",
)

Noise = torch.Generator | Sequence[torch.Generator]
"""Where the random numbers of a batch come from: one source on the batch's device, or one a row on the CPU, so that no
row depends on which others stand beside it."""


def stream_seed(seed: int, stream: str, *key: int) -> int:
    """A 63-bit seed for one use of a stream.

    Args:
        seed: the run's seed.
        stream: one of `STREAMS`.
        key: what tells this use from the others, such as the training step.

    Raises:
        ValueError: there is no such stream.
    """
    if stream not in STREAMS:
        raise ValueError(f"no random stream {stream!r}; there are {', '.join(STREAMS)}")
    name = f"{seed}/{stream}/{'/'.join(map(str, key))}"
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 1


def stream(seed: int, name: str, *key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The generator of one use of a stream, on `device` (see `stream_seed`)."""
    return torch.Generator(device=device).manual_seed(stream_seed(seed, name, *key))


def normal(size: tuple[int, ...], noise: Noise, like: Tensor) -> Tensor:
    """Standard normal numbers.

    Args:
        size: of the tensor; its first dimension is that of the rows of a batch.
        noise: where they come from.
        like: a tensor of the dtype and on the device that are wanted.
    """
    if isinstance(noise, torch.Generator):
        return torch.randn(size, generator=noise, device=like.device, dtype=like.dtype)
    if len(noise) != size[0]:
        raise ValueError(f"{len(noise)} sources of noise for {size[0]} rows")
    return torch.stack([torch.randn(size[1:], generator=row, dtype=like.dtype) for row in noise]).to(like.device)


def refill(numbers: Tensor, noise: Noise) -> None:
    """Overwrite a tensor with standard normal numbers (see `normal`)."""
    if isinstance(noise, torch.Generator):
        numbers.normal_(generator=noise)
    else:
        numbers.copy_(normal(tuple(numbers.shape), noise, numbers))
