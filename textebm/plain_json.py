"""JSON from files that anybody may have written: whatever is in them, it is read, or it is a ValueError."""

import json
from typing import Any


def parse(text: str | bytes) -> Any:  # noqa: ANN401 (whatever is in it)
    """What a JSON text says.

    Raises:
        ValueError: it is none; or it is nested too deeply, or holds a number of too many digits, to be read.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
