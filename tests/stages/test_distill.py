"""Laws of distillation through the stage: a plain loop, a student that is its teacher, and that no layout matters."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model.adapted import lora
from tests.stages.test_step import (
    ADAMW,
    MODEL,
    STEPS,
    Batches,
    Kept,
    documents,
    optimization,
    padded,
    reordered,
    split,
    stage,
    trainer_of,
    whole,
)
from tests.toy import toy
from torch import Tensor
from torch.nn import functional as F

from lifecycle.batch import Example, TokenBatch
from lifecycle.errors import UserError
from lifecycle.losses.distillation import TopK
from lifecycle.model import Decoder, ModelConfig, build
from lifecycle.model.adapters import adapter_off
from lifecycle.stages.distill import Distance, Distill
from lifecycle.stages.distillation.lesson import Lesson
from lifecycle.stages.distillation.on_policy import OnPolicy, Sampler, few_sizes
from lifecycle.stages.distillation.sequences import in_rows, packed, sequences_of
from lifecycle.stages.run.setup import ParentWeights, TeacherModel

LARGER = toy(layers=3, width=48, heads=3, kv_heads=1, head_dim=16, ffn_width=96, vocab_size=64, init_std=0.1)


def weights_of(config: ModelConfig, seed: int = 7) -> dict[str, Tensor]:
    return build(config, seed=seed).state_dict()


def distill(
    *,
    student: ModelConfig = MODEL,
    teacher: ModelConfig = LARGER,
    seed: int = 7,
    beta: float = 0.0,
    temperature: float = 1.0,
    cross_entropy: float = 0.0,
    rows: Any = "same",
    top_k: int | None = None,
    on_policy: OnPolicy | None = None,
    cache: Path = Path("unused"),
    lr: float = 1e-2,
    **more: Any,
) -> Distill:
    weights = ParentWeights(read=lambda: weights_of(teacher, seed), sha256=lambda: f"{seed}", cache=lambda: cache)
    named = TeacherModel(name="large", config=teacher, weights=weights)
    return Distill(
        model=student,
        optimization=optimization(lr),
        divergence=Distance(beta=beta, temperature=temperature),
        cross_entropy=cross_entropy,
        teacher_vocabulary=rows,
        top_k=top_k,
        on_policy=on_policy,
        setup=replace(stage().setup_facts, teacher=named, **more),
    )


def train(made: Distill, steps: Sequence[list[TokenBatch]], folder: Path) -> dict[int, dict[str, float]]:
    logger = Kept()
    trainer_of(len(steps), folder, logger=logger).fit(made, Batches(steps))
    return logger.rows


# -- a plain loop


def plain_logits(model: Decoder, ids: Tensor) -> Tensor:
    """Of one sequence, without packing."""
    return model.logits(model(ids[None, :-1], torch.arange(len(ids) - 1)[None]))[0]


def kl(a: Tensor, b: Tensor) -> Tensor:
    return F.kl_div(b, a, log_target=True, reduction="sum")


def plain_divergence(student: Tensor, teacher: Tensor, beta: float, temperature: float) -> Tensor:
    p, q = F.log_softmax(student / temperature, -1), F.log_softmax(teacher / temperature, -1)
    if beta in (0, 1):
        return temperature**2 * (kl(q, p) if beta == 0 else kl(p, q))
    m = (beta * q.exp() + (1 - beta) * p.exp()).log()
    return temperature**2 * (beta * kl(q, m) + (1 - beta) * kl(p, m))


@pytest.mark.parametrize(("beta", "temperature", "share"), [(0.0, 2.0, 0.3), (0.5, 1.0, 0.0), (1.0, 1.0, 0.0)])
def test_three_steps_are_those_of_a_plain_loop(beta: float, temperature: float, share: float, tmp_path: Path) -> None:
    made = distill(beta=beta, temperature=temperature, cross_entropy=share)
    rows = train(made, [split(step) for step in range(STEPS)], tmp_path)
    student, teacher = build(MODEL, seed=1), build(LARGER, seed=7)
    decayed = [p for p in student.parameters() if p.dim() > 1]
    groups: list[dict[str, Any]] = [
        {"params": decayed},
        {"params": [p for p in student.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=ADAMW.betas, eps=ADAMW.eps, weight_decay=ADAMW.weight_decay)
    for step in range(STEPS):
        apart, nll, count = torch.zeros(()), torch.zeros(()), 0
        for piece in documents(step):
            assert isinstance(piece.item, Example)
            ids = torch.from_numpy(piece.item.ids).long()
            logits, count = plain_logits(student, ids), count + len(ids) - 1
            with torch.no_grad():
                theirs = plain_logits(teacher, ids)
            apart = apart + plain_divergence(logits, theirs, beta, temperature)
            nll = nll + F.cross_entropy(logits, ids[1:], reduction="sum")
        loss = ((1 - share) * apart + share * nll) / count
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        assert rows[step + 1]["train/loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
        assert rows[step + 1]["train/divergence"] == pytest.approx(float(apart.detach()) / count, rel=1e-5)
    torch.testing.assert_close(made.network.state_dict(), student.state_dict(), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("form", [split, reordered, padded])
def test_splitting_ordering_and_padding_never_change_a_step(form: Any, tmp_path: Path) -> None:
    one, other = distill(beta=0.3), distill(beta=0.3)
    rows = train(one, [whole(s) for s in range(STEPS)], tmp_path / "one")
    again = train(other, [form(s) for s in range(STEPS)], tmp_path / "other")
    torch.testing.assert_close(other.network.state_dict(), one.network.state_dict(), rtol=1e-4, atol=2e-5)
    assert again[STEPS]["train/loss"] == pytest.approx(rows[STEPS]["train/loss"], rel=1e-5)


# -- a student that is its teacher


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(beta: float, tmp_path: Path) -> None:
    rows = train(distill(teacher=MODEL, seed=1, beta=beta), [whole(0)], tmp_path)
    assert abs(rows[1]["train/loss"]) < 1e-6 and rows[1]["train/grad_norm"] < 1e-5


def test_the_student_comes_nearer_to_its_teacher(tmp_path: Path) -> None:
    rows = train(distill(), [whole(0)] * 12, tmp_path)
    assert rows[12]["train/divergence"] < 0.7 * rows[1]["train/divergence"]


def test_nothing_but_the_labels_counts_at_a_share_of_1(tmp_path: Path) -> None:
    rows = train(distill(cross_entropy=1.0), [whole(0)], tmp_path)
    assert rows[1]["train/loss"] == pytest.approx(rows[1]["train/cross_entropy"])


def test_the_teacher_is_in_no_checkpoint_and_is_not_trained(tmp_path: Path) -> None:
    made = distill()
    train(made, [whole(0)], tmp_path)
    assert made.state_dict().keys() == {f"model.{name}" for name in made.network.state_dict()}
    assert all(
        torch.equal(value, weights_of(LARGER)[name]) for name, value in made.teacher.network.state_dict().items()
    )


# -- weights of labels


def test_a_label_of_weight_two_counts_as_two(tmp_path: Path) -> None:
    (rows,) = whole(0)
    twice = TokenBatch.of({**rows.tensors(), "weights": torch.full(rows.labels.shape, 2.0)})
    one = train(distill(cross_entropy=0.5), [[rows, rows]], tmp_path / "one")
    other = train(distill(cross_entropy=0.5), [[twice]], tmp_path / "other")
    for key in ("train/loss", "train/divergence", "train/cross_entropy", "train/grad_norm"):
        assert other[1][key] == pytest.approx(one[1][key], rel=1e-5)


# -- vocabularies of different sizes


def test_a_vocabulary_of_another_size_is_refused_by_the_name_of_the_teacher() -> None:
    with pytest.raises(
        UserError, match=r"has 64 rows, and that of its teacher large 96.*teacher_vocabulary=renormalise"
    ):
        distill(teacher=replace(LARGER, vocab_size=96))


def test_renormalised_are_the_ids_that_both_have(tmp_path: Path) -> None:
    wide = replace(LARGER, vocab_size=96)
    rows = train(distill(teacher=wide, beta=0.5, rows="renormalise"), [whole(0)], tmp_path)
    student, teacher = build(MODEL, seed=1), build(wide, seed=7)
    apart, count = 0.0, 0
    for piece in documents(0):
        ids = torch.from_numpy(piece.item.ids).long()  # type: ignore[union-attr]
        with torch.no_grad():
            ours, theirs = plain_logits(student, ids), plain_logits(teacher, ids)[:, :64]
            apart += float(plain_divergence(ours, theirs, 0.5, 1.0))
        count += len(ids) - 1
    assert rows[1]["train/loss"] == pytest.approx(apart / count, rel=1e-5)


def test_both_have_soft_caps_of_their_own(tmp_path: Path) -> None:
    """In the divergence and in the likelihood of the labels."""
    capped, teacher = replace(MODEL, logit_softcap=2.0, init_std=0.5), replace(LARGER, logit_softcap=3.0, init_std=0.5)
    made = distill(student=capped, teacher=teacher, temperature=1.5, cross_entropy=0.5)
    rows = train(made, [whole(0)], tmp_path)
    apart, nll, count = 0.0, 0.0, 0
    for piece in documents(0):
        ids = torch.from_numpy(piece.item.ids).long()  # type: ignore[union-attr]
        ours, theirs = (plain_logits(build(c, seed=s), ids).detach() for c, s in ((capped, 1), (teacher, 7)))
        apart += float(plain_divergence(ours, theirs, 0.0, 1.5))
        nll, count = nll + float(F.cross_entropy(ours, ids[1:], reduction="sum")), count + len(ids) - 1
    assert rows[1]["train/divergence"] == pytest.approx(apart / count, rel=1e-5)
    assert rows[1]["train/cross_entropy"] == pytest.approx(nll / count, rel=1e-5)


# -- what the teacher said before


def test_the_likeliest_tokens_are_computed_once_and_are_what_the_teacher_says(tmp_path: Path) -> None:
    live = distill(beta=0.3, temperature=1.5)
    known, again = (distill(beta=0.3, temperature=1.5, top_k=63, cache=tmp_path / "c") for _ in range(2))
    rows = train(live, [split(step) for step in range(STEPS)], tmp_path / "live")
    steps = [split(step) for step in range(STEPS)]
    mine = train(known, steps, tmp_path / "known")
    for step in rows:  # 63 tokens and the tail, which is the last one
        assert mine[step]["train/loss"] == pytest.approx(rows[step]["train/loss"], rel=1e-5)
    torch.testing.assert_close(known.network.state_dict(), live.network.state_dict(), rtol=1e-4, atol=2e-5)
    (place,) = (tmp_path / "c").iterdir()
    written = {file: file.stat().st_mtime_ns for file in place.iterdir()}
    again._said = _never  # type: ignore[method-assign]
    assert again.known is not None
    again.known._ask = _never
    train(again, steps, tmp_path / "again")
    assert {file: file.stat().st_mtime_ns for file in place.iterdir()} == written
    assert all(torch.equal(v, again.network.state_dict()[name]) for name, v in known.network.state_dict().items())


def test_a_lesson_of_which_a_part_is_not_known_is_asked_whole(tmp_path: Path) -> None:
    made, (first,), (second,) = distill(top_k=5, cache=tmp_path / "c"), whole(0), whole(1)
    train(made, [[first]], tmp_path)
    assert made.known is not None
    both = TokenBatch.of({name: torch.cat([one, second.tensors()[name]]) for name, one in first.tensors().items()})
    for rows, asked in ((first, 0), (both, 1)):
        found: list[Lesson] = []

        def ask(lesson: Lesson, found: list[Lesson] = found) -> TopK:
            found.append(lesson)
            return made._said(lesson)

        made.known._ask = ask
        said = made.known.lesson(Lesson.of(rows)).said
        assert len(found) == asked and said is not None and len(said.ids) == len(Lesson.of(rows).places)


def test_the_teacher_is_asked_before_the_steps_in_the_precision_that_it_has_in_them(tmp_path: Path) -> None:
    said = []
    for name, k in (("live", None), ("known", 63)):
        logger, made = Kept(), distill(beta=0.3, top_k=k, cache=tmp_path / "c", bf16=True)
        trainer_of(1, tmp_path / name, logger=logger, precision="bf16-mixed").fit(made, Batches([whole(0)]))
        said.append(logger.rows[1]["train/loss"])
    assert said[1] == pytest.approx(said[0], rel=1e-5)


def test_a_part_of_a_lesson_has_what_is_known_of_its_rows() -> None:
    (rows,) = whole(0)
    lesson = Lesson.of(rows)
    count = len(lesson.places)
    numbers = torch.arange(count)
    known = replace(lesson, said=TopK(numbers[:, None], numbers[:, None].float()), sampler_logp=numbers.float())
    parts = [known.rows(at, stop) for at, stop in ((0, 1), (1, 3), (3, 4))]
    for part, (at, stop) in zip(parts, ((0, 1), (1, 3), (3, 4)), strict=True):
        assert torch.equal(part.places, Lesson.of(rows.rows(at, stop)).places)
        assert part.said is not None and torch.equal(part.said.ids[:, 0], part.said.logp[:, 0].long())
    assert torch.equal(torch.cat([part.sampler_logp for part in parts]), numbers.float())  # type: ignore[misc]
    assert torch.equal(torch.cat([part.said.ids[:, 0] for part in parts]), numbers)  # type: ignore[union-attr]


def _never(lesson: Any) -> Any:
    raise AssertionError("it is known already")


def test_a_sequence_that_is_not_known_is_computed_by_the_teacher(tmp_path: Path) -> None:
    made = distill(top_k=4, cache=tmp_path / "c")
    train(made, [whole(0)], tmp_path / "one")
    assert made.known is not None
    (lesson,) = [Lesson.of(batch) for batch in whole(1)]
    assert made.known.lesson(lesson).said is not None


def test_other_settings_of_what_is_kept_are_kept_apart(tmp_path: Path) -> None:
    for number, changed in enumerate(
        (
            {"top_k": 3},
            {"top_k": 4},
            {"top_k": 4, "temperature": 2.0},
            {"top_k": 4, "seed": 8},
            {"top_k": 4, "bf16": True},
            {"top_k": 4, "student": replace(MODEL, vocab_size=48), "rows": "renormalise"},
        )
    ):
        (one,) = whole(0)
        steps = [[replace(one, input_ids=one.input_ids % 48, labels=one.labels.where(one.labels < 0, one.labels % 48))]]
        train(distill(cache=tmp_path / "c", **changed), steps, tmp_path / str(number))  # type: ignore[arg-type]
    assert len(list((tmp_path / "c").iterdir())) == 6


def test_all_tokens_are_no_top_k() -> None:
    with pytest.raises(UserError, match="stage.top_k is 64, and 64 ids are compared"):
        distill(top_k=64)


# -- what the student writes


def on_policy(form: Any = "supervised", share: float = 1.0) -> OnPolicy:
    return OnPolicy(share=share, form=form, max_new_tokens=6, temperature=1.0, slots=4)


def asked(step: int) -> list[TokenBatch]:
    """The documents of a step, of which the second half is trained, as an answer is."""
    out = []
    for micro in split(step):
        labels = micro.labels.clone()
        labels[micro.position_ids < 2] = -100
        out.append(TokenBatch.of({**micro.tensors(), "labels": labels}))
    return out


def test_sequences_of_rows_and_rows_of_sequences_are_inverse() -> None:
    (rows,) = whole(0)
    found = sequences_of(rows)
    again = packed(in_rows(found, rows.labels.shape[1]), rows.labels.shape[1], weighted=False)
    assert sorted(one.key for one in found) == sorted(one.key for one in sequences_of(again)) and len(found) == 8
    assert int(again.trained.sum()) == int(rows.trained.sum())


def test_compiled_steps_have_few_numbers_of_rows() -> None:
    assert [few_sizes(rows, 6) for rows in range(7)] == [1, 1, 2, 4, 4, 6, 6]
    (rows,) = whole(0)
    filled = packed([sequences_of(rows)[:1]], rows.labels.shape[1], weighted=False, least=3)
    assert filled.labels.shape == (3, rows.labels.shape[1]) and not filled.trained[1:].any()


def test_what_the_student_writes_does_not_depend_on_rows_and_micro_batches() -> None:
    sampler = Sampler(on_policy(share=0.6), replace(stage().setup_facts, tokens=64, end_ids=(1,)))
    network = build(MODEL, seed=1)
    forms = [
        asked(0),
        [TokenBatch.of({k: torch.cat([m.tensors()[k] for m in asked(0)]) for k in asked(0)[0].tensors()})],
    ]
    made = []
    for form in forms:
        lessons = sampler.lessons(form, network, step=3)
        written = [one for lesson in lessons if lesson.sampler_logp is not None for one in sequences_of(lesson.tokens)]
        made.append(sorted(tuple(one.ids.tolist()) for one in written))
        data = [one for lesson in lessons if lesson.sampler_logp is None for one in sequences_of(lesson.tokens)]
        assert len(written) + len(data) == 8 and 0 < len(written) < 8
        for lesson in lessons:
            assert lesson.sampler_logp is None or len(lesson.sampler_logp) == len(lesson.places)
    assert made[0] == made[1]
    lessons = sampler.lessons(forms[0], network, step=4)
    other = [one for lesson in lessons if lesson.sampler_logp is not None for one in sequences_of(lesson.tokens)]
    assert sorted(tuple(one.ids.tolist()) for one in other) != made[0]


@pytest.mark.parametrize("form", ["supervised", "policy_gradient"])
def test_a_student_that_judges_itself_has_nothing_to_learn(form: Any, tmp_path: Path) -> None:
    facts: dict[str, Any] = {"tokens": 64, "end_ids": (1,)}
    made = distill(teacher=MODEL, seed=1, beta=1.0, on_policy=on_policy(form), **facts)
    rows = train(made, [asked(0)], tmp_path)
    assert abs(rows[1]["train/loss"]) < 1e-5 and rows[1]["train/grad_norm"] < 1e-4
    assert 1 <= rows[1]["train/answer_length"] <= 6


def written(form: Any, **more: Any) -> Distill:
    return distill(beta=1.0, on_policy=on_policy(form), tokens=64, end_ids=(1,), **more)


@torch.no_grad()
def logprobs(network: Decoder, tokens: TokenBatch) -> Tensor:
    """(N,) of the trained tokens of packed sequences, each asked alone."""
    found = []
    for one in sequences_of(tokens):
        logp_TV = network.logits(network(one.ids[None], torch.arange(len(one.ids))[None]))[0].log_softmax(-1)
        trained = one.labels != -100
        found.append(logp_TV[trained].gather(1, one.labels[trained][:, None])[:, 0])
    return torch.cat(found)


def test_a_student_with_an_adapter_writes_by_the_weights_that_the_last_step_left(tmp_path: Path) -> None:
    weights = ParentWeights(read=lambda: weights_of(MODEL, 1), sha256=lambda: "1", cache=Path)
    made = written("policy_gradient", adapter=lora(dropout=0.3), parent=weights, read_weights=weights.read)
    train(made, [asked(0), asked(1)], tmp_path)
    assert made.sampler is not None
    lessons = [one for one in made.sampler.lessons(asked(0), made.network, step=2) if one.sampler_logp is not None]
    made.network.eval()
    said, now = (
        torch.cat([one.sampler_logp for one in lessons if one.sampler_logp is not None]),
        [logprobs(made.network, one.tokens) for one in lessons],
    )
    torch.testing.assert_close(said, torch.cat(now), rtol=1e-4, atol=1e-4)
    with adapter_off(made.network):
        assert not torch.allclose(said, torch.cat([logprobs(made.network, one.tokens) for one in lessons]), atol=1e-2)


def test_what_it_writes_brings_the_student_nearer_to_its_teacher(tmp_path: Path) -> None:
    rows = train(written("supervised"), [asked(step % 2) for step in range(16)], tmp_path)
    first, last = (sum(rows[step]["train/divergence"] for step in part) for part in (range(1, 5), range(13, 17)))
    assert last < 0.8 * first


@pytest.mark.parametrize("form", ["supervised", "policy_gradient"])
def test_steps_that_are_taken_again_are_the_same(form: Any, tmp_path: Path) -> None:
    one, other = written(form), written(form)
    rows, again = (train(made, [asked(0), asked(1)], tmp_path / str(n)) for n, made in enumerate((one, other)))
    assert [row["train/loss"] for row in rows.values()] == [row["train/loss"] for row in again.values()]
    assert all(torch.equal(v, other.network.state_dict()[name]) for name, v in one.network.state_dict().items())


def test_policy_gradient_is_in_the_mean_the_gradient_of_the_reverse_divergence() -> None:
    """Over what the student writes in many steps without moving; a sample is noisy, so its share along the gradient."""
    both = [written(form) for form in ("policy_gradient", "supervised")]
    for made in both:
        made.configure_model()
    sampler = both[0].sampler
    assert sampler is not None
    for step in range(40):
        for lesson in sampler.lessons(asked(step % 8), both[0].network, step=step):
            for made in both:
                made._loss_sum(*made.on_device(lesson))[0].backward()
    noisy, exact = (torch.cat([p.grad.flatten() for p in m.network.parameters() if p.grad is not None]) for m in both)
    assert float(noisy @ exact / exact.norm() ** 2) == pytest.approx(1, abs=0.15)


def test_answers_are_not_sampled_to_documents() -> None:
    node = {"on_policy": {"share": 0.5}, "view": "text"}
    assert "type stage.view=chat" in Distill.faults({"stage": node})[0]
    assert Distill.faults({"stage": node | {"view": "chat"}}) == Distill.faults({"stage": {"view": "text"}}) == []
