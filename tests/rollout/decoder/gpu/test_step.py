"""Our own kernels give what the model's own cached forward pass gives: on a GPU, and here in Triton's interpreter."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.interpreted import DEVICES, GPU, HERE, INTERPRETED, interpret_tests
from tests.model.variants import VARIANTS, YARN
from torch import Tensor

from lifecycle.model import Cache, Decoder, ModelConfig, build
from lifecycle.rollout.decoder import packed_linear
from lifecycle.rollout.decoder.joined_blocks import Joined
from lifecycle.rollout.decoder.joined_matrices import JoinedAttention

# the interpreter multiplies the bits of bf16 numbers as integers
PRECISIONS = [
    *(pytest.param("cpu", dtype, marks=HERE) for dtype in (torch.float32, torch.float16)),
    *(
        pytest.param("cuda", dtype, marks=[pytest.mark.gpu, GPU])
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
    ),
]

LLAMA = replace(VARIANTS["llama"], layers=2, width=48, ffn_width=80, max_positions=512)
CONFIGS: dict[str, ModelConfig] = {
    "one query head a key": replace(LLAMA, heads=2, kv_heads=2, head_dim=32),
    "three": replace(LLAMA, heads=6, kv_heads=2, head_dim=64),
    "four of 80": replace(LLAMA, heads=4, kv_heads=1, head_dim=80),
    "of 128": replace(LLAMA, heads=4, kv_heads=2, head_dim=128),
    "normalised": replace(LLAMA, family="qwen3", heads=4, kv_heads=2, head_dim=24, qk_norm=True),
    "biases": replace(LLAMA, family="qwen2", heads=4, kv_heads=2, head_dim=16, qkv_bias=True),
    "windows": replace(LLAMA, family="qwen2", heads=4, kv_heads=2, qkv_bias=True, sliding_window=7, sliding_from=1),
    "softcap": replace(LLAMA, logit_softcap=3.0),
}
EXPERTS_AND_LATENT: dict[str, ModelConfig] = {
    name: replace(VARIANTS[name], layers=2, width=48, init_std=0.1, max_positions=512)
    for name in ("mixtral", "qwen2_moe", "qwen3_moe", "glm4_moe", "deepseek_v2", "deepseek_v3", "plain_queries")
}
EXPERTS_AND_LATENT["yarn, 20 heads"] = replace(
    EXPERTS_AND_LATENT["deepseek_v3"], rope_scaling=YARN, heads=20, kv_heads=20
)
CONFIGS |= EXPERTS_AND_LATENT
CLOSE: dict[torch.dtype, dict[str, Any]] = {
    torch.float32: {"rtol": 1e-4, "atol": 1e-4},
    torch.bfloat16: {"rtol": 5e-2, "atol": 8e-2},
    torch.float16: {"rtol": 1e-2, "atol": 1e-2},
}


@pytest.mark.skipif(INTERPRETED, reason="it is what starts this process")
def test_the_kernels_in_the_interpreter() -> None:
    interpret_tests(__file__)


def joined(model: Decoder, monkeypatch: pytest.MonkeyPatch) -> Joined:
    monkeypatch.setattr(packed_linear, "packs", lambda weight: False)  # as on a GPU
    return Joined(model, rows=8, refresh_model=None, kernels=True)


def filled(
    config: ModelConfig, device: str, dtype: torch.dtype, lengths: list[int], capacity: int, held: torch.dtype | None
) -> tuple[Decoder, Cache]:
    """A model, and a cache whose row r holds `lengths[r]` positions of it."""
    model = build(config, seed=3, device=torch.device(device)).to(dtype)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("norm.weight", "bias")):  # not 1 and 0 everywhere
                weight.add_(0.3 * torch.randn(weight.shape, generator=generator).to(weight))
    cache = Cache.empty(
        config, rows=len(lengths), capacity=capacity, device=torch.device(device), dtype=dtype if held is None else held
    )
    ids = torch.randint(config.vocab, (len(lengths), max(lengths)), generator=generator).to(device)
    positions = torch.arange(max(lengths), device=device).repeat(len(lengths), 1)
    positions[positions >= torch.tensor(lengths, device=device)[:, None]] = -1
    with torch.inference_mode():
        model(ids, positions, cache=cache)
    return model, cache


def both(
    step: Joined, model: Decoder, cache: Cache, positions: list[int], rows: Any, *, limit: int | None = None
) -> tuple[Tensor, Tensor, Cache]:
    """Logits of a token a row by the kernels and by the model itself, and the cache that the latter wrote."""
    device = model.embedding.weight.device
    at = torch.tensor(positions, device=device)[:, None]
    ids = (torch.arange(len(positions), device=device)[:, None] * 7 + 1) % model.config.vocab
    twin = replace(cache, keys=[k.clone() for k in cache.keys], values=[v.clone() for v in cache.values])
    cache.limit = twin.limit = limit
    with torch.inference_mode():
        found = step(ids, at, cache, rows)
        wanted = model.logits(model(ids, at, cache=twin, rows=rows))[:, 0]
    return found, wanted, twin


def agree(found: Tensor, wanted: Tensor, cache: Cache, twin: Cache, positions: list[int], dtype: torch.dtype) -> None:
    assert found.dtype == wanted.dtype and bool(found.isfinite().all())
    real = torch.tensor([position >= 0 for position in positions], device=found.device)
    torch.testing.assert_close(found[real].float(), wanted[real].float(), **CLOSE[dtype])
    for mine, theirs in zip((*cache.keys, *cache.values), (*twin.keys, *twin.values), strict=True):
        # not the last slot: padding of later layers is made of numbers that nobody reads
        torch.testing.assert_close(mine[:, :, :-1].float(), theirs[:, :, :-1].float(), **CLOSE[dtype])


@pytest.mark.parametrize(("device", "dtype"), PRECISIONS)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_step_is_the_models_own(name: str, dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = [1, 64, 3, 17, 40]
    model, cache = filled(CONFIGS[name], device, dtype, lengths, 70, None)
    positions = [1, 64, -1, 17, -1]
    found, wanted, twin = both(joined(model, monkeypatch), model, cache, positions, None)
    agree(found, wanted, cache, twin, positions, dtype)


@pytest.mark.parametrize(("device", "dtype"), PRECISIONS)
@pytest.mark.parametrize("rows", [torch.tensor([3, 0, 2]), slice(1, 4)], ids=["index", "slice"])
@pytest.mark.parametrize("name", ["three", "qwen2_moe", "deepseek_v2"])
def test_rows_of_the_cache_may_be_chosen(
    name: str, rows: Tensor | slice, dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = [9, 30, 12, 21]
    model, cache = filled(CONFIGS[name], device, dtype, lengths, 32, None)
    chosen = rows if isinstance(rows, slice) else rows.to(device)
    positions = [lengths[row] for row in (range(1, 4) if isinstance(rows, slice) else rows.tolist())]
    found, wanted, twin = both(joined(model, monkeypatch), model, cache, positions, chosen, limit=31)
    agree(found, wanted, cache, twin, positions, dtype)


@pytest.mark.parametrize(("device", "dtype"), PRECISIONS)
@pytest.mark.parametrize("name", ["three", "normalised", "biases"])
def test_one_row_is_multiplied_by_our_own_products(
    name: str, dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, cache = filled(CONFIGS[name], device, dtype, [33], 34, None)
    step = joined(model, monkeypatch)
    monkeypatch.setattr(step._kernels, "_rows", None)
    found, wanted, twin = both(step, model, cache, [33], None)
    agree(found, wanted, cache, twin, [33], dtype)


@pytest.mark.parametrize(("device", "dtype"), PRECISIONS)
@pytest.mark.parametrize(
    ("rows", "begins", "held"),
    [(slice(1, 4), True, None), (torch.tensor([3, 0, 2]), True, torch.float32), (torch.tensor([3, 0, 2]), False, None)],
    ids=["slice", "wider", "going on"],
)
@pytest.mark.parametrize("name", ["normalised", "windows", "glm4_moe", "deepseek_v3"])
def test_prompts_are_written_as_the_model_writes_them(
    name: str,
    rows: slice | Tensor,
    begins: bool,
    held: torch.dtype | None,
    dtype: torch.dtype,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    T = 11
    lengths = [0, 0, 0, 0] if begins else [30, 5, 17, 1]
    model, cache = filled(CONFIGS[name], device, dtype, [max(n, 1) for n in lengths], 64, held)
    prefill = joined(model, monkeypatch).prefill
    assert prefill is not None
    twin = replace(cache, keys=[k.clone() for k in cache.keys], values=[v.clone() for v in cache.values])
    chosen = [1, 2, 3] if isinstance(rows, slice) else rows.tolist()
    at = torch.arange(T).repeat(3, 1) + torch.tensor([lengths[row] for row in chosen])[:, None]
    at[0, 8:], at[2, 1:] = -1, -1
    ids = torch.arange(3 * T).view(3, T) % model.config.vocab
    cache.begins = twin.begins = begins
    given = ids.to(device), at.to(device)
    placed = rows if isinstance(rows, slice) else rows.to(device)
    with torch.inference_mode():
        prefill(*given, cache, placed)
        model(*given, cache=twin, rows=placed)
    for mine, theirs in zip((*cache.keys, *cache.values), (*twin.keys, *twin.values), strict=True):
        torch.testing.assert_close(mine[:, :, :-1].float(), theirs[:, :, :-1].float(), **CLOSE[dtype])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["three", "windows", "plain_queries"])
@pytest.mark.parametrize("positions", [[400, 3, -1], [0, 511, 255]])
def test_keys_may_be_split_over_programs(
    positions: list[int], name: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lifecycle.rollout.decoder.gpu import attend

    monkeypatch.setattr(attend, "SPLIT_KEYS", 100)
    assert attend.splits(3, 2, 512) == 5
    model, cache = filled(CONFIGS[name], device, torch.float32, [400, 511, 300], 512, None)
    found, wanted, twin = both(joined(model, monkeypatch), model, cache, positions, None)
    agree(found, wanted, cache, twin, positions, torch.float32)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["normalised", "deepseek_v3"])
def test_a_cache_may_have_a_dtype_of_its_own(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = [30, 5]
    model, cache = filled(CONFIGS[name], device, torch.float16, lengths, 40, torch.float32)
    found, wanted, twin = both(joined(model, monkeypatch), model, cache, lengths, None)
    agree(found, wanted, cache, twin, lengths, torch.float16)


@pytest.mark.parametrize("device", DEVICES)
def test_the_bits_of_a_row_depend_on_no_other_row(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from lifecycle.rollout.decoder.gpu.attend import attend

    lengths = [30, 5, 17]
    model, cache = filled(CONFIGS["three"], device, torch.float16, lengths, 40, None)
    block = joined(model, monkeypatch)._blocks[0].attention
    assert isinstance(block, JoinedAttention)
    qkv = torch.randn(3, 10 * 64, generator=torch.Generator().manual_seed(1)).to(device, torch.float16)
    outs = []
    with torch.inference_mode():
        for order in ([0, 1, 2], [2, 0, 1]):
            index = torch.tensor(order, device=device)
            at = torch.tensor(lengths, device=device)[index]
            outs.append(attend(qkv[index], at, cache, 0, index, block)[index.argsort()])
    assert torch.equal(*outs)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("name", "rows"), [("of 128", 1), ("qwen2_moe", 2), ("deepseek_v3", 6)])
def test_matrices_may_lie_otherwise_in_memory(
    name: str, rows: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's `load_state_dict(assign=True)` may bring matrices whose columns are what follows on one another."""
    model, cache = filled(CONFIGS[name], device, torch.float32, [3] * rows, 8, None)
    for weight in model.parameters():
        weight.data = weight.data.mT.contiguous().mT if weight.dim() > 1 else weight.data
    positions = [3] * rows
    found, wanted, twin = both(joined(model, monkeypatch), model, cache, positions, None)
    agree(found, wanted, cache, twin, positions, torch.float32)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("S", "K", "warps"), [(2, 48, 1), (33, 80, 1), (150, 48, 1), (70, 512, 8)])
def test_parts_of_a_long_row_are_joined_block_by_block(S: int, K: int, warps: int, device: str) -> None:
    """The first part alone has seen anything; or all have, the later ones with the higher scores; or the earlier."""
    from lifecycle.rollout.decoder.gpu.attend import LOWEST, join

    generator = torch.Generator().manual_seed(1)
    sums = torch.randn(1, 3, S, K, generator=generator)
    rise = torch.linspace(0, 40, S)
    parts = torch.stack((torch.stack((-rise, rise, -rise)), 1 + torch.rand(3, S, generator=generator)), dim=-1)[None]
    sums[0, 0, 1:], parts[0, 0, 1:, 0], parts[0, 0, 1:, 1] = 0.0, LOWEST.value, 0.0
    weights = torch.exp2(parts[..., 0] - parts[..., 0].amax(-1, keepdim=True))
    wanted = (sums * weights[..., None]).sum(2) / (parts[..., 1] * weights).sum(-1, keepdim=True)
    out = torch.empty(1, 3, K, device=device)
    join(sums.to(device), parts.to(device), out, torch.float32, warps=warps)
    torch.testing.assert_close(out.cpu(), wanted, rtol=1e-5, atol=1e-5)
