"""The gradients of one optimizer step: those of its whole batch, however it is split over ranks and micro-batches.

    for each micro-batch: summed loss * world / count, backward       (ranks exchange gradients in the last one only)
    ->  the penalty on the weights, if there is one  ->  an average over ranks of what sharding keeps whole

`count` is what the step's loss is divided by, over all ranks (`collectives.count_tokens`). A model with experts adds
its balance loss to each summed loss.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from lifecycle.batch import Micro
from lifecycle.model import Decoder
from lifecycle.model.sharding import kept_whole
from lifecycle.stages.step.collectives import many_ranks, sum_over_ranks
from lifecycle.stages.step.penalty import Penalty

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

LossOf = Callable[[Micro], tuple[Tensor, dict[str, Tensor]]]
"""A micro-batch's summed loss, and its summed metrics by name."""


Updates = Sequence[Sequence[Micro]]
"""The micro-batches of every update of a step."""

Told = Callable[[], Mapping[str, Tensor]]
"""Gives metrics by name, (2,) each: this rank's sum, and what it is divided by."""


class Sums(NamedTuple):
    """Of a step: this rank's summed loss (scalar) and metrics; loads: visits (layers, E) of the experts on all
    ranks."""

    loss: Tensor
    metrics: dict[str, Tensor]
    loads: Tensor | None


def add_gradients(
    trainer: Trainer,
    model: Decoder,
    micro: Sequence[Micro],
    *,
    count: Tensor,
    loss_of: LossOf[Micro],
    backward: Callable[[Tensor], None],
    penalty: Penalty | None,
) -> Sums:
    """Add the gradients of a step to those of `model`. Every rank must call.

    count: what the summed loss is divided by, over all ranks; where that is 0, the loss is, and so is its gradient.
    backward: Lightning's `manual_backward`.
    """
    count = torch.where(count > 0, count, 1)
    total = torch.zeros((), dtype=torch.float32, device=count.device)
    sums: dict[str, Tensor] = {}
    loads: Tensor | None = None
    for number, batch in enumerate(micro):
        with _synchronised(trainer, last=number == len(micro) - 1):
            loss, metrics = loss_of(batch)
            loss, loads = _balanced(model, loss, metrics, loads)
            backward(loss * (trainer.world_size / count))
        total += loss.detach()
        for name, value in metrics.items():
            sums[name] = sums.get(name, 0) + value
    if penalty is not None:  # as what is logged is divided by the step's count
        sums[penalty.name] = penalty.gradients(model.trained_parameters()) * count / trainer.world_size
    _average_whole(trainer, model)
    return Sums(total, sums, None if loads is None else sum_over_ranks(loads))


def added(updates: Sequence[tuple[Tensor, Sums, Tensor]], told: Mapping[str, Tensor]) -> tuple[Tensor, Sums, Tensor]:
    """Counts and sums of all updates of a step together, with what else is told of it, and the mean of the norms of
    their gradients."""
    counts, parts, norms = zip(*updates, strict=True)
    metrics = {name: value.to(norms[0].device) for name, value in told.items()}
    for part in parts:
        for name, value in part.metrics.items():
            metrics[name] = metrics.get(name, 0) + value
    loads = [part.loads for part in parts if part.loads is not None]
    whole = Sums(
        torch.stack([part.loss for part in parts]).sum(), metrics, torch.stack(loads).sum(0) if loads else None
    )
    return torch.stack(counts).sum(0), whole, torch.stack(norms).mean()


def _balanced(
    model: Decoder, loss: Tensor, metrics: dict[str, Tensor], loads: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The summed loss plus the balance loss of the experts, and the step's loads (layers, E) plus those of this forward
    pass; the balance loss is also put into `metrics`. Without experts loss and loads are returned unchanged."""
    routing, model.routing = model.routing, None  # it holds on to the micro-batch's graph
    if routing is None:
        return loss, loads
    if model.config.moe is not None and model.config.moe.balance:
        metrics["balance"] = routing.balance.detach()
        loss = loss + routing.balance
    return loss, routing.loads if loads is None else loads + routing.loads


@contextlib.contextmanager
def _synchronised(trainer: Trainer, *, last: bool) -> Iterator[None]:
    """Gradients are exchanged between ranks in the last micro-batch's backward pass only.

    Sharded ones in each: every rank would hold the whole sum in fp32 from one micro-batch to the next.
    """
    if last or trainer.world_size == 1 or _is_sharded(trainer):
        yield
    else:
        with trainer.strategy.model.no_sync():  # type: ignore[union-attr,operator]
            yield


def _is_sharded(trainer: Trainer) -> bool:
    from lightning.pytorch.strategies import ModelParallelStrategy  # here: the check of a config reads this module

    return isinstance(trainer.strategy, ModelParallelStrategy)


def _average_whole(trainer: Trainer, model: Decoder) -> None:
    """Average over the ranks the gradients of what a sharded model keeps whole on each: one exchange a step."""
    if not many_ranks() or not _is_sharded(trainer):
        return
    parameters = [parameter for parameter in kept_whole(model) if parameter.requires_grad]
    if not parameters:  # an adapter alone is trained
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    mean = sum_over_ranks(torch.cat([gradient.flatten() for gradient in gradients])) / trainer.world_size
    for parameter, part in zip(parameters, mean.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)
