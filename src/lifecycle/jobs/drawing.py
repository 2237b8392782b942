"""The engine that the jobs which sample choose."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lifecycle.batch import Rollout
from lifecycle.bounds import Count
from lifecycle.errors import UserError
from lifecycle.model import Decoder
from lifecycle.model.huggingface import export
from lifecycle.rollout.engine import Engine
from lifecycle.rollout.user_prompts import ChatTokenizer
from lifecycle.rollout.vllm import VllmEngine


@dataclass(frozen=True, kw_only=True)
class EngineKeys:
    """What computes them. slots: sequences at a time. prefill_chunk: tokens of prompts in one forward pass."""

    engine: Literal["own", "vllm"]
    slots: Count
    prefill_chunk: Count


def drawn_by(
    model: Decoder,
    tokenizer: ChatTokenizer,
    folder: Path | None,
    keys: EngineKeys,
    *,
    deterministic: bool,
    compiled: bool | None,
) -> Callable[..., Rollout]:
    """The `generate` of the engine that the keys choose. folder: of the model in Hugging Face's form; one that is not
    (a checkpoint, GGUF) is exported for vLLM to read.

    Raises UserError for deterministic=true with vLLM.
    """
    if keys.engine == "own":
        return Engine(
            model,
            slots=keys.slots,
            prefill_chunk=keys.prefill_chunk,
            deterministic=deterministic,
            compiled=bool(compiled),
        ).generate
    if deterministic:
        raise UserError(
            "deterministic=true, but vLLM's draws depend on what is computed beside them: type deterministic=false "
            "or stage.engine=own"
        )
    with tempfile.TemporaryDirectory(prefix="lifecycle-") as made:
        if folder is None:
            export(model, Path(made), tokenizer=tokenizer)
        return VllmEngine(
            folder or Path(made),
            scorer=model,
            slots=keys.slots,
            prefill_chunk=keys.prefill_chunk,
            compiled=compiled is not False,
        ).generate
