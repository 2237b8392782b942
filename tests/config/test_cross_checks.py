"""Values of several groups that cannot stand together, and those that can."""

from typing import Any

import pytest

from lifecycle.config.cross_checks import faults_between


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"guard": {"actions": ["replay", "rate"]}}, "type guard.actions=[rate]"),
        ({"stage": {"ewc": {"strength": 1.0}}, "hardware": {"strategy": "fsdp"}}, "type stage.ewc=null"),
    ],
)
def test_what_cannot_work_together_is_said(changes: dict[str, Any], said: str) -> None:
    (fault,) = faults_between(changes, guard_actions={"rate", "restore"})
    assert said in fault


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"guard": {"actions": []}},
        {"guard": {"actions": ["rate"]}},
        {"stage": {"ewc": None}, "hardware": {"strategy": "fsdp"}},
        {"stage": {"ewc": {"strength": 1.0}}, "hardware": {"strategy": "ddp"}},
        {"guard": "misspelt", "stage": None},  # of which others complain
    ],
)
def test_the_rest_is_let_through(changes: dict[str, Any]) -> None:
    assert faults_between(changes, guard_actions={"rate", "restore"}) == []
