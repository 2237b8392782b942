"""GGUF files (llama.cpp): their head as a config.json, their tensors under the names of a folder, their tokenizer.

The reader is that of `transformers`: quantized weights come out as the numbers they stand for. The keys of the head are
in gguf_head.py.

Shapes: R rows.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from lifecycle.errors import UserError
from lifecycle.model.huggingface.gguf_head import DIVISORS, SAFE, head_to_hf_config
from lifecycle.model.huggingface.lazy_tensors import Stored
from lifecycle.system.foreign import mistaken_file

OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
INSIDE = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
}
EXPERTS = {"ffn_gate_exps": "gate_proj", "ffn_up_exps": "up_proj", "ffn_down_exps": "down_proj"}
MIXTRAL = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}


def gguf_file(place: Path) -> Path | None:
    """The GGUF file that a place is or, if it holds no config.json, holds. Errors: `UserError` for several."""
    if place.suffix == ".gguf" and place.is_file():
        return place
    if not place.is_dir() or (place / "config.json").is_file():
        return None
    files = sorted(place.glob("*.gguf"))
    if len(files) > 1:
        raise UserError(f"{place} holds several GGUF files ({', '.join(f.name for f in files)}); name one of them")
    return files[0] if files else None


def gguf_to_hf_config(file: Path) -> dict[str, Any]:
    """The content that a config.json of this model would have. Errors: `UserError` for a broken file, or a network that
    is not built here."""
    head, stored = _opened(file)
    return head_to_hf_config(
        head,
        vocab=stored["token_embd.weight"].shape[0],
        tied="output.weight" not in stored,
        divisors=stored[DIVISORS].read(None).float() if DIVISORS in stored else None,
        place=str(file),
    )


def tensors_gguf(file: Path) -> dict[str, Stored]:
    """The file's tensors under the names that a folder has, experts apart. Errors: `UserError`, as above."""
    head, stored = _opened(file)
    hf_config = gguf_to_hf_config(file)
    mixtral = hf_config["model_type"] == "mixtral"
    out: dict[str, Stored] = {}
    for name, tensor in stored.items():
        for theirs, part in _named(name, tensor, mixtral=mixtral):
            out[theirs] = part
    if head["general.architecture"] == "llama":
        heads = {"q": hf_config["num_attention_heads"], "k": hf_config["num_key_value_heads"]}
        for name, tensor in out.items():
            if match := re.search(r"self_attn\.([qk])_proj\.", name):
                out[name] = Stored(tensor.shape, partial(_halves, tensor, heads[match[1]]))
    return out


def tokenizer_gguf(file: Path) -> Any:
    """The file's tokenizer, as one of `transformers` (a fast one, with its chat template); None where it has none."""
    from transformers import PreTrainedTokenizerFast
    from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer

    if "tokenizer.ggml.model" not in _opened(file)[0]:
        return None
    try:
        arch, fields, config = get_gguf_tokenizer(str(file))
        backend, more = convert_gguf_tokenizer(arch, fields)
    except Exception as error:  # their reader raises whatever the bytes lead it to
        raise UserError(f"{file}: its tokenizer cannot be read ({_said(error)}); get the safetensors folder") from error
    marks = {key: value for key, value in (config | more).items() if value is not None}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **marks)


def _opened(file: Path) -> tuple[dict[str, Any], dict[str, Stored]]:
    """The head, and the tensors under the names of the file."""
    from transformers.integrations.gguf.reader import GgufHeader, load_gguf_state_dict, read_gguf_metadata

    came = mistaken_file(file)
    if came is not None:
        raise UserError(f"{file} is {came}")
    try:
        head, _ = read_gguf_metadata(str(file))
        header = GgufHeader.from_file(str(file))
    except Exception as error:  # their reader raises whatever the bytes lead it to
        raise UserError(f"{file} cannot be read as GGUF ({_said(error)}); {SAFE}") from error
    end = max((header.data_start + info.offset + info.nbytes for info in header.tensors), default=0)
    if end > file.stat().st_size:
        raise UserError(f"{file} is cut short: {file.stat().st_size} of at least {end} bytes; {SAFE}")
    if head.get("split.count", 1) > 1:
        raise UserError(f"{file} is one of {head['split.count']} parts; join them (llama-gguf-split --merge) first")
    if "token_embd.weight" not in {info.name for info in header.tensors}:
        raise UserError(f"{file} holds no token_embd.weight, so it is no whole model; {SAFE}")
    lying = load_gguf_state_dict(header)
    return head, {
        info.name: Stored(info.shape, partial(_numbers, lying[info.name], info.ggml_type, info.shape))
        for info in header.tensors
    }


def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _numbers(lying: Any, kind: int, shape: tuple[int, ...], part: int | None) -> Tensor:
    from transformers.integrations.gguf.dequant import GGML_BLOCK, dequantize

    raw: Tensor = lying[...]
    whole = dequantize(raw.flatten(), kind).view(shape) if kind in GGML_BLOCK else raw
    return whole if part is None else whole[part]


def _named(name: str, tensor: Stored, *, mixtral: bool) -> list[tuple[str, Stored]]:
    """One tensor of the file under their names: itself, or one for each expert."""
    stem, _, kind = name.rpartition(".")
    if stem in OUTSIDE:
        return [(f"{OUTSIDE[stem]}.{kind}", tensor)]
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    if match is None:
        return [] if name == DIVISORS else [(name, tensor)]
    layer, inner = f"model.layers.{match[1]}", match[2]
    if inner in EXPERTS:
        matrix = MIXTRAL[EXPERTS[inner]] if mixtral else EXPERTS[inner]
        within = "block_sparse_moe" if mixtral else "mlp"
        return [
            (f"{layer}.{within}.experts.{e}.{matrix}.weight", Stored(tensor.shape[1:], partial(_expert, tensor, e)))
            for e in range(tensor.shape[0])
        ]
    if inner == "ffn_gate_inp_shexp" and len(tensor.shape) == 1:  # a row, kept as a vector
        tensor = Stored((1, *tensor.shape), partial(_as_row, tensor))
    theirs = INSIDE.get(inner, inner).replace("mlp.", "block_sparse_moe." if mixtral else "mlp.")
    return [(f"{layer}.{theirs}.{kind}", tensor)]


def _expert(tensor: Stored, expert: int, part: int | None) -> Tensor:
    whole = tensor.read(expert)
    return whole if part is None else whole[part]


def _as_row(tensor: Stored, part: int | None) -> Tensor:
    whole = tensor.read(None)[None]
    return whole if part is None else whole[part]


def _halves(tensor: Stored, heads: int, part: int | None) -> Tensor:
    """llama.cpp rotates neighbouring rows of a head, `transformers` rows half a head apart: reorder them to that."""
    whole = tensor.read(None)
    R = whole.shape[0]
    whole = whole.unflatten(0, (heads, R // heads // 2, 2)).transpose(1, 2).reshape(whole.shape)
    return whole if part is None else whole[part]
