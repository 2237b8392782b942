"""Real rows of post-training sets under the views that they can give: what is trained is what the assistant says."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.real import REAL, needs_real, rows

from lifecycle import config
from lifecycle.batch import Example, Item, Pair, Prompt, Record
from lifecycle.data.corpus import Corpus, DataConfig
from lifecycle.data.read.files.listing import listing
from lifecycle.data.read.formats import to_record
from lifecycle.data.read.recognise import recognised
from lifecycle.data.read.row import BadRow
from lifecycle.data.read.spec import SourceSpec
from lifecycle.data.views import VIEWS
from lifecycle.errors import UserError
from lifecycle.tokenizer.chat import ChatTemplate
from lifecycle.tokenizer.tokenizer import train_bpe

TOKENIZER = train_bpe(
    ["a question and its answer \n"] * 9, vocab_size=330, digits=1, special_tokens=["<|im_start|>", "<|im_end|>"]
)
CHATML = ChatTemplate.of("chatml", TOKENIZER.hf)
SOME = 150


def records(name: str, view: str, folder: Path, **more: Any) -> list[Record]:
    """Of the first rows of a set, as its columns are recognised."""
    spec = SourceSpec(path=str(REAL / f"{name}.jsonl.gz"), format="auto", **more)
    seen = rows(name)[:SOME]
    found, _ = recognised(spec, listing(spec, name="s", cache=folder), where="data.sources.s", view=view)
    out = []
    for n, row in enumerate(seen):
        try:
            out.append(to_record(row, spec=found, name="s", row_id=f"s:{n}"))
        except BadRow as bad:
            assert bad.reason in ("near tie", "both answers are the same", "an answer that is no turn of the assistant")
    return out


def made(name: str, view: str, folder: Path, **more: Any) -> list[tuple[Record, Item]]:
    known = records(name, view, folder, **more)
    items = VIEWS[view](known, TOKENIZER, CHATML)
    refused = [item for item in items if isinstance(item, str)]
    assert len(refused) <= 0.02 * len(items), refused[:3]
    return [(record, item) for record, item in zip(known, items, strict=True) if not isinstance(item, str)]


def trained(example: Example) -> list[str]:
    assert example.trained is not None and example.trained[-1]
    edges = np.flatnonzero(np.diff(example.trained.astype(int), prepend=0, append=0))
    return [TOKENIZER.decode(example.ids[a:b], specials=True) for a, b in zip(edges[::2], edges[1::2], strict=True)]


@pytest.mark.parametrize(
    "name",
    [
        "sft/alpaca_en_demo",
        "sft/gpteacher_codegen",
        "sft/glaive_toolcall_en_demo",
        "sft/reason_tool_use_demo",
        "sft/oasst1_multiturn.valid",
        "dpo/rasbt_instruction_preference",
        "med/medqa_us4.train_subset",
        "math/gsm8k.train",
        "code/mbpp.train",
    ],
)
def test_chat_trains_all_that_the_assistant_says_and_nothing_else(name: str, tmp_path: Path) -> None:
    for record, item in made(name, "chat", tmp_path):
        assert isinstance(item, Example)
        said = trained(item)
        turns = [turn for turn in record.messages or [] if turn["role"] == "assistant"]
        assert len(said) == len(turns) if turns else len(said) == 1
        for text, turn in zip(said, turns, strict=False):
            assert text.startswith(turn["content"]) and text.endswith("<|im_end|>")
            assert text.count("<tool_call>") == len(turn.get("tool_calls", []))
        if record.completion is not None:
            assert said == [f"{record.completion.strip()}<|im_end|>"]


@pytest.mark.parametrize("template", ["auto", "chatml", "plain"])
@pytest.mark.parametrize("name", ["sft/glaive_toolcall_en_demo", "sft/reason_tool_use_demo"])
def test_every_row_with_tools_is_written_by_each_of_our_templates(name: str, template: str, tmp_path: Path) -> None:
    known = [record for record in records(name, "chat", tmp_path) if record.meta.get("tools")]
    written, responses = ChatTemplate.of(template, TOKENIZER.hf), 0
    assert len(known) >= 48 and written is not None
    for record, item in zip(known, VIEWS["chat"](known, TOKENIZER, written), strict=True):
        assert isinstance(item, Example), item
        text = TOKENIZER.decode(item.ids, specials=True)
        said, turns = "".join(trained(item)), record.messages or []
        assert text.count("\n</tools>\n") == 1
        assert said.count("<tool_call>") == sum(len(turn.get("tool_calls", [])) for turn in turns)
        responses += text.count("<tool_response>\n")
        assert "<tool_response>" not in said
    assert responses > 20


@pytest.mark.parametrize(
    "name",
    [
        "dpo/hh_harmless_base.test_part2",
        "dpo/alpaca_eval_gpt4_pairs.test",
        "dpo/dpo_en_demo",
        "dpo/rasbt_instruction_preference",
    ],
)
def test_pairs_share_their_prompt(name: str, tmp_path: Path) -> None:
    for record, item in made(name, "preference", tmp_path, tie_margin=0.1):
        assert isinstance(item, Pair)
        for side, turns in ((item.chosen, record.chosen), (item.rejected, record.rejected)):
            assert np.array_equal(side.ids[: len(item.prompt)], item.prompt)
            spoken = [turn["content"] for turn in turns if turn["role"] == "assistant"]
            assert trained(side) == [f"{text}<|im_end|>" for text in spoken]
        assert item.margin is None or item.margin > 0.1


def test_near_ties_of_real_pairs_are_left_out(tmp_path: Path) -> None:
    name = "dpo/alpaca_eval_gpt4_pairs.test"
    near = [row for row in rows(name)[:SOME] if abs(2 * row["preference"] - 3) <= 0.4]
    assert len(records(name, "preference", tmp_path, tie_margin=0.4)) == SOME - len(near) < SOME


def test_labelled_answers_keep_their_labels(tmp_path: Path) -> None:
    for record, item in made("dpo/kto_en_demo", "unpaired", tmp_path):
        assert isinstance(item, Example) and item.wanted == record.label
        assert trained(item) == [f"{(record.completion or '').strip()}<|im_end|>"]


@pytest.mark.parametrize(
    "name", ["med/medqa_us4.train_subset", "math/gsm8k.train", "code/mbpp.train", "rl/commonsenseqa.dev"]
)
def test_prompts_ask_and_do_not_tell(name: str, tmp_path: Path) -> None:
    for record, item in made(name, "prompt", tmp_path):
        assert isinstance(item, Prompt) and item.answer == record.answer and record.prompt is not None
        shown = TOKENIZER.decode(item.ids, specials=True)
        assert shown == f"<|im_start|>user\n{record.prompt}<|im_end|>\n<|im_start|>assistant\n"


@needs_real
@pytest.mark.parametrize(("view", "kind"), [("text", Example), ("chat", Example), ("prompt", Prompt)])
def test_the_examination_questions_serve_every_view_that_they_can_give(
    view: str, kind: type[Item], tmp_path: Path
) -> None:
    cfg = config.compose(["data=offline/usmle", f"data.root={REAL / 'med'}", "data.tokenizer.max_bytes=100000"])
    made: DataConfig = config.build(cfg.data)
    few = {name: replace(source, max_rows=40) for name, source in made.sources.items()}
    corpus = Corpus(replace(made, sources=few), view=view, seed=1, processes=0, folder=tmp_path)
    for source in corpus.sources:
        items = corpus.documents(source.name)
        assert all(isinstance(items.next(), kind) for _ in range(20))


@needs_real
def test_a_view_that_they_cannot_give_is_refused_with_what_would_do(tmp_path: Path) -> None:
    cfg = config.compose(["data=offline/usmle", f"data.root={REAL / 'med'}"])
    made: DataConfig = config.build(cfg.data)
    with pytest.raises(UserError, match="'preference', but data.sources.medqa .* gives chat, prompt, text"):
        Corpus(replace(made, decontaminate=None), view="preference", seed=1, processes=0, folder=tmp_path)
