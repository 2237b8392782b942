"""Laws of hub data sets: a run reads one commit from its first start on, and says which."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from lifecycle.data.read.files import remote
from lifecycle.data.read.spec import SourceSpec
from lifecycle.errors import UserError
from lifecycle.lineage import revisions
from lifecycle.lineage.revisions import pin, with_revisions
from lifecycle.lineage.run_folder import RunFolder

FIRST, SECOND, TAGGED = "a" * 40, "b" * 40, "c" * 40


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the hub's branches are at, and what was asked of it."""
    state: dict[str, Any] = {"main": FIRST, "v1": TAGGED, "asked": []}

    def commit_of(hub: str, revision: str | None, where: str) -> str:
        state["asked"].append((hub, revision))
        return str(state[revision or "main"])

    monkeypatch.setattr(revisions, "commit_of", commit_of)
    return state


def config(**web: Any) -> DictConfig:
    source = {"hub": "owner/web", **web}
    exam = {"exam": {"hub": "owner/exam", "split": "test"}}
    data = {"root": None, "prepared": None, "sources": {"web": source}, "decontaminate": {"sets": exam}}
    made = OmegaConf.create({"data": data})
    OmegaConf.set_struct(made, True)
    return made


def start(folder: Path, cfg: DictConfig) -> str | None:
    """The commit that a start of the run reads; what it leaves in its folder."""
    run = RunFolder(folder)
    pinned = pin(cfg, run)
    cfg = with_revisions(cfg, pinned)
    run.write_config(OmegaConf.to_container(cfg))  # type: ignore[arg-type]
    run.update(revisions=pinned)
    revision: str | None = cfg.data.sources.web.get("revision")
    return revision


def test_the_same_command_goes_on_with_the_commit_it_began_with_and_asks_nobody(
    tmp_path: Path, hub: dict[str, Any]
) -> None:
    assert start(tmp_path, config()) == FIRST
    assert hub["asked"] == [("owner/web", None), ("owner/exam", None)]
    hub["main"] = SECOND  # somebody pushes
    assert start(tmp_path, config()) == FIRST and len(hub["asked"]) == 2
    assert start(tmp_path, config(revision=FIRST)) == FIRST  # as config.yaml has it
    assert start(tmp_path / "new", config()) == SECOND
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["data"]["decontaminate"]["sets"]["exam"] == {
        "hub": "owner/exam",
        "split": "test",
        "revision": FIRST,
    }


def test_a_named_revision_is_resolved_once(tmp_path: Path, hub: dict[str, Any]) -> None:
    assert start(tmp_path, config(revision="v1")) == TAGGED
    hub["v1"] = SECOND
    assert start(tmp_path, config(revision="v1")) == TAGGED
    assert start(tmp_path, config(revision="main")) == FIRST  # another was asked for: the run will refuse it
    assert start(tmp_path / "new", config(revision=SECOND)) == SECOND
    assert ("owner/web", SECOND) not in hub["asked"]  # a commit needs no asking


def test_a_run_of_a_version_that_pinned_nothing_is_left_as_it_was(tmp_path: Path, hub: dict[str, Any]) -> None:
    RunFolder(tmp_path).write_config({"data": {}})
    assert start(tmp_path, config()) is None and not hub["asked"]


def test_a_folder_of_this_machine_has_no_revision(
    tmp_path: Path, hub: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "owner/web").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert start(tmp_path / "run", config()) is None
    assert hub["asked"] == [("owner/exam", None)]


def test_shards_are_read_without_asking_and_say_what_they_were_made_from(tmp_path: Path, hub: dict[str, Any]) -> None:
    shards = tmp_path / "shards"
    start(shards, config(revision="v1"))
    (shards / "prepared/web").mkdir(parents=True)
    hub["asked"].clear()
    cfg = config()
    cfg.data.prepared = str(shards)
    assert start(tmp_path / "run", cfg) == TAGGED and not hub["asked"]


def test_the_revision_is_what_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = dict[str, Any]()

    def builder(path: str, name: str | None, **words: Any) -> Any:
        asked.update(path=path, **words)
        return SimpleNamespace(
            config=SimpleNamespace(data_files={"train": [f"hf://datasets/{path}@{words['revision']}"]})
        )

    monkeypatch.setattr(datasets, "load_dataset_builder", builder)
    spec = SourceSpec(hub="owner/web", revision=FIRST)
    assert remote.hub_files(spec, "/nowhere", "train", where="w") == [f"hf://datasets/owner/web@{FIRST}"]
    assert asked == {"path": "owner/web", "data_dir": None, "revision": FIRST}


def test_a_hub_that_cannot_be_asked_is_said_with_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"data\.sources\.web\.hub is 'owner/web', and its revision v9 cannot be found"):
        revisions.commit_of("owner/web", "v9", "data.sources.web")
    assert json.dumps(SourceSpec(path="x").revision) == "null"
    with pytest.raises(UserError, match=r"revision is 'v1', but only a hub data set has revisions"):
        SourceSpec(path="x", revision="v1").check("web")
