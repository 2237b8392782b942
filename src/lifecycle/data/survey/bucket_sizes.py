"""What a curriculum would read of each source, before the run: rows and tokens by difficulty bucket, and when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lifecycle.data.clean.source import BadRows
from lifecycle.data.curriculum.buckets import split_source, under_curriculum
from lifecycle.data.curriculum.curriculum import Curriculum
from lifecycle.data.curriculum.scores import COUNTING
from lifecycle.data.mixture.batch_plan import replayed
from lifecycle.data.mixture.weight import Weight
from lifecycle.data.read.bytes.damage import OnDamage
from lifecycle.data.read.files.listing import is_remote
from lifecycle.data.read.spec import SourceSpec
from lifecycle.data.stream.open_sources import open_sources
from lifecycle.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class BucketSize:
    """One difficulty bucket of a source. shares: of the source's tokens, from each progress on. rows: None where they
    are not scored yet. part: share of the source's text; where that is not scored, the share of the bucket's width in
    the scale."""

    bucket: str
    rows: int | None
    part: float
    shares: Mapping[float, float]

    def share_at(self, progress: float) -> float:
        """The bucket's share of the source's tokens, at a progress from 0 to 1."""
        return [share for begins, share in self.shares.items() if begins <= progress][-1]

    @property
    def mean_share(self) -> float:
        """The bucket's share of the source's tokens, over the whole run."""
        begins = [*self.shares, 1.0]
        return sum(share * (end - begin) for (begin, share), end in zip(self.shares.items(), begins[1:], strict=True))


def survey_buckets(
    curriculum: Curriculum,
    specs: Mapping[str, SourceSpec],
    *,
    tokenizer: Tokenizer | None,
    root: str | None,
    cache: Path,
    on_damage: OnDamage = "error",
) -> dict[str, list[BucketSize]]:
    """By source, its buckets, easiest first. Sources on this machine are scored, and the scores cached for the run,
    except where the score needs the parent, or a tokenizer that is not trained yet."""
    chosen = under_curriculum(curriculum, specs, replayed(specs))
    waits = curriculum.by == "loss" or (tokenizer is None and curriculum.by in COUNTING)
    found = {}
    for name in chosen:
        spec = specs[name]
        here = spec.hub is None or Path(spec.hub).exists()
        found[name] = _expected(curriculum, name)
        if here and not waits:
            bad_rows = BadRows(max_share=1.0, min_rows=1, damaged_files=on_damage)
            (source,) = open_sources({name: spec}, root=root, bad_rows=bad_rows, cache=cache, quarantine=None)
            if any(is_remote(file.url) for file in source.files):
                continue
            buckets = split_source(source, curriculum, tokenizer, cache, None)
            whole = sum(bucket.bytes for bucket in buckets)
            weight = Weight.of(spec.weight, name).start
            found[name] = [
                BucketSize(
                    bucket=bucket.source.name.removeprefix(f"{name}.level"),
                    rows=bucket.rows,
                    part=bucket.bytes / whole,
                    shares={at: w / weight for at, w in bucket.weights.items()},
                )
                for bucket in buckets
            ]
    return found


def _expected(curriculum: Curriculum, name: str) -> list[BucketSize]:
    """Buckets whose share of the text is that of their width: exact with scale=quantile, a guess with scale=none."""
    bounds = curriculum.bounds
    parts = [(high - low) / (bounds[-1] - bounds[0]) for low, high in zip(bounds, bounds[1:], strict=False)]
    schedule = curriculum.schedule(parts, name)
    return [
        BucketSize(bucket=bucket, rows=None, part=part, shares={at: shares[i] for at, shares in schedule.items()})
        for i, (bucket, part) in enumerate(zip(curriculum.buckets, parts, strict=True))
    ]
