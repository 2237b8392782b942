"""What a guard decided and the best validation, from one process of a run to the next."""

from lifecycle.stages.step.watched import Best, GuardState


def test_decisions_go_on_and_measurements_are_given_once() -> None:
    first = GuardState(lr_scale=0.25, restore_step=0, safe_at=8)
    first.measured.append((8, {"valid/a/perplexity": 2.0}))
    assert first.take_measurements() == [(8, {"valid/a/perplexity": 2.0})] and first.take_measurements() == []
    second = GuardState()
    second.restore(first.state())
    assert (second.lr_scale, second.restore_step, second.safe_at) == (0.25, 0, None)
    second.restore({"rate_scale": 0.5})  # of a version without an end by the guard
    assert (second.lr_scale, second.restore_step) == (0.5, None)


def test_the_best_is_the_first_of_the_least_losses_behind_a_step() -> None:
    best = Best()
    assert best.state() is None
    for step, loss in ((0, 1.0), (4, 3.0), (8, 2.0), (12, 2.0), (16, float("nan"))):
        best.note(step, loss)
    assert best.state() == [2.0, 8] and best.improved_at == 8
    again = Best()
    again.restore(best.state())
    assert (again.loss, again.step, again.improved_at) == (2.0, 8, None)  # its checkpoint is marked already
    again.restore(None)
    assert again.step == 8
