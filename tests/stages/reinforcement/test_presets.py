"""Each preset is stage=grpo with what its paper changes, and nothing else."""

from typing import Any

import pytest

from lifecycle import config
from lifecycle.stages.grpo import Grpo
from lifecycle.stages.reinforcement import settings
from lifecycle.stages.reinforcement.settings import notices

CHANGES: dict[str, dict[str, Any]] = {
    "dr_grpo": {"advantage": "group_mean", "normaliser": "constant", "updates_per_rollout": 4},
    "dapo": {
        "prompts_per_step": 32,
        "varying_prompts": 16,
        "samples_per_prompt": 16,
        "clip_high": 0.28,
        "mask_unfinished": True,
        "overlong_buffer": 52,
        "updates_per_rollout": 4,
    },
    "gspo": {
        "ratio": "sequence",
        "clip_low": 3e-4,
        "clip_high": 4e-4,
        "normaliser": "sequence",
        "updates_per_rollout": 4,
    },
    "cispo": {
        "ratio": "cispo",
        "clip_low": None,
        "clip_high": None,
        "ratio_cap": 5.0,
        "normaliser": "prompt",
        "updates_per_rollout": 4,
    },
    "rloo": {
        "samples_per_prompt": 4,
        "advantage": "leave_one_out",
        "ratio": "reinforce",
        "clip_low": None,
        "clip_high": None,
        "normaliser": "constant",
    },
    "grpo_usmle": {
        "max_epochs": 2,
        "samples_per_prompt": 16,
        "sequence_length": 1024,
        "sampling.max_new_tokens": 512,
        "sampling.top_k": 40,
        "advantage": "group_mean",
        "normaliser": "sequence",
        "masks.off_policy_threshold": 0.5,
        "kl.coefficient": 0.01,
        "optimizer.lr": 1e-5,
        "optimizer.embedding_lr": 2e-4,
    },
}


def keys(stage: str) -> dict[str, Any]:
    cfg = config.compose([f"stage={stage}", "init_from=parent"])
    config.check(cfg)
    assert config.stage_class(cfg.stage) is Grpo
    return flat(config.resolved(cfg)["stage"])


def flat(node: dict[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= flat(value, f"{before}{key}.") if isinstance(value, dict) else {before + key: value}
    return found


@pytest.mark.parametrize("name", CHANGES)
def test_a_preset_changes_what_its_paper_says(name: str) -> None:
    base, made = keys("grpo"), keys(name)
    assert made.keys() == base.keys()
    assert {key: value for key, value in made.items() if value != base[key]} == CHANGES[name]


def test_a_run_has_the_name_of_its_preset() -> None:
    assert config.compose(["stage=dapo", "init_from=parent"]).run.startswith("dapo-")


@pytest.mark.parametrize("data", ["usmle", "offline/usmle"])
def test_the_preset_for_examinations_asks_with_plain_text_by_eight_samples_a_micro_batch(data: str) -> None:
    cfg = config.compose(["stage=grpo_usmle", f"data={data}", "init_from=parent"])
    config.check(cfg)
    assert (cfg.data.chat_template, cfg.hardware.micro_batch_tokens) == ("none", 8 * cfg.stage.sequence_length)
    assert cfg.data.epoch_source == "medqa"
    assert config.compose(["stage=grpo", f"data={data}"]).data.chat_template == "auto"


@pytest.mark.parametrize("data", ["usmle", "offline/usmle"])
@pytest.mark.parametrize("stage", ["grpo", "grpo_usmle", "ppo", "spo", "rlaif", *CHANGES])
def test_options_of_examinations_are_shuffled_where_letters_are_rewarded(data: str, stage: str) -> None:
    sources = config.compose([f"stage={stage}", f"data={data}"]).data.sources
    assert all(source.shuffle_options for source in sources.values())
    as_text = config.compose(["stage=pretrain", f"data={data}"]).data.sources
    assert not any(source.get("shuffle_options") for source in as_text.values())


def test_it_is_said_that_the_mask_cannot_fire() -> None:
    said = notices(config.resolved(config.compose(["stage=grpo_usmle", "init_from=parent"])))
    assert len(said) == 1 and "the ratio is 1" in said[0] and "cannot fire" in said[0]
    for other in ("stage.updates_per_rollout=2", "stage.passes_per_rollout=2", "stage.masks.off_policy_threshold=null"):
        assert not notices(config.resolved(config.compose(["stage=grpo_usmle", other, "init_from=parent"])))
    assert not notices(config.resolved(config.compose(["stage=pretrain"])))


def test_it_is_said_that_few_groups_under_a_bound_move_as_much_as_many() -> None:
    def said(*words: str) -> list[str]:
        return notices(config.resolved(config.compose([*words, "init_from=parent"])))

    (line,) = said("stage=dapo")
    assert "stage.varying_prompts=16" in line and "stage.optimizer.grad_clip=1)" in line
    for other in ("stage.varying_prompts=null", "stage.normaliser=constant", "stage.optimizer.grad_clip=null"):
        assert other.split("=")[0] in line and not said("stage=dapo", other)


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("stage.kl.target=0.05", "type stage.kl.coefficient=0.01"),
        ("stage.samples_per_prompt=1", "nothing would be learnt: give it 8, or type stage.advantage=batch"),
    ],
)
def test_what_would_move_nothing_is_refused_and_the_advice_helps(typed: str, says: str) -> None:
    def said(*words: str) -> list[str]:
        return settings.faults(config.resolved(config.compose(["stage=grpo", "init_from=parent", *words])))

    (line,) = said(typed)
    assert says in line
    advice = [part.split()[0].rstrip(",") for part in line.split(" type ")[1].split(", or ")]
    for one in advice:
        assert not said(typed, one)
    phases = "stage.phases=[{at_steps: 0, kl_coefficient: 0.1}]"
    assert bool(said(typed, phases)) == ("samples" in typed)
    (line,) = said("stage.phases=[{at_steps: 0}, {at_steps: 9, samples_per_prompt: 1}]")
    assert "stage.phases[1].samples_per_prompt is 1, and stage.advantage=group_std compares" in line


@pytest.mark.parametrize(("weight", "says"), [(0.0, "nothing that counts"), (float("nan"), "no weight")])
def test_a_weight_that_is_none_is_refused_wherever_it_stands(weight: float, says: str) -> None:
    own = {"mine": {"rewards": {"choice": weight}}}
    held: tuple[tuple[Any, dict[str, Any], str], ...] = (
        ({"choice": weight}, {}, "stage.rewards"),
        ("choice", own, "data.sources.mine.rewards"),
    )
    for rewards, sources, where in held:
        (line,) = settings.faults({"stage": {"rewards": rewards}, "data": {"sources": sources}})
        assert line.startswith(where) and says in line
