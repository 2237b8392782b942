"""Speed and its share of the peak: of training alone, and at the length of the rows that were trained on."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.stages.test_step import MODEL

from lifecycle.batch import IGNORED, TokenBatch
from lifecycle.data.mixture.batch_plan import BatchPlan, Mix, Phase
from lifecycle.model import build
from lifecycle.stages.step import metrics as module
from lifecycle.stages.step.collectives import count_tokens
from lifecycle.stages.step.metrics import Meter, validation_metrics

PEAK, TOKENS = 1e9, 100


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 50.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def started(log_every: int | None = 1, *, phases: tuple[Phase, ...] = (Phase(step=0, row_length=16, rows=8),)) -> Meter:
    plan = BatchPlan(phases, Mix(weights={}))
    zeros, lengths = torch.zeros(1, 2, dtype=torch.float64), plan.at
    feed: Any = SimpleNamespace(row_length_at=lambda step: lengths(step).row_length, usage=lambda: zeros)
    trainer: Any = SimpleNamespace(world_size=1, loggers=[], is_global_zero=True)
    meter = Meter(log_every=log_every, peak_flops=PEAK, sources=["a"])
    meter.start(trainer, feed, MODEL)
    return meter


def step(meter: Meter, clock: Clock, number: int, seconds: float) -> None:
    clock.now += seconds
    zero = torch.zeros(())
    counts = torch.tensor([TOKENS, TOKENS, TOKENS])
    meter.add(step=number, loss=zero, counts=counts, extra={}, grad_norm=zero, lr=0.1, skipped=0)


def flops(length: int) -> float:
    """6 for each weight and 12 for each pair of positions that a head compares, by layer and width, counted by hand."""
    weights = sum(parameter.numel() for parameter in build(MODEL, seed=0).parameters())
    return 6 * weights + 12 * MODEL.layers * MODEL.heads * MODEL.head_dim * length


def test_the_share_of_the_peak_is_that_of_the_rows_of_each_step(clock: Clock) -> None:
    phases = (Phase(step=0, row_length=16, rows=8), Phase(step=3, row_length=64, rows=2))
    meter = started(2, phases=phases)
    shares = []
    for number in range(1, 7):
        step(meter, clock, number, 0.5)
        if number % 2 == 0:
            shares.append(meter.latest["perf/mfu"])
    short, long = (flops(length) * TOKENS / 0.5 / PEAK for length in (16, 64))
    assert shares == pytest.approx([short, (short + long) / 2, long])


def test_speed_counts_every_token_that_is_read_and_the_records_those_that_are_trained(clock: Clock) -> None:
    """A conversation costs its prompt too; what pads a row is no token."""
    meter, zero = started(2), torch.zeros(())
    for number, (trained, read) in enumerate([(10.0, 40.0), (30.0, 60.0)], 1):
        clock.now += 0.5
        counts = torch.tensor([trained, trained, read])
        meter.add(step=number, loss=zero, counts=counts, extra={}, grad_norm=zero, lr=0.1, skipped=0)
    assert meter.latest["perf/tokens_per_second"] == pytest.approx(100.0)
    assert meter.latest["perf/mfu"] == pytest.approx(flops(16) * 100.0 / PEAK)
    assert meter.latest["train/tokens"] == meter.latest["data/a/tokens"] == 40.0


def test_tokens_that_are_read_are_prompts_and_answers_without_padding() -> None:
    documents = torch.tensor([[1, 1, 1, 2, 2, 0], [1, 1, 0, 0, 0, 0]])
    labels = torch.where(documents == 1, 5, IGNORED)
    batch = TokenBatch(
        input_ids=documents, labels=labels, position_ids=documents, document_ids=documents,
        source_ids=torch.where(documents > 0, 0, -1),
    )  # fmt: skip
    assert count_tokens([batch, batch], 1, torch.device("cpu")).tolist() == [10.0, 10.0, 14.0]


@pytest.mark.parametrize("log_every", [1, 2, None])
def test_measuring_and_saving_are_no_training(clock: Clock, log_every: int | None) -> None:
    meter = started(log_every)
    speeds = []
    for number in range(1, 5):
        step(meter, clock, number, 0.5)
        meter.pause()  # a validation, ...
        clock.now += 30.0
        meter.log(number, {"valid/loss": 1.0})
        meter.go_on()
        meter.save()  # ... and a checkpoint, after which the hooks of the step end
        clock.now += 7.0
        meter.go_on()
        speeds.append((meter.latest["perf/tokens_per_second"], meter.latest["perf/step_s"]))
    assert speeds == [pytest.approx((TOKENS / 0.5, 0.5))] * 4
    assert meter.seconds == pytest.approx(4 * 37.5)  # what the run took, all in all


def test_a_pause_before_the_first_step_is_none_of_its_time(clock: Clock) -> None:
    meter = started()
    meter.pause()
    clock.now += 100.0
    meter.go_on()
    step(meter, clock, 1, 0.25)
    assert meter.latest["perf/tokens_per_second"] == pytest.approx(TOKENS / 0.25)


def test_waiting_for_data_is_training(clock: Clock) -> None:
    meter = started()
    clock.now += 0.25
    meter.waited(0.25)
    step(meter, clock, 1, 0.25)
    assert meter.latest["perf/data_wait"] == 0.5 and meter.latest["perf/step_s"] == 0.5


def test_what_a_callback_does_before_the_first_step_is_no_waiting(clock: Clock) -> None:
    meter = started()
    clock.now += 1.0  # the first batch comes,
    meter.pause()
    clock.now += 100.0  # prompts are answered,
    meter.go_on()
    meter.waited(101.0)  # and the step begins
    step(meter, clock, 1, 0.5)
    assert meter.latest["perf/data_wait"] == 0.0 and meter.latest["perf/step_s"] == 0.5


def test_a_sum_is_divided_by_the_count_of_the_loss_or_by_its_own(clock: Clock) -> None:
    meter = started()
    extra = {"z_loss": torch.tensor(50.0), "margin/a": torch.tensor([6.0, 4.0]), "margin/b": torch.zeros(2)}
    counts, zero = torch.tensor([TOKENS, TOKENS, TOKENS]), torch.zeros(())
    clock.now += 1.0
    meter.add(step=1, loss=zero, counts=counts, extra=extra, grad_norm=zero, lr=0.1, skipped=0)
    assert meter.latest["train/z_loss"] == 0.5 and meter.latest["margin/a"] == 1.5
    assert not {"margin/b", "train/margin/b"} & meter.latest.keys()  # there was nothing of it
    assert meter.latest["train/tokens"] == meter.latest["data/a/tokens"] == TOKENS


def test_a_loss_that_is_no_likelihood_has_no_perplexity_and_may_have_measures_beside_it() -> None:
    domains = {"a": (1.0, 10), "b": (3.0, 10)}
    sums = {"a": torch.tensor([8.0, 4.0, 3.0]).double(), "b": torch.tensor([4.0, 4.0, 2.0]).double()}
    assert validation_metrics(sums, domains, ["accuracy"]) == {
        **{"valid/a/loss": 2.0, "valid/a/accuracy": 0.75, "valid/b/loss": 1.0, "valid/b/accuracy": 0.5},
        "valid/loss": 1.25,
    }
    of_text = validation_metrics({"a": torch.tensor([8.0, 4.0]).double()}, domains)
    no_text = validation_metrics({"a": torch.tensor([8.0, 4.0]).double()}, {"a": (1.0, None)})
    assert no_text == {"valid/a/loss": 2.0, "valid/loss": 2.0}
    assert of_text["valid/a/perplexity"] == pytest.approx(math.exp(2)) and "valid/a/bits_per_byte" in of_text


def test_what_could_not_be_measured_is_no_loss_of_0() -> None:
    domains, nothing = {"a": (0.5, None), "b": (0.5, None)}, torch.zeros(3, dtype=torch.float64, device="cpu")
    measured = torch.tensor([-3.0, 4.0, 3.0], dtype=torch.float64, device="cpu")
    found = validation_metrics({"a": measured, "b": nothing.clone()}, domains, ["reward"])
    assert found == {"valid/a/loss": -0.75, "valid/a/reward": 0.75, "valid/loss": -0.75}
    assert validation_metrics({"a": nothing.clone(), "b": nothing.clone()}, domains, ["reward"]) == {}
