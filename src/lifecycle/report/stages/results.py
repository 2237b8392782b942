"""What the runs of some stages reached, from metrics.csv, run.json and answers.jsonl of each.

Compared are the held-out questions that *all* runs were asked. What a single run was asked besides, as an SFT run the
questions that it is trained on, stands apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lifecycle.errors import UserError
from lifecycle.report.run.run_data import RunData, read_lines, read_run
from lifecycle.rewards.interval import wilson

ANSWERS = "answers.jsonl"
Answer = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Counted:
    """How many of some items have a property."""

    those: int
    of: int

    @property
    def share(self) -> float:
        """The share that has it."""
        return self.those / self.of

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the share."""
        return wilson(self.share, self.of)


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """A run in its place. answers: by step, those to the questions that all runs were asked; others: by domain, the
    last ones to further questions; before: by domain, the first ones to these, where they were asked more than once,
    in the same order."""

    run: RunData
    answers: Mapping[int, Sequence[Answer]]
    others: Mapping[str, Sequence[Answer]]
    before: Mapping[str, Sequence[Answer]]

    @property
    def name(self) -> str:
        """The stage; of a run that does not say, its folder."""
        return str(self.run.run.get("stage") or self.run.folder.name)

    @property
    def last(self) -> Sequence[Answer]:
        """The answers at the end, in the order of the questions."""
        return self.answers[max(self.answers)] if self.answers else []

    @property
    def pairs(self) -> Counted | None:
        """Of a run on pairs: those held out whose chosen answer it has made the likelier one, measured from its
        reference."""
        found = [
            (value, pairs)
            for domain, pairs in self.run.held_out_items.items()
            if (value := self.run.last(f"valid/{domain}/accuracy")) is not None
        ]
        total = sum(pairs for _, pairs in found)
        return Counted(those=round(sum(share * pairs for share, pairs in found)), of=total) if total else None

    def held_out(self, domain: str) -> tuple[list[float], list[float]]:
        """Steps and losses of a domain's held-out text, nats a token; none in a run whose loss is another."""
        return self.run.series(f"valid/{domain}/loss", "step") if self.run.is_likelihood else ([], [])


def counted(answers: Sequence[Answer], name: str) -> Counted | None:
    """How many answers are `right`, or `well_formed`; None where nothing was asked."""
    return Counted(those=sum(bool(one.get(name)) for one in answers), of=len(answers)) if answers else None


def read_stages(folders: Sequence[Path | str]) -> list[StageResult]:
    """The runs in the order given. Raises UserError for a folder without a run that took a step."""
    runs = [read_run(Path(folder)) for folder in folders]
    for run in runs:
        if not run.metrics.get("step"):
            raise UserError(
                f"{run.folder} holds no run that took a step: give the folders of runs, the first stage first"
            )
    said = [read_lines(run.folder / ANSWERS) for run in runs]
    common = set.intersection(*({question(one) for one in answers} for answers in said))
    return [_placed(run, answers, common) for run, answers in zip(runs, said, strict=True)]


def question(answer: Answer) -> tuple[str, str]:
    """Domain and prompt."""
    return str(answer["domain"]), str(answer["prompt"])


def _placed(run: RunData, answers: Sequence[Answer], common: set[tuple[str, str]]) -> StageResult:
    by_step: dict[int, list[Answer]] = {}
    further: dict[int, dict[str, list[Answer]]] = {}
    asked_at = sorted({int(one["step"]) for one in answers}) or [0]
    for one in answers:
        if question(one) in common:
            by_step.setdefault(int(one["step"]), []).append(one)
        else:
            further.setdefault(int(one["step"]), {}).setdefault(str(one["domain"]), []).append(one)
    in_order = {step: sorted(by_step[step], key=question) for step in sorted(by_step)}
    first, last = (further.get(asked_at[place], {}) for place in (0, -1))
    before = {domain: said for domain, said in first.items() if len(asked_at) > 1 and _same(said, last.get(domain, []))}
    return StageResult(run=run, answers=in_order, others=last, before=before)


def _same(before: Sequence[Answer], after: Sequence[Answer]) -> bool:
    """Whether both answer the same questions in the same order."""
    return [question(one) for one in before] == [question(one) for one in after]


def documents(stages: Sequence[StageResult]) -> list[str]:
    """Domains that are measured by their loss, and not by answers: those of the first run."""
    asked = {one["domain"] for stage in stages for one in stage.last}
    return [domain for domain in stages[0].run.domains if domain not in asked]
