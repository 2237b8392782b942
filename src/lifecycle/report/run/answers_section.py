"""What a run answered to held-out prompts: how many answers stopped and were well-formed at each measurement, and the
first and the last answers side by side."""

from __future__ import annotations

import math

from lifecycle.report.page.format import count, share
from lifecycle.report.page.render import Element, Heading, Paragraph, Sheet
from lifecycle.report.run.run_data import RunData

SHOWN, CHARACTERS, MEASURED = 6, 400, 10
"""Prompts shown, characters of each text, and about how many measurements."""


def answers(run: RunData) -> list[Element]:
    """The section; nothing for a run that answered nothing."""
    if not run.answers:
        return []
    steps = sorted({answer["step"] for answer in run.answers})
    told = []
    for step in [*steps[: -1 : math.ceil(len(steps) / MEASURED)], steps[-1]]:
        here = [answer for answer in run.answers if answer["step"] == step]
        parts = [sum(answer[key] for answer in here) / len(here) for key in ("stopped", "well_formed")]
        told.append([count(step), count(len(here)), *map(share, parts)])
    first, last = ([a for a in run.answers if a["step"] == step] for step in (steps[0], steps[-1]))
    columns = ["prompt", f"after {count(steps[0])} steps", f"after {count(steps[-1])} steps", "in the data"]
    rows = [
        [_cut(one[key]) for one, key in ((b, "prompt"), (b, "completion"), (a, "completion"), (b, "reference"))]
        for b, a in zip(first[:SHOWN], last[:SHOWN], strict=False)
    ]
    words = (
        "Held-out prompts, answered greedily. Well-formed is an answer that stops by itself, is not empty, has no mark "
        "of a turn inside and closes every thought. All answers: `answers.jsonl`."
    )
    return [
        Heading("Answers to held-out prompts"),
        Sheet(("after steps", "answers", "stopped", "well-formed"), told),
        Sheet(columns, rows, numbers=False),
        Paragraph(words, "note"),
    ]


def _cut(text: str) -> str:
    """The text, or its end where it is long: a prompt ends with what is asked."""
    return text if len(text) <= CHARACTERS else f"{text[: CHARACTERS // 2]} ... {text[-CHARACTERS // 2 :]}"
