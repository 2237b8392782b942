"""The section on held-out pairs of a reward model: what it gets right, and how far its certainty can be believed."""

from __future__ import annotations

from lifecycle.report.page.format import count, number, share
from lifecycle.report.page.render import Element, Heading, Paragraph, Sheet
from lifecycle.report.run.run_data import RunData

LEAST, WORDS = (
    0.5,
    "Certainty is sigmoid of the difference of the two scores, of the answer that the model prefers. Where it can be "
    "believed, of the pairs of a line that share is right. Calibration error is the mean difference over all pairs.",
)


def calibration(run: RunData) -> list[Element]:
    """Accuracy with its interval, and reliability by bins, of every domain; nothing of other runs."""
    if not run.calibration:
        return []
    rows, bins = [], []
    for domain, found in run.calibration.items():
        low, high = found["interval"]
        between = f"{share(low)} to {share(high)}"
        error = number(found["calibration_error"], 3)
        rows.append([domain, count(found["pairs"]), share(found["accuracy"]), between, error])
        width = (1 - LEAST) / len(found["bins"])
        for place, one in enumerate(found["bins"]):
            if one["pairs"]:
                begin = LEAST + place * width
                name = f"{domain}, {number(begin, 2)} to {number(begin + width, 2)}"
                bins.append([name, count(one["pairs"]), share(one["certainty"]), share(one["right"])])
    return [
        Heading("Held-out pairs"),
        Sheet(("held-out data", "pairs", "right", "95 % interval", "calibration error"), rows),
        Sheet(("certainty", "pairs", "mean certainty", "right"), bins),
        Paragraph(WORDS, "note"),
    ]
