"""The marginal likelihood of held-out sentences, and `textebm likelihood`."""

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from textebm import evaluation, generation, marginal
from textebm.config import GeneratorConfig, InferenceConfig, PriorConfig
from textebm.data.text import EncodedText, encode
from textebm.data.vocabulary import build_tokenizer
from textebm.lm_eval.signature import Signature
from textebm.marginal import Marginal, Settings
from textebm.model import likelihood
from textebm.model.ais import LogMean, LogNormaliser, Plan, Run
from textebm.model.latent_model import LatentModel, ModelConfig, load_tensors, save_tensors
from textebm.model.proposals import Fit, Gaussians, Proposed

SENTENCES = ["the dog sees", "a king", "no wolf fears the old king today", "ship", "the river finds a ship"] * 3
QUICK = Settings(samples=60, fit=Fit(chains=4, steps=12), plan=Plan(chains=30, steps=20, settling=10))


@pytest.fixture(scope="module")
def text() -> EncodedText:
    return encode(SENTENCES, build_tokenizer(SENTENCES, 100))


def make_model(kind: str = "ebm", latent_dim: int = 2) -> LatentModel:
    config = ModelConfig(
        vocab_size=build_tokenizer(SENTENCES, 100).get_vocab_size(),
        prior=PriorConfig(kind=kind, latent_dim=latent_dim, width=8),
        generator=GeneratorConfig(embedding_dim=4, hidden_dim=6, init_range=1.0),
        inference=InferenceConfig(kind="none" if kind == "none" else "short-run"),
    )
    return LatentModel(config, seed=2).double()


class TestEstimate:
    @pytest.mark.parametrize("kind", ["ebm", "gaussian"])
    def test_against_the_grid(self, kind: str, text: EncodedText) -> None:
        """In the order of the text, although it is worked on from the shortest sentence to the longest."""
        model = make_model(kind)
        settings = Settings(samples=1000, plan=Plan(chains=200, steps=60, settling=60), sentences_at_once=4)
        found = marginal.estimate(model, text, 0, settings, sentences=5)
        rows = evaluation.spread(len(text), 5)
        x = text.batch(rows)
        z, cell = likelihood.grid(2, points=61)
        with torch.no_grad():
            values = model.condition(x.repeated(len(z))).log_prob(z.repeat(5, 1)).view(5, -1)
            exact = likelihood.log_marginal(model.prior, lambda points: values, z, cell).numpy()
        assert found.log_means - found.log_z == pytest.approx(exact, abs=0.15)
        assert found.words.tolist() == (1 + text.words(rows)).tolist()
        assert (found.log_normaliser is None) == (kind == "gaussian")
        assert found.withheld is None
        assert np.ptp(exact) > 5

    @pytest.mark.parametrize("kind", ["ebm", "gaussian", "none"])
    def test_figures_do_not_depend_on_what_is_worked_on_together(self, kind: str, text: EncodedText) -> None:
        model = make_model(kind)
        whole = marginal.estimate(model, text, 0, QUICK)
        for size in (1, 4):
            again = marginal.estimate(model, text, 0, dataclasses.replace(QUICK, sentences_at_once=size))
            assert again.log_means == pytest.approx(whole.log_means, abs=1e-9)
            assert again.log_likelihoods == pytest.approx(whole.log_likelihoods, abs=1e-9)
        some = marginal.estimate(model, text, 0, QUICK, sentences=4)
        assert some.log_means == pytest.approx(whole.log_means[evaluation.spread(len(text), 4)], abs=1e-9)

    def test_blocks_of_samples_change_nothing(self, text: EncodedText, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = marginal.estimate(make_model(), text, 0, QUICK)
        monkeypatch.setattr(marginal, "TOKENS_AT_ONCE", 1)
        assert marginal.estimate(make_model(), text, 0, QUICK).log_means == pytest.approx(whole.log_means, abs=1e-9)

    def test_without_z_it_is_the_language_models(self, text: EncodedText) -> None:
        model = make_model("none")
        found = marginal.estimate(model, text, 0, QUICK)
        measured = evaluation.validate(model, text, 5)
        assert isinstance(measured, evaluation.ExactValidation)
        assert found.exact
        assert -found.log_means.mean() == pytest.approx(measured.nll, rel=1e-9)
        score = marginal.summarise(found, {}, QUICK)
        assert score.score == pytest.approx(measured.nll)
        assert score.perplexity == pytest.approx(measured.perplexity)
        assert score.details["importance"] is score.details["reconstruction"] is None

    def test_seeds(self, text: EncodedText) -> None:
        first, again, other = (marginal.estimate(make_model(), text, seed, QUICK) for seed in (1, 1, 2))
        assert first.log_means.tolist() == again.log_means.tolist()
        assert first.log_normaliser == again.log_normaliser
        assert not (first.log_means == other.log_means).any()
        assert first.log_normaliser != other.log_normaliser

    def test_another_proposer(self, text: EncodedText) -> None:
        """Anything that samples and knows its density will do: the standard normal, here."""

        class Normal:
            name = "standard-normal"

            def __call__(self, x: Any, conditioned: Any, sources: Any) -> Proposed:
                n = len(x.lengths)
                return Proposed(Gaussians(torch.zeros(n, 2), torch.eye(2).expand(n, 2, 2)), None)

        many = dataclasses.replace(QUICK, samples=3000)
        ours, theirs = (marginal.estimate(make_model(), text, 0, many, 5, p) for p in (None, Normal()))
        assert theirs.proposal == "standard-normal"
        assert theirs.acceptance is None
        assert theirs.log_means == pytest.approx(ours.log_means, abs=0.2)


def known(forward: float = 1.0, reverse: float = 1.2) -> Marginal:
    runs = [Run(LogMean(value, 0.1, 20.0), 0.6) for value in (forward, reverse)]
    return Marginal(
        log_means=np.array([-10.0, -21.0, -5.0]),
        log_likelihoods=np.array([-9.0, -20.0, -4.5]),
        effective_samples=np.array([10.0, 30.0, 20.0]),
        words=np.array([4, 8, 2]),
        tokens=15,
        log_normaliser=LogNormaliser(*runs, exact_start=False),
        proposal="some",
        acceptance=0.5,
    )


class TestSummary:
    def test_by_hand(self) -> None:
        """The larger log Z is taken: NLL 12 + 1.2 a sentence, 3 (12 + 1.2)/14 a word."""
        score = marginal.summarise(known(), {"data": "d"}, QUICK)
        assert score.score == pytest.approx(13.2)
        assert score.perplexity == pytest.approx(math.exp(3 * 13.2 / 14))
        assert score.details["reconstruction"]["nll"] == pytest.approx(33.5 / 3)
        assert score.details["reconstruction"]["kl"] == pytest.approx(13.2 - 33.5 / 3)
        assert score.details["importance"]["nll_before_log_z"] == pytest.approx(12)
        assert score.details["importance"]["effective_samples"]["median"] == 20
        low, high = score.interval
        assert 6.2 <= low < 13.2 < high <= 22.2
        assert marginal.summarise(known(1.2, 1.0), {}, QUICK).score == pytest.approx(13.2)

    @pytest.mark.parametrize(("forward", "reverse"), [(1.0, 1.6), (1.6, 1.0), (1.0, math.inf), (1.0, math.nan)])
    def test_two_estimates_that_disagree_give_no_score(self, forward: float, reverse: float) -> None:
        score = marginal.summarise(known(forward, reverse), {}, QUICK)
        assert score.score is score.interval is score.perplexity is score.perplexity_interval is None
        assert score.details["reconstruction"]["kl"] is None
        assert "by the forward" in score.details["withheld"]
        assert json.loads(score.to_json())["score"] is None

    def test_a_model_that_gives_no_finite_likelihood_gets_none(self) -> None:
        broken = dataclasses.replace(known(), log_means=np.array([-10.0, math.nan, -5.0]))
        score = marginal.summarise(broken, {}, QUICK)
        assert score.score is None
        assert "1 of 3 sentences is not finite" in score.details["withheld"]
        assert json.loads(score.to_json())["details"]["importance"]["nll_before_log_z"] is None

    def test_few_effective_samples_are_warned_of(self) -> None:
        few = dataclasses.replace(known(), effective_samples=np.array([1.0, 1.1, 30.0]))
        assert marginal.summarise(known(), {}, QUICK).details["warnings"] == []
        assert "1.1 effective samples out of 60" in marginal.summarise(few, {}, QUICK).details["warnings"][0]

    def test_so_are_few_effective_chains(self) -> None:
        runs = [Run(LogMean(1.0, 0.1, effective), 0.6) for effective in (30.0, 2.5)]
        few = dataclasses.replace(known(), log_normaliser=LogNormaliser(*runs, exact_start=False))
        (warning,) = marginal.summarise(few, {}, QUICK).details["warnings"]
        assert "rests on 2.5 effective chains" in warning

    def test_figures_compare_however_they_were_estimated(self) -> None:
        """An exact likelihood stands beside a bound; another text, or another vocabulary, does not."""
        exact = dataclasses.replace(known(), effective_samples=None, log_normaliser=None, proposal=None)
        facts = {"data": "d", "test": "a", "vocabulary": "v"}
        first = marginal.summarise(known(), facts, QUICK).signature
        assert first.compare(marginal.summarise(exact, facts, QUICK).signature).comparable
        for key in facts:
            other = marginal.summarise(exact, facts | {key: "other"}, QUICK).signature
            assert first.compare(other).decisive == (key,)
        assert all("does not know" not in said for _, _, said in first.explain())

    def test_digests(self, text: EncodedText) -> None:
        whole, part = marginal.text_digest(text), marginal.text_digest(text, 3)
        assert whole == marginal.text_digest(text, len(text)) != part
        assert len(whole) == len(part) == 12
        first = marginal.vocabulary_digest({"a": 0, "b": 1})
        assert first == marginal.vocabulary_digest({"b": 1, "a": 0}) != marginal.vocabulary_digest({"a": 1, "b": 0})
        assert first.startswith("model-2-")


FAST = ("--samples", 50, "--chains", 4, "--chain-steps", 10, "--ais-chains", 40, "--ais-steps", 60)
FAST += ("--ais-settling", 40, "--resamples", 50)


class TestCommand:
    def test_a_trained_run(self, trained_run: Path, command) -> None:
        first, again = (command("likelihood", "--model", trained_run, *FAST) for _ in range(2))
        assert first.code == 0, first.err
        assert first.out == again.out
        found = json.loads(first.out)
        assert list(found) == [
            *("metric", "score", "interval", "perplexity", "perplexity_interval", "signature", "details"),
        ]
        details = found["details"]
        assert found["metric"] == "marginal-nll"
        assert details["sentences"] == 60
        low, high = found["interval"]
        assert low < found["score"] < high
        assert found["perplexity"] == pytest.approx(math.exp(found["score"] * 60 / details["words"]))
        assert details["reconstruction"]["nll"] + details["reconstruction"]["kl"] == pytest.approx(found["score"])
        runs = [details["log_normaliser"][name]["value"] for name in ("forward", "reverse")]
        assert details["log_normaliser"]["used"] == max(runs)
        assert found["score"] == pytest.approx(details["importance"]["nll_before_log_z"] + max(runs))
        assert Signature.parse(found["signature"])["bound"] == "upper"

    def test_the_model_that_ships(self, root: Path, command) -> None:
        shipped = root / "textebm" / "pretrained" / "demo"
        done = command("likelihood", "--model", shipped, "--n", 3, *FAST, "--format", "text")
        assert done.code == 0, done.err
        assert "3 sentences" in done.out
        assert "log Z: forward" in done.out

    def test_a_gaussian_prior_needs_no_annealing(self, tiny_config: Path, command) -> None:
        given = ("--config", tiny_config, "--method", "sri", "--run-dir", "run", "--max-steps", 3)
        assert command("train", *given).code == 0
        done = command("likelihood", "--model", "run", *FAST)
        found = json.loads(done.out)
        assert found["details"]["log_normaliser"] == {"method": "exact", "used": 0.0}
        assert Signature.parse(found["signature"])["log-normaliser"] == "0"
        assert found["score"] == pytest.approx(found["details"]["importance"]["nll_before_log_z"])
        assert "log Z: 0, exactly" in command("likelihood", "--model", "run", *FAST, "--format", "text").out

    def test_an_encoder_proposes_where_there_is_one(self, tiny_config: Path, command, trained_run: Path) -> None:
        """And chains where they are asked for: both are bounds of the same, and near each other here."""
        given = ("--config", tiny_config, "--method", "vae", "--run-dir", "run", "--max-steps", 12)
        given += ("--evaluation.active-unit-sentences", 0)
        assert command("train", *given).code == 0
        many = (*FAST, "--samples", 400, "--n", 20)
        found = {
            kind: json.loads(command("likelihood", "--model", "run", *many, "--proposal", kind).out)
            for kind in ("auto", "encoder", "chains")
        }
        assert found["auto"] == found["encoder"]
        assert Signature.parse(found["auto"]["signature"])["proposal"].startswith("encoder-")
        assert Signature.parse(found["chains"]["signature"])["proposal"].startswith("gaussian-")
        assert found["auto"]["score"] == pytest.approx(found["chains"]["score"], abs=0.2)
        done = command("likelihood", "--model", trained_run, "--proposal", "encoder")
        assert done.code == 2
        assert "has no encoder" in done.err

    def test_a_plain_language_model_is_exact(self, tiny_config: Path, command, tmp_path: Path) -> None:
        given = ("--config", tiny_config, "--method", "lstm-lm", "--run-dir", "run", "--max-steps", 3)
        assert command("train", *given).code == 0
        done = command("likelihood", "--model", "run", "--split", "test", "--output", "out.json")
        assert (done.code, done.out) == (0, "")
        found = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
        facts = Signature.parse(found["signature"])
        assert (facts["bound"], facts["scored"]) == ("exact", "test")
        assert not {"samples", "proposal", "log-normaliser"} & facts.keys()
        _, tokenizer = generation.load(tmp_path / "run/checkpoints/step-3")
        assert facts["vocabulary"] == marginal.vocabulary_digest(tokenizer.get_vocab())
        said = command("likelihood", "--model", "run", "--split", "test", "--format", "text").out
        assert f"marginal NLL {found['score']:.2f} nats" in said
        assert "exact: nothing is latent" in said
        assert "log Z" not in said

    def test_a_prior_that_annealing_cannot_follow_gets_no_score(self, trained_run: Path, command, tmp_path) -> None:
        """Its energies are made a thousand times as large, and the runs are short."""
        copy = Path(shutil.copytree(trained_run, tmp_path / "copy"))
        for file in copy.glob("checkpoints/*/model.safetensors"):
            weights = load_tensors(file)
            weights["prior.mlp.4.weight"] *= 3000
            save_tensors(weights, file)
            described = json.loads((file.parent / "run.json").read_text(encoding="utf-8"))
            del described["files"], described["sha256"]  # by which the change would be noticed
            (file.parent / "run.json").write_text(json.dumps(described), encoding="utf-8")
        done = command("likelihood", "--model", copy, *FAST, "--ais-steps", 3)
        assert done.code == 0, done.err
        found = json.loads(done.out)
        assert found["score"] is found["interval"] is found["perplexity"] is None
        log_z = found["details"]["log_normaliser"]
        assert abs(log_z["difference"]) > log_z["largest_difference"] == 0.5
        assert f"no score: {found['details']['withheld']}" in done.err
        said = command("likelihood", "--model", copy, *FAST, "--ais-steps", 3, "--format", "text").out
        assert said.startswith("marginal NLL withheld: log Z is")

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (("--samples", 0), "samples is 0: it must be at least 1"),
            (("--n", 0), "n is 0: it must be at least 1"),
            (("--chain-steps", 1), "chain_steps is 1: it must be at least 2"),
            (("--ais-chains", 1), "ais_chains is 1: it must be at least 2"),
            (("--ais-settling", -1), "ais_settling is -1: it must be at least 0"),
            (("--widening", 0), "widening is 0.0: it must be positive"),
            (("--defensive", 1), "defensive is 1.0: it must be in"),
            (("--seed", -1), "seed is -1"),
        ],
    )
    def test_wrong_options(self, options, said: str, trained_run: Path, command) -> None:
        done = command("likelihood", "--model", trained_run, *options)
        assert done.code == 2
        assert said in " ".join(done.err.replace("│", " ").split())
