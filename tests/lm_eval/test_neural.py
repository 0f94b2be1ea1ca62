"""The LSTM judge: training against a plain loop, laws of its probabilities, what is kept, bad input."""

from dataclasses import replace

import pytest
import torch

from textebm.lm_eval.corpus import Vocabulary
from textebm.lm_eval.neural import Encoder, LstmNetwork
from textebm.lm_eval.neural_training import Limits, Task, _Trainer
from textebm.lm_eval.recipes import RECIPES, Recipe

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
