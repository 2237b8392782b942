"""Words that make a command of the pages small: a few steps of a toy model, and rows in place of what only a hub has.

small(["stage=midtrain", "init_from=mine", "run=refined"])  ->  ["stage.max_steps=6", "stage.sequence_length=64", ...]

What the command types stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

STEPS = (
    "stage.max_steps=6",
    "stage.global_batch_tokens=512",
    "stage.sequence_length=64",
    "stage.phases=[]",
    "checkpoint.every_steps=3",
    "validation.every_steps=2",
    "validation.tokens=2000",
    "logging.every_steps=1",
    "hardware.workers=0",
    "hardware.peak_tflops=1",  # nothing is measured at the start
    "hardware.compile=false",
    "hardware.precision=fp32",
)
MODEL = (
    "model.layers=1",
    "model.width=32",
    "model.heads=2",
    "model.kv_heads=1",
    "model.head_dim=16",
    "model.ffn_width=64",
)
JOBS = {
    "generate": ("stage.max_new_tokens=8", "hardware.compile=false", "hardware.precision=fp32"),
    "traces": (
        "stage.max_new_tokens=4",
        "stage.samples=1",
        "data.sources.sums.max_rows=8",
        "hardware.compile=false",
        "hardware.precision=fp32",
    ),
    "analyze": ("stage.processes=1",),
    "prepare": ("stage.processes=1",),
    "tokenizer": ("stage.sample_bytes=20000",),
}
_ANSWERS = (
    "stage.prompts_per_step=2",
    "stage.sequence_length=256",
    "stage.sampling.max_new_tokens=8",
    "stage.preflight.prompts=0",
)
SAMPLED = {
    "grpo": (*_ANSWERS, "stage.samples_per_prompt=2"),
    "ppo": (*_ANSWERS, "stage.samples_per_prompt=2", "stage.updates_per_rollout=2"),
    "rlaif": (*_ANSWERS, "stage.samples_per_prompt=2"),
    "spo": (*_ANSWERS, "stage.chosen_per_step=2", "stage.start_samples=2"),
}
"""In place of positions, for stages whose steps are prompts and their samples."""
RECIPE = ("data.tokenizer.vocab_size=400", "data.tokenizer.max_bytes=50000")
PAPERS = ("data.sources.papers.path.train=papers.jsonl", "data.sources.papers.path.validation=papers.jsonl")
"""In place of hf://, an address that no folder here can have."""
PLANNED = ("dry_run=true", "init_from=null", "model=medium", "model.max_positions=4096")
"""A recipe for an A100: what docs/four_stage.md types to plan a stage without its parent."""


def small(words: Sequence[str]) -> list[str]:
    """What is appended to the words after `lifecycle`."""
    typed = dict(word.split("=", 1) for word in words if "=" in word)
    if not typed or "--cfg" in words:
        return []
    experiment, data = typed.get("experiment", ""), typed.get("data", "python_stdlib")
    added = list(PAPERS if data in ("science", "midtrain/medical") else ())
    if re.fullmatch(r"four_stage/\d\w+", experiment):
        added += PLANNED
    elif experiment.startswith("usmle_2day/"):
        added += ("dry_run=true", "init_from=null")
    elif "dry_run" not in typed:
        stage, goes_on = typed.get("stage", "pretrain"), "init_from" in typed or experiment.startswith("demo/")
        added += JOBS.get(stage, STEPS)
        if stage in ("sft", "reward"):  # a conversation stands whole in a row
            added = [
                "stage.sequence_length=256" if word.startswith("stage.sequence_length=") else word for word in added
            ]
        if stage in SAMPLED:
            sizes = ("stage.global_batch_tokens=", "stage.sequence_length=")
            added = [*(word for word in added if not word.startswith(sizes)), *SAMPLED[stage]]
        if stage not in JOBS and not goes_on and not experiment.startswith("four_stage"):
            added += MODEL
        if data in ("files", "mine", "python_stdlib") and not (
            goes_on or {"data.tokenizer", "data.prepared"} & {*typed}
        ):
            added += RECIPE if stage != "generate" and not experiment.startswith("four_stage") else ()
    if "stage.phases" in typed:  # they say how long rows are, and how many
        added = [
            word for word in added if not word.startswith(("stage.sequence_length=", "stage.global_batch_tokens="))
        ]
    return [word for word in added if word.partition("=")[0] not in typed]
