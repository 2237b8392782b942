"""Supervised fine-tuning end to end: whole passes, what every source's held-out rows and answers say, replay beside
conversations, the guard, a curriculum, and a model that transformers can ask and that stops."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.run.cli import (
    assert_same_run,
    assert_same_weights,
    cut_back,
    facts,
    kill_after,
    lifecycle,
    make_texts,
    metrics,
    newest,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

SFT = (
    "stage=sft",
    "data=talks",
    "init_from=whole",
    "stage.max_epochs=2",
    "stage.max_steps=null",
    "stage.peak_ratio=1.0",
    "stage.global_batch_tokens=512",
    "validation.every_steps=8",
    "validation.tokens=1500",
    "validation.answers=3",
    "validation.answer_tokens=16",
    "checkpoint.every_steps=8",
    "checkpoint.keep_last=99",
)
ANIMALS = "cat dog cow hen fox owl".split()


def rows(kind: str, count: int) -> list[dict[str, Any]]:
    """Questions of two kinds with a short answer; the longer the number, the higher the level."""
    out = []
    for n in range(count):
        asked = f"{kind} {n} the {ANIMALS[n % 6]} sat near the {ANIMALS[n // 6 % 6]}?"
        out.append({"instruction": asked, "output": "yes it ran" if n % 6 > n // 6 % 6 else "no", "level": 1 + n % 5})
    return out


@pytest.fixture(scope="module", autouse=True)
def talks(place: Path, whole: Path) -> None:
    """A data config of two sources of instructions."""
    sources: dict[str, Any] = {}
    for name, count in (("where", 160), ("when", 120)):
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(name, count)))
        sources[name] = {"path": f"{name}.jsonl", "format": "auto", "validation": {"ratio": 0.1, "seed": 1}}
    node = {"defaults": ["_engine", "_self_"], "tokenizer": "unused", "shuffle_buffer": 64, "sources": sources}
    (place / "conf/data/talks.yaml").write_text(yaml.safe_dump({**node, "exhausted": "drop"}, sort_keys=False))


@pytest.fixture(scope="module")
def talking(place: Path, talks: None) -> Path:
    """The run that nothing happened to."""
    done = lifecycle(place, "run=talking", *SFT)
    assert "data.sources.where.format: instruction, by the columns of its first rows" in done.err.replace("\n", " ")
    return place / "outputs/talking"


def answers(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "answers.jsonl").read_text().splitlines()]


def test_it_reads_whole_passes_and_inherits_the_rate(talking: Path, whole: Path) -> None:
    told, ledger = facts(talking), facts(talking, "ledger.json")["sources"]
    assert told["peak_lr"] == facts(whole)["peak_lr"]
    assert ledger["where"]["epochs"] == 2.0  # the first source of the largest weight, to its last row and no further
    assert ledger["when"]["epochs"] > 0


def test_every_source_shows_its_loss_and_what_the_parent_knew_is_measured(talking: Path) -> None:
    seen = metrics(talking)
    domains = ("where", "when", "long", "short", "tiny")
    for domain in domains:
        losses = [one for one in seen[f"valid/{domain}/loss"] if one is not None]
        assert len(losses) >= 3 and seen["step"][0] == 0
    learnt = [one for one in seen["valid/where/loss"] if one is not None]
    assert learnt[-1] < learnt[0]
    assert set(facts(talking, "forgetting.json")["measurements"][-1]["forgetting"]) == {"long", "short", "tiny"}


def test_the_parents_text_is_measured_as_the_parent_did(talking: Path, whole: Path) -> None:
    """As documents, cut into rows: not as conversations."""
    before, after = metrics(whole), metrics(talking)
    for domain in ("long", "short", "tiny"):
        ended, begun = before[f"valid/{domain}/perplexity"][-1], after[f"valid/{domain}/perplexity"][0]
        assert ended is not None
        if domain != "long":  # whose measured share is another: validation.tokens is less
            assert begun == pytest.approx(ended, rel=1e-4), domain


def test_it_answers_the_same_held_out_prompts_at_every_measurement(talking: Path) -> None:
    said, seen = answers(talking), dict[str, Any](metrics(talking))
    steps = sorted({one["step"] for one in said})
    measured = [step for step, loss in zip(seen["step"], seen["valid/loss"], strict=True) if loss is not None]
    assert steps == measured and steps[0] == 0
    asked = [[one["prompt"] for one in said if one["step"] == step] for step in steps]
    assert all(prompts == asked[0] for prompts in asked) and len(asked[0]) == 6
    trained = {row["instruction"] for name in ("where", "when") for row in rows(name, 160)}
    assert all(any(text in prompt for text in trained) for prompt in asked[0])
    assert all(prompt.endswith("<|assistant|>\n") for prompt in asked[0])
    for step in steps:
        here = [one for one in said if one["step"] == step]
        row = seen["step"].index(step)
        assert seen["rollout/stopped"][row] == sum(one["stopped"] for one in here) / 6
        assert seen["rollout/well_formed"][row] == sum(one["well_formed"] for one in here) / 6
        assert seen["rollout/length"][row] == sum(one["tokens"] for one in here) / 6
    assert {one["reference"] for one in said} <= {"yes it ran<|end|>", "no<|end|>"}
    samples: Any = facts(talking, "samples.json")
    mine = [one for one in samples if one["domain"] in ("where", "when")]
    assert [one["completion"] for one in mine] == [one["completion"] for one in said if one["step"] == steps[-1]]
    assert {one["domain"] for one in samples} > {"where", "when"}  # and the parent's texts are gone on with


def test_transformers_asks_the_export_by_its_template_and_it_stops(talking: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(talking / "model")
    model: Any = AutoModelForCausalLM.from_pretrained(talking / "model")
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert (
        end in model.generation_config.eos_token_id and tokenizer.eos_token_id in model.generation_config.eos_token_id
    )
    last = max(one["step"] for one in answers(talking))
    for one in (one for one in answers(talking) if one["step"] == last):
        asked = one["prompt"].partition("<|user|>\n")[2].partition("<|end|>")[0]
        turns = [{"role": "user", "content": asked}]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        assert tokenizer.decode(ids[0]) == one["prompt"]
        out = model.generate(ids, do_sample=False, max_new_tokens=16)[0, ids.shape[1] :]
        assert tokenizer.decode(out) == one["completion"]
        assert (int(out[-1]) in model.generation_config.eos_token_id) == one["stopped"]


def test_a_run_that_was_stopped_anywhere_is_the_same(place: Path, talking: Path) -> None:
    steps = max(step for step in metrics(talking)["step"] if step is not None)
    for step in (8, int(steps)):
        again = place / f"outputs/talking-{step}"
        cut_back(talking, again, step)
        lifecycle(place, f"run=talking-{step}", *SFT)
        assert facts(again)["resumed"] == 1
        assert_same_run(again, talking)
        assert answers(again) == answers(talking)


REPLAYING = (
    "stage.replay.share=0",
    "guard.actions=[replay,rate]",
    "guard.replay_step=0.3",
    "guard.replay_max=0.3",  # one raise, and the next action is another
    "stage.max_steps=24",
    "validation.every_steps=4",
    "hardware.workers=1",
)


@pytest.fixture(scope="module")
def replaying(place: Path, talks: None) -> Path:
    lifecycle(place, "run=replaying", *SFT, *REPLAYING)
    return place / "outputs/replaying"


def test_the_parents_documents_stand_beside_conversations_and_the_guard_raises_their_share(
    place: Path, replaying: Path
) -> None:
    ledger = facts(replaying, "ledger.json")
    old = {name: row["seen_tokens"] for name, row in ledger["sources"].items() if name.startswith("replay.")}
    assert len(old) == 3 and all(old.values())
    sources = facts(replaying)["data"]["config"]["sources"]
    assert {source["view"] for name, source in sources.items() if name in old} == {"text"}
    acted = [m["action"] for m in facts(replaying, "forgetting.json")["measurements"] if m["action"]]
    assert acted[:2] == ["replay", "rate"]
    again = place / "outputs/replaying-again"
    cut_back(replaying, again, 16)
    lifecycle(place, "run=replaying-again", *SFT, *REPLAYING)
    assert_same_run(again, replaying)
    assert facts(again, "forgetting.json") == facts(replaying, "forgetting.json")


def test_a_curriculum_orders_the_conversations(place: Path, talking: Path) -> None:
    end = ("stage.max_steps=16", "stage.max_epochs=null")
    words = ("curriculum=competence", "data.curriculum.by=length", "stage.train_on=all", "stage.loss=dft", *end)
    lifecycle(place, "run=graded", *SFT, *words)
    seen = facts(place / "outputs/graded", "ledger.json")["sources"]
    assert sum(row["seen_tokens"] > 0 for name, row in seen.items() if name.startswith("where.level")) >= 3
    again = place / "outputs/graded-again"
    cut_back(place / "outputs/graded", again, 8)
    lifecycle(place, "run=graded-again", *SFT, *words)
    assert_same_weights(again, place / "outputs/graded")
    assert facts(again, "ledger.json") == facts(place / "outputs/graded", "ledger.json")


def test_it_goes_on_from_mid_training_and_from_another_one(place: Path, talking: Path) -> None:
    short = ("stage.max_steps=4", "validation.every_steps=4")
    lifecycle(place, "run=mid", "stage=midtrain", "data=toy", "init_from=whole", *short, "stage.optimizer.lr=1e-3")
    lifecycle(place, "run=after-mid", *SFT, "init_from=mid", *short, "stage.optimizer_state=parent")
    told = facts(place / "outputs/after-mid")
    assert told["peak_lr"] == facts(place / "outputs/mid")["peak_lr"] == 1e-3
    assert [Path(one["path"]).name for one in told["ancestors"]] == ["whole"]
    lifecycle(place, "run=after-sft", *SFT, "init_from=talking", *short, "stage.replay.share=0.5")
    sources = facts(place / "outputs/after-sft")["data"]["config"]["sources"]
    assert sources["replay.where"].get("view") is None  # what it was taught as conversations stays such


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("data=toy",), "'chat', but data.sources.long (format 'text') gives text"),
        (("stage.view=text",), "stage.view is 'text', and this stage trains on chat"),
        (("stage.loss=dtf",), "stage.loss is 'dtf'"),
        (("data.chat_template=none",), "data.chat_template=none, but the stage trains on the view 'chat'"),
        (("stage.sequence_length=16",), "has no example that fits into a row"),
    ],
)
def test_what_cannot_work_is_refused_with_what_to_type(
    place: Path, talking: Path, words: tuple[str, ...], said: str
) -> None:
    done = lifecycle(place, "run=refused", *SFT, *words, code=2)
    assert said in " ".join(done.err.split())


@pytest.mark.slow
def test_a_run_killed_at_ten_moments_is_the_run_that_was_not(place: Path, talking: Path, replaying: Path) -> None:
    words = (*SFT, *REPLAYING, "checkpoint.every_steps=2")
    lifecycle(place, "run=untouched", *words)
    run, draw, resumed = place / "outputs/killed", random.Random(10), 1  # at the end, if not before
    for number in range(10):
        steps = min(1 + number % 3, 22 - newest(run))
        resumed += newest(run) > 0 and steps > 0  # it comes to a further checkpoint, so it has gone on from one
        how = {"checkpoints": steps, "wait": draw.uniform(0.0, 0.2), "group": number % 2 > 0, "cold": number % 3 == 0}
        assert kill_after(place, "run=killed", *words, **how), "it ended by itself"  # type: ignore[arg-type]
    lifecycle(place, "run=killed", *words)
    assert facts(run)["resumed"] >= resumed >= 4  # a slow machine sees some checkpoints late, and makes fewer of them
    assert_same_run(run, place / "outputs/untouched")
    assert answers(run) == answers(place / "outputs/untouched")


def test_documents_of_ones_own_stand_beside_conversations(place: Path, talking: Path) -> None:
    texts = make_texts("own", 60, 200)  # longer than a row
    (place / "own.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    own = "+data.sources.own={path: own.jsonl, view: text, weight: 0.5, validation: {ratio: 0.2, seed: 1}}"
    lifecycle(place, "run=beside", *SFT, own, "stage.max_steps=6")
    ledger = facts(place / "outputs/beside", "ledger.json")["sources"]
    assert ledger["own"]["seen_tokens"] > 0 and "too_long" not in ledger["own"]
    assert metrics(place / "outputs/beside")["valid/own/loss"][0] is not None
    done = lifecycle(
        place, "run=refused", "stage=prepare", "data=talks", "init_from=whole", "stage.view=prompt", own, code=2
    )
    assert "documents stand in rows with conversations and with other documents alone" in " ".join(done.err.split())
