"""Where textebm keeps what outlives a run: its build of lmplz, corpora, samples of models outside run
folders; and whether it may use the network."""

import os
from pathlib import Path

VARIABLE = "TEXTEBM_HOME"
OFFLINE_VARIABLES = ("TEXTEBM_OFFLINE", "HF_HUB_OFFLINE")


def home() -> Path:
    """The folder that TEXTEBM_HOME names; ~/.cache/textebm by default."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else Path.home() / ".cache" / "textebm"


def offline() -> str | None:
    """The environment variable that forbids the network, or None where none does."""
    yes = {"1", "true", "yes", "on"}
    return next((name for name in OFFLINE_VARIABLES if os.environ.get(name, "").lower() in yes), None)
