"""Muon for hidden matrices and AdamW for the rest, as one torch optimizer.

Muon keeps a momentum M of the gradient G and steps along its nearest orthogonal matrix instead of along itself:

    M <- momentum M + (1 - momentum) G;   U = (1 - momentum) G + momentum M  (Nesterov)
    W <- (1 - lr decay) W - lr scale NS(U),   scale = 0.2 sqrt(max(m, n))    "match_rms_adamw" (arXiv 2502.16982, eq. 4)
                                              scale = sqrt(max(1, m / n))    "original" (K. Jordan's Muon)

NS is five quintic Newton-Schulz steps: every singular value ends near 1 (0.68 to 1.13) instead of exactly at it, which
does as well and needs matrix products alone. With `match_rms_adamw` an update has the RMS of a usual AdamW update, so
rates and decay carry over from AdamW.

The stacked matrices of a mixture of experts are so many matrices, each made orthogonal on its own.

Shapes: E experts, M rows, N columns of a weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from lifecycle.bounds import Count, NotNegative, PartOrNone, Positive, Share
from lifecycle.optim.groups import fusable, group, is_stack, kind_of, trainable
from lifecycle.system.shards import is_sharded

Scale = Literal["match_rms_adamw", "original"]

# Chosen by K. Jordan for the steepest slope at 0 that still keeps (0, 1] inside a band around 1.
QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrix_MN: Tensor, *, steps: int) -> Tensor:
    """The approximate polar factor of a matrix (M, N), or of each matrix of a stack (E, M, N): the same singular
    vectors, singular values near 1.

    Products run in bf16 on CUDA (five steps forgive its rounding, and it is an order faster), elsewhere in the dtype
    that came; the result has the dtype of the products. A matrix of zeros stays zero.
    """
    # norm in the dtype that came: bf16 would round it, and the iteration needs singular values of at most 1
    stacked = matrix_MN.ndim == 3
    norm = torch.linalg.vector_norm(matrix_MN, dim=(-2, -1) if stacked else None, keepdim=stacked)
    x = matrix_MN / norm.clamp(min=1e-7)
    x = x.to(torch.bfloat16) if x.is_cuda else x
    tall = x.size(-2) > x.size(-1)
    x = x.mT if tall else x
    a, b, c = QUINTIC
    add = torch.baddbmm if stacked else torch.addmm
    for _ in range(steps):
        gram = x @ x.mT
        x = add(x, add(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def update_scale(shape: torch.Size, scale: Scale) -> float:
    """The factor of an orthogonal update of this (unsharded) shape."""
    rows, columns = shape[-2:]
    return 0.2 * math.sqrt(max(rows, columns)) if scale == "match_rms_adamw" else math.sqrt(max(1.0, rows / columns))


@dataclass(frozen=True, kw_only=True)
class Muon:
    """Settings under `stage.optimizer`; `build` makes the optimizer for a model.

    lr: peak rate of the hidden matrices; adamw_lr: of the head, norms and biases (None: lr); embedding_lr: of the
    embedding (None: adamw_lr). momentum_start: of the first step, from which it rises evenly to `momentum` in the share
    `momentum_rise` of the run; None: it is `momentum` throughout. betas, eps: of the AdamW part. grad_clip: as in
    AdamW, applied by the stage.
    """

    lr: Positive | None
    adamw_lr: Positive | None
    embedding_lr: Positive | None
    weight_decay: NotNegative
    momentum: PartOrNone
    nesterov: bool
    newton_schulz_steps: Count
    scale: Scale
    betas: tuple[PartOrNone, PartOrNone]
    eps: Positive
    grad_clip: Positive | None
    momentum_start: PartOrNone | None = None
    momentum_rise: Share = 0.0

    def momentum_at(self, progress: float) -> float:
        """The momentum where the share `progress` of the run's steps has been taken; a function of the step alone, so
        that a resumed run goes on with the same."""
        if self.momentum_start is None or progress >= self.momentum_rise:
            return self.momentum
        return self.momentum_start + (self.momentum - self.momentum_start) * progress / self.momentum_rise

    def build(self, model: nn.Module) -> MuonAdamW:
        """The optimizer over the trainable parameters of a model (plain or sharded).

        Groups: `muon` (hidden matrices, stacked ones too), `decay` (head, other shapes), `no_decay`, `norm`,
        `embedding`.
        """
        members: dict[str, list[nn.Parameter]] = {"muon": [], "decay": [], "no_decay": [], "norm": [], "embedding": []}
        for name, parameter in trainable(model.named_parameters()).items():
            kind = kind_of(name, parameter)
            matrices = parameter.ndim == 2 or is_stack(name, parameter)
            place = {"matrix": "muon" if matrices else "decay", "head": "decay", "vector": "no_decay"}
            members[place.get(kind, kind)].append(parameter)
        assert self.lr is not None
        base = self.lr if self.adamw_lr is None else self.adamw_lr
        rates = {"muon": self.lr, "embedding": base if self.embedding_lr is None else self.embedding_lr}
        groups = []
        for name, parameters in members.items():
            extra: dict[str, Any] = {
                "betas": tuple(self.betas),
                "eps": self.eps,
                "fused": fusable(parameters),
            }
            if name == "muon":
                extra = {
                    "momentum": self.momentum,
                    "nesterov": self.nesterov,
                    "newton_schulz_steps": self.newton_schulz_steps,
                    "scale": self.scale,
                }
            decay = 0.0 if name in ("no_decay", "norm") else self.weight_decay
            groups.append(group(name, parameters, lr=rates.get(name, base), weight_decay=decay, **extra))
        return MuonAdamW([entry for entry in groups if entry["params"]])


class MuonAdamW(torch.optim.Optimizer):
    """Muon on groups named `muon` or `..._muon`, AdamW on every other; made by `Muon.build`.

    A parameter without a gradient is not changed, nor is its state. Sharded parameters (DTensor) have sharded momenta;
    a matrix is gathered for its orthogonalisation only, which every rank computes, keeping its own shard of the result.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient; returns what `closure` returns, if one came."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for entry in self.param_groups:
            parameters = [parameter for parameter in entry["params"] if parameter.grad is not None]
            if parameters and entry["name"].endswith("muon"):
                self._muon(entry, parameters)
            elif parameters:
                self._adamw(entry, parameters)
        return loss

    def _muon(self, entry: dict[str, Any], parameters: list[nn.Parameter]) -> None:
        momentum, lr = entry["momentum"], entry["lr"]
        for parameter in parameters:
            gradient = parameter.grad
            assert gradient is not None
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            state["momentum"].lerp_(gradient, 1 - momentum)
            update = gradient.lerp(state["momentum"], momentum) if entry["nesterov"] else state["momentum"]
            direction = self._direction(update, entry["newton_schulz_steps"]).to(parameter.dtype)
            parameter.mul_(1 - lr * entry["weight_decay"])
            parameter.add_(direction, alpha=-lr * update_scale(parameter.shape, entry["scale"]))

    def _direction(self, update: Tensor, steps: int) -> Tensor:
        """The orthogonal direction, in the layout of the update."""
        if not is_sharded(update):
            return orthogonalise(update, steps=steps)
        from torch.distributed.tensor import DTensor, Replicate  # here: see `shards`

        mesh = update.device_mesh
        if update.ndim == 3 and all(placement.is_shard(0) for placement in update.placements):  # whole experts here
            mine = orthogonalise(update.to_local(), steps=steps)
            return DTensor.from_local(
                mine, mesh, update.placements, run_check=False, shape=update.shape, stride=update.stride()
            )
        whole = orthogonalise(update.full_tensor(), steps=steps)
        replicated = DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim, run_check=False)
        return replicated.redistribute(placements=update.placements)

    def _adamw(self, entry: dict[str, Any], parameters: list[nn.Parameter]) -> None:
        fused = entry["fused"]
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                # the fused kernel counts on the device; elsewhere a count on the CPU saves kernel launches
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device if fused else "cpu")
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            parameters,  # type: ignore[arg-type]
            [parameter.grad for parameter in parameters],  # type: ignore[misc]
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=fused,
            amsgrad=False,
            beta1=entry["betas"][0],
            beta2=entry["betas"][1],
            lr=entry["lr"],
            weight_decay=entry["weight_decay"],
            eps=entry["eps"],
            maximize=False,
        )
