"""The data engine: raw text -> tokenised, mixed 85/15, packed rows of 2,048; and the same from prepared shards.

    python -m benchmarks.data --peers-python PATH

Two corpora of about 20 MB (this Python's sources and docstrings, repeated), 2 loader workers, batches of 8 rows, the
same 8,192-token vocabulary for all. ours_* mixes exactly in tokens and packs by best fit, keeping documents whole
where they fit; hf_stream draws by probability and cuts a stream of tokens; hf_arrow and litdata read rows cut before.
`tokens_per_s` counts from the start to the last batch, `after_first` leaves out the first batch and the wait for it;
`tokenizer_alone` is the ceiling of the raw rows, on the same two processes.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from benchmarks.common import main, peak_mb, spread

if TYPE_CHECKING:  # the peers' environment has none
    from lifecycle.data.corpus import Corpus
    from lifecycle.data.module import DataModule

LENGTH, ROWS, WORKERS, MIX = 2048, 8, 2, (0.85, 0.15)
CACHE = Path(os.environ.get("BENCHMARK_CACHE", Path(tempfile.gettempdir()) / "lifecycle-benchmark"))
LEAST_BYTES = 20_000_000
RAW_TOKENS, PREPARED_TOKENS = 6_000_000, 32_000_000
VARIANTS = {
    "tokenizer_alone": "ours",
    "ours_raw": "ours",
    "hf_stream_raw": "ours",
    "ours_prepared": "ours",
    "hf_arrow_prepared": "ours",
    "litdata_prepared": "peers",
}


def corpora() -> list[list[Path]]:
    """Four shards of each corpus, so that workers can share it out."""
    made = [[CACHE / f"{name}-{i}.jsonl" for i in range(4)] for name in ("code", "prose")]
    if all(path.exists() for shards in made for path in shards):
        return made
    from lifecycle.data.read.files.builtin_text import materialise

    for name, shards in zip(("code", "prose"), made, strict=True):
        texts = [json.loads(line)["text"] for line in materialise(name, CACHE).read_text().splitlines()]
        step = 8000 if name == "code" else 4000
        parts = [text[i : i + step] for text in texts for i in range(0, len(text), step)]
        files = [path.with_suffix(".part").open("w") for path in shards]
        written = number = 0
        while written < LEAST_BYTES:
            line = json.dumps({"text": parts[number % len(parts)]}) + "\n"
            files[number % 4].write(line)
            written, number = written + len(line), number + 1
        for file, path in zip(files, shards, strict=True):
            file.close()
            path.with_suffix(".part").rename(path)
    return made


def corpus(prepared: str | None = None) -> Corpus:
    from lifecycle.data.clean.source import BadRows
    from lifecycle.data.corpus import Corpus, DataConfig
    from lifecycle.data.read.spec import SourceSpec
    from lifecycle.tokenizer.tokenizer import TokenizerRecipe

    os.environ["LIFECYCLE_CACHE"] = str(CACHE / "cache")
    sources = {
        name: SourceSpec(path=[str(path) for path in shards], weight=weight, validation=None)
        for name, shards, weight in zip(("code", "prose"), corpora(), MIX, strict=True)
    }
    config = DataConfig(
        sources=sources,
        tokenizer=TokenizerRecipe(vocab_size=8192, digits=1, max_bytes=10_000_000),
        root=None,
        chat_template="auto",
        prepared=prepared,
        streams=None,
        shuffle_buffer=10_000,
        exhausted="error",
        long_examples="drop",
        epoch_source=None,
        bad_rows=BadRows(max_share=0.01, min_rows=1000),
        decontaminate=None,
    )
    return Corpus(config, view="text", seed=1, processes=WORKERS, folder=None)


def data_module(prepared: str | None = None) -> DataModule:
    from lifecycle.data.mixture.batch_plan import Phase
    from lifecycle.data.module import DataModule

    return DataModule(
        corpus=corpus(prepared),
        steps=10**6,
        phases=[Phase(step=0, row_length=LENGTH, rows=ROWS)],
        last=10**6,
        row_length=LENGTH,
        micro_batch_tokens=LENGTH * ROWS,
        validation_tokens=0,
        workers=WORKERS,
    )


def drain(batches: Iterable[int], least: int) -> dict[str, float]:
    """Seconds to the first batch, tokens a second with and without it, over at least `least` tokens or the end."""
    started = time.perf_counter()
    first, before, tokens = 0.0, 0, 0
    for batch in batches:
        tokens += batch
        if not before:
            first, before = time.perf_counter() - started, tokens
        if tokens >= least:
            break
    whole = time.perf_counter() - started
    return {
        "tokens_per_s": tokens / whole,
        "after_first": (tokens - before) / (whole - first),
        "first_batch_s": first,
    }


def report(runs: list[dict[str, float]]) -> dict[str, Any]:
    rates = {key: spread([run[key] for run in runs], 2 if key == "first_batch_s" else 0) for key in runs[0]}
    return {**rates, "peak_rss_mb": round(peak_mb())}


def trained(data: DataModule) -> Iterator[int]:
    for step in data.train_dataloader():
        yield sum(int(micro.trained.sum()) for micro in step.micro)


def ours(runs: int, prepared: bool) -> dict[str, Any]:
    folder = CACHE / "prepared"
    if prepared and not (folder / "prepared" / "prose" / "training" / "meta.json").exists():
        from lifecycle.jobs.prepare import prepare

        prepare(data=corpus(), folder=folder, processes=WORKERS)
    found = []
    for _ in range(runs):
        data = data_module(str(folder) if prepared else None)
        found.append(drain(trained(data), PREPARED_TOKENS if prepared else RAW_TOKENS))
    return report(found)


def encode(texts: list[str]) -> list[list[int]]:
    from tokenizers import Tokenizer

    if not hasattr(encode, "tokenizer"):
        encode.tokenizer = Tokenizer.from_file(str(CACHE / "tokenizer" / "tokenizer.json"))  # type: ignore[attr-defined]
    encoded = encode.tokenizer.encode_batch(texts, add_special_tokens=False)  # type: ignore[attr-defined]
    return [[*item.ids, 1] for item in encoded]


def tokenise_file(path: Path) -> int:
    texts = [json.loads(line)["text"] for line in path.open()]
    return sum(len(ids) for i in range(0, len(texts), 64) for ids in encode(texts[i : i + 64]))


def tokenizer_alone(runs: int) -> dict[str, Any]:
    found = []
    with ProcessPoolExecutor(WORKERS) as pool:
        list(pool.map(tokenise_file, [corpora()[1][0]] * WORKERS))
        for _ in range(runs):
            started = time.perf_counter()
            tokens = sum(pool.map(tokenise_file, corpora()[0]))
            found.append({"tokens_per_s": tokens / (time.perf_counter() - started)})
    return report(found)


class Packed(IterableDataset[torch.Tensor]):
    """A stream of tokens cut every LENGTH."""

    def __init__(self, documents: Iterable[dict[str, list[int]]]) -> None:
        self.documents = documents

    def __iter__(self) -> Iterator[torch.Tensor]:
        waiting: list[int] = []
        for document in self.documents:
            waiting += document["ids"]
            while len(waiting) >= LENGTH:
                yield torch.tensor(waiting[:LENGTH])
                del waiting[:LENGTH]


def hf_stream(runs: int) -> dict[str, Any]:
    import datasets

    datasets.disable_progress_bars()
    found = []
    for _ in range(runs):
        parts = [
            datasets.load_dataset("json", data_files=[str(p) for p in shards], split="train", streaming=True).map(
                lambda rows: {"ids": encode(rows["text"])}, batched=True, batch_size=64, remove_columns=["text"]
            )
            for shards in corpora()
        ]
        mixed = datasets.interleave_datasets(parts, probabilities=list(MIX), seed=0)
        loader = DataLoader(Packed(mixed), batch_size=ROWS, num_workers=WORKERS)
        found.append(drain((batch.numel() for batch in loader), RAW_TOKENS))
    return report(found)


def hf_arrow(runs: int) -> dict[str, Any]:
    import datasets

    datasets.disable_progress_bars()
    parts = []
    for number, shards in enumerate(corpora()):
        folder = CACHE / f"arrow-{number}"
        if not folder.exists():
            rows = Packed(
                {"ids": ids} for p in shards for ids in encode([json.loads(line)["text"] for line in p.open()])
            )
            datasets.Dataset.from_dict({"ids": [row.tolist() for row in rows]}).save_to_disk(str(folder))
        parts.append(datasets.load_from_disk(str(folder)))
    mixed = datasets.interleave_datasets(parts, probabilities=list(MIX), seed=0).with_format("torch")
    found = []
    for _ in range(runs):
        loader = DataLoader(mixed, batch_size=ROWS, shuffle=True, num_workers=WORKERS)
        found.append(drain((batch["ids"].numel() for batch in loader), PREPARED_TOKENS))
    return report(found)


def tokenised(path: str) -> Iterator[torch.Tensor]:
    for ids in encode([json.loads(line)["text"] for line in open(path)]):
        yield torch.tensor(ids, dtype=torch.int32)


def litdata(runs: int) -> dict[str, Any]:
    import litdata

    parts = []
    for number, shards in enumerate(corpora()):
        folder = CACHE / f"litdata-{number}"
        if not folder.exists():
            litdata.optimize(
                fn=tokenised,
                inputs=[str(path) for path in shards],
                output_dir=str(folder),
                num_workers=WORKERS,
                chunk_bytes="16MB",
                item_loader=litdata.TokensLoader(LENGTH),
            )
        parts.append(str(folder))
    found = []
    for _ in range(runs):
        data = [
            litdata.StreamingDataset(p, item_loader=litdata.TokensLoader(LENGTH), shuffle=True, drop_last=True, seed=0)
            for p in parts
        ]
        mixed = litdata.CombinedStreamingDataset(data, seed=0, weights=list(MIX), iterate_over_all=False)
        loader = litdata.StreamingDataLoader(mixed, batch_size=ROWS, num_workers=WORKERS)
        found.append(drain((batch.numel() for batch in loader), PREPARED_TOKENS))
    return report(found)


def measure(variant: str, runs: int) -> dict[str, Any]:
    CACHE.mkdir(parents=True, exist_ok=True)
    if not (CACHE / "tokenizer" / "tokenizer.json").exists():
        data_module().tokenizer.save(CACHE / "tokenizer")
    if variant == "tokenizer_alone":
        return tokenizer_alone(runs)
    if variant.startswith("ours"):
        return ours(runs, variant.endswith("prepared"))
    return {"hf_stream_raw": hf_stream, "hf_arrow_prepared": hf_arrow, "litdata_prepared": litdata}[variant](runs)


if __name__ == "__main__":
    if os.environ.get("BENCHMARK_FRESH"):
        shutil.rmtree(CACHE, ignore_errors=True)
    main("benchmarks.data", VARIANTS, measure, __doc__ or "")
