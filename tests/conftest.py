"""What every test shares: one thread, no network, shapes checked at the borders of functions, real data, GPU skips."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

# Before torch is imported, since it reads them once. Processes run side by side, so each takes one thread.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

import pytest
import torch
from jaxtyping import install_import_hook


def check_shapes(package: str) -> None:
    """Check annotations such as Float[Tensor, "batch latent"] at every call: under the tests only, users do not pay."""
    from beartype import BeartypeConf, beartype

    checker = ModuleType("textebm_shape_checker")  # the import hook wants the name of something it can import
    checker.check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int will do for a float
    sys.modules[checker.__name__] = checker
    install_import_hook(package, f"{checker.__name__}.check")


if find_spec("beartype") is not None:  # absent in a slim environment: then the tests run without these checks
    check_shapes("textebm.model")

ROOT = Path(__file__).resolve().parents[1]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked gpu where there is no CUDA device."""
    if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and torch sees none here")


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with local copies of the real corpora: TEXTEBM_DATA, else ../shared/data beside the checkout."""
    given = os.environ.get("TEXTEBM_DATA")
    folder = Path(given) if given else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data: {'TEXTEBM_DATA' if given else '../shared/data'} is not a folder")
    return folder


@pytest.fixture
def generator() -> torch.Generator:
    """A source of random numbers on the CPU that starts the same in every test."""
    return torch.Generator().manual_seed(20260101)
