"""`stage=traces`: a model answers prompts whose answer is known, and what a verifier accepts is kept to learn from.

    python -m lifecycle stage=traces init_from=TEACHER data=files data.sources.mine.path=problems.jsonl run=traces
    python -m lifecycle stage=distill_reason init_from=STUDENT data=files data.sources.mine.path=PATH

    training rows -> prompts, each once -> `samples` completions -> whole and right ones, no two equal -> `keep` of them

PATH: outputs/traces/traces.jsonl, conversations (`messages`). Prompts are sampled in parts, and each finished part is
saved: the same command goes on behind the last of them, and ends with the same bytes, since the draws depend on the
seed, the number of the prompt and that of the sample, and the prompts that are computed together are those of a part.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from lifecycle.batch import Rollout
from lifecycle.bounds import Count, Keys
from lifecycle.data.corpus import Corpus
from lifecycle.errors import UserError
from lifecycle.jobs.asked import Asked, known_prompts
from lifecycle.jobs.drawing import EngineKeys, drawn_by
from lifecycle.lineage.run_folder import RunFolder
from lifecycle.model import Decoder
from lifecycle.rewards.graded import GradingKeys, Rewards
from lifecycle.rewards.graders import READ_OF_META, GraderName
from lifecycle.rewards.record import Answered
from lifecycle.rewards.stated import THOUGHTS_BEGIN
from lifecycle.rollout.drawing import DrawingKeys
from lifecycle.runs.answers.given import is_well_formed
from lifecycle.system import atomic, owner
from lifecycle.system.foreign import read_object
from lifecycle.tokenizer.tokenizer import Tokenizer

NAME = "traces.jsonl"
SAID_EVERY = 10.0
"""Seconds between two lines about how far it is."""


@dataclass(frozen=True, kw_only=True)
class KeepKeys:
    """Which completions are kept: at most `keep` of the `samples` of a prompt, which the grader `verifier` gives its
    highest mark; grading: how it runs. system: instruction before each conversation, which the traces do not hold.
    part_prompts: prompts that are sampled together, and saved."""

    verifier: GraderName
    grading: GradingKeys
    samples: Count
    keep: Count
    system: str | None
    part_prompts: Count


def traces(
    *,
    model: Decoder,
    data: Corpus,
    parent_ends: Sequence[int],
    parent_folder: Path | None,
    parent_sha256: str | None,
    seed: int,
    deterministic: bool,
    compiled: bool | None,
    folder: Path,
    kept: Keys[KeepKeys],
    drawing: Keys[DrawingKeys],
    engine: Keys[EngineKeys],
) -> dict[str, Any]:
    """Sample, verify and write the traces; their counts. The arguments as far as `folder` come from the run.

    Raises UserError where no prompt has a known answer, and for a folder with traces of another teacher or of other
    prompts.
    """
    prompts, counts = known_prompts(data, grader=kept.verifier, room=model.config.max_positions, system=kept.system)
    settings = drawing.sampling(data.tokenizer, parent_ends, model.config.vocab, samples=kept.samples)
    made_by = _made_by(model, parent_sha256, prompts)
    written = Written.begin(folder, made_by, counts)
    parts = [prompts[at : at + kept.part_prompts] for at in range(0, len(prompts), kept.part_prompts)]
    if written.parts < len(parts):
        draw = drawn_by(model, data.tokenizer, parent_folder, engine, deterministic=deterministic, compiled=compiled)
        said = Progress(prompts=len(prompts), parts=len(parts), before=written.parts)
        with Rewards({kept.verifier: 1.0}, by_source={}, grading=kept.grading) as rewards:
            while written.parts < len(parts):
                part, first = parts[written.parts], written.parts * kept.part_prompts
                ids, numbers = [one.ids for one in part], list(range(first, first + len(part)))
                rollout = draw(ids, settings, seed=seed, tokenizer=data.tokenizer, prompt_ids=numbers)
                written.add(*_accepted(part, rollout, kept, data.tokenizer, rewards))
                said.say(written)
    return written.end()


def _made_by(model: Decoder, sha256: str | None, prompts: Sequence[Asked]) -> dict[str, str | None]:
    """What the traces depend on beside the config, by what to call it."""
    asked = repr([(one.ids, one.answer, *_judged_by(one)) for one in prompts])
    return {
        "the teacher's files": sha256,
        "the precision of its weights": str(model.head_weight.dtype),
        "the prompts": hashlib.sha256(asked.encode()).hexdigest(),
    }


def _judged_by(one: Asked) -> list[tuple[str, Any]]:
    """What a verifier reads of a prompt beside the answer, such as the tests of a program, which need not be shown."""
    return [(name, one.meta[name]) for name in READ_OF_META if name in one.meta]


def _accepted(
    part: Sequence[Asked], rollout: Rollout, kept: KeepKeys, tokenizer: Tokenizer, rewards: Rewards
) -> tuple[list[dict[str, Any]], dict[str, Counter[str]]]:
    """The traces of some prompts, and what became of every completion, by source."""
    texts = [_whole(part[at // kept.samples], rollout, at, tokenizer) for at in range(len(part) * kept.samples)]
    marks = iter(_marks(part, texts, kept, tokenizer, rewards))
    rows, counts = list[dict[str, Any]](), dict[str, Counter[str]]()
    for n, prompt in enumerate(part):
        count, found = counts.setdefault(prompt.source, Counter()), list[str]()
        count["asked"] += 1
        for sample, text in enumerate(texts[n * kept.samples : (n + 1) * kept.samples]):
            count["sampled"] += 1
            if text is None or not next(marks) >= 1:
                count["unfinished" if text is None else "wrong"] += 1
                continue
            count["accepted"] += 1
            if text in found:
                count["equal"] += 1
            elif len(found) == kept.keep:
                count["beyond keep"] += 1
            else:
                found.append(text)
                turns = [*prompt.turns, {"role": "assistant", "content": text}]
                about = {"id": prompt.id, "source": prompt.source, "answer": prompt.answer, "sample": sample}
                rows.append({**about, "messages": turns})
        count["solved"] += bool(found)
        count["kept"] += len(found)
    return rows, counts


def _marks(
    part: Sequence[Asked], texts: Sequence[str | None], kept: KeepKeys, tokenizer: Tokenizer, rewards: Rewards
) -> list[float]:
    """Of the texts that are there, in their order; a mark that is missing is no mark."""
    asked = [(part[at // kept.samples], text) for at, text in enumerate(texts) if text is not None]
    records = [
        Answered(answer=one.answer, prompt=tokenizer.decode(one.ids, specials=True), meta=one.meta) for one, _ in asked
    ]
    graded = rewards.graded([text for _, text in asked], records, [one.source for one, _ in asked])
    for name, said in graded.said.items():
        print(f"the verifier {name} failed {graded.failed[name]} times: {said}", file=sys.stderr)
    marks: list[float] = graded.marks_SR[:, 0].nan_to_num(nan=0.0).tolist()
    return marks


def _whole(prompt: Asked, rollout: Rollout, at: int, tokenizer: Tokenizer) -> str | None:
    """The text of a completion, with its thoughts from their beginning on, also where that stands in the prompt; None
    for one that did not end by itself, or is no answer."""
    ids, reason = rollout.completion(at), rollout.stop_reason[at]
    if reason not in ("stop_id", "stop_string"):
        return None
    ids = ids[:-1] if reason == "stop_id" else ids
    if tokenizer.decode(prompt.ids, specials=True).rstrip().endswith(THOUGHTS_BEGIN):
        ids = [*tokenizer.encode_marked(f"{THOUGHTS_BEGIN}\n").tolist(), *ids]
    return tokenizer.decode(ids, specials=True).strip() if is_well_formed(ids, tokenizer) else None


class Written:
    """`traces.jsonl` while it grows, and how far it is: what stands behind the last saved part is cut off at a start.

    parts: that are saved. counts: by source.
    """

    def __init__(self, folder: Path, made_by: Mapping[str, Any], counts: Mapping[str, Counter[str]]) -> None:
        self._path, self._note = folder / f".{NAME}.partial", RunFolder(folder).progress
        self._made_by, self._size = dict(made_by), 0
        self.parts, self.counts = 0, {name: Counter(found) for name, found in counts.items()}

    @classmethod
    def begin(cls, folder: Path, made_by: Mapping[str, Any], counts: Mapping[str, Counter[str]]) -> Written:
        """Of this folder. Raises UserError where it holds what others have made."""
        self = cls(folder, made_by, counts)
        if not self._note.exists():
            owner.check(self._path)
            self._path.write_bytes(b"")
            return self
        note = read_object(self._note)
        changed = [name for name, value in made_by.items() if note["made_by"].get(name) != value]
        if changed:
            raise UserError(
                f"run '{folder}' has sampled traces with another value of: {', '.join(changed)}. They would not belong "
                "together: put back what was there, choose another run=NAME, or delete the folder"
            )
        self.parts, self._size = note["parts"], note["bytes"]
        self.counts = {name: Counter(found) for name, found in note["counts"].items()}
        if self._path.exists():
            held = self._path.stat().st_size
        elif self._path.with_name(NAME).exists():  # renamed already
            return self
        else:
            held = -1
        if held < self._size:
            raise UserError(
                f"{self._path} {'is gone' if held < 0 else f'has {held:,} bytes'}, and {self._size:,} were saved there "
                f"before this start: put it back, or delete the folder {folder} to sample anew"
            )
        owner.check(self._path)
        os.truncate(self._path, self._size)
        return self

    def add(self, rows: Sequence[Mapping[str, Any]], counts: Mapping[str, Counter[str]]) -> None:
        """Save a part: its rows first, then that they are there."""
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        owner.check(self._path)
        with self._path.open("r+b") as file:
            file.seek(self._size)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self.parts, self._size = self.parts + 1, self._size + len(content)
        for name, found in counts.items():
            self.counts[name].update(found)
        note = {"made_by": self._made_by, "parts": self.parts, "bytes": self._size, "counts": self.counts}
        atomic.write(self._note, json.dumps(note))

    def end(self) -> dict[str, Any]:
        """Put the file into its place; the counts, which are printed."""
        path = self._path.with_name(NAME)
        if self._path.exists():
            owner.check(path)
            self._path.replace(path)
            atomic.sync_folder(path.parent)
        for name, found in self.counts.items():
            print(f"{name}: " + ", ".join(f"{what} {count:,}" for what, count in found.items()))
        total = sum(self.counts.values(), Counter[str]())
        share = total["accepted"] / total["sampled"]
        print(f"{total['kept']:,} traces ({share:.1%} of the completions are right): {path}")
        if not total["kept"]:
            print("none is right: ask an easier set, a better teacher, or draw more (stage.samples)", file=sys.stderr)
        sources = {name: dict(found) for name, found in self.counts.items()}
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return {**total, "acceptance": round(share, 6), "sources": sources, "file": str(path), "sha256": digest}


class Progress:
    """Lines about how far it is. before: parts that were there at the start."""

    def __init__(self, *, prompts: int, parts: int, before: int) -> None:
        self._prompts, self._parts, self._before = prompts, parts, before
        self._began = self._said = time.monotonic()

    def say(self, written: Written) -> None:
        """After the first part, the last, and every few seconds."""
        now, done = time.monotonic(), written.parts - self._before
        if now - self._said < SAID_EVERY and 1 < done and written.parts < self._parts:
            return
        self._said = now
        left = timedelta(seconds=round((now - self._began) / done * (self._parts - written.parts)))
        total = sum(written.counts.values(), Counter[str]())
        share = total["accepted"] / total["sampled"]
        print(
            f"traces: {total['asked']:,} of {self._prompts:,} prompts | {total['accepted']:,} of {total['sampled']:,} "
            f"completions right ({share:.1%}), {total['kept']:,} kept | {left} left",
            file=sys.stderr,
        )
