"""A folder of several files that is there whole or not at all, also where an older one is replaced.

    with whole(folder, marker="config.json", stale=("model*.safetensors",)) as aside: ...  # write everything to aside

    write aside, on the same disk -> remove the marker -> remove the stale files, move the new ones in -> the marker

A kill while the files are written, which may take minutes, leaves the older folder as it was. One in the few moves
after that leaves a folder without its marker, which no reader takes for a model; it never leaves new files beside old.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ASIDE = ".partial"


@contextmanager
def whole(folder: Path, *, marker: str, stale: Sequence[str]) -> Iterator[Path]:
    """A folder to write to, whose files are in `folder` at the end, all of them; none after an exception.

    marker: the file without which `folder` is nothing. stale: patterns of files that an older one may have had and a
    new one need not replace. Other files of the folder stay.
    """
    aside = folder / ASIDE
    shutil.rmtree(aside, ignore_errors=True)  # of a call that was killed
    aside.mkdir(parents=True)
    try:
        yield aside
        written = [path.relative_to(aside) for path in aside.rglob("*") if path.is_file()]
        (folder / marker).unlink(missing_ok=True)
        for old in [path for pattern in stale for path in folder.glob(pattern)]:
            old.unlink()
        for path in sorted(written, key=lambda path: str(path) == marker):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (aside / path).replace(folder / path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
