"""Prompts with checked answers: of a real row the known answer is what its reward reads, and its options are seen."""

import pytest
from tests.real import needs_real, rows

from lifecycle import config
from lifecycle.data.corpus import DataConfig
from lifecycle.data.read.formats import to_record
from lifecycle.data.read.forms.options import listed, shuffled
from lifecycle.data.read.row import BadRow
from lifecycle.rewards.choice import final_choice
from lifecycle.rewards.number import final_number

RECIPE = "data.tokenizer={vocab_size: 320, digits: 1, max_bytes: 50000}"
FILES = {
    "medqa": "med/medqa_us4.train_subset",
    "gsm8k": "math/gsm8k.train",
    "mbpp": "code/mbpp.train",
    "commonsenseqa": "rl/commonsenseqa.train",
}


def opened(data: str) -> DataConfig:
    made = config.build(config.compose([f"data={data}", RECIPE]).data)
    assert isinstance(made, DataConfig)
    return made


@pytest.mark.parametrize("name", [*FILES, "medmcqa", "rlaif/grpo", "rlaif/spo", "rlaif/test"])
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
