"""Prefill, decode steps and draws on a rehearsed GPU: one look at the device a step, and graphs that hold no other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.model.variants import VARIANTS
from tests.rehearsal.claims import Device, rehearsal
from tests.rollout.copied import Copied
from tests.rollout.sampled import prompts, settings
from torch.utils._pytree import tree_leaves

from lifecycle.errors import UserError
from lifecycle.model import build
from lifecycle.model.layers.norm_swiglu import RMSNorm
from lifecycle.rollout import Engine, Sampling
from lifecycle.rollout.decode_step import DecodeStep
from lifecycle.rollout.decoder.joined_blocks import rms_norm
from lifecycle.rollout.sampling.score import score

KINDS: dict[str, Sampling] = {
    "top-k": settings(top_k=10, samples=2),
    "everything": settings(
        top_k=20, top_p=0.9, min_p=0.01, repetition_penalty=1.2, banned_ids=(1, 2), stop_ids=(3, 4, 5)
    ),
    "greedy": settings(temperature=0),
    "best of": settings(samples=1, best_of=3),
}


@pytest.fixture
def device() -> Iterator[Device]:
    with rehearsal() as made:
        yield made


@pytest.mark.parametrize(
    ("name", "precision", "kind"),
    [
        *(("llama", "fp32", kind) for kind in KINDS),
        ("mistral", "autocast", "everything"),
        ("qwen3", "bf16", "top-k"),
        ("plain_queries", "bf16", "everything"),
        ("deepseek_v3", "autocast", "everything"),
        ("qwen2_moe", "fp32", "greedy"),
    ],
)
def test_sampling_looks_at_the_device_once_a_step(name: str, precision: str, kind: str, device: Device) -> None:
    model = build(VARIANTS[name], seed=1, device=torch.device("cuda"))
    model = model.bfloat16() if precision == "bf16" else model
    engine = Engine(model, slots=4, prefill_chunk=8)
    with torch.autocast("cuda", torch.bfloat16) if precision == "autocast" else nullcontext():
        rollout = engine.generate(prompts(5), KINDS[kind], seed=0)
    looks = {place: n for place, n in device.waits.items() if not place.startswith("model/layers/experts")}
    assert set(looks) == {"rollout/decode_step.py run", "rollout/output.py rollout"}
    assert looks["rollout/decode_step.py run"] <= int(rollout.length.sum())
    assert rollout.token_ids.device.type == "cpu"


@pytest.mark.parametrize("name", ["llama", "deepseek_v3"])
def test_deterministic_steps_look_once_a_tile(name: str, device: Device) -> None:
    model = build(VARIANTS[name], seed=1, device=torch.device("cuda"))
    Engine(model, slots=4, deterministic=True).generate(prompts(3), settings(top_p=0.9), seed=0)
    assert "rollout/decode_step.py tiles" in device.waits and "rollout/decode_step.py run" not in device.waits


def test_the_draws_are_those_of_the_host(device: Device) -> None:
    wanted = Engine(build(VARIANTS["llama"], seed=1), slots=4).generate(prompts(5), KINDS["everything"], seed=0)
    model = build(VARIANTS["llama"], seed=1, device=torch.device("cuda"))
    found = Engine(model, slots=4).generate(prompts(5), KINDS["everything"], seed=0)
    assert torch.equal(found.token_ids, wanted.token_ids)
    torch.testing.assert_close(found.logprobs, wanted.logprobs, rtol=1e-4, atol=1e-4)


def test_scoring_looks_once_a_completion(device: Device) -> None:
    model = build(VARIANTS["deepseek_v3"], seed=1, device=torch.device("cuda"))
    found = score(model, prompts(3), [[5, 6], [7], [8, 9, 10]], settings(top_p=0.9))
    assert [one.logprobs.device.type for one in found] == ["cpu"] * 3
    assert device.waits["rollout/sampling/score.py _score"] == 3 * 4


@pytest.mark.parametrize("name", ["llama", "mistral", "deepseek_v3"])
def test_prefill_of_new_prompts_copies_no_row_of_the_cache(
    name: str, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(VARIANTS[name], seed=1, device=torch.device("cuda"))
    copied, passes, prefill = Copied(least=4096), [], DecodeStep.prefill

    def counted(step: DecodeStep, *given: Any, **more: Any) -> None:
        passes.append(1)
        with copied:
            prefill(step, *given, **more)

    monkeypatch.setattr(DecodeStep, "prefill", counted)
    engine = Engine(model, slots=16, graphs=False)
    engine.generate([[1 + n] * 33 for n in range(16)], settings(), seed=0)
    step = engine._step
    assert step is not None and step.cache is not None
    written = 16 * 32 * step.cache.bytes_per_position
    found = {kind: n for kind, n in copied.bytes.items() if n}
    assert len(passes) == 1 and found["index_copy_"] == written  # the prompts themselves
    assert found.get("index", 0) < written / 4


STOPPING = {
    "nothing is left out": settings(max_new_tokens=21, stop_ids=tuple(range(12)), samples=3),
    "sets and a penalty": settings(
        max_new_tokens=21, stop_ids=tuple(range(12)), samples=3, top_k=20, top_p=0.9, repetition_penalty=1.2
    ),
}


@pytest.mark.parametrize("kind", STOPPING)
@pytest.mark.parametrize("slots", [4, 16])
@pytest.mark.parametrize(("name", "graphs"), [("llama", True), ("llama", False), ("qwen2_moe", False)])
def test_nobody_looks_at_each_token_where_nobody_waits_for_it(
    name: str, graphs: bool, slots: int, kind: str, device: Device
) -> None:
    """Draws, their numbers, sets and experts are those of the host, which looks after each; some rows end in between,
    others take their place."""
    sampling, asked = STOPPING[kind], prompts(5)
    wanted = Engine(build(VARIANTS[name], seed=1), slots=slots, notes_experts=True).generate(asked, sampling, seed=0)
    model = build(VARIANTS[name], seed=1, device=torch.device("cuda"))
    engine = Engine(model, slots=slots, graphs=graphs, notes_experts=True)
    found = engine.generate(asked, sampling, seed=0)
    assert torch.equal(found.token_ids, wanted.token_ids) and torch.equal(found.length, wanted.length)
    assert found.stop_reason == wanted.stop_reason and "stop_id" in found.stop_reason
    assert torch.equal(found.kept.offsets, wanted.kept.offsets) and torch.equal(found.kept.ids, wanted.kept.ids)
    torch.testing.assert_close(found.logprobs, wanted.logprobs, rtol=1e-4, atol=1e-4)
    assert (found.experts is None) == (name == "llama")
    if found.experts is not None and wanted.experts is not None:
        assert torch.equal(found.experts, wanted.experts)
    looks = device.waits["rollout/decode_step.py run"]
    steps = int(wanted.length.max())
    assert slots == 4 or looks <= -(-steps // 8)
    for _ in engine.stream(asked, sampling, seed=0):
        pass
    assert device.waits["rollout/decode_step.py run"] - looks >= steps


EXPERTS = ["mixtral", "qwen2_moe", "qwen3_moe", "glm4_moe", "deepseek_v2", "deepseek_v3"]


@pytest.mark.parametrize(
    ("name", "precision"),
    [*((name, "bf16") for name in [*EXPERTS, "plain_queries"]), ("qwen2_moe", "autocast"), ("deepseek_v3", "autocast")],
)
def test_recorded_steps_with_experts_and_latent_attention_are_the_eager_ones(
    name: str, precision: str, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where fewer rows are active than were recorded, and behind a change of the weights."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # what is compiled has a graph's shapes
    model = build(VARIANTS[name], seed=1, device=torch.device("cuda"))
    model = model.bfloat16() if precision == "bf16" else model
    engines = [
        Engine(model, slots=4, notes_experts=True),
        Engine(model, slots=4, graphs=False, compiled=True, notes_experts=True),
    ]
    sampling = settings(max_new_tokens=6, top_k=10, samples=2)
    for call in range(2):
        with torch.autocast("cuda", torch.bfloat16) if precision == "autocast" else nullcontext():
            found, wanted = (one.generate(prompts(3 + call), sampling, seed=call) for one in engines)
        assert torch.equal(found.token_ids, wanted.token_ids) and torch.equal(found.logprobs, wanted.logprobs)
        assert (found.experts is None) == (name == "plain_queries")
        if found.experts is not None and wanted.experts is not None:
            assert torch.equal(found.experts, wanted.experts)
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1.1)
        model.weights_changed()
    assert [engine.graphs for engine in engines] == [True, False]
    assert not any(place.startswith("model/") for place in device.waits)


@pytest.mark.parametrize(
    ("changes", "dtype", "generation", "why"),
    [
        ({}, torch.float32, 9, "in torch.float32; in bf16 they would not"),
        ({"ffn_width": 12}, torch.bfloat16, 9, "12 and 24 wide"),
        ({}, torch.bfloat16, 8, "and this has 8"),
    ],
)
def test_experts_whose_sizes_the_host_must_know_run_without_graphs(
    changes: dict[str, Any],
    dtype: torch.dtype,
    generation: int,
    why: str,
    device: Device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (generation, 0))
    config, moe = VARIANTS["mixtral"], VARIANTS["mixtral"].moe
    assert moe is not None
    model = build(replace(config, moe=replace(moe, **changes)), seed=1, device=torch.device("cuda")).to(dtype)
    engine = Engine(model, slots=4)
    engine.generate(prompts(3), settings(), seed=0)
    assert not engine.graphs
    with pytest.raises(UserError, match=why):
        Engine(model, graphs=True).generate(prompts(3), settings(), seed=0)


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_in_one_kernel_is_the_norm(dtype: torch.dtype, weights: torch.dtype, device: Device) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (3 * torch.randn(7, 96, generator=generator)).to(dtype)
    norm = RMSNorm(96, eps=1e-5)
    norm.weight.data = torch.randn(96, generator=generator).to(weights)
    with torch.no_grad():
        wanted, there = norm(x), norm.to("cuda")
        found = rms_norm(x.cuda(), there)
    assert found.is_cuda and found.dtype == dtype
    torch.testing.assert_close(found.cpu(), wanted)


@pytest.mark.parametrize(("precision", "most"), [("bf16", 18), ("autocast", 22)])
def test_a_layer_of_a_decode_step_starts_few_kernels(precision: str, most: int, device: Device) -> None:
    """The difference of two depths; attention and each product count as one."""
    counts = []
    for layers in (2, 4):
        config = replace(VARIANTS["llama"], layers=layers)
        model = build(config, seed=1, device=torch.device("cuda"))
        model = model.bfloat16() if precision == "bf16" else model
        engine = Engine(model, slots=1)
        with torch.autocast("cuda", torch.bfloat16) if precision == "autocast" else nullcontext():
            engine.generate([[1, 2, 3]], settings(top_k=10), seed=0)
        step = engine._step
        assert step is not None
        ((tape, _),) = step._recorded.values()
        counts.append(sum(starts_a_kernel(*call) for call in tape.calls))  # type: ignore[attr-defined]
    assert counts[1] - counts[0] <= 2 * most


def starts_a_kernel(function: Any, given: Any, more: Any, made: list[torch.Tensor]) -> bool:
    """Whether it writes, or makes something that is no view of what it is given."""
    held = {x.untyped_storage()._cdata for x in tree_leaves((given, more)) if isinstance(x, torch.Tensor)}
    return function._schema.is_mutable or not {x.untyped_storage()._cdata for x in made} <= held
