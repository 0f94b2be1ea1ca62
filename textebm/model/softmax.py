"""Log-likelihood of words under a vocabulary-sized softmax, and its gradients, without keeping the matrix of logits.

A Langevin chain needs log p(word) and its gradient in the hidden states, for fixed weights: both come out of one pass
over blocks of tokens. The learner needs the gradients in the weights too: its backward pass forms the logits again, in
blocks of the vocabulary, so that each weight's gradient is written once. A block's logits live only while the block is
worked on, so memory does not grow with tokens × vocabulary.

Precision: the products of `bf16` and `fp16` have operands of 16 bits and sums of 32; logits are rounded to 16 bits when
they leave the product, and the normaliser is summed in float32 or better. The bias enters the product as two more
columns, its upper and its lower half, so that it is not rounded to 16 bits by itself.
"""

from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from textebm import hardware, native

Precision = Literal["fp32", "bf16", "fp16"]

NARROW: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
BLOCK_LOGITS = 8_000_000 if hardware.last_cache() >= 2**27 else 2_500_000
"""Logits held at once on a CPU, within a server's last cache: 32 MB in float32 where that has 128 MB, else 10. Every
block reads all weights again."""
GPU_BLOCK_LOGITS = 40_000_000
"""Logits held at once on a GPU."""
FEWEST_ROWS = 16
"""Rows of the smallest block: fewer, and reading the weights costs more than multiplying by them."""
FEWEST_CLASSES = 512
"""Classes of the smallest block of the learner's backward pass."""
TILE = 32
"""Rows and columns of 16-bit weights are filled up to a multiple: products of whole tiles take two thirds of the time
(AMX)."""
NEVER = -10_000.0
"""Bias of a class that fills up: its probability is 0."""


def product_dtype(precision: Precision, like: Tensor) -> torch.dtype:
    """What matrix products take: 16 bits, or for fp32 the dtype of `like` (float64 in a float64 model)."""
    return NARROW.get(precision, like.dtype)


class Output(NamedTuple):
    """An output layer as the products take it, detached; made once a chain.

    weight: (classes, hidden); in 16 bits with at least two more columns, which carry the bias, and filled up to whole
    tiles. bias: (classes,), or None in 16 bits. rows: (classes, hidden), the weights alone; what fills up is 0.
    """

    weight: Tensor
    bias: Tensor | None
    rows: Float[Tensor, "classes hidden"]


def prepare(weight: Float[Tensor, "classes hidden"], bias: Float[Tensor, " classes"], precision: Precision) -> Output:
    """The output layer in the precision of its products."""
    weight, bias = weight.detach(), bias.detach()
    dtype = product_dtype(precision, weight)
    if dtype == weight.dtype:
        return Output(weight, bias, weight)
    classes, hidden = weight.shape
    narrow = weight.new_zeros(_filled(classes), _filled(hidden + 2), dtype=dtype)
    narrow[:classes, :hidden] = weight
    upper = bias.to(dtype)
    narrow[:classes, hidden] = upper
    narrow[:classes, hidden + 1] = bias - upper
    narrow[classes:, hidden] = NEVER
    return Output(narrow, None, narrow[:, :hidden])


def _filled(size: int) -> int:
    return -(-size // TILE) * TILE


def operand(hidden: Float[Tensor, "tokens hidden"], output: Output) -> Tensor:
    """Hidden states as the product with `output.weight` takes them."""
    if output.bias is not None:
        return hidden
    narrow = hidden.new_ones(len(hidden), output.weight.shape[1], dtype=output.weight.dtype)
    narrow[:, : hidden.shape[1]] = hidden
    return narrow


def logits(
    rows: Tensor, output: Output, classes: slice = slice(None), out: Tensor | None = None
) -> Float[Tensor, "rows classes"]:
    """Logits of some rows of `operand` and some classes, in the precision of the products."""
    weight = output.weight[classes].T
    if output.bias is None:
        return torch.mm(rows, weight) if out is None else torch.mm(rows, weight, out=out)
    bias = output.bias[classes]
    return torch.addmm(bias, rows, weight) if out is None else torch.addmm(bias, rows, weight, out=out)


def _blocks(length: int, other: int, fewest: int, device: torch.device) -> list[slice]:
    """Slices of `length` such that a slice times `other` stays near BLOCK_LOGITS."""
    budget = GPU_BLOCK_LOGITS if device.type == "cuda" else BLOCK_LOGITS
    size = max(fewest, budget // max(1, other))
    return [slice(begin, min(begin + size, length)) for begin in range(0, length, size)]


def log_prob_and_grad(
    hidden: Float[Tensor, "tokens hidden"], output: Output, targets: Int[Tensor, " tokens"]
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, "tokens hidden"]]:
    """log softmax(hidden weightᵀ + bias)[target] of each token, and its gradient in `hidden`.

    Returns:
        log-probabilities (tokens,) in nats, and their gradients (tokens, hidden), both in the dtype of `hidden`.
    """
    log_probs = hidden.new_empty(len(hidden))
    gradient = torch.empty_like(hidden)
    rows_of_all = operand(hidden, output)
    blocks = _blocks(len(hidden), len(output.rows), FEWEST_ROWS, hidden.device)
    largest = blocks[0].stop if blocks else 0
    space = output.rows.new_empty(2, largest, len(output.rows))  # logits and probabilities, for every block in turn
    for rows in blocks:
        size = rows.stop - rows.start
        values = logits(rows_of_all[rows], output, out=space[0, :size])
        probabilities = torch.softmax(values, 1, out=space[1, :size])
        log_probs[rows] = _log_prob_of(targets[rows], values, probabilities, hidden.dtype)
        gradient[rows] = output.rows[targets[rows]]
        gradient[rows] -= probabilities @ output.rows
    return log_probs, gradient


def _log_prob_of(
    targets: Int[Tensor, " rows"],
    values: Float[Tensor, "rows classes"],
    probabilities: Float[Tensor, "rows classes"],
    dtype: torch.dtype,
) -> Float[Tensor, " rows"]:
    """log p(target), from logits and their softmax: one kernel has gone over them, and no other needs to.

    A probability so small that it is 0 has no logarithm; then logits are compared with that of the likeliest word,
    whose probability never is. A GPU does so always, since to ask whether it must is to wait for it.
    """
    right = probabilities.gather(1, targets[:, None]).squeeze(1).to(dtype)
    if not asking_is_free(right) or not bool((right > torch.finfo(probabilities.dtype).tiny).all()):
        above = values.gather(1, targets[:, None]).squeeze(1).to(dtype) - values.amax(1)
        return above + probabilities.amax(1).to(dtype).log()
    return right.log()


def asking_is_free(values: Tensor) -> bool:
    """Whether the host can look at values without waiting for a device."""
    return values.device.type == "cpu"


class _LogProb(torch.autograd.Function):
    """log p(target) of each token, differentiable once in hidden states, weights and bias."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 (torch's own)
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        targets: Tensor,
        precision: Precision,
    ) -> Tensor:
        """Log-probabilities, by blocks of tokens."""
        output = prepare(weight, bias, precision)
        rows_of_all = operand(hidden, output)
        log_probs, normaliser = (hidden.new_empty(len(hidden)) for _ in range(2))
        compiled = native.softmax(hidden, output.weight.dtype)
        for rows in _blocks(len(hidden), len(weight), FEWEST_ROWS, hidden.device):
            values = logits(rows_of_all[rows], output)
            if compiled is not None:
                normaliser[rows], log_probs[rows] = compiled.normaliser(values, targets[rows])
                continue
            probabilities = values.softmax(1, dtype=hidden.dtype)
            log_probs[rows] = _log_prob_of(targets[rows], values, probabilities, hidden.dtype)
            right = values.gather(1, targets[rows, None]).squeeze(1).to(hidden.dtype)
            normaliser[rows] = right - log_probs[rows]
        ctx.save_for_backward(hidden, weight, bias, targets, normaliser)
        ctx.precision = precision
        return log_probs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """Gradients, by blocks of the vocabulary."""
        hidden, weight, bias, targets, normaliser = ctx.saved_tensors
        output = prepare(weight, bias, ctx.precision)
        rows = operand(hidden, output)
        scaled = (hidden * -slope[:, None]).to(output.rows.dtype)
        of_hidden, of_weight, of_bias = torch.zeros_like(hidden), torch.empty_like(weight), torch.zeros_like(bias)
        compiled = native.softmax(hidden, output.weight.dtype)
        for classes in _blocks(len(weight), len(hidden), FEWEST_CLASSES, hidden.device):
            values, own = logits(rows, output, classes), of_bias[classes]
            if compiled is not None:
                product = compiled.excess(values, targets, normaliser, slope, classes.start, own)
            else:
                product = _excess(values.to(hidden.dtype), targets, normaliser, slope, classes, own).to(values.dtype)
            of_weight[classes] = product.T @ scaled
            of_hidden += product @ output.rows[classes]
        of_hidden.mul_(-slope[:, None])
        return of_hidden, of_weight, of_bias, None, None


def _excess(
    values: Float[Tensor, "tokens classes"],
    targets: Int[Tensor, " tokens"],
    normaliser: Float[Tensor, " tokens"],
    slope: Float[Tensor, " tokens"],
    classes: slice,
    of_bias: Float[Tensor, " classes"],
) -> Float[Tensor, "tokens classes"]:
    """Probabilities of some classes, less 1 at the target, in place of their logits (see `native.Softmax.excess`)."""
    excess = values.sub_(normaliser[:, None]).exp_()
    place = targets - classes.start
    inside = (place >= 0) & (place < classes.stop - classes.start)
    place = place.clamp(0, classes.stop - classes.start - 1)
    excess.scatter_add_(1, place[:, None], -inside.to(values.dtype)[:, None])
    of_bias -= slope @ excess
    return excess


def log_prob(
    hidden: Float[Tensor, "tokens hidden"],
    weight: Float[Tensor, "classes hidden"],
    bias: Float[Tensor, " classes"],
    targets: Int[Tensor, " tokens"],
    precision: Precision = "fp32",
) -> Float[Tensor, " tokens"]:
    """log softmax(hidden weightᵀ + bias)[target] of each token in nats, differentiable once in all three."""
    result: Tensor = _LogProb.apply(hidden, weight, bias, targets, precision)  # type: ignore[no-untyped-call]
    return result
