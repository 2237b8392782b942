"""Kept samples as a run leaves them, written by hand."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lifecycle.tokenizer.tokenizer import train_bpe

TOKENIZER = train_bpe(["an answer to a question of a step " * 5] * 9, vocab_size=300, digits=1)

HOSTILE = "<script>alert(1)</script></pre></article><img src=x onerror='alert(2)'> \u202eturned\x00 & é"


def sample(step: int, place: int, number: int, reward: float, **changes: Any) -> dict[str, Any]:
    """A row of a file: of the prompt at `place`, which has the same record in every step."""
    said = changes.pop("completion", f"answer {number} of step {step}")
    ids = TOKENIZER.encode_batch([said])[0].tolist()
    return {
        "step": step,
        "place": place,
        "source": "questions",
        "id": f"questions:{place}",
        "prompt": f"Question {place}?",
        "answer": "B",
        "sample": number,
        "seed": 1,
        "completion": said,
        "stop_reason": "stop_id",
        "reward": reward,
        "advantage": reward - 0.5,
        "rewards": {"choice": reward, "length": float("nan")},
        "prompt_ids": [1],
        "token_ids": ids,
        "trained": [True] * len(ids),
        "logprobs": [-0.5] * len(ids),
        "full_logprobs": [-0.5] * len(ids),
        "entropy": [0.5] * len(ids),
        "kept_counts": [0] * len(ids),
        "kept_ids": [],
        **changes,
    }


def write(folder: Path, step: int, rows: Sequence[dict[str, Any]], *, rank: str = "") -> None:
    """One file of a run, with the tokenizer beside it."""
    (folder / "rollouts").mkdir(parents=True, exist_ok=True)
    TOKENIZER.save(folder / "tokenizer")
    pq.write_table(pa.Table.from_pylist(list(rows)), folder / f"rollouts/step-{step:08d}{rank}.parquet")


def write_answers(folder: Path, lines: Sequence[tuple[int, str, str, bool]]) -> None:
    """answers.jsonl of (step, prompt, completion, right)."""
    rows = [
        {"step": step, "domain": "held", "prompt": asked, "completion": said, "reference": "B", "tokens": 3}
        | {"stopped": True, "well_formed": True, "right": right}
        for step, asked, said, right in lines
    ]
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
