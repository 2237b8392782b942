"""A head in fp32 behind a body in bf16: every backend gives the products of fp32, of the weights as they are now."""

from dataclasses import replace

import pytest
import torch
from tests.model.variants import VARIANTS
from tests.rollout.sampled import CONFIG
from torch import Tensor
from torch.nn import functional as F

from lifecycle.model import Cache, Decoder, ModelConfig, build
from lifecycle.rollout.decoder import fused
from lifecycle.rollout.decoder.backend import AsItIs, DecodeBackend, prepare
from lifecycle.rollout.decoder.fused import Fused
from lifecycle.rollout.decoder.joined_blocks import Joined

KINDS = {
    "tied": (CONFIG, "Fused"),
    "untied": (replace(VARIANTS["untied"], width=32), "Fused"),
    "softcap": (replace(VARIANTS["softcap"], width=32), "Fused"),
    "joined": (CONFIG, "Joined"),
    "as it is": (replace(VARIANTS["mixtral"], width=32), "AsItIs"),
}
IDS = torch.arange(5)[:, None]


def silent(config: ModelConfig) -> Decoder:
    """A model whose blocks add nothing, so that its hidden states are known to the bit: the norm of an embedding."""
    model = build(config, seed=4)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "experts.down_proj")):
                weight.zero_()
    return model


def step(backend: DecodeBackend, config: ModelConfig) -> Tensor:
    cache = Cache.empty(config, rows=5, capacity=16, device=torch.device("cpu"), dtype=torch.bfloat16)
    cache.limit = 16
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        return backend(IDS, torch.zeros_like(IDS), cache, None)


@torch.inference_mode()
def by_hand(model: Decoder) -> tuple[Tensor, Tensor]:
    """The logits with a head in fp32, and in bf16."""
    hidden = model.norm(model.embedding(IDS[:, 0]).bfloat16())
    assert hidden.dtype == torch.bfloat16
    exact, rough = F.linear(hidden.float(), model.head_weight), F.linear(hidden, model.head_weight.bfloat16())
    return model.capped(exact), model.capped(rough).float()


@pytest.mark.parametrize("kind", KINDS)
def test_a_wider_head_gives_the_products_of_its_own_dtype(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config, name = KINDS[kind]
    if name == "Fused" and not fused.fits(build(config, seed=0)):
        pytest.skip("needs a C compiler")
    if name != "Fused":
        monkeypatch.setattr(fused, "fits", lambda model: False)
    model = silent(config)
    backends = [prepare(model, rows=8, dtype=torch.bfloat16, head=head)[1] for head in (torch.float32, None)]
    assert all(isinstance(one, {"Fused": Fused, "Joined": Joined, "AsItIs": AsItIs}[name]) for one in backends)
    for _ in range(2):
        exact, rough = by_hand(model)
        found, without = (step(one, config) for one in backends)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5)
        assert float((rough - exact).abs().max()) > 1e-3
        torch.testing.assert_close(without.float(), rough, rtol=1e-2, atol=1e-2)
        with torch.no_grad():
            model.head_weight.mul_(1.25)
        for one in backends:
            one.refresh()


def test_a_head_that_is_no_wider_changes_nothing() -> None:
    model = build(CONFIG, seed=4)
    ready, backend = prepare(model, rows=8, dtype=torch.float32, head=torch.float32)
    assert ready is model
    assert torch.equal(step(backend, CONFIG), step(prepare(model, rows=8, dtype=torch.float32)[1], CONFIG))
