"""Every way to infer z: one contract for all, and the laws of each."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from textebm.config import (
    BoundConfig,
    Config,
    EncoderConfig,
    GeneratorConfig,
    InferenceConfig,
    OptimiserConfig,
    PriorConfig,
    SamplerConfig,
)
from textebm.errors import UsageError
from textebm.model import bound, inference, likelihood
from textebm.model.encoder import DiagonalGaussian
from textebm.model.energy import PRIORS
from textebm.model.inference import METHODS, Chains, Request
from textebm.model.latent_model import LatentModel, ModelConfig
from textebm.model.learner import EncoderReport, Learner, SamplerReport
from textebm.model.random import stream
from textebm.model.recurrent import TextBatch

STILL = 1e-300  # a learning rate that changes no weight: Adam's step is far below the last digit
SENTENCES = [[5, 5, 4], [5], []]
KINDS = sorted(set(METHODS) - {"none"})  # a plain language model has no z: tests/model/test_latent_model.py
PRIORS_OF_Z = sorted(set(PRIORS) - {"none"})
ENCODERS = [kind for kind in KINDS if METHODS[kind].has_encoder]


class Remembered:
    """Persistent chains of one batch."""

    def __init__(self, z: Tensor) -> None:
        self.z, self.visits = z, 0

    def read(self) -> Tensor:
        return self.z

    def write(self, z: Tensor) -> None:
        self.z, self.visits = z.detach(), self.visits + 1


def make(kind: str, prior: str = "ebm", latent_dim: int = 2, bounded: BoundConfig | None = None, **optimiser):
    """A float64 model in which z matters, and the configuration of a run."""
    config = Config(
        prior=PriorConfig(kind=prior, latent_dim=latent_dim, width=4, steps=3, step_size=0.3, activation="tanh"),
        generator=GeneratorConfig(embedding_dim=2, hidden_dim=3, init_range=1.0),
        inference=InferenceConfig(kind=kind, steps=4, step_size=0.3),
        encoder=EncoderConfig(init_range=1.0, dropout=0.1),
        sampler=SamplerConfig(steps=3, width=8, depth=2, features=4, condition_dropout=0.5, updates=2),
        bound=bounded or BoundConfig(),
        optimiser=OptimiserConfig(**{"lr": STILL, "energy_lr": STILL, "clip": 0.0, "energy_clip": 0.0, **optimiser}),
        seed=11,
    )
    parts = (config.prior, config.generator, config.inference, config.encoder, config.sampler)
    return LatentModel(ModelConfig(6, *parts), seed=5).double(), config


def chains_for(model: LatentModel, n: int) -> Remembered | None:
    start = model.prior.sample_reference(n, torch.Generator().manual_seed(4))
    return Remembered(start) if model.method.is_persistent else None


def log_likelihood(model: LatentModel, x: TextBatch, z: Tensor) -> Tensor:
    """log p(x|z) of every sentence at every point: (sentences, points)."""
    every = TextBatch(*(part.repeat_interleave(len(z), dim=0) for part in x))
    with torch.no_grad():
        return model.condition(every).log_prob(z.repeat(len(x.lengths), 1)).view(len(x.lengths), len(z))


@pytest.mark.parametrize("prior", PRIORS_OF_Z)
@pytest.mark.parametrize("kind", KINDS)
class TestContract:
    """What every way to infer z promises, under every prior."""

    def test_a_sample_a_sentence_decided_by_the_seed(self, kind, prior, make_batch):
        model, _ = make(kind, prior)
        x = make_batch(SENTENCES)
        one, same, other = (model.infer(x, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
        assert one.shape == (3, 2)
        assert one.isfinite().all()
        assert not one.requires_grad
        assert torch.equal(one, same)
        assert not torch.equal(one, other)

    def test_with_a_source_a_sentence_it_depends_on_no_other(self, kind, prior, make_batch):
        model, _ = make(kind, prior)

        def sources(*seeds: int) -> list[torch.Generator]:
            return [torch.Generator().manual_seed(seed) for seed in seeds]

        together = model.infer(make_batch(SENTENCES), sources(1, 2, 3))
        others = model.infer(make_batch([SENTENCES[2], SENTENCES[0]]), sources(3, 1))
        torch.testing.assert_close(together[[2, 0]], others, rtol=1e-9, atol=1e-12)
        assert not torch.allclose(together[0], model.infer(make_batch(SENTENCES), sources(4, 2, 3))[0])

    def test_in_both_modes_and_with_or_without_grad(self, kind, prior, make_batch):
        model, _ = make(kind, prior)
        x, z = make_batch(SENTENCES), []
        for mode, grad in ((True, True), (False, True), (False, False)):
            model.train(mode)
            with torch.set_grad_enabled(grad):
                z.append(model.infer(x, torch.Generator().manual_seed(1)))
        assert torch.equal(z[0], z[1])  # without dropout, whatever the mode
        assert torch.equal(z[0], z[2])

    def test_where_samples_come_from(self, kind, prior, make_batch, generator):
        model, config = make(kind, prior)
        x = make_batch(SENTENCES)
        z, start, q = model.posterior(Request(x, model.condition(x), config.inference, generator))
        assert torch.equal(z, start) == (not model.method.has_chain)
        assert (q is not None) == model.method.has_encoder == (model.encoder is not None)

    def test_a_step_changes_every_weight(self, kind, prior, make_batch):
        model, config = make(kind, prior, lr=1e-2, energy_lr=1e-2)
        before = {name: weight.clone() for name, weight in model.named_parameters()}
        learner = Learner(model, config, 1)
        report = learner.step(make_batch([[4, 5, 3], [5], []]), 0, chains_for(model, 3))
        unmoved = {name for name, weight in model.named_parameters() if torch.equal(weight, before[name])}
        if prior == "ratio":  # learned one after the other, each from its last layer on
            unmoved = {name for name in unmoved if not name.startswith("prior.ratios") or ".0.mlp.4.w" in name}
        assert unmoved <= {"prior.mlp.4.bias"}  # a constant in f changes no distribution
        assert all(value.shape == () and not value.requires_grad for value in report.__dict__.values())
        assert all(math.isfinite(value) for value in report.__dict__.values())
        assert isinstance(report, EncoderReport) == model.method.has_encoder
        assert isinstance(report, SamplerReport) == model.method.has_sampler
        parts = {"generator": True, "energy": prior != "gaussian"}
        parts |= {"encoder": model.method.has_encoder, "sampler": model.method.has_sampler}
        owners = {name.partition("-")[0] for name in learner.optimisers()}  # energy-2: of a second ratio
        assert owners == {name for name, there in parts.items() if there}

    def test_a_step_leaves_the_global_generator_alone(self, kind, prior, make_batch):
        model, config = make(kind, prior)
        before = torch.random.get_rng_state()
        Learner(model, config, 1).step(make_batch(SENTENCES), 0, chains_for(model, 3))
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_learning_raises_the_likelihood(self, kind, prior, make_batch):
        model, config = make(kind, prior, 1, lr=0.02, energy_lr=0.002, clip=5.0, energy_clip=1.0)
        few, x = make_batch(SENTENCES[:2]), make_batch(SENTENCES[:2] * 8)
        z, cell = likelihood.grid(1, points=61)
        learner, chains = Learner(model, config, 60), chains_for(model, 16)

        def log_marginal() -> float:
            with torch.no_grad():
                exact = likelihood.log_marginal(model.prior, lambda p: log_likelihood(model, few, p), z, cell)
            return float(exact.mean())

        before = log_marginal()
        for number in range(60):
            learner.step(x, number, chains)
        assert before + 1 < log_marginal() < -math.log(2)  # no model can beat the entropy of the corpus

    def test_saving_and_loading_is_exact(self, kind, prior, tmp_path):
        model, _ = make(kind, prior)
        model = model.float()
        model.save_pretrained(tmp_path)
        loaded = LatentModel.from_pretrained(tmp_path)
        assert loaded.config == model.config
        assert loaded.state_dict().keys() == model.state_dict().keys()
        assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in loaded.state_dict().items())


def test_methods_by_name():
    assert set(METHODS) <= set(InferenceConfig.__annotations__["kind"].__args__)


def test_without_an_encoder_there_is_nothing_to_ask(make_batch):
    with pytest.raises(UsageError, match="short-run has no encoder"):
        make("short-run")[0].encode(make_batch(SENTENCES))


@pytest.mark.parametrize("prior", ["ebm", "ratio"])
@pytest.mark.parametrize("kind", KINDS)
class TestUnderTheReferencePrior:
    """With `inference.prior: reference` all but the tilt is the model with a Gaussian prior."""

    def twins(self, kind: str, prior: str) -> tuple[tuple[LatentModel, Config], tuple[LatentModel, Config]]:
        """A model with this prior, and the one with a Gaussian prior that has its other weights."""
        tilted, config = make(kind, prior, lr=1e-2, energy_lr=1e-2)
        inferred = dataclasses.replace(config.inference, prior="reference")
        config = dataclasses.replace(config, inference=inferred)
        tilted.config = dataclasses.replace(tilted.config, inference=inferred)
        gaussian, plain = make(kind, "gaussian", lr=1e-2, energy_lr=1e-2)
        rest = {name: w for name, w in tilted.state_dict().items() if not name.startswith("prior.")}
        gaussian.load_state_dict(rest, strict=False)
        return (tilted, config), (gaussian, plain)

    def test_z_is_inferred_as_under_a_gaussian_prior(self, kind, prior, make_batch):
        (tilted, _), (gaussian, _) = self.twins(kind, prior)
        x = make_batch(SENTENCES)
        both = [model.infer(x, torch.Generator().manual_seed(1)) for model in (tilted, gaussian)]
        assert torch.equal(*both)
        learned = dataclasses.replace(tilted.config.inference, prior="learned")
        tilted.config = dataclasses.replace(tilted.config, inference=learned)
        if tilted.method.has_chain and prior == "ebm":  # what the setting is for
            assert not torch.allclose(both[0], tilted.infer(x, torch.Generator().manual_seed(1)))

    def test_steps_teach_all_else_what_they_teach_the_gaussian_twin(self, kind, prior, make_batch):
        twins = self.twins(kind, prior)
        before = [weight.clone() for weight in twins[0][0].prior.parameters()]
        for model, config in twins:
            learner, chains = Learner(model, config, 1), chains_for(model, 3)
            for number in range(2):
                learner.step(make_batch(SENTENCES), number, chains)
        (tilted, _), (gaussian, _) = twins
        taught = gaussian.state_dict()
        assert all(torch.equal(w, taught[n]) for n, w in tilted.state_dict().items() if not n.startswith("prior."))
        assert not all(map(torch.equal, before, tilted.prior.parameters()))


class TestEncoderLearns:
    @pytest.mark.parametrize("prior", PRIORS_OF_Z)
    @pytest.mark.parametrize("kind", ENCODERS)
    def test_what_it_descends(self, make_batch, kind, prior):
        """The gradients that a step leaves, against autograd of the formula at the same samples."""
        settings = BoundConfig(kl_weight=0.6, free_bits=0.1) if kind == "amortised" else BoundConfig()
        model, config = make(kind, prior, bounded=settings)
        x, number = make_batch(SENTENCES), 3
        report = Learner(model, config, 1).step(x, number)
        masks = stream(config.seed, "dropout", number)
        q = model.encode(x, masks)
        noise = stream(config.seed, "posterior", number)
        z = q.sample(noise)
        if kind == "amortised":
            term = 0.6 * bound.kl_with_free_bits(q, z, model.prior, settings)
            loss = term - model.condition(x).log_prob(z).mean()
        else:
            z = inference.posterior_chain(model.prior, model.condition(x), z.detach(), config.inference, noise)
            term = -q.log_prob(z).mean()
            loss = term - model.condition(x).log_prob(z).mean()
        for part in (model.encoder, model.generator):
            known = torch.autograd.grad(loss, list(part.parameters()), retain_graph=True)
            torch.testing.assert_close([p.grad for p in part.parameters()], list(known), rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(report.encoder_loss, term.detach())
        assert report.kl_weight == (0.6 if kind == "amortised" else 0)
        norm = torch.cat([p.grad.flatten() for p in model.encoder.parameters()]).norm()
        torch.testing.assert_close(report.encoder_gradient_norm, norm)

    def test_it_finds_the_gaussian_nearest_to_a_known_posterior(self, make_batch):
        """The generator stays as it is; what minimises KL(q ‖ posterior) is found apart, by integration on a grid."""
        model, config = make("amortised", "gaussian", 1, encoder_lr=0.02, schedule="linear")
        model.encoder.config = dataclasses.replace(model.encoder.config, dropout=0.0)
        with torch.no_grad():
            for parameter in model.generator.parameters():
                parameter.mul_(3)
        few, copies = make_batch([[5] * 6, [4] * 6, []]), 64
        x = TextBatch(*(part.repeat_interleave(copies, dim=0) for part in few))
        learner = Learner(model, dataclasses.replace(config, epochs=1), 300)
        for number in range(300):
            learner.encoder_step(x, number, 1)

        z, cell = likelihood.grid(1, points=301)
        joint = log_likelihood(model, few, z) + likelihood.log_prior(model.prior, z, cell)
        nearest = nearest_gaussians(joint, z, cell)
        found = model.encode(few)
        deviation = (0.5 * nearest.log_variance).exp()
        assert ((found.mean - nearest.mean).abs() < 0.15 * deviation).all()
        assert ((found.log_variance - nearest.log_variance).abs() < 0.2).all()
        assert nearest.mean.max() - nearest.mean.min() > 1.5  # they are not one and the same
        assert nearest.log_variance.min() < -0.5  # nor all the prior

    def test_an_encoder_step_moves_the_encoder_alone(self, make_batch):
        model, config = make("amortised", lr=0.1, energy_lr=0.1)
        learner, x = Learner(model, config, 1), make_batch(SENTENCES)
        before = {name: weight.clone() for name, weight in model.named_parameters()}
        losses = [learner.encoder_step(x, 0, update) for update in (1, 2)]
        moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
        assert moved == {name for name in before if name.startswith("encoder.")}
        assert losses[0] != losses[1]

    def test_a_step_can_leave_it_as_it_is(self, make_batch):
        model, config = make("amortised", lr=0.1)
        before = {name: weight.clone() for name, weight in model.encoder.named_parameters()}
        Learner(model, config, 1).step(make_batch(SENTENCES), 0, update_encoder=False)
        assert all(torch.equal(weight, before[name]) for name, weight in model.encoder.named_parameters())

    def test_its_rate_and_its_clipping_are_its_own(self, make_batch):
        model, config = make("amortised", lr=0.1, clip=9.0, encoder_lr=0.3, encoder_clip=0.01)
        learner = Learner(model, config, 1)
        report = learner.step(make_batch(SENTENCES), 0)
        rates = {name: o.param_groups[0]["lr"] for name, o in learner.optimisers().items()}
        assert rates == pytest.approx({"generator": 0.1, "energy": STILL, "encoder": 0.3})
        left = torch.cat([p.grad.flatten() for p in model.encoder.parameters()]).norm()
        assert left == pytest.approx(0.01, rel=1e-3)
        assert report.encoder_gradient_norm > 0.01

    def test_a_new_generator_leaves_the_encoder_as_it_is(self, make_batch):
        model, config = make("amortised", lr=0.1)
        learner = Learner(model, config, 1)
        learner.step(make_batch(SENTENCES), 0)
        before = {name: weight.clone() for name, weight in model.named_parameters()}
        learner.reset_generator(1)
        moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
        assert moved == {name for name in before if name.startswith("generator.")}
        assert max(float(p.detach().abs().max()) for p in model.generator.parameters()) <= 1.0  # its range
        state = {name: len(o.state_dict()["state"]) for name, o in learner.optimisers().items()}
        assert state["generator"] == state["encoder"] == 0
        assert state["energy"] > 0


def nearest_gaussians(joint: Tensor, z: Tensor, cell: float) -> DiagonalGaussian:
    """The N(m, v) of least KL from each posterior ∝ exp(joint), by gradient descent on the exact KL."""
    weights = joint.softmax(1)
    mean = (weights @ z).clone().requires_grad_()
    log_variance = ((weights @ z.square()) - (weights @ z).square()).log().detach().requires_grad_()
    optimiser = torch.optim.Adam([mean, log_variance], lr=0.02)
    for _ in range(400):
        squares = (z[None, :, 0] - mean).square() * (-log_variance).exp()
        log_q = -0.5 * (squares + log_variance + math.log(2 * math.pi))
        loss = (log_q.exp() * cell * (log_q - joint)).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return DiagonalGaussian(mean.detach(), log_variance.detach())


class TestAmortisedThenLangevin:
    def test_a_long_chain_without_noise_ends_in_the_mode(self, make_batch):
        model, config = make("amortised-langevin", latent_dim=1)
        x = make_batch(SENTENCES)
        settings = dataclasses.replace(config.inference, steps=600, step_size=0.3, temperature=0.0)
        with torch.no_grad():
            z = model.posterior(Request(x, model.condition(x), settings, torch.Generator().manual_seed(1))).z
        points, cell = likelihood.grid(1, points=2401)
        joint = log_likelihood(model, x, points) + likelihood.log_prior(model.prior, points, cell)
        torch.testing.assert_close(z[:, 0], points[joint.argmax(1), 0], rtol=0, atol=0.006)  # the grid's spacing

    def test_it_begins_where_the_encoder_says(self, make_batch):
        model, config = make("amortised-langevin")
        x = make_batch(SENTENCES)
        with torch.no_grad():
            start = model.posterior(Request(x, model.condition(x), config.inference, stream(0, "posterior"))).start
            assert torch.equal(start, model.encode(x).sample(stream(0, "posterior")))


class TestPersistent:
    def test_two_visits_are_one_chain_of_twice_the_length(self, make_batch):
        """Without noise, so that the random streams of the two visits do not matter."""
        x, ends = make_batch(SENTENCES), []
        for steps, visits in ((4, 2), (8, 1)):
            model, config = make("persistent")
            settings = dataclasses.replace(config.inference, steps=steps, temperature=0.0)
            learner, chains = Learner(model, dataclasses.replace(config, inference=settings), 1), chains_for(model, 3)
            start = chains.z
            for number in range(visits):
                learner.step(x, number, chains)
            assert chains.visits == visits
            assert not torch.equal(chains.z, start)
            ends.append(chains.z)
        torch.testing.assert_close(*ends, rtol=0, atol=1e-12)

    def test_training_needs_the_chains(self, make_batch):
        model, config = make("persistent")
        with pytest.raises(ValueError, match="needs the chains of its sentences"):
            Learner(model, config, 1).step(make_batch(SENTENCES), 0)

    def test_a_new_sentence_has_a_short_run_chain(self, make_batch):
        x = make_batch(SENTENCES)
        z = [make(kind)[0].infer(x, torch.Generator().manual_seed(1)) for kind in ("persistent", "short-run")]
        assert torch.equal(*z)

    def test_the_protocol(self):
        assert isinstance(Remembered(torch.zeros(1, 1)), Chains)


class TestPhasesOfTheWeight:
    def test_the_learner_asks_for_the_weight_of_its_step(self, make_batch):
        schedule = BoundConfig(kl_schedule="linear", kl_annealing=0.5)
        model, config = make("amortised", bounded=schedule)
        learner = Learner(model, dataclasses.replace(config, epochs=2), steps_per_epoch=10)
        weights = [float(learner.step(make_batch(SENTENCES), number).kl_weight) for number in (0, 5, 10, 19)]
        assert weights == pytest.approx([0, 0.5, 1, 1])
