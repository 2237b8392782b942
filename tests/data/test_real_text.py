"""On real text: duplicates between textbooks, and examination questions hidden in them, are found and nothing else.

The plain answers beside which they are held are made here, of sets of word n-grams, with no code of the project.
"""

import json
import random
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from tests.real import REAL, needs_real, rows

from lifecycle.data.clean.contamination import Decontaminate, EvaluationSet, evaluation_index
from lifecycle.data.clean.source import BadRows, Source
from lifecycle.data.quality.rules import FilterSpec
from lifecycle.data.read.spec import SourceSpec
from lifecycle.data.stream.open_sources import open_sources

pytestmark = needs_real

THRESHOLD, NGRAM = 0.8, 5


def grams(text: str, n: int) -> set[tuple[str, ...]]:
    parts = re.findall(r"[^\W_]+", text.lower())
    return set(zip(*(parts[start:] for start in range(n)), strict=False))


def near(texts: list[str]) -> set[int]:
    """Places of the texts that resemble an earlier one that stays, by every pair's Jaccard similarity."""
    sets: list[set[tuple[str, ...]]] = [grams(text, NGRAM) for text in texts]
    gone: set[int] = set()
    for first, second in combinations(range(len(texts)), 2):
        few, many = sorted((len(sets[first]), len(sets[second])))
        if {first, second} & gone or few < THRESHOLD * many:
            continue
        common = len(sets[first] & sets[second])
        if common >= THRESHOLD * (few + many - common):
            gone.add(second)
    return gone


def source(path: Path, folder: Path, **options: Any) -> Source:
    spec = SourceSpec(path=str(path), **options)
    (made,) = open_sources(
        {"text": spec},
        root=None,
        bad_rows=BadRows(max_share=0.5, min_rows=10),
        cache=folder / "cache",
        quarantine=None,
        processes=1,
    )
    return made


def write(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def edited(text: str, rng: random.Random) -> str:
    """The text with one word in 200 replaced: about 1 - 2 * 5 / 200 of its 5-grams stay in common."""
    parts = text.split(" ")
    for place in range(0, len(parts), 200):
        parts[place] = f"edited{rng.randrange(10**6)}"
    return " ".join(parts)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["midtrain/openstax_math.train", "midtrain/openstax_science.train"])
def test_real_and_planted_duplicates_between_textbooks_are_found(name: str, tmp_path: Path) -> None:
    texts = [row["text"] for row in rows(name)]
    rng = random.Random(0)
    copied = rng.sample([text for text in texts if len(text) > 5000], 20)
    texts += [edited(text, rng) for text in copied]
    made = source(write(tmp_path / "texts.jsonl", texts), tmp_path, filters=FilterSpec(near_duplicates=True))
    found = set(made.left_out["near duplicate"].tolist())
    wanted = near(texts)
    real = len([place for place in wanted if place < len(texts) - 20])
    print(f"\n{name}: {len(texts) - 20} texts, {real} real duplicates and 20 planted, {len(found)} found")
    assert set(range(len(texts) - 20, len(texts))) <= wanted
    assert found == wanted


def questions(name: str) -> list[str]:
    return [row["question"] for row in rows(name)]


def test_textbooks_salted_with_test_questions_are_cleaned_of_exactly_those(tmp_path: Path) -> None:
    texts = [row["text"] for row in rows("midtrain/openstax_medicine.train")]
    asked = [question for question in questions("med/medqa_us4.test_part1") if len(grams(question, 13)) >= 20]
    rng = random.Random(1)
    places = sorted(rng.sample(range(len(texts)), 50))
    for place, question in zip(places, rng.sample(asked, 50), strict=True):
        middle = texts[place].find("\n", len(texts[place]) // 2)
        texts[place] = f"{texts[place][:middle]}\n{question}\n{texts[place][middle:]}"
    exam = EvaluationSet(
        path=str(REAL / "med/medqa_us4.test_part1.jsonl.gz"),
        format="multiple_choice",
        fields={"question": "question", "options": "options", "answer": "answer_idx"},
    )
    index = evaluation_index(Decontaminate(sets={"medqa_test": exam}), root=None, cache=tmp_path)
    assert [place for place, text in enumerate(texts) if index.find(text)] == places
    untouched = [row["text"] for row in rows("midtrain/openstax_medicine.train")]
    assert not any(index.find(text) for text in untouched)
