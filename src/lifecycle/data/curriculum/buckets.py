"""A source under a curriculum, split into one source a difficulty bucket: gsm8k.level1-2, gsm8k.level2-3.5.

Each bucket reads its own rows of the source's files; every row belongs to exactly one bucket. The weights of buckets
change with progress as those of any source may, so shares, ledger and resume work as in any mixture.
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
class Bucket:
    """One difficulty bucket of a source: the source of its rows, rows and bytes of text that are trained on, and the
    weight from each progress (0 to 1) on."""

    source: Source
    rows: int
    bytes: float
    weights: dict[float, float]


def under_curriculum(curriculum: Curriculum, specs: Mapping[str, SourceSpec], replayed: frozenset[str]) -> list[str]:
    """Names of the sources that the curriculum orders: those in its `sources`; else, with `by: field`, those whose rows
    have a level; else all that are trained on and not replayed. Raises UserError where there is none, and for one whose
    weight is not a constant above 0."""
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
                f"data.sources.{name}.weight is {weight}, and {WHERE} sets the weights of its levels: give it a "
                f"constant weight above 0, or leave it out of {WHERE}.sources"
            )
    return chosen


def split_sources(
    sources: Sequence[Source],
    specs: Mapping[str, SourceSpec],
    curriculum: Curriculum | None,
    never: frozenset[str],
    tokenizer: Tokenizer | None,
    cache: Path,
    parent_loss: DocumentLoss | None,
) -> dict[str, list[Bucket]]:
    """By source name, the buckets of the sources that the curriculum orders; empty without a curriculum.

    specs: of the sources, as configured. never: replayed sources, which are split only where the curriculum names them.
    """
    if curriculum is None:
        return {}
    chosen = under_curriculum(curriculum, specs, never)
    return {s.name: split_source(s, curriculum, tokenizer, cache, parent_loss) for s in sources if s.name in chosen}


def mix_of_buckets(mix: Mix, sources: Sequence[Source]) -> Mix:
    """`mix` over the `sources` of a run, in which buckets replace the source that was split into them."""
    weights = {source.name: Weight.of(source.spec.weight, source.name) for source in sources}
    return replace(mix, weights=weights, replay=replayed(weights))


def split_source(
    source: Source, curriculum: Curriculum, tokenizer: Tokenizer | None, cache: Path, parent_loss: DocumentLoss | None
) -> list[Bucket]:
    """The buckets of one source, easiest first, without those that have no row. Raises UserError where no row can be
    scored."""
    source = with_row_counts(source, cache=cache)  # the rows of a bucket are named by their number
    scores = score_rows(source, curriculum.by, tokenizer=tokenizer, cache=cache, parent_loss=parent_loss)
    _check_scored(source, scores, curriculum)
    bucket = assign(scores, curriculum)
    sizes = np.bincount(bucket, weights=scores.size, minlength=len(curriculum.buckets))
    whole = Weight.of(source.spec.weight, source.name).start
    schedule = curriculum.schedule(sizes.tolist(), source.name)
    buckets = []
    for index in np.flatnonzero(sizes).tolist():
        weights = {progress: whole * shares[index] for progress, shares in schedule.items()}
        part = _bucket_source(source, curriculum.buckets[index], np.flatnonzero(bucket == index), weights)
        rows = int(((bucket == index) & (scores.size > 0)).sum())
        buckets.append(Bucket(source=part, rows=rows, bytes=float(sizes[index]), weights=weights))
    return buckets


def assign(scores: Scores, curriculum: Curriculum) -> NDArray[np.int64]:
    """(N,) int64: the number of every row's bucket. A row that is not trained on is in the bucket of the last trained
    row before it, so that the counts of such rows spread over the buckets as the rows do."""
    kept = scores.size > 0
    scaled = quantile_scale(scores.score) if curriculum.scale == "quantile" else scores.score.astype(np.float64)
    bucket = curriculum.bucket_of(scaled)
    last_kept = np.maximum.accumulate(np.where(kept, np.arange(len(bucket)), np.argmax(kept)))
    return bucket[last_kept]


def described(buckets: Mapping[str, Sequence[Bucket]]) -> dict[str, dict[str, dict[str, Any]]]:
    """For run.json: by source and bucket the rows, the bytes of text, and the weight from each progress on."""
    return {
        name: {one.source.name: {"rows": one.rows, "bytes": one.bytes, "weight": one.weights} for one in parts}
        for name, parts in buckets.items()
    }


def refuse_weighed(buckets: Mapping[str, Any], weights: Iterable[Mapping[str, float]]) -> None:
    """Raise UserError where a phase (`weights` of each) gives a weight to a source that is split into `buckets`."""
    for name in (name for own in weights for name in own if name in buckets):
        raise UserError(
            f"stage.phases gives {name} a weight, and data.curriculum sets the weights of its levels: leave {name} out "
            "of the phases, or out of data.curriculum.sources"
        )


def is_bucket(name: str, source: str) -> bool:
    """Whether `name` is that of a bucket of `source`."""
    return name.startswith(f"{source}.level")


def _bucket_source(source: Source, bucket: str, rows: NDArray[np.int64], weights: dict[float, float]) -> Source:
    name = f"{source.name}.level{bucket}"
    return replace(
        source,
        name=name,
        spec=replace(source.spec, domain=source.domain, weight={"table": weights}),
        rows=rows,
        left_out={reason: np.intersect1d(left_out, rows) for reason, left_out in source.left_out.items()},
        quarantine=source.quarantine and source.quarantine.with_name(f"{name}.jsonl"),
        contaminated=source.contaminated and source.contaminated.with_name(f"{name}.jsonl"),
    )


def _check_scored(source: Source, scores: Scores, curriculum: Curriculum) -> None:
    kept = scores.size > 0
    unknown = int((kept & np.isnan(scores.score)).sum())
    if not kept.any():
        raise UserError(f"data.sources.{source.name} has no row to train on: check path, format, fields and filters")
    if unknown == kept.sum():
        raise UserError(
            f"{WHERE}.by is '{curriculum.by}', and no row of data.sources.{source.name} has a score by it: check "
            f"data.sources.{source.name}.fields.level, or leave the source out of {WHERE}.sources"
        )
    if unknown:
        sys.stderr.write(
            f"data.sources.{source.name}: {unknown:,} of {kept.sum():,} rows have no score by {curriculum.by}; they "
            "are read with the hardest\n"
        )


def numbered_sources(buckets: dict[str, list[Bucket]], plain: Sequence[Source]) -> tuple[list[Source], list[Source]]:
    """(run, whole): the sources that the run reads, numbered, with buckets in place of the source that was split; and
    the `plain` sources as configured, each with the number of its first bucket."""
    sources, whole = list[Source](), list[Source]()
    for source in plain:
        whole.append(replace(source, index=len(sources)))
        for part in [bucket.source for bucket in buckets.get(source.name, [])] or [source]:
            sources.append(replace(part, index=len(sources)))
    return sources, whole
