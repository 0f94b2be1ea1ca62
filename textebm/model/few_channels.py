"""Transposed convolutions that make an image: many channels in, one or three out, at twice the side, on a CPU.

oneDNN works on blocks of output channels, which an image does not fill. One matrix product makes all sixteen numbers
that a pixel adds to the map (kernel 4), and what belongs to one place is added up: a new pixel is a sum of four of them
(stride 2, padding 1). The gradient in the input is oneDNN's convolution, which has many channels to make.
docs/log.md has figures.
"""

import itertools
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

KERNEL, STRIDE, PADDING = 4, 2, 1
"""Of the only form that is made so."""
MOST_CHANNELS = 4
"""Made by a layer that is worth it."""
NEAR, FAR = (1, 2), (3, 0)
"""Row (or column) of the kernel that makes an even and an odd row of the map: of the row in its place, of its other
neighbour (the one before, the one after)."""
BEFORE, AFTER = slice(None, -1), slice(1, None)
INTO, OUT_OF = (AFTER, BEFORE), (BEFORE, AFTER)
"""Rows that have that neighbour, and the neighbours."""


def applies(outputs: int, kernel: int, stride: int, padding: int, device: torch.device) -> bool:
    """Whether a layer is made faster so."""
    form = (kernel, stride, padding) == (KERNEL, STRIDE, PADDING)
    return form and outputs <= MOST_CHANNELS and device.type == "cpu"


def transposed(
    x: Float[Tensor, "batch inputs height width"],
    weight: Float[Tensor, "inputs outputs 4 4"],
    bias: Float[Tensor, " outputs"] | None,
) -> Float[Tensor, "batch outputs 2*height 2*width"]:
    """`conv_transpose2d` with stride 2 and padding 1, differentiable in x alone; in float32 or better."""
    made: Tensor = _Transposed.apply(x, weight)  # type: ignore[no-untyped-call]
    return made if bias is None else made + bias[:, None, None]


class _Transposed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(weight)
        batch, inputs, height, width = x.shape
        outputs = weight.shape[1]
        rows = weight.permute(2, 3, 1, 0).reshape(-1, inputs)  # a row for each place in the kernel and output
        columns = rows @ x.permute(0, 2, 3, 1).reshape(-1, inputs).t()
        if columns.dtype in (torch.bfloat16, torch.float16):
            columns = columns.float()
        parts = columns.view(KERNEL, KERNEL, outputs, batch, height, width)
        made = parts.new_empty(batch, outputs, height, 2, width, 2)
        for r, s in itertools.product((0, 1), repeat=2):
            total = parts[NEAR[r], NEAR[s]]  # no other pixel has a part in these
            total[..., INTO[r], :].add_(parts[FAR[r], NEAR[s]][..., OUT_OF[r], :])
            total[..., INTO[s]].add_(parts[NEAR[r], FAR[s]][..., OUT_OF[s]])
            total[..., INTO[r], INTO[s]].add_(parts[FAR[r], FAR[s]][..., OUT_OF[r], OUT_OF[s]])
            made[:, :, :, r, :, s] = total.transpose(0, 1)
        return made.view(batch, outputs, 2 * height, 2 * width)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        (weight,) = ctx.saved_tensors
        slope = slope.to(weight.dtype).contiguous(memory_format=torch.channels_last)
        return functional.conv2d(slope, weight, None, STRIDE, PADDING), None
