"""Verdicts of the filters that call on others: language, a function of the user's, masking; each counted."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lifecycle import config
from lifecycle.data.clean.filter_row import filter_row
from lifecycle.data.clean.source import BadRows, HeldOut, Source
from lifecycle.data.quality.classifier import Classifier
from lifecycle.data.quality.language import LanguageRule, language
from lifecycle.data.quality.rules import FilterSpec, drop_reason
from lifecycle.data.read.row import Position, RawRow
from lifecycle.data.read.spec import SourceSpec
from lifecycle.errors import UserError

SENTENCES = {
    "en": "The patient comes to the physician because of a fever and a cough.",
    "de": "Der Patient kommt wegen Fieber und Husten in die Praxis des Arztes.",
    "fr": "Le patient consulte son médecin à cause d'une fièvre et d'une toux.",
    "es": "El paciente acude al médico a causa de la fiebre y de la tos.",
    "zh": "患者因发烧和咳嗽去看医生，医生给他开了一些药。",
}


@pytest.mark.parametrize("code", SENTENCES)
def test_a_sentence_is_told_by_its_language(code: str) -> None:
    assert language(SENTENCES[code])[0] == code


def test_languages_that_are_not_kept_and_texts_of_none_are_dropped() -> None:
    spec = FilterSpec(language=LanguageRule(keep=["en", "de"]))
    reasons = {code: drop_reason(text, spec) for code, text in SENTENCES.items()}
    assert reasons == {"en": None, "de": None, "fr": "language", "es": "language", "zh": "language"}
    assert drop_reason("12345 67 89", spec) == "language"  # no language is likely


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (LanguageRule(keep=[]), "language.keep is empty"),
        (LanguageRule(keep=["eng"]), "names 'eng'; wanted ISO 639 codes"),
    ],
)
def test_language_rules_that_cannot_be_meant_are_refused(rule: LanguageRule, message: str) -> None:
    with pytest.raises(UserError, match=message):
        FilterSpec(language=rule).check("data.sources.a.filters")


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's in the working directory; its name."""
    name = f"filters_of_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(
        "from json import loads\nlimit = 3\ndef words(text):\n    return len(text.split()) / 10\n"
        "def wrong(text):\n    return 'good'\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    return name


def test_a_function_of_the_users_scores_documents(module: str) -> None:
    spec = FilterSpec(classifier=Classifier(function=f"{module}:words", threshold=0.3))
    spec.check("data.sources.a.filters")
    assert [drop_reason(text, spec) for text in ("one two", "one two three")] == ["classifier", None]
    with pytest.raises(UserError, match="gave 'good' for a document; wanted a number"):
        drop_reason("x", FilterSpec(classifier=Classifier(function=f"{module}:wrong")))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("no_colon", "wanted MODULE:FUNCTION"),
        ("no_such_module:f", "importing no_such_module fails .*working directory"),
        ("MODULE:nothing", "has no function nothing"),
        ("MODULE:limit", "has no function limit"),
        ("MODULE:loads", r"only imports: name the module that defines it \(json:loads\)"),
        ("os:system", "of Python's own library"),
        ("subprocess:run", "of Python's own library"),
    ],
)
def test_functions_that_cannot_be_had_or_must_not_are_refused(module: str, function: str, message: str) -> None:
    spec = FilterSpec(classifier=Classifier(function=function.replace("MODULE", module)))
    with pytest.raises(UserError, match=rf"data\.sources\.a\.filters\.classifier\.function is .*{message}"):
        spec.check("data.sources.a.filters")


def source(filters: FilterSpec) -> Source:
    return Source(
        name="a",
        index=0,
        spec=SourceSpec(path="x", filters=filters),
        files=(),
        bad_rows=BadRows(max_share=0.1, min_rows=1),
        held_out=None,
    )


def test_the_fingerprint_changes_with_the_functions_file(module: str) -> None:
    one = source(FilterSpec(classifier=Classifier(function=f"{module}:words")))
    before = one.fingerprint
    assert before == replace(one).fingerprint
    path = Path(f"{module}.py")
    path.write_text(path.read_text().replace("/ 10", "/ 20"))
    assert one.fingerprint != before


def test_a_config_says_all_of_it_and_its_faults_are_found_at_once() -> None:
    words = ["data=files", "data.sources.mine.path=x.jsonl"]
    at = "data.sources.mine.filters"
    config.check(config.compose([*words, f"{at}.language={{keep: [en]}}", f"{at}.mask_pii=true"]))
    with pytest.raises(UserError) as fault:
        config.check(config.compose([*words, f"{at}.language={{kep: [en]}}", f"{at}.near.ngrams=4"]))
    assert f"{at}.language.keep is missing" in str(fault.value)
    assert "near.ngrams" in str(fault.value) and "near.ngram" in str(fault.value)


def row(text: str) -> RawRow:
    return RawRow(0, "a.jsonl", 1, json.dumps({"text": text}).encode(), Position(0, 0, 1))


def test_masked_documents_are_kept_under_their_own_verdict() -> None:
    on, off = source(FilterSpec(mask_pii=True)), source(FilterSpec())
    mail = "Write to a@b.org."
    assert filter_row(row(mail), off)[:2] == (mail, "kept:")
    assert filter_row(row(mail), on)[:2] == ("Write to <EMAIL>.", "kept:masked")
    assert filter_row(row("nothing here"), on)[:2] == ("nothing here", "kept:")
    assert filter_row(row(mail), on).masked == {"email": 1}


def test_copies_that_differ_in_what_is_masked_fall_on_the_same_side() -> None:
    held = replace(source(FilterSpec(mask_pii=True)), held_out=HeldOut(ratio=0.5, seed=1))
    for number in range(20):
        one, other = (filter_row(row(f"{number}: {mail}"), held).verdict for mail in ("a@b.org", "c@d.org"))
        assert one == other


def test_pairs_that_teach_nothing_are_left_out_and_not_broken() -> None:
    spec = SourceSpec(path="x", format="scored_pairs", tie_margin=0.1)
    source = Source(name="s", index=0, spec=spec, files=(), bad_rows=BadRows(max_share=0.1, min_rows=1))
    row = {"prompt": "q", "response_1": "a", "response_2": "b"}
    verdicts = [
        filter_row(RawRow(0, "x", 1, {**row, **more}, Position(0, 0, 0)), source).verdict
        for more in ({"preference": 1.52}, {"preference": 1.0, "response_2": "a"}, {"preference": 1.0})
    ]
    assert verdicts == ["dropped:near tie", "dropped:both answers are the same", "kept:"]
    masked = replace(source, spec=SourceSpec(path="x", format="preference", filters=FilterSpec(mask_pii=True)))
    mails = {"prompt": "q", "chosen": "To a@b.org.", "rejected": "To c@d.org."}
    assert (
        filter_row(RawRow(0, "x", 1, mails, Position(0, 0, 0)), masked).verdict == "dropped:both answers are the same"
    )


@pytest.mark.parametrize(
    ("form", "rows"),
    [
        ("preference", [{"chosen": "a", "rejected": "b"}, {"chosen": "c", "rejected": "d"}]),
        ("unpaired", [{"completion": "a", "label": 1}, {"completion": "b", "label": 0}]),
    ],
)
def test_all_answers_to_one_prompt_are_on_the_same_side(form: str, rows: list[dict[str, object]]) -> None:
    spec = SourceSpec(path="x", format=form, filters=FilterSpec(mask_pii=True))
    held = HeldOut(ratio=0.5, seed=1)
    source = Source(name="s", index=0, spec=spec, files=(), bad_rows=BadRows(max_share=0.1, min_rows=1), held_out=held)
    sides = [
        {filter_row(RawRow(0, "x", 1, {"prompt": f"q{n}?", **row}, Position(0, 0, 0)), source).verdict for row in rows}
        for n in range(20)
    ]
    assert all(len(side) == 1 for side in sides) and len(set().union(*sides)) == 2
