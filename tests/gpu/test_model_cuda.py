"""The model on CUDA: both chains, learning, generation, inference; agreement with the CPU; no waiting in a chain.

Every test here is skipped, with the reason, where torch sees no CUDA device.
"""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from textebm import analysis, diagnostics, marginal
from textebm.config import Config, EncoderConfig, GeneratorConfig, InferenceConfig, OptimiserConfig, PriorConfig
from textebm.data.text import encode
from textebm.data.vocabulary import build_tokenizer
from textebm.model import graphs, inference, langevin
from textebm.model.ais import Plan
from textebm.model.decoding import Decoding
from textebm.model.latent_model import LatentModel, ModelConfig
from textebm.model.learner import Learner
from textebm.model.proposals import Fit
from textebm.model.random import stream
from textebm.model.recurrent import BOS, EOS, TextBatch

pytestmark = [
    pytest.mark.gpu,
    # torch calls its debug mode a prototype, and the switches of TF32 old, whenever they are used
    pytest.mark.filterwarnings("ignore:.*ynchronization debug mode"),
    pytest.mark.filterwarnings("ignore:.*TF32"),
]

CELLS = ["lstm", "gru"]
KINDS = ["ebm", "gaussian"]
VOCABULARY, LATENT = 50, 8


def make_config(cell: str = "lstm", kind: str = "ebm", mask: str = "chain") -> ModelConfig:
    return ModelConfig(
        vocab_size=VOCABULARY,
        prior=PriorConfig(kind=kind, latent_dim=LATENT, width=32, steps=10),
        generator=GeneratorConfig(cell=cell, embedding_dim=16, hidden_dim=32, dropout=0.3, init_range=0.3),
        inference=InferenceConfig(steps=10, step_size=0.3, dropout_mask=mask),
        longest=20,
    )


def make_model(*args: str, **options: str) -> LatentModel:
    return LatentModel(make_config(*args, **options), seed=1).to("cuda")


@pytest.fixture
def batch() -> TextBatch:
    """24 sentences of 0 to 11 words, on the CPU."""
    source = torch.Generator().manual_seed(3)
    lengths = torch.arange(24) % 12
    inputs = torch.zeros(24, 12, dtype=torch.int64)
    targets = inputs.clone()
    for row, length in enumerate(lengths.tolist()):
        words = torch.randint(3, VOCABULARY, (length,), generator=source)
        inputs[row, : length + 1] = torch.cat([torch.tensor([BOS]), words])
        targets[row, : length + 1] = torch.cat([words, torch.tensor([EOS])])
    return TextBatch(inputs, targets, lengths + 1)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_likelihood_agrees_with_the_cpu(full_precision, batch, cell, precision):
    """In fp32 up to the order of sums; in bf16 up to some roundings to bfloat16 (2⁻⁸) besides."""
    model = LatentModel(make_config(cell), seed=1)
    z = torch.randn(24, LATENT, generator=torch.Generator().manual_seed(2))
    on_cpu = model.condition(batch, precision=precision).log_prob_and_grad(z)
    model.to("cuda")
    conditioned = model.condition(batch.to("cuda"), precision=precision)
    on_cuda = conditioned.log_prob_and_grad(z.cuda())
    tolerance = 1e-4 if precision == "fp32" else 2**-4
    for here, there in zip(on_cpu, on_cuda, strict=True):
        assert there.is_cuda
        assert (here - there.cpu()).norm() < tolerance * here.norm()
    point = z.cuda().requires_grad_()
    plain = conditioned.log_prob(point)
    (gradient,) = torch.autograd.grad(plain.sum(), point)
    assert (plain.detach() - on_cuda[0]).norm() < tolerance * plain.norm()
    assert (gradient - on_cuda[1]).norm() < tolerance * gradient.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_prior_potential_agrees_with_the_cpu(full_precision, kind):
    prior = LatentModel(make_config(kind=kind), seed=1).prior
    z = torch.randn(24, LATENT, generator=torch.Generator().manual_seed(2))
    on_cpu = prior.potential(z)
    for here, there in zip(on_cpu, prior.to("cuda").potential(z.cuda()), strict=True):
        torch.testing.assert_close(here, there.cpu(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_chain_without_noise_agrees_with_the_cpu(full_precision, batch, cell):
    """The two devices draw different noise, so their chains are compared at temperature 0."""
    model = LatentModel(make_config(cell), seed=1)
    start = torch.randn(24, LATENT, generator=torch.Generator().manual_seed(2))
    plan, ends = langevin.schedule(10, 0.3, 0.0), []
    for device in ("cpu", "cuda"):
        model.to(device)
        conditioned = model.condition(batch.to(device))
        potential = inference.posterior_potential(model.prior, lambda conditioned=conditioned: conditioned)
        ends.append(langevin.run(start.to(device), potential, plan, torch.Generator(device=device)).cpu())
    assert (ends[0] - start).norm() > 0.1 * start.norm()
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("mask", ["none", "chain", "step"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("cell", CELLS)
def test_posterior_chain_never_waits(batch, no_waiting, cuda_generator, cell, precision, mask):
    model = make_model(cell)
    source = cuda_generator if mask != "none" else None
    conditioned = model.condition(batch.to("cuda"), source, precision)

    def likelihood():
        return conditioned.with_fresh_masks(cuda_generator)

    def chain() -> Tensor:
        of_chain = likelihood if mask == "step" else conditioned
        z, _ = inference.short_run_posterior(model.prior, of_chain, 24, model.config.inference, cuda_generator)
        return z

    chain()  # libraries may wait while they set themselves up
    with no_waiting():
        z = chain()
    assert z.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_prior_chain_never_waits(no_waiting, cuda_generator, kind):
    model = make_model(kind=kind)
    model.sample_prior(24, cuda_generator)
    with no_waiting():
        z = model.sample_prior(24, cuda_generator)
    assert z.shape == (24, LATENT)
    assert z.isfinite().all()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_recorded_prior_chain_agrees_with_the_plain_one(monkeypatch, temperature):
    """The same numbers from the same seed; a learning step in between is seen by the next replay."""
    model = make_model()
    model.prior.config = dataclasses.replace(model.prior.config, temperature=temperature)
    for _ in range(3):
        ends = []
        for use in (True, False):
            monkeypatch.setattr(graphs, "USE", use)
            ends.append(model.sample_prior(24, stream(0, "prior", device="cuda")))
        torch.testing.assert_close(*ends, rtol=1e-3, atol=1e-4)
        with torch.no_grad():
            for parameter in model.prior.parameters():
                parameter.mul_(1.5)
    assert len(model.prior.recorded) == 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("cell", CELLS)
def test_recorded_posterior_chain_agrees_with_the_plain_one(monkeypatch, batch, cell, precision):
    model, ends = make_model(cell), []
    for use in (True, False, True):
        monkeypatch.setattr(graphs, "USE", use)
        conditioned = model.condition(batch.to("cuda"), precision=precision)
        source = stream(0, "posterior", device="cuda")
        ends.append(inference.short_run_posterior(model.prior, conditioned, 24, model.config.inference, source)[0])
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(ends[0], ends[2], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("cell", CELLS)
def test_fast_and_plain_agree(full_precision, batch, cell):
    model = make_model(cell)
    z = torch.randn(24, LATENT, device="cuda")
    fast, plain = (model.condition(batch.to("cuda"), path=path).log_prob_and_grad(z) for path in ("fast", "plain"))
    for one, other in zip(fast, plain, strict=True):
        assert (one - other).norm() < 1e-4 * other.norm()


def test_the_guard_against_waiting_works(no_waiting):
    with no_waiting(), pytest.raises(RuntimeError, match="synchronizing"):
        torch.ones(3, device="cuda").nonzero()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("cell", CELLS)
def test_inference_in_both_modes(batch, cell, training):
    """cuDNN refuses to back-propagate through a recurrence in evaluation mode, which inference at test time hits."""
    model = make_model(cell).train(training)
    x = batch.to("cuda")

    def infer() -> Tensor:
        return model.infer(x, stream(0, "posterior", device="cuda"))

    z = infer()
    assert z.is_cuda
    assert z.isfinite().all()
    torch.testing.assert_close(infer(), z, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(infer(), z, rtol=1e-3, atol=1e-4)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("mask", ["chain", "step"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_learning_step(batch, cell, kind, mask, precision):
    model = make_model(cell, kind, mask)
    config = Config(
        prior=model.config.prior,
        generator=model.config.generator,
        inference=model.config.inference,
        precision=precision,
    )
    learner, x = Learner(model, config, 10), batch.to("cuda")
    before = [p.detach().clone() for p in model.generator.parameters()]
    reports = [learner.step(x, number) for number in range(3)]
    for report in reports:
        assert all(value.is_cuda and value.isfinite() for value in report.__dict__.values())
    assert any(not torch.equal(p, b) for p, b in zip(model.generator.parameters(), before, strict=True))


class Remembered:
    """Persistent chains of one batch, on the device."""

    def __init__(self, z: Tensor) -> None:
        self.z = z

    def read(self) -> Tensor:
        return self.z

    def write(self, z: Tensor) -> None:
        self.z = z


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", inference.METHODS)
def test_every_way_to_infer_z(batch, method, kind, cell):
    """It learns on the device, infers in both modes, and there is what the CPU has."""
    made = make_config(cell, kind)
    chain = dataclasses.replace(made.inference, kind=method, temperature=0.0)
    config = dataclasses.replace(made, inference=chain, encoder=EncoderConfig(cell=cell))
    model = LatentModel(config, seed=1).to("cuda")
    run = Config(prior=config.prior, generator=config.generator, inference=chain, encoder=config.encoder)
    learner, x = Learner(model, run, 10), batch.to("cuda")
    for number in range(3):
        report = learner.step(x, number, Remembered(torch.zeros(24, LATENT, device="cuda")))
        assert all(value.is_cuda and value.isfinite() for value in report.__dict__.values())
    z = [model.train(mode).infer(x, stream(0, "posterior", device="cuda")) for mode in (True, False)]
    torch.testing.assert_close(*z, rtol=1e-3, atol=1e-4)
    if model.encoder is not None:
        on_cpu = LatentModel(config)
        on_cpu.load_state_dict(model.state_dict())
        for one, other in zip(model.encode(x), on_cpu.encode(batch), strict=True):
            torch.testing.assert_close(one.cpu(), other, rtol=1e-2, atol=1e-2)  # TF32 may be on


def test_learning_raises_the_likelihood(batch):
    model = make_model()
    rates = OptimiserConfig(lr=1e-2)
    config = Config(
        prior=model.config.prior, generator=model.config.generator, inference=model.config.inference, optimiser=rates
    )
    learner, x = Learner(model, config, 100), batch.to("cuda")
    log_probs = torch.stack([learner.step(x, number).log_prob for number in range(40)]).cpu()
    assert log_probs[-5:].mean() > log_probs[:5].mean() + 1


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("method", ["sample", "greedy", "beam"])
@pytest.mark.parametrize("training", [True, False])
def test_generation(cell, method, training):
    model = make_model(cell).train(training)

    def sentences() -> list[list[int]]:
        sources = stream(0, "prior", device="cuda"), stream(0, "decoding", device="cuda")
        return model.generate(10, *sources, Decoding(method=method, max_length=15))

    made = sentences()
    assert len(made) == 10
    assert all(len(s) <= 15 and all(EOS < word < VOCABULARY for word in s) for s in made)
    assert sentences() == made


@pytest.mark.parametrize("cell", CELLS)
def test_greedy_words_agree_with_the_cpu(full_precision, cell):
    model = LatentModel(make_config(cell), seed=1)
    z = torch.randn(10, LATENT, generator=torch.Generator().manual_seed(2))
    outcomes = []
    for device in ("cpu", "cuda"):
        model.to(device)
        state = model.generator.initial_state(z.to(device))
        words = torch.full((10,), BOS, device=device)
        logits, _ = model.generator.next_word_logits(words, z.to(device), state)
        outcomes.append(logits.detach().cpu())
    torch.testing.assert_close(*outcomes, rtol=1e-4, atol=1e-5)


def test_a_new_model_leaves_the_generators_of_cuda_alone():
    before = torch.cuda.get_rng_state()
    LatentModel(make_config(), seed=1)
    assert torch.equal(torch.cuda.get_rng_state(), before)


def measured_memory(work: Callable[[], object]) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def test_the_softmax_never_holds_all_logits(cuda_generator):
    """Its memory grows with tokens × hidden, not with tokens × vocabulary."""
    from textebm.model import softmax

    tokens, vocabulary, hidden = 20_000, 10_000, 16
    states = torch.randn(tokens, hidden, device="cuda", generator=cuda_generator)
    weight = torch.randn(vocabulary, hidden, device="cuda", generator=cuda_generator)
    targets = torch.randint(vocabulary, (tokens,), device="cuda", generator=cuda_generator)
    bias = torch.zeros(vocabulary, device="cuda")
    output = softmax.prepare(weight, bias, "fp32")
    softmax.log_prob_and_grad(states, output, targets)
    peak = measured_memory(lambda: softmax.log_prob_and_grad(states, output, targets))
    assert peak < 0.75 * tokens * vocabulary * 4


def test_loading_onto_the_device(tmp_path):
    LatentModel(make_config(), seed=1).save_pretrained(tmp_path)
    model = LatentModel.from_pretrained(tmp_path, "cuda")
    assert model.device.type == "cuda"
    assert all(p.is_cuda for p in model.parameters())


@pytest.mark.parametrize("kind", [*KINDS, "none"])
def test_the_marginal_likelihood_is_that_of_the_cpu(kind: str) -> None:
    """Its random numbers of sentences come from the CPU on either, so the first terms agree but for rounding."""
    sentences = ["a b c", "d", "b b a e f", "c a"]
    tokenizer = build_tokenizer(sentences, 100)
    inference_kind = "none" if kind == "none" else "short-run"
    config = dataclasses.replace(
        make_config(kind="gaussian"),
        vocab_size=tokenizer.get_vocab_size(),
        prior=PriorConfig(kind=kind, latent_dim=LATENT, width=32),
        inference=InferenceConfig(kind=inference_kind),
    )
    settings = marginal.Settings(samples=200, fit=Fit(steps=30), plan=Plan(chains=100, steps=50, settling=50))
    found = [
        marginal.estimate(LatentModel(config, seed=1).to(device), encode(sentences, tokenizer), 0, settings)
        for device in ("cpu", "cuda")
    ]
    assert found[1].log_means == pytest.approx(found[0].log_means, abs=0.02)
    assert found[1].log_z == pytest.approx(found[0].log_z, abs=0.2)  # whose runs draw on the device
    assert (found[1].withheld, found[1].exact) == (None, kind == "none")


@pytest.mark.parametrize("kind", ["ebm", "ratio", "gaussian"])
def test_chains_are_watched_without_waiting(no_waiting, cuda_generator, kind):
    """A transition's chains, and those that diagnostics run, with all that is asked of each step."""
    config = make_config("lstm")
    prior = dataclasses.replace(config.prior, kind=kind)
    model = LatentModel(dataclasses.replace(config, prior=prior), seed=1).to("cuda")
    start = model.prior.sample_reference(8, cuda_generator)
    plan = analysis.prior_plan(model, 6)
    with no_waiting():
        walked = analysis.walk(model, start, 6, {0, 3, 6}, cuda_generator)
        diagnostics._watch(model, start, model.prior.frozen(), plan, 3, 8, cuda_generator, analysis.no_tick)
    assert walked.states[6].is_cuda
    assert len(walked.trace(0).mean) == 7
