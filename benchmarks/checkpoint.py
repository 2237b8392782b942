"""Save and load about 100M fp32 parameters with AdamW (1.2 GB): ours, torch's dcp.async_save (thread), torch.save.

    python -m benchmarks.checkpoint

Every variant runs in its own process. `blocked_s`: until training may go on (the first save apart: it takes the
memory); `total_s`: until the checkpoint is done, which for ours includes sha256 of every file, fsync and the rename,
for the others neither; `load_s`: into the same model and optimizer, files in the page cache, ours verified;
`peak_rss_mb`: of the process, model included, before the first load (`saving`) and at its end.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.common import main, peak_mb

VARIANTS = {"ours": "ours", "dcp_async_thread": "ours", "torch_save": "ours"}
clock = time.perf_counter


def make() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    blocks = [
        nn.Sequential(
            nn.LayerNorm(768),
            nn.Linear(768, 3072),
            nn.GELU(),
            nn.Linear(3072, 768),
            nn.Linear(768, 768),
            nn.Linear(768, 768),
        )
        for _ in range(15)
    ]
    model = nn.ModuleList([nn.Embedding(16384, 768), *blocks])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.01)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    optimizer.state_dict()  # its first call imports a part of torch
    return model, optimizer


def ours(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Callable[[Path], Any], Callable[[Path], Any]]:
    from lifecycle.checkpoint.io import CommittedCheckpointIO

    writer = CommittedCheckpointIO()

    def save(path: Path) -> Callable[[], Any]:
        state = {"global_step": 1, "state_dict": model.state_dict(), "optimizer_states": [optimizer.state_dict()]}
        writer.save_checkpoint(state, path)
        return writer.wait

    def load(path: Path) -> None:
        writer.teardown()
        state = writer.load_checkpoint(path)
        model.load_state_dict(state["state_dict"])
        optimizer.load_state_dict(state["optimizer_states"][0])

    return save, load


def dcp_async_thread(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[Callable[[Path], Any], Callable[[Path], Any]]:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    with tempfile.NamedTemporaryFile(delete=False) as meeting:
        torch.distributed.init_process_group("cpu:gloo", init_method=f"file://{meeting.name}.pg", rank=0, world_size=1)

    def save(path: Path) -> Callable[[], Any]:
        weights, moments = get_state_dict(model, optimizer)
        future: Any = dcp.async_save({"m": weights, "o": moments}, checkpoint_id=path)
        return getattr(future, "upload_completion", future).result

    def load(path: Path) -> None:
        weights, moments = get_state_dict(model, optimizer)
        dcp.load({"m": weights, "o": moments}, checkpoint_id=path)
        set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments)

    return save, load


def torch_save(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[Callable[[Path], Any], Callable[[Path], Any]]:
    def save(path: Path) -> Callable[[], Any]:
        torch.save({"m": model.state_dict(), "o": optimizer.state_dict()}, path)
        return lambda: None

    def load(path: Path) -> None:
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["m"])
        optimizer.load_state_dict(state["o"])

    return save, load


def measure(variant: str, runs: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return measure_in(Path(folder), variant, runs)


def measure_in(folder: Path, variant: str, runs: int) -> dict[str, Any]:
    import lightning.pytorch  # noqa: F401  every variant carries what a run has loaded anyway

    model, optimizer = make()
    save, load = globals()[variant](model, optimizer)
    blocked, total, loads, size = [], [], [], 0
    before = peak_mb()
    for run in range(runs):
        path = folder / f"save-{run}"
        started = clock()
        finish = save(path)
        blocked.append(clock() - started)
        finish()
        total.append(clock() - started)
        size = sum(f.stat().st_size for f in path.rglob("*")) if path.is_dir() else path.stat().st_size
        if run < runs - 1:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        os.sync()
    saving = peak_mb()
    for _ in range(runs):
        started = clock()
        load(folder / f"save-{runs - 1}")
        loads.append(clock() - started)
    return {
        "blocked_first_s": round(blocked[0], 4),
        "blocked_s": round(statistics.median(blocked[1:]), 4),
        "blocked_all_s": [round(s, 4) for s in blocked],
        "total_s": round(statistics.median(total[1:]), 3),
        "load_s": round(statistics.median(loads), 3),
        "megabytes": round(size / 1e6, 1),
        "rss_before_mb": round(before),
        "peak_rss_saving_mb": round(saving),
        "peak_rss_mb": round(peak_mb()),
    }


if __name__ == "__main__":
    main("benchmarks.checkpoint", VARIANTS, measure, __doc__ or "", runs=5)
