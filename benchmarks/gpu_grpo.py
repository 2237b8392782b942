"""Reinforcement learning through the command line: seconds of a step by phase, and a run of five minutes.

Weights are random, so completions have nearly their whole length. The reward is for their number of words: it differs
within every group, so that all samples are trained on, and a policy that learns gets more of it.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import undisturbed
from benchmarks.gpu_sizes import Sizes
from benchmarks.grpo_step import keys, make_inputs, mean, metrics
from benchmarks.reference import VOCABULARY
from lifecycle import config

WARM, TIMED = 2, 4
RUN_S = 300
"""Seconds of the run."""
ENDING_S = 30
"""That its last checkpoint may take."""


def step(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Of `group` prompts, samples and new tokens: seconds of a step, and tokens a second of its phases."""
    prompts, samples, new = sizes.group
    with tempfile.TemporaryDirectory() as folder:
        rows = _run(sizes, Path(folder), None, prompts, samples, new, ["stage.max_steps=" + str(WARM + TIMED)])
    timed = rows[WARM:]
    step_s, sampling_s, grading_s = (mean(timed, f"perf/{name}_s") for name in ("step", "sampling", "grading"))
    drawn = prompts * samples * mean(timed, "rollout/length")
    update_s = step_s - sampling_s - grading_s
    yield {"step_s": round(step_s, 3), "sampling_s": round(sampling_s, 3), "grading_s": round(grading_s, 4)}
    yield {"update_s": round(update_s, 3), "completion": round(mean(timed, "rollout/length"), 1)}
    yield {"sampled_per_s": round(drawn / sampling_s), "trained_per_s": round(drawn / update_s)}
    yield {"memory_gb": round(mean(timed[-1:], "perf/memory_gb"), 2)}
    yield {"ratio_max_deviation": max(float(row["policy/ratio_max_deviation"]) for row in timed)}


def run(sizes: Sizes, model: str) -> Iterator[dict[str, Any]]:
    """Five minutes of one model, by its config's name: steps, the reward at both ends, tokens a second."""
    on_gpu = sizes.device.type == "cuda"
    prompts, samples, new = (16, 16, 64) if on_gpu else sizes.group
    with tempfile.TemporaryDirectory() as folder:
        more = ["stage.optimizer.lr=1e-4", f"stage.max_steps={1_000_000 if on_gpu else WARM + TIMED}"]
        rows = _run(sizes, Path(folder), model, prompts, samples, new, more)
    yield {"steps": len(rows), "step_s": round(mean(rows[WARM:], "perf/step_s"), 3)}
    tenth = max(1, len(rows) // 10)
    ends = {"reward_first": rows[:tenth], "reward_last": rows[-tenth:]}
    yield {name: round(mean(part, "rollout/reward"), 4) for name, part in ends.items()}
    yield {"sampled_per_s": round(mean(rows[WARM:], "rollout/tokens_per_second"))}
    yield {"ratio_max_deviation": max(float(row["policy/ratio_max_deviation"]) for row in rows)}


def _run(
    sizes: Sizes, folder: Path, model: str | None, prompts: int, samples: int, new: int, more: list[str]
) -> list[dict[str, str]]:
    """Metrics of every step of a command, which is asked to end after `RUN_S`. model: None is that of the sizes."""
    on_gpu = sizes.device.type == "cuda"
    shape = config.build(config.compose([f"model={model}"]).model) if model and on_gpu else sizes.config()
    inputs = folder / "inputs"
    inputs.mkdir()
    make_inputs(inputs, replace(shape, vocab_size=max(shape.vocab_size or 0, VOCABULARY), max_positions=1024))
    words = max(2, new // 2)
    given = ["stage=grpo", *keys(inputs, prompts=prompts, samples=samples, new=new, words=words), *undisturbed(1)]
    given = [one for one in given if not (on_gpu and one.startswith("hardware.micro_batch_tokens"))]
    given += ["hardware=gpu"] if on_gpu else ["hardware=cpu", "hardware.compile=false", "hardware.precision=fp32"]
    command = [sys.executable, "-m", "lifecycle", "run=measured", *given, f"stage.slots={prompts * samples}", *more]
    log = folder / "said.txt"
    with log.open("w") as said:
        process = subprocess.Popen(command, cwd=folder, stdout=said, stderr=subprocess.STDOUT)
        try:
            process.wait(timeout=RUN_S)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # the run saves what it has, and ends
            try:
                process.wait(timeout=ENDING_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    if process.returncode not in (0, 130) or not (folder / "outputs/measured/metrics.csv").exists():
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{log.read_text()[-1500:]}")
    return [row for row in metrics(folder / "outputs/measured") if row.get("perf/step_s")]
