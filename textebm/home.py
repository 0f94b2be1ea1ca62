"""Where textebm keeps what outlives a run: its build of lmplz, samples of models outside run folders."""

import os
from pathlib import Path

VARIABLE = "TEXTEBM_HOME"


def home() -> Path:
    """The folder that TEXTEBM_HOME names; ~/.cache/textebm by default."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else Path.home() / ".cache" / "textebm"
