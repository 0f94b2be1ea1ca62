"""The softmax of judges: gradients against automatic differentiation, and scores that no block size changes."""

import pytest
import torch

from textebm.hardware import native_precision
from textebm.lm_eval import large_softmax
from textebm.lm_eval.large_softmax import LargeSoftmax, log_probs

TOKENS, CLASSES, HIDDEN = 37, 50, 12


@pytest.fixture
def layer(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, weights, bias and targets; logits of a size that matters."""
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator) * 2
    weight = torch.randn(CLASSES, HIDDEN, generator=generator)
    bias = torch.randn(CLASSES, generator=generator)
    return hidden, weight, bias, torch.randint(CLASSES, (TOKENS,), generator=generator)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("block", [1, 7, 1000])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 0.02)])
def test_gradients_are_those_of_autograd(
    layer, with_bias: bool, block: int, precision, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large_softmax, "TRAINING_LOGITS", block * CLASSES)
    hidden, weight, bias, targets = layer
    exact = [t.double().requires_grad_() for t in (hidden, weight, bias)]
    logits = exact[0] @ exact[1].T + (exact[2] if with_bias else 0)
    loss = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    (0.25 * loss).backward()
    found = LargeSoftmax(precision).gradients(hidden, weight, bias if with_bias else None, targets, scale=0.25)
    assert float(found.log_prob) == pytest.approx(-float(loss.detach()), rel=tolerance)
    pairs = [(found.hidden, exact[0].grad), (found.weight, exact[1].grad)]
    pairs += [(found.bias, exact[2].grad)] if with_bias else []
    for ours, theirs in pairs:
        assert ours is not None and theirs is not None and ours.dtype == torch.float32
        assert float((ours - theirs).norm() / theirs.norm()) < tolerance
    assert (found.bias is None) == (not with_bias)


def test_a_second_call_does_not_disturb_the_first(layer) -> None:
    """The buffers are used again; what was handed out is not."""
    hidden, weight, _, targets = layer
    softmax = LargeSoftmax("fp32")
    first = softmax.gradients(hidden, weight, None, targets, 1.0)
    kept = first.weight.clone()
    softmax.gradients(hidden[:5] * 3, weight, None, targets[:5], 1.0)
    assert torch.equal(first.weight, kept)


def test_an_impossible_word_has_a_finite_log_probability() -> None:
    """Its probability is 0 in float32, and its loss is 200 nats."""
    hidden, weight = torch.ones(1, 1), torch.tensor([[100.0], [-100.0]])
    found = LargeSoftmax("fp32").gradients(hidden, weight, None, torch.tensor([1]), 1.0)
    assert float(found.log_prob) == -200
    assert float(log_probs(hidden, weight, None, torch.tensor([1]))) == -200


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_scores_do_not_depend_on_blocks(layer, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_softmax, "SCORING_LOGITS", block * CLASSES)
    hidden, weight, bias, targets = layer
    exact = (hidden.double() @ weight.double().T + bias).log_softmax(1).gather(1, targets[:, None]).squeeze(1)
    found = log_probs(hidden, weight, bias, targets)
    assert found.dtype == torch.float64
    assert torch.allclose(found, exact, rtol=1e-6, atol=2e-6)


def test_precision_is_bf16_only_where_it_is_native(monkeypatch: pytest.MonkeyPatch) -> None:
    for supported, wanted in ((True, "bf16"), (False, "fp32")):
        for name in ("avx512_bf16", "amx_tile"):
            monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda s=supported: s, raising=False)
        assert native_precision(torch.device("cpu")) == wanted
    assert native_precision(torch.device("meta")) == "fp32"
