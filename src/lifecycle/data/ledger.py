"""What was planned, what was seen, how often, from which source, and what was dropped and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from lifecycle.data.source import Source
from lifecycle.data.stream import State

Ledger = dict[str, Any]


def merge(
    states: Mapping[int, State], sources: list[Source], weights: Mapping[str, float], planned_tokens: int
) -> Ledger:
    """The ledger of a run from the states of all its streams: the schema of `ledger.json`."""
    streams = [states[s] for s in sorted(states)]
    table = {
        source.name: {
            "domain": source.domain,
            "weight": weights[source.name],
            "planned_tokens": round(weights[source.name] * planned_tokens),
            "seen_tokens": sum(state["seen"][source.name] for state in streams),
            **_rows([state["totals"][source.name] for state in streams]),
        }
        for source in sources
    }
    seen = sum(row["seen_tokens"] for row in table.values())
    padding = sum(state["padding"] for state in streams)
    return {"tokens": seen, "sources": table, "padding_share": padding / max(1, padding + seen)}


def _rows(totals: list[Mapping[str, Any]]) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    for total in totals:
        counts.update(total["counts"])
    by_kind: dict[str, dict[str, int]] = {"kept": {}, "held": {}, "dropped": {}, "bad": {}}
    for key, number in sorted(counts.items()):
        kind, _, reason = key.partition(":")
        by_kind[kind][reason] = number
    return {
        "epochs": sum(total["epochs"] for total in totals) / len(totals) if totals else 0.0,
        "rows": counts.total(),
        "dropped": by_kind["dropped"],
        "bad": by_kind["bad"],
        "held_out": sum(by_kind["held"].values()),
    }
