"""Adam by three hands: torch's fused kernel, torch's plain loop over tensors, or NVIDIA Apex.

All three follow the same equations (Kingma and Ba, 2015, weight decay added to the gradient), and their saved state has
the same form.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from textebm.errors import UsageError


def adam(
    kind: str, parameters: Iterable[nn.Parameter], lr: float, betas: tuple[float, float], weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """An Adam optimiser.

    Args:
        kind: `fused` (torch's single kernel), `plain` (torch's loop), or `apex` (NVIDIA Apex's FusedAdam).
        parameters: what is optimised.
        lr: learning rate.
        betas: β₁ and β₂.
        weight_decay: added to the gradient, times the parameter.

    Raises:
        UsageError: `apex` is asked for, and is not installed or cannot run here.
    """
    if kind == "apex":
        return _apex(parameters, lr, betas, weight_decay)
    fused = kind == "fused"
    return torch.optim.Adam(parameters, lr=lr, betas=betas, weight_decay=weight_decay, fused=fused, foreach=False)


def _apex(
    parameters: Iterable[nn.Parameter], lr: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.Optimizer:
    try:
        from apex.optimizers import FusedAdam
    except ImportError:
        raise UsageError(
            "optimiser.kind is apex, and NVIDIA Apex is not installed: install it, or take fused, which is torch's own"
        ) from None
    try:
        made: torch.optim.Optimizer = FusedAdam(
            parameters, lr=lr, betas=betas, weight_decay=weight_decay, adam_w_mode=False
        )
    except RuntimeError as error:
        raise UsageError(f"optimiser.kind is apex, and Apex cannot run here: {error}; take fused instead") from None
    made.register_state_dict_post_hook(_steps_to_state)
    made.register_load_state_dict_pre_hook(_steps_from_state)
    return made


def _steps_to_state(optimiser: torch.optim.Optimizer, described: dict[str, Any]) -> None:
    """Apex counts steps once a group, torch once a parameter; what is saved has torch's form."""
    for live, group in zip(optimiser.param_groups, described["param_groups"], strict=True):
        for index in group["params"]:
            if index in described["state"]:
                step = torch.as_tensor(live.get("step", 0), dtype=torch.float32)
                described["state"][index] = {**described["state"][index], "step": step}


def _steps_from_state(optimiser: torch.optim.Optimizer, described: dict[str, Any]) -> dict[str, Any]:
    """The other way round, when state is loaded."""
    state = {index: dict(values) for index, values in described["state"].items()}
    groups = []
    for group in described["param_groups"]:
        steps = [state[index].pop("step") for index in group["params"] if index in state and "step" in state[index]]
        groups.append({**group, "step": int(steps[0])} if steps else group)
    return {"state": state, "param_groups": groups}


def clip(parameters: list[nn.Parameter], largest: float) -> Tensor:
    """Clip gradients to a norm (0: leave them as they are); returns the norm before."""
    return nn.utils.clip_grad_norm_(parameters, largest if largest > 0 else torch.inf, foreach=True)
