"""The C of this folder as a library: compiled once for each machine, kept in the cache folder.

It speaks to Python through ctypes, so a C compiler with OpenMP is all that it needs; threads are those of torch, whose
OpenMP runtime it meets in the process.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from lifecycle.cachefolder import cache_folder

FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-std=gnu11")
COMPILERS = ("cc", "gcc", "clang")
SLOWER = "tokens are decoded by torch alone, about half as fast"

logger = logging.getLogger(__name__)


@cache
def library(name: str) -> ctypes.CDLL | None:
    """`NAME.c` of this folder, compiled and loaded; None, with a warning, where that cannot be.

    $CC names the compiler. Another processor that shares the cache folder builds its own.
    """
    compiler = next(filter(None, map(shutil.which, [os.environ.get("CC", ""), *COMPILERS])), None)
    if compiler is None or os.name != "posix":
        logger.warning("no C compiler (looked for %s): %s", ", ".join(COMPILERS), SLOWER)
        return None
    try:
        return ctypes.CDLL(str(_built(Path(__file__).with_name(f"{name}.c"), compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        logger.warning("%s could not build %s.c: %s\n%s", compiler, name, SLOWER, said)
        return None


def _built(source: Path, compiler: str) -> Path:
    """The library's path; written whole or not at all, since several processes may build at once."""
    made_of = [source.read_text(), compiler, *FLAGS, platform.machine(), _processor()]
    target = cache_folder() / "native" / f"{source.stem}-{hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]}.so"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder, target.name)
            command = [compiler, *FLAGS, "-o", str(made), str(source), "-lm"]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
            made.replace(target)
    return target


def _processor() -> str:
    """What the processor can do, as far as the system tells."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
