"""Signal handlers, which only the main thread of a process can set; and the kill of a process whose parent is gone,
which would wait for it for ever."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

LOOK_S = 0.5  # seconds between looks whether the parent is there


def handle(number: int, handler: Any) -> None:
    """Let `handler` (of Python, `SIG_IGN` or `SIG_DFL`) answer signal `number` from now on. In another thread than the
    main one it does nothing: a run there meets no signal, and those of the process stay what they are."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(number, handler)


def end_with_parent(parent: int) -> None:
    """From now on kill this process as soon as `parent` (a pid) is no longer its parent."""

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_S)
        os.kill(os.getpid(), signal.SIGKILL)  # the main thread may hang in a collective, which nothing gentler ends

    threading.Thread(target=look, name="end-with-parent", daemon=True).start()
