"""The page over the stages: stages.md (its picture beside it) and stages.html (whole in itself)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from lifecycle.report.page.canvas import DARK, LIGHT
from lifecycle.report.page.format import count, number, share, span
from lifecycle.report.page.render import Element, Heading, Paragraph, Picture, Sheet, to_html, to_markdown
from lifecycle.report.stages.picture import draw
from lifecycle.report.stages.results import Answer, Counted, StageResult, counted, documents, question, read_stages
from lifecycle.rewards.interval import gain
from lifecycle.system import atomic

PICTURE = "stages"
PICTURE_WORDS = "Held-out loss, and the shares of right and of well-formed answers, through all stages"
SHOWN = 8  # questions with the answers of all stages
MARK = re.compile(r"<\|[^|<>]*\|>")


def write_stages(folders: Sequence[Path | str], out: Path | str) -> Path:
    """Write the page of runs, the first stage first, into `out`; returns the path of stages.md. Raises UserError for a
    folder without a run that took a step."""
    stages = read_stages(folders)
    page, title = blocks(stages), f"The life of a model: {', '.join(stage.name for stage in stages)}"
    known = most_frequent(stages[0].last)[1] if stages[0].last else None
    light, dark = (draw(stages, theme, baseline=known) for theme in (LIGHT, DARK))
    atomic.write(Path(out) / f"{PICTURE}.png", light)
    atomic.write(Path(out) / "stages.html", to_html(title, page, {PICTURE: light}, {PICTURE: dark}))
    path = Path(out) / "stages.md"
    atomic.write(path, to_markdown(title, page, "."))
    return path


def table(stages: Sequence[StageResult]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: what a stage cost, and what the model could do when it was over."""
    domains, on_pairs = documents(stages), any(stage.pairs for stage in stages)
    columns = ["after", "tokens", "time", *(f"loss on {domain}" for domain in domains)]
    columns += ["well-formed", "right answers", *(["pairs told apart"] if on_pairs else [])]
    rows = []
    for stage in stages:
        took = [count(stage.run.last("tokens")), span(stage.run.run.get("seconds"))]
        losses = [number(values[-1], 3) if (values := stage.held_out(domain)[1]) else "–" for domain in domains]
        formed, right = counted(stage.last, "well_formed"), counted(stage.last, "right")
        apart = [_with_interval(stage.pairs)] if on_pairs else []
        rows.append(
            [stage.name, *took, *losses, share(formed.share if formed else None), _with_interval(right), *apart]
        )
    return columns, rows


def blocks(stages: Sequence[StageResult]) -> list[Element]:
    """The page, from what came out to single answers."""
    page: list[Element] = [Paragraph(verdict(stages), "lead"), Sheet(*table(stages)), Picture(PICTURE, PICTURE_WORDS)]
    return [*page, *(Paragraph(words, "note") for words in _notes(stages)), *_examples(stages)]


def verdict(stages: Sequence[StageResult]) -> str:
    """Right answers stage by stage, and what saying the most frequent answer would reach."""
    asked = stages[0].last
    if not asked:
        return "No question was asked in all of these runs."
    known = [(stage.name, counted(stage.last, "right")) for stage in stages]
    reached = ", ".join(f"{share(right.share if right else None)} after {name}" for name, right in known)
    answer, most = most_frequent(asked)
    return (
        f"Right answers to {count(len(asked))} held-out questions: {reached}. Always saying {answer}, the most "
        f"frequent of their answers, would reach {share(most)}."
    )


def most_frequent(answers: Sequence[Answer]) -> tuple[str, float]:
    """The known answer that most questions have, and the share of them."""
    found, times = Counter(_plain(str(one["reference"])) for one in answers).most_common(1)[0]
    return found, times / len(answers)


def _notes(stages: Sequence[StageResult]) -> list[str]:
    notes = [
        "Held-out questions are in no training data. An answer is well-formed if it is one and ends with a stop token, "
        "and right if it is the known one besides, letter by letter, or by the graders among the rewards of its stage. "
        "Answers are greedy; brackets hold 95 % intervals; "
        "losses are of held-out text, in nats a token."
    ]
    for stage in stages:
        for domain, answers in stage.others.items():
            right = _with_interval(counted(answers, "right"))
            words = f"After {stage.name}, {right} of {count(len(answers))} answers to `{domain}` are right"
            notes.append(f"{words}{_gained(stage.before.get(domain), answers)}.")
        if stage.pairs:
            notes.append(
                f"Pairs told apart: held-out pairs of which {stage.name} has made the chosen answer likelier, measured "
                "from the model that it began with; that model itself tells none apart, and chance would half of them."
            )
    return notes


def _gained(before: Sequence[Answer] | None, after: Sequence[Answer]) -> str:
    """What a stage gained on the same questions, of which it answered some before its first step."""
    if not before or not any(one["right"] for one in before):
        return ""
    more, low, high = gain(*([bool(one["right"]) for one in said] for said in (before, after)))
    return (
        f"; before it, {_with_interval(counted(before, 'right'))} were: {100 * more:+z.1f} points "
        f"({100 * low:+z.1f} to {100 * high:+z.1f}, by a paired bootstrap)"
    )


def _examples(stages: Sequence[StageResult]) -> list[Element]:
    """A few questions with the answer of every stage: spread evenly over the order of their text."""
    said = [{question(one): one for one in stage.last} for stage in stages]
    if not (asked := sorted(said[0])):
        return []
    rows = []
    for one in asked[:: max(1, len(asked) // SHOWN)][:SHOWN]:
        cells = [_short(by[one]["completion"]) + (" ✓" if by[one].get("right") else "") for by in said]
        rows.append([_short(one[1], 90), _short(said[0][one]["reference"]), *cells])
    columns = ["question", "answer", *(f"after {stage.name}" for stage in stages)]
    return [Heading("Answers"), Sheet(columns, rows, numbers=False)]


def _with_interval(found: Counted | None) -> str:
    if found is None:
        return "–"
    low, high = found.interval
    return f"{share(found.share)} ({low * 100:.0f} to {high * 100:.0f})"


def _plain(text: str) -> str:
    return " ".join(MARK.sub(" ", text).split())


def _short(text: str, most: int = 40) -> str:
    plain = _plain(text).replace("`", "")
    return plain if len(plain) <= most else f"{plain[: most - 1]}…"
