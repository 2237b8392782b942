"""Laws of one optimizer step: however a step is split, padded or ordered, the weights after it are the same."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from tests.toy import toy
from torch import Tensor
from torch.nn import functional as F

from lifecycle.batch import Cursor, Example, StepBatch, TokenBatch
from lifecycle.data.stream.packing import COLUMNS, Piece, Row, arrays
from lifecycle.duration import Segment, Timeline
from lifecycle.errors import UserError
from lifecycle.losses import token_losses
from lifecycle.model import DocumentMask, ModelConfig, build
from lifecycle.optim import AdamW, Schedule
from lifecycle.stages.pretrain import Pretrain
from lifecycle.stages.run.setup import Setup
from lifecycle.stages.step.optimization import OptimizationKeys

MODEL = toy(width=32, heads=2, kv_heads=1, head_dim=16, ffn_width=64, vocab_size=64, init_std=0.05)
STEPS, LENGTH = 3, 24


# eps: at 1e-8 the first step of a gradient that is all rounding would be as large as any, and two loops that sum in
# other orders would part.
ADAMW = AdamW(lr=1e-2, embedding_lr=None, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-3, grad_clip=1.0)
CONSTANT = Schedule(name="constant", min_ratio=1.0, warmup_steps=0)


def optimization(lr: float = ADAMW.lr or 0.0, *, max_skipped: int = 0, **changed: Any) -> OptimizationKeys:
    """AdamW with some keys changed, at a constant rate; no step is skipped for its norm."""
    optimizer = replace(ADAMW, lr=lr, **changed)
    return OptimizationKeys(optimizer=optimizer, schedule=CONSTANT, max_skipped=max_skipped, max_norm_ratio=None)


class Batches(pl.LightningDataModule):
    """Hand-made steps in the form that the data engine gives: a `DataFeed`. first: the step that it begins with."""

    first = 0

    def __init__(self, steps: Sequence[list[TokenBatch]]) -> None:
        super().__init__()
        self.steps = steps

    def train_dataloader(self) -> Any:
        outer = self

        class Loader:
            def __iter__(self) -> Iterator[StepBatch]:
                for step, micro in list(enumerate(outer.steps))[outer.first :]:
                    yield StepBatch(step=step, micro=micro, cursor=Cursor(step=step + 1, streams={0: {}}))

        return Loader()

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch

    def consumed(self, cursor: Cursor) -> None:
        pass

    def is_last(self, step: int) -> bool:
        return step == len(self.steps)

    def fails_after(self, step: int) -> bool:
        return False

    def row_length_at(self, step: int) -> int:
        return LENGTH

    def usage(self) -> Tensor:
        return torch.zeros(2, 2, dtype=torch.float64)

    def too_long(self, cursor: Cursor) -> Tensor:
        return torch.tensor([[1.0, 4.0], [0.0, 3.0]], dtype=torch.float64)

    def val_dataloader(self) -> Any:
        return {}

    def whole_run(self) -> Iterator[StepBatch]:
        yield from self.train_dataloader()

    def replayed_rows(self, count: int) -> list[TokenBatch]:
        return []

    def replay_share(self) -> float:
        return 0.0

    def set_replay_share(self, share: float) -> int:
        raise NotImplementedError


def documents(step: int) -> list[Piece]:
    generator = torch.Generator().manual_seed(step)
    sizes = [5, 12, 7, 20, 3, 9, 24, 4]
    return [
        Piece(Example(ids=torch.randint(1, 64, (n + 1,), generator=generator).int().numpy()), i % 2)
        for i, n in enumerate(sizes)
    ]


def batch(rows: Sequence[Sequence[Piece]]) -> TokenBatch:
    made = [Row(list(pieces), LENGTH - sum(p.positions for p in pieces)) for pieces in rows]
    return TokenBatch.of(dict(zip(COLUMNS, torch.from_numpy(arrays(made, LENGTH)).long(), strict=True)))


def whole(step: int) -> list[TokenBatch]:
    a, b, c, d, e, f, g, h = documents(step)
    return [batch([[a, b, c], [d, e], [f, h], [g]])]


def split(step: int) -> list[TokenBatch]:
    a, b, c, d, e, f, g, h = documents(step)
    return [batch([[a, b, c]]), batch([[d, e], [f, h]]), batch([[g]])]


def reordered(step: int) -> list[TokenBatch]:
    a, b, c, d, e, f, g, h = documents(step)
    return [batch([[g], [c, b, a]]), batch([[h, f], [e, d]])]


def padded(step: int) -> list[TokenBatch]:
    a, b, c, d, e, f, g, h = documents(step)
    return [batch([[a], [b], [c], [d], [], [e], [f], [h], [g]])]


def stage(
    *,
    max_skipped: int = 0,
    lr: float = 1e-2,
    log_every: int = 1,
    model: ModelConfig = MODEL,
    timeline: Timeline | None = None,
) -> Pretrain:
    return Pretrain(
        model=model,
        optimization=optimization(lr, max_skipped=max_skipped),
        z_loss=1e-4,
        setup=Setup(
            timeline=timeline or Timeline.even(STEPS, rows=1, row_length=LENGTH),
            seed=1,
            source_names=["a", "b"],
            domains={},
            validate_every=None,
            log_every=log_every,
            bf16=False,
            compile=False,
            activation_checkpointing=False,
            attention="auto",
            peak_flops=None,
        ),
    )


class Kept(pl.loggers.Logger):
    """Keeps what is logged."""

    name, version = "kept", ""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[int, dict[str, float]] = {}

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        assert step is not None
        self.rows.setdefault(step, {}).update(metrics)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass


def trainer_of(steps: int, folder: Path, **more: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        default_root_dir=folder,
        **more,
    )


def train(made: Pretrain, steps: Sequence[list[TokenBatch]], folder: Path) -> dict[int, dict[str, float]]:
    logger = Kept()
    trainer = trainer_of(len(steps), folder, logger=logger)
    trainer.fit(made, Batches(steps))
    assert trainer.global_step == len(steps)
    return logger.rows


def weights(made: Pretrain) -> dict[str, Tensor]:
    assert made.model is not None
    return made.model.state_dict()


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], dict[int, dict[str, float]]]:
    made = stage()
    rows = train(made, [whole(s) for s in range(STEPS)], tmp_path_factory.mktemp("reference"))
    return weights(made), rows


@pytest.mark.parametrize("form", [split, reordered, padded])
def test_splitting_ordering_and_padding_never_change_a_step(form: Any, reference: Any, tmp_path: Path) -> None:
    made = stage()
    rows = train(made, [form(s) for s in range(STEPS)], tmp_path)
    torch.testing.assert_close(weights(made), reference[0], rtol=1e-4, atol=2e-5)
    for step, row in reference[1].items():
        assert rows[step]["train/loss"] == pytest.approx(row["train/loss"], rel=1e-5)
        assert rows[step]["train/grad_norm"] == pytest.approx(row["train/grad_norm"], rel=1e-4)


def test_how_often_metrics_are_read_changes_nothing(reference: Any, tmp_path: Path) -> None:
    made = stage(log_every=3)
    rows = train(made, [whole(s) for s in range(STEPS)], tmp_path)
    assert {s: row["train/loss"] for s, row in rows.items()} == {s: r["train/loss"] for s, r in reference[1].items()}
    assert all(torch.equal(value, reference[0][name]) for name, value in weights(made).items())


def test_the_logged_loss_and_gradient_are_those_of_a_plain_loop(reference: Any) -> None:
    model = build(MODEL, seed=1)
    made = whole(0)[0]
    hidden = model(made.input_ids, made.position_ids, DocumentMask.from_ids(made.document_ids, kernel="sdpa"))
    logits = model.logits(hidden).double().flatten(0, 1)
    labels = made.labels.flatten()
    kept = labels != -100
    z = torch.logsumexp(logits[kept], -1).square().sum() * 1e-4
    loss = (F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum") + z) / kept.sum()
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    row = reference[1][1]
    assert row["train/loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert row["train/grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    assert row["train/tokens"] == int(kept.sum()) == row["data/a/tokens"] + row["data/b/tokens"]


def test_a_step_that_is_not_finite_is_skipped_named_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = stage(max_skipped=1)
    poisoned = stage(max_skipped=1)
    train(good, [whole(0), whole(2)], tmp_path)

    original = Pretrain._loss_sum

    def loss_sum(self: Pretrain, batch: TokenBatch, seen: Any) -> Any:
        loss, metrics = original(self, batch, seen)
        return (loss * torch.inf if torch.equal(batch.input_ids, whole(1)[0].input_ids) else loss), metrics

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pretrain, "_loss_sum", loss_sum)
        rows = train(poisoned, [whole(0), whole(1), whole(2)], tmp_path)
    said = capsys.readouterr().err
    assert "step 2 skipped: loss inf" in said and "rows of step 1 of streams 0-0" in said
    assert [rows[s]["train/skipped"] for s in (1, 2, 3)] == [0, 1, 1]
    assert all(torch.equal(value, weights(good)[name]) for name, value in weights(poisoned).items())


def test_past_the_stated_number_of_skipped_steps_the_run_ends(tmp_path: Path) -> None:
    made = stage(max_skipped=0, lr=1e-2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pretrain, "_loss_sum", lambda self, batch, seen: (self.model.norm.weight.sum() * torch.nan, {}))
        with pytest.raises(UserError, match="more than stage.max_skipped=0"):
            train(made, [whole(0)], tmp_path)


def saved(step: int) -> dict[str, Any]:
    """What a stage reads of a checkpoint after `step` steps."""
    skipping = {"skipped": 0, "taken": step, "mean": 1.0}
    facts = {"skipping": skipping, "validation_due": False, "rate_scale": 1.0, "best": None}
    return {"global_step": step, "stage": {**facts, "meter": stage().meter.state()}}


def test_a_stage_that_is_loaded_has_the_base_of_the_last_step_before_any_is_taken() -> None:
    early, late = Segment(step=0, row_length=LENGTH, rows=1), Segment(step=2, row_length=LENGTH, rows=1, rope_theta=5e4)
    for step, theta in ((2, 1e4), (3, 5e4)):
        made = stage(timeline=Timeline(9, (early, late)))
        made.configure_model()
        made.on_load_checkpoint(saved(step))
        assert made.model is not None
        assert made.config.rope_theta == made.model.config.rope_theta == theta


def test_a_run_that_is_told_to_stop_in_its_first_measurement_takes_no_step(tmp_path: Path) -> None:
    class Measured(Batches):
        def val_dataloader(self) -> Any:
            return {"a": whole(0)}

    made = stage()
    made.validation_due = made.stop_asked = True
    trainer = trainer_of(STEPS, tmp_path, logger=False)
    trainer.fit(made, Measured([whole(s) for s in range(STEPS)]))
    assert trainer.global_step == 0 and made.preempted and made.validation_due


def test_a_guard_can_end_a_run_before_its_next_step(tmp_path: Path) -> None:
    class Ends(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
            trainer.should_stop = trainer.global_step == 1

    trainer = trainer_of(STEPS, tmp_path, logger=False, callbacks=[Ends()])
    trainer.fit(stage(), Batches([whole(s) for s in range(STEPS)]))
    assert trainer.global_step == 1


def test_validation_sums_what_token_losses_give() -> None:
    made = stage()
    made.model = build(MODEL, seed=1)
    rows = whole(0)[0]
    seen = DocumentMask.from_ids(rows.document_ids, kernel="sdpa")
    with torch.no_grad():
        sums = made.validation_step((rows, seen), 0)
        hidden = made.model(rows.input_ids, rows.position_ids, seen)
        losses = token_losses(hidden.flatten(0, 1), made.model.head_weight, rows.labels.flatten())
    assert sums.tolist() == pytest.approx([float(losses.sum()), int(rows.trained.sum())])


def test_every_step_says_that_the_weights_changed(tmp_path: Path) -> None:
    made = stage()
    train(made, [whole(s) for s in range(2)], tmp_path)
    assert made.model is not None
    assert made.model.weights_version == 2
    made.load_state_dict({name: value.clone() for name, value in made.state_dict().items()})  # as a resumed run does
    assert made.model.weights_version == 3
