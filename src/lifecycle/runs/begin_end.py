"""The record of a run in run.json: how it began, whether it is finished already, how it ended."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from lifecycle import config
from lifecycle.checkpoint import list_committed, step_of
from lifecycle.data.clean.contamination_report import write_row_reports
from lifecycle.data.read.begun import NAME as DATA
from lifecycle.data.validation import described
from lifecycle.duration import ENDS, ended_by_config
from lifecycle.errors import Refusal, UserError
from lifecycle.hardware import device_name
from lifecycle.lineage.run_folder import RunFolder, origin
from lifecycle.loggers import read_metrics
from lifecycle.model import ModelConfig
from lifecycle.model.adapters import size_of
from lifecycle.model.lora import Adapter
from lifecycle.runs.data import timeline_of
from lifecycle.runs.plan import RunPlan, named_by
from lifecycle.runs.resume import Start
from lifecycle.stages.base import Stage
from lifecycle.stages.reinforcement.settings import notices
from lifecycle.system import atomic
from lifecycle.system.lock import hold
from lifecycle.system.ranks import rank
from lifecycle.tokenizer.tokenizer import Tokenizer

MOST_NAMED = 12
"""Keys that a message names; more are counted."""

if TYPE_CHECKING:
    from lifecycle.data.module import DataModule


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """The outcome of a run, for Python.

    status: finished; stopped, by a signal, after a step that is saved, so that the same config goes on; planned, by a
    dry run, which does nothing. metrics: the last value of each in metrics.csv. model: the folder of the exported
    model, None where there is none. result: what a job returned; of training the best validation loss and its step.
    """

    folder: Path
    status: Literal["finished", "stopped", "planned"]
    metrics: Mapping[str, float]
    model: Path | None
    result: Any


def result_of(folder: RunFolder, status: Literal["finished", "stopped", "planned"]) -> RunResult:
    """The outcome, read from the files of a run's folder."""
    columns = read_metrics(folder.path / "metrics.csv")
    known = {name: [value for value in column if value is not None] for name, column in columns.items()}
    model = folder.path / "model"
    return RunResult(
        folder=folder.path,
        status=status,
        metrics={name: float(values[-1]) for name, values in known.items() if values},
        model=model if status == "finished" and model.is_dir() else None,
        result=folder.lineage().get("result"),
    )


def begin(plan: RunPlan, start: Start, stage: Stage, data: DataModule) -> None:
    """Write config, tokenizer and lineage of a run that begins, and print its choices and notices."""
    folder, parent = plan.folder, plan.parent
    before, sources = folder.lineage(), data.corpus.lineage()
    new = start.checkpoint is None
    if new or not (folder.path / "tokenizer").is_dir():
        _save_tokenizer(data.tokenizer, folder.path / "tokenizer")
    known = (folder.path / DATA).exists()
    if new or not known:
        atomic.write(folder.path / DATA, json.dumps(data.corpus.contents()))
    folder.update(
        **(origin() if "started" not in before else {"restarted": time.time()}),
        status="running",
        stage=plan.name,
        **({} if "parent" in before else parent.lineage() if parent else {"parent": None, "ancestors": []}),
        **({"teacher": plan.teacher.lineage()["parent"]} if plan.teacher and "teacher" not in before else {}),
        **{key: one.lineage()["parent"] for key, one in plan.models.items() if key not in before},
        domain=",".join(data.held_out),
        data={"config": config.resolved(plan.config)["data"], **sources, "validation": described(data.held_out)},
        tokenizer=data.tokenizer.sha256,
        parameters=stage.config.parameters(),
        peak_lr=plan.config.stage.optimizer.lr,
        total_steps=stage.setup_facts.timeline.steps,
        **({} if plan.adapter is None else {"adapter": _adapter(plan.adapter, stage.config)}),
        choice=start.facts(),
        device=device_name(plan.hardware.device_type()),
        error=None,
        overrides=list(plan.command.typed),
        resumed=before.get("resumed", 0) + (start.checkpoint is not None),
        damaged=[*before.get("damaged", []), *start.damaged],
    )
    say = Console(stderr=True, highlight=False, soft_wrap=True).print
    if not (new or known):
        say(
            f"[yellow]{folder.path / DATA} was not there: whether its sources' files have changed since the run began "
            "cannot be told; from here on it can[/yellow]"
        )
    idle = data.plan.idle_workers(plan.data.streams, plan.hardware.world_size(), plan.hardware.workers)
    sits = [] if plan.adapter is None else [_in_words(plan.adapter, stage.config)]
    for line in [*start.lines(), *sits, *idle, *notices(plan.config)]:
        say(f"[dim]{line}[/dim]")
    assert plan.limits is not None
    for line in ended_by_config(plan.limits, plan.command.typed, lambda limits: timeline_of(limits, data.corpus)):
        print(f"lifecycle: {line}", file=sys.stderr)


def _adapter(adapter: Adapter, model: ModelConfig) -> dict[str, Any]:
    """For run.json."""
    return {"rank": adapter.rank, "bits": adapter.bits, **asdict(size_of(model, adapter))}


def _in_words(adapter: Adapter, model: ModelConfig) -> str:
    """The share of the layers that got an adapter, and of the parameters that are trained."""
    size, whole = size_of(model, adapter), model.parameters()
    return (
        f"adapter of rank {adapter.rank} on {size.layers} of {size.of} linear layers ({size.layers / size.of:.0%}): "
        f"{size.parameters:,} trained parameters beside {whole:,} frozen ones ({size.parameters / whole:.2%})"
    )


def _save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the tokenizer whole or not at all: a resumed run reads with it."""
    with atomic.publish_folder(folder, replace=True) as aside:
        tokenizer.save(aside)


def is_over(plan: RunPlan) -> bool:
    """Whether the run is finished already, which is then printed. Raises UserError where its config has changed since,
    and it has a checkpoint, a part of its result, or all of it."""
    if plan.replaces_last:
        return False
    folder = plan.folder
    over, changed = _since(plan)
    saved = bool(list_committed(folder.checkpoints)) or folder.progress.exists()
    if changed and (over or not plan.reads_data or saved):
        raise UserError(
            f"run '{folder.path}' was started {_otherwise(folder, changed)}. Going on would make it another run: take "
            f"the values of {folder.path / 'config.yaml'}, choose another run=NAME, or delete the folder"
        )
    if not over:
        return False
    if rank() == 0:
        if plan.stage is not None and not (folder.path / "report.md").exists():  # killed while it was drawn
            from lifecycle.report.write import write_report  # here: a run that begins does without its drawing library

            with hold(folder.path):
                write_report(folder.path)
        report = f"Its report: {folder.path / 'report.md'}. To go on, raise its limit ({_limit(plan)}); to start"
        further = report if plan.stage is not None else "To start"
        print(f"run '{folder.path}' is finished; nothing to do. {further} anew, choose another run=NAME")
    return True


def _limit(plan: RunPlan) -> str:
    """What to type to raise the limit that the run has, and the rate where it has come to zero."""
    keys, schedule = ("max_tokens", "max_steps", "max_epochs"), plan.config.stage.get("schedule")
    key = next((key for key in keys if plan.config.stage.get(key) is not None), "max_tokens")
    at_zero = schedule is not None and schedule.name != "constant" and schedule.min_ratio == 0
    return f"stage.{key}=...{' stage.schedule.stretch=true' if at_zero else ''}"


def _otherwise(folder: RunFolder, changed: Sequence[str]) -> str:
    """How the run was started: as another stage, whose keys are all others, or with other values of these."""
    if "stage._target_" in changed:
        return f"as stage={named_by((folder.config() or {})['stage']['_target_'])}"
    more = f" and {len(changed) - MOST_NAMED} more" if len(changed) > MOST_NAMED else ""
    return f"with other values of: {', '.join(changed[:MOST_NAMED])}{more}"


def begin_anew(plan: RunPlan) -> None:
    """Delete, with a notice, the files of an earlier start with other values that ended before its first checkpoint.
    Parts of shards stay: they hold a key of what they were made from."""
    folder = plan.folder
    _, changed = _since(plan)
    if changed and rank() == 0:
        for name in ("config.yaml", "run.json"):
            (folder.path / name).unlink(missing_ok=True)
        shutil.rmtree(folder.path / "tokenizer", ignore_errors=True)
        print(
            f"run '{folder.path}' had saved nothing to go on with: it begins anew, with other values of: "
            f"{', '.join(changed)}",
            file=sys.stderr,
        )


def _since(plan: RunPlan) -> tuple[bool, list[str]]:
    """Whether the run is over, and the keys that have other values than when it was started."""
    folder = plan.folder
    then = folder.config()
    if then is None:
        return False, []
    now = config.resolved(plan.config)
    longer = any(then["stage"].get(key) != now["stage"].get(key) for key in ENDS)
    over = folder.lineage().get("status") == "finished" and not longer
    return over, config.changed_keys(then, now, moved=not over and (folder.path / DATA).exists())


def reopen(folder: RunFolder) -> dict[str, bytes]:
    """Set a finished run that is given more steps to running; returns what its run.json and config.yaml held. Does
    nothing for a run that is not finished, and returns an empty mapping."""
    if rank() != 0 or folder.lineage().get("status") != "finished":
        return {}
    before = {name: (folder.path / name).read_bytes() for name in ("config.yaml", "run.json")}
    folder.update(status="running")  # before its config has another end, which a kill would make one that is reached
    return before


def record_end(folder: RunFolder, error: BaseException, before: Mapping[str, bytes]) -> None:
    """Write the error or the stop into run.json, if the run had begun one, and sort the rows of its quarantine. A run
    that was finished before (`before`: its files then), and took no step since, stays finished."""
    if rank() != 0:
        return
    if before and not _went_on(folder, json.loads(before["run.json"]).get("steps", 0)):
        for name, content in before.items():
            atomic.write(folder.path / name, content)
        print(f"run '{folder.path}' stays finished as it was: this start has added nothing", file=sys.stderr)
        return
    if isinstance(error, Refusal):
        return
    write_row_reports(folder.path)
    if not folder.lineage():
        return
    stopped = not isinstance(error, Exception)  # a signal, or Ctrl-C
    folder.update(
        status="stopped" if stopped else "failed", error=None if stopped else f"{type(error).__name__}: {error}"
    )


def _went_on(folder: RunFolder, steps: int) -> bool:
    """Whether the run has metrics or a checkpoint of a step after the first `steps`."""
    rows = read_metrics(folder.path / "metrics.csv").get("step", [])
    return any((step or 0) > steps for step in [*rows, *map(step_of, list_committed(folder.checkpoints))])
