"""The scores of each sentence behind a score, kept in a file: what a later bootstrap between two runs needs.

A file is NumPy's .npz, compressed: `log_probs` (judges, sentences), `tokens` (sentences,), and the score's signature.
Nothing in it is ever unpickled. 40,000 sentences take about 350 kB; their sums over 1,000 groups, 10 kB.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from textebm import whole_files
from textebm.errors import DataError, UsageError
from textebm.lm_eval.perplexity import SentenceScores
from textebm.lm_eval.plain_arrays import arrays_in
from textebm.lm_eval.signature import Signature


@dataclass(frozen=True)
class KeptScores:
    """What a file holds.

    Args:
        signature: of the score.
        runs: of each sentence, by each judge; all judges count the same tokens.
    """

    signature: Signature
    runs: tuple[SentenceScores, ...]

    @property
    def score(self) -> float:
        """The score: the mean perplexity over the judges."""
        return float(np.mean([run.perplexity for run in self.runs]))


def grouped(runs: Sequence[SentenceScores], most: int = 1000) -> list[SentenceScores]:
    """Sums over groups of consecutive sentences, which a bootstrap can draw in place of sentences.

    Groups of independent sentences tell as much of the spread of a mean as the sentences do, up to one part in `most`;
    of sentences that depend on their neighbours they tell more (the block bootstrap: Künsch, The Annals of Statistics
    17, 1989).

    Args:
        runs: scores of the same sentences by each judge.
        most: groups, at most; of fewer sentences each is a group.
    """
    count = len(runs[0].tokens)
    starts = np.arange(min(count, most)) * count // min(count, most)
    return [SentenceScores(np.add.reduceat(run.log_probs, starts), np.add.reduceat(run.tokens, starts)) for run in runs]


def keep_scores(path: Path, signature: Signature, runs: Sequence[SentenceScores]) -> None:
    """Write the file as a whole, in a folder that exists.

    Raises:
        UsageError: it cannot be written.
    """
    log_probs = np.stack([run.log_probs for run in runs])
    try:
        with whole_files.appearing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file, log_probs=log_probs, tokens=runs[0].tokens, signature=np.array(str(signature), dtype=np.str_)
            )
    except OSError as error:
        raise UsageError(f"--sentence-scores {path} cannot be written: {error.strerror or error}") from None


def kept_scores(path: Path) -> KeptScores:
    """What such a file holds.

    Raises:
        DataError: it is missing, or no such file.
    """
    try:
        log_probs, tokens, signature = arrays_in(path, ("log_probs", "tokens", "signature"))
        if log_probs.ndim != 2 or tokens.ndim != 1 or log_probs.shape[1] != len(tokens) or not log_probs.size:
            raise ValueError("its arrays do not belong together")
        if log_probs.dtype.kind != "f" or tokens.dtype.kind not in "iu" or signature.dtype.kind != "U":
            raise ValueError("its arrays are of other kinds")
        if not np.isfinite(log_probs).all() or (tokens < 0).any() or not tokens.any():
            raise ValueError("a score that is no number, or no token")
        runs = tuple(SentenceScores(each.astype(np.float64), tokens.astype(np.int64)) for each in log_probs)
        return KeptScores(Signature.parse(str(signature)), runs)
    except (OSError, ValueError, KeyError, UsageError) as error:
        raise DataError(f"{path}: cannot be read as scores of sentences ({error})") from None
