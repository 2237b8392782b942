"""The loss of a policy on graded samples, and what is told of it.

    loss = - sum over trained tokens of w [ M objective(r, A) - k KL + e H ]  /  sum over samples of d

r: ratio to the policy before the first update of the step; M: masks against the sampler; KL: to the reference; H:
entropy; w, d: the normaliser.

policy/ratio_max_deviation    largest |p / p_sampler - 1| of a token under the weights that drew it: 0 but for rounding
policy/ratio                  mean ratio to the policy before the first update of the step
policy/clipped                share of the tokens whose gradient a bound cut
policy/<mask>_masked          share of the tokens that a mask against the sampler cut (off_policy, truncated, ...)
policy/sampler_ratio          mean of rho = p / p_sampler before the first update, before any mask cuts it
policy/sampler_effective      effective share of the tokens under those ratios: 1 where all are equal
policy/kl                     mean KL to the reference, by the estimator of the loss
policy/rerouted               share of (trained token, layer of experts) whose router would now choose others than the
                              sampler's pass visited
policy/entropy                mean entropy of the next token, in nats, over the whole vocabulary
"""

from __future__ import annotations

import torch
from torch import Tensor

from lifecycle.batch import SampleBatch
from lifecycle.losses import token_logprobs
from lifecycle.losses.policy.kl import kl
from lifecycle.losses.policy.masks import product
from lifecycle.losses.policy.objectives import objective, token_objective
from lifecycle.model import Decoder, DocumentMask
from lifecycle.model.layers.moe import KnownRoutes
from lifecycle.stages.reinforcement.settings import PolicyKeys
from lifecycle.stages.step import mean_parts

CLAMP = 20.0
"""Of a logarithm of a ratio to the reference, as in verl."""


def sample_states(
    network: Decoder, batch: SampleBatch, documents: DocumentMask | None, *, keep_routing: bool = False
) -> Tensor:
    """(N, D): the hidden states that the trained tokens follow on. keep_routing: these positions visit the experts that
    they visited when the tokens were drawn; all others those of now."""
    tokens = batch.tokens
    hidden_BTD: Tensor = network(
        tokens.input_ids,
        tokens.position_ids,
        documents,
        counted=tokens.trained,
        known=known_routes(batch, keep=keep_routing),
    )
    return hidden_BTD.flatten(0, 1)[batch.at.places]


def known_routes(batch: SampleBatch, *, keep: bool) -> KnownRoutes | None:
    """The experts of the sampler's pass at every position of the rows, where they are known."""
    if batch.experts is None:
        return None
    shape = (batch.tokens.input_ids.numel(), *batch.experts.shape[1:])
    experts_PLA = torch.full(shape, -1, dtype=torch.long, device=batch.experts.device)
    experts_PLA[batch.at.places] = batch.experts.long()
    return KnownRoutes(experts_PLA, keep)


def rerouted(network: Decoder, tokens: int) -> dict[str, Tensor]:
    """Of the forward pass with gradients that came last, over so many trained tokens; empty without experts."""
    if network.routing is None:
        return {}
    moved_L = network.routing.rerouted
    return {
        "policy/rerouted": torch.stack([moved_L.sum(), torch.full_like(moved_L[0], tokens * len(moved_L))]).double()
    }


def sample_logprobs(
    network: Decoder,
    hidden_ND: Tensor,
    batch: SampleBatch,
    *,
    temperature: float,
    banned: Tensor | None,
    head: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    """(N,) each: log-probabilities of the trained tokens as the sampler would draw them now, from the sets that it drew
    them from; and entropies. hidden_ND: `sample_states`. head: `SamplingKeys.head`."""
    return token_logprobs(
        hidden_ND,
        network.head_weight,
        batch.labels,
        temperature=temperature,
        kept=batch.kept,
        softcap=network.config.logit_softcap,
        banned_ids=banned,
        product_dtype=head,
    )


def policy_loss(
    batch: SampleBatch,
    logp_N: Tensor,
    entropy_N: Tensor,
    keys: PolicyKeys,
    *,
    kl_coefficient: float,
    entropy_coefficient: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The summed loss of a micro-batch, and (2,) sums and counts of the metrics."""
    old_N = logp_N.detach() if batch.old_logp is None else batch.old_logp
    found = objective(keys.bounded, logp_N, old_N, batch.advantage, batch.at.sequence, sequences=len(batch))
    kl_N = None
    if batch.reference_logp is not None:
        kl_N = kl(logp_N, batch.reference_logp, kind=keys.kl.kind, old_logp_N=old_N, clamp_log_ratio=CLAMP)
    masks = keys.masks.of(
        logp_N=logp_N,
        old_logp_N=old_N,
        sampler_logp_N=batch.sampler_logp,
        advantage_N=batch.advantage,
        sequence_N=batch.at.sequence,
        sequences=len(batch),
    )
    total_N = token_objective(
        found.value_N,
        weight_N=product(masks),
        kl_N=kl_N,
        kl_coefficient=kl_coefficient,
        entropy_N=entropy_N if entropy_coefficient else None,
        entropy_coefficient=entropy_coefficient,
    )
    told = {
        "policy/ratio": mean_parts.of_values(found.ratio_N),
        "policy/clipped": mean_parts.of_values(found.clipped_N),
        "policy/entropy": mean_parts.of_values(entropy_N),
        **{f"policy/{name}_masked": mean_parts.of_values(mask.cut_N) for name, mask in masks.items()},
    }
    if kl_N is not None:
        told["policy/kl"] = mean_parts.of_values(kl_N)
    return -(batch.weight * total_N).sum(), told
