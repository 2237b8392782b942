"""The guard watches the text that the parent was trained on, and nothing that only has its name."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import DictConfig, open_dict
from tests.lineage.test_replay import chain, source

from lifecycle import config
from lifecycle.errors import UserError
from lifecycle.lineage.parent import Parent
from lifecycle.lineage.replay import replayed_sources, texts, told_apart, trained_on
from lifecycle.runs.guarded import check_guard, check_reach, guards

OLD = {"mine": source("old.jsonl")}


@pytest.fixture
def parent(tmp_path: Path) -> Parent:
    return chain(tmp_path, {"sources": OLD})


def configured(parent: Parent | None, own: dict[str, Any], *words: str, root: Path | None = None) -> DictConfig:
    """A config after it has taken over what it takes over: mid-training, unless the words say another stage."""
    cfg = config.compose(["stage=midtrain", *words])
    replay = {} if parent is None or "replay" not in cfg.stage else replayed_sources(parent, 1, share=0.1, view="text")
    with open_dict(cfg):
        cfg.data.root = None if root is None else str(root)
        cfg.data.sources = {**own, **told_apart(replay, own, cfg.data.root)}
    return cfg


def refusal(cfg: DictConfig, parent: Parent | None) -> str:
    with pytest.raises(UserError) as raised:
        check_guard(cfg, parent)
    return str(raised.value)


@pytest.mark.parametrize("never", ["0", "null"])
@pytest.mark.parametrize("actions", ["[]", "[rate,restore]"])
def test_a_guard_that_never_measures_is_refused_also_when_it_only_watches(
    parent: Parent, actions: str, never: str
) -> None:
    words = (f"validation.every_steps={never}", f"guard.actions={actions}")
    cfg = configured(parent, {"new": source("new.jsonl")}, *words)
    assert f"validation.every_steps is {never}: type validation.every_steps=N, or guard=null" in refusal(cfg, parent)
    cfg.guard = None
    check_guard(cfg, parent)


def test_a_guard_without_held_out_text_is_refused_also_when_it_only_watches(parent: Parent) -> None:
    cfg = configured(parent, {"new": source("new.jsonl"), "replay": source("old.jsonl", validation=None)})
    cfg.data.sources["replay.mine"].validation = None
    assert "the guard would never see anything: the run has no held-out text" in refusal(cfg, parent)
    assert "or type guard=null" in refusal(cfg, parent)
    cfg.guard.actions = ["rate"]
    assert "guard.actions=[rate] would never act" in refusal(cfg, parent)


@pytest.mark.parametrize("stage", ["grpo", "ppo", "dpo", "reward"])
def test_a_stage_that_measures_no_text_is_not_watched(parent: Parent, stage: str) -> None:
    cfg = configured(parent, {"mine": source("old.jsonl")}, f"stage={stage}")
    check_guard(cfg, parent)
    assert guards(cfg, Path(), SimpleNamespace(held_out=["mine"]), parent) == []  # type: ignore[arg-type]
    cfg.guard.actions = ["rate"]
    assert "and no text; type guard.actions=[]" in refusal(cfg, parent)


def test_text_of_weight_0_is_watched(parent: Parent) -> None:
    cfg = configured(parent, {"new": source("new.jsonl", validation=None)}, "guard.actions=[rate]")
    cfg.data.sources["replay.mine"].weight = 0.0
    check_guard(cfg, parent)


def test_a_name_alone_makes_no_text_the_parents(parent: Parent, tmp_path: Path) -> None:
    words = ("stage=pretrain", "guard.actions=[rate]")
    check_guard(configured(parent, OLD, *words, root=tmp_path), parent)
    check_guard(configured(parent, {"renamed": OLD["mine"]}, *words, root=tmp_path), parent)
    new = configured(parent, {"mine": source("new.jsonl")}, *words, root=tmp_path)
    assert "has no held-out text of what" in refusal(new, parent)
    new.guard.actions = []  # a run on other text, which replays nothing: there is no guard
    check_guard(new, parent)


def test_what_the_parent_measured_and_never_trained_on_is_no_thing_to_retain(tmp_path: Path) -> None:
    """Questions that every stage is asked, as in the demo: to learn them is no loss, and to fail them nothing lost."""
    asked, words = source("asked.jsonl", 0), ("guard.actions=[rate]",)
    parent = chain(tmp_path, {"sources": {**OLD, "asked": asked}})
    assert texts([OLD["mine"]], str(tmp_path)) == trained_on(parent)
    assert "no held-out text of what" in refusal(configured(parent, {"asked": asked}, "stage=pretrain", *words), parent)
    # weights that phases set, or a table: what was seen counts, where the run has written it down
    seen = {"asked": {"tokens": 9}, "mine": {"tokens": 0}}
    run = parent.folder / "run.json"
    told = json.loads(run.read_text())
    run.write_text(json.dumps({**told, "data": {**told["data"], "sources": seen}}))
    assert len(trained_on(parent)) == 2
    # what it has from its own parent's replay is known text, though it was measured alone this time
    kept = chain(tmp_path / "b", {"sources": {"new": source("n.jsonl"), "replay.a": source("a.jsonl", 0)}})
    assert len(trained_on(kept)) == 2


def test_a_replay_of_the_users_own_is_no_domain_with_new_text(parent: Parent) -> None:
    own = {"new": source("new.jsonl", domain="all"), "replay": source("old.jsonl", domain="all")}
    cfg = configured(parent, {})
    with open_dict(cfg):
        cfg.data.sources = own
    assert "have one domain, 'all'" in refusal(cfg, parent) and "data.sources.new.domain=NAME" in refusal(cfg, parent)


def test_what_would_change_the_training_must_be_decided_before_its_end(parent: Parent) -> None:
    cfg = configured(
        parent, {"new": source("new.jsonl")}, "guard.actions=[replay,restore]", "validation.every_steps=50"
    )
    check_reach(cfg, parent, 51)
    with pytest.raises(
        UserError,
        match=r"first when its 50 steps.*more often .validation.every_steps=12.*type guard.actions=\[restore\]",
    ):
        check_reach(cfg, parent, 50)
    cfg.guard.actions = ["restore"]  # also a run that is over can be found too bad
    check_reach(cfg, parent, 50)
