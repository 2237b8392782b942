"""Laws of recognition: published sets are known by their columns, and what is guessed is said."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.real import REAL, rows

from lifecycle.data.read.files.listing import listing
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
    ({"messages": CHAT}, "chat", "messages", {}),
    ({"conversations": [{"from": "human", "value": "q"}], "tools": "[]"}, "prompt", "conversations", {}),
    ({"messages": CHAT, "label": True}, "unpaired", "unpaired", {}),
    ({"messages": CHAT, "label": True}, "chat", "unpaired", {}),  # which is refused: half of them may be bad
    ({"messages": CHAT, "label": True}, "text", "unpaired", {}),  # refused too
    ({"text": "a", "label": 1}, "text", "text", {}),
    ({"text": "a", "messages": CHAT, "label": 1}, "text", "text", {}),
    ({"prompt": "q", "completion": "a", "label": 0}, "unpaired", "unpaired", {}),
    ({"prompt": "q", "chosen": "a", "rejected": "b"}, "preference", "preference", {}),
    ({"chosen": CHAT, "rejected": [*CHAT[:1], {"role": "assistant", "content": "b"}]}, "preference", "preference", {}),
    ({"question": "q", "answer": "2+2\n#### 4"}, "prompt", "word_problem", {}),
    ({"question": "q", "answer": "4"}, "prompt", "question_answer", {}),
    ({"problem": "q", "solution": "4"}, "prompt", "question_answer", {"question": "problem", "answer": "solution"}),
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


def test_a_column_that_some_rows_lack_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="columns instruction, output .not all of them in every row. fit no known format"
    ):
        guess([{"instruction": "q", "output": "a"}, {"instruction": "q"}], tmp_path, "chat")


def test_a_format_that_cannot_give_the_view_is_taken_where_no_other_fits(tmp_path: Path) -> None:
    assert (
        guess([{"text": "a"}], tmp_path, "chat").format == "text"
    )  # and refused with a reason, where views are checked


def test_where_no_row_can_be_read_whoever_reads_says_why(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": \n')
    spec = SourceSpec(path=str(tmp_path / "a.jsonl"), format="auto")
    assert recognised(spec, listing(spec, name="s", cache=tmp_path), where="x", view="chat")[0].format == "text"


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
