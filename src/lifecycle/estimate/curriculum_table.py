"""The schedule of a curriculum as tables for a terminal, one a source, with a strip that shows it over the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from lifecycle.data.survey.bucket_sizes import BucketSize
from lifecycle.estimate.estimate import SourcePlan
from lifecycle.report.page.format import short

STRIP = 20  # characters; each is a twentieth of the run
SHADES = " ░▒▓█"
MOST_COLUMNS = 4  # of shares by progress; a pacing function has more turns, and its strip says enough


def tables(levels: Mapping[str, Sequence[BucketSize]], plans: Sequence[SourcePlan]) -> Group:
    """`plans`: what the run would take from each source, all levels together."""
    by_name = {plan.name: plan for plan in plans}
    return Group(*(_table(name, sizes, by_name[name]) for name, sizes in levels.items()))


def warnings(levels: Mapping[str, Sequence[BucketSize]], plans: Sequence[SourcePlan]) -> list[str]:
    """Levels that would be read more often than their source may be."""
    by_name = {plan.name: plan for plan in plans}
    found = []
    for name, sizes in levels.items():
        most = by_name[name].max_epochs
        for size in sizes:
            passes = _passes(size, by_name[name])
            if most is not None and passes is not None and passes > most:
                found.append(
                    f"level {size.bucket} of {name} would be read {passes:.1f} times, data.sources.{name}.max_epochs "
                    f"allows {most:g}: shorten its stages, widen their levels, or raise max_epochs"
                )
    return found


def _table(name: str, sizes: Sequence[BucketSize], plan: SourcePlan) -> Table:
    sheet = Table(
        title=f"Curriculum of {name}: shares of its tokens by progress",
        caption="its rows are scored when the run begins; until then a level is as large as it is wide"
        if sizes[0].rows is None
        else None,
        title_justify="left",
        caption_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    turns = list(sizes[0].shares)
    shown = turns if len(turns) <= MOST_COLUMNS else []
    sheet.add_column("level", no_wrap=True)
    for head in ("rows", "holds", "planned", "epochs", *(f"{turn:.0%}" for turn in shown)):
        sheet.add_column(head, justify="right", no_wrap=True)
    sheet.add_column("over the run", no_wrap=True)
    for size in sizes:
        passes = _passes(size, plan)
        sheet.add_row(
            size.bucket,
            "?" if size.rows is None else short(size.rows, 3),
            "?" if plan.available is None else short(plan.available * size.part, 3),
            short(plan.tokens * size.mean_share, 3),
            "?" if passes is None else f"{passes:,.1f}",
            *(f"{size.shares[turn]:.0%}" for turn in shown),
            Text(strip(size)),
        )
    return sheet


def strip(size: BucketSize) -> str:
    """The level's share of the source's tokens from the run's first step to its last: the darker the larger."""
    shares = [size.share_at((place + 0.5) / STRIP) for place in range(STRIP)]
    return "".join(SHADES[0 if share == 0 else max(1, round(share * (len(SHADES) - 1)))] for share in shares)


def _passes(size: BucketSize, plan: SourcePlan) -> float | None:
    return plan.tokens * size.mean_share / (plan.available * size.part) if plan.available else None
