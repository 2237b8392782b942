"""GGUF files, written here by hand in llama.cpp's order of rows and under its names, become the model they were."""

import math
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model.huggingface.families import CONFIGS, LLAMA, made
from torch import Tensor

from lifecycle.errors import UserError
from lifecycle.model import Decoder, ModelConfig, RopeScaling
from lifecycle.model.huggingface import load_pretrained, read_config
from lifecycle.model.huggingface.gguf import tokenizer_gguf

INSIDE = {
    "attention_norm.weight": "attn_norm.weight",
    "ffn_norm.weight": "ffn_norm.weight",
    "attention.q_norm.weight": "attn_q_norm.weight",
    "attention.k_norm.weight": "attn_k_norm.weight",
    "attention.o_proj.weight": "attn_output.weight",
    "ffn.router.weight": "ffn_gate_inp.weight",
    "ffn.shared_gate.weight": "ffn_gate_inp_shexp.weight",
    **{f"attention.{x}_proj.{kind}": f"attn_{x}.{kind}" for x in "qkv" for kind in ("weight", "bias")},
    **{f"ffn.{x}_proj.weight": f"ffn_{x}.weight" for x in ("gate", "up", "down")},
    **{f"ffn.experts.{x}_proj": f"ffn_{x}_exps.weight" for x in ("gate", "up", "down")},
    **{f"ffn.shared.{x}_proj.weight": f"ffn_{x}_shexp.weight" for x in ("gate", "up", "down")},
}
OUTSIDE = {"embedding.weight": "token_embd.weight", "norm.weight": "output_norm.weight", "head.weight": "output.weight"}


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def entry(key: str, value: Any) -> bytes:
    if isinstance(value, str):
        return text(key) + struct.pack("<I", 8) + text(value)
    if isinstance(value, list):
        kind, packed = (
            (8, b"".join(map(text, value)))
            if isinstance(value[0], str)
            else (5, struct.pack(f"<{len(value)}i", *value))
        )
        return text(key) + struct.pack("<IIQ", 9, kind, len(value)) + packed
    return text(key) + (struct.pack("<If", 6, value) if isinstance(value, float) else struct.pack("<II", 4, value))


def write_gguf(path: Path, head: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Version 3, every tensor in fp32."""
    table, data = b"", b""
    for name, tensor in tensors.items():
        dims = tuple(reversed(tensor.shape))
        table += text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, 0, len(data))
        data += tensor.contiguous().numpy().tobytes()
        data += b"\0" * (-len(data) % 32)
    start = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(head)) + b"".join(entry(*item) for item in head.items())
    start += table
    path.write_bytes(start + b"\0" * (-len(start) % 32) + data)


def head_of(config: ModelConfig, arch: str) -> dict[str, Any]:
    said: dict[str, Any] = {
        "embedding_length": config.width,
        "block_count": config.layers,
        "feed_forward_length": config.ffn_width,
        "attention.head_count": config.heads,
        "attention.head_count_kv": config.kv_heads,
        "attention.key_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "context_length": config.max_positions,
        "rope.freq_base": config.rope_theta,
    }
    if config.moe is not None:
        said |= {"expert_count": config.moe.experts, "expert_used_count": config.moe.active}
        said |= {"expert_feed_forward_length": config.moe.ffn_width}
        said |= {"expert_shared_feed_forward_length": config.moe.shared_width}
    return {"general.architecture": arch, **{f"{arch}.{key}": value for key, value in said.items()}}


def tensors_of(model: Decoder, arch: str) -> dict[str, Tensor]:
    out = {}
    for name, value in model.state_dict().items():
        if name in OUTSIDE:
            out[OUTSIDE[name]] = value
            continue
        _, layer, inner = name.split(".", 2)
        if arch == "llama" and inner in ("attention.q_proj.weight", "attention.k_proj.weight"):
            heads = model.config.heads if "q_proj" in inner else model.config.kv_heads
            value = value.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(value.shape)
        out[f"blk.{layer}.{INSIDE[inner]}"] = value[0] if inner == "ffn.shared_gate.weight" else value
    return out


MOE = {"first_dense": 0, "balance": 0.0}
CASES: dict[str, ModelConfig] = {
    "llama": replace(LLAMA, tied_head=True),
    "llama mixtral": replace(CONFIGS["mixtral"], sliding_window=None),
    "qwen2": replace(CONFIGS["qwen2"], head_dim=8),
    "qwen3": CONFIGS["qwen3"],
    "qwen2moe": replace(CONFIGS["qwen2_moe"], moe=replace(CONFIGS["qwen2_moe"].moe, **MOE)),  # type: ignore[type-var]
    "qwen3moe": replace(CONFIGS["qwen3_moe"], moe=replace(CONFIGS["qwen3_moe"].moe, **MOE)),  # type: ignore[type-var]
}


@pytest.mark.parametrize("case", CASES)
def test_a_file_becomes_the_model_that_it_was(case: str, tmp_path: Path) -> None:
    config, arch = replace(CASES[case], init_std=0.02), case.split()[0]
    model = made(config)
    write_gguf(tmp_path / "model.gguf", head_of(config, arch), tensors_of(model, arch))
    for place in (tmp_path, tmp_path / "model.gguf"):
        assert read_config(place) == config
        weights = load_pretrained(place)[1]
        assert weights.keys() == model.state_dict().keys()
        for name, value in model.state_dict().items():
            assert torch.equal(weights[name], value), name


def test_divisors_of_the_angles_are_llama_3s_or_refused(tmp_path: Path) -> None:
    stretched = RopeScaling(kind="llama3", factor=8.0, original_positions=8192)
    config = replace(LLAMA, init_std=0.02, rope_scaling=stretched)
    divisors = []
    for i in range(config.head_dim // 2):
        wave = 2 * math.pi * config.rope_theta ** (2 * i / config.head_dim)
        smooth = min(max((8192 / wave - 1) / 3, 0.0), 1.0)
        divisors.append(1 / ((1 - smooth) / 8 + smooth))
    tensors = tensors_of(made(config), "llama") | {"rope_freqs.weight": torch.tensor(divisors)}
    write_gguf(tmp_path / "model.gguf", head_of(config, "llama"), tensors)
    assert load_pretrained(tmp_path)[0] == config
    tensors["rope_freqs.weight"][0] = 3.0
    write_gguf(tmp_path / "model.gguf", head_of(config, "llama"), tensors)
    with pytest.raises(UserError, match="divisors of the rotary angles"):
        read_config(tmp_path)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    write_gguf(file, head_of(LLAMA, "deepseek2"), tensors_of(made(LLAMA), "qwen3"))
    with pytest.raises(UserError, match="'deepseek2'; read are llama, qwen2, qwen3, qwen2moe, qwen3moe"):
        read_config(tmp_path)
    file.write_bytes(b"GGUF\x03")
    with pytest.raises(UserError, match=r"model.gguf cannot be read as GGUF"):
        read_config(tmp_path)
    (tmp_path / "other.gguf").write_bytes(b"")
    with pytest.raises(UserError, match=r"holds several GGUF files \(model.gguf, other.gguf\); name one of them"):
        load_pretrained(tmp_path)


def test_the_tokenizer_comes_along(tmp_path: Path) -> None:
    letters = [*"abcdefgh", "Ġ", "ab", "<|end|>"]
    head = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": letters,
        "tokenizer.ggml.token_type": [1] * 10 + [3],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.eos_token_id": 10,
        "tokenizer.chat_template": "{{ messages[0]['content'] }}",
    }
    write_gguf(tmp_path / "model.gguf", head_of(LLAMA, "qwen2") | head, tensors_of(made(LLAMA), "qwen2"))
    tokenizer = tokenizer_gguf(tmp_path / "model.gguf")
    assert tokenizer("abc d")["input_ids"] == [9, 2, 8, 3]
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|end|>", 10)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False) == "ab"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda content: content[:-4], "is cut short"),
        (lambda content: content[: len(content) // 2], "is cut short"),
        (lambda content: content[:100], "cannot be read as GGUF"),
        (lambda content: content[:10], "cannot be read as GGUF"),
        (lambda content: b"", "is empty"),
        (lambda content: b"GGML" + content[4:], "does not start with the GGUF magic"),
        (lambda content: content[:4] + struct.pack("<I", 9) + content[8:], "GGUF v9"),
        (lambda content: b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        (lambda content: content.replace(b"token_embd.weight", b"token_embd.wright"), "holds no token_embd.weight"),
    ],
)
def test_a_file_that_is_not_whole_is_refused_at_once(
    damage: Callable[[bytes], bytes], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    model = made(LLAMA)
    write_gguf(path, head_of(model.config, "llama"), tensors_of(model, "llama"))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=said) as caught:
        read_config(path)
    assert str(path) in str(caught.value)


def test_one_of_several_parts_is_named(tmp_path: Path) -> None:
    model = made(LLAMA)
    head = head_of(model.config, "llama") | {"split.count": 3}
    write_gguf(tmp_path / "a.gguf", head, tensors_of(model, "llama"))
    with pytest.raises(UserError, match="is one of 3 parts; join them"):
        read_config(tmp_path)
