"""Measuring text against text: FPPL and RPPL of any text files, with a signature. It knows no model of ours.

    from textebm.lm_eval import fppl, rppl
    print(fppl("samples.txt", "train.txt", reference="test.txt", decoding="sample-t1").to_json())

Nothing heavy is imported until it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from textebm.lm_eval.bootstrap import Difference as Difference
    from textebm.lm_eval.corpus import Corpus as Corpus
    from textebm.lm_eval.corpus import Vocabulary as Vocabulary
    from textebm.lm_eval.corpus import read_sentences as read_sentences
    from textebm.lm_eval.judge import Judge as Judge
    from textebm.lm_eval.ngram import NgramJudge as NgramJudge
    from textebm.lm_eval.protocols import EvaluationProtocol as EvaluationProtocol
    from textebm.lm_eval.report import Report as Report
    from textebm.lm_eval.report import evaluate as evaluate
    from textebm.lm_eval.scores import Score as Score
    from textebm.lm_eval.scores import difference as difference
    from textebm.lm_eval.scores import fppl as fppl
    from textebm.lm_eval.scores import rppl as rppl
    from textebm.lm_eval.signature import Signature as Signature

_HOMES = {
    "Corpus": "corpus",
    "Difference": "bootstrap",
    "EvaluationProtocol": "protocols",
    "Judge": "judge",
    "NgramJudge": "ngram",
    "Report": "report",
    "Score": "scores",
    "Signature": "signature",
    "Vocabulary": "corpus",
    "difference": "scores",
    "evaluate": "report",
    "fppl": "scores",
    "read_sentences": "corpus",
    "rppl": "scores",
}

__all__ = [*_HOMES]  # noqa: PLE0604


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
