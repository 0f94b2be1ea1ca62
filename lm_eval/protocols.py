"""Named ways of computing FPPL and RPPL, and the conditions under which a score may stand in a table.

Each protocol is one value of `EvaluationProtocol`: a definition in data, which `scores.py` carries out. The protocols
of others were read in their published code; what each does that a reader would not expect is a quirk, which is printed
with every score. docs/protocols.md has the formulas.
"""

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from textebm.errors import UsageError
from textebm.lm_eval.corpus import UNKNOWN, Corpus, Vocabulary

HEADLINE_DECODING = "sample-t1"
"""Softmax sampling at temperature 1, no top-k or top-p, nothing filtered out."""

UNKNOWN_DECODING = "unknown"
"""When nobody says how the sentences were decoded."""

NOT_FILTERED = "none"

JudgeKind = Literal["ngram", "lstm", "causal"]
VocabularyPolicy = Literal["train", "own", "own+test"]

OWN_RECIPES = ("ptb", "snli", "yahoo")
"""Corpora for which `lstm-sentence` has a size of its own."""


@dataclass(frozen=True)
class EvaluationProtocol:
    """A way of computing FPPL and RPPL, fixed in all that changes the number.

    Args:
        name: as in signatures.
        description: one line.
        source: where it comes from.
        judge: kind of language model.
        order: of an n-gram judge.
        recipe: of a neural judge; `{data}` stands for the corpus that it has a size for.
        vocabulary: which words the judge gives probability to: `train`, those of the real training split; `own`, those
            of the text that the judge is trained on; `own+test`, those of that text, of what is held out of it, and of
            the real test split. Every other word is `<unk>`.
        counts_end: whether the end of sentence is a token.
        unknown_word: `word` where `<unk>` is a word like any other; `skipped` where it is dropped from the text that
            the judge is trained on, and has then, when scored, the probability of a word never seen.
        vocabulary_lines: whether each word of the real training split stands as a sentence of its own before the
            samples that an RPPL judge is trained on.
        scores_vocabulary_lines: whether FPPL scores those lines too, as if they were samples.
        tested_on: the real text whose perplexity RPPL is.
        splits_samples: shares of the samples that train the RPPL judge, that stop its training, and that are left.
        n: number of samples prescribed; None for as many as there are real training sentences.
        decoding: of the samples, as prescribed; None for the user's own.
        max_length: longest sample in words, as prescribed; None for at least the longest real training sentence.
        quirks: what a reader of the score must know.
        headline: whether its scores may stand in the main table.
        beside_published: whether its scores may stand beside the published rows, where the data compare.
    """

    name: str
    description: str
    source: str
    judge: JudgeKind
    order: int = 5
    recipe: str | None = None
    vocabulary: VocabularyPolicy = "train"
    counts_end: bool = True
    unknown_word: Literal["word", "skipped"] = "word"
    vocabulary_lines: bool = False
    scores_vocabulary_lines: bool = False
    tested_on: Literal["test", "train"] = "test"
    splits_samples: tuple[int, int, int] | None = None
    n: int | None = None
    decoding: str | None = HEADLINE_DECODING
    max_length: int | None = None
    quirks: tuple[str, ...] = ()
    headline: bool = False
    beside_published: bool = False

    def recipe_for(self, data: str) -> str | None:
        """Name of the recipe of this protocol's judge on a corpus; None for an n-gram judge."""
        return None if self.recipe is None else self.recipe.format(data=data if data in OWN_RECIPES else "ptb")

    def facts(self) -> dict[str, str]:
        """What a signature says beyond the judge, the vocabulary and the end of sentence: only what is unusual."""
        facts = {}
        if self.unknown_word == "skipped":
            facts["unk"] = "skipped"
        if self.vocabulary_lines:
            facts["vocabulary_lines"] = "trained+scored" if self.scores_vocabulary_lines else "trained"
        if self.splits_samples is not None:
            facts["split"] = "+".join(map(str, self.splits_samples))
        return facts

    def sentences_wanted(self, training_sentences: int) -> int:
        """Number of samples that the protocol prescribes."""
        return training_sentences if self.n is None else self.n

    # ---- what the judge is trained on, and what is scored

    def fppl_training(self, train: Corpus) -> Corpus:
        """What the judge of FPPL is trained on."""
        return self._as_trained_on(train)

    def fppl_scored(self, samples: Corpus, vocabulary: Vocabulary) -> Corpus:
        """What FPPL is the perplexity of."""
        return _after_vocabulary(samples, vocabulary) if self.scores_vocabulary_lines else samples

    def rppl_training(self, samples: Corpus, n: int, vocabulary: Vocabulary) -> tuple[Corpus, Corpus | None]:
        """What the judge of RPPL is trained on, and what of the samples is held out to stop its training.

        Args:
            samples: generated sentences.
            n: their number.
            vocabulary: words of the real training split.
        """
        held_out = None
        if self.splits_samples is not None:
            whole = sum(self.splits_samples)
            stopping = max(1, n * self.splits_samples[1] // whole)  # however few there are
            first = max(1, min(n * self.splits_samples[0] // whole, n - stopping))
            held_out = _part(samples, first, first + stopping)
            samples = _part(samples, 0, first)
        if self.vocabulary_lines:
            samples = _after_vocabulary(samples, vocabulary)
        return self._as_trained_on(samples), held_out

    def _as_trained_on(self, text: Corpus) -> Corpus:
        if self.unknown_word == "word":
            return text

        def without_unknown() -> Iterator[str]:
            return (" ".join(w for w in sentence.split() if w != UNKNOWN) for sentence in text)

        return Corpus(without_unknown, text.name, keep_blank=True)

    # ---- what keeps a score out of the main table

    def departures(
        self,
        sentences: int,
        training_sentences: int,
        decoding: str,
        *,
        filtering: str = NOT_FILTERED,
        max_length: int | None = None,
        longest: int = 0,
        longest_training: int = 0,
        at_longest: int = 0,
    ) -> list[str]:
        """What of a text is not as the protocol prescribes, one message each.

        Args:
            sentences: number of samples.
            training_sentences: number of real training sentences.
            decoding: how the samples were decoded.
            filtering: what was left out of them; `none` under every protocol.
            max_length: longest sentence that could be generated, in words, where that is known.
            longest: words of the longest sample; longest_training: of the longest real training sentence.
            at_longest: how many samples are as long as the longest one.
        """
        messages = []
        name = "the headline protocol" if self.headline else f"the protocol {self.name}"
        wanted = self.sentences_wanted(training_sentences)
        if sentences != wanted:
            relation = "fewer" if sentences < wanted else "more"
            why = " (the number of real training sentences)" if self.n is None else ""
            messages.append(
                f"{sentences:,} sentences, {relation} than {name}'s {wanted:,}{why}: the score does not compare with "
                "others'"
            )
        if self.decoding is not None and decoding == UNKNOWN_DECODING:
            messages.append(f"nothing says how the sentences were decoded: {name} is {self.decoding}")
        elif self.decoding is not None and decoding != self.decoding:
            messages.append(f"decoding is {decoding}, and {name}'s is {self.decoding}")
        if filtering != NOT_FILTERED:
            messages.append(f"the sentences were filtered ({filtering}), and {name} takes them as they were generated")
        least = longest_training if self.max_length is None else self.max_length
        if max_length is not None and max_length < least:
            messages.append(f"sentences could have {max_length} words at most, and {name} allows {least}")
        elif max_length is None and _piled_up(sentences, longest, least, at_longest):
            messages.append(
                f"{at_longest:,} sentences have exactly {longest} words and none has more: they were cut, where {name} "
                f"allows {least}"
            )
        return messages


PILED_UP_SHARE = 0.005
PILED_UP_AT_LEAST = 10


def _piled_up(sentences: int, longest: int, least: int, at_longest: int) -> bool:
    """Whether lengths end in a heap, as those of sentences that were cut do; lengths of language thin out."""
    return 0 < longest < least and at_longest >= max(PILED_UP_AT_LEAST, PILED_UP_SHARE * sentences)


def _after_vocabulary(samples: Corpus, vocabulary: Vocabulary) -> Corpus:
    """Each word of the vocabulary as a sentence of its own, then the samples."""
    return Corpus(lambda: chain(vocabulary, samples), samples.name, keep_blank=True)


def _part(samples: Corpus, begin: int, end: int) -> Corpus:
    """Samples number `begin` to `end`, from 0, the last one not included."""

    def part() -> Iterable[str]:
        return (sentence for number, sentence in enumerate(samples) if begin <= number < end)

    return Corpus(part, samples.name, keep_blank=True)


KENLM5 = EvaluationProtocol(
    name="kenlm5",
    description="5-gram interpolated modified Kneser–Ney; <unk> is a word like any other; end of sentence counted",
    source="textebm's default: deterministic, and seconds to compute",
    judge="ngram",
    headline=True,
)

LSTM_SENTENCE = EvaluationProtocol(
    name="lstm-sentence",
    description="one-layer LSTM over single sentences, sized by the corpus; end of sentence counted",
    source=(
        "our reconstruction of the judge of Pang et al. (NeurIPS 2020), whose code was not released, after the "
        "language model of FB-VAE's code (Li et al., EMNLP 2019)"
    ),
    judge="lstm",
    recipe="lstm-sentence-{data}",
    quirks=(
        "a reconstruction: number of samples and decoding behind the published rows are not known, and its agreement "
        "with them is a check (100.4 for real text on PTB), not a proof",
    ),
    headline=True,
    beside_published=True,
)

ARAE_NGRAM = EvaluationProtocol(
    name="arae-ngram",
    description="KenLM of order 5; start of sentence given, its end neither predicted nor counted",
    source="ARAE's PyTorch code (Zhao et al., ICML 2018)",
    judge="ngram",
    counts_end=False,
    vocabulary_lines=True,
    scores_vocabulary_lines=True,
    n=100_000,
    decoding="greedy",
    max_length=15,
    quirks=(
        "every word of the vocabulary stands as a sentence of its own before the samples: the RPPL judge is trained on "
        "those lines, and FPPL scores them as if they were samples",
        "the end of sentence is not counted, so sentences that never end cost nothing",
        "words are chosen greedily (argmax), which lowers FPPL and usually raises RPPL",
    ),
)

ARAE_RNN = EvaluationProtocol(
    name="arae-rnn",
    description="one-layer LSTM 300/300, dropout 0.2, SGD at rate 1 for 15 epochs; end of sentence counted",
    source="ARAE's language-model script (Zhao et al., ICML 2018)",
    judge="lstm",
    recipe="arae-rnn",
    vocabulary="own",
    decoding=None,
    quirks=(
        "the vocabulary is that of the text that the judge is trained on: RPPL takes real words that no sample has for "
        "<unk>, and looks better the fewer words the samples have",
    ),
)

FANG2019 = EvaluationProtocol(
    name="fang2019",
    description="KenLM of order 5 that never sees <unk>; start of sentence given, its end not counted",
    source="the code of Fang et al. (EMNLP 2019), implicit latent variable models",
    judge="ngram",
    counts_end=False,
    unknown_word="skipped",
    vocabulary_lines=True,
    tested_on="train",
    n=1_280,
    decoding="greedy",
    max_length=80,
    quirks=(
        "RPPL is the perplexity of the training file, not of a test split",
        "<unk> is dropped from the text that the judge is trained on (lmplz --skip_symbols), and when scored has the "
        "probability of a word never seen",
        "every word of the vocabulary stands as a sentence of its own before the samples that the RPPL judge is "
        "trained on; FPPL does not score those lines",
        "the end of sentence is not counted, so sentences that never end cost nothing",
    ),
)

DGMVAE = EvaluationProtocol(
    name="dgmvae",
    description="AWD-LSTM on a stream of sentences, 20 epochs; end of sentence counted",
    source="the code of DGM-VAE (Shi et al., ICML 2020), which SVEBM and LDEBM follow",
    judge="lstm",
    recipe="dgmvae",
    vocabulary="own+test",
    splits_samples=(40, 3, 3),
    n=46_000,
    decoding="greedy",
    quirks=(
        "the judge reads sentences as one stream: a sentence's probability depends on those before it",
        "of 46,000 samples 40,000 train the RPPL judge, 3,000 stop its training and 3,000 are left out",
        "the vocabulary is that of the judge's own files, the test split among them",
        "published for RPPL alone: FPPL under it is the same judge trained on real text",
    ),
)

CAUSAL = EvaluationProtocol(
    name="causal",
    description="a causal language model of transformers, as it is given; a word and an end of sentence are tokens",
    source="textebm: FPPL under a model that was trained elsewhere",
    judge="causal",
    quirks=(
        "what the judge has read is not known: it may have read the test split",
        "its probabilities are of subwords, so those of the vocabulary's words add up to less than 1",
        "FPPL alone: nothing is trained, so there is no RPPL",
    ),
)

PROTOCOLS = {p.name: p for p in (KENLM5, LSTM_SENTENCE, ARAE_NGRAM, ARAE_RNN, FANG2019, DGMVAE, CAUSAL)}
DEFAULT_PROTOCOL = KENLM5.name


def get_protocol(name: str) -> EvaluationProtocol:
    """The protocol of that name.

    Raises:
        UsageError: there is none; the message names the nearest.
    """
    if name not in PROTOCOLS:
        near = difflib.get_close_matches(name.lower(), PROTOCOLS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UsageError(f"unknown protocol {name!r}: {hint}choose from {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
