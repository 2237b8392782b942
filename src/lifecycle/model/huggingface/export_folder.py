"""A decoder -> a folder that `AutoModelForCausalLM`, vLLM and llama.cpp's converter load; one that ends in a score, for
`AutoModelForSequenceClassification`.

    export(model, folder, tokenizer=tokenizer, history=[{...}, {...}])

config.json, generation_config.json, the tokenizer with its chat template, README.md (the model card) and the weights:
model.safetensors, or several files and their index. A folder that has a config.json is whole (`atomic.replace_files`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor

from lifecycle.errors import UserError
from lifecycle.model.decoder import Decoder
from lifecycle.model.huggingface.card import model_card
from lifecycle.model.huggingface.config_json import to_hf_config
from lifecycle.model.huggingface.lazy_tensors import CONFIG, EOS, GENERATION, INDEX, SINGLE, ends_of
from lifecycle.model.huggingface.names import IN_FP32, names, parts, rows
from lifecycle.system.atomic import replace_files, told_in_words

OF_THEIR_VERSION = ("transformers_version", "_from_model_config")
"""Keys of a generation_config.json that say how the file was made."""

STALE = ("model*.safetensors", INDEX)
"""What an older export may have had and a new one need not have."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TokenizerFiles(Protocol):
    """What an export asks of a tokenizer."""

    @property
    def bos_id(self) -> int: ...
    @property
    def eos_id(self) -> int: ...
    @property
    def pad_id(self) -> int: ...
    @property
    def end_ids(self) -> tuple[int, ...]:
        """What ends a completion, eos first."""
        ...

    @property
    def special_names(self) -> Mapping[int, str]:
        """Names of the special tokens."""
        ...

    def save(self, folder: Path) -> None:
        """Write the files of `transformers` into a folder."""
        ...


def to_huggingface(model: Decoder) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Their config.json, as a mapping, and the tensors of their folder, one for each expert; most of them share memory
    with the (unsharded) weights."""
    config, weights = model.config, model.state_dict()
    out: dict[str, Tensor] = {}
    for ours, theirs in names(config).items():
        order = rows(ours, config)
        weight = weights[ours] if order is None else weights[ours][order.to(weights[ours].device)]
        named = parts(theirs, len(weight))
        out |= dict(zip(named, weight, strict=True)) if "*" in theirs else {theirs: weight}
    return to_hf_config(config), out


def export(
    model: Decoder,
    folder: Path,
    *,
    tokenizer: TokenizerFiles | None = None,
    dtype: str = "fp32",
    shard_gb: float = 5.0,
    history: Sequence[Mapping[str, Any]] = (),
    generation: Mapping[str, Any] | None = None,
) -> None:
    """Write `folder` for `AutoModelForCausalLM.from_pretrained` (of a score: `AutoModelForSequenceClassification`), and
    `AutoTokenizer` if a tokenizer is given.

    dtype of the weights: fp32 (exact), bf16 or fp16. shard_gb: size of a weight file in 10^9 bytes; a model that is
    larger is cut into several. history: the `run.json` of each stage that made the weights, first to last, for the
    model card. generation: the parent's generation_config.json, which is carried on. Errors: `UserError` for another
    dtype or a size that is not above 0.
    """
    if dtype not in DTYPES:
        raise UserError(f"export.dtype is {dtype!r}; choose one of {', '.join(DTYPES)}")
    if not shard_gb > 0:
        raise UserError(f"export.shard_gb is {shard_gb}; it is the size of a weight file in GB, above 0")
    config, weights = to_huggingface(model)
    config["dtype"] = str(DTYPES[dtype]).removeprefix("torch.")
    place = folder.resolve()
    name = place.parent.name if place.name == "model" else place.name  # outputs/RUN/model is the model of RUN
    with replace_files(folder, marker=CONFIG, stale=STALE if tokenizer is None else (*STALE, "*.jinja")) as aside:
        if tokenizer is not None:
            tokenizer.save(aside)
            config |= {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
            config |= write_padding(tokenizer, aside) if model.config.score_head else {}
        _write_json(aside / GENERATION, generation_config(tokenizer, generation or {}))
        card = model_card(model.config, config, history=history, name=name, template=_talks(aside))
        (aside / "README.md").write_text(card, encoding="utf-8")
        _write_weights(aside, {name: weight.detach() for name, weight in weights.items()}, DTYPES[dtype], shard_gb)
        _write_json(aside / CONFIG, config)


def write_padding(tokenizer: TokenizerFiles, folder: Path) -> dict[str, int]:
    """The padding of a model that ends in a score, for config.json; also written into the tokenizer's files.

    `transformers` scores the last token that is not this one, so it must never end an answer, as the tokenizer's own
    often does (pad is eos). Empty where every special token does: one sequence at a time is then scored right, and
    several are refused there.
    """
    names, path = tokenizer.special_names, folder / "tokenizer_config.json"
    candidates = [one for one in (tokenizer.pad_id, tokenizer.bos_id, *names) if one not in tokenizer.end_ids]
    pad = next((one for one in candidates if one in names), None)
    said = json.loads(path.read_text(encoding="utf-8"))
    _write_json(path, said | {"pad_token": None if pad is None else names[pad]})
    return {} if pad is None else {"pad_token_id": pad}


def generation_config(tokenizer: TokenizerFiles | None, parent: Mapping[str, Any]) -> dict[str, Any]:
    """The content of generation_config.json: the parent's sampling settings, and as stop ids every token that ends a
    completion by this tokenizer or by the parent."""
    kept = {key: value for key, value in parent.items() if key not in OF_THEIR_VERSION}
    if not kept.keys() - {EOS}:
        kept = {"do_sample": True, **kept}
    if tokenizer is None:
        return kept
    ends = list(dict.fromkeys([*tokenizer.end_ids, *ends_of(kept)]))
    # pad stands here only: in config.json it would freeze that row of the embedding, and pad is often eos
    marks = {"bos_token_id": tokenizer.bos_id, "pad_token_id": tokenizer.pad_id}
    return marks | kept | {EOS: ends if len(ends) > 1 else ends[0]}


def _talks(folder: Path) -> bool:
    """Whether the tokenizer that was written has a chat template."""
    config = folder / "tokenizer_config.json"
    inside = config.is_file() and "chat_template" in json.loads(config.read_text(encoding="utf-8"))
    return inside or (folder / "chat_template.jinja").is_file()


def _write_weights(folder: Path, weights: dict[str, Tensor], dtype: torch.dtype, shard_gb: float) -> None:
    """One file, or several and their index."""
    shards = list(_shards(weights, dtype, shard_gb * 1e9))
    files = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    files = files if len(shards) > 1 else [SINGLE]
    for file, shard in zip(files, shards, strict=True):
        _write_shard(folder / file, weights={name: weights[name] for name in shard}, dtype=dtype)
    if len(shards) > 1:
        sizes = sum(_bytes(name, weight, dtype) for name, weight in weights.items())
        where = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        _write_json(folder / INDEX, {"metadata": {"total_size": sizes}, "weight_map": where})


def _shards(weights: Mapping[str, Tensor], dtype: torch.dtype, limit: float) -> Iterator[list[str]]:
    """Names in order, cut where the next tensor would not fit; a tensor is never cut."""
    shard: list[str] = []
    size = 0
    for name, weight in weights.items():
        more = _bytes(name, weight, dtype)
        if shard and size + more > limit:
            yield shard
            shard, size = [], 0
        shard.append(name)
        size += more
    yield shard


def _dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if name.endswith(IN_FP32) else dtype


def _bytes(name: str, weight: Tensor, dtype: torch.dtype) -> int:
    return weight.numel() * _dtype(name, dtype).itemsize


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_shard(path: Path, *, weights: dict[str, Tensor], dtype: torch.dtype) -> None:
    # one file's tensors at a time: a large model is never in memory twice
    cast = {name: weight.to("cpu", _dtype(name, dtype)).contiguous() for name, weight in weights.items()}
    with told_in_words(path):
        save_file(cast, path, metadata={"format": "pt"})
