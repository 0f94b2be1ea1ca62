"""Gradients against finite differences and autograd: the prior's potential, the softmax, the conditioned text."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from textebm.config import PriorConfig
from textebm.model import energy, inference, langevin, softmax

# Central differences of width h err by h²·|f'''|/6 ≈ 1e-10 and, through rounding, by 1e-16·|f|/h ≈ 1e-10.
DIFFERENCES = {"rtol": 1e-6, "atol": 1e-7}
EXACT = {"rtol": 0, "atol": 1e-10}

SENTENCES = [[4, 5, 6], [7], [], [10, 9, 8, 7, 6], [4, 4]]
# z_to_state, z_to_cell, z_to_input: every way that lets z in, and for a GRU those without a cell
ENTRIES = [("lstm", *on) for on in itertools.product([True, False], repeat=3) if any(on)]
ENTRIES += [("gru", state, False, word) for _, state, cell, word in ENTRIES if not cell]


@pytest.fixture
def prior():
    """A function that makes a float64 EBM prior steep enough for its gradient to matter."""

    def make(**config) -> energy.EBMPrior:
        torch.manual_seed(3)
        made = energy.EBMPrior(PriorConfig(**{"latent_dim": 3, "width": 16, **config})).double()
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.mul_(3)
        return made

    return make


@pytest.mark.parametrize("activation", ["gelu", "lrelu", "silu", "tanh"])
@pytest.mark.parametrize(("depth", "sigma"), [(0, 1.0), (1, 0.5), (2, 1.0), (3, 2.0)])
@pytest.mark.parametrize(
    "options", [{}, {"outputs": 5}, {"spectral_norm": True}, {"outputs": 2, "spectral_norm": True}]
)
def test_potential_of_the_ebm_prior(prior, slope, generator, activation, depth, sigma, options):
    made = prior(activation=activation, depth=depth, sigma=sigma, **options)
    z = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    value, gradient = made.potential(z)
    assert not value.requires_grad
    assert not gradient.requires_grad
    torch.testing.assert_close(value, (-made.tilt(z) + z.square().sum(1) / (2 * sigma**2)).detach())
    torch.testing.assert_close(gradient, slope(lambda point: made.potential(point)[0], z), **DIFFERENCES)
    assert (gradient - z / sigma**2).abs().max() > 1e-3  # the tilt takes part
    point = z.clone().requires_grad_()
    tilt = made.tilt(point)
    expected = z / sigma**2 - torch.autograd.grad(tilt.sum(), point)[0]
    torch.testing.assert_close(gradient, expected, **EXACT)


@pytest.mark.parametrize("activation", ["gelu", "lrelu", "silu", "tanh"])
@pytest.mark.parametrize(("depth", "sigma"), [(0, 1.0), (1, 0.5), (2, 1.0), (3, 2.0)])
def test_a_whole_step_is_a_step_along_the_gradient(prior, generator, activation, depth, sigma):
    potential = prior(activation=activation, depth=depth, sigma=sigma).frozen()
    assert isinstance(potential, langevin.Stepper)
    for n in (7, 2):  # the number of chains may change
        z, noise = torch.randn(2, n, 3, generator=generator, dtype=torch.float64)
        expected = z - 0.5 * 0.3**2 * potential(z)[1] + noise
        before = z.clone()
        torch.testing.assert_close(potential.step(z, 0.3, noise.clone()), expected, **EXACT)
        assert torch.equal(z, before)


@pytest.mark.parametrize("temperature", [0.0, 0.5, (1.0, 0.0, 0.3)])
def test_a_chain_is_the_same_whether_it_is_watched_or_not(prior, generator, temperature):
    made, plan = prior(), langevin.schedule(10, 0.3, temperature)
    start = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    seen = []
    watched, unseen = (
        langevin.run(start, made.frozen(), plan, torch.Generator().manual_seed(2), observe)
        for observe in (lambda *step: seen.append(step), None)
    )
    assert len(seen) == 10
    torch.testing.assert_close(unseen, watched, **EXACT)


def test_potential_of_the_gaussian_prior(slope, generator):
    made = energy.GaussianPrior(PriorConfig(kind="gaussian", latent_dim=3, sigma=0.7)).double()
    z = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    value, gradient = made.potential(z)
    torch.testing.assert_close(gradient, slope(lambda point: made.potential(point)[0], z), **DIFFERENCES)
    normal = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 0.7)
    torch.testing.assert_close(made.log_reference(z), normal.log_prob(z).sum(1))
    constant = (made.log_reference(z) + value).unique()
    torch.testing.assert_close(constant, constant[:1].expand(len(constant)))  # they differ by the normaliser alone


def softmax_case(generator, tokens=23, hidden=6, classes=9, scale=1.0):
    def draw(*size):
        return scale * torch.randn(size, generator=generator, dtype=torch.float64)

    targets = torch.randint(classes, (tokens,), generator=generator)
    return draw(tokens, hidden), draw(classes, hidden), draw(classes), targets


def reference_softmax(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    point = hidden.detach().requires_grad_()
    log_probs = (point @ weight.T + bias).log_softmax(1).gather(1, targets[:, None]).squeeze(1)
    (gradient,) = torch.autograd.grad(log_probs.sum(), point)
    return log_probs.detach(), gradient


def small_blocks(monkeypatch, logits):
    monkeypatch.setattr(softmax, "BLOCK_LOGITS", logits)
    monkeypatch.setattr(softmax, "FEWEST_ROWS", 1)
    monkeypatch.setattr(softmax, "FEWEST_CLASSES", 1)


@pytest.mark.parametrize("block", [1, 9, 40, 23 * 9, 500_000])  # one token a block, uneven blocks, all at once
@pytest.mark.parametrize("scale", [1.0, 30.0])  # logits of thousands must not overflow
def test_softmax_against_autograd(monkeypatch, generator, block, scale):
    small_blocks(monkeypatch, block)
    hidden, weight, bias, targets = softmax_case(generator, scale=scale)
    log_probs, gradient = softmax.log_prob_and_grad(hidden, softmax.prepare(weight, bias, "fp32"), targets)
    expected, slope = reference_softmax(hidden, weight, bias, targets)
    torch.testing.assert_close(log_probs, expected, rtol=1e-12, atol=1e-10)
    torch.testing.assert_close(gradient, slope, **EXACT)


def test_softmax_against_finite_differences(generator, slope):
    hidden, weight, bias, targets = softmax_case(generator)
    output = softmax.prepare(weight, bias, "fp32")
    _, gradient = softmax.log_prob_and_grad(hidden, output, targets)

    def value(point: Tensor) -> Tensor:
        return softmax.log_prob_and_grad(point, output, targets)[0]

    torch.testing.assert_close(gradient, slope(value, hidden), **DIFFERENCES)


@pytest.mark.parametrize("block", [1, 40, 23 * 4, 500_000])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_the_learners_softmax_against_autograd(monkeypatch, generator, block, scale):
    """Gradients in hidden states, weights and bias, for a slope of each token's own."""
    small_blocks(monkeypatch, block)
    hidden, weight, bias, targets = softmax_case(generator, scale=scale)
    slopes = torch.randn(len(hidden), generator=generator, dtype=torch.float64)
    leaves = [t.requires_grad_() for t in (hidden, weight, bias)]
    log_probs = softmax.log_prob(*leaves, targets)
    expected = (hidden @ weight.T + bias).log_softmax(1).gather(1, targets[:, None]).squeeze(1)
    torch.testing.assert_close(log_probs, expected, rtol=1e-12, atol=1e-10)
    found, right = (torch.autograd.grad(value, leaves, slopes) for value in (log_probs, expected))
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10 * scale)  # logits are of scale², sums of scale


def test_softmax_of_no_tokens(generator):
    hidden, weight, bias, targets = softmax_case(generator)
    log_probs, gradient = softmax.log_prob_and_grad(hidden[:0], softmax.prepare(weight, bias, "fp32"), targets[:0])
    assert log_probs.shape == (0,)
    assert gradient.shape == (0, 6)


@pytest.mark.parametrize(("precision", "bits"), [("bf16", 8), ("fp16", 11)])
def test_softmax_in_16_bits_stays_within_its_roundings(generator, precision, bits):
    """A rigorous bound, with u the relative error of one rounding to `bits` bits of significand.

    Rounding h, w and their product moves a logit by at most ((1+u)³ − 1) Σ|hⱼwⱼ| and by u² + u of the bias, whose two
    halves carry 2·bits bits until the logit is rounded; let δ be the largest over the vocabulary. Log-softmax then
    moves by at most 2δ, and by u through the rounding of a probability; each probability by a factor of at most e^{2δ}.
    The gradient, w_target − Σ pw, has w and p rounded once more, and its product.
    """
    u = 2.0**-bits
    hidden, weight, bias, targets = softmax_case(generator, tokens=400, hidden=32, classes=50, scale=0.4)
    output = softmax.prepare(weight, bias, precision)
    assert output.rows.dtype == softmax.NARROW[precision]
    log_probs, gradient = softmax.log_prob_and_grad(hidden, output, targets)
    expected, slope = reference_softmax(hidden, weight, bias, targets)
    logit_error = (((1 + u) ** 3 - 1) * (hidden.abs() @ weight.abs().T) + (u + u**2) * bias.abs()).amax(1)
    error = (log_probs - expected).abs()
    assert (error <= 2 * logit_error + 2 * u).all()
    assert error.max() > 1e-6  # it did round
    probabilities = (hidden @ weight.T + bias).softmax(1)
    of_probabilities = (torch.exp(2 * logit_error) * (1 + u) ** 3 - 1)[:, None] * (probabilities @ weight.abs())
    smallest = 2.0**-24 * weight.abs().sum(0)  # fp16 has no probability below this
    assert ((gradient - slope).abs() <= u * weight[targets].abs() + of_probabilities + smallest).all()


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize(("cell", "z_to_state", "z_to_cell", "z_to_input"), ENTRIES)
def test_conditioned_text(
    make_generator, make_batch, slope, generator, cell, z_to_state, z_to_cell, z_to_input, dropout
):
    model = make_generator(
        cell=cell, z_to_state=z_to_state, z_to_cell=z_to_cell, z_to_input=z_to_input, dropout=dropout
    )
    conditioned = model.condition(make_batch(SENTENCES), generator if dropout else None)
    z = torch.randn(len(SENTENCES), 3, generator=generator, dtype=torch.float64)
    log_prob, gradient = conditioned.log_prob_and_grad(z)
    point = z.clone().requires_grad_()
    differentiable = conditioned.log_prob(point)
    torch.testing.assert_close(log_prob, differentiable, **EXACT)
    torch.testing.assert_close(gradient, torch.autograd.grad(differentiable.sum(), point)[0], **EXACT)
    torch.testing.assert_close(gradient, slope(lambda p: conditioned.log_prob_and_grad(p)[0], z), **DIFFERENCES)
    assert gradient.abs().min(0).values.max() > 1e-4  # z reaches every sentence
    assert not log_prob.requires_grad
    assert not gradient.requires_grad


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_gradients_in_the_parameters(make_generator, make_batch, generator, cell):
    """What the learner follows: autograd through log_prob against differences, for one weight of every kind."""
    model = make_generator(cell=cell, z_to_cell=cell == "lstm")
    conditioned = model.condition(make_batch(SENTENCES))
    z = torch.randn(len(SENTENCES), 3, generator=generator, dtype=torch.float64)
    conditioned.log_prob(z).sum().backward()
    width = 1e-5
    for name, parameter in model.named_parameters():
        place = int(parameter.grad.abs().argmax())
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.view(-1)[place] += sign * width
                values.append(conditioned.log_prob(z).sum())
                parameter.view(-1)[place] -= sign * width
        expected = (values[0] - values[1]) / (2 * width)
        assert abs(parameter.grad.view(-1)[place] / expected - 1) < 1e-6, name


def test_posterior_potential_is_prior_minus_likelihood(prior, make_generator, make_batch, slope, generator):
    made, conditioned = prior(), make_generator().condition(make_batch(SENTENCES))
    z = torch.randn(len(SENTENCES), 3, generator=generator, dtype=torch.float64)
    potential = inference.posterior_potential(made, lambda: conditioned)
    value, gradient = potential(z)
    joint = made.tilt(z) + made.log_reference(z) + conditioned.log_prob(z)
    constant = (value + joint).detach()  # log of the reference Gaussian's normaliser, the same for every row
    torch.testing.assert_close(constant, constant[:1].expand(len(constant)))
    torch.testing.assert_close(gradient, slope(lambda point: potential(point)[0], z), **DIFFERENCES)


def test_no_gradient_reaches_a_parameter(prior, make_generator, make_batch, generator):
    made, model = prior(), make_generator()
    conditioned = model.condition(make_batch(SENTENCES))
    z = torch.randn(len(SENTENCES), 3, generator=generator, dtype=torch.float64)
    with torch.no_grad():  # a caller's no_grad must not break the chain either
        inference.posterior_potential(made, lambda: conditioned)(z)
    inference.posterior_potential(made, lambda: conditioned)(z)
    assert all(p.grad is None for module in (made, model) for p in nn.Module.parameters(module))
