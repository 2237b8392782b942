from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lifecycle.report.run.commands import LADDER, going_on
from lifecycle.report.run.run_data import RunData, read_run

MODELS = Path(__file__).parents[3] / "conf" / "model"


@pytest.fixture(scope="module")
def run(finished: Path) -> RunData:
    return read_run(finished)


def commands(run: RunData, **entries: Any) -> list[str]:
    return [
        command for _, command, language in going_on(replace(run, run={**run.run, **entries})) if language == "bash"
    ]


def test_a_run_by_defaults_is_found_again_by_its_default_name(run: RunData) -> None:
    assert commands(run, overrides=[])[0] == "python -m lifecycle run=demo stage.max_steps=800"


def test_going_on_for_longer_is_said_to_rise_only_when_told_to(run: RunData) -> None:
    words = next(
        words for words, command, _ in going_on(replace(run, run={**run.run, "overrides": []})) if "longer" in words
    )
    assert "at no higher rate" in words and "stage.schedule.stretch=true" in words


def test_a_run_that_ended_at_a_rate_of_zero_is_offered_that_of_the_longer_run(run: RunData) -> None:
    rates = [*run.metrics["train/lr"][:-1], 0.0]
    ended = replace(run, metrics={**run.metrics, "train/lr": rates})
    wanted = "python -m lifecycle run=demo stage.max_steps=800 stage.schedule.stretch=true"
    assert commands(ended, overrides=["run=demo", "stage.schedule.stretch=false"])[0] == wanted


def test_a_job_of_a_sweep_is_found_below_its_sweep(run: RunData) -> None:
    job = replace(run, folder=run.folder / "1", config={**run.config, "run": "demo"})
    assert commands(job, overrides=["seed=2"])[0] == "python -m lifecycle seed=2 run=demo/1 stage.max_steps=800"


def test_an_override_is_quoted_for_the_shell(run: RunData) -> None:
    found = commands(run, overrides=["run=a b", "data.sources.x.path=[a,b]"], status="stopped")
    assert found[0] == "python -m lifecycle 'run=a b' 'data.sources.x.path=[a,b]'"


def test_an_old_limit_is_replaced_not_repeated(run: RunData) -> None:
    found = commands(run, overrides=["run=demo", "stage.max_steps=400"])
    assert found[0] == "python -m lifecycle run=demo stage.max_steps=800"


def test_the_next_larger_model_is_offered_until_there_is_none(run: RunData) -> None:
    assert any("model=medium " in line for line in commands(run, parameters=110_000_000))
    assert not any("dry_run" in line for line in commands(run, parameters=7_000_000_000))


def test_the_python_that_samples_is_python(run: RunData) -> None:
    (source,) = [command for _, command, language in going_on(run) if language == "python"]
    compile(source, "sampling", "exec")


def test_a_run_that_takes_its_parents_architecture_is_offered_no_other(run: RunData) -> None:
    assert not any("model=medium" in line for line in commands(run, parameters=110_000_000, parent={"path": "p"}))


@pytest.mark.parametrize("name", LADDER)
def test_every_offered_model_is_shipped(name: str) -> None:
    assert (MODELS / f"{name}.yaml").exists()


@pytest.mark.parametrize("judges", [False, True])
def test_an_adapter_that_was_not_merged_has_commands_that_read_its_parent_too(
    run: RunData, tmp_path: Path, judges: bool
) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    found = going_on(replace(run, folder=tmp_path, calibration={"bins": []} if judges else {}))
    (source,) = [command for _, command, language in found if language == "python"]
    compile(source, "adapter", "exec")
    assert repr(str(tmp_path / "adapter")) in source and "/model'" not in source
    assert ("AutoPeftModelForSequenceClassification" in source) == judges
    writing = [command for _, command, _ in found if f"stage=generate init_from={tmp_path}" in command]
    assert len(writing) == (0 if judges else 1)
    whole = [command for _, command, _ in going_on(run)]
    assert not any("peft" in command for command in whole)
