"""Distillation: a student learns the distribution of the next token from a teacher of any size.

    loss = sum over trained tokens of [(1 - a) divergence(student, teacher) + a -log p(label)] / trained tokens

The divergence is forward KL (beta 0), reverse KL (beta 1) or the generalised JSD between (`losses/distillation.py`), at
a temperature; a is `stage.cross_entropy`, and the tokens are those of the whole step. The teacher is a frozen network
beside the student, which no checkpoint holds: a run that goes on reads it again, and refuses another in its place.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lifecycle.batch import StepBatch, TokenBatch
from lifecycle.bounds import Keys, Positive, Share
from lifecycle.losses import linear_cross_entropy
from lifecycle.losses.distillation import divergence
from lifecycle.model import DocumentMask, ModelConfig
from lifecycle.stages.base import Stage
from lifecycle.stages.distillation.lesson import Lesson
from lifecycle.stages.distillation.teacher import Rows, Teacher, head_of
from lifecycle.stages.inheritance import TeacherName
from lifecycle.stages.next_token import NEXT_TOKEN, held_out_loss
from lifecycle.stages.setup import Setup
from lifecycle.stages.step.optimization import OptimizationKeys


@dataclass(frozen=True, kw_only=True)
class Distance:
    """How far apart two distributions are: beta and temperature of `losses.distillation.divergence`."""

    beta: Share
    temperature: Positive


class Distill(Stage):
    """Distillation on packed rows of conversations or documents.

    cross_entropy: share of the labels' cross-entropy in the loss. teacher_vocabulary: of a teacher whose vocabulary has
    another number of rows.
    """

    views = NEXT_TOKEN
    takes_over = (TeacherName,)

    def __init__(
        self,
        *,
        model: ModelConfig,
        optimization: Keys[OptimizationKeys],
        divergence: Distance,
        cross_entropy: Share,
        teacher_vocabulary: Rows,
        setup: Setup,
    ) -> None:
        teacher = Teacher(student=model, rows=teacher_vocabulary, setup=setup)
        super().__init__(model=model, optimization=optimization, setup=setup, beside=teacher)
        self.teacher, self.distance, self.cross_entropy = teacher, divergence, cross_entropy

    def training_step(self, batch: StepBatch[TokenBatch], batch_idx: int) -> None:
        """One optimizer step on this rank's share of the global batch."""
        lessons = [Lesson.of(micro) for micro in batch.micro]
        self.take_step(StepBatch(step=batch.step, micro=lessons, cursor=batch.cursor), self._loss_sum)

    def validation_step(self, batch: tuple[TokenBatch, DocumentMask | None], batch_idx: int) -> Tensor:
        """(2,) float64: summed negative log-likelihood and number of trained tokens."""
        return held_out_loss(self.network, *batch)

    def _loss_sum(self, lesson: Lesson, documents: DocumentMask | None) -> tuple[Tensor, dict[str, Tensor]]:
        tokens, share = lesson.tokens, self.cross_entropy
        hidden_BTD = self.network(tokens.input_ids, tokens.position_ids, documents, counted=tokens.trained)
        student = head_of(hidden_BTD, self.network.head_weight, lesson, self.config, self.teacher.shared)
        apart = divergence(
            student,
            self.teacher.head(lesson, documents),
            beta=self.distance.beta,
            temperature=self.distance.temperature,
            weights_N=lesson.weights_N,
        )
        if not share:
            return apart, {"divergence": apart.detach()}
        nll, _ = linear_cross_entropy(
            student.hidden_ND,
            self.network.head_weight,
            lesson.labels_N,
            weights_N=lesson.weights_N,
            softcap=self.config.logit_softcap,
            compiled=self.setup_facts.compile,
        )
        return (1 - share) * apart + share * nll, {"divergence": apart.detach(), "cross_entropy": nll.detach()}
