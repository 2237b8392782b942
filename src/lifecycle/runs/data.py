"""The data of a run: its sources, the length of the run by them, and the data module that makes its steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lifecycle import config
from lifecycle.batch.item_arrays import sequences
from lifecycle.data.corpus import Corpus
from lifecycle.data.mixture.batch_plan import phases_of
from lifecycle.duration import Limits, Timeline
from lifecycle.errors import UserError
from lifecycle.lineage.parent_loss import ParentLoss
from lifecycle.runs.guarded import check_reach
from lifecycle.runs.plan import RunPlan
from lifecycle.runs.resume import begun
from lifecycle.stages.step.next_token import TrainedTokens
from lifecycle.system.say_once import say_read

if TYPE_CHECKING:
    from lifecycle.data.module import DataModule

SHOWN = 200
"""Characters of an example in a message."""


@dataclass(frozen=True, kw_only=True)
class Length:
    """The length of a run. last: the step after which nothing is read; None: it ends with the last row of a source."""

    timeline: Timeline
    last: int | None


def open_corpus(plan: RunPlan) -> Corpus:
    """The sources of the run, under its tokenizer."""
    trained = config.part(plan.config.stage, TrainedTokens)
    return Corpus(
        plan.data,
        view=plan.config.stage.view,
        passes=plan.limits.max_epochs if plan.limits else None,
        train_on=trained.train_on if trained else "assistant",
        seed=plan.config.seed,
        processes=plan.hardware.workers,
        folder=plan.folder.path,
        replay_share=plan.replay_share,
        parent_loss=ParentLoss(plan.parent, plan.hardware) if plan.parent else None,
        begun=begun(plan),
    )


def timeline_of(limits: Limits, corpus: Corpus) -> Timeline:
    """The steps of the run, by its limits and by what a pass over the corpus holds."""
    return limits.timeline(
        lambda: _positions(corpus, limits.sequence_length),
        lambda line: corpus.epoch_tokens(line.steps, phases_of(line.segments)),
    )


def _positions(corpus: Corpus, row_length: int) -> int:
    """Those of a pass over the epoch source. Raises UserError where rows of this length hold nothing to train on."""
    found = corpus.epoch_positions(row_length)
    if found:
        return found
    item = corpus.documents(corpus.epoch_source).next()
    longest = max(sequences(item), key=lambda one: len(one.ids))
    shown = " ".join(corpus.tokenizer.decode(longest.ids, specials=True)[:SHOWN].split())
    first = "" if longest.trained is None else f", the first trained one is number {int(longest.trained.argmax()) + 1}"
    raise UserError(
        f"data.sources.{corpus.epoch_source} has no example that fits into a row of "
        f"stage.sequence_length={row_length} and keeps a trained token (data.long_examples="
        f"{corpus.config.long_examples}). One of {len(longest.ids)} tokens{first}: {shown} ... Raise "
        "stage.sequence_length"
    )


def length_of(limits: Limits, corpus: Corpus) -> Length:
    """How long the run is, and where its data ends."""
    timeline = timeline_of(limits, corpus)
    most = limits.most_steps(timeline)
    until_used_up = corpus.ends_with(limits.max_epochs) and (most is None or timeline.steps < most)
    return Length(timeline=timeline, last=most if until_used_up else timeline.steps)


def load_data(plan: RunPlan) -> tuple[DataModule, Length]:
    """The data of a run that trains, and the length of the run."""
    from lifecycle.data.module import DataModule  # here: it stands on Lightning, and a job opens its corpus without

    assert plan.limits is not None, "a job has no length"
    corpus = open_corpus(plan)
    length = length_of(plan.limits, corpus)
    check_reach(plan.config, plan.parent, length.timeline.steps)
    data = DataModule(
        corpus=corpus,
        steps=length.timeline.steps,
        phases=phases_of(length.timeline.segments),
        last=length.last,
        row_length=plan.limits.sequence_length,
        micro_batch_tokens=plan.hardware.micro_batch_tokens,
        validation_tokens=plan.config.validation.tokens,
        workers=plan.hardware.workers,
    )
    if plan.config.validation.every_steps:
        _say_asked(data)
    return data, length


def _say_asked(data: DataModule) -> None:
    """How many held-out prompts a stage that learns from samples answers: what it takes grows with them."""
    for domain, held in data.held_out.items():
        if held.prompts:
            tokens = sum(len(prompt.ids) for prompt, _ in held.prompts)
            say_read(
                f"held out of '{domain}'",
                f"{len(held.prompts):,} prompts of {tokens:,} tokens, answered at every measurement; fewer: "
                "validation.tokens, or validation_tokens of a source",
            )
