"""`stage=tokenizer`: train a tokenizer on the mixture (or take a given one) and report how well it fits each source.

python -m lifecycle stage=tokenizer data.tokenizer.vocab_size=16384 run=tokenizer-16k
python -m lifecycle data.tokenizer=outputs/tokenizer-16k/tokenizer
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lifecycle.bounds import Count
from lifecycle.data.clean.source import Source
from lifecycle.data.corpus import Corpus
from lifecycle.data.stream.documents import RawDocuments
from lifecycle.system import atomic, owner
from lifecycle.system.unicode import well_formed
from lifecycle.tokenizer.extend import extend
from lifecycle.tokenizer.tokenizer import Tokenizer

LONGEST = 20  # tokens listed by length: junk in the training text shows there first
BUFFER = 1000  # documents that a sample is shuffled through


def tokenizer(
    data: Corpus, folder: Path, sample_bytes: Count, new_tokens: list[str], split_digits: bool
) -> dict[str, Any]:
    """Save the tokenizer of `data` in `folder/tokenizer`, and its report (also returned) beside it as tokenizer.json.

    new_tokens, split_digits: what it gets beside what it has (see `extend`).
    The rates are measured on `sample_bytes` of each source: of the share that is held out of it, else of its training
    text, on which a tokenizer trained here does slightly better (`held_out` in the report says which).
    """
    made = extend(data.tokenizer, new_tokens=new_tokens, split_digits=split_digits)
    owner.check(folder)
    made.save(folder / "tokenizer")
    result = report(made, {source.name: sample(source, sample_bytes, data.seed) for source in data.sources})
    for source in data.sources:
        result["sources"][source.name]["held_out"] = source.held_out is not None
    atomic.write(folder / "tokenizer.json", json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    print(table(result))
    return result


def table(result: Mapping[str, Any]) -> str:
    """The rates of a report as lines for a terminal."""
    lines = [f"{result['vocab_size']} tokens, {result['used']:.0%} of them used in the samples", "tokens per byte:"]
    for name, one in result["sources"].items():
        text = "held-out" if one["held_out"] else "training"
        rates = f"{one['tokens_per_byte']:.4f}  ({one['bytes_per_token']:.2f} bytes per token)"
        lines.append(f"  {name:20} {rates}  on {one['bytes']:,} bytes of {text} text")
    return "\n".join(lines)


def report(tokenizer: Tokenizer, samples: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """How `tokenizer` fits texts: bytes, tokens and their ratios by source, and the longest tokens there are.

    `used` is the share of the vocabulary, special tokens apart, that occurs in any sample.
    """
    sources = {}
    seen = np.zeros(tokenizer.vocab_size, bool)
    for name, texts in samples.items():
        ids = tokenizer.encode_batch(texts)
        for one in ids:
            seen[one] = True
        size = sum(len(well_formed(text).encode()) for text in texts)
        tokens = sum(map(len, ids))
        sources[name] = {
            "documents": len(texts),
            "bytes": size,
            "tokens": tokens,
            "tokens_per_byte": tokens / max(size, 1),
            "bytes_per_token": size / max(tokens, 1),
        }
    ordinary = tokenizer.byte_lengths > 0
    order = np.argsort(-tokenizer.byte_lengths, kind="stable")[:LONGEST]
    return {
        "vocab_size": tokenizer.vocab_size,
        "sha256": tokenizer.sha256,
        "used": float(seen[ordinary].mean()),
        "sources": sources,
        "longest": [tokenizer.decode([int(index)]) for index in order],
    }


def sample(source: Source, size: int, seed: int) -> list[str]:
    """Texts of one source, held-out ones where it has a held-out share, until they have `size` bytes or it ends."""
    once = replace(source, spec=replace(source.spec, max_epochs=1))
    held = source.held_out is not None
    documents = RawDocuments.alone(once, lambda texts: [], seed=seed, buffer=BUFFER, held=held)
    texts = []
    for text in documents.texts():
        texts.append(text)
        size -= len(well_formed(text).encode())
        if size <= 0:
            break
    return texts
