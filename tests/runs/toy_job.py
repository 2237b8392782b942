"""A job that asks for a model and data together, as evaluation does: one function, one YAML (`test_job.py`)."""

from pathlib import Path
from typing import Any

import torch

from lifecycle.batch import Example
from lifecycle.data.corpus import Corpus
from lifecycle.model import Decoder
from lifecycle.tokenizer.tokenizer import Tokenizer


def measure(*, model: Decoder, tokenizer: Tokenizer, data: Corpus, folder: Path, seed: int, documents: int) -> Any:
    """The parameters of the model, and the tokens of some documents of every source under its tokenizer."""
    found = {}
    for source in data.sources:
        reader = data.documents(source.name)
        items = [reader.next() for _ in range(documents)]
        ids = [item.ids.tolist() for item in items if isinstance(item, Example)]
        positions = torch.arange(len(ids[0]))[None]
        assert torch.isfinite(model.logits(model(torch.tensor([ids[0]]), positions))).all()
        found[source.name] = sum(map(len, ids))
    (folder / "found.txt").write_text(f"{seed}: {found}")
    return {"parameters": sum(weight.numel() for weight in model.parameters()), "tokens": found}


def alone(*, folder: Path, seed: int) -> int:
    """A job that asks for next to nothing."""
    (folder / "drawn.txt").write_text(str(seed))
    if seed == 13:
        raise RuntimeError("bad luck")
    return seed
