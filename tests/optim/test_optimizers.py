"""Laws of the optimizers: AdamW is torch's, no gradient no change, exact restart."""

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lifecycle.optim import AdamW, Muon, MuonAdamW

ADAMW = AdamW(lr=1e-2, embedding_lr=3e-2, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8, grad_clip=1.0)


def muon(**changed: Any) -> Muon:
    settings: dict[str, Any] = {
        "lr": 2e-2,
        "adamw_lr": 1e-2,
        "embedding_lr": 3e-2,
        "weight_decay": 0.1,
        "momentum": 0.95,
        "nesterov": True,
        "newton_schulz_steps": 5,
        "scale": "match_rms_adamw",
        "betas": (0.9, 0.95),
        "eps": 1e-8,
        "grad_clip": 1.0,
    }
    return Muon(**(settings | changed))


class Network(nn.Module):
    """Something with a parameter of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.up = nn.Linear(8, 20)
        self.down = nn.Linear(20, 8, bias=False)
        self.convolution = nn.Conv1d(8, 8, 1)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 11, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        x = x + self.down(torch.tanh(self.up(x)))
        x = x + self.convolution(x.mT).mT
        out: Tensor = self.head(self.norm(x))
        return out


def network() -> Network:
    torch.manual_seed(0)
    return Network()


def backward(model: nn.Module, step: int) -> None:
    ids = torch.randint(11, (4, 6), generator=torch.Generator().manual_seed(step))
    model.zero_grad(set_to_none=True)
    nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.roll(1, 1).flatten()).backward()


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_adamw_is_torchs_bit_for_bit() -> None:
    ours, theirs = network(), network()
    one = ADAMW.build(ours)
    kinds = {
        "embedding": [theirs.embedding.weight],
        "decay": [p for n, p in theirs.named_parameters() if p.ndim > 1 and n != "embedding.weight"],
        "no_decay": [p for p in theirs.parameters() if p.ndim == 1],
    }
    rest = {"betas": (0.9, 0.95), "eps": 1e-8, "fused": True}
    others = [
        torch.optim.AdamW(kinds["decay"], lr=1e-2, weight_decay=0.1, **rest),  # type: ignore[arg-type]
        torch.optim.AdamW(kinds["no_decay"], lr=1e-2, weight_decay=0.0, **rest),  # type: ignore[arg-type]
        torch.optim.AdamW(kinds["embedding"], lr=3e-2, weight_decay=0.1, **rest),  # type: ignore[arg-type]
    ]
    for step in range(5):
        backward(ours, step)
        backward(theirs, step)
        one.step()
        for other in others:
            other.step()
    assert same(weights(ours), weights(theirs))


def test_the_adamw_part_of_muon_is_torchs_bit_for_bit() -> None:
    ours, theirs = network(), network()
    one = muon().build(ours)
    two = ADAMW.build(theirs)
    for step in range(5):
        backward(ours, step)
        # the hidden matrices differ, so both get the same gradients
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            b.grad = None if a.grad is None else a.grad.clone()
        one.step()
        two.step()
    differ = {
        name for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True) if not torch.equal(a, b)
    }
    assert differ == {"up.weight", "down.weight"}


@pytest.mark.parametrize("spec", [ADAMW, muon()], ids=["adamw", "muon"])
def test_a_step_without_gradients_changes_nothing_at_all(spec: AdamW | Muon) -> None:
    model = network()
    optimizer = spec.build(model)
    for step in range(2):
        backward(model, step)
        optimizer.step()
    before, state = weights(model), copy.deepcopy(optimizer.state_dict())
    optimizer.zero_grad(set_to_none=True)
    optimizer.step()
    assert same(weights(model), before)
    assert_same_state(optimizer.state_dict(), state)


@pytest.mark.parametrize("spec", [ADAMW, muon()], ids=["adamw", "muon"])
def test_a_parameter_without_a_gradient_is_left_alone(spec: AdamW | Muon) -> None:
    model = network()
    optimizer = spec.build(model)
    backward(model, 0)
    model.up.weight.grad = None
    before = model.up.weight.detach().clone()
    optimizer.step()
    assert torch.equal(model.up.weight, before)
    assert not optimizer.state.get(model.up.weight)


@pytest.mark.parametrize(
    "spec", [ADAMW, muon(), muon(scale="original", nesterov=False)], ids=["adamw", "muon", "plain"]
)
def test_a_restart_from_the_state_dict_is_bit_equal(spec: AdamW | Muon) -> None:
    model = network()
    optimizer = spec.build(model)
    for step in range(3):
        backward(model, step)
        optimizer.step()
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    model_state, optimizer_state = torch.load(file, weights_only=True)
    again = Network()
    again.load_state_dict(model_state)
    resumed = spec.build(again)
    resumed.load_state_dict(optimizer_state)
    assert_same_state(resumed.state_dict(), optimizer.state_dict())
    for step in range(3, 6):
        backward(model, step)
        backward(again, step)
        optimizer.step()
        resumed.step()
    assert same(weights(model), weights(again))
    assert_same_state(resumed.state_dict(), optimizer.state_dict())


@pytest.mark.parametrize("spec", [ADAMW, muon()], ids=["adamw", "muon"])
def test_the_rate_of_a_group_is_its_peak_times_the_schedule(spec: AdamW | Muon) -> None:
    model = network()
    optimizer = spec.build(model)
    for entry in optimizer.param_groups:
        entry["lr"] = entry["lr_peak"] * 0.0
    before = weights(model)
    backward(model, 0)
    optimizer.step()
    assert same(weights(model), before)


@pytest.mark.parametrize("spec", [ADAMW, muon()], ids=["adamw", "muon"])
def test_training_lowers_the_loss(spec: AdamW | Muon) -> None:
    model = network()
    optimizer = spec.build(model)
    ids = torch.randint(11, (4, 6), generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_state_is_fp32() -> None:
    for spec in (ADAMW, muon()):
        model = network()
        optimizer = spec.build(model)
        backward(model, 0)
        optimizer.step()
        assert {v.dtype for state in optimizer.state.values() for v in state.values()} == {torch.float32}
    assert isinstance(optimizer, MuonAdamW)


def assert_same_state(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a["param_groups"] == b["param_groups"]
    assert a["state"].keys() == b["state"].keys()
    for key, state in a["state"].items():
        assert state.keys() == b["state"][key].keys()
        assert all(torch.equal(value, b["state"][key][name]) for name, value in state.items())
