"""The stage of a run, with what the run knows and its config does not say."""

from __future__ import annotations

from lifecycle import config
from lifecycle.data.module import DataModule
from lifecycle.duration import Timeline
from lifecycle.lineage.inherit import initial_optimizer
from lifecycle.runs.plan import RunPlan
from lifecycle.runs.resume import Start
from lifecycle.stages.base import Stage
from lifecycle.stages.setup import Setup


def build_stage(plan: RunPlan, data: DataModule, timeline: Timeline, start: Start) -> Stage:
    """The stage that the config names. A parent's weights and moments are read by a new run alone."""
    parent = plan.parent if start.checkpoint is None else None
    setup = Setup(
        timeline=timeline,
        seed=plan.config.seed,
        source_names=data.source_names,
        domains=data.domains,
        validate_every=plan.config.validation.every_steps,
        log_every=plan.config.logging.every_steps,
        bf16=start.choice.precision == "bf16",
        compile=start.choice.compile,
        activation_checkpointing=plan.hardware.activation_checkpointing,
        attention=plan.hardware.attention,
        peak_flops=start.choice.peak_flops,
        read_weights=parent.read if parent else None,
        initial_optimizer=initial_optimizer(plan.config, parent) if parent else None,
    )
    stage: Stage = config.build(plan.config.stage, model=plan.model.with_vocab(data.tokenizer.vocab_size), setup=setup)
    return stage
