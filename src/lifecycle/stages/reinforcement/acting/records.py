"""What graders and environments know of the prompts of a step."""

from __future__ import annotations

from lifecycle.batch import PromptBatch
from lifecycle.rewards.record import Answered
from lifecycle.stages.run.setup import Setup


def records_of(prompts: PromptBatch, setup: Setup) -> list[Answered]:
    """Of each prompt."""
    assert setup.tokenizer is not None
    texts = [setup.tokenizer.decode(ids, specials=True) for ids in prompts.ids]
    known = zip(texts, prompts.answer, prompts.meta, strict=True)
    return [Answered(answer=answer or "", prompt=text, meta=meta) for text, answer, meta in known]
