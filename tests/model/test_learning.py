"""A model that learns: an EBM prior models two families of sentences better than a Gaussian prior can.

The corpus is every sentence of a small grammar with two families that share no word, so its entropy is known: log 16.
The generator is a small LSTM whose word embeddings stay at zero. It cannot see what it has written, and so must learn
the family from z: each half of the plane takes one family, and between them lies a band of z that mixes the two. A
Gaussian prior has mass in that band, while an EBM prior can move it out. Without this restraint the LSTM would carry
the family from word to word, z would stay unused, and any prior would do.

A generator is first warmed up under a Gaussian prior, which both runs start from. They differ in nothing but the prior:
data, noise, chains and rates are the same. The likelihood of the whole corpus is then computed exactly, on a grid.
"""

import dataclasses
import itertools
import math

import pytest
import torch
from torch import Tensor

from textebm.config import Config, GeneratorConfig, InferenceConfig, OptimiserConfig, PriorConfig
from textebm.model import likelihood
from textebm.model.latent_model import LatentModel, ModelConfig
from textebm.model.learner import Learner
from textebm.model.random import stream
from textebm.model.recurrent import TextBatch

VOCABULARY = 16  # four special ids and twelve words: 4 to 9 of one family, 10 to 15 of the other
FIRST = [[4, noun, verb, *end] for noun, verb, end in itertools.product((5, 6), (7, 8), ([], [9]))]
SECOND = [[word + 6 for word in sentence] for sentence in FIRST]
ENTROPY = math.log(len(FIRST + SECOND))

PRIOR = PriorConfig(latent_dim=2, width=32, depth=2, steps=60, step_size=0.4)
GENERATOR = GeneratorConfig(embedding_dim=4, hidden_dim=16, init_range=0.7)
CHAIN = InferenceConfig(steps=20, step_size=0.4)
WARM_UP = 70, OptimiserConfig(lr=0.015)
STAGE = 60, OptimiserConfig(lr=0.001, energy_lr=0.005, schedule="cosine")
BATCH = 128


def new_model(kind: str, seed: int, weights: dict[str, Tensor] | None = None) -> LatentModel:
    """A model with the generator's weights given, or new ones; its word embeddings are zero and stay so."""
    prior = dataclasses.replace(PRIOR, kind=kind)
    model = LatentModel(ModelConfig(VOCABULARY, prior, GENERATOR, CHAIN), seed)
    if weights is not None:
        model.generator.load_state_dict(weights)
    model.generator.embedding.weight.data.zero_()
    model.generator.embedding.weight.requires_grad_(False)
    return model


def train(model: LatentModel, corpus: TextBatch, seed: int, steps: int, rates: OptimiserConfig) -> None:
    config = Config(
        prior=model.config.prior, generator=GENERATOR, inference=CHAIN, optimiser=rates, epochs=1, seed=seed
    )
    learner = Learner(model, config, steps_per_epoch=steps)
    for number in range(steps):
        rows = torch.randint(len(corpus.lengths), (BATCH,), generator=stream(seed, "data", number))
        learner.step(TextBatch(*(part[rows] for part in corpus)), number)


def exact_nll(model: LatentModel, corpus: TextBatch) -> float:
    """Mean of −log p(x) over the corpus, in nats, by integration in float64."""
    z, cell = likelihood.grid(2, points=61, reach=5.0)
    double = LatentModel(model.config).double()
    double.load_state_dict(model.state_dict())

    def log_likelihood(points: Tensor) -> Tensor:
        sentences = [TextBatch(*(p[i : i + 1].expand(len(points), *p.shape[1:]) for p in corpus)) for i in range(16)]
        return torch.stack([double.condition(x).log_prob(points) for x in sentences])

    with torch.no_grad():
        return -float(likelihood.log_marginal(double.prior, log_likelihood, z, cell).mean())


def shares(model: LatentModel, seed: int, n: int = 400) -> tuple[float, float]:
    """Shares of samples that are sentences of either family: prior chain, then decoding."""
    samples = model.generate(n, stream(seed, "prior"), stream(seed, "decoding"))
    return sum(s in FIRST for s in samples) / n, sum(s in SECOND for s in samples) / n


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_ebm_prior_beats_the_gaussian_on_two_families(make_batch, seed):
    corpus = make_batch(FIRST + SECOND)
    warm = new_model("gaussian", seed)
    train(warm, corpus, seed, *WARM_UP)
    weights = {name: weight.clone() for name, weight in warm.generator.state_dict().items()}

    nll, samples = {}, {}
    for kind in ("gaussian", "ebm"):
        model = new_model(kind, seed, weights)
        train(model, corpus, seed, *STAGE)
        nll[kind], samples[kind] = exact_nll(model, corpus), shares(model, seed)
    print(f"seed {seed}: entropy {ENTROPY:.4f}", *(f"{kind} {nll[kind]:.4f} {samples[kind]}" for kind in nll))

    assert ENTROPY < nll["ebm"] < nll["gaussian"] - 0.02
    assert nll["gaussian"] < exact_nll(warm, corpus) + 0.02  # the Gaussian run was no straw man: it did not get worse
    assert min(samples["ebm"]) > 0.25
    assert sum(samples["ebm"]) > sum(samples["gaussian"])  # fewer of them mix the families
