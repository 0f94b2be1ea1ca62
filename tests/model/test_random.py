"""Random streams: told apart by seed, name and key; the same for ever."""

import itertools

import pytest
import torch

from textebm.model.random import STREAMS, normal, refill, stream, stream_seed


def test_golden_seeds():
    """A change here changes the outcome of every run with a given seed."""
    assert stream_seed(0, "data") == 6097955008944251885
    assert stream_seed(0, "data", 0) == 9217518716386617704
    assert stream_seed(7, "prior", 3, 4) == 4672424213253948189
    assert stream_seed(7, "posterior", 3, 4) == 1451579505915014026
    assert stream_seed(2**32 + 5, "evaluation", 10**9) == 3493083559848622649


def test_every_use_has_a_seed_of_its_own():
    """Numbers on both sides of 32 bits, and keys that differ by zeros or by where they are cut."""
    numbers = (0, 1, 5, 2**32, 2**32 * 5 + 3)
    keys = [key for n in range(3) for key in itertools.product((0, 1, 11, 2**32), repeat=n)]
    seeds = [stream_seed(s, name, *key) for s in numbers for name in STREAMS for key in keys]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= s < 2**63 for s in seeds)


def test_streams_draw_different_numbers():
    draws = {name: torch.rand(4, generator=stream(1, name, 2)) for name in STREAMS}
    for one, other in itertools.combinations(draws.values(), 2):
        assert not torch.equal(one, other)
    assert torch.equal(torch.rand(4, generator=stream(1, "prior", 2)), draws["prior"])


def test_an_unknown_stream_is_refused():
    with pytest.raises(ValueError, match="no random stream 'weather'"):
        stream(0, "weather")


def test_one_source_for_a_batch_draws_what_torch_draws():
    like = torch.zeros(1, dtype=torch.float64)
    drawn, known = normal((3, 2), stream(1, "latents"), like), stream(1, "latents")
    assert torch.equal(drawn, torch.randn((3, 2), generator=known, dtype=torch.float64))
    filled, known = torch.zeros(3, 2, dtype=torch.float64), torch.zeros(3, 2, dtype=torch.float64)
    refill(filled, stream(1, "latents"))
    assert torch.equal(filled, known.normal_(generator=stream(1, "latents")))


def test_with_a_source_a_row_no_row_depends_on_the_others():
    like = torch.zeros(1)

    def rows(*keys: int) -> list[torch.Generator]:
        return [stream(1, "latents", key) for key in keys]

    three, two = normal((3, 4), rows(5, 6, 7), like), normal((2, 4), rows(7, 5), like)
    assert torch.equal(three[[2, 0]], two)
    filled = torch.zeros(3, 4)
    refill(filled, rows(5, 6, 7))
    assert torch.equal(filled, three)
    with pytest.raises(ValueError, match="2 sources of noise for 3 rows"):
        normal((3, 4), rows(1, 2), like)
