"""Laws of single-stream policy optimisation in its stage: a plain loop, trackers by hand, choice, checkpoints."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.stages.reinforcement.made import (
    ALONE,
    DRAWING,
    GRADED,
    KEYS,
    POLICY,
    ByTokens,
    Letters,
    parent,
    prompts,
)
from tests.stages.test_step import ADAMW, Batches, Kept, optimization, stage, trainer_of
from torch import Tensor
from torch.nn import functional as F

from lifecycle.batch import PromptBatch, Rollout
from lifecycle.batch.prompts import PLACES
from lifecycle.duration import Timeline
from lifecycle.errors import UserError
from lifecycle.losses.policy.spo import SpoVariant
from lifecycle.model import Decoder, build
from lifecycle.rollout.engine import generate
from lifecycle.rollout.sampling.parameters import Sampling
from lifecycle.stages.reinforcement.acting.actor import Phases
from lifecycle.stages.reinforcement.acting.choice_of_prompts import keys_of
from lifecycle.stages.reinforcement.settings import SamplingKeys
from lifecycle.stages.reinforcement.single_stream.choice import drawn
from lifecycle.stages.reinforcement.single_stream.faults import faults
from lifecycle.stages.reinforcement.single_stream.last_answers import NONE, of_rollout, packed, unpacked
from lifecycle.stages.reinforcement.single_stream.stream import StreamKeys
from lifecycle.stages.reinforcement.single_stream.trackers import Trackers
from lifecycle.stages.spo import Spo
from lifecycle.system.seeds import derive

STEPS = 3


def spo(
    *,
    variant: SpoVariant = "paper",
    chosen: int = 2,
    start: int = 3,
    steps: int = STEPS,
    updates: int = 1,
    micro_tokens: int = 4096,
    half_life: float = 0.06,
    setup: dict[str, Any] | None = None,
    **keys: Any,
) -> Spo:
    facts: dict[str, Any] = {
        "timeline": Timeline.even(steps, rows=4, row_length=24),
        "tokenizer": Letters(),
        "tokens": 62,
        "micro_batch_tokens": micro_tokens,
        "source_rewards": [None, None],
        "parent": parent(),
        **(setup or {}),
    }
    made = Spo(
        model=POLICY,
        optimization=optimization(1e-2),
        drawn=SamplingKeys(
            sampling=DRAWING,
            slots=5,
            updates_per_rollout=updates,
            passes_per_rollout=1,
            drop_solved=False,
            varying_prompts=None,
            keep_rollouts=None,
            head_dtype=None,
            environment=ALONE,
            keep_routing=False,
            keep_engine=None,
        ),
        graded=GRADED,
        policy=replace(KEYS, **{"clip_high": 0.28, **keys}),
        stream=StreamKeys(variant=variant, chosen_per_step=chosen, start_samples=start, half_life=half_life),
        setup=replace(stage().setup_facts, **facts),
    )
    made.actor.scoring = ByTokens()  # type: ignore[assignment]
    return made


def train(made: Spo, folder: Path, steps: int = STEPS, parts: Any = None) -> dict[int, dict[str, float]]:
    logger = Kept()
    batches: Any = [[prompts(step)] if parts is None else parts(prompts(step)) for step in range(steps)]
    trainer_of(steps, folder, logger=logger).fit(made, Batches(batches))
    return logger.rows


def weights(made: Spo) -> list[Tensor]:
    return [p.detach().clone() for p in made.network.parameters()]


# -- a plain loop


def sampled(model: Decoder, given: PromptBatch, numbers: Sequence[int], *, seed: int, step: int, n: int) -> Rollout:
    sampling = Sampling(max_new_tokens=9, samples=n, stop_ids=(0,), banned_ids=(62, 63), temperature=0.8)
    return generate(model, given.ids, sampling, seed=seed, step=step, prompt_ids=list(numbers), slots=5)


def reward_of(rollout: Rollout) -> list[float]:
    return (((rollout.token_ids * rollout.exists).sum(1) % 7).double() / 7).tolist()


def plain_logp(model: Decoder, prompt: Sequence[int], completion: Sequence[int]) -> Tensor:
    ids = torch.tensor([*prompt, *completion])
    logits = model.logits(model(ids[None, :-1], torch.arange(len(ids) - 1)[None]))[0]
    logits = logits.masked_fill(torch.arange(64) >= 62, -torch.inf) / 0.8
    return F.log_softmax(logits, -1).gather(1, ids[1:, None])[len(prompt) - 1 :, 0]


class Plain:
    """The method in a loop over prompts, by names, with dictionaries."""

    def __init__(self, variant: str, half_life: float) -> None:
        self.variant, self.half_life = variant, half_life
        self.model = build(POLICY, seed=1)
        self.alpha, self.beta = dict[str, float](), dict[str, float]()
        self.last = dict[str, tuple[list[int], list[int], list[float]]]()
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self.model.parameters() if p.dim() > 1]},
            {"params": [p for p in self.model.parameters() if p.dim() < 2], "weight_decay": 0.0},
        ]
        decay = ADAMW.weight_decay
        self.optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=ADAMW.betas, eps=ADAMW.eps, weight_decay=decay)

    def start(self, given: PromptBatch, step: int) -> None:
        new = [i for i, name in enumerate(given.id) if name not in self.alpha]
        for i in new:
            one = given.at([i])
            drawn = sampled(self.model, one, one.number.tolist(), seed=derive(1, "start trackers"), step=step, n=3)
            k = sum(reward_of(drawn))
            v = k / 3 if self.variant == "paper" else (k + 0.5) / 4
            self.alpha[given.id[i]], self.beta[given.id[i]] = 8 * v, 8 * (1 - v)
            self.last[given.id[i]] = (given.ids[i], drawn.completion(0), drawn.logprobs[0].tolist())

    def value(self, name: str) -> float:
        return self.alpha[name] / (self.alpha[name] + self.beta[name])

    def track(self, given: PromptBatch, rollout: Rollout, rewards: list[float]) -> None:
        for n, name in enumerate(given.id):
            prompt, completion, then = self.last[name]
            with torch.no_grad():
                u = plain_logp(self.model, prompt, completion) - torch.tensor(then[: len(completion)])
            d = float((u.exp() * u - u.exp() + 1).mean() if self.variant == "paper" else u.abs().mean())
            rho = min(0.96, max(0.875, 2 ** (-d / self.half_life)))
            self.alpha[name] = rho * self.alpha[name] + rewards[n]
            self.beta[name] = rho * self.beta[name] + 1 - rewards[n]
            self.last[name] = (given.ids[n], rollout.completion(n), rollout.logprobs[n].tolist())

    def step(self, given: PromptBatch, step: int) -> float:
        self.start(given, step)
        keys = dict(zip(keys_of(given), range(4), strict=True))
        chance = {key: math.sqrt(v * (1 - v)) + 0.05 for key, i in keys.items() for v in [self.value(given.id[i])]}
        uniform = {key: (derive(1, "choice of prompts", step, key) + 0.5) / 2**63 for key in keys}
        gumbel = {key: math.log(chance[key]) - math.log(-math.log(uniform[key])) for key in keys}
        mine = given.at(sorted(keys[key] for key in sorted(keys, key=lambda key: -gumbel[key])[:2]))
        rollout = sampled(self.model, mine, [step * PLACES + n for n in range(2)], seed=1, step=step, n=1)
        rewards = reward_of(rollout)
        above = torch.tensor([r - self.value(name) for r, name in zip(rewards, mine.id, strict=True)])
        advantage = (above - above.mean()) / (above.std() + 1e-4)
        if self.variant == "paper":
            self.track(mine, rollout, rewards)
        logps = [plain_logp(self.model, mine.ids[n], rollout.completion(n)) for n in range(2)]
        parts = [-(advantage[n] * (one - one.detach()).exp()) for n, one in enumerate(logps)]
        loss = torch.cat(parts).mean()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        if self.variant == "recipe":
            self.track(mine, rollout, rewards)
        return float(loss.detach())


@pytest.mark.parametrize("variant", ["paper", "recipe"])
def test_steps_are_those_of_a_plain_loop(variant: SpoVariant, tmp_path: Path) -> None:
    steps, half_life = 4, 20.0  # within the bounds of rho
    made, plain = spo(variant=variant, steps=steps, half_life=half_life), Plain(variant, half_life)
    rows = train(made, tmp_path, steps)
    losses = [plain.step(prompts(step), step) for step in range(steps)]
    assert [rows[step]["train/loss"] for step in range(1, steps + 1)] == pytest.approx(losses, abs=5e-5)
    found = made.stream.trackers.of(keys_of(prompts(0)))
    assert found.alpha_P.tolist() == pytest.approx([plain.alpha[name] for name in prompts(0).id], rel=1e-4)
    assert found.beta_P.tolist() == pytest.approx([plain.beta[name] for name in prompts(0).id], rel=1e-4)
    for mine, theirs in zip(weights(made), plain.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=3e-4)
    assert [rows[step]["spo/start_samples"] for step in (1, 2)] == [12, 0] and rows[4]["spo/prompts"] == 4
    assert made.stream.trackers.start_samples == 12 and sum(made.stream.trackers.state()["visits"]) == 2 * steps
    assert any(0.875 < rows[step]["spo/kept"] < 0.96 for step in rows)


# -- the split of a step


def test_neither_micro_batches_nor_the_split_of_the_candidates_matter(tmp_path: Path) -> None:
    first, second, third = spo(), spo(), spo(micro_tokens=32)
    a = train(first, tmp_path / "a")
    b = train(second, tmp_path / "b", parts=lambda whole: [whole.rows(0, 1), whole.rows(1, 4)])
    train(third, tmp_path / "c")
    clock = [k for k in a[1] if k.startswith("perf/") or k == "rollout/tokens_per_second"]
    assert a == {step: {**row, **{k: a[step][k] for k in clock if k in row}} for step, row in b.items()}
    found = [made.stream.trackers.state() for made in (first, third)]
    assert found[0]["visits"].tolist() == found[1]["visits"].tolist()
    torch.testing.assert_close(found[0]["alpha_P"], found[1]["alpha_P"], rtol=1e-4, atol=1e-4)


def test_chosen_prompts_are_split_evenly_among_the_updates(tmp_path: Path) -> None:
    made = spo(updates=2, steps=1, chosen=2)
    train(made, tmp_path, 1)
    given = prompts(0)
    chosen, _ = made.stream.chosen(made, made.actor.scoring, given.at([3, 1, 0, 2]), 1, Phases())
    assert (chosen.number - PLACES).sort().values.tolist() == [0, 1]


# -- which prompts


def test_the_choice_follows_from_keys_and_not_from_their_order() -> None:
    keys, weight = [11, 12, 13, 14], torch.tensor([0.05, 0.55, 0.3, 0.4], dtype=torch.float64)
    for step in range(20):
        forward = drawn(keys, weight, most=2, seed=1, step=step)
        assert drawn(keys[::-1], weight.flip(0), most=2, seed=1, step=step) == forward
        assert len(set(drawn(keys, weight, most=9, seed=1, step=step))) == 4
    assert len({tuple(drawn(keys, weight, most=2, seed=1, step=step)) for step in range(20)}) > 3


def test_prompts_are_chosen_as_often_as_they_weigh() -> None:
    keys, weight = [1, 2, 3], torch.tensor([0.05, 0.55, 0.4], dtype=torch.float64)
    first = [drawn(keys, weight, most=1, seed=2, step=step)[0] for step in range(4000)]
    assert [first.count(key) / 4000 for key in keys] == pytest.approx([0.05, 0.55, 0.4], abs=0.03)


def test_equal_texts_of_two_records_are_two_prompts_and_one_record_twice_is_one(tmp_path: Path) -> None:
    def same_text(whole: PromptBatch) -> list[PromptBatch]:
        return [replace(whole, ids=[[5, 6]] * 4)]

    made = spo(chosen=4)
    train(made, tmp_path / "a", parts=same_text)
    assert len(made.stream.trackers) == 4 and made.stream.trackers.state()["visits"].tolist() == [3] * 4

    def same_record(whole: PromptBatch) -> list[PromptBatch]:
        return [replace(whole, id=["0", "1", "0", "1"], source_ids=torch.tensor([0, 0, 0, 1]))]

    made = spo(chosen=4)
    row = train(made, tmp_path / "b", parts=same_record)[1]
    assert len(made.stream.trackers) == 3 and row["spo/start_samples"] == 9
    assert made.stream.trackers.state()["visits"].tolist() == [3, 3, 3]  # the record that is there twice: once a step


def test_without_start_samples_trackers_begin_at_a_half(tmp_path: Path) -> None:
    made = spo(start=0, chosen=4, steps=1)
    row = train(made, tmp_path, 1)[1]
    assert (row["spo/value"], row["spo/distance"], row["spo/start_samples"]) == (0.5, 0, 0)
    state = made.stream.trackers.state()
    assert (state["alpha_P"] + state["beta_P"]).tolist() == pytest.approx([0.96 + 1] * 4)
    assert all(state["completion_sizes"] > 0)


@pytest.mark.parametrize("equal", [False, True])
def test_seconds_of_all_sampling_are_told_and_whether_rewards_differ(tmp_path: Path, equal: bool) -> None:
    class Timed(ByTokens):
        def scores(self, stage: Any, rollout: Rollout, given: PromptBatch) -> Any:
            found = super().scores(stage, rollout, given)
            lengths.append(int(rollout.length.sum()))
            return replace(found, rewards=torch.ones_like(found.rewards)) if equal else found

    lengths, made = list[int](), spo(chosen=4, steps=1)
    made.actor.scoring = Timed()  # type: ignore[assignment]
    row = train(made, tmp_path, 1)[1]
    assert row["perf/sampling_s"] > 0 and row["perf/grading_s"] > 0 and row["spo/rewards_vary"] == (not equal)
    assert len(lengths) == 2  # those that start trackers, too
    assert row["rollout/tokens_per_second"] * row["perf/sampling_s"] == pytest.approx(sum(lengths))


# -- rewards


def test_a_missing_reward_leaves_its_tracker_and_has_no_advantage(tmp_path: Path) -> None:
    class Lost(ByTokens):
        def scores(self, stage: Any, rollout: Rollout, given: PromptBatch) -> Any:
            return replace(
                super().scores(stage, rollout, given), rewards=torch.full((len(rollout), 1), math.nan).double()
            )

    made = spo(chosen=4, steps=1)
    made.actor.scoring = Lost()  # type: ignore[assignment]
    row = train(made, tmp_path, 1)[1]
    state = made.stream.trackers.state()
    assert row["train/loss"] == 0 and row["train/skipped"] == 0
    assert state["alpha_P"].tolist() == state["beta_P"].tolist() == [0.5] * 4 and state["visits"].tolist() == [1] * 4


def test_rewards_of_another_scale_are_refused(tmp_path: Path) -> None:
    class Large(ByTokens):
        def scores(self, stage: Any, rollout: Rollout, given: PromptBatch) -> Any:
            return replace(super().scores(stage, rollout, given), weights=[7.0])

    made = spo(steps=1)
    made.actor.scoring = Large()  # type: ignore[assignment]
    with pytest.raises(UserError, match="0 to 1"):
        train(made, tmp_path, 1)


def test_values_that_do_not_work_together_are_named() -> None:
    stage = {
        "prompts_per_step": 8,
        "chosen_per_step": 4,
        "updates_per_rollout": 2,
        "rewards": {"choice": 0.9, "format": 0.1},
    }
    assert faults({"stage": stage}) == []
    for more, word in (
        ({"chosen_per_step": 9}, "chosen_per_step is 9"),
        ({"updates_per_rollout": 5}, "updates_per_rollout is 5"),
        ({"samples_per_prompt": 4}, "samples_per_prompt is 4"),
        ({"phases": [{"at_steps": 0, "samples_per_prompt": 4}]}, "phases has samples_per_prompt"),
        ({"phases": [{"at_steps": 0, "temperature": 0.7, "samples_per_prompt": 1}]}, "phases has temperature"),
        ({"advantage": "group_std"}, "type stage.advantage=batch"),
        ({"drop_solved": True}, "type stage.drop_solved=false"),
        ({"varying_prompts": 2}, "type stage.varying_prompts=null"),
        ({"overlong_buffer": 4}, "overlong_buffer gives"),
        ({"rewards": {"choice": 1, "format": 0.1}}, "has weights"),
        ({"rewards": {"choice": 1, "length": -0.1}}, "has weights"),
    ):
        found = faults({"stage": {**stage, **more}})
        assert len(found) == 1 and word in found[0]


# -- checkpoints


def test_checkpoints_hold_all_that_is_known_of_prompts(tmp_path: Path) -> None:
    made = spo()
    train(made, tmp_path)
    saved: dict[str, Any] = {"state_dict": {}}
    made.on_save_checkpoint(saved)
    again = Trackers()
    again.restore(saved["stage"]["trackers"])
    here, there = again.state(), made.stream.trackers.state()
    assert here.keys() == there.keys() and here["start_samples"] == there["start_samples"] == 12
    for name in here.keys() - {"start_samples"}:
        torch.testing.assert_close(here[name], there[name], rtol=0, atol=0, equal_nan=True)


def test_a_checkpoint_without_trackers_is_refused() -> None:
    with pytest.raises(UserError, match="holds no trackers of stage=spo"):
        Trackers().restore(None)


def test_last_answers_come_back_from_their_tensors() -> None:
    rollout = sampled(build(POLICY, seed=1), prompts(0), range(4), seed=1, step=0, n=2)
    answers = [NONE, *of_rollout(rollout), NONE]
    again = unpacked(packed(answers))
    assert len(again) == 10
    for one, other in zip(answers, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert unpacked(packed([])) == []


def test_fewer_prompts_than_updates_are_none_of_the_bad_steps(tmp_path: Path) -> None:
    """One record four times; a rank may also have no prompt at all."""

    def one_record(whole: PromptBatch) -> list[PromptBatch]:
        return [replace(whole, id=["0"] * 4, source_ids=torch.zeros(4, dtype=torch.long)).at([2, 3])]

    made = spo(chosen=4, updates=2, steps=2)
    rows = train(made, tmp_path, 2, parts=one_record)
    assert len(made.stream.trackers) == 1 and rows[2]["train/skipped"] == 0
    nobody = prompts(0).at([])
    rollout = made.actor.sampler.apart(nobody, made.network, step=0, samples=2, purpose="x")
    assert len(rollout) == len(of_rollout(made.actor.sampler.rollout(nobody, made.network, step=0))) == 0
    assert len(made.stream.note(made, made.learner, nobody, rollout, torch.zeros(0).double())) == 2
