"""The encoder: its Gaussian against closed forms, its recurrence against torch's own, and what must not change it."""

import math

import pytest
import torch
from torch import Tensor

from textebm.config import EncoderConfig, GeneratorConfig
from textebm.model import information
from textebm.model.encoder import DiagonalGaussian, SentenceEncoder
from textebm.model.recurrent import UNK

EXACT = {"rtol": 0, "atol": 1e-12}
SENTENCES = [[4, 5, 6], [7], [], [10, 9, 8, 7, 6], [4, UNK]]
CELLS = ["lstm", "gru"]
SIZES = GeneratorConfig(embedding_dim=4, hidden_dim=5)


def make_encoder(cell: str = "lstm", seed: int = 1, **config) -> SentenceEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SentenceEncoder(EncoderConfig(cell=cell, **{"init_range": 0.7, **config}), SIZES, 11, 3).double()


def gaussian(generator: torch.Generator, n: int = 5, latent: int = 3) -> DiagonalGaussian:
    return DiagonalGaussian(
        *(torch.randn(n, latent, generator=generator, dtype=torch.float64) * scale for scale in (2.0, 0.7))
    )


class TestGaussian:
    def test_log_prob_is_that_of_torch(self, generator):
        q = gaussian(generator)
        z = torch.randn(5, 3, generator=generator, dtype=torch.float64)
        known = torch.distributions.Normal(q.mean, (0.5 * q.log_variance).exp()).log_prob(z).sum(1)
        torch.testing.assert_close(q.log_prob(z), known, **EXACT)

    @pytest.mark.parametrize("sigma", [1.0, 0.6, 2.5])
    def test_kl_is_that_of_torch(self, generator, sigma):
        q = gaussian(generator)
        of_q = torch.distributions.Normal(q.mean, (0.5 * q.log_variance).exp())
        reference = torch.distributions.Normal(torch.zeros_like(q.mean), sigma)
        torch.testing.assert_close(
            q.kl_from_reference(sigma), torch.distributions.kl_divergence(of_q, reference), **EXACT
        )

    def test_kl_is_the_mean_log_ratio_of_samples(self, generator):
        n, sigma = 40_000, 1.3
        one = gaussian(generator, 1)
        q = DiagonalGaussian(*(part.expand(n, 3) for part in one))
        z = q.sample(generator)
        reference = DiagonalGaussian(torch.zeros_like(q.mean), torch.full_like(q.mean, 2 * math.log(sigma)))
        ratio = q.log_prob(z) - reference.log_prob(z)
        assert abs(ratio.mean() - one.kl_from_reference(sigma).sum()) < 5 * ratio.std() / math.sqrt(n)

    def test_samples_have_its_moments(self, generator):
        n = 40_000
        one = gaussian(generator, 1)
        z = DiagonalGaussian(*(part.expand(n, 3) for part in one)).sample(generator)
        variance = one.log_variance.exp()[0]
        assert ((z.mean(0) - one.mean[0]).abs() < 5 * (variance / n).sqrt()).all()
        assert ((z.var(0) / variance - 1).abs() < 5 * math.sqrt(2 / n)).all()

    def test_a_sample_is_differentiable_in_both(self, generator):
        mean, log_variance = (torch.zeros(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
        z = DiagonalGaussian(mean, log_variance).sample(generator)
        of_mean, of_log_variance = torch.autograd.grad(z.sum(), (mean, log_variance))
        torch.testing.assert_close(of_mean, torch.ones_like(mean))
        torch.testing.assert_close(of_log_variance, 0.5 * z.detach())  # z = exp(½ log σ²) ε at μ = 0


class TestMutualInformation:
    def test_of_sentences_that_are_told_apart_is_the_log_of_their_number(self, generator):
        q = DiagonalGaussian(torch.arange(8.0)[:, None] * 100, torch.zeros(8, 1))
        assert information.mutual_information(q.sample(generator)[:, None], *q) == pytest.approx(math.log(8), abs=1e-5)

    def test_of_one_and_the_same_posterior_is_nothing(self, generator):
        q = DiagonalGaussian(torch.ones(9, 2), torch.zeros(9, 2))
        assert information.mutual_information(q.sample(generator)[:, None], *q) == pytest.approx(0, abs=1e-5)

    def test_of_two_sentences_by_integration(self, generator):
        """log q(z|x) − log ½(q(z|1) + q(z|2)) under q, for means ±1 and variance 1: integrated, then sampled."""
        z = torch.linspace(-9, 9, 4001, dtype=torch.float64)[:, None]
        first, second = (DiagonalGaussian(torch.full_like(z, m), torch.zeros_like(z)) for m in (-1.0, 1.0))
        of_first, of_second = first.log_prob(z), second.log_prob(z)
        mixture = torch.logaddexp(of_first, of_second) - math.log(2)
        exact = float((of_first.exp() * (of_first - mixture)).sum() * 18 / 4000)  # by symmetry the same for the other
        q = DiagonalGaussian(*(p.double() for p in (torch.tensor([[-1.0], [1.0]]), torch.zeros(2, 1))))
        draws = torch.stack([information.mutual_information(q.sample(generator)[:, None], *q) for _ in range(4000)])
        assert abs(draws.mean() - exact) < 5 * draws.std() / math.sqrt(4000)


def by_torch(encoder: SentenceEncoder, sentences: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Mean and log-variance of each sentence by torch's own bidirectional recurrence, one sentence at a time."""
    rows = []
    for sentence in sentences:
        outputs, _ = encoder.rnn(encoder.embedding(torch.tensor([[*sentence, 2]])))
        hidden = encoder.hidden_dim
        rows.append(encoder.output(torch.cat([outputs[0, -1, :hidden], outputs[0, 0, hidden:]])))
    return torch.stack(rows).chunk(2, dim=1)


@pytest.mark.parametrize("cell", CELLS)
class TestSentenceEncoder:
    def test_it_is_torchs_recurrence_in_both_directions(self, make_batch, cell):
        encoder = make_encoder(cell)
        mean, log_variance = by_torch(encoder, SENTENCES)
        q = encoder(make_batch(SENTENCES))
        torch.testing.assert_close(q.mean, mean, **EXACT)
        torch.testing.assert_close(q.log_variance, log_variance, **EXACT)

    def test_its_gradient_is_torchs(self, make_batch, cell):
        encoder = make_encoder(cell)
        parameters = list(encoder.parameters())
        ours, theirs = (
            torch.autograd.grad(q[0].square().sum() + q[1].sin().sum(), parameters)
            for q in (encoder(make_batch(SENTENCES)), by_torch(encoder, SENTENCES))
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)
        assert all(gradient.abs().max() > 0 for gradient in ours)

    def test_padding_order_and_batch_size_do_not_matter(self, make_batch, cell):
        encoder, order = make_encoder(cell), [3, 0, 4, 2, 1]
        q = encoder(make_batch(SENTENCES))
        x = make_batch(SENTENCES, 6)
        padding = torch.arange(x.inputs.shape[1]) >= x.lengths[:, None]
        padded = encoder(x._replace(inputs=x.inputs.masked_fill(padding, 9), targets=x.targets.masked_fill(padding, 9)))
        shuffled = encoder(make_batch([SENTENCES[i] for i in order]))
        alone = [encoder(make_batch([sentence])) for sentence in SENTENCES]
        for part in (0, 1):
            torch.testing.assert_close(padded[part], q[part], **EXACT)
            torch.testing.assert_close(shuffled[part], q[part][order], **EXACT)
            torch.testing.assert_close(torch.cat([one[part] for one in alone]), q[part], **EXACT)

    def test_every_word_and_its_place_matter(self, make_batch, cell):
        encoder = make_encoder(cell)
        means = encoder(make_batch([[4, 5, 6], [6, 5, 4], [4, 7, 6], [4, 5, 6, 6], [4, 5]])).mean
        assert len(means.detach().unique(dim=0)) == 5

    def test_dropout_is_of_training_alone_and_keeps_the_mean(self, make_batch, cell):
        encoder, x = make_encoder(cell, dropout=0.3), make_batch(SENTENCES)
        plain = encoder(x)
        assert torch.equal(encoder(x).mean, plain.mean)
        one, same, other = (encoder(x, torch.Generator().manual_seed(seed)).mean for seed in (1, 1, 2))
        assert torch.equal(one, same)
        assert not torch.equal(one, other)
        assert not torch.equal(one, plain.mean)
        assert torch.equal(make_encoder(cell)(x, torch.Generator().manual_seed(1)).mean, make_encoder(cell)(x).mean)

    def test_reduced_precision_is_near(self, make_batch, cell):
        encoder = make_encoder(cell).float()
        full, narrow = (encoder(make_batch(SENTENCES), precision=p).mean for p in ("fp32", "bf16"))
        assert not torch.equal(full, narrow)
        torch.testing.assert_close(full, narrow, rtol=0.05, atol=0.05)


def test_sizes_are_the_generators_where_none_are_given():
    encoder = make_encoder()
    assert (encoder.embedding.embedding_dim, encoder.hidden_dim) == (4, 5)
    encoder = make_encoder(embedding_dim=6, hidden_dim=7)
    assert (encoder.embedding.embedding_dim, encoder.hidden_dim) == (6, 7)
    assert encoder.output.weight.shape == (6, 14)
