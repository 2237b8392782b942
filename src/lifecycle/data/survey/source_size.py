"""How large the sources of a mixture are, as far as that can be known without training a tokenizer or downloading.

look_at   every source, its files and its format: refuses what the run would refuse
survey    ... and what a pass over each holds, as items of the view of the run
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from lifecycle.data.clean.bad_rows import BAD, too_broken
from lifecycle.data.clean.filter_row import KEPT, FilteredRow, filter_row
from lifecycle.data.clean.source import BadRows, HeldOut, Source
from lifecycle.data.clean.walk import walk_rows
from lifecycle.data.read.files.listing import is_remote, listing
from lifecycle.data.read.recognise import recognised
from lifecycle.data.read.row import RawRow
from lifecycle.data.read.rows.first_look import look
from lifecycle.data.read.spec import SourceSpec
from lifecycle.data.stream.documents import RawDocuments
from lifecycle.data.stream.open_sources import check_views
from lifecycle.data.survey.item_sizes import AsItems, ItemSizes, item_sizes
from lifecycle.data.views import ITEMS, Maker
from lifecycle.errors import UserError
from lifecycle.system.say_once import say_read
from lifecycle.tokenizer.tokenizer import Tokenizer, TokenizerRecipe, load, place_of

READ_AT_MOST = 32 * 2**20  # bytes of text: a source beyond this is extrapolated from its beginning
MEASURED_ON = 200_000  # bytes of text that the tokenizer is tried on
BYTES_PER_TOKEN = 4.0  # where there is no tokenizer to measure with yet
WORTH_SAYING = 0.01  # share of the items that are longer than a row
BEARS_ALL = BadRows(max_share=1.0, min_rows=1)


@dataclass(frozen=True, kw_only=True)
class SourceSize:
    """`tokens` of one pass over the training side (in the view `prompt` prompts), None where the rows are far away;
    `how` says how it was found. warnings: what of it the run would leave out, or be refused for."""

    name: str
    domain: str
    tokens: float | None
    max_epochs: float | None
    how: str
    warnings: tuple[str, ...] = ()


def look_at(
    specs: Mapping[str, SourceSpec],
    *,
    root: str | None,
    cache: Path,
    bad_rows: BadRows = BEARS_ALL,
    in_shards: Mapping[str, object] | None = None,
    view: str = "text",
) -> list[Source]:
    """Every source with its format known; those that are far away, or `in_shards`, without files. Raises UserError for
    a file that is damaged, and for a source that cannot give the view."""
    found = []
    for name, spec in specs.items():
        shards = name in (in_shards or {})
        spec.check(name, placed=not shards)
        files: Sequence = ()
        if not shards and (spec.hub is None or Path(spec.hub).exists()):
            listed = listing(spec, name=name, root=root, cache=cache)
            say_read(f"data.sources.{name}", listed)
            look(listed.files, bad_rows.damaged_files)
            if not any(is_remote(file.url) for file in listed.files):
                spec, listed = recognised(spec, listed, where=f"data.sources.{name}", view=spec.view_in(view))
                files = listed.files
        found.append(
            Source(name=name, index=0, spec=spec, files=tuple(files), bad_rows=bad_rows, held_out=HeldOut.of(spec))
        )
    check_views({source.name: source.spec for source in found}, view)
    return found


def survey(
    sources: Sequence[Source],
    *,
    tokenizer: Tokenizer | None,
    shards: Mapping[str, int] | None = None,
    items: AsItems | None = None,
    counts: bool = False,
) -> list[SourceSize]:
    """The size of every source that was looked at: of its prepared shards (`shards`: what a pass holds), else from its
    rows where they are on this machine, else from `tokens` in its config.

    items: how the run makes items of rows; None: they are measured as documents. counts: whether the run counts
    prompts, whose number stands in `prompts` of the config.
    """
    return [
        _size(source, tokenizer, shards or {}, items and items.of(source.spec), counts=counts) for source in sources
    ]


def known_tokenizer(wanted: str | TokenizerRecipe) -> Tokenizer | None:
    """The tokenizer if it can be had now; None for a recipe still to be trained and for a hub that is not reached."""
    if isinstance(wanted, TokenizerRecipe):
        return None
    try:
        return load(wanted)
    except UserError:
        if place_of(wanted).exists():
            raise
        return None


def beginning(source: Source) -> list[FilteredRow]:
    """The first usable rows of a source, of about MEASURED_ON bytes; none of one whose rows are not here."""
    rows, size = list[FilteredRow](), 0
    if source.files:
        for row in _documents(source).usable():
            rows.append(row)
            size += _bytes(row)
            if size >= MEASURED_ON:
                break
    return rows


def _size(
    source: Source, tokenizer: Tokenizer | None, shards: Mapping[str, int], items: AsItems | None, *, counts: bool
) -> SourceSize:
    spec, warnings = source.spec, tuple[str, ...]()
    unit = ITEMS["prompt"] if counts else "tokens"
    tokens: float | None = shards.get(source.name, spec.prompts if counts else spec.tokens)
    how = f"its shards hold {tokens:,} {unit}" if source.name in shards else "stated in the config"
    if tokens is None:
        how = "unknown: on the hub" if spec.hub is not None else "unknown: read over the network"
    if source.files:
        tokens, how, warnings = _measured(source, tokenizer, items)
    return SourceSize(
        name=source.name,
        domain=spec.domain or source.name,
        tokens=tokens,
        max_epochs=spec.max_epochs,
        how=how,
        warnings=warnings,
    )


def _documents(source: Source) -> RawDocuments:
    once = replace(source, spec=replace(source.spec, max_epochs=1), bad_rows=replace(source.bad_rows, max_share=1.0))
    return RawDocuments.alone(once, lambda texts: [], seed=0, buffer=1000, shuffle=False)


def _measured(source: Source, tokenizer: Tokenizer | None, items: AsItems | None) -> tuple[float, str, tuple[str, ...]]:
    """Tokens (or prompts) of a pass, how they were found, and what there is to warn of. Raises UserError, as the run
    would, where none of its rows is usable, though few are broken."""
    documents = _documents(source)
    size = rows = 0
    sample = list[FilteredRow]()
    for row in documents.usable():
        if size < MEASURED_ON:
            sample.append(row)
        size, rows = size + _bytes(row), rows + 1
        if size > READ_AT_MOST:
            break
    whole = size <= READ_AT_MOST
    share = 1.0 if whole else max(documents.totals()["epochs"], 1e-9)
    guess = "" if tokenizer else " (a guess: the tokenizer is not there yet)"
    counts = Counter(documents.totals()["counts"])
    if not rows and _too_broken(source, counts, None) is None:  # a warning says more of broken ones
        raise UserError(documents.nothing_usable())
    if items is not None and not items.packing.cuts:
        found = item_sizes(sample, items)
        unmade = {f"{BAD}{reason}": round(n * rows / found.rows) for reason, n in found.broken.items()}
        counts.update(unmade)
        counts[KEPT] -= sum(unmade.values())  # a row of which its view makes nothing was read all the same
        warnings = [_too_long(source.name, found, items), _too_broken(source, counts, items.make)]
        how = (
            f"{'its' if whole else 'about'} {rows / share:,.0f} {ITEMS[items.make.view]}, {_shape(found, items)}{guess}"
        )
        return rows / share * found.size, how, tuple(filter(None, warnings))
    ratio = _bytes_per_token([row.text or "" for row in sample], tokenizer)
    how = f"{'its' if whole else 'its first'} {size / 1e6:,.1f} MB of text at {ratio:.2f} bytes a token{guess}"
    broken = _too_broken(source, counts, None)
    return size / share / ratio, how, (broken,) if broken else ()


def _too_broken(source: Source, counts: Mapping[str, int], make: Maker | None) -> str | None:
    """What the run would say of its broken rows, and refuse; None where they are few."""
    return too_broken(source, counts, before=0, at_end=True, find=partial(_first_broken, source, make))


def _first_broken(source: Source, make: Maker | None, reason: str) -> RawRow | None:
    """The first row that is broken for that reason, as it is read, or as `make` finds it."""
    for raw in walk_rows(source):
        row = filter_row(raw, source)
        if row.verdict == f"{BAD}{reason}" or (make and row.record is not None and make([row]) == [reason]):
            return raw
    return None


def _shape(found: ItemSizes, items: AsItems) -> str:
    said = f"of {found.length:,.0f} positions on the mean"
    if not found.too_long:
        return said
    share = f"{found.too_long:.0%}" if found.too_long >= WORTH_SAYING else "less than 1%"
    return f"{said}, {share} of them longer than a row"


def _too_long(name: str, found: ItemSizes, items: AsItems) -> str | None:
    """What becomes of items that are longer than a row, where they are more than a few."""
    if found.too_long < WORTH_SAYING:
        return None
    drops = items.packing.counts or items.packing.long_examples == "drop"
    what = "left out" if drops else "cut to its length"
    advice = "" if items.packing.counts or not drops else ", or set data.long_examples=shorten"
    return (
        f"{found.too_long:.0%} of the {ITEMS[items.make.view]} of {name} are longer than a row of {items.row_length:,} "
        f"and are {what}: raise stage.sequence_length{advice}"
    )


def _bytes(row: FilteredRow) -> int:
    return len((row.text or "").encode("utf-8", "surrogatepass"))


def _bytes_per_token(sample: list[str], tokenizer: Tokenizer | None) -> float:
    if tokenizer is None or not sample:
        return BYTES_PER_TOKEN
    tokens = sum(len(ids) for ids in tokenizer.documents(sample))
    return sum(len(text.encode("utf-8", "surrogatepass")) for text in sample) / max(tokens, 1)
