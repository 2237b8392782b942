"""Checkpoints: written aside, hashed, committed by one rename, verified when read, pruned; see `protocol`."""

from lifecycle.checkpoint.io import CommittedCheckpointIO, load
from lifecycle.checkpoint.manifest import CheckpointError, Entry, Manifest, verify
from lifecycle.checkpoint.protocol import last_good, list_committed, step_of
from lifecycle.checkpoint.retention import keep, mark_best, mark_safe, prune, read_best, remedies
from lifecycle.checkpoint.sharded import ShardedStrategy, wait_for_saves

__all__ = [
    "CheckpointError",
    "CommittedCheckpointIO",
    "Entry",
    "Manifest",
    "ShardedStrategy",
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
    "wait_for_saves",
]
