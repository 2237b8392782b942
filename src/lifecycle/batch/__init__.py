"""The typed records, items and batches through which data and stages exchange everything."""

from lifecycle.batch.feed import DataFeed
from lifecycle.batch.items import KEPT, TRAINED_FROM, TURNS, Example, Ids, Item, Pair, Prompt, Record, positions
from lifecycle.batch.prompts import PromptBatch
from lifecycle.batch.rollout import Dialogue, Kept, Rollout, StopReason, listed
from lifecycle.batch.samples import SampleBatch
from lifecycle.batch.sequences import PairBatch, Places, UnpairedBatch
from lifecycle.batch.shared_prompts import PADDING, WIDTHS, first_fit, with_shared_prompts
from lifecycle.batch.steps import IGNORED, Cursor, Micro, MicroBatch, StepBatch, TokenBatch

__all__ = [
    "IGNORED",
    "KEPT",
    "PADDING",
    "TRAINED_FROM",
    "TURNS",
    "WIDTHS",
    "Cursor",
    "DataFeed",
    "Dialogue",
    "Example",
    "Ids",
    "Item",
    "Kept",
    "Micro",
    "MicroBatch",
    "Pair",
    "PairBatch",
    "Prompt",
    "Places",
    "PromptBatch",
    "Record",
    "Rollout",
    "SampleBatch",
    "StepBatch",
    "StopReason",
    "TokenBatch",
    "UnpairedBatch",
    "first_fit",
    "listed",
    "positions",
    "with_shared_prompts",
]
