"""One run of one stage or job, from a composed config:

compose -> check -> plan -> data -> stage -> trainer -> fit -> results

python -m lifecycle stage=pretrain model=tiny data=python_stdlib        exit codes: `__main__.py`

from lifecycle import config                                            the same from Python (docs/python.md)
from lifecycle.run import run
result = run(config.compose(["stage=pretrain", "model=tiny", "data=python_stdlib"]))
"""

from __future__ import annotations

from omegaconf import DictConfig

from lifecycle import config
from lifecycle.runs.at_work import at_work, uncollected
from lifecycle.runs.begin_end import RunResult, begin, is_over, result_of
from lifecycle.runs.data import load_data
from lifecycle.runs.dry_run import dry_run
from lifecycle.runs.guarded import guards
from lifecycle.runs.job import run_job
from lifecycle.runs.plan import RunPlan, make_plan
from lifecycle.runs.resume import agree
from lifecycle.system.ranks import rank


def run(cfg: DictConfig) -> RunResult:
    """Run the stage or job of `cfg`; a run that is finished already does nothing. Numbers in another form (2e9 for a
    whole number) are converted in `cfg`, which is otherwise not changed.

    Raises UserError for faults of the user, FolderLost where another process took over the run's folder, Terminated
    after a SIGTERM and KeyboardInterrupt after a Ctrl-C outside training. A signal during training ends in a result of
    status `stopped`.

    It can be called in any thread, and in several at once (each with a folder of its own, all with one value of
    `deterministic`). Python gives signals to the main thread alone: in another one a run has no handler of SIGTERM and
    Ctrl-C, and where the process ends at one of them, the run ends as by a kill. The process's settings are restored.
    """
    config.check(cfg)
    plan = make_plan(cfg)
    if plan.config.dry_run:
        dry_run(plan)
        return result_of(plan.folder, "planned")
    if is_over(plan):
        return result_of(plan.folder, "finished")
    with at_work(plan):
        if plan.stage is not None:
            return train(plan)
        run_job(plan)
        return result_of(plan.folder, "finished")


def train(plan: RunPlan) -> RunResult:
    """One run of a stage that trains."""
    with uncollected():  # what stands on Lightning: seconds that a fault of the config, a dry run and a job do without
        from lifecycle.callbacks.rollouts import watching_rollouts
        from lifecycle.loggers.csv_logger import CsvLogger
        from lifecycle.runs.answers.asking import answering
        from lifecycle.runs.results import finish
        from lifecycle.runs.stage import build_stage
        from lifecycle.runs.trainer import check_tasks, fit, trainer_of

    check_tasks(plan.hardware)
    metrics = CsvLogger(folder=plan.folder.path)
    loggers = [metrics, *config.build_loggers(plan.config.logger, folder=plan.folder.path)]  # first: a login may fail
    data, length = load_data(plan)
    start = agree(plan, length.timeline, last=length.last, vocab_size=data.tokenizer.vocab_size)
    stage = build_stage(plan, data, length.timeline, start)
    watching = [
        *watching_rollouts(stage, plan.folder.path),
        *guards(plan.config, plan.folder.path, data, plan.parent),
        *answering(plan.config, plan.folder.path, data),
    ]
    trainer = trainer_of(plan, length, start, loggers=loggers, watching=watching)
    if rank() == 0:
        begin(plan, start, stage, data)
        metrics.cut(start.step)
    fit(trainer, stage, data, checkpoint=start.checkpoint)
    return finish(plan, stage, data)
