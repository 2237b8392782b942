"""Prompts with checked answers: of a real row the known answer is what its reward reads, and its options are seen."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.real import needs_real, rows

from lifecycle import config
from lifecycle.data.corpus import Corpus, DataConfig
from lifecycle.data.read.formats import to_record
from lifecycle.data.read.forms.options import listed, shuffled
from lifecycle.data.read.row import BadRow
from lifecycle.rewards.choice import final_choice
from lifecycle.rewards.number import final_number

RECIPE = "data.tokenizer={vocab_size: 320, digits: 1, max_bytes: 50000}"
FILES = {
    "medqa": "med/medqa_us4.train_subset",
    "medmcqa": "med/medmcqa.dev_part1",
    "gsm8k": "math/gsm8k.train",
    "mbpp": "code/mbpp.train",
    "commonsenseqa": "rl/commonsenseqa.train",
}


def opened(data: str) -> DataConfig:
    made = config.build(config.compose([f"data={data}", RECIPE]).data)
    assert isinstance(made, DataConfig)
    return made


@pytest.mark.parametrize("name", [*FILES, "rlaif/grpo", "rlaif/spo", "rlaif/test"])
def test_each_source_names_its_rewards_and_looks_for_the_items_that_models_are_evaluated_on(name: str) -> None:
    made = opened(name)
    assert made.decontaminate is not None and made.decontaminate.sets
    for source in made.sources.values():
        assert source.rewards and source.validation is not None
        assert source.shuffle_options == (source.format == "multiple_choice")


@needs_real
@pytest.mark.parametrize("name", FILES)
def test_the_known_answer_of_a_real_row_is_the_one_that_its_reward_reads(name: str) -> None:
    spec = opened(f"offline/{name}").sources[name]
    moved = bad = 0
    given = rows(FILES[name])[:400]
    for number, row in enumerate(given):
        try:
            record = to_record(row, spec=spec, name=name, row_id=f"{name}:{number}")
        except BadRow:
            bad += 1
            continue
        made = shuffled(record, seed=1, visit=0) if spec.shuffle_options else record
        assert made.prompt and made.answer
        if spec.shuffle_options:
            assert made.prompt.endswith(listed(made.meta["options"]))
            assert made.meta["options"]["ABCDE".index(made.answer)] == record.meta["answer_text"]
            assert final_choice(f"The answer is {made.answer}.") == made.answer
            moved += made.meta["options"] != record.meta["options"]
        elif name == "gsm8k":
            assert final_number(f"The answer is {made.answer}") is not None
        else:
            assert made.meta["tests"] and made.meta["tests"][0] in made.prompt
    assert bad <= len(given) // 100
    assert not spec.shuffle_options or moved > len(given) / 2


def test_a_question_that_models_are_evaluated_on_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIFECYCLE_CACHE", str(tmp_path / "cache"))
    signs = "fever cough rash pain edema pallor vertigo nausea fatigue jaundice dyspnea syncope tremor ataxia".split()

    def question(n: int) -> dict[str, object]:
        order = [f"{sign}{(n * 7 + at) % 31}" for at, sign in enumerate(signs)]
        return {"question": " ".join(order), "options": {"A": "x", "B": "y", "C": "z", "D": "w"}, "answer_idx": "B"}

    train, test = [question(n) for n in range(20)], [question(n) for n in range(20, 25)]
    leaked = {**test[0], "question": f"A patient: {test[0]['question']} What now?"}
    for name, rows_of in (("medqa.train.jsonl", [*train, leaked]), ("medqa.test.jsonl", test)):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows_of))
    words = ["data=offline/medqa", f"data.root={tmp_path}", RECIPE, "data.sources.medqa.validation=null"]
    made: DataConfig = config.build(config.compose(words).data)
    corpus = Corpus(made, view="prompt", seed=1, processes=1, folder=tmp_path, replay_share=None)
    documents = corpus.documents("medqa")
    items: list[Any] = [documents.next() for _ in range(60)]
    asked = {corpus.tokenizer.decode(item.ids) for item in items}
    assert len(asked) >= 20 and not any("A patient" in text for text in asked)
    assert documents.totals()["counts"]["dropped:contaminated"]
