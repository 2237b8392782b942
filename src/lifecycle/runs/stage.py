"""Builds the stage of a run from its config and from facts of the run."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from lifecycle import config
from lifecycle.data.conversation.answered import answered_ids
from lifecycle.data.module import DataModule
from lifecycle.duration import Timeline
from lifecycle.errors import UserError
from lifecycle.lineage.inherit import initial_optimizer
from lifecycle.lineage.parent import Parent
from lifecycle.lineage.run_folder import RunFolder
from lifecycle.lineage.teacher import check_tokenizer
from lifecycle.runs.plan import RunPlan
from lifecycle.runs.resume import Start
from lifecycle.stages.base import Stage
from lifecycle.stages.run.setup import AskedModel, ParentWeights, Setup, TeacherModel
from lifecycle.system.cache import made_cache_folder
from lifecycle.tokenizer.chat import AUTO, ChatTemplate
from lifecycle.tokenizer.tokenizer import Tokenizer, load


def build_stage(plan: RunPlan, data: DataModule, timeline: Timeline, start: Start) -> Stage:
    """The stage that the config names. Only a new run reads its parent's weights and moments; a run that trains an
    adapter reads the weights at every start."""
    parent = plan.parent if start.checkpoint is None else None
    if plan.teacher is not None:
        check_tokenizer(plan.teacher, data.tokenizer)
    setup = Setup(
        timeline=timeline,
        seed=plan.config.seed,
        source_names=data.source_names,
        domains=data.domains,
        validate_every=plan.config.validation.every_steps,
        validation_samples=plan.config.validation.samples,
        log_every=plan.config.logging.every_steps,
        bf16=start.choice.precision == "bf16",
        fp8=plan.hardware.fp8,
        compile=start.choice.compile,
        activation_checkpointing=plan.hardware.activation_checkpointing,
        attention=plan.hardware.attention,
        peak_flops=start.choice.peak_flops,
        read_weights=parent.read if parent else None,
        initial_optimizer=initial_optimizer(plan.config, parent) if parent else None,
        parent=began_with(plan.parent, start.checkpoint) if plan.parent else None,
        adapter=plan.adapter,
        teacher=_teacher(plan.teacher, start.checkpoint) if plan.teacher else None,
        asked={key: _asked(one, key, data.tokenizer, start.checkpoint) for key, one in plan.models.items()},
        tokens=data.tokenizer.vocab_size,
        end_ids=data.tokenizer.end_ids,
        tokenizer=data.tokenizer,
        micro_batch_tokens=plan.hardware.micro_batch_tokens,
        source_rewards=[source.spec.rewards for source in data.sources],
        token_id=data.tokenizer.hf.get_vocab().get,
        folder=plan.folder.path,
    )
    stage: Stage = config.build(_at_rate(plan), model=plan.model.with_vocab(data.tokenizer.vocab_size), setup=setup)
    return stage


def _at_rate(plan: RunPlan) -> DictConfig:
    """The node of the stage; where an adapter is trained, at its rate, which is a multiple of that of all weights."""
    if plan.adapter is None:
        return plan.config.stage
    whole = copy.deepcopy(plan.config)  # a node knows its place by the config around it
    OmegaConf.set_readonly(whole, False)
    whole.stage.optimizer.lr *= plan.adapter.lr_ratio
    return whole.stage


def _teacher(teacher: Parent, checkpoint: str | None) -> TeacherModel:
    weights = began_with(teacher, checkpoint, entry="teacher")
    return TeacherModel(name=teacher.name, config=teacher.model, weights=weights)


def _asked(model: Parent, key: str, ours: Tokenizer, checkpoint: str | None) -> AskedModel:
    assert model.tokenizer is not None
    tokenizer = load(model.tokenizer)
    template = ChatTemplate.of(AUTO, tokenizer.hf)
    own = ChatTemplate.of(AUTO, ours.hf) if ours.hf.chat_template else None
    assert template is not None
    return AskedModel(
        name=model.name,
        config=model.model,
        weights=began_with(model, checkpoint, entry=key),
        tokenizer=tokenizer,
        end_ids=tokenizer.end_ids,
        same_tokens=tokenizer.sha256 == ours.sha256 and own is not None and own.source == template.source,
        of_run=model.run is not None,
        read=partial(answered_ids, tokenizer=tokenizer, template=template),
    )


def began_with(parent: Parent, checkpoint: str | None, *, entry: str = "parent") -> ParentWeights:
    """The parent's weights, refused where the run that goes on from `checkpoint` began with others; None: a new run.
    entry: of run.json that knows their hash."""
    run = RunFolder(Path(checkpoint).resolve().parents[1]) if checkpoint else None

    def sha256() -> str:
        now = parent.sha256()
        known = (run.lineage().get(entry) or {}).get("sha256") if run else None
        if run and known is not None and known != now:
            raise UserError(
                f"run '{run.path}' began with weights of hash {known[:16]}, and {parent.name} has those of hash "
                f"{now[:16]} now; it needs those that it began with: put them back there, or start another run from "
                "what is there now (run=NAME)"
            )
        return now

    def read() -> dict[str, Tensor]:
        if run is not None:  # a new run has nothing to compare with, and files can be large
            sha256()
        return parent.read()

    return ParentWeights(read=read, sha256=sha256, cache=lambda: made_cache_folder() / "reference")
