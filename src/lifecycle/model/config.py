"""What a decoder is: sizes and switches, checked once, and the counts that follow from them.

This dataclass is the `_target_` of every file under conf/model. It knows arithmetic only; the network is in decoder.py
and the names of the Hugging Face architectures are in huggingface.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from difflib import get_close_matches

from lifecycle.errors import UserError
from lifecycle.model.family import FAMILIES, family_faults, family_of
from lifecycle.model.parts import Latent, MoE, RopeScaling, not_positive

VOCAB_MULTIPLE = 64
"""Vocabularies are padded up to this: matrix units want aligned edges, and it divides over ranks."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes and switches of one decoder. Errors: `UserError` that lists every fault of the combination at once.

    vocab_size None means: from the tokenizer, by `with_vocab`, before the network is built. qkv_bias: of the three
    input projections of attention. sliding_window: keys that a query sees, itself included, in the blocks from
    `sliding_from` on. rotary_share: part of a head's width that turns with the position, from the front.
    logit_softcap c: logits become c tanh(logits / c) (arXiv 2408.00118, section 2). With `latent`, kv_heads is heads
    and head_dim is nope_dim + rope_dim; ffn_width is that of the dense blocks.
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

    def __post_init__(self) -> None:
        faults = [*self._sizes(), *self._combinations(), *self._latent_faults()]
        if self.family in FAMILIES:
            faults += family_faults(self)
        else:
            near = [f": type model.family={name}" for name in get_close_matches(str(self.family), FAMILIES, n=1)]
            faults.append(f"model.family is {self.family!r}; choose one of {', '.join(FAMILIES)}{''.join(near)}")
        if faults:
            raise UserError("model: this decoder cannot be built:\n" + "\n".join(f"  - {fault}" for fault in faults))

    def _sizes(self) -> list[str]:
        names = "layers width heads kv_heads head_dim ffn_width vocab_size max_positions rope_theta norm_eps init_std"
        positive = {key: getattr(self, key) for key in [*names.split(), "sliding_window", "logit_softcap"]}
        return not_positive("model", positive)

    def _combinations(self) -> list[str]:
        faults = []
        if self.kv_heads > 0 and self.heads > 0 and self.heads % self.kv_heads:
            faults.append(
                f"model.heads is {self.heads} and model.kv_heads is {self.kv_heads}; "
                "heads must be a multiple of kv_heads, so that each key-value head serves equally many"
            )
        if self.head_dim % 2:
            faults.append(f"model.head_dim is {self.head_dim}; it must be even, because rotary positions turn pairs")
        if not 0 < self.rotary_share <= 1 or self.rotary_dim < 2 or self.rotary_dim % 2:
            faults.append(
                f"model.rotary_share is {self.rotary_share}, which turns {self.rotary_dim} of a head's "
                f"{self.head_dim} dimensions; choose a share of at most 1 that gives an even number above 0"
            )
        if self.sliding_from < 0 or (self.sliding_from and self.sliding_window is None):
            faults.append(
                f"model.sliding_from is {self.sliding_from}; it is the first block with a sliding window: 0 or above, "
                "and 0 without model.sliding_window"
            )
        if self.moe is not None and self.moe.first_dense >= self.layers:
            faults.append(
                f"model.moe.first_dense is {self.moe.first_dense} of {self.layers} layers; leave a block for the "
                "experts, or set model.moe=null"
            )
        return faults

    def _latent_faults(self) -> list[str]:
        if self.latent is None:
            return []
        faults, head = [], self.latent.nope_dim + self.latent.rope_dim
        if self.head_dim != head:
            faults.append(f"model.head_dim is {self.head_dim}; with model.latent it is nope_dim + rope_dim = {head}")
        if self.kv_heads != self.heads:
            faults.append(f"model.kv_heads is {self.kv_heads}; with model.latent every head has its own: {self.heads}")
        plain = {"qkv_bias": False, "qk_norm": False, "rotary_share": 1.0, "sliding_window": None}
        for key, value in plain.items():
            if getattr(self, key) != value:
                faults.append(f"model.{key} is {getattr(self, key)}; model.latent is built without it")
        return faults

    @property
    def vocab(self) -> int:
        """The vocabulary's size, known. Errors: `UserError` while it still waits for a tokenizer."""
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

    def window(self, layer: int) -> int | None:
        """How many keys a query of this block sees, itself included; None: all before it."""
        return self.sliding_window if layer >= self.sliding_from else None

    def experts_of(self, layer: int) -> MoE | None:
        """The mixture of experts of this block, or None where it is dense."""
        return self.moe if self.moe is not None and layer >= self.moe.first_dense else None

    @property
    def router_bias(self) -> bool:
        """Whether routers carry a choice bias: it is moved by training, or the family's architecture holds one."""
        experts = family_of(self.family).switches.experts
        return self.moe is not None and (self.moe.bias_rate > 0 or (experts is not None and experts.bias))

    def with_vocab(self, tokens: int) -> ModelConfig:
        """The same model with room for `tokens` tokens: padded up to a multiple of 64, or the stated number if given.

        Errors: `UserError` if a stated vocab_size is smaller than the tokenizer.
        """
        if self.vocab_size is None:
            return replace(self, vocab_size=-(-tokens // VOCAB_MULTIPLE) * VOCAB_MULTIPLE)
        if self.vocab_size < tokens:
            raise UserError(
                f"model.vocab_size is {self.vocab_size}, but the tokenizer has {tokens} tokens; "
                "set model.vocab_size=null to take it from the tokenizer, or choose a smaller tokenizer"
            )
        return self

    def check_rows(self, length: int) -> None:
        """Refuse rows that are longer than the model has positions. Errors: `UserError`."""
        if length > self.max_positions:
            raise UserError(
                f"stage.sequence_length is {length}, more than model.max_positions={self.max_positions}: "
                f"shorten the rows (stage.sequence_length={self.max_positions}), or choose a model with more positions"
            )

    def embedding_parameters(self) -> int:
        """Parameters of the input embedding (and of the head too when tied): vocabulary x width."""
        return self.vocab * self.width

    def attention_parameters(self) -> int:
        """Parameters of one block's attention, biases and inner norms included."""
        if self.latent is not None:
            return self.latent.parameters(self.width, self.heads)
        kv_width = self.kv_heads * self.head_dim
        bias = self.attention_width + 2 * kv_width if self.qkv_bias else 0
        norms = 2 * self.head_dim if self.qk_norm else 0
        return 2 * self.width * (self.attention_width + kv_width) + bias + norms

    def block_parameters(self, layer: int = 0, *, active: bool = False) -> int:
        """Parameters of one block: attention, feed-forward or experts, norms. `active`: those one token visits."""
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
        """All parameters, exactly; a tied head counts once."""
        return self._counted(active=False)

    def active_parameters(self) -> int:
        """Parameters that one token passes through: all but the experts it does not visit."""
        return self._counted(active=True)

    def _counted(self, *, active: bool) -> int:
        embeddings = self.embedding_parameters() * (1 if self.tied_head else 2)
        blocks = sum(self.block_parameters(layer, active=active) for layer in range(self.layers))
        return blocks + embeddings + self.width

    def flops_per_token(self, sequence_length: int) -> float:
        """FLOPs of forward and backward for one trained token: 6 N + 12 L A T (PaLM, arXiv 2204.02311, appendix B).

        N counts every active parameter but the input embedding of an untied model, which is a look-up: so the head
        counts once, tied or not. L layers, A width of all query heads (latent attention: the mean of its query and
        value widths), T row length in tokens. Attention is counted in full (neither the causal half nor windows nor
        document masks are taken off), and recomputation is never counted.
        """
        lookup = 0 if self.tied_head else self.embedding_parameters()
        matmul = 6 * (self.active_parameters() - lookup)
        value = self.head_dim if self.latent is None else self.latent.v_dim
        attended = self.heads * (self.head_dim + value)
        return float(matmul + 6 * self.layers * attended * sequence_length)
