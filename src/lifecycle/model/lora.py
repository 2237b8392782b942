"""Low-rank adapters: what they are, on which matrices they sit, and what they add to them.

    LoRA (arXiv 2106.09685)      W' = W + s B A              s = alpha / rank; rsLoRA (2312.03732): alpha / sqrt(rank)
    DoRA (arXiv 2402.09353)      W' = m (W + s B A) / |W + s B A|        m: a trained length of every row, at first |W|

A is drawn, B begins at zero, so W' is W at the start. A stack of experts has one A and one B for each of them, in the
two matrices that `peft` holds them in: A (E R, in) goes through the experts first, B (out, R E) through the ranks.

Shapes: E experts, R rank, in and out of a matrix.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lifecycle.bounds import Count, PartOrNone, Positive
from lifecycle.errors import UserError
from lifecycle.system.seeds import derive


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """The adapter of a run; each key is explained in conf/adapter/lora.yaml."""

    rank: Count
    alpha: Positive
    dropout: PartOrNone
    targets: Literal["all"] | list[str]
    rslora: bool
    dora: bool
    bits: Literal[4] | None
    lr_ratio: Positive
    merge: bool

    def __post_init__(self) -> None:
        """Refuse what names nothing."""
        if isinstance(self.targets, list) and not self.targets:
            raise UserError("adapter.targets is []; wanted names of layers such as [q_proj,v_proj], or all")

    @property
    def scale(self) -> float:
        """What B A is multiplied with."""
        return float(self.alpha / (self.rank**0.5 if self.rslora else self.rank))


class Factors(NamedTuple):
    """The trained tensors beside one matrix, or beside one stack of experts. magnitude (out,): of DoRA, else None."""

    a: Tensor
    b: Tensor
    magnitude: Tensor | None

    def to(self, device: torch.device, dtype: torch.dtype) -> Factors:
        """The same there."""
        return Factors(*(None if part is None else part.to(device, dtype) for part in self))  # type: ignore[arg-type]


def applied(weight: Tensor, factors: Factors, adapter: Adapter) -> Tensor:
    """W', in the dtype of W: a matrix (out, in), or a stack (E, out, in)."""
    a, b, magnitude = factors.to(weight.device, weight.dtype)
    if weight.ndim == 3:
        a_ERi, b_EoR = a.unflatten(0, (len(weight), -1)), b.unflatten(1, (-1, len(weight))).permute(2, 0, 1)
        return weight.baddbmm(b_EoR, a_ERi, alpha=adapter.scale)
    moved = weight.addmm(b, a, alpha=adapter.scale)
    if magnitude is None:
        return moved
    return moved * (magnitude / torch.linalg.vector_norm(moved, dim=1))[:, None]


def first_factors(place: str, weight: Tensor, adapter: Adapter, *, seed: int) -> Factors:
    """What the training of one matrix begins with, on its device: A uniform in +-1 / sqrt(in), from the run's seed and
    the matrix' name alone, B zero."""
    experts, (out, inner) = len(weight) if weight.ndim == 3 else 1, weight.shape[-2:]
    generator = torch.Generator("cpu").manual_seed(derive(seed, "adapter", place))
    a = torch.empty(experts * adapter.rank, inner, dtype=torch.float32, device="cpu")
    a.uniform_(-(inner**-0.5), inner**-0.5, generator=generator)
    b = torch.zeros(out, adapter.rank * experts, dtype=torch.float32, device=weight.device)
    return Factors(a.to(weight.device), b, torch.linalg.vector_norm(weight.float(), dim=1) if adapter.dora else None)


def chosen(matrices: Mapping[str, Sequence[str]], adapter: Adapter) -> list[str]:
    """The matrices that the adapter sits on, in their order. matrices: all that it could, each with the dotted names
    that it goes by. A target is one of these names or consecutive parts of one: `q_proj`, `ffn`, `blocks.3.attention`.

    Raises UserError that lists the targets which name nothing, each with the nearest spelling.
    """
    if adapter.targets == "all":
        return list(matrices)
    known = {part for names in matrices.values() for name in names for part in name.split(".") if not part.isdecimal()}
    faults = []
    for target in adapter.targets:
        if not any(_means(target, name) for names in matrices.values() for name in names):
            near = difflib.get_close_matches(target.rpartition(".")[2], known, n=3)
            faults.append(f"{target!r}" + (f" (did you mean {' or '.join(near)}?)" if near else ""))
    if faults:
        raise UserError(
            f"adapter.targets: there is no layer of the name {', '.join(faults)} that an adapter can sit on; "
            f"embedding, head, norms and routers are left as they are. Wanted all, or names: {', '.join(sorted(known))}"
        )
    return [
        place
        for place, names in matrices.items()
        if any(_means(target, name) for target in adapter.targets for name in names)
    ]


def _means(target: str, name: str) -> bool:
    """Whether the target is consecutive parts of the name."""
    return f".{target}." in f".{name}."
