"""Tokens a second of whole calls (prefill included) at several batches, ours and transformers', top-k 40.

`kind`: "moe", the model at half its depth with 64 experts, of which a token visits as much as its feed-forward part
was; "latent", with latent attention of half its width, of 512 at most.

`first_s` is the first call of an engine, which records `graphs` CUDA graphs: what a new engine costs in each step of
reinforcement learning is `first_s` less `second_s`.

`of_floor`: the least time that a decode step can take, the bytes of its weights (of experts those that so many rows can
visit) and of the cache that it reads over the bandwidth of a copy on this device, as a share of the time that it took.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_sizes import Sizes, timed
from lifecycle.model import Cache, Decoder, Latent, ModelConfig, MoE
from lifecycle.model.layers.moe import MoEFeedForward

TOP_K = 40
SHORT = 24
"""New tokens of a call that is profiled."""


def ours(sizes: Sizes, compiled: bool = False, kind: str | None = None) -> Iterator[dict[str, Any]]:
    """compiled: the decode step, at the smaller half of the batches. kind: see the top of the file; batches alone."""
    from lifecycle.model import build
    from lifecycle.rollout import Engine, Sampling

    speed = bandwidth(sizes)
    yield {"bandwidth_gb_s": round(speed / 1e9)}
    model = build(config_of(sizes, kind), seed=1, device=sizes.device).bfloat16().eval()
    prompts, samples, long = sizes.group
    cases = [(f"{batch}", batch, 1, sizes.new) for batch in sizes.batches]
    if compiled:
        cases = cases[: len(cases) // 2]
    elif kind is None:
        cases.append((f"{prompts}x{samples}x{long}", prompts, samples, long))
    for name, count, each, new in cases:
        engine = Engine(model, slots=count * each, compiled=compiled)
        asked = random_prompts(sizes, count).tolist()
        sampling = Sampling(max_new_tokens=new, top_k=TOP_K, samples=each)

        def call(engine: Engine = engine, asked: Any = asked, sampling: Sampling = sampling) -> None:
            engine.generate(asked, sampling, seed=0)

        first, seconds = timed(sizes, call), timed(sizes, call)
        rows = count * each
        cache = rows * (sizes.prompt + new / 2) * Cache.position_bytes(model.config, torch.bfloat16)
        floor = (_bytes_read(model, rows) + cache) / speed
        rate = {"tokens_per_s": round(count * each * new / seconds), "of_floor": round(floor * new / seconds, 3)}
        graphs = len(engine._step._recorded) if engine._step is not None and engine.graphs else 0
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


def config_of(sizes: Sizes, kind: str | None) -> ModelConfig:
    """The model's, or that of another kind made of it."""
    config = sizes.config()
    if kind == "moe":
        moe = MoE(experts=64, active=8, ffn_width=config.ffn_width // 8)
        return replace(config, family="qwen3_moe", qk_norm=True, layers=max(1, config.layers // 2), moe=moe)
    if kind == "latent":
        head = config.head_dim
        latent = Latent(kv_rank=min(512, config.width // 2), nope_dim=head, rope_dim=head // 2, v_dim=head)
        wider = replace(config, kv_heads=config.heads, head_dim=head + head // 2)
        return replace(wider, family="deepseek_v3", latent=latent)
    return config


def _bytes_read(model: Decoder, rows: int) -> float:
    """Of the weights, in a step of so many rows."""
    sizes, moe = {name: p.numel() * p.element_size() for name, p in model.named_parameters()}, model.config.moe
    visited = 1.0 if moe is None else min(1.0, rows * moe.active / moe.experts)
    return sum(size * (visited if ".experts." in name else 1) for name, size in sizes.items())


def experts(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Microseconds of one block's experts in bf16 as a recorded graph, by our own kernels and by torch's grouped
    products, and their largest difference. On a CPU only torch's, not recorded."""
    config = config_of(sizes, "moe")
    assert config.moe is not None
    ffn = MoEFeedForward(config.moe, width=config.width, bias=False).to(sizes.device)
    torch.manual_seed(0)
    for weight in ffn.parameters():
        torch.nn.init.normal_(weight, std=config.init_std)
    ffn.experts.bfloat16()
    on_gpu = sizes.device.type == "cuda"
    for rows in sizes.batches:
        x = torch.randn(rows, 1, config.width, device=sizes.device).bfloat16()
        ways = {"grouped_us": _by_torch(ffn, x)}
        if on_gpu:
            ways = {"kernels_us": _by_kernels(ffn, x[:, 0]), **ways}
        outs, facts = {}, dict[str, float]()
        for name, way in ways.items():
            with torch.inference_mode():
                outs[name] = way()
                facts[name] = round(_graph_us(sizes, way) if on_gpu else timed(sizes, way) * 1e6, 1)
        if on_gpu:
            facts["difference"] = float((outs["kernels_us"] - outs["grouped_us"]).abs().max())
        yield {f"{rows}": facts}


def _by_torch(ffn: MoEFeedForward, x_B1D: Tensor) -> Callable[[], Tensor]:
    return lambda: ffn(x_B1D)[0][:, 0]


def _by_kernels(ffn: MoEFeedForward, x_BD: Tensor) -> Callable[[], Tensor]:
    from lifecycle.model.layers.norm_swiglu import RMSNorm
    from lifecycle.rollout.decoder.gpu.experts import ExpertsOnGPU
    from lifecycle.rollout.decoder.gpu.norm_gate import add_norm
    from lifecycle.rollout.decoder.joined_matrices import JoinedExperts

    kernels, norm = ExpertsOnGPU(JoinedExperts(ffn, rows=None)), RMSNorm(x_BD.shape[1], eps=1e-6).to(x_BD.device)
    chosen = torch.zeros(len(x_BD), ffn.moe.active, dtype=torch.long, device=x_BD.device)
    nothing = torch.zeros_like(x_BD)

    def way() -> Tensor:
        added, visits = kernels(x_BD, chosen)
        return add_norm(nothing, added, norm, visits)[0]

    return way


def _graph_us(sizes: Sizes, way: Callable[[], Tensor], calls: int = 50) -> float:
    sizes.wait()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        way()
    graph.replay()

    def replays() -> None:
        for _ in range(calls):
            graph.replay()

    return timed(sizes, replays) / calls * 1e6
