"""Named ways of computing FPPL and RPPL, and the conditions under which a score may stand in a table."""

from collections.abc import Iterable
from dataclasses import dataclass

from textebm.errors import UsageError
from textebm.lm_eval.corpus import Vocabulary
from textebm.lm_eval.ngram import NgramJudge, find_lmplz

HEADLINE_DECODING = "sample-t1"
"""Softmax sampling at temperature 1, no top-k or top-p, nothing filtered out."""

UNKNOWN_DECODING = "unknown"
"""When nobody says how the sentences were decoded."""


@dataclass(frozen=True)
class EvaluationProtocol:
    """A way of computing FPPL and RPPL, fixed in all that changes the number.

    Args:
        name: as in signatures.
        description: one line.
        order: of the n-gram judge.
        vocabulary: which words the judge gives probability to: `train`, those of the real training split.
        counts_end: whether the end of sentence is a token.
        beside_published: whether its scores may stand beside the rows of the paper.
    """

    name: str
    description: str
    order: int
    vocabulary: str = "train"
    counts_end: bool = True
    beside_published: bool = False

    def train_judge(self, sentences: Iterable[str], vocabulary: Vocabulary, lmplz: str | None = None) -> NgramJudge:
        """The judge of this protocol, estimated from `sentences`; `lmplz` is an option as `find_lmplz` takes it."""
        return NgramJudge.train(sentences, vocabulary, self.order, find_lmplz(lmplz))

    def departures(self, sentences: int, headline_sentences: int, decoding: str) -> list[str]:
        """What keeps a score out of the main table: one message each, none under the headline protocol."""
        messages = []
        if sentences != headline_sentences:
            relation = "fewer" if sentences < headline_sentences else "more"
            messages.append(
                f"{sentences:,} sentences, {relation} than the headline protocol's {headline_sentences:,} (the number "
                "of real training sentences): the score does not compare with others'"
            )
        if decoding == UNKNOWN_DECODING:
            messages.append(
                "nothing says how the sentences were decoded: the headline protocol is " + HEADLINE_DECODING
            )
        elif decoding != HEADLINE_DECODING:
            messages.append(f"decoding is {decoding}, and the headline protocol's is {HEADLINE_DECODING}")
        return messages


KENLM5 = EvaluationProtocol(
    name="kenlm5",
    description="5-gram interpolated modified Kneser–Ney; <unk> is a word like any other; end of sentence counted",
    order=5,
)

PROTOCOLS = {KENLM5.name: KENLM5}
DEFAULT_PROTOCOL = KENLM5.name


def get_protocol(name: str) -> EvaluationProtocol:
    """The protocol of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in PROTOCOLS:
        raise UsageError(f"unknown protocol {name!r}: choose from {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
