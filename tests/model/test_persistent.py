"""Kept prior chains: their stationary law where it is known, and which of them move."""

import math

import pytest
import torch

from textebm.config import Config, GeneratorConfig, InferenceConfig, OptimiserConfig, PriorConfig
from textebm.errors import CheckpointError
from textebm.model.energy import EBMPrior
from textebm.model.latent_model import LatentModel, ModelConfig
from textebm.model.learner import Learner
from textebm.model.persistent import PersistentChains

SLOPE = torch.tensor([1.5, -0.5], dtype=torch.float64)
SIZE = 0.5


def source(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear_prior(steps: int = 2) -> EBMPrior:
    """f(z) = wᵀz under σ = 1: the prior is N(w, I), and the chain's law has variance 1/(1 − s²/4)."""
    prior = EBMPrior(PriorConfig(latent_dim=2, depth=0, steps=steps, step_size=SIZE)).double()
    with torch.no_grad():
        prior.mlp[0].weight.copy_(SLOPE)
    return prior


def test_kept_chains_reach_the_law_that_chains_begun_anew_do_not():
    count = 8000
    chains = PersistentChains(linear_prior(), count, 0.0, source(1))
    for number in range(60):  # each moves half of the chains by 2 steps: 60 steps a chain, of which (7/8)^60 is left
        moved, _ = chains.advance(count // 2, source(100 + number), source(200 + number))
        assert moved.shape == (count // 2, 2)
    variance = 1 / (1 - SIZE**2 / 4)
    assert ((chains.z.mean(0) - SLOPE).abs() < 5 * math.sqrt(variance / count) + 1e-3).all()
    assert ((chains.z.var(0) / variance - 1).abs() < 5 * math.sqrt(2 / count) + 1e-3).all()
    anew = linear_prior().sample(count, source(3))
    assert (anew.mean(0) - SLOPE).abs().max() > 0.5


def test_restarted_chains_have_the_law_of_a_mixture_of_ages():
    """With a share r begun anew, a chain's age is geometric: E z = w (1 − Σ_k r (1−r)^k a^(k+1)), a = (1 − s²/2)^K0."""
    count, share, contraction = 20_000, 0.25, (1 - SIZE**2 / 2) ** 2
    chains = PersistentChains(linear_prior(), count, share, source(1))
    for number in range(40):
        chains.advance(count, source(100 + number), source(200 + number))
    left = share * contraction / (1 - (1 - share) * contraction)
    assert ((chains.z.mean(0) - SLOPE * (1 - left)).abs() < 5 * math.sqrt(2 / count)).all()


def test_only_the_chosen_chains_move_each_once():
    chains = PersistentChains(linear_prior(), 50, 0.0, source(1))
    before = chains.z.clone()
    moved, _ = chains.advance(12, source(2), source(3))
    changed = (chains.z != before).any(1)
    assert int(changed.sum()) == 12
    ours, theirs = chains.z[changed], moved
    torch.testing.assert_close(ours.sort(0).values, theirs.sort(0).values)


def test_fewer_chains_than_asked_for_all_move():
    assert PersistentChains(linear_prior(), 5, 0.0, source(1)).advance(12, source(2), source(3))[0].shape == (5, 2)


def test_a_share_of_1_begins_every_chain_anew():
    chains = PersistentChains(linear_prior(steps=0), 6, 1.0, source(1))
    chains.z.fill_(100.0)
    assert chains.advance(6, source(2), source(3))[0].abs().max() < 10


def learner(kept: int, kind: str = "ebm") -> Learner:
    prior = PriorConfig(kind=kind, latent_dim=2, width=4, steps=2, persistent=kept)
    sizes, chain = GeneratorConfig(embedding_dim=2, hidden_dim=3), InferenceConfig(steps=2, step_size=0.2)
    model = LatentModel(ModelConfig(6, prior, sizes, chain), seed=5)
    return Learner(model, Config(prior=prior, generator=sizes, inference=chain, optimiser=OptimiserConfig()), 1)


def test_the_learners_chains_go_on_from_step_to_step(make_batch):
    ours = learner(2)
    kept = ours.state()["chains"].clone()
    report = ours.step(make_batch([[5, 5], [4]]), 0)
    assert not torch.equal(ours.state()["chains"], kept)
    torch.testing.assert_close(report.prior_norm, ours.state()["chains"].norm(dim=1).mean())


def test_a_gaussian_prior_keeps_none():
    assert learner(7, "gaussian").state() == {}


@pytest.mark.parametrize(
    "state", [{}, {"chains": torch.zeros(3, 2)}, {"chains": torch.zeros(7, 2), "x": torch.ones(1)}]
)
def test_another_state_is_refused(state):
    with pytest.raises(CheckpointError, match="not those of this model"):
        learner(7).restore(state)


@pytest.mark.parametrize("reject", [False, True])
def test_kept_chains_that_explode_are_counted_and_put_back_where_that_is_asked_for(reject):
    prior = EBMPrior(PriorConfig(latent_dim=2, depth=0, steps=20, step_size=40.0)).double()
    chains = PersistentChains(prior, 6, 0.0, source(1), reject)
    before = chains.z.clone()
    end, exploded = chains.advance(6, source(2), source(3))
    assert exploded == 6
    assert torch.equal(end.sort(0).values, before.sort(0).values) == reject
    assert torch.equal(chains.z, before) == reject
