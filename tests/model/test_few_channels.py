"""Transposed convolutions to few channels: what torch's own gives, and its gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from textebm.model import few_channels

CPU = torch.device("cpu")


def made(outputs: int, height: int, width: int, batch: int = 3, inputs: int = 5) -> tuple[torch.Tensor, ...]:
    source = torch.Generator().manual_seed(outputs + height + width)
    x = torch.randn(batch, inputs, height, width, generator=source, dtype=torch.float64)
    weight = torch.randn(inputs, outputs, 4, 4, generator=source, dtype=torch.float64)
    return x, weight, torch.randn(outputs, generator=source, dtype=torch.float64)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6), st.booleans(), st.booleans())
def test_it_is_the_transposed_convolution(outputs: int, height: int, width: int, biased: bool, last: bool) -> None:
    x, weight, bias = made(outputs, height, width)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    points = [x.clone().requires_grad_() for _ in range(2)]
    ours = few_channels.transposed(points[0], weight, bias if biased else None)
    theirs = functional.conv_transpose2d(points[1], weight, bias if biased else None, 2, 1)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    slope = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = [torch.autograd.grad(y, point, slope)[0] for y, point in zip((ours, theirs), points, strict=True)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_sums_of_narrow_products_are_of_float32() -> None:
    x, weight, bias = (tensor.float() for tensor in made(3, 8, 8, inputs=64))
    exact = functional.conv_transpose2d(x.double(), weight.double(), bias.double(), 2, 1)
    narrow = few_channels.transposed(x.bfloat16(), weight.bfloat16(), bias)
    assert narrow.dtype == torch.float32
    assert (narrow - exact).norm() < 2**-7 * exact.norm()


@pytest.mark.parametrize(
    ("outputs", "kernel", "stride", "device", "expected"),
    [
        (1, 4, 2, "cpu", True),
        (3, 4, 2, "cpu", True),
        (8, 4, 2, "cpu", False),
        (3, 3, 1, "cpu", False),
        (3, 4, 2, "meta", False),
    ],
)
def test_where_it_applies(outputs: int, kernel: int, stride: int, device: str, expected: bool) -> None:
    assert few_channels.applies(outputs, kernel, stride, 1, torch.device(device)) == expected
