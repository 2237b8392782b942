"""Gate and rotation as one kernel each give what the plain layers give, and their gradients."""

import pytest
import torch
from tests.interpreted import DEVICES, INTERPRETED, interpret_tests
from torch import Tensor
from torch.nn import functional as F

from lifecycle.model.layers.gpu import fused
from lifecycle.model.layers.rope import rotate

CLOSE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@pytest.mark.skipif(INTERPRETED, reason="it is what starts this process")
def test_the_kernels_in_the_interpreter() -> None:
    interpret_tests(__file__)


def drawn(*shape: int, device: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(device, dtype)


def agree(found: list[Tensor], wanted: list[Tensor], dtype: torch.dtype) -> None:
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == dtype and a.shape == b.shape
        assert (a.double() - b.double()).norm() <= CLOSE[dtype] * b.double().norm()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("width", [6, 1024, 1100])
def test_the_gate(width: int, dtype: torch.dtype, device: str) -> None:
    joint = drawn(2, 3, 2 * width, device=device, dtype=dtype).requires_grad_()
    up = drawn(2, 3, width, device=device, dtype=dtype, seed=1)
    found = fused.gated(joint)
    twin = joint.detach().float().requires_grad_()
    gate_part, up_part = twin.chunk(2, dim=-1)
    wanted = F.silu(gate_part) * up_part
    agree([found], [wanted], dtype)
    agree([*torch.autograd.grad(found, joint, up)], [*torch.autograd.grad(wanted, twin, up.float())], dtype)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("heads", "kv_heads", "width", "rows"), [(3, 1, 8, 2), (2, 2, 16, 1), (6, 2, 24, 2)])
def test_the_rotation(heads: int, kv_heads: int, width: int, rows: int, dtype: torch.dtype, device: str) -> None:
    joint = drawn(rows, 5, (heads + 2 * kv_heads) * width, device=device, dtype=dtype).requires_grad_()
    # any numbers, not angles' own: the gradient must take the other's sine
    cos, sin = (drawn(rows, 5, 1, width, device=device, seed=s) for s in (1, 2))
    found = fused.rotated(joint, cos, sin, heads)
    twin = joint.detach().float().requires_grad_()
    parts = twin.unflatten(-1, (-1, width)).split((heads, kv_heads, kv_heads), dim=2)
    wanted = (rotate(parts[0], cos, sin), rotate(parts[1], cos, sin), parts[2])
    agree([*found], [*wanted], dtype)
    ups = [drawn(*part.shape, device=device, dtype=dtype, seed=3 + i) for i, part in enumerate(wanted)]
    upward = torch.autograd.grad(wanted, twin, [up.float() for up in ups])
    agree([*torch.autograd.grad(found, joint, ups)], [*upward], dtype)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_a_compiled_model_gives_what_it_gives_eagerly(family: str) -> None:
    from tests.model.variants import VARIANTS

    from lifecycle.model import build, compile_model

    device = torch.device("cuda", 0)
    models = [build(VARIANTS[family], seed=2, device=device) for _ in range(2)]
    compile_model(models[1], unit="model")
    ids = torch.randint(VARIANTS[family].vocab, (2, 12), generator=torch.Generator().manual_seed(1)).to(device)
    positions = torch.arange(12, device=device).expand(2, 12)
    grads, up = [], drawn(2, 12, VARIANTS[family].width, device="cuda")
    for model in models:
        out = model(ids, positions)
        (out * up).sum().backward()
        grads.append([out, *[p.grad for p in model.parameters() if p.grad is not None]])
    for a, b in zip(*grads, strict=True):
        assert (a - b).norm() <= 2e-4 * b.norm() + 1e-6
