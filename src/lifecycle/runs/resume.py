"""The start of a run: from which checkpoint, in which precision, compiled or not. Rank 0 decides for all ranks.

What the machine chose is written into config.yaml in the place of `auto`, and kept on resume.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lifecycle import config
from lifecycle.checkpoint import last_good, list_committed, prune, step_of, verify
from lifecycle.data.read.begun import Begun
from lifecycle.duration import Timeline
from lifecycle.errors import Refusal, UserError
from lifecycle.hardware import Choice, choose, probe
from lifecycle.lineage.run_folder import RunFolder
from lifecycle.runs.plan import RunPlan
from lifecycle.system.ranks import rank, receive_from_rank_0, send_to_ranks


@dataclass(frozen=True, kw_only=True)
class Start:
    """choice: precision, compilation. checkpoint: the folder to resume from; None for a new run. damaged: a line for
    each newer checkpoint that did not verify and was skipped."""

    choice: Choice
    checkpoint: str | None
    damaged: list[str]

    @property
    def step(self) -> int:
        """Steps already taken."""
        return step_of(Path(self.checkpoint)) or 0 if self.checkpoint else 0

    def facts(self) -> dict[str, Any]:
        """For run.json."""
        return asdict(self.choice)

    def lines(self) -> list[str]:
        """Lines that tell the user about the start."""
        begun = [f"going on from {self.checkpoint}"] if self.checkpoint else []
        passed_over = [f"passed over: {line}" for line in self.damaged]
        return [*passed_over, *begun, *self.choice.reasons]


def begun(plan: RunPlan) -> Begun | None:
    """What the run began with, if this start resumes it: from its checkpoints (or those of the run that `resume`
    names), or from its shards. None for a new run."""
    folder, resume = plan.folder, plan.config.resume
    run = RunFolder(Path(resume).expanduser().parents[1]) if resume not in ("auto", "never") else folder
    if steps := [step_of(path) or 0 for path in list_committed(run.checkpoints)]:
        return Begun.of(run.path, step=max(steps), tokenizer=run.lineage().get("tokenizer"))
    if (folder.path / "prepared").is_dir() and (folder.path / "tokenizer").is_dir():
        return Begun(folder=folder.path, step=None, tokenizer=None, data=None)
    return None


def agree(plan: RunPlan, timeline: Timeline, *, last: int | None, vocab_size: int) -> Start:
    """Rank 0 decides, writes config.yaml and sends the decision to the other ranks of the launch. Raises Refusal for a
    run that is already beyond its end: `last`, its last step (None: not known), or after fewer passes than it began
    with what `timeline` estimates."""
    folder, hardware = plan.folder, plan.hardware
    note = folder.path / ".start.json"
    if rank() != 0:
        found = receive_from_rank_0(note)
        choice = Choice(**{**found["choice"], "reasons": tuple(found["choice"]["reasons"])})
        return Start(choice=choice, checkpoint=found["checkpoint"], damaged=found["damaged"])
    before = (folder.config() or {}).get("hardware", {})
    begun = {key: before[key] for key in ("precision", "compile") if before.get(key, "auto") != "auto"}
    choice = choose(hardware, probe(hardware.device_type()), begun=begun, **_work(plan, timeline, vocab_size))
    checkpoint, damaged = _checkpoint(plan.config.resume, folder)
    start = Start(choice=choice, checkpoint=str(checkpoint) if checkpoint else None, damaged=damaged)
    end = timeline.steps if _fewer_passes(plan) else last
    if end is not None and start.step > end:
        raise Refusal(
            f"run '{folder.path}' stands at step {start.step:,}, beyond the {end:,} that it is to end with: raise its "
            "limit (stage.max_steps, max_tokens, max_epochs), or start another run from one of its checkpoints "
            f"(init_from={folder.path.name}@STEP run=NAME)"
        )
    if checkpoint:  # verified: what is over a retention that is less than it was goes now, a full disk may wait for it
        kept = plan.config.checkpoint
        prune(folder.checkpoints, keep_last=kept.keep_last, milestones=kept.milestones, written=start.step)
    plain = config.resolved(plan.config)
    plain["hardware"] |= {"precision": choice.precision, "compile": choice.compile}
    folder.write_config(plain)
    send_to_ranks(asdict(start), note)
    return start


def _fewer_passes(plan: RunPlan) -> bool:
    """Whether the run began with more passes over its data than it is to take now."""
    assert plan.limits is not None
    then = ((plan.folder.config() or {}).get("stage") or {}).get("max_epochs")
    return then is not None and plan.limits.max_epochs is not None and plan.limits.max_epochs < then


def _work(plan: RunPlan, timeline: Timeline, vocab_size: int) -> dict[str, Any]:
    """How much one device has to do: a short run is not worth a compilation."""
    assert plan.limits is not None
    model = plan.model.with_vocab(vocab_size)
    return {
        "steps": timeline.steps,
        "tokens_per_step": timeline.tokens() // timeline.steps // plan.hardware.world_size(),
        "flops_per_token": model.flops_per_token(plan.limits.sequence_length),
        "samples": plan.limits.prompts_per_step is not None,
    }


def _checkpoint(resume: str, folder: RunFolder) -> tuple[Path | None, list[str]]:
    damaged: list[str] = []
    if resume == "auto":
        return last_good(folder.checkpoints, warn=damaged.append), damaged
    if resume == "never":
        if list_committed(folder.checkpoints):
            raise UserError(
                f"resume=never, but {folder.checkpoints} holds checkpoints of an earlier run: choose another run=NAME, "
                "delete the folder, or go on with resume=auto"
            )
        return None, damaged
    path = Path(resume).expanduser()
    if not path.is_dir():
        raise UserError(
            f"resume={resume} is no checkpoint folder; wanted auto, never, or a path such as "
            f"outputs/RUN/checkpoints/step-00000100"
        )
    verify(path)
    return path, damaged
