"""What a run may forget: the domains that its parent knew and that it measures; and the guard that watches them.

A domain is the parent's where its run was measured on it, or where this run replays one of its sources.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from omegaconf import DictConfig

from lifecycle import config
from lifecycle.callbacks.guard import ForgettingGuard
from lifecycle.data.module import DataModule
from lifecycle.data.plan import REPLAY, replayed
from lifecycle.errors import UserError
from lifecycle.parent import Parent
from lifecycle.root import Guard


def check_guard(cfg: DictConfig, parent: Parent | None) -> None:
    """Raise UserError where the guard is to act and would have nothing to watch, or nothing to do it with.

    For a config that has all its sources. A dry run without a parent is let through: it does not know them yet.
    """
    if not cfg.guard.actions or (parent is None and config.starts_from_parent(cfg.stage)):
        return
    sources = cfg.data.sources
    domains = {str(name): source.get("domain") or name for name, source in sources.items()}
    back = replayed(domains)
    measured = [domains[name] for name, source in sources.items() if source.get("validation", "a share") is not None]
    if not _known(measured, {domains[name] for name in back}, parent):
        raise _nothing_to_watch(cfg, parent)
    if "replay" in cfg.guard.actions and not back:
        others = ",".join(action for action in cfg.guard.actions if action != "replay")
        raise UserError(
            f"guard.actions has replay, and nothing is replayed in this run: name a source {REPLAY} in the mixture "
            f"(data.sources.{REPLAY}.path=...), or type guard.actions=[{others}]"
        )


def guards(cfg: DictConfig, folder: Path, data: DataModule, parent: Parent | None) -> list[ForgettingGuard]:
    """The guard of a run, none where there is nothing to forget. Raises UserError where such a one is to act."""
    retained = _known(data.held_out, {s.domain for s in data.sources if s.name in data.mix.replay}, parent)
    if not retained and cfg.guard.actions:  # some text was to be held out, and there was too little of it
        raise _nothing_to_watch(cfg, parent)
    return [ForgettingGuard(Guard(**cfg.guard), folder=folder, retained=retained)] if retained else []


def _known(measured: Iterable[str], back: set[str], parent: Parent | None) -> list[str]:
    """Those of the measured domains that the parent knew."""
    known = back | (parent.domains if parent else set())
    return [domain for domain in measured if domain in known]


def _nothing_to_watch(cfg: DictConfig, parent: Parent | None) -> UserError:
    would = f"guard.actions=[{','.join(cfg.guard.actions)}] would never act: "
    if parent is None:
        return UserError(f"{would}the run starts from fresh weights, which forget nothing; type guard.actions=[]")
    return UserError(
        f"{would}the run has no held-out text of what {parent.name} was trained on. Name a source {REPLAY} with a "
        f"validation of its own (data.sources.{REPLAY}.path=...), or type guard.actions=[]"
    )
