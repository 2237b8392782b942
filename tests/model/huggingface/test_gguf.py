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


YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 16}
YARN_READ = RopeScaling(kind="yarn", factor=4.0, original_positions=16)


def in_a_file(folder: Path, arch: str, config: ModelConfig, **more: Any) -> None:
    """A file of this model, with more keys of its architecture."""
    head = head_of(config, arch) | {f"{arch}.{key}": value for key, value in more.items()}
    write_gguf(folder / "model.gguf", head, tensors_of(made(config), arch))


@pytest.mark.parametrize(
    ("said", "scaling"),
    [
        ({"rope.scaling.factor": 4.0}, RopeScaling(kind="linear", factor=4.0)),  # llama.cpp's type where none is named
        ({"rope.scale_linear": 4.0}, RopeScaling(kind="linear", factor=4.0)),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 1.0}, None),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, None),
        (YARN, YARN_READ),
        (
            YARN | {"rope.scaling.yarn_beta_fast": 8.0, "rope.scaling.yarn_beta_slow": 2.0},
            replace(YARN_READ, beta_fast=8.0, beta_slow=2.0),
        ),
        (YARN | {"rope.scaling.yarn_ext_factor": 1.0, "rope.scaling.yarn_attn_factor": 1.0}, YARN_READ),
        (YARN | {"rope.scaling.yarn_attn_factor": 0.1 * math.log(4) + 1}, YARN_READ),
        (
            {"rope.scaling.attn_factor": 1.0, "rope.dimension_count": 10, "attention.scale": 10**-0.5}
            | {"logit_scale": 1.0, "rope.scaling.yarn_ext_factor": -1.0},
            None,
        ),
    ],
)
def test_a_stretch_is_what_llama_cpp_makes_of_the_head(
    said: dict[str, Any], scaling: RopeScaling | None, tmp_path: Path
) -> None:
    in_a_file(tmp_path, "llama", LLAMA, **said)
    assert read_config(tmp_path) == replace(LLAMA, init_std=0.02, rope_scaling=scaling)


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        (YARN | {"rope.scaling.yarn_attn_factor": 2.0}, "llama.rope.scaling.yarn_attn_factor is 2.0; only 1.0 is"),
        (YARN | {"rope.scaling.attn_factor": 2.0}, "llama.rope.scaling.attn_factor is 2.0; only 1.0 is built"),
        (YARN | {"rope.scaling.yarn_ext_factor": 0.5}, "llama.rope.scaling.yarn_ext_factor is 0.5; only 1.0 is built"),
        ({"rope.scaling.type": "longrope"}, "llama.rope.scaling.type is 'longrope'; 'none', 'linear' and 'yarn' are"),
        ({"rope.dimension_count": 4}, "llama.rope.dimension_count is 4; only 10 is built"),
        ({"attention.scale": 0.5}, "llama.attention.scale is 0.5; only 0.3162"),
        ({"logit_scale": 2.0}, "llama.logit_scale is 2.0; only 1.0 is built"),
        ({"attn_logit_softcapping": 5.0}, "llama.attn_logit_softcapping is 5.0; only 0.0 is built"),
        ({"attention.head_count_kv": [1, 2, 2]}, r"llama.attention.head_count_kv is \[1, 2, 2\]; one number for all"),
        ({"rope.scaling.factor": "4"}, "llama.rope.scaling.factor is '4'; one number"),
    ],
)
def test_a_key_that_makes_another_network_is_refused(said: dict[str, Any], fault: str, tmp_path: Path) -> None:
    in_a_file(tmp_path, "llama", LLAMA, **said)
    with pytest.raises(UserError, match=fault) as caught:
        read_config(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "model.gguf"))


def test_a_window_makes_llama_a_mistral_and_is_in_every_block(tmp_path: Path) -> None:
    for arch, name in (("llama", "mistral"), ("qwen2", "qwen2_sliding"), ("qwen3", "qwen3_sliding")):
        config = replace(CONFIGS[name], init_std=0.02, head_dim=8, sliding_from=0)
        in_a_file(tmp_path, arch, config, **{"attention.sliding_window": config.sliding_window})
        assert read_config(tmp_path) == config


def test_what_is_absent_has_llama_cpps_default(tmp_path: Path) -> None:
    config = replace(LLAMA, init_std=0.02, kv_heads=4, head_dim=8, rope_theta=1e4)
    head = head_of(config, "llama")
    for key in ("attention.head_count_kv", "attention.key_length", "rope.freq_base"):
        del head[f"llama.{key}"]
    write_gguf(tmp_path / "model.gguf", head, tensors_of(made(config), "llama"))
    assert load_pretrained(tmp_path)[0] == config
    del head["llama.attention.head_count"]
    write_gguf(tmp_path / "model.gguf", head, tensors_of(made(config), "llama"))
    with pytest.raises(UserError, match=r"model.gguf holds no llama.attention.head_count; get it again"):
        read_config(tmp_path)


def test_a_softcap_of_the_logits_is_read(tmp_path: Path) -> None:
    in_a_file(tmp_path, "llama", LLAMA, final_logit_softcapping=30.0)
    assert read_config(tmp_path).logit_softcap == 30.0


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
