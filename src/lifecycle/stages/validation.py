"""Held-out loss, perplexity and bits per byte by domain.

    loss = nll / tokens    perplexity = exp(loss)    bits per byte = nll / (ln 2 * bytes of the text)

nll sums -log p over the trained tokens, end marks included; `valid/loss` weights the domains as the mixture does: it
is absent where all that is measured has weight 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lifecycle.stages.collectives import any_rank, sum_over_ranks

if TYPE_CHECKING:
    from lifecycle.stages.base import Stage


def held_out_sums(stage: Stage, step: int) -> dict[str, Tensor] | None:
    """Each domain's (2,) sums of nll and tokens on this rank, from `validation_step`; None where a preemption cut it
    short, which it does not after the last step. Every rank must call."""
    assert stage.model is not None
    sums = {}
    stage.model.eval()
    with torch.no_grad(), stage.trainer.precision_plugin.forward_context():
        for domain, batches in stage.trainer.datamodule.val_dataloader().items():  # type: ignore[attr-defined]
            sums[domain] = torch.zeros(2, dtype=torch.float64, device=stage.device)
            for number, batch in enumerate(batches):
                sums[domain] += stage.validation_step(stage.on_device(batch), number)
                fine = torch.zeros((), dtype=torch.bool, device=stage.device)
                _, stage.preempted = any_rank(fine, stage.stop_asked)
                if stage.preempted and not stage.is_last(step):
                    stage.model.train()
                    return None
    stage.model.train()
    return sums


def validation_metrics(sums: Mapping[str, Tensor], domains: Mapping[str, tuple[float, int]]) -> dict[str, float]:
    """Metrics from each domain's (2,) sums of nll and tokens on this rank; `domains`: weight and bytes of the text.

    Every rank must call: the sums are added up over ranks, in place.
    """
    metrics, weighted, weights = {}, 0.0, 0.0
    for domain, total in sums.items():
        nll, tokens = sum_over_ranks(total).tolist()
        loss = nll / max(tokens, 1)
        weight, size = domains[domain]
        metrics[f"valid/{domain}/loss"] = loss
        metrics[f"valid/{domain}/perplexity"] = math.exp(min(loss, 700.0))
        metrics[f"valid/{domain}/bits_per_byte"] = nll / math.log(2) / max(size, 1)
        weighted, weights = weighted + weight * loss, weights + weight
    return {**metrics, "valid/loss": weighted / weights} if weights else metrics
