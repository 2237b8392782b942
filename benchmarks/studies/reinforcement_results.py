"""The table and the picture of benchmarks/studies/reinforcement.py, from the answers that its runs kept.

    python benchmarks/studies/reinforcement_results.py      writes benchmarks/results/reinforcement.json and
                                                            docs/reinforcement_study.png, and prints the table

Every share is of greedy answers to the same 1,000 held-out expressions. A gain is against the start of the same seed,
and of GRPO besides against the best measurement of more fine-tuning, question by question, with the 95 % interval of
the paired bootstrap.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from lifecycle.report.page.canvas import LIGHT, canvas, png, style
from lifecycle.rewards.interval import gain

ROOT = Path(__file__).parents[2]
RESULTS, PICTURE = ROOT / "benchmarks/results/reinforcement.json", ROOT / "docs/reinforcement_study.png"
DOMAIN = "expressions"
KINDS = {
    "grpo": "GRPO",
    "continued": "fine-tuning continued",
    "gently": "fine-tuning continued at 3e-4",
    "grpo_short": "GRPO, 100 steps",
    "rloo": "RLOO",
    "ppo": "PPO",
    "spo": "SPO",
    "shuffled": "rewards shuffled",
}
LONG, METHODS = ("grpo", "continued", "gently"), ("grpo_short", "rloo", "ppo", "spo", "shuffled")
SAMPLES = 256  # of a step of each method

Marks = Mapping[int, Mapping[str, bool]]
"""Step -> question -> whether its answer was right."""


def read(run: Path) -> Marks:
    """The marks of every measurement of a run."""
    marks: dict[int, dict[str, bool]] = defaultdict(dict)
    for line in (run / "answers.jsonl").read_text().splitlines():
        answer = json.loads(line)
        if answer["domain"] == DOMAIN:
            marks[answer["step"]][answer["prompt"]] = bool(answer["right"])
    return marks


def measured(marks: Marks) -> dict[str, Any]:
    """Shares by step, and the gains of the end and of the best step."""
    share = {step: statistics.mean(said.values()) for step, said in sorted(marks.items())}
    best = max(share, key=lambda step: share[step])
    return {"right": share, "gain": _gain(marks, max(share)), "best_step": best, "best_gain": _gain(marks, best)}


def _gain(marks: Marks, step: int) -> list[float]:
    asked = sorted(marks[0])
    before, after = ([marks[at][question] for question in asked] for at in (0, step))
    return [round(value, 4) for value in gain(before, after)]


def found(outputs: Path) -> dict[str, dict[str, Any]]:
    """What is known of each kind of run, by seed."""
    results: dict[str, dict[str, Any]] = {}
    for kind in KINDS:
        for run in sorted(outputs.glob(f"{kind}_s[0-9]*/run.json")):
            if json.loads(run.read_text())["status"] == "finished":
                name, seed = run.parent.name, run.parent.name.rsplit("_s", 1)[1]
                seconds = json.loads((outputs / f"{name}.cpu.json").read_text())
                results.setdefault(kind, {})[seed] = {**measured(read(run.parent)), "cpu_seconds": seconds}
    for seed in set(results.get("grpo", {})) & set(results.get("continued", {})):
        best = read(outputs / f"continued_s{seed}")[results["continued"][seed]["best_step"]]
        marks = read(outputs / f"grpo_s{seed}")
        results["grpo"][seed]["above_continued"] = _gain({0: best, 1: marks[max(marks)]}, 1)
    return results


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """A line a run, and what GRPO's end is above the best measurement of more fine-tuning."""
    lines = [
        "| run | seed | steps | CPU s | before | after | gain, points | best on the way |",
        "|---" + "|---:" * 7 + "|",
    ]
    for kind, seeds in results.items():
        for seed, one in seeds.items():
            steps = sorted(one["right"])
            best = f"{one['right'][one['best_step']]:.1%} ({one['best_step']})"
            ends = f"{one['right'][steps[0]]:.1%} | {one['right'][steps[-1]]:.1%}"
            cost = f"{steps[-1]} | {one['cpu_seconds']:.0f}"
            lines.append(f"| {KINDS[kind]} | {seed} | {cost} | {ends} | {_points(one['gain'])} | {best} |")
    above = [
        f"seed {seed} {_points(one['above_continued'])}"
        for seed, one in results.get("grpo", {}).items()
        if "above_continued" in one
    ]
    return "\n".join([*lines, "GRPO's end above the best of fine-tuning continued, points: " + ", ".join(above)])


def _points(shares: Sequence[float]) -> str:
    more, low, high = (100 * share for share in shares)
    return f"{more:+.1f} ({low:+.1f} to {high:+.1f})"


def picture(results: Mapping[str, Mapping[str, Any]]) -> bytes:
    """By time beside more fine-tuning, by samples beside other methods and shuffled rewards: means over the seeds in a
    band from the least to the greatest."""
    shares = [share for seeds in results.values() for one in seeds.values() for share in one["right"].values()]
    with rc_context(style(LIGHT)):
        figure, (left, right) = canvas(
            LIGHT, "Right greedy answers to 1,000 held-out expressions", height=4.4, columns=2
        )
        for axes, kinds, told in ((left, LONG, "seconds of computing, one core"), (right, METHODS, "samples drawn")):
            for kind, color in zip(kinds, _colors(kinds), strict=True):
                if kind in results:
                    _curve(axes, list(results[kind].values()), kinds is LONG, KINDS[kind], color)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
            axes.set_xlabel(told)
            axes.set_ylim(min(shares) - 0.02, max(shares) + 0.12)  # above the curves is room for their names
            if axes.get_legend_handles_labels()[1]:
                axes.legend(loc="upper left", frameon=False, fontsize=9.5, ncols=len(kinds) // 2)
    return png(figure)


def _colors(kinds: Sequence[str]) -> Sequence[str]:
    """GRPO has one colour in both panels."""
    others = (LIGHT.series[1], LIGHT.series[6]) if kinds is LONG else LIGHT.series[2:6]
    return (LIGHT.series[0], *others)


def _curve(axes: Axes, seeds: Sequence[Mapping[str, Any]], by_time: bool, name: str, color: str) -> None:
    steps = sorted(set.intersection(*(set(one["right"]) for one in seeds)))
    end = statistics.mean(one["cpu_seconds"] for one in seeds) if by_time else SAMPLES * steps[-1]
    x = [step / steps[-1] * end for step in steps]
    y = [[one["right"][step] for one in seeds] for step in steps]
    axes.plot(x, [statistics.mean(at) for at in y], color=color, linewidth=2, marker="o", ms=4, label=name)
    axes.fill_between(x, [min(at) for at in y], [max(at) for at in y], color=color, alpha=0.15, linewidth=0)


def write(outputs: Path) -> None:
    """The results as JSON, the picture, and the table on the screen."""
    results = found(outputs)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    if results:
        PICTURE.write_bytes(picture(results))
    print(table(results))


if __name__ == "__main__":
    write(Path("outputs/reinforcement"))
