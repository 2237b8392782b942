"""A C source as a library: compiled once for each machine, kept in the cache folder.

    whole and ours in the cache | built there, under a lock | built in a temporary folder | None: torch alone

Python calls it through ctypes, so it needs nothing but a C compiler with OpenMP; its threads are those of torch, whose
OpenMP runtime is loaded in the process.

What is loaded runs as the user, so no one else may have written it: folder and files belong to the user alone, and
the library is the one whose SHA-256 lies beside it. Anything else, a file cut short too, is built again.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from lifecycle.errors import UserError
from lifecycle.system.cache import cache_folder

SHARED = Path(__file__).parent
"""Folder of the headers that all sources share."""

FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-std=gnu11")
COMPILERS = ("cc", "gcc", "clang")
BUILD_S = 300
"""Longest time that a compiler gets, and that another process's is waited for."""

logger = logging.getLogger(__name__)


@cache
def library(source: Path, slower: str) -> ctypes.CDLL | None:
    """`source`, compiled and loaded; None, with a warning that says what is `slower` then, where that cannot be.

    $CC names the compiler, with options if need be. Another processor that shares the cache folder builds its own.
    """
    compiler = _compiler()
    if compiler is None or os.name != "posix":
        logger.warning("no C compiler (looked for %s): %s", ", ".join(COMPILERS), slower)
        return None
    failed = None
    for load in (_from_cache, _from_temporary):
        try:
            found = load(source, compiler)
        except (OSError, UserError, subprocess.SubprocessError) as error:
            failed = error
            continue
        if failed is not None:
            logger.warning(
                "%s is compiled anew in every process, which takes seconds, since it cannot be kept (%s); "
                "$LIFECYCLE_CACHE names another folder",
                *(source.name, _said(failed)),
            )
        return found
    assert failed is not None
    logger.warning("%s could not build %s: %s\n%s", " ".join(compiler), source.name, slower, _said(failed))
    return None


def _compiler() -> list[str] | None:
    """The command that $CC names, or the first of `COMPILERS` that is there; with its options."""
    commands = [shlex.split(os.environ.get("CC", "")), *([name] for name in COMPILERS)]
    return next((command for command in commands if command and shutil.which(command[0])), None)


def _said(error: Exception) -> str:
    return getattr(error, "stderr", None) or str(error)


def _from_cache(source: Path, compiler: list[str]) -> ctypes.CDLL:
    """The library of the cache folder, built there first if it is absent, another's, or not as it was written."""
    made_of = [
        *(path.read_text() for folder in (source.parent, SHARED) for path in sorted(folder.glob("*.[ch]"))),
        *compiler,
        *FLAGS,
        platform.machine(),
        _processor(),
    ]
    folder = cache_folder() / "native"
    library = folder / f"{source.stem}-{hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]}.so"
    noted = library.with_suffix(".sha256")
    _make_private(folder)
    with _locked(folder / "lock"):
        if not (_is_private(library) and _is_private(noted) and noted.read_bytes() == _sha256(library).encode()):
            made = library.with_suffix(".part")  # of a killed process, which may have left one: written over
            _build(source, compiler, made)
            _write_private(noted, _sha256(made))
            made.replace(library)
        return ctypes.CDLL(str(library))


def _from_temporary(source: Path, compiler: list[str]) -> ctypes.CDLL:
    """The library, built in a folder that is gone again once it is loaded."""
    with tempfile.TemporaryDirectory(prefix="lifecycle-") as folder:
        made = Path(folder, f"{source.stem}.so")
        _build(source, compiler, made)
        return ctypes.CDLL(str(made))


def _build(source: Path, compiler: list[str], made: Path) -> None:
    made.unlink(missing_ok=True)
    command = [*compiler, *FLAGS, f"-I{SHARED}", "-o", str(made), str(source), "-lm"]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=BUILD_S)
    made.chmod(0o700)


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def _make_private(folder: Path) -> None:
    """A folder of this user that no one else can read. Errors: `OSError` where the folder belongs to someone else."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    lying = folder.lstat()
    if not stat.S_ISDIR(lying.st_mode) or lying.st_uid != os.geteuid():
        raise PermissionError(f"{folder} is no folder of this user")
    if stat.S_IMODE(lying.st_mode) != 0o700:
        folder.chmod(0o700)


def _is_private(path: Path) -> bool:
    """Whether the file belongs to this user and no one else can write to it."""
    if not path.exists():
        return False
    lying = path.lstat()
    return stat.S_ISREG(lying.st_mode) and lying.st_uid == os.geteuid() and not lying.st_mode & 0o022


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time. Errors: `OSError` where another keeps it longer than a build may take."""
    import fcntl  # here: Windows has none, and gets no further than `library`

    last = time.monotonic() + BUILD_S
    with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)) as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > last:
                    raise TimeoutError(f"{path} is held by another process for {BUILD_S} s") from error
                time.sleep(0.05)
        yield


def _processor() -> str:
    """The instruction sets of the processor, as far as the system lists them."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
