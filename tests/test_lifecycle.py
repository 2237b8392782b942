"""A model's life from stage to stage: each starts from what the one before left, and learns.

The stages are those of `make demo`, at toy size.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lifecycle import config
from lifecycle.loggers import read_metrics
from lifecycle.report.stages import write_stages
from lifecycle.run import run

MODEL = [
    *("model.layers=2", "model.width=48", "model.heads=3", "model.kv_heads=1", "model.head_dim=16"),
    *("model.ffn_width=96", "data.tokenizer={vocab_size: 512, digits: 1, max_bytes: 100000}"),
]
SHORT = [
    *("stage.max_steps=10", "stage.global_batch_tokens=2048", "stage.sequence_length=128", "data.shuffle_buffer=200"),
    *("checkpoint.every_steps=10", "validation.every_steps=10", "validation.tokens=2000", "validation.answers=5"),
    *("validation.answer_tokens=6", "hardware.compile=false", "hardware.workers=0", "hardware.precision=fp32"),
    "logger=csv",
]
TEXTS = ["data.sources.prose.max_rows=200", "data.sources.code.max_rows=200"]
# so short a parent has learned little: a rate like its own, and half of its data again
AFTER = ["stage.peak_ratio=0.5", "stage.replay.share=0.5"]
# a toy draws no right answer that it could learn from: what moves its weights is the entropy
GROUPS = [
    "stage.prompts_per_step=4",
    "stage.samples_per_prompt=4",
    "stage.varying_prompts=null",
    "stage.sampling.max_new_tokens=6",
    "stage.entropy=1",
    "stage.preflight.prompts=0",
]
LIFE = {
    "demo": ["experiment=demo", *MODEL, *TEXTS],
    "demo-midtrain": ["experiment=demo/midtrain", *TEXTS, *AFTER],
    "demo-sft": ["experiment=demo/sft", *AFTER],
    "demo-dpo": ["experiment=demo/dpo", "stage.peak_ratio=0.1"],
    "demo-grpo": ["experiment=demo/grpo", "stage.global_batch_tokens=null", *GROUPS],
}


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """The five runs, by name."""
    place = tmp_path_factory.mktemp("life")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr("lifecycle.runs.results.write_report", lambda folder: None)
        for words in LIFE.values():
            assert run(config.compose([*SHORT, *words])).status == "finished"
    return {name: place / "outputs" / name for name in LIFE}


def facts(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "run.json").read_text()))


def answers(folder: Path) -> dict[int, dict[str, str]]:
    """By step and prompt, what the model says to held-out questions of the domain that all stages are asked."""
    found: dict[int, dict[str, str]] = {}
    for line in (folder / "answers.jsonl").read_text().splitlines():
        one = json.loads(line)
        if one["domain"] == "questions":
            found.setdefault(one["step"], {})[one["prompt"]] = one["completion"]
    return found


def test_each_stage_learns(life: Mapping[str, Path]) -> None:
    for folder in [*life.values()][:-1]:  # a loss of a policy does not fall with what it learns
        losses = [loss for loss in read_metrics(folder / "metrics.csv")["train/loss"] if loss is not None]
        assert sum(losses[-3:]) < sum(losses[:3]), folder


def test_each_stage_names_all_before_it(life: Mapping[str, Path]) -> None:
    folders = list(life.values())
    for number, folder in enumerate(folders):
        told = facts(folder)
        named = [*told["ancestors"], told["parent"]] if number else []
        assert [one["path"] for one in named] == [str(before) for before in folders[:number]]


def test_each_stage_goes_on_with_the_weights_and_the_tokenizer_of_the_one_before(life: Mapping[str, Path]) -> None:
    folders = list(life.values())
    for before, after in zip(folders, folders[1:], strict=False):
        left, begun = answers(before)[10], answers(after)[0]
        assert len(begun) == 5 and begun == left  # greedy, so of the same weights and ids
        assert facts(before)["tokenizer"] == facts(after)["tokenizer"]
        one, other = (load_file(folder / "model/model.safetensors") for folder in (before, after))
        assert one.keys() == other.keys() and not all(torch.equal(one[key], other[key]) for key in one)


def test_preferences_are_measured_from_the_stage_before(life: Mapping[str, Path]) -> None:
    columns = read_metrics(life["demo-dpo"] / "metrics.csv")
    at_start = columns["valid/questions/loss"][columns["step"].index(0)]
    assert at_start == pytest.approx(0.693147, abs=1e-5)  # ln 2: policy and reference are the same


def test_mid_training_replays_the_documents_of_its_parent_and_keeps_watch(life: Mapping[str, Path]) -> None:
    told = facts(life["demo-midtrain"])
    assert {"replay.prose", "replay.code"} <= set(told["data"]["sources"])
    assert (life["demo-midtrain"] / "forgetting.json").exists()


def test_no_stage_trains_on_what_is_asked(life: Mapping[str, Path]) -> None:
    for name in ("demo", "demo-midtrain", "demo-sft"):
        ledger = json.loads((life[name] / "ledger.json").read_text())["sources"]
        assert not any(row["seen_tokens"] for source, row in ledger.items() if "asked" in source)


def test_transformers_asks_the_last_model_by_its_own_template(life: Mapping[str, Path]) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(life["demo-grpo"] / "model")
    model: Any = AutoModelForCausalLM.from_pretrained(life["demo-grpo"] / "model")
    for prompt, completion in answers(life["demo-grpo"])[10].items():
        asked = prompt.partition("<|user|>\n")[2].partition("<|end|>")[0]
        turns = [{"role": "user", "content": asked}]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        assert tokenizer.decode(ids[0]) == prompt
        said = model.generate(ids, do_sample=False, max_new_tokens=6)[0, ids.shape[1] :]
        assert tokenizer.decode(said) == completion


def test_one_page_tells_of_all_stages(life: Mapping[str, Path], tmp_path: Path) -> None:
    page = write_stages(list(life.values()), tmp_path).read_text()
    assert "Right answers to 5 held-out questions" in page and (tmp_path / "stages.html").is_file()
    for stage in ("pretrain", "midtrain", "sft", "dpo", "grpo"):
        assert f"| {stage} | " in page


def test_a_model_of_the_line_judges_what_another_learns_from(
    life: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(life["demo"].parents[1])
    monkeypatch.setattr("lifecycle.runs.results.write_report", lambda folder: None)
    judge = ["stage=reward", "init_from=demo-dpo", "data=offline/preferences", "stage.optimizer.lr=1e-3", "run=judge"]
    liked = [
        *("stage=rlaif", "init_from=demo-grpo", "data=offline/questions", "stage.reward_model.path=judge", "run=liked"),
        *("stage.optimise=online_dpo", "stage.global_batch_tokens=null", "stage.optimizer.lr=1e-3", *GROUPS),
    ]
    for words in (judge, liked):
        assert run(config.compose([*SHORT, "stage.max_epochs=null", *words])).status == "finished"
    told = facts(life["demo"].parent / "liked")
    assert [Path(told[key]["path"]).name for key in ("parent", "reward_model")] == ["demo-grpo", "judge"]
    before, after = (
        load_file(folder / "model/model.safetensors") for folder in (life["demo-grpo"], Path("outputs/liked"))
    )
    assert before.keys() == after.keys() and any(not torch.equal(before[name], after[name]) for name in before)
