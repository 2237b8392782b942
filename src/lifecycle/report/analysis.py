"""The analysis of a mixture as pages: analysis.md (pictures in `analysis/`) and analysis.html (pictures inside)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from lifecycle.report.page.canvas import DARK, LIGHT, Theme, canvas, legend, png, style
from lifecycle.report.page.format import count, number, share, short
from lifecycle.report.page.marked import Marked
from lifecycle.report.page.render import Element, Heading, Paragraph, Picture, Sheet, to_html, to_markdown
from lifecycle.system import atomic

PICTURES_FOLDER = "analysis"
REASONS = 4  # reasons for rows that are left out, in a terminal
WORTH_SAYING = 4  # passes over a source from which on they teach less and less (arXiv 2305.16264)
Analysis = Mapping[str, Any]


def write_analysis(folder: Path, found: Analysis) -> str:
    """Write the pages of an analysis (the content of analysis.json) into `folder`; returns what a terminal shows."""
    light, dark = draw(found, LIGHT), draw(found, DARK)
    title = f"What the mixture gives: {', '.join(found['sources'])}"
    page = blocks(found)
    for name, image in light.items():
        atomic.write(folder / PICTURES_FOLDER / f"{name}.png", image)
    atomic.write(folder / "analysis.html", to_html(title, page, light, dark))
    text = to_markdown(title, page, PICTURES_FOLDER)
    atomic.write(folder / "analysis.md", text)
    return terminal(found) + f"\nall of it: {folder / 'analysis.html'}"


def terminal(found: Analysis) -> str:
    """A line a source, and one for each of the most frequent reasons for rows that are left out."""
    lines = []
    for name, source in found["sources"].items():
        rows, kept, held = sum(source["rows"].values()), kinds(source)["training"], kinds(source)["held out"]
        lines.append(
            f"{name:20} {count(source['documents'])} {found['items']}, {short(source['tokens'])} tokens, "
            f"{number(source['bytes_per_token'])} bytes a token, "
            + (f"{number(source['epochs'])} epochs at the budget, " if found["budget_tokens"] else "")
            + f"{share(kept / rows if rows else None)} of {count(rows)} rows trained on"
            + (f", {count(held)} held out" if held else "")
        )
        reasons = [(n, kind) for kind, n in kinds(source).items() if n and kind not in ("training", "held out")]
        lines += [f"{'':20} {count(n)} left out, {kind}" for n, kind in sorted(reasons, reverse=True)[:REASONS]]
        lines += [f"{'':20} ... and for {len(reasons) - REASONS} more reasons"] if len(reasons) > REASONS else []
    return "\n".join(lines)


def kinds(source: Analysis, *, brief: bool = False) -> dict[str, int]:
    """Rows of a source by their outcome: training, held out, or the reason that they are left out.

    `brief`: all rules of one set (`gopher`), and all that is bad, together.
    """
    out = {"training": 0, "held out": 0}
    for verdict, rows in source["rows"].items():
        kind, _, reason = verdict.partition(":")
        name = {"kept": "training", "held": "held out"}.get(kind, f"{kind}: {reason}")
        if brief:
            name = {"bad": "broken", "dropped": reason.partition(":")[0]}.get(kind, name)
        out[name] = out.get(name, 0) + rows
    return out


def blocks(found: Analysis) -> list[Element]:
    """The page, from the shares of the mixture to samples of its text."""
    return [
        *_shares(found),
        *_lengths(found["sources"], found["items"]),
        *_outcomes(found["sources"]),
        *_overlaps(found),
        *_examples(found),
        *_samples(found["sources"]),
    ]


def _shares(found: Analysis) -> list[Element]:
    """What each source gives, to the planned run where there is one, and a warning where it is read too often."""
    sources, items, budget = found["sources"], found["items"], found["budget_tokens"]
    planned_heads = ("planned tokens", "epochs") if budget else ()
    heads = ("source", "share", items, "tokens", "trained", "bytes a token", *planned_heads)
    rows = [
        (
            name,
            share(s["weight"]),
            count(s["documents"]),
            count(s["tokens"]),
            share(s["trained"] / s["tokens"] if s["tokens"] else None),
            number(s["bytes_per_token"]),
            *((count(s["planned_tokens"]), number(s["epochs"])) if budget else ()),
        )
        for name, s in sources.items()
    ]
    beside = " (of its prompts: completions are not known yet)" if found["view"] == "prompt" else ""
    planned = (
        f"A run of {short(budget)} tokens is planned{beside}."
        if budget
        else "No run is planned: stage.budget_tokens=2e9, its trained tokens, says how often each source would be read."
    )
    out: list[Element] = [Paragraph(planned, "lead"), Sheet(heads, rows)]
    for name, s in sources.items():
        if not s["documents"]:
            out.append(Paragraph(f"{name} has no {items} to train on.", "warning"))
        elif (s["epochs"] or 0) > WORTH_SAYING:
            often = f"{name} is read {number(s['epochs'], 1)} times"
            out.append(Paragraph(f"{often}: past about four passes, text teaches less and less.", "warning"))
    return [*out, Picture("tokens", "tokens by source")]


def _lengths(sources: Analysis, items: str) -> list[Element]:
    points = list(dict.fromkeys(p for s in sources.values() for p in s["length"]))
    return [
        Heading("Lengths"),
        Paragraph(f"Tokens of each of the {items}.", "note"),
        Sheet(
            ("source", *(f"{p} %" if p != "100" else "longest" for p in points)),
            [(name, *(count(s["length"].get(p)) for p in points)) for name, s in sources.items()],
        ),
        Picture("lengths", f"{items} by length"),
    ]


def _outcomes(sources: Analysis) -> list[Element]:
    """Rows by their outcome, and what was replaced in their text."""
    out: list[Element] = [Heading("Outcome of the rows"), Picture("rows", "rows by outcome")]
    for name, s in sources.items():
        total = sum(s["rows"].values())
        out.append(
            Sheet((name, "rows", "share"), [(k, count(n), share(n / total, 2)) for k, n in kinds(s).items() if n])
        )
        if s["masked"]:
            replaced = ", ".join(f"{count(n)} {kind}" for kind, n in s["masked"].items())
            out.append(Paragraph(f"Replaced by marks in {name}: {replaced}.", "note"))
    return out


def _overlaps(found: Analysis) -> list[Element]:
    """Near duplicates between sources, and within each; nothing where there are none to compare."""
    sources = found["sources"]
    if len(sources) < 2 and not any(found["overlaps"][name][name] for name in sources):
        return []
    return [
        Heading("Overlaps"),
        Picture("overlaps", "share of near duplicates between sources"),
        Paragraph(
            "Share of the documents of the source on the left that resemble one of the source above; of itself: an "
            "earlier one of its own. As the rows were before near duplicates were left out.",
            "note",
        ),
    ]


def _examples(found: Analysis) -> list[Element]:
    shown = examples(found)
    if not shown:
        return []
    words = "Token by token; trained ones are green, or stand between ⟦ and ⟧ where there are no colours."
    return [Heading(f"Examples of the view {found['view']}"), Paragraph(words, "note"), *shown]


def _samples(sources: Analysis) -> list[Element]:
    sheets = (
        Sheet((name, "begins"), [sampled(sample) for sample in s["samples"]], numbers=False)
        for name, s in sources.items()
    )
    return [Heading("Samples"), *sheets]


def examples(found: Analysis) -> list[Marked]:
    """The samples that are trained on, as the stage reads them."""
    return [
        Marked(f"{name}, row {count(sample['row'])}", sample["item"]["parts"], sample["item"]["facts"])
        for name, source in found["sources"].items()
        for sample in source["samples"]
        if sample["item"] is not None
    ]


def sampled(sample: Analysis) -> tuple[str, str]:
    """A sample as a row of a table."""
    verdict = sample["verdict"].rstrip(":").replace(":", ": ")
    return f"{verdict}, row {count(sample['row'])}", " ".join(sample["text"].split())[:240].replace("`", "'")


def draw(found: Analysis, theme: Theme) -> dict[str, bytes]:
    """Every picture by name, as PNG."""
    drawn = {}
    for name, picture in PICTURES.items():
        with rc_context(style(theme)):
            drawn[name] = png(picture(found, theme))
    return drawn


def tokens(found: Analysis, theme: Theme) -> Figure:
    """Tokens that each source has (solid) beside those that the budget asks of it (pale), where there is one."""
    sources, budget = found["sources"], found["budget_tokens"]
    title = "Tokens of each source" + (" (solid: one pass, pale: planned)" if budget else "")
    figure, (axes,) = canvas(theme, title, height=0.75 + 0.55 * len(sources))
    most = max(max(s["tokens"], s["planned_tokens"] or 0) for s in sources.values()) or 1
    for place, (s, color) in enumerate(zip(sources.values(), colors(found, theme), strict=True)):
        axes.barh(place, s["planned_tokens"] or 0, height=0.66, color=color, alpha=0.28, linewidth=0)
        axes.barh(place, s["tokens"], height=0.36, color=color, linewidth=0)
        note = short(s["tokens"], 3) + (f", {number(s['epochs'])} epochs" if budget else "")
        place_of_note = max(s["tokens"], s["planned_tokens"] or 0) + most * 0.015
        axes.text(place_of_note, place, note, va="center", color=theme.muted, fontsize=9.5)
    axes.set_yticks(range(len(sources)), list(sources), color=theme.ink)
    axes.grid(visible=False, axis="y")
    axes.invert_yaxis()
    axes.set_xlim(0, most * 1.4)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: short(v)))
    return figure


def lengths(found: Analysis, theme: Theme) -> Figure:
    """The share of each source's items by length, in bins of half a doubling."""
    items = found["items"]
    figure, (axes,) = canvas(theme, f"{items.capitalize()} by length (share of those of the source)", height=3.6)
    for (name, s), color in zip(found["sources"].items(), colors(found, theme), strict=True):
        bins = {int(start): n / max(s["documents"], 1) for start, n in s["histogram"].items()}
        if bins:
            starts, shares = sorted(bins), [bins[start] for start in sorted(bins)]
            axes.step([*starts, starts[-1] * 2**0.5], [*shares, 0], where="post", color=color, label=name)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"tokens of each of the {items}")
    legend(axes)
    return figure


def rows(found: Analysis, theme: Theme) -> Figure:
    """The outcome of each source's rows, as shares of them."""
    sources = found["sources"]
    figure, (axes,) = canvas(theme, "Outcome of the rows", height=1.25 + 0.5 * len(sources))
    names = list(dict.fromkeys(kind for s in sources.values() for kind, n in kinds(s, brief=True).items() if n))
    palette = {name: theme.series[i % len(theme.series)] for i, name in enumerate(names)}
    for place, s in enumerate(sources.values()):
        left, total = 0.0, sum(s["rows"].values()) or 1
        for kind, number_of_rows in kinds(s, brief=True).items():
            width = number_of_rows / total
            if width:
                first = kind not in axes.get_legend_handles_labels()[1]
                axes.barh(place, width, left=left, height=0.55, color=palette[kind], label=kind if first else None)
            left += width
    axes.set_yticks(range(len(sources)), list(sources), color=theme.ink)
    axes.grid(visible=False, axis="y")
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    if names:
        figure.legend(loc="outside lower left", ncols=4, frameon=False, fontsize=9)
    return figure


def overlaps(found: Analysis, theme: Theme) -> Figure:
    """A matrix of sources: the share of each (row) that resembles documents of another (column)."""
    names = list(found["sources"])
    figure, (axes,) = canvas(theme, "Near duplicates between sources", height=1.3 + 0.5 * len(names))
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    for i, one in enumerate(names):
        for j, other in enumerate(names):
            value = found["overlaps"][one][other]
            shade = min(1.0, value * 2) ** 0.5 * 0.85
            axes.barh(i, 0.94, left=j - 0.47, height=0.9, color=theme.series[0], alpha=shade, linewidth=0)
            axes.text(j, i, share(value, 2), ha="center", va="center", color=theme.ink, fontsize=9.5)
    axes.set_xticks(range(len(names)), names, color=theme.ink)
    axes.set_yticks(range(len(names)), names, color=theme.ink)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylim(len(names) - 0.5, -0.5)
    return figure


def colors(found: Analysis, theme: Theme) -> list[str]:
    """A colour for each source, the same in all pictures."""
    return [theme.series[i % len(theme.series)] for i in range(len(found["sources"]))]


PICTURES: dict[str, Callable[[Analysis, Theme], Figure]] = {
    "tokens": tokens,
    "lengths": lengths,
    "rows": rows,
    "overlaps": overlaps,
}
