"""A critic: what a state is worth to the policy, trained beside it.

    head        a score on the hidden states of the policy, whose weights learn from its loss too
    separate    a network of its own, which begins as the parent's with a fresh score in place of its head, or as a
                reward model (`init_from`)

It is a submodule of the stage, so that its weights and moments are in every checkpoint; it is none of the network, so
that no export and no run that goes on from this one sees it. Shapes: N trained tokens, D width, B rows, T positions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from lifecycle.batch import SampleBatch
from lifecycle.bounds import FromZero, NotNegative, Positive
from lifecycle.errors import UserError
from lifecycle.model import Decoder, DocumentMask, ModelConfig, build, compile_model
from lifecycle.model.families import family_of
from lifecycle.model.layers.initial import ending_in, fresh_score
from lifecycle.stages.run.setup import AskedModel, Setup
from lifecycle.stages.step.gradients import Sums


@dataclass(frozen=True, kw_only=True)
class CriticKeys:
    """kind: a score on the policy, or a network of its own. init_from: what such a network begins as: `reward_model`,
    that of the reward of that name, or another, by its path; None: the parent, with a fresh score. lr: its peak rate;
    None: the policy's. coefficient: weight of its loss. clip: how far a value may move from the one before the first
    update and still gain; None: no bound. warmup_steps: steps at the start of the run in which it alone is trained."""

    kind: Literal["head", "separate"]
    init_from: str | None
    lr: Positive | None
    coefficient: NotNegative
    clip: Positive | None
    warmup_steps: FromZero


CRITIC_COPIES = 4
"""Numbers that a critic of its own keeps of each of its weights: weight, gradient, two moments."""
CRITIC = "critic"
"""Key of `stage` whose `init_from` names what a critic begins as."""


class Critic(nn.Module):
    """Values of tokens; a stage holds one beside its network."""

    def __init__(self, *, config: ModelConfig, keys: CriticKeys, setup: Setup) -> None:
        super().__init__()
        self._began_as = setup.asked.get(CRITIC) if keys.init_from is not None else None
        if self._began_as is not None:
            _check(self._began_as, config)
        self.keys, self._setup, self._config = keys, setup, self._own(config, keys)
        self.score: nn.Linear | None = None
        self.network: Decoder | None = None

    def _own(self, policy: ModelConfig, keys: CriticKeys) -> ModelConfig:
        """The sizes of the critic; of a score on the policy those of the policy."""
        if self._began_as is not None or keys.kind == "head":
            return policy if self._began_as is None else self._began_as.config
        if not family_of(policy.family).switches.score_head:
            raise UserError(
                f"stage.critic.kind is separate, and no model of family {policy.family} ends in a score: type "
                "stage.critic.kind=head"
            )
        return replace(policy, score_head=True)

    def build(self, mesh: DeviceMesh | None) -> None:
        """Its weights, the same on every rank. A run that goes on gets those of its checkpoint."""
        assert mesh is None, "stage=ppo refuses hardware.strategy=fsdp"
        if self.score is not None or self.network is not None:
            return
        config, setup = self._config, self._setup
        fresh = fresh_score(config, seed=setup.seed)
        if self.keys.kind == "head":
            self.score = nn.Linear(config.width, 1, bias=False, device="cpu", dtype=torch.float32)
            self.score.load_state_dict({"weight": fresh})
            return
        self.network = build(config, seed=setup.seed, activation_checkpointing=setup.activation_checkpointing)
        if setup.read_weights is not None:  # a new run
            began_as = self._began_as
            weights = ending_in(setup.read_weights(), fresh) if began_as is None else began_as.weights.read()
            self.network.load_state_dict(weights)
        if setup.compile:
            compile_model(self.network, unit="model")

    def alone(self, policy: Decoder, sums: Sums, *, step: int) -> Sums:
        """In the first steps (counted from 0) drop the gradients of the policy, which stands still then, and what would
        move the biases of its routers. Returns what is left of the sums of the step."""
        if step >= self.keys.warmup_steps:
            return sums
        policy.zero_grad()
        return sums._replace(loads=None)

    def values(self, policy: Decoder, hidden_ND: Tensor, batch: SampleBatch, documents: DocumentMask | None) -> Tensor:
        """(N,) fp32: of the state before each trained token. hidden_ND: the policy's, where the token is its next."""
        if self.score is not None:  # no product of matrices: autocast rounds these
            return (hidden_ND.float() * self.score.weight[0].float()).sum(-1)
        assert self.network is not None
        theta, tokens = policy.config.rope_theta, batch.tokens
        if self._began_as is None and self.network.config.rope_theta != theta:  # a phase of the run has changed it
            self.network.config = replace(self.network.config, rope_theta=theta)
        hidden_BTD = self.network(tokens.input_ids, tokens.position_ids, documents, counted=tokens.trained)
        return self.network.scores(hidden_BTD.flatten(0, 1)[batch.at.places])

    def balance(self) -> Tensor | None:
        """The balance loss of the experts in the last forward pass with gradients; None without experts of its own."""
        if self.network is None or self.network.routing is None:
            return None
        routing, self.network.routing = self.network.routing, None  # it holds on to the micro-batch's graph
        moe = self._config.moe
        return routing.balance if moe is not None and moe.balance else None


def _check(began_as: AskedModel, policy: ModelConfig) -> None:
    """Raise UserError where the critic could not read the rows of the policy."""
    if not began_as.same_tokens:
        raise UserError(
            f"stage.critic.init_from: {began_as.name} has another tokenizer or chat template than the policy, whose "
            "tokens a critic reads: name a reward model that was made from the same model, or type "
            "stage.critic.init_from=null"
        )
    if began_as.config.sliding_window != policy.sliding_window:
        raise UserError(
            f"stage.critic.init_from: {began_as.name} has a sliding window of {began_as.config.sliding_window}, and "
            f"the policy one of {policy.sliding_window}, so that they cannot share rows: type "
            "stage.critic.init_from=null"
        )
