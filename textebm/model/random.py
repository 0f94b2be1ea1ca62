"""One seed, many independent random streams.

Every consumer of randomness has a named stream, and every use is keyed by the step it belongs to. So a resumed run
draws what an uninterrupted one would have drawn, without any generator state being saved, and a change in how one
stream is used leaves all the others as they were.
"""

import hashlib

import torch

STREAMS = (
    *("data", "prior", "posterior", "dropout", "decoding", "initialisation", "evaluation", "candidates"),
    *("likelihood", "persistent", "chains", "aggressive", "sampler", "anomaly", "bootstrap", "diagnostics"),
)


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
