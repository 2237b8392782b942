"""Opening the sources of a mixture: files found, formats known, duplicates known, the held-out side decided."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lifecycle.data.clean.contamination import Decontaminate, Index, evaluation_index
from lifecycle.data.clean.contamination_report import FOLDER
from lifecycle.data.clean.exact_duplicates import REASON, duplicate_rows
from lifecycle.data.clean.near_duplicates import without_near_duplicates
from lifecycle.data.clean.row_counts import with_row_counts
from lifecycle.data.clean.source import BadRows, HeldOut, Source
from lifecycle.data.mixture.batch_plan import REPLAY
from lifecycle.data.mixture.replay_names import generation_of
from lifecycle.data.read.begun import Begun, listed
from lifecycle.data.read.files.listing import Listing, hashed, is_remote, listing, place
from lifecycle.data.read.formats import LIST, views
from lifecycle.data.read.recognise import recognised
from lifecycle.data.read.rows.first_look import look
from lifecycle.data.read.spec import SourceSpec
from lifecycle.errors import UserError
from lifecycle.system.say_once import say_read

TRAINED_BY = {
    "unpaired": "on answers labelled good or bad, stage=dpo stage.view=unpaired stage.loss=kto",
    "preference": "on pairs, stage=dpo (stage.view=preference)",
}
"""By a view that a source gives: what trains on it, where it is not plain."""
LISTED = 100  # files of a source in run.json, read or passed over


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
    found = _found(specs, root=root, bad_rows=bad_rows, cache=cache, begun=begun, shards=shards, view=view)
    opened = []
    for index, (name, (spec, files)) in enumerate(found.items()):
        source = Source(
            name=name,
            index=index,
            spec=spec,
            files=files.files if files else (),
            passed=files.passed if files else {},
            bad_rows=bad_rows,
            held_out=HeldOut.of(spec),
            evaluation=evaluation,
            quarantine=quarantine / f"{name}.jsonl" if quarantine else None,
            contaminated=quarantine.with_name(FOLDER) / f"{name}.jsonl" if quarantine else None,
        )
        opened.append(replace(source, shards=shards[name]) if name in shards else source)
    return _without_copies(opened, cache=cache, processes=processes)


def evaluation_of(chosen: Decontaminate | None, *, root: str | None, cache: Path, in_shards: bool) -> Index | None:
    """What no document may hold; None also where all rows are in shards (`in_shards`), which were looked at when they
    were made, and the evaluation sets are not here."""
    if chosen is None or (in_shards and not all(is_here(one.spec(), root) for one in chosen.sets.values())):
        return None
    return evaluation_index(chosen, root=root, cache=cache)


def _found(
    specs: Mapping[str, SourceSpec],
    *,
    root: str | None,
    bad_rows: BadRows,
    cache: Path,
    begun: Begun | None,
    shards: Mapping[str, str],
    view: str,
) -> dict[str, tuple[SourceSpec, Listing | None]]:
    """By name: the source with its format known, and its files; no files of one that is read from shards and whose
    files are not here. Raises `UserError` where a run that goes on finds other files than it has `begun` with."""
    for name, spec in specs.items():
        spec.check(name, placed=name not in shards)
    found = dict[str, tuple[SourceSpec, Listing | None]]()
    files = {}
    for name, spec in specs.items():
        found[name] = spec, None
        if name not in shards or is_here(spec, root):
            known, listed_files = _listing(spec, name, root, cache, bad_rows, spec.view_in(view))
            if begun is not None:
                listed_files = replace(listed_files, files=begun.in_order(name, listed_files.files))
            found[name] = known, listed_files
            files[name] = {"training": listed(listed_files.files)}
    if begun is not None:
        begun.check_files({name: sides for name, sides in files.items() if name not in shards})
    return found


def _without_copies(sources: list[Source], *, cache: Path, processes: int) -> list[Source]:
    """The sources, knowing which rows repeat others (where such a filter is on) and, where rows are named by their
    number, how many each file has. Both are scans of the files: shards were cleaned when they were made."""
    opened = []
    for source in sources:
        if source.shards is None and source.spec.filters.exact_duplicates:
            again = duplicate_rows(source, cache=cache, processes=processes)
            source = replace(source, left_out={REASON: again})
        opened.append(source)
    opened = without_near_duplicates(opened, cache=cache, processes=processes)
    return [with_row_counts(s, cache=cache) if s.is_numbered and s.shards is None else s for s in opened]


def files_read(sources: Sequence[Source]) -> dict[str, Any]:
    """For run.json, by source: one line of what is read, and why files that were met beside it are not."""
    passed = {s.name: dict(list(s.passed.items())[:LISTED]) for s in sources if s.passed}
    return {"files": {s.name: str(s.listing) for s in sources if s.files}, "passed_over": passed}


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
    split, found = recognised(split, found, where=f"data.sources.{source.name}", view=spec.view_in(view))
    files, passed = begun.in_order(source.name, found.files, "held_out") if begun else found.files, found.passed
    return replace(
        source, spec=split, files=files, passed=passed, held_out=None, left_out={}, file_rows=None, shards=None
    )


def check_views(specs: Mapping[str, SourceSpec], view: str) -> None:
    """Raise UserError if a source cannot give the view that the stage trains on, or its own cannot stand beside it."""
    known = dict.fromkeys(one for form in LIST for one in sorted(form.views))
    if view not in known:
        raise UserError(f"stage.view is '{view}'; wanted one of {', '.join(known)}")
    able = [form.name for form in LIST if view in form.views]
    forms = f"format{'s' * (len(able) > 1)} {', '.join(able)}"
    for name, spec in specs.items():
        given, where = views(spec), f"data.sources.{name}"
        if spec.view is not None and view not in ("chat", spec.view):
            raise UserError(
                f"{where}.view is '{spec.view}', but documents stand in rows with conversations and with other "
                f"documents alone, and the stage trains on the view '{view}': take the source out ('~{where}')"
            )
        if spec.view_in(view) not in given:
            gives = ", ".join(sorted(given))
            raise UserError(
                f"the stage trains on the view '{view}', but {where} (format '{spec.format}') gives {gives}. "
                f"'{view}' is given by the {forms}: set {where}.format where its rows have such a form, take the "
                f"source out ('~{where}'), or choose another data config, or a stage that trains on {gives}"
                f"{next((f': {typed}' for one, typed in TRAINED_BY.items() if one in given), '')}"
            )
