"""Every fine-tuning stage at toy size, and steps for it whose rows are all packed differently."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from tests.stages.test_distill import distill
from tests.stages.test_distill_reason import CLOSE, OPEN
from tests.stages.test_dpo import ADAPTER, dpo, laid, pairs, singles
from tests.stages.test_reward import reward
from tests.stages.test_reward import whole as compared
from tests.stages.test_step import MODEL, optimization, stage

from lifecycle.batch import Example
from lifecycle.data.stream.packing import Piece, Row, best_fit
from lifecycle.model import build
from lifecycle.stages.base import Stage
from lifecycle.stages.beside.frozen import FrozenNetwork
from lifecycle.stages.distill_reason import DistillReason
from lifecycle.stages.distillation.on_policy import OnPolicy
from lifecycle.stages.run.setup import ParentWeights, Setup
from lifecycle.stages.sft import Sft

ANY = "stages/step/collectives.py any_rank"
LENGTH, ROWS = 64, 3
"""Positions of a row, rows of a micro-batch."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """make: the stage, from the folder of its caches and facts of its setup. items: those of a micro-batch, by its
    number. waits: beside those of every stage, in three steps of two micro-batches and two validations of as many."""

    make: Callable[..., Stage]
    items: Callable[[int], list[Piece]]
    view: str
    waits: dict[str, int] = field(default_factory=dict)

    def steps(self, count: int, *, micro: int = 2) -> list[list[Any]]:
        """Each of some micro-batches of the same shape, packed as the data engine packs."""
        return [[self._rows(micro * step + n) for n in range(micro)] for step in range(count)]

    def _rows(self, number: int) -> Any:
        """Rows of padding fill the micro-batch up."""
        found = best_fit(self.items(number), LENGTH)[:ROWS]
        return laid([*found, *[Row([], LENGTH)] * (ROWS - len(found))], self.view, LENGTH)


def conversations(step: int) -> list[Piece]:
    """Some more in every step, of two sources."""
    draw = np.random.default_rng(step)
    made = []
    for number in range(6 + step % 5):
        n = int(draw.integers(6, 30))
        ids = draw.integers(1, 60, n + 1).astype(np.int32)
        ids[n // 2], ids[n // 2 + 2] = OPEN, CLOSE
        made.append(Piece(Example(ids=ids, trained=np.arange(n + 1) >= n // 2), number % 2))
    return made


def plain(loss: Any, **facts: Any) -> Sft:
    return Sft(model=MODEL, optimization=optimization(), loss=loss, setup=_setup(**facts))


def adapted(**facts: Any) -> Sft:
    """With an adapter in the place of its weights."""
    weights = ParentWeights(
        read=lambda: build(MODEL, seed=1).state_dict(), sha256=lambda: "parent", cache=lambda: Path("unused")
    )
    return plain("nll", parent=weights, read_weights=weights.read, adapter=ADAPTER, **facts)


def reasons(**facts: Any) -> DistillReason:
    known = {"<a>": OPEN, "</a>": CLOSE}
    return DistillReason(
        model=MODEL,
        optimization=optimization(),
        tags=[*known],
        tag_weight=10.0,
        answer_weight=2.0,
        setup=_setup(token_id=known.get, **facts),
    )


def _setup(**facts: Any) -> Setup:
    return replace(stage().setup_facts, **facts)


def on_policy(form: Any) -> OnPolicy:
    return OnPolicy(share=0.5, form=form, max_new_tokens=6, temperature=1.0, slots=4)


def _chat(make: Callable[..., Stage], **waits: int) -> Case:
    return Case(make=make, items=conversations, view="chat", waits=waits)


def _pairs(make: Callable[..., Stage], **waits: int) -> Case:
    return Case(make=make, items=pairs, view="preference", waits=waits)


def _singles(make: Callable[..., Stage], **waits: int) -> Case:
    return Case(make=make, items=singles, view="unpaired", waits=waits)


DRAWN = {"rollout/decode_step.py run": 8, "rollout/output.py rollout": 6}

CASES = {
    "sft": _chat(lambda folder, **facts: plain("nll", **facts)),
    "sft, dft": _chat(lambda folder, **facts: plain("dft", **facts)),
    "sft, adapter": _chat(lambda folder, **facts: adapted(**facts)),
    "distill": _chat(lambda folder, **facts: distill(cross_entropy=0.5, **facts)),
    "distill, known": _chat(
        lambda folder, **facts: distill(top_k=3, cache=folder, **facts),
        **{"stages/distillation/known.py _add": 6, ANY: 12},
    ),
    "distill, on-policy": _chat(lambda folder, **facts: distill(on_policy=on_policy("supervised"), **facts), **DRAWN),
    "distill, policy gradient": _chat(
        lambda folder, **facts: distill(on_policy=on_policy("policy_gradient"), **facts), **DRAWN
    ),
    "distill_reason": _chat(lambda folder, **facts: reasons(**facts)),
    "dpo": _pairs(lambda folder, **facts: _with(dpo(), facts)),
    "dpo, known": _pairs(
        lambda folder, **facts: _with(dpo(reference="cached", cache=folder), facts),
        **{"stages/preference/cached.py _add": 6, ANY: 8},
    ),
    "dpo, adapter": _pairs(lambda folder, **facts: _with(dpo(adapter=ADAPTER), facts)),
    "dpo, no reference": _pairs(lambda folder, **facts: _with(dpo("simpo"), facts)),
    "dpo, sorted": _pairs(lambda folder, **facts: _with(dpo("aot"), facts)),
    "kto": _singles(lambda folder, **facts: _with(dpo("kto"), facts)),
    "kto, known": _singles(
        lambda folder, **facts: _with(dpo("kto", reference="cached", cache=folder), facts),
        **{"stages/preference/cached.py _add": 12, ANY: 16},
    ),
    "reward": Case(make=lambda folder, **facts: _with(reward(), facts), items=compared, view="comparison"),
}
"""By name; `known`: what the reference or the teacher says is computed before the first step."""


def _with(made: Stage, facts: dict[str, Any]) -> Stage:
    """The stage and what it holds beside it, in a run with these facts."""
    made.setup_facts = replace(made.setup_facts, **facts)
    made.meter.log_every = made.setup_facts.log_every
    if isinstance(made.beside, FrozenNetwork):
        made.beside._setup = made.setup_facts
    return made
