"""`stage=generate`: prompts in, completions out, by the sampling engine; no data, no training.

    python -m lifecycle stage=generate init_from=outputs/demo stage.prompt='Return the' stage.temperature=0.8
    python -m lifecycle stage=generate init_from=outputs/demo stage.file=prompts.jsonl stage.samples=8 run=answers
    cat prompts.txt | python -m lifecycle stage=generate init_from=outputs/demo stage.file=- stage.output=-

    read prompts -> ids (chat template or document) -> rollout.generate -> JSON Lines, or a stream of text

A completion depends on the seed, its prompt's place in the list and its number, on nothing else: the same command gives
the same text, however many prompts stand beside it.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lifecycle import atomic
from lifecycle.batch import Rollout
from lifecycle.model import Decoder
from lifecycle.rollout import engine
from lifecycle.rollout.prompts import ChatTokenizer, Prompt, encode, end_ids, read_prompts
from lifecycle.rollout.sampling import Sampling
from lifecycle.rollout.stream import Stream

NAME = "completions.jsonl"
TEXT = "text"
"""The view of stages that train on documents: their models continue a text and were taught no turns."""


def generate(
    *,
    model: Decoder,
    tokenizer: ChatTokenizer,
    parent_view: str | None,
    seed: int,
    deterministic: bool,
    folder: Path,
    prompt: str | list[str] | None,
    file: str | None,
    output: str | None,
    chat: bool | Literal["auto"],
    system: str | None,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    repetition_penalty: float,
    stop: list[str],
    samples: int,
    best_of: int | None,
    best_by: Literal["mean", "sum"],
    slots: int,
) -> dict[str, Any]:
    """Complete the prompts; what was done, for run.json. The first six arguments come from the run.

    parent_view: what the model was last trained on, None for a model from elsewhere. Raises UserError for prompts that
    cannot be read, are empty or too long, and for sampling settings that do not fit.
    """
    prompts = read_prompts(prompt, file)
    turns = _by_template(chat, parent_view, tokenizer)
    sampling = Sampling(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop_ids=end_ids(tokenizer),
        stop_strings=tuple(stop),
        banned_ids=tuple(range(tokenizer.vocab_size, model.config.vocab)),  # rows that only fill the matrix up
        samples=samples,
        best_of=best_of,
        best_by=best_by,
    )
    ids = encode(prompts, tokenizer, chat=turns, system=system, begin=parent_view is not None)
    openings = [prompt.opening for prompt in prompts]
    shown = Stream(sys.stdout, tokenizer, openings, samples=samples, continues=not turns) if output is None else None
    started = time.perf_counter()
    rollout = engine.generate(
        model,
        ids,
        sampling,
        seed=seed,
        tokenizer=tokenizer,
        slots=slots,
        deterministic=deterministic,
        on_token=shown.token if shown and best_of is None and sys.stdout.isatty() else None,
    )
    if shown:
        shown.rest(rollout.text)
    done = {"prompts": len(prompts), "seconds": round(time.perf_counter() - started, 3)}
    return done | _write(_rows(rollout, prompts), output, folder)


def _by_template(chat: bool | Literal["auto"], parent_view: str | None, tokenizer: ChatTokenizer) -> bool:
    """Whether a plain prompt is a turn of the user. Every tokenizer trained here has a template, also those of models
    that have seen documents only, so `auto` asks what the model was trained on."""
    if chat != "auto":
        return chat
    return parent_view != TEXT and bool(tokenizer.hf.chat_template)


def _rows(rollout: Rollout, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
    """A row of the file for each completion, in the order of the prompts. `logprob`: sum over its tokens under the
    distribution that was sampled from, in nats."""
    logprobs = (rollout.logprobs.double() * rollout.mask).sum(1).tolist()
    lengths = rollout.mask.sum(1).tolist()
    rows = []
    for n, (number, sample) in enumerate(zip(rollout.prompt_id, rollout.sample, strict=True)):
        prompt = prompts[int(number)]
        asked = {"prompt": prompt.text} if prompt.text is not None else {"messages": list(prompt.messages)}
        rows.append(
            {
                "id": prompt.id,
                "sample": int(sample),
                **asked,
                "completion": rollout.text[n],
                "tokens": int(lengths[n]),
                "logprob": round(logprobs[n], 6),
                "stop_reason": rollout.stop_reason[n],
            }
        )
    return rows


def _write(rows: Sequence[Mapping[str, Any]], output: str | None, folder: Path) -> dict[str, Any]:
    """The rows as JSON Lines where they were asked for; where that is, and what was written."""
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    done = {
        "completions": len(rows),
        "tokens": sum(row["tokens"] for row in rows),
        "stopped": dict(Counter(row["stop_reason"] for row in rows)),
        "sha256": hashlib.sha256(content.encode()).hexdigest(),
    }
    if output is not None:
        (folder / NAME).unlink(missing_ok=True)  # of the call before, whose run.json goes too
    if output == "-":
        sys.stdout.write(content)
        return done
    path = folder / NAME if output is None else Path(output).expanduser().resolve()
    atomic.write(path, content)
    return done | {"file": str(path)}
