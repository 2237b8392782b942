"""Ends a process when its parent process is gone: it would wait for a killed parent for ever."""

from __future__ import annotations

import os
import signal
import threading
import time

LOOK_S = 0.5  # seconds between looks whether the parent is there


def end_with_parent(parent: int) -> None:
    """From now on kill this process as soon as `parent` (a pid) is no longer its parent."""

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_S)
        os.kill(os.getpid(), signal.SIGKILL)  # the main thread may hang in a collective, which nothing gentler ends

    threading.Thread(target=look, name="end-with-parent", daemon=True).start()
