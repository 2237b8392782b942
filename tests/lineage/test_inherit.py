"""The optimizer of a stage that goes on from a parent: the parent's kind, where the user names none."""

import json
from pathlib import Path

import pytest
import yaml
from omegaconf import DictConfig
from tests.lineage.test_replay import chain, source

from lifecycle import config
from lifecycle.errors import UserError
from lifecycle.lineage.inherit import settled
from lifecycle.lineage.parent import Parent
from lifecycle.optim import AdamW, Muon


def trained_with(folder: Path, *words: str) -> Parent:
    """A parent whose run had the optimizer that the words choose, at a peak rate of 0.03."""
    parent = chain(folder, {"sources": {"a": source("a.jsonl")}})
    assert parent.run is not None
    written = config.resolved(config.compose(words))
    (parent.run.path / "config.yaml").write_text(yaml.safe_dump(written))
    (parent.run.path / "run.json").write_text(json.dumps(parent.run.lineage() | {"peak_lr": 0.03}))
    return parent


def taken(parent: Parent, *words: str) -> DictConfig:
    cfg = settled(config.compose(["stage=midtrain", *words]), parent)
    config.check(cfg)
    return cfg


def test_the_parents_kind_is_the_default(tmp_path: Path) -> None:
    cfg = taken(trained_with(tmp_path, "optimizer=muon", "stage.optimizer.momentum=0.5"))
    spec = config.build(config.compose(["optimizer=muon"]).stage.optimizer)
    made = config.build(cfg.stage.optimizer)
    assert isinstance(made, Muon) and made.lr == pytest.approx(0.03 * 0.0333)
    assert made.momentum == spec.momentum == 0.95  # of the kind's own file, as if it had been chosen


def test_what_the_user_sets_stays_under_another_kind(tmp_path: Path) -> None:
    cfg = taken(trained_with(tmp_path, "optimizer=muon"), "stage.optimizer.weight_decay=0.03", "stage.optimizer.lr=0.5")
    assert cfg.stage.optimizer._target_.endswith("Muon")
    assert (cfg.stage.optimizer.lr, cfg.stage.optimizer.weight_decay) == (0.5, 0.03)


def test_a_kind_that_the_user_names_is_not_changed(tmp_path: Path) -> None:
    parent = trained_with(tmp_path, "optimizer=muon")
    assert isinstance(config.build(taken(parent, "optimizer=adamw", "stage.optimizer.lr=1e-4").stage.optimizer), AdamW)
    with pytest.raises(UserError, match="trained with Muon, whose rates mean nothing to AdamW: type optimizer=muon"):
        taken(parent, "optimizer=adamw")
    with pytest.raises(UserError, match="trained with AdamW, whose rates mean nothing to Muon"):
        taken(trained_with(tmp_path / "other"), "optimizer=muon")


def test_other_stages_choose_for_themselves(tmp_path: Path) -> None:
    cfg = settled(config.compose(["stage=pretrain"]), trained_with(tmp_path, "optimizer=muon"))
    assert cfg.stage.optimizer._target_.endswith("AdamW")


def test_the_config_that_was_composed_stays_as_it_is(tmp_path: Path) -> None:
    cfg = config.compose(["stage=midtrain"])
    before = config.resolved(cfg)
    parent = trained_with(tmp_path, "optimizer=muon")
    made = settled(cfg, parent)
    assert config.resolved(cfg) == before
    assert set(made.data.sources) == {*before["data"]["sources"], "replay.a"}
    assert config.changed_keys(config.resolved(made), config.resolved(settled(made, parent))) == []  # nothing is left
