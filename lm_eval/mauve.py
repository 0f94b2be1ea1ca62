"""MAUVE of a text (Pillutla et al. 2021), by the authors' package, on features of an LSTM judge of real text.

MAUVE compares how two texts are distributed over clusters of their features: 1 where they agree, towards 0 where they
share nothing. A feature is the state of the judge's last layer after a sentence's last word. The figure depends on the
features and on the number of sentences: compare figures of one report only.
"""

import dataclasses
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from textebm.errors import UsageError
from textebm.lm_eval.diversity import subsample
from textebm.lm_eval.judging import train_judge
from textebm.lm_eval.protocols import LSTM_SENTENCE

if TYPE_CHECKING:
    from textebm.lm_eval.neural import LstmJudge
    from textebm.lm_eval.scores import Real

BATCH = 64


def against_test(real: "Real", size: int, seed: int, recipe: str) -> tuple[Callable[[Sequence[str]], float], str]:
    """What gives MAUVE of a text against the real test split.

    Args:
        real: the real text.
        size: sentences of the test split that are compared with.
        seed: of their choice, of the clusters, and of the judge.
        recipe: of the LSTM judge whose states are the features; the protocol's own judge where it has that recipe.

    Returns:
        The function, and a note that says how it measures.

    Raises:
        UsageError: the package is not installed, or there is no such recipe.
    """
    try:
        import mauve as package
    except ImportError:
        raise UsageError("MAUVE needs the package mauve-text: pip install 'textebm[mauve]'") from None
    compute: Callable[..., Any] = package.compute_mauve
    judge = _judge(real, recipe, seed)
    assert real.test is not None  # whoever asks has it
    wanted = features(judge, subsample(real.test, size, seed))

    def measure(sentences: Sequence[str]) -> float:
        return float(compute(p_features=wanted, q_features=features(judge, sentences), seed=seed, verbose=False).mauve)

    note = (
        f"MAUVE: mauve-text {version('mauve-text')} on {size:,} sentences of each text against the test split (real "
        f"text: the training split against the test split); features: last states of the judge {judge.recipe.label}"
    )
    return measure, note


def _judge(real: "Real", recipe: str, seed: int) -> "LstmJudge":
    from textebm.lm_eval.neural import LstmJudge

    if real.protocol.judge == "lstm":
        own = real.judges[0]
        if isinstance(own, LstmJudge) and own.recipe.name == recipe:
            return own
    options = dataclasses.replace(real.settings.judge_options, recipe=recipe)
    judge = train_judge(LSTM_SENTENCE, real.train, real.valid, real.vocabulary, options, seed)
    assert isinstance(judge, LstmJudge)  # the protocol's
    return judge


def features(judge: "LstmJudge", sentences: Sequence[str]) -> NDArray[np.float32]:
    """The state of the judge's last layer after the last word of each sentence; shape (sentences, size).

    A sentence's feature depends on no other sentence.
    """
    import torch

    from textebm.lm_eval.neural import Encoder, exact_products, padded

    network = judge.network
    text = Encoder(judge.vocabulary).text(sentences)
    end = len(judge.vocabulary)
    order = np.argsort(text.lengths, kind="stable")  # sentences of similar lengths together
    result = np.zeros((len(text), network.recipe.sizes[-1]), dtype=np.float32)
    for begin in range(0, len(order), BATCH):
        chosen = order[begin : begin + BATCH]
        inputs, _ = padded(text, chosen, end)  # (places, batch); the first input is the start, so the last is a word
        with torch.no_grad(), exact_products():
            _, states, _ = network(torch.from_numpy(inputs).to(network.embedding.device), network.start(len(chosen)))
        places = torch.from_numpy(text.lengths[chosen] - 1).to(states.device)
        result[chosen] = states[places, torch.arange(len(chosen), device=states.device)].cpu().numpy()
    return result
