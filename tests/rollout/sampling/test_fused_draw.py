"""The kernel draws what torch draws: in Triton's interpreter, and on a GPU where there is one."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from tests.interpreted import interpret

from lifecycle.rollout.sampling import draw as drawing
from lifecycle.rollout.sampling import fused_draw
from lifecycle.rollout.sampling.on_device import DeviceSampling
from lifecycle.rollout.sampling.parameters import Sampling


def test_the_kernel_draws_what_torch_draws() -> None:
    found = json.loads(interpret("tests.rollout.sampling.interpreted_draw"))
    assert len(found) > 80 and not {name: faults for name, faults in found.items() if faults}


def test_a_cpu_has_no_kernels() -> None:
    cpu = torch.device("cpu")
    settings = DeviceSampling(Sampling(max_new_tokens=1, top_k=2), vocab=4, device=cpu)
    assert not fused_draw.takes(torch.zeros(1, 4, device=cpu), settings)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.0}, {"top_k": 40}, {"top_k": 1000}, {"top_p": 0.9}, {"top_k": 40, "banned_ids": (0, 3)}],
    ids=str,
)
def test_on_a_gpu_it_draws_the_same_alone_and_in_a_graph(options: dict[str, Any], dtype: torch.dtype) -> None:
    device, R, V = torch.device("cuda"), 33, 50_257
    generator = torch.Generator(device=device).manual_seed(0)
    z = (3 * torch.randn(R, V, generator=generator, device=device)).to(dtype)
    u = torch.rand(R, generator=generator, device=device, dtype=torch.float64)
    settings = DeviceSampling(Sampling(max_new_tokens=1, **options), vocab=V, device=device)
    assert fused_draw.takes(z, settings)
    wanted, found = drawing._draw(z, u, settings, None), drawing.draw(z, u, settings)
    assert torch.equal(found.ids, wanted.ids)
    for mine, theirs in zip(found[1:4], wanted[1:4], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=2e-5)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = drawing.draw(z, u, settings)
    graph.replay()
    for mine, theirs in zip(recorded[:4], found[:4], strict=True):
        assert torch.equal(mine, theirs)
