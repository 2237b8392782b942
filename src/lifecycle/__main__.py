"""The console script `lifecycle`, and `python -m lifecycle`.

Exit codes: 0 done; 2 the user's config or data is at fault; 143 after SIGTERM, or any signal during training; 130 after
Ctrl-C elsewhere; 1 where another process has taken over the run's folder; others are crashes.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from omegaconf import DictConfig

from lifecycle.config import command

TERMINATED, INTERRUPTED = 143, 130
LOST = 1


def main() -> None:
    """Compose the config from the command line and run it."""
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # loader workers are forked, and each tokenises alone
    if others_at_work():
        # Threads that spin while they wait keep the cores from the thread they wait for: beside one other process at
        # work, steps on two cores take 1.7 times as long; on a quiet machine spinning gains 8 %. Read as torch loads.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    gc.disable()  # while modules are loaded, which all stay: it would take a fifth of the time, until `_run`
    code = command.hydra_main(_run, check=_check)
    gc.freeze()  # what is left ends with the process: Python would look through all of it first, for half a second
    sys.exit(code)


def _leave(signum: int, frame: FrameType | None) -> None:
    """End after Ctrl-C without a traceback. Training has its own handler, which saves first (`callbacks.saving`)."""
    raise SystemExit(INTERRUPTED)


def others_at_work(loads: Path = Path("/proc/loadavg"), looks: int = 5) -> bool:
    """Whether other processes keep the machine busy now; not the load average, which remembers what ended a minute ago.

    Where the system does not say (it is Linux that does), none are.
    """
    try:
        for look in range(looks):
            time.sleep(0.005 if look else 0)
            if int(loads.read_text().split()[3].partition("/")[0]) <= 1:  # runnable threads, this one among them
                return False
    except (OSError, ValueError, IndexError):
        return False
    return True


def _run(cfg: DictConfig) -> int:
    # torch and all that stands on it: seconds that the help page does not need
    from lifecycle.errors import FolderLost, Terminated
    from lifecycle.run import run
    from lifecycle.system.ranks import end_with_rank_0, leave

    if not gc.isenabled():  # the first job of a sweep, or the only one: what later ones find may be garbage of others
        gc.freeze()
        gc.enable()
    end_with_rank_0()
    try:
        result = run(cfg)
    except Terminated:
        return TERMINATED
    except FolderLost as error:
        print(f"lifecycle: {error}", file=sys.stderr, flush=True)
        os._exit(LOST)  # nothing gentler: what other libraries write at Python's end would go into the other's folder
    leave()
    return TERMINATED if result.status == "stopped" else 0


def _check(cfg: DictConfig) -> None:
    from lifecycle.config import check

    check(cfg)


if __name__ == "__main__":
    main()
