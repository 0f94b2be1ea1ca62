"""Kernels in C for what torch has no fused form of: an addition, never a need.

`kernels.c` is compiled on the user's machine when it is first wanted, in a few seconds, and kept in TEXTEBM_HOME.
Where there is no C compiler, or the environment variable TEXTEBM_NATIVE is 0, callers fall back to torch. The random
numbers are torch's own either way, so a seed means the same with and without, up to rounding.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from textebm.home import home

SWITCH = "TEXTEBM_NATIVE"

# Not -ffast-math: it would let the compiler take the two parts of ln 2 together, lose what is no number, and set flags
# of the whole process. -O3 makes the same vectors in half as much time again.
FLAGS = (
    *("-O2", "-ftree-vectorize", "-fopenmp-simd", "-std=c11", "-shared", "-fPIC", "-ffp-contract=fast"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros"),
)

FEW = 1_000_000
"""Numbers up to which one thread that passes once beats torch's several threads that pass twice."""

FEW_THREADS = 4
"""Threads of torch among which its several passes over logits, shared evenly, would still take longer than one thread's
single pass takes."""


class Gelu:
    """GELU on contiguous float32 tensors of the CPU. Its derivative comes with its value: one exponential serves both.

    Results take the place of arguments, which are still in the processor's cache.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._forward, self._backward = library.textebm_gelu, library.textebm_gelu_backward
        for kernel in (self._forward, self._backward):
            kernel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_longlong]
            kernel.restype = None

    def forward(self, argument: Tensor, value: Tensor) -> Tensor:
        """gelu(argument), written into `value`; gelu'(argument) overwrites the argument. Both have one shape."""
        self._forward(argument.data_ptr(), value.data_ptr(), argument.numel())
        return value

    def backward(self, above: Tensor, argument: Tensor) -> Tensor:
        """above · gelu'(argument), which overwrites the argument; both have one shape."""
        self._backward(argument.data_ptr(), above.data_ptr(), argument.numel())
        return argument


class TimeStep:
    """What a recurrence does between two matrix products, for one time step of a packed batch on the CPU.

    Tensors are contiguous, float32, and bf16 where products are; they stand in the order of kernels.c.
    """

    def __init__(self, library: ctypes.CDLL, cell: str) -> None:
        self._forward = getattr(library, f"textebm_{cell}_forward")
        self._backward = getattr(library, f"textebm_{cell}_backward")
        for kernel, whole, tensors in ((self._forward, 4, 9), (self._backward, 6, 10)):
            kernel.argtypes = [ctypes.c_longlong] * whole + [ctypes.c_void_p] * tensors
            kernel.restype = None

    def forward(self, start: int, size: int, width: int, before: int, *tensors: Tensor | None) -> None:
        """States and what backward needs of the rows from `start`; `before`: of the step before, or -1."""
        self._forward(start, size, width, before, *_addresses(tensors))

    def backward(
        self, start: int, size: int, width: int, before: int, following: int, into: int, *tensors: Tensor | None
    ) -> None:
        """Gradients of the rows from `start`, of whose sentences `following` go on; the gates' from row `into` on."""
        self._backward(start, size, width, before, following, into, *_addresses(tensors))


class Softmax:
    """Passes over contiguous logits (tokens, classes) of the CPU, float32 or bf16, that make no matrix beside them."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._normaliser, self._excess = library.textebm_normaliser, library.textebm_excess
        for kernel, whole in ((self._normaliser, 3), (self._excess, 4)):
            kernel.argtypes = [ctypes.c_longlong] * whole + [ctypes.c_void_p] * 5
            kernel.restype = None

    def normaliser(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """log Σ exp(logit) of each row, and log p(target), (rows,) in float32."""
        of_target, greatest, sums = torch.empty(3, len(logits), dtype=torch.float32)
        tensors = (logits, targets.contiguous(), of_target, greatest, sums)
        self._normaliser(logits.dtype != torch.float32, *logits.shape, *_addresses(tensors))
        sums.log_()
        return greatest + sums, (of_target - greatest).sub_(sums)

    def excess(
        self, logits: Tensor, targets: Tensor, normaliser: Tensor, slope: Tensor, first: int, of_bias: Tensor
    ) -> Tensor:
        """Probabilities of the classes from `first`, less 1 at the target; they take the place of the logits.

        `of_bias`, the gradient in these classes' bias, has −slope times their sums added to it.
        """
        tensors = (logits, targets.contiguous(), normaliser.contiguous(), slope.contiguous(), of_bias)
        self._excess(logits.dtype != torch.float32, *logits.shape, first, *_addresses(tensors))
        return logits


def _addresses(tensors: tuple[Tensor | None, ...]) -> list[int | None]:
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


def softmax(like: Tensor, products: torch.dtype) -> Softmax | None:
    """The compiled passes of the learner's softmax, where they are of use.

    Args:
        like: a tensor of the dtype and on the device of what is computed.
        products: what matrix products bring.
    """
    if not _has_kernels(like, products) or torch.get_num_threads() > FEW_THREADS:
        return None
    library = load()
    return None if library is None else Softmax(library)


def _has_kernels(like: Tensor, products: torch.dtype) -> bool:
    known = products in (torch.float32, torch.bfloat16)
    return known and like.dtype == torch.float32 and like.device.type == "cpu"


def time_step(cell: str, like: Tensor, products: torch.dtype) -> TimeStep | None:
    """The compiled time step of a recurrence, where it is of use.

    Args:
        cell: lstm or gru.
        like: a tensor of the dtype and on the device of the states.
        products: what matrix products take and bring.
    """
    library = load() if _has_kernels(like, products) else None
    return None if library is None else TimeStep(library, cell)


def gelu(like: Tensor, numbers: int) -> Gelu | None:
    """The compiled GELU, where it is of use.

    Args:
        like: a tensor of the dtype and on the device that it is wanted for.
        numbers: how many numbers it will be given at once.
    """
    if like.dtype != torch.float32 or like.device.type != "cpu" or numbers > FEW:
        return None
    library = load()
    return None if library is None else Gelu(library)


@functools.cache
def load() -> ctypes.CDLL | None:
    """The compiled kernels, or None where they are not wanted or cannot be had."""
    if os.environ.get(SWITCH) == "0":
        return None
    source = (resources.files(__name__) / "kernels.c").read_bytes()
    described = repr((source, FLAGS, platform.system(), platform.machine())).encode()
    path = home() / "native" / f"kernels-{hashlib.sha256(described).hexdigest()[:16]}.so"
    try:
        if not path.exists():
            compile_into(path, source)
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError):
        return None


def compiler() -> str | None:
    """Path of the C compiler: what CC names, else cc, gcc or clang."""
    return next(
        (found for name in (os.environ.get("CC"), "cc", "gcc", "clang") if (found := shutil.which(name or ""))), None
    )


def compile_into(path: Path, source: bytes) -> None:
    """Compile a C source into a shared library, which appears as a whole.

    Raises:
        FileNotFoundError: there is no compiler.
        OSError: the folder cannot be written.
        subprocess.SubprocessError: the compiler fails, or takes longer than a minute.
    """
    command = compiler()
    if command is None:
        raise FileNotFoundError("no C compiler")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        text, built = Path(folder) / "kernels.c", Path(folder) / path.name
        text.write_bytes(source)
        subprocess.run([command, *FLAGS, "-o", built, text], check=True, capture_output=True, timeout=60)
        built.replace(path)


def status() -> str:
    """One line for `textebm env`."""
    if load() is not None:
        return "in use"
    if os.environ.get(SWITCH) == "0":
        return f"switched off by {SWITCH}=0"
    return "not in use: they could not be compiled" if compiler() else "not in use: no C compiler was found"
