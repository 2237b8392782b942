"""Options are shuffled once a pass of training, the same wherever a run goes on; held-out rows keep their order."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.data.made import make_corpus
from tests.data.test_views import TOKENIZER

from lifecycle.batch import Prompt
from lifecycle.data.read.spec import SourceSpec
from lifecycle.errors import UserError

ROWS = 40
OPTIONS = ["lung", "liver", "skin", "None of these"]


def corpus(folder: Path, **more: Any) -> Any:
    rows = [{"question": f"Bile {n}?", "options": OPTIONS, "answer": "B"} for n in range(ROWS)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    TOKENIZER.save(folder / "tokenizer")
    keys: dict[str, Any] = {"path": str(folder / "rows.jsonl"), "format": "multiple_choice", "shuffle_options": True}
    spec = SourceSpec(**{**keys, "validation": {"ratio": 0.3, "seed": 1}} | more.pop("source", {}))
    return make_corpus(
        {
            "sources": {"mine": spec},
            "tokenizer": str(folder / "tokenizer"),
            "view": "prompt",
            "chat_template": "none",
            **more,
        }
    )


def taken(documents: Any, count: int) -> list[Prompt]:
    return [documents.next() for _ in range(count)]


def test_each_pass_has_another_order_and_a_stream_goes_on_with_the_same(tmp_path: Path) -> None:
    made = corpus(tmp_path)
    held = made.held_out(made.whole[0], 1000)
    assert held and all(item.meta["options"] == OPTIONS and item.answer == "B" for item in held)
    count = ROWS - len(held)
    whole = taken(made.documents("mine"), 3 * count)
    passes = [{item.id: item for item in whole[n * count : (n + 1) * count]} for n in range(3)]
    assert all(len(one) == count for one in passes)
    moved = [sum(one[i].meta["options"] != OPTIONS for i in one) for one in passes]
    assert all(count / 2 < n < count for n in moved)  # 5 of 6 orders are others
    assert any(passes[0][i].answer != passes[1][i].answer for i in passes[0])
    for item in whole:
        assert item.meta["options"][3] == "None of these"
        assert item.meta["options"]["ABCD".index(item.answer or "")] == "liver"
        assert f"\n{item.answer}. liver\n" in TOKENIZER.decode(item.ids)
    for at in (0, 5, count, count + 7):
        first = made.documents("mine")
        taken(first, at)
        again = made.open_documents("mine", 1, {0: first.state()})[0]
        assert [(i.id, i.ids.tolist()) for i in taken(again, 9)] == [(i.id, i.ids.tolist()) for i in whole[at : at + 9]]


def test_without_the_key_the_order_is_the_rows(tmp_path: Path) -> None:
    made = corpus(tmp_path, source={"shuffle_options": False})
    assert all(item.meta["options"] == OPTIONS for item in taken(made.documents("mine"), 60))


def test_a_plain_prompt_is_the_text_that_the_data_declares(tmp_path: Path) -> None:
    made = corpus(tmp_path, plain_prompt="Q: {prompt}\nYour letter: ", source={"shuffle_options": False})
    text = TOKENIZER.decode(made.documents("mine").next().ids)
    assert text.startswith("Q: Bile ") and text.endswith(
        "?\nA. lung\nB. liver\nC. skin\nD. None of these\nYour letter: "
    )


@pytest.mark.parametrize("plain", ["Answer:", "{prompt} {prompt}"])
def test_a_plain_prompt_without_its_question_is_refused(tmp_path: Path, plain: str) -> None:
    with pytest.raises(UserError, match=r"data.plain_prompt is .*wanted \{prompt\} in it, once"):
        corpus(tmp_path, plain_prompt=plain)


def test_shards_and_other_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="shards hold each prompt in one order"):
        corpus(tmp_path, prepared="somewhere")
    with pytest.raises(UserError, match="shuffle_options is for multiple_choice; this is word_problem"):
        SourceSpec(path="x", format="word_problem", shuffle_options=True).check("data.sources.mine")
