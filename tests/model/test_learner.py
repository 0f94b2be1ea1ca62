"""The learner's gradients against exact integration on a grid, and what a learning step does besides."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from textebm.config import (
    Config,
    GeneratorConfig,
    InferenceConfig,
    OptimiserConfig,
    PriorConfig,
    load_config,
    method_names,
)
from textebm.errors import UsageError
from textebm.model import likelihood
from textebm.model.latent_model import LatentModel, ModelConfig
from textebm.model.learner import Learner, learning_rate_factor
from textebm.model.recurrent import FastText, TextBatch

STILL = 1e-300  # a learning rate that changes no weight: Adam's step is far below the last digit
SENTENCES = [[5, 5, 5], [5]]
CHAINS = 4000  # a sentence


def model_and_config(latent_dim=1, kind="ebm", dropout=0.0, mask="chain", cell="lstm", steps=3, **optimiser):
    prior = PriorConfig(kind=kind, latent_dim=latent_dim, width=4, steps=steps, step_size=0.2, activation="tanh")
    sizes = GeneratorConfig(cell=cell, embedding_dim=2, hidden_dim=3, dropout=dropout, init_range=1.0)
    chain = InferenceConfig(steps=steps, step_size=0.2, dropout_mask=mask)
    model = LatentModel(ModelConfig(6, prior, sizes, chain), seed=5).double()
    rates = OptimiserConfig(**{"lr": STILL, "energy_lr": STILL, "clip": 0.0, "energy_clip": 0.0, **optimiser})
    return model, Config(prior=prior, generator=sizes, inference=chain, optimiser=rates, seed=11)


def repeat(x: TextBatch, times: int) -> TextBatch:
    return TextBatch(*(part.repeat_interleave(times, dim=0) for part in x))


def log_likelihood(model: LatentModel, x: TextBatch, z: Tensor) -> Tensor:
    """log p(x|z) of every sentence at every point: (sentences, points)."""
    every = model.condition(repeat(x, len(z))).log_prob(z.repeat(len(x.lengths), 1))
    return every.view(len(x.lengths), len(z))


def flat(gradients) -> Tensor:
    return torch.cat([g.flatten() for g in gradients])


def per_point(function, parameters, z: Tensor) -> Tensor:
    """The gradient of function(point) in the parameters, at each point: (points, parameters)."""
    values = function(z)
    return torch.stack([flat(torch.autograd.grad(v, parameters, retain_graph=True)) for v in values])


def moments(weights: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the gradient of each parameter under the weights of the points."""
    mean = weights @ gradients
    return mean, weights @ (gradients - mean).square()


class Exact:
    """Mean over sentences of the exact gradient of log p(x), and its standard error for CHAINS chains a sentence."""

    def __init__(self, model: LatentModel, x: TextBatch, points: int) -> None:
        self.alpha = list(model.prior.parameters())
        self.beta = list(model.generator.parameters())
        z, cell = likelihood.grid(model.config.prior.latent_dim, points=points, reach=5.0)
        log_prior = likelihood.log_prior(model.prior, z, cell)
        posterior = (log_likelihood(model, x, z) + log_prior).softmax(1).detach()  # (sentences, points)
        tilt = per_point(model.prior.tilt, self.alpha, z)
        under_prior = moments(log_prior.softmax(0).detach(), tilt)
        tilts = [moments(weights, tilt) for weights in posterior]
        words = [
            moments(posterior[i], per_point(lambda p, i=i: log_likelihood(model, row(x, i), p)[0], self.beta, z))
            for i in range(len(x.lengths))
        ]
        n = len(tilts)
        self.alpha_gradient = sum(m for m, _ in tilts) / n - under_prior[0]
        self.beta_gradient = sum(m for m, _ in words) / n
        self.alpha_error = ((sum(v for _, v in tilts) / n + under_prior[1]) / (n * CHAINS)).sqrt()
        self.beta_error = (sum(v for _, v in words) / n / (n * CHAINS)).sqrt()
        self.of_log_marginal = flat(
            torch.autograd.grad(
                likelihood.log_marginal(model.prior, lambda p: log_likelihood(model, x, p), z, cell).mean(),
                self.alpha + self.beta,
            )
        )


def row(x: TextBatch, i: int) -> TextBatch:
    return TextBatch(*(part[i : i + 1] for part in x))


def steepen(model: LatentModel) -> None:
    """Weights large enough for prior, posterior and reference Gaussian all to differ, yet each with one mode."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)


@pytest.mark.parametrize(
    ("latent_dim", "points", "cell", "micro_batch"),
    [(1, 81, "lstm", 0), (1, 81, "gru", 0), (2, 21, "lstm", 0), (1, 81, "lstm", 3 * CHAINS // 4)],
)
def test_learner_follows_the_exact_gradient(make_batch, latent_dim, points, cell, micro_batch):
    """∇log p(x) is E_post[∇f] − E_prior[∇f] in α and E_post[∇log p(x|z)] in β, and that is what the learner descends.

    Chains with small steps, long enough to forget their start, sample prior and posterior up to a bias of λs²/4 ≈ 1 %
    of a variance; the standard errors are exact too, from the same grid.
    """
    model, config = model_and_config(latent_dim, cell=cell, steps=150)
    config = dataclasses.replace(config, micro_batch=micro_batch)
    steepen(model)
    x = make_batch(SENTENCES)
    exact = Exact(model, x, points)
    expected = torch.cat([exact.alpha_gradient, exact.beta_gradient])
    torch.testing.assert_close(expected, exact.of_log_marginal, rtol=0, atol=1e-10)

    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    report = Learner(model, config, 1).step(repeat(x, CHAINS), 0)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    descended = (
        ("energy", exact.alpha, exact.alpha_gradient, exact.alpha_error, report.energy_gradient_norm),
        ("generator", exact.beta, exact.beta_gradient, exact.beta_error, report.gradient_norm),
    )
    for name, parameters, gradient, error, norm in descended:
        learned = -flat(p.grad for p in parameters)  # the optimiser descends, the likelihood ascends
        floor = 1e-12  # the last bias of f has gradient 0 and no error at all
        assert ((learned - gradient).abs() < 5 * error + floor).all(), name
        assert gradient.norm() > 6 * error.norm(), f"{name}: the test could not tell this gradient from none"
        torch.testing.assert_close(norm, learned.norm())


class Kept:
    """Persistent chains of a batch, in memory."""

    def __init__(self, z: Tensor) -> None:
        self.z = z

    def read(self) -> Tensor:
        return self.z

    def write(self, z: Tensor) -> None:
        self.z = z


class TestMicroBatches:
    MANY = ([5, 4, 5], [5], [4, 4], [5, 5, 5, 5], [4])

    def learn(self, make_batch, micro_batch):
        """One step along posterior chains without noise, which know nothing of the other sentences of their batch.

        Prior chains are kept from step to step, for parts of a batch would draw others.
        """
        model, config = model_and_config(lr=0.1, energy_lr=0.1)
        config = dataclasses.replace(config, prior=dataclasses.replace(config.prior, persistent=5))
        chain = dataclasses.replace(config.inference, kind="persistent", temperature=0.0)
        model = LatentModel(dataclasses.replace(model.config, inference=chain), seed=5).double()
        x = make_batch(self.MANY)
        kept = Kept(torch.linspace(-1, 1, x.batch_size, dtype=torch.float64)[:, None])
        config = dataclasses.replace(config, inference=chain, micro_batch=micro_batch)
        report = Learner(model, config, 1).step(x, 0, kept)
        return dict(model.named_parameters()), report, kept.z

    @pytest.mark.parametrize("micro_batch", [1, 2, 3, 5, 99])
    def test_the_parts_learn_what_the_batch_learns(self, make_batch, micro_batch):
        whole, parts = self.learn(make_batch, 0), self.learn(make_batch, micro_batch)
        torch.testing.assert_close(parts[2], whole[2], rtol=0, atol=1e-12)
        for name, weight in whole[0].items():
            torch.testing.assert_close(parts[0][name].grad, weight.grad, rtol=1e-9, atol=1e-12, msg=name)
        for name, value in vars(whole[1]).items():
            torch.testing.assert_close(getattr(parts[1], name), value, rtol=1e-9, atol=1e-12, msg=name)

    def test_no_more_is_worked_on_at_once(self, make_batch, monkeypatch):
        seen = []
        condition = LatentModel.condition
        monkeypatch.setattr(
            LatentModel, "condition", lambda self, x, *more: seen.append(x.batch_size) or condition(self, x, *more)
        )
        self.learn(make_batch, 2)
        assert seen == [2, 2, 1]

    def test_parts_have_noise_of_their_own(self, make_batch, monkeypatch):
        model, config = model_and_config()
        config = dataclasses.replace(config, micro_batch=1)
        learner = Learner(model, config, 1)
        seen, infer = [], Learner._infer
        monkeypatch.setattr(Learner, "_infer", lambda self, *a, **m: seen.append(infer(self, *a, **m)) or seen[-1])
        prior, move = [], model.prior.move
        monkeypatch.setattr(model.prior, "move", lambda start, noise: prior.append(move(start, noise)) or prior[-1])
        learner.step(make_batch([[5], [5], [5]]), 0)
        assert len({inferred.start.item() for _, inferred in seen}) == 3
        assert len({negative.item() for negative in prior}) == 3

    @pytest.mark.parametrize("method", method_names())
    def test_every_method_learns_from_parts(self, make_batch, method):
        base = model_and_config()[1]
        config = load_config("demo", method)
        sizes = {"generator": dataclasses.replace(base.generator, kind=config.generator.kind)}
        prior = dataclasses.replace(config.prior, latent_dim=min(2, config.prior.latent_dim), width=4, steps=2)
        chain = dataclasses.replace(config.inference, steps=1, sampled_softmax=0)
        config = dataclasses.replace(config, **sizes, prior=prior, inference=chain, micro_batch=2)
        model = LatentModel(ModelConfig(6, prior, base.generator, chain, config.encoder, config.sampler), seed=5)
        before = {name: weight.clone() for name, weight in model.named_parameters()}
        x = make_batch(self.MANY)
        kept = Kept(torch.zeros(x.batch_size, prior.latent_dim))
        learner = Learner(model, config, 1)
        learner.step(x, 0, kept if model.method.is_persistent else None)
        moved = {
            name.split(".")[0] for name, weight in model.named_parameters() if not torch.equal(weight, before[name])
        }
        assert "generator" in moved
        assert ("encoder" in moved) == (model.encoder is not None)

    @pytest.mark.parametrize(("micro_batch", "sizes"), [(0, [5]), (2, [2, 2, 1])])
    def test_extra_updates_of_the_encoder_learn_from_parts(self, make_batch, monkeypatch, micro_batch, sizes):
        model, config = model_and_config()
        chain = dataclasses.replace(config.inference, kind="amortised")
        model = LatentModel(dataclasses.replace(model.config, inference=chain), seed=5).double()
        config = dataclasses.replace(config, inference=chain, micro_batch=micro_batch)
        learner, seen = Learner(model, config, 1), []
        infer = Learner._infer
        monkeypatch.setattr(Learner, "_infer", lambda self, x, *k, **m: seen.append((x, k)) or infer(self, x, *k, **m))
        loss = learner.encoder_step(make_batch(self.MANY), 0, 1)
        assert [x.batch_size for x, _ in seen] == sizes
        weights = list(model.encoder.parameters())
        gathered = [weight.grad.clone() for weight in weights]
        total = 0.0
        for x, key in seen:  # each part by itself, with the same noise
            words, inferred = infer(learner, x, *key)
            total = total + x.batch_size * (learner._encoder_loss(inferred, 0) - words.log_prob(inferred.z).mean())
        assert loss.item() == pytest.approx(total.item())
        expected = [gradient / 5 for gradient in torch.autograd.grad(total, weights)]
        torch.testing.assert_close(gathered, expected)


class TestStep:
    def test_gaussian_prior_has_nothing_to_learn(self, make_batch):
        model, config = model_and_config(kind="gaussian", lr=0.1)
        assert list(model.prior.parameters()) == []
        learner = Learner(model, config, 1)
        assert set(learner.optimisers()) == {"generator"}
        report = learner.step(make_batch(SENTENCES), 0)
        assert report.posterior_energy == report.prior_energy == report.energy_gradient_norm == 0

    @pytest.mark.parametrize("cell", ["lstm", "gru"])
    def test_it_changes_every_weight(self, make_batch, cell):
        model, config = model_and_config(cell=cell, lr=1e-2, energy_lr=1e-2)
        before = {name: weight.clone() for name, weight in model.named_parameters()}
        Learner(model, config, 1).step(make_batch(SENTENCES), 0)
        unmoved = {name for name, weight in model.named_parameters() if torch.equal(weight, before[name])}
        assert unmoved <= {"prior.mlp.4.bias"}  # a constant in f changes no distribution

    def test_the_seed_and_the_number_decide_it(self, make_batch):
        def after(number, seed=11):
            model, config = model_and_config(dropout=0.5, lr=0.1, energy_lr=0.1)
            config = Config(**{**config.__dict__, "seed": seed})
            Learner(model, config, 1).step(make_batch(SENTENCES), number)
            return flat(p.detach() for p in model.parameters())

        assert torch.equal(after(3), after(3))
        assert not torch.equal(after(3), after(4))
        assert not torch.equal(after(3), after(3, seed=12))

    def test_it_leaves_the_global_generator_alone(self, make_batch):
        model, config = model_and_config(dropout=0.5, lr=0.1)
        before = torch.random.get_rng_state()
        Learner(model, config, 1).step(make_batch(SENTENCES), 0)
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_report(self, make_batch):
        model, config = model_and_config()
        report = Learner(model, config, 1).step(make_batch(SENTENCES), 0)
        assert all(value.shape == () and not value.requires_grad for value in report.__dict__.values())
        assert report.log_prob < 0
        assert report.posterior_displacement > 0

    def test_repeated_steps_raise_the_likelihood(self, make_batch):
        model, config = model_and_config(lr=0.03, energy_lr=0.003, clip=5.0, energy_clip=1.0)
        learner, x = Learner(model, config, 100), repeat(make_batch(SENTENCES), 8)
        z, cell = likelihood.grid(1, points=61)

        def log_marginal():
            with torch.no_grad():
                sentences = make_batch(SENTENCES)
                return likelihood.log_marginal(
                    model.prior, lambda p: log_likelihood(model, sentences, p), z, cell
                ).mean()

        before = log_marginal()
        for number in range(60):
            learner.step(x, number)
        assert log_marginal() > before + 1
        assert log_marginal() < -math.log(len(SENTENCES))  # no model can beat the entropy of the corpus


class TestClipping:
    @pytest.mark.parametrize("largest", [0.01, 0.0])
    def test_both_parts(self, make_batch, largest):
        model, config = model_and_config(clip=largest, energy_clip=largest)
        report = Learner(model, config, 1).step(make_batch(SENTENCES), 0)
        for part, norm in ((model.generator, report.gradient_norm), (model.prior, report.energy_gradient_norm)):
            assert norm > 0.01  # the report tells the norm before clipping
            left = flat(p.grad for p in part.parameters()).norm()
            expected = norm if largest == 0 else torch.full_like(norm, largest)
            torch.testing.assert_close(left, expected, rtol=1e-3, atol=0)

    def test_a_small_gradient_is_left_alone(self, make_batch):
        gradients = []
        for largest in (0.0, 1e6):
            model, config = model_and_config(clip=largest)
            Learner(model, config, 1).step(make_batch(SENTENCES), 0)
            gradients.append(flat(p.grad for p in model.generator.parameters()))
        assert torch.equal(*gradients)


@pytest.mark.parametrize("mask", ["chain", "step"])
def test_dropout_masks_of_chain_and_step(monkeypatch, make_batch, mask):
    """`chain`: every step and the learner see one mask. `step`: K1 + 1 masks, each its own."""
    seen: list[tuple[Tensor, Tensor]] = []
    for name in ("log_prob", "log_prob_and_grad"):
        plain = getattr(FastText, name)

        def watched(self, z, plain=plain):
            seen.append((self.input_mask, self.output_mask))
            return plain(self, z)

        monkeypatch.setattr(FastText, name, watched)
    model, config = model_and_config(dropout=0.5, mask=mask, steps=4)
    Learner(model, config, 1).step(make_batch([[4, 5, 4, 5, 4, 5]] * 4), 0)
    assert len(seen) == 5
    for part in zip(*seen, strict=True):
        different = {tuple(m.flatten().tolist()) for m in part}
        assert len(different) == (1 if mask == "chain" else 5)


class TestInference:
    @pytest.mark.parametrize("cell", ["lstm", "gru"])
    def test_it_works_in_both_modes_and_under_no_grad(self, make_batch, cell):
        model, _ = model_and_config(cell=cell, dropout=0.5)
        x, z = make_batch(SENTENCES), []
        for mode, grad in ((True, True), (False, True), (False, False)):
            model.train(mode)
            with torch.set_grad_enabled(grad):
                z.append(model.infer(x, torch.Generator().manual_seed(1)))
        assert torch.equal(z[0], z[1])  # inference is without dropout, whatever the mode
        assert torch.equal(z[0], z[2])
        assert all(p.grad is None for p in model.parameters())

    def test_chains_move_towards_the_posterior(self, make_batch):
        model, _ = model_and_config(steps=150)
        steepen(model)
        x = make_batch(SENTENCES)
        z, cell = likelihood.grid(1)
        log_joint = (log_likelihood(model, x, z) + likelihood.log_prior(model.prior, z, cell)).detach()
        weights = log_joint.softmax(1)
        mean = weights @ z[:, 0]
        variance = weights @ z[:, 0].square() - mean.square()
        chains = model.infer(repeat(x, CHAINS), torch.Generator().manual_seed(2)).view(len(SENTENCES), CHAINS)
        assert ((chains.mean(1) - mean).abs() < 5 * (variance / CHAINS).sqrt()).all()

    def test_steps_override(self, make_batch, generator):
        model, _ = model_and_config(steps=3)
        seeds = [torch.Generator().manual_seed(1) for _ in range(3)]
        x = make_batch(SENTENCES)
        three, default, five = (model.infer(x, g, n) for g, n in zip(seeds, (3, None, 5), strict=True))
        assert torch.equal(three, default)
        assert not torch.equal(three, five)


class TestLearningRate:
    def test_constant(self):
        assert learning_rate_factor(OptimiserConfig(), 12345, 10, 3) == 1

    def test_exponential_falls_by_the_epoch(self):
        config = OptimiserConfig(schedule="exponential", decay=0.5)
        assert [learning_rate_factor(config, step, 10, 3) for step in (0, 9, 10, 25)] == [1, 1, 0.5, 0.25]

    def test_linear_and_cosine_fall_to_zero(self):
        linear = OptimiserConfig(schedule="linear")
        cosine = OptimiserConfig(schedule="cosine")
        assert [learning_rate_factor(linear, step, 10, 2) for step in (0, 5, 10, 20, 99)] == [1, 0.75, 0.5, 0, 0]
        factors = [learning_rate_factor(cosine, step, 10, 2) for step in (0, 5, 10, 20, 99)]
        assert factors == pytest.approx([1, 0.5 + 0.5**1.5, 0.5, 0, 0])

    def test_warm_up_rises_in_a_line(self):
        config = OptimiserConfig(warmup_steps=4)
        assert [learning_rate_factor(config, step, 10, 2) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]

    def test_the_ebm_stands_still_until_its_share_of_the_steps(self, make_batch):
        model, config = model_and_config(lr=0.1, energy_lr=0.1, energy_start=0.5)
        learner = Learner(model, dataclasses.replace(config, epochs=2), steps_per_epoch=2)
        moved = []
        for number in range(4):
            parts = (model.prior, model.generator)
            before = [[weight.clone() for weight in part.parameters()] for part in parts]
            learner.step(make_batch([[5], [4, 5]]), number)
            still = [all(map(torch.equal, old, part.parameters())) for old, part in zip(before, parts, strict=True)]
            moved.append(not still[0])
            assert not still[1]
        assert moved == [False, False, True, True]

    def test_the_learner_sets_both_rates(self, make_batch):
        model, config = model_and_config(lr=0.1, energy_lr=0.01, schedule="exponential", decay=0.5)
        learner = Learner(model, config, steps_per_epoch=2)
        learner.step(make_batch(SENTENCES), 5)
        rates = {name: o.param_groups[0]["lr"] for name, o in learner.optimisers().items()}
        assert rates == pytest.approx({"generator": 0.025, "energy": 0.0025})

    def test_weight_decay_is_the_energys_alone(self):
        model, config = model_and_config(energy_weight_decay=0.3)
        decays = {n: o.param_groups[0]["weight_decay"] for n, o in Learner(model, config, 1).optimisers().items()}
        assert decays == {"generator": 0, "energy": 0.3}


@pytest.mark.parametrize("native", [True, False])
def test_automatic_precision_is_the_one_that_the_device_multiplies_in(monkeypatch, make_batch, native):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)

    def after_a_step(precision: str) -> tuple[str, Tensor]:
        model, config = model_and_config(lr=0.1)
        learner = Learner(model.float(), dataclasses.replace(config, precision=precision), 1)
        learner.step(make_batch(SENTENCES), 0)
        return learner.precision, flat(model.parameters())

    known = "bf16" if native else "fp32"
    chosen, weights = after_a_step("auto")
    assert chosen == known
    assert torch.equal(weights, after_a_step(known)[1])
    assert not torch.equal(weights, after_a_step("fp32" if native else "bf16")[1])


def test_the_plain_way_in_16_bits_is_refused_where_torch_has_none(monkeypatch):
    for name in ("avx512_bf16", "amx_tile"):
        monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda: False, raising=False)
    model, config = model_and_config()
    config = dataclasses.replace(config, computation="plain", precision="bf16")
    with pytest.raises(UsageError, match="take --precision fp32"):
        Learner(model, config, 1)
    Learner(model, dataclasses.replace(config, precision="fp32"), 1)
