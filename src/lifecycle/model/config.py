"""What a decoder is: sizes and switches, checked once, and the counts that follow from them.

This dataclass is the `_target_` of every file under conf/model. It knows arithmetic only; the network is in decoder.py
and the names of the Hugging Face architectures are in huggingface.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from lifecycle.errors import UserError

Family = Literal["llama", "qwen3"]
"""The architecture of `transformers` that a model exports to: qwen3 is llama with normalised queries and keys."""

VOCAB_MULTIPLE = 64
"""Vocabularies are padded up to this: matrix units want aligned edges, and it divides over ranks."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes of one decoder. Errors: `UserError` that lists every fault of the combination at once.

    vocab_size None means: from the tokenizer, by `with_vocab`, before the network is built.
    """

    family: Family
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

    def __post_init__(self) -> None:
        faults = [*self._sizes(), *self._combinations()]
        if faults:
            raise UserError("model: this decoder cannot be built:\n" + "\n".join(f"  - {fault}" for fault in faults))

    def _sizes(self) -> list[str]:
        positive = {
            "layers": self.layers,
            "width": self.width,
            "heads": self.heads,
            "kv_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "ffn_width": self.ffn_width,
            "vocab_size": 1 if self.vocab_size is None else self.vocab_size,
            "max_positions": self.max_positions,
            "rope_theta": self.rope_theta,
            "norm_eps": self.norm_eps,
            "init_std": self.init_std,
        }
        return [f"model.{key} is {value}; it must be above 0" for key, value in positive.items() if not value > 0]

    def _combinations(self) -> list[str]:
        faults = []
        if self.family not in get_args(Family):
            faults.append(f"model.family is {self.family!r}; choose one of {', '.join(get_args(Family))}")
        if self.kv_heads > 0 and self.heads % self.kv_heads:
            faults.append(
                f"model.heads is {self.heads} and model.kv_heads is {self.kv_heads}; "
                "heads must be a multiple of kv_heads, so that each key-value head serves equally many"
            )
        if self.head_dim % 2:
            faults.append(f"model.head_dim is {self.head_dim}; it must be even, because rotary positions turn pairs")
        if self.family in get_args(Family) and self.qk_norm != (self.family == "qwen3"):
            wanted = "true" if self.family == "qwen3" else "false"
            faults.append(
                f"model.qk_norm is {str(self.qk_norm).lower()}, but family {self.family} exports to an architecture "
                f"where it is {wanted}; set model.qk_norm={wanted} or the other family"
            )
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

    def embedding_parameters(self) -> int:
        """Parameters of the input embedding (and of the head too when tied): vocabulary x width."""
        return self.vocab * self.width

    def block_parameters(self) -> int:
        """Parameters of one block: attention, feed-forward, norms."""
        attention = 2 * self.width * self.attention_width + 2 * self.width * self.kv_heads * self.head_dim
        norms = 2 * self.width + (2 * self.head_dim if self.qk_norm else 0)
        return attention + 3 * self.width * self.ffn_width + norms

    def parameters(self) -> int:
        """All parameters, exactly; a tied head counts once."""
        embeddings = self.embedding_parameters() * (1 if self.tied_head else 2)
        return self.layers * self.block_parameters() + embeddings + self.width

    def active_parameters(self) -> int:
        """Parameters that one token passes through; all of them in a dense model."""
        return self.parameters()

    def flops_per_token(self, sequence_length: int) -> float:
        """FLOPs of forward and backward for one trained token: 6 N + 12 L A T (PaLM, arXiv 2204.02311, appendix B).

        N counts every parameter but the input embedding of an untied model, which is a look-up: so the head counts
        once, tied or not. L layers, A width of all query heads, T row length in tokens. Attention is counted in full
        (neither the causal half nor document masks are taken off), and recomputation is never counted.
        """
        lookup = 0 if self.tied_head else self.embedding_parameters()
        matmul = 6 * (self.active_parameters() - lookup)
        return float(matmul + 12 * self.layers * self.attention_width * sequence_length)
