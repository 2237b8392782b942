"""Laws of decontamination: what is found agrees with plain sets, and salt is taken out, and nothing but salt."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tests.data.made import make_corpus
from tests.items import ids_of

from lifecycle.data.clean.contamination import Decontaminate, EvaluationSet, Index, evaluation_index
from lifecycle.data.clean.contamination_report import write_row_reports
from lifecycle.data.corpus import Corpus
from lifecycle.data.quality.ngrams import words
from lifecycle.data.read.spec import SourceSpec
from lifecycle.errors import UserError
from lifecycle.jobs.prepare import prepare
from lifecycle.tokenizer.tokenizer import TokenizerRecipe

FORMULA = "Which of the following is the most appropriate next step in the management of this patient?"


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("\n".join(json.dumps(row) for row in rows))


def index(folder: Path, items: list[str], **rule: Any) -> Index:
    write(folder / "items.jsonl", [{"text": item} for item in items])
    sets = {"exam": EvaluationSet(path="items.jsonl")}
    return evaluation_index(Decontaminate(sets=sets, **rule), root=str(folder), cache=folder)


def question(number: int) -> str:
    """A made examination question: words of its own between formulas that all of them share."""
    rng = random.Random(number)
    own = " ".join(f"{rng.choice('abcdefgh')}{rng.randrange(10**6)}" for _ in range(40))
    return f"A {number}-year-old man comes to the physician because of {own}. {FORMULA}"


def test_a_document_with_the_item_is_found_whatever_its_case_and_punctuation(tmp_path: Path) -> None:
    item = "One two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    [found] = index(tmp_path, [item]).find(f"Before. {item.upper().replace(' ', ', ')}! After.")
    assert found == ("exam", 0, 1.0, "one two three four five six seven eight nine ten eleven twelve thirteen")


def test_the_share_is_that_of_the_items_ngrams(tmp_path: Path) -> None:
    numbers = [f"n{i}" for i in range(20)]  # 18 n-grams of 3 words
    half = "x " + " ".join(numbers[:11]) + " y"  # 9 of them
    assert index(tmp_path, [" ".join(numbers)], ngram=3, share=0.5).find(half)[0].share == 0.5
    assert not index(tmp_path, [" ".join(numbers)], ngram=3, share=0.51).find(half)
    assert index(tmp_path, [" ".join(numbers)], ngram=3, share=0.0).find("n4 n5 n6")
    assert not index(tmp_path, [" ".join(numbers)], ngram=3, share=0.0).find("n4 n5 n7 n6")


def test_a_set_can_have_a_rule_of_its_own(tmp_path: Path) -> None:
    numbers = [f"n{i}" for i in range(20)]
    write(tmp_path / "items.jsonl", [{"text": " ".join(numbers)}])
    strict = EvaluationSet(path="items.jsonl", ngram=3, share=0.0)
    sets = {"usual": EvaluationSet(path="items.jsonl"), "strict": strict}
    made = evaluation_index(Decontaminate(sets=sets), root=str(tmp_path), cache=tmp_path)
    assert [found.set for found in made.find("n4 n5 n6")] == ["strict"]
    assert [found.set for found in made.find(" ".join(numbers[:17]))] == ["usual", "strict"]
    plain = Decontaminate(sets={"usual": sets["usual"], "strict": sets["usual"]})
    assert made.key != evaluation_index(plain, root=str(tmp_path), cache=tmp_path).key


def test_a_short_item_is_looked_for_whole_and_a_very_short_one_not_at_all(tmp_path: Path) -> None:
    made = index(tmp_path, ["What is the name of the longest bone here?", "Why is that?"])
    assert made.sets["exam"] == {"items": 1, "short": 1, "bad": 0}
    assert made.find("so what is the name of the longest bone here then")
    assert not made.find("so what is the name of the longest bone there")
    assert not made.find("why is that")


def test_it_agrees_with_plain_sets(tmp_path: Path) -> None:
    rng = random.Random(7)
    vocabulary = [f"w{i}" for i in range(6)]
    items = [" ".join(rng.choices(vocabulary, k=rng.randint(2, 9))) for _ in range(40)]
    made = index(tmp_path, items, ngram=4, share=0.4, min_words=3)
    for _ in range(60):
        text = " ".join(rng.choices(vocabulary, k=rng.randint(0, 40)))
        expected = []
        for number, item in enumerate(items):
            n = min(4, len(words(item)))
            grams, there = ({tuple(w[i : i + n]) for i in range(len(w) - n + 1)} for w in (words(item), words(text)))
            if n >= 3 and len(grams & there) and len(grams & there) / len(grams) >= 0.4:
                expected.append((number, round(len(grams & there) / len(grams), 4)))
        assert [(found.item, found.share) for found in made.find(text)] == expected


def test_the_question_of_an_item_is_looked_for_and_not_its_options(tmp_path: Path) -> None:
    row = {"question": question(1), "options": {"A": "all of the above", "B": "none"}, "answer": "A"}
    write(tmp_path / "items.jsonl", [row, {"no": "question"}])
    one = EvaluationSet(path={"test": "items.jsonl"}, format="multiple_choice")
    made = evaluation_index(Decontaminate(sets={"exam": one}), root=str(tmp_path), cache=tmp_path)
    assert made.sets["exam"] == {"items": 1, "short": 0, "bad": 1}
    assert made.find(question(1))[0].share == 1.0
    assert not made.find("all of the above, none")


def test_of_messages_all_is_looked_for(tmp_path: Path) -> None:
    said = "one two three four five six seven eight nine ten eleven twelve thirteen"
    turns = [{"role": "user", "content": said}, {"role": "assistant", "content": "fourteen fifteen"}]
    write(tmp_path / "items.jsonl", [{"messages": turns}])
    one = EvaluationSet(path="items.jsonl", format="messages")
    made = evaluation_index(Decontaminate(sets={"chat": one}, share=0.0), root=str(tmp_path), cache=tmp_path)
    assert made.find(said)[0].set == "chat"


def module(folder: Path, **changes: Any) -> Corpus:
    sets = {"exam": EvaluationSet(path="exam.jsonl", format="multiple_choice")}
    arguments: dict[str, Any] = {
        "sources": {"train": SourceSpec(path="train.jsonl", validation=None, max_epochs=1)},
        "tokenizer": TokenizerRecipe(vocab_size=300, max_bytes=20_000, digits=1),
        "root": str(folder),
        "shuffle_buffer": 50,
        "exhausted": "drop",
        "decontaminate": Decontaminate(sets=sets),
        "folder": folder / "run",
    }
    return make_corpus(arguments | changes)


@pytest.fixture
def salted(tmp_path: Path) -> list[int]:
    """A training set of 300 questions of the same formulas, 50 of them from the examination; the rows of these."""
    exam = [question(number) for number in range(1000, 1100)]
    write(tmp_path / "exam.jsonl", [{"question": q, "options": ["yes", "no"], "answer": "A"} for q in exam])
    rng = random.Random(1)
    salt = dict(zip(rng.sample(range(300), 50), rng.sample(exam, 50), strict=True))
    rows = [f"Question: {salt.get(row, question(row))}\nA. yes\nB. no\nAnswer: A. yes" for row in range(300)]
    write(tmp_path / "train.jsonl", [{"text": text} for text in rows])
    return sorted(salt)


def dropped(folder: Path) -> list[int]:
    write_row_reports(folder)
    found = json.loads((folder / "decontamination.json").read_text())
    assert found["sets"]["exam"] == {"items": 100, "short": 0, "bad": 0, "found": len(found["rows"])}
    assert all(row["source"] == "train" and row["line"] == row["row"] + 1 for row in found["rows"])
    for row in found["rows"]:
        [item] = row["found"]
        assert item["share"] == 1.0 and item["ngram"] in " ".join(words(question(1000 + item["item"])))
    return [row["row"] for row in found["rows"]]


def test_streaming_leaves_out_exactly_the_salt_and_says_where_it_was(tmp_path: Path, salted: list[int]) -> None:
    data = module(tmp_path)
    documents = data.documents("train")
    given = [data.tokenizer.decode(ids_of(documents.next()).tolist()) for _ in range(250)]
    clean = {question(row) for row in range(300) if row not in salted}
    assert {text.split("Question: ")[1].split("\nA. yes")[0] for text in given} == clean
    assert documents.totals()["counts"] == {"kept:": 250, "dropped:contaminated": 50}
    assert dropped(tmp_path / "run") == salted


def test_preparing_leaves_out_exactly_the_salt(tmp_path: Path, salted: list[int]) -> None:
    made = prepare(module(tmp_path), tmp_path / "run", 1)
    assert made["train"]["training"]["counts"] == {"kept:": 250, "dropped:contaminated": 50}
    assert dropped(tmp_path / "run") == salted


def test_prepared_rows_of_another_decontamination_are_refused(tmp_path: Path, salted: list[int]) -> None:
    prepare(module(tmp_path, decontaminate=None), tmp_path / "run", 1)
    with pytest.raises(UserError, match="decontaminate"):
        module(tmp_path, prepared=str(tmp_path / "run"))
    with pytest.raises(UserError, match="Run stage=prepare again"):
        write(tmp_path / "exam.jsonl", [{"question": question(1)}])
        module(tmp_path, prepared=str(tmp_path / "run"))


def test_what_was_listed_twice_is_reported_once(tmp_path: Path, salted: list[int]) -> None:
    for _ in range(2):  # as after a resume, which reads rows again
        list(module(tmp_path).documents("train").texts())  # type: ignore[attr-defined]
    assert dropped(tmp_path / "run") == salted


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"sets": {}}, "decontaminate.sets is empty"),
        ({"sets": {"exam": EvaluationSet()}}, r"decontaminate\.sets\.exam: neither of hub and path"),
        ({"sets": {"exam": EvaluationSet(path="none.jsonl")}}, r"decontaminate\.sets\.exam\.path: nothing matches"),
        (
            {"sets": {"exam": EvaluationSet(path="short.jsonl")}},
            r"exam has no item .*1 of fewer than 8 words, 1 un",
        ),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(tmp_path: Path, rule: dict[str, Any], message: str) -> None:
    write(tmp_path / "short.jsonl", [{"text": "too short"}, {"no": "text"}])
    rule = {"sets": {"exam": EvaluationSet(path="short.jsonl")}, **rule}
    with pytest.raises(UserError, match=message):
        evaluation_index(Decontaminate(**rule), root=str(tmp_path), cache=tmp_path)
