"""Checkpoints: written aside, hashed, committed by one rename, verified when read, pruned; see `protocol`.

What training writes them with stands on Lightning, and is imported from `io` and `sharded`.
"""

from lifecycle.checkpoint.load import load
from lifecycle.checkpoint.manifest import CheckpointError, Entry, Manifest, verify
from lifecycle.checkpoint.protocol import last_good, list_committed, step_of
from lifecycle.checkpoint.retention import keep, mark_best, mark_safe, prune, read_best, remedies

__all__ = [
    "CheckpointError",
    "Entry",
    "Manifest",
    "keep",
    "last_good",
    "list_committed",
    "load",
    "mark_best",
    "mark_safe",
    "prune",
    "read_best",
    "remedies",
    "step_of",
    "verify",
]
