"""What is advised to be typed is what the key's own config file says, where it says something that fits."""

import pytest

from lifecycle import config
from lifecycle.config.defaults import defaults
from lifecycle.errors import UserError


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["stage.optimizer.lr=-1"],
            "stage.optimizer.lr is -1; wanted a number above 0 or null: type stage.optimizer.lr=0.002",
        ),
        (["stage.optimizer.lr=fast"], "type stage.optimizer.lr=0.002"),
        (["optimizer=muon", "stage.optimizer.momentum=2"], "type stage.optimizer.momentum=0.95"),
        (["experiment=debug", "checkpoint.every_steps=-5"], "type checkpoint.every_steps=10"),
        (["checkpoint.every_steps=-5"], "type checkpoint.every_steps=200"),
        (["data.sources.prose.weight=-1"], "type data.sources.prose.weight=0.6"),
        (["stage.optimizer.betas=3"], "type stage.optimizer.betas='[0.9,0.95]'"),
        (
            ["stage.max_steps=-1"],
            "stage.max_steps is -1; wanted a whole number from 1 on or null: type stage.max_steps=N",
        ),
        (["export.dtype=bf61"], "type export.dtype=bf16"),
        (["export.dtype=7"], "type export.dtype=fp32"),
        (["~stage.z_loss"], "stage.z_loss is missing; wanted a number from 0 on: type stage.z_loss=0"),
        (["guard.watch=-1"], "type guard.watch=0.05"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[-1],
)
def test_a_wrong_value_is_answered_with_the_one_of_the_config_files(overrides: list[str], said: str) -> None:
    with pytest.raises(UserError) as raised:
        config.check(config.compose(overrides))
    assert said in str(raised.value)


def test_a_key_has_the_value_of_the_choices_made_and_none_where_it_has_no_own() -> None:
    cfg = config.compose(["experiment=debug", "stage=midtrain", "stage.max_steps=7", "guard=null"])
    default = defaults(config.command_of(cfg))
    assert default("stage.max_steps") == 20 and default("hardware.compile") is False
    assert default("guard.watch") == 0.05
    for key in ("run", "stage.nowhere", "init_from.x", "stage.phases.0.rows", "data.sources.mine.path"):
        assert default(key) is None, key


@pytest.mark.parametrize("stage", ["sft", "dpo", "reward", "grpo"])
def test_a_rate_that_is_none_is_answered_with_what_takes_the_parents(stage: str) -> None:
    with pytest.raises(UserError) as fault:
        config.check(
            config.compose(
                [f"stage={stage}", "init_from=RUN", "data=files", "data.sources.mine.path=FILE", "stage.optimizer.lr=0"]
            )
        )
    assert "stage.optimizer.lr is 0; wanted a number above 0 or null: type stage.optimizer.lr=null" in str(fault.value)


@pytest.mark.parametrize(
    ("stage", "wrong"),
    [
        ("grpo", "stage.prompts_per_step=0"),
        ("spo", "stage.prompts_per_step=0"),
        ("grpo", "stage.sequence_length=0"),
        ("grpo", "stage.phases=7"),
        ("distill", "stage.on_policy=7"),
    ],
)
def test_a_value_that_is_refused_is_compared_with_no_other(stage: str, wrong: str) -> None:
    with pytest.raises(UserError, match=rf"^1 fault .*\n  - {wrong.partition('=')[0]} is [07]; wanted [^\n]*$"):
        config.check(
            config.compose([f"stage={stage}", "init_from=RUN", "data=files", "data.sources.mine.path=FILE", wrong])
        )


def test_a_number_that_stands_for_a_text_is_compared_as_one() -> None:
    words = ["stage=grpo", "init_from=RUN", "data=files", "data.sources.mine.path=FILE", "stage.rewards=7"]
    with pytest.raises(UserError, match="stage.rewards names '7', which is no reward"):
        config.check(config.compose(words))
