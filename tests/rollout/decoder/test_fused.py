"""The decode step in C is the model's own cached pass, row by row, whoever stands beside a row."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.model.variants import GATED, VARIANTS
from tests.processors import use_build_with
from tests.rollout.sampled import CONFIG, completions, mismatch, prompts, settings
from torch import Tensor

from lifecycle.errors import UserError
from lifecycle.model import Cache, Decoder, Latent, ModelConfig, build
from lifecycle.rollout import Engine
from lifecycle.rollout.decoder import backend, fused
from lifecycle.rollout.decoder.fused import SLOWER, SOURCE, Fused, fits
from lifecycle.rollout.decoder.packed_linear import has_bf16_units
from lifecycle.rollout.decoder.shared_prefix import shared_prefix
from lifecycle.rollout.scheduler import Scheduler
from lifecycle.system.native.c_library import library

pytestmark = pytest.mark.skipif(library(SOURCE, SLOWER) is None, reason="needs a C compiler")

CPU = torch.device("cpu")
LATENT = Latent(kv_rank=32, nope_dim=16, rope_dim=8, v_dim=16, q_rank=48)
KINDS = {
    "plain": CONFIG,
    **{
        name: replace(VARIANTS[name], width=32) for name in ("untied", "mistral", "qwen2", "qwen3", "softcap", "llama3")
    },
    "partial": replace(VARIANTS["glm4_moe"], width=32, moe=None),
    **{name: replace(VARIANTS[name], width=32) for name in ("mixtral", "qwen3_moe", "glm4_moe")},
    **{
        name: replace(VARIANTS[name], width=32, head_dim=24, latent=LATENT)
        for name in ("deepseek_v2", "deepseek_v3", "yarn")
    },
    "qwen2_moe": replace(VARIANTS["qwen2_moe"], width=32, moe=replace(GATED, shared_ffn_width=24)),
    "plain_queries": replace(VARIANTS["plain_queries"], width=32, head_dim=24, latent=replace(LATENT, q_rank=None)),
    "wide": replace(CONFIG, width=96, head_dim=24, heads=6, kv_heads=2, ffn_width=72),
}
POSITIONS = [7, 20, -1, 0, 31, 8, 13, 5, 1, 2, 3, 4, 6]


def made(name: str, *, seed: int = 2) -> Decoder:
    """A model whose routers are far apart, so that rounding never decides who is chosen, and whose biases count."""
    model, draw = build(KINDS[name], seed=seed), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part, value in sorted(model.state_dict().items()):
            if "router" in part:
                value.normal_(0.0, 0.3 if part.endswith("bias") else 1.0, generator=draw)
            elif value.dim() == 1:
                value.uniform_(0.5, 1.5, generator=draw)
    return model


def held(config: ModelConfig, rows: int, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Cache:
    """A cache full of numbers."""
    generator = torch.Generator().manual_seed(seed)
    cache = Cache.empty(config, rows=rows, capacity=40, device=CPU, dtype=dtype)
    for stored in (*cache.keys, *cache.values):
        stored.copy_(torch.randn(stored.shape, generator=generator))
    cache.limit = 32
    return cache


def coarse(cache: Cache) -> Cache:
    """The same with numbers that bf16 holds."""
    for stored in (*cache.keys, *cache.values):
        stored.copy_(stored.bfloat16())
    return cache


def asked(rows: int) -> tuple[Tensor, Tensor]:
    """Token ids and positions, each (B, 1)."""
    ids = torch.randint(96, (rows, 1), generator=torch.Generator().manual_seed(1))
    return ids, torch.tensor(POSITIONS[:rows])[:, None]


def stepped(model: Decoder) -> Fused:
    assert fits(model)
    return Fused(model, refresh_model=None)


@pytest.mark.parametrize("name", KINDS)
@torch.inference_mode()
def test_it_is_the_models_own_cached_pass(name: str) -> None:
    model, (ids, positions) = made(name), asked(13)
    mine, exact = held(model.config, 13), held(model.config, 13)
    exact.keys, exact.values = ([x.double() for x in part] for part in (exact.keys, exact.values))
    found = stepped(model)(ids, positions, mine, None)
    model.double()
    wanted = model.logits(model(ids, positions, cache=exact))[:, 0]
    active = positions[:, 0] >= 0
    torch.testing.assert_close(found[active].double(), wanted[active], rtol=1e-5, atol=2e-5)
    assert found.isfinite().all()
    for ours, theirs in zip((*mine.keys, *mine.values), (*exact.keys, *exact.values), strict=True):
        torch.testing.assert_close(ours[:, :, :40].double(), theirs[:, :, :40], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["plain", "qwen2", "qwen3", "partial", "wide", "mixtral", "qwen2_moe", "glm4_moe", "deepseek_v3", "yarn"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_bf16_weights_round_where_the_model_rounds(name: str, dtype: torch.dtype) -> None:
    errors = torch.tensor([of_bf16(name, dtype, seed) for seed in range(6)])
    ours, torchs = errors.mean(0)  # of one model either may be half as large again: rounding, over 60 models the same
    assert ours < 1.2 * torchs, errors


def of_bf16(name: str, dtype: torch.dtype, seed: int) -> tuple[float, float]:
    """The errors of the kernel, and of torch, against the same model in float64."""
    model, (ids, positions) = made(name, seed=seed).bfloat16(), asked(13)
    mine = coarse(held(model.config, 13, seed=seed, dtype=dtype))
    theirs = held(model.config, 13, seed=seed, dtype=torch.bfloat16)
    found = stepped(model)(ids, positions, mine, None)
    wanted = model.logits(model(ids, positions, cache=theirs))[:, 0]
    exact = made(name, seed=seed).bfloat16().double()
    cache = coarse(held(model.config, 13, seed=seed, dtype=torch.float64))
    truth = exact.logits(exact(ids, positions, cache=cache))[:, 0]
    assert found.dtype == torch.bfloat16
    active = positions[:, 0] >= 0
    # most numbers, and the median of rows: rounding may send one to another expert
    for own, other in zip((*mine.keys, *mine.values), (*theirs.keys, *theirs.values), strict=True):
        close = torch.isclose(own[:, :, :40].float(), other[:, :, :40].float(), rtol=2e-2, atol=0.2)
        assert close.double().mean() > 0.995
    ours, torchs = ((x.double() - truth)[active].abs().mean(1).median() for x in (found, wanted))
    return float(ours), float(torchs)


@torch.inference_mode()
def test_an_fp32_model_reads_a_bf16_cache() -> None:
    model, (ids, positions) = build(CONFIG, seed=2), asked(13)
    mine, theirs = (held(CONFIG, 13, dtype=torch.bfloat16) for _ in range(2))
    found = stepped(model)(ids, positions, mine, None)
    active = positions[:, 0] >= 0
    wanted = stepped(model)(ids, positions, coarse(held(CONFIG, 13)), None)
    torch.testing.assert_close(found[active], wanted[active], rtol=0.05, atol=0.05)
    model(ids, positions, cache=theirs)
    for own, other in zip((*mine.keys, *mine.values), (*theirs.keys, *theirs.values), strict=True):
        torch.testing.assert_close(own[:, :, :40].float(), other[:, :, :40].float(), rtol=2e-2, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["plain", "mistral", "wide", "qwen2_moe", "deepseek_v3"])
@torch.inference_mode()
def test_a_row_has_the_same_bits_alone(name: str, dtype: torch.dtype) -> None:
    step, (ids, positions) = stepped(made(name).to(dtype)), asked(13)
    together = step(ids, positions, held(KINDS[name], 13, dtype=dtype), None)
    for row in (r for r in range(13) if POSITIONS[r] >= 0):
        cache = held(KINDS[name], 13, dtype=dtype)
        alone = step(ids[row : row + 1], positions[row : row + 1], cache, torch.tensor([row]))
        assert torch.equal(alone[0], together[row]), row
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        assert torch.equal(step(ids, positions, held(KINDS[name], 13, dtype=dtype), None), together)
    finally:
        torch.set_num_threads(threads)


@torch.inference_mode()
def test_bf16_units_and_shifts_come_to_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (ids, positions) = build(KINDS["wide"], seed=2).bfloat16(), asked(13)
    with_units = stepped(model)(ids, positions, held(KINDS["wide"], 13), None)
    use_build_with("-mno-avx512bf16", fused, monkeypatch)
    without = stepped(model)(ids, positions, held(KINDS["wide"], 13), None)
    assert torch.equal(with_units, without)


@torch.inference_mode()
def test_scores_far_apart_stay_numbers() -> None:
    model, (ids, positions) = build(replace(CONFIG, init_std=6.0), seed=1), asked(13)
    cache = held(CONFIG, 13)
    for keys in cache.keys:
        keys.mul_(1e4)
    found = stepped(model)(ids, positions, cache, None)
    assert found.isfinite().all()


@pytest.mark.parametrize("name", ["attention.q_proj", "attention.k_proj", "attention.v_proj", "ffn.gate_proj"])
@torch.inference_mode()
def test_what_is_not_a_number_is_told(name: str) -> None:
    model = build(CONFIG, seed=2)
    with torch.no_grad():
        model.get_parameter(f"blocks.0.{name}.weight")[3, 5] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        Engine(model, slots=4).generate(prompts(3), settings(), seed=0)


@pytest.mark.parametrize("changes", [{"width": 24}, {"head_dim": 10}, {"ffn_width": 44}, {"vocab_size": 100}])
def test_other_sizes_are_left_to_torch(changes: dict[str, Any]) -> None:
    model = build(replace(CONFIG, **changes), seed=1)
    assert not fits(model)
    sampling = settings(top_k=10)
    assert mismatch(model, Engine(model, slots=4).generate(prompts(5), sampling, seed=0), sampling) < 1e-5


@pytest.mark.parametrize(("dtype", "step"), [(torch.bfloat16, Fused), (torch.float16, backend.Joined)])
def test_a_cache_of_another_dtype_is_read_or_left_to_torch(dtype: torch.dtype, step: type) -> None:
    model, sampling = build(CONFIG, seed=2), settings(top_k=10)
    assert isinstance(backend.prepare(model, rows=4, dtype=torch.float32, cache=dtype)[1], step)
    engine = Engine(model, slots=4, dtype=dtype)
    assert mismatch(model, engine.generate(prompts(5), sampling, seed=0), sampling) < 0.15


def test_bf16_is_decoded_by_it_from_a_bf16_cache_where_there_are_units() -> None:
    model = build(CONFIG, seed=2).bfloat16()
    step = backend.prepare(model, rows=4, dtype=torch.bfloat16)[1]
    assert isinstance(step, Fused)
    held = backend.cache_dtype(model, step, torch.bfloat16)
    assert held == (torch.bfloat16 if has_bf16_units(CPU) else torch.float32)
    assert isinstance(backend.prepare(build(CONFIG, seed=2), rows=4, dtype=torch.bfloat16)[1], Fused)


def test_fp64_is_left_to_torch() -> None:
    assert not fits(build(CONFIG, seed=2).double())


# -- the prompt's keys and values, read in one place


def test_groups_are_the_rows_of_a_prompt() -> None:
    schedule = Scheduler([[1], [2], [3]], samples=2, seeds=range(6), slots=5, prefill_tokens=8)
    schedule.admit()
    assert schedule.groups() == {0: [0, 1], 1: [2, 3], 2: [4]}
    schedule.finish([0])
    schedule.admit()
    assert schedule.groups() == {0: [1], 1: [2, 3], 2: [0, 4]}


def test_a_shared_prefix_by_hand() -> None:
    made = shared_prefix({0: [0, 3], 1: [2]}, {0: 9, 1: 5})  # row 1 is inactive
    assert made is not None
    assert made.rows.tolist() == [0, 1, 2, 0]
    assert made.lengths.tolist() == [9, 0, 5, 9]
    assert shared_prefix({0: [0], 1: [1]}, {0: 9, 1: 5}) is None
    assert shared_prefix({}, {}) is None


@pytest.mark.parametrize("name", ["plain", "mistral", "deepseek_v3"])
@torch.inference_mode()
def test_a_shared_prefix_is_read_from_one_row_alone(name: str) -> None:
    step, (ids, positions) = stepped(build(KINDS[name], seed=2)), asked(13)
    whole = held(KINDS[name], 13)
    for stored in (*whole.keys, *whole.values):
        stored[[4, 6], :, :5] = stored[1, :, :5].clone()
    wanted = step(ids, positions, whole, None)
    for stored in (*whole.keys, *whole.values):
        stored[[4, 6], :, :5] = torch.nan
    groups = {row: [row] for row in range(13) if row not in (4, 6)} | {1: [1, 4, 6]}
    found = step(ids, positions, whole, None, shared_prefix(groups, dict.fromkeys(groups, 5)))
    active = positions[:, 0] >= 0
    assert torch.equal(found[active], wanted[active])


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether a prefix was shared, step by step."""
    seen: list[bool] = []
    whole = Fused.__call__

    def noted(self: Fused, *given: Any) -> Tensor:
        seen.append(given[4] is not None)
        return whole(self, *given)

    monkeypatch.setattr(Fused, "__call__", noted)
    return seen


@pytest.mark.parametrize("name", ["plain", "mistral", "qwen2", "qwen3", "qwen3_moe", "deepseek_v2"])
def test_samples_agree_with_the_scoring_pass(name: str, counted: list[bool]) -> None:
    kind, sampling = build(KINDS[name], seed=2), settings(samples=4, top_k=20, stop_ids=(1, 2, 3, 4))
    engine = Engine(kind, slots=7)
    rollout = engine.generate(prompts(9), sampling, seed=0)
    assert any(counted)
    assert mismatch(kind, rollout, sampling) < 2e-5
    counted.clear()
    alone = Engine(kind, slots=1).generate(prompts(9), sampling, seed=0)
    assert counted and not any(counted)
    assert completions(rollout) == completions(alone)
    # another call with other prompts and other weights finds nothing of this one
    with torch.no_grad():
        for parameter in kind.parameters():
            parameter.mul_(1.1)
    again = engine.generate(prompts(9, seed=5), sampling, seed=0)
    assert mismatch(kind, again, sampling) < 2e-5


def test_deterministic_sampling_shares_no_prefix(counted: list[bool]) -> None:
    engine = Engine(build(CONFIG, seed=2), slots=8, deterministic=True)
    engine.generate(prompts(3), settings(samples=4), seed=0)
    assert counted and not any(counted)


def test_without_a_compiler_torch_draws_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sampling = build(CONFIG, seed=2), settings(samples=4, top_k=20)
    wanted = Engine(model, slots=7).generate(prompts(9), sampling, seed=0)
    monkeypatch.setattr(fused, "library", lambda *_: None)
    engine = Engine(model, slots=7)
    found = engine.generate(prompts(9), sampling, seed=0)
    assert mismatch(model, found, sampling) < 1e-5
    assert isinstance(backend.prepare(model, rows=4, dtype=torch.float32)[1], backend.Joined)
    theirs, ours = completions(found), completions(wanted)
    assert sum(theirs[name] != ours[name] for name in ours) <= 2  # a draw on the edge falls the other way
