"""Data quality at 1x, 4x and 16x the text: what each step costs a megabyte, which must not grow with the size.

    python -m benchmarks.quality

Documents of about 3 kB of made words, a tenth of them near duplicates of earlier ones and one in a thousand an item of
a made examination. Each step runs on `PROCESSES` processes with an empty cache: `filters` judges (quality rules),
`language`, `decontaminate` (1,000 items) and `near_duplicates` add their step to it. `found` is what they left out.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.common import main, peak_mb, spread

CACHE = Path(os.environ.get("BENCHMARK_CACHE", Path(tempfile.gettempdir()) / "lifecycle-benchmark")) / "quality"
BASE_DOCUMENTS = int(os.environ.get("BENCHMARK_DOCUMENTS", 2500))
WORDS_A_DOCUMENT, ITEMS, PROCESSES = 500, 1000, 2
SIZES = (1, 4, 16)
STEPS = ("filters", "language", "decontaminate", "near_duplicates")
VARIANTS = {f"{step}_{size}x": "ours" for step in STEPS for size in SIZES}


def text(rng: random.Random, words: int) -> str:
    """Made prose: words drawn evenly from 50,000, with the stop words that the quality rules look for."""
    stop = ("the", "of", "and")
    drawn = [rng.choice(stop) if rng.random() < 0.2 else f"w{rng.randrange(50_000)}" for _ in range(words)]
    return ". ".join(" ".join(drawn[at : at + 12]) for at in range(0, words, 12)) + "."


def corpus(size: int) -> Path:
    """`size` times the documents, as JSON Lines; made once."""
    path = CACHE / f"corpus-{BASE_DOCUMENTS}-{size}.jsonl"
    if path.exists():
        return path
    CACHE.mkdir(parents=True, exist_ok=True)
    items = [json.loads(line)["text"] for line in examination().read_text().splitlines()]
    rng = random.Random(size)
    recent: list[str] = []
    with (aside := path.with_suffix(".part")).open("w") as file:
        for number in range(size * BASE_DOCUMENTS):
            if number % 10 == 9:
                document = rng.choice(recent) + " " + text(rng, 5)
            else:
                document = text(rng, WORDS_A_DOCUMENT)
            if number % 1000 == 500:
                document += " " + rng.choice(items)
            recent = [*recent[-99:], document]
            file.write(json.dumps({"text": document}) + "\n")
    aside.rename(path)
    return path


def examination() -> Path:
    path = CACHE / "items.jsonl"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        rng = random.Random(0)
        path.write_text("".join(json.dumps({"text": text(rng, 60)}) + "\n" for _ in range(ITEMS)))
    return path


def verdicts(source: Any, raws: list[Any]) -> Counter[str]:
    """The work of a process: the verdicts on the rows."""
    from lifecycle.data.clean.filter_row import filter_row

    return Counter(filter_row(raw, source).verdict for raw in raws)


def once(step: str, size: int) -> dict[str, float]:
    from lifecycle.data.clean.contamination import Decontaminate, EvaluationSet, evaluation_index
    from lifecycle.data.clean.scan import scan
    from lifecycle.data.clean.source import BadRows
    from lifecycle.data.quality.language import LanguageRule
    from lifecycle.data.quality.rules import FilterSpec
    from lifecycle.data.read.spec import SourceSpec
    from lifecycle.data.stream.open_sources import open_sources

    path, cache = corpus(size), CACHE / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    rule = Decontaminate(sets={"exam": EvaluationSet(path=str(examination()))})
    filters = FilterSpec(
        quality="gopher",
        language=LanguageRule(keep=["en"], min_probability=0.0) if step == "language" else None,
        near_duplicates=step == "near_duplicates",
    )
    started = time.perf_counter()
    [source] = open_sources(
        {"made": SourceSpec(path=str(path), filters=filters, validation=None)},
        root=None,
        bad_rows=BadRows(max_share=0.01, min_rows=1000),
        cache=cache,
        quarantine=None,
        processes=PROCESSES,
        evaluation=evaluation_index(rule, root=None, cache=cache) if step == "decontaminate" else None,
    )
    found = Counter(source.left_out_counts)
    if step != "near_duplicates":  # which has judged every row already
        for part, _ in scan(source, verdicts, processes=PROCESSES):
            found += part
    seconds, megabytes = time.perf_counter() - started, path.stat().st_size / 1e6
    left_out = sum(number for verdict, number in found.items() if verdict.startswith("dropped:"))
    return {"seconds": seconds, "mb": megabytes, "s_per_mb": seconds / megabytes, "found": left_out}


def measure(variant: str, runs: int) -> dict[str, Any]:
    step, _, size = variant.rpartition("_")
    found = [once(step, int(size.removesuffix("x"))) for _ in range(runs)]
    return {key: spread([run[key] for run in found], 4) for key in found[0]} | {"peak_rss_mb": round(peak_mb())}


if __name__ == "__main__":
    main("benchmarks.quality", VARIANTS, measure, __doc__ or "", runs=1)
