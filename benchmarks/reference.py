"""The model that the speed benchmarks share, as ours, as `transformers` and as LitGPT build it: 17.3M parameters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

MODEL = {"layers": 8, "width": 384, "heads": 6, "kv_heads": 6, "head_dim": 64, "ffn_width": 1024}
VOCABULARY = 8192


def our_config(**changes: Any) -> Any:
    from lifecycle.model import ModelConfig

    other = {"max_positions": 1024, "rope_theta": 1e4, "norm_eps": 1e-5, "qk_norm": False, "init_std": 0.02}
    return ModelConfig(**{"family": "llama", **MODEL, "vocab_size": VOCABULARY, "tied_head": True, **other, **changes})


def hf_config(**changes: Any) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=MODEL["width"],
        intermediate_size=MODEL["ffn_width"],
        num_hidden_layers=MODEL["layers"],
        num_attention_heads=MODEL["heads"],
        num_key_value_heads=MODEL["kv_heads"],
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        **{"attn_implementation": "sdpa", **changes},
    )


def litgpt_model(**changes: Any) -> Any:
    from litgpt import GPT, Config

    config = Config(
        name="reference",
        vocab_size=VOCABULARY,
        padded_vocab_size=VOCABULARY,
        n_layer=MODEL["layers"],
        n_head=MODEL["heads"],
        n_query_groups=MODEL["kv_heads"],
        n_embd=MODEL["width"],
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
        intermediate_size=MODEL["ffn_width"],
        **changes,
    )
    torch.manual_seed(0)
    model = GPT(config)
    model.lm_head.weight = model.transformer.wte.weight  # no switch ties them there
    return model


def export_with_tokenizer(folder: Path, config: Any = None) -> tuple[list[str], Any]:
    """Write a model with fresh weights as a Hugging Face folder, with a tokenizer trained on Python's own
    documentation; the texts of that, and the tokenizer. Texts lie beside the folder. config: None is `our_config`; its
    vocabulary may be larger than the tokenizer's."""
    from lifecycle.data.read.files.builtin_text import materialise
    from lifecycle.model import build
    from lifecycle.model.huggingface import export
    from lifecycle.tokenizer.tokenizer import train_bpe

    lines = materialise("prose", folder.parent / "texts").read_text().splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    tokenizer = train_bpe(texts, vocab_size=VOCABULARY, digits=1)
    export(build(config or our_config(), seed=0), folder, tokenizer=tokenizer)
    return texts, tokenizer
