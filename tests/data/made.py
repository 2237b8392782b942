"""A corpus, and a data module over it, from one set of arguments: the keys of conf/data and what a run adds to them."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Literal

from lifecycle.data.clean.source import BadRows
from lifecycle.data.corpus import Corpus, DataConfig
from lifecycle.data.mixture.batch_plan import Phase
from lifecycle.data.module import DataModule

OF_CONFIG = {field.name for field in fields(DataConfig)}
COMMON: dict[str, Any] = {
    "root": None,
    "chat_template": "auto",
    "prepared": None,
    "streams": None,
    "shuffle_buffer": 100,
    "exhausted": "error",
    "long_examples": "drop",
    "decontaminate": None,
    "epoch_source": None,
    "bad_rows": BadRows(max_share=0.01, min_rows=100),
    "view": "text",
    "seed": 5,
    "workers": 0,
    "folder": None,
}
"""What a test does not say; a key that comes to conf/data comes here."""

OF_CORPUS = {"view", "seed", "folder", "replay_share", "parent_loss", "begun"}


def make_corpus(arguments: dict[str, Any]) -> Corpus:
    """The corpus alone; what only a data module reads is left aside."""
    arguments = COMMON | arguments
    of_config, of_corpus = ({k: v for k, v in arguments.items() if k in keys} for keys in (OF_CONFIG, OF_CORPUS))
    return Corpus(DataConfig(**of_config), processes=arguments["workers"], **of_corpus)


def make_module(
    arguments: dict[str, Any],
    *,
    steps: int,
    phases: Sequence[Phase] = (),
    last: int | None | Literal["steps"] = "steps",
) -> DataModule:
    """For a run of `steps` steps of `sequence_length` and `global_batch_tokens`, if `phases` do not say otherwise."""
    arguments = COMMON | arguments
    length = arguments["sequence_length"]
    rows = arguments["global_batch_tokens"] // length
    return DataModule(
        corpus=make_corpus(arguments),
        steps=steps,
        phases=phases or (Phase(step=0, row_length=length, rows=rows),),
        last=steps if last == "steps" else last,
        row_length=length,
        micro_batch_tokens=arguments["micro_batch_tokens"],
        validation_tokens=arguments["validation_tokens"],
        workers=arguments["workers"],
    )
