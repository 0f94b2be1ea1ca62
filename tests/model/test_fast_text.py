"""Every fast path of the likelihood of text against the plain one, torch's own autograd, over random shapes."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from textebm.config import GeneratorConfig
from textebm.hardware import native_precision
from textebm.model import recurrence
from textebm.model.candidates import Candidates, inclusion, systematic
from textebm.model.recurrent import BOS, EOS, PAD, ConditionedText, RecurrentGenerator, TextBatch

EXACT = {"rtol": 0, "atol": 1e-10}
LATENT = 3
SIXTEEN_BITS = {"bf16": 2.0**-8, "fp16": 2.0**-11}  # relative error of one rounding


@dataclass(frozen=True)
class Case:
    """A generator, a batch, and whether anything random takes part."""

    cell: str
    state: bool
    cell_state: bool
    word: bool
    embedding: int
    hidden: int
    vocabulary: int
    lengths: tuple[int, ...]
    padding: int
    dropout: float
    sampled: int
    seed: int

    def model(self, dtype: torch.dtype = torch.float64) -> RecurrentGenerator:
        config = GeneratorConfig(
            cell=self.cell,
            embedding_dim=self.embedding,
            hidden_dim=self.hidden,
            z_to_state=self.state,
            z_to_cell=self.cell_state,
            z_to_input=self.word,
            dropout=self.dropout,
            init_range=0.7,
        )
        return RecurrentGenerator(config, self.vocabulary, LATENT, self.source()).to(dtype)

    def source(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def batch(self) -> TextBatch:
        source, size = self.source(), (len(self.lengths), max(self.lengths) + 1 + self.padding)
        words = torch.randint(EOS + 1, self.vocabulary, size, generator=source)
        place, lengths = torch.arange(size[1]), torch.tensor(self.lengths)[:, None]
        inputs = torch.where(place == 0, BOS, words.roll(1, 1)).masked_fill(place > lengths, PAD)
        targets = torch.where(place == lengths, EOS, words).masked_fill(place > lengths, PAD)
        return TextBatch(inputs, targets, lengths[:, 0] + 1)

    def z(self, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        return torch.randn(len(self.lengths), LATENT, generator=self.source(), dtype=dtype)

    def condition(self, model: RecurrentGenerator, path: str, precision: str = "fp32") -> ConditionedText:
        """By either path, with the same masks and the same sampled words."""
        masks = self.source() if self.dropout else None
        dtype = model.output.weight.dtype
        candidates = Candidates(self.sampled, self.source(), dtype) if self.sampled else None
        return model.condition(self.batch(), masks, precision, path, candidates)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    cell = draw(st.sampled_from(["lstm", "gru"]))
    cell_state = cell == "lstm" and draw(st.booleans())
    state = draw(st.booleans())
    size = st.integers(1, 7)
    return Case(
        cell=cell,
        state=state,
        cell_state=cell_state,
        word=draw(st.booleans()) or not (state or cell_state),
        embedding=draw(size),
        hidden=draw(size),
        vocabulary=draw(st.integers(4, 40)),
        lengths=tuple(draw(st.lists(st.integers(0, 9), min_size=1, max_size=9))),
        padding=draw(st.integers(0, 3)),
        dropout=draw(st.sampled_from([0.0, 0.4])),
        sampled=draw(st.sampled_from([0, 0, 1, 5])),
        seed=draw(st.integers(0, 2**20)),
    )


ONE_OF_EACH = [
    Case(cell, True, cell == "lstm", True, 8, 16, 60, (5, 0, 12, 12, 3), 2, dropout, sampled, 7)
    for cell in ("lstm", "gru")
    for dropout, sampled in ((0.0, 0), (0.4, 10))
]


@settings(max_examples=120)
@given(case=cases())
def test_a_chains_value_and_gradient_equal_autograds(case):
    model, z = case.model(), case.z()
    (value, gradient), (expected, slope) = (
        case.condition(model, path).log_prob_and_grad(z) for path in ("fast", "plain")
    )
    torch.testing.assert_close(value, expected, **EXACT)
    torch.testing.assert_close(gradient, slope, **EXACT)
    assert not value.requires_grad
    assert not gradient.requires_grad


@settings(max_examples=80)
@given(case=cases())
def test_the_learners_gradients_equal_autograds(case):
    """In z and in every parameter, for a slope of each sentence's own."""
    model, point = case.model(), case.z().requires_grad_()
    leaves = [point, *model.parameters()]
    slopes = torch.randn(len(point), generator=case.source(), dtype=torch.float64)
    values, gradients = [], []
    for path in ("fast", "plain"):
        values.append(case.condition(model, path).log_prob(point))
        gradients.append(torch.autograd.grad(values[-1], leaves, slopes, allow_unused=True, materialize_grads=True))
    torch.testing.assert_close(*values, **EXACT)
    torch.testing.assert_close(*gradients, **EXACT)


@settings(max_examples=60)
@given(case=cases(), precision=st.sampled_from(["fp32", "bf16", "fp16"]))
def test_every_precision_keeps_its_bound_over_random_shapes(case, precision):
    """16 roundings of each number, as below; in float32 of 2⁻²⁴, and sums of a few hundred terms.

    Against the size of what is summed rather than of the sum: gradients of words and sentences may cancel.
    """
    u = SIXTEEN_BITS.get(precision, 2.0**-20)
    model, z = case.model(torch.float32), case.z(torch.float32)
    value, gradient = case.condition(model, "plain").log_prob_and_grad(z)
    found, slope = case.condition(model, "fast", precision).log_prob_and_grad(z)
    assert (found - value).abs().max() <= 4 * u * value.abs().max()
    assert (slope - gradient).norm() <= 16 * u * (gradient.norm() + 1)


@pytest.mark.parametrize("case", ONE_OF_EACH)
def test_asking_again_gives_the_same(case):
    """Space to work in is used again and again: nothing of one point may reach the next."""
    model = case.model()
    conditioned, z = case.condition(model, "fast"), case.z()
    first = [t.clone() for t in conditioned.log_prob_and_grad(z)]
    conditioned.log_prob_and_grad(5 * z)
    for one, other in zip(conditioned.log_prob_and_grad(z), first, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("case", ONE_OF_EACH)
def test_float32_agrees_with_float64(case):
    """Sums of some hundred terms of size 1, each rounded to 2⁻²⁴ of itself: relative errors near 1e-6."""
    exact, single = case.model(), case.model(torch.float32)
    single.load_state_dict(exact.state_dict())
    value, gradient = case.condition(exact, "plain").log_prob_and_grad(case.z())
    kept = case.condition(exact, "plain")
    narrow = case.condition(single, "fast")
    if case.dropout:  # random numbers of the two dtypes are not the same
        narrow.input_mask, narrow.output_mask = kept.input_mask.float(), kept.output_mask.float()
    found, slope = narrow.log_prob_and_grad(case.z().float())
    torch.testing.assert_close(found.double(), value, rtol=1e-5, atol=1e-5)
    assert (slope.double() - gradient).norm() < 1e-5 * gradient.norm()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("case", ONE_OF_EACH)
def test_16_bits_agree_with_float32_within_their_roundings(case, precision):
    """A number passes through some ten products between z and log p; each rounds operands and result by u at most.

    So 16 u of the norm bounds gradients unless errors are amplified, and they are not: |∂h/∂h| stays near 1 here.
    """
    u = SIXTEEN_BITS[precision]
    model, z = case.model(torch.float32), case.z(torch.float32)
    value, gradient = case.condition(model, "plain").log_prob_and_grad(z)
    conditioned = case.condition(model, "fast", precision)
    found, slope = conditioned.log_prob_and_grad(z)
    assert 0 < (found - value).abs().max() < 4 * u * value.abs().max()
    assert 0 < (slope - gradient).norm() < 16 * u * gradient.norm()

    point = z.clone().requires_grad_()
    by_path = []
    for path, used in (("fast", precision), ("plain", "fp32")):
        total = case.condition(model, path, used).log_prob(point).sum()
        by_path.append(torch.autograd.grad(total, [point, *model.parameters()]))
    for narrow, exact in zip(*by_path, strict=True):
        assert narrow.dtype == torch.float32
        assert (narrow - exact).norm() <= 16 * u * exact.norm() + 1e-6


@pytest.mark.skipif(native_precision(torch.device("cpu")) != "bf16", reason="torch's LSTM has no bf16 on this CPU")
@pytest.mark.parametrize("case", ONE_OF_EACH[::2])
def test_the_plain_path_in_16_bits_is_torchs(case):
    """Autocast agrees with the fast path as far as both agree with float32."""
    model, z = case.model(torch.float32), case.z(torch.float32)
    (value, gradient), (expected, slope) = (
        case.condition(model, path, "bf16").log_prob_and_grad(z) for path in ("fast", "plain")
    )
    assert (value - expected).abs().max() < 8 * SIXTEEN_BITS["bf16"] * expected.abs().max()
    assert (gradient - slope).norm() < 32 * SIXTEEN_BITS["bf16"] * slope.norm()


class TestThreads:
    @pytest.fixture
    def threads(self, monkeypatch):
        """As if torch had 4 threads; what it is told to use afterwards."""
        told = []
        monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
        monkeypatch.setattr(torch, "set_num_threads", told.append)
        return told

    def test_small_steps_take_one_thread_and_give_the_others_back(self, threads):
        with pytest.raises(ZeroDivisionError), recurrence.fitting_threads(torch.zeros(4, 1), 1):
            assert threads == [1]
            raise ZeroDivisionError
        assert threads == [1, 4]

    def test_large_steps_take_all(self, threads):
        with recurrence.fitting_threads(torch.zeros(4, 1), recurrence.WORTH_SHARING // 4):
            pass
        assert threads == []


class TestSampledSoftmax:
    def test_all_words_sampled_is_exact(self):
        case = ONE_OF_EACH[0]
        model, z = case.model(), case.z()
        exact = case.condition(model, "fast").log_prob_and_grad(z)
        everything = Candidates(case.vocabulary, case.source(), torch.float64)
        sampled = model.condition(case.batch(), candidates=everything)
        torch.testing.assert_close(sampled.log_prob_and_grad(z), exact, **EXACT)

    def test_the_learners_likelihood_stays_exact(self):
        case = ONE_OF_EACH[0]
        model, z = case.model(), case.z()
        sampled = model.condition(case.batch(), candidates=Candidates(3, case.source(), torch.float64))
        exact = case.condition(model, "fast")
        assert torch.equal(sampled.log_prob(z), exact.log_prob(z))
        assert not torch.equal(sampled.log_prob_and_grad(z)[0], exact.log_prob_and_grad(z)[0])

    @pytest.mark.parametrize(("words", "number"), [(10, 1), (10, 9), (50, 20), (1000, 3), (1000, 999)])
    def test_inclusion_probabilities(self, words, number):
        chance = inclusion(words, number)
        assert chance.max() <= 1
        assert chance.min() > 0
        torch.testing.assert_close(chance.sum(), torch.tensor(float(number), dtype=torch.float64))
        assert (chance.diff() <= 0).all()  # rarer words are drawn no more often

    def test_words_are_drawn_as_often_as_said_and_never_twice(self):
        words, number, draws = 40, 12, 4000
        chance, source = inclusion(words, number), torch.Generator().manual_seed(3)
        counts = torch.zeros(words, dtype=torch.float64)
        for _ in range(draws):
            drawn = systematic(chance, number, source)
            assert len(drawn.unique()) == number
            counts[drawn] += 1
        error = (chance * (1 - chance) / draws).sqrt()
        assert ((counts / draws - chance).abs() <= 5 * error + 1e-9).all()

    def test_the_estimated_normaliser_is_unbiased(self, generator):
        """Σ exp(logit + correction) has the vocabulary's Σ exp(logit) as its mean, within five standard errors."""
        logits = torch.randn(60, generator=generator, dtype=torch.float64)
        targets = torch.tensor([0, 5, 5, 30])
        sums = []
        for seed in range(2000):
            drawn = Candidates(8, torch.Generator().manual_seed(seed), torch.float64).draw(targets, len(logits))
            assert torch.equal(drawn.classes[drawn.targets], targets)
            sums.append((logits[drawn.classes] + drawn.correction).exp().sum())
        found = torch.stack(sums)
        assert found.std() > 0.1
        assert (found.mean() - logits.exp().sum()).abs() < 5 * found.std() / len(found) ** 0.5
