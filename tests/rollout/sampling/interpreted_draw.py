"""The cases of test_fused_draw.py in Triton's interpreter, which has to be chosen before Triton is imported.

Prints JSON: case -> what differs from the plain way.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.rollout.sampled import CONFIG, prompts, settings
from torch import Tensor

os.environ["TRITON_INTERPRET"] = "1"

from lifecycle.batch import Kept
from lifecycle.model import build
from lifecycle.rollout import Engine
from lifecycle.rollout.sampling import draw as drawing
from lifecycle.rollout.sampling import fused_draw, on_device
from lifecycle.rollout.sampling.draw import Drawn
from lifecycle.rollout.sampling.noted import Noted
from lifecycle.rollout.sampling.on_device import DeviceSampling
from lifecycle.rollout.sampling.parameters import Sampling, uniforms
from lifecycle.rollout.sampling.row_sets import RowSets
from lifecycle.rollout.scheduler import NUMBER, POSITION, SEED

OPTIONS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "greedy": {"temperature": 0.0},
    "cold": {"temperature": 1e-6},
    "one": {"top_k": 1},
    "top-k": {"top_k": 40},
    "wide top-k": {"top_k": 290},
    "wider than the vocabulary": {"top_k": 5000},
    "tiny top-p": {"top_p": 0.001},
    "top-p": {"top_p": 0.9, "temperature": 0.7},
    "wide top-p": {"top_p": 0.9999},
    "whole top-p": {"top_p": 1.0},
    "min-p": {"min_p": 0.05},
    "whole min-p": {"min_p": 1.0},
    "wide min-p": {"min_p": 1e-6},
    "all three": {"top_k": 30, "top_p": 0.8, "min_p": 0.1, "temperature": 0.8},
    "top-p and min-p": {"top_p": 0.95, "min_p": 0.01},
    "penalty and bans": {"top_k": 40, "repetition_penalty": 1.3, "banned_ids": (0, 7, 299)},
    "many bans": {"top_k": 298, "banned_ids": tuple(range(3, 200, 2))},
}
MANY = ("nothing", "greedy", "top-k", "top-p", "all three")
"""Drawn for many rows, too, and from logits that are no numbers."""


def logits(R: int, V: int) -> Tensor:
    """Of each kind that a search could stumble over, some rows."""
    z = 3 * torch.randn(R, V, generator=torch.Generator().manual_seed(V))
    if R > 1:
        z[1] = torch.round(z[1])  # many are equal
        z[2] = 0.25  # all are
    if R > 3:
        z[3] = torch.round(z[3]) * 0.75e-5  # neighbours are nearer than TIE
        z[4, 10:14] = z[4].max() + 5
        z[5], z[5, 100] = -200.0, 10.0
    return z


def differs(z: Tensor, options: dict[str, Any]) -> list[str]:
    """What the kernel draws otherwise than torch, which draws as on an accelerator."""
    R, V = z.shape
    u = torch.rand(R, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    u[-1] = 0.0
    seen = torch.rand(R, V, generator=torch.Generator().manual_seed(6)) < 0.1
    settings = DeviceSampling(Sampling(max_new_tokens=1, **options), vocab=V, device=z.device)
    wanted = drawing.draw(z, u, settings, seen_RV=seen)
    ids, facts, kept = fused_draw.fused_draw(z, u, settings, seen_RV=seen, sets=True)
    drawn, found = wanted.ids >= 0, []
    if not torch.equal(ids, wanted.ids):
        found.append(f"ids are {ids.tolist()}, not {wanted.ids.tolist()}")
    for name, mine, theirs in zip(Drawn._fields[1:4], facts, wanted[1:4], strict=True):
        if not torch.allclose(mine[drawn], theirs[drawn], rtol=1e-5, atol=1e-5):
            found.append(f"{name} are {mine.tolist()}, not {theirs.tolist()}")
    if kept is None or not isinstance(wanted.kept, Tensor):
        return found if kept is wanted.kept else [*found, "one has sets, the other has none"]
    mask_RV = kept.kept(kept.counts_L).mask(slice(0, R), V)
    if not torch.equal(mask_RV[drawn], wanted.kept[drawn]):
        found.append(f"sets of {mask_RV.sum(-1).tolist()}, not of {wanted.kept.sum(-1).tolist()}")
    return found


def cases() -> Iterator[tuple[str, Tensor, dict[str, Any]]]:
    """Name, logits and settings."""
    for name, options in OPTIONS.items():
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            yield f"{name}, {str(dtype)[6:]}", logits(3, 300).to(dtype), options
        yield f"{name}, several blocks", logits(1, 1100), options
    for name in MANY:
        yield f"{name}, many rows", logits(65, 523).bfloat16(), OPTIONS[name]
        z = logits(7, 600)
        z[0, 5], z[1, 7], z[2, 3], z[3] = math.nan, math.inf, -math.inf, -math.inf
        yield f"{name}, no numbers", z, OPTIONS[name]
        yield f"{name}, of every second column", logits(3, 600)[:, ::2], OPTIONS[name]


def differs_kept() -> list[str]:
    """Steps whose sets are few, wide and all, noted and listed again."""
    R, V, found = 3, 1100, list[str]()
    noted, table = Noted(4, torch.device("cpu")), torch.zeros(5, 4, dtype=torch.long, device="cpu")
    noted._has_kernels, u, draws = True, torch.full((R,), 0.5, dtype=torch.float64), list[Kept]()
    forms: list[dict[str, Any]] = [{"top_k": 40}, {"top_k": 700}, {"min_p": 1e-30}, {"top_k": 40}]
    for step, options in enumerate(forms):
        settings = DeviceSampling(Sampling(max_new_tokens=1, **options), vocab=V, device=u.device)
        z = logits(R, V) * (step + 1)
        ids, facts, sets = fused_draw.fused_draw(z, u, settings, seen_RV=None, sets=True)
        drawn = Drawn(ids, facts[0], facts[1], facts[2], sets)
        noted.set_up(table[:, :R], drawn, None, None)
        noted.note(table[:, :R], drawn, None, None)
        wanted_RV = drawing.draw(z, u, settings).kept
        assert isinstance(wanted_RV, Tensor)
        draws.append(Kept.of_mask(wanted_RV))
    sets = RowSets.joined([noted.sets(step, R) for step in range(len(draws))])
    listed, wanted = sets.kept(sets.counts_L), Kept.joined(draws)
    for name in ("offsets", "ids"):
        if not torch.equal(getattr(listed, name), getattr(wanted, name)):
            found.append(name)
    return found


def differs_engine() -> list[str]:
    """Rollouts of an engine that draws by the kernel."""
    model, found = build(CONFIG, seed=1), list[str]()
    sampling = settings(max_new_tokens=3, top_k=5, repetition_penalty=1.2)
    wanted = Engine(model, slots=2).generate(prompts(3), sampling, seed=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(on_device, "available", SimpleNamespace(is_there=lambda device: True))
        drawn = Engine(model, slots=2).generate(prompts(3), sampling, seed=0)
    for name, mine, theirs in (
        ("ids", drawn.token_ids, wanted.token_ids),
        ("sets", drawn.kept.ids, wanted.kept.ids),
        ("sizes of sets", drawn.kept.offsets, wanted.kept.offsets),
        ("logprobs", drawn.logprobs.round(decimals=4), wanted.logprobs.round(decimals=4)),
    ):
        if not torch.equal(mine, theirs):
            found.append(name)
    return found


def differs_noted(penalised: bool) -> list[str]:
    """What the two small kernels of a step do otherwise than torch, in two steps of 130 rows of 140."""
    S, B, V = 140, 130, 50
    given = torch.Generator().manual_seed(1)
    table = torch.randint(-(2**62), 2**62, (5, S), generator=given)
    table[POSITION], table[NUMBER] = torch.arange(S) % 4 - 1, torch.arange(S) % 7
    u, wanted = (
        fused_draw.fused_uniforms(table[SEED, :B], table[NUMBER, :B]),
        uniforms(table[SEED, :B], table[NUMBER, :B]),
    )
    found = [] if torch.equal(u, wanted) else ["uniforms"]
    states = []
    for kernels in (False, True):
        noted, own, seen = Noted(S, table.device), table.clone(), torch.zeros(S, V, dtype=torch.bool)
        noted._has_kernels = kernels
        draws = torch.Generator().manual_seed(2)
        for _ in range(2):
            ids = torch.randint(0, V, (B,), generator=draws)
            logprobs, full, entropy = torch.randn(3, B, generator=draws)
            drawn = Drawn(ids, logprobs, full, entropy, None)
            noted.set_up(own[:, :B], drawn, seen if penalised else None, None)
            noted.note(own[:, :B], drawn, seen if penalised else None, None)
        states.append([own, seen, *noted.first(2, B), noted._step])
    names = ("table", "seen", "ids", "facts", "step")
    return found + [name for name, a, b in zip(names, *states, strict=True) if not torch.equal(a, b)]


if __name__ == "__main__":
    np.seterr(all="ignore")  # the interpreter computes with it, and logits are to be no numbers
    fused_draw.BLOCK = 512
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "eager_on_cpu", lambda _: False)
        found = {name: differs(z, options) for name, z, options in cases()} | {"sets of several steps": differs_kept()}
    found["engine"] = differs_engine()
    print(json.dumps(found | {f"noted, penalised {way}": differs_noted(way) for way in (False, True)}))
