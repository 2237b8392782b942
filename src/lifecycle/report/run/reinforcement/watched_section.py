"""What the samples of a policy looked like before its first update, and what was noticed while it was trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lifecycle.report.page.format import count
from lifecycle.report.page.render import Element, Heading, Paragraph, Sample, Sheet
from lifecycle.report.run.run_data import RunData


def before_the_first_update(run: RunData) -> list[Element]:
    """The section; nothing for a run that was not looked at."""
    found = run.preflight
    if not found:
        return []
    words = (
        f"{found['prompts']} prompts, {found['samples']} samples of each, as the policy stood before it was trained, "
        f"in {found['seconds']:.1f} seconds."
    )
    judged = [Paragraph(f"Refused: {one}", "warning") for one in found["refused"]]
    warned = [Paragraph(one, "warning") for one in found["warned"]]
    return [
        Heading("Before the first update"),
        Paragraph(words),
        *judged,
        *warned,
        Sheet(("", ""), [list(row) for row in found["table"]], numbers=False),
        *(Sample(one["prompt"].rstrip("\n"), one["completion"].rstrip("\n"), _caption(one)) for one in found["shown"]),
    ]


def noticed(run: RunData) -> list[Element]:
    """The section on what was said of its steps; nothing where nothing was."""
    if not run.noticed:
        return []
    rows = [[count(one["step"]), one["words"]] for one in run.noticed]
    return [Heading("What was noticed"), Sheet(("step", "what"), rows, numbers=False)]


def _caption(one: Mapping[str, Any]) -> str:
    reward = "no reward" if one["reward"] is None else f"reward {one['reward']:g}"
    known = "" if one["answer"] is None else f", answer in the data: {one['answer']}"
    return f"{one['why']}: {reward}, {one['ending']}{known}"
