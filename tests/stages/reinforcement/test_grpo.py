"""Laws of group relative policy optimisation in its stage: a plain loop, ratios of 1, and that no layout matters."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model.adapted import lora
from tests.stages.reinforcement.made import (
    ALONE,
    DRAWING,
    GRADED,
    POLICY,
    TALKS,
    ByTokens,
    Letters,
    grpo,
    parent,
    prompts,
)
from tests.stages.test_step import ADAMW, Batches, Kept, trainer_of
from torch import Tensor
from torch.nn import functional as F

from lifecycle.batch import PromptBatch, Rollout
from lifecycle.duration import Segment, Timeline
from lifecycle.losses.policy.masks import SamplerMasks
from lifecycle.model import Decoder, build
from lifecycle.rewards.record import Answered
from lifecycle.rollout.engine import generate
from lifecycle.rollout.environments.named import EnvironmentKeys
from lifecycle.rollout.sampling.parameters import Sampling
from lifecycle.stages.grpo import Grpo
from lifecycle.stages.reinforcement import settings
from lifecycle.stages.reinforcement.acting.choice_of_prompts import Solved
from lifecycle.stages.reinforcement.acting.kept_rollouts import read
from lifecycle.stages.reinforcement.acting.scoring import Scoring
from lifecycle.stages.reinforcement.learning import learner
from lifecycle.stages.reinforcement.learning.coefficients import KlCoefficient
from lifecycle.stages.reinforcement.learning.experience import Experience, micro_batches

STEPS = 3


def train(made: Grpo, folder: Path, steps: int = STEPS, parts: Any = None) -> dict[int, dict[str, float]]:
    logger = Kept()
    batches: Any = [[prompts(step)] if parts is None else parts(prompts(step)) for step in range(steps)]
    trainer_of(steps, folder, logger=logger).fit(made, Batches(batches))
    return logger.rows


def weights(made: Grpo) -> list[Tensor]:
    return [p.detach().clone() for p in made.network.parameters()]


# -- a plain loop


def drawn(model: Decoder, step: int, given: PromptBatch, environment: EnvironmentKeys = ALONE, **more: Any) -> Rollout:
    banned, more = tuple(range(62, 64)), {"temperature": 0.8, **more}
    sampling = Sampling(max_new_tokens=9, samples=4, stop_ids=(0,), banned_ids=banned, **more)
    return generate(
        model,
        given.ids,
        sampling,
        seed=1,
        step=step,
        prompt_ids=given.number.tolist(),
        slots=5,
        environments=environment.of([Answered(prompt=Letters().decode(ids)) for ids in given.ids], Letters()),
    )


def plain_logp(model: Decoder, rollout: Rollout, n: int) -> Tensor:
    """Of the tokens of one completion that the policy drew, at the temperature of the draw, without the rows that only
    fill the matrix."""
    ids = torch.tensor([*rollout.prompts[n], *rollout.completion(n)])
    logits = model.logits(model(ids[None, :-1], torch.arange(len(ids) - 1)[None]))[0]
    logits = logits.masked_fill(torch.arange(64) >= 62, -torch.inf) / 0.8
    logp = F.log_softmax(logits, -1).gather(1, ids[1:, None])[len(rollout.prompts[n]) - 1 :, 0]
    return logp[rollout.sampled[n, : len(logp)]]


def plain_loss(model: Decoder, reference: Decoder, rollout: Rollout, advantage: Tensor, kind: str) -> Tensor:
    total, count = torch.zeros(()), 0.0
    for n in range(len(rollout)):
        logp = plain_logp(model, rollout, n)
        with torch.no_grad():
            u = plain_logp(reference, rollout, n)
        ratio = (logp - logp.detach()).exp()
        objective = torch.minimum(ratio * advantage[n], ratio.clamp(0.8, 1.2) * advantage[n])
        kl = ratio * ((u - logp).exp() + logp - u - 1)
        tokens = objective - 0.3 * kl
        if kind == "token":
            total, count = total - tokens.sum(), count + len(logp)
        else:
            total, count = total - tokens.mean(), count + 1
    return total / count


@pytest.mark.parametrize("environment", [ALONE, TALKS], ids=["alone", "environment"])
@pytest.mark.parametrize("kind", ["token", "sequence"])
def test_three_steps_are_those_of_a_plain_loop(kind: Any, environment: EnvironmentKeys, tmp_path: Path) -> None:
    made = grpo(normaliser=kind, kl=replace(grpo().policy.kl, coefficient=0.3), environment=environment)
    rows = train(made, tmp_path)
    model, reference = build(POLICY, seed=1), build(POLICY, seed=3)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p.dim() > 1]},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=ADAMW.betas, eps=ADAMW.eps, weight_decay=ADAMW.weight_decay)
    for step in range(STEPS):
        rollout = drawn(model, step, prompts(step), environment)
        assert bool((rollout.exists & ~rollout.sampled).any()) == (environment is TALKS)
        reward = ((rollout.token_ids * rollout.exists).sum(1) % 7) / 7
        advantage = (reward.view(4, 4) - reward.view(4, 4).mean(1, keepdim=True)).flatten()
        loss = plain_loss(model, reference, rollout, advantage, kind)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        row = rows[step + 1]
        assert row["rollout/reward"] == pytest.approx(float(reward.mean()), abs=1e-6)
        assert row["train/loss"] == pytest.approx(loss.item(), abs=2e-5)
        assert row["train/grad_norm"] == pytest.approx(norm.item(), rel=1e-3)
        assert row["rollout/length"] == pytest.approx(float(rollout.length.float().mean()))
    for mine, theirs in zip(weights(made), model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=2e-4)


# -- ratios


@pytest.mark.parametrize("truncated", [{}, {"top_k": 7}, {"top_p": 0.7}, {"min_p": 0.1}])
@pytest.mark.parametrize("updates", [1, 2])
def test_the_policy_gives_its_samples_the_probabilities_with_which_they_were_drawn(
    truncated: dict[str, Any], updates: int, tmp_path: Path
) -> None:
    made = grpo(drawing=replace(DRAWING, **truncated), updates=updates)
    for row in train(made, tmp_path).values():
        assert row["policy/ratio_max_deviation"] < 2e-5
        assert (row["policy/ratio"] == 1) == (updates == 1)


def silent_blocks() -> dict[str, Tensor]:
    """Weights whose blocks add nothing: hidden states are norms of embeddings, to the bit."""
    ends = ("o_proj.weight", "down_proj.weight")
    return {name: w * (not name.endswith(ends)) for name, w in build(POLICY, seed=1).state_dict().items()}


def test_a_head_in_fp32_is_one_in_sampler_policy_and_reference(tmp_path: Path, monkeypatch: Any) -> None:
    for name in ("fused.fits", "is_dense"):  # a norm in another order may more often round a hidden state otherwise
        monkeypatch.setattr(f"lifecycle.rollout.decoder.backend.{name}", lambda model: False)
    facts: dict[str, Any] = {"bf16": True, "read_weights": silent_blocks}
    facts["parent"] = replace(parent(), read=silent_blocks)
    found = {}
    for head in ("float32", None):
        made = grpo(steps=1, head_dtype=head, setup=facts, kl=replace(grpo().policy.kl, coefficient=0.3))
        logger = Kept()
        trainer = trainer_of(1, tmp_path / str(head), logger=logger, precision="bf16-mixed")
        trainer.fit(made, Batches([[prompts(0)]]))  # type: ignore[list-item]
        found[head] = logger.rows[1]
    assert all(row["policy/ratio_max_deviation"] < 2e-3 for row in found.values())  # the sampler is in bf16, too
    assert found["float32"]["rollout/entropy"] != found[None]["rollout/entropy"]
    assert found["float32"]["policy/kl"] == 0


# -- phases


def phases(*changes: dict[str, Any], steps: int = STEPS) -> Timeline:
    """A phase of one step for each of the changes; the last goes on."""
    segments = (Segment(**{"step": n, "row_length": 24, "rows": 4, "samples": 4, **c}) for n, c in enumerate(changes))
    return Timeline(steps, tuple(segments))


def test_a_phase_sets_temperature_samples_and_the_weight_of_the_kl_in_sampler_and_trainer(tmp_path: Path) -> None:
    line = phases({}, {"temperature": 1.7, "samples": 6, "kl_coefficient": 0.0}, {"temperature": 0.3}, steps=4)
    made = grpo(steps=4, kl=replace(grpo().policy.kl, coefficient=0.3), setup={"timeline": line})
    rows = train(made, tmp_path, 4)
    assert [rows[step]["policy/kl_coefficient"] for step in (1, 2, 3, 4)] == [0.3, 0, 0.3, 0.3]
    assert "policy/kl" not in rows[2] and min(rows[step]["policy/kl"] for step in (1, 3, 4)) > 1e-3
    assert all(row["policy/ratio_max_deviation"] < 5e-5 for row in rows.values())
    assert rows[2]["policy/entropy"] > rows[1]["policy/entropy"] > 2 * rows[3]["policy/entropy"]
    alone = grpo(steps=1, drawing=replace(DRAWING, temperature=1.7), samples=6)
    later = grpo(steps=1, setup={"timeline": phases({"temperature": 1.7, "samples": 6}, steps=1)})
    a, b = train(alone, tmp_path / "a", 1), train(later, tmp_path / "b", 1)
    assert all(torch.equal(x, y) for x, y in zip(weights(alone), weights(later), strict=True))
    assert a[1]["policy/entropy"] == b[1]["policy/entropy"] and a[1]["rollout/reward"] == b[1]["rollout/reward"]


def test_a_reference_that_only_a_later_phase_weighs_is_held(tmp_path: Path) -> None:
    facts = {"timeline": phases({}, {"kl_coefficient": 0.3}, steps=2), "log_every": 2}
    made = grpo(steps=2, setup=facts)  # both rows are read together, and the second tells more
    rows = train(made, tmp_path, 2)
    assert [rows[step]["policy/kl_coefficient"] for step in (1, 2)] == [0, 0.3] and rows[2]["policy/kl"] > 1e-3
    config = {"stage": {"kl": {"coefficient": 0.0}, "phases": [{"at_steps": 0}, {"at_steps": 1, "kl_coefficient": 1}]}}
    assert settings.frozen_copies(config) == 1


def test_a_coefficient_that_moves_goes_on_from_that_of_a_phase() -> None:
    coefficient = KlCoefficient(replace(grpo().policy.kl, coefficient=0.5, target=1e-3, horizon=100.0))
    line, seen = phases({}, {"kl_coefficient": 0.2}, {"step": 3}), []
    for step in range(5):
        coefficient.enter(step, line.at(step))
        seen.append(coefficient.value)
        coefficient.measured(torch.tensor([2e-3, 1.0]).double(), 10)
    grown = 1 + 0.2 * 10 / 100
    assert seen == pytest.approx([0.5, 0.2, 0.2 * grown, 0.2 * grown**2, 0.2 * grown**3])


# -- layouts


@pytest.mark.parametrize(
    "other",
    [{"micro_tokens": 64}, {"micro_tokens": 128}, {"setup": {"attention": "sdpa", "compile": False}}],
    ids=str,
)
@pytest.mark.parametrize("kind", ["token", "sequence", "prompt", "constant"])
def test_the_split_into_micro_batches_changes_nothing(kind: Any, other: dict[str, Any], tmp_path: Path) -> None:
    first, second = grpo(normaliser=kind, steps=1), grpo(normaliser=kind, steps=1, **other)
    a, b = train(first, tmp_path / "a", 1), train(second, tmp_path / "b", 1)
    assert a[1]["train/loss"] == pytest.approx(b[1]["train/loss"], abs=1e-6)
    assert a[1]["train/grad_norm"] == pytest.approx(b[1]["train/grad_norm"], rel=1e-4)


def test_an_engine_that_stays_changes_nothing(tmp_path: Path) -> None:
    found = []
    for keep in (True, False):
        made = grpo(keep_engine=keep)
        rows = train(made, tmp_path / str(keep))
        told = [{key: row[key] for key in ("rollout/reward", "rollout/entropy")} for row in rows.values()]
        found.append((told, made.network.state_dict()))
    (told, weights), (wanted_told, wanted) = found
    assert told == wanted_told and all(torch.equal(weights[name], wanted[name]) for name in wanted)


def test_the_split_of_the_prompts_changes_nothing(tmp_path: Path) -> None:
    first, second = grpo(), grpo()
    a = train(first, tmp_path / "a")
    b = train(second, tmp_path / "b", parts=lambda whole: [whole.rows(0, 1), whole.rows(1, 4)])
    timed = [name for name in a[1] if "perf/" in name or "per_second" in name]
    assert "perf/sampling_s" in timed and "rollout/tokens_per_second" in timed
    assert a == {step: {**row, **{name: a[step][name] for name in timed if name in row}} for step, row in b.items()}


def test_each_sample_is_used_as_often_as_asked_and_one_step_counts_as_one(tmp_path: Path) -> None:
    once, more = grpo(steps=1), grpo(steps=1, updates=2, passes=3)
    a, b = train(once, tmp_path / "a", 1)[1], train(more, tmp_path / "b", 1)[1]
    assert b["train/tokens"] == 3 * a["train/tokens"] and more.global_step == 1
    moved = [(x - y).abs().max() for x, y in zip(weights(more), weights(once), strict=True)]
    assert max(moved) > 1e-3


# -- a reference, an adapter


def test_a_reference_that_is_the_policy_has_no_distance(tmp_path: Path) -> None:
    made = grpo(
        steps=1,
        kl=replace(grpo().policy.kl, coefficient=0.5),
        setup={"read_weights": lambda: build(POLICY, seed=3).state_dict()},
    )
    assert abs(train(made, tmp_path, 1)[1]["policy/kl"]) < 1e-6


def test_the_coefficient_of_the_kl_moves_towards_its_target_and_is_saved(tmp_path: Path) -> None:
    made = grpo(kl=replace(grpo().policy.kl, coefficient=0.5, target=1e-3, horizon=100.0))
    rows = train(made, tmp_path)
    values = [rows[step]["policy/kl_coefficient"] for step in (1, 2, 3)]
    assert values == pytest.approx([0.5 * (1 + 0.2 * 16 / 100) ** n for n in (1, 2, 3)])
    saved: dict[str, Any] = {"state_dict": {}}
    made.on_save_checkpoint(saved)
    again = grpo(kl=replace(grpo().policy.kl, coefficient=0.5, target=1e-3, horizon=100.0))
    again.learner.coefficient.restore(saved["stage"]["kl_coefficient"])
    assert again.learner.coefficient.value == made.learner.coefficient.value


def test_the_weight_of_the_entropy_moves_by_that_of_the_samples_and_is_saved(tmp_path: Path) -> None:
    free = {step: row["policy/entropy"] for step, row in train(grpo(lr=1e-9), tmp_path / "free").items()}
    target = sorted(free.values())[1]  # of three steps one is above it
    made = grpo(lr=1e-9, entropy=0.02, entropy_target=target * 1.0001, entropy_delta=0.015)
    rows = train(made, tmp_path / "held")
    coefficient, wanted = 0.02, {}
    for step, entropy in free.items():
        below = entropy <= target * 1.0001
        wanted[step] = coefficient if below else 0.0
        coefficient = max(coefficient + (0.015 if below else -0.015), 0.0)
    assert {step: row["policy/entropy_coefficient"] for step, row in rows.items()} == pytest.approx(wanted)
    assert sorted(wanted.values())[0] == 0
    saved: dict[str, Any] = {"state_dict": {}}
    made.on_save_checkpoint(saved)
    assert saved["stage"]["entropy_coefficient"] == pytest.approx(coefficient)
    again = grpo(entropy_target=target)
    again.learner.entropy.restore(saved["stage"]["entropy_coefficient"])
    assert again.learner.entropy.value == made.learner.entropy.value


def test_a_weight_that_stands_on_its_target_is_that_of_a_constant(tmp_path: Path) -> None:
    """In the first step, which has the coefficient that it begins with."""
    constant, held = grpo(steps=1, entropy=0.5), grpo(steps=1, entropy=0.5, entropy_target=99.0)
    for made in (constant, held):
        train(made, tmp_path / str(made is held), 1)
    assert all(torch.equal(a, b) for a, b in zip(weights(constant), weights(held), strict=True))


def test_the_reference_of_an_adapter_is_the_model_without_it(tmp_path: Path) -> None:
    made = grpo(kl=replace(grpo().policy.kl, coefficient=0.5), setup={"adapter": lora()})
    rows = train(made, tmp_path)
    assert made.learner.reference.beside is None and abs(rows[1]["policy/kl"]) < 1e-6 < rows[3]["policy/kl"]


# -- nothing to learn


def test_equal_rewards_change_nothing_and_are_no_bad_step(tmp_path: Path) -> None:
    class Equal(ByTokens):
        def scores(self, stage: Any, rollout: Rollout, given: PromptBatch) -> Any:
            return replace(
                ByTokens().scores(stage, rollout, given), rewards=torch.full((len(rollout), 1), 0.3).double()
            )

    made = grpo(steps=1)
    made.actor.scoring = Equal()  # type: ignore[assignment]
    row = train(made, tmp_path, 1)[1]
    assert row["train/loss"] == 0 and row["train/grad_norm"] == 0 and row["rollout/groups_varying"] == 0
    assert row["train/skipped"] == 0


@pytest.mark.parametrize("kind", ["token", "sequence", "prompt", "constant"])
def test_samples_that_move_nothing_are_not_computed_and_count_in_every_divisor(kind: Any, tmp_path: Path) -> None:
    class HalfEqual(ByTokens):
        """The samples of the first two prompts are worth the same."""

        def scores(self, stage: Any, rollout: Rollout, given: PromptBatch) -> Any:
            found = super().scores(stage, rollout, given)
            return replace(found, rewards=found.rewards.masked_fill((found.place < 2)[:, None], 0.5))

    def run(name: str) -> tuple[list[Tensor], dict[str, float]]:
        made = grpo(steps=1, samples=3, normaliser=kind)
        made.actor.scoring = HalfEqual()  # type: ignore[assignment]
        row = train(made, tmp_path / name, 1)[1]
        return weights(made), row

    fewer, row = run("fewer")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Experience, "without_idle", lambda self: self)
        all_of_them, other = run("all")
    assert 0 < row["train/tokens"] < other["train/tokens"]
    assert row["train/loss"] == pytest.approx(other["train/loss"], abs=1e-7)
    assert row["rollout/entropy"] == other["rollout/entropy"] > 0
    for mine, theirs in zip(fewer, all_of_them, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_a_step_of_which_all_is_masked_is_none_of_the_bad_ones(tmp_path: Path) -> None:
    drawing = replace(DRAWING, max_new_tokens=1)
    made = grpo(steps=1, drawing=drawing, mask_unfinished=True, samples=1)
    row = train(made, tmp_path, 1)[1]
    assert row["train/skipped"] == 0 and row["train/loss"] == 0


# -- masks against the sampler


def test_masks_act_on_what_has_moved_and_are_told(tmp_path: Path) -> None:
    """At one update a rollout the off-policy mask cannot fire; later updates move away from the sampler."""
    masks = SamplerMasks(off_policy_threshold=0.01, truncate_between=(0.0, 1.0))
    one = train(grpo(masks=masks), tmp_path / "a")
    assert [row["policy/off_policy_masked"] for row in one.values()] == [0, 0, 0]
    many = train(grpo(masks=masks, passes=6, lr=3e-2), tmp_path / "b")
    assert many[3]["policy/off_policy_masked"] > 0
    free = train(grpo(passes=6, lr=3e-2), tmp_path / "c")
    assert free[1]["train/grad_norm"] != many[1]["train/grad_norm"]
    assert one[1]["policy/sampler_ratio"] == pytest.approx(1, abs=1e-5)
    assert one[1]["policy/sampler_effective"] == pytest.approx(1, abs=1e-5)


# -- which prompts


def test_only_prompts_whose_samples_differ_are_trained_on_and_sampling_ends_with_enough_of_them(tmp_path: Path) -> None:
    made = grpo(steps=1, varying_prompts=2, samples=3)
    row = train(made, tmp_path / "a", 1)[1]
    assert row["rollout/prompts_kept"] == 2 and row["train/tokens"] <= 2 * 3 * 9
    every = train(grpo(steps=1, samples=3), tmp_path / "b", 1)[1]
    assert row["train/tokens"] < every["train/tokens"]

    class Half(ByTokens):
        """Prompts 0 and 2 teach nothing."""

        def scores(self, stage: Any, rollout: Rollout, given: PromptBatch) -> Any:
            found = super().scores(stage, rollout, given)
            return replace(found, rewards=found.rewards.masked_fill((found.place % 2 == 0)[:, None], 1.0))

    made = grpo(steps=1, varying_prompts=4, samples=3)
    made.actor.scoring = Half()  # type: ignore[assignment]
    row = train(made, tmp_path / "c", 1)[1]
    assert row["rollout/prompts_kept"] == 2 and row["rollout/groups_varying"] == 0.5


def test_solved_prompts_are_not_asked_again_and_checkpoints_know_them(tmp_path: Path) -> None:
    class First(ByTokens):
        """Prompt 0 is solved each time."""

        def scores(self, stage: Any, rollout: Rollout, given: PromptBatch) -> Any:
            found = super().scores(stage, rollout, given)
            asked.append(len(rollout))
            return replace(found, rewards=found.rewards.masked_fill((found.place == 0)[:, None], 1.0))

    made, asked = grpo(drop_solved=True, samples=3), list[int]()
    made.actor.scoring = First()  # type: ignore[assignment]
    train(made, tmp_path / "a")
    assert asked == [12, 9, 9]  # all four prompts once
    again = Solved(drops=True)
    again.restore(made.actor.solved.state())
    assert [len(again.without(prompts(1))), len(made.actor.solved.state())] == [3, 1]
    made, asked = grpo(drop_solved=True, samples=3, varying_prompts=4), list[int]()
    made.actor.scoring = First()  # type: ignore[assignment]
    train(made, tmp_path / "b")
    assert asked == [12, 9, 9]  # and of prompts that are not trained on, as their samples are alike, it is known, too


def test_it_is_said_once_that_no_prompt_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class All(ByTokens):
        def scores(self, stage: Any, rollout: Rollout, given: PromptBatch) -> Any:
            found = super().scores(stage, rollout, given)
            return replace(found, rewards=torch.ones_like(found.rewards))

    made = grpo(drop_solved=True, samples=2, updates=2, varying_prompts=2)
    made.actor.scoring = All()  # type: ignore[assignment]
    rows = train(made, tmp_path)
    assert "rollout/reward" in rows[1] and "rollout/reward" not in rows[3] and rows[3]["train/loss"] == 0
    assert capsys.readouterr().err.count("step 2 has no prompt that was not solved") == 1


def test_each_update_has_an_equal_part_of_the_prompts_that_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = list[int]()

    def counted(experience: Experience, samples: Sequence[int], *given: Any, **more: Any) -> Any:
        parts.append(len({int(experience.place[n]) for n in samples}))
        return micro_batches(experience, samples, *given, **more)

    monkeypatch.setattr(learner, "micro_batches", counted)
    train(grpo(steps=1, varying_prompts=2, updates=2, samples=3), tmp_path, 1)  # the first part of two has enough
    assert parts == [1, 1]
    parts.clear()
    train(grpo(steps=1, varying_prompts=2, updates=3, samples=3), tmp_path / "b", 1)  # and none changes the weights by
    assert parts == [1, 1]  # momentum alone


# -- kept rollouts


def test_kept_rollouts_hold_every_sample_with_its_worth_and_its_tokens(tmp_path: Path) -> None:
    made = grpo(keep_rollouts=2, drawing=replace(DRAWING, top_k=5), setup={"folder": tmp_path})
    (tmp_path / "rollouts").mkdir()
    for rank in range(2):  # of two ranks, which were killed behind their last checkpoint
        (tmp_path / f"rollouts/step-00000002-{rank}.parquet").write_bytes(b"")
    train(made, tmp_path / "run")
    assert [file.name for file in (tmp_path / "rollouts").glob("*")] == ["step-00000002.parquet"]
    found = read(tmp_path).to_pylist()
    assert len(found) == 16 and {row["step"] for row in found} == {2}
    for row in found:
        assert row["reward"] == row["rewards"]["sum"] == sum(row["token_ids"]) % 7 / 7
        assert len(row["token_ids"]) == len(row["logprobs"]) == len(row["kept_counts"])
        assert set(row["kept_counts"]) == {5} and len(row["kept_ids"]) == 5 * len(row["token_ids"])
    of_first = [row for row in found if row["place"] == 0]
    assert sum(row["advantage"] for row in of_first) == pytest.approx(0, abs=1e-6)


def test_an_overlong_completion_loses_up_to_its_whole_reward() -> None:
    given = prompts(0)
    rollout = drawn(build(POLICY, seed=1), 0, given)
    keys = replace(GRADED, rewards={"length": 1.0}, overlong_buffer=4)
    scoring = Scoring(keys, grpo().setup_facts, longest=12)
    scores = scoring.scores(grpo(), replace(rollout, text=["a b c d"] * len(rollout)), given)
    assert scores.names == ["length", "overlong"]
    assert scores.total.tolist() == pytest.approx([1 + min(0.0, (8 - n) / 4) for n in rollout.length.tolist()])
    scoring.close()
