"""Conversations that the benchmarks of fine-tuning train on: a question, a better and a worse answer, of many lengths.

Each is a part of a long sequence, of words or of token ids; lengths are log-uniform, as those of real ones are skewed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
Range = tuple[int, int]

ASKED: Range = (10, 60)
ANSWERED: Range = (20, 180)


def conversations(
    words: Sequence[T], count: int, *, asked: Range = ASKED, answered: Range = ANSWERED
) -> Iterator[tuple[Sequence[T], Sequence[T], Sequence[T]]]:
    """`count` times a question and two answers to it, the same in every process."""
    draw = random.Random(0)

    def some(least: int, most: int) -> Sequence[T]:
        size = int(least * (most / least) ** draw.random())
        start = draw.randrange(len(words) - size)
        return words[start : start + size]

    for _ in range(count):
        yield some(*asked), some(*answered), some(*answered)


def trainer_keys(folder: str, steps: int, size: int) -> dict[str, Any]:
    """Arguments of TRL's configs that every measured run of its trainers has. size: of a batch."""
    return dict(
        output_dir=folder,
        per_device_train_batch_size=size,
        max_steps=steps,
        max_grad_norm=1.0,
        logging_steps=1000,
        save_strategy="no",
        report_to=[],
        optim="adamw_torch_fused",
        disable_tqdm=True,
        gradient_checkpointing=False,
        seed=0,
    )


def counting(collate: Callable[[Any], Any], counts: list[tuple[int, int]]) -> Callable[[Any], Any]:
    """The collator, which notes of each batch its tokens without padding, and those with a label."""

    def counted(rows: Any) -> Any:
        batch = collate(rows)
        ids, mask = batch["input_ids"], batch.get("attention_mask")
        present = ids.numel() if mask is None else int(mask.sum())
        trained = (batch["labels"] != -100) if "labels" in batch else batch["completion_mask"]
        counts.append((present, int(trained.sum())))
        return batch

    return counted
