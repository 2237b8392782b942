"""What the rehearsed device refuses is what a GPU refuses or waits for; numbers are those of the CPU."""

from collections.abc import Callable

import pytest
import torch
from tests.rehearsal.claims import Refused, rehearsal
from torch import Tensor, nn


def test_marks_follow_the_memory() -> None:
    with rehearsal():
        x = torch.arange(6.0, device="cuda")
        assert x.device == torch.device("cuda", 0) and x.is_cuda and not x.is_cpu
        for made in (x[1:], x.view(2, 3).T, x + 1, x.clone(), torch.zeros_like(x), x.new_zeros(2), x.to(torch.float64)):
            assert made.device.type == "cuda"
        assert x.to("cuda") is x and x.to(x.device, torch.float32) is x
        for made in (x.cpu(), x.to("cpu"), x.to(torch.zeros(1)), torch.ones(2)):
            assert made.device.type == "cpu" and made.is_cpu
        there = torch.ones(3).to("cuda", non_blocking=True)
        assert there.is_cuda and torch.ones(3).cuda().is_cuda and torch.ones(3).to(x).is_cuda
        with torch.device("cuda"):
            assert torch.tensor([1, 2]).is_cuda


def test_a_layer_trains_there_as_on_the_cpu() -> None:
    def trained(device: str) -> Tensor:
        torch.manual_seed(0)
        layer = nn.Linear(3, 2).to(device)
        optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
        with torch.autocast(device, dtype=torch.bfloat16):
            out = layer(torch.ones(4, 3, device=device))
            assert out.dtype == torch.bfloat16
        out.float().square().sum().backward()
        optimizer.step()
        assert layer.weight.grad is not None and layer.weight.grad.device.type == device
        return layer.weight.detach().cpu()

    with rehearsal():
        assert torch.equal(trained("cuda"), trained("cpu"))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: x + torch.ones(3),
        lambda x: torch.ones(3) * x.sum(),
        lambda x: torch.stack([x.sum(), torch.zeros(())]),
        lambda x: torch.ones(3).add_(x),
        lambda x: x.index_select(0, torch.tensor([1])),
        lambda x: x.numpy(),
        lambda x: x.normal_(generator=torch.Generator("cpu")),
    ],
)
def test_tensors_of_both_devices_are_refused(wrong: Callable[[Tensor], object]) -> None:
    with rehearsal():
        x = torch.ones(3, device="cuda")
        assert (x + torch.ones(()))[torch.tensor([0, 2])].is_cuda  # a scalar and an index of the host are taken
        with pytest.raises(Refused, match="both devices|another device|scalar of the device|copied to the host"):
            wrong(x)


LOOKS: list[str] = [
    "x.sum().item()",
    "x.tolist()",
    "bool(x.any())",
    "x.cpu()",
    "x.nonzero()",
    "x[x > 0]",
    "float(x.sum())",
    "torch.bincount(x.long())",
]


@pytest.mark.parametrize("look", LOOKS)
def test_looks_at_the_device_are_refused_where_they_are_not_listed(look: str) -> None:
    code = compile(look, "/anywhere/src/lifecycle/stages/other.py", "eval")
    with rehearsal() as device:
        x = torch.ones(3, device="cuda")
        with pytest.raises(Refused, match="other.py <module> line 1: .* waits for the device"):
            eval(code, {"x": x, "torch": torch})
        eval(code, {"x": torch.ones(3), "torch": torch})
        eval(look, {"x": x, "torch": torch})  # a test may look
        assert not device.waits
