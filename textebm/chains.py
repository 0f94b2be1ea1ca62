"""Persistent posterior chains: where the chain of each training sentence stands, in a file that is mapped.

`RUN/chains.npy` holds (sentences, latent) float32 and is written at every learning step. A checkpoint holds a copy of
it, and a resumed run begins with that copy, so that it goes on as if it had never stopped.
"""

import shutil
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.lib.format import open_memmap, write_array_header_1_0
from numpy.typing import NDArray
from torch import Tensor

from textebm.errors import CheckpointError
from textebm.lm_eval.plain_arrays import mapped
from textebm.model.energy import GaussianPrior
from textebm.model.random import stream

FILE = "chains.npy"
ROWS_AT_ONCE = 1 << 16
"""Chains begun at once; part of what a seed means, since each block has its own random stream."""


class ChainMemory:
    """The chains of all training sentences."""

    def __init__(self, positions: "np.memmap[tuple[int, int], np.dtype[np.float32]]") -> None:
        """Use `begin` or `restore`."""
        self.positions = positions

    @classmethod
    def begin(cls, folder: Path, sentences: int, prior: GaussianPrior, seed: int) -> "ChainMemory":
        """New chains in `folder`, each where the reference Gaussian puts it.

        Args:
            folder: the run folder.
            sentences: number of training sentences.
            prior: gives the reference Gaussian; on any device, the numbers are the same.
            seed: of the run.

        Raises:
            OSError: the file cannot be written.
        """
        latent_dim = prior.config.latent_dim
        header = {"descr": "<f4", "fortran_order": False, "shape": (sentences, latent_dim)}
        with (folder / FILE).open("wb") as file:  # not through the map, where a full disk would be a bus error
            write_array_header_1_0(file, header)
            for block, first in enumerate(range(0, sentences, ROWS_AT_ONCE)):
                size = (min(ROWS_AT_ONCE, sentences - first), latent_dim)
                noise = torch.randn(size, generator=stream(seed, "chains", block))
                file.write((prior.config.sigma * noise).numpy().astype("<f4").tobytes())
        return cls(open_memmap(folder / FILE, mode="r+"))

    @classmethod
    def restore(cls, checkpoint: Path, folder: Path, sentences: int, latent_dim: int) -> "ChainMemory":
        """The chains in `folder` as they stood when a checkpoint was saved.

        Args:
            checkpoint: the checkpoint's folder.
            folder: the run folder, whose file is replaced.
            sentences: number of training sentences.
            latent_dim: number of dimensions of z.

        Raises:
            CheckpointError: the checkpoint holds no chains, or not those of such a run.
            OSError: the copy cannot be written.
        """
        try:
            saved = mapped(checkpoint / FILE)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{checkpoint / FILE} cannot be read: {error}") from None
        if saved.shape != (sentences, latent_dim) or saved.dtype != np.float32:
            raise CheckpointError(
                f"{checkpoint / FILE} holds {saved.dtype} of shape {saved.shape}, not the chains of {sentences} "
                f"sentences in {latent_dim} dimensions"
            )
        shutil.copyfile(checkpoint / FILE, folder / FILE)
        return cls(open_memmap(folder / FILE, mode="r+"))

    @classmethod
    def share(cls, folder: Path) -> "ChainMemory":
        """The chains that another process on this machine has begun or restored: the same memory, not a copy of it.

        Raises:
            OSError: they are not there.
        """
        return cls(open_memmap(folder / FILE, mode="r+"))

    def of(self, rows: NDArray[np.int64], device: torch.device) -> "Visited":
        """The chains of the sentences with these numbers, as a learning step takes them."""
        return Visited(self, rows, device)

    def save(self, folder: Path) -> None:
        """Write a copy into a checkpoint's folder.

        Raises:
            OSError: it cannot be written; a full disk, say.
        """
        np.save(folder / FILE, self.positions)


class Visited:
    """The chains of one batch's sentences: `textebm.model.inference.Chains`. Each access waits for the device."""

    def __init__(self, memory: ChainMemory, rows: NDArray[np.int64], device: torch.device) -> None:
        self.memory, self.rows, self.device = memory, rows, device

    def read(self) -> Float[Tensor, "batch latent"]:
        """Where they stand."""
        return torch.from_numpy(self.memory.positions[self.rows]).to(self.device)

    def write(self, z: Float[Tensor, "batch latent"]) -> None:
        """Where they stand from now on."""
        self.memory.positions[self.rows] = z.detach().cpu().numpy()
