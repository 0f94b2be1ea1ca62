"""What every judge of text answers, whatever it is made of."""

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from textebm.lm_eval.corpus import Vocabulary
from textebm.lm_eval.perplexity import SentenceScores


@runtime_checkable
class Judge(Protocol):
    """A language model that gives each sentence a probability. It is made by a `train` or `load` of its own class.

    Laws, which `tests/lm_eval/test_judges.py` holds every judge to: a word outside the vocabulary is scored as `<unk>`;
    the end of sentence is a token; a sentence's score is the sum over its tokens, and depends on no batch size.

    Args:
        vocabulary: the words that it gives probability to; any other becomes `<unk>`.
        unseen: how many words of the vocabulary do not occur in the text that it was trained on.
    """

    vocabulary: Vocabulary
    unseen: int

    @property
    def settings(self) -> dict[str, str]:
        """What a signature says of this judge: facts that change a score."""
        ...

    def score(self, sentences: Iterable[str]) -> SentenceScores:
        """Log-probability in nats and number of tokens of each sentence, in constant memory but for the result."""
        ...

    def token_log_probs(self, sentence: str) -> NDArray[np.float64]:
        """Log-probability of each word and of the end of sentence, in nats; shape (words + 1,)."""
        ...
