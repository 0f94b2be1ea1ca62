"""What is measured on held-out sentences equals what is computed by hand."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from textebm import evaluation
from textebm.config import GeneratorConfig, InferenceConfig, PriorConfig
from textebm.data.text import EncodedText, encode
from textebm.data.vocabulary import build_tokenizer
from textebm.data.vocabulary import decode as to_text
from textebm.model import information
from textebm.model.decoding import Decoding, decode
from textebm.model.latent_model import LatentModel, ModelConfig
from textebm.model.random import stream

WORDS = ["the", "dog", "sees", "a", "cat", "and", "the", "king", "sleeps", "again"]
SENTENCES = [" ".join(WORDS[(i * k) % 10] for k in range(1, 2 + i % 7)) for i in range(1, 24)]
LATENT = 3


@pytest.fixture(scope="module")
def text() -> EncodedText:
    return encode(SENTENCES, build_tokenizer(SENTENCES, 100))


def make_model(prior: dict[str, Any] | None = None, inference: dict[str, Any] | None = None) -> LatentModel:
    """A small model with weights large enough that z matters."""
    config = ModelConfig(
        vocab_size=build_tokenizer(SENTENCES, 100).get_vocab_size(),
        prior=PriorConfig(latent_dim=LATENT, width=8, steps=3, **(prior or {})),
        generator=GeneratorConfig(embedding_dim=4, hidden_dim=6, init_range=1.0),
        inference=InferenceConfig(steps=3, **({"step_size": 0.3} | (inference or {}))),
    )
    return LatentModel(config, seed=3)


class TestValidate:
    def test_equals_the_sums_over_one_batch(self, text: EncodedText) -> None:
        """In one batch, from the same random streams, by the model's own plain methods."""
        model = make_model()
        measured = evaluation.validate(model, text, seed=5, batch_size=100)
        order = np.argsort(text.lengths[np.arange(len(text))], kind="stable")
        x = text.batch(order)
        posterior = model.infer(x, stream(5, "evaluation", 0, 0))
        start = model.prior.sample_reference(len(order), stream(5, "evaluation", 0, 0))
        prior = model.sample_prior(len(order), stream(5, "evaluation", 0, 1))
        gaussian = model.prior.sample_reference(len(order), stream(5, "evaluation", 0, 1))  # where prior chains start
        by_hand = {
            "sentences": len(SENTENCES),
            "tokens": sum(len(sentence.split()) + 1 for sentence in SENTENCES),
            "words": sum(len(sentence.split()) + 1 for sentence in SENTENCES),
            "reconstruction_nll": -model.log_prob(x, posterior).mean().item(),
            "prior_nll": -model.log_prob(x, prior).mean().item(),
            "gaussian_nll": -model.log_prob(x, gaussian).mean().item(),
            "posterior_energy": model.energy(posterior).mean().item(),
            "prior_energy": model.energy(prior).mean().item(),
            "gaussian_energy": model.energy(gaussian).mean().item(),
            "posterior_norm": posterior.norm(dim=1).mean().item(),
            "prior_norm": prior.norm(dim=1).mean().item(),
            "posterior_displacement": (posterior - start).norm(dim=1).mean().item(),
            "prior_displacement": (prior - gaussian).norm(dim=1).mean().item(),
        }
        assert {field.name for field in dataclasses.fields(measured)} == by_hand.keys()
        for name, value in by_hand.items():
            assert getattr(measured, name) == pytest.approx(value, rel=1e-5), name
        token_nll = by_hand["reconstruction_nll"] * by_hand["sentences"] / by_hand["tokens"]
        assert measured.reconstruction_perplexity == pytest.approx(math.exp(token_nll), rel=1e-4)
        assert measured.to_dict().keys() > by_hand.keys()

    def test_every_batch_size_gives_the_same_where_z_does_not_depend_on_the_noise(self, text: EncodedText) -> None:
        """Each batch draws its own noise, so figures at other batch sizes differ by that; without it they are equal.

        Here the reference Gaussian is a point and the chains stand still: every figure is its value at z = 0.
        """
        still = {"step_size": 1e-9, "temperature": 0.0}
        model = make_model({"sigma": 1e-7, **still}, still)
        measured = [evaluation.validate(model, text, 0, batch_size=size).to_dict() for size in (1, 4, 7, 64)]
        zero = torch.zeros(len(text), LATENT)
        nll = -model.log_prob(text.batch(range(len(text))), zero).double().mean().item()
        for figures in measured:
            assert figures == pytest.approx(measured[0], rel=1e-5, abs=1e-6)
            assert figures["reconstruction_nll"] == pytest.approx(nll, rel=1e-5)
            assert figures["prior_nll"] == pytest.approx(nll, rel=1e-5)
            assert figures["posterior_energy"] == pytest.approx(model.energy(zero)[0].item(), rel=1e-5)

    def test_the_mean_is_over_the_corpus_not_over_batches(self, text: EncodedText) -> None:
        """23 sentences in batches of 22 and 1: the single sentence must not weigh as much as the 22."""
        model = make_model({"sigma": 1e-7, "step_size": 1e-9}, {"step_size": 1e-9, "temperature": 0.0})
        uneven = evaluation.validate(model, text, 0, batch_size=len(text) - 1)
        whole = evaluation.validate(model, text, 0, batch_size=len(text))
        assert uneven.gaussian_nll == pytest.approx(whole.gaussian_nll, rel=1e-5)
        assert uneven.tokens == whole.tokens

    def test_the_same_seed_gives_the_same_figures_and_another_one_others(self, text: EncodedText) -> None:
        model = make_model()
        first, again, other = (evaluation.validate(model, text, seed) for seed in (1, 1, 2))
        assert first == again
        assert first != other
        assert first.sentences == other.sentences

    def test_neither_weights_nor_the_global_random_state_change(self, text: EncodedText) -> None:
        model = make_model()
        weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        state = torch.random.get_rng_state()
        evaluation.validate(model, text, 0)
        assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
        assert torch.equal(torch.random.get_rng_state(), state)
        assert all(parameter.grad is None for parameter in model.parameters())

    def test_a_gaussian_prior_has_no_energy_and_prior_samples_from_itself(self, text: EncodedText) -> None:
        measured = evaluation.validate(make_model({"kind": "gaussian"}), text, 0)
        assert measured.posterior_energy == measured.prior_energy == measured.gaussian_energy == 0

    def test_a_part_of_the_sentences_is_spread_over_all(self, text: EncodedText) -> None:
        rows = evaluation.spread(100, 5)
        assert rows.tolist() == [0, 25, 50, 74, 99]
        assert evaluation.spread(3, 5).tolist() == evaluation.spread(3, 0).tolist() == [0, 1, 2]
        assert evaluation.validate(make_model(), text, 0, sentences=5).sentences == 5

    @given(st.integers(1, 500), st.integers(0, 500))
    def test_such_rows_are_distinct_and_in_order(self, available: int, wanted: int) -> None:
        rows = evaluation.spread(available, wanted)
        assert len(rows) == (min(available, wanted) or available)
        assert (np.diff(rows) > 0).all()
        assert rows[0] == 0
        assert len(rows) == 1 or rows[-1] == available - 1


class Posterior:
    """A hand-made posterior: each sentence's mean varies by `between`, its chains around it by `within` (variances)."""

    def __init__(self, text: EncodedText, between: list[float], within: list[float]) -> None:
        random = np.random.default_rng(0)
        known = {tuple(text.sentence(i).tolist()) for i in range(len(text))}
        self.means = {words: random.normal(size=len(between)) * np.sqrt(between) for words in sorted(known)}
        self.within = torch.tensor(within).sqrt()

    def infer(self, x: Any, generator: torch.Generator) -> torch.Tensor:
        words = [tuple(row[1:length].tolist()) for row, length in zip(x.inputs, x.lengths.tolist(), strict=True)]
        means = torch.tensor(np.stack([self.means[w] for w in words]), dtype=torch.float32)
        return means + self.within * torch.randn(means.shape, generator=generator)


class TestActiveUnits:
    SENTENCES, CHAINS = 400, 10

    def count(self, between: list[float], within: list[float], **options: Any) -> tuple[int, list[float]]:
        sentences = [" ".join([f"w{i}"] * (1 + 7 * i % 5)) for i in range(self.SENTENCES)]  # of mixed lengths
        text = encode(sentences, build_tokenizer(sentences, 10_000))
        config = ModelConfig(vocab_size=10, prior=PriorConfig(latent_dim=len(between), width=2))
        model = LatentModel(config)
        model.infer = Posterior(text, between, within).infer  # type: ignore[method-assign]
        return evaluation.active_units(model, text, 0, self.SENTENCES, self.CHAINS, **options)

    def test_a_posterior_that_is_the_prior_has_next_to_none(self) -> None:
        """Each mean over 10 chains varies by 0.1 then, ten times the threshold: uncorrected, every unit would count."""
        units = 32
        active, variances = self.count([0.0] * units, [1.0] * units)
        # The corrected variance has mean 0 and standard deviation 0.1 √(2/400) = 0.007: a few may pass 0.01 by chance.
        assert active <= 6
        assert abs(np.mean(variances)) < 4 * 0.0075 / math.sqrt(units)

    def test_informative_dimensions_are_counted_and_the_others_not(self) -> None:
        between = [1.0, 0.0, 0.05, 0.0, 0.5]
        within = [0.1, 0.001, 0.01, 0.01, 0.5]
        active, variances = self.count(between, within)
        assert active == 3
        for variance, known, noise in zip(variances, between, within, strict=True):
            error = 4 * (known + noise / self.CHAINS) * math.sqrt(2 / self.SENTENCES)  # of a variance
            assert variance == pytest.approx(known, abs=error)

    def test_the_batch_size_changes_only_the_noise(self) -> None:
        """Without noise within sentences, not even that: chains are put back to their sentences."""
        for size in (1, 64, 10_000):
            active, variances = self.count([0.5, 0.0], [0.0, 0.0], batch_size=size)
            assert active == 1
            assert variances == pytest.approx(self.count([0.5, 0.0], [0.0, 0.0])[1])

    def test_of_one_sentence_nothing_is_active(self) -> None:
        text = encode(["the dog"], build_tokenizer(["the dog"], 100))
        model = LatentModel(ModelConfig(6, PriorConfig(latent_dim=2, width=2)))
        assert evaluation.active_units(model, text, 0, 10, 3) == (0, [0.0, 0.0])

    def test_a_model_whose_chains_stand_still_uses_no_unit(self, text: EncodedText) -> None:
        model = make_model(inference={"step_size": 1e-9})
        active, variances = evaluation.active_units(model, text, 0, sentences=23, chains=200)
        # mean 0, standard deviation (1/200) √(2/22) = 0.0015
        assert active == 0
        assert max(map(abs, variances)) < 0.01


class TestUnigram:
    def test_by_hand(self) -> None:
        """Train: a a b; 2 sentences. Ids: pad, bos, eos, unk, a, b. Add-one counts: eos 3, unk 1, a 3, b 2; sum 9."""
        train, held_out = ["a a", "b"], ["b c"]
        tokenizer = build_tokenizer(train, 100)
        found = evaluation.unigram_perplexity(encode(train, tokenizer), encode(held_out, tokenizer), 6)
        assert found == pytest.approx((9 / 2 * 9 / 1 * 9 / 3) ** (1 / 3))

    @given(st.lists(st.lists(st.sampled_from("abcde"), min_size=1, max_size=5).map(" ".join), min_size=1, max_size=8))
    @settings(max_examples=30)
    def test_lies_between_1_and_the_number_of_classes_on_its_own_text(self, sentences: list[str]) -> None:
        tokenizer = build_tokenizer(sentences, 100)
        size = tokenizer.get_vocab_size()
        text = encode(sentences, tokenizer)
        assert 1 < evaluation.unigram_perplexity(text, text, size) <= size - 2 + 1e-9


class TestUseOfLatents:
    def use(self, text: EncodedText, model: LatentModel, **options: Any) -> evaluation.LatentUse:
        return evaluation.latent_use(model, text, build_tokenizer(SENTENCES, 100), 0, **options)

    def test_figures_are_those_of_the_chains(self, text: EncodedText) -> None:
        model = make_model({"kind": "gaussian"})
        found = self.use(text, model, sentences=10, chains=4)
        samples = evaluation.posterior_chains(model, text, 0, 10, 4)
        mean, log_variance = information.fitted_gaussian(samples)
        assert samples.shape == (10, 4, LATENT)
        assert found.latent_sentences == 10
        assert found.latent_chains == 4
        assert found.active_units == evaluation.active_units(model, text, 0, 10, 4)[0]
        assert found.density == "fitted-gaussian"
        expected = information.mutual_information(samples, mean, log_variance).item()
        assert found.mutual_information == pytest.approx(expected)
        entropies = information.entropy_of_chains(samples)
        second_moment = samples.square().sum(2).mean(1)
        kl = -entropies + 0.5 * (second_moment + LATENT * math.log(2 * math.pi))
        assert found.kl == pytest.approx(kl.mean().item(), rel=1e-5)

    def test_kl_needs_the_normaliser_of_an_ebm(self, text: EncodedText) -> None:
        model = make_model()
        unknown, zero, two = (
            self.use(text, model, sentences=5, chains=3, log_normaliser=known) for known in (None, 0.0, 2.0)
        )
        assert unknown.kl is None
        assert "kl" not in unknown.to_dict()
        assert two.kl == pytest.approx(zero.kl + 2)
        assert unknown.mutual_information == zero.mutual_information

    def test_bleu_is_of_greedy_reconstructions_of_the_first_chain(self, text: EncodedText) -> None:
        pytest.importorskip("sacrebleu", reason="the BLEU score needs sacrebleu")
        model, tokenizer = make_model(), build_tokenizer(SENTENCES, 100)
        found = self.use(text, model, sentences=0, chains=2)
        z = evaluation.posterior_chains(model, text, 0, 0, 2)[:, 0].float()
        greedy = Decoding("greedy", max_length=model.config.longest)
        written = decode(model.generator, z, greedy, stream(0, "decoding", 0))
        originals = [to_text(tokenizer, text.sentence(row)) for row in range(len(text))]
        assert originals == SENTENCES
        assert found.reconstruction_bleu == evaluation.bleu([to_text(tokenizer, ids) for ids in written], originals)[0]

    def test_bleu_of_copies_is_100(self) -> None:
        pytest.importorskip("sacrebleu", reason="the BLEU score needs sacrebleu")
        long = [sentence for sentence in SENTENCES if len(sentence.split()) >= 4]
        score, signature = evaluation.bleu(long, long)
        assert score == pytest.approx(100)
        assert "tok:none" in signature
        assert evaluation.bleu(long[::-1], long)[0] < 100

    def test_without_sacrebleu_it_is_left_out(self, text: EncodedText, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(evaluation, "find_spec", lambda name: None)
        found = self.use(text, make_model(), sentences=4, chains=2)
        assert found.reconstruction_bleu is None
        assert "reconstruction_bleu" not in found.to_dict()

    def test_the_gap_is_between_prior_and_posterior_samples(self, text: EncodedText) -> None:
        measured = evaluation.validate(make_model(), text, 0)
        assert measured.nll_gap == measured.prior_nll - measured.reconstruction_nll
        assert measured.to_dict()["nll_gap"] == measured.nll_gap

    def test_a_longer_prior_chain_changes_prior_figures_alone(self, text: EncodedText) -> None:
        model = make_model()
        short, same, long = (evaluation.validate(model, text, 0, prior_steps=steps) for steps in (None, 3, 12))
        assert short == same
        changed = {
            field.name for field in dataclasses.fields(short) if getattr(short, field.name) != getattr(long, field.name)
        }
        assert changed == {"prior_nll", "prior_energy", "prior_norm", "prior_displacement"}
