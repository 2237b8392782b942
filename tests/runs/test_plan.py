"""A plan says all that a run is, and nothing changes it; what it is made of is read in one place."""

import dataclasses
from pathlib import Path

import pytest
from omegaconf.errors import ReadonlyConfigError
from tests.model.huggingface.families import LLAMA, made

from lifecycle import config
from lifecycle.errors import UserError
from lifecycle.model.huggingface import export
from lifecycle.runs.plan import make_plan

SOURCE = Path(__file__).parents[2] / "src" / "lifecycle"
ENDS_THE_PROCESS = {
    "__main__.py",  # the exit codes
    "config/command.py",
    "report/__main__.py",
    "system/ranks.py",  # a rank beside rank 0, at the entry
    "rewards/pool/worker.py",  # processes of their own, in which completions are graded and programs run
    "rewards/programs/judge.py",
    "rewards/programs/solution.py",
    "rewards/programs/zygote.py",
    "rewards/sandbox/kernel.py",
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_plan_is_frozen_and_so_is_its_config() -> None:
    plan = make_plan(config.compose(["stage.max_steps=4", "run=mine"]))
    assert plan.name == "pretrain" and plan.limits is not None and plan.limits.max_steps == 4
    assert plan.folder.path == Path("outputs/mine").resolve() and plan.reads_data and not plan.replaces_last
    with pytest.raises(ReadonlyConfigError):
        plan.config.seed = 3
    with pytest.raises(ReadonlyConfigError):
        plan.config.data.sources.prose.weight = 0.5
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.name = "other"  # type: ignore[misc]


def test_a_plan_has_what_the_parent_brings_and_the_composed_config_has_not() -> None:
    export(made(LLAMA), Path("given"))
    cfg = config.compose(["init_from=given", "stage.sequence_length=64", "stage.global_batch_tokens=640"])
    plan = make_plan(cfg)
    assert plan.parent is not None and plan.model == LLAMA and plan.model != config.build(cfg.model)
    assert config.build(plan.config.model) == LLAMA
    assert plan.replay_share is None and plan.revisions == {}


def test_a_model_that_cannot_read_the_rows_is_refused_before_anything_is_opened() -> None:
    with pytest.raises(UserError, match="max_positions"):
        make_plan(config.compose(["model.max_positions=64", "stage.sequence_length=512", "data.root=/nowhere"]))


def test_a_source_without_a_place_is_no_fault_of_its_view() -> None:
    """Its name is a slip, which is said where the sources are opened."""
    words = ["data=files", "data.sources.mine.path=pairs.jsonl", "data.sources.mien.weight=0.5"]
    assert "mien" in make_plan(config.compose([*words, "stage.view=preference"])).data.sources


def test_what_is_asked_of_a_stage_says_its_class() -> None:
    """A stage that takes over nothing has none of the keys, whatever they are called."""
    for word in (
        "stage.peak_ratio=0.1",
        "stage.optimizer_state=parent",
        "stage.new_tokens=[a]",
        "stage.replay.share=0",
    ):
        with pytest.raises(UserError, match="there is no such key"):
            config.check(config.compose([word]))
        config.check(config.compose(["stage=midtrain", word]))


def test_hydra_is_known_to_the_config_alone() -> None:
    importing = {file.relative_to(SOURCE) for file in SOURCE.rglob("*.py") if "from hydra" in file.read_text()}
    assert {file.parts[0] for file in importing} == {"config"}


def test_a_run_ends_no_process() -> None:
    found = set()
    for file in SOURCE.rglob("*.py"):
        text = file.read_text()
        if "raise SystemExit" in text or "os._exit(" in text or "sys.exit(" in text:
            found.add(str(file.relative_to(SOURCE)))
    assert found == ENDS_THE_PROCESS
