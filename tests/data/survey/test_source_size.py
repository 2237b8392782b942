"""Laws of what a dry run says of sources: as many as the run would read, and refused what the run would refuse."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.data.every_view import VIEWS, module, write

from lifecycle.data.clean.source import BadRows
from lifecycle.data.module import DataModule
from lifecycle.data.read.spec import SourceSpec
from lifecycle.data.stream.packing import LongExamples
from lifecycle.data.survey.item_sizes import AsItems
from lifecycle.data.survey.source_size import SourceSize, look_at, survey
from lifecycle.errors import UserError

SIZES = [3, 60, 9, 1, 22, 4, 17, 80, 5, 5, 12, 30]
ROW = 40


def surveyed(data: DataModule, folder: Path, view: str) -> SourceSize:
    """Source a, under the tokenizer and the template of `data`."""
    corpus = data.corpus
    items = AsItems(make=corpus.make, packing=corpus.packing, row_length=ROW)
    looked = look_at({"a": corpus.config.sources["a"]}, root=None, cache=folder, view=view)
    return survey(looked, tokenizer=corpus.tokenizer, items=items)[0]


@pytest.mark.parametrize("rule", ["drop", "shorten"])
@pytest.mark.parametrize("view", VIEWS[1:])
def test_a_pass_is_as_large_as_that_of_the_run(view: str, rule: LongExamples, tmp_path: Path) -> None:
    write(tmp_path, view, "a", SIZES)
    data = module(tmp_path, view, {"a": None}, long_examples=rule)
    found = surveyed(data, tmp_path / "cache", view)
    assert found.tokens == pytest.approx(data.corpus.epoch_positions(ROW))
    assert found.how.startswith(f"its {len(SIZES)} ")
    (warning,) = found.warnings  # two are longer than any row
    assert ("left out" in warning) == (rule == "drop" or view == "prompt")
    assert ("or set data.long_examples=shorten" in warning) == (rule == "drop" and view != "prompt")


def test_rows_for_which_the_run_would_be_refused_are_warned_of(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"body": "a"}\n')
    spec, bears = SourceSpec(path=str(tmp_path / "a.jsonl"), format="text"), BadRows(max_share=0.1, min_rows=1)
    (found,) = survey(look_at({"s": spec}, root=None, cache=tmp_path, bad_rows=bears), tokenizer=None)
    (warning,) = found.warnings
    assert "1 of 2 rows are broken (missing field text 1)" in warning and "map the fields" in warning
    assert f'The first one is {tmp_path / "a.jsonl"}, line 2: {{"body": "a"}} ...;' in warning


SAME = json.dumps({"prompt": "a", "chosen": "b", "rejected": "b"})
TIE = json.dumps({"prompt": "a", "response_1": "b", "response_2": "c", "score_1": 1, "score_2": 1})


@pytest.mark.parametrize(
    ("rows", "format", "why"),
    [
        ("", "text", r"no usable training row in 1 file\(s\) \(no rows at all\)"),
        (SAME, "preference", r"no usable training row in 1 file\(s\) \(dropped:both answers are the same 1\)"),
        (TIE, "scored_pairs", r"no usable training row in 1 file\(s\) \(dropped:near tie 1\)"),
    ],
)
def test_a_source_without_a_usable_row_is_refused_as_the_run_refuses_it(
    rows: str, format: str, why: str, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_text(rows + "\n" * bool(rows))
    spec, bears = SourceSpec(path=str(tmp_path / "a.jsonl"), format=format), BadRows(max_share=0.1, min_rows=1)
    view = "text" if format == "text" else "preference"
    looked = look_at({"s": spec}, root=None, cache=tmp_path, bad_rows=bears, view=view)
    with pytest.raises(UserError, match=why):
        survey(looked, tokenizer=None)


def test_documents_among_conversations_are_cut_and_none_is_said_to_be_left_out(tmp_path: Path) -> None:
    write(tmp_path, "chat", "a", [3, 9, 4])
    data = module(tmp_path, "chat", {"a": None})
    (tmp_path / "d.jsonl").write_text(json.dumps({"text": "word " * 900}) + "\n")
    spec = SourceSpec(path=str(tmp_path / "d.jsonl"), format="text", view="text")
    items = AsItems(make=data.corpus.make, packing=data.corpus.packing, row_length=ROW)
    looked = look_at({"d": spec}, root=None, cache=tmp_path / "cache", view="chat")
    (found,) = survey(looked, tokenizer=data.corpus.tokenizer, items=items)
    assert found.warnings == () and found.tokens is not None and found.tokens > 20 * ROW


def test_a_row_of_which_the_view_makes_nothing_is_shown(tmp_path: Path) -> None:
    write(tmp_path, "chat", "a", SIZES)
    path = next(tmp_path.rglob("a*.jsonl"))
    turns = [{"role": "user", "content": "say nothing"}, {"role": "assistant", "content": "Yes."}]
    path.write_text(path.read_text() + json.dumps({"messages": turns, "tools": [{"name": "<|end|>"}]}) + "\n")
    data = module(tmp_path, "chat", {"a": None})
    items = AsItems(make=data.corpus.make, packing=data.corpus.packing, row_length=ROW)
    bears, specs = BadRows(max_share=0.01, min_rows=1), {"a": data.corpus.config.sources["a"]}
    looked = look_at(specs, root=None, cache=tmp_path / "cache", bad_rows=bears, view="chat")
    (found,) = survey(looked, tokenizer=data.corpus.tokenizer, items=items)
    assert any(f"line {len(SIZES) + 1}: " in warning and "say nothing" in warning for warning in found.warnings)


@pytest.mark.parametrize("form", ["auto", "instruction"])
def test_a_view_that_a_source_cannot_give_is_refused_where_its_rows_are_here_or_not(form: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"instruction": "q", "output": "a"}\n')
    specs = [SourceSpec(path=str(tmp_path / "a.jsonl"), format=form)]
    specs += [SourceSpec(hub="some/where", format=form)] if form != "auto" else []
    for spec in specs:
        with pytest.raises(UserError, match=r"view 'preference'.*gives chat, prompt, text"):
            look_at({"s": spec}, root=None, cache=tmp_path, view="preference")


@pytest.mark.parametrize(
    ("view", "row", "advice"),
    [
        (
            "preference",
            {"prompt": "q", "completion": "a", "label": True},
            "stage=dpo stage.view=unpaired stage.loss=kto",
        ),
        ("unpaired", {"prompt": "q", "chosen": "a", "rejected": "b"}, r"stage=dpo \(stage.view=preference\)"),
    ],
)
def test_judged_answers_under_the_other_view_say_what_trains_on_them(
    view: str, row: dict[str, Any], advice: str, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=f"a stage that trains on .*: on .*, {advice}$"):
        look_at({"s": SourceSpec(path=str(tmp_path / "a.jsonl"), format="auto")}, root=None, cache=tmp_path, view=view)


def test_a_view_that_there_is_not_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="stage.view is 'chatt'; wanted one of .*chat, .*text"):
        look_at({"s": SourceSpec(hub="some/where", format="text")}, root=None, cache=tmp_path, view="chatt")


def test_a_source_that_is_far_away_is_as_large_as_it_states(tmp_path: Path) -> None:
    specs = {"a": SourceSpec(hub="some/where", tokens=900), "b": SourceSpec(hub="some/where")}
    sizes = survey(look_at(specs, root=None, cache=tmp_path), tokenizer=None)
    assert [(size.tokens, size.how) for size in sizes] == [(900, "stated in the config"), (None, "unknown: on the hub")]


def test_a_run_that_counts_prompts_reads_the_stated_number_of_prompts(tmp_path: Path) -> None:
    spec = SourceSpec(hub="nobody/set", format="multiple_choice", tokens=2e6, prompts=10_178)
    looked = look_at({"s": spec}, root=None, cache=tmp_path)
    assert [survey(looked, tokenizer=None, counts=counts)[0].tokens for counts in (False, True)] == [2e6, 10_178]
