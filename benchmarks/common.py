"""What all benchmarks share: variants in processes of their own, medians with their spread, one JSON a run."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "lightning", "transformers", "datasets", "tokenizers", "accelerate", "litgpt", "litdata")
RESULTS = Path(__file__).parent / "results"

Measure = Callable[[str, int], Mapping[str, Any]]


def peak_mb() -> float:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def spread(values: Sequence[float], digits: int = 1) -> dict[str, float]:
    """Median, least and greatest."""
    return {
        "median": round(statistics.median(values), digits),
        "min": round(min(values), digits),
        "max": round(max(values), digits),
    }


def undisturbed(steps: int) -> list[str]:
    """Settings of a measured run: one micro-batch a step, a reading every `steps`, and nothing else between steps."""
    return [
        "hardware.micro_batch_tokens=4096",
        f"logging.every_steps={steps}",
        "validation.every_steps=null",
        "checkpoint.every_steps=100000",
        "logger=csv",
    ]


def merge(rounds: Sequence[Any]) -> Any:
    """Several results of one variant as one: medians of medians and of plain numbers, the least and the greatest.

    A round that failed makes the whole a failure.
    """
    first = next((found for found in rounds if isinstance(found, dict) and "error" in found), rounds[0])
    if len(rounds) == 1 or (isinstance(first, dict) and "error" in first):
        return first
    if isinstance(first, dict):
        take = {"min": min, "max": max} if set(first) == {"median", "min", "max"} else {}
        return {key: take.get(key, merge)([found[key] for found in rounds]) for key in first}
    return statistics.median(rounds) if isinstance(first, int | float) and not isinstance(first, bool) else first


def machine() -> dict[str, Any]:
    """CPU (and GPU), cores, threads, versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "native_bf16": bool({"avx512_bf16", "amx_bf16"} & set(flags)),
        "versions": found,
    }


def main(module: str, variants: Mapping[str, str], measure: Measure, description: str, runs: int = 3) -> None:
    """Command line of one benchmark. `variants` maps a name to the interpreter that it needs: `ours` or `peers`.

    A variant that fails leaves the end of its traceback as `error`; one of ours, which lacks no package, makes the
    command fail too. The file of results is a whole run's: a run of some variants writes where it is told.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="default, of a whole run: benchmarks/results/NAME.json")
    parser.add_argument("--runs", type=int, default=runs, help="timed blocks of each variant")
    parser.add_argument("--rounds", type=int, default=1, help="times all of it, in turn: evens out a busy machine")
    parser.add_argument("--only", default="", help="comma-separated variants")
    parser.add_argument("--peers-python", default=sys.executable, help="Python of an environment with the peers")
    parser.add_argument("--variant", help="measure this one here, in this process")
    given = parser.parse_args()
    if given.variant:
        print("RESULT " + json.dumps(measure(given.variant, given.runs)), flush=True)
        return
    wanted = given.only.split(",") if given.only else list(variants)
    if unknown := [name for name in wanted if name not in variants]:
        parser.error(f"there is no variant {', '.join(unknown)}; there are {', '.join(variants)}")
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in wanted}
    for _ in range(given.rounds):
        for name in wanted:
            python = sys.executable if variants[name] == "ours" else given.peers_python
            found[name].append(_isolated(python, module, name, given.runs))
            print(name, json.dumps(found[name][-1]), flush=True)
    merged = {name: merge(rounds) for name, rounds in found.items()}
    results = {"machine": machine(), "runs": given.runs, "rounds": given.rounds, "variants": merged}
    if path := given.json or (None if given.only else RESULTS / f"{module.rpartition('.')[2]}.json"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n")
    if failed := [name for name in wanted if variants[name] == "ours" and "error" in merged[name]]:
        sys.exit(f"failed: {', '.join(failed)}")


def _isolated(python: str, module: str, variant: str, runs: int) -> dict[str, Any]:
    command = [python, "-m", module, "--variant", variant, "--runs", str(runs)]
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        return {"error": said[-1][:300] if said else f"exit {done.returncode}"}
    result: dict[str, Any] = json.loads(lines[-1].removeprefix("RESULT "))
    return result
