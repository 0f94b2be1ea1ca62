"""A softmax over a vocabulary: log-likelihoods for scoring, gradients for training (written out, not automatic).

The three products of a training step (logits, gradient of the hidden states, gradient of the weights) are most of the
work of a judge. They use buffers that are made once; in `bf16` both factors are rounded to bfloat16, sums are made in
float32, and their results rounded again. Scoring is always in float32, with sums over tokens in float64.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Precision = Literal["fp32", "bf16"]

TRAINING_LOGITS = 8_000_000
"""Logits of a block in training: a step of the recipes' usual size is one block, so that the weights' gradient is one
product."""

SCORING_LOGITS = 500_000
"""Logits of a block in scoring: 2 MB, which stay in a core's cache. A GPU gets 64 times as many."""


def sums_in(device: torch.device) -> torch.dtype:
    """float64, where the device knows it."""
    return torch.float32 if device.type == "mps" else torch.float64


@dataclass(frozen=True)
class Gradients:
    """What a step needs of the softmax.

    Args:
        log_prob: Σ log p(target) in nats; shape ().
        hidden: gradient of −scale Σ log p in the hidden states; shape (tokens, hidden).
        weight: in the weights; shape (classes, hidden).
        bias: in the bias; shape (classes,); None if there is none.
    """

    log_prob: Tensor
    hidden: Tensor
    weight: Tensor
    bias: Tensor | None


class LargeSoftmax:
    """Gradients of a softmax over many classes.

    Args:
        precision: of the products.
    """

    def __init__(self, precision: Precision) -> None:
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._buffers = (torch.empty(0), torch.empty(0))

    def gradients(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, scale: float
    ) -> Gradients:
        """Log-likelihood of the targets, and the gradient of −scale times it.

        Args:
            hidden: float32; shape (tokens, hidden).
            weight: float32; shape (classes, hidden).
            bias: float32; shape (classes,); or None.
            targets: classes; shape (tokens,).
            scale: of the loss.
        """
        hidden, weight = hidden.detach().to(self.dtype), weight.detach().to(self.dtype)
        bias = None if bias is None else bias.detach().to(self.dtype)
        log_prob = torch.zeros((), dtype=sums_in(hidden.device), device=hidden.device)
        of_hidden = torch.empty(hidden.shape, dtype=torch.float32, device=hidden.device)
        of_weight, of_bias = None, None
        block = max(1, TRAINING_LOGITS // len(weight))
        for begin in range(0, len(hidden), block):
            rows = slice(begin, begin + block)
            logits, probs = self._buffer(len(hidden[rows]), weight)
            if bias is None:
                torch.mm(hidden[rows], weight.T, out=logits)
            else:
                torch.addmm(bias, hidden[rows], weight.T, out=logits)
            torch.softmax(logits, 1, out=probs)
            target = targets[rows, None]
            # The largest probability is never near 0, so this is finite where log(probs) would not be.
            largest = logits.amax(1, keepdim=True).float()
            log_prob += (logits.gather(1, target).float() - largest + probs.amax(1, keepdim=True).float().log()).sum()
            probs.scatter_add_(1, target, torch.full_like(target, -1, dtype=self.dtype))  # now d(−log p)/d logits
            of_hidden[rows] = probs @ weight
            product = (probs.T @ hidden[rows]).float()
            of_weight = product if of_weight is None else of_weight.add_(product)
            if bias is not None:
                column = probs.sum(0, dtype=torch.float32)
                of_bias = column if of_bias is None else of_bias.add_(column)
        assert of_weight is not None  # there is a token
        of_bias = None if of_bias is None else of_bias.mul_(scale)
        return Gradients(log_prob, of_hidden.mul_(scale), of_weight.mul_(scale), of_bias)

    def _buffer(self, rows: int, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Two matrices of (rows, classes): fresh memory costs more than what is done in it."""
        wanted = rows * len(weight)
        if self._buffers[0].numel() < wanted or self._buffers[0].device != weight.device:
            one, other = (torch.empty(wanted, dtype=self.dtype, device=weight.device) for _ in range(2))
            self._buffers = (one, other)
        one, other = (buffer[:wanted].view(rows, len(weight)) for buffer in self._buffers)
        return one, other


def log_probs(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """log softmax(hidden weightᵀ + bias)[target] of each token, in float32 products.

    Args:
        hidden: shape (tokens, hidden).
        weight: shape (classes, hidden).
        bias: shape (classes,); or None.
        targets: shape (tokens,).

    Returns:
        float64, in nats; shape (tokens,).
    """
    result = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
    block = max(1, SCORING_LOGITS * (64 if hidden.is_cuda else 1) // len(weight))
    for begin in range(0, len(hidden), block):
        rows = slice(begin, begin + block)
        logits = torch.nn.functional.linear(hidden[rows], weight, bias)
        right = logits.gather(1, targets[rows, None])
        largest = logits.amax(1, keepdim=True)
        total = logits.sub_(largest).exp_().sum(1, keepdim=True)
        result[rows] = (right - largest - total.log()).squeeze(1)
    return (result.cpu() if result.device.type == "mps" else result).double()
