"""A model without z is a plain language model: its likelihood is torch's, and it learns a source as well as can be."""

import math
import random

import pytest
import torch
from torch import nn

from textebm.config import Config, GeneratorConfig, InferenceConfig, OptimiserConfig, PriorConfig
from textebm.errors import ConfigError
from textebm.model import langevin
from textebm.model.latent_model import LatentModel, ModelConfig
from textebm.model.learner import Learner
from textebm.model.random import stream
from textebm.model.recurrent import EOS, FIRST_OUTPUT

EXACT = {"rtol": 0, "atol": 1e-10}
SENTENCES = [[4, 5, 6, 4], [7], [], [5, 5, 9, 8, 10, 3], [6, 4]]
NO_PRIOR, NO_INFERENCE = PriorConfig(kind="none"), InferenceConfig(kind="none")


def make_model(vocab_size: int = 11, seed: int = 0, **generator) -> LatentModel:
    sizes = {"embedding_dim": 4, "hidden_dim": 5, "init_range": 0.7, "z_to_cell": generator.get("cell") != "gru"}
    config = ModelConfig(vocab_size, NO_PRIOR, GeneratorConfig(**{**sizes, **generator}), NO_INFERENCE)
    return LatentModel(config, seed)


def torchs_log_prob(model: LatentModel, sentence: list[int], cell: type[nn.Module]) -> torch.Tensor:
    """One sentence through torch's own embedding, recurrence, linear layer and cross-entropy, with the same weights."""
    theirs = cell(4, 5, batch_first=True).double()
    theirs.load_state_dict(model.generator.rnn.state_dict())
    words = torch.tensor([[1, *sentence]])
    states, _ = theirs(nn.functional.embedding(words, model.generator.embedding.weight))
    logits = nn.functional.linear(states[0], model.generator.output.weight, model.generator.output.bias)
    targets = torch.tensor([*sentence, EOS]) - FIRST_OUTPUT
    return -nn.functional.cross_entropy(logits, targets, reduction="sum")


@pytest.mark.parametrize("path", ["fast", "plain"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_log_likelihood_and_its_gradients_are_torchs(cell, path, make_batch):
    model = make_model(cell=cell).double()
    x = make_batch(SENTENCES, extra_columns=2)
    z = model.sample_prior(len(SENTENCES), torch.Generator().manual_seed(0))
    assert z.shape == (len(SENTENCES), 0)
    value = model.condition(x, path=path).log_prob(z)
    kind = {"lstm": nn.LSTM, "gru": nn.GRU}[cell]
    expected = torch.stack([torchs_log_prob(model, sentence, kind) for sentence in SENTENCES])
    torch.testing.assert_close(value, expected, **EXACT)
    shared = [model.generator.embedding.weight, model.generator.output.weight, model.generator.output.bias]
    for ours, theirs in zip(
        torch.autograd.grad(value.sum(), shared), torch.autograd.grad(expected.sum(), shared), strict=True
    ):
        torch.testing.assert_close(ours, theirs, **EXACT)


def test_nothing_of_z_is_left():
    """No weight of a map out of z, no column of the recurrence for it, no parameter of the prior, no density."""
    model = make_model()
    names = {name for name, _ in model.named_parameters()}
    layers = {f"rnn.{kind}_{where}_l0" for kind in ("weight", "bias") for where in ("ih", "hh")}
    assert names == {f"generator.{n}" for n in ("embedding.weight", "output.weight", "output.bias", *layers)}
    assert model.generator.rnn.weight_ih_l0.shape == (20, 4)
    z = model.sample_prior(3, torch.Generator())
    assert model.prior.log_reference(z).tolist() == model.prior.tilt(z).tolist() == [0, 0, 0]


def test_probabilities_of_all_sentences_sum_to_1(make_batch):
    """Over the sentences of at most 3 words out of 2, and what remains for the longer ones."""
    model = make_model(vocab_size=6).double()
    words, total, longer = (3, 4, 5), 0.0, 0.0
    sentences = [[]]
    for _ in range(4):
        x = make_batch(sentences)
        z = model.sample_prior(len(sentences), torch.Generator())
        total += model.log_prob(x, z).exp().sum().item()
        sentences = [[*s, w] for s in sentences for w in words]
    for prefix in sentences:  # of 4 words: the probability of what they begin
        x = make_batch([prefix])
        ends = torchs_log_prob(model, prefix, nn.LSTM)
        states, _ = model.generator.hidden_states(
            model.generator.embedding(x.inputs), z[:1], model.generator.initial_state(z[:1])
        )
        of_end = model.generator.output(states[0, -1]).log_softmax(0)[EOS - FIRST_OUTPUT]
        longer += (ends - of_end).exp().item()
    assert total + longer == pytest.approx(1, abs=1e-12)
    assert 0.1 < longer < 0.9


@pytest.mark.parametrize(("prior", "inference"), [("none", "short-run"), ("gaussian", "none"), ("ebm", "none")])
def test_none_of_both_or_of_neither(prior, inference):
    parts = {"prior": PriorConfig(kind=prior), "inference": InferenceConfig(kind=inference)}
    for make in (lambda: Config(**parts), lambda: ModelConfig(11, **parts)):
        with pytest.raises(ConfigError, match=rf"prior\.kind is '{prior}' and inference\.kind is '{inference}'"):
            make()


def learner_of(model: LatentModel, **optimiser) -> Learner:
    config = Config(prior=NO_PRIOR, inference=NO_INFERENCE, optimiser=OptimiserConfig(**optimiser))
    return Learner(model, config, steps_per_epoch=10)


def test_no_chain_is_run(make_batch, monkeypatch):
    monkeypatch.setattr(langevin, "step", lambda *_: pytest.fail("a chain made a step"))
    learner = learner_of(make_model())
    report = learner.step(make_batch(SENTENCES), 0)
    assert set(learner.optimisers()) == {"generator"}
    assert report.log_prob.item() < 0
    assert report.posterior_norm == report.prior_norm == report.posterior_displacement == report.prior_energy == 0


def test_a_step_is_one_of_maximum_likelihood(make_batch):
    """By hand: the gradient of the mean log-likelihood, clipped, and Adam's first step, which is lr × its sign."""
    model, x = make_model(seed=3), make_batch(SENTENCES)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    z = model.sample_prior(len(SENTENCES), torch.Generator())
    gradients = torch.autograd.grad(-model.condition(x).log_prob(z).mean(), list(model.parameters()))
    learner_of(model, lr=1e-3, clip=0.0, kind="plain").step(x, 0)
    for (name, parameter), gradient in zip(model.named_parameters(), gradients, strict=True):
        expected = before[name] - 1e-3 * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=1e-6)


def test_training_approaches_the_entropy_of_a_markov_source(make_batch):
    """A sentence goes on with probability 0.8, each word with what depends on the word before: 3 words, order 1."""
    after = {1: (0.8, 0.1, 0.1), 4: (0.1, 0.9, 0.0), 5: (0.0, 0.2, 0.8), 6: (0.7, 0.0, 0.3)}
    source = random.Random(1)

    def write() -> tuple[list[int], float]:
        """A sentence and its log-probability."""
        words, last, log_prob = [], 1, 0.0
        while source.random() < 0.8 and len(words) < 30:
            word = source.choices((4, 5, 6), after[last])[0]
            log_prob += math.log(0.8 * after[last][word - 4])
            words, last = [*words, word], word
        return words, log_prob + math.log(0.2)

    model = make_model(vocab_size=7, embedding_dim=8, hidden_dim=16, init_range=0.3)
    learner = learner_of(model, lr=0.02, schedule="linear")
    learner.steps_per_epoch, steps = 10, 300
    assert learner.config.epochs * learner.steps_per_epoch == steps
    for number in range(steps):
        learner.step(make_batch([write()[0] for _ in range(64)]), number)
    sentences, known = zip(*(write() for _ in range(2000)), strict=True)
    z = model.sample_prior(2000, stream(0, "prior"))
    excess = torch.tensor(known) - model.log_prob(make_batch(sentences), z)  # of each sentence, in nats
    assert excess.mean() == pytest.approx(0, abs=0.05)
    entropy = -sum(known) / len(known)
    assert entropy > 3  # so that 0.05 is little
