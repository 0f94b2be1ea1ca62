"""The n-gram judge: estimated by KenLM's lmplz or built in, queried through KenLM's Python module or built in.

Either estimator gives the same model to about 1e-6, and either reader the same probabilities to float32's precision.

Spelling. lmplz refuses text that holds `<unk>`, `<s>` or `</s>`, so these are spelt otherwise, one-to-one, on the way
in, in training and in scoring alike: `<unk>` is a word like any other.

Unseen words. A word of the vocabulary that does not occur in the training text gets the probability of the model's own
unknown word, a uniform share of what the unigrams leave over (lmplz's `--vocab_pad`): so the probabilities of all words
of the vocabulary and of the end of sentence add up to 1 in every context. Where every word of the vocabulary occurs,
lmplz keeps one more share, for a word that never comes.
"""

import functools
import importlib.metadata
import importlib.util
import math
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from textebm.errors import JudgeError, UsageError
from textebm.home import home
from textebm.lm_eval.arpa import BOS, EOS, SPECIALS, UNK, IntArray, NgramModel
from textebm.lm_eval.corpus import UNKNOWN, Vocabulary
from textebm.lm_eval.kneser_ney import FALLBACK_DISCOUNTS, estimate
from textebm.lm_eval.perplexity import SentenceScores

BUILT_IN = "built-in"
"""Asks for the built-in estimator, or the built-in reader, where a program or a module could be named."""

LMPLZ_VARIABLE = "TEXTEBM_LMPLZ"

ORDERS = range(2, 7)
"""What KenLM's module takes as it is commonly built."""

SENTENCES_AT_ONCE = 10_000
LN_10 = math.log(10)

Query = Literal["auto", "kenlm", "built-in"]


def find_lmplz(option: str | None = None) -> Path | None:
    """KenLM's lmplz: as named, else by TEXTEBM_LMPLZ, else on the PATH, else the build of `scripts/build_lmplz.sh`.

    Args:
        option: path or name of the program; `built-in` for the built-in estimator.

    Returns:
        Its path; None where there is none, or where the option or the variable says `built-in`.

    Raises:
        UsageError: the option or the variable names no program.
    """
    for source, name in (
        ("the option", option),
        (f"the environment variable {LMPLZ_VARIABLE}", os.environ.get(LMPLZ_VARIABLE)),
    ):
        if name == BUILT_IN:
            return None
        if name:
            found = shutil.which(name)
            if found is None:
                raise UsageError(f"lmplz: {source} names {name!r}, which is no program; name it, or say {BUILT_IN!r}")
            return Path(found)
    found = shutil.which("lmplz") or shutil.which(own_lmplz())
    return None if found is None else Path(found)


def own_lmplz() -> Path:
    """Where `scripts/build_lmplz.sh` installs lmplz: under TEXTEBM_HOME, which is ~/.cache/textebm by default."""
    return home() / "kenlm" / "bin" / "lmplz"


@dataclass(frozen=True)
class Estimator:
    """What estimated a model.

    Args:
        name: for signatures: `lmplz-VERSION`, `lmplz` where its version is not known, or `built-in`.
        fallback_orders: orders whose discounts have no closed form in the training text.
    """

    name: str
    fallback_orders: tuple[int, ...]


class _Reader(Protocol):
    """Answers log10 probabilities of sentences that are spelt for the model."""

    name: str

    def sentences(self, sentences: Sequence[Sequence[str]]) -> Sequence[float]:
        """log10 p of each sentence, end of sentence included."""
        ...

    def tokens(self, sentence: Sequence[str]) -> Sequence[float]:
        """log10 p of each word and of the end of sentence."""
        ...


class NgramJudge:
    """An interpolated modified Kneser–Ney model of a text, over a fixed vocabulary. Made by `train`.

    Args:
        vocabulary: the words that it gives probability to; any other becomes `<unk>`.
        order: length of its longest n-grams.
        estimator: what estimated it.
        reader: what answers for it.
        unseen: how many words of the vocabulary do not occur in the training text.
    """

    def __init__(self, vocabulary: Vocabulary, order: int, estimator: Estimator, reader: _Reader, unseen: int) -> None:
        self.vocabulary = vocabulary
        self.order = order
        self.estimator = estimator
        self.unseen = unseen
        self._reader = reader
        self._spelling = _Spelling(vocabulary)

    @classmethod
    def train(
        cls,
        sentences: Iterable[str],
        vocabulary: Vocabulary,
        order: int = 5,
        lmplz: Path | None = None,
        query: Query = "auto",
        memory: str = "512M",
    ) -> "NgramJudge":
        """Estimate a judge.

        Args:
            sentences: the training text; an empty sentence counts as one that ends at once.
            vocabulary: of the real training split; a word outside it is trained on as `<unk>`.
            order: 2 to 6.
            lmplz: KenLM's estimator, as `find_lmplz` finds it; None for the built-in one.
            query: `kenlm` for KenLM's module, `built-in` for our reader, `auto` for the module where it is installed.
            memory: what lmplz may take for sorting, in its own notation; it uses a temporary folder for the rest.

        Raises:
            UsageError: the order is out of range, or KenLM's module is asked for and not installed.
            JudgeError: the model could not be estimated or read.
        """
        if order not in ORDERS:
            raise UsageError(f"the order of an n-gram judge is {order}: it must be {ORDERS[0]} to {ORDERS[-1]}")
        use_kenlm = _choose_kenlm(query)
        spelling = _Spelling(vocabulary)
        seen: set[str] = set()
        spelt = _watch((_spell(sentence, spelling) for sentence in sentences), seen)
        pad = len(vocabulary) + 1  # the end of sentence is a word that can come too
        with tempfile.TemporaryDirectory(prefix="textebm-judge-") as name:
            folder = Path(name)
            arpa = folder / "model.arpa"
            if lmplz is None:
                model, failed = estimate(spelt, order, pad)
                estimator = Estimator(BUILT_IN, tuple(failed))
                if use_kenlm:
                    model.write(arpa)
            else:
                estimator = _run_lmplz(lmplz, spelt, order, pad, arpa, memory)
                if not use_kenlm:
                    model = NgramModel.read(arpa)
            reader: _Reader = _KenlmReader(arpa) if use_kenlm else _BuiltInReader(model)
        return cls(vocabulary, order, estimator, reader, len(vocabulary) - len(seen))

    @property
    def settings(self) -> dict[str, str]:
        """What a signature says of this judge."""
        failed = self.estimator.fallback_orders
        return {
            "order": str(self.order),
            "smoothing": "modified-kneser-ney",
            "discounts": f"fallback-in-orders-{'+'.join(map(str, failed))}" if failed else "closed-form",
            "estimator": self.estimator.name,
            "query": self._reader.name,
        }

    def score(self, sentences: Iterable[str]) -> SentenceScores:
        """Log-probability and number of tokens of each sentence, in constant memory but for the result.

        A sentence's score does not depend on the others.
        """
        log_probs, tokens = [], []
        remaining = iter(sentences)
        while batch := [_spell(s, self._spelling) for s in islice(remaining, SENTENCES_AT_ONCE)]:
            log_probs.append(np.asarray(self._reader.sentences(batch), dtype=np.float64) * LN_10)
            tokens.append(np.array([len(words) + 1 for words in batch], dtype=np.int64))
        if not tokens:
            return SentenceScores(np.zeros(0), np.zeros(0, dtype=np.int64))
        return SentenceScores(np.concatenate(log_probs), np.concatenate(tokens))

    def token_log_probs(self, sentence: str) -> NDArray[np.float64]:
        """Log-probability of each word and of the end of sentence, in nats; shape (words + 1,)."""
        return np.asarray(self._reader.tokens(_spell(sentence, self._spelling)), dtype=np.float64) * LN_10

    def sample(self, n: int, seed: int = 0) -> Iterator[str]:
        """Sentences of the judge itself, at temperature 1: the n-gram model as a generator.

        Args:
            n: how many.
            seed: the same one gives the same sentences.

        Raises:
            UsageError: KenLM's module reads the model, which answers for given words only.
        """
        from textebm.lm_eval.sampling import sample_ngrams

        if not isinstance(self._reader, _BuiltInReader):
            raise UsageError("sentences can be drawn from an n-gram judge that is trained with query='built-in' only")
        names = {spelt: word for word, spelt in self._spelling.items()}
        seen = set(self._reader.model.words)
        unseen = [spelt for spelt in names if spelt not in seen]
        for words in sample_ngrams(self._reader.model, n, seed, unseen):
            yield " ".join(names[word] for word in words)


class _Spelling(dict[str, str]):
    """How the model spells each word of a vocabulary; a word outside it is spelt as `<unk>` is.

    What KenLM reserves gets an underscore in front, one more than it has.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__((word, re.sub(r"^(?=_*<(?:unk|UNK|s|/s)>$)", "_", word)) for word in vocabulary)
        self._unknown = self[UNKNOWN]

    def __missing__(self, word: str) -> str:
        return self._unknown


def _spell(sentence: str, spelling: _Spelling) -> list[str]:
    return list(map(spelling.__getitem__, sentence.split()))


def _watch(sentences: Iterable[list[str]], seen: set[str]) -> Iterator[list[str]]:
    """The sentences; every word that passes is noted in `seen`."""
    for words in sentences:
        seen.update(words)
        yield words


# ----------------------------------------------------------------------------------------------------------- estimating


def _run_lmplz(lmplz: Path, sentences: Iterable[list[str]], order: int, pad: int, arpa: Path, memory: str) -> Estimator:
    """Estimate with lmplz into the file `arpa`; temporary files go beside it."""
    text = arpa.with_suffix(".txt")
    with text.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(" ".join(words) + "\n" for words in sentences)
    if not text.stat().st_size:
        raise JudgeError("a language model cannot be estimated from no sentence")
    options = {"-o": order, "-S": memory, "-T": f"{arpa.parent}/", "--vocab_pad": pad, "--text": text, "--arpa": arpa}
    command = [str(lmplz), *(str(part) for option in options.items() for part in option)]
    # Asked for always: it changes nothing where the closed form holds, and lmplz says where it did not.
    command += ["--discount_fallback", *map(str, FALLBACK_DISCOUNTS)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise JudgeError(f"{lmplz} cannot be run ({error}); {_WAY_OUT}") from error
    if done.returncode != 0:
        last = " ".join(done.stderr.split("\n")[-4:]).strip()
        raise JudgeError(f"{lmplz} ended with {done.returncode}: {last}; {_WAY_OUT}")
    failed = re.findall(r"^Substituting fallback discounts for order (\d+)", done.stderr, flags=re.MULTILINE)
    return Estimator(_lmplz_name(lmplz), tuple(int(n) + 1 for n in failed))  # lmplz counts orders from 0 there


_WAY_OUT = f"set {LMPLZ_VARIABLE} to another lmplz, or to {BUILT_IN!r} for the built-in estimator"


def _lmplz_name(lmplz: Path) -> str:
    """lmplz does not tell its version; our own build has it in a file."""
    version = lmplz.resolve().parents[1] / "VERSION"
    own = lmplz.resolve() == own_lmplz().resolve() and version.is_file()
    return f"lmplz-{version.read_text().strip()}" if own else "lmplz"


# ------------------------------------------------------------------------------------------------------------- querying


def _choose_kenlm(query: Query) -> bool:
    if query == BUILT_IN:
        return False
    found = importlib.util.find_spec("kenlm") is not None
    if query == "kenlm" and not found:
        raise UsageError("KenLM's Python module is not installed: pip install 'textebm[kenlm]'")
    return found


class _KenlmReader:
    """KenLM's Python module, which holds the model in memory and so outlives the file."""

    def __init__(self, arpa: Path) -> None:
        import kenlm

        config = kenlm.Config()
        config.show_progress = False
        config.arpa_complain = kenlm.ARPALoadComplain.NONE
        try:
            self._model: Any = kenlm.Model(str(arpa), config)
        except (OSError, RuntimeError) as error:
            hint = (
                "in a very small text a discount can be exactly 0, which KenLM's files cannot hold; give more sentences"
            )
            raise JudgeError(f"KenLM cannot read the model that was estimated ({hint}): {error}") from error
        self.name = _kenlm_name()

    def sentences(self, sentences: Sequence[Sequence[str]]) -> Sequence[float]:
        return [self._model.score(" ".join(words)) for words in sentences]

    def tokens(self, sentence: Sequence[str]) -> Sequence[float]:
        return [prob for prob, _, _ in self._model.full_scores(" ".join(sentence))]


@functools.cache  # it reads the records of all that is installed
def _kenlm_name() -> str:
    """KenLM's module comes from several distributions."""
    for distribution in importlib.metadata.packages_distributions().get("kenlm", []):
        return f"{distribution}-{importlib.metadata.version(distribution)}"
    return "kenlm"


class _BuiltInReader:
    """Our own reader, for where KenLM's module is not installed."""

    name = BUILT_IN

    def __init__(self, model: NgramModel) -> None:
        self.model = model
        self._number = {word: n for n, word in enumerate(model.words) if word not in SPECIALS}

    def _ids(self, sentence: Sequence[str]) -> list[int]:
        return [BOS, *(self._number.get(word, UNK) for word in sentence), EOS]

    def sentences(self, sentences: Sequence[Sequence[str]]) -> Sequence[float]:
        rows = [self._ids(words) for words in sentences]
        ids: IntArray = np.array([n for row in rows for n in row], dtype=np.int64)
        log_probs = np.where(ids == BOS, 0, self.model.token_log10_probs(ids))
        result: list[float] = np.add.reduceat(log_probs, np.flatnonzero(ids == BOS)).tolist()
        return result

    def tokens(self, sentence: Sequence[str]) -> Sequence[float]:
        result: list[float] = self.model.token_log10_probs(np.array(self._ids(sentence), dtype=np.int64))[1:].tolist()
        return result
