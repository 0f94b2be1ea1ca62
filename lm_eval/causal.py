"""Any causal language model of `transformers` as a judge: its subwords' log-probabilities, summed a word.

Such a model knows no word list of ours, so its perplexity is *a word*, over words and ends of sentences as every judge
counts them, and it compares with that of other judges on the same text; but what it has read is not known, and it gives
probability to other spellings too, so the words of the vocabulary do not quite share a probability of 1.

Each choice is named in `settings`: the text is given as it is, words joined by single blanks and none in front; it
begins with the tokenizer's beginning-of-sentence symbol, or with its end symbol where there is no such thing; the end
symbol counts as the end of sentence; a word outside the vocabulary becomes `<unk>`, spelt out like any other word.
Symbols such as `</s>` in the text are spelt out too, never read as the tokenizer's own.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from textebm import whole_files
from textebm.errors import JudgeError, UsageError
from textebm.home import offline
from textebm.lm_eval.corpus import Vocabulary
from textebm.lm_eval.perplexity import SentenceScores

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOKENS_AT_ONCE = 1024
"""Subwords of a batch: with 50,000 kinds of them their logits take 200 MB."""
SENTENCES_AT_ONCE = 1024
LARGEST_CONTEXT = 1024
"""Subwords that the model sees at once, at most; less where it is made for less."""
SECONDS_TO_WAIT = 5.0
"""For an answer of the hub, before it is said to be out of reach."""


@dataclass(frozen=True)
class _Subwords:
    """A sentence for the model.

    Args:
        ids: the beginning, the subwords, the end; shape (subwords + 2,).
        words: which word each of them but the beginning belongs to, the end being the last word; (subwords + 1,).
        count: number of words, the end counted.
    """

    ids: list[int]
    words: list[int]
    count: int


class CausalJudge:
    """A causal language model. Made by `load`.

    Args:
        vocabulary: of the real training split; any other word becomes `<unk>`.
        model: of `transformers`.
        tokenizer: its own; one of the fast ones, since those say where in the text a subword stands.
        name: of the model, for signatures.
        device: where to compute.

    Raises:
        JudgeError: the tokenizer does not say where subwords stand, or has no end symbol.
    """

    unseen = 0
    """Nothing was trained here."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        name: str,
        device: torch.device | str = "cpu",
    ) -> None:
        self.vocabulary = vocabulary
        self.name = name
        self._device = torch.device(device)
        loaded: Any = model  # its methods are not typed
        self._model = loaded.float().eval().requires_grad_(False).to(self._device)
        self._tokenizer = tokenizer
        if not tokenizer.is_fast:
            raise JudgeError(
                f"{name}: its tokenizer does not say where in the text a subword stands (it is a slow one)"
            )
        if tokenizer.eos_token_id is None:
            raise JudgeError(f"{name}: its tokenizer has no end-of-sentence symbol, so the end cannot be counted")
        self._start, self._end = tokenizer.bos_token_id, tokenizer.eos_token_id
        self._starts_with = "bos"
        if self._start is None:
            self._start, self._starts_with = self._end, "eos"
        made_for = getattr(model.config, "max_position_embeddings", None) or LARGEST_CONTEXT
        self.context = min(int(made_for), LARGEST_CONTEXT)

    @classmethod
    def load(cls, name: str, vocabulary: Vocabulary, *, device: torch.device | str = "cpu") -> "CausalJudge":
        """A model from a folder, from a GGUF file, or from the hub.

        A model of the hub is taken from the local cache where it is there; else it is downloaded, if the hub answers
        within a few seconds and neither HF_HUB_OFFLINE nor TEXTEBM_OFFLINE is set. Only safetensors and GGUF are read,
        and no code of the model's own is ever run.

        Args:
            name: a folder, a `.gguf` file, or a name on the hub such as `openai-community/gpt2`.
            vocabulary: of the real training split.
            device: where to compute.

        Raises:
            UsageError: `transformers` is not installed.
            JudgeError: there is no such model, or it cannot be read.
        """
        try:
            from transformers import AutoModelForCausalLM, AutoTokenizer
        except ImportError:
            raise UsageError("a causal judge needs transformers: pip install 'textebm[hub]'") from None
        path = Path(name).expanduser()
        options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
        source = name
        if path.is_file():
            source, options["gguf_file"] = str(path.parent), path.name
        elif path.is_dir():
            source = str(path)
        elif not _is_cached(name):
            _require_hub(name)
            options["local_files_only"] = False
        weights = {} if "gguf_file" in options else {"use_safetensors": True}
        try:
            with _quiet():
                tokenizer = AutoTokenizer.from_pretrained(source, **options)
                model = AutoModelForCausalLM.from_pretrained(source, **options, **weights)
        except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise JudgeError(f"the causal language model {name!r} cannot be loaded: {reason}") from error
        return cls(vocabulary, model, tokenizer, _identity(path, name, model), device)

    @property
    def settings(self) -> dict[str, str]:
        """What a signature says of this judge."""
        return {
            "model": self.name,
            "start": self._starts_with,
            "text": "as-given",
            "unknown": "spelt-out",
            "context": str(self.context),
            "precision": "fp32",
            "implementation": f"transformers-{version('transformers')}",
        }

    def score(self, sentences: Iterable[str], *, batch_tokens: int = TOKENS_AT_ONCE) -> SentenceScores:
        """Log-probability and number of tokens (words and the end) of each sentence, in constant memory.

        Args:
            sentences: the text.
            batch_tokens: subwords that are computed together; it changes the speed alone.
        """
        totals: list[float] = []
        tokens: list[int] = []
        remaining = iter(sentences)
        while read := [self._subwords(sentence) for sentence in islice(remaining, SENTENCES_AT_ONCE)]:
            totals += [float(values.sum()) for values in self._log_probs(read, batch_tokens)]
            tokens += [part.count for part in read]
        return SentenceScores(np.array(totals, dtype=np.float64), np.array(tokens, dtype=np.int64))

    def token_log_probs(self, sentence: str) -> NDArray[np.float64]:
        """Log-probability of each word, summed over its subwords, and of the end, in nats; shape (words + 1,)."""
        part = self._subwords(sentence)
        (values,) = self._log_probs([part], TOKENS_AT_ONCE)
        return np.bincount(part.words, weights=values, minlength=part.count).astype(np.float64)

    def _subwords(self, sentence: str) -> _Subwords:
        words, _ = self.vocabulary.map(sentence.split())
        text = " ".join(words)
        encoded = self._tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True, verbose=False
        )
        owner = _owners(words)
        belongs = [owner[min(max(begin, end - 1), len(owner) - 1)] for begin, end in encoded["offset_mapping"]]
        ids = [self._start, *encoded["input_ids"], self._end]
        return _Subwords(ids, [*belongs, len(words)], len(words) + 1)

    def _log_probs(self, parts: Sequence[_Subwords], batch_tokens: int) -> list[NDArray[np.float64]]:
        """log p of each subword and of the end, sentence by sentence."""
        result: list[NDArray[np.float64]] = [np.zeros(0)] * len(parts)
        short = [i for i, part in enumerate(parts) if len(part.ids) <= self.context]
        for chosen in _batches(sorted(short, key=lambda i: len(parts[i].ids)), parts, batch_tokens):
            for i, values in zip(chosen, self._run([parts[i].ids for i in chosen]), strict=True):
                result[i] = values
        for i in set(range(len(parts))) - set(short):
            result[i] = np.concatenate(list(self._windows(parts[i].ids)))
        return result

    def _windows(self, ids: list[int]) -> Iterator[NDArray[np.float64]]:
        """log p of what is longer than the model's context: windows of it, each half of which was in the one before."""
        done = 1
        while done < len(ids):
            begin = 0 if done == 1 else done - self.context // 2
            window = ids[begin : begin + self.context]
            (values,) = self._run([window])
            yield values[done - begin - 1 :]
            done = begin + len(window)

    @torch.no_grad()
    def _run(self, rows: Sequence[list[int]]) -> list[NDArray[np.float64]]:
        """log p of all but the first of each row; rows are padded behind, where a causal model does not look."""
        longest = max(map(len, rows))
        ids = torch.tensor([[*row, *[self._end] * (longest - len(row))] for row in rows], device=self._device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=self._device)
        logits = self._model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
        right = logits.gather(2, ids[:, 1:, None]).squeeze(2).double() - logits.logsumexp(2).double()
        values = right.cpu().numpy()
        return [values[i, : len(row) - 1] for i, row in enumerate(rows)]


def _owners(words: Sequence[str]) -> list[int]:
    """For each character of the words joined by blanks, the word it belongs to; a blank belongs to what follows it."""
    owners = [index for index, word in enumerate(words) for _ in range(len(word) + (index > 0))]
    return owners or [0]


def _batches(order: Sequence[int], parts: Sequence[_Subwords], tokens: int) -> Iterator[list[int]]:
    """Sentences, from short to long, in batches of at most so many subwords with padding; one at least."""
    batch: list[int] = []
    for i in order:
        if batch and (len(batch) + 1) * len(parts[i].ids) > tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


# ----------------------------------------------------------------------------------------------- where a model is found


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars: what is shown to people is not this library's business."""
    from transformers.utils import logging as untyped

    logging: Any = untyped
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _is_cached(name: str) -> bool:
    """Whether the hub's local cache has the model."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(name, "config.json"), str)
    except HFValidationError:
        raise JudgeError(f"{name!r} is no folder, no GGUF file, and no name that a model of the hub can have") from None


def _require_hub(name: str) -> None:
    """Check that the hub can be asked, and has the model, before anything is tried that could take long.

    Raises:
        JudgeError: it cannot, or has not.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    nowhere = f"the causal language model {name!r} is neither a folder, nor a GGUF file, nor in the hub's local cache"
    if (variable := offline()) is not None:
        raise JudgeError(f"{nowhere}, and {variable} forbids asking for it")
    try:
        HfApi().model_info(name, timeout=SECONDS_TO_WAIT)
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError, ConnectionError) as error:
        raise JudgeError(f"{nowhere}, and the hub does not give it ({type(error).__name__}: {error})") from error
    except Exception as error:
        if type(error).__module__.split(".")[0] not in ("httpx", "httpx2", "httpcore", "httpcore2", "requests"):
            raise
        raise JudgeError(f"{nowhere}, and the hub is out of reach ({type(error).__name__})") from error


def _identity(path: Path, name: str, model: "PreTrainedModel") -> str:
    """A name that stands for these weights, without a path: the hub's commit, or a hash of the files."""
    if not path.exists():
        commit = getattr(model.config, "_commit_hash", None)
        return f"{name}@{commit[:12]}" if commit else name
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted([*path.glob("*.safetensors"), *path.glob("*.gguf")]):
        digest.update(bytes.fromhex(whole_files.sha256(file)))
    return f"{path.resolve().name}@{digest.hexdigest()[:12]}"
