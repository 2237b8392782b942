"""Reinforcement learning on the real rows of medical examinations, shrunk: three steps, and what was asked in them."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.real import REAL, needs_real, rows

from lifecycle import config
from lifecycle.data.read.formats import to_record
from lifecycle.loggers import read_metrics
from lifecycle.rewards.choice import choice
from lifecycle.rewards.record import Answered
from lifecycle.run import run
from lifecycle.stages.reinforcement.acting.kept_rollouts import read

MODEL = [
    *("model.layers=2", "model.width=32", "model.heads=2", "model.kv_heads=1", "model.head_dim=16"),
    "model.ffn_width=64",
]
SMALL = [
    *("data=offline/usmle", f"data.root={REAL / 'med'}", "stage.max_epochs=null", "stage.sequence_length=512"),
    *("data.sources.medqa.max_rows=100", "data.sources.medmcqa.max_rows=100", "data.decontaminate=null"),
    *("hardware.compile=false", "hardware.workers=0", "hardware.peak_tflops=1", "hardware.precision=fp32"),
    *("logger=csv", "logging.every_steps=1", "validation.every_steps=0", "checkpoint.every_steps=0", "guard=null"),
]
SAMPLES = [
    "stage.max_steps=3",
    "stage.prompts_per_step=4",
    "stage.samples_per_prompt=4",
    "stage.keep_rollouts=1",
    "stage.preflight.prompts=0",
]
PARENT = [
    *("data.tokenizer.vocab_size=512", "data.tokenizer.max_bytes=200000", "stage.global_batch_tokens=1024"),
    *("stage.max_steps=2", "run=parent"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a parent that has read the questions as text."""
    folder = tmp_path_factory.mktemp("usmle")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("lifecycle.runs.results.write_report", lambda folder: None)
        run(config.compose([*SMALL, *MODEL, *PARENT]))
    return folder


def options(prompt: str) -> list[str]:
    """Of a question as it was asked, in their order."""
    return [line[3:].split("<|")[0] for line in prompt.splitlines() if line[:3] in ("A. ", "B. ", "C. ", "D. ")]


@needs_real
@pytest.mark.slow
@pytest.mark.parametrize("stage", ["grpo", "grpo_usmle"])
def test_three_steps_on_real_questions(place: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr("lifecycle.runs.results.write_report", lambda folder: None)
    words = [*SMALL, f"stage={stage}", *MODEL, "init_from=parent", f"run={stage}", *SAMPLES]  # the parent's own model
    run(config.compose([*words, "stage.sampling.max_new_tokens=8", "hardware.micro_batch_tokens=4096"]))
    folder = place / "outputs" / stage
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"
    told = read_metrics(folder / "metrics.csv")
    deviations = [value for value in told["policy/ratio_max_deviation"] if value is not None]
    assert told["step"][-1] == 3 and len(deviations) == 3 and max(deviations) < 1e-4
    kept: list[dict[str, Any]] = read(folder).to_pylist()
    assert len(kept) == 3 * 16 and {one["source"] for one in kept} == {"medqa", "medmcqa"}
    _check_what_was_asked(kept, plain=stage == "grpo_usmle")


def _check_what_was_asked(kept: list[dict[str, Any]], *, plain: bool) -> None:
    """Of each sample: the text of its prompt, the options in it, the letter that is right, and its mark."""
    known, moved = _known(), 0
    for one in kept:
        prompt = one["prompt"].removeprefix("<|bos|>")
        assert (prompt.startswith("Question: ") and prompt.endswith("\nAnswer: ")) if plain else "<|user|>" in prompt
        asked = options(prompt)
        given, right = known[tuple(sorted(asked))]
        assert asked["ABCD".index(one["answer"])] == right
        moved += asked != given
        assert one["reward"] == choice(one["completion"], Answered(answer=one["answer"], meta={"options": asked}))
        assert one["rewards"] == {"choice": one["reward"]}
    assert moved > len(kept) / 2
    ways = {(one["step"], one["place"]): one["prompt"] for one in kept}
    assert all(one["prompt"] == ways[one["step"], one["place"]] for one in kept)  # one order for a group


def _known() -> dict[tuple[str, ...], tuple[list[str], str]]:
    """By the options in any order: their order in the row, and the right one."""
    sources, found = config.build(config.compose([*SMALL, "stage=grpo"]).data).sources, {}
    for name, file in (("medqa", "med/medqa_us4.train_subset"), ("medmcqa", "med/medmcqa.dev_part1")):
        for number, row in enumerate(rows(file)[:100]):
            meta = to_record(row, spec=sources[name], name=name, row_id=str(number)).meta
            found[tuple(sorted(meta["options"]))] = (meta["options"], meta["answer_text"])
    return found
