"""A judge as a reward: the marks of its replies, counted; a run that it cannot mark ends in words."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.rewards.judge.served import Answer, keys, said, serving
from tests.stages.reinforcement.made import GRADED, POLICY, Letters, grpo, prompts
from tests.stages.reinforcement.test_reward_model import drawn
from tests.stages.test_step import trainer_of

from lifecycle.batch import TURNS
from lifecycle.errors import UserError
from lifecycle.model import build
from lifecycle.rewards.judge.faults import faults
from lifecycle.rewards.judge.settings import Criterion, JudgeKeys
from lifecycle.stages.reinforcement.acting.actor import each_alone
from lifecycle.stages.reinforcement.acting.scorers.judge import Judge, shown
from lifecycle.stages.reinforcement.acting.scoring import Scoring
from lifecycle.stages.run.setup import AskedModel, ParentWeights


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIFECYCLE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def completion_of(question: str) -> str:
    found = re.search(r"<completion-\w+>\n(.*?)\n</completion-", question, re.DOTALL)
    assert found is not None
    return found[1]


def by_length(body: Mapping[str, Any], number: int) -> Answer:
    """Scores an answer by its letters, prefers the longer one."""
    question = body["messages"][-1]["content"]
    if "<a-" not in question:
        return said(f"Score: {min(len(completion_of(question)), 10)}")
    first, second = (re.search(rf"<{name}-\w+>\n(.*?)\n</{name}-", question, re.DOTALL) for name in "ab")
    assert first is not None and second is not None
    return said(
        f"Better: {'A' if len(first[1]) > len(second[1]) else 'tie' if len(first[1]) == len(second[1]) else 'B'}"
    )


def scoring(judge: JudgeKeys, rewards: Mapping[str, float], **setup: Any) -> tuple[Scoring, Any]:
    made = grpo(setup={"folder": Path("outputs/mine"), **setup})
    made.trainer = trainer_of(1, Path())
    found = Scoring(replace(GRADED, rewards=dict(rewards), judge=judge), made.setup_facts, longest=9)
    for one in found.beside:
        one.build(None)
    return found, made


def test_samples_are_marked_by_replies_and_by_pairs() -> None:
    given, rollout = prompts(1), drawn(prompts(1))
    with serving(by_length) as served:
        judge = keys(url=served.url, price_in=1e4, price_out=1e5)
        marker, made = scoring(judge, {"judge": 1.0, "preferred": 0.5, "length": 0.1})
        found, told = marker.scores(made, rollout, given), marker.told()
        marker.close()
    lengths = [len(text) for text in rollout.text]
    assert found.names == ["judge", "preferred", "length"] and not found.rewards.isnan().any()
    assert found.rewards[:, 0].tolist() == pytest.approx([min(one, 10) / 10 for one in lengths])
    for at in range(0, len(lengths), 3):
        group = lengths[at : at + 3]
        shares = [sum(0.5 * (a > b) + 0.5 * (a >= b) for b in group) / 2 - 0.25 for a in group]
        assert found.rewards[at : at + 3, 1].tolist() == pytest.approx(shares)
    asked = len(served.bodies)
    assert told["judge/tokens_in"].tolist() == [100 * asked, 1] and told["judge/cost"][0] == pytest.approx(2 * asked)
    assert told["judge/failed"][0] == told["judge/unreadable"][0] == 0 and told["judge/cost_so_far"][0] == 2 * asked
    assert told["judge/criterion/good"].tolist() == pytest.approx([float(found.rewards[:, 0].sum()), len(lengths)])
    assert marker.told() == {}


def test_what_the_judge_reads_of_a_prompt_are_its_turns() -> None:
    assert shown([{"role": "user", "content": "Why?"}]) == "Why?"
    assert shown([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]) == "system: s\n\nuser: u"
    given = prompts(1, (3,))
    asked = replace(given, meta=[{TURNS: [{"role": "user", "content": "Is it <|im_end|> so?"}]}])
    with serving(by_length) as served:
        marker, made = scoring(keys(url=served.url), {"judge": 1.0})
        marker.scores(made, drawn(given), asked)
    assert all("Is it < |im_end|> so?" in question for question in served.questions)


def test_what_has_no_verdict_is_missing_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    given, rollout = prompts(1), drawn(prompts(1))

    def half(body: Mapping[str, Any], number: int) -> Answer:
        return (by_length(body, number), said("Good."), Answer(status=400, body=b"too long"))[number % 3]

    with serving(half) as served:
        marker, made = scoring(keys(url=served.url, in_flight=1), {"judge": 1.0})
        found, told = marker.scores(made, rollout, given), marker.told()
    missing = int(found.rewards.isnan().sum())
    assert 0 < missing < len(rollout) and found.failed == {"judge": missing}
    assert found.lost is not None and torch.equal(found.lost[:, 0], found.rewards[:, 0].isnan())
    assert told["judge/failed"][0] > 0 and told["judge/unreadable"][0] > 0
    assert "the reward judge has failed" in capsys.readouterr().err and found.total.isnan().sum() == missing


ENDS = {
    "nothing answered": (
        Answer(status=401, body=b"no such key"),
        {},
        r"none of a step's \d+ questions .*tester at http.*401: no such key.*key_from",
    ),
    "nothing readable": (
        said("A fine answer."),
        {},
        r"none of \d+ replies .*states a verdict.*A fine answer.*Score: N",
    ),
    "too dear": (
        said("Score: 1"),
        {"max_cost": 3.0, "price_in": 1e4},
        r"has cost \d.*max_cost is 3.*higher stage.judge.max_cost",
    ),
}


@pytest.mark.parametrize("name", ENDS)
def test_a_call_that_gives_nothing_or_costs_too_much_ends_the_run(name: str) -> None:
    answer, changed, said_ = ENDS[name]
    with serving(lambda body, number: answer) as served:
        marker, made = scoring(keys(url=served.url, **changed), {"judge": 1.0})
        with pytest.raises(UserError, match=said_):
            marker.scores(made, drawn(prompts(1)), prompts(1))


def test_a_greedy_answer_is_compared_with_the_known_one() -> None:
    with serving(by_length) as served:
        marker, made = scoring(keys(url=served.url), {"preferred": 1.0})
        rollout = drawn(prompts(1), samples=1)
        found = marker.scores(made, rollout, replace(prompts(1), answer=["xxxx", "", None, "x" * 99]))
    lengths = [len(text) for text in rollout.text]
    wanted = [1.0 if lengths[0] > 4 else 0.5 if lengths[0] == 4 else 0.0, math.nan, math.nan, 0.0]
    assert found.rewards[:, 0].tolist() == pytest.approx(wanted, nan_ok=True)


def test_samples_of_a_held_out_prompt_are_compared_with_the_known_answer_and_not_with_one_another() -> None:
    given = replace(prompts(1), answer=["xxxx", "x" * 99, "", "xx"])
    rollout = drawn(given, samples=3)
    with serving(by_length) as served:
        marker, made = scoring(keys(url=served.url), {"preferred": 1.0})
        found = marker.scores(made, *each_alone(rollout, given))
    known = [len(given.answer[n // 3] or "") for n in range(12)]
    lengths = [len(text) for text in rollout.text]
    wanted = [1.0 if own > to else 0.5 if own == to else 0.0 for own, to in zip(lengths, known, strict=True)]
    wanted[6:9] = [math.nan] * 3
    assert found.rewards[:, 0].tolist() == pytest.approx(wanted, nan_ok=True)


def test_another_kind_of_judge_does_not_take_over() -> None:
    judge = Judge(keys(), grpo(setup={"folder": Path("mine")}).setup_facts)
    judge.restore(None)
    judge.restore({"endpoint": True, "calls": 2, "tokens_in": 3, "tokens_out": 4})
    assert judge.state() == {"endpoint": True, "calls": 2, "tokens_in": 3, "tokens_out": 4}
    with pytest.raises(UserError, match="judged by a model of its own"):
        judge.restore({"endpoint": False, "calls": 2, "tokens_in": 3, "tokens_out": 4})


# -- a model of ours


TWO = {
    "true": Criterion(question="Is it true?", low=0, high=10, weight=3),
    "short": Criterion(question="Is it short?", low=0, high=10, weight=1),
}


class Chat(Letters):
    """Asked in letters: every character of a question is one of 61."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(map(ord, text)) for text in texts]

    def __init__(self) -> None:
        self.asked: list[str] = []
        outer = self

        class Hf:
            chat_template, bos_token_id = "yes", None
            added_tokens_decoder: dict[int, Any] = {}

            def apply_chat_template(self, turns: list[dict[str, str]], **how: Any) -> str:
                return "".join(turn["content"] for turn in turns)

            def __call__(self, text: str, **how: Any) -> Any:
                outer.asked.append(text)
                return type("Ids", (), {"input_ids": [1 + ord(letter) % 61 for letter in text][-40:]})

        self.hf = Hf()  # type: ignore[assignment]


def local(tokenizer: Chat) -> AskedModel:
    weights = ParentWeights(read=lambda: build(POLICY, seed=9).state_dict(), sha256=lambda: "", cache=Path)
    return AskedModel(
        name="judge-run",
        config=POLICY,
        weights=weights,
        tokenizer=tokenizer,  # type: ignore[arg-type]
        end_ids=(0,),
        same_tokens=False,
        of_run=True,
        read=lambda turns, text, whole: "never asked",
    )


def test_a_model_of_ours_is_asked_each_question_once() -> None:
    tokenizer = Chat()
    judge = keys(url=None, model="judge-run", max_new_tokens=8)
    marker, made = scoring(judge, {"judge": 1.0}, asked={"judge": local(tokenizer)})
    given, rollout = prompts(1), drawn(prompts(1))
    with pytest.raises(UserError, match=r"none of 12 replies of the judge judge-run states a verdict"):
        marker.scores(made, rollout, given)
    asked = [text for text in tokenizer.asked if "completion" in text]
    assert 0 < len(asked) == len({*asked}) <= len(rollout)
    assert marker.told()["judge/tokens_out"][0] > 0


def test_what_a_model_of_ours_says_is_read_and_is_the_same_each_time() -> None:
    class Scores(Chat):
        def decode(self, ids: Sequence[int], *, specials: bool = False) -> str:
            return f"Score: {sum(ids) % 11}"

    judge = keys(url=None, model="judge-run", max_new_tokens=8, criteria=TWO)
    model = replace(local(Scores()), end_ids=tuple(range(40)))
    given, rollout, found = prompts(1), drawn(prompts(1)), list[list[float]]()
    for _ in range(2):
        marker, made = scoring(judge, {"judge": 1.0}, asked={"judge": model})
        scores = marker.scores(made, rollout, given)
        found.append(scores.rewards[:, 0].tolist())
        assert marker.told()["judge/failed"].tolist() == [0, 2 * len(rollout)]
    there = [one for one in found[0] if not math.isnan(one)]
    assert len({*there}) > 1 and all(0 <= one <= 1 for one in there) and repr(found[0]) == repr(found[1])
    assert scores.failed == {"judge": len(rollout) - len(there)}


def test_a_question_that_a_model_of_ours_has_no_room_for_is_told() -> None:
    class Long(Chat):
        def __init__(self) -> None:
            super().__init__()
            long = type("Ids", (), {"input_ids": [1] * (POLICY.max_positions + 1)})
            type(self.hf).__call__ = lambda self, text, **how: long  # type: ignore[method-assign]

    judge = keys(url=None, model="judge-run", max_new_tokens=8)
    marker, made = scoring(judge, {"judge": 1.0}, asked={"judge": local(Long())})
    with pytest.raises(UserError, match=rf"none of a step's 12 .* has {POLICY.max_positions} positions"):
        marker.scores(made, drawn(prompts(1)), prompts(1))


def test_no_model_is_asked_for() -> None:
    with pytest.raises(UserError, match="stage.judge.url is null, so that a local model judges"):
        scoring(keys(url=None), {"judge": 1.0})


@pytest.mark.parametrize(
    ("rewards", "judge", "said_"),
    [
        ({"length"}, {"model": "m"}, "no reward is judge or preferred"),
        ({"length"}, {"url": "http://x/v1"}, "no reward is judge or preferred"),
        ({"judge"}, {"url": "http://x/v1"}, "stage.judge.model is null"),
        ({"judge"}, {"model": "m", "max_new_tokens": None}, "needs a number"),
        (
            {"preferred"},
            {"model": "m", "max_new_tokens": 9, "pairs_per_prompt": 3},
            "type stage.judge.pairs_per_prompt=4",
        ),
    ],
)
def test_settings_that_do_not_work_together_are_told(rewards: set[str], judge: dict[str, Any], said_: str) -> None:
    (found,) = faults({"judge": judge, "samples_per_prompt": 8}, rewards)
    assert said_ in found
    assert faults({"judge": {"model": None, "url": None}}, {"length"}) == []
