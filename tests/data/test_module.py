"""Laws of the whole data engine: the token sequence depends on neither ranks nor workers nor where a run was
stopped.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from tests.data.made import make_module
from tests.items import ids_of

from lifecycle.batch import Cursor, StepBatch
from lifecycle.data.clean.contamination import Decontaminate, EvaluationSet
from lifecycle.data.module import DataModule
from lifecycle.data.quality.rules import FilterSpec
from lifecycle.data.read.spec import SourceSpec, ValidationRatio
from lifecycle.data.stream.loading.cursors import gathered
from lifecycle.errors import UserError
from lifecycle.jobs.prepare import prepare
from lifecycle.tokenizer.tokenizer import TokenizerRecipe

STEPS = 12
WORDS = "the cat sat on a mat and then it ran far away from that old grey house near some river bank".split()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIFECYCLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("lifecycle.data.module.WINDOW_ROWS", 64)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Three sources of different document lengths; the smallest is passed over several times in a test."""
    for name, documents, longest in (("long", 60, 400), ("short", 300, 30), ("tiny", 20, 60)):
        rng = np.random.default_rng(len(name))
        with (tmp_path / f"{name}.jsonl").open("w") as file:
            for number in range(documents):
                words = rng.choice(WORDS, int(rng.integers(5, longest)))
                file.write(json.dumps({"text": f"{name} {number} " + " ".join(words)}) + "\n")
    return tmp_path


def module(folder: Path, *, workers: int = 0, steps: int = STEPS, **changes: Any) -> DataModule:
    weights = {"long": 0.5, "short": 0.3, "tiny": 0.2}
    sources = {
        name: SourceSpec(path=f"{name}.jsonl", weight=weight, validation=ValidationRatio(ratio=0.1))
        for name, weight in weights.items()
    }
    arguments: dict[str, Any] = {
        "sources": sources,
        "tokenizer": TokenizerRecipe(vocab_size=400, max_bytes=50_000, digits=1),
        "root": str(folder),
        "sequence_length": 64,
        "global_batch_tokens": 64 * 8,
        "micro_batch_tokens": 128,
        "validation_tokens": 400,
        "workers": workers,
        "folder": folder,
    }
    return make_module(arguments | changes, steps=steps)


def on_rank(data: DataModule, rank: int, world: int) -> Iterable[StepBatch]:
    with patch.object(data, "_rank", lambda: (rank, world)):
        return data.train_dataloader()


def consume(data: DataModule, world: int, until: int = STEPS) -> dict[int, Any]:
    """The streams' states after `until` steps on `world` ranks."""
    for parts in zip(*(iter(on_rank(data, rank, world)) for rank in range(world)), strict=True):
        if parts[0].cursor.step == until:
            return {s: state for batch in parts for s, state in batch.cursor.streams.items()}
    raise AssertionError("the loader ended early")


def digest_by_tensor(data: DataModule, world: int) -> list[str]:
    """A hash of every step's rows, ranks in order: whatever the micro-batches are."""
    out = []
    for parts in zip(*(iter(on_rank(data, rank, world)) for rank in range(world)), strict=True):
        rows = [
            torch.cat([getattr(micro, name) for batch in parts for micro in batch.micro])
            for name in ("input_ids", "labels", "document_ids", "position_ids", "source_ids")
        ]
        out.append(hashlib.sha256(b"".join(r.numpy().tobytes() for r in rows)).hexdigest())
    return out


@pytest.mark.parametrize("world", [2, 4])
def test_the_token_sequence_is_the_same_for_any_number_of_ranks(texts: Path, world: int) -> None:
    assert digest_by_tensor(module(texts), 1) == digest_by_tensor(module(texts), world)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_token_sequence_is_the_same_for_any_number_of_workers(texts: Path, workers: int) -> None:
    assert digest_by_tensor(module(texts, workers=workers), 1) == digest_by_tensor(module(texts), 1)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_cursor_of_every_step_is_the_same_for_any_number_of_workers(texts: Path, workers: int) -> None:
    cursors = [
        [plain(gathered(step.cursor)) for step in module(texts, workers=number).train_dataloader()]
        for number in (0, workers)
    ]
    assert len(cursors[0]) == STEPS and cursors[0] == cursors[1]


def plain(state: Any) -> Any:
    """The same with lists in the place of tensors, so that it can be compared."""
    if isinstance(state, dict):
        return {key: plain(value) for key, value in state.items()}
    return state.tolist() if isinstance(state, torch.Tensor) else state


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 1), (2, 4)])
def test_stopped_on_some_ranks_and_resumed_on_others(texts: Path, before: int, after: int, prepared: bool) -> None:
    changes: dict[str, Any] = {}
    if prepared:
        prepare(data=module(texts).corpus, folder=texts / "made", processes=1)
        changes = {"prepared": str(texts / "made")}
    whole = digest_by_tensor(module(texts, **changes), 1)
    for stop in (1, 5, 8):
        states = consume(module(texts, **changes), before, until=stop)
        stopped = module(texts, **changes)
        stopped.consumed(Cursor(step=stop, streams=states))
        resumed = module(texts, **changes)
        resumed.load_state_dict(stopped.state_dict())
        assert digest_by_tensor(resumed, after) == whole[stop:]


def test_the_mixture_is_exact_in_tokens_and_the_ledger_says_so(texts: Path) -> None:
    data = module(texts)
    states = consume(data, 1)
    data.consumed(Cursor(step=STEPS, streams=states))
    ledger = data.ledger()
    total = ledger["tokens"]
    assert 0.9 * STEPS * 512 < total <= STEPS * 512
    for name, weight in data.weights.items():
        row = ledger["sources"][name]
        # Of each of 8 streams: one piece given, and what waits in its window.
        assert abs(row["seen_tokens"] - weight * total) <= 8 * 64 * 2
        assert row["planned_tokens"] == round(weight * STEPS * 512)
    assert ledger["sources"]["tiny"]["epochs"] > 1 > ledger["sources"]["long"]["epochs"]
    assert ledger["padding_share"] < 0.1


def test_documents_are_the_texts_with_marks_and_nothing_is_lost(texts: Path) -> None:
    data = module(texts)
    tokenizer = data.tokenizer
    seen: dict[tuple[int, ...], int] = {}
    for batch in on_rank(data, 0, 1):
        for micro in batch.micro:
            for row in range(len(micro.input_ids)):
                ids, labels, numbers = micro.input_ids[row], micro.labels[row], micro.document_ids[row]
                for number in range(1, int(numbers.max()) + 1):
                    piece = [*ids[numbers == number].tolist(), int(labels[numbers == number][-1])]
                    assert piece[1:] == labels[numbers == number].tolist()
                    if piece[0] == tokenizer.bos_id and piece[-1] == tokenizer.eos_id:
                        seen[tuple(piece)] = seen.get(tuple(piece), 0) + 1
    known = {json.loads(line)["text"] for path in texts.glob("*.jsonl") for line in path.read_text().splitlines()}
    assert len(seen) > 50
    assert all(tokenizer.decode(list(piece[1:-1])) in known for piece in seen)


def test_held_out_rows_are_whole_documents_of_their_domain(texts: Path) -> None:
    data = module(texts)
    assert set(data.held_out) == {"long", "short", "tiny"}
    for held in data.held_out.values():
        counted = sum(int(b.trained.sum()) for rank in range(2) for b in held.batches(2, rank, 2))
        assert counted == held.tokens > 0
        assert held.bytes is not None and held.bytes > held.tokens
    assert abs(sum(weight for weight, _ in data.domains.values()) - 1) < 1e-9


def test_an_exhausted_source_is_an_error_that_says_what_to_do(texts: Path) -> None:
    limited = {"tiny": SourceSpec(path="tiny.jsonl", weight=0.5, max_epochs=1), "long": SourceSpec(path="long.jsonl")}
    for workers in (0, 2):
        data = module(texts, sources=limited, workers=workers, steps=500)
        given = len(list(on_rank(data, 0, 1)))
        fault = data.fault()
        assert isinstance(fault, UserError) and given > 2 and data.fails_after(given)
        assert "data.sources.tiny has been read as often as its max_epochs allows" in str(fault)


def test_a_checkpoint_of_other_sources_or_streams_is_refused(texts: Path) -> None:
    data = module(texts)
    states = consume(data, 1, until=2)
    data.consumed(Cursor(step=2, streams=states))
    state = data.state_dict()
    with pytest.raises(UserError, match="sources"):
        module(texts, sources={"long": SourceSpec(path="long.jsonl")}).load_state_dict(state)
    other = module(texts, streams=4)
    other.load_state_dict(state)
    with pytest.raises(UserError, match="data.streams=8"):
        on_rank(other, 0, 1)


def test_a_prepared_run_of_changed_files_is_refused(texts: Path) -> None:
    prepare(data=module(texts).corpus, folder=texts / "made", processes=1)
    with (texts / "tiny.jsonl").open("a") as file:
        file.write(json.dumps({"text": "one more"}) + "\n")
    with pytest.raises(UserError, match=r"tiny: its files hold something else \(changed: tiny.jsonl\).*stage=prepare"):
        module(texts, prepared=str(texts / "made"))


def test_shards_are_enough_by_themselves(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (texts / "apart.jsonl").write_text("".join(json.dumps({"text": f"apart {n}"}) + "\n" for n in range(7)))
    sources = {
        "long": SourceSpec(path="long.jsonl", filters=FilterSpec(exact_duplicates=True)),
        "short": SourceSpec(path="short.jsonl", validation="apart.jsonl"),
    }
    exam = Decontaminate(sets={"exam": EvaluationSet(path="exam.jsonl")})
    (texts / "exam.jsonl").write_text(json.dumps({"text": " ".join(map(str, range(30)))}) + "\n")
    words: dict[str, Any] = {"sources": sources, "decontaminate": exam}
    made = texts / "made"
    prepare(data=module(texts, **words).corpus, folder=made, processes=1)
    here = module(texts, **words, prepared=str(made))
    elsewhere = texts / "elsewhere"
    shutil.copytree(made, elsewhere / "made")
    monkeypatch.setenv("LIFECYCLE_CACHE", str(elsewhere / "cache"))  # another machine
    monkeypatch.chdir(elsewhere)
    there = module(elsewhere, **words, prepared="made")
    assert digest_by_tensor(there, 1) == digest_by_tensor(here, 1)
    assert rows_of(there) == rows_of(here) and there.corpus.epoch_positions(64) == here.corpus.epoch_positions(64)
    assert there.corpus.lineage()["fingerprint"] == here.corpus.lineage()["fingerprint"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sources": {"tiny": SourceSpec(path="tiny.jsonl", format="question_answer")}}, "treatment of its rows"),
        ({"sources": {"tiny": SourceSpec(path="tiny.jsonl", validation="held.jsonl")}}, "treatment of its rows"),
        ({"decontaminate": Decontaminate(sets={"exam": EvaluationSet(path="exam.jsonl")})}, "evaluation sets"),
    ],
)
def test_shards_of_another_treatment_are_refused_without_files_too(texts: Path, change: Any, said: str) -> None:
    words: dict[str, Any] = {"sources": {"tiny": SourceSpec(path="tiny.jsonl")}}
    prepare(data=module(texts, **words).corpus, folder=texts / "made", processes=1)
    (texts / "exam.jsonl").write_text(json.dumps({"text": " ".join(map(str, range(30)))}) + "\n")
    (texts / "tiny.jsonl").unlink()
    with pytest.raises(UserError, match=f"tiny: .*{said}.*stage=prepare again"):
        module(texts, **words | change, prepared=str(texts / "made"))


@pytest.mark.parametrize(("key", "said"), [("version", "written by another version"), ("tokenizer", "cut short")])
def test_shards_that_do_not_say_what_they_were_made_from_are_refused(texts: Path, key: str, said: str) -> None:
    prepare(data=module(texts).corpus, folder=texts / "made", processes=1)
    path = texts / "made/prepared/tiny/training/meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: "other"}))
    with pytest.raises(UserError, match=said):
        module(texts, prepared=str(texts / "made"))


def test_epoch_positions_count_one_pass_of_the_largest_source(texts: Path) -> None:
    data = module(texts)
    positions = data.corpus.epoch_positions(64)
    prepare(data=data.corpus, folder=texts / "made", processes=1)
    assert module(texts, prepared=str(texts / "made")).corpus.epoch_positions(64) == positions > 1000


def rows_of(data: DataModule) -> dict[str, list[list[int]]]:
    """What is measured of each domain."""
    return {domain: held.rows["input_ids"].tolist() for domain, held in data.held_out.items()}


def test_the_same_documents_are_measured_from_rows_and_shards_whatever_the_seed(texts: Path) -> None:
    rows = rows_of(module(texts))
    assert rows_of(module(texts, seed=6, tokenizer=str(texts / "made"), **shards_of(texts))) == rows
    assert rows_of(module(texts, seed=7, tokenizer=str(texts / "made"))) == rows


def test_of_large_files_the_same_part_is_looked_at_in_rows_and_shards(
    texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lifecycle.data.clean.held_out.LOCAL_BYTES", 2000)
    monkeypatch.setattr("lifecycle.data.clean.held_out.BYTES_A_TOKEN", 4.0)
    few: dict[str, Any] = {"validation_tokens": 100}
    rows = rows_of(module(texts, **few))
    assert rows_of(module(texts, **few, **shards_of(texts))) == rows
    monkeypatch.setattr("lifecycle.data.clean.held_out.LOCAL_BYTES", 2**30)
    assert rows_of(module(texts, **few, prepared=None)) != rows


def shards_of(texts: Path) -> dict[str, Any]:
    prepare(data=module(texts).corpus, folder=texts / "made", processes=1)
    return {"prepared": str(texts / "made")}


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("by", ["split", "file"])
def test_a_split_or_a_file_of_its_own_is_the_whole_validation_set(texts: Path, by: str, prepared: bool) -> None:
    (texts / "apart.jsonl").write_text("".join(json.dumps({"text": f"apart {n}"}) + "\n" for n in range(7)))
    spec = SourceSpec(path="short.jsonl", validation="apart.jsonl")
    if by == "split":
        spec = SourceSpec(path={"train": "short.jsonl", "aside": "apart.jsonl"}, validation="aside")
    changes: dict[str, Any] = {"sources": {"short": spec}, "epoch_source": None}
    if prepared:
        prepare(data=module(texts, **changes).corpus, folder=texts / "made", processes=1)
        changes["prepared"] = str(texts / "made")
    made = module(texts, **changes)
    assert made.held_out["short"].documents == 7
    trained = made.corpus.documents("short")
    assert "short" in made.tokenizer.decode(ids_of(trained.next()).tolist())


def test_a_validation_file_that_gives_nothing_is_refused(texts: Path) -> None:
    (texts / "empty.jsonl").write_text("")
    spec = SourceSpec(path="short.jsonl", validation="empty.jsonl")
    with pytest.raises(UserError, match=r"data.sources.short.validation is 'empty.jsonl', which gives no document"):
        module(texts, sources={"short": spec}, epoch_source=None)


def test_a_source_of_weight_0_is_measured_beside_others_of_its_domain(texts: Path) -> None:
    held = ValidationRatio(ratio=0.1)
    sources = {
        "long": SourceSpec(path="long.jsonl", weight=1.0, domain="all", validation=held),
        "short": SourceSpec(path="short.jsonl", weight=0.0, domain="all", validation=held),
    }
    found = module(texts, sources=sources).held_out["all"].rows["source_ids"]
    assert set(found[found >= 0].tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({"replay.long": 0.9, "short": 0.06, "tiny": 0.04}, "short"),
        ({"replay": 0.9, "short": 0.0, "tiny": 0.1}, "tiny"),
        ({"replay.long": 0.4, "replay.tiny": 0.6}, "replay.tiny"),
    ],
)
def test_passes_are_counted_over_the_largest_source_that_is_not_replayed(
    texts: Path, weights: dict[str, float], expected: str
) -> None:
    sources = {name: SourceSpec(path="tiny.jsonl", weight=weight) for name, weight in weights.items()}
    assert module(texts, sources=sources).corpus.epoch_source == expected


def test_a_source_of_weight_0_is_measured_and_never_read(texts: Path) -> None:
    sources = {
        "long": SourceSpec(path="long.jsonl", weight=1.0, validation=ValidationRatio(ratio=0.1)),
        "short": SourceSpec(path="short.jsonl", weight=0.0, domain="aside", validation=ValidationRatio(ratio=0.1)),
        "tiny": SourceSpec(path="tiny.jsonl", weight=0.0, domain="aside", validation=ValidationRatio(ratio=0.1)),
    }
    data = module(texts, sources=sources)
    assert data.domains["aside"][0] == 0 and data.held_out["aside"].documents > 5
    seen = {
        int(source)
        for batch in data.train_dataloader()
        for micro in batch.micro
        for source in micro.source_ids.unique()
    }
    assert seen <= {0, -1}
    assert data.tokenizer.sha256 == module(texts, sources={"long": sources["long"]}).tokenizer.sha256


def test_a_mixture_of_which_nothing_is_trained_on_is_refused(texts: Path) -> None:
    aside = SourceSpec(path="long.jsonl", weight=0.0, validation=ValidationRatio(ratio=0.1))
    with pytest.raises(UserError, match="no source has a weight above 0"):
        module(texts, sources={"long": aside})
    with pytest.raises(UserError, match=r"data\.sources is empty"):
        module(texts, sources={})


def test_files_of_an_ancestor_that_are_gone_are_said_with_the_way_round(texts: Path) -> None:
    sources = {"long": SourceSpec(path="long.jsonl"), "replay.1.web": SourceSpec(path="gone.jsonl", weight=0.0)}
    with pytest.raises(UserError, match=r"replay\.1\.web\.path: nothing matches .*data\.sources\.replay\.path=\.\.\."):
        module(texts, sources=sources)
