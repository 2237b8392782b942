"""Which files of a folder hold rows: data sets come with pages, checksums, notes of tools and other splits beside them.

    kept, passed = sift({"data/train-0.parquet": 900, "data/test-0.parquet": 90, "README.md": 5}, split="train")
    kept    ["data/train-0.parquet"]
    passed  {"data/test-0.parquet": "of another split", "README.md": "about the data"}

A file that is named by its own path, or matched by a pattern, is not sifted: the user chose it.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping

from lifecycle.data.read.files.kinds import SUFFIXES, compression_of, suffix_of, unread

HIDDEN = "hidden"
ABOUT = "about the data"
OTHER_SPLIT = "of another split"
SPLITS = (
    frozenset({"train", "training"}),
    frozenset({"validation", "valid", "val", "dev"}),
    frozenset({"test", "testing", "eval", "evaluation"}),
)
"""Names of the same split, as they stand in the names of files and folders."""

NOTES = frozenset(
    "dataset_infos.json dataset_info.json dataset_dict.json _metadata _common_metadata _success desktop.ini "
    "thumbs.db".split()
)
CHECKSUMS = re.compile(r"((md5|sha\d*|check)_?sums?)([._-].*)?|.*\.(md5|sha1|sha256|sha512|crc|crc32|sig|asc)")
PAGES = re.compile(r"(readme|licen[cs]e|copying|notice|citation|changelog|contributing|authors)([._-].*)?")
SHOWN = 3  # names of what was passed over, for each reason

Passed = Mapping[str, str]
"""By path of a file that was found and is not read: the reason."""


def sift(found: Mapping[str, int], split: str) -> tuple[list[str], dict[str, str]]:
    """The files that are read, of those in a folder (relative path: bytes), and why each of the others is not."""
    passed: dict[str, str] = {}
    for path in found:
        if (why := _no_rows(path, found)) is not None:
            passed[path] = why
    rest = [path for path in found if path not in passed]
    data = [path for path in rest if suffix_of(path) in SUFFIXES]
    texts = [path for path in rest if suffix_of(path) not in SUFFIXES]
    if data and sum(found[path] for path in data) >= sum(found[path] for path in texts):
        passed |= {path: ABOUT for path in texts if PAGES.fullmatch(os.path.basename(path).lower())}
    passed |= _other_splits(data, split)
    return [path for path in rest if path not in passed], passed


def _no_rows(path: str, found: Mapping[str, int]) -> str | None:
    folder, name = os.path.split(path)
    if any(part.startswith((".", "__MACOSX", "__pycache__")) for part in path.split("/")):
        return HIDDEN
    known = name.lower()
    saved = known == "state.json" and os.path.join(folder, "dataset_info.json") in found
    if saved or known in NOTES or CHECKSUMS.fullmatch(known):
        return ABOUT
    if (suffix := unread(path)) is not None:
        return f"{suffix} is not read"
    return None


def _other_splits(data: Iterable[str], split: str) -> dict[str, str]:
    """Files that name another split, where some name the one that is read."""
    names = next((group for group in SPLITS if split in group), frozenset({split}))
    named = {path: group for path in data if (group := _split_named(path)) is not None}
    if names not in named.values():
        return {}
    return {path: OTHER_SPLIT for path, group in named.items() if group != names}


def _split_named(path: str) -> frozenset[str] | None:
    """The split that a file's name says it is of, else the name of the nearest folder that says so."""
    for part in reversed(path.lower().split("/")):
        for word in re.split(r"[^a-z]+", part):
            if group := next((group for group in SPLITS if word in group), None):
                return group
    return None


def described(read: Mapping[str, int], passed: Passed) -> str:
    """One line: files and bytes by ending of what is read (path: bytes), and what is passed over and why."""
    kinds, size = Counter[str](), Counter[str]()
    for path, stored in read.items():
        ending = suffix_of(path) + (compression_of(path) or "") or "without an ending"
        kinds[ending] += 1
        size[ending] += stored
    what = ", ".join(f"{number:,} {ending} ({_bytes(size[ending])})" for ending, number in kinds.most_common())
    line = f"{len(read):,} file{'s' * (len(read) != 1)} read: {what}" if read else "no file is read"
    return line + (f"; passed over: {excused(passed)}" if passed else "")


def excused(passed: Passed) -> str:
    """What was passed over and why, with the first names of each reason."""
    by_reason: dict[str, list[str]] = {}
    for path, why in sorted(passed.items()):
        folder, name = os.path.split(path.rstrip("/"))
        of_folder = why == OTHER_SPLIT and _split_named(name) is None  # its folder says which split it is of
        by_reason.setdefault(why, []).append(f"{os.path.basename(folder)}/{name}" if of_folder else name)
    return ", ".join(
        f"{len(names):,} ({why}: {', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})"
        for why, names in by_reason.items()
    )


def _bytes(size: int) -> str:
    for unit, least in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= least:
            return f"{size / least:,.1f} {unit}"
    return f"{size:,} bytes"
