"""The latent space of a model as data: where sentences or images lie in it, what lies near, what lies between.

    from textebm import generation, latent_space
    model, tokenizer = generation.load(folder)
    text = generation.encode_all(tokenizer, sentences)
    found = latent_space.posterior(model, text, chains=4)
    found.means                                              # (sentences, latent)
    latent_space.principal_components(found.means).shares    # of the variance

A sample of x has noise of its own, whose key is the content of x: where its posterior chains end depends on x, the seed
and the number of the chain alone. So the same sentence has the same latents in any file, at any place, in batches of
any size (but for rounding).
"""

import csv
import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from textebm import evaluation, generation, whole_files
from textebm.data.dataset import Dataset
from textebm.data.text import EncodedText
from textebm.data.vocabulary import decode as to_text
from textebm.errors import CheckpointError, DataError, UsageError
from textebm.model.decoding import Decoding
from textebm.model.generators import Batch
from textebm.model.image_batch import ImageBatch
from textebm.model.inference import Request
from textebm.model.latent_model import LatentModel, load_tensors, save_tensors
from textebm.model.random import stream
from textebm.model.recurrent import UNK, TextBatch

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Method = Literal["pca", "umap"]

CHAINS_AT_ONCE = 128
"""Posterior chains that are run together: memory and speed, not the figures."""
CHAINS = 4
"""Of each sample of x, whose mean is taken."""
FORMAT = 1
"""Of kept latents; a change in how they are inferred makes it another one."""
FEWEST = 3
"""Points of a map."""
GRID = 80
"""Points of a landscape along each of its two directions."""
MARGIN = 0.1
"""Of a landscape around the samples on it, as a share of their range."""


def unwatched(_: int) -> None:
    """Progress that nobody watches."""


# ---- where samples of x lie


@dataclasses.dataclass(frozen=True, eq=False)
class Posterior:
    """Posterior samples of z of some samples of x, on the CPU, in float64."""

    samples: Float[Tensor, "samples chains latent"]
    """Where the chains of each x end."""
    means: Float[Tensor, "samples latent"]
    """E[z|x]: the mean over the chains, or of an encoder's q(z|x), where z is a sample of it and no chain follows."""
    energies: Float[Tensor, "samples chains"]
    """−f(z) of each, in nats."""
    log_likelihoods: Float[Tensor, "samples chains"]
    """log p(x|z) of each, in nats; of a sentence, its end included."""


@torch.no_grad()
def posterior(
    model: LatentModel,
    data: Dataset,
    seed: int = 0,
    n: int = 0,
    chains: int = CHAINS,
    steps: int | None = None,
    watch: Callable[[int], object] = unwatched,
) -> Posterior:
    """Infer z of samples of x, by several chains each.

    Args:
        model: the model, on its device.
        data: sentences or images.
        seed: of the chains.
        n: take only so many, spread evenly over the data (0: all).
        chains: of each x.
        steps: overrides their length K1.
        watch: told how many samples of x are just done.

    Raises:
        UsageError: the model is a plain language model, which has no z.
    """
    generation.require_latent(model)
    rows = evaluation.spread(len(data), n)
    config = model.config.inference
    config = config if steps is None else dataclasses.replace(config, steps=steps)
    samples = torch.empty(len(rows), chains, model.config.prior.dimensions, dtype=torch.float64)
    energies, log_likelihoods = torch.empty(2, len(rows), chains, dtype=torch.float64)
    # this preconditioner looks at all chains of a batch, which are then those of one x
    together = 1 if config.preconditioner == "rms" else max(1, CHAINS_AT_ONCE // chains)
    for places in data.groups(rows, together):
        x = data.batch(rows[places])
        noise = [stream(seed, "latents", key, chain) for key in content_keys(x) for chain in range(chains)]
        copies = x.repeated(chains).to(model.device)
        conditioned = model.condition(copies)
        z = model.posterior(Request(copies, conditioned, config, noise)).z
        at, size = torch.from_numpy(places), (len(places), chains)
        samples[at] = z.double().cpu().view(*size, -1)
        energies[at] = model.energy(z).double().cpu().view(size)
        log_likelihoods[at] = conditioned.log_prob(z).double().cpu().view(size)
        watch(len(places))
    means = evaluation.encoded(model, data, n).mean if evaluation.has_density(model) else samples.mean(1)
    return Posterior(samples, means, energies, log_likelihoods)


def content_keys(x: Batch) -> list[int]:
    """A number of 64 bits for each sample of a batch on the CPU: the same for the same tokens, or pixels."""
    if isinstance(x, TextBatch):
        rows = [row[:length] for row, length in zip(x.targets, x.lengths.tolist(), strict=True)]
    else:
        assert isinstance(x, ImageBatch)  # there is no third kind
        rows = list(x.pixels)
    digests = [hashlib.blake2b(row.numpy().tobytes(), digest_size=8).digest() for row in rows]
    return [int.from_bytes(digest, "big") for digest in digests]


def typed(tokenizer: "Tokenizer", sentences: Sequence[str]) -> EncodedText:
    """Sentences that a person has typed, as ids; z must be able to say something of each.

    Raises:
        DataError: one is empty, or no word of it is in the vocabulary; <unk> may be written out.
    """
    for place, sentence in enumerate(sentences, 1):
        if not sentence.split():
            raise DataError(f"sentence {place} of {len(sentences)} is empty: there is nothing to infer z from")
    text = generation.encode_all(tokenizer, sentences)
    for row, sentence in enumerate(sentences):
        if (text.sentence(row) == UNK).all() and "<unk>" not in sentence.split():
            raise DataError(
                f"no word of {sentence!r} is in the model's vocabulary, so z would tell nothing of it: use words of "
                "the corpus that the model was trained on"
            )
    return text


# ---- maps


class Components(NamedTuple):
    """Principal components of points.

    centre: (latent,) the mean of the points. directions: (directions, latent), orthonormal, by falling variance; of
    each the coordinate that is largest in size is positive. variances: along all directions that there are.
    """

    centre: Float[Tensor, " latent"]
    directions: Float[Tensor, "directions latent"]
    variances: Float[Tensor, " all"]

    @property
    def shares(self) -> list[float]:
        """The share of the variance along each of the directions; 0 where all points are one."""
        total = float(self.variances.sum())
        return [float(variance) / total if total else 0.0 for variance in self.variances[: len(self.directions)]]

    def project(self, points: Float[Tensor, "points latent"]) -> Float[Tensor, "points directions"]:
        """Where points lie along the directions, seen from the centre."""
        return (points - self.centre) @ self.directions.T

    def place(self, coordinates: Float[Tensor, "points directions"]) -> Float[Tensor, "points latent"]:
        """The points in the plane of the directions that have these coordinates: what undoes `project` there."""
        return self.centre + coordinates @ self.directions


def principal_components(points: Float[Tensor, "points latent"], count: int = 2) -> Components:
    """The directions along which points vary most, by a singular value decomposition.

    Args:
        points: at least 2.
        count: number of directions.

    Raises:
        UsageError: the points have fewer dimensions, or there are too few of them.
    """
    n, dimensions = points.shape
    if dimensions < count:
        raise UsageError(f"z has {dimensions} dimensions: there are no {count} directions to look along")
    if n <= count:
        raise UsageError(f"{n} points span no {count} directions: at least {count + 1} are wanted")
    centre = points.mean(0)
    _, singular, right = torch.linalg.svd(points - centre, full_matrices=False)
    directions = right[:count]
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    return Components(centre, directions * largest.sign(), singular.square() / (n - 1))


def umap_positions(points: Float[Tensor, "points latent"], seed: int = 0) -> Float[Tensor, "points 2"]:
    """Positions by UMAP, where umap-learn is installed.

    Raises:
        UsageError: it is not.
    """
    if find_spec("umap") is None:
        raise UsageError("--method umap needs umap-learn: pip install umap-learn; --method pca needs nothing")
    found = import_module("umap").UMAP(n_components=2, random_state=seed).fit_transform(points.numpy())
    return torch.from_numpy(np.asarray(found, dtype=np.float64))


@dataclasses.dataclass(frozen=True, eq=False)
class LatentMap:
    """Points of the latent space in two dimensions, and what they may be coloured by."""

    method: Method
    """How they were projected."""
    positions: Float[Tensor, "points 2"]
    """Where they lie on the map."""
    energies: Float[Tensor, " points"]
    """−f(z) in nats, a mean over the posterior samples of each point."""
    names: list[str]
    """The sentence of each point; of an image its number."""
    lengths: list[int] | None
    """Tokens of each sentence, its end not counted; None of images."""
    labels: list[str] | None
    """The class of each image; None where there are none."""
    shares: list[float] | None
    """The share of the variance along either axis; None of UMAP, whose axes mean nothing."""

    def as_dict(self) -> dict[str, Any]:
        """In JSON types."""
        optional = {"length": self.lengths, "label": self.labels}
        columns = {
            "x": self.positions[:, 0].tolist(),
            "y": self.positions[:, 1].tolist(),
            "energy": self.energies.tolist(),
            **{name: values for name, values in optional.items() if values is not None},
            "name": self.names,
        }
        points = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        return {"method": self.method, "shares": self.shares, "points": points}

    def write_csv(self, path: Path) -> None:
        """Write a line a point.

        Raises:
            OSError: the file cannot be written.
        """
        points = self.as_dict()["points"]
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(points[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(points)


def latent_map(
    data: Dataset, found: Posterior, names: Sequence[str], n: int = 0, method: Method = "pca", seed: int = 0
) -> LatentMap:
    """Posterior means, projected to two dimensions.

    Args:
        data: the sentences or images.
        found: what `posterior` says of `n` of them.
        names: of those.
        n: as was given to `posterior`.
        method: principal components, or UMAP.
        seed: of UMAP.

    Raises:
        UsageError: there are too few points or dimensions, or UMAP is not installed.
    """
    if len(found.means) < FEWEST:
        raise UsageError(f"a map of {len(found.means)} points shows nothing: at least {FEWEST} are wanted")
    shares = None
    if method == "umap":
        positions = umap_positions(found.means, seed)
    else:
        components = principal_components(found.means)
        positions, shares = components.project(found.means), components.shares
    rows = evaluation.spread(len(data), n)
    lengths = data.lengths[rows].tolist() if isinstance(data, EncodedText) else None
    return LatentMap(method, positions, found.energies.mean(1), list(names), lengths, _labels(data, rows), shares)


def _labels(data: Dataset, rows: NDArray[np.int64]) -> list[str] | None:
    """Names of the classes of images, where they have some."""
    labels, names = getattr(data, "labels", None), getattr(data, "class_names", ())
    return None if labels is None else [str(names[label]) for label in labels[rows]]


def texts_of(tokenizer: "Tokenizer", text: EncodedText, n: int = 0) -> list[str]:
    """The sentences that `posterior` takes of a text, as the model reads them."""
    return [to_text(tokenizer, text.sentence(int(row))) for row in evaluation.spread(len(text), n)]


@dataclasses.dataclass(frozen=True, eq=False)
class Landscape:
    """The prior over the plane of the first two principal directions of posterior means, through their mean.

    Samples are projected onto that plane, and most of them lie off it: the values under a sample are not its own.
    """

    first: Float[Tensor, " columns"]
    """Coordinates of the grid along the first direction."""
    second: Float[Tensor, " rows"]
    """And along the second."""
    energy: Float[Tensor, "rows columns"]
    """−f(z) in nats."""
    potential: Float[Tensor, "rows columns"]
    """−f(z) + ‖z‖²/2σ², which is −log p(z) up to a constant, in nats: what prior chains descend."""
    prior: Float[Tensor, "samples 2"]
    """Prior samples by the chain of training."""
    posterior: Float[Tensor, "samples 2"]
    """Posterior samples, one of each x."""
    shares: list[float]
    """The share of the variance of the posterior means along either direction."""

    def as_dict(self) -> dict[str, Any]:
        """In JSON types."""
        described = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value.tolist() if isinstance(value, Tensor) else value for name, value in described.items()}


def landscape(model: LatentModel, found: Posterior, seed: int = 0, samples: int = 500, points: int = GRID) -> Landscape:
    """The energy along the first two principal directions, with prior and posterior samples.

    Args:
        model: the model.
        found: what `posterior` says of some sentences or images.
        seed: of the prior samples.
        samples: of the prior; of posterior samples there is one for each x.
        points: of the grid along either direction.

    Raises:
        UsageError: z has fewer than two dimensions, or there are too few sentences or images.
    """
    components = principal_components(found.means)
    like = model.prior.origin
    noise = stream(seed, "prior", 0, device=model.device)
    prior = components.project(model.sample_prior(samples, noise).double().cpu())
    of_data = components.project(found.samples[:, 0])
    both = torch.cat([prior, of_data])
    low, high = both.amin(0), both.amax(0)
    low, high = low - MARGIN * (high - low), high + MARGIN * (high - low)
    first, second = (
        torch.linspace(float(low[axis]), float(high[axis]), points, dtype=torch.float64) for axis in range(2)
    )
    rows, columns = torch.meshgrid(second, first, indexing="ij")
    z = components.place(torch.stack([columns.flatten(), rows.flatten()], 1))
    energy = model.energy(z.to(like)).double().cpu()
    potential = energy + z.square().sum(1) / (2 * model.config.prior.sigma**2)
    shape = (points, points)
    return Landscape(first, second, energy.view(shape), potential.view(shape), prior, of_data, components.shares)


# ---- what lies near, and sums


class Neighbour(NamedTuple):
    """A sentence near another one.

    text: as the model reads it. distance: between the posterior means, in units of z. energy: −f(z) in nats, a mean
    over its posterior samples. number: which one of those searched it is, from 0.
    """

    text: str
    distance: float
    energy: float
    number: int


def nearest(
    points: Float[Tensor, "points latent"], query: Float[Tensor, " latent"], count: int
) -> list[tuple[int, float]]:
    """The points nearest to another one, nearest first: their numbers and their distances.

    Of points that are equally near the one with the smaller number comes first.
    """
    distances = (points - query).norm(dim=1)
    order = torch.sort(distances, stable=True).indices[:count].tolist()
    return [(row, float(distances[row])) for row in order]


def neighbours(
    model: LatentModel,
    tokenizer: "Tokenizer",
    sentence: str,
    texts: Sequence[str],
    found: Posterior,
    count: int = 10,
    seed: int = 0,
    steps: int | None = None,
) -> list[Neighbour]:
    """The sentences whose posterior means are nearest to that of a given one.

    Args:
        model: the model.
        tokenizer: its tokeniser.
        sentence: whose neighbours are wanted.
        texts: the sentences that are searched.
        found: what `posterior` says of them, for the same seed and length of chains.
        count: how many neighbours.
        seed: of the chains: with that of `found`, a sentence that is searched for lies at distance 0.
        steps: as for `found`.

    Raises:
        DataError: the sentence is empty, or no word of it is known.
        UsageError: the model has no z.
    """
    chains = found.samples.shape[1]
    query = posterior(model, typed(tokenizer, [sentence]), seed, chains=chains, steps=steps)
    energies = found.energies.mean(1).tolist()
    near = nearest(found.means, query.means[0], count)
    return [Neighbour(texts[row], distance, energies[row], row) for row, distance in near]


class Term(NamedTuple):
    """A sentence in a sum.

    sign: 1 or −1. text: the sentence. reconstruction: what the model writes greedily from its posterior mean.
    """

    sign: int
    text: str
    reconstruction: str


class Arithmetic(NamedTuple):
    """A sum of latents, written out.

    text: the sentence. energy: −f(z) of the sum in nats. norm: ‖z‖ of it. terms: what was summed.
    """

    text: str
    energy: float
    norm: float
    terms: list[Term]


def arithmetic(
    model: LatentModel,
    tokenizer: "Tokenizer",
    terms: Sequence[tuple[int, str]],
    seed: int = 0,
    decoding: Decoding | None = None,
    chains: int = CHAINS,
    steps: int | None = None,
) -> Arithmetic:
    """Add and subtract the posterior means of sentences, and write the sentence of the sum.

    Args:
        model: the model.
        tokenizer: its tokeniser.
        terms: sign (1 or −1) and sentence of each.
        seed: of chains and decoding; a sentence that stands in the sum twice has one latent.
        decoding: how the words of the sum are chosen (default: greedy).
        chains: of each sentence.
        steps: overrides their length K1.

    Raises:
        DataError: a sentence is empty, or no word of it is known.
        UsageError: the model has no z.
    """
    generation.require_latent(model)
    greedy = Decoding("greedy", max_length=model.config.longest)
    found = posterior(model, typed(tokenizer, [text for _, text in terms]), seed, chains=chains, steps=steps)
    signs = torch.tensor([sign for sign, _ in terms], dtype=torch.float64)
    total = (signs[:, None] * found.means).sum(0, keepdim=True)
    z = torch.cat([total, found.means]).to(model.prior.origin)
    written = generation.write(model, tokenizer, z, greedy, seed)
    sum_of_all, each = written[0], written[1:]
    if decoding is not None:
        sum_of_all = generation.write(model, tokenizer, z[:1], decoding, seed)[0]
    described = [Term(sign, text, again.text) for (sign, text), again in zip(terms, each, strict=True)]
    return Arithmetic(sum_of_all.text, sum_of_all.energy, float(total.norm()), described)


# ---- latents that are kept


def kept_posterior(folder: Path, key: Sequence[object], make: Callable[[], Posterior]) -> Posterior:
    """What `posterior` says, from a file of an earlier time if there is one.

    Args:
        folder: of such files; made if need be.
        key: everything that decides the result.
        make: computes it where no readable file is there; the file is then written.
    """
    digest = hashlib.sha256("\n".join(map(str, (FORMAT, *key))).encode()).hexdigest()[:32]
    path = folder / f"{digest}.safetensors"
    with suppress(CheckpointError, TypeError):  # not there, damaged, or of another version
        return Posterior(**load_tensors(path))
    found = make()
    folder.mkdir(parents=True, exist_ok=True)
    with whole_files.appearing(path, synced=False) as temporary:
        save_tensors({field.name: getattr(found, field.name) for field in dataclasses.fields(found)}, temporary)
    return found
