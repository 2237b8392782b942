"""What a run leaves behind is made under every view."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.data.every_view import VIEWS, module, sizes, write
from tests.toy import toy

from lifecycle.data.read.spec import ValidationRatio
from lifecycle.data.survey.ngram_baselines import baselines
from lifecycle.model import build
from lifecycle.runs.answers.given import answers
from lifecycle.runs.results import samples
from lifecycle.tokenizer.tokenizer import TokenizerRecipe


@pytest.mark.parametrize("template", ["plain", "chatml"])  # with a mark of beginning, and without
@pytest.mark.parametrize("view", VIEWS)
def test_held_out_items_are_continued_or_answered_under_every_view(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, view: str, template: str
) -> None:
    monkeypatch.setenv("LIFECYCLE_CACHE", str(tmp_path / "cache"))
    write(tmp_path, view, "a", sizes(0, 40, longest=9))
    tokenizer: Any = {"special_tokens": ("<|im_start|>", "<|im_end|>")}
    data = module(
        tmp_path,
        view,
        {"a": 1},
        spec={"validation": ValidationRatio(ratio=0.5)},
        validation_tokens=400,
        chat_template=template,
        tokenizer=TokenizerRecipe(vocab_size=300, digits=1, max_bytes=50_000, **tokenizer),
        sequence_length=64,
        global_batch_tokens=256,
        micro_batch_tokens=256,
    )
    config = toy(vocab_size=data.tokenizer.vocab_size)
    stage = cast(Any, SimpleNamespace(config=config, setup_facts=SimpleNamespace(seed=1), global_step=3))
    model = build(config, seed=1).eval()
    made = samples(model, data, stage)
    if view not in ("chat", "preference", "unpaired", "prompt"):  # beginnings are continued
        assert len(made) == 2 and all(one["domain"] == "a" and one["completion"] for one in made)
        assert all("<|" not in one["prompt"] and one["prompt"].strip() for one in made)
    else:  # questions are answered instead
        asked = [("a", question) for question in data.held_out["a"].questions[:2]]
        made_answers = answers(model, asked, data.tokenizer, most_tokens=4, step=3)
        assert not made and len(made_answers) == 2
        assert all(one["domain"] == "a" and one["prompt"].strip() and one["reference"].strip() for one in made_answers)
    assert set(baselines(data)) == ({"a"} if view in ("text", "chat") else set())
