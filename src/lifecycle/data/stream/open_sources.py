"""Opening the sources of a mixture: files found, duplicates known, the held-out side decided, text sampled."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from lifecycle.data.clean.contamination import Index
from lifecycle.data.clean.contamination_report import FOLDER
from lifecycle.data.clean.exact_duplicates import REASON, duplicate_rows
from lifecycle.data.clean.near_duplicates import without_near_duplicates
from lifecycle.data.clean.row_counts import with_row_counts
from lifecycle.data.clean.source import BadRows, HeldOut, Source
from lifecycle.data.mixture.plan import REPLAY
from lifecycle.data.mixture.replay_names import generation_of
from lifecycle.data.read.begun import Begun, listed
from lifecycle.data.read.files.listing import Listing, hashed, is_remote, listing, place
from lifecycle.data.read.formats import LIST
from lifecycle.data.read.recognise import recognised
from lifecycle.data.read.rows.first_look import look
from lifecycle.data.read.spec import SourceSpec
from lifecycle.data.stream.documents import RawDocuments
from lifecycle.errors import UserError
from lifecycle.system.say_once import say_read


def open_sources(
    specs: Mapping[str, SourceSpec],
    *,
    root: str | None,
    bad_rows: BadRows,
    cache: Path,
    quarantine: Path | None,
    processes: int = 1,
    evaluation: Index | None = None,
    begun: Begun | None = None,
    shards: Mapping[str, str] | None = None,
    view: str = "text",
) -> list[Source]:
    """The training side of every source, in the order of the config. Raises `UserError` naming the source at fault.

    `processes` look for duplicates, where a source has such a filter; `evaluation` is what no document may hold; a run
    that goes on reads the files that it has `begun` with. shards: by source, what prepared shards were made from; such
    a source is not read, and its files need not be here. view: that a format which is to be recognised should give.
    """
    shards = shards or {}
    for name, spec in specs.items():
        spec.check(name, placed=name not in shards)
    read = [name for name, spec in specs.items() if name not in shards or is_here(spec, root)]
    found = {name: _listing(specs[name], name, root, cache, bad_rows, view) for name in read}
    specs = {name: found[name][0] if name in found else spec for name, spec in specs.items()}
    files = {name: listing for name, (_, listing) in found.items()}
    if begun is not None:
        files = {name: replace(one, files=begun.in_order(name, one.files)) for name, one in files.items()}
        begun.check_files({name: {"training": listed(files[name].files)} for name in read if name not in shards})
    opened = []
    for index, (name, spec) in enumerate(specs.items()):
        source = Source(
            name=name,
            index=index,
            spec=spec,
            files=files[name].files if name in files else (),
            passed=files[name].passed if name in files else {},
            bad_rows=bad_rows,
            held_out=HeldOut.of(spec),
            evaluation=evaluation,
            quarantine=quarantine / f"{name}.jsonl" if quarantine else None,
            contaminated=quarantine.with_name(FOLDER) / f"{name}.jsonl" if quarantine else None,
        )
        if name in shards:
            source = replace(source, shards=shards[name])
        elif spec.filters.exact_duplicates:
            again = duplicate_rows(source, cache=cache, processes=processes)
            source = replace(source, left_out={REASON: again})
        opened.append(source)
    opened = without_near_duplicates(opened, cache=cache, processes=processes)
    return [with_row_counts(s, cache=cache) if s.is_numbered and s.shards is None else s for s in opened]


def is_here(spec: SourceSpec, root: str | None, split: str | None = None) -> bool:
    """Whether all places of a source's files are on this machine; texts of this Python (python://) are made anywhere,
    and others by every version of it, so they are not looked at."""
    if spec.hub is not None:
        return os.path.isdir(place(spec.hub, root))
    if spec.path is None:
        return False
    paths = spec.path.get(split or spec.split, []) if isinstance(spec.path, dict) else spec.path
    places = [place(url, root) for url in ([paths] if isinstance(paths, str) else paths)]
    return all(not is_remote(one) and (os.path.exists(one) or glob.glob(one, recursive=True)) for one in places)


def _listing(
    spec: SourceSpec, name: str, root: str | None, cache: Path, bad_rows: BadRows, view: str
) -> tuple[SourceSpec, Listing]:
    """The files of a source, and what it is with its format known."""
    where = f"data.sources.{name}"
    try:
        return recognised(spec, _opened(spec, name, root, cache, bad_rows, where), where=where, view=view)
    except UserError as fault:
        if generation_of(name) is None or name == REPLAY:
            raise
        raise UserError(
            f"{fault}. An ancestor of this run was trained on it: put it back, or name a source {REPLAY} "
            f"(+data.sources.{REPLAY}.path=...), which stands in the place of all that ancestors were trained on"
        ) from fault


def _opened(spec: SourceSpec, name: str, root: str | None, cache: Path, bad_rows: BadRows, where: str) -> Listing:
    """The files of a source, said and looked at before their bytes are read for their hashes."""
    found = listing(spec, name=name, root=root, cache=cache)
    say_read(where, found)
    look(found.files, bad_rows.damaged_files)
    return hashed(found, cache)


def held_out_source(
    source: Source, *, root: str | None, cache: Path, begun: Begun | None = None, view: str = "text"
) -> Source | None:
    """The validation side of a source: the same files for a hash share, others for a split or a file (in the order that
    the run has `begun` with); None without, and where shards are read and its files are not here."""
    spec = source.spec
    if spec.validation is None:
        return None
    once = replace(spec, max_epochs=1)
    if source.held_out is not None:
        return replace(source, spec=once)
    assert isinstance(spec.validation, str)
    split = replace(once, max_rows=None, split=spec.validation, validation=None)
    if spec.validation_file is not None:
        split = replace(once, max_rows=None, path=spec.validation_file, validation=None)
    if source.shards is not None and not is_here(split, root):
        return None
    where = f"data.sources.{source.name}.validation"
    found = _opened(split, source.name, root, cache, source.bad_rows, where)
    split, found = recognised(split, found, where=f"data.sources.{source.name}", view=view)
    files, passed = begun.in_order(source.name, found.files, "held_out") if begun else found.files, found.passed
    return replace(
        source, spec=split, files=files, passed=passed, held_out=None, left_out={}, file_rows=None, shards=None
    )


def sample_texts(sources: list[Source], weights: Mapping[str, float], max_bytes: int, seed: int) -> Iterator[str]:
    """Training texts in the shares of the mixture, up to `max_bytes` or until every source was read once."""
    readers = {s.name: _texts(s, seed) for s in sources if weights[s.name] > 0}
    given = dict.fromkeys(readers, 0)
    while readers and sum(given.values()) < max_bytes:
        name = min(readers, key=lambda n: given[n] / weights[n])
        text = next(readers[name], None)
        if text is None:
            del readers[name]
            continue
        given[name] += len(text.encode("utf-8", "surrogatepass"))
        yield text


def _texts(source: Source, seed: int) -> Iterator[str]:
    once = replace(source, spec=replace(source.spec, max_epochs=1))
    return RawDocuments.alone(once, lambda texts: [], seed=seed, buffer=1000).texts()


def check_views(sources: list[Source], view: str, given: Mapping[str, frozenset[str]]) -> None:
    """Raise UserError if a source cannot give the view that the stage trains on."""
    known = dict.fromkeys(one for form in LIST for one in sorted(form.views))
    if view not in known:
        raise UserError(f"stage.view is '{view}'; wanted one of {', '.join(known)}")
    able = [form.name for form in LIST if view in form.views]
    forms = f"format{'s' * (len(able) > 1)} {', '.join(able)}"
    for source in sources:
        if view not in given[source.name]:
            where, gives = f"data.sources.{source.name}", ", ".join(sorted(given[source.name]))
            raise UserError(
                f"the stage trains on the view '{view}', but {where} (format '{source.spec.format}') gives {gives}. "
                f"'{view}' is given by the {forms}: set {where}.format where its rows have such a form, take the "
                f"source out ('~{where}'), or choose another data config, or a stage that trains on {gives}"
            )
