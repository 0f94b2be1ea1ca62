"""What tests on CUDA share."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch


@pytest.fixture
def cuda_generator() -> torch.Generator:
    return torch.Generator(device="cuda").manual_seed(5)


@pytest.fixture
def full_precision() -> Iterator[None]:
    """No TF32, which keeps 10 bits of a product's factors, so that CPU and GPU can be compared in float32."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture
def no_waiting() -> Callable[[], AbstractContextManager[None]]:
    """Within it, any operation that makes the host wait for the device raises a RuntimeError."""

    @contextmanager
    def guard() -> Iterator[None]:
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return guard
