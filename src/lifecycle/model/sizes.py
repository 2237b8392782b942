"""The sizes and switches of one decoder, and the numbers that follow from them: parameters, FLOPs, widths.

Plain arithmetic over fields that are not checked here; `ModelConfig` (config.py) is the same with its checks. Code that
reads a config but never makes one (the families, their keys of a config.json) is typed against this class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lifecycle.errors import UserError
from lifecycle.model.parts import Latent, MoE, RopeScaling

ResidualInit = Literal["scaled", "zero"]


@dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """Sizes and switches of one decoder.

    vocab_size None means: from the tokenizer, by `ModelConfig.with_vocab`, before the network is built. qkv_bias: of
    the three input projections of attention. sliding_window: keys that a query sees, itself included, in the blocks
    from `sliding_from` on. rotary_share: part of a head's width that turns with the position, from the front.
    logit_softcap c: logits become c tanh(logits / c) (arXiv 2408.00118, section 2). With `latent`, kv_heads is heads
    and head_dim is nope_dim + rope_dim; ffn_width is that of the dense blocks. score_head: it ends in one number a
    position, as reward models do, and predicts no tokens; `tied_head` means nothing then. residual_init: of the fresh
    weights that write into the residual stream; "zero": every block begins as the identity.
    """

    family: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_width: int
    vocab_size: int | None
    max_positions: int
    rope_theta: float
    norm_eps: float
    qk_norm: bool
    tied_head: bool
    init_std: float
    qkv_bias: bool = False
    sliding_window: int | None = None
    sliding_from: int = 0
    rotary_share: float = 1.0
    rope_scaling: RopeScaling | None = None
    logit_softcap: float | None = None
    moe: MoE | None = None
    latent: Latent | None = None
    score_head: bool = False
    residual_init: ResidualInit = "scaled"

    @property
    def vocab(self) -> int:
        """The vocabulary's size. Errors: `UserError` while it is not known, see `ModelConfig.with_vocab`."""
        if self.vocab_size is None:
            raise UserError("model.vocab_size is null; give a number, or a tokenizer by ModelConfig.with_vocab")
        return self.vocab_size

    @property
    def attention_width(self) -> int:
        """Width of all query heads together; differs from `width` in some models."""
        return self.heads * self.head_dim

    @property
    def rotary_dim(self) -> int:
        """How many of a head's dimensions turn with the position."""
        return int(self.head_dim * self.rotary_share) if self.latent is None else self.latent.rope_dim

    @property
    def stretched_theta(self) -> float:
        """The base of the angles' frequencies. NTK scaling is a larger base: theta factor^(d / (d - 2)), d the rotated
        dimensions; the only pair of two turns by 1 a position, whatever the base."""
        scaling, d = self.rope_scaling, self.rotary_dim
        if scaling is None or scaling.kind != "ntk" or d == 2:
            return self.rope_theta
        return float(self.rope_theta * scaling.factor ** (d / (d - 2)))

    def window(self, layer: int) -> int | None:
        """How many keys a query of this block sees, itself included; None: all before it."""
        return self.sliding_window if layer >= self.sliding_from else None

    def experts_of(self, layer: int) -> MoE | None:
        """The mixture of experts of this block, or None where it is dense."""
        return self.moe if self.moe is not None and layer >= self.moe.first_dense else None

    @property
    def outputs(self) -> int:
        """Numbers that the head gives for a position: logits, or one score."""
        return 1 if self.score_head else self.vocab

    def embedding_parameters(self) -> int:
        """Parameters of the input embedding (and of the head too when tied): vocabulary x width."""
        return self.vocab * self.width

    def edge_parameters(self) -> int:
        """Parameters of embedding and head together; a tied head counts once."""
        shared = self.tied_head and not self.score_head
        return self.embedding_parameters() + (0 if shared else self.outputs * self.width)

    def attention_parameters(self) -> int:
        """Parameters of one block's attention, biases and inner norms included."""
        if self.latent is not None:
            return self.latent.parameters(self.width, self.heads)
        kv_width = self.kv_heads * self.head_dim
        bias = self.attention_width + 2 * kv_width if self.qkv_bias else 0
        norms = 2 * self.head_dim if self.qk_norm else 0
        return 2 * self.width * (self.attention_width + kv_width) + bias + norms

    def block_parameters(self, layer: int = 0, *, active: bool = False) -> int:
        """Parameters of one block: attention, feed-forward or experts, norms. `active`: those that one token uses."""
        moe = self.experts_of(layer)
        ffn = 3 * self.width * self.ffn_width
        if moe is not None:
            ffn = moe.matrices(self.width, moe.active if active else moe.experts)
        return self.attention_parameters() + ffn + 2 * self.width

    def feed_forward_widths(self) -> tuple[float, float]:
        """Mean over blocks: inner width of the feed-forward parts that a token visits, and its copies for experts."""
        mixtures = [self.experts_of(layer) for layer in range(self.layers)]
        inner = [self.ffn_width if m is None else m.active * m.ffn_width + m.shared_width for m in mixtures]
        return sum(inner) / self.layers, sum(0 if m is None else m.active for m in mixtures) / self.layers

    def parameters(self) -> int:
        """The number of all parameters; a tied head counts once."""
        return self._counted(active=False)

    def active_parameters(self) -> int:
        """Parameters that one token passes through: all but the experts it does not visit."""
        return self._counted(active=True)

    def _counted(self, *, active: bool) -> int:
        blocks = sum(self.block_parameters(layer, active=active) for layer in range(self.layers))
        return blocks + self.edge_parameters() + self.width

    def flops_per_token(self, sequence_length: int) -> float:
        """FLOPs of forward and backward for one trained token: 6 N + 12 L A T (PaLM, arXiv 2204.02311, appendix B).

        N counts every active parameter but an input embedding that is no head too, which is a look-up: so the head
        counts once, tied or not. L layers, A width of all query heads (latent attention: the mean of its query and
        value widths), T tokens of a sequence. Attention is counted in full (neither the causal half nor windows nor
        document masks are taken off), and recomputation is never counted.
        """
        lookup = 0 if self.tied_head and not self.score_head else self.embedding_parameters()
        matmul = 6 * (self.active_parameters() - lookup)
        value = self.head_dim if self.latent is None else self.latent.v_dim
        attended = self.heads * (self.head_dim + value)
        return float(matmul + 6 * self.layers * attended * sequence_length)
