"""The scores of a source's rows: one for each row that is trained on, the same however many processes made them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lifecycle.data.clean.exact_duplicates import duplicate_rows
from lifecycle.data.clean.source import BadRows, HeldOut, Source
from lifecycle.data.curriculum import scores
from lifecycle.data.curriculum.difficulty import readability
from lifecycle.data.curriculum.scores import By, Scores, score_rows
from lifecycle.data.read.files.listing import File, resolve
from lifecycle.data.read.spec import SourceSpec
from lifecycle.errors import UserError
from lifecycle.tokenizer.tokenizer import Ids, Tokenizer, TokenizerRecipe, from_recipe

TEXTS = ["one", "one two two", "a cat sat on a mat", "one"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    recipe = TokenizerRecipe(vocab_size=300, max_bytes=1000, digits=1)
    return from_recipe(recipe, iter(TEXTS * 20), tmp_path_factory.mktemp("tokenizers"), "key")


def source(folder: Path, lines: list[Any], **changes: Any) -> Source:
    path = folder / "rows.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    spec = SourceSpec(path=str(path), validation=None, **changes)
    files = resolve(spec, name="s", cache=folder)
    return Source(name="s", index=0, spec=spec, files=files, bad_rows=BadRows(max_share=1, min_rows=1))


def of(folder: Path, tokenizer: Tokenizer, by: By, made: Source, **more: Any) -> Scores:
    return score_rows(made, by, tokenizer=tokenizer, cache=folder / "cache", **more)


def test_rows_that_are_not_trained_on_have_no_score_and_no_size(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [{"text": "one"}, "{broken", {"text": "héllo"}, {"text": "one"}, {"text": "x" * 50}, {"text": "late"}]
    made = source(tmp_path, rows, max_rows=5)
    made = replace(made, left_out={"exact duplicate": duplicate_rows(made, cache=tmp_path / "cache", processes=1)})
    found = of(tmp_path, tokenizer, "readability", made)
    assert found.size.tolist() == [3, 0, 6, 0, 50]
    assert np.isnan(found.score).tolist() == [False, True, False, True, False]
    assert found.score[0] == np.float32(readability("one"))
    held = HeldOut(ratio=0.5, seed=0)
    kept = [not held.holds(text) for text in ("one", "héllo", "x" * 50)]
    split = of(tmp_path, tokenizer, "readability", replace(made, held_out=held))
    assert (split.size[[0, 2, 4]] > 0).tolist() == kept and False in kept


def test_levels_are_the_rows_own(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [{"text": "a", "hard": "Level 4"}, {"text": "b", "hard": 2}, {"text": "c", "hard": "Level ?"}, {"text": "d"}]
    found = of(tmp_path, tokenizer, "field", source(tmp_path, rows, fields={"level": "hard"}))
    assert found.score[:2].tolist() == [4.0, 2.0] and np.isnan(found.score[2:]).all()
    assert (found.size == 1).all()


def test_tokens_are_counted_and_rare_ones_weigh_more(tmp_path: Path, tokenizer: Tokenizer) -> None:
    made = source(tmp_path, [{"text": text} for text in TEXTS])
    lengths = of(tmp_path, tokenizer, "length", made).score
    assert lengths.tolist() == [len(ids) for ids in tokenizer.encode_batch(TEXTS)]
    rare = of(tmp_path, tokenizer, "rarity", made).score
    ids = np.concatenate(tokenizer.encode_batch(TEXTS))
    share = np.bincount(ids)[tokenizer.encode_batch(["one"])[0]] / len(ids)
    assert rare[0] == rare[3] == pytest.approx(-np.log2(share).mean())


def test_parts_of_several_processes_make_the_same_whole(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = source(tmp_path, [{"text": f"row {n} " * (n % 7 + 1)} if n % 5 else "bad" for n in range(1000)])
    kinds: tuple[By, ...] = ("rarity", "length")
    alone = {by: of(tmp_path / "alone", tokenizer, by, made) for by in kinds}
    monkeypatch.setattr(scores, "ALONE_BYTES", 0)
    monkeypatch.setattr(scores.os, "cpu_count", lambda: 2)
    for by, one in alone.items():
        many = of(tmp_path / "many", tokenizer, by, made)
        np.testing.assert_array_equal(many.score, one.score)
        np.testing.assert_array_equal(many.size, one.size)


class Length:
    """A parent whose loss is the number of tokens; counts its calls."""

    def __init__(self, key: str) -> None:
        self.key, self.calls = key, 0

    def __call__(self, documents: list[Ids]) -> list[float]:
        self.calls += 1
        return [float(len(ids)) for ids in documents]


def test_scores_are_cached_by_what_they_depend_on(tmp_path: Path, tokenizer: Tokenizer) -> None:
    made = source(tmp_path, [{"text": text} for text in TEXTS])
    one, other = Length("one"), Length("other")
    for _ in range(2):
        found = of(tmp_path, tokenizer, "loss", made, parent_loss=one)
    assert one.calls == 1
    assert found.score.tolist() == [len(ids) for ids in tokenizer.documents(TEXTS)]  # bos and eos are predicted too
    of(tmp_path, tokenizer, "loss", made, parent_loss=other)
    assert other.calls == 1
    changed = source(tmp_path, [{"text": text} for text in TEXTS[:3]])
    assert len(of(tmp_path, tokenizer, "loss", changed, parent_loss=one).score) == 3


def test_a_loss_without_a_parent_and_a_far_source_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    made = source(tmp_path, [{"text": "a"}])
    with pytest.raises(UserError, match=r"data.curriculum.by is 'loss'.*init_from=RUN"):
        of(tmp_path, tokenizer, "loss", made)
    far = replace(made, files=(File("https://example.org/x.jsonl", 10**12, "jsonl"),))
    with pytest.raises(UserError, match="1,000 GB over the network"):
        of(tmp_path, tokenizer, "length", far)
