"""A judge as a scorer: a language model behind an endpoint, or a frozen one of ours, marks a rollout (`rewards.judge`).

judge/failed              share of the questions without a reply
judge/unreadable          share of the replies that state no verdict
judge/criterion/<name>    mark of each criterion, 0 to 1
judge/tokens_in, _out     tokens of questions and replies that a step has paid for, over all ranks
judge/cost                what these cost; judge/cost_so_far: with all before them, held-out answers included

A call of which nothing is answered, or nothing can be read, ends the run, and so does one that would cost more than it
may. What was answered is in the cache by then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lifecycle.batch import TURNS
from lifecycle.errors import UserError
from lifecycle.rewards.judge.question import Answering
from lifecycle.rewards.judge.settings import JudgeKeys
from lifecycle.rewards.judge.verdicts import JUDGED, Judged, Verdicts, verdicts
from lifecycle.rewards.record import Answered
from lifecycle.stages.beside.frozen import HeldBeside
from lifecycle.stages.reinforcement.acting.scorers.local_judge import LocalJudge
from lifecycle.stages.reinforcement.acting.scorers.scorer import SampleMarks, SamplesToMark
from lifecycle.stages.run.setup import Setup
from lifecycle.stages.step import mean_parts
from lifecycle.stages.step.collectives import sum_over_ranks
from lifecycle.stages.step.watched import Carried
from lifecycle.system.cache import made_cache_folder

KEY = "judge"
"""Of `stage`, for its settings."""
CACHE = "judge-replies"
FEWEST_UNREADABLE = 8
"""Replies of a call, none of which can be read, from which on the run ends."""
SHOWN = 300
"""Characters of a reply that are told."""


class Judge:
    """The judge of `stage.judge`. Raises UserError where its key is not set, or no model is named."""

    names = JUDGED

    def __init__(self, keys: JudgeKeys, setup: Setup) -> None:
        self._keys, self._seed = keys, setup.seed
        self.beside: HeldBeside | None = None
        if keys.url is None:
            local = LocalJudge(keys, setup)
            self._judge: Answering = local
            self.beside = local.network
        else:
            from lifecycle.rewards.judge.remote import RemoteJudge  # its client takes a tenth of a second to import

            self._judge = RemoteJudge(keys, folder=made_cache_folder() / CACHE, run=str(setup.folder))
        self.carried: Mapping[str, Carried] = {KEY: self}
        self._told = dict[str, list[float]]()

    def state(self) -> dict[str, Any]:
        """For the checkpoint: who judges, and what it has used."""
        return {"endpoint": self._keys.url is not None, **self._judge.spent.state()}

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Go on from `state`. Raises UserError where that is of another kind of judge."""
        before = dict(state or {})
        if before.pop("endpoint", None) not in (None, self._keys.url is not None):
            raise UserError(
                "resume: this run was judged by a model "
                + ("of its own" if self._keys.url is not None else "behind an endpoint")
                + ", and stage.judge.url now names another kind: set it as it was, or start another run (run=NAME)"
            )
        self._judge.spent.restore(before)

    def close(self) -> None:
        """It has no processes."""

    def marked(self, asked: SamplesToMark) -> SampleMarks:
        """The verdict on every sample."""
        wanted = [
            {name for name in JUDGED if name in asked.wanted and asked.wanted[name][n]} for n in range(len(asked))
        ]
        samples = [
            Judged(
                completion=asked.rollout.text[n],
                record=plain_record(asked, asked.index[n]),
                prompt=int(asked.rollout.prompt_id[n]),
                by=frozenset(by),
            )
            for n, by in enumerate(wanted)
        ]
        found = verdicts(self._keys, self._judge, samples, seed=self._seed)
        self._settle(found, asked.stage.device)
        said = found.why or (f"its reply states no verdict: {found.unread[:SHOWN]!r}" if found.unread else "")
        return SampleMarks(
            marks={name: torch.tensor(marks, dtype=torch.float64, device="cpu") for name, marks in found.marks.items()},
            lost={name: torch.tensor(lost, dtype=torch.bool, device="cpu") for name, lost in found.lost.items()},
            failed=found.failed,
            said={name: said for name in JUDGED if found.failed[name]},
        )

    def told(self) -> dict[str, Tensor]:
        """(2,) sums and counts of the calls since it was last asked."""
        told, self._told = self._told, {}
        return {name: mean_parts.of_numbers(*pair) for name, pair in told.items()}

    def _settle(self, found: Verdicts, device: torch.device) -> None:
        """Count what the call took on all ranks, and end the run where it must end. Every rank must call."""
        spent, counts = self._judge.spent, [found.asked, found.answered, found.unreadable, found.over]
        sums = torch.tensor([*counts, spent.new_in, spent.new_out, 1], dtype=torch.float64, device=device)
        asked, answered, unreadable, over, new_in, new_out, ranks = sum_over_ranks(sums).tolist()
        cost = spent.of(spent.new_in, spent.new_out)
        self._add("failed", found.asked - found.answered, found.asked)
        self._add("unreadable", found.unreadable, found.answered)
        for name in self._keys.rubric:
            self._add(f"criterion/{name}", *found.shares.get(name, (0.0, 0)))
        for name, amount in (("tokens_in", spent.new_in), ("tokens_out", spent.new_out), ("cost", cost)):
            before = self._told.get(f"judge/{name}", [0.0])[0]
            self._told[f"judge/{name}"] = [before + amount, 1 / ranks]  # of a step, and not the mean of its calls
        spent.settle(int(new_in), int(new_out))
        self._told["judge/cost_so_far"] = [spent.cost, 1.0]
        if over:
            raise UserError(self._too_dear(spent.cost))
        if asked and not answered:
            raise UserError(self._silent(int(asked), found))
        if answered >= FEWEST_UNREADABLE and unreadable == answered:
            raise UserError(self._unclear(int(answered), found))

    def _add(self, name: str, total: float, count: float) -> None:
        known = self._told.setdefault(f"judge/{name}", [0.0, 0.0])
        known[0], known[1] = known[0] + total, known[1] + count

    def _too_dear(self, cost: float) -> str:
        return (
            f"the judge has cost {cost:g}, and stage.judge.max_cost is {self._keys.max_cost:g}: the run ends here, and "
            "its last checkpoint stays. To go on from there, type the same command with a higher stage.judge.max_cost; "
            "what was answered since is in the cache, and not paid for again"
        )

    def _silent(self, asked: int, found: Verdicts) -> str:
        do = (
            "check that it runs, its address (stage.judge.url, up to and with /v1), its name there (stage.judge.model) "
            "and its key (stage.judge.key_from)"
            if self._keys.url is not None
            else "name a judge with more positions (stage.judge.model), or shorten stage.judge.template"
        )
        return (
            f"none of a step's {asked} questions to the judge {self._judge.place} was answered: "
            f"{found.why or 'another rank tells why'}; {do}, then type the same command: the run goes on from its last "
            "checkpoint"
        )

    def _unclear(self, answered: int, found: Verdicts) -> str:
        return (
            f"none of {answered} replies of the judge {self._judge.place} states a verdict, as in "
            f"{found.unread[:SHOWN]!r}: ask for one line at the end, 'Score: N' or 'Better: A' (stage.judge.template, "
            "stage.judge.pair_template), give it room for it (stage.judge.max_new_tokens), or take a judge that keeps "
            "to it"
        )


def plain_record(asked: SamplesToMark, i: int) -> Answered:
    """The record of a prompt, whose text is that of its turns, without the marks of a template."""
    record, turns = asked.records[i], asked.prompts.meta[i].get(TURNS)
    return record if turns is None else Answered(answer=record.answer, prompt=shown(turns), meta=record.meta)


def shown(turns: Sequence[Mapping[str, object]]) -> str:
    """A question as it is; a longer conversation with the name of who speaks before each turn."""
    if len(turns) == 1:
        return str(turns[0]["content"])
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
