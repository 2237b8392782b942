"""What a student writes itself: where an answer begins and ends, by whose draws, and what it then learns from it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.stages.test_distill import LARGER, distill, train
from tests.stages.test_step import LENGTH, MODEL, stage

from lifecycle.batch import IGNORED, TokenBatch
from lifecycle.model import Decoder, build
from lifecycle.stages.distillation.lesson import Lesson
from lifecycle.stages.distillation.on_policy import CHOICE, OnPolicy, Sampler
from lifecycle.stages.distillation.sequences import PackedSequence, in_rows, packed, sequences_of

TOKENS = 50
"""Of the tokenizer; the matrix has 64 rows."""


def keys(**changed: Any) -> OnPolicy:
    return replace(OnPolicy(share=1.0, form="supervised", max_new_tokens=6, temperature=1.0, slots=4), **changed)


def sampler(*, end_ids: Sequence[int] = (), **changed: Any) -> Sampler:
    return Sampler(keys(**changed), replace(stage().setup_facts, tokens=TOKENS, end_ids=tuple(end_ids)))


def even() -> Decoder:
    """To it every token is as likely as any other."""
    made = build(MODEL, seed=1)
    with torch.no_grad():
        made.embedding.weight.zero_()
    return made


def chat(*turns: tuple[int, int], seed: int = 0, weights: bool = False, position: int = 0) -> PackedSequence:
    """A conversation of turns, each of so many tokens of the user and of the assistant."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, TOKENS, (sum(sum(turn) for turn in turns),), generator=draw)
    trained = torch.cat([torch.tensor([False] * asked + [True] * said) for asked, said in turns])
    labels = torch.where(trained[1:], ids[1:], IGNORED)
    given = torch.full((len(labels),), 2.0) if weights else None
    return PackedSequence(ids=ids[:-1], labels=labels, position=position, source=1, weights=given)


def rows_of(chats: Sequence[PackedSequence], *, weighted: bool = False) -> TokenBatch:
    return packed(in_rows(chats, LENGTH), LENGTH, weighted=weighted)


def written(made: Sampler, rows: Sequence[TokenBatch], network: Decoder, *, step: int = 0) -> list[PackedSequence]:
    """The sequences that the student wrote an answer of."""
    lessons = made.lessons(rows, network, step=step)
    return [one for lesson in lessons if lesson.sampler_logp is not None for one in sequences_of(lesson.tokens)]


def answer(one: PackedSequence) -> list[int]:
    ids: list[int] = one.labels[one.labels != IGNORED].tolist()
    return ids


# -- where an answer stands


def test_the_last_answer_alone_is_written_anew_and_all_before_it_is_the_prompt() -> None:
    one = chat((3, 2), (4, 3))
    (made,) = written(sampler(), [rows_of([one])], even())
    asked = 3 + 2 + 4
    assert made.ids[:asked].tolist() == one.ids[:asked].tolist() and made.source == 1
    assert (made.labels != IGNORED).nonzero()[:, 0].tolist() == list(range(asked - 1, asked + 5))
    assert made.labels[: asked - 1].tolist() == [IGNORED] * (asked - 1)
    assert answer(made)[:-1] == made.ids[asked:].tolist() and len(answer(made)) == 6


def test_an_answer_ends_at_a_stop_token_and_has_no_token_that_nobody_knows() -> None:
    stops = range(20)
    said = [
        answer(one)
        for step in range(6)
        for one in written(
            sampler(end_ids=stops), [rows_of([chat((3, 2), seed=s) for s in range(4)])], even(), step=step
        )
    ]
    assert all(ids[-1] in stops or len(ids) == 6 for ids in said) and not any(
        set(ids[:-1]) & set(stops) for ids in said
    )
    assert any(len(ids) < 6 for ids in said) and max(max(ids) for ids in said) < TOKENS


def test_a_long_answer_is_cut_at_the_end_of_the_row() -> None:
    (made,) = written(sampler(max_new_tokens=99), [rows_of([chat((3, 2))])], even())
    assert len(made.ids) == LENGTH and len(answer(made)) == LENGTH + 1 - 3


def test_what_has_no_room_no_prompt_or_no_beginning_is_learnt_as_it_is() -> None:
    full = replace(MODEL, max_positions=5)
    network = build(full, seed=1)
    for one, able in ((chat((4, 2)), True), (chat((5, 2)), False), (chat((3, 2), position=2), False)):
        assert bool(written(sampler(), [rows_of([one])], network)) == able
    nothing = replace(chat((4, 2)), labels=torch.full((5,), IGNORED))
    lessons = sampler().lessons([rows_of([nothing, chat((5, 2))])], network, step=0)
    assert [len(sequences_of(lesson.tokens)) for lesson in lessons] == [2]


# -- by whose draws


def test_every_draw_follows_from_step_and_content_and_not_from_the_order() -> None:
    chats = [chat((3, 4), seed=s) for s in range(6)]
    made = sampler(share=0.7)

    def said(order: Sequence[PackedSequence], step: int) -> set[tuple[int, ...]]:
        return {tuple(one.ids.tolist() + answer(one)) for one in written(made, [rows_of(order)], even(), step=step)}

    assert said(chats, 0) == said(chats[::-1], 0) != said(chats, 4) and len(said(chats, 0)) > 2
    chosen = {tuple(sorted(ids[:3] for ids in said(chats, step))) for step in range(6)}
    assert len(chosen) > 1  # other sequences, not only other draws


def test_another_seed_of_the_run_chooses_and_draws_otherwise() -> None:
    rows = [rows_of([chat((3, 2), seed=s) for s in range(8)])]

    def said(seed: int) -> dict[tuple[int, ...], list[int]]:
        made = sampler(share=0.6)
        made._setup = replace(made._setup, seed=seed)
        return {tuple(one.ids[:3].tolist()): answer(one) for one in written(made, rows, even())}

    one, other = said(1), said(2)
    assert one.keys() != other.keys() and one == said(1)
    assert (both := one.keys() & other.keys()) and all(one[prompt] != other[prompt] for prompt in both)


def test_equal_conversations_get_answers_of_their_own() -> None:
    one, other = written(sampler(), [rows_of([chat((3, 2)), chat((3, 2))])], even())
    assert answer(one) != answer(other)


def test_whether_a_sequence_is_chosen_says_nothing_of_its_first_token() -> None:
    assert CHOICE != 0  # the number of its completion
    rows = [rows_of([chat((3, 2), seed=s) for s in range(8)])]
    first = [answer(one)[0] for step in range(8) for one in written(sampler(share=0.4), rows, even(), step=step)]
    assert 12 <= len(first) <= 40 and max(first) > 0.8 * TOKENS


def test_a_sequence_is_known_by_its_ids_its_trained_tokens_and_its_place() -> None:
    one = chat((3, 4))
    less = replace(one, labels=torch.where(torch.arange(len(one.labels)) < 4, IGNORED, one.labels))
    found = {one.key, less.key, replace(one, position=5).key, chat((3, 4), seed=1).key, replace(one, source=0).key}
    assert len(found) == 4  # whichever source it is of


# -- what is learnt from it


def test_answers_have_no_weights_and_the_datas_keep_theirs() -> None:
    rows = [rows_of([chat((3, 2), seed=s, weights=True) for s in range(8)], weighted=True)]
    lessons = sampler(share=0.5).lessons(rows, even(), step=0)
    kinds = {lesson.sampler_logp is None: lesson.weights_N for lesson in lessons}
    assert kinds[False] is None
    assert (data := kinds[True]) is not None and set(data.tolist()) == {2.0}


def test_labels_count_for_answers_of_the_data_alone(tmp_path: Path) -> None:
    made = distill(cross_entropy=0.25, on_policy=keys(), tokens=TOKENS)
    rows = train(made, [[rows_of([chat((3, 2), seed=s) for s in range(4)])]], tmp_path)
    assert rows[1]["train/loss"] == pytest.approx(0.75 * rows[1]["train/divergence"], rel=1e-5)
    assert "train/cross_entropy" not in rows[1]


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_policy_gradient_is_at_the_temperature_and_over_the_tokens_of_the_draws(
    temperature: float, tmp_path: Path
) -> None:
    """Its loss is what the teacher finds of each token, less than who drew it; by one forward pass of each sequence."""
    capped, teacher = replace(MODEL, logit_softcap=2.0, init_std=0.5), replace(LARGER, logit_softcap=3.0, init_std=0.5)
    form, data = (
        keys(form="policy_gradient", temperature=temperature),
        [rows_of([chat((3, 2), seed=s) for s in range(4)])],
    )
    made = distill(student=capped, teacher=teacher, on_policy=form, tokens=TOKENS)
    rows = train(made, [data], tmp_path)
    models, total, count = (build(capped, seed=1), build(teacher, seed=7)), 0.0, 0
    assert made.sampler is not None
    for one in written(made.sampler, data, models[0]):
        at, place = one.labels != IGNORED, torch.arange(len(one.ids))[None]
        ours, theirs = (
            (model.logits(model(one.ids[None], place))[0, at, :TOKENS] / temperature).detach().log_softmax(-1)
            for model in models
        )
        total, count = total + float((ours - theirs).gather(1, one.labels[at][:, None]).sum()), count + int(at.sum())
    assert rows[1]["train/loss"] == pytest.approx(total / count, rel=1e-4)
    assert rows[1]["train/reverse_kl"] == pytest.approx(rows[1]["train/loss"], rel=1e-5)


def test_the_length_of_answers_is_their_mean(tmp_path: Path) -> None:
    made = distill(on_policy=keys(), tokens=TOKENS, end_ids=tuple(range(20)))
    data = [rows_of([chat((3, 2), seed=s) for s in range(5)])]
    said = [answer(one) for one in written(made.sampler, data, build(MODEL, seed=1))]  # type: ignore[arg-type]
    rows = train(made, [data], tmp_path)
    assert rows[1]["train/answer_length"] == pytest.approx(sum(map(len, said)) / 5) and len({*map(len, said)}) > 1


def test_a_teacher_that_is_looked_up_is_asked_of_new_answers_whole(tmp_path: Path) -> None:
    data = [rows_of([chat((3, 2), seed=s) for s in range(4)])]
    whole, kept = (
        distill(beta=1.0, on_policy=keys(), tokens=TOKENS, top_k=k, cache=tmp_path / "cache") for k in (None, 1)
    )
    one, other = (train(made, [data], tmp_path / str(n)) for n, made in enumerate((whole, kept)))
    assert one[1]["train/loss"] == other[1]["train/loss"]


def test_nothing_is_written_that_nothing_is_learnt_from() -> None:
    config = {"stage": {"view": "chat", "on_policy": {"form": "supervised"}, "cross_entropy": 1.0}}
    (fault,) = distill().faults(config)
    assert "type stage.cross_entropy=0.5, or stage.on_policy=null" in fault
    config["stage"]["on_policy"] = {"form": "policy_gradient"}
    assert not distill().faults(config) and isinstance(Lesson.of(rows_of([chat((3, 2))])), Lesson)
