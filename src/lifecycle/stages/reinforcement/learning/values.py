"""What a critic makes of a step: values before the first update, token rewards, advantages and returns, and its loss.

    R_t = score at the last token, - k KL_t at every token where the KL is in the reward      (`losses.policy.shaping`)
    advantages and returns by lambda and gamma, advantages whitened over the whole step       (`losses.value`)
    loss = coefficient * sum over trained tokens of w max((V - return)^2, (clip(V) - return)^2) / 2

critic/value                 mean value before the first update
critic/return                mean return, which the values are trained to
critic/explained_variance    1 - variance of (return - value) / variance of the returns: 1 is a perfect critic
critic/loss                  mean loss of a value, before its coefficient
critic/clipped               share of the tokens whose clipped value had the larger error

Shapes: N trained tokens, Q samples of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from lifecycle.batch import SampleBatch
from lifecycle.bounds import PartOrAll
from lifecycle.losses.policy.kl import KlName, kl
from lifecycle.losses.policy.shaping import token_rewards
from lifecycle.losses.value import explained_variance, gae, moments, value_loss, whitened
from lifecycle.model import Decoder, DocumentMask
from lifecycle.stages.beside.critic import Critic
from lifecycle.stages.reinforcement.learning.policy import CLAMP
from lifecycle.stages.step.collectives import sum_over_ranks


@dataclass(frozen=True, kw_only=True)
class ValueKeys:
    """gamma: discount of a token. lam: 1 trusts rewards alone, 0 the next value. whiten: whether advantages get mean 0
    and variance 1 over the step. kl_in: whether distance from the reference is taken off the reward of every token, or
    is a term of the loss."""

    gamma: PartOrAll
    lam: PartOrAll
    whiten: bool
    kl_in: Literal["reward", "loss"]


class ValueLearner:
    """Trains a critic; a `Learner` asks it with the hidden states of the policy."""

    def __init__(self, *, critic: Critic, keys: ValueKeys, kl_kind: KlName) -> None:
        self.critic, self._keys, self._kind = critic, keys, kl_kind
        self.kl: Tensor | None = None  # of the step, where it is in the reward: sum and count
        self._told: dict[str, Tensor] = {}

    def estimated(self, updates: Sequence[Sequence[SampleBatch]], *, kl_coefficient: float) -> list[list[SampleBatch]]:
        """The micro-batches of a step, whose values are known, with advantages and returns. Every rank must call."""
        self.kl = None
        made = [[self._returns(micro, kl_coefficient) for micro in update] for update in updates]
        flat = [micro for update in made for micro in update]
        sums = torch.stack([torch.cat([moments(v) for v in self._measured(micro)]) for micro in flat]).sum(0)
        of_advantages, of_returns, of_errors, of_values = sum_over_ranks(sums).split(3)
        explained = explained_variance(of_returns, of_errors)
        self._told = {
            "critic/explained_variance": torch.stack([explained, torch.ones_like(explained)]),
            "critic/return": of_returns[[1, 0]],
            "critic/value": of_values[[1, 0]],
        }
        if not self._keys.whiten:
            return made
        return [[replace(m, advantage=whitened(m.advantage, of_advantages)) for m in update] for update in made]

    def loss(
        self, policy: Decoder, hidden_ND: Tensor, batch: SampleBatch, documents: DocumentMask | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The summed loss of a micro-batch, and (2,) sums and counts of the metrics."""
        assert batch.old_value is not None and batch.returns is not None
        value_N = self.critic.values(policy, hidden_ND, batch, documents)
        loss_N, clipped_N = value_loss(value_N, batch.old_value, batch.returns, clip=self.critic.keys.clip)
        loss, balance = self.critic.keys.coefficient * (batch.weight * loss_N).sum(), self.critic.balance()
        told = {"critic/loss": moments(loss_N)[[1, 0]], "critic/clipped": moments(clipped_N)[[1, 0]]}
        return loss if balance is None else loss + balance, told

    def told(self) -> dict[str, Tensor]:
        """What is told of the step's values; the same numbers on every rank but for the KL."""
        return {**self._told, **({} if self.kl is None else {"policy/kl": self.kl})}

    def _returns(self, micro: SampleBatch, kl_coefficient: float) -> SampleBatch:
        """With its advantages, not whitened, and returns; what was its advantage is each sample's score."""
        assert micro.old_value is not None
        value_N, sequence_N = micro.old_value, micro.at.sequence.to(micro.old_value.device)
        score_N = micro.advantage.to(value_N.device)
        score_Q = torch.zeros(len(micro), dtype=score_N.dtype, device=value_N.device).index_copy(0, sequence_N, score_N)
        kl_N, left = torch.zeros_like(value_N), micro.reference_logp
        if left is not None and self._keys.kl_in == "reward":
            assert micro.old_logp is not None
            kl_N = kl(micro.old_logp, left, kind=self._kind, old_logp_N=micro.old_logp, clamp_log_ratio=CLAMP)
            self.kl, left = moments(kl_N)[[1, 0]] + (0 if self.kl is None else self.kl), None
        reward_N = token_rewards(score_Q, kl_N, sequence_N, coefficient=kl_coefficient)
        found = gae(reward_N, value_N, sequence_N, gamma=self._keys.gamma, lam=self._keys.lam)
        return replace(micro, advantage=found.advantage_N, returns=found.return_N, reference_logp=left)

    def _measured(self, micro: SampleBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Advantages, returns, errors of the values, values."""
        assert micro.old_value is not None and micro.returns is not None
        return micro.advantage, micro.returns, micro.returns - micro.old_value, micro.old_value
