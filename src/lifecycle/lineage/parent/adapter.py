"""A parent that has trained an adapter: its own parent's model with the adapter merged into it, in fp32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from omegaconf import DictConfig
from torch import Tensor

from lifecycle import config
from lifecycle.errors import UserError
from lifecycle.lineage.parent.parent import Parent, trained_with
from lifecycle.lineage.run_folder import RunFolder
from lifecycle.model.adapters import merged, places
from lifecycle.model.config import ModelConfig
from lifecycle.model.huggingface.peft_folder import read_adapter, read_score
from lifecycle.model.layers.initial import ending_in
from lifecycle.model.lora import Adapter, Factors

Find = Callable[[str], Parent]
"""`find_parent`, which finds the parent of a parent too."""


@dataclass(frozen=True, kw_only=True)
class Base:
    """What the adapter of a run sits beside, and how. ends_in_score: the run's model; its parent's need not."""

    parent: Parent
    adapter: Adapter
    run: RunFolder
    sha256: str
    ends_in_score: bool

    @property
    def model(self) -> ModelConfig:
        """Of the run."""
        return replace(self.parent.model, score_head=self.ends_in_score)

    def merged(self, factors: dict[str, Factors], score: Tensor | None) -> dict[str, Tensor]:
        """Its weights with the adapter in them, and with the score that was trained beside it. Raises UserError where
        they are not those it was trained beside."""
        now = self.parent.sha256()
        if now != self.sha256:
            raise UserError(
                f"the adapter of run {self.run.path} belongs to weights of hash {self.sha256[:16]}, and "
                f"{self.parent.name} has those of hash {now[:16]} now: put back there what it was trained beside"
            )
        weights = self.parent.weights if score is None else ending_in(self.parent.weights, score)
        return merged(weights, factors, self.adapter)


def base_of(run: RunFolder, find: Find) -> Base | None:
    """None for a run that trained all weights. Raises UserError where the base is gone."""
    written = run.config() or {}
    node = written.get("adapter")
    if not node:
        return None
    known = run.lineage().get("parent") or {}
    adapter: Adapter = config.build(DictConfig({"adapter": config.literal(node)}).adapter)
    name = f"{known['path']}@{known['step']}" if "step" in known else str(known["path"])
    scored = bool((written.get("model") or {}).get("score_head"))
    return Base(parent=find(name), adapter=adapter, run=run, sha256=str(known["sha256"]), ends_in_score=scored)


def from_adapter(run: RunFolder, asked: str, find: Find) -> Parent:
    """What a finished run left in adapter/."""
    base, folder = base_of(run, find), run.path / "adapter"
    if base is None:
        raise UserError(f"{run.path / 'config.yaml'} says nothing of the adapter in {folder}; get the file again")
    status = run.lineage().get("status")
    if status != "finished":
        raise UserError(
            f"init_from: run {run.path} was started again and is {status}, so {folder} is from before: let it finish "
            f"first, or take one of its checkpoints ({run.path.name}@STEP)"
        )
    trained_with(run, run.path / "tokenizer", asked)
    model, adapter = base.model, base.adapter
    return Parent(
        folder=folder,
        run=run,
        model=model,
        tokenizer=str((run.path / "tokenizer").resolve()),
        name=str(run.path.resolve()),
        read=lambda: base.merged(read_adapter(folder, model, adapter, places(model, adapter)), read_score(folder)),
    )
