"""Empties a folder that programs have written to, whatever they left there."""

from __future__ import annotations

import os


def empty(folder: str) -> None:
    """Remove what is in it. A deep tree is flattened first, for neither Python nor a path reaches its end; folders
    without rights get them back."""
    number = 0
    while entries := list(os.scandir(folder)):
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)
                continue
            os.chmod(entry.path, 0o700)
            for inner in list(os.scandir(entry.path)):
                if inner.is_dir(follow_symlinks=False):
                    os.chmod(inner.path, 0o700)
                    number += 1
                    os.rename(inner.path, _free(folder, number))
                else:
                    os.unlink(inner.path)
            os.rmdir(entry.path)


def _free(folder: str, number: int) -> str:
    while os.path.lexists(path := os.path.join(folder, f".{number}")):
        number += 1
    return path
