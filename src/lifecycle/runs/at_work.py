"""The frame around a run: the folder is locked, SIGTERM and errors are written into run.json, a full disk is reported
as the user's fault, and settings of the process are restored at the end."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
from collections.abc import Iterator
from types import FrameType

import torch

from lifecycle.checkpoint import remedies
from lifecycle.errors import DISK_FULL, NO_ACCESS, Terminated, UserError
from lifecycle.runs.begin_end import begin_anew, record_end, reopen
from lifecycle.runs.plan import RunPlan
from lifecycle.system import say_once, signals
from lifecycle.system.lock import hold
from lifecycle.system.ranks import LAUNCH, rank


@contextlib.contextmanager
def at_work(plan: RunPlan) -> Iterator[None]:
    """A context for everything that a run does. An exception is raised on, and is written into run.json if the run had
    begun to write one. A job that reads no data writes its folder at its end: until then it holds the last result."""
    say_once.begin_anew()
    with _settings_put_back(), _ended_by_sigterm(), _disk_faults_said(plan), hold(plan.folder.path):
        if not plan.reads_data:
            yield
            return
        begin_anew(plan)
        before = reopen(plan.folder)
        try:
            if plan.revisions and rank() == 0:  # before anything is read of them
                plan.folder.update(revisions=plan.revisions)
            yield
        except BaseException as error:
            with contextlib.suppress(OSError):  # a full disk may be what ended it
                record_end(plan.folder, error, before)
            raise


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
def _settings_put_back() -> Iterator[None]:
    """What a run sets for its whole process is afterwards as it was, however the run ended: the garbage collector,
    which stands still between steps, torch's choice of deterministic algorithms, and the sign by which ranks know who
    launched them, which ranks of another launch below this process would take for theirs."""
    collects, deterministic = gc.isenabled(), torch.are_deterministic_algorithms_enabled()
    only_warns, launch = torch.is_deterministic_algorithms_warn_only_enabled(), os.environ.get(LAUNCH)
    try:
        yield
    finally:
        gc.unfreeze()
        (gc.enable if collects else gc.disable)()
        torch.use_deterministic_algorithms(deterministic, warn_only=only_warns)
        os.environ.pop(LAUNCH, None)
        os.environ.update({LAUNCH: launch} if launch is not None else {})


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
        raise UserError(
            f"no room for {error.filename or folder.path} ({error.strerror}); what was saved before is intact: make "
            "room there and start the same command again. "
            + remedies(folder.checkpoints, keep_last=kept.keep_last, milestones=kept.milestones)
        ) from error
