"""`stage=generate`: prompts in, completions out, by the sampling engine; no data, no training.

    python -m lifecycle stage=generate init_from=outputs/demo stage.prompt='Return the' stage.temperature=0.8
    python -m lifecycle stage=generate init_from=outputs/demo stage.file=prompts.jsonl stage.samples=8 run=answers
    python -m lifecycle stage=generate init_from=outputs/demo stage.file=prompts.jsonl stage.engine=vllm hardware=a100
    cat prompts.txt | python -m lifecycle stage=generate init_from=outputs/demo stage.file=- stage.output=-

    read prompts -> ids (chat template or document) -> an engine -> JSON Lines, or a stream of text

With our own engine the draws of a completion depend on the seed, its prompt's place in the list and its number alone,
so that the same command gives the same text on the same machine. Other prompts beside it may still change a rounding,
and with it a draw that was on the edge; with deterministic=true they cannot.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lifecycle.batch import Rollout
from lifecycle.bounds import Count, NotNegative, PartOrAll, Positive
from lifecycle.errors import UserError
from lifecycle.model import Decoder
from lifecycle.model.huggingface import export
from lifecycle.rollout.display import CompletionDisplay
from lifecycle.rollout.engine import Engine
from lifecycle.rollout.sampling.parameters import Sampling
from lifecycle.rollout.sampling.stop_conditions import read_stops
from lifecycle.rollout.user_prompts import ChatTokenizer, UserPrompt, encode, read_prompts
from lifecycle.rollout.vllm import VllmEngine
from lifecycle.system import atomic

NAME = "completions.jsonl"
TEXT = "text"
"""The view of stages that train on documents: their models continue a text and were taught no turns."""


def generate(
    *,
    model: Decoder,
    tokenizer: ChatTokenizer,
    parent_view: str | None,
    parent_ends: Sequence[int],
    parent_folder: Path | None,
    seed: int,
    deterministic: bool,
    compiled: bool | None,
    folder: Path,
    prompt: str | list[str] | None,
    file: str | None,
    output: str | None,
    chat: bool | Literal["auto"],
    system: str | None,
    max_new_tokens: Count,
    temperature: NotNegative,
    top_k: Count | None,
    top_p: PartOrAll | None,
    min_p: PartOrAll | None,
    repetition_penalty: Positive,
    stop: list[str],
    samples: Count,
    best_of: Count | None,
    best_by: Literal["mean", "sum"],
    engine: Literal["own", "vllm"],
    slots: Count,
    prefill_chunk: Count,
) -> dict[str, Any]:
    """Complete the prompts; what was done, for run.json. The arguments as far as `folder` come from the run.

    parent_view: what the model was last trained on, None for a model from elsewhere. parent_ends: further tokens that
    end a completion. parent_folder: where it lies in Hugging Face's form, None where it does not. compiled: None leaves
    it to the engine. Raises UserError for prompts that cannot be read, are empty or too long, and for settings that do
    not fit.
    """
    prompts = read_prompts(prompt, file)
    turns = _by_template(chat, parent_view, tokenizer)
    named, texts = read_stops(stop, _specials(tokenizer))
    vocab = model.config.vocab
    sampling = Sampling(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop_ids=tuple(dict.fromkeys(i for i in [*tokenizer.end_ids, *parent_ends, *named] if 0 <= i < vocab)),
        stop_strings=tuple(texts),
        banned_ids=tuple(range(tokenizer.vocab_size, vocab)),  # rows that only fill the matrix up
        samples=samples,
        best_of=best_of,
        best_by=best_by,
    )
    ids = encode(prompts, tokenizer, chat=turns, system=system, begin=parent_view is not None)
    openings = [prompt.opening for prompt in prompts]
    shown = (
        CompletionDisplay(sys.stdout, tokenizer, openings, samples=samples, continues=not turns)
        if output is None
        else None
    )
    started = time.perf_counter()
    if engine == "own":
        ours = Engine(
            model, slots=slots, prefill_chunk=prefill_chunk, deterministic=deterministic, compiled=bool(compiled)
        )
        grows = shown.token if shown and best_of is None and sys.stdout.isatty() else None
        rollout = ours.generate(ids, sampling, seed=seed, tokenizer=tokenizer, on_token=grows)
    else:
        if deterministic:
            raise UserError(
                "deterministic=true, but vLLM's draws depend on what is computed beside them: type deterministic=false "
                "or stage.engine=own"
            )
        theirs = _vllm(model, tokenizer, parent_folder, slots=slots, prefill_chunk=prefill_chunk, compiled=compiled)
        rollout = theirs.generate(ids, sampling, seed=seed, tokenizer=tokenizer)
    done = {"prompts": len(prompts), "seconds": round(time.perf_counter() - started, 3), **_mismatch(rollout)}
    done |= _write(_rows(rollout, prompts), output, folder)
    if shown:  # after they are written: a terminal may fail
        shown.rest(rollout.text)
    return done


def _vllm(
    model: Decoder,
    tokenizer: ChatTokenizer,
    folder: Path | None,
    *,
    slots: int,
    prefill_chunk: int,
    compiled: bool | None,
) -> VllmEngine:
    """A model that lies in another form than Hugging Face's (a checkpoint, GGUF) is exported for vLLM to read."""
    with tempfile.TemporaryDirectory(prefix="lifecycle-") as made:
        if folder is None:
            export(model, Path(made), tokenizer=tokenizer)
        return VllmEngine(
            folder or Path(made),
            scorer=model,
            slots=slots,
            prefill_chunk=prefill_chunk,
            compiled=compiled is not False,
        )


def _mismatch(rollout: Rollout) -> dict[str, float]:
    """How far the engine's log-probabilities are from our model's, in nats, also said; nothing where they are ours."""
    found = {f"rollout/mismatch_{key}": value for key, value in rollout.meta.get("mismatch", {}).items()}
    if found:
        print("  ".join(f"{key} {value:.3g}" for key, value in found.items()), file=sys.stderr)
    return found


def _by_template(chat: bool | Literal["auto"], parent_view: str | None, tokenizer: ChatTokenizer) -> bool:
    """Whether a plain prompt is a turn of the user. Every tokenizer trained here has a template, also those of models
    that have seen documents only, so `auto` asks what the model was trained on."""
    if chat != "auto":
        return chat
    return parent_view != TEXT and bool(tokenizer.hf.chat_template)


def _specials(tokenizer: ChatTokenizer) -> dict[int, str]:
    """Names of the special tokens by id."""
    return {int(i): str(token) for i, token in tokenizer.hf.added_tokens_decoder.items() if token.special}


def _rows(rollout: Rollout, prompts: Sequence[UserPrompt]) -> list[dict[str, Any]]:
    """A row of the file for each completion, in the order of the prompts. `tokens`: that exist; `sampled`: of
    those, the ones that the model drew; `logprob`: sum over them under the distribution drawn from, in nats."""
    logprobs, sampled = rollout.logprobs.double().sum(1).tolist(), rollout.sampled.sum(1).tolist()
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
                "tokens": int(rollout.length[n]),
                "sampled": sampled[n],
                "logprob": round(logprobs[n], 6),
                "stop_reason": rollout.stop_reason[n],
            }
        )
    return rows


def _write(rows: Sequence[Mapping[str, Any]], output: str | None, folder: Path) -> dict[str, Any]:
    """The rows as JSON Lines where they were asked for; where that is, and what was written."""
    # escapes, where standard output has no other way to hold a letter
    escaped = output == "-" and codecs.lookup(sys.stdout.encoding or "utf-8").name != "utf-8"
    content = "".join(json.dumps(row, ensure_ascii=escaped) + "\n" for row in rows)
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
