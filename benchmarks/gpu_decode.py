"""Tokens a second of whole calls (prefill included) at several batches, ours and transformers', top-k 40.

`first_s` is the first call of an engine, which records `graphs` CUDA graphs: what a new engine costs in each step of
reinforcement learning is `first_s` less `second_s`.

`of_floor`: the least time that a decode step can take, the bytes of its weights and of the cache that it reads over the
bandwidth of a copy on this device, as a share of the time that it took.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_sizes import Sizes, timed

TOP_K = 40
SHORT = 24
"""New tokens of a call that is profiled."""


def ours(sizes: Sizes, compiled: bool = False) -> Iterator[dict[str, Any]]:
    """compiled: the decode step, at the smaller half of the batches."""
    from lifecycle.model import build
    from lifecycle.rollout import Engine, Sampling

    speed = bandwidth(sizes)
    yield {"bandwidth_gb_s": round(speed / 1e9)}
    model = build(sizes.config(), seed=1, device=sizes.device).bfloat16().eval()
    prompts, samples, long = sizes.group
    cases = [(f"{batch}", batch, 1, sizes.new) for batch in sizes.batches]
    cases = cases[: len(cases) // 2] if compiled else [*cases, (f"{prompts}x{samples}x{long}", prompts, samples, long)]
    for name, count, each, new in cases:
        engine = Engine(model, slots=count * each, compiled=compiled)
        asked = random_prompts(sizes, count).tolist()
        sampling = Sampling(max_new_tokens=new, top_k=TOP_K, samples=each)

        def call(engine: Engine = engine, asked: Any = asked, sampling: Sampling = sampling) -> None:
            engine.generate(asked, sampling, seed=0)

        first, seconds = timed(sizes, call), timed(sizes, call)
        cache = count * each * (sizes.prompt + new / 2) * _bytes_per_position(sizes)
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        floor = (weights + cache) / speed
        rate = {"tokens_per_s": round(count * each * new / seconds), "of_floor": round(floor * new / seconds, 3)}
        graphs = 0 if engine._step is None else len(engine._step._recorded)
        yield {name: {**rate, "first_s": round(first, 3), "second_s": round(seconds, 3), "graphs": graphs}}
        del engine


def shares(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Of a second call of `SHORT` tokens at the least and at the most rows: milliseconds, of these without any kernel
    (`idle`), and of the kernels that take most of them; kernels are counted."""
    from lifecycle.model import build
    from lifecycle.rollout import Engine, Sampling

    model = build(sizes.config(), seed=1, device=sizes.device).bfloat16().eval()
    on_gpu, sampling = sizes.device.type == "cuda", Sampling(max_new_tokens=min(SHORT, sizes.new), top_k=TOP_K)
    for batch in (sizes.batches[0], sizes.batches[-1]):
        engine, asked = Engine(model, slots=batch), random_prompts(sizes, batch).tolist()

        def call(engine: Engine = engine, asked: Any = asked) -> None:
            engine.generate(asked, sampling, seed=0)

        wall = after_a_first(sizes, call) * 1e3
        with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU], acc_events=True) as seen:
            call()
            sizes.wait()
        taken = Counter[str]()
        for event in seen.key_averages():
            taken[event.key[:60]] += (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e3
        facts = {"wall_ms": round(wall, 1), "idle_ms": round(max(0.0, wall - taken.total()), 1)}
        facts["kernels"] = sum(event.count for event in seen.key_averages())
        yield {f"{batch}": {**facts, **{name: round(ms, 1) for name, ms in taken.most_common(8)}}}


def transformers(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """`generate` with its default cache."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from lifecycle.model.huggingface.config_json import to_hf_config

    torch.manual_seed(0)
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    with sizes.device:
        model = LlamaForCausalLM(LlamaConfig(**to_hf_config(sizes.config()) | ends)).bfloat16().eval()
    for batch in sizes.hf_batches:
        asked = random_prompts(sizes, batch).to(sizes.device)
        options = {"do_sample": True, "top_k": TOP_K, "max_new_tokens": sizes.new, "min_new_tokens": sizes.new}

        def call(asked: Tensor = asked, options: dict[str, Any] = options) -> None:
            model.generate(asked, attention_mask=torch.ones_like(asked), **options)

        seconds = timed(sizes, call) if batch == sizes.hf_batches[-1] else after_a_first(sizes, call)
        yield {f"{batch}": {"tokens_per_s": round(batch * sizes.new / seconds)}}


def after_a_first(sizes: Sizes, call: Callable[[], None]) -> float:
    """Seconds of a second call: the first records graphs and sets libraries up."""
    call()
    return timed(sizes, call)


def bandwidth(sizes: Sizes) -> float:
    """Bytes read and written a second by a large copy."""
    large = torch.empty(2**30 if sizes.device.type == "cuda" else 2**24, dtype=torch.uint8, device=sizes.device)
    other = torch.empty_like(large)
    other.copy_(large)
    return max(2 * large.numel() / timed(sizes, lambda: other.copy_(large)) for _ in range(5))


def random_prompts(sizes: Sizes, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, sizes.config().vocab, (count, sizes.prompt), generator=generator)


def _bytes_per_position(sizes: Sizes) -> int:
    config = sizes.config()
    return 2 * 2 * config.layers * config.kv_heads * config.head_dim  # keys and values in bf16
