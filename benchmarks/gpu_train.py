"""Optimizer steps of one model on packed rows, ours and transformers', with what the time goes to.

`shares`: of a step's time, by a profile. Head and optimizer are profiled alone as well; what is left of the step's
products and of its pointwise kernels is that of the blocks. `idle`: no kernel ran. MFU counts dense peak FLOP/s.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parametrize
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_sizes import Sizes, timed
from lifecycle.batch import TokenBatch
from lifecycle.hardware.device_specs import peak_flops
from lifecycle.losses import linear_cross_entropy
from lifecycle.model import DocumentMask, best_kernel, build, compile_model, count_pieces
from lifecycle.model.layers.gpu.fp8 import Recipe, use_fp8
from lifecycle.optim import AdamW, clip_gradients

ATTENTION = ("flash", "fmha", "attention", "sdpa", "softmax_warp")
PRODUCTS = ("gemm", "nvjet", "cutlass", "matmul", "aten::mm", "aten::addmm", "aten::bmm", "mkldnn", "linear")
WARM = 2


def ours(sizes: Sizes, size: int, kernel: str, compiled: bool, fp8: Recipe | None = None) -> Iterator[dict[str, Any]]:
    """Micro-batches of `sizes.micro[size]` positions. On a CPU every kernel is sdpa, and nothing is compiled."""
    on_gpu = sizes.device.type == "cuda"
    if kernel == "flash" and on_gpu and importlib.util.find_spec("flash_attn") is None:
        yield {"skipped": "flash_attn is not installed"}
        return
    if fp8 is not None and importlib.util.find_spec("torchao") is None:
        yield {"skipped": "torchao is not installed"}
        return
    chosen: Any = best_kernel(sizes.device, torch.bfloat16) if kernel == "auto" or not on_gpu else kernel
    compiled = compiled and on_gpu
    yield {"kernel": chosen, "compiled": compiled}
    model = build(sizes.config(), seed=1, device=sizes.device)
    if fp8 is not None:
        use_fp8(model, fp8)
    if compiled:
        compile_model(model, unit="model")
    batch = packed(sizes, sizes.micro[size])
    pieces = count_pieces(batch.document_ids)
    batch = batch.to(sizes.device)

    def hidden() -> Tensor:
        documents = DocumentMask.from_ids(batch.document_ids, kernel=chosen, pieces=pieces)
        out: Tensor = model(batch.input_ids, batch.position_ids, documents)
        return out

    def head(hidden_BTD: Tensor) -> Tensor:
        flat, labels = hidden_BTD.flatten(0, 1), batch.labels.flatten()
        return linear_cross_entropy(flat, model.head_weight, labels, compiled=compiled)[0] / labels.numel()

    yield from measured(sizes, model, sizes.micro[size], hidden, head)


def transformers(sizes: Sizes, size: int) -> Iterator[dict[str, Any]]:
    """Their model of the same shape, compiled on a GPU, on rows of one document each."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from lifecycle.model.huggingface.config_json import to_hf_config

    hf_config = to_hf_config(sizes.config())
    torch.manual_seed(0)
    with sizes.device:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**hf_config | {"use_cache": False}))
    _experts_in_bf16(model)
    run = torch.compile(model) if sizes.device.type == "cuda" else model
    batch = packed(sizes, sizes.micro[size]).to(sizes.device)

    def hidden() -> Tensor:
        out: Tensor = run(input_ids=batch.input_ids, labels=batch.input_ids).loss
        return out

    yield from measured(sizes, model, sizes.micro[size], hidden, lambda loss: loss, whole=True)


class _InBf16(torch.nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.bfloat16()


def _experts_in_bf16(model: torch.nn.Module) -> None:
    """What autocast does for linear layers: transformers' grouped products of experts run on bf16 weights alone."""
    for name, module in list(model.named_modules()):
        if name.endswith(".experts"):
            for own, _ in list(module.named_parameters(recurse=False)):
                parametrize.register_parametrization(module, own, _InBf16(), unsafe=True)  # another type is no fault


def measured(
    sizes: Sizes,
    model: torch.nn.Module,
    micro: int,
    hidden: Callable[[], Tensor],
    head: Callable[[Tensor], Tensor],
    *,
    whole: bool = False,
) -> Iterator[dict[str, Any]]:
    """Rate and memory, then the shares. whole: what `hidden` gives is the loss, so that no head stands alone."""
    spec = AdamW(lr=1e-4, embedding_lr=None, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8, grad_clip=1.0)
    optimizer = spec.build(model)
    count = max(sizes.step // micro, 1)

    def part() -> None:
        with torch.autocast(sizes.device.type, torch.bfloat16):
            loss = head(hidden())
        loss.backward()

    def update() -> None:
        clip_gradients(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch.clear_autocast_cache()

    def step() -> None:
        for _ in range(count):
            part()
        update()

    started = time.perf_counter()
    for _ in range(WARM):
        part()
        update()
    sizes.wait()
    yield {"warm_up_s": round(time.perf_counter() - started, 1)}
    seconds = min(timed(sizes, step) for _ in range(sizes.steps))
    yield rate(sizes, count * micro / seconds)
    parts = {"micro": spent(sizes, part), "optimizer": spent(sizes, update, before=part)}
    if not whole:
        parts["head"] = spent(sizes, lambda: _head_alone(sizes, head, micro))
    yield {"shares": shares(parts, count)}


def rate(sizes: Sizes, tokens_per_s: float) -> dict[str, Any]:
    found: dict[str, Any] = {"tokens_per_s": round(tokens_per_s)}
    if sizes.device.type != "cuda":
        return found
    found["memory_gb"] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
    peak = peak_flops(torch.cuda.get_device_name(), torch.bfloat16)
    if peak:
        found["mfu"] = round(tokens_per_s * sizes.config().flops_per_token(sizes.row) / peak, 4)
    return found


def _head_alone(sizes: Sizes, head: Callable[[Tensor], Tensor], micro: int) -> None:
    shape = (micro // sizes.row, sizes.row, sizes.config().width)
    given = torch.randn(shape, device=sizes.device, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast(sizes.device.type, torch.bfloat16):
        loss = head(given)
    loss.backward()


def spent(sizes: Sizes, function: Callable[[], None], *, before: Callable[[], None] = lambda: None) -> dict[str, float]:
    """Milliseconds of one call by kind of kernel, and `wall` without the profiler; `before` each call, untimed."""
    on_gpu = sizes.device.type == "cuda"
    before()
    found = {"wall": timed(sizes, function) * 1e3, "attention": 0.0, "products": 0.0, "pointwise": 0.0}
    before()
    sizes.wait()
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU], acc_events=True) as profiler:
        function()
        sizes.wait()
    for event in profiler.key_averages():
        taken = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        found[kind_of(event.key)] += taken / 1e3
    return found


def kind_of(name: str) -> str:
    """Of a kernel, by its name."""
    lower = name.lower()
    if any(word in lower for word in ATTENTION):
        return "attention"
    return "products" if any(word in lower for word in PRODUCTS) else "pointwise"


def shares(parts: dict[str, dict[str, float]], count: int) -> dict[str, float]:
    """Of a step of `count` micro-batches."""
    micro, optimizer, head = parts["micro"], parts["optimizer"], parts.get("head", {})
    busy = ("attention", "products", "pointwise")
    found = {kind: count * (micro[kind] - head.get(kind, 0.0)) for kind in busy}
    found["head"] = count * sum(head.get(kind, 0.0) for kind in busy)
    found["optimizer"] = sum(optimizer[kind] for kind in busy)
    wall = max(count * micro["wall"] + optimizer["wall"], sum(found.values()))
    found["idle"] = wall - sum(found.values())
    return {kind: round(max(taken, 0.0) / wall, 3) for kind, taken in found.items()}


def packed(sizes: Sizes, positions: int) -> TokenBatch:
    """Random rows, each of documents of random lengths."""
    generator = torch.Generator().manual_seed(0)
    rows, T = positions // sizes.row, sizes.row
    starts = torch.rand(rows, T, generator=generator) < 4 / T
    starts[:, 0] = True
    first = torch.where(starts, torch.arange(T), 0).cummax(1).values
    ids = torch.randint(3, sizes.config().vocab, (rows, T + 1), generator=generator)
    return TokenBatch.of(
        {
            "input_ids": ids[:, :-1],
            "labels": ids[:, 1:],
            "position_ids": torch.arange(T) - first,
            "document_ids": starts.long().cumsum(1),
            "source_ids": torch.zeros(rows, T, dtype=torch.long),
        }
    )
