"""Layers of one input as one product: the same numbers and gradients as one by one, and only where a compiler looks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lifecycle.model.layers.gpu import available
from lifecycle.model.layers.joined import as_one, joined


def layers(bias: bool, dtype: torch.dtype) -> list[nn.Linear]:
    torch.manual_seed(0)
    return [nn.Linear(6, n, bias=bias, dtype=dtype, device="cpu") for n in (4, 2, 3)]


def gradients(out: Tensor, x: Tensor, parts: list[nn.Linear]) -> list[Tensor]:
    total = (out.float() ** 2).sum()
    return list(torch.autograd.grad(total, [x, *[p for part in parts for p in part.parameters()]]))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_one_product_gives_what_the_layers_give(bias: bool, autocast: bool) -> None:
    dtype = torch.float32 if autocast else torch.float64
    parts = layers(bias, dtype)
    x = torch.randn(2, 5, 6, dtype=dtype, device="cpu", requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        apart, together = torch.cat([part(x) for part in parts], dim=-1), as_one(x, parts)
    assert together.dtype == apart.dtype
    near = 2e-2 if autocast else 1e-12
    torch.testing.assert_close(together, apart, rtol=near, atol=near)
    torch.testing.assert_close(gradients(together, x, parts), gradients(apart, x, parts), rtol=near, atol=near)


def test_layers_are_called_one_by_one_where_no_compiler_looks_or_something_stands_beside_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Adapted(nn.Linear):
        """As an adapter puts it in the place of a layer."""

    parts, x = layers(False, torch.float32), torch.randn(5, 6, device="cpu")
    monkeypatch.setattr(available, "is_there", lambda device: True)
    assert joined(x, parts) is None
    monkeypatch.setattr("torch.compiler.is_compiling", lambda: True)
    assert joined(x, parts) is not None
    assert joined(x, [*parts[:2], Adapted(6, 3, bias=False, device="cpu")]) is None
    assert joined(x.double(), [part.double() for part in parts]) is None
    monkeypatch.setattr(available, "is_there", lambda device: False)
    assert joined(x, parts) is None
