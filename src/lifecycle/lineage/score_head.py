"""A language model as the beginning of a reward model: its head gives way to a score, whose weight is drawn by the
run's seed. And the other way: a model that ends in a score is no beginning for what predicts tokens."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from lifecycle.errors import UserError
from lifecycle.lineage.parent import Parent
from lifecycle.model.layers.initial import ending_in, fresh_score


def with_score(parent: Parent, *, seed: int) -> Parent:
    """The parent with a fresh score in place of its head; unchanged where it ends in a score already. Raises UserError
    for a family of which `transformers` has no such class."""
    if parent.model.score_head:
        return parent
    model = replace(parent.model, score_head=True)

    def read() -> dict[str, Tensor]:
        return ending_in(parent.weights, fresh_score(model, seed=seed))

    return replace(parent, model=model, read=read)


def refuse_score(parent: Parent, stage: str) -> None:
    """Raise UserError where the parent ends in a score."""
    if parent.model.score_head:
        raise UserError(
            f"init_from={parent.name} is a reward model: it ends in a score and predicts no tokens, which "
            f"stage={stage} needs. Name a language model, such as the one that it began with"
        )
