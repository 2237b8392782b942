"""What a model answers to held-out prompts: before the first step, at every measurement, and when the run is over.

    answers.jsonl          a line a prompt and measurement, with what stands in the data as the answer (reference)
    rollout/stopped        share of the answers that end with a stop token
    rollout/well_formed    share of those that are well-formed besides: neither empty nor with a mark of a turn inside,
                           and every <think> closed
    reward/exact_match     share of those that are the answer of the data besides, letter by letter
    rollout/length         tokens of an answer, in the mean

In a run that learns from samples, whose metrics have these names, they are answers/stopped, and so on; its last is
answers/right, the share of those that the graders among its rewards give 1 to.

Greedy, so that an answer changes with the weights alone; the same prompts each time. Every rank answers all of them,
for a sharded model needs every rank, and rank 0 writes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from lifecycle.batch import Ids, PairBatch, Rollout
from lifecycle.data.module import DataModule
from lifecycle.data.validation import HeldOutQuestion
from lifecycle.model import Decoder, DocumentMask
from lifecycle.rewards.record import Answered
from lifecycle.rollout.engine import generate
from lifecycle.rollout.environments.named import EnvironmentKeys
from lifecycle.rollout.sampling.parameters import Sampling
from lifecycle.stages.base import Stage
from lifecycle.stages.preference.answers import pair_scores
from lifecycle.stages.preference.calibration import reliability
from lifecycle.stages.reinforcement.acting.actor import Actor
from lifecycle.system import atomic
from lifecycle.tokenizer.tokenizer import Tokenizer

NAME = "answers.jsonl"
THOUGHTS = re.compile(r"<(/?)think>")

Right = Callable[[Sequence[str], Sequence[Answered], Sequence[int]], list[bool | None]]
"""Of answers as texts, each with what is known of its question and the index of its source, whether they are right;
None of one that no grader knows: it has to be the answer of the data."""


def right_by_rewards(stage: Stage) -> Right | None:
    """By the graders among the rewards of a stage that learns from them; None of any other stage."""
    actor = getattr(stage, "actor", None)
    if not isinstance(actor, Actor):
        return None
    names = stage.setup_facts.source_names

    def right(said: Sequence[str], records: Sequence[Answered], sources: Sequence[int]) -> list[bool | None]:
        marks = actor.scoring.right(said, records, [names[index] for index in sources]).tolist()
        return [None if mark != mark else mark == 1 for mark in marks]

    return right


def answering(cfg: DictConfig, folder: Path, data: DataModule) -> list[HeldOutAnswers]:
    """What asks the model of a run that is measured; nobody where it is not, or has no held-out prompt."""
    asked = data.questions(cfg.validation.answers or 0) if cfg.validation.every_steps else []
    if not asked:
        return []
    given, most = OmegaConf.to_container(cfg.stage).get("environment"), cfg.validation.answer_tokens  # type: ignore[union-attr]
    environment = None if given is None else EnvironmentKeys(**given)
    return [HeldOutAnswers(asked, data.tokenizer, folder=folder, most_tokens=most, environment=environment)]


class HeldOutAnswers(Callback):
    """Asks the model after every validation; comes before the callbacks that save, so a run that is killed has the
    answers of every step that it goes on from."""

    def __init__(
        self,
        asked: Sequence[tuple[str, HeldOutQuestion]],
        tokenizer: Tokenizer,
        *,
        folder: Path,
        most_tokens: int,
        environment: EnvironmentKeys | None = None,
    ) -> None:
        self._asked, self._tokenizer, self._most_tokens = asked, tokenizer, most_tokens
        self._environment = environment
        self._path = folder / NAME
        self._answered_at: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lines of steps that will be taken again go; a new run is measured before its first step."""
        if trainer.is_global_zero and self._path.exists():
            self._write([one for one in read_answers(self._path) if one["step"] <= trainer.global_step])
        if trainer.global_step == 0:
            cast(Stage, pl_module).validation_due = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Ask after what was measured before the step: at the start, or after a preemption in the middle of it."""
        self._ask(trainer, cast(Stage, pl_module))
        cast(Stage, pl_module).meter.go_on()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Ask after what was measured after the step."""
        self._ask(trainer, cast(Stage, pl_module))

    def _ask(self, trainer: Trainer, stage: Stage) -> None:
        step = stage.measured_at
        if step is None or step == self._answered_at:
            return
        self._answered_at = step
        stage.meter.pause()
        stage.network.eval()
        with trainer.precision_plugin.forward_context():
            made = answers(
                stage.network,
                self._asked,
                self._tokenizer,
                most_tokens=self._most_tokens,
                step=step,
                environment=self._environment,
                right=right_by_rewards(stage),
            )
        stage.network.train()
        told = shares(made)
        if "prompt" in stage.views:  # its samples are told under these names, in the same rows
            told = {f"answers/{name.partition('/')[2]}": value for name, value in told.items()}
            told["answers/right"] = told.pop("answers/exact_match")
        stage.meter.log(step, told)
        if trainer.is_global_zero:
            known = read_answers(self._path) if self._path.exists() else []
            self._write([*(one for one in known if one["step"] != step), *made])

    def _write(self, rows: Sequence[dict[str, Any]]) -> None:
        atomic.write(self._path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_answers(path: Path) -> list[dict[str, Any]]:
    """The lines of answers.jsonl."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def answers(
    model: Decoder,
    asked: Sequence[tuple[str, HeldOutQuestion]],
    tokenizer: Tokenizer,
    *,
    most_tokens: int,
    step: int,
    environment: EnvironmentKeys | None = None,
    right: Right | None = None,
) -> list[dict[str, Any]]:
    """The greedy answer to each question: the schema of answers.jsonl. Where an environment answers in between, what
    the model said last is its answer. right: see `Right`."""
    if not asked:
        return []
    vocab, room = model.config.vocab, model.config.max_positions - 1
    sampling = Sampling(
        max_new_tokens=most_tokens,
        temperature=0,
        stop_ids=tokenizer.end_ids,
        banned_ids=tuple(range(tokenizer.vocab_size, vocab)),  # rows that only fill the matrix up
    )
    prompts = [one.prompt[-room:].tolist() for _, one in asked]
    records = [
        Answered(answer=_text(one.answer, tokenizer), prompt=tokenizer.decode(ids, specials=True), meta=one.meta)
        for ids, (_, one) in zip(prompts, asked, strict=True)
    ]
    environments = None if environment is None else environment.of(records, tokenizer)
    rollout = generate(model, prompts, sampling, seed=0, tokenizer=tokenizer, environments=environments)
    said = [
        tokenizer.decode(rollout.completion(n)) if rollout.dialogues is None else rollout.dialogues[n].last_said
        for n in range(len(asked))
    ]
    graded = [None] * len(asked) if right is None else right(said, records, [one.source for _, one in asked])
    return [
        {"step": step, "domain": domain, "prompt": records[n].prompt}
        | _answer(rollout, n, one, tokenizer, is_right=_is_same(said[n], one, tokenizer) if mark is None else mark)
        for n, ((domain, one), mark) in enumerate(zip(asked, graded, strict=True))
    ]


def _is_same(said: str, asked: HeldOutQuestion, tokenizer: Tokenizer) -> bool:
    return said.strip() == _text(asked.answer, tokenizer).strip()


def _answer(
    rollout: Rollout, n: int, asked: HeldOutQuestion, tokenizer: Tokenizer, *, is_right: bool
) -> dict[str, Any]:
    """What is known of completion `n`, which answers a question."""
    ids, stopped = rollout.completion(n), rollout.stop_reason[n] == "stop_id"
    well_formed = stopped and is_well_formed(ids[:-1], tokenizer)
    return {
        "completion": tokenizer.decode(ids, specials=True),
        "reference": _text(asked.answer, tokenizer, specials=True),
        "tokens": len(ids),
        "stopped": stopped,
        "well_formed": well_formed,
        "right": well_formed and is_right,
    }


def _text(answer: Ids | str, tokenizer: Tokenizer, *, specials: bool = False) -> str:
    return answer if isinstance(answer, str) else tokenizer.decode(answer, specials=specials)


def is_well_formed(ids: Sequence[int], tokenizer: Tokenizer) -> bool:
    """Whether an answer, without its stop token, is one: not empty, without marks of documents and turns, its thoughts
    begun and ended in turn."""
    marks = {i for i, name in tokenizer.special_names.items() if not THOUGHTS.fullmatch(name)}
    tags = [end == "" for end in THOUGHTS.findall(tokenizer.decode(ids, specials=True))]
    paired = len(tags) % 2 == 0 and tags == [True, False] * (len(tags) // 2)
    return bool(tokenizer.decode(ids).strip()) and not marks.intersection(ids) and paired


def shares(made: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The metrics of some answers."""
    return {
        "rollout/stopped": sum(one["stopped"] for one in made) / len(made),
        "rollout/well_formed": sum(one["well_formed"] for one in made) / len(made),
        "reward/exact_match": sum(one["right"] for one in made) / len(made),
        "rollout/length": sum(one["tokens"] for one in made) / len(made),
    }


# -- reward models

PAIRS_A_DOMAIN = 2


@torch.no_grad()
def held_out_scores(
    model: Decoder, data: DataModule, *, step: int
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """What a reward model says of held-out pairs when its run is over, in place of answers: samples.json, a few answers
    with their scores, and calibration.json, by domain how often it is right, and how sure. model: whole, on its device,
    in eval mode."""
    samples, found = list[dict[str, Any]](), dict[str, dict[str, Any]]()
    for domain, held in data.held_out.items():
        differences, first = [torch.zeros(0, dtype=torch.float32, device="cpu")], list[dict[str, Any]]()
        for batch in held.batches(1, 0, 1):
            moved = batch.to(model.embedding.weight.device)
            documents = DocumentMask.from_ids(moved.tokens.document_ids, kernel="sdpa")
            chosen_P, rejected_P = (scores.cpu() for scores in pair_scores(model, moved, documents))
            differences.append(chosen_P - rejected_P)
            if len(first) < 2 * PAIRS_A_DOMAIN:
                first += _told(batch, chosen_P, rejected_P, data.tokenizer)
        samples += [{"step": step, "domain": domain, **one} for one in first[: 2 * PAIRS_A_DOMAIN]]
        found[domain] = reliability(torch.cat(differences))
    return samples, found


def _told(batch: PairBatch, chosen_P: Tensor, rejected_P: Tensor, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Each side of the pairs of a row: prompt, answer and score."""
    tokens, out = batch.tokens, []
    ids, documents, trained = (part[0] for part in (tokens.input_ids, tokens.document_ids, tokens.trained))
    for pair, scores in enumerate(zip(chosen_P.tolist(), rejected_P.tolist(), strict=True)):
        for side, (name, score) in enumerate(zip(("chosen", "rejected"), scores, strict=True)):
            inside = documents == 2 * pair + side + 1
            asked = int(trained[inside].int().argmax()) + 1  # a label stands one position before its token
            prompt, answer = ids[inside][:asked].numpy(), ids[inside][asked:].numpy()
            out.append(
                {
                    "prompt": tokenizer.decode(prompt, specials=True),
                    "completion": tokenizer.decode(answer, specials=True),
                    "side": name,
                    "score": score,
                }
            )
    return out
