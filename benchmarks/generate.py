"""Sampling speed of one model (8 x 384, 17.3M parameters, vocabulary 8,192): 64-token prompts, 128 new ones, top-k 40.

    python -m benchmarks.generate --peers-python PATH

*_fp32, *_bf16       16 prompts, one completion each
*_group_fp32         4 prompts, 8 completions each
ours_*, hf_*, litgpt_*  this engine; `generate` of transformers with its dynamic and its static cache; LitGPT, batched
floor                what a decode step cannot go below: bytes of weights and of the cache it reads over the measured
                     bandwidth, and its products over the measured rate of large products

`tokens_per_s` over whole calls, prefill included; `first_token_s` is a call for one token. The peers come from the
environment of `--peers-python`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import main, peak_mb, spread
from benchmarks.reference import MODEL, VOCABULARY, hf_config, litgpt_model, our_config

PROMPTS, LENGTH, NEW, TOP_K = 16, 64, 128, 40
GROUPS, SAMPLES = 4, 8
VARIANTS = {
    "ours_fp32": "ours",
    "hf_static_fp32": "peers",
    "hf_dynamic_fp32": "peers",
    "litgpt_batched_fp32": "peers",
    "ours_compile_fp32": "ours",
    "ours_bf16": "ours",
    "hf_static_bf16": "peers",
    "hf_dynamic_bf16": "peers",
    "litgpt_batched_bf16": "peers",
    "ours_group_fp32": "ours",
    "hf_static_group_fp32": "peers",
    "hf_dynamic_group_fp32": "peers",
    "floor": "ours",
}


def prompts(count: int) -> Tensor:
    return torch.randint(3, VOCABULARY, (count, LENGTH), generator=torch.Generator().manual_seed(1))


def ours(name: str, runs: int) -> dict[str, Any]:
    from lifecycle.model import build
    from lifecycle.rollout import Engine, Sampling

    model = build(our_config(max_positions=2048, norm_eps=1e-6), seed=0)
    if name.endswith("bf16"):
        model.bfloat16()
    grouped = "group" in name
    count, samples = (GROUPS, SAMPLES) if grouped else (PROMPTS, 1)
    asked = prompts(count).tolist()
    engine = Engine(model, slots=count * samples, compiled="compile" in name)

    def once(new: int) -> int:
        sampling = Sampling(max_new_tokens=new, top_k=TOP_K, samples=samples)
        return int(engine.generate(asked, sampling, seed=0).length.sum())

    return timed(once, runs)


def hf(name: str, runs: int) -> dict[str, Any]:
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(hf_config(bos_token_id=0, eos_token_id=1, pad_token_id=2)).eval()
    if name.endswith("bf16"):
        model = model.bfloat16()
    samples = SAMPLES if "group" in name else 1
    asked = prompts(GROUPS if "group" in name else PROMPTS)
    options: dict[str, Any] = {"do_sample": True, "top_k": TOP_K, "top_p": 1.0, "num_return_sequences": samples}
    if name.startswith("static"):
        options |= {"cache_implementation": "static", "disable_compile": True}

    @torch.inference_mode()
    def once(new: int) -> int:
        mask = torch.ones_like(asked)
        out = model.generate(input_ids=asked, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, **options)
        return int(out.shape[0]) * (int(out.shape[1]) - LENGTH)

    return timed(once, runs)


def litgpt(name: str, runs: int) -> dict[str, Any]:
    from litgpt.generate.base import batched_generate_fn

    model = litgpt_model(block_size=LENGTH + NEW, norm_eps=1e-6).eval()
    if name.endswith("bf16"):
        model = model.bfloat16()
    asked, sample = prompts(PROMPTS), {"temperature": 1.0, "top_k": TOP_K, "top_p": 1.0}

    @torch.inference_mode()
    def once(new: int) -> int:
        model.clear_kv_cache()
        model.set_kv_cache(batch_size=PROMPTS)
        steps = batched_generate_fn(
            *(model, asked),
            max_returned_tokens=LENGTH + new,
            sample_args=sample,
            include_prompt=False,
            include_eos=True,
        )
        return sum(token is not None for step in steps for token in step)

    return timed(once, runs)


def timed(once: Callable[[int], int], runs: int) -> dict[str, Any]:
    """Rates of whole calls after one untimed call, and the time to the first token."""
    started = time.perf_counter()
    once(NEW)
    first_call = time.perf_counter() - started
    firsts, rates, made = [], [], 0
    for _ in range(runs):
        started = time.perf_counter()
        once(1)
        firsts.append(time.perf_counter() - started)
        started = time.perf_counter()
        made = once(NEW)
        rates.append(made / (time.perf_counter() - started))
    return {
        "tokens_per_s": spread(rates),
        "new_tokens": made,
        "first_token_s": spread(firsts, 3),
        "first_call_s": round(first_call, 2),
        "peak_rss_mb": round(peak_mb()),
    }


def floor(_: str, runs: int) -> dict[str, Any]:
    """Milliseconds that a step of 16 and of 32 rows takes at least, in fp32."""
    large, product = torch.randn(50_000_000), torch.randn(2048, 2048)
    bandwidth = max(large.numel() * 4 / seconds(lambda: large.sum()) for _ in range(runs + 1))
    rate = max(2 * 2048**3 / seconds(lambda: product @ product) for _ in range(runs + 1))
    layers, width, ffn = MODEL["layers"], MODEL["width"], MODEL["ffn_width"]
    parameters = layers * (4 * width**2 + 3 * width * ffn) + VOCABULARY * width
    found: dict[str, Any] = {"bandwidth_gb_s": round(bandwidth / 1e9, 1), "matmul_gflop_s": round(rate / 1e9)}
    for rows in (PROMPTS, GROUPS * SAMPLES):
        cache = rows * (LENGTH + NEW / 2) * 2 * layers * width * 4
        found[f"{rows}_rows"] = {
            "weights_ms": round(4 * parameters / bandwidth * 1e3, 2),
            "cache_ms": round(cache / bandwidth * 1e3, 2),
            "products_ms": round(2 * parameters * rows / rate * 1e3, 2),
        }
    return found


def seconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def measure(variant: str, runs: int) -> dict[str, Any]:
    torch.set_num_threads(int(os.environ.get("BENCHMARK_THREADS", os.cpu_count() or 1)))
    kind, _, name = variant.partition("_")
    return {"ours": ours, "hf": hf, "litgpt": litgpt, "floor": floor}[kind](name, runs)


if __name__ == "__main__":
    main("benchmarks.generate", VARIANTS, measure, __doc__ or "")
