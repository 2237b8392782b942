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
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from lifecycle.batch import Rollout
from lifecycle.bounds import Count, Keys
from lifecycle.errors import UserError
from lifecycle.jobs.drawing import EngineKeys, drawn_by
from lifecycle.model import Decoder
from lifecycle.rewards.record import Answered
from lifecycle.rollout.display import CompletionDisplay
from lifecycle.rollout.drawing import DrawingKeys
from lifecycle.rollout.environments.named import EnvironmentKeys
from lifecycle.rollout.sampling.parameters import Sampling
from lifecycle.rollout.user_prompts import ChatTokenizer, UserPrompt, encode, read_prompts
from lifecycle.system import atomic, owner

NAME = "completions.jsonl"
TEXT = "text"
"""The view of stages that train on documents: their models continue a text and were taught no turns."""


@dataclass(frozen=True, kw_only=True)
class PromptKeys:
    """What is to be completed: `prompt` or the lines of `file`, as turns of a conversation (`chat`) or as documents.

    chat: `auto` asks what the model was trained on. system: instruction before the conversation.
    """

    prompt: str | list[str] | None
    file: str | None
    chat: bool | Literal["auto"]
    system: str | None


@dataclass(frozen=True, kw_only=True)
class SamplesKeys:
    """How many completions a prompt gets, and of how many that are drawn for each."""

    samples: Count
    best_of: Count | None
    best_by: Literal["mean", "sum"]


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
    prompts: Keys[PromptKeys],
    drawing: Keys[DrawingKeys],
    several: Keys[SamplesKeys],
    engine: Keys[EngineKeys],
    environment: EnvironmentKeys,
    output: str | None,
) -> dict[str, Any]:
    """Complete the prompts; what was done, for run.json. The arguments as far as `folder` come from the run.

    parent_view: what the model was last trained on, None for a model from elsewhere. parent_ends: further tokens that
    end a completion. parent_folder: where the model lies in Hugging Face's form, None where it does not. compiled: None
    leaves it to the engine. environment: what answers calls. output: where completions go, see
    conf/stage/generate.yaml. Raises UserError for prompts that cannot be read, are empty or too long, and for settings
    that do not fit.
    """
    asked = read_prompts(prompts.prompt, prompts.file)
    turns = _by_template(prompts.chat, parent_view, tokenizer)
    settings = drawing.sampling(
        tokenizer,
        parent_ends,
        model.config.vocab,
        samples=several.samples,
        best_of=several.best_of,
        best_by=several.best_by,
    )
    _check(environment, engine)
    ids = encode(asked, tokenizer, chat=turns, system=prompts.system, begin=parent_view is not None)
    shown = _display(asked, tokenizer, settings, continues=not turns) if output is None else None
    started = time.perf_counter()
    draw = drawn_by(model, tokenizer, parent_folder, engine, deterministic=deterministic, compiled=compiled)
    if engine.engine == "own" and shown and settings.best_of is None and sys.stdout.isatty():
        draw = partial(draw, on_token=shown.token)  # as they grow, where all that are drawn are kept
    if environment.name is not None:
        draw = partial(draw, environments=environment.of([Answered(prompt=p.opening) for p in asked], tokenizer))
    rollout = draw(ids, settings, seed=seed, tokenizer=tokenizer)
    done = {"prompts": len(asked), "seconds": round(time.perf_counter() - started, 3), **_mismatch(rollout)}
    done |= _write(_rows(rollout, asked), output, folder)
    if shown:  # after they are written: a terminal may fail
        shown.rest(rollout.text)
    return done


def _check(environment: EnvironmentKeys, engine: EngineKeys) -> None:
    environment.check()
    if environment.name is not None and engine.engine != "own":
        raise UserError(
            f"stage.environment.name is {environment.name}, and vLLM asks no environment: type stage.engine=own"
        )


def _display(
    asked: Sequence[UserPrompt], tokenizer: ChatTokenizer, sampling: Sampling, *, continues: bool
) -> CompletionDisplay:
    openings = [prompt.opening for prompt in asked]
    return CompletionDisplay(sys.stdout, tokenizer, openings, samples=sampling.samples, continues=continues)


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


def _rows(rollout: Rollout, prompts: Sequence[UserPrompt]) -> list[dict[str, Any]]:
    """A row of the file for each completion, in the order of the prompts. `tokens`: that exist; `sampled`: of
    those, the ones that the model drew; `logprob`: sum over them under the distribution drawn from, in nats; `calls`:
    of an environment, and how many of them failed."""
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
        if rollout.dialogues is not None:
            rows[-1] |= {"calls": rollout.dialogues[n].calls, "calls_failed": rollout.dialogues[n].failed}
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
        owner.check(folder)
        (folder / NAME).unlink(missing_ok=True)  # of the call before, whose run.json goes too
    if output == "-":
        sys.stdout.write(content)
        return done
    path = folder / NAME if output is None else Path(output).expanduser().resolve()
    atomic.write(path, content)
    return done | {"file": str(path)}
