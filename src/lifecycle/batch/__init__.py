"""The typed records, items and batches through which data and stages exchange everything."""

from lifecycle.batch.feed import DataFeed
from lifecycle.batch.items import Example, Ids, Item, Pair, Prompt, Record
from lifecycle.batch.prompts import PromptBatch
from lifecycle.batch.rollout import Kept, Rollout, StopReason, listed
from lifecycle.batch.sequences import PairBatch, UnpairedBatch
from lifecycle.batch.shared_prompts import first_fit, with_shared_prompts
from lifecycle.batch.steps import IGNORED, Cursor, Micro, MicroBatch, StepBatch, TokenBatch

__all__ = [
    "IGNORED",
    "Cursor",
    "DataFeed",
    "Example",
    "Ids",
    "Item",
    "Kept",
    "Micro",
    "MicroBatch",
    "Pair",
    "PairBatch",
    "Prompt",
    "PromptBatch",
    "Record",
    "Rollout",
    "StepBatch",
    "StopReason",
    "TokenBatch",
    "UnpairedBatch",
    "first_fit",
    "listed",
    "with_shared_prompts",
]
