"""Whether two sets of samples come from one distribution: maximum mean discrepancy, with a permutation test.

Source: Gretton, Borgwardt, Rasch, Schölkopf and Smola, "A kernel two-sample test", JMLR 2012: the unbiased estimate is
their equation 3, and the median heuristic for the kernel's width their section 8.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Discrepancy:
    """The maximum mean discrepancy of two sets of samples."""

    squared: float
    """The unbiased estimate of MMD², without a unit: 0 in expectation where both come from one distribution, when it is
    negative as often as not; at most 2."""
    bandwidth: float
    """h of the kernel exp(−‖a − b‖²/2h²), in units of the samples: the median distance of two points of both sets."""
    p_value: float
    """How often sets that are drawn from both without regard to where they belong differ at least as much."""
    permutations: int
    """Such sets behind the p-value, which is at least 1/(permutations + 1)."""


def mmd(
    first: Float[Tensor, "first latent"],
    second: Float[Tensor, "second latent"],
    generator: torch.Generator,
    permutations: int = 999,
) -> Discrepancy:
    """Maximum mean discrepancy under a Gaussian kernel, whose width is the median distance of the pooled points.

    Args:
        first: independent samples of one distribution, at least two.
        second: independent samples of the other, at least two, and independent of the first.
        generator: of the permutations, on the device of the samples.
        permutations: behind the p-value.

    Raises:
        ValueError: a set has fewer than two samples.
    """
    n, m = len(first), len(second)
    if min(n, m) < 2:
        raise ValueError(f"an unbiased estimate needs two samples of each set, and there are {n} and {m}")
    pooled = torch.cat([first, second]).double()
    squares = torch.cdist(pooled, pooled, compute_mode="donot_use_mm_for_euclid_dist").square()
    above = torch.triu_indices(n + m, n + m, offset=1, device=pooled.device)
    bandwidth = squares[above[0], above[1]].sqrt().median()
    kernel = torch.exp(-squares / (2 * bandwidth.square().clamp(min=torch.finfo(torch.float64).tiny)))
    kernel.fill_diagonal_(0)
    belongs = pooled.new_zeros(n + m, permutations + 1)  # column 0: as they are; then at random
    belongs[:n, 0] = 1
    order = torch.rand(n + m, permutations, generator=generator, device=pooled.device).argsort(0)
    belongs[:, 1:] = (order < n).double()
    values = _unbiased(kernel, belongs, n, m)
    at_least = int((values[1:] >= values[0] - 1e-12).sum())  # equal splits are summed in another order
    return Discrepancy(float(values[0]), float(bandwidth), (1 + at_least) / (1 + permutations), permutations)


def _unbiased(
    kernel: Float[Tensor, "points points"], belongs: Float[Tensor, "points splits"], n: int, m: int
) -> Float[Tensor, " splits"]:
    """MMD² of each way to split the points in two, from their kernel with zeros on the diagonal."""
    sums = kernel @ belongs  # of each point, over the points of the first set
    within_first = (belongs * sums).sum(0)
    across = ((1 - belongs) * sums).sum(0)
    within_second = kernel.sum() - within_first - 2 * across
    return within_first / (n * (n - 1)) + within_second / (m * (m - 1)) - 2 * across / (n * m)
