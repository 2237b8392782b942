"""Distillation from a finished run, end to end: fresh and trained students, resume, and a teacher that was changed."""

import json
import random
import shutil
from pathlib import Path

import pytest
from tests.run.cli import (
    assert_same_run,
    cut_back,
    facts,
    kill_after,
    lifecycle,
    make_texts,
    metrics,
)

SMALLER = ("model.layers=1", "model.width=16", "model.heads=1", "model.ffn_width=32")
DISTILL = (
    "stage=distill",
    "stage.view=text",
    "stage.teacher=whole",
    "stage.max_steps=16",
    "checkpoint.every_steps=4",
    "checkpoint.keep_last=99",
    "validation.every_steps=8",
    "stage.divergence.beta=0.5",
    "stage.cross_entropy=0.25",
)


def test_a_fresh_smaller_student_with_the_teachers_tokenizer_learns_and_goes_on_bit_for_bit(
    place: Path, whole: Path
) -> None:
    lifecycle(place, "run=small", *DISTILL, *SMALLER)
    run = place / "outputs/small"
    told, rows = facts(run), metrics(run)
    assert told["parent"] is None and told["teacher"]["path"] == str(whole) and len(told["teacher"]["sha256"]) == 64
    assert told["tokenizer"] == facts(whole)["tokenizer"]
    losses = [loss for loss in rows["valid/loss"] if loss is not None]
    assert losses[-1] < losses[0]
    assert rows["train/divergence"][-1] < rows["train/divergence"][0]  # type: ignore[operator]
    cut_back(run, place / "outputs/again", 4)
    lifecycle(place, "run=again", *DISTILL, *SMALLER)
    assert facts(place / "outputs/again")["resumed"] == 1
    assert_same_run(place / "outputs/again", run)


def test_a_student_that_goes_on_from_its_teacher_is_no_distance_apart(place: Path, whole: Path) -> None:
    lifecycle(place, "run=grown", *DISTILL, "init_from=whole", "stage.max_steps=2", "stage.cross_entropy=0")
    assert abs(metrics(place / "outputs/grown")["train/loss"][0] or 0) < 1e-6


def test_another_teacher_in_its_place_is_refused_by_the_run_that_goes_on(place: Path, whole: Path) -> None:
    shutil.copytree(whole / "model", place / "teacher")
    words = ("run=other", *DISTILL[:2], "stage.teacher=teacher", *SMALLER, "checkpoint.every_steps=1")
    lifecycle(place, *words, "stage.max_steps=2")
    shutil.rmtree(place / "teacher")
    shutil.copytree(place / "outputs/small/model", place / "teacher")
    done = lifecycle(place, *words, "stage.max_steps=3", code=2)
    assert "it needs those that it began with" in done.err and "teacher" in done.err


def test_a_dry_run_counts_the_teacher(place: Path, whole: Path) -> None:
    done = lifecycle(place, "run=dry", *DISTILL, *SMALLER, "dry_run=true")
    (line,) = [line for line in done.out.splitlines() if "teacher, judges" in line]
    assert f"{facts(whole)['parameters'] * 4 / 1e9:.2f}"[:4] in line


def chats(place: Path) -> tuple[str, ...]:
    """Words that choose conversations, and have the student write half of the answers."""
    rows = [{"prompt": text[:40], "completion": text[40:120] or "."} for text in make_texts("asked", 200, 40)]
    (place / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return (
        *DISTILL,
        "data=files",
        "data.sources.mine.path=chats.jsonl",
        "stage.view=chat",
        "init_from=whole",
        "stage.cross_entropy=0",
        "stage.on_policy={share: 0.5, form: supervised, max_new_tokens: 8, temperature: 1.0, slots: 16}",
    )


def test_a_student_that_writes_goes_on_bit_for_bit_and_finds_what_its_teacher_said(place: Path, whole: Path) -> None:
    words = (*chats(place), "stage.top_k=16", "stage.max_steps=8")
    lifecycle(place, "run=writes", *words)
    run = place / "outputs/writes"
    assert any(length for length in metrics(run)["train/answer_length"])
    cut_back(run, place / "outputs/writes-again", 4)
    lifecycle(place, "run=writes-again", *words)
    assert_same_run(place / "outputs/writes-again", run)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["supervised", "policy_gradient"])
def test_a_student_that_writes_is_killed_at_ten_moments_and_ends_as_it_would_have(
    place: Path, whole: Path, form: str
) -> None:
    words = [word.replace("supervised", form) for word in chats(place)]
    words += ["stage.max_steps=60", "checkpoint.every_steps=3", "checkpoint.keep_last=3"]
    lifecycle(place, f"run={form}", *words)
    run, draw = place / f"outputs/{form}-killed", random.Random(3)
    for _ in range(10):
        assert kill_after(place, f"run={form}-killed", *words, checkpoints=draw.randint(1, 4))
    lifecycle(place, f"run={form}-killed", *words)
    assert_same_run(run, place / f"outputs/{form}")
