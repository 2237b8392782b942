"""The decoder: embedding -> blocks of attention and SwiGLU -> norm; the head is a weight that the loss applies.

    x = embedding(ids)
    x = x + attention(norm(x));  x = x + feed_forward(norm(x))       in every block
    hidden = norm(x)                                                  logits = hidden @ head_weight'

`build` gives one ready to train; `Decoder` under `torch.device("meta")`, then sharding, `to_empty` and `init_weights`
gives the same weights on any number of ranks.

Shapes: B rows, T positions, D width, V vocabulary, H query heads, G key-value heads, K width of a head.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lifecycle.model.attention import Documents, attention
from lifecycle.model.config import ModelConfig
from lifecycle.model.layers import FeedForward, RMSNorm, rotary_angles, rotate


class SelfAttention(nn.Module):
    """Grouped-query attention (arXiv 2305.13245), rotary positions, and RMS-normalised queries and keys if asked."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        kv_width = config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.width, config.attention_width, bias=False)
        self.k_proj = nn.Linear(config.width, kv_width, bias=False)
        self.v_proj = nn.Linear(config.width, kv_width, bias=False)
        self.o_proj = nn.Linear(config.attention_width, config.width, bias=False)
        self.q_norm = RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else None

    def forward(self, x_BTD: Tensor, angles: tuple[Tensor, Tensor], documents: Documents | None) -> Tensor:
        q_BTHK, k_BTGK, v_BTGK = (
            projection(x_BTD).unflatten(-1, (-1, self.head_dim))
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.q_norm is not None and self.k_norm is not None:
            q_BTHK, k_BTGK = self.q_norm(q_BTHK), self.k_norm(k_BTGK)
        out_BTHK = attention(rotate(q_BTHK, *angles), rotate(k_BTGK, *angles), v_BTGK, documents)
        out: Tensor = self.o_proj(out_BTHK.flatten(2))
        return out


class Block(nn.Module):
    """One pre-norm block."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.width, eps=config.norm_eps)
        self.attention = SelfAttention(config)
        self.ffn_norm = RMSNorm(config.width, eps=config.norm_eps)
        self.ffn = FeedForward(width=config.width, ffn_width=config.ffn_width)

    def forward(self, x_BTD: Tensor, angles: tuple[Tensor, Tensor], documents: Documents | None) -> Tensor:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), angles, documents)
        out: Tensor = x_BTD + self.ffn(self.ffn_norm(x_BTD))
        return out


class Decoder(nn.Module):
    """The network of a `ModelConfig` whose vocabulary is known.

    `activation_checkpointing` keeps only each block's input and computes the block again in the backward pass: the
    same gradients, about a third more work, a fraction of the memory.
    """

    def __init__(self, config: ModelConfig, *, activation_checkpointing: bool = False) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = activation_checkpointing
        self.embedding = nn.Embedding(config.vocab, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, eps=config.norm_eps)
        self.head = None if config.tied_head else nn.Linear(config.width, config.vocab, bias=False)

    @property
    def head_weight(self) -> Tensor:
        """(V, D): the matrix that turns hidden states into logits; the embedding itself when tied.

        Sharded models hold it whole between their forward and backward passes: read it after the forward pass.
        """
        return self.embedding.weight if self.head is None else self.head.weight

    def forward(self, input_ids_BT: Tensor, position_ids_BT: Tensor, documents: Documents | None = None) -> Tensor:
        """Hidden states (B, T, D) after the final norm, in the compute dtype. `documents` None: one document a row."""
        x_BTD = self.embedding(input_ids_BT)
        device_type = x_BTD.device.type
        if torch.is_autocast_enabled(device_type):
            # the residual stream too is kept in the compute dtype: half the memory traffic of every norm and sum
            x_BTD = x_BTD.to(torch.get_autocast_dtype(device_type))
        angles = rotary_angles(position_ids_BT, head_dim=self.config.head_dim, theta=self.config.rope_theta)
        for block in self.blocks:
            if self.activation_checkpointing and torch.is_grad_enabled():
                x_BTD = checkpoint(block, x_BTD, angles, documents, use_reentrant=False, preserve_rng_state=False)
            else:
                x_BTD = block(x_BTD, angles, documents)
        out: Tensor = self.norm(x_BTD)
        return out

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """(B, T, V), whole: for sampling and comparison; training goes through `losses.linear_cross_entropy`."""
        return F.linear(hidden_BTD, self.head_weight)

    @torch.no_grad()
    def init_weights(self, *, seed: int) -> None:
        """Fresh weights. Norms are 1; matrices are normal with `init_std`, those that write into the residual stream
        (o_proj, down_proj) with init_std / sqrt(2 * layers), so that the stream's variance does not grow with depth.

        Every parameter draws from a CPU generator seeded by (seed, its name): the weights depend neither on the order
        of construction nor on the device nor on how many ranks share a parameter.
        """
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                parameter.fill_(1.0)
                continue
            residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            std = self.config.init_std / ((2 * self.config.layers) ** 0.5 if residual else 1.0)
            generator = torch.Generator().manual_seed(_derived_seed(seed, name))
            _assign(parameter, torch.empty(parameter.shape, dtype=torch.float32).normal_(0.0, std, generator=generator))


def build(
    config: ModelConfig, *, seed: int, device: torch.device | None = None, activation_checkpointing: bool = False
) -> Decoder:
    """A decoder with fresh fp32 weights on `device` (CPU by default), without drawing any weight twice."""
    with torch.device("meta"):
        model = Decoder(config, activation_checkpointing=activation_checkpointing)
    model.to_empty(device=device or torch.device("cpu"))
    model.init_weights(seed=seed)
    return model


def compile_model(model: Decoder, *, unit: Literal["model", "block"]) -> None:
    """Compile in place, so that the names in the state dict stay.

    `model` makes one graph (fastest steps; compile time grows with depth), `block` compiles one block once for all of
    them (starts sooner, and is the one that works when blocks are sharded). Do it before sharding, for blocks, and
    before the first forward pass.
    """
    if unit == "model":
        model.compile(dynamic=False)
        return
    for block in model.blocks:
        block.compile(dynamic=False)


def _derived_seed(seed: int, name: str) -> int:
    digest = hashlib.sha256(f"{seed}:weights:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _assign(parameter: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into a parameter that may be one rank's shard of it."""
    if isinstance(parameter, DTensor):
        # src_data_rank None: every rank has the same whole value already and keeps its part, nothing is sent
        value = value.to(parameter.to_local().device)
        parameter.copy_(distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None))
        return
    parameter.copy_(value)
