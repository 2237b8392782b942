"""Runs a job: a function of `jobs/` gets what the run can supply, by the names of its parameters.

    def evaluate(*, model: Decoder, tokenizer: Tokenizer, data: Corpus, folder: Path, ...keys of its YAML) -> result

    model          the network of init_from, in eval mode; an error without init_from
    tokenizer      the model's; without init_from that of the data
    data           the sources of the config, opened
    folder seed deterministic compiled          as the run has them
    parent_view parent_ends                     of init_from: what it was last trained on, what ends a completion,
    parent_folder parent_sha256                 where it lies in Hugging Face's form, the hash of its files

Each is made only for a job with such a parameter, in any combination. What the job returns is `result` in run.json.

A job that reads data writes its folder as it goes, as training does: what it has read, counted and left out stays, and
the same command goes on. One that reads none writes its folder at the end, so one that failed or was killed leaves
none, and the last result stays; without run=NAME the next call replaces it, a named one is kept as any run is.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from lifecycle import config
from lifecycle.data.clean.contamination_report import write_row_reports
from lifecycle.data.corpus import Corpus
from lifecycle.data.stream.open_sources import files_read
from lifecycle.errors import UserError
from lifecycle.hardware import device_name
from lifecycle.lineage.load_model import load_model
from lifecycle.lineage.parent import finished_runs
from lifecycle.lineage.run_folder import RunFolder, origin
from lifecycle.model import Decoder
from lifecycle.model.huggingface.lazy_tensors import ends_of
from lifecycle.runs.data import open_corpus
from lifecycle.runs.plan import RunPlan
from lifecycle.tokenizer.tokenizer import Tokenizer, load

TRAINING_KEYS = ("activation_checkpointing", "attention", "micro_batch_tokens", "peak_tflops")
"""Keys of `hardware` that a job with a model does not read; nor `workers`, where it reads no data."""


def run_job(plan: RunPlan) -> None:
    """Make the job's arguments, call it, and write its result. Raises UserError for an argument that cannot be made."""
    supplies, folder = Supplies(plan), plan.folder
    began, started = {"stage": plan.name, "overrides": list(plan.command.typed), **origin()}, time.perf_counter()
    if "model" in plan.asked:
        _check_hardware(plan)
    if plan.reads_data:
        folder.write_config(config.resolved(plan.config))
        folder.update(status="running", **began)
        folder.update(**files_read(supplies.data.whole))
    asked = {name: getattr(supplies, name) for name in config.SUPPLIED["stage"] if name in plan.asked}
    result = config.build(plan.config.stage, **asked)
    if plan.reads_data:
        write_row_reports(folder.path)
    else:
        folder.write_config(config.resolved(plan.config))
        folder.update(**began)
    seconds = round(time.perf_counter() - started, 3)
    folder.update(**supplies.facts(), status="finished", result=result, error=None, seconds=seconds)


class Supplies:
    """The arguments that a run can supply to a job, by name (`config.SUPPLIED`), each made at its first use."""

    def __init__(self, plan: RunPlan) -> None:
        self._plan, self._parent = plan, plan.parent
        self.folder: Path = plan.folder.path
        self.seed: int = plan.config.seed
        self.deterministic: bool = plan.config.deterministic
        self.compiled: bool | None = None if plan.hardware.compile == "auto" else plan.hardware.compile

    @cached_property
    def model(self) -> Decoder:
        """The network of the parent, on the run's device."""
        if self._parent is None:
            raise UserError(
                f"stage={self._plan.name} works with a finished model, and init_from is null: type init_from=RUN, a "
                f"Hugging Face folder, or a GGUF file; {finished_runs()}"
            )
        return load_model(self._parent, self._plan.hardware)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The parent's, else that of the data."""
        if self._parent is None:
            return self.data.tokenizer
        if self._parent.tokenizer is None:
            raise UserError(
                f"init_from={self._plan.config.init_from}: {self._parent.folder} holds no tokenizer (tokenizer.json, "
                "tokenizer_config.json): put the files of the model's tokenizer there"
            )
        return load(self._parent.tokenizer)

    @cached_property
    def data(self) -> Corpus:
        """The sources of the config."""
        return open_corpus(self._plan)

    @property
    def parent_view(self) -> str | None:
        """What the model was last trained on (text, chat, ...), measured sources apart; None for a model from
        elsewhere."""
        if self._parent is None:
            return None
        run, place = self._parent.run, self._parent.folder
        if run is None and place.name == "model" and (place.parent / "run.json").is_file():
            run = RunFolder(place.parent)
        written = (run.config() if run else None) or {}
        view, sources = written.get("stage", {}).get("view"), written.get("data", {}).get("sources", {})
        trained = {source.get("view") or view for source in sources.values() if source.get("weight") != 0}
        return trained.pop() if len(trained) == 1 else view

    @property
    def parent_ends(self) -> Sequence[int]:
        """Tokens that end a completion of the parent, beside its tokenizer's own."""
        return ends_of(self._plan.generation)

    @property
    def parent_folder(self) -> Path | None:
        """Where the parent lies in Hugging Face's form."""
        place = self._parent.folder if self._parent else None
        return place if place is not None and (place / "config.json").is_file() else None

    @property
    def parent_sha256(self) -> str | None:
        """Of the parent's files."""
        return self._parent.sha256() if self._parent else None

    def facts(self) -> dict[str, Any]:
        """For run.json: the model that the job was about, and the tokenizer."""
        asked, found = self._plan.asked, dict[str, Any]()
        if "model" in asked and self._parent is not None:
            found = {
                **self._parent.lineage(),
                "parameters": self._parent.model.parameters(),
                "precision": str(self.model.head_weight.dtype).removeprefix("torch."),
                "device": device_name(self._plan.hardware.device_type()),
            }
        return found | ({"tokenizer": self.tokenizer.sha256} if "tokenizer" in asked else {})


def _check_hardware(plan: RunPlan) -> None:
    """Raise UserError that lists every key of `hardware` that a job on one device does not support or read."""
    hardware = plan.hardware
    devices = hardware.devices if hardware.devices == "auto" else int(hardware.devices)
    faults = [
        f"hardware.{key} is {value}; type hardware.{key}={wanted}"
        for key, value, wanted in (
            ("devices", devices, 1),
            ("num_nodes", hardware.num_nodes, 1),
            ("strategy", hardware.strategy, "auto"),
        )
        if value not in ("auto", wanted)
    ]
    unread = TRAINING_KEYS if plan.reads_data else (*TRAINING_KEYS, "workers")
    typed = plan.command.names(*(f"hardware.{key}=" for key in unread))
    faults += [f"{word} is of training alone; leave it out" for word in typed]
    if faults:
        lines = "\n".join(f"  - {fault}" for fault in faults)
        raise UserError(f"stage={plan.name} runs in one process on one device:\n{lines}")
