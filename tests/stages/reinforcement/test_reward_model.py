"""A reward model's marks: those of `transformers` on the same ids, whatever is packed beside a sample, and none where
it cannot read one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.stages.reinforcement.made import GRADED, NO_MODEL, POLICY, Letters, grpo, prompts
from tests.stages.test_step import trainer_of

from lifecycle.batch import TURNS, PromptBatch, Rollout
from lifecycle.errors import UserError
from lifecycle.model import build
from lifecycle.model.huggingface import export
from lifecycle.rollout.engine import generate
from lifecycle.rollout.sampling.parameters import Sampling
from lifecycle.stages.reinforcement.acting.scorers.reward_model import packed
from lifecycle.stages.reinforcement.acting.scoring import SampleScores, Scoring
from lifecycle.stages.reinforcement.settings import RewardModelKeys
from lifecycle.stages.run.setup import AskedModel, ParentWeights

SCORED = replace(POLICY, score_head=True)
END = 61


def asked_model(**values: Any) -> AskedModel:
    def read() -> Any:
        model = build(SCORED, seed=9)
        return {**model.state_dict(), "score.weight": torch.randn(1, SCORED.width, generator=torch.manual_seed(1))}

    facts: dict[str, Any] = {
        "name": "judge",
        "config": SCORED,
        "weights": ParentWeights(read=read, sha256=lambda: "", cache=Path),
        "tokenizer": Letters(),
        "end_ids": (0, END),
        "same_tokens": True,
        "of_run": True,
        "read": lambda turns, text, whole: "never asked",
    }
    return AskedModel(**{**facts, **values})


def drawn(given: PromptBatch, samples: int = 3, new: int = 9) -> Rollout:
    sampling = Sampling(max_new_tokens=new, temperature=1.0, samples=samples, stop_ids=(0, END))
    return generate(
        build(POLICY, seed=1), given.ids, sampling, seed=5, tokenizer=Letters(), prompt_ids=given.number.tolist()
    )


def marks(
    rollout: Rollout, given: PromptBatch, model: AskedModel, keys: RewardModelKeys = NO_MODEL, most: int = 4096
) -> SampleScores:
    made = grpo(micro_tokens=most, setup={"asked": {"reward_model": model}})
    graded = replace(GRADED, rewards={"reward_model": 1.0}, reward_model=replace(keys, path="judge"))
    scoring = Scoring(graded, made.setup_facts, longest=9)
    made.trainer = trainer_of(1, Path())
    for one in scoring.beside:
        one.build(None)
    return scoring.scores(made, rollout, given)


def by_transformers(sequences: Sequence[Sequence[int]], folder: Path) -> list[float]:
    """The scores of the exported model, each sequence alone."""
    from transformers import AutoModelForSequenceClassification

    model = build(SCORED, seed=9)
    model.load_state_dict(asked_model().weights.read())
    export(model, folder)
    theirs = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    theirs.config.pad_token_id = 63  # in no sequence
    with torch.no_grad():
        return [float(theirs(input_ids=torch.tensor([list(ids)])).logits[0, 0]) for ids in sequences]


def read_of(rollout: Rollout, n: int) -> list[int]:
    """The ids that are read of a sample: prompt and answer, ended as a turn ends."""
    said = rollout.completion(n)
    return [*rollout.prompts[n], *(said[:-1] if rollout.stop_reason[n] == "stop_id" else said), END]


@pytest.mark.parametrize("most", [1, 64, 4096])
def test_marks_are_the_scores_of_transformers_however_samples_are_packed(most: int, tmp_path: Path) -> None:
    given = prompts(0)
    rollout = drawn(given)
    assert {"length"} < set(rollout.stop_reason)  # both kinds
    scores = marks(rollout, given, asked_model(), most=most)
    wanted = by_transformers([read_of(rollout, n) for n in range(len(rollout))], tmp_path / "judge")
    assert scores.total.tolist() == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    assert scores.total.std() > 0.1 and scores.failed == {}


def test_a_mark_is_the_same_whatever_stands_beside_it() -> None:
    given = prompts(0)
    rollout = drawn(given)
    whole = marks(rollout, given, asked_model()).total
    for n in range(len(rollout)):
        alone = rollout.rows([n])
        assert marks(alone, given, asked_model()).total.item() == pytest.approx(whole[n].item(), rel=1e-5, abs=1e-6)
    assert len(marks(rollout.rows([]), given, asked_model()).total) == 0


def test_the_scale_of_a_mark() -> None:
    given = prompts(0)
    rollout = drawn(given)
    raw = marks(rollout, given, asked_model()).total
    scaled = replace(NO_MODEL, mean=0.5, std=2.0, clip=0.3)
    assert torch.equal(marks(rollout, given, asked_model(), scaled).total, ((raw - 0.5) / 2).clamp(-0.3, 0.3))
    bounded = marks(rollout, given, asked_model(), replace(scaled, sigmoid=True)).total
    assert torch.equal(bounded, ((raw - 0.5) / 2).clamp(-0.3, 0.3).sigmoid())
    cut = torch.tensor([reason == "length" for reason in rollout.stop_reason])
    found = marks(rollout, given, asked_model(), replace(scaled, unfinished=-1.0)).total
    assert (found[cut] == -1).all() and (found[~cut] != -1).all() and cut.any() and not cut.all()


def test_an_empty_answer_is_the_token_that_ends_it() -> None:
    given = prompts(0)
    rollout = drawn(given)
    rollout.token_ids[0, 0], rollout.length[0], rollout.stop_reason[0] = 0, 1, "stop_id"
    assert read_of(rollout, 0) == [*given.ids[0], END]
    assert not marks(rollout, given, asked_model()).total[0].isnan()


def test_equal_answers_have_equal_marks_bit_for_bit() -> None:
    given = prompts(0, (7, 7, 7))
    rollout = drawn(given, samples=2)
    same = rollout.rows([0, 1, 0, 2, 3, 0, 4, 5])
    total = marks(same, given, asked_model(), most=1).total
    assert total[0] == total[2] == total[5] and len(set(total.tolist())) > 3


def test_what_cannot_be_read_has_no_mark_and_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    given = prompts(0)
    rollout = drawn(given)
    longest = max(len(read_of(rollout, n)) for n in range(len(rollout)))
    short = asked_model(config=replace(SCORED, max_positions=longest - 1))
    scores = marks(rollout, given, short)
    too_long = torch.tensor([len(read_of(rollout, n)) == longest for n in range(len(rollout))])
    assert torch.equal(scores.total.isnan(), too_long) and scores.failed == {"reward_model": int(too_long.sum())}
    assert f"{longest} tokens, and judge has {longest - 1} positions" in capsys.readouterr().err


def test_another_tokenizer_is_given_the_turns_and_the_text(capsys: pytest.CaptureFixture[str]) -> None:
    given = prompts(0)
    turns = [[{"role": "user", "content": str(i)}] for i in range(len(given))]
    given = replace(given, meta=[{TURNS: one} for one in turns])
    rollout, asked = drawn(given), list[Any]()

    def read(turns: Sequence[Mapping[str, Any]], text: str, whole: bool) -> list[int] | str:
        asked.append((turns[0]["content"], text, whole))
        return "its template refuses it" if turns[0]["content"] == "1" else [5, 6, 7 + int(turns[0]["content"])]

    scores = marks(rollout, given, asked_model(same_tokens=False, read=read))
    assert asked == [(str(int(n)), text, False) for n, text in zip(rollout.prompt_id, rollout.text, strict=True)]
    assert torch.equal(scores.total.isnan(), rollout.prompt_id == 1) and scores.failed == {"reward_model": 3}
    assert "its template refuses it" in capsys.readouterr().err
    asked.clear()
    marks(rollout, given, asked_model(of_run=False, read=read))  # read to the end of what the template writes
    assert {whole for *_, whole in asked} == {True}
    without = marks(rollout, prompts(0), asked_model(same_tokens=False, read=read))
    assert without.total.isnan().all() and "run stage=prepare again" in capsys.readouterr().err


def test_a_reward_of_some_sources_is_asked_for_theirs_alone() -> None:
    given = prompts(0)
    rollout = drawn(given)
    made = grpo(setup={"asked": {"reward_model": asked_model()}, "source_rewards": [{"reward_model": 2.0}, None]})
    graded = replace(GRADED, rewards={"length": 1.0}, reward_model=replace(NO_MODEL, path="judge"))
    scoring = Scoring(graded, made.setup_facts, longest=9)
    made.trainer = trainer_of(1, Path())
    for one in scoring.beside:
        one.build(None)
    scores = scoring.scores(made, rollout, given)
    scoring.close()
    of_first = (rollout.prompt_id % 2 == 0)[:, None]
    assert dict(zip(scores.names, scores.weights, strict=True)) == {"reward_model": 2.0, "length": 1.0}
    assert torch.equal(~scores.rewards.isnan(), torch.cat([of_first, ~of_first], 1))
    whole = marks(rollout, given, asked_model()).total
    assert scores.total[of_first[:, 0]].tolist() == pytest.approx((2 * whole[of_first[:, 0]]).tolist(), rel=1e-5)


@pytest.mark.parametrize(
    ("rewards", "says"),
    [
        ({"reward_model": 1.0}, "stage.reward_model.path=RUN"),
        ({"taste": 1.0}, "stage.rewards names 'taste'.*reward_model"),
    ],
)
def test_a_reward_that_there_is_not_is_refused(rewards: dict[str, float], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Scoring(replace(GRADED, rewards=rewards), grpo().setup_facts, longest=9)


def test_rows_hold_every_sequence_once() -> None:
    sizes = [3, 70, 1, 64, 20]
    tokens, ends = packed([list(range(1, size + 1)) for size in sizes])
    assert tokens.input_ids.shape == (2, 128) and tokens.input_ids.flatten()[ends].tolist() == sizes
    assert int((tokens.document_ids > 0).sum()) == sum(sizes)
    nothing, none = packed([])
    assert nothing.input_ids.shape == (1, 64) and len(none) == 0
    alone, _ = packed([[1] * 64])
    assert alone.single and not tokens.single
