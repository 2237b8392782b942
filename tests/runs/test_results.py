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
from lifecycle.runs.results import samples
from lifecycle.tokenizer.tokenizer import TokenizerRecipe


@pytest.mark.parametrize("template", ["plain", "chatml"])  # with a mark of beginning, and without
@pytest.mark.parametrize("view", VIEWS)
def test_held_out_items_are_continued_under_every_view(
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
    made = samples(build(config, seed=1).eval(), data, stage)
    assert len(made) == 2 and all(one["domain"] == "a" and one["completion"] for one in made)
    assert all("<|" not in one["prompt"] and one["prompt"].strip() for one in made)
    assert set(baselines(data)) == ({"a"} if view in ("text", "chat") else set())
