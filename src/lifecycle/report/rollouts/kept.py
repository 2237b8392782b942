"""The kept samples of a run, outputs/RUN/rollouts/*.parquet: light columns of all, whole rows where they are shown."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from lifecycle.errors import UserError

FOLDER = "rollouts"
LIGHT = ("step", "place", "source", "id", "sample", "reward", "advantage", "stop_reason")
WHOLE = (*LIGHT, "prompt", "answer", "completion", "rewards", "token_ids", "trained", "logprobs")
MOST_STEPS = 200
"""Steps that are looked at: of more of them so many, evenly spread, the first and the last among them."""

Row = Mapping[str, Any]
Prompt = tuple[str, str]
"""Its source, and its record there."""


@dataclass(frozen=True)
class Mark:
    """One sample, and where it lies: a file and a row in it. reward: None where it has none."""

    file: Path
    row: int
    step: int
    place: int
    prompt: Prompt
    sample: int
    reward: float | None
    advantage: float
    unfinished: bool


@dataclass(frozen=True)
class KeptRun:
    """folder: of the run. steps: how many were kept; looked_at: how many of them `marks` are of."""

    folder: Path
    steps: int
    looked_at: int
    marks: Sequence[Mark]

    @property
    def name(self) -> str:
        """Of the run."""
        return self.folder.resolve().name

    @cached_property
    def sources(self) -> list[str]:
        """Their names, in the order of the alphabet."""
        return sorted({mark.prompt[0] for mark in self.marks})

    @cached_property
    def by_step(self) -> dict[int, list[Mark]]:
        """The samples of each step that is looked at."""
        return _grouped(self.marks, "step")

    @cached_property
    def visits(self) -> dict[Prompt, dict[int, list[Mark]]]:
        """The samples of each prompt, by the step that it was asked in."""
        return {prompt: _grouped(marks, "step") for prompt, marks in _grouped(self.marks, "prompt").items()}


def _grouped(marks: Sequence[Mark], key: str) -> dict[Any, list[Mark]]:
    found: dict[Any, list[Mark]] = defaultdict(list)
    for mark in marks:
        found[getattr(mark, key)].append(mark)
    return dict(found)


def read_kept(folder: Path | str) -> KeptRun:
    """The samples of a run. Raises UserError where it has kept none."""
    folder = Path(folder)
    files = sorted((folder / FOLDER).glob("step-*.parquet"))
    steps = sorted({_step(file) for file in files})
    if not steps:
        raise UserError(
            f"{folder} has no kept samples ({FOLDER}/step-*.parquet): give the folder of a run of reinforcement "
            "learning that wrote some (stage.keep_rollouts says every how many steps)"
        )
    chosen = set(spread(steps, MOST_STEPS))
    marks = [mark for file in files if _step(file) in chosen for mark in _marks(file)]
    if not marks:
        raise UserError(f"{folder}: its kept steps have no sample in them: no prompt was left to train on")
    return KeptRun(folder, len(steps), len(chosen), marks)


def spread(steps: Sequence[int], most: int) -> list[int]:
    """All of them, or `most`, evenly spread, the first and the last among them."""
    if len(steps) <= most:
        return list(steps)
    return [steps[n * (len(steps) - 1) // (most - 1)] for n in range(most)]


def whole(mark: Mark) -> Row:
    """All columns of one sample."""
    found: Row = _table(mark.file, mark.file.stat().st_mtime_ns).slice(mark.row, 1).to_pylist()[0]
    return found


@lru_cache(maxsize=16)
def _table(file: Path, written: int) -> Any:
    import pyarrow.parquet as pq

    return pq.read_table(file, columns=list(WHOLE))


def _step(file: Path) -> int:
    """`step-00000010.parquet`, `step-00000010-1.parquet` of the second rank."""
    return int(file.stem.split("-")[1])


def _marks(file: Path) -> Iterator[Mark]:
    import pyarrow.parquet as pq

    if not pq.read_metadata(file).num_rows:  # a step that trained on nothing has no columns either
        return
    for number, row in enumerate(pq.read_table(file, columns=list(LIGHT)).to_pylist()):
        yield Mark(
            file=file,
            row=number,
            step=row["step"],
            place=row["place"],
            prompt=(row["source"], row["id"]),
            sample=row["sample"],
            reward=number_of(row["reward"]),
            advantage=number_of(row["advantage"]) or 0.0,
            unfinished=row["stop_reason"] == "length",
        )


def number_of(value: float | None) -> float | None:
    """A number that is there; None for NaN, as a reward that is missing has it."""
    return None if value is None or value != value else float(value)
