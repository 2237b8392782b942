"""Where a run's first weights come from: `init_from`, which names

    demo, outputs/demo            the exported model of a finished run
    demo@best, demo@400           a checkpoint of a run, finished or not: the best one, or that of a step
                                  of a run that trained an adapter either is its parent's model with the adapter in it
    FOLDER, FILE.gguf             a Hugging Face folder, or a GGUF file (or a folder with one)
    HuggingFaceTB/SmolLM2-135M    an id on the Hugging Face hub

Architecture and tokenizer are the parent's. The architecture is read at once, the weights are read (and fetched) at
their first use: a dry run or a resumed run never reads them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lifecycle.errors import UserError
from lifecycle.lineage.parent.adapter import from_adapter
from lifecycle.lineage.parent.checkpoint import after_the_at, from_checkpoint
from lifecycle.lineage.parent.files import from_files
from lifecycle.lineage.parent.hub import from_hub
from lifecycle.lineage.parent.parent import Parent
from lifecycle.lineage.run_folder import RunFolder
from lifecycle.model.huggingface.gguf import gguf_file
from lifecycle.model.huggingface.peft_folder import CONFIG as ADAPTER

HUB_ID = re.compile(r"(?!outputs/)\w[\w.-]*/[\w.-]+")


def find_parent(name: str, *, key: str = "init_from") -> Parent:
    """The parent that `init_from=name` means. key: the one that named it, for messages. Raises UserError where there is
    none."""
    asked, name = f"{key}={name}", os.path.expanduser(name)
    for place in (Path(name), Path("outputs") / name):
        if (place / "config.json").is_file() or gguf_file(place):
            return from_files(place)
        if (place / "model" / "config.json").is_file():
            return from_files(place / "model", run=RunFolder(place))
        if (place / "adapter" / ADAPTER).is_file():
            return from_adapter(RunFolder(place), asked, _beside(place))
        if (place / "run.json").is_file():
            status = RunFolder(place).lineage().get("status")
            raise UserError(
                f"{asked}: run {place} has no model/ yet (it is {status}); let it finish first, or take one "
                f"of its checkpoints: {after_the_at(place)}"
            )
    stem, mark, which = name.rpartition("@")
    for place in (Path(stem), Path("outputs") / stem) if mark else ():
        if (place / "run.json").is_file():
            return from_checkpoint(RunFolder(place), which, asked, _beside(place))
    if (Path(name) / ADAPTER).is_file():
        raise UserError(
            f"{asked} holds an adapter: name the run that trained it, or merge it into its base model with "
            "peft, and name the folder of that"
        )
    if HUB_ID.fullmatch(name) and not Path(name).parent.exists():  # else a misspelt folder of this machine
        return from_hub(name, asked)
    raise UserError(
        f"{asked} is neither a run, nor a checkpoint (RUN@best, RUN@STEP), nor a folder with config.json "
        f"and safetensors, nor a GGUF file, nor a hub id (OWNER/NAME); {finished_runs()}"
    )


def _beside(run: Path) -> Callable[[str], Parent]:
    """Finds the parent that the adapter of `run` belongs to; the message says so where it is gone."""
    return partial(find_parent, key=f"the adapter of run {run} is nothing without the weights beside it: init_from")


def finished_runs() -> str:
    """The runs under outputs/ that can be a parent, as the end of a message."""
    whole, adapted = Path("outputs").glob("*/model/config.json"), Path("outputs").glob(f"*/adapter/{ADAPTER}")
    runs = sorted({place.parent.parent.name for place in (*whole, *adapted)})
    return f"finished runs here: {', '.join(runs)}" if runs else "there is no finished run under outputs/ here"
