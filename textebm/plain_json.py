"""JSON from files that anybody may have written: whatever is in them, it is read, or it is a ValueError. And JSON to
write, whatever the figures."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Pairs = list[tuple[str, Any]]
"""Keys and values of an object, as they stand in the text."""


def parse(text: str | bytes, pairs: Callable[[Pairs], Any] | None = None) -> Any:  # noqa: ANN401 (whatever is in it)
    """What a JSON text says.

    Args:
        text: in UTF-8, where it is bytes.
        pairs: makes an object of its keys and values (default: a dict).

    Raises:
        ValueError: it is none; or it is nested too deeply, or holds a number of too many digits, to be read.
    """
    try:
        return json.loads(text, object_pairs_hook=pairs)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read(path: Path, refused: type[Exception]) -> Any:  # noqa: ANN401 (whatever is in it)
    """What a JSON file says.

    Args:
        path: the file.
        refused: what is raised, with a message for people, where it does not exist, or cannot be read as JSON.
    """
    try:
        return parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise refused(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise refused(f"{path} cannot be read as JSON: {error}") from None


def is_finite(value: object) -> bool:
    """Whether what JSON holds is a number that can be shown."""
    return isinstance(value, int | float) and math.isfinite(value)


def finite(value: Any) -> Any:  # noqa: ANN401 (whatever is to be written)
    """The same, with None in the place of each number that JSON does not have: infinities, and what is no number."""
    if isinstance(value, Mapping):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
