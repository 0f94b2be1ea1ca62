"""The LSTM judge: training against a plain loop, laws of its probabilities, what is kept, bad input."""

import math
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from textebm.errors import ConfigError, DivergenceError, JudgeError, UsageError
from textebm.lm_eval import neural, neural_training
from textebm.lm_eval.corpus import Vocabulary
from textebm.lm_eval.neural import Encoder, LstmJudge, LstmNetwork
from textebm.lm_eval.neural_training import Limits, Task, _Trainer, equal_length_groups
from textebm.lm_eval.recipes import RECIPES, Recipe, get_recipe

TINY = RECIPES["tiny"]
PLAIN = replace(TINY, dropout_in=0.0, dropout_out=0.0, patience=None, epochs=2)
"""Nothing random in an epoch but the order."""
STREAM = replace(RECIPES["dgmvae"], embedding=8, hidden=12, batch=4, span=6, epochs=3, lr=3.0, nonmonotone=1)
WORDS = [f"w{n}" for n in range(20)]


def make_trainer(text: list[str], recipe: Recipe, *, seed: int = 0, precision="fp32") -> _Trainer:
    vocabulary = Vocabulary(WORDS)
    encoded = Encoder(vocabulary).text(text)
    task = Task(encoded, encoded, vocabulary, recipe, seed, precision)
    return _Trainer(task, encoded, encoded, torch.device("cpu"), lambda event: None)


class TestAgainstAPlainLoop:
    """The loop that people write: nn.LSTM, cross-entropy with its own gradient, torch's optimiser and clipping."""

    @pytest.mark.parametrize("batching", ["equal-length", "padded"])
    @pytest.mark.parametrize("loss", ["sentence", "token"])
    @pytest.mark.parametrize(
        "layers", [{}, {"layers": 2, "hidden": 24, "tied": True, "output_bias": True, "init": 0.1}]
    )
    def test_an_epoch_leads_to_the_same_weights(self, batching, loss, layers, make_text) -> None:
        recipe = replace(PLAIN, batching=batching, loss=loss, clip=0.5, epochs=1, **layers)
        trainer = make_trainer(make_text(5, sentences=100), recipe)
        plain = make_trainer(make_text(5, sentences=100), recipe).network
        trainer.run(Limits(), None)
        plain_epoch(plain, make_trainer(make_text(5, sentences=100), recipe), recipe)
        for (name, ours), theirs in zip(trainer.network.named_parameters(), plain.parameters(), strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6), name

    def test_padding_changes_nothing(self, make_text) -> None:
        """One batch of everything, padded: its gradient is that of the sentences one by one."""
        text = make_text(6, sentences=30)
        together = make_trainer(text, replace(PLAIN, batching="padded", batch=30, epochs=1, clip=1e9))
        alone = make_trainer(text, replace(PLAIN, batching="padded", batch=30, epochs=1, clip=1e9))
        together.run(Limits(), None)
        optimiser = torch.optim.SGD(alone.network.parameters(), lr=PLAIN.lr)
        for sentence in text:
            ids = torch.tensor(Encoder(Vocabulary(WORDS)).sentence(sentence))
            inputs = torch.cat([ids[-1:], ids[:-1]])
            hidden, _, _ = alone.network(inputs[:, None], alone.network.start(1))
            logits = hidden[:, 0] @ alone.network.output.T
            (torch.nn.functional.cross_entropy(logits, ids, reduction="sum") / 30).backward()
        optimiser.step()
        for ours, theirs in zip(together.network.parameters(), alone.network.parameters(), strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)

    def test_penalties_of_a_stream(self, make_text) -> None:
        recipe = replace(
            STREAM,
            epochs=1,
            optimiser="sgd",
            **{f"dropout_{where}": 0.0 for where in ("in", "between", "out", "words", "recurrent")},
        )
        trainer = make_trainer(make_text(5, sentences=100), recipe)
        plain = make_trainer(make_text(5, sentences=100), recipe).network
        trainer.run(Limits(), None)
        plain_epoch(plain, make_trainer(make_text(5, sentences=100), recipe), recipe)
        for (name, ours), theirs in zip(trainer.network.named_parameters(), plain.parameters(), strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6), name


def plain_epoch(network: LstmNetwork, trainer: _Trainer, recipe: Recipe) -> None:
    """One epoch of the plain loop over the batches of a trainer."""
    trainer.progress.epoch = 1
    optimiser = torch.optim.SGD(network.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    state = None
    for batch in trainer._stream() if recipe.batching == "stream" else trainer._batches():
        if state is None or recipe.batching != "stream":
            state = network.start(batch.inputs.shape[1])
        optimiser.zero_grad()
        hidden, raw, state = network(batch.inputs, state)
        state = [(h.detach(), c.detach()) for h, c in state]
        logits = hidden @ network.output.T + (0 if network.bias is None else network.bias)
        targets = batch.targets.flatten()
        if batch.kept is not None:
            targets = targets.where(batch.kept, -100)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets, ignore_index=-100, reduction="sum")
        loss = loss / (batch.tokens if recipe.loss == "token" else batch.inputs.shape[1])
        loss = loss + recipe.activation_penalty * hidden.square().mean()
        if len(raw) > 1:
            loss = loss + recipe.slowness_penalty * (raw[1:] - raw[:-1]).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), recipe.clip)
        optimiser.param_groups[0]["lr"] = recipe.lr * batch.rate
        optimiser.step()


MakeText = Callable[..., list[str]]


def train(text: list[str], recipe: Recipe = TINY, **options: Any) -> LstmJudge:
    options = {"precision": "fp32", **options}
    return LstmJudge.train(text, options.pop("vocabulary", Vocabulary(WORDS)), recipe, **options)


@pytest.fixture(scope="module")
def text() -> list[str]:
    """Sentences of a small grammar, some empty: enough to learn something from."""
    random = np.random.default_rng(0)
    followers = {word: random.choice(WORDS, 3) for word in WORDS}
    sentences = []
    for _ in range(300):
        words = [str(random.choice(WORDS))]
        for _ in range(int(random.integers(0, 9))):
            words.append(str(random.choice(followers[words[-1]])))
        sentences.append(" ".join(words))
    return [*sentences, "", ""]


@pytest.fixture(scope="module")
def judge(text: list[str]) -> LstmJudge:
    return train(text, replace(TINY, epochs=8))


class TestLearning:
    def test_it_learns(self, judge: LstmJudge, text: list[str]) -> None:
        """Far better than words at random, and the curve says how it got there."""
        first, best = judge.curve[0]["valid_perplexity"], min(entry["valid_perplexity"] for entry in judge.curve)
        assert judge.score(text).perplexity < 0.8 * first
        assert judge.curve[judge.training.best_epoch - 1]["valid_perplexity"] == best
        assert [entry["epoch"] for entry in judge.curve] == list(range(1, len(judge.curve) + 1))
        assert all(entry["seconds"] > 0 and entry["tokens_per_second"] > 0 for entry in judge.curve)

    def test_weights_are_those_of_the_best_epoch(self, text: list[str]) -> None:
        """The held-out perplexity of the judge is the best of the curve."""
        held_out = text[:60]
        judge = train(text[60:90], replace(TINY, init=0.3, lr=3.0, epochs=40, patience=None), held_out=held_out)
        assert judge.training.best_epoch < 40, "30 sentences are learnt by heart before the last epoch"
        best = min(entry["valid_perplexity"] for entry in judge.curve)
        assert judge.score(held_out).perplexity == pytest.approx(best, rel=1e-6)

    def test_the_same_seed_gives_the_same_judge_and_another_gives_another(self, text: list[str]) -> None:
        one, same, other = (train(text, seed=seed).score(text).log_probs for seed in (3, 3, 4))
        assert np.array_equal(one, same)
        assert not np.allclose(one, other, rtol=1e-3)

    def test_bf16_products_change_little(self, text: list[str]) -> None:
        one, other = (train(text, precision=precision).score(text).perplexity for precision in ("fp32", "bf16"))
        assert one != other
        assert one == pytest.approx(other, rel=0.02)

    @pytest.mark.parametrize(
        "recipe", [STREAM, replace(TINY, batching="padded"), replace(TINY, optimiser="adam", lr=0.01)]
    )
    def test_other_ways_of_training_learn_too(self, recipe: Recipe, text: list[str]) -> None:
        judge = train(text, replace(recipe, epochs=4))
        assert judge.score(text).perplexity < len(WORDS)

    def test_averaging_begins_when_the_held_out_text_gets_no_better(self, text: list[str]) -> None:
        """And then the weights that count are averages."""
        trainer = make_trainer(text, replace(STREAM, epochs=12, lr=10.0, nonmonotone=1))
        trainer.run(Limits(), None)
        assert trainer.progress.averaging
        last = dict(trainer.network.named_parameters())
        assert not torch.equal(trainer._evaluated()["bias"], last["bias"])

    def test_divergence_is_said(self, text: list[str]) -> None:
        with pytest.raises(DivergenceError, match=r"diverged in epoch 1.*learning rate is 1000000"):
            train(text, replace(TINY, lr=1e6, clip=1e6))


class TestRates:
    """FB-VAE's rule: halve after `patience` bad epochs, take the best weights up again, end with the last halving."""

    @pytest.mark.parametrize(
        ("valid", "lr", "ended"),
        [
            ([9, 8, 7], 1.0, "cut"),
            ([9, 8, 8.5, 7, 7.5], 1.0, "cut"),  # a good epoch in between starts the count again
            ([9, 8, 8, 8], 0.5, "cut"),  # equal is not better
            ([9, 10, 10, 8, 9, 9], 0.25, "converged"),
        ],
    )
    def test_of_a_series_of_held_out_perplexities(self, valid, lr: float, ended: str, text: list[str]) -> None:
        trainer = make_trainer(text[:20], replace(TINY, epochs=100, patience=2, max_decays=2))
        for epoch, perplexity in enumerate(valid, start=1):
            trainer.progress.epoch = epoch
            with torch.no_grad():
                trainer.network.embedding.fill_(epoch)
            best = trainer.progress.best
            trainer._judge_epoch(perplexity, best is None or perplexity < best)
            trainer.progress.curve.append({"valid_perplexity": perplexity})
        assert trainer.progress.lr == lr
        assert trainer.progress.ended == ended
        best_epoch = int(np.argmin(valid)) + 1
        assert trainer.progress.best_epoch == best_epoch
        assert bool((trainer.best["embedding"] == best_epoch).all())
        expected = best_epoch if lr < 1 else len(valid)
        assert bool((trainer.network.embedding == expected).all())

    def test_the_curve_has_the_rate_that_each_epoch_was_made_with(self, text: list[str]) -> None:
        judge = train(text, replace(TINY, lr=8.0, patience=1, max_decays=3, epochs=30))
        rates = [entry["lr"] for entry in judge.curve]
        assert sorted(set(rates), reverse=True) == [8.0, 4.0, 2.0][: len(set(rates))]
        assert rates == sorted(rates, reverse=True)
        assert judge.training.ended == "converged"


class TestHeldOut:
    def test_is_a_share_of_the_given_text_that_is_not_trained_on(self, text: list[str]) -> None:
        encoded = Encoder(Vocabulary(WORDS)).text(text)
        splits = [Task(encoded, None, Vocabulary(WORDS), TINY, seed, "fp32").split() for seed in (0, 0, 1)]
        for rest, held, how in splits:
            assert how == f"{len(held)}-of-the-training-text"
            assert len(held) == round(0.1 * len(text))
            assert len(rest) + len(held) == len(text)
            together = sorted(tuple(part.ids[a:b]) for part in (rest, held) for a, b in pairs(part.offsets))
            assert together == sorted(tuple(encoded.ids[a:b]) for a, b in pairs(encoded.offsets))
        assert np.array_equal(splits[0][1].ids, splits[1][1].ids)
        assert not np.array_equal(splits[0][1].ids, splits[2][1].ids)

    def test_what_is_held_out_is_not_learnt(self, text: list[str]) -> None:
        """A word that occurs in the held-out text alone is unseen."""
        judge = train(text, held_out=["w0 rare"], vocabulary=Vocabulary([*WORDS, "rare"]))
        assert judge.unseen == 2  # it and <unk>
        assert judge.settings["held-out"] == "given"


def pairs(offsets: np.ndarray) -> list[tuple[int, int]]:
    return list(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True))


class TestScores:
    @pytest.mark.parametrize("batch_size", [1, 7, 64])
    def test_do_not_depend_on_batches_or_order(self, batch_size: int, judge: LstmJudge, make_text: MakeText) -> None:
        sentences = [*make_text(4, sentences=80), " ".join(WORDS * 6)]
        reference = judge.score(sentences, batch_size=64).log_probs
        order = np.random.default_rng(1).permutation(len(sentences))
        found = judge.score([sentences[i] for i in order], batch_size=batch_size).log_probs
        assert np.allclose(found, reference[order], rtol=1e-6, atol=0)

    def test_nor_on_how_many_are_read_ahead_or_go_through_at_once(
        self, judge: LstmJudge, make_text: MakeText, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sentences = make_text(4, sentences=50)
        reference = judge.score(sentences).log_probs
        monkeypatch.setattr(neural, "SENTENCES_AT_ONCE", 7)
        monkeypatch.setattr(neural, "TOKENS_AT_ONCE", 3)
        assert np.allclose(judge.score(iter(sentences)).log_probs, reference, rtol=1e-6, atol=0)

    def test_of_a_stream_depend_on_what_came_before_and_on_nothing_else(
        self, text: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        judge = train(text, STREAM)
        assert judge.settings["state"] == "carried-on"
        two = judge.score(["w1 w2", "w3"])
        assert two.log_probs[0] == pytest.approx(judge.token_log_probs("w1 w2").sum(), rel=1e-6)
        assert abs(two.log_probs[1] - judge.token_log_probs("w3").sum()) > 1e-5
        whole = judge.score(text)
        monkeypatch.setattr(neural, "SENTENCES_AT_ONCE", 11)
        monkeypatch.setattr(neural, "TOKENS_AT_ONCE", 5)
        assert np.allclose(judge.score(text, batch_size=3).log_probs, whole.log_probs, rtol=1e-6, atol=0)

    def test_of_no_sentence(self, judge: LstmJudge) -> None:
        assert len(judge.score([]).log_probs) == 0
        with pytest.raises(JudgeError, match="no token"):
            _ = judge.score([]).perplexity


class TestSamples:
    def test_are_drawn_from_the_judges_own_probabilities(self, judge: LstmJudge) -> None:
        """How many samples are empty, and how often each first word comes, against the probabilities (5 σ)."""
        n = 4000
        first = [sample.split()[0] if sample else "" for sample in judge.sample(n, seed=1)]
        for word in ("", *WORDS):
            p = math.exp(judge.token_log_probs(word)[0])
            assert abs(first.count(word) - n * p) < 5 * math.sqrt(n * p * (1 - p)) + 1, word

    def test_their_own_perplexity_is_that_of_the_judge(self, judge: LstmJudge) -> None:
        """Mean log p over whole samples is minus the entropy, whichever samples those are."""
        halves = [judge.score(judge.sample(3000, seed=seed, max_length=200)).perplexity for seed in (5, 6)]
        assert halves[0] == pytest.approx(halves[1], rel=0.05)
        assert halves[0] < len(WORDS)

    def test_seeds_and_length(self, judge: LstmJudge, text: list[str]) -> None:
        one, same, other = (list(judge.sample(40, seed=seed)) for seed in (0, 0, 1))
        assert one == same != other
        assert len(one) == 40
        longest = max(len(sentence.split()) for sentence in text)
        assert max(len(sample.split()) for sample in judge.sample(500)) <= longest
        assert max(len(sample.split()) for sample in judge.sample(100, max_length=2)) == 2
        assert all(word in judge.vocabulary for sample in one for word in sample.split())


class TestKept:
    """Training is done once; what is damaged is noticed; what is interrupted goes on."""

    def test_a_second_training_is_read(self, text: list[str], tmp_path: Path) -> None:
        events: list[dict[str, Any]] = []
        first = train(text, cache=tmp_path)
        again = train(text, cache=tmp_path, observe=events.append)
        assert [event["kind"] for event in events] == ["cached"]
        assert np.array_equal(first.score(text).log_probs, again.score(text).log_probs)
        assert first.settings == again.settings
        assert first.curve == again.curve
        (folder,) = tmp_path.iterdir()
        assert sorted(path.suffix for path in folder.iterdir()) == ["", ".json", ".safetensors"]  # lock, facts, weights

    @pytest.mark.parametrize(
        "recipe",
        [
            replace(TINY, epochs=5),
            replace(STREAM, epochs=5, lr=10.0),
            replace(TINY, epochs=4, optimiser="adam", lr=0.01),
        ],
    )
    def test_training_goes_on_as_if_it_had_not_been_interrupted(
        self, recipe: Recipe, text: list[str], tmp_path: Path
    ) -> None:
        whole = train(text, recipe)
        events: list[dict[str, Any]] = []
        for epochs in (1, 3, None):
            resumed = train(text, recipe, cache=tmp_path, max_epochs=epochs, observe=events.append)
            done = epochs or len(whole.curve)
            assert resumed.settings["epochs"] == (f"{done}-cut" if epochs else whole.settings["epochs"])
        assert [event["kind"] for event in events if event["kind"] in ("start", "resume")] == ["start", *2 * ["resume"]]
        assert np.array_equal(whole.score(text).log_probs, resumed.score(text).log_probs)
        timeless = [[{**entry, "seconds": 0, "tokens_per_second": 0} for entry in j.curve] for j in (whole, resumed)]
        assert timeless[0] == timeless[1]

    def test_it_goes_on_from_the_last_epoch_even_if_that_was_not_the_best(
        self, text: list[str], tmp_path: Path
    ) -> None:
        """30 sentences that are learnt by heart: the best epoch is long past when it is interrupted."""
        recipe = replace(TINY, init=0.3, lr=3.0, epochs=40, patience=None)
        whole = train(text[:30], recipe, held_out=text[30:90])
        cut = train(text[:30], recipe, held_out=text[30:90], cache=tmp_path, max_epochs=30)
        assert cut.training.best_epoch < 25
        resumed = train(text[:30], recipe, held_out=text[30:90], cache=tmp_path)
        curves = [[entry["train_perplexity"] for entry in judge.curve] for judge in (whole, resumed)]
        assert curves[0] == curves[1]

    def test_an_interrupt_loses_no_more_than_the_epoch(self, text: list[str], tmp_path: Path) -> None:
        def interrupt(event: Any) -> None:
            if event["kind"] == "epoch" and event["epoch"] == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(text, cache=tmp_path, observe=interrupt)
        events: list[dict[str, Any]] = []
        resumed = train(text, cache=tmp_path, observe=events.append)
        assert events[0]["kind"] == "resume" and events[0]["epochs"] == 2
        assert np.array_equal(resumed.score(text).log_probs, train(text).score(text).log_probs)

    @pytest.mark.parametrize(
        "damage", ["cut", "flipped", "removed", "json cut", "json changed", "json foreign", "emptied"]
    )
    def test_damage_is_noticed_repaired_and_said(self, damage: str, text: list[str], tmp_path: Path) -> None:
        whole = train(text, cache=tmp_path).score(text).log_probs
        (folder,) = tmp_path.iterdir()
        (weights,) = folder.glob("*.safetensors")
        facts = folder / "judge.json"
        data, described = weights.read_bytes(), facts.read_text()
        if damage == "cut":
            weights.write_bytes(data[: len(data) // 2])
        elif damage == "flipped":
            weights.write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
        elif damage == "removed":
            weights.unlink()
        elif damage == "json cut":
            facts.write_text(described[:100])
        elif damage == "json changed":
            facts.write_text(described.replace('"best_epoch": ', '"best_epoch": 1'))
        elif damage == "json foreign":
            facts.write_text("[]")
        else:
            facts.write_text("")
        events: list[dict[str, Any]] = []
        again = train(text, cache=tmp_path, observe=events.append)
        assert events[0]["kind"] == "damaged"
        assert str(folder) in events[0]["folder"]
        assert np.array_equal(again.score(text).log_probs, whole)
        facts.write_text("")
        with pytest.warns(UserWarning, match="damaged and is trained again"):
            train(text, cache=tmp_path)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            train(text, cache=tmp_path)

    def test_every_setting_has_its_own_judge(self, text: list[str]) -> None:
        encoded = Encoder(Vocabulary(WORDS)).text(text)
        base = Task(encoded, None, Vocabulary(WORDS), TINY, 0, "fp32")
        others = [
            replace(base, text=Encoder(Vocabulary(WORDS)).text(text[:-1])),
            replace(base, text=Encoder(Vocabulary(WORDS)).text(text[::-1])),
            replace(base, held_out=encoded),
            replace(base, vocabulary=Vocabulary([*WORDS[:-1], "x"])),
            replace(base, seed=1),
            replace(base, precision="bf16"),
            *(replace(base, recipe=changed(TINY, field)) for field in asdict(TINY) if field != "name"),
        ]
        keys = [task.key for task in (base, *others)]
        assert len(set(keys)) == len(keys)
        assert replace(base, recipe=replace(TINY, name="other")).key == base.key

    def test_two_processes_train_one_judge_once(self, text: list[str], tmp_path: Path) -> None:
        """The second one waits, and reads what the first has made."""
        (tmp_path / "text.txt").write_text("".join(f"{sentence}\n" for sentence in text))
        program = (
            "import pathlib, sys\n"
            "from textebm.lm_eval.corpus import Vocabulary\n"
            "from textebm.lm_eval.neural import LstmJudge\n"
            "text = pathlib.Path('text.txt').read_text().split('\\n')[:-1]\n"
            "kinds = []\n"
            "judge = LstmJudge.train(text, Vocabulary.from_sentences(text), 'tiny', cache=pathlib.Path('cache'), "
            "precision='fp32', observe=lambda event: kinds.append(event['kind']))\n"
            "print('cached' in kinds, judge.score(text).perplexity)\n"
        )
        started = [
            subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        said = [process.communicate(timeout=300)[0].split() for process in started]
        assert [process.returncode for process in started] == [0, 0]
        assert sorted(cached for cached, _ in said) == ["False", "True"]
        assert said[0][1] == said[1][1]

    def test_what_a_killed_process_left_is_removed(self, text: list[str], tmp_path: Path) -> None:
        train(text, cache=tmp_path, max_epochs=1)
        (folder,) = tmp_path.iterdir()
        for name, age in ((".last-1.safetensors-a", 7200), (".last-1.safetensors-b", 0)):
            (folder / name).write_bytes(b"half")
            os.utime(folder / name, (time.time() - age, time.time() - age))
        train(text, cache=tmp_path)
        assert [path.name for path in folder.glob(".*")] == [".last-1.safetensors-b"]

    def test_a_folder_that_cannot_be_written(self, text: list[str], tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(JudgeError, match="TEXTEBM_HOME"):
            train(text, cache=tmp_path / "file")

    def test_folder_is_under_home(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("TEXTEBM_HOME", str(tmp_path))
        assert neural.judge_folder() == tmp_path / "judges"


def changed(recipe: Recipe, field: str) -> Recipe:
    """The recipe with another value of one setting."""
    values: dict[str, Any] = {"batching": "padded", "loss": "token", "optimiser": "adam", "patience": 7, "tied": True}
    old = getattr(recipe, field)
    new = values.get(field, not old if isinstance(old, bool) else (old or 0.5) / 2 if isinstance(old, float) else 0)
    if field not in values and isinstance(old, int) and not isinstance(old, bool):
        new = old + 1
    return replace(recipe, **{field: 0.3 if old is None and field not in values else new})


class TestLimits:
    def test_minutes_end_it_before_an_epoch_that_would_not_fit(
        self, text: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Epochs of 100 s by a clock of our own: four fit into 7 minutes."""
        now = [0.0]
        monkeypatch.setattr(neural_training.time, "monotonic", lambda: now[0])
        original = _Trainer._pass

        def slow(self: _Trainer) -> float:
            now[0] += 100
            return original(self)

        monkeypatch.setattr(_Trainer, "_pass", slow)
        recipe = replace(TINY, epochs=50, patience=None)
        assert len(train(text, recipe, max_minutes=7).curve) == 4
        assert len(train(text, recipe, max_minutes=0.1).curve) == 1  # one is made in any case

    @pytest.mark.parametrize("limit", ["max_epochs", "max_minutes"])
    def test_must_be_positive(self, limit: str, text: list[str]) -> None:
        with pytest.raises(UsageError, match=f"{limit} is 0"):
            train(text, **{limit: 0})


class TestBatches:
    def test_of_equal_length_hold_each_sentence_once(self) -> None:
        lengths = np.array([3, 1, 3, 2, 3, 3, 1, 3])
        groups = equal_length_groups(lengths, 2, np.random.default_rng(0))
        assert sorted(index for group in groups for index in group) == list(range(8))
        assert all(len(set(lengths[group])) == 1 and 1 <= len(group) <= 2 for group in groups)
        assert len(groups) == 1 + 1 + 3

    def test_a_stream_is_read_column_by_column_without_a_gap(self, text: list[str]) -> None:
        trainer = make_trainer(text, STREAM)
        batches = list(trainer._stream())
        inputs, targets = (torch.cat([getattr(batch, part) for batch in batches]) for part in ("inputs", "targets"))
        ids = torch.from_numpy(trainer.text.ids.astype(np.int64))
        read = targets.T.flatten()
        assert torch.equal(read, ids[: len(read)])
        assert len(ids) - len(read) < STREAM.batch
        assert torch.equal(inputs.T.flatten(), torch.cat([torch.tensor([trainer.end]), read[:-1]]))
        assert all(batch.rate == pytest.approx(max(5, batch.rate * STREAM.span) / STREAM.span) for batch in batches)

    def test_the_perplexity_of_an_epoch_is_of_the_tokens_that_it_read(self, text: list[str]) -> None:
        """A stream leaves out what does not fill its columns. Nothing is learned here: all words are as likely."""
        recipe = replace(STREAM, lr=1e-9, epochs=1)
        (epoch,) = train(text[:7], recipe, held_out=text[30:60]).curve
        assert epoch["train_perplexity"] == pytest.approx(epoch["valid_perplexity"], rel=0.1)


class TestDropout:
    def test_keeps_the_mean(self) -> None:
        network = make_trainer(["w1"], TINY).network
        mask = network._mask((200, 500), 0.4, torch.Generator().manual_seed(0))
        assert float((mask == 0).float().mean()) == pytest.approx(0.4, abs=0.01)
        assert float(mask.mean()) == pytest.approx(1, abs=0.02)

    def test_locked_masks_are_the_same_at_every_place(self) -> None:
        for locked in (True, False):
            network = make_trainer(["w1"], replace(STREAM, locked=locked)).network
            dropped = network._drop(torch.ones(9, 2, 8), 0.5, torch.Generator().manual_seed(0))
            assert bool((dropped == dropped[:1]).all()) == locked

    def test_reaches_the_recurrent_weights_and_the_words(self) -> None:
        """Each changes what comes out, and weights that are dropped get no gradient."""
        off = {f"dropout_{where}": 0.0 for where in ("in", "between", "out", "words", "recurrent")}
        for where in ("words", "recurrent"):
            network = make_trainer(["w1"], replace(STREAM, **{**off, f"dropout_{where}": 0.5})).network
            inputs = torch.arange(16).view(8, 2)
            plain, _, _ = network(inputs, network.start(2))
            dropped, _, _ = network(inputs, network.start(2), torch.Generator().manual_seed(0))
            assert not torch.allclose(plain, dropped)
            dropped.sum().backward()
            gradient = network.embedding.grad if where == "words" else network.layers[0].weight_hh_l0.grad
            zero = float((gradient[:16] == 0).float().mean())
            assert zero == pytest.approx(0.5, abs=0.25 if where == "words" else 0.1)

    def test_is_off_in_scores(self, judge: LstmJudge) -> None:
        assert np.array_equal(judge.token_log_probs("w1 w2"), judge.token_log_probs("w1 w2"))


def test_needs_neither_kenlm_nor_datasets_nor_transformers() -> None:
    """And the package itself needs no torch."""
    program = (
        "import sys\n"
        "import textebm.lm_eval\n"
        "assert 'torch' not in sys.modules\n"
        "sys.modules.update(dict.fromkeys(('kenlm', 'datasets', 'transformers')))\n"
        "from textebm.lm_eval.corpus import Vocabulary\n"
        "from textebm.lm_eval.neural import LstmJudge\n"
        "print(LstmJudge.train(['a b', 'b a'] * 5, Vocabulary('ab'), 'tiny').score(['a']).total_tokens)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "2\n"


class TestBadInput:
    def test_no_sentence(self) -> None:
        with pytest.raises(JudgeError, match=r"training text: .*no sentence"):
            train([])
        with pytest.raises(JudgeError, match=r"held-out text: .*no sentence"):
            train(["w1"], held_out=[])

    def test_one_sentence_cannot_be_held_out_of(self) -> None:
        with pytest.raises(JudgeError, match="at least 2 sentences"):
            train(["w1"])
        assert math.isfinite(train(["w1"], held_out=["w2"]).score(["w3"]).perplexity)

    @pytest.mark.parametrize("text", [["", ""], ["w1", ""], ["zzz zzz"] * 3, ["<unk>"] * 3, ["w1 " * 300, "w2"]])
    @pytest.mark.parametrize("recipe", [TINY, replace(STREAM, optimiser="sgd")])
    def test_very_little_text_is_enough(self, text: list[str], recipe: Recipe) -> None:
        judge = train(text, recipe)
        assert math.isfinite(judge.score(["w1 <unk> zzz", "", "w2"]).perplexity)
        assert len(list(judge.sample(5))) == 5

    def test_specials_are_words_like_any_other(self, text: list[str]) -> None:
        renamed = [" ".join({"w1": "<s>", "w2": "</s>"}.get(word, word) for word in s.split()) for s in text]
        vocabulary = Vocabulary({"w1": "<s>", "w2": "</s>"}.get(word, word) for word in WORDS)
        judge = train(renamed, vocabulary=vocabulary)
        assert judge.unseen == 1  # <unk>
        probabilities = [math.exp(judge.token_log_probs(word)[0]) for word in ("<s>", "</s>")]
        assert min(probabilities) > 1e-4
        assert math.exp(judge.token_log_probs("")[0]) not in probabilities  # the end is another symbol

    def test_seed(self, text: list[str]) -> None:
        with pytest.raises(UsageError, match="seed of a judge is -1"):
            train(text, seed=-1)


class TestRecipes:
    def test_published_ones(self) -> None:
        """Sizes as read in the configurations of FB-VAE's code; the rest is one rule."""
        sizes = {name: (r.embedding, r.hidden) for name, r in RECIPES.items() if name.startswith("lstm-sentence-")}
        assert sizes == {
            "lstm-sentence-ptb": (256, 256),
            "lstm-sentence-snli": (128, 512),
            "lstm-sentence-yahoo": (512, 1024),
        }
        assert RECIPES["dgmvae"].sizes == [1150, 1150, 400]
        assert all(get_recipe(name) is recipe and recipe.name == name for name, recipe in RECIPES.items())

    def test_unknown(self) -> None:
        with pytest.raises(UsageError, match="choose from lstm-sentence-ptb"):
            get_recipe("lstm")

    def test_a_changed_recipe_says_so(self) -> None:
        assert TINY.label == "tiny"
        label = replace(TINY, lr=0.5).label
        assert label.startswith("tiny-changed-") and label != replace(TINY, lr=0.25).label

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("hidden", 0),
            ("lr", 0.0),
            ("dropout_in", 1.0),
            ("weight_decay", -1.0),
            ("decay", 1.0),
            ("held_out", 0.0),
            ("init", 0.0),
            ("patience", 0),
        ],
    )
    def test_values_out_of_range(self, field: str, value: float) -> None:
        with pytest.raises(ConfigError, match=f"recipe tiny: {field} is {value}"):
            replace(TINY, **{field: value})

    def test_tied_sizes(self) -> None:
        with pytest.raises(ConfigError, match="tied"):
            replace(TINY, tied=True, hidden=20)
