"""Tokens that a stage adds to the vocabulary of its parent, before anything is built.

    stage.new_tokens: [<think>, </think>]   one token each in any text; their embeddings begin as the mean
    stage.split_digits: true                every digit is a token

The extended tokenizer is kept in the cache, is saved with the run and its export, and is what `data.tokenizer` names
from then on: config.yaml holds what was really used. The way to prepare data for such a stage is stage=tokenizer with
the same two keys, then stage=prepare with what it wrote.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lifecycle.errors import UserError
from lifecycle.lineage.parent import Parent
from lifecycle.model.grow import grow_config, grow_embeddings
from lifecycle.stages.run.inheritance import Vocabulary
from lifecycle.system.atomic import publish_folder
from lifecycle.system.cache import cache_folder
from lifecycle.tokenizer.extend import extend
from lifecycle.tokenizer.tokenizer import Tokenizer, load


def extended(parent: Parent, vocabulary: Vocabulary) -> Parent:
    """The parent with the tokens of `vocabulary` added; unchanged where there are none. Raises UserError for a parent
    without a tokenizer, and for names that cannot be tokens."""
    names, digits = vocabulary.new_tokens, vocabulary.split_digits
    if not (names or digits):
        return parent
    if parent.tokenizer is None:
        raise UserError(
            f"stage.new_tokens and stage.split_digits extend the parent's tokenizer, and {parent.name} has none: put "
            "its tokenizer.json and tokenizer_config.json there, or leave the two keys out"
        )
    before = load(parent.tokenizer)
    after = extend(before, new_tokens=names, split_digits=digits)
    return _grown(parent, before.vocab_size, after.vocab_size, str(_kept(before, after, names, digits=digits)))


def _grown(parent: Parent, old: int, new: int, tokenizer: str) -> Parent:
    model = grow_config(parent.model, new)
    return replace(
        parent,
        model=model,
        tokenizer=tokenizer,
        grown_from=old,
        read=lambda: grow_embeddings(parent.weights, old=old, new=new, rows=model.vocab),
    )


def _kept(before: Tokenizer, after: Tokenizer, names: Sequence[str], *, digits: bool) -> Path:
    """The folder in the cache that holds `after`, by what it was made from."""
    inputs = json.dumps([before.sha256, before.hf.chat_template, names, digits])
    folder = cache_folder() / "vocabulary" / hashlib.sha256(inputs.encode()).hexdigest()[:16]
    if not folder.is_dir():
        with publish_folder(folder, replace=False) as aside:
            after.save(aside)
    return folder
