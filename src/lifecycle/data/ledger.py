"""What was planned, what was seen, how often, from which source, and what was dropped and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lifecycle.data.clean.source import Source
from lifecycle.data.stream.pieces import State

Ledger = dict[str, Any]


def merge(states: Mapping[int, State], sources: list[Source], planned: Mapping[str, float], *, streams: int) -> Ledger:
    """The ledger of a run of `streams` streams from the states of all of them, and of the tail where there is one, and
    the tokens `planned` of each source (in the view `prompt`: prompts): the schema of `ledger.json`."""
    ordered = [states[s] for s in sorted(states)]
    total = sum(planned.values())
    table = {
        source.name: {
            "domain": source.domain,
            "weight": planned[source.name] / max(total, 1.0),
            "planned_tokens": round(planned[source.name]),
            "seen_tokens": sum(state["seen"][source.name] for state in ordered),
            **_rows([state["totals"][source.name] for state in ordered], streams),
        }
        for source in sources
    }
    seen = sum(row["seen_tokens"] for row in table.values())
    padding = sum(state["padding"] for state in ordered)
    return {"tokens": seen, "sources": table, "padding_share": padding / max(1, padding + seen)}


def usage(states: Iterable[Mapping[str, Any]], sources: Sequence[str], streams: int) -> Tensor:
    """(sources, 2) float64: what some of the `streams` streams contribute to the number of passes, and to the number of
    rows left out."""
    out = torch.zeros(len(sources), 2, dtype=torch.float64, device="cpu")
    for state in states:
        for i, name in enumerate(sources):
            totals = state["totals"][name]
            left_out = sum(n for verdict, n in totals["counts"].items() if not verdict.startswith(("kept:", "held:")))
            out[i] += torch.tensor([totals["epochs"] / streams, left_out], dtype=torch.float64, device="cpu")
    return out


def too_long(states: Iterable[Mapping[str, Any]], sources: Sequence[str]) -> Tensor:
    """(sources, 2) float64, over some streams: rows left out for their length, and those left out for nothing else."""
    out = torch.zeros(len(sources), 2, dtype=torch.float64, device="cpu")
    for state in states:
        for i, name in enumerate(sources):
            totals = state["totals"][name]
            kept = sum(n for verdict, n in totals["counts"].items() if verdict.startswith("kept:"))
            out[i] += torch.tensor(
                [totals.get("too_long", {}).get("dropped", 0), kept], dtype=torch.float64, device="cpu"
            )
    return out


def _rows(totals: list[Mapping[str, Any]], streams: int) -> dict[str, Any]:
    counts, too_long = Counter[str](), Counter[str]()
    for total in totals:
        counts.update(total["counts"])
        too_long.update(total.get("too_long", {}))
    by_kind: dict[str, dict[str, int]] = {"kept": {}, "held": {}, "dropped": {}, "bad": {}}
    for key, number in sorted(counts.items()):
        kind, _, reason = key.partition(":")
        by_kind[kind][reason] = number
    return {
        "epochs": sum(total["epochs"] for total in totals) / streams,
        "rows": counts.total(),
        "masked": by_kind["kept"].get("masked", 0),
        "dropped": by_kind["dropped"],
        "bad": by_kind["bad"],
        "held_out": sum(by_kind["held"].values()),
        **({"too_long": dict(sorted(too_long.items()))} if too_long else {}),
    }
