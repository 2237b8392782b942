"""Held-out bits per byte of runs, beside their tokens and seconds: the table of benchmarks/studies/recipe.sh.

    python benchmarks/studies/bits_per_byte.py outputs/recipe/muon_s1 outputs/recipe/muon_s2 ...

Runs of one kind end in _s and their seed. Printed is the last measurement: each domain, and all held-out text together
(the mean of the domains by their bytes), mean and standard deviation over the seeds. The first kind named is what the
others are compared with, seed by seed: where seeds are equal, so are the order of the data and, but for the switch, the
initial weights. Seconds are those of training, held-out text included.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from lifecycle.loggers import read_metrics

ALL = "all"


def bits(run: Path) -> dict[str, float]:
    """Bits per byte of each domain at the last measurement of a run, and of all held-out text."""
    notes = json.loads((run / "run.json").read_text())
    columns = read_metrics(run / "metrics.csv")
    last = {key: values[-1] for key, values in columns.items() if values[-1] is not None}
    found, total_bits, total_bytes = {}, 0.0, 0.0
    for domain, facts in notes["data"]["validation"].items():
        found[domain] = last[f"valid/{domain}/bits_per_byte"]
        told = facts["tokens"] * last[f"valid/{domain}/loss"] / math.log(2)
        total_bits, total_bytes = total_bits + told, total_bytes + told / found[domain]
    return {**found, ALL: total_bits / total_bytes}


def kinds(runs: Sequence[Path]) -> dict[str, dict[str, Path]]:
    """Finished runs by kind and seed, in the order that they came in."""
    found: dict[str, dict[str, Path]] = defaultdict(dict)
    for run in runs:
        name, _, seed = run.name.rpartition("_s")
        if json.loads((run / "run.json").read_text())["status"] == "finished":
            found[name][seed] = run
    return found


def told(values: Sequence[float]) -> str:
    """Mean and standard deviation; a single value alone."""
    mean = f"{statistics.mean(values):.4f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.4f}"


def table(found: Mapping[str, Mapping[str, Path]]) -> str:
    """A line a kind; the last column is the mean difference of the seeds that the first kind has too."""
    measured = {kind: {seed: bits(run) for seed, run in runs.items()} for kind, runs in found.items()}
    first = next(iter(measured.values()))
    columns = list(next(iter(first.values())))
    lines = [
        f"| run | seeds | tokens | seconds | {' | '.join(columns)} | against the first |",
        "|---" + "|---:" * (len(columns) + 4) + "|",
    ]
    for kind, by_seed in measured.items():
        notes = [json.loads((run / "run.json").read_text()) for run in found[kind].values()]
        tokens, seconds = (round(statistics.mean(note[key] for note in notes)) for key in ("tokens", "seconds"))
        values = " | ".join(told([one[column] for one in by_seed.values()]) for column in columns)
        paired = [by_seed[seed][ALL] - first[seed][ALL] for seed in by_seed if seed in first]
        against = f"{statistics.mean(paired):+.4f}" if paired and by_seed is not first else ""
        lines.append(f"| {kind} | {len(by_seed)} | {tokens:,} | {seconds} | {values} | {against} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(kinds([Path(run) for run in sys.argv[1:]])))
