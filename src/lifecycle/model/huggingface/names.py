"""Our parameters under the names of `transformers`, and the few rows of matrices whose order differs there.

    names(config)["blocks.0.attention.q_proj.weight"]    ->  "model.layers.0.self_attn.q_proj.weight"
    names(config)["blocks.0.ffn.experts.gate_proj"]      ->  "model.layers.0.mlp.experts.*.gate_proj.weight"

A `*` stands for the number of an expert: ours are stacked in one tensor, a folder holds one tensor for each.

Shapes: E experts, F width of the feed-forward part, D width, R rows of a matrix.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lifecycle.model.config import ModelConfig
from lifecycle.model.decoder import Decoder
from lifecycle.model.families import family_of
from lifecycle.model.layers.initial import SCORE

HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"
OUTSIDE = {"embedding.weight": EMBEDDING, "norm.weight": "model.norm.weight", "head.weight": HEAD, SCORE: SCORE}

IN_FP32 = "e_score_correction_bias"
"""Never rounded: an expert's turn hangs on differences that half precision cannot hold."""


def shapes(config: ModelConfig) -> dict[str, torch.Size]:
    """Our name -> shape of everything that the network of `config` keeps."""
    with torch.device("meta"):
        return {name: value.shape for name, value in Decoder(config).state_dict().items()}


def names(config: ModelConfig) -> dict[str, str]:
    """Our name of every parameter (and saved buffer) -> the name in a folder of `transformers`.

    A tied head is the embedding and has no name of its own.
    """
    inside = family_of(config.family).tensors
    return {ours: _theirs(ours, inside) for ours in shapes(config)}


def _theirs(ours: str, inside: Mapping[str, str]) -> str:
    if ours in OUTSIDE:
        return OUTSIDE[ours]
    _, layer, rest = ours.split(".", 2)
    return f"model.layers.{layer}.{inside[rest]}"


def parts(theirs: str, experts: int) -> list[str]:
    """The names of the tensors of a folder for one name of `names`: itself, or one for each expert."""
    return [theirs.replace("*", str(expert)) for expert in range(experts)] if "*" in theirs else [theirs]


def rows(ours: str, config: ModelConfig) -> Tensor | None:
    """The row of our matrix `ours` at each row of the folder's matrix, (R,) int64; None: the same order.

    Rotary positions turn pairs of dimensions. Ours are i and i + K/2, those of DeepSeek's files are the neighbours 2i
    and 2i + 1: the same network, as long as the rows that make queries and keys are ordered to suit.
    """
    latent = config.latent
    if latent is None:
        return None

    def counted(n: int) -> Tensor:
        return torch.arange(n, device="cpu")

    turned = counted(latent.rope_dim).view(2, -1).T.flatten()
    if ours.endswith("attention.kv_down.weight"):
        return torch.cat((counted(latent.kv_rank), latent.kv_rank + turned))
    if ours.endswith(("attention.q_proj.weight", "attention.q_up.weight")):
        head = torch.cat((counted(latent.nope_dim), latent.nope_dim + turned))
        starts = counted(config.heads) * len(head)
        return (starts[:, None] + head).flatten()
    return None
