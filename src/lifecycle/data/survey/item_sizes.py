"""How large the items of a view are in rows of a length, by some of a source's rows: what a dry run can say of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lifecycle.batch import Item, positions
from lifecycle.data.clean.filter_row import FilteredRow
from lifecycle.data.read.spec import SourceSpec
from lifecycle.data.stream.epoch_length import sizes_in_rows
from lifecycle.data.stream.packing import Packing
from lifecycle.data.views import Maker


@dataclass(frozen=True, kw_only=True)
class AsItems:
    """How a run makes items of rows, and how they stand in its longest rows."""

    make: Maker
    packing: Packing
    row_length: int

    def of(self, spec: SourceSpec) -> AsItems:
        """How it makes those of a source."""
        return replace(self, make=self.make.in_view(spec.view_in(self.packing.view)))


@dataclass(frozen=True, kw_only=True)
class ItemSizes:
    """Of the rows that were tried. rows: how many. size: what a row gives a pass on the mean: positions, or prompts.
    length: positions of an item on the mean. too_long: share of the items that are longer than a row. broken: rows of
    which the view makes no item, by reason."""

    rows: int
    size: float
    length: float
    too_long: float
    broken: Counter[str]


def item_sizes(rows: Sequence[FilteredRow], how: AsItems) -> ItemSizes:
    """What `rows` give."""
    made = how.make(rows)
    items = [item for item in made if not isinstance(item, str)]
    sizes = [size for item in items for size in sizes_in_rows(item, how.packing, how.row_length)]
    number = max(1, len(items))
    return ItemSizes(
        rows=len(rows),
        size=how.packing.positions(sizes, how.row_length) / max(1, len(rows)),
        length=sum(positions(item) for item in items) / number,
        too_long=sum(not _fits(item, how) for item in items) / number,
        broken=Counter(reason for reason in made if isinstance(reason, str)),
    )


def _fits(item: Item, how: AsItems) -> bool:
    return how.packing.goes_on(item) or how.packing.fit(item, how.row_length) is item
