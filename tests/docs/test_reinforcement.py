"""The pages of reinforcement learning name every formula, key and preset, with the values of conf/stage."""

import re
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from tests.docs.pages import ROOT

from lifecycle.losses.policy.advantages import AdvantageName
from lifecycle.losses.policy.kl import KlName
from lifecycle.losses.policy.masks import SamplerMasks
from lifecycle.losses.policy.normalisers import NormaliserName
from lifecycle.losses.policy.objectives import RatioName
from lifecycle.stages.reinforcement.reward_names import KNOWN

PAGE, FORMULAS, REWARDS = (
    (ROOT / "docs" / name).read_text() for name in ("reinforcement.md", "reinforcement_formulas.md", "rewards.md")
)
TABLES = {
    "Advantages": get_args(AdvantageName),
    "Ratios": get_args(RatioName),
    "Normalisers": get_args(NormaliserName),
    "KL": get_args(KlName),
    "Against the sampler": tuple(field.name for field in fields(SamplerMasks)),
}
PRESETS = ("dr_grpo", "dapo", "gspo", "cispo", "rloo", "grpo_usmle")
ELSEWHERE = {"masks", "critic", "gamma", "lam", "whiten", "kl_in", "variant", "start_samples", "half_life"}
"""Keys of stages that other pages have."""
NO_SETTINGS = {"view", "global_batch_tokens"}
"""What nobody sets here: it follows from the stage."""


def section(page: str, title: str) -> str:
    return page.split(f"\n## {title}")[1].split("\n## ")[0]


def values(stage: str) -> dict[str, Any]:
    """The keys of conf/stage/STAGE.yaml, `sampling.top_k` as one word."""

    def walk(node: Any, prefix: str) -> dict[str, Any]:
        if not isinstance(node, dict):
            return {prefix[:-1]: node}
        return {name: value for key, child in node.items() for name, value in walk(child, f"{prefix}{key}.").items()}

    file: Path = ROOT / "conf/stage" / f"{stage}.yaml"
    return walk(
        {key: node for key, node in yaml.safe_load(file.read_text()).items() if key not in ("defaults", "_target_")}, ""
    )


@pytest.mark.parametrize("title", TABLES)
def test_every_name_has_a_line(title: str) -> None:
    assert sorted(re.findall(r"^\| `(\w+)` ", section(FORMULAS, title), re.MULTILINE)) == sorted(TABLES[title])


def test_every_reward_has_a_line() -> None:
    lines = re.findall(r"^\| (`.*?) \| ", REWARDS.split("\n## ")[0], re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", " ".join(lines))) == sorted(KNOWN)


def test_every_key_has_a_line_with_its_default() -> None:
    stages = {name: values(name) for name in ("grpo", "ppo", "spo")}
    told = set[str]()
    for line in re.findall(r"^\| (`.*) \|$", section(PAGE, "Settings"), re.MULTILINE):
        cells = line.split(" | ")
        names = [name if name[0] != "." else f"sampling{name}" for name in re.findall(r"`(\S+)`", cells[0])]
        for (stage, own), cell in zip(stages.items(), cells[1:4], strict=True):
            for name in names:
                wanted = "-" if name not in own else yaml.safe_load(cell)
                assert own.get(name, "-") == wanted and (name in own or cell == "-"), (stage, name, cell)
        told.update(names)
    known = {name for own in stages.values() for name in own if name.split(".")[0] not in ELSEWHERE | NO_SETTINGS}
    assert told == known


def test_every_preset_has_a_line_with_its_values() -> None:
    told = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", section(PAGE, "Presets"), re.MULTILINE))
    assert sorted(told) == sorted(PRESETS)
    for preset, line in told.items():
        pairs = (word.split("=") for word in re.findall(r"`(\S+)`", line))
        assert {key: yaml.safe_load(value) for key, value in pairs} == values(preset), preset
