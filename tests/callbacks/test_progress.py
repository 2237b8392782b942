import io
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from lifecycle.callbacks.progress import Moment, Pace, ProgressDisplay, as_typed, clock

METRICS = {
    "train/loss": 3.21,
    "train/lr": 3e-4,
    "train/tokens": 1_638_400.0,
    "perf/tokens_per_second": 23_456.7,
    "perf/mfu": 0.412,
    "perf/data_wait": 0.003,
    "valid/prose/perplexity": 33.8,
    "valid/code/perplexity": 16.04,
    "valid/loss": 3.3,
}


def facts(metrics: dict[str, float], *, total: int | None = 400, on_cpu: bool = True) -> Moment:
    return Moment(
        stage="pretrain", step=100, total=total, elapsed=65, left=185.0, checkpoint=90, metrics=metrics, on_cpu=on_cpu
    )


def display(*, terminal: bool, every_seconds: float = 0.0) -> tuple[ProgressDisplay, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120, color_system=None, _environ={"TERM": "xterm"})
    return ProgressDisplay(every_seconds=every_seconds, console=console), out


def run(shown: ProgressDisplay, steps: int, latest: dict[str, float], *, rank: int = 0) -> None:
    """What Lightning would call, with the little of a trainer and a stage that the display reads."""
    trainer: Any = SimpleNamespace(is_global_zero=rank == 0, global_step=0, max_steps=steps)
    meter = SimpleNamespace(latest=latest)
    stage: Any = SimpleNamespace(
        meter=meter, setup_facts=SimpleNamespace(timeline=SimpleNamespace(steps=steps)), device=torch.device("cpu")
    )
    shown.on_train_start(trainer, stage)
    for step in range(1, steps + 1):
        trainer.global_step = step
        shown.on_train_batch_end(trainer, stage, None, None, 0)
        if step == 2:
            shown.on_save_checkpoint(trainer, stage, {})
    shown.on_train_end(trainer, stage)


def test_a_line_says_all_that_was_measured() -> None:
    assert facts(METRICS).line() == (
        "pretrain step 100/400 | loss 3.210 | lr 3.00e-04 | tokens 1,638,400 | tokens/s 23,457 | "
        "of measured peak 41.2% | data wait 0.3% | valid ppl prose 33.8, code 16.0 | checkpoint 90 | "
        "0:01:05 gone | 0:03:05 left"
    )
    assert "MFU 41.2%" in facts(METRICS, on_cpu=False).line()


def test_a_stage_is_named_as_it_is_typed() -> None:
    assert [as_typed(name) for name in ("Sft", "DistillReason")] == ["sft", "distill_reason"]


def test_measures_of_a_loss_that_is_no_likelihood_stand_in_its_place() -> None:
    measured = {"valid/prose/loss": 0.69, "valid/prose/accuracy": 0.5, "valid/loss": 0.69}
    assert "| valid prose loss 0.690, prose accuracy 0.500 |" in facts(measured).line()


def test_what_was_not_measured_is_left_out() -> None:
    assert facts({}).line() == "pretrain step 100/400 | checkpoint 90 | 0:01:05 gone | 0:03:05 left"
    assert facts({}, total=None).line().startswith("pretrain step 100 | ")


def test_a_run_that_ends_with_its_data_says_about_how_many_steps_it_has() -> None:
    """And none that it has passed: rows are padded, so that their number is known when they are packed."""
    shown, out = display(terminal=False)
    trainer: Any = SimpleNamespace(is_global_zero=True, global_step=0, max_steps=-1)
    stage: Any = SimpleNamespace(
        meter=SimpleNamespace(latest={}),
        setup_facts=SimpleNamespace(timeline=SimpleNamespace(steps=3)),
        device=torch.device("cpu"),
    )
    shown.on_train_start(trainer, stage)
    for step in (1, 2, 3, 4):
        trainer.global_step = step
        shown.on_train_batch_end(trainer, stage, None, None, 0)
    lines = [line.partition(" | ")[0] for line in out.getvalue().splitlines()]
    assert lines == [
        "simple_namespace step 1/about 3",
        "simple_namespace step 2/about 3",
        *(f"simple_namespace step {step}" for step in (3, 4)),
    ]


@pytest.mark.parametrize("width", [80, 100])
def test_a_panel_breaks_no_fact_over_two_lines(width: int) -> None:
    out = io.StringIO()
    moment = Moment(
        stage="pretrain", step=21_000, total=22_000, about=True, elapsed=65, left=185.0, checkpoint=90,
        metrics={**METRICS, "train/grad_norm": 1.2, "perf/memory_gb": 1.0}, on_cpu=True,
    )  # fmt: skip
    Console(file=out, width=width, color_system=None).print(moment.panel(width))
    shown = out.getvalue()
    assert all(len(line.rstrip()) <= width for line in shown.splitlines())
    facts = ("step 21,000 / about 22,000", "0:01:05 gone", "0:03:05 left", "tokens/s 23,457", "data wait 0.3%")
    for fact in (*facts, "of measured peak 41.2%", "ppl prose 33.8", "last checkpoint step 90"):
        assert fact in shown


def test_a_log_gets_plain_lines_and_no_cursor_movement() -> None:
    shown, out = display(terminal=False)
    run(shown, 4, dict(METRICS))
    text = out.getvalue()
    assert "\r" not in text and "\x1b" not in text
    assert len(text.splitlines()) == 5
    assert "checkpoint 2" in text.splitlines()[-1]


def test_a_log_is_not_written_more_often_than_asked() -> None:
    shown, out = display(terminal=False, every_seconds=3600)
    run(shown, 50, dict(METRICS))
    assert len(out.getvalue().splitlines()) == 2  # the first and the last


def test_a_terminal_gets_a_panel_that_closes_after_an_error() -> None:
    shown, out = display(terminal=True)
    run(shown, 3, dict(METRICS))
    assert "\x1b[?25h" in out.getvalue()  # the cursor is shown again
    assert "ppl prose" in out.getvalue() and "23,457" in out.getvalue()
    shown.on_exception(None, None, KeyboardInterrupt())  # type: ignore[arg-type]


def test_only_rank_0_speaks() -> None:
    shown, out = display(terminal=False)
    run(shown, 4, dict(METRICS), rank=1)
    assert out.getvalue() == ""


def test_time_left_is_the_pace_of_the_last_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("lifecycle.callbacks.progress.time.monotonic", lambda: now[0])
    pace = Pace()
    now[0] += 60  # compilation, in the first step
    pace.step_ended()
    assert pace.seconds_left(10) is None
    for _ in range(100):
        now[0] += 0.5
        pace.step_ended()
    assert pace.seconds_left(10) == pytest.approx(5.0)
    assert pace.elapsed == pytest.approx(110.0)


@pytest.mark.parametrize(
    ("seconds", "words"), [(5, "0:00:05"), (3725, "1:02:05"), (172_800, "2 d 0 h"), (90_000, "25:00:00")]
)
def test_clock(seconds: float, words: str) -> None:
    assert clock(seconds) == words
