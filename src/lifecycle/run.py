"""Entry: compose -> check -> data -> stage -> trainer -> fit.

    python -m lifecycle stage=pretrain model=tiny data=python_stdlib

Exit codes: 0 done; 2 the user's config or data is at fault; 143 after a signal that training met, or SIGTERM; 130 after
Ctrl-C elsewhere; others are crashes.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from hydra.core.hydra_config import HydraConfig
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from lifecycle import config
from lifecycle.callbacks.guard import ForgettingGuard
from lifecycle.callbacks.saving import SaveOnEvents, periodic
from lifecycle.checkpoint import CommittedCheckpointIO, remedies
from lifecycle.data.clean.contamination_report import put_in_order
from lifecycle.data.corpus import Corpus
from lifecycle.data.mixture.plan import phases_of
from lifecycle.data.module import DataModule
from lifecycle.duration import Limits, Timeline, ended_by_config
from lifecycle.errors import DISK_FULL, NO_ACCESS, UserError
from lifecycle.estimate.dry_run import dry_run
from lifecycle.hardware import Hardware
from lifecycle.lineage.inherit import inherit, initial_optimizer, replay_share
from lifecycle.lineage.parent import Parent, adopt_parent
from lifecycle.lineage.parent_loss import ParentLoss
from lifecycle.lineage.retained import check_guard, check_reach, guards
from lifecycle.lineage.revisions import pin
from lifecycle.lineage.run_folder import RunFolder, origin
from lifecycle.lineage.vocabulary import extend_vocabulary
from lifecycle.loggers import CsvLogger
from lifecycle.model import ModelConfig
from lifecycle.runs.begin_end import begin, begin_anew, finished, record_end, reopen, stage_name
from lifecycle.runs.job import replaces_last, run_model_job
from lifecycle.runs.results import finish
from lifecycle.runs.resume import Start, Work, agree, begun
from lifecycle.runs.trainer import build_trainer, check_tasks, world_size
from lifecycle.stages.base import Stage
from lifecycle.stages.setup import Setup
from lifecycle.system.lock import hold
from lifecycle.system.ranks import end_with_rank_0, leave, rank


def run(cfg: DictConfig) -> None:
    """One run of one stage or job, from a composed config. Raises UserError, or SystemExit(143) after SIGTERM."""
    end_with_rank_0()
    config.check(cfg)
    parent = extend_vocabulary(cfg, adopt_parent(cfg))
    inherit(cfg, parent)
    check_guard(cfg, parent)
    if cfg.dry_run:
        dry_run(cfg, parent)
        return
    folder = RunFolder(Path(HydraConfig.get().runtime.output_dir))
    on_model = config.is_model_job(cfg)
    pinned = {} if on_model else pin(cfg, folder)
    if not replaces_last(cfg, folder) and finished(folder, cfg):
        return
    signal.signal(signal.SIGTERM, _leave)
    with _full_disk_said(cfg, folder), hold(folder.path):
        if not on_model:
            begin_anew(folder, cfg)
        before = {} if on_model else reopen(folder)
        try:
            if pinned and rank() == 0:  # before anything is read of them
                folder.update(revisions=pinned)
            if on_model:
                run_model_job(cfg, folder, parent)
            else:
                (_job if config.is_job(cfg) else _train)(cfg, folder, parent)
        except BaseException as error:
            if not on_model:  # which writes its folder at its end: what stands there is the last result
                with contextlib.suppress(OSError):  # a full disk may be what ended it
                    record_end(folder, error, before)
            raise


@contextlib.contextmanager
def _full_disk_said(cfg: DictConfig, folder: RunFolder) -> Iterator[None]:
    """A disk that is full, or may not be written any more, is no crash of ours."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ACCESS:
            raise UserError(
                f"{error.filename or folder.path} cannot be written or read ({error.strerror}); what was saved before "
                "is intact: mend that (permissions? mounted?) and start the same command again"
            ) from error
        if error.errno not in DISK_FULL:
            raise
        kept = cfg.checkpoint
        raise UserError(
            f"no room for {error.filename or folder.path} ({error.strerror}); what was saved before is intact: make "
            "room there and start the same command again. "
            + remedies(folder.checkpoints, keep_last=kept.keep_last, milestones=kept.milestones)
        ) from error


def _train(cfg: DictConfig, folder: RunFolder, parent: Parent | None) -> None:
    limits: Limits = config.build_limits(cfg.stage)
    hardware: Hardware = config.build(cfg.hardware)
    check_tasks(hardware)
    metrics = CsvLogger(folder=folder.path)
    loggers = [metrics, *config.build_loggers(cfg.logger, folder=folder.path)]  # first: one may want a login
    model: ModelConfig = config.build(cfg.model)
    model.check_rows(limits.sequence_length)
    corpus = _corpus(cfg, folder, hardware, parent)
    model = model.with_vocab(corpus.tokenizer.vocab_size)

    def timeline_of(limits: Limits) -> Timeline:
        return limits.timeline(
            lambda: corpus.epoch_positions(limits.sequence_length),
            lambda line: corpus.epoch_tokens(line.steps, phases_of(line.segments)),
        )

    timeline = timeline_of(limits)
    steps, most = timeline.steps, limits.most_steps(timeline)
    until_used_up = corpus.ends_with(limits.max_epochs) and (most is None or steps < most)
    last = most if until_used_up else steps
    check_reach(cfg, parent, steps)
    data = DataModule(
        corpus=corpus,
        steps=steps,
        phases=phases_of(timeline.segments),
        last=last,
        row_length=limits.sequence_length,
        micro_batch_tokens=hardware.micro_batch_tokens,
        validation_tokens=cfg.validation.tokens,
        workers=hardware.workers,
    )
    work = Work(
        steps=steps,
        tokens_per_step=timeline.tokens() // steps // world_size(hardware),
        flops_per_token=model.flops_per_token(limits.sequence_length),
    )
    start = agree(cfg, folder, hardware, work)
    setup = _setup(cfg, timeline, hardware, start, data, parent)
    stage: Stage = config.build(cfg.stage, without=Limits, model=model, setup=setup)
    watching = guards(cfg, folder.path, data, parent)
    trainer = _trainer(cfg, folder, hardware, start, last or -1, loggers, watching)
    if rank() == 0:
        begin(cfg, folder, start, stage, data, parent)
        for line in ended_by_config(limits, config.overrides(), timeline_of):
            print(f"lifecycle: {line}", file=sys.stderr)
        metrics.cut(start.step)
    generation = parent.generation if parent else {}  # now: the parent need not be there at the end
    trainer.fit(stage, data, ckpt_path=start.checkpoint)
    done = data.is_last(stage.global_step)
    finish(
        folder,
        stage,
        data,
        finished=done if stage.guard.restore_step is None else stage.guard.restore_step > 0,
        export_dtype=cfg.export.dtype,
        shard_gb=cfg.export.shard_gb,
        generation=generation,
    )
    fault = data.fault()
    leave()
    if stage.guard.restore_step == 0:
        raise UserError(
            f"the guard ended the run at step {stage.global_step}: it forgets more than guard.stop={cfg.guard.stop:g}, "
            f"and no checkpoint was below: the parent is still the better model ({folder.path / 'forgetting.json'} has "
            "the history). Try more replay (stage.replay.share) or a lower rate (stage.peak_ratio)"
        )
    if fault is not None:
        raise fault
    if not done and stage.guard.restore_step is None:
        if rank() == 0:
            print(f"stopped after step {stage.global_step}, which is saved: the same command goes on", file=sys.stderr)
        raise SystemExit(143)


def _trainer(
    cfg: DictConfig,
    folder: RunFolder,
    hardware: Hardware,
    start: Start,
    steps: int,
    loggers: Sequence[Logger],
    watching: Sequence[ForgettingGuard],
) -> Trainer:
    return build_trainer(
        hardware,
        start.choice,
        total_steps=steps,
        callbacks=[
            *config.build(cfg.callbacks, folder=folder.path),
            *watching,
            SaveOnEvents(folder=folder.checkpoints, every_steps=cfg.checkpoint.every_steps),
            periodic(folder.checkpoints, cfg.checkpoint.every_steps),
        ],
        loggers=loggers,
        writer=CommittedCheckpointIO(keep_last=cfg.checkpoint.keep_last, milestones=tuple(cfg.checkpoint.milestones)),
        deterministic=cfg.deterministic,
    )


def _job(cfg: DictConfig, folder: RunFolder, parent: Parent | None) -> None:
    """A job: a function of the data and the run's folder, run without a Trainer."""
    folder.write_config(config.resolved(cfg))
    folder.update(status="running", stage=stage_name(), **origin())
    started = time.perf_counter()
    data = _corpus(cfg, folder, config.build(cfg.hardware), parent)
    folder.update(**data.files_read())
    result = config.build(cfg.stage, without=config.JOB_ASIDE, data=data, folder=folder.path)
    put_in_order(folder.path)
    folder.update(status="finished", result=result, seconds=round(time.perf_counter() - started, 3))


def _corpus(cfg: DictConfig, folder: RunFolder, hardware: Hardware, parent: Parent | None) -> Corpus:
    return Corpus(
        config.build(cfg.data),
        view=cfg.stage.view,
        seed=cfg.seed,
        processes=hardware.workers,
        folder=folder.path,
        replay_share=replay_share(cfg),
        parent_loss=ParentLoss(parent, hardware) if parent else None,
        begun=begun(cfg, folder),
    )


def _setup(
    cfg: DictConfig,
    timeline: Timeline,
    hardware: Hardware,
    start: Start,
    data: DataModule,
    parent: Parent | None,
) -> Setup:
    return Setup(
        timeline=timeline,
        seed=cfg.seed,
        source_names=data.source_names,
        domains=data.domains,
        validate_every=cfg.validation.every_steps,
        log_every=cfg.logging.every_steps,
        bf16=start.choice.precision == "bf16",
        compile=start.choice.compile,
        activation_checkpointing=hardware.activation_checkpointing,
        attention=hardware.attention,
        peak_flops=start.choice.peak_flops,
        read_weights=parent.read if parent and start.checkpoint is None else None,
        initial_optimizer=initial_optimizer(cfg, parent) if parent and start.checkpoint is None else None,
    )


def _leave(signum: int, frame: FrameType | None) -> None:
    """SIGTERM before the first step: nothing to save yet."""
    raise SystemExit(143)
