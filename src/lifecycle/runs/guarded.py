"""The domains that a run may forget, those whose text its parent was trained on, and the guard that measures them.

A domain is the parent's where this run replays it, or where its text is text of the parent's; an equal name is not
enough. A guard that could never measure is refused, whether it has actions or only reports.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from lifecycle import config
from lifecycle.config.schema import Guard
from lifecycle.data.mixture.batch_plan import REPLAY, replayed
from lifecycle.errors import UserError
from lifecycle.lineage.parent import Parent
from lifecycle.lineage.replay import by_domain, texts, trained_on

if TYPE_CHECKING:
    from lifecycle.callbacks.guard import ForgettingGuard
    from lifecycle.data.module import DataModule


def check_guard(cfg: DictConfig, parent: Parent | None) -> None:
    """Raise UserError where the guard would have no domain to measure, no validation, or no replay to raise.

    For a config with all its sources. A dry run without a parent passes: its replayed sources are not known yet.
    """
    stage = config.stage_class(cfg.stage)
    if cfg.guard is None or stage is None or (parent is None and stage.starts_from_parent):
        return
    known = _known(cfg, parent)
    _refuse_mixed(config.resolved(cfg)["data"])
    if not any(known.values()):
        if cfg.guard.actions or known:
            raise _nothing_to_watch(cfg, parent)
        return
    if not (every := cfg.validation.every_steps):
        raise UserError(
            "the guard looks at what the run has forgotten whenever it is measured, and validation.every_steps is "
            f"{'null' if every is None else every}: type validation.every_steps=N, or guard=null for a run "
            "without a guard"
        )
    if "replay" in cfg.guard.actions and not replayed(cfg.data.sources):
        others = ",".join(action for action in cfg.guard.actions if action != "replay")
        raise UserError(
            f"guard.actions has replay, and nothing is replayed in this run: name a source {REPLAY} in the mixture "
            f"(data.sources.{REPLAY}.path=...), or type guard.actions=[{others}]"
        )


def check_reach(cfg: DictConfig, parent: Parent | None, steps: int) -> None:
    """Raise UserError where the guard's first measurement comes too late to change the training of the run."""
    actions = [] if cfg.guard is None or parent is None else cfg.guard.actions
    changing = [action for action in actions if action in ("replay", "rate")]
    if changing and cfg.validation.every_steps >= steps:
        more = f" (validation.every_steps={max(1, steps // 4)})" if steps > 1 else ""
        raise UserError(
            f"guard.actions has {', '.join(changing)}, and the run is measured first when its {steps} steps are over "
            f"(validation.every_steps={cfg.validation.every_steps}): measure it more often{more}, or type "
            f"guard.actions=[{','.join(action for action in actions if action not in changing)}]"
        )


def guards(cfg: DictConfig, folder: Path, data: DataModule, parent: Parent | None) -> list[ForgettingGuard]:
    """The guard of a run; empty where no domain is the parent's. Raises UserError where their held-out text is
    empty."""
    from lifecycle.callbacks.guard import ForgettingGuard  # here: a dry run, which makes none, does without Lightning

    if cfg.guard is None:
        return []
    known = _known(cfg, parent)
    retained = [domain for domain in data.held_out if known.get(domain)]
    if known and not retained:  # some text was to be held out, and there was too little of it
        raise _nothing_to_watch(cfg, parent)
    return [ForgettingGuard(Guard(**cfg.guard), folder=folder, retained=retained)] if retained else []


def _known(cfg: DictConfig, parent: Parent | None) -> dict[str, bool]:
    """The domains whose text the parent was trained on -> whether some of it is held out; none where the stage measures
    no loss of text."""
    stage = config.stage_class(cfg.stage)
    if parent is None or (stage is not None and stage.measures is not None):
        return {}
    data: Mapping[str, Any] = config.resolved(cfg)["data"]
    back, theirs = replayed(data["sources"]), trained_on(parent)
    return {
        domain: any(source.get("validation", "a share") is not None for source in members.values())
        for domain, members in by_domain(data["sources"]).items()
        if set(members) & back or texts(members.values(), data["root"]) <= theirs
    }


def _refuse_mixed(data: Mapping[str, Any]) -> None:
    """Raise UserError for a domain of old and new text: learning the new would hide forgetting of the old."""
    for domain, members in by_domain(data["sources"]).items():
        old = replayed(members)
        new = [name for name in members if name not in old]
        halves = [texts((members[name] for name in names), data["root"]) for names in (old, new)]
        if old and new and halves[0] != halves[1]:
            raise UserError(
                f"data.sources.{min(old)} and {new[0]} have one domain, '{domain}', in which what is learned of the "
                f"new text would hide what is forgotten of the old: type data.sources.{new[0]}.domain=NAME"
            )


def _nothing_to_watch(cfg: DictConfig, parent: Parent | None) -> UserError:
    acts = f"guard.actions=[{','.join(cfg.guard.actions)}] would never act"
    would = f"{acts if cfg.guard.actions else 'the guard would never see anything'}: "
    if parent is None:
        return UserError(f"{would}the run starts from fresh weights, which forget nothing; type guard.actions=[]")
    off = "guard.actions=[]" if cfg.guard.actions else "guard=null"
    stage = config.stage_class(cfg.stage)
    if stage is not None and stage.measures is not None:
        return UserError(
            f"{would}it looks at the perplexity of held-out text, and this stage measures {', '.join(stage.measures)} "
            f"of held-out data, and no text; type {off}"
        )
    return UserError(
        f"{would}the run has no held-out text of what {parent.name} was trained on. Name a source {REPLAY} with a "
        f"validation of its own (data.sources.{REPLAY}.path=...), or type {off}"
    )
