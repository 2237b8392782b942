"""Laws of proximal policy optimisation in its stage: a plain loop, layouts, the critic's place, and warm-up."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.stages.reinforcement.made import ALONE, HEAD, POLICY, TALKS, VALUES, ppo, prompts
from tests.stages.reinforcement.test_grpo import drawn, plain_logp
from tests.stages.reinforcement.test_reward_model import asked_model
from tests.stages.test_step import ADAMW, Batches, Kept, optimization, trainer_of
from torch import Tensor, nn

from lifecycle.batch import Rollout
from lifecycle.errors import UserError
from lifecycle.model import Decoder, MoE, build
from lifecycle.model.layers.initial import ending_in, fresh_score
from lifecycle.optim import Muon
from lifecycle.optim.carry import carry_over
from lifecycle.rollout.environments.named import EnvironmentKeys
from lifecycle.stages.beside.critic import CriticKeys
from lifecycle.stages.ppo import Ppo, critic_copies, faults
from lifecycle.stages.step.optimization import Optimization

STEPS = 3
SCORED = replace(POLICY, score_head=True)
SEPARATE = replace(HEAD, kind="separate", lr=3e-3)
KL = replace(ppo().policy.kl, coefficient=0.3)


def train(made: Ppo, folder: Path, steps: int = STEPS, parts: Any = None) -> dict[int, dict[str, float]]:
    logger = Kept()
    batches: Any = [[prompts(step)] if parts is None else parts(prompts(step)) for step in range(steps)]
    trainer_of(steps, folder, logger=logger).fit(made, Batches(batches))
    return logger.rows


# -- a plain loop, from the formulas that verl publishes


class PlainCritic(nn.Module):
    """A score on a decoder: that of the policy, or one of its own."""

    def __init__(self, policy: Decoder, kind: str) -> None:
        super().__init__()
        self.own = None if kind == "head" else build(POLICY, seed=3)
        self.score = nn.Parameter(fresh_score(SCORED, seed=1)[0].clone())
        self.trunk = [policy if self.own is None else self.own]

    def values(self, rollout: Rollout, n: int) -> Tensor:
        ids = torch.tensor([*rollout.prompts[n], *rollout.completion(n)])[None, :-1]
        hidden = self.trunk[0](ids, torch.arange(ids.shape[1])[None])[0]
        value = (hidden[len(rollout.prompts[n]) - 1 :] * self.score).sum(-1)
        return value[rollout.sampled[n, : len(value)]]


def plain_gae(reward: Tensor, value: Tensor, gamma: float, lam: float) -> Tensor:
    out, last, ahead = torch.zeros_like(reward), 0.0, 0.0
    for t in reversed(range(len(reward))):
        last = float(reward[t] + gamma * ahead - value[t]) + gamma * lam * last
        out[t], ahead = last, float(value[t])
    return out


def plain_step(model: Decoder, reference: Decoder, critic: PlainCritic, rollout: Rollout) -> tuple[Tensor, float]:
    """The loss, and the explained variance."""
    score = ((rollout.token_ids * rollout.exists).sum(1) % 7) / 7
    with torch.no_grad():
        old = [plain_logp(model, rollout, n) for n in range(len(rollout))]
        value = [critic.values(rollout, n) for n in range(len(rollout))]
        advantage = []
        for n in range(len(rollout)):
            reward = -0.3 * (old[n] - plain_logp(reference, rollout, n))
            reward[-1] += score[n]
            advantage.append(plain_gae(reward, value[n], VALUES.gamma, VALUES.lam))
        returns = [a + v for a, v in zip(advantage, value, strict=True)]
        flat = torch.cat(advantage)
        advantage = [(a - flat.mean()) / (flat.var() + 1e-8).sqrt() for a in advantage]
        explained = 1 - (torch.cat(returns) - torch.cat(value)).var() / torch.cat(returns).var()
    total, tokens = torch.zeros(()), sum(map(len, old))
    for n in range(len(rollout)):
        ratio = (plain_logp(model, rollout, n) - old[n]).exp()
        total = total - torch.minimum(ratio * advantage[n], ratio.clamp(0.8, 1.2) * advantage[n]).sum()
        now = critic.values(rollout, n)
        near = value[n] + (now - value[n]).clamp(-0.5, 0.5)
        total = total + 0.5 * 0.5 * torch.maximum((now - returns[n]) ** 2, (near - returns[n]) ** 2).sum()
    return total / tokens, float(explained)


@pytest.mark.parametrize("environment", [ALONE, TALKS], ids=["alone", "environment"])
@pytest.mark.parametrize("keys", [HEAD, SEPARATE], ids=lambda keys: keys.kind)
def test_three_steps_are_those_of_a_plain_loop(keys: CriticKeys, environment: EnvironmentKeys, tmp_path: Path) -> None:
    made = ppo(critic=keys, kl=KL, environment=environment)
    rows = train(made, tmp_path)
    model, reference = build(POLICY, seed=3), build(POLICY, seed=3)
    critic = PlainCritic(model, keys.kind)
    groups: list[dict[str, Any]] = []
    parts: list[tuple[nn.Module, float]] = [(model, 1e-2), (critic, 1e-2 if keys.lr is None else keys.lr)]
    for part, rate in parts:
        decayed = [p for name, p in part.named_parameters() if p.dim() > 1 or name == "score"]
        plain = [p for name, p in part.named_parameters() if not (p.dim() > 1 or name == "score")]
        groups += [{"params": decayed, "lr": rate}, {"params": plain, "lr": rate, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=ADAMW.betas, eps=ADAMW.eps, weight_decay=ADAMW.weight_decay)
    for step in range(STEPS):
        rollout = drawn(model, step, prompts(step), environment)
        loss, explained = plain_step(model, reference, critic, rollout)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], 1.0)
        optimizer.step()
        row = rows[step + 1]
        assert row["train/loss"] == pytest.approx(loss.item(), abs=2e-5)
        assert row["train/grad_norm"] == pytest.approx(norm.item(), rel=1e-3)
        assert row["critic/explained_variance"] == pytest.approx(explained, abs=1e-4)
    for mine, theirs in zip(made.network.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=2e-4)
    assert made.critic is not None
    own = made.critic.score if made.critic.network is None else made.critic.network.score
    assert own is not None
    torch.testing.assert_close(own.weight[0], critic.score, rtol=1e-3, atol=2e-4)
    if made.critic.network is not None and critic.own is not None:
        theirs_of = dict(critic.own.named_parameters())
        for name, parameter in made.critic.network.named_parameters():
            if name in theirs_of:
                torch.testing.assert_close(parameter, theirs_of[name], rtol=1e-3, atol=2e-4)


# -- layouts


@pytest.mark.parametrize(
    "other", [{"micro_tokens": 64}, {"setup": {"attention": "sdpa", "compile": False}}, {"parts": True}], ids=str
)
@pytest.mark.parametrize("keys", [HEAD, SEPARATE], ids=lambda keys: keys.kind)
def test_the_split_of_a_step_changes_nothing(keys: CriticKeys, other: dict[str, Any], tmp_path: Path) -> None:
    more = {name: value for name, value in other.items() if name != "parts"}
    first, second = ppo(critic=keys, kl=KL, updates=2), ppo(critic=keys, kl=KL, updates=2, **more)
    halves = (lambda whole: [whole.rows(0, 1), whole.rows(1, 4)]) if "parts" in other else None
    a, b = train(first, tmp_path / "a", 1)[1], train(second, tmp_path / "b", 1, halves)[1]
    for name in ("train/loss", "critic/explained_variance", "critic/return", "critic/loss", "policy/kl"):
        assert a[name] == pytest.approx(b[name], abs=1e-5), name
    assert a["train/grad_norm"] == pytest.approx(b["train/grad_norm"], rel=1e-3)


def test_the_split_into_updates_leaves_advantages_and_returns_as_they_are(tmp_path: Path) -> None:
    a, b = (train(ppo(updates=n), tmp_path / str(n), 1)[1] for n in (1, 4))
    for name in ("critic/explained_variance", "critic/return", "critic/value"):
        assert a[name] == pytest.approx(b[name], abs=1e-6)
    assert a["policy/ratio"] == 1 != b["policy/ratio"]


# -- the distance from the parent


def test_the_distance_is_in_the_reward_or_in_the_loss_and_moves_the_coefficient(tmp_path: Path) -> None:
    moving = replace(KL, target=1e-3, horizon=100.0)
    inside = train(ppo(kl=moving), tmp_path / "reward")
    beside = train(ppo(kl=replace(moving, kind="k2"), values=replace(VALUES, kl_in="loss")), tmp_path / "loss")
    for rows in (inside, beside):
        assert abs(rows[1]["policy/kl"]) < 1e-6
        assert rows[1]["policy/kl_coefficient"] == pytest.approx(0.3 * (1 - 0.2 * 16 / 100))
    free = train(ppo(), tmp_path / "free")
    assert inside[3]["critic/return"] != free[3]["critic/return"] and "policy/kl" not in free[3]


# -- warm-up


@pytest.mark.parametrize("keys", [HEAD, SEPARATE], ids=lambda keys: keys.kind)
def test_the_policy_stands_still_while_its_critic_warms_up(keys: CriticKeys, tmp_path: Path) -> None:
    made = ppo(critic=replace(keys, warmup_steps=3))
    train(made, tmp_path)
    for mine, theirs in zip(made.network.parameters(), build(POLICY, seed=3).parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert made.critic is not None
    score = made.critic.state_dict()["score.weight" if keys.kind == "head" else "network.score.weight"]
    assert not torch.equal(score, fresh_score(SCORED, seed=1))
    moving = ppo(critic=replace(keys, warmup_steps=2))
    train(moving, tmp_path / "after")
    assert not torch.equal(moving.network.embedding.weight, made.network.embedding.weight)


# -- what it explains


def test_a_critic_that_is_right_explains_all(tmp_path: Path) -> None:
    made = ppo(values=replace(VALUES, gamma=1.0, lam=1.0))

    class Right(nn.Module):
        keys = HEAD

        def values(self, policy: Any, hidden_ND: Tensor, batch: Any, documents: Any) -> Tensor:
            return batch.advantage.clone() if batch.returns is None else batch.returns + 0 * hidden_ND.sum(-1)

        def balance(self) -> None:
            return None

    made.learner._values.critic = Right()  # type: ignore[union-attr]
    row = train(made, tmp_path, 1)[1]
    assert row["critic/explained_variance"] == pytest.approx(1) and row["critic/loss"] == pytest.approx(0, abs=1e-12)


# -- what becomes of the critic


def test_what_goes_on_from_the_policy_sees_nothing_of_the_critic(tmp_path: Path) -> None:
    made = ppo(critic=SEPARATE)
    train(made, tmp_path)
    state = made.configure_optimizers().state_dict()
    carry_over(state, ADAMW.build(build(POLICY, seed=1)))
    saved = made.state_dict()
    own = {name.removeprefix("model.") for name in saved if name.startswith("model.")}
    assert own == {*build(POLICY, seed=1).state_dict()} and any(name.startswith("critic.network.") for name in saved)
    again = ppo(critic=SEPARATE)
    again.configure_model()
    again.load_state_dict(saved)


def test_a_critic_of_its_own_is_counted_and_goes_with_no_adapter_and_no_shards() -> None:
    stage = {"stage": {"critic": {"kind": "separate"}}}
    assert critic_copies(stage) == 4 and critic_copies({"stage": {"critic": {"kind": "head"}}}) == 0
    assert "stage.critic.kind=head" in faults({**stage, "adapter": {"rank": 8}})[0]
    assert "hardware.strategy=ddp" in faults({**stage, "hardware": {"strategy": "fsdp"}})[0]
    assert faults(stage) == []


def test_a_separate_critic_begins_as_the_parent_with_a_fresh_score() -> None:
    made = ppo(critic=SEPARATE)
    made.configure_model()
    assert made.critic is not None and made.critic.network is not None
    wanted = ending_in(build(POLICY, seed=3).state_dict(), fresh_score(SCORED, seed=1))
    found = made.critic.network.state_dict()
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_score_on_a_policy_needs_no_class_that_ends_in_one_and_a_critic_of_its_own_does(tmp_path: Path) -> None:
    experts = MoE(experts=4, active=2, ffn_width=16, shared=1, score="sigmoid", bias_rate=0.01)
    policy = replace(POLICY, family="glm4_moe", moe=experts)
    warm = replace(HEAD, warmup_steps=1)  # its routers move in the second step alone, and both rows are read together
    rows = train(ppo(critic=warm, model=policy, steps=2, setup={"log_every": 2}), tmp_path, 2)
    assert "moe/load_max" not in rows[1] and rows[2]["moe/load_max"] >= 1 and rows[2]["critic/loss"] > 0
    with pytest.raises(UserError, match="family glm4_moe ends in a score: type stage.critic.kind=head"):
        ppo(critic=SEPARATE, model=policy)


def test_a_critic_may_begin_as_a_reward_model_of_another_size() -> None:
    judge = asked_model(config=replace(SCORED, layers=1, width=16, ffn_width=32))

    def read() -> Any:
        return build(judge.config, seed=9).state_dict()

    judge = replace(judge, weights=replace(judge.weights, read=read))
    keys = replace(SEPARATE, init_from="reward_model")
    made = ppo(critic=keys, setup={"asked": {"critic": judge}})
    made.configure_model()
    assert made.critic is not None and made.critic.network is not None
    found, wanted = made.critic.network.state_dict(), read()
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert all(parameter.requires_grad for parameter in made.critic.network.parameters())
    for changed, says in (
        ({"same_tokens": False}, "has another tokenizer or chat template"),
        ({"config": replace(judge.config, family="mistral", sliding_window=4)}, "sliding window of 4"),
    ):
        with pytest.raises(UserError, match=says):
            ppo(critic=keys, setup={"asked": {"critic": replace(judge, **changed)}})


def test_it_trains_a_critic_that_began_as_a_reward_model(tmp_path: Path) -> None:
    keys = replace(SEPARATE, init_from="judge")
    made = ppo(critic=keys, setup={"asked": {"critic": asked_model()}})
    rows = train(made, tmp_path, steps=2)
    assert rows[2]["critic/loss"] > 0
    assert made.critic is not None and made.critic.network is not None
    moved = made.critic.network.state_dict()
    assert all(not torch.equal(moved[name], before) for name, before in asked_model().weights.read().items())


def test_muon_moves_the_matrices_of_a_critic_too() -> None:
    muon = Muon(
        lr=1e-2,
        adamw_lr=None,
        embedding_lr=None,
        weight_decay=0.0,
        momentum=0.9,
        nesterov=True,
        newton_schulz_steps=5,
        scale="match_rms_adamw",
        betas=(0.9, 0.95),
        eps=1e-8,
        grad_clip=1.0,
    )
    made = ppo(critic=SEPARATE)
    made.configure_model()
    made.optimization = Optimization(replace(optimization(1e-2), optimizer=muon), made.setup_facts.timeline)
    optimizer, critic = made.configure_optimizers(), made.critic
    assert critic is not None
    before = {name: p.detach().clone() for name, p in critic.named_parameters()}
    for parameter in critic.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert all(not torch.equal(before[name], p) for name, p in critic.named_parameters())
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates["muon"] == 1e-2 and rates["critic_muon"] == SEPARATE.lr
