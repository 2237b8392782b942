"""Direct preference optimisation: make the chosen answer likelier than the rejected one, measured from a reference.

    loss = mean over the step's pairs of L(log pi(answer) - log pi_ref(answer), of both)      L: `losses.preference`

One packed forward pass serves both sides of all pairs, a second one without gradients the reference. `stage.loss` names
L, or several with weights; kto trains on single answers (stage.view=unpaired) and asks both models once more, for the
answers behind prompts that are not theirs. What is divided by, is counted over all micro-batches and ranks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor

from lifecycle.batch import PairBatch, StepBatch
from lifecycle.bounds import Keys
from lifecycle.errors import UserError
from lifecycle.losses.preference import AnswerLogprobs, quantiles_of
from lifecycle.model import DocumentMask, ModelConfig
from lifecycle.model.adapters import adapter_off
from lifecycle.stages.base import Stage
from lifecycle.stages.preference import settings, told
from lifecycle.stages.preference.answers import Answers, answer_logprobs, mismatched
from lifecycle.stages.preference.cached import CachedReference
from lifecycle.stages.preference.objective import Objective, StepFacts
from lifecycle.stages.preference.pairs import Judged, chosen_tokens, judged_pairs, pair_logprobs
from lifecycle.stages.preference.reference import LiveReference, Reference, WithoutAdapter
from lifecycle.stages.preference.settings import PreferenceKeys, Source, reference_of
from lifecycle.stages.run.inheritance import OptimizerState, PeakRate
from lifecycle.stages.run.setup import Setup
from lifecycle.stages.step.collectives import gather_values, sum_over_ranks
from lifecycle.stages.step.optimization import OptimizationKeys


class Dpo(Stage):
    """Preference optimisation on packed pairs, or on packed single answers."""

    views = frozenset({"preference", "unpaired"})
    starts_from_parent = True
    takes_over = (PeakRate, OptimizerState)
    measures = told.HELD_OUT
    told = staticmethod(told.held_out)
    faults = staticmethod(settings.faults)
    frozen_copies = staticmethod(settings.frozen_copies)

    def __init__(
        self,
        *,
        model: ModelConfig,
        optimization: Keys[OptimizationKeys],
        preference: Keys[PreferenceKeys],
        setup: Setup,
    ) -> None:
        kind = reference_of(preference.reference, preference.weights, adapter=setup.adapter is not None)
        reference = None if kind is None else self._reference(kind, model, setup)
        super().__init__(
            model=model,
            optimization=optimization,
            setup=setup,
            beside=reference,
            look_over=self._count_over,
        )
        self.reference = reference
        self.objective, self._tail = Objective(preference), preference.tail
        self._of_step = StepFacts(torch.zeros((), dtype=torch.float64, device="cpu"))

    def training_step(self, batch: StepBatch, batch_idx: int) -> None:
        """One optimizer step on this rank's pairs or answers."""
        self.enter(batch.step)
        self._count_over(batch.micro)
        self.take_step(batch, self._loss_sum)

    def validation_step(self, batch: tuple[Answers, DocumentMask | None], batch_idx: int) -> Tensor:
        """(2 + HELD_OUT,) float64: the summed loss, the items, and the sums of what is measured. What a loss has to
        know of a whole step, is here of all held-out items of the domain."""
        losses, measured = self._judged(*batch)
        loss = losses.double().sum()
        return torch.cat([loss[None], loss.new_tensor([len(batch[0])]), told.held_out_sums(measured)])

    def _count_over(self, micros: Sequence[Answers]) -> None:
        """Note what the loss has to know of all of a step's micro-batches, or of a domain's. Every rank must call."""
        sums = torch.stack([self._sums(micro) for micro in micros]).sum(0)
        self._of_step = self.objective.of_step(sum_over_ranks(sums.to(self.device)))
        if self.objective.sorts:
            ours, theirs = torch.cat([self._differences(*self.on_device(micro)) for micro in micros], 1)
            quantiles = quantiles_of(gather_values(ours), gather_values(theirs))
            self._of_step = self._of_step._replace(quantiles=quantiles)

    def _loss_sum(self, batch: Answers, documents: DocumentMask | None) -> tuple[Tensor, dict[str, Tensor]]:
        losses, measured = self._judged(batch, documents)
        ends = batch.at.ends[0::2] if self.objective.paired else batch.at.ends
        sources = batch.tokens.source_ids.flatten()[ends]
        return losses.sum(), told.summed(measured, sources, self.setup_facts.source_names)

    def _judged(self, batch: Answers, documents: DocumentMask | None) -> Judged:
        """The loss of every item, and what is told of it."""
        if isinstance(batch, PairBatch):
            return judged_pairs(
                self.network,
                batch,
                documents,
                objective=self.objective,
                reference=self.reference,
                facts=self._of_step,
                tail=self._tail,
            )
        assert self.reference is not None
        logp_N, reference_N = answer_logprobs(self.network, batch, documents), self.reference.logprobs(batch, documents)
        answers = AnswerLogprobs(policy=batch.sums(logp_N), reference=batch.sums(reference_N), wanted=batch.wanted)
        tokens_Q = batch.at.sums(torch.ones_like(logp_N))
        measured = told.of_answers(answers, tokens_Q, beta=self.objective.beta, baseline=self._of_step.number)
        return self.objective.of_answers(answers, self._of_step), measured

    @torch.no_grad()
    def _differences(self, batch: Answers, documents: DocumentMask | None) -> Tensor:
        """(2, P): of every pair, what the quantiles of a step are of."""
        assert isinstance(batch, PairBatch) and self.reference is not None
        logp_N = answer_logprobs(self.network, batch, documents)
        reference_N = self.reference.logprobs(batch, documents)
        return self.objective.compared(pair_logprobs(batch, logp_N, reference_N, tail=self._tail))

    @torch.no_grad()
    def _sums(self, batch: Answers) -> Tensor:
        """(2,) float64: of a micro-batch, what the loss has to know of the whole step. Of pairs the tokens of the
        chosen answers, and their number; of single answers the log-ratios of those behind other prompts, and theirs."""
        if isinstance(batch, PairBatch):
            return chosen_tokens(batch)
        apart, documents = self.on_device(mismatched(batch))
        assert self.reference is not None
        logp_N = answer_logprobs(self.network, apart, documents)
        ratios_N = logp_N - self.reference.logprobs(apart, documents)
        return torch.stack(
            [ratios_N.double().sum(), torch.tensor(len(apart), dtype=torch.float64, device=ratios_N.device)]
        )

    def _reference(self, kind: Source, model: ModelConfig, setup: Setup) -> Reference:
        if setup.parent is None:
            raise UserError("the reference of stage=dpo is the parent, and init_from is null: type init_from=RUN")
        if kind == "adapter":
            return WithoutAdapter(lambda: self.network)
        if kind == "live":
            return LiveReference(config=model, setup=setup)
        parent = setup.parent
        return CachedReference(
            ask=self._said,
            key=self._computed_by,
            folder=parent.cache,
            parent=parent.sha256,
            computes=setup.read_weights is not None,
        )

    def _computed_by(self) -> list[str]:
        """What the numbers of the reference depend on beside its weights and the answers."""
        setup = self.setup_facts
        bits = setup.adapter and setup.adapter.bits
        choices = [str(setup.bf16), str(setup.compile), *([] if bits is None else [f"{bits} bits"])]
        return [*choices, self.kernel, self.device.type, repr(self.config)]

    @torch.no_grad()
    def _said(self, batch: Answers) -> Tensor:
        network = self.network
        off = contextlib.nullcontext() if network.adapter is None else adapter_off(network)
        with off, self.trainer.precision_plugin.forward_context():
            return answer_logprobs(network, *self.on_device(batch))
