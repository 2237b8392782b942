"""Copies the moments of one optimizer into another over the same parameters, of which some may have more rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lifecycle.errors import UserError
from lifecycle.system.shards import shared_out

CRITIC = "critic_"
"""How the names of groups begin that are of a critic, which nothing goes on from."""


@torch.no_grad()
def carry_over(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Load `state` (an optimizer's `state_dict`, whole tensors) into a fresh `optimizer`.

    Groups are matched by name and parameters by their place in it; the rates stay the new ones. A parameter that has
    more rows than it had keeps its moments, and its new rows start at zero. Raises UserError where they do not fit.
    """
    groups = [group for group in state["param_groups"] if not group["name"].startswith(CRITIC)]
    theirs = {group["name"]: group["params"] for group in groups}
    ours = {group["name"]: group["params"] for group in optimizer.param_groups}
    if {name: len(params) for name, params in theirs.items()} != {name: len(params) for name, params in ours.items()}:
        raise UserError(
            f"stage.optimizer_state=parent: the parent's optimizer has the groups {', '.join(theirs)}, this one has "
            f"{', '.join(ours)}: choose the parent's optimizer (optimizer=...), or stage.optimizer_state=fresh"
        )
    for group in optimizer.param_groups:
        on_device = group.get("fused") or group.get("capturable")  # such a kernel counts its steps there
        for number, parameter in zip(theirs[group["name"]], group["params"], strict=True):
            found = state["state"].get(number, {})
            optimizer.state[parameter] = {
                key: _fitted(value, parameter, group["name"], count_on=parameter.device if on_device else None)
                for key, value in found.items()
            }


def forget_rows(state: Mapping[str, Any], first: int) -> None:
    """Zero the moments of row `first` and all after it in embedding and head, in place: rows that were padding, and
    are tokens from now on, start as new ones do."""
    for group in state["param_groups"]:
        if group["name"] in ("embedding", "head"):
            for number in group["params"]:
                for value in state["state"].get(number, {}).values():
                    if isinstance(value, Tensor) and value.dim() > 0:
                        value[first:] = 0


def _fitted(value: Any, parameter: Tensor, group: str, *, count_on: torch.device | None) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.dim() == 0:
        return torch.empty_like(value, device=count_on).copy_(value)
    if value.shape[1:] != parameter.shape[1:] or len(value) > len(parameter):
        raise UserError(
            f"stage.optimizer_state=parent: a parameter of group {group} is {tuple(parameter.shape)}, the parent's "
            f"moments of it are {tuple(value.shape)}: type stage.optimizer_state=fresh"
        )
    whole = torch.zeros(parameter.shape, dtype=value.dtype, device=value.device)
    whole[: len(value)] = value
    return shared_out(whole, parameter)
