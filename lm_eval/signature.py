"""Signatures: how a score was computed, in one line, after sacrebleu's (Post 2018)."""

from collections.abc import Iterator, Mapping
from urllib.parse import unquote

from textebm.errors import UsageError


class Signature(Mapping[str, str]):
    """Named facts in order, written `key:value|key:value`.

    Two scores may be compared when all their facts but those of the data that is being compared agree.

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


def _escape(value: str) -> str:
    for character in "%|\n":
        value = value.replace(character, f"%{ord(character):02X}")
    return value
