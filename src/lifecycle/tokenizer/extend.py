"""A given tokenizer with further tokens, or with single digits as tokens. The ids that it had stay as they were.

    extend(tokenizer, new_tokens=["<think>", "</think>"])     "<think>" in a document is one token from now on
    extend(tokenizer, split_digits=True)                      "2048" is 2, 0, 4, 8: sums can be learned digit by digit

A new token is part of a text, as a word is: it is found in documents and shown in decoded text. So it is no *special*
token in the sense of `transformers`: those are left out of decoded text, and a text cannot hold them here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tokenizers import AddedToken, pre_tokenizers
from tokenizers import Tokenizer as Backend

from lifecycle.errors import UserError
from lifecycle.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

DIGITS = {"type": "Digits", "individual_digits": True}


def extend(tokenizer: Tokenizer, *, new_tokens: Sequence[str] = (), split_digits: bool = False) -> Tokenizer:
    """`tokenizer` with `new_tokens` at the end of its vocabulary, and with every digit a token; itself if it has both.

    A name that is an added token of the tokenizer already keeps its id. Raises UserError for a name that is an ordinary
    or a special token there, and for `split_digits` where the tokenizer is no byte-level one.
    """
    backend = Backend.from_str(tokenizer.hf.backend_tokenizer.to_str())
    missing = _missing(backend, new_tokens)
    if missing:
        backend.add_tokens([AddedToken(name, normalized=False, special=False) for name in missing])
    apart = split_digits and _split_digits(backend)
    return Tokenizer(_wrapped(backend, tokenizer.hf)) if missing or apart else tokenizer


def _missing(backend: Backend, names: Sequence[str]) -> list[str]:
    """Those of `names` that are not there yet, in their order."""
    added = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    faults = []
    for name in names:
        if not name or name.isspace() or names.count(name) > 1:
            faults.append(f"{name!r} is empty, or named twice: leave it out")
        elif name in added and added[name].special:
            faults.append(f"{name!r} marks documents or turns in this tokenizer: choose another name")
        elif name not in added and backend.token_to_id(name) is not None:
            faults.append(f"{name!r} is an ordinary token already: leave it out, or choose another name")
    if faults:
        raise UserError("stage.new_tokens: " + "; ".join(dict.fromkeys(faults)))
    return [name for name in names if name not in added]


def _split_digits(backend: Backend) -> bool:
    """Put a splitter of digits before the pre-tokenizer; False where one is there."""
    old = backend.pre_tokenizer
    spec = json.loads(backend.to_str())["pre_tokenizer"] or {}
    parts = spec["pretokenizers"] if spec.get("type") == "Sequence" else [spec]
    if DIGITS in parts:
        return False
    if not any(part.get("type") == "ByteLevel" and not part["add_prefix_space"] for part in parts):
        raise UserError(
            "stage.split_digits=true is for byte-level tokenizers that add no space before a text (GPT-2, Llama 3, "
            f"Qwen, and those trained here); this one splits by {', '.join(str(p.get('type')) for p in parts)}: leave "
            "it out"
        )
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), old])
    return True


def _wrapped(backend: Backend, like: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """`backend` with the names and the chat template of `like`, as the class that takes tokenizer.json as it stands:
    those of single families (Qwen2Tokenizer) build their own pre-tokenizer instead."""
    from transformers import PreTrainedTokenizerFast  # here: it takes a second, which `tokenizer.py` spends late

    marks = {key: value for key, value in like.special_tokens_map.items() if isinstance(value, str)}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        name_or_path=like.name_or_path,
        **marks,
        **({"extra_special_tokens": list(like.extra_special_tokens)} if like.extra_special_tokens else {}),
        chat_template=like.chat_template,
        model_max_length=like.model_max_length,
        padding_side=like.padding_side,
        clean_up_tokenization_spaces=like.clean_up_tokenization_spaces,
    )
