"""What the console script settles before torch loads."""

from __future__ import annotations

from pathlib import Path

import pytest

from lifecycle.__main__ import others_at_work


@pytest.mark.parametrize(
    ("said", "busy"),
    [
        ("0.00 0.00 0.00 3/80 22294\n", True),
        ("9.00 9.00 9.00 1/80 22294\n", False),  # what was busy has ended
        ("nothing of the kind\n", False),
    ],
)
def test_threads_at_work_now_count_and_not_the_average(tmp_path: Path, said: str, busy: bool) -> None:
    loads = tmp_path / "loadavg"
    loads.write_text(said)
    assert others_at_work(loads) is busy


def test_a_system_that_does_not_say_is_taken_for_quiet(tmp_path: Path) -> None:
    assert not others_at_work(tmp_path / "absent")
