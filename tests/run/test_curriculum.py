"""A curriculum end to end: levels in the ledger, the same after a stop at every change, also beside replay."""

import json
from pathlib import Path

import pytest
import yaml
from tests.run.cli import assert_same_run, cut_back, facts, lifecycle, make_texts, metrics

MID = (
    "stage=midtrain",
    "data=graded",
    "init_from=whole",
    "stage.max_steps=20",
    "checkpoint.every_steps=6",
    "checkpoint.keep_last=99",
    "validation.every_steps=10",
)
LEVELS = ["graded.level1-2", "graded.level2-3.5", "graded.level3.5-5"]


@pytest.fixture(scope="module", autouse=True)
def graded(place: Path, whole: Path) -> None:
    """A source whose rows carry levels, the longer the higher."""
    texts = sorted(make_texts("graded", 400, 120), key=len)
    rows = [{"text": text, "level": f"Level {1 + 5 * number // len(texts)}"} for number, text in enumerate(texts)]
    (place / "graded.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"path": "graded.jsonl", "fields": {"level": "level"}, "validation": {"ratio": 0.1, "seed": 1}}
    node = {"defaults": ["_engine", "_self_"], "tokenizer": "unused", "shuffle_buffer": 64}
    (place / "conf/data/graded.yaml").write_text(yaml.safe_dump({**node, "sources": {"graded": source}}))


def test_a_stopped_run_is_the_same_across_every_change_of_level(place: Path) -> None:
    lifecycle(place, "run=levels", *MID, "curriculum=math")
    run = place / "outputs/levels"
    ledger = facts(run, "ledger.json")["sources"]
    assert list(ledger)[:3] == LEVELS and all(ledger[name]["seen_tokens"] > 0 for name in LEVELS)
    rows = metrics(run)
    second = dict(zip(rows["step"], rows[f"data/{LEVELS[1]}/tokens"], strict=True))
    assert second[6] == 0 and (second[7] or 0) > 0
    assert facts(run)["data"]["levels"]["graded"][LEVELS[0]]["rows"] > 100
    for step in (6, 12):  # where the levels change
        again = place / f"outputs/levels-{step}"
        cut_back(run, again, step)
        lifecycle(place, f"run=levels-{step}", *MID, "curriculum=math")
        assert facts(again)["resumed"] == 1
        assert_same_run(again, run)


def test_the_next_run_replays_the_whole_source(place: Path) -> None:
    """Not its levels, and by what was seen of all of them; the sources of its own parent are measured."""
    lifecycle(place, "run=first", *MID, "curriculum=math", "stage.max_steps=4", "stage.replay.share=0")
    lifecycle(place, "run=second", *MID, "init_from=first", "stage.max_steps=4", "curriculum=math")
    sources = facts(place / "outputs/second")["data"]["config"]["sources"]
    whole = {f"replay.1.{name}" for name in ("long", "short", "tiny")}
    assert set(sources) == {"graded", "replay.graded", *whole}
    ledger = facts(place / "outputs/second", "ledger.json")["sources"]
    assert {name.partition(".level")[0] for name in ledger} == set(sources)


@pytest.mark.parametrize(("choice", "by"), [("competence", "loss"), ("code", "length")])
def test_any_score_orders_the_rows(place: Path, choice: str, by: str) -> None:
    name = f"{choice}-{by}"
    lifecycle(
        place, f"run={name}", *MID, f"curriculum={choice}", f"data.curriculum.by={by}", "checkpoint.every_steps=20"
    )
    seen = facts(place / f"outputs/{name}", "ledger.json")["sources"]
    assert sum(row["seen_tokens"] > 0 for key, row in seen.items() if key.startswith("graded.level")) >= 3


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("curriculum=maths",), "did you mean curriculum=math?"),
        (("curriculum=math", "data.curriculum.by=hardness"), "data.curriculum.by is 'hardness'"),
        (("curriculum=math", "data.curriculum.stages=[{until: 1, level: [1, 5]}]"), "did you mean"),
        (("curriculum=math", "data.curriculum.older_share=1"), "data.curriculum.older_share is 1"),
    ],
)
def test_faults_are_found_before_anything_starts(place: Path, overrides: tuple[str, ...], said: str) -> None:
    done = lifecycle(place, "run=refused", *MID, *overrides, code=2)
    assert said in done.err.replace("\n", " ")
    assert not (place / "outputs/refused/run.json").exists()


def test_a_loss_needs_a_parent(place: Path) -> None:
    done = lifecycle(place, "run=fresh", "curriculum=code", "data.curriculum.by=loss", code=2)
    assert "type init_from=RUN" in done.err.replace("\n", " ")
