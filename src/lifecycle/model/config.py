"""The config of a decoder: sizes and switches, checked once, together and against what its family can export.

This dataclass is the `_target_` of every file under conf/model. It knows arithmetic only; the network is in decoder.py
and the names of the Hugging Face architectures are in huggingface.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from difflib import get_close_matches

from lifecycle.errors import UserError
from lifecycle.model.families import FAMILIES, family_of
from lifecycle.model.family import ExpertSwitches
from lifecycle.model.parts import MoE, not_positive
from lifecycle.model.sizes import ModelSizes

VOCAB_MULTIPLE = 64
"""Vocabularies are padded up to this: matrix units want aligned edges, and it divides over ranks."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig(ModelSizes):
    """`ModelSizes` that can be built, and exported as its family. Errors: `UserError` with every fault at once."""

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
        elif self.sliding_window is not None and self.sliding_from >= self.layers > 0:
            faults.append(
                f"model.sliding_from is {self.sliding_from} of {self.layers} layers; leave a block for the sliding "
                "window, or set model.sliding_window=null model.sliding_from=0"
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
        """Refuse sequences of `length` tokens if the model has fewer positions. Errors: `UserError`."""
        if length > self.max_positions:
            raise UserError(
                f"stage.sequence_length is {length}, more than model.max_positions={self.max_positions}: "
                f"shorten the sequences (stage.sequence_length={self.max_positions}), or choose a model with more "
                "positions"
            )


def family_faults(config: ModelConfig) -> list[str]:
    """Every switch of the model that its family's architecture does not have, with what to type."""
    family = family_of(config.family).switches
    faults = []
    for key, wanted in (("qkv_bias", family.qkv_bias), ("qk_norm", family.qk_norm)):
        value = getattr(config, key)
        if wanted is not None and value != wanted:
            faults.append(_misfit(config, key, value, wanted))
    if config.score_head and not family.score_head:
        faults.append(
            f"model.score_head is true, but transformers has no class of family {config.family} that ends in a score; "
            "begin with a model of another family"
        )
    if config.sliding_window is not None and family.sliding == "never":
        faults.append(_misfit(config, "sliding_window", config.sliding_window, None))
    elif config.sliding_from and family.sliding == "all":
        faults.append(_misfit(config, "sliding_from", config.sliding_from, 0))
    if config.rotary_share != 1 and not family.partial_rotary:
        faults.append(_misfit(config, "rotary_share", config.rotary_share, 1.0))
    if family.whole_heads and config.heads > 0 and config.width % config.heads:
        faults.append(
            f"model.width is {config.width}, but family {config.family} exports to an architecture where it is a "
            f"multiple of heads ({config.heads}); choose such a width or another family"
        )
    if family.latent != (config.latent is not None):
        faults.append(_presence(config, "latent", family.latent))
    if config.moe is None:
        return [*faults, _presence(config, "moe", True)] if not family.dense else faults
    if family.experts is None:
        return [*faults, _presence(config, "moe", False)]
    return faults + _routing_faults(config, config.moe, family.experts)


def _routing_faults(config: ModelConfig, moe: MoE, family: ExpertSwitches) -> list[str]:
    wanted: dict[str, object] = {"score": family.score}
    if family.normalise is not None:
        wanted["normalise"] = family.normalise
    if not family.dense_first:
        wanted["first_dense"] = 0
    if not family.groups:
        wanted |= {"groups": 1}
    if not family.scale:
        wanted |= {"scale": 1.0}
    if not family.bias:
        wanted |= {"bias_rate": 0.0}
    wanted["shared_gate"] = family.shared == "gated"
    faults = [
        _misfit(config, f"moe.{key}", getattr(moe, key), value)
        for key, value in wanted.items()
        if getattr(moe, key) != value
    ]
    if family.shared == "none" and moe.shared:
        faults.append(_misfit(config, "moe.shared", moe.shared, 0))
    if family.shared != "none" and not moe.shared:
        faults.append(_misfit(config, "moe.shared", moe.shared, 1))
    if family.shared == "plain" and moe.shared_width != moe.shared * moe.ffn_width:
        faults.append(_misfit(config, "moe.shared_ffn_width", moe.shared_ffn_width, None))
    return faults


def _misfit(config: ModelConfig, key: str, value: object, wanted: object) -> str:
    return (
        f"model.{key} is {_typed(value)}, but family {config.family} exports to an architecture where it is "
        f"{_typed(wanted)}; set model.{key}={_typed(wanted)} or another family"
    )


def _presence(config: ModelConfig, key: str, needed: bool) -> str:
    verb = "always has" if needed else "does not have"
    remedy = f"give model.{key}" if needed else f"set model.{key}=null"
    return f"family {config.family} {verb} model.{key}; {remedy} or choose another family"


def _typed(value: object) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else "null" if value is None else str(value)
