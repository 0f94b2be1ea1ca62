"""What this machine is: class, versions and commit for results (never a host name or a path), and how it multiplies."""

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import torch

from textebm._version import __version__
from textebm.errors import UsageError

Precision = Literal["fp32", "bf16", "fp16"]

PACKAGES = ("torch", "numpy", "tokenizers", "transformers", "sacrebleu", "matplotlib")


def hardware_class(device: torch.device | str = "cpu") -> str:
    """A short class such as `cpu2-avx512` (cores and vector instructions) or `nvidia-h200`."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device).lower().replace(" ", "-")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{device.type}{cores}-{torch.backends.cpu.get_cpu_capability().lower()}"


def find_device(name: str, option: str = "device") -> torch.device:
    """The device that a name means.

    Args:
        name: auto (the first CUDA device, where there is one, else the CPU), cpu, cuda or cuda:N.
        option: what messages call it.

    Raises:
        UsageError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]  # torch's own list of backends helps nobody
        raise UsageError(f"{option} {name} cannot be used here: {reason}") from None
    if device.type == "mps":
        raise UsageError(f"{option} mps cannot be used: sums are in 64 bits, which it does not have")
    return device


def native_precision(device: torch.device) -> Literal["bf16", "fp32"]:
    """bf16 where the device multiplies in it natively (AVX512-BF16, AMX, recent GPUs); else fp32, which is faster."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    if device.type == "cpu":
        asked = [getattr(torch.cpu, f"_is_{name}_supported", bool) for name in ("avx512_bf16", "amx_tile")]
        return "bf16" if any(ask() for ask in asked) else "fp32"
    return "fp32"


def precision_on(asked: Precision | Literal["auto"], device: torch.device) -> Precision:
    """The precision of products that is asked for; with `auto`, the one that the device is made for."""
    return native_precision(device) if asked == "auto" else asked


def versions() -> dict[str, str | None]:
    """Versions of Python, textebm and the packages that a figure may depend on (None: not installed)."""
    found: dict[str, str | None] = {"textebm": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    found["torch"] = str(torch.__version__)  # its build (+cpu, +cu130) too, which the package's metadata may leave out
    return found


def last_cache() -> int:
    """Bytes of the processor's last cache, as Linux tells; 0 where it is not known."""
    folders = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    try:
        found = [re.fullmatch(r"(\d+)([KM])", path.read_text().strip()) for path in folders]
    except OSError:
        return 0
    return max((int(size[1]) * (2**10 if size[2] == "K" else 2**20) for size in found if size), default=0)


def commit() -> str | None:
    """The commit of the checkout that this package runs from; None elsewhere.

    Marked `-dirty` if anything in it was changed but its folder `results`, into which measurements are written.
    """
    here = Path(__file__)

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here.parent, capture_output=True, text=True, check=True).stdout

    try:
        git("ls-files", "--error-unmatch", here.name)  # installed within somebody else's checkout, it is not of it
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":(top)", ":(top,exclude)results")
        return git("rev-parse", "HEAD").strip() + "-dirty" * bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return None
