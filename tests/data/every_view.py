"""Small sources of every view, whose rows say their own number, and what a data module makes of them."""

from __future__ import annotations

import json
import pickle
import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from tests.data.made import make_module

from lifecycle.batch import Item, PairBatch, PromptBatch, StepBatch, UnpairedBatch
from lifecycle.batch.item_arrays import PAIRED, sequences
from lifecycle.data.clean.source import BadRows
from lifecycle.data.module import DataModule
from lifecycle.data.read.spec import SourceSpec
from lifecycle.data.stream.pieces import Exhausted
from lifecycle.errors import UserError
from lifecycle.tokenizer.tokenizer import TokenizerRecipe

VIEWS = ("text", "chat", "preference", "comparison", "unpaired", "prompt")
FORMATS = {
    "text": "text",
    "chat": "messages",
    "preference": "preference",
    "comparison": "preference",
    "unpaired": "unpaired",
}
PACKED = VIEWS[:-1]


def row(view: str, name: str, number: int, size: int) -> dict[str, Any]:
    """A row of about `size` words, which names itself once in each of its sequences."""
    asked, said = f"{name.upper()}{number:06d} ?", "word " * size + "."
    if view == "text":
        return {"text": f"{asked} {said}"}
    if view == "chat":
        between = [("assistant", "yes"), ("user", "more")] if number % 3 else []
        turns = [("user", asked), *between, ("assistant", said)]
        return {"messages": [{"role": role, "content": text} for role, text in turns]}
    if view in PAIRED:
        worse = "no " * (size // (number % 4 + 1)) + "!"
        return {"prompt": asked, "chosen": said, "rejected": worse, "margin": number / 8}
    if view == "unpaired":
        return {"prompt": asked, "completion": said, "label": number % 2 == 0}
    return {"question": f"{asked} {said}", "answer": str(number)}


def write(folder: Path, view: str, name: str, sizes: Sequence[int], files: int = 1) -> None:
    """The rows of a source, dealt to files."""
    lines = [json.dumps(row(view, name, number, int(size))) + "\n" for number, size in enumerate(sizes)]
    for part in range(files):
        (folder / f"{name}{part}.jsonl").write_text("".join(lines[part::files]))


def module(
    folder: Path,
    view: str,
    caps: Mapping[str, float | None],
    *,
    steps: int = 400,
    to_the_end: bool = False,
    spec: Mapping[str, Any] | None = None,
    **changes: Any,
) -> DataModule:
    """The sources in `folder`, each read so often at most."""
    fields = {"fields": {"margin": "margin"}} if view in PAIRED else {}
    known = {"format": FORMATS.get(view, "question_answer"), "validation": None, **fields, **(spec or {})}
    arguments: dict[str, Any] = {
        "sources": {
            name: SourceSpec(path=str(folder / f"{name}*.jsonl"), max_epochs=cap, **known) for name, cap in caps.items()
        },
        "tokenizer": TokenizerRecipe(vocab_size=300, digits=1, max_bytes=50_000),
        "chat_template": "plain",
        "streams": 2,
        "shuffle_buffer": 20,
        "epoch_source": "a",
        "bad_rows": BadRows(max_share=1.0, min_rows=1),
        "view": view,
        "seed": 1,
        "sequence_length": 40,
        "global_batch_tokens": 40 * 4,
        "micro_batch_tokens": 40 * 2,
        "validation_tokens": 0,
    }
    return make_module(arguments | changes, steps=steps, last=None if to_the_end else "steps")


def content(batch: StepBatch[Any]) -> dict[str, Any]:
    """All that a rank's step holds, whatever its micro-batches are."""
    micro = batch.micro
    if isinstance(micro[0], PromptBatch):
        lists: dict[str, Any] = {
            name: sum((getattr(one, name) for one in micro), []) for name in ("id", "ids", "answer", "meta")
        }
        return lists | {name: torch.cat([getattr(one, name) for one in micro]) for name in ("number", "source_ids")}
    found = {name: torch.cat([one.packed.tensors()[name] for one in micro]) for name in micro[0].packed.tensors()}
    if isinstance(micro[0], PairBatch):
        found["margin"] = torch.cat([one.margin for one in micro])
    if isinstance(micro[0], UnpairedBatch):
        found["wanted"] = torch.cat([one.wanted for one in micro])
    return found


def is_same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two steps are equal, bit for bit."""
    return one.keys() == other.keys() and all(
        torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]
        for name, value in one.items()
    )


def together(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The step of several ranks."""
    joined: dict[str, Any] = {}
    for name, value in parts[0].items():
        whole = [part[name] for part in parts]
        joined[name] = torch.cat(whole) if isinstance(value, torch.Tensor) else sum(whole, [])
    return joined


Steps = dict[int, dict[str, Any]]


def read(
    data: DataModule, stop: int | None = None, *, of: Callable[[StepBatch], Any] = content
) -> tuple[dict[int, Any], dict[int, Any]]:
    """Content (`of` a step) and checkpoint of every step, to the end of the data or before `stop`."""
    steps, states = {}, {}
    batches = iter(data.train_dataloader())
    following = next(batches, None)
    while following is not None and following.step != stop:
        batch, following = following, next(batches, None)  # one ahead, as Lightning does
        steps[batch.step] = of(batch)
        data.consumed(batch.cursor)
        states[batch.step + 1] = pickle.loads(pickle.dumps(data.state_dict()))
    return steps, states


def on_ranks(make: Callable[[], DataModule], world: int, state: Any = None) -> Steps:
    """The steps of `world` ranks that are threads, which tell each other what ranks do."""
    barrier, told, where = threading.Barrier(world), [None] * world, threading.local()

    def every_rank(mine: Any) -> list[Any]:
        told[where.rank] = pickle.loads(pickle.dumps(mine))
        barrier.wait(60)
        everything = list(told)
        barrier.wait(60)
        return everything

    parts: list[Steps] = [{} for _ in range(world)]
    modules = [make() for _ in range(world)]

    def work(rank: int) -> None:
        where.rank = rank
        with patch.object(modules[rank], "_rank", lambda: (rank, world)):
            if state is not None:
                modules[rank].load_state_dict(state)
            with suppress(UserError):  # nothing is left to read
                parts[rank] = read(modules[rank])[0]

    # Ranks are processes: of CPython 3.11 two threads must not parse at once, as the header of a .npy file is.
    one = threading.Lock()

    def alone(function: Any) -> Any:
        def locked(*arguments: Any, **settings: Any) -> Any:
            with one:
                return function(*arguments, **settings)

        return locked

    with (
        patch("lifecycle.data.stream.loading.exchange.every_rank", every_rank),
        patch("numpy.load", alone(np.load)),
    ):
        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return {step: together([part[step] for part in parts]) for step in parts[0]}


def named(data: DataModule, steps: Steps) -> Counter[str]:
    """How often each row is met; of a pair, both sides are."""
    found: Counter[str] = Counter()
    for step in steps.values():
        rows = step["ids"] if "ids" in step else step["input_ids"].tolist()
        for ids in rows:
            found.update(re.findall(r"[AB]\d{6}", data.tokenizer.decode(ids)))
    return found


def items(data: DataModule, name: str) -> list[Item]:
    """The items of one pass over a source."""
    documents, found = data.corpus.documents(name), []
    documents.max_epochs = 1
    while True:
        try:
            found.append(documents.next())
        except Exhausted:
            return found


def fitting(data: DataModule, name: str) -> tuple[Counter[str], int, int]:
    """The rows of a source that its rule brings into rows, once each, or twice as pairs; their positions; and how many
    are too long."""
    found, positions, too_long = Counter[str](), 0, 0
    for item in items(data, name):
        packing = data.corpus.packing
        laid = item if packing.cuts else packing.fit(item, data.row_length)
        too_long += item.size > data.row_length or laid is not item
        if laid is not None:
            positions += laid.size
            texts = [data.tokenizer.decode(part.ids.tolist()) for part in sequences(laid)]
            found.update(re.findall(r"[AB]\d{6}", " ".join(texts)))
    return found, positions, too_long


def sizes(seed: int, count: int, longest: int = 45) -> list[int]:
    """Words of the rows of a source: most are short, a few longer than a row."""
    rng = np.random.default_rng(seed)
    return np.minimum(rng.lognormal(2, 1, count), longest).astype(int).tolist()
