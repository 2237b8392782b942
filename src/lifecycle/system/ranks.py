"""The processes of one launch before they have a process group: their ranks, facts from rank 0, and their end.

Rank 0 launches the others (Lightning starts them on this machine), or torchrun or a cluster starts them all.
"""

from __future__ import annotations

import datetime
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_only
from torch.distributed import PrefixStore, Store, TCPStore

from lifecycle.system import atomic
from lifecycle.system.signals import end_with_parent

WAIT_S = 600
SLURM_SPECIAL_STEPS = 0xFFFFFFF0  # from here on: the batch script itself, and what SLURM adds beside the user's steps
SHELLS = ("bash", "interactive")  # names of jobs by which Lightning knows a shell
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")  # of these the first that is set
LAUNCH = "LIFECYCLE_LAUNCH"  # "<pid of rank 0>-<time>": in the environment of the ranks that rank 0 launched


def rank() -> int:
    """This process's number in the run, as its launcher numbered it."""
    known = getattr(rank_zero_only, "rank", None)
    if known is None:  # Lightning, which reads the same variables as it is imported, was not needed yet
        known = next((os.environ[name] for name in RANKS if name in os.environ), 0)
    return int(known)


def on_first_node() -> bool:
    """Whether this machine is the first of those on which the command was started by hand, one by one."""
    return int(os.environ.get("NODE_RANK") or os.environ.get("GROUP_RANK") or 0) == 0


def started_by_srun() -> bool:
    """Whether srun started this process as one task of a run, which has as many ranks as srun has tasks.

    The variables of SLURM alone do not say so: a batch script has them too, and an interactive shell on a node.
    """
    step, name = os.environ.get("SLURM_STEP_ID", ""), os.environ.get("SLURM_JOB_NAME")
    numbered = step.isdecimal() and int(step) < SLURM_SPECIAL_STEPS and "SLURM_PROCID" in os.environ
    return numbered and "SLURM_NTASKS" in os.environ and "SLURM_PTY_PORT" not in os.environ and name not in SHELLS


def launched_by_rank_0() -> bool:
    """Whether this process is one that rank 0 started by itself."""
    return rank() != 0 and LAUNCH in os.environ


def end_with_rank_0() -> None:
    """End this process when rank 0, which launched it, is gone."""
    if launched_by_rank_0():
        end_with_parent(int(os.environ[LAUNCH].partition("-")[0]))


def leave() -> None:
    """Exit from a rank other than 0 whose work is done; rank 0 continues alone.

    By `os._exit`: in an ordinary exit a thread of gloo could abort the process, and the launcher would take that for a
    failure of the run and kill rank 0.
    """
    if rank() != 0:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def send_to_ranks(facts: dict[str, Any], note: Path) -> None:
    """On rank 0: send `facts` (plain values) to the other ranks of this launch, in the file `note` or by torchrun."""
    store = _torchrun_store()
    if store is not None:
        store.set("start", json.dumps(facts))
        return
    os.environ[LAUNCH] = f"{os.getpid()}-{time.time_ns()}"  # ranks started from here on inherit it
    atomic.write(note, json.dumps({"launch": _launch(), **facts}))


def receive_from_rank_0(note: Path) -> dict[str, Any]:
    """On another rank: wait for what rank 0 sends. Raises RuntimeError after WAIT_S seconds."""
    store = _torchrun_store()
    if store is not None:
        return dict(json.loads(store.get("start")))
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until:
        found = json.loads(note.read_text()) if note.exists() else {}
        if found.get("launch") == _launch():
            return dict(found)
        time.sleep(0.2)
    raise RuntimeError(f"rank {rank()} waited {WAIT_S} s for rank 0's note {note}; is the run's folder shared?")


def _torchrun_store() -> Store | None:
    """The key-value store of torchrun, None without torchrun. A file could be of the launch before, which has the same
    id."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    store = TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        timeout=datetime.timedelta(seconds=WAIT_S),
    )
    return PrefixStore(f"lifecycle/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def _launch() -> str:
    """An id that all ranks of one launch share: from the cluster launcher's variables, or from ours."""
    keys = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    outside = "-".join(os.environ.get(key, "") for key in keys)
    return outside if started_by_srun() else os.environ.get(LAUNCH, "")
