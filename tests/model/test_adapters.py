"""An adapter changes nothing until it is trained, can be set aside to the bit, and merged is what it was beside."""

from dataclasses import replace

import pytest
import torch
from tests.model.adapted import adapted, lora
from tests.model.variants import LLAMA, VARIANTS
from torch import Tensor

from lifecycle.errors import UserError
from lifecycle.model import Decoder, ModelConfig, build
from lifecycle.model.adapters import (
    adapter_off,
    add_adapter,
    base_of,
    first_weights,
    live_base,
    live_names,
    matrices,
    places,
    plain_weights,
    size_of,
)
from lifecycle.model.lora import applied, first_factors

IDS = torch.randint(96, (2, 9), generator=torch.Generator().manual_seed(0))


def hidden(model: Decoder) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(IDS, torch.arange(9).expand(2, 9))
    return out


@pytest.mark.parametrize("name", VARIANTS)
def test_a_new_adapter_changes_no_bit(name: str) -> None:
    plain = hidden(build(VARIANTS[name], seed=1))
    model = build(VARIANTS[name], seed=1)
    add_adapter(model, lora(), seed=3)
    assert torch.equal(hidden(model), plain)


@pytest.mark.parametrize("name", VARIANTS)
def test_set_aside_it_is_the_network_before_to_the_bit(name: str) -> None:
    plain = hidden(build(VARIANTS[name], seed=1))
    model = adapted(build(VARIANTS[name], seed=1))
    with adapter_off(model):
        assert torch.equal(hidden(model), plain)
        assert all(torch.equal(a, b) for a, b in zip(plain_weights(model).values(), base(name).values(), strict=True))
    assert not torch.allclose(hidden(model), plain, atol=0.01)
    assert [p.requires_grad for n, p in model.named_parameters()] == [
        ".lora_" in n for n, _ in model.named_parameters()
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ["qwen2", "mixtral"])
def test_another_default_type_changes_nothing(name: str, dtype: torch.dtype) -> None:
    wanted = adapted(build(VARIANTS[name], seed=1))
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        model = adapted(build(VARIANTS[name], seed=1))
        with torch.device("meta"):
            empty = Decoder(VARIANTS[name])
        add_adapter(empty, lora(), seed=3)
        assert {p.dtype for one in (model, empty) for p in one.parameters()} == {torch.float32}
    finally:
        torch.set_default_dtype(before)
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), wanted.state_dict().values(), strict=True)
    )


def test_a_score_is_trained_beside_it_and_counted() -> None:
    config = replace(VARIANTS["qwen2"], score_head=True)
    model = build(config, seed=1)
    add_adapter(model, lora(), seed=3)
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    assert "score.weight" in trained and all(".lora_" in name for name in trained if name != "score.weight")
    assert size_of(config, lora()).parameters == sum(trained.values())


def base(name: str) -> dict[str, Tensor]:
    return build(VARIANTS[name], seed=1).state_dict()


@pytest.mark.parametrize("name", VARIANTS)
def test_merged_it_computes_the_same(name: str) -> None:
    model = adapted(build(VARIANTS[name], seed=1), lora(rslora=True))
    plain = build(VARIANTS[name], seed=2)
    plain.load_state_dict(plain_weights(model))
    torch.testing.assert_close(hidden(plain), hidden(model), rtol=1e-4, atol=1e-4)


def test_merged_dora_computes_the_same() -> None:
    model = adapted(build(VARIANTS["qwen2"], seed=1), lora(dora=True))
    plain = build(VARIANTS["qwen2"], seed=2)
    plain.load_state_dict(plain_weights(model))
    torch.testing.assert_close(hidden(plain), hidden(model), rtol=1e-4, atol=1e-4)


def test_the_sum_by_hand() -> None:
    adapter, weight = lora(rank=2, alpha=4), torch.eye(2)
    factors = first_factors("x", weight, adapter, seed=0)._replace(a=torch.tensor([[1.0, 0.0], [0.0, 3.0]]))
    factors = factors._replace(b=torch.tensor([[0.5, 0.0], [0.0, 1.0]]))
    assert applied(weight, factors, adapter).tolist() == [[2.0, 0.0], [0.0, 7.0]]  # I + 4/2 B A
    assert applied(weight, factors, replace(adapter, rslora=True))[1, 1] == pytest.approx(1 + 3 * 4 / 2**0.5)


@pytest.mark.parametrize("name", ["llama", "deepseek_v3", "qwen2_moe"])
def test_every_linear_layer_but_routers_gates_and_what_is_outside_the_blocks(name: str) -> None:
    config = VARIANTS[name]
    model = adapted(build(config, seed=1))
    by_place = {place: live[0] for place, live in live_names(config, lora()).items()}
    assert set(by_place.values()) == {name for name in model.state_dict() if ".lora_A" in name}
    found = list(matrices(config))
    assert places(config, lora()) == found and not [p for p in found if "router" in p or "shared_gate" in p]
    own = sum(size.numel() for size in matrices(config).values())
    rest = [w for n, w in base(name).items() if n not in found and f"{n.removesuffix('.weight')}" not in found]
    assert own + sum(w.numel() for w in rest) == sum(w.numel() for w in base(name).values())


@pytest.mark.parametrize("name", ["llama", "deepseek_v3"])
def test_names_and_first_values_are_told_without_the_network(name: str) -> None:
    config, adapter = VARIANTS[name], lora()
    model = build(config, seed=1)
    add_adapter(model, adapter, seed=3)
    told = live_base(base(name), config, adapter) | first_weights(config, adapter, base(name), seed=3)
    state = model.state_dict()
    assert told.keys() == state.keys() and all(torch.equal(told[key], state[key]) for key in told)
    assert base_of(state).keys() == base(name).keys()


def test_first_values_depend_on_the_seed_and_the_matrix_alone() -> None:
    def drawn(config: ModelConfig, seed: int, **changes: object) -> dict[str, Tensor]:
        model = build(config, seed=1)
        add_adapter(model, lora(**changes), seed=seed)
        return {name: weight for name, weight in model.state_dict().items() if ".lora_A" in name}

    all_of_them, some = drawn(LLAMA, 3), drawn(LLAMA, 3, targets=["v_proj"])
    assert some.keys() < all_of_them.keys() and all(torch.equal(some[key], all_of_them[key]) for key in some)
    others = drawn(LLAMA, 4, targets=["v_proj"])
    assert not any(torch.equal(some[key], others[key]) for key in some)


@pytest.mark.parametrize(
    ("targets", "found"),
    [
        (["q_proj"], ["attention.q_proj"]),
        (["self_attn"], [f"attention.{m}_proj" for m in "qkvo"]),
        (["mlp.up_proj", "attention.o_proj"], ["attention.o_proj", "ffn.up_proj"]),
    ],
)
def test_targets_are_names_of_ours_or_theirs(targets: list[str], found: list[str]) -> None:
    config = replace(LLAMA, layers=2)
    assert places(config, lora(targets=targets)) == [f"blocks.{layer}.{name}" for layer in (0, 1) for name in found]
    assert places(config, lora(targets=["blocks.1"])) == [p for p in matrices(config) if p.startswith("blocks.1.")]


@pytest.mark.parametrize(
    ("target", "words"),
    [("q_prj", "'q_prj' .did you mean q_proj"), ("lm_head", "embedding, head, norms"), ("router", "are left as they")],
)
def test_a_target_that_names_nothing_is_refused_with_near_spellings(target: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        places(LLAMA, lora(targets=["v_proj", target]))
    with pytest.raises(UserError, match="wanted names of layers"):
        lora(targets=[])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch, behind a break
@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_a_compiler_traces_it_to_the_same_gradients(name: str) -> None:
    eager, traced = (adapted(build(VARIANTS[name], seed=1)) for _ in range(2))
    traced.compile(dynamic=False, backend="eager")
    for model in (eager, traced):
        model(IDS, torch.arange(9).expand(2, 9)).square().mean().backward()
    for one, other in zip(eager.trained_parameters(), traced.trained_parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)
