"""Values of several groups that cannot stand together, and those that can."""

from typing import Any

import pytest

from lifecycle.config.cross_checks import Declared, faults_between

STAGE = Declared(
    views=frozenset({"text", "chat"}),
    guard_actions=frozenset({"rate", "restore"}),
    weight_copies={"ewc": 2},
    keys=frozenset({"max_steps"}),
)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stage": {"view": "preference"}}, "this stage trains on chat or text: type stage.view=text"),
        ({"guard": {"actions": ["replay", "rate"]}}, "type guard.actions=[rate]"),
        ({"stage": {"ewc": {"strength": 1.0}}, "hardware": {"strategy": "fsdp"}}, "type stage.ewc=null"),
        ({"stage": {"optimizer": {"lr": None}}}, "this stage takes none over: type stage.optimizer.lr="),
    ],
)
def test_what_cannot_work_together_is_said(changes: dict[str, Any], said: str) -> None:
    (fault,) = faults_between(changes, STAGE)
    assert said in fault


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"stage": {"view": "chat"}},
        {"guard": {"actions": []}},
        {"guard": {"actions": ["rate"]}},
        {"stage": {"ewc": None}, "hardware": {"strategy": "fsdp"}},
        {"stage": {"ewc": {"strength": 1.0}}, "hardware": {"strategy": "ddp"}},
        {"guard": "misspelt", "stage": None},  # of which others complain
    ],
)
def test_the_rest_is_let_through(changes: dict[str, Any]) -> None:
    assert faults_between(changes, STAGE) == []


def test_a_stage_that_takes_the_rate_over_may_leave_it_to_the_parent() -> None:
    left = {"stage": {"optimizer": {"lr": None}}}
    assert faults_between(left, Declared(keys=frozenset({"max_steps", "peak_ratio"}))) == []
    assert faults_between(left, Declared()) == []  # a job trains nothing
