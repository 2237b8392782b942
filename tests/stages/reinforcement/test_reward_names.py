"""Laws of the names of rewards: a wrong one is told before anything is read, with the nearest."""

from typing import Any

import pytest

from lifecycle.stages.reinforcement import settings


def faults(rewards: Any, **sources: Any) -> list[str]:
    own = {name: {"rewards": held} for name, held in sources.items()}
    return settings.faults({"stage": {"rewards": rewards}, "data": {"sources": own}})


@pytest.mark.parametrize("rewards", ["exactmatch", {"exactmatch": 1.0}])
def test_a_name_that_is_no_reward_is_told_with_its_key_and_the_nearest(rewards: Any) -> None:
    for found in (faults(rewards), faults("choice", mine=rewards)):
        assert len(found) == 1 and "names 'exactmatch', which is no reward; did you mean exact_match?" in found[0]
    assert faults("choice", mine=rewards)[0].startswith("data.sources.mine.rewards names")
    assert "type my_rewards:polite" in faults("my_rewards.polite")[0]
    assert "take of choice, number" in faults("zzzz")[0] and "MODULE:FUNCTION" in faults("zzzz")[0]


def test_a_list_is_told_as_what_to_type() -> None:
    (found,) = faults(["choice", "my_rewards:polite"])
    assert found.endswith("type 'stage.rewards={choice: 1, my_rewards\\:polite: 1}'")


def test_functions_of_the_users_own_are_names() -> None:
    assert not faults({"my_rewards:polite": 0.5, "length": 0.1}, mine="my_rewards:brief", none=None)


def test_a_name_that_braces_cut_at_its_colon_is_told_with_what_to_type() -> None:
    found = faults({"my_rewards": "polite: 1", "length": 1.0})
    assert any("type my_rewards\\:polite: 1 in the braces" in fault for fault in found)
