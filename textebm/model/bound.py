"""The bound on log p(x) that amortised inference maximises, and the cures of its collapse.

log p(x) ≥ E_q[log p(x|z)] − KL(q(z|x) ‖ p(z)),   KL = Σ_d KL(q_d ‖ N(0, σ²)) − E_q[f(z)] + log Z

Under a Gaussian prior f = 0 and log Z = 0, and the KL is the closed form. Under an EBM prior the sum is exact too;
E_q[f] is taken at the sample; log Z, which q cannot change, is left out, and figures are up to that constant.
Source: Kingma and Welling, ICLR 2014; with an EBM prior: Pang and Wu, SVEBM, ICML 2021.
"""

import math

from jaxtyping import Float
from torch import Tensor

from textebm.config import BoundConfig
from textebm.model.encoder import DiagonalGaussian
from textebm.model.energy import GaussianPrior


def kl_divergence(
    q: DiagonalGaussian, z: Float[Tensor, "batch latent"], prior: GaussianPrior
) -> Float[Tensor, " batch"]:
    """KL(q ‖ p) of each sentence in nats, up to log Z of the prior.

    Args:
        q: of each sentence.
        z: a sample of each, at which the tilt f is taken.
        prior: p.
    """
    return q.kl_from_reference(prior.config.sigma).sum(1) - prior.tilt(z)


def kl_with_free_bits(
    q: DiagonalGaussian, z: Float[Tensor, "batch latent"], prior: GaussianPrior, config: BoundConfig
) -> Float[Tensor, ""]:
    """Mean KL a sentence, in which a dimension below its share of the free bits counts as that share.

    So it has no gradient until it is above. The shares are of the closed-form part, KL(q ‖ N(0, σ²I)). Under an EBM
    prior they can be bought for nothing: q and the prior move away from N(0, σ²I) together.
    Source: by the batch, Kingma et al., "Improved variational inference with inverse autoregressive flow", NeurIPS
    2016; by the sentence, Li et al., "A surprisingly effective fix for deep latent variable modeling of text", EMNLP
    2019.
    """
    by_dimension = q.kl_from_reference(prior.config.sigma)
    if config.free_bits > 0:
        share = config.free_bits / by_dimension.shape[1]
        held = by_dimension.mean(0, keepdim=True) if config.free_bits_over == "batch" else by_dimension
        by_dimension = held.clamp(min=share)
    return by_dimension.sum(1).mean() - prior.tilt(z).mean()


def autoencoder_steps(config: BoundConfig, steps: int) -> int:
    """Learning steps of the pre-training without the KL term, of a run of `steps`."""
    return round(config.autoencoder * steps)


def last_change(config: BoundConfig, steps: int) -> int:
    """The learning step from which on the weight of the KL term stays the same, in a run of `steps`."""
    before = autoencoder_steps(config, steps)
    if config.kl_schedule == "constant":
        return before
    cycles = config.kl_cycles if config.kl_schedule == "cyclical" else 1
    return before + math.ceil((steps - before) * (cycles - 1 + config.kl_annealing) / cycles)


def kl_weight(config: BoundConfig, step: int, steps: int) -> float:
    """Weight of the KL term at a learning step.

    Source: 0 in a pre-training as an autoencoder (Li et al., EMNLP 2019); after it constant, a linear rise (Bowman et
    al., CoNLL 2016), or a linear rise in each of several cycles (Fu et al., NAACL 2019).

    Args:
        config: the schedule.
        step: the step's number, from 0.
        steps: learning steps of the whole run.
    """
    before = autoencoder_steps(config, steps)
    if step < before:
        return 0.0
    if config.kl_schedule == "constant":
        return config.kl_weight
    cycles = config.kl_cycles if config.kl_schedule == "cyclical" else 1
    length = steps - before
    done = min((step - before) * cycles % length if cycles > 1 else step - before, length) / length  # of a cycle
    risen = min(1.0, done / config.kl_annealing)
    return config.kl_start + (config.kl_weight - config.kl_start) * risen
