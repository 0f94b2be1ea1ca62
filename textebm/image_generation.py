"""From a trained model to images: generation, reconstruction, interpolation."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from textebm import checkpoint
from textebm.data.dataset import Dataset
from textebm.model.generators import Batch
from textebm.model.image_batch import ImageBatch
from textebm.model.latent_model import LatentModel
from textebm.model.random import stream
from textebm.processes import ALONE, World

BATCH = 256
"""Images worked on at once; part of what a seed means, since each batch has its own random streams."""

Pixels = Float[Tensor, "images channels height width"]


def load(folder: Path, device: torch.device | str = "cpu") -> LatentModel:
    """A saved model of images.

    Raises:
        CheckpointError: the folder holds no readable model, or one that is not as it was written.
        UsageError: the model is one of text.
    """
    model = checkpoint.load_model(folder, device)
    _ = model.painter
    return model


class Generated(NamedTuple):
    """Some images from the prior.

    images: (batch, channels, height, width) in [−1, 1]. energies: (batch,) −f(z) of their latents, in nats.
    """

    images: Pixels
    energies: Float[Tensor, " images"]


def generate(
    model: LatentModel, n: int, seed: int = 0, prior_steps: int | None = None, world: World = ALONE
) -> Iterator[Generated]:
    """Images from the prior: z by the short-run chain, then the mean image g(z); a batch at a time, on the CPU.

    Several processes draw what one would, a batch each in turn; the first one gets them all, the others none.

    Args:
        model: the model.
        n: number of images.
        seed: the same seed gives the same images on one machine.
        prior_steps: length of the prior chain (default: K0 as in training).
        world: the processes that share the work; all of them must go through the result to its end.
    """
    shape = model.painter.shape

    def batch(number: int) -> Generated:
        size = min(BATCH, n - number * BATCH)
        z = model.sample_prior(size, stream(seed, "prior", number, device=model.device), prior_steps)
        return Generated(model.paint(z).float().cpu(), model.energy(z).float().cpu())

    def unpack(content: bytes) -> Generated:
        rows = torch.frombuffer(bytearray(content), dtype=torch.float32).view(-1, shape.dimensions + 1)
        return Generated(rows[:, 1:].reshape(-1, *dataclasses.astuple(shape)), rows[:, 0].clone())

    return world.in_turn(-(-n // BATCH), batch, _pack, unpack)


def _pack(drawn: Generated) -> bytes:
    """A row an image: its energy, then its pixels."""
    return torch.cat([drawn.energies[:, None], drawn.images.flatten(1)], 1).numpy().tobytes()


class Reconstructed(NamedTuple):
    """Some images, and what a model makes of one posterior sample of z for each.

    originals, images: (batch, channels, height, width) in [−1, 1]. errors: (batch,) mean squared error of each image
    over channels and pixels.
    """

    originals: Pixels
    images: Pixels
    errors: Float[Tensor, " images"]


def reconstruct(
    model: LatentModel, data: Dataset, rows: NDArray[np.int64], seed: int = 0, steps: int | None = None
) -> Iterator[Reconstructed]:
    """Images, inferred (one posterior sample by the training chain) and made again, a batch at a time, on the CPU.

    Args:
        model: the model.
        data: where the images are.
        rows: which ones.
        seed: of the chains.
        steps: overrides the chain's length K1.
    """
    for number, begin in enumerate(range(0, len(rows), BATCH)):
        x = data.batch(rows[begin : begin + BATCH])
        assert isinstance(x, ImageBatch)
        images = model.paint(_infer_batch(model, x, seed, number, steps)).float().cpu()
        yield Reconstructed(x.pixels, images, (images - x.pixels).square().flatten(1).mean(1))


def infer(
    model: LatentModel, data: Dataset, rows: NDArray[np.int64], seed: int = 0, steps: int | None = None
) -> Float[Tensor, "images latent"]:
    """One posterior sample of z for each image: those that `reconstruct` paints.

    Args:
        model: the model.
        data: where the images are.
        rows: which ones.
        seed: of the chains.
        steps: overrides the chain's length K1.
    """
    latents = [
        _infer_batch(model, data.batch(rows[begin : begin + BATCH]), seed, number, steps)
        for number, begin in enumerate(range(0, len(rows), BATCH))
    ]
    return torch.cat(latents)


def _infer_batch(
    model: LatentModel, x: Batch, seed: int, number: int, steps: int | None
) -> Float[Tensor, "images latent"]:
    return model.infer(x.to(model.device), stream(seed, "posterior", number, device=model.device), steps)


def interpolate(model: LatentModel, ends: ImageBatch, points: int = 9, seed: int = 0) -> Pixels:
    """Images along the straight lines between the latents of pairs of images.

    Args:
        model: the model.
        ends: images 0 and 1 are the ends of the first line, 2 and 3 of the second, and so on.
        points: images on a line, both ends included (at least 2).
        seed: of the posterior chains.

    Returns:
        (lines · points, channels, height, width), line by line.
    """
    z = model.infer(ends.to(model.device), stream(seed, "posterior", 0, device=model.device))
    first, last = z[0::2, None], z[1::2, None]  # (lines, 1, latent)
    weights = torch.linspace(0, 1, points, device=z.device)[:, None]
    between = (first * (1 - weights) + last * weights).flatten(0, 1)
    return torch.cat([model.paint(part).float().cpu() for part in torch.split(between, BATCH)])
