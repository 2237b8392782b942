"""How the jobs that sample draw completions: their keys, and the engine that they choose."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lifecycle.batch import Rollout
from lifecycle.bounds import Count, NotNegative, PartOrAll, Positive
from lifecycle.errors import UserError
from lifecycle.model import Decoder
from lifecycle.model.huggingface import export
from lifecycle.rollout.engine import Engine
from lifecycle.rollout.sampling.parameters import Sampling
from lifecycle.rollout.sampling.stop_conditions import read_stops
from lifecycle.rollout.user_prompts import ChatTokenizer
from lifecycle.rollout.vllm import VllmEngine


@dataclass(frozen=True, kw_only=True)
class DrawingKeys:
    """How completions are drawn (`Sampling`). stop: texts, and names of special tokens, that end one."""

    max_new_tokens: Count
    temperature: NotNegative
    top_k: Count | None
    top_p: PartOrAll | None
    min_p: PartOrAll | None
    repetition_penalty: Positive
    stop: list[str]

    def sampling(
        self,
        tokenizer: ChatTokenizer,
        end_ids: Sequence[int],
        vocab: int,
        *,
        samples: int,
        best_of: int | None = None,
        best_by: Literal["mean", "sum"] = "mean",
    ) -> Sampling:
        """For a model of `vocab` tokens, whose completions end at `end_ids` and at the tokenizer's own."""
        named, texts = read_stops(self.stop, _specials(tokenizer))
        return Sampling(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            stop_ids=tuple(dict.fromkeys(i for i in [*tokenizer.end_ids, *end_ids, *named] if 0 <= i < vocab)),
            stop_strings=tuple(texts),
            banned_ids=tuple(range(tokenizer.vocab_size, vocab)),  # embeddings that only fill the matrix up
            samples=samples,
            best_of=best_of,
            best_by=best_by,
        )


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


def _specials(tokenizer: ChatTokenizer) -> dict[int, str]:
    """Names of the special tokens by id."""
    return {int(i): str(token) for i, token in tokenizer.hf.added_tokens_decoder.items() if token.special}
