"""The sums of a measurement on held-out data, by domain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor


def held_out_sums(
    batches: Mapping[str, Sequence[Any]],
    measured: Callable[[Any, int], Tensor],
    *,
    before: Callable[[Sequence[Any]], None] | None,
    zeros: Tensor,
    cut_short: Callable[[], bool],
) -> dict[str, Tensor] | None:
    """This rank's sums of what is `measured` of each micro-batch, given with its number in its domain; None as soon as
    the measurement is `cut_short`, which is asked after each. before: is called with a domain's micro-batches first.
    zeros: what a sum begins with."""
    sums = {}
    for domain, mine in batches.items():
        sums[domain] = zeros.clone()
        if before is not None:
            before(mine)
        for number, batch in enumerate(mine):
            sums[domain] += measured(batch, number)
            if cut_short():
                return None
    return sums
