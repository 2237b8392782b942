"""What has to be shown on a GPU, in at most 8 minutes: tests, training, sampling and fine-tuning beside
transformers, reinforcement learning, saving, FSDP2.

    PYTHONPATH=src:. python -m benchmarks.gpu                      # all, in order of worth; needs no network
    PYTHONPATH=src:. python -m benchmarks.gpu --only decode,decode_hf --budget 120
    PYTHONPATH=src:. python -m benchmarks.gpu --only finetune --budget 330 --json benchmarks/results/gpu_finetune.json
    PYTHONPATH=src:. python -m benchmarks.gpu --only sizes --budget 560 --json benchmarks/results/gpu_shapes.json
    PYTHONPATH=src:. python -m benchmarks.gpu --only grpo_step,grpo_run_135m --json benchmarks/results/gpu_grpo.json
    PYTHONPATH=src:. python -m benchmarks.gpu --only decode --beside old/src     # and the same with the code there
    PYTHONPATH=src:. python -m benchmarks.gpu --rehearse           # on a CPU at toy size; says nothing of speed

Every item is a process of its own with a limit of its own: one that fails or hangs costs the others nothing, and what
it had measured by then is kept. The table at the end has a line an item, with the end of its traceback; the JSON holds
everything and is written after every item, so that a command that is stopped early leaves what it has. The items are
in gpu_train.py, gpu_shapes.py, gpu_decode.py, gpu_finetune.py, gpu_grpo.py and gpu_runs.py, the sizes in gpu_sizes.py.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, machine

LINES = 12
"""Of what a failed item said last."""

FINETUNE, SIZES = "finetune", "sizes"
"""In --only: all items of which this is the beginning."""

SOURCE = Path(__file__).parents[1] / "src"

ENDING_S = 5
"""Kept back for the table."""


@dataclass(frozen=True)
class Item:
    """`module` has the function `function`, which is called with `arguments` after the sizes; limit_s: killed then.

    Less than least_s left of the budget: it is not begun.
    """

    name: str
    limit_s: float
    least_s: float
    module: str
    function: str
    arguments: tuple[Any, ...] = ()


def _finetune(name: str, kind: str, model: str | None) -> Item:
    return Item(f"{FINETUNE}_{name}", 130, 30, "gpu_finetune", "finetune", (kind, model))


def _train(name: str, limit_s: float, rows: int, kernel: str, compiled: bool, fp8: str | None = None) -> Item:
    return Item(name, limit_s, 30, "gpu_train", "ours", (rows, kernel, compiled, fp8))


def _size(name: str, limit_s: float = 60) -> Item:
    return Item(f"{SIZES}_{name}", limit_s, 30, "gpu_shapes", "beside_transformers", (name,))


ITEMS = (
    _train("train_64k", 150, 1, "auto", True),
    Item("decode", 100, 40, "gpu_decode", "ours"),
    Item("tests", 100, 30, "gpu_runs", "tests"),
    Item("train_hf_64k", 130, 50, "gpu_train", "transformers", (1,)),
    Item("decode_shares", 60, 30, "gpu_decode", "shares"),
    Item("decode_compiled", 150, 60, "gpu_decode", "ours", (True,)),
    Item("decode_hf", 60, 30, "gpu_decode", "transformers"),
    Item("decode_moe", 100, 40, "gpu_decode", "ours", (False, "moe")),
    Item("decode_latent", 80, 40, "gpu_decode", "ours", (False, "latent")),
    Item("experts", 40, 20, "gpu_decode", "experts"),
    _train("train_64k_varlen_eager", 45, 1, "varlen", False),
    _train("train_64k_sdpa_eager", 45, 1, "sdpa", False),
    _train("train_64k_flash_eager", 45, 1, "flash", False),
    Item("checkpoint", 45, 20, "gpu_runs", "checkpoint"),
    Item("resume", 120, 50, "gpu_runs", "resume"),
    Item("fsdp", 60, 25, "gpu_runs", "fsdp"),
    _train("train_128k", 150, 2, "auto", True),
    _train("train_32k", 150, 0, "auto", True),
    _train("train_64k_fp8", 150, 1, "auto", True, "tensorwise"),
    _train("train_64k_fp8_rowwise", 150, 1, "auto", True, "rowwise"),
    _train("train_64k_flash", 150, 1, "flash", True),
    _train("train_64k_sdpa", 150, 1, "sdpa", True),
    _finetune("sft_135m", "sft", "smollm2_135m"),
    _finetune("dpo_135m", "dpo", "smollm2_135m"),
    _finetune("sft", "sft", None),
    _finetune("lora", "lora", None),
    _finetune("dpo_cached_135m", "dpo_cached", "smollm2_135m"),
    Item("grpo_step", 240, 60, "gpu_grpo", "step"),
    *(_size(name) for name in ("small", "minimind_26m")),
    *(_size(name) for name in ("glm4_moe", "qwen3_moe", "qwen2_moe", "mixtral", "deepseek_v3", "deepseek_v2")),
    _size("medium", 120),  # whose layers take longer to compile
    Item("grpo_run_135m", 400, 360, "gpu_grpo", "run", ("smollm2_135m",)),
)
"""In order of worth, those of fine-tuning, of other sizes and of reinforcement learning behind the others."""


def main() -> int:
    """0 where every item that was begun ended well."""
    given = _arguments()
    items = {item.name: item for item in ITEMS}
    if given.item:
        _measure(items[given.item], given.rehearse)
        return 0
    wanted = chosen(given.only)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    found: dict[str, dict[str, Any]] = {}
    end = time.monotonic() + given.budget - ENDING_S
    try:
        for item, source in [(item, source) for item in wanted for source in sources(given.beside)]:
            name = item.name if source == SOURCE else f"{item.name} ({source})"
            found[name] = {"status": "stopped"}
            found[name] = _run(item, end - time.monotonic(), given.rehearse, source)
            print(_line(name, found[name]), flush=True)
            _write(given.json, found, given)
    finally:
        _write(given.json, found, given)
        print("\n".join(["", *(_line(name, result) for name, result in found.items())]), flush=True)
    return int(any(result["status"] in ("failed", "killed", "stopped") for result in found.values()))


def chosen(only: list[str]) -> list[Item]:
    """The items that --only names, `finetune` and `sizes` being all that begin so; in order of worth."""
    groups = (FINETUNE, SIZES)
    known = {*groups, *(item.name for item in ITEMS)}
    if unknown := [name for name in only if name not in known]:
        sys.exit(f"--only: there is no item {', '.join(unknown)}; choose among {', '.join(sorted(known))}")
    return [
        item
        for item in ITEMS
        if not only or item.name in only or any(one in only and item.name.startswith(f"{one}_") for one in groups)
    ]


def sources(beside: Path | None) -> list[Path]:
    """Whose code is measured: that of another folder first, if any, then that of this repository."""
    if beside is None:
        return [SOURCE]
    if not (beside / "lifecycle").is_dir():
        sys.exit(f"--beside: {beside} has no folder lifecycle; give the src of another version of this code")
    return [beside, SOURCE]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=lambda text: text.split(","), default=[], help="items, separated by commas")
    parser.add_argument("--budget", type=float, default=480, help="seconds for all items together")
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/gpu.json, none for a rehearsal")
    parser.add_argument("--beside", type=Path, help="the src of another version of this code, to measure as well")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, at toy size")
    parser.add_argument("--item", help="measure this one here, in this process")
    given = parser.parse_args()
    if given.json is None and not given.rehearse:
        given.json = RESULTS / "gpu.json"
    return given


def _measure(item: Item, rehearse: bool) -> None:
    from benchmarks.gpu_sizes import FULL, TOY

    function = getattr(importlib.import_module(f"benchmarks.{item.module}"), item.function)
    for result in function(TOY if rehearse else FULL, *item.arguments):
        print("RESULT " + json.dumps(result), flush=True)


def _run(item: Item, left_s: float, rehearse: bool, source: Path) -> dict[str, Any]:
    if left_s < (5 if rehearse else item.least_s):
        return {"status": "no time", "error": f"{max(left_s, 0):.0f} s of the budget are left"}
    command = [sys.executable, "-m", "benchmarks.gpu", "--item", item.name, *(["--rehearse"] if rehearse else [])]
    started = time.monotonic()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that a kill reaches what it started
        env=_environment(source),
    )
    killed = False
    try:
        said, _ = process.communicate(timeout=left_s if rehearse else min(item.limit_s, left_s))
    except subprocess.TimeoutExpired:
        killed = True
        _kill(process)
        said, _ = process.communicate()
    finally:
        _kill(process)
    status = "killed" if killed else "failed" if process.returncode else "ok"
    return _read(said, status) | {"seconds": round(time.monotonic() - started, 1)}


def _environment(source: Path) -> dict[str, str]:
    """Absolute paths: runs of the command line are started in folders of their own."""
    paths = [str(source), str(SOURCE.parent), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(os.path.abspath(path) for path in paths)),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }


def _kill(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def _read(said: str, status: str) -> dict[str, Any]:
    """What an item measured, also one that did not come to its end, and the end of what it said."""
    lines = [line for line in said.splitlines() if line.strip()]
    measured: dict[str, Any] = {}
    for line in lines:
        if line.startswith("RESULT "):
            measured |= json.loads(line.removeprefix("RESULT "))
    if status == "ok":
        return {"status": "skipped" if "skipped" in measured else "ok", "measured": measured}
    error = [line for line in lines if not line.startswith("RESULT ")][-LINES:]
    return {"status": status, "measured": measured, "error": "\n".join(error)}


def _line(name: str, result: dict[str, Any]) -> str:
    facts = "  ".join(f"{key} {_short(value)}" for key, value in result.get("measured", {}).items())
    line = f"{name:24} {result['status']:8} {result.get('seconds', 0):6.1f} s  {facts}"
    return "\n    ".join([line, *result.get("error", "").splitlines()])


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return "(" + " ".join(f"{key} {_short(part)}" for key, part in value.items()) + ")"
    return f"{value:,}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _write(path: Path | None, found: dict[str, dict[str, Any]], given: argparse.Namespace) -> None:
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    known = {"machine": machine(), "rehearsal": given.rehearse, "budget_s": given.budget, "items": found}
    path.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
