"""Distillation: a student learns the distribution of the next token from a teacher of any size.

    loss = sum over trained tokens of [(1 - a) divergence(student, teacher) + a -log p(label)] / trained tokens

The divergence is forward KL (beta 0), reverse KL (beta 1) or the generalised JSD between (`losses/distillation.py`), at
a temperature; a is `stage.cross_entropy`, and the tokens are those of the whole step. The teacher is a frozen network
beside the student, which no checkpoint holds: a run that goes on reads it again, and refuses another in its place.

`stage.top_k` looks up what the teacher said (`distillation/known.py`); `stage.on_policy` has the student write some of
the answers itself (`distillation/on_policy.py`), of which the teacher judges every token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lifecycle.batch import StepBatch, TokenBatch
from lifecycle.bounds import Count, Keys, Positive, Share
from lifecycle.losses import linear_cross_entropy, token_logprobs
from lifecycle.losses.distillation import Head, TopK, divergence, top_k
from lifecycle.losses.policy.objectives import importance_sampling, teacher_advantage
from lifecycle.model import DocumentMask, ModelConfig
from lifecycle.stages.base import Stage
from lifecycle.stages.distillation.known import KnownTeacher
from lifecycle.stages.distillation.lesson import Lesson
from lifecycle.stages.distillation.on_policy import OnPolicy, Sampler
from lifecycle.stages.distillation.teacher import Rows, Teacher, head_of
from lifecycle.stages.run.inheritance import TeacherName
from lifecycle.stages.run.setup import Setup
from lifecycle.stages.step.next_token import NEXT_TOKEN, held_out_loss
from lifecycle.stages.step.optimization import OptimizationKeys


@dataclass(frozen=True, kw_only=True)
class Distance:
    """How far apart two distributions are: beta and temperature of `losses.distillation.divergence`."""

    beta: Share
    temperature: Positive


def _faults(config: Mapping[str, Any]) -> list[str]:
    """Answers are sampled to what stands before them, which documents do not have; and only to learn from them."""
    stage, found = config["stage"], []
    written = stage.get("on_policy")
    if written and stage.get("view") != "chat":
        found.append(
            f"stage.on_policy samples answers to prompts, and stage.view is '{stage.get('view')}': type "
            "stage.view=chat, or stage.on_policy=null"
        )
    if written and written.get("form") == "supervised" and stage.get("cross_entropy") == 1:
        found.append(
            "stage.cross_entropy is 1, so that the divergence counts nothing, which is all that is learnt from answers "
            "of the student: type stage.cross_entropy=0.5, or stage.on_policy=null"
        )
    if written and (config.get("hardware") or {}).get("fp8") is not None:
        found.append(
            "hardware.fp8 is for what is not sampled, and stage.on_policy compares with samples, drawn in bf16: type "
            "hardware.fp8=null, or stage.on_policy=null"
        )
    return found


class Distill(Stage):
    """Distillation on packed rows of conversations or documents.

    cross_entropy: share of the labels' cross-entropy in the loss of tokens of the data. teacher_vocabulary: of a
    teacher whose vocabulary has another number of rows. top_k: tokens kept of the teacher's distributions; None: all,
    which are computed anew in every step. on_policy: what the student writes itself; None: nothing.
    """

    views = NEXT_TOKEN
    fp8 = True
    takes_over = (TeacherName,)
    faults = staticmethod(_faults)

    def __init__(
        self,
        *,
        model: ModelConfig,
        optimization: Keys[OptimizationKeys],
        divergence: Distance,
        cross_entropy: Share,
        teacher_vocabulary: Rows,
        top_k: Count | None,
        on_policy: OnPolicy | None,
        setup: Setup,
    ) -> None:
        teacher, known = Teacher(student=model, rows=teacher_vocabulary, top_k=top_k, setup=setup), None
        if top_k is not None:
            known = KnownTeacher(teacher, k=top_k, ask=self._said, key=self._depends_on)
        super().__init__(model=model, optimization=optimization, setup=setup, beside=known or teacher)
        self.teacher, self.known, self.distance, self.cross_entropy = teacher, known, divergence, cross_entropy
        self.top_k, self.sampler = top_k, None if on_policy is None else Sampler(on_policy, setup)

    def training_step(self, batch: StepBatch[TokenBatch], batch_idx: int) -> None:
        """One optimizer step on this rank's share of the global batch, and on what the student writes of it."""
        self.enter(batch.step)
        if self.sampler is None:
            lessons = [Lesson.of(micro) for micro in batch.micro]
        else:
            lessons = self.sampler.lessons(batch.micro, self.network, step=batch.step)
        if self.known is not None:
            lessons = [one if one.sampler_logp is not None else self.known.lesson(one) for one in lessons]
        self.take_step(StepBatch(step=batch.step, micro=lessons, cursor=batch.cursor), self._loss_sum)

    def validation_step(self, batch: tuple[TokenBatch, DocumentMask | None], batch_idx: int) -> Tensor:
        """(2,) float64: summed negative log-likelihood and number of trained tokens."""
        return held_out_loss(self.network, *batch)

    def _loss_sum(self, lesson: Lesson, documents: DocumentMask | None) -> tuple[Tensor, dict[str, Tensor]]:
        tokens = lesson.tokens
        hidden_BTD = self.network(tokens.input_ids, tokens.position_ids, documents, counted=tokens.trained)
        student = head_of(hidden_BTD, self.network.head_weight, lesson, self.config, self.teacher.shared)
        if lesson.sampler_logp is not None and self.sampler is not None and self.sampler.keys.form != "supervised":
            return self._by_policy_gradient(lesson, student, self.teacher.head(lesson, documents))
        weight = _number(len(lesson.places)) if lesson.weights_N is None else lesson.weights_N.sum()
        apart = divergence(
            student,
            lesson.said or self.teacher.head(lesson, documents),
            beta=self.distance.beta,
            temperature=self.distance.temperature,
            weights_N=lesson.weights_N,
        )
        nll = self._nll(lesson, student) if self.cross_entropy and lesson.sampler_logp is None else None
        told = self._told(
            lesson, {"divergence": (apart, weight), **({} if nll is None else {"cross_entropy": (nll, weight)})}
        )
        loss = (1 - self.cross_entropy) * apart
        return loss if nll is None else loss + self.cross_entropy * nll, told

    def _nll(self, lesson: Lesson, student: Head) -> Tensor:
        nll, _ = linear_cross_entropy(
            student.hidden_ND,
            self.network.head_weight,
            lesson.labels_N,
            weights_N=lesson.weights_N,
            softcap=self.config.logit_softcap,
            compiled=self.setup_facts.compile,
        )
        return nll

    def _by_policy_gradient(self, lesson: Lesson, student: Head, teacher: Head) -> tuple[Tensor, dict[str, Tensor]]:
        """At the temperature of the draws, over the tokens that could be drawn."""
        assert self.sampler is not None and lesson.sampler_logp is not None
        tokens = min(self.setup_facts.tokens or self.teacher.shared, self.teacher.shared)
        banned = torch.arange(tokens, self.teacher.shared, device=self.device)
        (logp_N, _), (teacher_N, _) = (
            token_logprobs(
                head.hidden_ND,
                head.weight_VD,
                lesson.labels_N,
                temperature=self.sampler.keys.temperature,
                softcap=head.softcap,
                banned_ids=banned,
            )
            for head in (student, teacher)
        )
        advantage_N = teacher_advantage(teacher_N, lesson.sampler_logp)
        count = _number(len(advantage_N))
        loss = importance_sampling(logp_N, lesson.sampler_logp, advantage_N)
        return loss, self._told(lesson, {"reverse_kl": (-advantage_N.sum(), count)})

    def _told(self, lesson: Lesson, of: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """(2,) sums and what they are divided by, of every metric, the same names for every lesson."""
        names = ["divergence", *(["cross_entropy"] if self.cross_entropy else [])]
        names += ["reverse_kl"] if self.sampler is not None and self.sampler.keys.form != "supervised" else []
        zero = torch.zeros((), dtype=torch.float64, device=self.device)
        told = {}
        for name in names:
            total, count = of.get(name, (zero, zero))
            told[f"train/{name}"] = torch.stack([total.detach().double(), count.to(zero.device).double()])
        if self.sampler is not None:
            drawn = lesson.sampler_logp is not None
            count = lesson.tokens.document_ids.amax(-1).sum() if drawn else zero
            length = lesson.places.new_tensor(len(lesson.places)) if drawn else zero
            told["train/answer_length"] = torch.stack([length.double(), count.double()])
        return told

    # -- what the teacher said before

    @torch.no_grad()
    def _said(self, lesson: Lesson) -> TopK:
        assert self.top_k is not None
        with self.trainer.precision_plugin.forward_context():
            head = self.teacher.head(*self.on_device(lesson))
            return top_k(head, self.top_k, temperature=self.distance.temperature)

    def _depends_on(self) -> list[str]:
        facts = self.setup_facts
        asked = [self.top_k, self.distance.temperature, self.teacher.shared]
        return [repr(one) for one in [*asked, facts.bf16, facts.compile, self.kernel, self.device.type]]


def _number(count: int) -> Tensor:
    return torch.tensor(count, dtype=torch.float64, device="cpu")
