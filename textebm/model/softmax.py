"""Log-likelihood of words under a vocabulary-sized softmax, and its gradient, without keeping the matrix of logits.

A Langevin chain needs log p(word) and its gradient in the hidden states, for fixed weights. Both come out of one pass
over blocks of tokens: a block's logits live only while the block is worked on, so memory does not grow with tokens ×
vocabulary.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Precision = Literal["fp32", "bf16"]

BLOCK_LOGITS = 500_000
"""Logits held at once on a CPU: 2 MB in float32, which stays in a core's cache (a GPU gets 64 times as many)."""


def output_weights(
    weight: Float[Tensor, "vocabulary hidden"], precision: Precision
) -> Float[Tensor, "vocabulary hidden"]:
    """The output layer's weights as the products will use them, detached; made once a chain."""
    return weight.detach().to(torch.bfloat16) if precision == "bf16" else weight.detach()


def log_prob_and_grad(
    hidden: Float[Tensor, "tokens hidden"],
    weight: Float[Tensor, "vocabulary hidden"],
    bias: Float[Tensor, " vocabulary"],
    targets: Int[Tensor, " tokens"],
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, "tokens hidden"]]:
    """log softmax(hidden weightᵀ + bias)[target] of each token, and its gradient in `hidden`.

    The products run in the dtype of `weight` (see `output_weights`); log-sum-exp and sums in the dtype of `hidden`.

    Returns:
        log-probabilities (tokens,) in nats, and their gradients (tokens, hidden).
    """
    log_probs = torch.empty(len(hidden), dtype=hidden.dtype, device=hidden.device)
    gradient = torch.empty_like(hidden)
    logits_at_once = BLOCK_LOGITS * (64 if hidden.is_cuda else 1)
    block = max(1, logits_at_once // len(weight))
    for begin in range(0, len(hidden), block):
        rows = slice(begin, begin + block)
        logits = (hidden[rows].to(weight.dtype) @ weight.T).to(hidden.dtype).add_(bias)
        right = logits.gather(1, targets[rows, None])
        largest = logits.amax(1, keepdim=True)
        unnormalised = logits.sub_(largest).exp_()  # one exponential serves the normaliser and the gradient
        total = unnormalised.sum(1, keepdim=True)
        log_probs[rows] = (right - largest - total.log()).squeeze(1)
        expected = (unnormalised.to(weight.dtype) @ weight).to(hidden.dtype) / total
        gradient[rows] = weight[targets[rows]].to(hidden.dtype) - expected
    return log_probs, gradient
