"""Training of models of other sizes, and of a mixture of experts of each family, beside compiled transformers' of the
same shape: the same optimizer, autocast to bf16, micro-batches and random tokens in one process, one after the other.

Theirs has rows of one document each, and balances no loads of experts. Its grouped products of experts take bf16 alone
and autocast passes them by, so their weights are rounded in every pass here, as ours are; else they would be in fp32.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import torch

from benchmarks.gpu_sizes import Sizes
from benchmarks.gpu_train import ours, transformers

MICRO = 0
"""Which of `Sizes.micro`: the logits of transformers' whole micro-batch must fit beside the rest."""

SOFTMAX = ("model.moe.score=softmax", "model.moe.bias_rate=0", "model.moe.balance=0")
SPARSE = ("model=minimind_145m_moe", "model.vocab_size=6400")
LATENT = ("model=deepseek_60m", "model.vocab_size=8192")
SHAPES: dict[str, tuple[str, ...]] = {
    "small": ("model=small", "model.vocab_size=50_304"),
    "minimind_26m": ("model=minimind_26m", "model.vocab_size=6400"),
    "glm4_moe": SPARSE,
    "qwen3_moe": (*SPARSE, *SOFTMAX, "model.family=qwen3_moe", "model.qk_norm=true", "model.moe.shared=0"),
    "qwen2_moe": (*SPARSE, *SOFTMAX, "model.family=qwen2_moe", "model.qkv_bias=true", "model.moe.shared_gate=true"),
    "mixtral": (*SPARSE, *SOFTMAX, "model.family=mixtral", "model.moe.shared=0"),
    "deepseek_v3": LATENT,
    "deepseek_v2": (*LATENT, *SOFTMAX, "model.family=deepseek_v2", "model.moe.normalise=false"),
    "medium": ("model=medium", "model.vocab_size=50_304"),
}
"""Overrides that choose each, the quickest to compile first."""

TOY = ("model.layers=2", "model.width=32", "model.heads=2", "model.ffn_width=64", "model.vocab_size=96")
TOY_SPARSE = ("model.moe.experts=4", "model.moe.active=2", "model.moe.ffn_width=32")
TOY_PLAIN = ("model.kv_heads=1", "model.head_dim=16")
TOY_RANKS = ("model.latent.kv_rank=16", "model.latent.nope_dim=8", "model.latent.rope_dim=8", "model.latent.v_dim=16")
TOY_LATENT = ("model.kv_heads=2", "model.head_dim=16", *TOY_RANKS)


def beside_transformers(sizes: Sizes, name: str) -> Iterator[dict[str, Any]]:
    """tokens_per_s, memory and MFU of ours, the same of theirs (hf_...), and ratio: ours to theirs."""
    sizes = replace(sizes, model=_chosen(sizes, name), step=4 * sizes.micro[MICRO])
    found: dict[str, Any] = {}
    for part in islice(ours(sizes, MICRO, "auto", True), 3):  # what it is, the warm-up, the rate
        found |= part
    yield found
    _forget(sizes)
    theirs: dict[str, Any] = {}
    for part in islice(transformers(sizes, MICRO), 2):
        theirs |= part
    ratio = round(found["tokens_per_s"] / theirs["tokens_per_s"], 3)
    yield {**{f"hf_{key}": value for key, value in theirs.items()}, "ratio": ratio}


def _chosen(sizes: Sizes, name: str) -> tuple[str, ...]:
    words = SHAPES[name]
    if sizes.device.type == "cuda":
        return words
    plain = TOY_LATENT if words[: len(LATENT)] == LATENT else TOY_PLAIN
    return (*words, *TOY, *plain, *(TOY_SPARSE if words[0] in (SPARSE[0], LATENT[0]) else ()))


def _forget(sizes: Sizes) -> None:
    """What was compiled and allocated."""
    torch.compiler.reset()
    gc.collect()
    if sizes.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
