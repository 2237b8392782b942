"""Reward models end to end: from a language model to scores that transformers gives too, resumed, and refused as
parents of what predicts tokens."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.run.cli import assert_same_run, cut_back, facts, kill_after, lifecycle, metrics
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lifecycle.config import compose
from lifecycle.errors import UserError
from lifecycle.report.page.render import to_markdown
from lifecycle.report.run.run_data import read_run
from lifecycle.report.run.sections import sections
from lifecycle.runs.plan import make_plan

JUDGE = (
    "stage=reward",
    "data=pairs",
    "init_from=whole",
    "stage.max_epochs=null",
    "stage.max_steps=24",
    "stage.peak_ratio=1.0",
    "stage.global_batch_tokens=512",
    "validation.every_steps=8",
    "validation.tokens=1500",
    "checkpoint.every_steps=4",
    "checkpoint.keep_last=99",
)


@pytest.fixture(scope="module", autouse=True)
def pairs(place: Path, whole: Path) -> None:
    """A data config of two sources of pairs: the better answer is polite."""
    sources: dict[str, Any] = {}
    for name, count in (("mild", 160), ("rude", 120)):
        rows = [
            {"prompt": f"{name} {n} cat?", "chosen": f"the cat sat near {n}", "rejected": f"that old grey house {n}"}
            for n in range(count)
        ]
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        sources[name] = {"path": f"{name}.jsonl", "format": "auto", "validation": {"ratio": 0.1, "seed": 1}}
    node = {"defaults": ["_engine", "_self_"], "tokenizer": "unused", "shuffle_buffer": 64, "sources": sources}
    (place / "conf/data/pairs.yaml").write_text(yaml.safe_dump(node, sort_keys=False))


@pytest.fixture(scope="module")
def judge(place: Path, pairs: None) -> Path:
    """The run that nothing happened to."""
    lifecycle(place, "run=judge", *JUDGE)
    return place / "outputs/judge"


def test_it_learns_and_says_how_sure_it_may_be(judge: Path) -> None:
    told = metrics(judge)
    accuracy = [one for one in told["valid/mild/accuracy"] if one is not None]
    assert facts(judge)["parameters"] == facts(judge.parent / "whole")["parameters"] + 32  # beside a tied embedding
    assert accuracy[-1] > 0.9 and told["valid/mild/calibration_error"][-1] is not None
    assert "valid/mild/gap_0" not in told and "valid/mild/perplexity" not in told
    assert told["reward/mild/margin"] and told["reward/accuracy"]
    found = facts(judge, "calibration.json")
    assert set(found) == {"mild", "rude"}
    for domain in found.values():
        assert domain["pairs"] == sum(one["pairs"] for one in domain["bins"]) > 0
        assert domain["interval"][0] < domain["accuracy"] <= domain["interval"][1] + 1e-9
    assert found["mild"]["accuracy"] == pytest.approx(told["valid/mild/accuracy"][-1])
    assert found["mild"]["calibration_error"] == pytest.approx(told["valid/mild/calibration_error"][-1], abs=1e-5)
    report = to_markdown("judge", sections(read_run(judge), []), "report")
    assert "## Held-out pairs" in report and "chosen: " in report and "AutoModelForSequenceClassification" in report


def test_transformers_gives_the_same_number_for_the_same_text(judge: Path) -> None:
    """Alone and in a padded batch; the text ends with the token that ends the answer."""
    model = AutoModelForSequenceClassification.from_pretrained(judge / "model")
    tokenizer = AutoTokenizer.from_pretrained(judge / "model")
    said = json.loads((judge / "samples.json").read_text())
    texts, scores = [one["prompt"] + one["completion"] for one in said], [one["score"] for one in said]
    assert len(said) == 8 and {one["side"] for one in said} == {"chosen", "rejected"}
    with torch.no_grad():
        for text, score in zip(texts, scores, strict=True):
            inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
            assert float(model(**inputs).logits[0, 0]) == pytest.approx(score, abs=1e-5)
        batch = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
        batch.pop("token_type_ids", None)
        assert model(**batch).logits[:, 0].tolist() == pytest.approx(scores, abs=1e-5)
    turns = [{"role": "user", "content": "mild 1 cat?"}, {"role": "assistant", "content": "the cat sat near 1"}]
    text = str(tokenizer.apply_chat_template(turns, tokenize=False)).rstrip()
    last = tokenizer(text, add_special_tokens=False).input_ids[-1]
    assert tokenizer.decode([last]) and said[0]["completion"].endswith(tokenizer.decode([last]))
    assert last != model.config.pad_token_id == tokenizer.pad_token_id


@pytest.mark.parametrize("step", [4, 20, 24])
def test_it_goes_on_to_the_same_end(place: Path, judge: Path, step: int) -> None:
    again = place / f"outputs/again-{step}"
    cut_back(judge, again, step)
    lifecycle(place, f"run=again-{step}", *JUDGE)
    assert facts(again)["resumed"] == 1
    assert_same_run(again, judge)
    assert facts(again, "calibration.json") == facts(judge, "calibration.json")


@pytest.mark.slow
def test_killed_at_ten_moments_it_is_the_run_that_was_not(place: Path, judge: Path) -> None:
    draw, run = random.Random(3), place / "outputs/killed"
    for number in range(10):
        soon = number % 2 > 0
        kill_after(place, "run=killed", *JUDGE, checkpoints=not soon, wait=draw.uniform(0.2, 2.0) if soon else 0.0)
    lifecycle(place, "run=killed", *JUDGE)
    assert_same_run(run, judge)


def test_a_reward_model_goes_on_as_one_and_is_no_parent_of_others(
    place: Path, judge: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, parent in (("second", "judge"), ("third", "judge@8")):
        lifecycle(place, f"run={name}", *JUDGE, f"init_from={parent}", "stage.max_steps=2", "stage.optimizer.lr=1e-5")
    began = next(one for one in metrics(place / "outputs/second")["valid/mild/accuracy"] if one is not None)
    assert began > 0.9  # with its own score, not a fresh one
    assert facts(place / "outputs/second")["ancestors"][0]["path"].endswith("whole")
    for words in (
        ("stage=midtrain", "init_from=judge"),
        ("stage=pretrain", "init_from=judge@8"),
        ("stage=pretrain", "model.score_head=true"),
    ):
        done = lifecycle(place, "run=refused", *words, code=2)
        said = " ".join(done.err.split())
        assert "is a reward model" in said or "model.score_head is true" in said, said
    monkeypatch.chdir(place)
    with pytest.raises(UserError, match=r"judge is a reward model: .* stage=generate needs"):
        make_plan(compose(["stage=generate", "init_from=judge", "stage.prompt=the"]))


def test_what_it_cannot_learn_from_is_said(place: Path, whole: Path) -> None:
    for words, said in (
        (("data=toy",), "comparison"),
        (("stage.view=preference",), "stage.view=comparison"),
    ):
        done = lifecycle(place, "run=refused", *JUDGE, *words, code=2)
        assert said in " ".join(done.err.split())


def test_a_dry_run_counts_it(place: Path, whole: Path) -> None:
    done = lifecycle(place, "run=planned", *JUDGE, "dry_run=true")
    assert "its 135 pairs" in done.out
