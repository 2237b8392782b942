"""Hugging Face in and out: the same model under the names and in the files of `transformers`.

    export(model, folder, tokenizer=tokenizer)        ->  AutoModelForCausalLM.from_pretrained(folder)
    config, weights = load_pretrained(folder)         ->  Decoder(config).load_state_dict(weights)

Ours and theirs hold the same matrices in the same layout, so the way out and back changes names only, no bits. Llama
(llama family) and Qwen3 (qwen3 family) are known.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lifecycle.errors import UserError
from lifecycle.model.config import ModelConfig
from lifecycle.model.decoder import Decoder

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}
"""Our family, which is their model_type, and their class."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

OUTSIDE = {"embedding.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight"}
HEAD = ("head.weight", "lm_head.weight")
INSIDE = {
    "attention_norm.weight": "input_layernorm.weight",
    "attention.q_proj.weight": "self_attn.q_proj.weight",
    "attention.k_proj.weight": "self_attn.k_proj.weight",
    "attention.v_proj.weight": "self_attn.v_proj.weight",
    "attention.o_proj.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn.gate_proj.weight": "mlp.gate_proj.weight",
    "ffn.up_proj.weight": "mlp.up_proj.weight",
    "ffn.down_proj.weight": "mlp.down_proj.weight",
}
INSIDE_QK_NORM = {
    "attention.q_norm.weight": "self_attn.q_norm.weight",
    "attention.k_norm.weight": "self_attn.k_norm.weight",
}

PLAIN = {
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
    "use_sliding_window": False,
    "attention_dropout": 0.0,
}
"""Keys of their configs that change the network, and the only values that ours has."""

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class TokenizerFiles(Protocol):
    """What an export asks of a tokenizer."""

    @property
    def bos_id(self) -> int: ...
    @property
    def eos_id(self) -> int: ...
    @property
    def pad_id(self) -> int: ...

    def save(self, folder: Path) -> None:
        """Write the files of `transformers` into a folder."""
        ...


# -- out


def names(config: ModelConfig) -> dict[str, str]:
    """Our name of every parameter -> theirs. A tied head is the embedding and has no name of its own."""
    inside = INSIDE | (INSIDE_QK_NORM if config.qk_norm else {})
    blocks = {
        f"blocks.{i}.{ours}": f"model.layers.{i}.{theirs}"
        for i in range(config.layers)
        for ours, theirs in inside.items()
    }
    return OUTSIDE | blocks | ({} if config.tied_head else dict([HEAD]))


def to_huggingface(model: Decoder) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Their config.json, as a mapping, and their state dict, which shares memory with the (unsharded) weights."""
    config, weights = model.config, model.state_dict()
    described = {
        "architectures": [ARCHITECTURES[config.family]],
        "model_type": config.family,
        "vocab_size": config.vocab,
        "hidden_size": config.width,
        "intermediate_size": config.ffn_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_positions,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        # where transformers 4, and what is built on it, looks; it would silently take its own default otherwise
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.norm_eps,
        "initializer_range": config.init_std,
        "tie_word_embeddings": config.tied_head,
        "dtype": "float32",
        **{key: value for key, value in PLAIN.items() if key != "use_sliding_window" or config.family == "qwen3"},
    }
    return described, {theirs: weights[ours] for ours, theirs in names(config).items()}


def export(model: Decoder, folder: Path, *, tokenizer: TokenizerFiles | None = None, dtype: str = "fp32") -> None:
    """Write `folder` for `AutoModelForCausalLM.from_pretrained`, and `AutoTokenizer` if a tokenizer is given.

    dtype of the weights: fp32 (exact), bf16 or fp16. Each file is written beside its place and renamed into it; the
    weights come last, so a folder that has them is whole. Errors: `UserError` for another dtype.
    """
    if dtype not in DTYPES:
        raise UserError(f"export.dtype is {dtype!r}; choose one of {', '.join(DTYPES)}")
    config, weights = to_huggingface(model)
    config["dtype"] = str(DTYPES[dtype]).removeprefix("torch.")
    generation: dict[str, Any] = {"do_sample": True}
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer is not None:
        tokenizer.save(folder)
        config |= {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
        # pad stands here only: in config.json it would freeze that row of the embedding, and pad is often eos
        generation |= {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
        generation["pad_token_id"] = tokenizer.pad_id
    for name, content in (("config.json", config), ("generation_config.json", generation)):
        _replace(folder / name, partial(_write_json, content=content))
    weights = {name: weight.detach().to("cpu", DTYPES[dtype]).contiguous() for name, weight in weights.items()}
    _replace(folder / SINGLE, partial(_write_weights, weights=weights))


def _write_json(path: Path, *, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_weights(path: Path, *, weights: dict[str, Tensor]) -> None:
    try:
        save_file(weights, path, metadata={"format": "pt"})
    except SafetensorError as error:  # a full disk, say: it hands the system's error on in words only
        path.unlink(missing_ok=True)
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """A reader sees the old file or the new one, never a part."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    write(aside)
    aside.replace(path)


# -- in


def load_pretrained(folder: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Sizes and fp32 weights, under our names, of a local Llama or Qwen3 folder (one safetensors file or several).

    Errors: `UserError` for a folder that is not one, an architecture that ours is not, or tensors that do not fit.
    """
    described = _read_json(folder / "config.json", "it is not a Hugging Face model folder")
    weights: dict[str, Tensor] = {}
    for path in _weight_files(folder):
        weights |= load_file(path)
    return from_huggingface(described, weights, place=str(folder))


def from_huggingface(
    described: Mapping[str, Any], weights: Mapping[str, Tensor], *, place: str = "the model"
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The other way of `to_huggingface`: their config.json and state dict -> our sizes, and fp32 weights by our names.

    `place` names the source in errors. Errors: `UserError` for an architecture that ours is not, and one that lists
    every tensor that is missing, is too many, or has another shape.
    """
    config = _config(described, place)
    found = _without_copies(config, weights, place)
    with torch.device("meta"):
        wanted = {name: weight.shape for name, weight in Decoder(config).state_dict().items()}
    theirs = names(config)
    faults = [f"missing: {theirs[name]} {tuple(shape)}" for name, shape in wanted.items() if theirs[name] not in found]
    faults += [f"not of this model: {name} {tuple(found[name].shape)}" for name in found.keys() - theirs.values()]
    for name, shape in wanted.items():
        weight = found.get(theirs[name])
        if weight is not None and weight.shape != shape:
            faults.append(f"shape: {theirs[name]} is {tuple(weight.shape)}, by config.json it is {tuple(shape)}")
    if faults:
        lines = "\n".join(f"  - {fault}" for fault in sorted(faults))
        raise UserError(f"{place}: config.json and weights do not belong together; get the folder again:\n{lines}")
    return config, {name: found[theirs[name]].float() for name in wanted}


def _config(described: Mapping[str, Any], place: str) -> ModelConfig:
    """Their config in our terms; what it leaves out is what their class says."""
    family = described.get("model_type")
    if family not in ARCHITECTURES:
        raise UserError(
            f"{place}: model_type is {family!r}; the architectures known here are {', '.join(ARCHITECTURES)}"
        )
    from transformers import LlamaConfig, Qwen3Config  # here: it takes a second, and few runs come from elsewhere

    theirs: Any = LlamaConfig if family == "llama" else Qwen3Config
    full = theirs.from_dict(dict(described)).to_dict()
    rope = full["rope_parameters"]
    faults = [
        f"{key} is {full[key]!r}; only {value!r} is built"
        for key, value in PLAIN.items()
        if full.get(key, value) != value
    ]
    if rope.get("rope_type", "default") != "default":
        faults.append(f"rope_parameters.rope_type is {rope['rope_type']!r}; only 'default' is built")
    if faults:
        raise UserError(f"{place}: this network is not built here:\n" + "\n".join(f"  - {fault}" for fault in faults))
    return ModelConfig(
        family=family,
        layers=full["num_hidden_layers"],
        width=full["hidden_size"],
        heads=full["num_attention_heads"],
        kv_heads=full["num_key_value_heads"],
        head_dim=full["head_dim"],
        ffn_width=full["intermediate_size"],
        vocab_size=full["vocab_size"],
        max_positions=full["max_position_embeddings"],
        rope_theta=rope["rope_theta"],
        norm_eps=full["rms_norm_eps"],
        qk_norm=family == "qwen3",
        tied_head=full["tie_word_embeddings"],
        init_std=full["initializer_range"],
    )


def _without_copies(config: ModelConfig, weights: Mapping[str, Tensor], place: str) -> dict[str, Tensor]:
    """The tensors less what older files carry beside them: rotary tables, and a tied head equal to the embedding."""
    found = {name: weight for name, weight in weights.items() if not name.endswith("rotary_emb.inv_freq")}
    if config.tied_head and HEAD[1] in found:
        head = found.pop(HEAD[1])
        embedding = found.get(OUTSIDE["embedding.weight"])
        if embedding is not None and not torch.equal(head, embedding):
            raise UserError(
                f"{place}: config.json ties the head to the embedding, but {HEAD[1]} is another matrix; "
                "set tie_word_embeddings to false in config.json if the head is meant"
            )
    return found


def _weight_files(folder: Path) -> list[Path]:
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        raise UserError(
            f"{folder}: neither {SINGLE} nor {INDEX} is there; weights are read from safetensors files only"
        )
    index = _read_json(folder / INDEX, "the list of weight files is missing")
    files = [folder / name for name in sorted(set(index["weight_map"].values()))]
    absent = [path.name for path in files if not path.is_file()]
    if absent:
        raise UserError(f"{folder}: {INDEX} names files that are not there: {', '.join(absent)}; get them too")
    return files


def _read_json(path: Path, otherwise: str) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path} does not exist: {otherwise}")
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
