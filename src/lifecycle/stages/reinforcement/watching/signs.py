"""Signs that a run of reinforcement learning goes wrong, each said once, with what to do.

A sign looks at means of ten steps: the last ones, beside the first ones of the run. They are of the numbers that are
logged, so that a run that goes on says what the run that was not stopped would.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from lifecycle.rewards.graders import KNOW_THE_ANSWER
from lifecycle.stages.reinforcement.watching.trends import Trends

LEAST_ENTROPY, ENTROPY_LEFT = 0.01, 0.1
"""Nats a token; and the share of the entropy at the start, below which it has collapsed."""
MOST_KL = 0.5
"""Nats a token between the policy and its reference."""
LENGTH_LEFT = 0.25
"""Share of the length at the start, below which answers have collapsed."""
MORE_CUT_OFF = 0.3
"""By how much the share of answers that are cut off may grow."""
ENTROPY_HALVED = 0.5
"""Share of the first entropy from which samples that are alike may be one and the same answer."""
_SETTLED = (
    "The entropy of its samples has gone from {:.3g} to {:.3g} nats a token: if all say the same (rollouts/), the "
    "policy has settled, and practice cannot bring it back. Begin again with a lower rate (stage.optimizer.lr) or "
    "stage.kl.coefficient=0.01. "
)
FEW_VARY = 0.05
"""Share of the prompts whose samples differ."""
STEPS_VARY = 0.5
"""Share of the steps of single answers whose rewards differ."""
REWARD_LOST = 0.3
"""Share of the best reward so far that may be lost."""
REWARD_APART = 0.1
"""By how much one reward may fall while their sum rises."""
MOST_DEVIATION = {False: 0.01, True: 1.0}
"""Of a ratio from 1 under the weights that drew the sample: in fp32, and in bf16."""
LEAST_EFFECTIVE = 0.9
"""Effective share of the tokens under these ratios."""
MANY_FAIL = 0.05
"""Share of the samples that a grader fails on, or takes too long for."""
MEND_A_GRADER = "Mend the grader or its data, or raise its limits (stage.grading.cpu_s, memory_mb)"
OF_A_JUDGE = (
    "judge/failed is the share of its questions without a reply (stage.judge.timeout_s, attempts, in_flight), and "
    "judge/unreadable that of replies without a verdict (stage.judge.template, max_new_tokens)"
)
MEND = {
    "judge": OF_A_JUDGE,
    "preferred": OF_A_JUDGE,
    "reward_model": "Take a reward model with more positions, or shorter answers (stage.sampling.max_new_tokens)",
}
"""By reward, what to do where that is no grader."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Of the run. bf16: whether it computes in bf16. rewards: their names."""

    bf16: bool
    rewards: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Sign:
    """What was noticed after step `step`, in words."""

    step: int
    cause: str
    words: str


class Signs:
    """Sees the row of every step; `state` is for the checkpoint."""

    def __init__(self, facts: Facts) -> None:
        self._facts, self._trends = facts, Trends()
        self.said: list[Sign] = []

    def see(self, step: int, row: Mapping[str, float]) -> list[Sign]:
        """What is new after step `step`."""
        of_rewards = [f"reward/{name}{end}" for name in self._facts.rewards for end in ("", "/failed", "/timed_out")]
        self._trends.add(row, [*NUMBERS, *of_rewards])
        known = {one.cause for one in self.said}
        looked = [(cause, look) for cause, look in self._looks() if cause not in known]
        new = [Sign(step=step, cause=cause, words=words) for cause, look in looked if (words := look())]
        self.said += new
        return new

    def _looks(self) -> list[tuple[str, Callable[[], str | None]]]:
        """Every sign by its cause."""
        trends, facts = self._trends, self._facts
        looks: list[tuple[str, Callable[[], str | None]]] = [
            (name, partial(look, trends)) for name, look in LOOKS.items()
        ]
        looks.append(("ratio", partial(_ratio, trends, bf16=facts.bf16)))
        for name in facts.rewards:
            looks.append((f"failed {name}", partial(_failing, trends, name)))
            looks.append((f"apart {name}", partial(_apart, trends, name)))
        return looks

    def state(self) -> dict[str, Any]:
        """Plain containers."""
        return {"trends": self._trends.state(), "said": [[one.step, one.cause, one.words] for one in self.said]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        self._trends.restore(state["trends"])
        self.said = [Sign(step=step, cause=cause, words=words) for step, cause, words in state["said"]]


def _entropy(trends: Trends) -> str | None:
    trend = trends.known("rollout/entropy")  # of all samples: those that are alike are not computed again
    if trend is None or not (trend.now < LEAST_ENTROPY or trend.now < ENTROPY_LEFT * trend.start):
        return None
    return (
        f"the entropy of the policy has gone from {trend.start:.3g} to {trend.now:.3g} nats a token: it answers a "
        "prompt in one way, and samples that are alike teach nothing. Lower the rate (stage.optimizer.lr), reward "
        "entropy (stage.entropy=0.001), hold it to its parent (stage.kl.coefficient=0.01), or draw more freely "
        "(stage.sampling.temperature)"
    )


def _kl(trends: Trends) -> str | None:
    trend = trends.known("policy/kl")
    if trend is None or trend.now < MOST_KL:
        return None
    return (
        f"the policy is {trend.now:.2g} nats a token from its reference: at such a distance it has often left its "
        "language, and what a reward model says of it is not to be trusted. Look at its samples (rollouts/), lower the "
        "rate (stage.optimizer.lr), or raise stage.kl.coefficient (or let it move: stage.kl.target=0.05)"
    )


def _shorter(trends: Trends) -> str | None:
    trend = trends.known("rollout/length")
    if trend is None or trend.now >= LENGTH_LEFT * trend.start:
        return None
    return (
        f"answers have gone from {trend.start:.3g} to {trend.now:.3g} tokens: look at them (rollouts/). If the reward "
        "rises they may be right to be short; if not, a penalty for length (stage.overlong_buffer, the reward "
        "'length') or stage.normaliser=sequence may be what shortens them"
    )


def _cut_off(trends: Trends) -> str | None:
    trend = trends.known("rollout/stopped")
    if trend is None or trend.now > trend.start - MORE_CUT_OFF:
        return None
    return (
        f"{1 - trend.now:.0%} of the answers are cut off at stage.sampling.max_new_tokens (or, with an environment, at "
        f"one call more than stage.environment.max_turns), and {1 - trend.start:.0%} were at the start: they grow "
        "longer than there is room. Give them room, take length off the reward (stage.overlong_buffer), or leave those "
        "that are cut off untrained (stage.mask_unfinished=true)"
    )


def _alike(trends: Trends) -> str | None:
    trend, reward = trends.known("rollout/groups_varying"), trends.known("rollout/reward")
    if trend is None or reward is None or trend.now >= FEW_VARY:
        return None
    entropy = trends.known("rollout/entropy")
    settled = entropy is not None and entropy.now < ENTROPY_HALVED * entropy.start
    return (
        f"{1 - trend.now:.0%} of the prompts have samples with equal rewards, which teach nothing: a loss of 0 is then "
        f"expected, and no fault. The mean reward is {reward.now:.3g}. "
        + (_SETTLED.format(entropy.start, entropy.now) if settled and entropy is not None else "")
        + "Where the reward is near the most, the data is solved: take harder prompts, or stage.drop_solved=true; "
        "where it is near the least, it is too hard: easier prompts, stage=sft first, more samples a prompt. "
        "stage.varying_prompts trains on those that vary"
    )


def _equal(trends: Trends) -> str | None:
    trend, reward = trends.known("spo/rewards_vary"), trends.known("rollout/reward")
    if trend is None or reward is None or trend.now >= STEPS_VARY:
        return None
    return (
        f"in {1 - trend.now:.0%} of the last ten steps all answers had the same reward ({reward.now:.3g} in the mean): "
        "what is learnt there follows from what trackers expected alone. Where the reward is near 1, the data is "
        "solved: take harder prompts; where it is near 0, it is too hard: easier prompts, stage=sft first, or more "
        "answers a step (stage.chosen_per_step)"
    )


def _reward(trends: Trends) -> str | None:
    trend = trends.known("rollout/reward")
    if trend is None or not trend.best:
        return None
    fallen = trend.fallen(trend.best)
    best = trend.now + fallen
    if fallen <= REWARD_LOST * abs(best):
        return None
    return (
        f"the reward of the samples has fallen from {best:.3g}, its best mean of ten steps, to {trend.now:.3g}: the "
        "policy unlearns. Lower the rate (stage.optimizer.lr), take fewer updates a rollout, or hold it to its parent "
        "(stage.kl.coefficient). RUN@best is the checkpoint that answered held-out prompts best"
    )


def _critic(trends: Trends) -> str | None:
    trend = trends.known("critic/explained_variance")
    if trend is None or trend.now >= 0:
        return None
    return (
        f"the critic explains less than a constant would (explained variance {trend.now:.2g}): the advantages are "
        "noise. Let it learn alone first (stage.critic.warmup_steps), faster (stage.critic.lr), or take stage=grpo"
    )


def _ratio(trends: Trends, *, bf16: bool) -> str | None:
    largest, effective = trends.known("policy/ratio_max_deviation"), trends.known("policy/sampler_effective")
    if largest is None or effective is None:
        return None
    if largest.now <= MOST_DEVIATION[bf16] and effective.now >= LEAST_EFFECTIVE:
        return None
    return (
        f"the probabilities that sampling and training give a token differ by up to {largest.now:.1%} of the sampler's "
        f"(effective share of the tokens {effective.now:.2g}), under the same weights: what is trained is not what was "
        "drawn. Compute in fp32 (hardware.precision=fp32), or weigh it (stage.masks.truncate_between=[0, 2])"
    )


def _failing(trends: Trends, name: str) -> str | None:
    for end, words in (("failed", "fails on"), ("timed_out", "takes too long for")):
        trend = trends.known(f"reward/{name}/{end}")
        if trend is not None and trend.now > MANY_FAIL:
            what = "has no mark of it" if end == "failed" else "gets 0 for it"
            return (
                f"the reward '{name}' {words} {trend.now:.0%} of the samples, each of which {what}: what it said first "
                f"stands above. {MEND.get(name, MEND_A_GRADER)}"
            )
    return None


def _apart(trends: Trends, name: str) -> str | None:
    one, whole = trends.known(f"reward/{name}"), trends.known("rollout/reward")
    if one is None or whole is None or whole.now <= whole.start or one.fallen(one.first) <= REWARD_APART:
        return None
    kind = "the answers get worse" if name in KNOW_THE_ANSWER else "the shape of the answers is given up"
    return (
        f"the sum of the rewards has risen from {whole.start:.3g} to {whole.now:.3g}, and the reward '{name}' has "
        f"fallen from {one.start:.3g} to {one.now:.3g}: {kind} for what the others pay. Give '{name}' more weight "
        "(stage.rewards), or the others less"
    )


LOOKS: dict[str, Callable[[Trends], str | None]] = {
    "entropy": _entropy,
    "kl": _kl,
    "shorter": _shorter,
    "cut off": _cut_off,
    "alike": _alike,
    "equal": _equal,
    "reward": _reward,
    "critic": _critic,
}
NUMBERS = (
    "rollout/entropy",
    "policy/kl",
    "policy/ratio_max_deviation",
    "policy/sampler_effective",
    "rollout/length",
    "rollout/stopped",
    "rollout/groups_varying",
    "spo/rewards_vary",
    "rollout/reward",
    "critic/explained_variance",
)
"""What is looked at of every step, beside the rewards."""
