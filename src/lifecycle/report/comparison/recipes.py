"""Runs as recipes: what the runs of each measured on held-out data, at the end and over their steps.

Runs that differ in their seed, or in how they were watched, are one recipe. What is compared, stands in the run's own
folder: of a run whose loss is the likelihood of text, the perplexity of every domain; of any other, what it measured
beside its loss (pairs told apart, margin, distance from the reference, calibration), for losses of two functions have
no common scale; and of every run that answered held-out prompts, the shares of its answers.

Perplexities of two tokenizers cannot be compared, for their tokens are of different lengths: such runs are compared by
bits per byte.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os.path import commonprefix
from pathlib import Path
from statistics import mean

from lifecycle.errors import UserError
from lifecycle.report.run.forgetting_section import action_words, measurements
from lifecycle.report.run.provenance import tokenizer_digest
from lifecycle.report.run.run_data import RunData, Series, read_run
from lifecycle.rewards.interval import wilson

UNITS = {"perplexity": "perplexity", "bits_per_byte": "bits per byte"}
"""Metrics that runs are compared by on text, in words."""
ANSWERED = {"well_formed": "well-formed answers", "right": "right answers"}
"""What is known of every answer to a held-out prompt, in words."""
SHARES = frozenset({"accuracy"})
"""Measures of held-out items that are the share of them with a property."""
ASIDE = ("run", "seed", "callbacks", "logger", "logging")
"""Keys of a config that change neither the model nor the data nor the training."""
LONGEST_NAME = 34


@dataclass(frozen=True, kw_only=True)
class HeldOutMeasure:
    """What a run measured, by steps, up to those of the model that it ended with. items: those that it is a share of;
    None of what is no share."""

    steps: tuple[float, ...]
    values: tuple[float, ...]
    items: int | None

    @property
    def last(self) -> float:
        """Of the model that the run ended with."""
        return self.values[-1]

    @property
    def interval(self) -> tuple[float, float] | None:
        """Wilson's 95 % interval of the last share; None of what is no share."""
        return None if self.items is None else wilson(self.last, self.items)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Runs of one recipe: values of a metric of `UNITS` by domain of text, one for each run that measured it; by name,
    what else they measured; and what it took."""

    name: str
    runs: int
    unit: str
    held_out: Mapping[str, Sequence[float]]
    measured: Mapping[str, Sequence[HeldOutMeasure]]
    tokens: float | None
    seconds: float | None
    actions: str


def compare(folders: Sequence[Path | str]) -> list[Recipe]:
    """One row for each recipe, in the order given; before them the text that a first run with a parent began with.

    The folder of a sweep stands for its runs. A run that is given twice counts once.
    """
    runs = []
    for folder in {run.resolve(): run for given in folders for run in _runs_in(Path(given))}.values():
        run = read_run(folder)
        if not run.domains:
            raise UserError(f"{folder} holds no measured run: give folders of runs that were validated")
        runs.append(run)
    if not runs:
        raise UserError("nothing to compare: give the folders of some runs, such as outputs/a outputs/b")
    groups: dict[str, list[RunData]] = {}
    for run in runs:
        groups.setdefault(_recipe(run), []).append(run)
    unit = "perplexity" if len({digest for run in runs if (digest := tokenizer_digest(run))}) < 2 else "bits_per_byte"
    names = _names(runs)
    made = [_row(group, unit, names) for group in groups.values()]
    rows = _told_apart(made, [group[0].folder.resolve() for group in groups.values()])
    start = {domain: [value] for domain in runs[0].domains if (value := _at_start(runs[0], domain, unit)) is not None}
    return [*([_before(start, unit)] if start else []), *rows]


def _runs_in(folder: Path) -> list[Path]:
    """The folder; of a sweep's, whose runs are numbered, theirs."""
    numbered = [run for run in folder.glob("*") if run.name.isdigit() and (run / "run.json").exists()]
    return [folder] if (folder / "run.json").exists() or not numbered else sorted(numbered, key=lambda r: int(r.name))


def _before(start: Mapping[str, Sequence[float]], unit: str) -> Recipe:
    return Recipe(name="before", runs=1, unit=unit, held_out=start, measured={}, tokens=None, seconds=None, actions="")


def _row(group: Sequence[RunData], unit: str, told: Mapping[Path, str]) -> Recipe:
    names = [told[run.folder] for run in group]
    common = re.sub(r"[_.-]*(seed|s)?[_.-]*$", "", commonprefix(names)) if len({*names}) > 1 else names[0]
    held_out: dict[str, list[float]] = {}
    measured: dict[str, list[HeldOutMeasure]] = {}
    for run in group:
        for domain in run.domains:
            if kept := _kept(run, run.series(f"valid/{domain}/{unit}", "step")):
                held_out.setdefault(domain, []).append(kept[1][-1])
        for name, found in _measured(run).items():
            measured.setdefault(name, []).append(found)
    tokens = [value for run in group if (value := run.last("tokens")) is not None]
    seconds = [float(run.run["seconds"]) for run in group if run.run.get("seconds") is not None]
    actions = ["; ".join(filter(None, (action_words(m) for m in measurements(run)))) for run in group]
    return Recipe(
        name=common or names[0],
        runs=len(group),
        unit=unit,
        held_out=held_out,
        measured=measured,
        tokens=mean(tokens) if tokens else None,
        seconds=mean(seconds) if seconds else None,
        actions=" | ".join(dict.fromkeys(filter(None, actions))),
    )


def _told_apart(rows: Sequence[Recipe], folders: Sequence[Path]) -> list[Recipe]:
    """The rows: those of one name with as many of the folders above as they differ in, and one of a sweep whose name is
    too long for a picture with its number before it. folders: of the first run of each."""
    found = list[Recipe]()
    for row, folder in zip(rows, folders, strict=True):
        name, others = row.name, [at for one, at in zip(rows, folders, strict=True) if one.name == row.name]
        if len(name) > LONGEST_NAME and folder.name.isdigit():
            name = f"{folder.parent.name}/{folder.name}: {name}"
        elif len(others) > 1:
            depth = next(n for n in range(1, len(folder.parts)) if len({at.parts[-n:] for at in others}) == len(others))
            name = "/".join(folder.parts[-depth:])
        found.append(replace(row, name=name))
    return found


def _recipe(run: RunData) -> str:
    """What runs of one recipe have in common: all of the config but name, seed, and what only shows the run."""
    return repr({key: value for key, value in run.config.items() if key not in ASIDE} or run.folder)


def _names(runs: Sequence[RunData]) -> dict[Path, str]:
    """By folder: its name; of a run of a sweep, whose folder is a number, what it was told and the others were not."""
    told = {run.folder: _told(run) for run in runs if run.folder.resolve().name.isdigit()}
    found = {run.folder: run.folder.resolve().name for run in runs}
    for folder, words in told.items():
        own = " ".join(word for word in words if any(word not in others for others in told.values()))
        where = folder.resolve()
        found[folder] = own or f"{where.parent.name}/{where.name}"
    return found


def _told(run: RunData) -> list[str]:
    words = [str(word).lstrip("+") for word in run.run.get("overrides") or ()]
    return [word for word in words if word.partition("=")[0].partition(".")[0] not in ASIDE]


def _at_start(run: RunData, domain: str, unit: str) -> float | None:
    steps, values = run.series(f"valid/{domain}/{unit}", "step")
    return values[0] if steps and steps[0] == 0 else None


def _kept(run: RunData, series: Series) -> Series | None:
    """Of the model that the run ended with: a guard may have gone back. None where nothing was measured by then."""
    last = run.run.get("restored")
    kept = [(step, value) for step, value in zip(*series, strict=True) if not last or step <= last]
    return ([step for step, _ in kept], [value for _, value in kept]) if kept else None


def _measured(run: RunData) -> dict[str, HeldOutMeasure]:
    """By name, what a run measured that is no likelihood of text: by domain beside the loss, and of its answers."""
    found = {}
    for domain, values in ({} if run.is_likelihood else run.measures).items():
        items = run.held_out_items.get(domain)
        for name in [name for name in values if name != "loss"] or ["loss"]:
            if kept := _kept(run, run.series(f"valid/{domain}/{name}", "step")):
                of = items if name in SHARES else None
                found[f"{domain}, {name.replace('_', ' ')}"] = HeldOutMeasure(
                    steps=tuple(kept[0]), values=tuple(kept[1]), items=of
                )
    return found | _answered(run)


def _answered(run: RunData) -> dict[str, HeldOutMeasure]:
    """Shares of the answers to held-out prompts; of the right ones only where there was ever one."""
    by_step: dict[float, list[Mapping[str, object]]] = {}
    for answer in run.answers:
        by_step.setdefault(float(answer["step"]), []).append(answer)
    found = {}
    for key, words in ANSWERED.items():
        known = {step: [bool(one.get(key)) for one in by_step[step]] for step in sorted(by_step)}
        series = [*known], [mean(marks) for marks in known.values()]
        if (kept := _kept(run, series)) and (key != "right" or any(kept[1])):
            items = len(known[kept[0][-1]])
            found[words] = HeldOutMeasure(steps=tuple(kept[0]), values=tuple(kept[1]), items=items)
    return found
