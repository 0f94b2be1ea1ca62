"""How much z tells of x: KL(q‖p) and mutual information of a diagonal Gaussian q(z|x).

q is an encoder's Gaussian, or one fitted to several posterior chains of each sentence, since where short chains end has
no density of its own (`fitted_gaussian`, `entropy_of_chains`; figures from them are to be named so). All in nats.

    E_x KL(q(z|x) ‖ p(z)) = I_q(x; z) + KL(q(z) ‖ p(z)),   q(z) = E_x q(z|x)

Source: Hoffman and Johnson, "ELBO surgery", NIPS 2016 workshop on approximate Bayesian inference; the estimator of
I_q is the one of He, Spokoyny, Neubig and Berg-Kirkpatrick, "Lagging Inference Networks and Posterior Collapse in
Variational Autoencoders", ICLR 2019.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from textebm.model.energy import GaussianPrior

SMALLEST_VARIANCE = 1e-12
"""Of a fitted Gaussian: chains that all end in one place would have a density of infinity there."""

BLOCK = 4_000_000
"""Numbers in the largest intermediate tensor of `mutual_information`."""


def log_density(
    z: Float[Tensor, "*#rows latent"],
    mean: Float[Tensor, "*#rows latent"],
    log_variance: Float[Tensor, "*#rows latent"],
) -> Float[Tensor, "*all_rows"]:
    """log N(z; mean, diag(exp(log_variance))) of each row, in nats; rows broadcast."""
    squares = (z - mean).square() * (-log_variance).exp()
    return -0.5 * (squares + log_variance + math.log(2 * math.pi)).sum(-1)


def entropy(log_variance: Float[Tensor, "sentences latent"]) -> Float[Tensor, " sentences"]:
    """Entropy of each Gaussian."""
    return 0.5 * (log_variance + math.log(2 * math.pi * math.e)).sum(1)


def kl_to_prior(
    samples: Float[Tensor, "sentences draws latent"],
    entropies: Float[Tensor, " sentences"],
    prior: GaussianPrior,
    log_normaliser: float = 0.0,
) -> Float[Tensor, " sentences"]:
    """KL(q(z|x) ‖ p(z)) of each sentence: −H(q) − E_q[f(z) + log N(z; 0, σ²I)] + log Z, E_q by the samples.

    Args:
        samples: of q(z|x), several a sentence, in the prior's dtype.
        entropies: H(q(z|x)): `entropy`, or `entropy_of_chains`.
        prior: p.
        log_normaliser: log Z of the prior; 0 under a Gaussian.
    """
    z = samples.flatten(0, 1)
    with torch.no_grad():
        unnormalised = (prior.tilt(z) + prior.log_reference(z)).view(samples.shape[:2])
    return log_normaliser - entropies - unnormalised.mean(1).to(entropies.device).to(entropies.dtype)


def mutual_information(
    samples: Float[Tensor, "sentences draws latent"],
    mean: Float[Tensor, "sentences latent"],
    log_variance: Float[Tensor, "sentences latent"],
) -> Float[Tensor, ""]:
    """I_q(x; z) over these sentences: the mean of log q(z|x) − log q(z), with q(z) the mean of their q(z|x).

    It is log(sentences) at most, which it reaches where every sentence has a place of its own, and 0 where q ignores x.

    Args:
        samples: of q(z|x), one or several a sentence.
        mean: of q(z|x).
        log_variance: of q(z|x).
    """
    sentences, draws, latent = samples.shape
    owners = torch.arange(sentences, device=samples.device).repeat_interleave(draws)
    total = samples.new_zeros((), dtype=torch.float64)
    rows = max(1, BLOCK // (sentences * latent))
    for z, owner in zip(torch.split(samples.flatten(0, 1), rows), torch.split(owners, rows), strict=True):
        every = log_density(z[:, None], mean[None], log_variance[None])  # (rows, sentences)
        aggregate = every.logsumexp(1) - math.log(sentences)
        total += (every.gather(1, owner[:, None]).squeeze(1) - aggregate).double().sum()
    return total / (sentences * draws)


def fitted_gaussian(
    samples: Float[Tensor, "sentences chains latent"],
) -> tuple[Float[Tensor, "sentences latent"], Float[Tensor, "sentences latent"]]:
    """Mean and log-variance of a diagonal Gaussian fitted to the chains of each sentence, for `mutual_information`.

    Means over few chains differ where q ignores x, too, and taken as they are they would tell nats of nothing (3 in 32
    dimensions with 10 chains). So each dimension's means are drawn together by the share of their spread over
    sentences that few chains explain, and the variance is one for all sentences: a random-effects fit (Efron and
    Morris, "Data Analysis Using Stein's Estimator and its Generalizations", 1975). That a sentence's posterior is
    narrower than another's is not seen.

    Args:
        samples: end points of at least 2 posterior chains of each of at least 2 sentences.
    """
    means, within = samples.mean(1), samples.var(1).mean(0).clamp_min(SMALLEST_VARIANCE)
    noise = within / samples.shape[1]
    between = variance_of_means(samples).clamp_min(0)
    centre = means.mean(0)
    fitted = centre + between / (between + noise) * (means - centre)
    return fitted, within.log().expand_as(means)


def variance_of_means(samples: Float[Tensor, "sentences chains latent"]) -> Float[Tensor, " latent"]:
    """Variance over sentences of the posterior mean, without the share that a mean over few chains adds (below 0 by
    chance where there is none); 0 of a single sentence."""
    if len(samples) < 2:
        return torch.zeros_like(samples[0, 0])
    return samples.mean(1).var(0) - samples.var(1).mean(0) / samples.shape[1]


def entropy_of_chains(samples: Float[Tensor, "sentences chains latent"]) -> Float[Tensor, " sentences"]:
    """Entropy of the diagonal Gaussian that each sentence's chains come from, without bias if they come from one.

    The log of a variance estimated from n chains is too small by log((n − 1)/2) − ψ((n − 1)/2) on average, which over
    many dimensions is nats: 1.8 in 32 dimensions with 10 chains.

    Args:
        samples: end points of at least 2 chains a sentence.
    """
    half = torch.tensor((samples.shape[1] - 1) / 2, dtype=torch.float64)
    log_variance = samples.var(1).clamp_min(SMALLEST_VARIANCE).log()
    return entropy(log_variance + float(half.log() - torch.digamma(half)))
