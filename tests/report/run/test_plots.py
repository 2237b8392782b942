import math
import random
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lifecycle.report.page.canvas import DARK, LIGHT, canvas, legend, smooth
from lifecycle.report.run.plots import PICTURES, curriculum, draw, loss, rate, throughput
from lifecycle.report.run.run_data import RunData, read_run


@pytest.fixture(scope="module")
def run(finished: Path) -> RunData:
    return read_run(finished)


def size(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def test_a_finished_run_has_every_picture_of_one_width(run: RunData) -> None:
    drawn = draw(run, LIGHT)
    assert list(drawn) == [name for name in PICTURES if name not in ("rewards", "pass_at_k", "policy")]  # no samples
    assert {size(png)[0] for png in drawn.values()} == {1280}


def test_modes_differ_and_a_mode_is_the_same_again(run: RunData) -> None:
    only_ledger = replace(run, metrics={})
    light, dark = draw(only_ledger, LIGHT), draw(only_ledger, DARK)
    assert light["ledger"] != dark["ledger"]
    assert draw(only_ledger, LIGHT) == light


def test_a_run_without_numbers_has_no_pictures(tmp_path: Path) -> None:
    assert draw(read_run(tmp_path), LIGHT) == {}


def test_the_loss_stands_beside_the_baselines_of_the_same_mixture(run: RunData) -> None:
    figure = loss(run, LIGHT)
    assert figure is not None
    words = [text.get_text() for text in figure.axes[0].texts]
    expected = 0.6 * math.log(141.9) + 0.4 * math.log(61.7)
    assert f"bigram model, held out: {expected:.2f}" in words


def test_a_baseline_that_misses_a_domain_is_not_drawn(run: RunData) -> None:
    figure = loss(replace(run, baselines={"prose": run.baselines["prose"]}), LIGHT)
    assert figure is not None
    assert not [text for text in figure.axes[0].texts if "model" in text.get_text()]


def test_losses_that_are_not_finite_do_not_stop_the_drawing(run: RunData) -> None:
    metrics = dict(run.metrics)
    metrics["train/loss"] = [math.nan if i % 7 == 0 else v for i, v in enumerate(metrics["train/loss"])]
    metrics["train/grad_norm"] = [math.inf if i % 7 == 0 else v for i, v in enumerate(metrics["train/grad_norm"])]
    assert {"loss", "learning_rate"} <= set(draw(replace(run, metrics=metrics), LIGHT))


def test_many_sources_and_domains_can_be_drawn(run: RunData) -> None:
    source = run.ledger["sources"]["topics"]
    sources = {f"source_{i}": {**source, "domain": f"domain_{i}"} for i in range(11)}
    metrics = {**run.metrics} | {
        f"valid/domain_{i}/perplexity": run.metrics["valid/prose/perplexity"] for i in range(11)
    }
    drawn = draw(replace(run, ledger={"sources": sources}, metrics=metrics), LIGHT)
    assert size(drawn["ledger"])[1] > 900 and size(drawn["perplexity"])[1] > 1500


def test_smoothing_keeps_a_straight_line() -> None:
    line = [3.0 - 0.25 * i for i in range(200)]
    assert smooth(line) == pytest.approx(line)


def test_smoothing_passes_by_what_is_not_finite() -> None:
    line = [float(i) for i in range(200)]
    holes = [math.nan if i % 5 == 0 else v for i, v in enumerate(line)]
    assert smooth(holes)[10:] == pytest.approx(line[10:])


def test_smoothing_takes_noise_away() -> None:
    draw_noise = random.Random(0)
    smoothed = smooth([draw_noise.gauss(0, 1) for _ in range(4000)])
    assert max(map(abs, smoothed[1000:3000])) < 0.5


def test_a_smoothed_share_stays_within_what_was_measured() -> None:
    shares = [0.5, 1.0, 0.5, 0.75, 1.0, 1.0]
    assert 0.5 <= min(smooth(shares)) and max(smooth(shares)) <= 1.0


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_a_run_of_few_steps_can_be_smoothed(count: int) -> None:
    assert smooth([2.0] * count) == pytest.approx([2.0] * count)


def test_the_levels_of_a_curriculum_fill_the_whole_at_every_progress(run: RunData) -> None:
    figure = curriculum(run, LIGHT)
    assert figure is not None
    easy, hard = (np.asarray(area.get_paths()[0].vertices).tolist() for area in figure.axes[0].collections)
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["2-5", "1-2"]
    # the easy level reaches from 0 to 1, and from the middle on to a tenth; the hard one lies upon it
    assert {(0.0, 1.0), (0.5, 0.1), (1.0, 0.1)} <= {(float(x), round(float(y), 6)) for x, y in easy}
    assert {(0.5, 1.0), (1.0, 1.0), (1.0, 0.1)} <= {(float(x), round(float(y), 6)) for x, y in hard}
    assert curriculum(replace(run, run={}), LIGHT) is None


def test_a_speed_that_was_measured_once_is_seen(run: RunData) -> None:
    last = {name: values[-1:] for name, values in run.metrics.items()}
    figure = throughput(replace(run, metrics=last), LIGHT)
    assert figure is not None
    assert [axes.lines[0].get_marker() for axes in figure.axes] == ["o", "o"]


def test_a_loss_and_a_rate_of_one_step_are_seen_and_steps_are_whole(run: RunData) -> None:
    last: dict[str, list[float | None]] = {
        "step": [1],
        "train/loss": [0.7],
        "train/lr": [1e-3],
        "train/grad_norm": [2.0],
    }
    one = replace(run, metrics=last, baselines={})
    for figure, smoothed in ((loss(one, LIGHT), [1]), (rate(one, LIGHT), [0, 1])):
        assert figure is not None
        assert all(axes.lines[number].get_marker() == "o" for axes, number in zip(figure.axes, smoothed, strict=True))
        assert all(float(tick).is_integer() for tick in figure.axes[-1].get_xticks())


def test_a_picture_of_nothing_has_no_legend_and_warns_of_nothing() -> None:
    _, (axes,) = canvas(LIGHT, "nothing", height=2)
    legend(axes)  # a warning would fail the test
    assert axes.get_legend() is None
