"""Frozen layers in 4 bits: an eighth of the memory, near the whole ones, and what is sampled is what is trained."""

import pytest
import torch
from tests.model.adapted import adapted, lora
from tests.model.huggingface.families import CONFIGS
from tests.toy import toy

from lifecycle.errors import UserError
from lifecycle.model import Decoder, build
from lifecycle.model.adapters import adapter_off, check_adapter, factors_of, plain_weights
from lifecycle.rollout.decoder.backend import is_plain, prepare

CONFIG = toy(width=64, ffn_width=128, init_std=0.1)
IDS = torch.arange(12)[None]
QLORA = lora(bits=4)


def small() -> Decoder:
    """A decoder of 4 bits with a trained adapter, where it computes: the weights become small on the way."""
    pytest.importorskip("bitsandbytes", reason="an extra, for CUDA")
    return adapted(build(CONFIG, seed=1), QLORA).to("cpu")


@torch.no_grad()
def hidden(model: Decoder) -> torch.Tensor:
    out: torch.Tensor = model(IDS, IDS)
    return out


def test_the_weights_are_small_and_only_the_adapter_is_trained() -> None:
    model = small()
    frozen = [p for name, p in model.named_parameters() if "proj" in name and ".lora_" not in name]
    assert frozen and all(p.dtype == torch.uint8 for p in frozen)
    assert all(".lora_" in name for name, p in model.named_parameters() if p.requires_grad)
    model(IDS, IDS).square().sum().backward()
    assert all(p.grad is not None for p in model.trained_parameters())


def test_it_computes_nearly_what_whole_weights_do() -> None:
    model, whole = small(), adapted(build(CONFIG, seed=1), lora())
    error = (hidden(model) - hidden(whole)).norm() / hidden(whole).norm()
    assert 1e-3 < error < 0.3


@torch.no_grad()
def test_the_plain_copy_computes_what_it_does() -> None:
    model, plain = small(), build(CONFIG, seed=2)
    plain.load_state_dict(plain_weights(model))
    torch.testing.assert_close(hidden(plain), hidden(model), rtol=1e-3, atol=1e-3)
    assert is_plain(model) and prepare(model, rows=2, dtype=torch.float32)[0] is not model
    with adapter_off(model):
        plain.load_state_dict(plain_weights(model))
        torch.testing.assert_close(hidden(plain), hidden(model), rtol=1e-3, atol=1e-3)


def test_its_adapter_is_read_as_any_other() -> None:
    model = small()
    assert (
        factors_of(model.state_dict(), CONFIG, QLORA).keys()
        == factors_of(adapted(build(CONFIG, seed=1)).state_dict(), CONFIG, lora()).keys()
    )


def test_experts_and_dora_are_refused() -> None:
    with pytest.raises(UserError, match="not experts, which lie in one tensor .* type adapter=lora"):
        check_adapter(CONFIGS["mixtral"], QLORA)
    with pytest.raises(UserError, match="leave one out"):
        check_adapter(CONFIGS["llama"], lora(bits=4, dora=True))
