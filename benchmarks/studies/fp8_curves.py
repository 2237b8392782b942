"""Held-out bits per byte while training, in bf16 and with the blocks' products in fp8, from the same seed.

    python benchmarks/studies/fp8_curves.py tensorwise rowwise              # and overrides: model=small seed=2

On a CPU, which has no fp8: torchao rounds the operands as a GPU would be given them, and multiplies in fp32. So it
shows what rounding does to learning, and nothing of speed. What is held out is measured in bf16 in all runs.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args
from unittest import mock

from lifecycle import config
from lifecycle.loggers import read_metrics
from lifecycle.model.layers.gpu.fp8 import Recipe
from lifecycle.run import run
from lifecycle.stages.run.setup import Setup

WORDS = ["stage=pretrain", "model=tiny", "data=python_stdlib", "logger=csv", "stage.max_tokens=1.6e6"]
WORDS += ["stage.global_batch_tokens=4096", "validation.every_steps=50", "validation.tokens=32768"]
WORDS += ["hardware.precision=bf16", "hardware.compile=false", "hardware.workers=0", "checkpoint.every_steps=null"]


def trained(recipe: Recipe | None, words: list[str]) -> dict[int, list[float]]:
    """Step -> held-out bits per byte of prose and of code. hardware.fp8 is refused on a CPU: the network is given the
    recipe here."""
    build = Setup.build
    changed: Any = lambda self, *rest: build(replace(self, fp8=recipe), *rest)  # noqa: E731
    name = f"fp8_curves/{recipe or 'bf16'}"
    with mock.patch.object(Setup, "build", changed) if recipe else nullcontext():
        run(config.compose([*WORDS, *words, f"run={name}"]))
    columns = read_metrics(Path("outputs", name, "metrics.csv"))
    held_out = (columns[f"valid/{domain}/bits_per_byte"] for domain in ("prose", "code"))
    rows = zip(columns["step"], *held_out, strict=True)
    return {int(step): measured for step, *measured in rows if None not in (step, *measured)}


def main(words: list[str]) -> None:
    """Print a table, a line for each measurement: prose / code."""
    recipes: list[Any] = [word for word in words if word in get_args(Recipe)]
    curves = {recipe: trained(recipe, [word for word in words if "=" in word]) for recipe in [None, *recipes]}
    print("| step | bf16 |", *(f"fp8 {recipe} |" for recipe in recipes))
    print("|---|---|", *("---|" for _ in recipes), sep="")
    for step in curves[None]:
        print(f"| {step} |", *(" / ".join(f"{bits:.3f}" for bits in curve[step]) + " |" for curve in curves.values()))


if __name__ == "__main__":
    main(sys.argv[1:])
