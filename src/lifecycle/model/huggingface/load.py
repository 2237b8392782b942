"""A folder, a GGUF file or a state dict of `transformers` -> our sizes and our weights, fp32.

    config = read_config(place)                       at once: config.json (or the head of the GGUF file) alone
    config, weights = load_pretrained(place)          everything
    config, weights = from_huggingface(hf_config, state_dict)

Read are safetensors in one file or several and in any dtype, experts apart or fused, 8-bit blocks with their scales,
and GGUF through the reader of `transformers`. The base model alone (no `model.` before its names) and a tied head
without the embedding are taken for what they are. Tensors beside the network (`v_head`, `score`) are passed over with a
line that names them; those inside it that ours does not have are refused, since it would compute something else.

Shapes: E experts.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lifecycle.errors import UserError
from lifecycle.model.config import ModelConfig
from lifecycle.model.families import family_of
from lifecycle.model.huggingface.config_json import from_hf_config, known_keys
from lifecycle.model.huggingface.gguf import gguf_file, gguf_to_hf_config, tensors_gguf
from lifecycle.model.huggingface.lazy_tensors import CONFIG, Stored, from_files, from_memory, plain
from lifecycle.model.huggingface.names import EMBEDDING, HEAD, names, parts, rows, shapes
from lifecycle.model.interchange import NOISE
from lifecycle.system.foreign import read_object

DERIVED = ("rotary_emb.inv_freq", "rope_freqs.weight", "masked_bias")
"""Endings of tensors that older files carry beside the weights: they follow from the sizes."""

INTERLEAVE = "rope_interleave"
"""False: rotated rows of latent attention lie as ours do, half a head apart."""

BASE = "model."
"""Before the names of all but the head, where there is room for a head."""

logger = logging.getLogger(__name__)


def read_config(place: Path) -> ModelConfig:
    """Sizes and switches of a model folder or GGUF file, without its weights. Errors: as `load_pretrained`."""
    file = gguf_file(place)
    if file is not None:
        return from_hf_config(gguf_to_hf_config(file), place=str(file))
    return from_hf_config(_hf_config(place), place=str(place))


def load_pretrained(place: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Sizes, and fp32 weights under our names, of a local folder (safetensors or GGUF) or GGUF file.

    Errors: `UserError` for a place that is no model, an architecture that ours is not, or tensors that do not fit.
    """
    file = gguf_file(place)
    if file is not None:
        hf_config = gguf_to_hf_config(file)
        config = from_hf_config(hf_config, place=str(file))
        return config, _gather(config, tensors_gguf(file), hf_config, str(file))
    hf_config = _hf_config(place)
    config = from_hf_config(hf_config, place=str(place))
    found = plain(from_files(place), family_of(config.family).tensors, block=_block(hf_config, place))
    return config, _gather(config, found, hf_config, str(place))


def from_huggingface(
    hf_config: Mapping[str, Any], weights: Mapping[str, Tensor], *, place: str = "the model"
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The inverse of `to_huggingface`: config.json and state dict of `transformers` -> our config, and fp32 weights
    under our names.

    `place` names the source in errors. Errors: `UserError` for an architecture that ours is not, and one that lists
    every tensor that is missing, is too many, or has another shape.
    """
    config = from_hf_config(hf_config, place=place)
    found = plain(from_memory(weights), family_of(config.family).tensors)
    return config, _gather(config, found, hf_config, place)


def _gather(
    config: ModelConfig, found: Mapping[str, Stored], hf_config: Mapping[str, Any], place: str
) -> dict[str, Tensor]:
    """Look at every shape, and then read every tensor into its place."""
    neighbours = bool(hf_config.get(INTERLEAVE, True)) or INTERLEAVE not in known_keys(config.family)
    found = _without_copies(config, _with_base(found), place)
    wanted = shapes(config)
    theirs = {ours: parts(name, config.moe.experts if config.moe else 0) for ours, name in names(config).items()}
    faults = [fault for ours, shape in wanted.items() for fault in _faults(theirs[ours], shape, found)]
    more = sorted(found.keys() - {part for named in theirs.values() for part in named})
    inside = [name for name in more if name.startswith((BASE, HEAD.partition(".")[0]))]
    if faults or inside:
        faults += [f"not of this model: {name} {found[name].shape}" for name in more]
        raise UserError(f"{place}: {_advice(faults)}:\n" + "\n".join(f"  - {fault}" for fault in sorted(faults)))
    if more:
        logger.warning("%s: passed over, since they are no part of the network: %s", place, ", ".join(more))
    for key in NOISE:
        if hf_config.get(key):
            logger.warning("%s: %s is %s in config.json; training here goes without", place, key, hf_config[key])
    return {
        ours: _read([found[part] for part in theirs[ours]], shape, rows(ours, config) if neighbours else None)
        for ours, shape in wanted.items()
    }


def _advice(faults: list[str]) -> str:
    if len(faults) == 1 and faults[0].startswith(f"missing: {HEAD}"):
        return (
            "there is no head, so this is a base model that predicts nothing; get the whole one, or set "
            "tie_word_embeddings to true in config.json if the embedding is to be its head"
        )
    return "config.json and weights do not belong together; get the folder again"


def _with_base(found: Mapping[str, Stored]) -> Mapping[str, Stored]:
    """The names as they are with a head: a base model saved alone has nothing before them."""
    if EMBEDDING in found or EMBEDDING.removeprefix(BASE) not in found:
        return found
    own = ("embed_tokens.", "layers.", "norm.")
    return {f"{BASE}{name}" if name.startswith(own) else name: stored for name, stored in found.items()}


def _faults(named: list[str], shape: torch.Size, found: Mapping[str, Stored]) -> list[str]:
    """What is wrong with the tensors (of a folder) that one of ours is made of."""
    each = tuple(shape[1:] if len(shape) == 3 else shape)  # three: experts, each of which lies apart
    faults = [f"missing: {name} {each}" for name in named if name not in found]
    return faults + [
        f"shape: {name} is {found[name].shape}, by config.json it is {each}"
        for name in named
        if name in found and found[name].shape != each
    ]


def _read(stored: list[Stored], shape: torch.Size, order: Tensor | None) -> Tensor:
    """One of our tensors, fp32; `order`: the row of ours at each row of the folder's, see `names.rows`."""
    if len(shape) == 3:  # experts
        whole = torch.empty(shape, dtype=torch.float32, device="cpu")
        for place, part in zip(whole, stored, strict=True):
            place.copy_(part.read(None))
        return whole
    weight = stored[0].read(None).float()
    return weight if order is None else weight[order.argsort()]


def _without_copies(config: ModelConfig, found: Mapping[str, Stored], place: str) -> dict[str, Stored]:
    """The tensors less what files carry beside a network: rotary tables, a tied head equal to the embedding, and the
    blocks after the last, which predict further tokens (arXiv 2412.19437, section 2.2) and are not built here."""
    further = re.compile(r"model\.layers\.(\d+)\.")
    may_be_more, left = family_of(config.family).predicts_further, {}
    for name, stored in found.items():
        layer = further.match(name)
        beyond = layer is not None and may_be_more and int(layer[1]) >= config.layers
        if not beyond and not name.endswith(DERIVED):
            left[name] = stored
    if config.tied_head and HEAD in left:
        head = left.pop(HEAD)
        if EMBEDDING not in left:  # safetensors keeps one of two names of a matrix
            left[EMBEDDING] = head
        elif not torch.equal(head.read(None), left[EMBEDDING].read(None)):
            raise UserError(
                f"{place}: config.json ties the head to the embedding, but {HEAD} is another matrix; "
                "set tie_word_embeddings to false in config.json if the head is meant"
            )
    return left


def _block(hf_config: Mapping[str, Any], place: Path) -> tuple[int, int] | None:
    """Rows and columns that share a scale. Errors: `UserError` for another quantization."""
    how = hf_config.get("quantization_config")
    if not how:
        return None
    if how.get("quant_method") != "fp8" or not how.get("weight_block_size"):
        raise UserError(
            f"{place}: the weights are quantized ({how.get('quant_method')}); read are full and half precision, fp8 in "
            "blocks, and GGUF: get the original folder"
        )
    sizes = how["weight_block_size"]
    if not (isinstance(sizes, list) and len(sizes) == 2 and all(isinstance(size, int) and size > 0 for size in sizes)):
        raise UserError(
            f"{place}: config.json: quantization_config.weight_block_size is {sizes!r}; two whole numbers above 0 are "
            "wanted; get the file again"
        )
    return sizes[0], sizes[1]


def _hf_config(place: Path) -> dict[str, Any]:
    path = place / CONFIG
    if not path.is_file():
        raise UserError(f"{path} does not exist: it is not a Hugging Face model folder")
    return read_object(path)
