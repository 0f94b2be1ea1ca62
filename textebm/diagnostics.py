"""Whether chains have arrived: R-hat, effective sample size, acceptance, a bound on a divergence, short against long.

Chains start from the reference Gaussian (a learned sampler's prior chains from its draws), which is wider than what
they aim at. Their first half is left out of R-hat and of effective sample sizes. Both are `arviz`'s, of ranks: Vehtari,
Gelman, Simpson, Carpenter and Bürkner, "Rank-normalization, folding, and localization: an improved R-hat for assessing
convergence of MCMC", Bayesian Analysis 2021. Figures of chains are U in nats, the energy −f(z) in nats, the norm ‖z‖,
and the coordinates of z, of which the worst one counts.
"""

import dataclasses
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from textebm import evaluation
from textebm.analysis import no_tick, prior_plan, require_latent, short_run_steps
from textebm.data.dataset import Dataset
from textebm.errors import UsageError
from textebm.model import ais, langevin, metropolis, short_run
from textebm.model.discrepancy import Discrepancy, mmd
from textebm.model.inference import posterior_potential
from textebm.model.langevin import Potential, Schedule
from textebm.model.latent_model import LatentModel
from textebm.model.random import stream
from textebm.model.short_run import Bound, visits

MIXING_CHAINS = 32
"""Prior chains of which R-hat and effective sample size are taken."""
BARS = 40
"""Of a histogram."""
FIGURES = ("potential", "energy", "norm", "coordinates")


@dataclasses.dataclass(frozen=True)
class Spread:
    """A figure of several posteriors; of a prior, which is one, both are the same."""

    median: float
    worst: float

    def as_dict(self) -> dict[str, Any]:
        """In JSON types."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class ChainDiagnostics:
    """What is known of the chains of a prior, or of some posteriors."""

    target: str
    """prior or posterior."""
    posteriors: int
    """Sentences or images whose posteriors were walked on; 1 of a prior."""
    chains: int
    """Chains of each."""
    steps: int
    """Their length."""
    short_run_steps: int
    """Length of the chain of training, at the start of them."""
    burn_in: int
    """Steps that R-hat and effective sample sizes leave out."""
    rhat: dict[str, Spread | None]
    """R-hat by figure (potential, energy, norm, coordinates): near 1 where chains agree with one another; above about
    1.01 they do not. None where a figure does not move."""
    ess: dict[str, Spread | None]
    """Effective sample size by figure, of all kept draws of all chains: how many independent draws would know the mean
    as well."""
    draws: int
    """Draws of each target that were kept, of the chains that R-hat is taken of."""
    acceptance: list[float] | None
    """Mean over chains of the probability that Metropolis's choice would have accepted each step; None where steps have
    no noise."""
    kl_bound: Bound | None = None
    """KL(short-run ‖ target) is at most this, in nats: log Z − E[log w], w the weight of a path (`model/short_run.py`).
    A bound, often a loose one; of posteriors the mean over them."""
    kl_bound_withheld: str | None = None
    """Why there is no bound."""

    @property
    def short_run_acceptance(self) -> float | None:
        """Mean over the steps of the chain of training."""
        return _mean(self.acceptance and self.acceptance[: self.short_run_steps])

    @property
    def long_run_acceptance(self) -> float | None:
        """Mean over the steps behind the burn-in."""
        return _mean(self.acceptance and self.acceptance[self.burn_in :])

    def as_dict(self) -> dict[str, Any]:
        """In JSON types."""
        return dataclasses.asdict(self) | {
            "short_run_acceptance": self.short_run_acceptance,
            "long_run_acceptance": self.long_run_acceptance,
            "kl_bound": None if self.kl_bound is None else self.kl_bound._asdict(),
        }


@dataclasses.dataclass(frozen=True)
class ShortAndLong:
    """Short-run samples of the prior beside those that long chains end in."""

    samples: int
    """Of each kind; the two come from different chains."""
    long_steps: int
    """Length of the long chains."""
    mmd: Discrepancy
    """Maximum mean discrepancy of the two in z, with the p-value of a permutation test."""
    edges: list[float]
    """Borders of the bars of the histograms of energies −f(z), in nats."""
    short: list[int]
    """Short-run samples in each bar."""
    long: list[int]
    """Ends of long chains in each bar."""
    posterior: list[int] | None
    """Posterior samples of held-out x in each bar, where there were any."""
    energy: dict[str, float]
    """Mean energy of each kind, in nats."""

    def as_dict(self) -> dict[str, Any]:
        """In JSON types."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Diagnostics:
    """Everything that is known of a model's chains."""

    prior: ChainDiagnostics
    posterior: ChainDiagnostics | None
    posterior_withheld: str | None
    """Why there is nothing of posterior chains, where there is not."""
    short_and_long: ShortAndLong
    log_normaliser: float | None
    """log Z of the prior in nats, the larger of two estimates; None where they disagree, or where none was made."""

    def as_dict(self) -> dict[str, Any]:
        """In JSON types."""
        return {
            "prior": self.prior.as_dict(),
            "posterior": None if self.posterior is None else self.posterior.as_dict(),
            "posterior_withheld": self.posterior_withheld,
            "short_and_long": self.short_and_long.as_dict(),
            "log_normaliser": self.log_normaliser,
        }


def diagnose(
    model: LatentModel,
    data: Dataset | None = None,
    *,
    steps: int = 1000,
    chains: int = 256,
    posteriors: int = 8,
    posterior_chains: int = 8,
    posterior_steps: int = 200,
    posterior: Float[Tensor, "samples latent"] | None = None,
    plan: ais.Plan | None = None,
    seed: int = 0,
    tick: Callable[[int], object] = no_tick,
) -> Diagnostics:
    """Diagnose prior and posterior chains.

    Memory: the second half of `MIXING_CHAINS` prior chains, and of all posterior chains, is kept, 4 bytes a number.

    Args:
        model: a model with z, on its device.
        data: held-out sentences or images, for posterior chains; None: nothing is said of them.
        steps: length of the prior chains, at least 8 and at least K0.
        chains: prior chains, at least 4, and as many short-run samples beside them.
        posteriors: samples of x, spread evenly over the data.
        posterior_chains: chains of each, at least 2.
        posterior_steps: their length, at least 8 and at least K1.
        posterior: posterior samples of z for the histograms, one a row; reverse runs for log Z start there too.
        plan: how log Z is found, for the bound; None: there is no bound.
        seed: of everything random.
        tick: told of each step that is made.

    Raises:
        UsageError: arviz is not installed, the model has no z, or a number makes no sense.
    """
    require_latent(model)
    require_arviz()
    if min(steps, posterior_steps) < 8 or chains < 4 or posterior_chains < 2 or posteriors < 1:
        raise UsageError("diagnostics want chains of at least 8 steps, 4 prior chains, and 2 chains of 1 posterior")
    for what, length, short in (
        ("prior", steps, short_run_steps(model)),
        ("posterior", posterior_steps, 0 if data is None else model.config.inference.steps),
    ):
        if length < short:
            raise UsageError(f"{what} chains of {length} steps are shorter than those of training, which have {short}")
    normaliser = None if plan is None else _normaliser(model, plan, seed, posterior)
    prior, ends = _of_prior(model, steps, chains, normaliser, seed, tick)
    why_not = _no_posterior(model, data)
    found = None
    if why_not is None and data is not None:
        found = _of_posterior(model, data, posteriors, posterior_chains, posterior_steps, seed, tick)
    beside = _short_and_long(model, ends, steps, posterior, seed)
    known = None if normaliser is None or normaliser.withheld is not None else normaliser.value
    return Diagnostics(prior, found, why_not, beside, known)


def require_arviz() -> None:
    """Check that R-hat and effective sample sizes can be computed.

    Raises:
        UsageError: arviz is not installed.
    """
    if find_spec("arviz") is None:
        raise UsageError("diagnostics of chains need arviz: pip install 'textebm[diagnostics]'")


# ---- chains


@dataclasses.dataclass(frozen=True)
class _Seen:
    """What was seen of chains.

    steps: length of the chains. draws: (draws, chains, figures) potential, energy, norm and coordinates at the steps
    behind the burn-in. acceptance: (steps,) None where steps have no noise. log_weights: of the short run's paths; None
    for the same reason. end: where the chains ended.
    """

    steps: int
    draws: Float[Tensor, "draws chains figures"]
    acceptance: Float[Tensor, " steps"] | None
    log_weights: Float[Tensor, " chains"] | None
    end: Float[Tensor, "chains latent"]


@torch.no_grad()
def _watch(
    model: LatentModel,
    start: Float[Tensor, "chains latent"],
    potential: Potential,
    plan: Schedule,
    short: int,
    kept: int,
    noise: torch.Generator,
    tick: Callable[[int], object],
) -> _Seen:
    """Run chains and look at every step; nothing in here waits for the device.

    Args:
        model: the model.
        start: where the chains start.
        potential: U and ∇U.
        plan: step sizes and temperatures.
        short: steps of the short run, whose paths are weighed.
        kept: of so many chains, the first ones, the second half is kept.
        noise: of the moves.
        tick: told of each step.
    """
    noisy, burn_in, sigma = min(plan.temperatures) > 0, plan.steps // 2, model.config.prior.sigma
    draws = start.new_empty(plan.steps - burn_in, kept, 3 + start.shape[1])
    acceptance = torch.empty(plan.steps, dtype=torch.float64, device=start.device)
    ratios = torch.zeros(len(start), dtype=torch.float64, device=start.device)
    before, weights, point = None, None, None
    for number, point in enumerate(visits(start, potential, plan, noise)):
        if before is not None and noisy:
            size, temperature = plan.step_sizes[number - 1], plan.temperatures[number - 1]
            acceptance[number - 1] = metropolis.langevin_acceptance(before, point, size, temperature).mean()
            ratios += metropolis.log_kernel_ratio(before, point, size, temperature) * (number <= short)
        if number == short and noisy:
            weights = short_run.path_log_weights(start, point, ratios, sigma)
        if number > burn_in:
            z = point.z[:kept]
            figures = [point.potential[:kept, None], model.energy(z)[:, None], z.norm(dim=1, keepdim=True), z]
            draws[number - burn_in - 1] = torch.cat(figures, 1)
        before = point
        tick(1)
    assert point is not None  # a chain has a start
    return _Seen(plan.steps, draws, acceptance if noisy else None, weights, point.z)


def _of_prior(
    model: LatentModel,
    steps: int,
    chains: int,
    normaliser: "_Normaliser | None",
    seed: int,
    tick: Callable[[int], object],
) -> tuple[ChainDiagnostics, Float[Tensor, "chains latent"]]:
    """Of the prior's chains; and where they ended."""
    noise = stream(seed, "diagnostics", 0, device=model.device)
    start = model.prior_start(model.prior.sample_reference(chains, noise), noise)
    short, kept = short_run_steps(model), min(chains, MIXING_CHAINS)
    seen = _watch(model, start, model.prior.frozen(), prior_plan(model, steps), short, kept, noise, tick)
    bound, why_not = _prior_bound(model, seen, normaliser)
    return _described("prior", seen, 1, short, bound, why_not), seen.end


def _no_posterior(model: LatentModel, data: Dataset | None) -> str | None:
    """Why there are no posterior chains to diagnose, if there are none."""
    config = model.config.inference
    if data is None:
        return "no held-out data were given"
    if not model.method.has_chain:
        return f"inference.kind is {config.kind}: z is inferred without a chain"
    if config.preconditioner != "none":
        return f"the posterior chain's steps are preconditioned (inference.preconditioner: {config.preconditioner})"
    return None


def _of_posterior(
    model: LatentModel,
    data: Dataset,
    posteriors: int,
    chains: int,
    steps: int,
    seed: int,
    tick: Callable[[int], object],
) -> ChainDiagnostics:
    """Of chains on the posteriors of some x, all from the reference Gaussian, whatever starts them in training."""
    rows = evaluation.spread(len(data), posteriors)
    x = data.batch(rows).to(model.device).repeated(chains)
    noise = stream(seed, "diagnostics", 2, device=model.device)
    start = model.prior.sample_reference(len(rows) * chains, noise)
    config = model.config.inference
    plan = langevin.schedule(steps, config.step_size, config.temperature)
    with torch.no_grad():
        potential = posterior_potential(model.inference_prior, model.condition(x))
    seen = _watch(model, start, potential, plan, config.steps, len(start), noise, tick)
    return _described("posterior", seen, len(rows), config.steps, None, "log p(x) is not estimated here")


def _described(
    target: str, seen: _Seen, posteriors: int, short: int, bound: Bound | None, why_not: str | None
) -> ChainDiagnostics:
    kept, chains, figures = seen.draws.shape
    draws = seen.draws.double().cpu().numpy().reshape(kept, posteriors, chains // posteriors, figures)
    draws = draws.transpose(1, 3, 2, 0)  # (posteriors, figures, chains, draws)
    rhat, ess = mixing(draws)
    return ChainDiagnostics(
        target=target,
        posteriors=posteriors,
        chains=len(seen.end) // posteriors,
        steps=seen.steps,
        short_run_steps=short,
        burn_in=seen.steps - kept,
        rhat=rhat,
        ess=ess,
        draws=chains // posteriors * kept,
        acceptance=None if seen.acceptance is None else seen.acceptance.tolist(),
        kl_bound=bound,
        kl_bound_withheld=why_not,
    )


def mixing(draws: NDArray[np.float64]) -> tuple[dict[str, Spread | None], dict[str, Spread | None]]:
    """R-hat and effective sample size by figure.

    Args:
        draws: (posteriors, figures, chains, draws); the figures are potential, energy, norm, and every coordinate of z.
    """
    with _arviz() as arviz:
        return _by_figure(draws, arviz.rhat, np.nanmax), _by_figure(draws, arviz.ess, np.nanmin)


def _by_figure(
    draws: NDArray[np.float64], measure: Callable[[NDArray[np.float64]], Any], worst: Callable[..., Any]
) -> dict[str, Spread | None]:
    """A measure of draws (posteriors, figures, chains, draws) by the name of the figure."""
    found = np.array(  # (posteriors, figures); a figure that does not move has neither R-hat nor a sample size
        [[float(measure(figure)) if np.ptp(figure) > 0 else np.nan for figure in one] for one in draws]
    )
    named = {name: found[:, number] for number, name in enumerate(FIGURES[:-1])}
    coordinates = found[:, len(named) :]
    spread: dict[str, Spread | None] = {}
    for name in FIGURES:
        moving = named[name][:, None] if name in named else coordinates
        if not np.isfinite(moving).any(axis=1).all():
            spread[name] = None
            continue
        each = worst(moving, axis=1)
        spread[name] = Spread(float(np.median(each)), float(worst(each)))
    return spread


@contextmanager
def _arviz() -> Iterator[ModuleType]:
    """arviz, without what it says of its own future and of figures that do not move."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import arviz

        yield arviz


def _mean(values: list[float] | None) -> float | None:
    return float(np.mean(values)) if values else None


# ---- the bound, and short against long


@dataclasses.dataclass(frozen=True)
class _Normaliser:
    """log Z in nats, its standard error, and why it is not believed where it is not."""

    value: float
    standard_error: float
    withheld: str | None = None


def _normaliser(model: LatentModel, plan: ais.Plan, seed: int, posterior: Tensor | None) -> _Normaliser:
    """log Z: exact of a Gaussian, else the larger of a forward and a reverse estimate."""
    if not model.config.prior.is_tilted:
        return _Normaliser(0.0, 0.0)
    found = ais.estimate(
        model.prior, plan, seed, starts=None if posterior is None else posterior.to(model.prior.origin)
    )
    runs = (found.forward.log_normaliser, found.reverse.log_normaliser)
    larger = max(runs, key=lambda run: run.value)
    if found.agrees:
        return _Normaliser(larger.value, larger.standard_error)
    why_not = (
        f"log Z is {runs[0].value:.2f} by the forward and {runs[1].value:.2f} by the reverse run: they differ by more "
        f"than {ais.LARGEST_GAP} nats, so neither is believed"
    )
    return _Normaliser(larger.value, larger.standard_error, why_not)


def _prior_bound(model: LatentModel, seen: _Seen, normaliser: _Normaliser | None) -> tuple[Bound | None, str | None]:
    """The bound on KL(short-run prior ‖ prior), or why there is none."""
    if normaliser is None:
        return None, "log Z was not estimated"
    if model.draws_prior_starts:
        return None, "chains start from a learned sampler's draws, whose density is not known"
    if seen.log_weights is None:
        return None, "a step without noise has no way back"
    if normaliser.withheld is not None:
        return None, normaliser.withheld
    return short_run.kl_bound(normaliser.value, seen.log_weights, normaliser.standard_error), None


def _short_and_long(
    model: LatentModel, ends: Float[Tensor, "chains latent"], steps: int, posterior: Tensor | None, seed: int
) -> ShortAndLong:
    """Short-run samples of their own beside the ends of long chains."""
    short = model.sample_prior(len(ends), stream(seed, "diagnostics", 1, device=model.device))
    kinds = {"short": short, "long": ends} | ({} if posterior is None else {"posterior": posterior.to(ends)})
    energies = {name: model.energy(z).double().cpu().numpy() for name, z in kinds.items()}
    edges = np.histogram_bin_edges(np.concatenate(list(energies.values())), BARS)
    counts = {name: np.histogram(energy, edges)[0].tolist() for name, energy in energies.items()}
    return ShortAndLong(
        samples=len(ends),
        long_steps=steps,
        mmd=mmd(short, ends, stream(seed, "diagnostics", 3, device=model.device)),
        edges=edges.tolist(),
        short=counts["short"],
        long=counts["long"],
        posterior=counts.get("posterior"),
        energy={name: float(energy.mean()) for name, energy in energies.items()},
    )


def posterior_samples(
    model: LatentModel, data: Dataset, seed: int, samples: int = 256
) -> Float[Tensor, "samples latent"]:
    """One posterior sample of z for each of some held-out x, spread evenly over the data."""
    return evaluation.posterior_chains(model, data, seed, samples, chains=1)[:, 0]
