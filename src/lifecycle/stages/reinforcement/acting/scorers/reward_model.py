"""A reward model as a scorer: one forward pass over packed rows gives every sample its score.

What it reads of a sample is

    same tokenizer and chat template      the ids of the prompt and of the answer, as the policy wrote them
    others, or stage.reward_model.reads_to=text   its turns and the text of the answer, by its own chat template

An answer ends with the token that ends a turn, whatever has ended it: one that was cut off, or ended by a text, gets it
added. An empty one is that token alone. One that is too long for the model, or that its template refuses, has no mark.
Equal samples are read once.

Shapes: N samples, B rows, T positions, D width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from lifecycle.batch import PADDING, TURNS, WIDTHS, TokenBatch, first_fit
from lifecycle.errors import UserError
from lifecycle.stages.base import Stage
from lifecycle.stages.beside.frozen import FrozenNetwork
from lifecycle.stages.reinforcement.acting.scorers.scorer import SampleMarks, SamplesToMark, unmarked
from lifecycle.stages.reinforcement.learning.experience import finished
from lifecycle.stages.reinforcement.reward_names import REWARD_MODEL
from lifecycle.stages.reinforcement.settings import RewardModelKeys
from lifecycle.stages.run.setup import Setup
from lifecycle.stages.step.collectives import highest_of_ranks
from lifecycle.stages.step.on_device import on_device
from lifecycle.stages.step.watched import Carried


class RewardModel:
    """The frozen network that `stage.reward_model.path` names. Raises UserError where that is null."""

    names = (REWARD_MODEL,)
    carried: Mapping[str, Carried] = {}

    def __init__(self, keys: RewardModelKeys, setup: Setup) -> None:
        if REWARD_MODEL not in setup.asked:
            raise UserError(
                "a reward is 'reward_model', and stage.reward_model.path is null: type stage.reward_model.path=RUN, a "
                "run of stage=reward, or a folder or hub id of a model with one score"
            )
        self._keys, self._setup, self._model = keys, setup, setup.asked[REWARD_MODEL]
        self.beside = FrozenNetwork(config=self._model.config, read=self._model.weights.read, setup=setup)
        self._whole = keys.reads_to == "text" or (keys.reads_to == "auto" and not self._model.of_run)

    def told(self) -> dict[str, Tensor]:
        """Nothing beside its marks."""
        return {}

    def close(self) -> None:
        """It has no processes."""

    def marked(self, asked: SamplesToMark) -> SampleMarks:
        """The scaled score of every sample."""
        marks_N, sequences, said = unmarked(len(asked)), dict[int, list[int]](), list[str]()
        lost_N = torch.zeros(len(asked), dtype=torch.bool, device="cpu")
        for n in asked.of(REWARD_MODEL):
            ids = self._ids(asked, n)
            if isinstance(ids, str):
                said.append(ids)
                lost_N[n] = True
            else:
                sequences[n] = ids
        # answers that are one text have one mark, bit for bit: in two rows it might differ in its last bits
        places = {ids: place for place, ids in enumerate(dict.fromkeys(map(tuple, sequences.values())))}
        scores = self._scaled(self._scores(asked.stage, list(places)))
        marks_N[list(sequences)] = scores[[places[tuple(ids)] for ids in sequences.values()]]
        if self._keys.unfinished is not None:
            ended = finished(asked.rollout)
            marks_N[[n for n in sequences if not ended[n]]] = self._keys.unfinished
        failed = Counter({REWARD_MODEL: len(said)}) if said else Counter[str]()
        return SampleMarks(
            marks={REWARD_MODEL: marks_N},
            lost={REWARD_MODEL: lost_N},
            failed=failed,
            said={REWARD_MODEL: said[0]} if said else {},
        )

    def _ids(self, asked: SamplesToMark, n: int) -> list[int] | str:
        """What is read of a sample, or why it cannot be."""
        model, rollout = self._model, asked.rollout
        if model.same_tokens and not self._whole:
            completion = rollout.completion(n)
            if rollout.stop_reason[n] == "stop_id":
                completion = completion[:-1]
            elif rollout.stop_reason[n] == "stop_string":
                completion = [int(i) for i in model.tokenizer.encode_batch([rollout.text[n]])[0]]
            ids: list[int] | str = [*rollout.prompts[n], *completion, model.end_ids[-1]]
        else:
            turns = asked.prompts.meta[asked.index[n]].get(TURNS)
            if turns is None:
                return (
                    "its prompt has no turns: prepared shards of an earlier version have none, run stage=prepare again"
                )
            ids = model.read(turns, rollout.text[n], self._whole)
        most = model.config.max_positions
        if not isinstance(ids, str) and len(ids) > most:
            return f"prompt and answer have {len(ids)} tokens, and {model.name} has {most} positions"
        return ids

    def _scaled(self, scores_N: Tensor) -> Tensor:
        keys = self._keys
        marks_N = (scores_N - keys.mean) / keys.std
        if keys.clip is not None:
            marks_N = marks_N.clamp(-keys.clip, keys.clip)
        return marks_N.sigmoid() if keys.sigmoid else marks_N

    @torch.no_grad()
    def _scores(self, stage: Stage, sequences: Sequence[Sequence[int]]) -> Tensor:
        """(N,) float64 on the CPU: of each sequence, read at its last token. Every rank must call."""
        tokens, ends_N = packed(sequences)
        per_micro = max(1, self._setup.micro_batch_tokens // tokens.labels.shape[1])
        micros = [tokens.rows(at, at + per_micro) for at in range(0, len(tokens.labels), per_micro)]
        (most,) = highest_of_ranks([len(micros)], stage.device)
        idle = [tokens.rows(0, 1)] * (most - len(micros))  # a sharded network is called equally often on every rank
        network, scores = self.beside.network, list[Tensor]()
        with stage.trainer.precision_plugin.forward_context():
            for micro in [*micros, *idle]:
                moved, documents = on_device(micro, stage.device, kernel=stage.kernel, compiled=self._setup.compile)
                scores.append(network.scores(network(moved.input_ids, moved.position_ids, documents).flatten(0, 1)))
        return torch.cat(scores).cpu().double()[ends_N]


def packed(sequences: Sequence[Sequence[int]]) -> tuple[TokenBatch, Tensor]:
    """Whole sequences in rows of the longest; and (N,) int64, of each where its last token stands in the flattened
    rows. Without sequences: a row of padding."""
    sizes = [len(ids) for ids in sequences]
    width = -(-max(sizes, default=1) // WIDTHS) * WIDTHS
    rows = first_fit(sizes, width)
    shape = (max(len(rows), 1), width)
    made = {name: np.full(shape, fill, dtype=np.int64) for name, fill in PADDING.items() if name != "shared"}
    ends = np.zeros(len(sequences), np.int64)
    for number, row in enumerate(rows):
        at = 0
        for document, n in enumerate(row, start=1):
            part = (number, slice(at, at + sizes[n]))
            made["input_ids"][part], made["position_ids"][part] = sequences[n], np.arange(sizes[n])
            made["document_ids"][part], made["source_ids"][part] = document, 0
            at += sizes[n]
            ends[n] = number * width + at - 1
    single = all(len(row) == 1 and sizes[row[0]] == width for row in rows)
    return TokenBatch.of(
        {name: torch.from_numpy(array) for name, array in made.items()}, single=single
    ), torch.from_numpy(ends)
