"""Prompts of a corpus whose answer is known, as a model is asked with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lifecycle.batch import Prompt, Record
from lifecycle.data.clean.bad_rows import BAD, refuse_broken
from lifecycle.data.clean.filter_row import HELD_OUT, KEPT, FilteredRow
from lifecycle.data.clean.source import Source
from lifecycle.data.corpus import Corpus
from lifecycle.data.mixture.weight import Weight
from lifecycle.data.read.in_words import question
from lifecycle.data.read.row import RawRow
from lifecycle.data.views import asked_of
from lifecycle.errors import UserError
from lifecycle.jobs.rows import usable_rows
from lifecycle.rewards.graders import can_mark
from lifecycle.rewards.record import Answered
from lifecycle.tokenizer.chat import Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A prompt: its turns, the ids that ask for the next one, and what graders may read."""

    id: str
    source: str
    turns: list[Turn]
    ids: list[int]
    answer: str
    meta: Mapping[str, Any] = field(default_factory=dict)


def known_prompts(
    data: Corpus, *, grader: str, room: int, system: str | None
) -> tuple[list[Asked], dict[str, Counter[str]]]:
    """The prompts of the training side of every source that is trained on, each once; by source the number of rows that
    give none, by reason.

    grader: that marks the answers. room: positions of the model. system: a turn before those that have none of its
    kind. Raises UserError where there is no prompt.
    """
    if system is not None and data.template is None:
        raise UserError("stage.system is a turn, and data.chat_template=none asks with plain text: leave it out")
    found, seen, counts = list[Asked](), set[tuple[int, ...]](), dict[str, Counter[str]]()
    verdicts = dict[str, Counter[str]]()
    for source in data.whole:
        if not Weight.of(source.spec.weight, source.name).trained:
            continue
        count = counts.setdefault(source.name, Counter())
        for row in _training_rows(source, verdicts.setdefault(source.name, Counter())):
            one = _asked(data, source, row, grader, system)
            if not isinstance(one, Asked):
                count[one] += 1
            elif len(one.ids) >= room:
                count["too long"] += 1
            elif tuple(one.ids) in seen:
                count["asked before"] += 1
            else:
                seen.add(tuple(one.ids))
                found.append(one)
    if not found:
        gone = "; ".join(f"{name}: {dict(count or verdicts[name]) or 'no rows'}" for name, count in counts.items())
        raise UserError(
            f"no row is a prompt with a known answer ({gone}): name the columns (data.sources.NAME.fields.answer; of "
            "programs, tests), or the format"
        )
    return found, counts


def _training_rows(source: Source, verdicts: Counter[str]) -> Iterator[FilteredRow]:
    """verdicts: of all rows, which are counted there."""

    def count(row: RawRow, verdict: str) -> None:
        verdicts[verdict] += 1

    for _, filtered in usable_rows(source, count):
        if filtered.verdict != HELD_OUT:
            yield filtered
    refuse_broken(source, verdicts, before=verdicts.total(), at_end=True)


def _asked(data: Corpus, source: Source, row: FilteredRow, grader: str, system: str | None) -> Asked | str:
    """The prompt of a row, or why it has none."""
    given = row.record
    assert given is not None and row.verdict.startswith(KEPT)
    record = given if system is None else _instructed(given, system)
    (item,) = data.maker(source)([row._replace(record=record)])
    if not isinstance(item, Prompt):
        return f"{BAD}{item}"
    if not can_mark(grader, Answered(answer=item.answer or "", meta=item.meta)):
        return "no answer"
    plain: list[Turn] = [{"role": "user", "content": question(given)}]
    turns = plain if data.template is None else asked_of(given)
    return Asked(
        id=item.id, source=source.name, turns=turns, ids=item.ids.tolist(), answer=item.answer or "", meta=item.meta
    )


def _instructed(record: Record, system: str) -> Record:
    """With a first turn that instructs, where it has none."""
    before = record.messages or []
    if before and before[0]["role"] == "system":
        return record
    return replace(record, messages=[{"role": "system", "content": system}, *before])
