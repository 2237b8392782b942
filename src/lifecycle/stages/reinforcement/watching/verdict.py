"""What a pre-flight means, in words: why a run would learn nothing, what is near to that, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lifecycle.stages.reinforcement.settings import PreflightKeys
from lifecycle.stages.reinforcement.watching.preflight import Preflight

LEAST_GROUPS = 16
"""Prompts of which none has samples that differ, so that this is no chance: of fewer it is only warned."""
WANTED = {
    "choice": 'a letter that is stated as the answer: "The answer is (B)", "Answer: B", or "B" alone',
    "number": 'a number that is stated last: "#### 18", "The answer is 18", or "18" at the end',
    "math": r'a number or a formula: "\boxed{\frac{1}{2}}", "The answer is 1/2", or "$x = 2$"',
    "exact_match": "any text at all, which must be the known answer letter by letter",
    "code": "a program that Python can parse, best in a fenced block, with the function that the tests call",
}
"""By reward, what its grader reads."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What of the config advice speaks of. ends: names of the tokens that end a completion, and further texts that
    do. max_turns: calls that it may make; None: there is no environment."""

    max_new_tokens: int
    temperature: float
    samples_per_prompt: int
    ends: Sequence[str]
    max_turns: int | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """refused: why the run would learn nothing; warned: what is near to that. A line each."""

    refused: list[str]
    warned: list[str]


def verdict(found: Preflight, keys: PreflightKeys, drawing: Drawing) -> Verdict:
    """Judge a pre-flight."""
    refused, warned = list[str](), list[str]()

    def judge(share: float, words: Callable[[], str], *, certain: bool = True) -> None:
        if share < keys.refuse_below and certain:
            refused.append(words())
        elif share < max(keys.warn_below, keys.refuse_below):
            warned.append(words())

    judge(found.marked, lambda: _unmarked(found))
    judge(found.stopped, lambda: _endless(found, drawing))
    if found.marked:
        for name, share in found.stated.items():
            judge(share, lambda name=name: _unread(found, name))  # type: ignore[misc]
        if found.varying is not None:
            judge(found.varying, lambda: _alike(found, drawing), certain=found.prompts >= LEAST_GROUPS)
    warned += _beside(found, keys)
    return Verdict(refused=refused, warned=warned)


def refusal(why: Sequence[str]) -> str:
    """The message of a run that is refused."""
    lines = "\n".join(f"  - {one}" for one in why)
    return (
        f"nothing to learn from, by samples that were drawn before the first update:\n{lines}\n"
        "Nothing was trained. To train all the same: stage.preflight.refuse_below=0"
    )


def _unmarked(found: Preflight) -> str:
    what = f"{_share(1 - found.marked)} of the completions have no reward"
    if found.failed:
        said = "; ".join(f"'{name}' failed {count} times: {_said(found, name)}" for name, count in found.failed.items())
        return f"{what}: the grader {said}. Mend that, or take another reward (stage.rewards)"
    return (
        f"{what}: their rows lack what the reward needs, as a known answer, or tests (or your own function returned "
        "None for each): choose data that has it, name its fields (data.sources.NAME.fields), or take another reward "
        "(stage.rewards, or data.sources.NAME.rewards)"
    )


def _endless(found: Preflight, drawing: Drawing) -> str:
    calls = (
        f", and one call more than stage.environment.max_turns={drawing.max_turns} cuts a completion off"
        if drawing.max_turns
        else ""
    )
    return (
        f"{_share(found.stopped)} of the completions come to their own end within stage.sampling.max_new_tokens="
        f"{drawing.max_new_tokens}; ends are {', '.join(drawing.ends)}{calls}. A model of plain text does not know "
        "where an answer ends: fine-tune it first (stage=sft, or stage=midtrain on questions with answers). Where it "
        "was fine-tuned elsewhere, ask as it was asked then (data.chat_template) and name what ended its answers "
        "(stage.sampling.stop=[TEXT]). Where the sample shown that is cut off is on its way to an answer, let it "
        "finish: stage.sampling.max_new_tokens"
    )


def _unread(found: Preflight, name: str) -> str:
    wanted = WANTED.get(name, "an answer")
    return (
        f"the reward '{name}' finds an answer in {_share(found.stated[name])} of the completions. It reads {wanted}. "
        "Fine-tune on answers that look so (stage=sft), say in the prompt how to answer (data.plain_prompt, or a "
        "system prompt), or take the reward that reads what the samples shown say (stage.rewards)"
    )


def _alike(found: Preflight, drawing: Drawing) -> str:
    varying = found.varying or 0.0
    some = f"{_share(varying)} of the prompts have" if varying else "no prompt has"
    what = f"{some} samples that differ in their reward, and only such prompts teach"
    if found.full > 0.5:
        return (
            f"{what}: {_share(found.full)} are wholly right already. Too easy: take harder data, or leave solved "
            "prompts out (stage.drop_solved=true)"
        )
    if found.right is None:
        return (
            f"{what}: the answers to a prompt are marked alike, as answers that are alike are. Look at the samples "
            f"shown, and draw more freely (stage.sampling.temperature={max(1.0, drawing.temperature + 0.2):g}), or "
            f"more (stage.samples_per_prompt={2 * drawing.samples_per_prompt}); where they differ, take a reward that "
            "tells them apart (stage.rewards)"
        )
    if found.right[1] < 0.5:
        return (
            f"{what}: of most, no sample is right. Too hard as it stands: take easier data, fine-tune on answers first "
            "(stage=sft), take a reward that also gives parts (stage.rewards={NAME: 1, format: 0.1}), or draw more "
            f"(stage.samples_per_prompt={2 * drawing.samples_per_prompt})"
        )
    return (
        f"{what}: the others are either always right or never. Draw more freely (stage.sampling.temperature="
        f"{max(1.0, drawing.temperature + 0.2):g}), or more (stage.samples_per_prompt={2 * drawing.samples_per_prompt})"
    )


def _beside(found: Preflight, keys: PreflightKeys) -> list[str]:
    """Warnings of what never ends a run."""
    out = []
    if found.right is not None and found.right[1] == 0 and found.varying:
        out.append(
            "no completion is right: only the other rewards differ, and a policy learns these alone until it meets an "
            "answer by chance"
        )
    for name, share in found.too_long.items():
        if share > keys.warn_below:
            out.append(
                f"{_share(share)} of the rows of source '{name}' were left out: with stage.sampling.max_new_tokens for "
                "an answer, they are longer than stage.sequence_length"
            )
    slow = {name: count for name, count in found.timed_out.items() if count > keys.warn_below * _samples(found)}
    for name, count in slow.items():
        out.append(f"the reward '{name}' took too long for {count} of {_samples(found)} completions, which got 0")
    for name, count in found.failed.items():
        if found.marked >= max(keys.warn_below, keys.refuse_below):
            out.append(f"the reward '{name}' failed on {count} of {_samples(found)} completions: {_said(found, name)}")
    return out


def _said(found: Preflight, name: str) -> str:
    return found.said.get(name, "on another rank, whose output says why")


def _samples(found: Preflight) -> int:
    return found.prompts * found.samples


def _share(value: float) -> str:
    return "none" if value == 0 else "all" if value == 1 else f"{value:.1%}"
