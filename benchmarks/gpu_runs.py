"""The rest of gpu.py: tests that need a GPU, what a checkpoint holds training up, a killed run, FSDP2 on one device.

Runs are those of the command line, on the text that every Python carries.
"""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_sizes import Sizes, timed

ROOT = Path(__file__).parents[1]
STEPS, SAVED, BATCH = 12, 6, 2048


def tests(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Those marked `gpu`; each skips itself on a CPU."""
    # warnings are errors in this project, but not those of whatever versions a GPU's image has
    options = ["-q", "-m", "gpu", "-p", "no:cacheprovider", "-o", "filterwarnings=default"]
    command = [sys.executable, "-m", "pytest", *options, *_tests()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    yield {"said": lines[-1] if lines else ""}
    if done.returncode:
        raise RuntimeError("\n".join([*lines[-8:], *done.stderr.splitlines()[-8:]]))


def _tests() -> list[str]:
    """Files that hold one: collecting all others would take longer than running them."""
    return [str(file) for file in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in file.read_text()]


def checkpoint(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Weights and AdamW's moments of the model, saved twice in the background: training waits `blocked_s`."""
    from lifecycle.checkpoint.io import CommittedCheckpointIO
    from lifecycle.model import build

    model = build(sizes.config(), seed=1, device=sizes.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.01)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    state = {"global_step": 1, "state_dict": model.state_dict(), "optimizer_states": [optimizer.state_dict()]}
    writer = CommittedCheckpointIO()
    with tempfile.TemporaryDirectory() as folder:
        for name in ("first", "second"):
            path = Path(folder, name)
            blocked = timed(sizes, lambda path=path: writer.save_checkpoint(state, path))  # type: ignore[misc]
            started = time.perf_counter()
            writer.wait()
            total = blocked + time.perf_counter() - started
            size = sum(file.stat().st_size for file in path.rglob("*"))
            yield {name: {"blocked_s": round(blocked, 3), "total_s": round(total, 2), "gb": round(size / 1e9, 2)}}
        writer.teardown()


def resume(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """A run killed after its first checkpoint and started again has the losses of one that went through."""
    with tempfile.TemporaryDirectory() as folder:
        command = _command(sizes, "whole")
        _finish(command, folder)
        wanted = _losses(Path(folder, "outputs/whole"))
        yield {"steps": len(wanted)}
        command = _command(sizes, "killed")
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        saved = Path(folder, f"outputs/killed/checkpoints/step-{SAVED:08d}")
        while process.poll() is None and not saved.exists():
            time.sleep(0.05)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
        yield {"killed": process.returncode == -signal.SIGKILL}
        _finish(command, folder)
        found = _losses(Path(folder, "outputs/killed"))
        worst = max(abs(found[step] - loss) for step, loss in wanted.items())
        yield {"greatest_difference": worst, "equal": found == wanted}


def fsdp(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """The same run whole and sharded over one device."""
    with tempfile.TemporaryDirectory() as folder:
        losses = {}
        for strategy in ("auto", "fsdp"):
            _finish([*_command(sizes, strategy), f"hardware.strategy={strategy}"], folder)
            losses[strategy] = _losses(Path(folder, "outputs", strategy))
            yield {strategy: {"last_loss": losses[strategy][STEPS]}}
        worst = max(abs(losses["fsdp"][step] - loss) for step, loss in losses["auto"].items())
        yield {"greatest_difference": round(worst, 5)}


def _command(sizes: Sizes, run: str) -> list[str]:
    more = [f"run={run}", f"stage.max_steps={STEPS}", f"stage.global_batch_tokens={BATCH}"]
    more += [f"checkpoint.every_steps={SAVED}", "logging.every_steps=1", "validation.every_steps=null"]
    return [sys.executable, "-m", "lifecycle", *sizes.run, *more]


def _finish(command: list[str], folder: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-1500:]}")


def _losses(folder: Path) -> dict[int, float]:
    with (folder / "metrics.csv").open() as file:
        return {int(row["step"]): float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")}
