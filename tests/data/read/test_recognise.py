"""Laws of recognition: published sets are known by their columns, and what is guessed is said."""

import csv
import json
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.real import REAL, rows

from lifecycle.data.read.files.listing import listing
from lifecycle.data.read.first_rows import first_rows
from lifecycle.data.read.formats import LIST, to_record
from lifecycle.data.read.recognise import recognised
from lifecycle.data.read.row import BadRow
from lifecycle.data.read.spec import SourceSpec
from lifecycle.data.stream.prepared import with_formats
from lifecycle.errors import UserError
from lifecycle.system import say_once


def guess(seen: list[dict[str, Any]], folder: Path, view: str) -> SourceSpec:
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in seen))
    spec = SourceSpec(path=str(folder / "a.jsonl"), format="auto")
    made, found = recognised(spec, listing(spec, name="s", cache=folder), where="data.sources.s", view=view)
    assert found.files[0].columns == made.columns is not None
    return made


CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
ROWS: list[tuple[dict[str, Any], str, str, dict[str, Any]]] = [
    ({"text": "a"}, "text", "text", {}),
    ({"content": "a", "id": 1}, "text", "text", {"text": "content"}),
    ({"instruction": "q", "input": "", "output": "a", "text": "q a"}, "text", "text", {}),
    ({"instruction": "q", "input": "", "output": "a", "text": "q a"}, "chat", "instruction", {}),
    ({"instruction": "q", "response": "a", "system": "s"}, "chat", "instruction",
     {"output": "response", "system": "system"}),
    ({"prompt": "q", "completion": "a"}, "chat", "prompt_completion", {}),
    ({"prompt": CHAT[:1], "completion": CHAT[1:]}, "chat", "prompt_completion", {}),
    ({"prompt": CHAT[:1], "completion": CHAT[1:], "label": True}, "unpaired", "unpaired", {}),
    ({"messages": CHAT}, "chat", "messages", {}),
    ({"conversations": [{"from": "human", "value": "q"}], "tools": "[]"}, "prompt", "conversations", {}),
    ({"messages": CHAT, "label": True}, "unpaired", "unpaired", {}),
    ({"messages": CHAT, "label": True}, "chat", "unpaired", {}),  # which is refused: half of them may be bad
    ({"messages": CHAT, "label": True}, "text", "unpaired", {}),  # refused too
    ({"text": "a", "label": 1}, "text", "text", {}),
    ({"text": "a", "messages": CHAT, "label": 1}, "text", "text", {}),
    ({"prompt": "q", "completion": "a", "label": 0}, "unpaired", "unpaired", {}),
    ({"prompt": "q", "chosen": "a", "rejected": "b"}, "preference", "preference", {}),
    ({"prompt": "q", "response_1": "a", "response_2": "b", "preference": 1.2}, "preference", "scored_pairs", {}),
    ({"prompt": "q", "response_1": "a", "response_2": "b", "preference": 1.5}, "preference", "scored_pairs", {}),
    ({"prompt": "q", "response_1": "a", "response_2": "b", "score_1": 1, "score_2": 2}, "preference", "scored_pairs",
     {}),
    ({"chosen": CHAT, "rejected": [*CHAT[:1], {"role": "assistant", "content": "b"}]}, "preference", "preference", {}),
    ({"question": "q", "answer": "2+2\n#### 4"}, "prompt", "word_problem", {}),
    ({"question": "q", "answer": "4"}, "prompt", "question_answer", {}),
    ({"problem": "q", "solution": "4"}, "prompt", "question_answer", {"question": "problem", "answer": "solution"}),
    ({"prompt": "q"}, "prompt", "prompt", {}),
    ({"prompt": "q", "answer": 4}, "prompt", "prompt", {}),
    ({"prompt": CHAT[:1], "solution": "4", "level": 3}, "prompt", "prompt", {"answer": "solution"}),
    ({"prompt": CHAT[:1], "reward_model": {"style": "rule", "ground_truth": "4"}}, "prompt", "prompt",
     {"answer": "reward_model.ground_truth"}),
    ({"prompt": "q", "options": ["a", "b"], "answer": "B"}, "prompt", "multiple_choice", {"question": "prompt"}),
    ({"prompt": "q", "tests": ["assert f(1)"]}, "prompt", "code_problem", {}),
    ({"question": "q", "choices": ["a", "b"], "answer": 1}, "chat", "multiple_choice", {"options": "choices"}),
    ({"prompt": "def f():\n", "canonical_solution": " 1", "test": "f()", "entry_point": "f"}, "prompt", "code_problem",
     {"tests": "test", "code": "canonical_solution"}),
]  # fmt: skip


@pytest.mark.parametrize(("row", "view", "form", "fields"), ROWS)
def test_a_format_is_known_by_the_columns(
    row: dict[str, Any], view: str, form: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    made = guess([row, row], tmp_path, view)
    assert (made.format, made.fields) == (form, fields)


def test_the_guess_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    say_once._said.clear()
    for _ in range(2):
        guess([{"prompt": "q", "response": "a"}], tmp_path, "chat")
    assert capsys.readouterr().err == (
        "data.sources.s.format: prompt_completion fields={completion: response}, by the columns of its first rows\n"
    )


def test_columns_of_no_known_form_are_named_with_what_is_known(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="columns body, id fit no known format") as raised:
        guess([{"id": 1, "body": "a"}], tmp_path, "text")
    assert all(f"{form.name} ({form.needs[0]}" in str(raised.value) for form in LIST)


@pytest.mark.parametrize("question", ["question", "prompt"])
def test_options_that_cannot_be_read_are_told_and_not_left_out(question: str, tmp_path: Path) -> None:
    row = {question: "Bile?", "options": "lung or liver", "answer": "liver"}
    with pytest.raises(UserError, match=r"s: its rows have options .column options. that cannot be read: .*line 1"):
        guess([row] * 3, tmp_path, "prompt")
    nothing: list[Any] = [None, "", []]
    empty = guess([row | {"options": none} for none in nothing], tmp_path, "prompt")
    assert empty.format == ("question_answer" if question == "question" else "prompt")


def test_a_column_that_some_rows_lack_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="columns instruction, output .not all of them in every row. fit no known format"
    ):
        guess([{"instruction": "q", "output": "a"}, {"instruction": "q"}], tmp_path, "chat")


def test_a_format_that_cannot_give_the_view_is_taken_where_no_other_fits(tmp_path: Path) -> None:
    assert (
        guess([{"text": "a"}], tmp_path, "chat").format == "text"
    )  # and refused with a reason, where views are checked


def test_where_no_document_can_be_read_whoever_reads_says_why(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": \n')
    spec = SourceSpec(path=str(tmp_path / "a.jsonl"), format="auto")
    assert recognised(spec, listing(spec, name="s", cache=tmp_path), where="x", view="text")[0].format == "text"


TURN = {"role": "user", "content": "Hi"}
GOOD = {"messages": [TURN, {"role": "assistant", "content": "Ho"}]}
NULL = {"messages": [{"role": "user", "content": None}, {"role": "assistant", "content": "Ho"}]}
IMAGE = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}]}
BROKEN = {
    '{"messages": [\n': ("of its first rows none can be read", 'a.jsonl, line 1 is broken (bad json): {"messages": [;'),
    "\n\n[1, 2]\n": ("none can be read", "a.jsonl, line 3 is broken (not an object): [1, 2];"),
    "Hello there\n": ("none can be read", "line 1 is broken (bad json): Hello there;"),
    "": ("there is no row in", "the file is empty"),
    "\n  \n\n": ("there is no row in", "or its first lines are"),
    json.dumps({"messages": [{"role": "critic", "content": "Hi"}]}): (
        "its columns are those of the format 'messages', and 1 of its first 1 rows are broken: ",
        'a.jsonl, line 1 (unknown role): {"messages": [{"role": "critic", "content": "Hi"}]};',
    ),
    json.dumps(NULL): ("1 of its first 1 rows", "line 1 (a turn without content)"),
    json.dumps(IMAGE): ("1 of its first 1 rows", "line 1 (a content with a part of type image_url)"),
    json.dumps({"messages": None}): ("1 of its first 1 rows", "line 1 (missing field messages)"),
    json.dumps({"messages": str(GOOD["messages"])}): ("1 of its first 1 rows", "line 1 (bad json in messages)"),
    f"{json.dumps(GOOD)}\n{json.dumps({'instruction': 'q', 'output': 'a'})}": (
        "line 1 has the columns messages, ",
        "line 2 instruction, output; the rows of a source have one format",
    ),
    json.dumps(GOOD["messages"]): ("the file is one conversation", "wanted one conversation a row"),
}


@pytest.mark.parametrize("text", BROKEN)
def test_a_file_that_is_broken_is_refused_with_the_row(text: str, tmp_path: Path) -> None:
    """And not for the view that the stage trains on, which is no fault of the file."""
    (tmp_path / "a.jsonl").write_text(text)
    spec = SourceSpec(path=str(tmp_path / "a.jsonl"), format="auto")
    with pytest.raises(UserError) as raised:
        recognised(spec, listing(spec, name="s", cache=tmp_path), where="data.sources.s", view="chat")
    assert all(part in str(raised.value) for part in ("data.sources.s", *BROKEN[text])), str(raised.value)


def test_whole_rows_of_another_view_are_not_called_broken(tmp_path: Path) -> None:
    assert guess([{"prompt": "q", "completion": "a", "label": True}], tmp_path, "chat").format == "unpaired"


PARTS = {
    "messages": [
        {"role": one["role"], "content": [{"type": "text", "text": one["content"]}]} for one in GOOD["messages"]
    ]
}


@pytest.mark.parametrize(
    "text",
    [
        f"\ufeff{json.dumps(GOOD)}\n",
        f"{json.dumps(GOOD)}\r\n{json.dumps(GOOD)}\r\n",
        json.dumps([GOOD, GOOD]),
        json.dumps({"messages": json.dumps(GOOD["messages"])}),
        json.dumps(PARTS),
    ],
    ids=["a byte order mark", "line ends of Windows", "one array", "a list as JSON text", "contents in parts"],
)
def test_usual_forms_of_a_file_are_read_alike(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(text, newline="")
    spec = SourceSpec(path=str(tmp_path / "a.jsonl"), format="auto")
    found, listed = recognised(spec, listing(spec, name="s", cache=tmp_path), where="x", view="chat")
    for one in first_rows(listed):
        assert to_record(one.row, spec=found, name="s", row_id="1").messages == GOOD["messages"]


def test_lists_that_a_table_holds_as_json_are_lists(tmp_path: Path) -> None:
    """In Parquet and CSV: turns, the turns of a pair, options. Trained as texts they would teach JSON."""
    answer = [{"role": "assistant", "content": "a"}]
    sets = {
        "chat": {"conversations": json.dumps([{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}])},
        "preference": {"prompt": json.dumps([TURN]), "chosen": json.dumps(answer), "rejected": '[{"role": "x"}]'},
        "prompt": {"question": "q", "options": '["a", "b"]', "answer": "B"},
    }
    for (view, row), suffix in product(sets.items(), ("parquet", "csv")):
        path = tmp_path / f"{view}.{suffix}"
        pq.write_table(pa.Table.from_pylist([row]), path) if suffix == "parquet" else as_csv(path, row)
        spec = SourceSpec(path=str(path), format="auto")
        found, listed = recognised(spec, listing(spec, name="s", cache=tmp_path), where="x", view=view)
        record = to_record(first_rows(listed)[0].row, spec=found, name="s", row_id="1")
        if view == "chat":
            assert record.messages == [{"role": "user", "content": "q"}, *answer]
        elif view == "preference":  # a text that is no list of turns stays a text
            assert record.messages == [TURN] and record.chosen == answer
            assert record.rejected == [{"role": "assistant", "content": '[{"role": "x"}]'}]
        else:
            assert record.meta["options"] == ["a", "b"] and record.answer == "B"


def as_csv(path: Path, row: dict[str, str]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, row)
        writer.writeheader()
        writer.writerow(row)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".json"])
def test_rows_of_every_kind_of_file_are_recognised(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    row = {"instruction": "q", "other": "x", "output": "a"}
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([row, row]), path)
    else:
        path.write_text("instruction,other,output\nq,x,a\n" if suffix == ".csv" else json.dumps(row, indent=1))
    spec = SourceSpec(path=str(path), format="auto")
    made, found = recognised(spec, listing(spec, name="s", cache=tmp_path), where="x", view="chat")
    assert made.format == "instruction" and found.files[0].columns == ("instruction", "output", "input")


def test_one_object_over_several_lines_is_a_row_though_it_holds_a_list(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"messages": CHAT}, indent=1))
    spec = SourceSpec(path=str(tmp_path / "a.json"), format="auto")
    assert recognised(spec, listing(spec, name="s", cache=tmp_path), where="x", view="chat")[0].format == "messages"


def test_a_format_that_is_named_stays(tmp_path: Path) -> None:
    spec = SourceSpec(path=str(tmp_path), format="messages")
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    found = listing(spec, name="s", cache=tmp_path)
    assert recognised(spec, found, where="x", view="text") == (spec, found)


REAL_SETS = {
    "sft/alpaca_en_demo": ("chat", "instruction"),
    "sft/gpteacher_codegen": ("chat", "instruction"),
    "sft/glaive_toolcall_en_demo": ("chat", "conversations"),
    "sft/reason_tool_use_demo": ("chat", "messages"),
    "sft/oasst1_multiturn.valid": ("chat", "messages"),
    "dpo/hh_harmless_base.test_part2": ("preference", "preference"),
    "dpo/alpaca_eval_gpt4_pairs.test": ("preference", "scored_pairs"),
    "dpo/dpo_en_demo": ("preference", "preference"),
    "dpo/kto_en_demo": ("unpaired", "unpaired"),
    "dpo/rasbt_instruction_preference": ("preference", "preference"),
    "med/medqa_us4.train_subset": ("prompt", "multiple_choice"),
    "med/pubmedqa_pqal.traindev": ("chat", "question_answer"),
    "math/gsm8k.train": ("prompt", "word_problem"),
    "code/mbpp.train": ("prompt", "code_problem"),
    "code/humaneval.test": ("prompt", "code_problem"),
    "rl/commonsenseqa.dev": ("prompt", "multiple_choice"),
    "eval/mmlu.dev": ("prompt", "multiple_choice"),
    "eval/arc_easy.part1": ("prompt", "multiple_choice"),
}


@pytest.mark.parametrize(("name", "view", "form"), [(name, *known) for name, known in REAL_SETS.items()])
def test_real_sets_are_known_and_nearly_all_of_their_rows_are_read(
    name: str, view: str, form: str, tmp_path: Path
) -> None:
    seen = rows(name)
    spec = SourceSpec(path=str(REAL / f"{name}.jsonl.gz"), format="auto")
    made, _ = recognised(spec, listing(spec, name="s", cache=tmp_path), where="data.sources.s", view=view)
    assert made.format == form
    bad = []
    for row in seen:
        try:
            to_record(row, spec=made, name="s", row_id="1")
        except BadRow as fault:
            bad.append(fault.reason)
    assert len(bad) <= 0.02 * len(seen), (len(bad), len(seen), set(bad))


def test_shards_know_the_format_that_was_recognised_when_they_were_made() -> None:
    auto, named = SourceSpec(format="auto"), SourceSpec(format="messages")
    form = {"format": "instruction", "fields": {"output": "response"}}
    metas = {"a": {"training": {"form": form}}, "b": {"training": {"form": form}}, "old": {"training": {}}}
    specs = with_formats({"a": auto, "b": named, "c": auto, "old": auto}, metas)
    assert [spec.format for spec in specs.values()] == ["instruction", "messages", "auto", "text"]
    assert specs["a"].fields == {"output": "response"}


def test_answers_that_count_from_one_are_not_read_from_zero(tmp_path: Path) -> None:
    def asked(*answers: Any) -> list[dict[str, Any]]:
        return [{"question": f"q{n}", "options": ["a", "b", "c", "d"], "answer": one} for n, one in enumerate(answers)]

    with pytest.raises(
        UserError, match=r"count from 1, and are read from 0: .*line 3 .* type data\.sources\.s\.answer_base=1"
    ):
        guess(asked(1, 2, 4, 1, 3), tmp_path, "prompt")
    for whole in (asked(1, 2, 3), asked(0, 3, 1), asked("A", "D", "C"), asked(0, 4, 1)):
        assert guess(whole, tmp_path, "prompt").format == "multiple_choice"
