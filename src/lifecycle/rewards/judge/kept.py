"""Replies of an endpoint on disk: a question that was answered once is not asked, nor paid for, again.

    FOLDER/<start of a process>.jsonl       a line for each reply:  <key>  <hash of the rest>  <reply as JSON>

A process writes to a file of its own, a line as soon as its reply is there: a run that is killed loses none, several
runs and ranks share a folder, and a line that was cut off or changed is no reply. The key is a hash of all that a reply
depends on: the model's name, `version`, the sampling settings and the messages. The endpoint's address is no part of
it, as servers move.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from lifecycle.rewards.judge.question import JudgeQuestion, Reply

SUFFIX = ".jsonl"
KEY = 32
"""Characters of a key, and of a line's hash."""


def key_of(question: JudgeQuestion, *, model: str, version: str, sampling: Mapping[str, Any]) -> str:
    """What the reply to a question is kept under."""
    facts = {"model": model, "version": version, "sampling": dict(sampling), "messages": question.messages}
    return _hash(json.dumps(facts, sort_keys=True).encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class PaidBy:
    """Which call of which run a reply was paid in. run: names its folder. call: counted from its start."""

    run: str
    call: int


class KeptReplies:
    """The replies in a folder as they were at the start, and those of this process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._places: dict[str, list[tuple[Path, int, int]]] = {}
        self._file: BinaryIO | None = None
        self._path = folder / f"{time.time_ns()}-{os.getpid()}-{os.urandom(4).hex()}{SUFFIX}"
        for path in sorted(folder.glob(f"*{SUFFIX}")):
            self._note(path)

    def get(self, key: str, paid_by: PaidBy) -> tuple[Reply, bool] | None:
        """The reply to a question, and whether this call has paid for it, in a process that was killed since; None
        where there is none. Of several, that one comes first: a step that is taken again is marked as it was."""
        found = [entry for place in self._places.get(key, []) if (entry := _read(*place)) is not None]
        mine = [reply for reply, payer in found if payer == paid_by]
        if mine:
            return mine[0], True
        return (found[0][0], False) if found else None

    def put(self, key: str, reply: Reply, paid_by: PaidBy) -> None:
        """Keep a reply."""
        facts = {
            "text": reply.text,
            "whole": reply.whole,
            "tokens_in": reply.tokens_in,
            "tokens_out": reply.tokens_out,
            "run": paid_by.run,
            "call": paid_by.call,
        }
        content = json.dumps(facts).encode()
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab")
        at, line = self._file.tell(), b"%s %s %s\n" % (key.encode(), _hash(key.encode() + content).encode(), content)
        self._file.write(line)
        self._file.flush()
        self._places.setdefault(key, []).append((self._path, at, len(line)))

    def settle(self) -> None:
        """Wait until what was put is on the disk, and close the file; `put` opens it again."""
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None

    def _note(self, path: Path) -> None:
        at = 0
        with path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    self._places.setdefault(line[:KEY].decode("ascii", "replace"), []).append((path, at, len(line)))
                at += len(line)


def _read(path: Path, at: int, size: int) -> tuple[Reply, PaidBy] | None:
    """The reply of a line; None of one that was changed, or whose file is gone."""
    try:
        with path.open("rb") as file:
            file.seek(at)
            line = file.read(size)
    except FileNotFoundError:  # someone has emptied the cache
        return None
    content = line[2 * KEY + 2 : -1]
    if line[KEY + 1 : 2 * KEY + 1] != _hash(line[:KEY] + content).encode():
        return None
    facts = json.loads(content)
    paid_by = PaidBy(run=facts.pop("run"), call=facts.pop("call"))
    return Reply(**facts), paid_by


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=KEY // 2).hexdigest()
