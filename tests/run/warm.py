"""Starts runs out of a process that has imported everything already: a second instead of seven for each.

    stdin:   one JSON line a run: words, cwd, env, out, err, code (paths)        stdout: its process id
    code:    holds the exit code when the run has ended (negative: the signal that ended it)

A run is forked before anything was computed, then does what `python -m lifecycle` does, in a session of its own. Only
the report is left out, whose pictures take longer than the run.
"""

import gc
import json
import os
import runpy
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.fabric.utilities.seed  # noqa: F401
import matplotlib.backends.backend_agg  # noqa: F401
import torch._dynamo  # noqa: F401
import transformers.models.llama.modeling_llama  # noqa: F401

import lifecycle.run
import lifecycle.runs.results

running: dict[int, str] = {}


def reap(signum: int, frame: FrameType | None) -> None:
    """Write down how each run ended."""
    for pid in list(running):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            path = Path(running.pop(pid))
            path.with_suffix(".new").write_text(str(os.waitstatus_to_exitcode(status)))
            path.with_suffix(".new").replace(path)


def become(job: dict[str, Any]) -> None:
    """Turn this process into the run."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    os.setsid()
    os.chdir(job["cwd"])
    for number, path in ((1, job["out"]), (2, job["err"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(job["env"])
    sys.argv[1:] = job["words"]
    runpy.run_module("lifecycle", run_name="__main__", alter_sys=True)


def no_report(run_folder: Path | str) -> Path:
    """In place of `write_report`."""
    return Path(run_folder)


def serve() -> None:
    for module in (lifecycle.runs.results, lifecycle.run):
        setattr(module, "write_report", no_report)  # noqa: B010  mypy takes no other function in its place
    signal.signal(signal.SIGCHLD, reap)
    gc.collect()
    gc.freeze()  # the runs share these pages
    for line in sys.stdin:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})  # a run may end before it is known
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            return become(job)
        running[pid] = job["code"]
        print(pid, flush=True)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})


if __name__ == "__main__":
    serve()
