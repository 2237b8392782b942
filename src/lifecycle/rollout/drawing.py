"""How completions are drawn, as users write it: keys of the jobs and stages that sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lifecycle.bounds import Count, NotNegative, PartOrAll, Positive
from lifecycle.rollout.sampling.parameters import Sampling
from lifecycle.rollout.sampling.stop_conditions import read_stops
from lifecycle.rollout.user_prompts import ChatTokenizer


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


def _specials(tokenizer: ChatTokenizer) -> dict[int, str]:
    """Names of the special tokens by id."""
    return {int(i): str(token) for i, token in tokenizer.hf.added_tokens_decoder.items() if token.special}
