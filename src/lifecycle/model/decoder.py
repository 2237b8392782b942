"""The decoder: embedding -> blocks of attention and feed-forward -> norm; the head is a weight that the loss applies.

    x = embedding(ids)
    x = x + attention(norm(x));  x = x + feed_forward(norm(x))       in every block
    hidden = norm(x)                                  logits = hidden @ head_weight', c tanh(logits / c) if capped
                                                      score = hidden . score.weight, in place of logits, if it has one

`build` gives one ready to train; `Decoder` under `torch.device("meta")`, then sharding, `to_empty` and `init_weights`
gives the same weights on any number of ranks.

Shapes: B sequences, T positions, D width, V vocabulary, H query heads, G key-value heads, K width of a head.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lifecycle.errors import UserError
from lifecycle.model.config import ModelConfig
from lifecycle.model.layers.attention import DocumentMask, attention, slide
from lifecycle.model.layers.cpu import packed_attention
from lifecycle.model.layers.gpu import available, fused
from lifecycle.model.layers.initial import SCORE, normal, score_std
from lifecycle.model.layers.joined import joined
from lifecycle.model.layers.kv_cache import Cache, CallSlots, Slots
from lifecycle.model.layers.latent import LatentAttention
from lifecycle.model.layers.moe import KnownRoutes, MoEFeedForward, Routing, balanced
from lifecycle.model.layers.norm_swiglu import FeedForward, RMSNorm
from lifecycle.model.layers.rope import rotary_angles, rotate
from lifecycle.model.lora import Adapter
from lifecycle.system.seeds import derive
from lifecycle.system.shards import is_sharded, shared_out

SHAPES = 64
"""Graphs of one function that are kept; past its own limit of 8 the compiler would go on eagerly and say nothing."""


class SelfAttention(nn.Module):
    """Grouped-query attention (arXiv 2305.13245), rotary positions, and RMS-normalised queries and keys if asked."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.head_dim = config.heads, config.head_dim
        kv_width = config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.width, config.attention_width, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.width, kv_width, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.width, kv_width, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.attention_width, config.width, bias=False)
        self.q_norm = RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else None

    def forward(
        self, x_BTD: Tensor, angles: tuple[Tensor, Tensor], documents: DocumentMask | None, slots: Slots | None = None
    ) -> Tensor:
        """(B, T, D); with `slots` over what they hold, after the call's tokens are written there."""
        q_BTHK, k_BTGK, v_BTGK = self._turned(x_BTD, angles)
        if slots is None:
            out_BTHK = attention(q_BTHK, k_BTGK, v_BTGK, documents)
        else:
            out_BTHK = slots.attend(q_BTHK, k_BTGK, v_BTGK).to(x_BTD.dtype)
        out: Tensor = self.o_proj(out_BTHK.flatten(2))
        return out

    def _turned(self, x_BTD: Tensor, angles: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys turned by their angles, and values."""
        layers = (self.q_proj, self.k_proj, self.v_proj)
        whole = self.q_norm is None and angles[0].shape[-1] == self.head_dim  # nothing between product and rotation
        qkv = joined(x_BTD, layers) if whole else None
        if qkv is not None:
            return fused.rotated(qkv, *angles, self.heads)
        q_BTHK, k_BTGK, v_BTGK = (layer(x_BTD).unflatten(-1, (-1, self.head_dim)) for layer in layers)
        if self.q_norm is not None and self.k_norm is not None:
            q_BTHK, k_BTGK = self.q_norm(q_BTHK), self.k_norm(k_BTGK)
        return rotate(q_BTHK, *angles), rotate(k_BTGK, *angles), v_BTGK


class Block(nn.Module):
    """One pre-norm block: attention, then a feed-forward part or experts."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        moe = config.experts_of(layer)
        self.attention_norm = RMSNorm(config.width, eps=config.norm_eps)
        self.attention = SelfAttention(config) if config.latent is None else LatentAttention(config)
        self.ffn_norm = RMSNorm(config.width, eps=config.norm_eps)
        self.ffn = (
            FeedForward(width=config.width, ffn_width=config.ffn_width)
            if moe is None
            else MoEFeedForward(moe, width=config.width, bias=config.router_bias)
        )

    def forward(
        self,
        x_BTD: Tensor,
        angles: tuple[Tensor, Tensor],
        documents: DocumentMask | None,
        counted_BT: Tensor | None = None,
        slots: Slots | None = None,
        known: KnownRoutes | None = None,
        visited: list[Tensor] | None = None,
    ) -> tuple[Tensor, Routing | None]:
        """(B, T, D), and how the counted tokens were routed, where there are experts and tokens are counted."""
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), angles, documents, slots)
        if isinstance(self.ffn, MoEFeedForward):
            out_BTD, routing = self.ffn(self.ffn_norm(x_BTD), counted_BT, known, visited)
            return x_BTD + out_BTD, routing
        out: Tensor = x_BTD + self.ffn(self.ffn_norm(x_BTD))
        return out, None


class Decoder(nn.Module):
    """The network of a `ModelConfig` whose vocabulary is known.

    `activation_checkpointing` keeps only each block's input and computes the block again in the backward pass: the
    same gradients, about a third more work, a fraction of the memory. `routing`: how the last forward pass with
    gradients in training mode routed its tokens, loads (layers, E) and rerouted (layers,) of the blocks with experts,
    and the balance loss summed over them; None without experts. weights_version: raised by every change of weights in
    place, so that copies in another layout (the sampling engine's) are made anew. adapter: what `adapters.add_adapter`
    has put beside the weights, which are frozen then; adapter_is_off: it takes no part now.
    """

    def __init__(self, config: ModelConfig, *, activation_checkpointing: bool = False) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = activation_checkpointing
        self.embedding = nn.Embedding(config.vocab, config.width)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = RMSNorm(config.width, eps=config.norm_eps)
        vocabulary = not config.tied_head and not config.score_head
        self.head = nn.Linear(config.width, config.vocab, bias=False) if vocabulary else None
        self.score = nn.Linear(config.width, 1, bias=False) if config.score_head else None
        self.routing: Routing | None = None
        self.weights_version = 0
        self.adapter: Adapter | None = None
        self.adapter_is_off = False
        self.register_load_state_dict_post_hook(_loaded)

    def weights_changed(self) -> None:
        """Call it after every write to the weights in place; a stage's step and `load_state_dict` do."""
        self.weights_version += 1

    def trained_parameters(self) -> list[nn.Parameter]:
        """Those that are not frozen."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    @property
    def head_weight(self) -> Tensor:
        """(V, D): the matrix that turns hidden states into logits; the embedding itself when tied.

        Sharded models hold it whole between their forward and backward passes: read it after the forward pass.
        Raises `UserError` for a model that ends in a score.
        """
        if self.score is not None:
            raise UserError("this model ends in a score and predicts no tokens; the run needs a language model")
        return self.embedding.weight if self.head is None else self.head.weight

    def forward(
        self,
        input_ids_BT: Tensor,
        position_ids_BT: Tensor,
        documents: DocumentMask | None = None,
        cache: Cache | None = None,
        rows: Tensor | slice | None = None,
        counted: Tensor | None = None,
        known: KnownRoutes | None = None,
        visited: list[Tensor] | None = None,
    ) -> Tensor:
        """Hidden states (B, T, D) after the final norm, in the compute dtype.

        documents None: each sequence is one document. With a `cache`, call row b continues its row `rows[b]` (None: b):
        tokens stand at their positions, which follow on from those that the row holds; -1 is padding, whose result
        means nothing. `counted` (B, T) bool: the tokens that enter loads and balance loss of the experts, None for all.
        known: the experts that tokens visited before. visited, with a `cache`: gets those of each block, (B T, A).
        """
        x_BTD = self.embedding(input_ids_BT)
        device_type = x_BTD.device.type
        if torch.is_autocast_enabled(device_type):
            # the residual stream too is kept in the compute dtype: half the memory traffic of every norm and sum
            x_BTD = x_BTD.to(torch.get_autocast_dtype(device_type))
        if cache is not None:
            return self._forward_cached(x_BTD, cache.place(position_ids_BT, rows), visited)
        angles = rotary_angles(position_ids_BT, self.config)
        counts = self.config.moe is not None and self.training and torch.is_grad_enabled()
        if counts and counted is None:
            counted = torch.ones_like(input_ids_BT, dtype=torch.bool)
        x_BTD, routings = self._through_blocks(x_BTD, angles, documents, counted if counts else None, known)
        if counts:
            loads, balance, rerouted = (torch.stack(values) for values in zip(*routings, strict=True))
            self.routing = Routing(loads=loads, balance=balance.sum(), rerouted=rerouted)
        out: Tensor = self.norm(x_BTD)
        return out

    def _through_blocks(
        self,
        x_BTD: Tensor,
        angles: tuple[Tensor, Tensor],
        documents: DocumentMask | None,
        counted: Tensor | None,
        known: KnownRoutes | None,
    ) -> tuple[Tensor, list[Routing]]:
        """The residual stream behind the last block, and the routing of each block that counts its tokens."""
        near = documents
        if self.config.sliding_window is not None:
            near = slide(documents, self.config.sliding_window, x_BTD.shape[1], x_BTD.device)
        drops = self.adapter is not None and self.adapter.dropout > 0  # the same again, in the second pass
        routings, first = [], 0 if self.config.moe is None else self.config.moe.first_dense
        for number, block in enumerate(self.blocks):
            seen = documents if self.config.window(number) is None else near
            own = None if known is None or number < first else known.of(number - first)
            arguments = (x_BTD, angles, seen, counted, None, own)
            if self.activation_checkpointing and torch.is_grad_enabled():
                x_BTD, routing = checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=drops)
            else:
                x_BTD, routing = block(*arguments)
            if routing is not None:
                routings.append(routing)
        return x_BTD, routings

    def _forward_cached(self, x_BTD: Tensor, place: CallSlots, visited: list[Tensor] | None) -> Tensor:
        for number, block in enumerate(self.blocks):
            x_BTD, _ = block(x_BTD, place.angles, None, None, place.layer(number), None, visited)
        out: Tensor = self.norm(x_BTD)
        return out

    @torch.no_grad()
    def move_router_biases(self, loads: Tensor) -> None:
        """Balance the experts after a step whose visits, over micro-batches and ranks, were `loads` (layers, E)."""
        moe = self.config.moe
        if moe is None or not moe.bias_rate:
            return
        experts = [block.ffn for block in self.blocks if isinstance(block.ffn, MoEFeedForward)]
        for ffn, loads_E in zip(experts, loads, strict=True):
            bias_E = ffn.router.bias
            assert bias_E is not None
            bias_E.copy_(balanced(bias_E, loads_E, moe.bias_rate))

    def logits(self, hidden_BTD: Tensor, head_VD: Tensor | None = None) -> Tensor:
        """(B, T, V), whole: for sampling and comparison; training goes through `losses.linear_cross_entropy`. head_VD:
        in place of the model's own, in its dtype whatever autocast says."""
        if head_VD is None:
            return self.capped(F.linear(hidden_BTD, self.head_weight))
        with torch.autocast(hidden_BTD.device.type, enabled=False):
            return self.capped(F.linear(hidden_BTD.to(head_VD.dtype), head_VD))

    def scores(self, hidden_ND: Tensor) -> Tensor:
        """(N,) fp32, also where the hidden states are not: differences of scores are small beside them."""
        assert self.score is not None
        return (hidden_ND.float() * self.score.weight[0].float()).sum(
            -1
        )  # no product of matrices: autocast rounds these

    def capped(self, logits: Tensor) -> Tensor:
        """Products with the head as logits: c tanh(x / c), where the model has a cap."""
        cap = self.config.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    @torch.no_grad()
    def init_weights(self, *, seed: int) -> None:
        """Fresh weights. Norms are 1, biases 0; matrices are normal with `init_std`, those that write into the residual
        stream (o_proj, down_proj) with init_std / sqrt(2 * layers), so that its variance does not grow with depth, or 0
        where `residual_init` says so. A score is normal with 1 / (width + 1): nothing is judged better than another at
        the start.

        Every parameter draws from a CPU generator seeded by (seed, its name): the weights depend neither on the order
        of construction nor on the device nor on how many ranks share a parameter.
        """
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            residual = name.endswith(("o_proj.weight", "down_proj.weight", "experts.down_proj"))
            std = self.config.init_std
            if residual:
                std = 0.0 if self.config.residual_init == "zero" else std / (2 * self.config.layers) ** 0.5
            if name == SCORE:
                std = score_std(self.config)
            fill(parameter, normal(parameter.shape, std, seed=derive(seed, "weights", name)))
        for buffer in self.buffers():  # the routers' choice biases
            buffer.zero_()


def build(
    config: ModelConfig, *, seed: int, device: torch.device | None = None, activation_checkpointing: bool = False
) -> Decoder:
    """A decoder with fresh fp32 weights on `device` (CPU by default), without drawing any weight twice."""
    with torch.device("meta"):
        model = Decoder(config, activation_checkpointing=activation_checkpointing).float()  # whatever the default is
    model.to_empty(device=device or torch.device("cpu"))
    model.init_weights(seed=seed)
    return model


def compile_model(model: Decoder, *, unit: Literal["model", "block"]) -> None:
    """Compile in place, so that the names in the state dict stay.

    `model` makes one graph (fastest steps; compile time grows with depth), `block` compiles one block once for all of
    them (starts sooner, and is the one that works when blocks are sharded). Do it before sharding, for blocks, and
    before the first forward pass. Every shape of the sequences has a graph of its own.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, SHAPES)
    device = model.embedding.weight.device
    if device.type != "cuda":
        packed_attention.is_there()  # which may call a C compiler, and compiled code cannot
    available.is_there(device)  # found once, here: compiled code cannot look for it
    if unit == "model":
        model.compile(dynamic=False)
        return
    for block in model.blocks:
        block.compile(dynamic=False)


def _loaded(model: nn.Module, _: object) -> None:
    """After `load_state_dict`."""
    assert isinstance(model, Decoder)
    model.weights_changed()


def fill(parameter: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into a parameter that may be one rank's shard of it."""
    parameter.copy_(shared_out(value, parameter) if is_sharded(parameter) else value)
