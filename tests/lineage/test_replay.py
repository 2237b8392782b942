"""What is taken over from the data of a chain of runs: every generation once, found from anywhere, and kept clean."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from lifecycle import config
from lifecycle.data.mixture.replay_names import generation_of
from lifecycle.errors import UserError
from lifecycle.lineage.inherit import settled
from lifecycle.lineage.parent import Parent
from lifecycle.lineage.replay import kept_out, replayed_sources, told_apart
from lifecycle.lineage.run_folder import RunFolder

MODEL = config.build(config.compose(["model=tiny"]).model)
HELD_OUT = {"ratio": 0.1, "seed": 1}
RULE = {"ngram": 13, "share": 0.5, "min_words": 8}


def source(path: Any, weight: float = 1.0, **keys: Any) -> dict[str, Any]:
    return {"path": path, "weight": weight, "validation": HELD_OUT, **keys}


def chain(folder: Path, *generations: dict[str, Any]) -> Parent:
    """The parent that the last of these runs is, each with the data config `generations` gives, the first one first."""
    lineage: list[dict[str, Any]] = []
    for number, data in enumerate(generations):
        place = folder / f"outputs/run{number}"
        place.mkdir(parents=True)
        before: dict[str, Any] = (
            {"parent": lineage[-1], "ancestors": lineage[:-1]} if lineage else {"parent": None, "ancestors": []}
        )
        of_data = {"root": None, "decontaminate": None, **data}
        told = {"data": {"config": of_data, "fingerprint": f"data{number}"}}
        (place / "run.json").write_text(json.dumps({**before, **told}))
        lineage.append({"path": str(place)})
    run = RunFolder(folder / f"outputs/run{len(generations) - 1}")
    return Parent(folder=run.path, run=run, model=MODEL, tokenizer=None, name=str(run.path), read=dict)


def weights(parent: Parent, ancestors: Any) -> dict[str, float]:
    return {name: made["weight"] for name, made in replayed_sources(parent, ancestors, share=0.1, view="text").items()}


def three(folder: Path) -> Parent:
    """Of three generations, the last two with what they replayed themselves."""
    first = {"sources": {"a": source("a.jsonl", 3), "b": source("b.jsonl", 1)}}
    second = {"sources": {"c": source("c.jsonl"), "replay.a": source("a.jsonl"), "replay.b": source("b.jsonl")}}
    third = {"sources": {"d": source("d.jsonl"), "replay.c": source("c.jsonl"), "replay.1.a": source("a.jsonl", 0)}}
    return chain(folder, first, second, third)


@pytest.mark.parametrize(
    ("ancestors", "expected"),
    [
        (1, [1, 0, 0, 0]),
        (2, [1, 1, 0, 0]),
        (9, [1, 1, 0.75, 0.25]),
        ("all", [1, 1, 0.75, 0.25]),
        ([0.5, 0, 0.4], [0.5, 0, 0.3, 0.1]),
    ],
)
def test_every_generation_is_measured_and_those_that_are_chosen_are_replayed(
    tmp_path: Path, ancestors: Any, expected: list[float]
) -> None:
    found = weights(three(tmp_path), ancestors)
    assert list(found) == ["replay.d", "replay.1.c", "replay.2.a", "replay.2.b"]
    assert list(found.values()) == pytest.approx(expected)
    assert [generation_of(name) for name in found] == [0, 1, 2, 2]


def test_what_runs_that_are_gone_were_trained_on_is_still_measured(tmp_path: Path) -> None:
    parent = three(tmp_path)
    for number in (0, 1):
        (tmp_path / f"outputs/run{number}/run.json").unlink()
    assert weights(parent, "all") == {"replay.d": 1.0, "replay.1.c": 0.0, "replay.2.a": 0.0}


def test_what_cannot_be_measured_or_is_measured_already_is_not_opened_for_nothing(tmp_path: Path) -> None:
    first = {"sources": {"a": source("a.jsonl"), "blind": source("b.jsonl", validation=None), "c": source("c.jsonl")}}
    parent = chain(tmp_path, first, {"sources": {"a": source("a.jsonl", 7, max_epochs=2)}})
    assert weights(parent, 1) == {"replay.a": 1.0, "replay.1.c": 0.0}
    assert list(weights(parent, 2)) == ["replay.a", "replay.1.a", "replay.1.blind", "replay.1.c"]


def test_a_source_that_the_parent_named_replay_is_of_its_own_mixture(tmp_path: Path) -> None:
    parent = chain(tmp_path, {"sources": {"new": source("n.jsonl", 3), "replay": source("r.jsonl")}})
    found = replayed_sources(parent, 1, share=0.1, view="text")
    assert {name: made["weight"] for name, made in found.items()} == {"replay.new": 0.75, "replay.replay": 0.25}
    assert found["replay.replay"]["domain"] == "replay"


def test_a_name_that_begins_with_a_number_is_not_taken_for_a_generation(tmp_path: Path) -> None:
    first = {"sources": {"web": source("w.jsonl")}}
    found = weights(chain(tmp_path, first, {"sources": {"1.web": source("1.jsonl")}}), 1)
    assert list(found) == ["replay.0.1.web", "replay.1.web"]
    assert [generation_of(name) for name in ("replay.0.1.web", "replay.1.web", "replay", "replayed", "web")] == [
        *(0, 1, 0, None, None)
    ]


@pytest.mark.parametrize("root", [None, "texts", "/far/texts", "s3://far/texts"])
def test_places_are_found_from_any_folder(tmp_path: Path, root: str | None) -> None:
    start = root if root and "://" in root else str(tmp_path / (root or ""))
    if root in (None, "texts"):
        (tmp_path / (root or "") / "like_hub").mkdir(parents=True)
    sources = {
        "file": source("a.jsonl", validation="held.jsonl"),
        "split": source({"train": "a.jsonl", "test": ["b.jsonl", "/c.jsonl"]}, validation="test"),
        "python": source("python://prose"),
        "hub": {"hub": "owner/name", "validation": "test"},
        "local": {"hub": "like_hub", "validation": "test"},
    }
    found = replayed_sources(chain(tmp_path, {"root": root, "sources": sources}), 1, share=0.1, view="text")
    assert found["replay.file"]["path"] == f"{start}/a.jsonl"
    assert found["replay.file"]["validation"] == f"{start}/held.jsonl"
    assert found["replay.split"]["path"] == {"train": f"{start}/a.jsonl", "test": [f"{start}/b.jsonl", "/c.jsonl"]}
    assert found["replay.split"]["validation"] == found["replay.hub"]["validation"] == "test"
    assert found["replay.python"]["path"] == "python://prose"
    assert found["replay.hub"]["hub"] == "owner/name"
    if root in (None, "texts"):
        assert found["replay.local"]["hub"] == f"{start}/like_hub"


def test_paths_start_where_the_run_says_that_it_was(tmp_path: Path) -> None:
    parent = chain(tmp_path, {"sources": {"a": source("a.jsonl")}})
    assert parent.run is not None
    told = parent.run.lineage()
    told["data"]["root"] = "/elsewhere"  # a job of a sweep lies one folder deeper than other runs
    (parent.run.path / "run.json").write_text(json.dumps(told))
    assert replayed_sources(parent, 1, share=0.1, view="text")["replay.a"]["path"] == "/elsewhere/a.jsonl"


def exam(path: str, **keys: Any) -> dict[str, Any]:
    return {"hub": None, "path": path, "split": "test", "format": "text", **keys}


def test_evaluation_sets_of_all_ancestors_are_kept_out(tmp_path: Path) -> None:
    first = {"root": "texts", "sources": {}, "decontaminate": {"sets": {"exam": exam("exam.jsonl")}, **RULE}}
    second = {"sources": {}, "decontaminate": {"sets": {"quiz": {"hub": "owner/quiz"}}, **RULE, "share": 0.3}}
    parent = chain(tmp_path, first, second)
    found = kept_out(None, None, parent)
    assert found is not None
    path = os.fspath(tmp_path / "texts/exam.jsonl")
    # the rule is the parent's; a set of an older run keeps what it was looked for by
    assert {key: found[key] for key in RULE} == {**RULE, "share": 0.3}
    assert found["sets"] == {
        "quiz": {"hub": "owner/quiz"},
        "exam": {"path": path, "split": "test", "format": "text", "share": 0.5},
    }
    assert kept_out(found, "/other", parent) == found  # what has them already stays as it is


def test_a_set_that_the_run_has_is_one_and_another_of_its_name_gets_a_name_of_its_own(tmp_path: Path) -> None:
    theirs = {"exam": exam("exam.jsonl"), "quiz": exam("quiz.jsonl"), "test": exam("test.jsonl")}
    parent = chain(tmp_path, {"sources": {}, "decontaminate": {"sets": theirs, **RULE}})
    own = {"exam": {"path": os.fspath(tmp_path / "exam.jsonl")}, "quiz": {"path": "quiz.jsonl"}}
    found = kept_out({"sets": own, **RULE}, "/mine", parent)
    assert found is not None
    assert list(found["sets"]) == ["exam", "quiz", "quiz_2", "test"]
    assert found["sets"]["quiz"] == {"path": "quiz.jsonl"}
    assert found["sets"]["quiz_2"]["path"] == os.fspath(tmp_path / "quiz.jsonl")


def test_without_any_set_nothing_is_looked_for(tmp_path: Path) -> None:
    parent = chain(tmp_path, {"sources": {}})
    assert kept_out(None, None, parent) is None
    own = {"sets": {"exam": exam("exam.jsonl")}, **RULE}
    assert kept_out(own, None, parent) == own


def test_the_lineage_tells_of_which_data_every_ancestor_was_made(tmp_path: Path) -> None:
    told = three(tmp_path).lineage()
    assert told["parent"]["data_fingerprint"] == "data2"
    assert [one["data_fingerprint"] for one in told["ancestors"]] == ["data0", "data1"]


def test_a_function_of_the_parents_is_not_called_unless_this_run_names_its_module(tmp_path: Path) -> None:
    filters = {"min_bytes": 3, "classifier": {"function": "theirs:run", "threshold": 0.5}}
    first = {"sources": {"web": source("web.jsonl", filters=filters)}}
    for parent in (chain(tmp_path / "a", first), chain(tmp_path / "b", first, {"sources": {"new": source("n.jsonl")}})):
        for functions in ((), ("mine",), ("theirs.more",)):
            with pytest.raises(UserError, match=r"function theirs:run.*type 'stage.replay.functions=\[.*theirs\]'"):
                replayed_sources(parent, 1, share=0.1, view="text", functions=functions)
        assert replayed_sources(parent, 1, share=0.1, view="text", functions=["theirs"])
    free = chain(tmp_path / "c", {"sources": {"web": source("web.jsonl", filters={"classifier": None})}})
    assert replayed_sources(free, 1, share=0.1, view="text")


def test_what_a_parents_config_says_refers_to_nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "told")
    parent = chain(tmp_path, {"sources": {"web": source("https://far.example/${oc.env:SECRET}")}})
    cfg = settled(config.compose(["stage=midtrain", "stage.optimizer.lr=1e-4"]), parent)
    assert config.resolved(cfg)["data"]["sources"]["replay.web"]["path"] == "https://far.example/${oc.env:SECRET}"


def domains(found: dict[str, Any], own: dict[str, Any], root: Any = None) -> dict[str, str]:
    return {name: made["domain"] for name, made in told_apart(found, own, root).items()}


def test_a_source_that_an_older_version_wrote_without_a_key_is_the_same_text() -> None:
    old, new = source("/a.jsonl"), source("/a.jsonl", format="text", tie_margin=0.0, max_rows=None)
    assert domains({"replay.a": {**old, "domain": "a"}}, {"a": new}) == {"replay.a": "a"}
    assert domains({"replay.a": {**old, "domain": "a"}}, {"a": {**new, "tie_margin": 0.5}}) == {"replay.a": "replay.a"}


def test_old_and_new_text_of_one_name_are_two_domains(tmp_path: Path) -> None:
    found = replayed_sources(chain(tmp_path, {"sources": {"mine": source("old.jsonl")}}), 1, share=0.1, view="text")
    assert domains(found, {"other": source("new.jsonl")}) == {"replay.mine": "mine"}
    assert domains(found, {"mine": source("new.jsonl")}) == {"replay.mine": "replay.mine"}
    assert domains(found, {"web": source("new.jsonl", domain="mine")}) == {"replay.mine": "replay.mine"}


def test_the_same_text_is_one_domain_however_much_of_it_is_read(tmp_path: Path) -> None:
    found = replayed_sources(chain(tmp_path, {"sources": {"mine": source("old.jsonl", 3)}}), 1, share=0.1, view="text")
    same = {"mine": source("old.jsonl", 0.5, max_epochs=2, hub=None)}
    measured = {name: {**made, "validation_tokens": 8192} for name, made in found.items()}
    assert domains(measured, {"mine": source(str(tmp_path / "old.jsonl"))}) == {"replay.mine": "mine"}
    assert domains(found, same, str(tmp_path)) == {"replay.mine": "mine"}
    assert domains(found, same, str(tmp_path / "elsewhere")) == {"replay.mine": "replay.mine"}
    half = {"mine": source("old.jsonl"), "more": source("more.jsonl", domain="mine")}
    assert domains(found, half, str(tmp_path)) == {"replay.mine": "replay.mine"}


def test_generations_that_share_a_name_are_told_apart(tmp_path: Path) -> None:
    older = {"sources": {"mine": source("first.jsonl"), "also": source("also.jsonl", domain="mine")}}
    found = replayed_sources(
        chain(tmp_path, older, {"sources": {"mine": source("second.jsonl")}}), "all", share=0.1, view="text"
    )
    assert domains(found, {"new": source("new.jsonl")}) == {
        "replay.mine": "mine",
        "replay.1.mine": "replay.1.mine",
        "replay.1.also": "replay.1.mine",
    }
