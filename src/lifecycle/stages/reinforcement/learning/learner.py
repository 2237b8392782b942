"""Updates of a policy on the samples of a step: what is asked before the first, and the loss of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lifecycle.batch import PromptBatch, SampleBatch, StepBatch
from lifecycle.errors import UserError
from lifecycle.losses.policy.masks import RatioFacts, ratio_facts
from lifecycle.model import Decoder, DocumentMask, ModelConfig
from lifecycle.stages.base import LossSum, Stage
from lifecycle.stages.reinforcement.learning.coefficients import EntropyCoefficient, KlCoefficient
from lifecycle.stages.reinforcement.learning.experience import Experience, RowsOfSamples, micro_batches
from lifecycle.stages.reinforcement.learning.policy import policy_loss, rerouted, sample_logprobs, sample_states
from lifecycle.stages.reinforcement.learning.reference import PolicyReference
from lifecycle.stages.reinforcement.learning.values import ValueLearner
from lifecycle.stages.reinforcement.settings import PolicyKeys, SamplingKeys
from lifecycle.stages.run.setup import Setup
from lifecycle.stages.step import mean_parts
from lifecycle.stages.step.collectives import greatest_of_ranks, sum_over_ranks
from lifecycle.stages.step.gradients import Told
from lifecycle.stages.step.watched import Carried


class Learner:
    """What turns the samples of a step into updates; a stage holds one. values: of a stage with a critic, for which the
    advantage of a sample is its score."""

    def __init__(
        self,
        *,
        model: ModelConfig,
        policy: PolicyKeys,
        drawn: SamplingKeys,
        setup: Setup,
        values: ValueLearner | None = None,
    ) -> None:
        self._keys = replace(policy, length=policy.length or drawn.sampling.max_new_tokens)
        if drawn.keep_routing and model.moe is None:
            raise UserError(
                "stage.keep_routing is true, and the model has no experts, so that there is no routing to keep: type "
                "stage.keep_routing=false"
            )
        self._drawn, self._setup, self._values = drawn, setup, values
        self.coefficient, self.entropy = KlCoefficient(policy.kl), EntropyCoefficient(policy)
        self._phase = setup.timeline.at(0)
        self._kl: Tensor | None = None  # of the step so far: sum and count ...
        self._facts: RatioFacts | None = None  # ... ratios to the sampler ...
        self._deviation = torch.zeros((), dtype=torch.float32, device="cpu")  # ... and the largest of a ratio from 1
        self.reference = PolicyReference(model=model, keys=policy.kl, head=drawn.head, setup=setup)

    @property
    def carried(self) -> dict[str, Carried]:
        """What every checkpoint of a stage holds of it."""
        return {
            "kl_coefficient": self.coefficient,
            "entropy_coefficient": self.entropy,
            "reference": self.reference,
        }

    def learn(
        self,
        stage: Stage,
        batch: StepBatch[PromptBatch],
        experience: Experience,
        facts: Mapping[str, Tensor],
        afterwards: Told = dict,
    ) -> None:
        """All updates of a step. facts: what is told of its samples; afterwards: what is told besides when the updates
        are done. Every rank must call."""
        self._phase = self._setup.timeline.at(batch.step)
        self.coefficient.enter(batch.step, self._phase)
        self.entropy.enter(experience, stage.device)
        stage.take_updates(
            batch,
            self.updates(stage, experience),
            self.loss_sum(stage),
            told=lambda: {**facts, **self.end_step(len(experience.rollout)), **afterwards()},
        )
        self.reference.after(stage.network, batch.step + 1)

    @property
    def _asks(self) -> bool:
        """Whether the step asks the reference."""
        return self.reference.asked and self.coefficient.value > 0

    def updates(self, stage: Stage, experience: Experience) -> list[list[SampleBatch]]:
        """The micro-batches of every update of the step, in turn. Every rank must call."""
        layout = self._layout(stage)
        if not (self._asks or self.entropy.weight or self._values is not None or stage.config.moe is not None):
            experience = experience.without_idle()  # which move nothing but a KL, an entropy, a critic, a balance
        parts, passes = self._drawn.updates_per_rollout, self._drawn.passes_per_rollout
        asked = experience.parts(parts, stage.device)
        made = [micro_batches(experience, one, self._keys, layout, device=stage.device) for one in asked]
        old = parts * passes > 1 or self._values is not None
        made = [[self._known(stage, micro, old=old) for micro in update] for update in made]
        if self._values is not None:
            made = self._values.estimated(made, kl_coefficient=self.coefficient.value)
        return made * passes

    def loss_sum(self, stage: Stage) -> LossSum[SampleBatch]:
        """What gives the summed loss of a micro-batch, and what is told of it."""
        self._kl, self._facts, self._deviation = None, None, torch.zeros((), dtype=torch.float32, device=stage.device)

        def judged(batch: SampleBatch, documents: DocumentMask | None) -> tuple[Tensor, dict[str, Tensor]]:
            hidden_ND = sample_states(stage.network, batch, documents, keep_routing=self._drawn.keep_routing)
            logp_N, entropy_N = self._said(stage, stage.network, hidden_ND, batch)
            loss, told = policy_loss(
                batch,
                logp_N,
                entropy_N,
                self._keys,
                kl_coefficient=self.coefficient.value,
                entropy_coefficient=self.entropy.weight,
            )
            if batch.experts is not None:
                told |= rerouted(stage.network, len(logp_N))
            if "policy/kl" in told:
                self._kl = told["policy/kl"] if self._kl is None else self._kl + told["policy/kl"]
            if len(logp_N):
                drawn_N = logp_N.detach() if batch.old_logp is None else batch.old_logp
                facts = ratio_facts(drawn_N, batch.sampler_logp)
                self._facts = facts if self._facts is None else self._facts.joined(facts)
                apart = ((drawn_N - batch.sampler_logp).exp() - 1).abs().max()
                self._deviation = torch.maximum(self._deviation, apart)
            if self._values is not None:
                of_values, more = self._values.loss(stage.network, hidden_ND, batch, documents)
                loss, told = loss + of_values, told | more
            return loss, told

        return judged

    def end_step(self, samples: int) -> dict[str, Tensor]:
        """What is told when all updates are done; a coefficient of the KL with a target is moved. samples: of the step
        on this rank. Every rank must call."""
        if self._values is not None and self._values.kl is not None:
            self._kl = self._values.kl
        if self._kl is not None:
            self.coefficient.measured(self._kl, samples)
        greatest = torch.stack([greatest_of_ranks(self._deviation), torch.ones_like(self._deviation)])
        told = {"policy/ratio_max_deviation": greatest, **self._ratios()}
        if self.reference.asked:
            told["policy/kl_coefficient"] = mean_parts.of_numbers(self.coefficient.value)
        if self.entropy.moves:
            told["policy/entropy_coefficient"] = mean_parts.of_numbers(self.entropy.weight)
        return told if self._values is None else told | self._values.told()

    def _ratios(self) -> dict[str, Tensor]:
        sums = torch.zeros(3, dtype=torch.float64, device=self._deviation.device)
        if self._facts is not None:
            sums += torch.stack(self._facts[:3])
        tokens, total, squares = sum_over_ranks(sums).unbind()
        facts = RatioFacts(tokens, total, squares, self._deviation)
        there = (facts.tokens > 0).double()
        return {
            "policy/sampler_ratio": torch.stack([facts.mean * there, there]),
            "policy/sampler_effective": torch.stack([facts.effective_share * there, there]),
        }

    @torch.no_grad()
    def said_now(self, stage: Stage, experience: Experience) -> list[tuple[SampleBatch, Tensor]]:
        """Micro-batches of samples, and the log-probabilities of their trained tokens under the policy as it stands.
        Every rank must call."""
        samples = range(len(experience.rollout))
        made = micro_batches(experience, samples, self._keys, self._layout(stage), device=stage.device)
        out = []
        with stage.trainer.precision_plugin.forward_context():
            for micro in made:
                moved, documents = stage.on_device(micro)
                hidden_ND = sample_states(stage.network, moved, documents)
                out.append((moved, self._said(stage, stage.network, hidden_ND, moved)[0]))
        return out

    def _layout(self, stage: Stage) -> RowsOfSamples:
        setup, config = self._setup, stage.config
        shared = setup.shares_prompts(config, stage.kernel)
        return RowsOfSamples(width=config.width, most=setup.micro_batch_tokens, shared=shared)

    @torch.no_grad()
    def _known(self, stage: Stage, micro: SampleBatch, *, old: bool) -> SampleBatch:
        """With what is asked before the first update. old: the policy, which is about to change."""
        if not (old or self._asks):
            return micro
        moved, documents = stage.on_device(micro)
        found: dict[str, Any] = {}
        with stage.trainer.precision_plugin.forward_context():
            if old:
                hidden_ND = sample_states(stage.network, moved, documents, keep_routing=self._drawn.keep_routing)
                found["old_logp"] = self._said(stage, stage.network, hidden_ND, moved)[0]
                if self._values is not None:
                    found["old_value"] = self._values.critic.values(stage.network, hidden_ND, moved, documents)
            if self._asks:
                with self.reference.network(stage.network) as network:
                    hidden_ND = sample_states(network, moved, documents)
                    found["reference_logp"] = self._said(stage, network, hidden_ND, moved)[0]
        return replace(micro, **found)

    def _said(self, stage: Stage, network: Decoder, hidden_ND: Tensor, batch: SampleBatch) -> tuple[Tensor, Tensor]:
        tokens, vocab = self._setup.tokens or stage.config.vocab, stage.config.vocab
        banned = torch.arange(tokens, vocab, device=stage.device) if tokens < vocab else None
        temperature = self._phase.temperature or self._drawn.sampling.temperature
        return sample_logprobs(network, hidden_ND, batch, temperature=temperature, banned=banned, head=self._drawn.head)
