"""Signatures: how a score was computed, in one line, after sacrebleu's (Post 2018); what they say; what compares."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote

from textebm.errors import UsageError

Weight = Literal["decisive", "implementation", "uncertainty"]
"""What it means that two scores differ in a fact: `decisive`, they do not compare; `implementation`, the scores should
agree but for rounding; `uncertainty`, the score is the same and its interval is not, or it is a looser or a tighter
bound of the same."""

SHORT = 12
"""Digits of a SHA-256 that a signature has: enough to tell contents apart."""

KNOWN: dict[str, tuple[Weight, str]] = {
    "metric": (
        "decisive",
        "fppl: generated text under a model of real text; rppl: real text under a model of generated text; real-row: "
        "real text under a model of real text; marginal-nll: −log p(x) of real text under a model, a sentence, in "
        "nats; fid: Fréchet distance of images' features, the published Inception's; frechet-…: of another network's; "
        "auprc: area under the precision–recall curve of anomalies; prior-energy-change: by how much a prior chain "
        "changes −f(z), in nats",
    ),
    "data": ("decisive", "name of the real corpus"),
    "train": ("decisive", "first digits of the SHA-256 of the real training split's sentences"),
    "valid": ("decisive", "the same of the real validation split, which stopped the training of a neural judge"),
    "test": ("decisive", "first digits of the SHA-256 of the real text, or of the pixels of the images, scored"),
    "text": ("decisive", "how the real text was changed before it was measured; absent where it was taken as it is"),
    "n": ("decisive", "number of generated sentences, or images"),
    "decoding": (
        "decisive",
        "how their words were chosen; sample-t1 is softmax sampling at temperature 1; +prior-steps-K, that latents "
        "come from a prior chain of K steps, not as many as in training",
    ),
    "filtering": ("decisive", "what was left out of the generated sentences; absent where nothing was"),
    "max_length": ("decisive", "longest sentence that could be generated, where that is below the protocol's"),
    "judge": ("decisive", "name of the protocol, which fixes the kind of language model and what is counted"),
    "order": ("decisive", "length of the longest n-grams of the judge"),
    "smoothing": ("decisive", "how the judge shares probability with n-grams that it has not seen"),
    "discounts": ("decisive", "where Kneser–Ney's discounts come from"),
    "recipe": ("decisive", "recipe of the neural judge: sizes, optimiser, schedule; changed: not as it is registered"),
    "epochs": (
        "uncertainty",
        "passes that the neural judge's training took, and how it ended: converged, all-epochs, or cut (decisive)",
    ),
    "held-out": ("decisive", "what stopped the neural judge's training: given, a text beside; or so many of its own"),
    "state": ("decisive", "whether the neural judge starts anew at each sentence"),
    "precision": ("decisive", "arithmetic of the products in the neural judge's training"),
    "judge-seed": ("uncertainty", "seed of the neural judge"),
    "trained-on": ("implementation", "kind of device and version of torch that trained the neural judge"),
    "judge_seeds": ("uncertainty", "seeds of the neural judges whose mean score this is"),
    "model": ("decisive", "name of the causal language model that judges"),
    "start": ("decisive", "the symbol that a causal judge's sentences begin with"),
    "judge-text": ("decisive", "how words are put together for a causal judge"),
    "unknown": ("decisive", "how a causal judge is given <unk>"),
    "context": ("decisive", "subwords that a causal judge sees at once"),
    "implementation": ("implementation", "library that runs the causal judge"),
    "estimator": ("implementation", "program that estimated the n-gram judge"),
    "query": ("implementation", "program that asked the n-gram judge"),
    "unk": ("decisive", "skipped: <unk> is dropped from what the judge is trained on; absent: a word like any other"),
    "vocabulary_lines": (
        "decisive",
        "each word of the vocabulary stands as a sentence before the samples: in training, or in scoring too",
    ),
    "split": ("decisive", "shares of the samples that train the judge, stop its training, and are left out"),
    "vocabulary": (
        "decisive",
        "the words that the judge gives probability to, and their number; train: those of the real training split, "
        "own: those of the text that the judge is trained on; model: those of the model that is scored, and first "
        "digits of the SHA-256 of them",
    ),
    "eos": ("decisive", "whether the end of sentence is counted as a token"),
    "interval": ("uncertainty", "how the interval was computed, and from how many resampled texts, where from any"),
    "seed": ("uncertainty", "seed of the interval, and of the judge where it has one"),
    "scored": ("decisive", "split of the real corpus that was scored"),
    "sentences": ("decisive", "number of its sentences that were scored, spread evenly over it"),
    "images": ("decisive", "number of images that were scored"),
    "shape": ("decisive", "channels, height and width of an image, as the model makes it"),
    "crop": (
        "decisive",
        "part of a picture that was kept: centre, the largest square in its middle; authors, of images of CelebA that "
        "of the code of Pang et al. (2020)",
    ),
    "scale": ("decisive", "values of a pixel: black to white"),
    "inference": ("decisive", "how z was inferred, as inference.kind of the settings has it"),
    "steps": ("decisive", "steps of its chain"),
    "chain-precision": ("implementation", "arithmetic of the products in that chain; absent: fp32"),
    "max-images": ("decisive", "most training images that were taken; absent: all of them"),
    "bound": (
        "uncertainty",
        "exact: the likelihood itself; upper: an importance-weighted bound, which the NLL is at most in expectation",
    ),
    "samples": ("uncertainty", "samples of z that the likelihood of a sentence was estimated from"),
    "posterior-samples": ("decisive", "posterior samples of z over which the score of one image or sentence is a mean"),
    "proposal": ("uncertainty", "where those samples come from"),
    "log-normaliser": (
        "uncertainty",
        "how the prior's log Z was found: 0 of a Gaussian; ais: annealed importance sampling, chains x steps, the "
        "larger of the forward and the reverse estimate",
    ),
    "against": ("decisive", "split of the real images that generated ones were measured against"),
    "prior-steps": ("decisive", "steps of the prior chain of generated images, where not as many as in training"),
    "real": ("decisive", "first digits of the SHA-256 of the real images' pixels"),
    "real-n": ("decisive", "number of real images"),
    "features": ("decisive", "network that gives images' features, and its layer"),
    "weights": ("decisive", "first digits of the SHA-256 of that network's file of weights"),
    "preprocessing": ("decisive", "how images are resized and scaled for that network"),
    "anomaly": ("decisive", "the class that no model was trained on, or the file of anomalous sentences"),
    "anomaly-split": (
        "decisive",
        "A: train is 80 % of all images of the other classes, test the rest of them and all of that class; B: the "
        "published splits, without that class in train",
    ),
    "ranked-by": (
        "decisive",
        "what anomalies are told by, at a posterior sample z, up to a constant; joint: −log p(x, z); prior: −log p(z); "
        "likelihood: −log p(x|z); adjusted: the joint one, in spreads above what is usual of images of training that "
        "are as complex, and the compressor whose bytes say how complex",
    ),
    "last-epochs": ("decisive", "epochs at the end of training over which the score is a mean"),
    "run-seeds": ("uncertainty", "seeds of the training runs whose mean score this is"),
    "latent-model": ("decisive", "first digits of the SHA-256 of the weights of the model whose chains were run"),
    "chains": ("uncertainty", "chains over which the figure is a mean"),
    "version": ("implementation", "version of textebm"),
}
"""What each key says. A key that is not here is decisive."""


@dataclass(frozen=True)
class Verdict:
    """Whether two scores compare.

    Args:
        decisive: keys of the facts that keep them from it.
        implementation: keys of programs that differ.
        uncertainty: keys that change the interval, or the seed of a judge.
    """

    decisive: tuple[str, ...]
    implementation: tuple[str, ...]
    uncertainty: tuple[str, ...]

    @property
    def comparable(self) -> bool:
        """Whether nothing decisive differs."""
        return not self.decisive


class Signature(Mapping[str, str]):
    """Named facts in order, written `key:value|key:value`.

    Two scores may be compared when all their facts agree that decide a score: `compare` says so.

    Args:
        facts: key -> value; a key holds no colon. What would not survive the format is percent-encoded in it.
    """

    def __init__(self, facts: Mapping[str, object]) -> None:
        self._facts = {key: str(value) for key, value in facts.items()}
        for key in self._facts:
            if not key or set(key) & set(":|%\n"):
                raise UsageError(f"{key!r} cannot be a key of a signature: it must hold no colon, bar, % or line break")

    @classmethod
    def parse(cls, text: str) -> "Signature":
        """The signature that `text` writes.

        Raises:
            UsageError: it is none.
        """
        facts: dict[str, str] = {}
        for part in text.strip().split("|"):
            key, colon, value = part.partition(":")
            if not colon or key in facts:
                raise UsageError(f"not a signature at {part!r}: it is key:value|key:value, and each key comes once")
            facts[key] = unquote(value)
        return cls(facts)

    def __str__(self) -> str:
        return "|".join(f"{key}:{_escape(value)}" for key, value in self._facts.items())

    def __repr__(self) -> str:
        return f"Signature({str(self)!r})"

    def __getitem__(self, key: str) -> str:
        return self._facts[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._facts)

    def __len__(self) -> int:
        return len(self._facts)

    def __hash__(self) -> int:
        return hash(frozenset(self._facts.items()))

    def explain(self) -> list[tuple[str, str, str]]:
        """(key, value, what it says) of each fact, in order."""
        unknown = "this version of textebm does not know this fact"
        return [(key, value, KNOWN[key][1] if key in KNOWN else unknown) for key, value in self.items()]

    def compare(self, other: "Signature") -> Verdict:
        """Whether a score with this signature compares with one that has the other."""
        keys = list(dict.fromkeys([*self, *other]))
        differing: dict[Weight, list[str]] = {"decisive": [], "implementation": [], "uncertainty": []}
        for key in keys:
            if self.get(key) != other.get(key):
                weights = {side.weight(key) for side in (self, other)}
                differing["decisive" if "decisive" in weights else weights.pop()].append(key)
        return Verdict(*(tuple(differing[weight]) for weight in ("decisive", "implementation", "uncertainty")))

    @property
    def decisive(self) -> "Signature":
        """The facts that decide a score: two scores compare where these agree."""
        return Signature({key: value for key, value in self.items() if self.weight(key) == "decisive"})

    def weight(self, key: str) -> Weight:
        """What it means for this score to differ from another in a fact."""
        if key == "epochs" and self.get(key, "").endswith("-cut"):  # training that was cut short is another judge
            return "decisive"
        return KNOWN[key][0] if key in KNOWN else "decisive"


def _escape(value: str) -> str:
    for character in "%|\n":
        value = value.replace(character, f"%{ord(character):02X}")
    return value
