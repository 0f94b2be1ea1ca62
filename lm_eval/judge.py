"""What a judge of text must answer. Scores are computed through this door alone, whatever the judge is."""

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from textebm.lm_eval.corpus import Vocabulary
from textebm.lm_eval.perplexity import SentenceScores


@runtime_checkable
class Judge(Protocol):
    """A language model of sentences over a fixed vocabulary.

    Its probabilities of the words of the vocabulary and of the end of sentence add up to 1 in every context; any other
    word is taken for `<unk>`.

    Args:
        vocabulary: the words that it gives probability to.
        unseen: how many words of the vocabulary do not occur in the training text.
    """

    vocabulary: Vocabulary
    unseen: int

    @property
    def settings(self) -> dict[str, str]:
        """What a signature says of this judge: key -> value."""
        ...

    def score(self, sentences: Iterable[str]) -> SentenceScores:
        """Log-probability (nats, end of sentence included) and number of tokens of each sentence."""
        ...

    def token_log_probs(self, sentence: str) -> NDArray[np.float64]:
        """Log-probability of each word and of the end of sentence, in nats; shape (words + 1,)."""
        ...
