"""Signal handlers, which only the main thread of a process can set."""

from __future__ import annotations

import signal
import threading
from typing import Any


def handle(number: int, handler: Any) -> None:
    """Let `handler` (of Python, `SIG_IGN` or `SIG_DFL`) answer signal `number` from now on. In another thread than the
    main one it does nothing: a run there meets no signal, and those of the process stay what they are."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(number, handler)
