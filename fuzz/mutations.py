"""Changes that keep JSON and YAML what they are: bytes flipped at random nearly always break them at once."""

import copy
import json
from collections.abc import Iterator
from random import Random
from typing import Any

ODD = (
    *(None, True, False, 0, -1, 1, 3, 10**9, 10**30, -(10**400), 0.5, 1e308, float("nan"), float("inf")),
    *(
        "",
        "x",
        "..",
        "../..",
        "a\nb",
        "\0",
        "\ud800",
        "0" * 300,
        [],
        {},
        [[]],
        [None],
        {"": {}},
        {"step": 1},
        ["x"] * 50,
    ),
)
"""Values that a field may not expect."""
MOST_NODES = 20_000


def changed(data: bytes, random: Random) -> bytes:
    """JSON, or lines of it, with a value replaced, taken away, doubled or moved; what is no JSON comes as it is.

    Args:
        data: the JSON.
        random: decides what is changed.
    """
    lines = data.split(b"\n")
    number = random.randrange(len(lines)) if data.count(b"\n{") else None
    chosen = data if number is None else lines[number]
    try:
        value = json.loads(chosen)
        for _ in range(random.choice((1, 1, 2, 4))):
            value = _change(value, random)
        written = json.dumps(value, ensure_ascii=random.random() < 0.8).encode("utf-8", "surrogatepass")
    except (ValueError, OverflowError, RecursionError):  # no JSON; or a number that has become too long to be written
        return data
    return written if number is None else b"\n".join([*lines[:number], written, *lines[number + 1 :]])


def _places(value: Any) -> Iterator[tuple[Any, Any]]:  # noqa: ANN401
    """Every container with every key or index in it."""
    waiting = [value]
    for _ in range(MOST_NODES):
        if not waiting:
            return
        inner = waiting.pop()
        keys = list(inner) if isinstance(inner, dict) else range(len(inner)) if isinstance(inner, list) else ()
        for key in keys:
            yield inner, key
            waiting.append(inner[key])


def _odd(random: Random) -> Any:  # noqa: ANN401
    """One of those values, as a copy of its own: it may be changed in turn."""
    return copy.deepcopy(random.choice(ODD))


def _change(value: Any, random: Random) -> Any:  # noqa: ANN401
    places = list(_places(value))
    if not places or random.random() < 0.02:
        return _odd(random)
    inner, key = random.choice(places)
    other, place = random.choice(places)
    kind = random.randrange(6)
    if kind == 0:
        del inner[key]
    elif kind == 1 and isinstance(inner, dict):
        inner[random.choice(("x", "", "name", "seed", "format"))] = _odd(random)
    elif kind == 2:
        inner[key] = json.loads(json.dumps(other[place]))
    elif kind == 3 and isinstance(inner[key], int | float):
        inner[key] = random.choice((-inner[key], inner[key] * 1000, inner[key] + 1, str(inner[key]), [inner[key]]))
    elif kind == 4 and isinstance(inner[key], str) and inner[key]:
        at = random.randrange(len(inner[key]))
        inner[key] = inner[key][:at] + random.choice(("", "|", ":", "%", "\u00e9", " ", "0")) + inner[key][at + 1 :]
    else:
        inner[key] = _odd(random)
    return value
