"""Layers of one input as one product: the same numbers and gradients as one by one, and only where a compiler looks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lifecycle.model.layers.joined import as_one, products


def layers(bias: bool, dtype: torch.dtype) -> list[nn.Linear]:
    torch.manual_seed(0)
    return [nn.Linear(6, n, bias=bias, dtype=dtype, device="cpu") for n in (4, 2, 3)]


def gradients(outs: list[Tensor], x: Tensor, parts: list[nn.Linear]) -> list[Tensor]:
    total = torch.stack([(out.float() ** 2).sum() for out in outs]).sum()
    return list(torch.autograd.grad(total, [x, *[p for part in parts for p in part.parameters()]]))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_one_product_gives_what_the_layers_give(bias: bool, autocast: bool) -> None:
    dtype = torch.float32 if autocast else torch.float64
    parts = layers(bias, dtype)
    x = torch.randn(2, 5, 6, dtype=dtype, device="cpu", requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        apart, joined = [part(x) for part in parts], list(as_one(x, parts))
    assert [out.dtype for out in joined] == [out.dtype for out in apart]
    near = 2e-2 if autocast else 1e-12
    torch.testing.assert_close(joined, apart, rtol=near, atol=near)
    torch.testing.assert_close(gradients(joined, x, parts), gradients(apart, x, parts), rtol=near, atol=near)


def test_layers_are_called_one_by_one_where_no_compiler_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    parts, x = layers(False, torch.float32), torch.randn(5, 6, device="cpu")
    assert all(torch.equal(a, part(x)) for a, part in zip(products(x, parts), parts, strict=True))
    monkeypatch.setattr("torch.compiler.is_compiling", lambda: True)
    monkeypatch.setattr("lifecycle.model.layers.joined.as_one", lambda *_: pytest.fail("on a CPU the copy costs more"))
    products(x, parts)


def test_a_layer_with_something_beside_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    class Adapted(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1

    plain, adapted = layers(False, torch.float32)[0], Adapted(6, 4, bias=False, device="meta")
    monkeypatch.setattr("torch.compiler.is_compiling", lambda: True)
    monkeypatch.setattr("lifecycle.model.layers.joined.as_one", lambda *_: pytest.fail("an adapter is no weight"))

    class Elsewhere:
        device = torch.device("cuda", 0)

    called: list[nn.Module] = []
    for layer in (plain, adapted):
        monkeypatch.setattr(layer, "forward", lambda x, layer=layer: called.append(layer))
    products(Elsewhere(), [plain, adapted])  # type: ignore[arg-type]
    assert called == [plain, adapted]
