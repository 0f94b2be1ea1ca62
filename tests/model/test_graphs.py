"""Recorded chains: with a stand-in for the recording, on the CPU; tests/gpu has real ones."""

import gc
import weakref
from collections.abc import Callable

import pytest
import torch

from textebm.config import PriorConfig
from textebm.model import energy, graphs, inference, langevin

SENTENCES = [[4, 5, 6], [7], [], [10, 9, 8, 7, 6]]


class Again:
    """A recording that does its work again: like a CUDA graph it works on what stands in the same places."""

    made = 0

    def __init__(self, work: Callable[[], None]) -> None:
        Again.made += 1
        work()  # `graphs.record` does it once, too, before it records
        self.work = work

    def replay(self) -> None:
        self.work()


@pytest.fixture
def prior():
    torch.manual_seed(3)
    return energy.EBMPrior(PriorConfig(latent_dim=3, width=8, steps=6, step_size=(0.5, 0.3))).double()


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(9)


PLANS = [langevin.schedule(5, 0.4), langevin.schedule(4, (0.5, 0.2), 0.0), langevin.schedule(6, 0.3, (0.0, 1.0, 0.5))]


@pytest.mark.parametrize("plan", PLANS)
def test_a_recorded_chain_is_the_chain(prior, generator, plan):
    chain = None
    for _ in range(3):
        start = prior.sample_reference(7, generator)
        chain = chain or graphs.Chain(start, prior.frozen(), plan, Again)
        expected = langevin.run(start, prior.potential, plan, seeded())
        torch.testing.assert_close(chain.run(start, seeded()), expected, rtol=0, atol=1e-12)


def test_a_recorded_chain_sees_weights_that_changed_in_place(prior, generator):
    start = prior.sample_reference(7, generator)
    chain = graphs.Chain(start, prior.frozen(), PLANS[0], Again)
    before = chain.run(start, seeded())
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.mul_(3)
    after = chain.run(start, seeded())
    assert (after - before).abs().max() > 0.01
    expected = langevin.run(start, prior.potential, PLANS[0], seeded())
    torch.testing.assert_close(after, expected, rtol=0, atol=1e-12)


def test_an_end_is_not_overwritten_by_the_next_chain(prior, generator):
    start = prior.sample_reference(7, generator)
    chain = graphs.Chain(start, prior.frozen(), PLANS[0], Again)
    first = chain.run(start, seeded())
    kept = first.clone()
    chain.run(2 * start, seeded())
    assert torch.equal(first, kept)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_chain_by_recorded_steps_is_the_chain(prior, make_generator, make_batch, generator, cell, plan):
    conditioned = make_generator(cell=cell).condition(make_batch(SENTENCES))
    assert conditioned.recordable
    potential = inference.posterior_potential(prior, conditioned)
    start = prior.sample_reference(len(SENTENCES), generator)
    kept = start.clone()
    found = graphs.run_by_steps(start, potential, plan, seeded(), Again)
    expected = langevin.run(start, potential, plan, seeded())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert torch.equal(start, kept)


def test_a_source_of_noise_a_row_goes_the_same_way(prior, make_generator, make_batch, generator):
    def sources() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in range(len(SENTENCES))]

    potential = inference.posterior_potential(prior, make_generator(cell="lstm").condition(make_batch(SENTENCES)))
    start = prior.sample_reference(len(SENTENCES), generator)
    found = graphs.run_by_steps(start, potential, PLANS[0], sources(), Again)
    torch.testing.assert_close(found, langevin.run(start, potential, PLANS[0], sources()), rtol=0, atol=1e-12)
    assert not torch.allclose(found, graphs.run_by_steps(start, potential, PLANS[0], seeded(), Again))


def test_a_prior_records_once_a_number_of_samples(monkeypatch, prior):
    plain = [prior.sample(n, seeded()) for n in (5, 5, 6)]
    monkeypatch.setattr(graphs, "possible", lambda z: True)
    monkeypatch.setattr(graphs, "record", Again)
    Again.made = 0
    recorded = [prior.sample(n, seeded()) for n in (5, 5, 6)]
    assert Again.made == 2
    for one, other in zip(recorded, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    prior.float()  # other weights in other places: recorded anew
    prior.sample(5, seeded())
    assert Again.made == 3
    for n in range(20, 20 + 2 * graphs.MOST_CHAINS):
        prior.sample(n, seeded())
    assert len(prior.recorded) == graphs.MOST_CHAINS


@pytest.mark.parametrize(("options", "recordings"), [({"outputs": 3}, 1), ({"spectral_norm": True}, 0)])
def test_options_of_the_energy_follow_weights_that_change(monkeypatch, options, recordings):
    """Several outputs are recorded; normalised weights are not, since a recording would read the former ones."""
    torch.manual_seed(3)
    prior = energy.EBMPrior(PriorConfig(latent_dim=3, width=8, steps=6, **options)).double()
    monkeypatch.setattr(graphs, "record", Again)
    Again.made = 0
    for _ in range(2):
        source = seeded()
        start = prior.sample_reference(5, source)
        expected = langevin.run(start, prior.potential, prior.chain(), source)
        monkeypatch.setattr(graphs, "possible", lambda z: True)
        torch.testing.assert_close(prior.sample(5, seeded()), expected, rtol=0, atol=1e-12)
        with torch.no_grad():
            for parameter in prior.parameters():
                parameter.add_(torch.randn_like(parameter))
        prior.refine_norms()
    assert Again.made == recordings


def test_on_a_cpu_nothing_is_recorded(generator):
    assert not graphs.possible(torch.zeros(3, 2))


class Forgetful:
    """A recording that holds nothing of what it recorded, as a CUDA graph does."""

    def __init__(self, work) -> None:
        work()

    def replay(self) -> None:
        pass


def test_what_a_recording_reads_lives_as_long_as_it(prior):
    """The potential's buffers are read at each replay, long after whoever made it is gone."""
    potential = prior.frozen()
    kept = weakref.ref(potential)
    chain = graphs.Chain(torch.zeros(2, 3, dtype=torch.float64), potential, PLANS[0], Forgetful)
    del potential
    gc.collect()
    assert kept() is chain.potential
