"""Laws of going on: a run keeps its tokenizer and the rows it began with, wherever the files lie; another is named."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.data.test_module import module, own_cache, texts  # noqa: F401  (fixtures)

from lifecycle.data.module import DataModule
from lifecycle.data.read.begun import NAME, Begun, changes, in_order, listed
from lifecycle.data.read.files.listing import File
from lifecycle.data.read.spec import SourceSpec
from lifecycle.errors import Refusal, UserError
from lifecycle.jobs.prepare import prepare
from lifecycle.tokenizer import tokenizer as tokenizer_
from lifecycle.tokenizer.tokenizer import TokenizerRecipe


def begin(data: DataModule, folder: Path) -> Begun:
    """What a run that reads `data` leaves in its folder."""
    data.tokenizer.save(folder / "tokenizer")
    (folder / NAME).write_text(json.dumps(data.corpus.contents()))
    return Begun.of(folder, step=8, tokenizer=data.tokenizer.sha256)


def grow(path: Path, text: str = "zebra zebra quagga") -> None:
    with path.open("a") as file:
        file.write(json.dumps({"text": text}) + "\n")


def test_a_changed_source_is_refused_with_its_name_and_files(texts: Path) -> None:  # noqa: F811
    begun = begin(module(texts), texts / "run")
    grow(texts / "tiny.jsonl")
    with pytest.raises(
        UserError, match=r"goes on from step 8.* tiny \(changed: tiny.jsonl\).*data.json.*init_from=run@8"
    ):
        module(texts, begun=begun)


def test_the_same_files_in_another_place_and_time_are_the_same_data(texts: Path) -> None:  # noqa: F811
    begun = begin(module(texts), texts / "run")
    elsewhere = texts / "elsewhere"
    elsewhere.mkdir()
    for name in ("long", "short", "tiny"):
        (texts / f"{name}.jsonl").rename(elsewhere / f"{name}.jsonl")
        os.utime(elsewhere / f"{name}.jsonl", ns=(5, 5))
    assert module(elsewhere, begun=begun).tokenizer.sha256 == begun.tokenizer


def test_a_run_that_was_begun_with_text_goes_on_where_the_format_is_recognised(texts: Path) -> None:  # noqa: F811
    first = module(texts)
    begun = begin(first, texts / "run")
    recognised = {s.name: replace(s.spec, format="auto") for s in first.corpus.whole}
    again = module(texts, sources=recognised, begun=begun)
    assert [s.fingerprint for s in again.sources] == [s.fingerprint for s in first.sources]
    assert [s.spec.format for s in again.sources] == ["text"] * len(first.sources)


def stepped(data: DataModule) -> list[Any]:
    return [micro.input_ids.tolist() for batch in data.train_dataloader() for micro in batch.micro]


def in_parts(folder: Path, *names: str) -> DataModule:
    """A source of the files `names`, with as many held-out ones."""
    for n, name in enumerate(names):
        for place in ("train", "held"):
            (folder / place).mkdir(exist_ok=True)
            grow(folder / place / name, f"{place} {n} " * 50)
    spec = SourceSpec(path={"train": "train/*.jsonl", "held": "held/*.jsonl"}, validation="held")
    return module(folder, sources={"parts": spec})


def test_renamed_files_are_read_in_the_order_that_the_run_began_with(texts: Path) -> None:  # noqa: F811
    before = in_parts(texts, "a.jsonl", "b.jsonl", "c.jsonl")
    begun, spec, steps = begin(before, texts / "run"), before.corpus.whole[0].spec, stepped(before)
    for place in ("train", "held"):
        for old, new in (("a", "z"), ("b", "a"), ("c", "y")):
            (texts / place / f"{old}.jsonl").rename(texts / place / f"{new}.jsonl")
    again = module(texts, sources={"parts": spec}, begun=begun)
    assert [Path(file.url).name for file in again.corpus.whole[0].files] == ["z.jsonl", "a.jsonl", "y.jsonl"]
    assert stepped(again) == steps
    assert again.held_out["parts"].rows["input_ids"].tolist() == before.held_out["parts"].rows["input_ids"].tolist()
    assert again.corpus.contents()["fingerprints"] == before.corpus.contents()["fingerprints"]
    (texts / "train/y.jsonl").rename(texts / "train/y.txt")  # read in another way, which is other data
    both = replace(spec, path={"train": "train/*", "held": "held/*.jsonl"}, sample_by="line")
    with pytest.raises(Refusal, match="treatment of their rows is not"):
        module(texts, sources={"parts": both}, begun=begun)


def test_shards_fit_files_that_were_renamed(texts: Path) -> None:  # noqa: F811
    made = in_parts(texts, "a.jsonl", "b.jsonl")
    prepare(data=made.corpus, folder=texts / "made", processes=1)
    begun = begin(
        module(texts, sources={"parts": made.corpus.whole[0].spec}, prepared=str(texts / "made")), texts / "run"
    )
    for place in ("train", "held"):
        (texts / place / "a.jsonl").rename(texts / place / "c.jsonl")
    spec = made.corpus.whole[0].spec
    module(texts, sources={"parts": spec}, prepared=str(texts / "made"), begun=begun)
    grow(texts / "train/c.jsonl")
    with pytest.raises(UserError, match="its files hold something else"):
        module(texts, sources={"parts": spec}, prepared=str(texts / "made"))


def test_files_that_hold_the_same_stay_as_many() -> None:
    def files(*held: str) -> list[File]:
        return [File(f"/d/{n}", 1, "jsonl", stamp) for n, stamp in enumerate(held)]

    def order(before: str, now: str) -> str:
        return "".join(file.stamp for file in in_order(files(*now), listed(files(*before))))

    assert order("BAA", "AAB") == "BAA" and order("AB", "BA") == "AB"
    for other in ("AB", "AABB", "ABB", "AAC", ""):
        assert order("AAB", other) == other


def test_held_out_files_are_known_by_content_too(texts: Path) -> None:  # noqa: F811
    grow(texts / "apart.jsonl")
    sources: dict[str, Any] = {"sources": {"short": SourceSpec(path="short.jsonl", validation="apart.jsonl")}}
    begun = begin(module(texts, **sources), texts / "run")
    module(texts, **sources, begun=begun)
    grow(texts / "apart.jsonl")
    with pytest.raises(UserError, match=r"short, held out \(changed: apart.jsonl\)"):
        module(texts, **sources, begun=begun)


def test_another_treatment_of_the_same_files_is_refused(texts: Path) -> None:  # noqa: F811
    begun = begin(module(texts), texts / "run")
    assert begun.data is not None
    begun.data["fingerprints"]["long"] = "rows of another evaluation set"
    with pytest.raises(UserError, match="files are the same, and the treatment of their rows is not.*: long"):
        module(texts, begun=begun)


def test_rows_are_not_gone_on_with_in_shards(texts: Path) -> None:  # noqa: F811
    begun = begin(module(texts), texts / "run")
    prepare(data=module(texts).corpus, folder=texts / "made", processes=1)
    with pytest.raises(Refusal, match="raw or prepared"):
        module(texts, prepared=str(texts / "made"), begun=begun)
    of_shards = begin(module(texts, prepared=str(texts / "made")), texts / "other")
    shutil.move(texts / "made", texts / "moved")
    (texts / "long.jsonl").unlink()  # shards are enough
    module(texts, prepared=str(texts / "moved"), begun=of_shards)


def test_a_recipe_is_not_trained_anew_for_a_run_that_goes_on(
    texts: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = module(texts)
    begun = begin(before, texts / "run")
    shutil.rmtree(texts / "cache")
    monkeypatch.setattr(tokenizer_, "train_bpe", None)  # a call of it would fail
    assert module(texts, begun=begun).tokenizer.sha256 == before.tokenizer.sha256


def test_another_tokenizer_in_the_named_folder_is_refused_with_both_hashes(texts: Path) -> None:  # noqa: F811
    other = module(texts, tokenizer=TokenizerRecipe(vocab_size=300, max_bytes=50_000, digits=1)).tokenizer
    first = module(texts).tokenizer
    first.save(texts / "named")
    begun = begin(module(texts, tokenizer=str(texts / "named")), texts / "run")
    assert module(texts, tokenizer=str(texts / "named"), begun=begun).tokenizer.sha256 == first.sha256
    other.save(texts / "named")
    with pytest.raises(UserError, match=f"{first.sha256[:16]}, but data.tokenizer=.*named.*{other.sha256[:16]}"):
        module(texts, tokenizer=str(texts / "named"), begun=begun)
    shutil.rmtree(texts / "named")  # gone altogether: the run has its own
    assert module(texts, tokenizer=str(texts / "named"), begun=begun).tokenizer.sha256 == first.sha256


def test_a_runs_own_tokenizer_that_is_another_now_is_refused(texts: Path) -> None:  # noqa: F811
    begun = begin(module(texts), texts / "run")
    other = module(texts, tokenizer=TokenizerRecipe(vocab_size=300, max_bytes=50_000, digits=1)).tokenizer
    other.save(texts / "run" / "tokenizer")
    with pytest.raises(UserError, match="put back what the run wrote there"):
        module(texts, begun=begun)


def test_a_lost_tokenizer_is_made_again_only_if_it_is_the_same(texts: Path) -> None:  # noqa: F811
    begun = begin(module(texts), texts / "run")
    shutil.rmtree(texts / "run" / "tokenizer")
    assert module(texts, begun=begun).tokenizer.sha256 == begun.tokenizer
    small = TokenizerRecipe(vocab_size=300, max_bytes=50_000, digits=1)
    with pytest.raises(UserError, match="the recipe in data.tokenizer.*put its tokenizer/ folder back"):
        module(texts, tokenizer=small, begun=begun)


def test_changes_are_said_by_kind() -> None:
    before = [["/d/x/a", 1, "A"], ["/d/x/b", 1, "B"], ["/d/y/c", 1, "C"]]
    now = [["/e/x/a", 1, "A"], ["/e/x/b", 2, "D"], ["/e/z/e", 1, "E"]]
    assert changes(before, now) == "changed: x/b; new: z/e; gone: y/c"
    assert changes(before, [["/e/x/a", 1, "A"], ["/e/x/bb", 1, "B"], ["/e/y/c", 1, "C"]]) == ""
    assert changes(before, [before[1], before[0], before[2]]) == "the same files, in another order or number"
    assert changes([[f"/d/{n}", 1, str(n)] for n in range(9)], []) == "gone: 0, 1, 2, 3, 4 and 4 more"
