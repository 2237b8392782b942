"""Adds rows to the embedding and the head of a trained model whose tokenizer has got more tokens.

grown = grow_embeddings(weights, old=2048, new=2054, rows=2112)

Every new row is the mean of the old ones, so the logit of a new token is the mean of the others', and nothing is drawn
at random. The mean bounds how much probability new tokens can take from the old ones; with rows near zero they could
take nearly all of it (Hewitt 2021, nlp.stanford.edu/~johnhew/vocab-expansion.html).

Shapes: V rows, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from lifecycle.model.config import ModelConfig

MATRICES = ("embedding.weight", "head.weight")  # the second where the head is not tied


def grow_config(config: ModelConfig, tokens: int) -> ModelConfig:
    """The model with room for `tokens` tokens: itself where they fit, else padded as a fresh model would be."""
    return config if tokens <= config.vocab else replace(config, vocab_size=None).with_vocab(tokens)


def grow_embeddings(weights: Mapping[str, Tensor], *, old: int, new: int, rows: int) -> dict[str, Tensor]:
    """The state dict with `rows` rows of embedding and head, for a vocabulary that went from `old` to `new` tokens.

    Rows of the old tokens, and of padding that stays padding, are kept bit for bit; the rest is the mean of the old
    tokens' rows. `weights` is not changed.
    """
    return {
        name: _grown(weight, old=old, new=new, rows=rows) if name in MATRICES else weight
        for name, weight in weights.items()
    }


def _grown(weight_VD: Tensor, *, old: int, new: int, rows: int) -> Tensor:
    mean_D = weight_VD[:old].double().mean(dim=0).to(weight_VD.dtype)  # fp64: a sum over 10^5 rows
    grown = mean_D.repeat(rows, 1)
    grown[:old] = weight_VD[:old]
    padding = slice(new, len(weight_VD))  # empty where the new tokens took all of it
    grown[padding] = weight_VD[padding]
    return grown
