from dataclasses import replace
from pathlib import Path

import pytest

from lifecycle.report.page.canvas import LIGHT
from lifecycle.report.run.plots import draw
from lifecycle.report.run.reinforcement.pictures import pass_at_k, policy, rewards
from lifecycle.report.run.run_data import RunData, read_run
from lifecycle.report.run.sections import measures_table


@pytest.fixture(scope="module")
def run(finished: Path) -> RunData:
    return read_run(finished)


def trained(run: RunData) -> RunData:
    """On samples of five steps; the row of step 0 is of held-out answers alone."""
    told: dict[str, list[float | None]] = {"step": [0.0, 1.0, 2.0, 3.0, 4.0, 5.0], "train/loss": [None, *[0.0] * 5]}
    told |= {"rollout/reward": [None, 0.1, 0.2, 0.4, 0.5, 0.6], "policy/entropy": [None, *[1.0] * 5]}
    told |= {"rollout/length": [9.0, *[5.0] * 5], "valid/asked/loss": [-0.3] * 6, "valid/asked/reward": [0.3] * 6}
    return replace(run, metrics=told)


def test_rewards_of_samples_and_of_held_out_answers_are_drawn(run: RunData) -> None:
    figure = rewards(trained(run), LIGHT)
    assert figure is not None
    (axes,) = figure.axes
    assert [line.get_label() for line in axes.lines[1:]] == ["samples, smoothed", "greedy, held out: asked"]
    assert axes.lines[0].get_ydata() == pytest.approx([0.1, 0.2, 0.4, 0.5, 0.6])


def test_the_policy_has_a_panel_for_each_number_that_was_logged_of_samples_alone(run: RunData) -> None:
    figure = policy(trained(run), LIGHT)
    assert figure is not None
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "entropy (nats a token)",
        "length of an answer (tokens)",
    ]
    assert figure.axes[1].lines[0].get_xydata().tolist()[0] == [1, 5]  # type: ignore[union-attr]


def test_a_run_that_samples_has_no_picture_of_its_loss(run: RunData) -> None:
    assert [name for name in draw(trained(run), LIGHT) if name in ("loss", "rewards", "policy")] == [
        "rewards",
        "policy",
    ]


def sampled(run: RunData) -> RunData:
    """With pass@1 and pass@8, measured at two of three steps."""
    told: dict[str, list[float | None]] = {"step": [0.0, 1.0, 2.0], "valid/asked/loss": [-0.3, None, -0.4]}
    for k, values in ((1, [0.2, None, 0.3]), (8, [0.5, None, 0.4])):
        for end, shift in (("", 0.0), ("_low", -0.1), ("_high", 0.1)):
            told[f"valid/asked/pass_at_{k}{end}"] = [None if value is None else value + shift for value in values]
    return replace(run, metrics=told)


def test_pass_at_k_is_drawn_with_its_band(run: RunData) -> None:
    figure = pass_at_k(sampled(run), LIGHT)
    assert figure is not None
    (axes,) = figure.axes
    assert [line.get_label() for line in axes.lines] == ["pass@1", "pass@8"] and len(axes.collections) == 2
    assert axes.lines[1].get_xydata().tolist() == [[0, 0.5], [2, 0.4]]  # type: ignore[union-attr]
    assert axes.collections[0].get_paths()[0].get_extents().ymax == pytest.approx(0.4)


def test_a_measure_stands_in_the_table_with_its_interval(run: RunData) -> None:
    columns, rows = measures_table(sampled(run))
    assert columns == ["held-out data", "loss", "pass@1", "pass@8"]
    assert rows == [["asked", "-0.400", "0.300 (0.200 to 0.400)", "0.400 (0.300 to 0.500)"]]
