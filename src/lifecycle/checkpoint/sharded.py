"""FSDP2 with committed checkpoints: every rank writes its shards into one staging folder, rank 0 commits it.

    step-00000030/  __0_0.distcp  __1_0.distcp ...   one file a rank: weights and optimizer, hashed by that rank
                    .metadata                        torch's map of the shards (`shard_reader.py` reads it)
                    state.pt                         everything else, by rank 0; read with weights_only
                    manifest.json

    save_checkpoint:  wait for the save before  ->  every rank copies its shards to the host  ->  return
    a thread a rank:  write + hash  ->  gather sizes and hashes (own gloo group)  ->  rank 0: manifest, rename, prune

The folder must be on a file system that all ranks share. A checkpoint can be loaded on any number of ranks.
"""

from __future__ import annotations

import io
import os
import shutil
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.utils._pytree import tree_leaves

from lifecycle.checkpoint.hostcopy import HostCopy
from lifecycle.checkpoint.io import CommittedCheckpointIO, tokens_of
from lifecycle.checkpoint.manifest import MANIFEST, CheckpointError, Entry, check_hashes, read_manifest
from lifecycle.checkpoint.protocol import Staging, clear_staging, commit, open_staging, refused
from lifecycle.checkpoint.shard_reader import PlainPlanner, ShardReader
from lifecycle.checkpoint.snapshot import TREE, plain
from lifecycle.system.shards import local_part


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's strategy for sharded weights, its checkpoints under the commit protocol.

    Both sizes are given: Lightning's default is tensor parallelism over all devices. Retention is that of the
    `CommittedCheckpointIO` among the Trainer's plugins; without one every checkpoint stays. Saves are written in the
    background, where that plugin's are; an error there raises `CheckpointError` on all ranks at the next save or at the
    end: who reads `save_failed` as true must ask for one.
    """

    def __init__(
        self, *, data_parallel_size: int, tensor_parallel_size: int, process_group_backend: str | None = None
    ) -> None:
        super().__init__(
            data_parallel_size=data_parallel_size,
            tensor_parallel_size=tensor_parallel_size,
            save_distributed_checkpoint=True,
            process_group_backend=process_group_backend,
        )
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._pending_path: Path | None = None
        self._talk: dist.ProcessGroup | None = None  # of the threads: their messages do not mix with training's
        self._host = HostCopy()

    @property
    def save_failed(self) -> bool:
        """Whether the save in the background has ended with an error, as this rank knows by now."""
        return self._pending is not None and self._pending.done() and self._pending.exception() is not None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Every rank must call. Raises the same `CheckpointError` on all ranks if one of them fails, and if the save
        before did. A step that is committed already, or being written, is not written again.
        """
        started = time.perf_counter()
        path = Path(self.broadcast(str(filepath)))
        if path != self._pending_path:
            self.wait()
            self._save(checkpoint, path)
        if isinstance(self.checkpoint_io, CommittedCheckpointIO):
            self.checkpoint_io.count_blocked(time.perf_counter() - started)

    def _save(self, checkpoint: dict[str, Any], path: Path) -> None:
        shards = {"state_dict": checkpoint.pop("state_dict")}
        shards |= {f"optimizer_{n}": state for n, state in enumerate(checkpoint.pop("optimizer_states", []))}
        plain(checkpoint)
        needed = self._total_bytes(shards)
        folder, error = self.broadcast(self._open(path, needed) if self.is_global_zero else (None, None))
        self._raise_first([error])
        if folder is None:
            return
        self._talk = self._talk or dist.new_group(backend="gloo")
        tree = io.BytesIO()
        torch.save(checkpoint, tree)
        facts = ShardedSave(path, Path(folder), needed, int(checkpoint["global_step"]), tokens_of(checkpoint))
        write = partial(self._write, facts, self._host.take(shards), tree.getbuffer())
        if isinstance(self.checkpoint_io, CommittedCheckpointIO) and self.checkpoint_io.async_save:
            self._pending, self._pending_path = self._thread.submit(write), path
        else:
            write()

    def _write(self, facts: ShardedSave, shards: dict[str, Any], tree: memoryview) -> None:
        """Every rank's share, and the commit by rank 0: all know how it ended, and raise the same."""
        mine = _write_share(
            facts, shards, tree if self.is_global_zero else None, self._talk, self._remedies(facts.path)
        )
        shares = self._gather(mine, self._talk)
        errors = [error for _, error in shares]
        files = {name: entry for entries, _ in shares for name, entry in entries.items()}
        if self.is_global_zero and any(errors):
            shutil.rmtree(facts.folder, ignore_errors=True)
        self._raise_first(errors)
        self._raise_first(self._gather(self._commit(facts, files) if self.is_global_zero else None, self._talk))

    def wait(self) -> None:
        """Return when nothing is being written; raises the error of the save that was."""
        pending, self._pending, self._pending_path = self._pending, None, None
        if pending is not None:
            pending.result()

    def teardown(self) -> None:
        """Finish the save that is being written, raise its error, and free the memory."""
        try:
            self.wait()
        finally:
            self._host.release()
            super().teardown()

    def load_checkpoint(
        self, checkpoint_path: str | os.PathLike[str], weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Every rank must call: verify, load weights and optimizer in place, return the rest of the checkpoint.

        The ranks share the hashing; nothing is read before all files are right. Raises `CheckpointError` on all ranks.
        """
        assert self.model is not None and self.lightning_module is not None
        self.wait()
        path = Path(self.broadcast(str(checkpoint_path)))
        self._raise_first(self._gather(self._check_share(path)))
        optimizers = self.optimizers
        # The optimizer goes first: its empty state is made by a step, which may touch the weights.
        state: dict[str, Any] = {
            f"optimizer_{n}": get_optimizer_state_dict(self.model, optimizer) for n, optimizer in enumerate(optimizers)
        }
        state["state_dict"] = self._saved_part(get_model_state_dict(self.model))
        dcp.load(state, storage_reader=ShardReader(path), planner=PlainPlanner())
        options = StateDictOptions(strict=self.lightning_module.strict_loading)
        set_model_state_dict(self.model, state["state_dict"], options=options)
        for n, optimizer in enumerate(optimizers):
            set_optimizer_state_dict(self.model, optimizer, state[f"optimizer_{n}"])
        rest: dict[str, Any] = torch.load(path / TREE, weights_only=True, map_location="cpu")
        return rest

    def _saved_part(self, state: dict[str, Any]) -> dict[str, Any]:
        """Of the weights what a checkpoint holds: all, or where it is not strict what is trained."""
        assert self.lightning_module is not None
        if self.lightning_module.strict_loading:
            return state
        return {name: state[name] for name, p in self.lightning_module.named_parameters() if p.requires_grad}

    def remove_checkpoint(self, filepath: str | os.PathLike[str]) -> None:
        """Does nothing: which checkpoints stay is decided after each commit, by `retention`."""

    def _open(self, path: Path, needed: int) -> tuple[str | None, str | None]:
        """The staging folder (None: committed already), and what went wrong."""
        if (path / MANIFEST).is_file():
            return None, None
        clear_staging(path.parent)
        try:
            if isinstance(self.checkpoint_io, CommittedCheckpointIO):
                self.checkpoint_io.make_room(path, needed)
            return str(open_staging(path, needed)), None
        except OSError as error:
            return None, str(refused(path, error, needed, self._remedies(path)()))

    def _commit(self, facts: ShardedSave, files: dict[str, Entry]) -> str | None:
        """Commit and prune; returns what went wrong."""
        try:
            commit(facts.folder, facts.path, files, step=facts.step, tokens=facts.tokens)
        except OSError as error:
            shutil.rmtree(facts.folder, ignore_errors=True)
            return str(refused(facts.path, error, facts.needed, self._remedies(facts.path)()))
        if isinstance(self.checkpoint_io, CommittedCheckpointIO):
            self.checkpoint_io.prune_after(facts.path)
        return None

    def _remedies(self, path: Path) -> Callable[[], str]:
        """What could be deleted, in words, where there is no room for the checkpoint `path`."""
        writer = self.checkpoint_io
        return partial(writer.remedies, path) if isinstance(writer, CommittedCheckpointIO) else str

    def _check_share(self, path: Path) -> str | None:
        """Check every `world_size`-th file; returns what is wrong."""
        try:
            manifest = read_manifest(path)
            if ".metadata" not in manifest.files:
                return f"checkpoint {path} was not saved by hardware.strategy=fsdp: go on with the strategy it had"
            check_hashes(path, manifest, sorted(manifest.files)[self.global_rank :: self.world_size])
        except CheckpointError as error:
            return str(error)
        return None

    def _total_bytes(self, shards: dict[str, Any]) -> int:
        tensors = [leaf for leaf in tree_leaves(shards) if isinstance(leaf, torch.Tensor)]
        return sum(self._gather(sum(local_part(tensor).nbytes for tensor in tensors)))

    def _gather(self, mine: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
        """What every rank has, on every rank."""
        everyone: list[Any] = [None] * self.world_size
        dist.all_gather_object(everyone, mine, group=group)
        return everyone

    def _raise_first(self, errors: list[str | None]) -> None:
        """All ranks know the same errors and raise together, so that none waits for another."""
        for words in errors:
            if words is not None:
                raise CheckpointError(words)


def wait_for_saves(strategy: Strategy) -> None:
    """Return when no checkpoint of the run is being written. Raises the `CheckpointError` of one that failed."""
    writer = strategy if isinstance(strategy, ShardedStrategy) else strategy.checkpoint_io
    if isinstance(writer, (ShardedStrategy, CommittedCheckpointIO)):
        writer.wait()


@dataclass(frozen=True)
class ShardedSave:
    """Of one save: where it goes, the staging folder, its bytes over all ranks, and what the manifest says of it."""

    path: Path
    folder: Path
    needed: int
    step: int
    tokens: int | None


def _write_share(
    facts: ShardedSave,
    shards: dict[str, Any],
    tree: memoryview | None,
    group: dist.ProcessGroup | None,
    remedies: Callable[[], str],
) -> tuple[dict[str, Entry], str | None]:
    """This rank's files (with `tree`, everything that is not shared out), and what went wrong."""
    staging = Staging(facts.folder)
    writer = dcp.FileSystemWriter(facts.folder, single_file_per_rank=True, sync_files=True)
    writer.fs = _HashingFileSystem(staging)
    try:
        dcp.save(shards, storage_writer=writer, process_group=group)
        if tree is not None:
            with staging.create(TREE) as file:
                file.write(tree)
    except OSError as error:
        return {}, str(refused(facts.path, error, facts.needed, remedies()))
    except CheckpointException as error:  # of some rank; torch raises it on all of them
        causes = [cause for cause, _ in error.failures.values()]
        full = [cause for cause in causes if isinstance(cause, OSError)]
        if not full:
            raise
        return {}, str(refused(facts.path, full[0], facts.needed, remedies()))
    return staging.files, None


class _HashingFileSystem(FileSystem):
    """torch's writer puts its files through the staging folder's hashes."""

    def __init__(self, staging: Staging) -> None:
        self._staging = staging

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Generator[Any, None, None]:
        """A hashed file of the checkpoint."""
        with self._staging.create(Path(path).name) as file:
            yield file

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        """torch writes .metadata under another name first."""
        super().rename(path, new_path)
        self._staging.files[Path(new_path).name] = self._staging.files.pop(Path(path).name)
