"""One Adam by three hands: the same steps, and saved state of the same form."""

import copy
import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from textebm.errors import UsageError
from textebm.model.optimisers import adam, clip


class FusedAdam(torch.optim.Optimizer):
    """Stands in for apex.optimizers.FusedAdam: its arguments, defaults, equations, and a step counted in the group."""

    def __init__(
        self,
        params,
        lr=1e-3,
        bias_correction=True,
        betas=(0.9, 0.999),
        eps=1e-8,
        adam_w_mode=True,
        weight_decay=0.0,
        amsgrad=False,
        set_grad_none=True,
    ):
        if amsgrad:
            raise RuntimeError("FusedAdam does not support the AMSGrad variant.")
        defaults = {"lr": lr, "bias_correction": bias_correction, "betas": betas, "eps": eps}
        super().__init__(params, {**defaults, "weight_decay": weight_decay})
        self.adam_w_mode = adam_w_mode

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            first, second = group["betas"]
            for parameter in group["params"]:
                state, gradient = self.state[parameter], parameter.grad
                if not state:
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
                if self.adam_w_mode:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                else:
                    gradient = gradient + group["weight_decay"] * parameter
                state["exp_avg"].mul_(first).add_(gradient, alpha=1 - first)
                state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
                mean = state["exp_avg"] / (1 - first ** group["step"])
                square = state["exp_avg_sq"] / (1 - second ** group["step"])
                parameter.sub_(group["lr"] * mean / (square.sqrt() + group["eps"]))


@pytest.fixture
def apex(monkeypatch) -> None:
    """A stand-in of that name, whether or not the real one is there."""
    package, module = ModuleType("apex"), ModuleType("apex.optimizers")
    module.FusedAdam = FusedAdam
    package.optimizers = module
    monkeypatch.setitem(sys.modules, "apex", package)
    monkeypatch.setitem(sys.modules, "apex.optimizers", module)


def parameters() -> list[nn.Parameter]:
    source = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(size, generator=source)) for size in ((4, 3), (5,))]


def make(kind, decay=0.1):
    owned = parameters()
    return owned, adam(kind, owned, 0.05, (0.5, 0.9), decay)


def advance(owned, optimiser, steps, seed=1) -> None:
    source = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for parameter in owned:
            parameter.grad = torch.randn(parameter.shape, generator=source)
        optimiser.step()


@pytest.mark.usefixtures("apex")
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_all_take_the_same_steps(decay):
    ends = []
    for kind in ("plain", "fused", "apex"):
        owned, optimiser = make(kind, decay)
        advance(owned, optimiser, 7)
        ends.append(torch.cat([p.detach().flatten() for p in owned]))
    assert (ends[0] - torch.cat([p.detach().flatten() for p in parameters()])).abs().min() > 0.01
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("apex")
@pytest.mark.parametrize("saved_by", ["plain", "fused", "apex"])
@pytest.mark.parametrize("resumed_by", ["plain", "fused", "apex"])
def test_state_that_one_saved_another_goes_on_with(saved_by, resumed_by):
    owned, optimiser = make(saved_by)
    advance(owned, optimiser, 3)
    described = copy.deepcopy(optimiser.state_dict())
    assert {key for values in described["state"].values() for key in values} == {"exp_avg", "exp_avg_sq", "step"}
    assert all(float(values["step"]) == 3 for values in described["state"].values())
    others, other = make(resumed_by)
    with torch.no_grad():
        for mine, theirs in zip(others, owned, strict=True):
            mine.copy_(theirs)
    other.load_state_dict({"state": described["state"], "param_groups": other.state_dict()["param_groups"]})
    for one, its in ((owned, optimiser), (others, other)):
        advance(one, its, 4, seed=2)
    for mine, theirs in zip(others, owned, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("apex")
def test_saving_leaves_apexs_own_state_alone():
    owned, optimiser = make("apex")
    advance(owned, optimiser, 2)
    optimiser.state_dict()
    assert all(set(state) == {"exp_avg", "exp_avg_sq"} for state in optimiser.state.values())


def test_apex_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "apex", None)
    with pytest.raises(UsageError, match="NVIDIA Apex is not installed"):
        make("apex")


@pytest.mark.usefixtures("apex")
def test_apex_cannot_run_here(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("apex.optimizers.FusedAdam requires cuda extensions")

    monkeypatch.setattr(sys.modules["apex.optimizers"], "FusedAdam", refuse)
    with pytest.raises(UsageError, match="requires cuda extensions"):
        make("apex")


@pytest.mark.parametrize("largest", [0.0, 0.5, 1e6])
def test_clipping(largest):
    owned = parameters()
    for parameter in owned:
        parameter.grad = parameter.detach().clone()
    whole = torch.cat([p.grad.flatten() for p in owned]).norm()
    torch.testing.assert_close(clip(owned, largest), whole)
    left = torch.cat([p.grad.flatten() for p in owned]).norm()
    torch.testing.assert_close(left, torch.tensor(0.5) if largest == 0.5 else whole, rtol=1e-4, atol=0)
