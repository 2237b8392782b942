"""Weights of reasoning traces: which token has which, a weighted denominator, and tags that must be one token."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model.adapted import lora
from tests.stages.test_step import LENGTH, MODEL, STEPS, Batches, Kept, optimization, stage, trainer_of, whole
from torch.nn import functional as F

from lifecycle.batch import IGNORED, TokenBatch
from lifecycle.errors import UserError
from lifecycle.model import DocumentMask, build
from lifecycle.stages.distill_reason import DistillReason
from lifecycle.stages.distillation.thoughts import TraceWeights

OPEN, CLOSE = 60, 61
WEIGHTS = TraceWeights(opening=OPEN, closing=CLOSE, tag=10.0, answer=2.0)


def row(labels: list[int], documents: list[int]) -> TokenBatch:
    labelled, numbered = torch.tensor([labels]), torch.tensor([documents])
    ids = torch.ones_like(labelled)
    return TokenBatch.of(
        {"input_ids": ids, "labels": labelled, "position_ids": ids, "document_ids": numbered, "source_ids": 0 * ids}
    )


@pytest.mark.parametrize(
    ("labels", "documents", "wanted"),
    [
        ([IGNORED, OPEN, 5, 6, CLOSE, 7, 8], [1] * 7, [10, 1, 1, 10, 2, 2]),
        ([IGNORED, 5, CLOSE, 7], [1] * 4, [1, 10, 2]),  # the template opens the thoughts
        ([IGNORED, OPEN, 5, 6], [1] * 4, [10, 1, 1]),  # cut before they end
        ([IGNORED, 5, 6], [1] * 3, [2, 2]),  # no thoughts
        ([5, CLOSE, 6, IGNORED, 5, CLOSE, 7], [1] * 7, [1, 10, 2, 1, 10, 2]),  # two turns
        ([OPEN, 5, 6, 7], [1, 1, 2, 2], [10, 1, 2, 2]),  # two conversations
    ],
)
def test_tags_thoughts_and_answers_by_hand(labels: list[int], documents: list[int], wanted: list[int]) -> None:
    made = WEIGHTS.of(row(labels, documents))
    assert made.weights is not None and made.weights[made.trained].tolist() == wanted
    assert float(made.weight_by_source(1)) == sum(wanted)


def test_weights_of_the_data_are_kept_as_factors() -> None:
    given = row([OPEN, 5, CLOSE, 7], [1] * 4)
    made = WEIGHTS.of(TokenBatch.of({**given.tensors(), "weights": torch.tensor([[1.0, 3.0, 1.0, 0.5]])}))
    assert made.weights is not None and made.weights.tolist() == [[10, 3, 10, 1]]


def made_stage(tags: list[str], known: dict[str, int], **facts: Any) -> DistillReason:
    return DistillReason(
        model=MODEL,
        optimization=optimization(),
        tags=tags,
        tag_weight=10.0,
        answer_weight=2.0,
        setup=replace(stage().setup_facts, token_id=known.get, **facts),
    )


def test_the_loss_is_divided_by_the_weights_of_the_whole_step(tmp_path: Path) -> None:
    (batch,) = whole(0)
    logger, made = Kept(), made_stage(["<a>", "</a>"], {"<a>": OPEN, "</a>": CLOSE})
    rows = [batch.rows(0, 1), batch.rows(1, 4)]
    steps: list[list[Any]] = [rows] * STEPS
    trainer_of(STEPS, tmp_path, logger=logger).fit(made, Batches(steps))
    weighed, model = WEIGHTS.of(batch), build(MODEL, seed=1)
    hidden = model(batch.input_ids, batch.position_ids, DocumentMask.from_ids(batch.document_ids, kernel="sdpa"))
    losses = F.cross_entropy(model.logits(hidden).detach().flatten(0, 1), batch.labels.flatten(), reduction="none")
    assert weighed.weights is not None and batch.labels.shape[1] == LENGTH
    weights = weighed.weights.flatten() * batch.trained.flatten()
    assert len(set(weights.tolist())) > 2
    assert logger.rows[1]["train/loss"] == pytest.approx(float((losses * weights).sum() / weights.sum()), rel=1e-5)


def test_tags_that_are_not_one_token_say_what_to_type() -> None:
    with pytest.raises(UserError, match=r"no token for </a>: type 'stage.new_tokens=\[<a>,</a>\]'"):
        made_stage(["<a>", "</a>"], {"<a>": OPEN})
    with pytest.raises(UserError, match="makes each one token and adapter=none, since an adapter adds no rows"):
        made_stage(["<a>", "</a>"], {"<a>": OPEN}, adapter=lora())
    with pytest.raises(UserError, match="wanted two names"):
        made_stage(["<a>"], {"<a>": OPEN})
