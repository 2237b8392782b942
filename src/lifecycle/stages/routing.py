"""What experts add to a step: a balance loss to each micro-batch's sum, and the loads that move the choice biases."""

from __future__ import annotations

from torch import Tensor

from lifecycle.model import Decoder


def add_routing(
    model: Decoder, loss: Tensor, metrics: dict[str, Tensor], loads: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The loss sum of the micro-batch that just went through `model` with its balance loss, and the step's loads
    (layers, E) so far with its own. `metrics` gets the summed balance loss; both come back as they are without experts.
    """
    routing, model.routing = model.routing, None  # it holds on to the micro-batch's graph
    if routing is None:
        return loss, loads
    if model.config.moe is not None and model.config.moe.balance:
        metrics["balance"] = routing.balance.detach()
        loss = loss + routing.balance
    return loss, routing.loads if loads is None else loads + routing.loads
