"""A source under a curriculum, split into one source a difficulty bucket: gsm8k.level1-2, gsm8k.level2-3.5.

All have the source's files and read their own rows of them; every row belongs to exactly one. Their weights change with
progress as any source's may, so what holds for a mixture holds for a curriculum: exact shares, the ledger, resume.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lifecycle.data.clean.row_counts import with_row_counts
from lifecycle.data.clean.source import Source
from lifecycle.data.curriculum.curriculum import WHERE, Curriculum, quantile_scale
from lifecycle.data.curriculum.scores import DocumentLoss, Scores, score_rows
from lifecycle.data.mixture.batch_plan import Mix, replayed
from lifecycle.data.mixture.weight import Weight
from lifecycle.data.read.spec import SourceSpec
from lifecycle.errors import UserError
from lifecycle.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Level:
    """One difficulty bucket of a source: the source of its rows, rows and bytes of text that are trained on, and the
    weight from each progress (0 to 1) on."""

    source: Source
    rows: int
    bytes: float
    weights: dict[float, float]


def under_curriculum(curriculum: Curriculum, specs: Mapping[str, SourceSpec], replayed: frozenset[str]) -> list[str]:
    """Names of the sources that the curriculum orders: those it names; else, with `by: field`, those whose rows have a
    level; else all that are trained on and not replayed. Raises UserError for none, or one that it cannot order."""
    if unknown := sorted(set(curriculum.sources or []) - set(specs)):
        raise UserError(f"{WHERE}.sources names {unknown[0]}; the sources are {', '.join(specs)}")
    chosen = curriculum.sources or [
        name
        for name, spec in specs.items()
        if name not in replayed
        and Weight.of(spec.weight, name).trained
        and (curriculum.by != "field" or "level" in spec.fields)
    ]
    if not chosen:
        raise UserError(
            f"{WHERE}.by is 'field', and no source has a level: name the row's field (data.sources.NAME.fields.level="
            f"difficulty), or choose a score ({WHERE}.by=length, rarity, readability, code or loss)"
        )
    for name in chosen:
        weight = Weight.of(specs[name].weight, f"data.sources.{name}.weight")
        if weight.moves or weight.table is not None or not weight.trained:
            raise UserError(
                f"data.sources.{name}.weight is {weight}, and the weights of its levels move by {WHERE}: give it a "
                f"constant weight above 0, or leave it out of {WHERE}.sources"
            )
    return chosen


def deal_all(
    sources: Sequence[Source],
    specs: Mapping[str, SourceSpec],
    curriculum: Curriculum | None,
    never: frozenset[str],
    tokenizer: Tokenizer | None,
    cache: Path,
    parent_loss: DocumentLoss | None,
) -> dict[str, list[Level]]:
    """By name, the levels of the sources that the curriculum orders; empty without one. specs: as configured; never:
    replayed ones, which it orders only where it names them."""
    if curriculum is None:
        return {}
    chosen = under_curriculum(curriculum, specs, never)
    return {s.name: deal(s, curriculum, tokenizer, cache, parent_loss) for s in sources if s.name in chosen}


def mix_of_levels(mix: Mix, sources: Sequence[Source]) -> Mix:
    """The mixture of the sources of a run, in which levels replace the source that they are part of in `mix`."""
    weights = {source.name: Weight.of(source.spec.weight, source.name) for source in sources}
    return replace(mix, weights=weights, replay=replayed(weights))


def deal(
    source: Source, curriculum: Curriculum, tokenizer: Tokenizer | None, cache: Path, parent_loss: DocumentLoss | None
) -> list[Level]:
    """The levels of one source, easiest first; buckets without a row are left out. Raises UserError where no row can be
    scored."""
    source = with_row_counts(source, cache=cache)  # the rows of a level are named by their number
    scores = score_rows(source, curriculum.by, tokenizer=tokenizer, cache=cache, parent_loss=parent_loss)
    _check_known(source, scores, curriculum)
    bucket = assign(scores, curriculum)
    sizes = np.bincount(bucket, weights=scores.size, minlength=len(curriculum.buckets))
    whole = Weight.of(source.spec.weight, source.name).start
    schedule = curriculum.schedule(sizes.tolist(), source.name)
    levels = []
    for index in np.flatnonzero(sizes).tolist():
        weights = {progress: whole * shares[index] for progress, shares in schedule.items()}
        level = _level_source(source, curriculum.buckets[index], np.flatnonzero(bucket == index), weights)
        rows = int(((bucket == index) & (scores.size > 0)).sum())
        levels.append(Level(source=level, rows=rows, bytes=float(sizes[index]), weights=weights))
    return levels


def assign(scores: Scores, curriculum: Curriculum) -> NDArray[np.int64]:
    """(N,) the bucket of every row. A row that is not trained on has the bucket of the row before it, so that counts of
    such rows are spread over the buckets as the rows are."""
    kept = scores.size > 0
    scaled = quantile_scale(scores.score) if curriculum.scale == "quantile" else scores.score.astype(np.float64)
    bucket = curriculum.bucket_of(scaled)
    last_kept = np.maximum.accumulate(np.where(kept, np.arange(len(bucket)), np.argmax(kept)))
    return bucket[last_kept]


def described(levels: Mapping[str, Sequence[Level]]) -> dict[str, dict[str, dict[str, Any]]]:
    """For run.json: by source and level the rows, the bytes of text, and the weight from each progress on."""
    return {
        name: {
            level.source.name: {"rows": level.rows, "bytes": level.bytes, "weight": level.weights} for level in dealt
        }
        for name, dealt in levels.items()
    }


def refuse_weighed(levels: Mapping[str, Any], weights: Iterable[Mapping[str, float]]) -> None:
    """Raise UserError where a phase gives a weight to a source that is split into `levels`."""
    for name in (name for own in weights for name in own if name in levels):
        raise UserError(
            f"stage.phases weighs {name}, whose levels data.curriculum weighs: leave the weights out of the phases, or "
            "the source out of data.curriculum.sources"
        )


def is_level(name: str, source: str) -> bool:
    """Whether `name` is that of a level of `source`."""
    return name.startswith(f"{source}.level")


def _level_source(source: Source, bucket: str, rows: NDArray[np.int64], weights: dict[float, float]) -> Source:
    name = f"{source.name}.level{bucket}"
    return replace(
        source,
        name=name,
        spec=replace(source.spec, domain=source.domain, weight={"table": weights}),
        rows=rows,
        left_out={reason: np.intersect1d(known, rows) for reason, known in source.left_out.items()},
        quarantine=source.quarantine and source.quarantine.with_name(f"{name}.jsonl"),
        contaminated=source.contaminated and source.contaminated.with_name(f"{name}.jsonl"),
    )


def _check_known(source: Source, scores: Scores, curriculum: Curriculum) -> None:
    kept = scores.size > 0
    unknown = int((kept & np.isnan(scores.score)).sum())
    if not kept.any():
        raise UserError(f"data.sources.{source.name} has no row to train on: check path, format, fields and filters")
    if unknown == kept.sum():
        raise UserError(
            f"{WHERE}.by is '{curriculum.by}', and no row of data.sources.{source.name} has one: check "
            f"data.sources.{source.name}.fields.level, or leave the source out of {WHERE}.sources"
        )
    if unknown:
        sys.stderr.write(
            f"data.sources.{source.name}: {unknown:,} of {kept.sum():,} rows have no score by {curriculum.by}; they "
            "are read with the hardest\n"
        )


def numbered_sources(levels: dict[str, list[Level]], plain: Sequence[Source]) -> tuple[list[Source], list[Source]]:
    """(the sources of the run, numbered, the levels of a source in its place; the sources as configured, each with the
    number of its first level)."""
    sources, whole = list[Source](), list[Source]()
    for source in plain:
        whole.append(replace(source, index=len(sources)))
        for part in [level.source for level in levels.get(source.name, [])] or [source]:
            sources.append(replace(part, index=len(sources)))
    return sources, whole
