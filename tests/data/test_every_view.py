"""Laws of the data engine over every view: what is given depends on neither ranks nor workers nor where a run was
stopped, one pass gives each item once, and shards hold the items that the rows give.
"""

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.data.every_view import VIEWS, fitting, is_same, items, module, named, on_ranks, read, sizes, write

from lifecycle.batch import positions
from lifecycle.batch.item_arrays import joined
from lifecycle.data.module import DataModule
from lifecycle.data.read.spec import ValidationRatio
from lifecycle.errors import UserError
from lifecycle.jobs.prepare import prepare

RULES = ("drop", "shorten")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIFECYCLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("lifecycle.data.module.WINDOW_ROWS", 8)


@pytest.fixture(params=VIEWS)
def view(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A view, and rows of it in `tmp_path`."""
    write(tmp_path, request.param, "a", sizes(0, 40), files=2)
    write(tmp_path, request.param, "b", sizes(1, 20))
    return str(request.param)


def shards(folder: Path, view: str, **changes: Any) -> dict[str, Any]:
    prepare(data=module(folder, view, {"a": 1, "b": 1}, **changes).corpus, folder=folder / "made", processes=1)
    return {"prepared": str(folder / "made")}


@pytest.mark.parametrize("rule", RULES)
def test_one_pass_gives_each_item_once_and_counts_what_is_too_long(tmp_path: Path, view: str, rule: str) -> None:
    data = module(tmp_path, view, {"a": 1}, to_the_end=True, long_examples=rule)
    steps, _ = read(data)
    rows, positions, too_long = fitting(data, "a")
    assert named(data, steps) == rows and data.fault() is None and data.is_last(len(steps))
    ledger = data.ledger()["sources"]["a"]
    assert ledger["seen_tokens"] == positions
    planned = data.corpus.epoch_positions(40)
    if data.corpus.packing.pads:  # items stay whole: what a pass is planned by has the padding of full rows, no others
        used = sum(int((step["document_ids"].amax(1) > 0).sum()) for step in steps.values())
        assert planned % 40 == 0 and positions <= planned <= 40 * used < planned + 40 * 8
    else:
        assert planned == positions
    assert sum(ledger.get("too_long", {}).values()) == (0 if view == "text" else too_long)
    assert ledger["rows"] == 40 and ledger["epochs"] == pytest.approx(1.0)
    assert too_long


def test_a_checkpoint_of_any_step_goes_on_to_the_same_end(tmp_path: Path, view: str) -> None:
    steps, states = read(module(tmp_path, view, {"a": 1}, to_the_end=True))
    for stop in range(1, len(steps) + 1):
        again = module(tmp_path, view, {"a": 1}, to_the_end=True)
        again.load_state_dict(states[stop])
        rest, after = read(again)
        assert list(rest) == list(range(stop, len(steps)))
        assert all(is_same(rest[step], steps[step]) for step in rest)
        assert not rest or after[len(steps)]["tail"]["seen"] == states[len(steps)]["tail"]["seen"]


def test_ranks_and_workers_share_out_the_same_steps(tmp_path: Path, view: str) -> None:
    caps = {"a": 1.0, "b": None}
    alone, states = read(module(tmp_path, view, caps, to_the_end=True))
    for begin in (0, 3):
        shared = on_ranks(lambda: module(tmp_path, view, caps, to_the_end=True), 2, states[begin] if begin else None)
        assert list(shared) == list(range(begin, len(alone)))
        assert all(is_same(shared[step], alone[step]) for step in shared)
    ahead, _ = read(module(tmp_path, view, caps, to_the_end=True, workers=2))
    assert len(ahead) == len(alone) and all(is_same(ahead[step], alone[step]) for step in alone)


def test_shards_hold_the_items_that_the_rows_give(tmp_path: Path, view: str) -> None:
    held: dict[str, Any] = {"spec": {"validation": ValidationRatio(ratio=0.3)}, "validation_tokens": 60}
    caps = {"a": 1.0, "b": None}
    raw = module(tmp_path, view, caps, to_the_end=True, **held)
    made = module(tmp_path, view, caps, to_the_end=True, **held, **shards(tmp_path, view, **held))
    for name in caps:
        assert plain(items(raw, name)) == plain(items(made, name))
    assert made.corpus.epoch_positions(40) == raw.corpus.epoch_positions(40)
    for domain, one in raw.held_out.items():
        other = made.held_out[domain]
        assert one.rows.keys() == other.rows.keys() and all(
            np.array_equal(one.rows[name], other.rows[name]) for name in one.rows
        )
        assert (one.tokens, one.bytes, one.documents) == (other.tokens, other.bytes, other.documents)
        assert [str(prompt) for prompt in one.prompts] == [str(prompt) for prompt in other.prompts] and one.tokens
    assert "a" in raw.held_out
    steps, states = read(made)
    assert named(made, {s: step for s, step in steps.items()})["A000001"] <= 2
    again = module(tmp_path, view, caps, to_the_end=True, **held, prepared=str(tmp_path / "made"))
    again.load_state_dict(states[2])
    rest, _ = read(again)
    assert rest and all(is_same(rest[step], steps[step]) for step in rest)


def test_as_many_items_are_measured_as_the_positions_take(tmp_path: Path, view: str) -> None:
    held: dict[str, Any] = {"spec": {"validation": ValidationRatio(ratio=0.5)}, "validation_tokens": 60}
    raw = module(tmp_path, view, {"a": None, "b": None}, to_the_end=True, **held)
    for source in raw.corpus.whole:
        *most, last = [positions(item) for item in raw.corpus.held_out(source, 60)]
        assert sum(most) < 60 <= sum(most) + last or not most
        assert len(most) < 30  # of prompts too: their tokens


def test_a_pass_over_prompts_gives_each_once_before_any_comes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lifecycle.data.module.WINDOW_ROWS", 512)  # which holds many passes over so few
    write(tmp_path, "prompt", "a", sizes(0, 24))
    long: dict[str, Any] = {"sequence_length": 400, "global_batch_tokens": 1600, "micro_batch_tokens": 800}
    steps, _ = read(module(tmp_path, "prompt", {"a": None}, steps=18, streams=1, **long))
    asked = [name for step in steps.values() for name in step["id"]]
    passes = [asked[at : at + 24] for at in range(0, len(asked), 24)]
    assert len(passes) == 3 and all(len(set(one)) == 24 for one in passes) and passes[0] != passes[1]


def plain(found: list[Any]) -> list[str]:
    """Items as texts that are equal where they are, whatever their order."""
    texts = []
    for item in found:
        arrays = joined([item], "item")
        texts.append(repr({name: np.asarray(value).tolist() for name, value in sorted(arrays.items())}))
    return sorted(texts)


def test_shards_of_another_view_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "chat", "a", sizes(0, 40))
    write(tmp_path, "chat", "b", sizes(0, 40))
    made = shards(tmp_path, "chat")
    with pytest.raises(UserError, match=r"a: its shards were made for stage.view=chat, and this run reads text"):
        module(tmp_path, "text", {"a": 1}, spec={"format": "messages"}, **made)
    (tmp_path / "mine.jinja").write_text(
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token if m.role == 'assistant' }}{% endfor %}"
        "{{ '[assistant]' if add_generation_prompt }}"
    )
    with pytest.raises(UserError, match=r"a: its shards were made for stage.view=chat with another chat template"):
        module(tmp_path, "chat", {"a": 1}, **made | {"chat_template": str(tmp_path / "mine.jinja")})


def test_sources_whose_items_all_are_too_long_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lifecycle.data.stream.pieces.MOST_IN_A_ROW", 20)
    for view in ("chat", "preference", "prompt"):
        write(tmp_path, view, "a", [60] * 10)
        with pytest.raises(UserError, match=r"data.sources.a has no example that fits into a row: \d+ are longer"):
            read(module(tmp_path, view, {"a": None}))


def test_padding_is_reported_and_small_for_whole_examples_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lifecycle.data.module.WINDOW_ROWS", 128)
    write(tmp_path, "chat", "a", sizes(0, 400, longest=8), files=2)
    rows: dict[str, Any] = {"sequence_length": 256, "global_batch_tokens": 1024, "micro_batch_tokens": 1024}
    data = module(tmp_path, "chat", {"a": None}, steps=30, **rows)
    read(data)
    assert 0 < data.ledger()["padding_share"] < 0.05


def check(folder: Path, seed: int) -> bool:
    """Check one random layout (rows, files, streams, plan, ends, rule, form, ranks and stops); False where the layout
    was refused, as one without a fitting row is, so that nothing was checked."""
    rng = np.random.default_rng(seed)
    view = str(rng.choice(VIEWS))
    folder.mkdir()
    for name in ("a", "b"):
        count = int(rng.integers(1, 60))
        write(
            folder, view, name, sizes(int(rng.integers(1000)), count, int(rng.integers(2, 40))), int(rng.integers(1, 4))
        )
    streams = int(rng.choice([1, 2, 4]))
    rows, length = streams * int(rng.integers(1, 4)), int(rng.choice([32, 40, 64]))
    caps: dict[str, float | None] = {"a": float(rng.choice([1, 1.5, 2])), "b": None if rng.random() < 0.5 else 1.0}
    changes: dict[str, Any] = {
        "streams": streams,
        "shuffle_buffer": int(rng.choice([1, 7, 1000])),
        "sequence_length": length,
        "global_batch_tokens": rows * length,
        "micro_batch_tokens": length * int(rng.integers(1, rows + 1)),
        "long_examples": str(rng.choice(RULES)),
        "exhausted": str(rng.choice(["error", "drop"])),
        "seed": seed,
    }
    if rng.random() < 0.5:
        changes |= shards(folder, view, **changes)
    changes["tokenizer"] = str(kept(folder, again_of=view, **changes))

    def make(**more: Any) -> DataModule:
        return module(folder, view, caps, to_the_end=True, **(changes | more))

    try:
        steps, states = read(make())
    except UserError as fault:
        assert "fits into a row" in str(fault) or "has been read as often" in str(fault)
        return False
    data = make()
    found, (once, _, _) = named(data, steps), fitting(data, "a")
    of_a = Counter({name: times for name, times in found.items() if name[0] == "A"})
    assert not of_a - Counter({name: times * 2 for name, times in once.items()})
    if caps["a"] in (1, 2) and steps and data.fault() is None and states[len(steps)]["over"]:
        assert of_a == Counter({name: int(caps["a"]) * times for name, times in once.items()})
    for stop in rng.choice(len(steps), min(4, len(steps)), replace=False) + 1:
        world = int(rng.choice([n for n in (1, 2, 4) if streams % n == 0]))
        rest = on_ranks(make, world, states[int(stop)])
        assert list(rest) == list(range(stop, len(steps))) and all(is_same(rest[s], steps[s]) for s in rest), (
            seed,
            stop,
        )
    if rng.random() < 0.1:
        ahead, _ = read(make(workers=2))
        assert len(ahead) == len(steps) and all(is_same(ahead[s], steps[s]) for s in steps)
    return bool(steps)


def kept(folder: Path, *, again_of: str, **changes: Any) -> Path:
    """The tokenizer of the sources in a folder, saved: loading it takes less time than training."""
    path = folder / "tokenizer"
    if not path.exists():
        module(folder, again_of, {"a": 1, "b": 1}, **changes).tokenizer.save(path)
    return path


@pytest.mark.parametrize("seed", (0, 3, 6))  # rows as they are; prompts in shards; pairs in shards
def test_a_random_layout_is_given_exactly(tmp_path: Path, seed: int) -> None:
    assert check(tmp_path / "layout", seed)


@pytest.mark.slow
def test_hundreds_of_random_layouts_are_given_exactly(tmp_path: Path) -> None:
    checked = [check(tmp_path / str(seed), seed) for seed in itertools.islice(itertools.count(100), 300)]
    assert sum(checked) > 200
