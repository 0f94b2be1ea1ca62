"""Laws of the likelihood of text: invariance to padding, batch and order; sums to one; dropout masks; no waiting."""

import itertools

import pytest
import torch

from textebm.config import GeneratorConfig, PriorConfig
from textebm.errors import ConfigError
from textebm.model import energy, inference, langevin, softmax
from textebm.model.recurrent import BOS, EOS, FIRST_OUTPUT, UNK

EXACT = {"rtol": 0, "atol": 1e-10}
SENTENCES = [[4, 5, 6], [7], [], [10, 9, 8, 7, 6], [4, UNK]]
CELLS = ["lstm", "gru"]


@pytest.fixture
def latents(generator):
    return torch.randn(len(SENTENCES), 3, generator=generator, dtype=torch.float64)


def both_ways(model, x, z):
    """log p(x|z) and its gradient in z, by the fast path, after the plain one was seen to agree."""
    conditioned = model.condition(x)
    torch.testing.assert_close(conditioned.log_prob(z), conditioned.log_prob_and_grad(z)[0], **EXACT)
    return conditioned.log_prob_and_grad(z)


@pytest.mark.parametrize("cell", CELLS)
class TestInvariance:
    def test_alone_or_in_a_batch(self, make_generator, make_batch, latents, cell):
        model = make_generator(cell=cell)
        together = both_ways(model, make_batch(SENTENCES), latents)
        for row, sentence in enumerate(SENTENCES):
            alone = both_ways(model, make_batch([sentence]), latents[row : row + 1])
            for one, all_of_them in zip(alone, together, strict=True):
                torch.testing.assert_close(one[0], all_of_them[row], **EXACT)

    def test_more_padding(self, make_generator, make_batch, latents, cell):
        model = make_generator(cell=cell)
        tight, loose = (both_ways(model, make_batch(SENTENCES, extra), latents) for extra in (0, 6))
        torch.testing.assert_close(tight, loose, **EXACT)

    def test_what_stands_in_the_padding(self, make_generator, make_batch, latents, cell):
        model, x = make_generator(cell=cell), make_batch(SENTENCES, 2)
        padding = torch.arange(x.inputs.shape[1]) >= x.lengths[:, None]
        x_other = x._replace(inputs=x.inputs.masked_fill(padding, 9), targets=x.targets.masked_fill(padding, 9))
        torch.testing.assert_close(both_ways(model, x, latents), both_ways(model, x_other, latents), **EXACT)

    def test_order(self, make_generator, make_batch, latents, cell):
        model, order = make_generator(cell=cell), [3, 0, 4, 2, 1]
        sorted_ways = both_ways(model, make_batch(SENTENCES), latents)
        shuffled = both_ways(model, make_batch([SENTENCES[i] for i in order]), latents[order])
        torch.testing.assert_close(tuple(part[order] for part in sorted_ways), shuffled, **EXACT)

    def test_parameter_gradients(self, make_generator, make_batch, latents, cell):
        """The sum over sentences of each one's gradient alone is the batch's: what the learner averages."""
        model = make_generator(cell=cell)

        def gradients(x, z):
            return torch.autograd.grad(model.condition(x).log_prob(z).sum(), list(model.parameters()))

        batch = gradients(make_batch(SENTENCES, 3), latents)
        alone = [gradients(make_batch([s]), latents[i : i + 1]) for i, s in enumerate(SENTENCES)]
        for whole, *parts in zip(batch, *alone, strict=True):
            torch.testing.assert_close(whole, torch.stack(parts).sum(0), **EXACT)


def step_by_step(model, sentence, z):
    """log p of each word in turn (end of sentence last) by the path that decoding uses."""
    state, word, log_probs = model.initial_state(z), BOS, []
    for following in [*sentence, EOS]:
        logits, state = model.next_word_logits(torch.tensor([word]), z, state)
        log_probs.append(logits.log_softmax(1)[0, following - FIRST_OUTPUT])
        word = following
    return torch.stack(log_probs)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("z_to_input", [True, False])
def test_log_prob_is_the_sum_over_next_words(make_generator, make_batch, latents, cell, z_to_input):
    model = make_generator(cell=cell, z_to_input=z_to_input)
    log_prob = model.condition(make_batch(SENTENCES)).log_prob(latents)
    for row, sentence in enumerate(SENTENCES):
        torch.testing.assert_close(log_prob[row], step_by_step(model, sentence, latents[row : row + 1]).sum(), **EXACT)


@pytest.mark.parametrize("cell", CELLS)
def test_probabilities_of_all_sentences_sum_to_one(make_generator, make_batch, cell):
    """Every sentence up to 3 words, and every beginning of 4 words for all that are longer."""
    model, longest = make_generator(cell=cell, vocab_size=6), 3
    words = range(UNK, 6)
    sentences = [list(s) for n in range(longest + 1) for s in itertools.product(words, repeat=n)]
    z = torch.tensor([[0.4, -1.0, 2.0]], dtype=torch.float64)
    mass = model.condition(make_batch(sentences)).log_prob(z.expand(len(sentences), -1)).exp().sum()
    beginnings = [list(s) for s in itertools.product(words, repeat=longest + 1)]
    longer = sum(step_by_step(model, s, z)[:-1].sum().exp() for s in beginnings)
    assert 0.1 < longer < 0.9
    torch.testing.assert_close(mass + longer, torch.ones((), dtype=torch.float64), **EXACT)


def test_training_and_evaluation_mode_agree(make_generator, make_batch, latents):
    model = make_generator(dropout=0.5)
    training = model.condition(make_batch(SENTENCES)).log_prob_and_grad(latents)
    model.eval()
    assert model.rnn.training  # cuDNN refuses to back-propagate through a recurrence in evaluation mode
    assert not model.training
    torch.testing.assert_close(training, model.condition(make_batch(SENTENCES)).log_prob_and_grad(latents), **EXACT)


class TestDropout:
    def test_without_a_source_of_masks_there_is_none(self, make_generator, make_batch, latents):
        plain, dropping = make_generator(), make_generator(dropout=0.5)
        x = make_batch(SENTENCES)
        assert torch.equal(plain.condition(x).log_prob(latents), dropping.condition(x).log_prob(latents))

    def test_masks_belong_to_the_conditioned_likelihood(self, make_generator, make_batch, latents, generator):
        conditioned = make_generator(dropout=0.5).condition(make_batch(SENTENCES), generator)
        assert torch.equal(conditioned.log_prob(latents), conditioned.log_prob(latents))

    def test_the_source_decides_the_masks(self, make_generator, make_batch, latents):
        model, x = make_generator(dropout=0.5), make_batch(SENTENCES)

        def log_prob(seed):
            return model.condition(x, torch.Generator().manual_seed(seed)).log_prob(latents)

        assert torch.equal(log_prob(1), log_prob(1))
        assert not torch.equal(log_prob(1), log_prob(2))

    def test_masks_keep_the_mean(self, make_generator, make_batch, generator):
        """Kept values are divided by the share kept; the share is within five standard errors."""
        x = make_batch([[4] * 50] * 100)
        conditioned = make_generator(dropout=0.3).condition(x, generator)
        for mask in (conditioned.input_mask, conditioned.output_mask):
            values = mask.unique()
            torch.testing.assert_close(values, torch.tensor([0, 1 / 0.7], dtype=torch.float64))
            error = (0.3 / 0.7 / mask.numel()) ** 0.5
            assert abs(mask.mean() - 1) < 5 * error

    def test_fresh_masks_are_those_of_a_new_likelihood(self, make_generator, make_batch, latents):
        model, x = make_generator(dropout=0.5), make_batch(SENTENCES)
        source = torch.Generator().manual_seed(4)
        first = model.condition(x, source)
        before, fresh = first.log_prob(latents), first.with_fresh_masks(source)
        source.manual_seed(4)
        model.condition(x, source)
        expected = model.condition(x, source).log_prob_and_grad(latents)
        torch.testing.assert_close(fresh.log_prob_and_grad(latents), expected, **EXACT)
        assert torch.equal(first.log_prob(latents), before)  # the first one keeps its own


@pytest.mark.parametrize("mask", ["none", "chain", "step"])
@pytest.mark.parametrize("cell", CELLS)
def test_nothing_inside_the_chain_waits_for_the_device(
    monkeypatch, make_generator, make_batch, generator, no_readback, cell, mask
):
    """On a CPU, by the kinds of operation; tests/gpu asks CUDA itself."""
    monkeypatch.setattr(softmax, "asking_is_free", lambda values: False)  # as on a GPU
    model = make_generator(cell=cell, dropout=0.5)
    prior = energy.EBMPrior(PriorConfig(latent_dim=3, width=8)).double()
    conditioned = model.condition(make_batch(SENTENCES), generator if mask != "none" else None)

    def likelihood():
        return conditioned.with_fresh_masks(generator) if mask == "step" else conditioned

    start = prior.sample_reference(len(SENTENCES), generator)
    plan = langevin.schedule(3, 0.3)
    with no_readback():
        langevin.run(start, prior.potential, plan, generator)
        langevin.run(start, inference.posterior_potential(prior, likelihood), plan, generator)
        if mask != "step":
            model.condition(make_batch(SENTENCES))  # batches are planned on the host
    with pytest.raises(AssertionError, match="nonzero waits"), no_readback():  # the guard itself works
        torch.ones(3).nonzero()


def test_z_must_reach_the_generator():
    with pytest.raises(ConfigError, match="z_to_state"):
        GeneratorConfig(z_to_state=False, z_to_input=False)


def test_initial_weights_come_from_the_source_given(make_generator):
    one, same, other = make_generator(seed=1), make_generator(seed=1), make_generator(seed=2)
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, same.state_dict()[name])
        assert not torch.equal(weight, other.state_dict()[name])
        assert weight.abs().max() <= 0.7


@pytest.mark.parametrize("path", ["fast", "plain"])
class TestWordDropout:
    """A share of the words that the generator reads become <unk>, in training alone."""

    def test_none_is_none_exactly(self, make_generator, make_batch, latents, path):
        x, seeds = make_batch(SENTENCES), [torch.Generator().manual_seed(1) for _ in range(2)]
        values = [
            make_generator(dropout=0.4, **config).condition(x, seed, path=path).log_prob(latents)
            for config, seed in zip(({}, {"word_dropout": 0.0}), seeds, strict=True)
        ]
        assert torch.equal(*values)

    def test_of_all_words_leaves_the_beginning_of_the_sentence(self, make_generator, make_batch, latents, path):
        x, model = make_batch(SENTENCES), make_generator(word_dropout=1.0)
        found = model.condition(x, torch.Generator(), path=path)
        unknown = x._replace(inputs=torch.where(x.inputs == BOS, BOS, torch.full_like(x.inputs, UNK)))
        known = model.condition(unknown, path=path)
        for one, other in zip(found.log_prob_and_grad(latents), known.log_prob_and_grad(latents), strict=True):
            torch.testing.assert_close(one, other, **EXACT)
        torch.testing.assert_close(found.log_prob(latents), known.log_prob(latents), **EXACT)

    def test_is_not_of_evaluation(self, make_generator, make_batch, latents, path):
        x = make_batch(SENTENCES)
        values = [make_generator(word_dropout=p).condition(x, path=path).log_prob(latents) for p in (0.0, 0.9)]
        assert torch.equal(*values)

    def test_it_stays_until_a_fresh_one_is_drawn(self, make_generator, make_batch, path):
        x, source = make_batch([[4, 5, 6, 7, 8, 9] * 5] * 5), torch.Generator().manual_seed(2)
        conditioned = make_generator(word_dropout=0.3).condition(x, source, path=path)
        fresh = [conditioned.with_fresh_masks(source) for _ in range(400)]
        dropped = torch.stack([(one.words != one.inputs) for one in fresh]).double()
        assert all(torch.equal(one.targets, conditioned.targets) for one in fresh)
        assert all(((one.words == one.inputs) | (one.words == UNK)).all() for one in fresh)
        is_word = conditioned.inputs != BOS
        assert (dropped[:, ~is_word] == 0).all()
        share, n = dropped[:, is_word].mean(), 400 * int(is_word.sum())
        assert abs(share - 0.3) < 5 * (0.3 * 0.7 / n) ** 0.5
        assert dropped[:, is_word].std(0).min() > 0  # each word now and then
