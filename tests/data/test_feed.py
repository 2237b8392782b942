"""The data module is what stages, metrics and the guard ask: all of `DataFeed`, by the same names."""

import inspect

from lifecycle.batch import DataFeed
from lifecycle.data.module import DataModule

FEED: type[DataFeed] = DataModule  # the types are mypy's to compare


def test_the_data_module_answers_all_that_a_stage_asks() -> None:
    asked = {name: member for name, member in vars(DataFeed).items() if inspect.isfunction(member)}
    asked = {name: member for name, member in asked.items() if not name.startswith("_")}
    assert {"consumed", "is_last", "val_dataloader", "set_replay_share"} < set(asked)
    for name, member in asked.items():
        found = inspect.signature(getattr(FEED, name)).parameters
        assert list(found) == list(inspect.signature(member).parameters), name
