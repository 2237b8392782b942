"""rollouts.html: one page that needs no other file, with a filter by source and two ways to colour tokens.

Prompts and completions are hostile until shown otherwise: every text is escaped, characters that would act on the page
or turn its direction around are written out, and the page allows its own script and no other.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from lifecycle.report.page.format import number
from lifecycle.report.page.render import Sheet, table_in_html
from lifecycle.report.rollouts import samples
from lifecycle.report.rollouts.kept import KeptRun, Mark, read_kept, spread
from lifecycle.report.rollouts.picked import changed, changed_answers, extremes, mean
from lifecycle.report.rollouts.samples import SamplesShown
from lifecycle.report.run.run_data import read_lines
from lifecycle.report.stages.results import ANSWERS, Answer
from lifecycle.system import atomic

PAGE = "rollouts.html"
MOST_ROWS = 12
"""Of the table of steps."""


def write_rollouts(run_folder: Path | str, other_folder: Path | str | None = None) -> Path:
    """Write the page of a run into its folder; returns its path. other_folder: of a run that is compared with it.
    Raises UserError where one of them has kept no samples."""
    run = read_kept(run_folder)
    other = None if other_folder is None else read_kept(other_folder)
    path = run.folder / PAGE
    atomic.write(path, _document(run, other))
    return path


def _document(run: KeptRun, other: KeptRun | None) -> str:
    script = files("lifecycle.report.rollouts").joinpath("page.js").read_text()
    style = files("lifecycle.report").joinpath("page.css").read_text()
    style += files("lifecycle.report.rollouts").joinpath("page.css").read_text()
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    title = f"Samples of {run.name}" + (f", beside {other.name}" if other else "")
    answers = read_lines(run.folder / ANSWERS)
    parts = [_overview(run), *_sections(run, other, answers)]
    domains = {str(one["domain"]) for one in answers}
    sources = sorted({*run.sources, *(other.sources if other else ()), *domains})
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{allowed}'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{samples.text(title)}</title>\n<style>\n{style}</style>\n</head>\n"
        f'<body class="by-probability">\n<main>\n<h1>{samples.text(title)}</h1>\n{_controls(sources)}\n'
        f"{''.join(parts)}\n</main>\n<script>{script}</script>\n</body>\n</html>\n"
    )


def _controls(sources: Sequence[str]) -> str:
    options = "".join(f'<option value="{samples.text(one)}">{samples.text(one)}</option>' for one in sources)
    low = "".join(f'<span class="l{n}">{words}</span>' for n, words in enumerate(samples.PROBABLE, 1))
    up = "".join(f'<span class="{kind}">{words}</span>' for kind, words in samples.ADVANTAGES.items())
    return (
        f'<div class="controls"><label>source <select id="source"><option value="">all</option>{options}</select>'
        '</label><label>colours <select id="colours"><option value="by-probability">probability of a token</option>'
        '<option value="by-advantage">advantage</option><option value="">none</option></select></label>'
        f'<span class="legend probability">{low}</span><span class="legend advantage">{up}</span></div>'
    )


def _overview(run: KeptRun) -> str:
    steps = sorted(run.by_step)
    looked = "" if run.looked_at == run.steps else f", of which {run.looked_at:,} are looked at here, evenly spread"
    words = f"{run.steps:,} steps were kept{looked}: {len(run.marks):,} samples. Source by source: "
    words += "; ".join(_of_source(run, source) for source in run.sources) + "."
    rows = [_of_step(run.by_step[step]) for step in spread(steps, MOST_ROWS)]
    sheet = Sheet(("step", "samples", "reward", "cut off", "groups that vary"), rows)
    return f"<p>{samples.text(words)}</p>{table_in_html(sheet)}"


def _of_source(run: KeptRun, source: str) -> str:
    there = [mark for mark in run.marks if mark.prompt[0] == source]
    return f"{source} {len(there):,}, mean reward {number(mean(there), 3)}"


def _of_step(marks: Sequence[Mark]) -> list[str]:
    groups: dict[int, set[float]] = {}
    for mark in marks:
        groups.setdefault(mark.place, set()).update([] if mark.reward is None else [mark.reward])
    cut, varying = sum(mark.unfinished for mark in marks), sum(len(rewards) > 1 for rewards in groups.values())
    return [
        f"{marks[0].step:,}",
        f"{len(marks):,}",
        number(mean(marks), 3),
        f"{cut / len(marks):.0%}",
        f"{varying:,} of {len(groups):,}",
    ]


def _sections(run: KeptRun, other: KeptRun | None, answers: Sequence[Answer]) -> list[str]:
    shown, theirs = SamplesShown(run.folder), None if other is None else SamplesShown(other.folder)
    best, worst = (extremes(run, best=wanted) for wanted in (True, False))
    made = [
        ("The best", "Of each source, the highest reward, then the highest advantage; one sample of a prompt.", best),
        ("The worst", "Of each source, the lowest reward, then the lowest advantage.", worst),
    ]
    parts = [_section(title, words, [shown.sample(mark) for mark in marks]) for title, words, marks in made]
    when = "the last time in each of the two runs" if other else "the first and the last time that it was asked"
    words = f"Of a prompt, {when}: the sample whose reward is nearest to the mean of its group."
    changes = [(theirs or shown, one) for one in changed(run, other)]
    names = (other.name, run.name) if other else ("", "")
    parts.append(
        _section("Prompts whose answers changed most", words, [shown.change(one, by, names) for by, one in changes])
    )
    return [*parts, *_held_out(run, other, answers)]


def _held_out(run: KeptRun, other: KeptRun | None, lines: Sequence[Answer]) -> list[str]:
    """Greedy answers to held-out questions: at the first and last measurement, or at the last of both runs."""
    theirs = [] if other is None else read_lines(other.folder / ANSWERS)
    steps = sorted({one["step"] for one in lines})
    if not steps or (other is None and len(steps) < 2) or (other is not None and not theirs):
        return []
    after = [one for one in lines if one["step"] == steps[-1]]
    first = min(steps) if other is None else max(one["step"] for one in theirs)
    before = [one for one in (lines if other is None else theirs) if one["step"] == first]
    chosen, counts = changed_answers(before, after)
    whose = f"step {first:,}" if other is None else f"{other.name}, step {first:,}"
    names = (whose, f"step {steps[-1]:,}" if other is None else f"{run.name}, step {steps[-1]:,}")
    words = (
        f"Greedy answers, {names[0]} and {names[1]}: of {counts['asked']:,} questions {counts['gained']:,} became "
        f"right and {counts['lost']:,} wrong. Right means the known answer, letter by letter."
    )
    return [_section("Held-out questions whose answers changed most", words, [samples.pair(c, names) for c in chosen])]


def _section(title: str, words: str, made: Sequence[str]) -> str:
    """A heading, what is shown, and the samples; where the filter leaves none, that there is none."""
    return (
        f'<section><h2>{samples.text(title)}</h2><p class="note">{samples.text(words)}</p>{"".join(made)}'
        '<p class="none note">None of this kind.</p></section>'
    )
