"""The frame around a run: the folder is locked, SIGTERM and errors are written into run.json, a full disk is reported
as the user's fault, and settings of the process are restored at the end."""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from types import FrameType

import torch
from torch import distributed

from lifecycle.checkpoint import remedies
from lifecycle.errors import DISK_FULL, NO_ACCESS, TOO_LARGE, FolderLost, Terminated, UserError
from lifecycle.runs.begin_end import begin_anew, record_end, reopen
from lifecycle.runs.plan import RunPlan
from lifecycle.system import say_once, signals
from lifecycle.system.lock import hold
from lifecycle.system.ranks import rank


@contextlib.contextmanager
def at_work(plan: RunPlan) -> Iterator[None]:
    """A context for everything that a run does. An exception is raised on, and is written into run.json if the run had
    begun to write one. A job that reads no data writes its folder at its end: until then it holds the last result."""
    say_once.begin_anew()
    with (
        left_as_found(deterministic=plan.config.deterministic),
        _ended_by_sigterm(),
        _disk_faults_said(plan),
        hold(plan.folder.path),
    ):
        if not plan.reads_data:
            yield
            return
        begin_anew(plan)
        before = reopen(plan.folder)
        try:
            if plan.revisions and rank() == 0:  # before anything is read of them
                plan.folder.update(revisions=plan.revisions)
            yield
        except FolderLost:  # what stands in run.json is the other's
            raise
        except BaseException as error:
            with contextlib.suppress(OSError):  # a full disk may be what ended it
                record_end(plan.folder, error, before)
            raise


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """The garbage collector is off: it would take a fifth of the time in which modules are loaded, which all stay."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


_runs: list[bool] = []  # `deterministic` of each run that is at work in this process, in whatever thread
_put_back: list[Callable[[], None]] = []
_turn = threading.Lock()


@contextlib.contextmanager
def left_as_found(*, deterministic: bool) -> Iterator[None]:
    """The process is afterwards what it was: switches of torch, the environment, filters of warnings, Lightning's
    logging, the garbage collector. Of runs in several threads the last to end puts it back.

    Raises UserError for a run that needs another setting of torch's than one at work in another thread.
    """
    with _turn:
        if any(other != deterministic for other in _runs):
            raise UserError(
                f"deterministic={str(deterministic).lower()}, and a run in another thread of this process has the "
                "opposite: the switch is the whole process's. Give both runs one value, or start one after the other"
            )
        if not _runs:
            _put_back[:] = [_putting_back()]
        _runs.append(deterministic)
    try:
        yield
    finally:
        with _turn:
            _runs.remove(deterministic)
            if not _runs:
                _put_back.pop()()


def _putting_back() -> Callable[[], None]:
    """What makes the process again as it is now."""
    algorithms = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark, joined = torch.backends.cudnn.benchmark, distributed.is_initialized()
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else 0
    environment, lightning = dict(os.environ), logging.getLogger("lightning.pytorch")
    level, collecting, frozen = lightning.level, gc.isenabled(), gc.get_freeze_count()
    method = multiprocessing.get_start_method(allow_none=True)
    hook, filters = sys.excepthook, warnings.catch_warnings()
    filters.__enter__()

    def put_back() -> None:
        torch.use_deterministic_algorithms(algorithms[0], warn_only=algorithms[1])
        torch.backends.cudnn.benchmark = benchmark
        if torch.cuda.is_initialized():
            torch.cuda.set_device(device)
        if distributed.is_initialized() and not joined and distributed.get_world_size() == 1:
            distributed.destroy_process_group()
            sys.excepthook = hook  # to which a group adds the number of its rank
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        filters.__exit__(None, None, None)
        lightning.setLevel(level)
        multiprocessing.set_start_method(method, force=True)  # Python itself settles it as a fork server is started
        if collecting:
            gc.enable()
        if not frozen:
            gc.unfreeze()

    return put_back


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM raises `Terminated` where there is nothing to save, until training has a handler of its own
    (`callbacks.saving`). What handled signals before handles them afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    here = os.getpid()

    def end(signum: int, frame: FrameType | None) -> None:
        if os.getpid() == here:
            raise Terminated
        signal.signal(signum, signal.SIG_DFL)  # in a process that was forked from this one, which has no run to end
        signal.raise_signal(signum)

    signals.handle(signal.SIGTERM, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signals.handle(number, handler)


@contextlib.contextmanager
def _disk_faults_said(plan: RunPlan) -> Iterator[None]:
    """Raise UserError for a disk that is full or cannot be written."""
    kept, folder = plan.config.checkpoint, plan.folder
    try:
        yield
    except OSError as error:
        if error.errno in NO_ACCESS:
            raise UserError(
                f"{error.filename or folder.path} cannot be written or read ({error.strerror}); what was saved before "
                "is intact: mend that (permissions? mounted?) and start the same command again"
            ) from error
        if error.errno not in DISK_FULL:
            raise
        if error.errno == errno.EFBIG:
            raise UserError(f"{error.filename or folder.path} could not be written: {TOO_LARGE}") from error
        raise UserError(
            f"no room for {error.filename or folder.path} ({error.strerror}); what was saved before is intact: make "
            "room there and start the same command again. "
            + remedies(folder.checkpoints, keep_last=kept.keep_last, milestones=kept.milestones)
        ) from error
