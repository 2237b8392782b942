"""The teacher of a run: a frozen network of any size, asked for its distribution of every trained token."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lifecycle.errors import UserError
from lifecycle.losses.distillation import Head
from lifecycle.model import DocumentMask, ModelConfig
from lifecycle.stages.beside.frozen import FrozenNetwork
from lifecycle.stages.distillation.lesson import Lesson
from lifecycle.stages.run.setup import Setup

Rows = Literal["same", "renormalise"]
"""Of two vocabularies of different sizes: refused, or the ids that both have, with the distributions of these alone."""


class Teacher(FrozenNetwork):
    """The network that `stage.teacher` names, and the rows of its head that the student has too.

    Raises `UserError` where the vocabularies have different sizes, and `rows` does not allow it, or `top_k` is all of
    it.
    """

    def __init__(self, *, student: ModelConfig, rows: Rows, top_k: int | None, setup: Setup) -> None:
        assert setup.teacher is not None, "the run supplies what stage.teacher names"
        model = setup.teacher
        ours, theirs = student.vocab, model.config.vocab
        if ours != theirs and rows == "same":
            raise UserError(
                f"the student's vocabulary has {ours} rows, and that of its teacher {model.name} {theirs}: type "
                "stage.teacher_vocabulary=renormalise to compare the distributions of the ids that both have, or "
                f"model.vocab_size={theirs} for a fresh student"
            )
        self.shared = min(ours, theirs)
        if top_k is not None and top_k >= self.shared:
            raise UserError(
                f"stage.top_k is {top_k}, and {self.shared} ids are compared: type a smaller number (32 to 256 is "
                "usual), or stage.top_k=null for all of them"
            )
        self.sha256, self.cache, self.config = model.weights.sha256, model.weights.cache, model.config
        super().__init__(config=model.config, read=model.weights.read, setup=setup)

    @torch.no_grad()
    def head(self, lesson: Lesson, documents: DocumentMask | None) -> Head:
        """The hidden states of the lesson's N trained tokens, and what turns them into logits."""
        network, tokens = self.network, lesson.tokens
        hidden_BTE = network(tokens.input_ids, tokens.position_ids, documents)
        return head_of(hidden_BTE, network.head_weight, lesson, self.config, self.shared)


def head_of(hidden_BTD: Tensor, weight_VD: Tensor, lesson: Lesson, config: ModelConfig, shared: int) -> Head:
    """The trained tokens of a forward pass of a network of `config`, over the first `shared` ids."""
    weight_VD = weight_VD if shared == len(weight_VD) else weight_VD[:shared]
    return Head(hidden_BTD.flatten(0, 1)[lesson.places], weight_VD, config.logit_softcap)
