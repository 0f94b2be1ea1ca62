"""Recipes of LSTM judges: every setting that decides what a judge learns from a text, and where it comes from.

What is not written in a recipe is the same for all: the vocabulary is that of the real training split, `<unk>` and an
end of sentence; the state is 0 at the start, and the first input is the end-of-sentence symbol; the weights that count
are those of the epoch with the best held-out perplexity.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Literal

from textebm.errors import ConfigError, UsageError

Batching = Literal["equal-length", "padded", "stream"]
Optimiser = Literal["sgd", "adam", "nt-asgd"]


@dataclass(frozen=True)
class Recipe:
    """How an LSTM language model is built and trained.

    Args:
        name: as in signatures.
        embedding: size of a word embedding.
        hidden: size of the state of each layer; the last layer of a tied network has the size of the embedding.
        layers: number of layers.
        tied: whether input and output embeddings are one matrix.
        output_bias: whether each word has a bias in the softmax.
        dropout_in, dropout_between, dropout_out: share of features dropped from embeddings, between layers, and from
            what the softmax sees.
        dropout_words: share of word types whose embedding is 0 in a step.
        dropout_recurrent: share of the state-to-state weights that are 0 in a step.
        locked: one dropout mask for all places of a sentence, instead of a fresh one at each.
        init: weights start uniform in ±init; None for the LSTM's own ±1/√hidden, and 0 for the output bias.
        init_embedding: the same for embeddings.
        batching: `equal-length`: sentences of one length, grouped once, in a new order each epoch; `padded`: random
            sentences, padded to the longest; `stream`: the text is one stream, cut into as many columns as `batch`
            says, the state is carried on, and sentences are scored in their order with the state carried on too.
        batch: sentences, or columns of the stream, in a step.
        span: tokens of a column in a step, on average, if it is a stream.
        loss: what is averaged: `sentence`, over sentences the sum of their tokens; `token`, over tokens.
        optimiser: `nt-asgd` is SGD, and averaging from when the held-out perplexity has not improved for
            `nonmonotone` epochs (Merity et al. 2018).
        lr: learning rate.
        weight_decay: of every weight, added to the gradient.
        clip: largest norm of the gradient of all weights together.
        activation_penalty, slowness_penalty: weights of the mean square of the last layer's dropped activations, and of
            the mean square of its change from token to token (Merity et al. 2018's α and β).
        patience: bad epochs after which the learning rate is multiplied by `decay` and the best weights are taken up
            again; None for a constant rate.
        decay: that factor.
        max_decays: training ends with so many.
        nonmonotone: see `optimiser`.
        epochs: most passes over the text.
        held_out: share of the sentences given that is held out for choosing weights and rates, if no held-out text is.

    Raises:
        ConfigError: a value is out of range.
    """

    name: str
    embedding: int
    hidden: int
    layers: int = 1
    tied: bool = False
    output_bias: bool = False
    dropout_in: float = 0.0
    dropout_between: float = 0.0
    dropout_out: float = 0.0
    dropout_words: float = 0.0
    dropout_recurrent: float = 0.0
    locked: bool = False
    init: float | None = None
    init_embedding: float = 0.1
    batching: Batching = "equal-length"
    batch: int = 32
    span: int = 70
    loss: Literal["sentence", "token"] = "sentence"
    optimiser: Optimiser = "sgd"
    lr: float = 1.0
    weight_decay: float = 0.0
    clip: float = 5.0
    activation_penalty: float = 0.0
    slowness_penalty: float = 0.0
    patience: int | None = None
    decay: float = 0.5
    max_decays: int = 5
    nonmonotone: int = 5
    epochs: int = 100
    held_out: float = 0.1

    def __post_init__(self) -> None:
        for field in ("embedding", "hidden", "layers", "batch", "span", "max_decays", "nonmonotone", "epochs"):
            self._require(field, getattr(self, field) >= 1, "at least 1")
        for field in ("lr", "clip", "init_embedding"):
            self._require(field, getattr(self, field) > 0, "positive")
        for field in ("dropout_in", "dropout_between", "dropout_out", "dropout_words", "dropout_recurrent"):
            self._require(field, 0 <= getattr(self, field) < 1, "at least 0 and below 1")
        for field in ("weight_decay", "activation_penalty", "slowness_penalty"):
            self._require(field, getattr(self, field) >= 0, "0 or more")
        for field in ("decay", "held_out"):
            self._require(field, 0 < getattr(self, field) < 1, "above 0 and below 1")
        self._require("init", self.init is None or self.init > 0, "positive")
        self._require("patience", self.patience is None or self.patience >= 1, "at least 1")
        if self.tied and self.layers == 1 and self.hidden != self.embedding:
            raise ConfigError(
                f"recipe {self.name}: a tied network of one layer has the state size of its embedding, {self.embedding}"
            )

    def _require(self, field: str, condition: bool, wanted: str) -> None:
        if not condition:
            raise ConfigError(f"recipe {self.name}: {field} is {getattr(self, field)!r}: it must be {wanted}")

    @property
    def sizes(self) -> list[int]:
        """State size of each layer."""
        last = self.embedding if self.tied else self.hidden
        return [self.hidden] * (self.layers - 1) + [last]

    @property
    def label(self) -> str:
        """The name; where a setting differs from the recipe registered under that name, it says so."""
        if RECIPES.get(self.name) == self:
            return self.name
        return f"{self.name}-changed-{self.sha256[:8]}"

    @property
    def sha256(self) -> str:
        """SHA-256 of all settings but the name."""
        settings = {key: value for key, value in sorted(asdict(self).items()) if key != "name"}
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()


def _lstm_sentence(name: str, embedding: int, hidden: int) -> Recipe:
    """The language model beside FB-VAE (Li et al. 2019): its `lm.py`, and the sizes of its configurations.

    Read there: everything given here, and one LSTM layer with dropout on its input and output, no output bias, batches
    of 32 sentences of one length that are made once, SGD with rate 1 on the sum over a sentence's tokens, clipped at 5,
    halved after 2 epochs without a better held-out figure, best weights taken up again, at most 5 times; the fifth
    time ends it. Two things differ: after a halving the original compares the next epoch with the loss of the last
    training batch, whichever that was, and ours with the best held-out figure; and the original's softmax has two
    symbols that never come. That this is the judge of the LEBM paper is deduced from its real-data row (100.36 on PTB,
    60.04 on Yahoo; the conclusion is weaker for SNLI's 23.53).
    """
    return Recipe(
        name,
        embedding,
        hidden,
        dropout_in=0.5,
        dropout_out=0.5,
        init=0.01,
        patience=2,
    )


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        _lstm_sentence("lstm-sentence-ptb", 256, 256),
        _lstm_sentence("lstm-sentence-snli", 128, 512),
        _lstm_sentence("lstm-sentence-yahoo", 512, 1024),
        # ARAE's train_rnnlm.py (Zhao et al. 2018): one layer of 300, every weight U(±.1), constant rate, best epoch of
        # 15. There the vocabulary comes from the judge's own training file, and sentences over 200 words are left out.
        Recipe(
            "arae-rnn",
            300,
            300,
            output_bias=True,
            dropout_in=0.2,
            dropout_out=0.2,
            init=0.1,
            epochs=15,
        ),
        # AWD-LSTM (Merity et al. 2018) at its code's defaults but for what DGM-VAE's instructions set: batch 20,
        # dropouti .4, dropouth .25, 20 epochs.
        Recipe(
            "dgmvae",
            400,
            1150,
            layers=3,
            tied=True,
            output_bias=True,
            dropout_in=0.4,
            dropout_between=0.25,
            dropout_out=0.4,
            dropout_words=0.1,
            dropout_recurrent=0.5,
            locked=True,
            batching="stream",
            batch=20,
            span=70,
            loss="token",
            optimiser="nt-asgd",
            lr=30.0,
            weight_decay=1.2e-6,
            clip=0.25,
            activation_penalty=2.0,
            slowness_penalty=1.0,
            epochs=20,
        ),
        # Ours: trained in a second or two, for tests and for trying things out. Its figures mean nothing.
        Recipe("tiny", 16, 16, dropout_in=0.1, dropout_out=0.1, batch=16, patience=2, max_decays=2, epochs=3),
    )
}


def get_recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in RECIPES:
        raise UsageError(f"there is no recipe {name!r} of an LSTM judge: choose from {', '.join(RECIPES)}")
    return RECIPES[name]
