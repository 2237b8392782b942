"""Parameter groups: the learning rate and the weight decay of every parameter.

    matrix, head      weights of two or more dimensions            rate `lr`            weight decay
    embedding         token embedding (a tied head is the same)    rate `embedding_lr`  weight decay
    norm              norms and routers, which shards leave whole  rate `lr`            no decay
    vector            biases, scalars, gates                       rate `lr`            no decay

The kind follows from the shape and from the parts of the dotted name, so it is the same for a plain, a compiled and a
sharded model. Every group carries `name` and `lr_peak`; a stage sets `group["lr"] = group["lr_peak"] * factor(step)`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lifecycle.errors import UserError

ParameterKind = Literal["matrix", "head", "embedding", "norm", "vector"]

EMBEDDING_PARTS = frozenset({"embed", "embed_tokens", "embedding", "embeddings", "token_embedding", "wte"})
HEAD_PARTS = frozenset({"head", "lm_head", "unembed", "score"})
ROUTER, GATE = "router", "shared_gate"
"""Routers: tokens are scored by products with their rows. Weight decay would make the scores of all experts alike, and
an orthogonal update would ignore the lengths of the rows."""


def kind_of(name: str, parameter: Tensor) -> ParameterKind:
    """The kind of a parameter (see the top of the file), from its dotted name and its (unsharded) shape."""
    parts = set(name.split("."))
    if ROUTER in parts or (parameter.ndim < 2 and any(part.endswith("norm") for part in parts)):
        return "norm"
    if parameter.ndim < 2 or GATE in parts:
        return "vector"
    if parts & EMBEDDING_PARTS:
        return "embedding"
    return "head" if parts & HEAD_PARTS else "matrix"


def is_stack(name: str, parameter: Tensor) -> bool:
    """Whether a parameter (E, M, N) holds the stacked matrices of the experts of a mixture."""
    return parameter.ndim == 3 and "experts" in name.split(".")


def trainable(named_parameters: Iterable[tuple[str, nn.Parameter]]) -> dict[str, nn.Parameter]:
    """The trainable parameters by name, each once: a tied parameter under the first of its names.

    Raises `UserError` when there are none, or when a weight is below fp32: optimizer state takes the dtype of its
    parameter, and moments in bf16 lose updates smaller than 1/256 of a weight.
    """
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            found.setdefault(id(parameter), (name, parameter))
    if not found:
        raise UserError(
            "stage.optimizer has nothing to train: every parameter of the model is frozen. "
            "Unfreeze some, or choose an adapter."
        )
    low = [f"{name} ({p.dtype})" for name, p in found.values() if p.dtype not in (torch.float32, torch.float64)]
    if low:
        raise UserError(
            f"stage.optimizer needs float32 weights, but {len(low)} are not, {low[0]} first. Load the weights as "
            "float32 and set hardware.precision=bf16: compute is then in bf16 and the master copy in float32."
        )
    return dict(found.values())


def group(name: str, parameters: list[nn.Parameter], *, lr: float, weight_decay: float, **extra: Any) -> dict[str, Any]:
    """One entry of `torch.optim.Optimizer.param_groups`; `lr` is both the present rate and the peak of the schedule."""
    return {"params": parameters, "name": name, "lr": lr, "lr_peak": lr, "weight_decay": weight_decay, **extra}


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]], *, lr: float, embedding_lr: float | None, weight_decay: float
) -> list[dict[str, Any]]:
    """Groups `decay`, `no_decay`, `norm` and `embedding` for AdamW; every trainable parameter is in exactly one.

    `embedding_lr=None` means `lr`. Embeddings decay like matrices. Groups without members are left out.
    """
    members: dict[ParameterKind, list[nn.Parameter]] = {
        "matrix": [],
        "head": [],
        "embedding": [],
        "norm": [],
        "vector": [],
    }
    for name, parameter in trainable(named_parameters).items():
        members[kind_of(name, parameter)].append(parameter)
    groups = [
        group("decay", members["matrix"] + members["head"], lr=lr, weight_decay=weight_decay),
        group("no_decay", members["vector"], lr=lr, weight_decay=0.0),
        group("norm", members["norm"], lr=lr, weight_decay=0.0),
        group(
            "embedding",
            members["embedding"],
            lr=lr if embedding_lr is None else embedding_lr,
            weight_decay=weight_decay,
        ),
    ]
    return [entry for entry in groups if entry["params"]]


def fusable(parameters: Iterable[Tensor]) -> bool:
    """Whether torch's fused AdamW kernel takes all of them (plain tensors and DTensors on CPU or CUDA)."""
    return all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
