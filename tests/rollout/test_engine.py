"""The engine draws what a naive sampler draws, whatever the batch, and its log-probabilities are a fresh pass's."""

import io
import math
import random
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from tests.model.variants import VARIANTS
from tests.rollout.naive import complete
from tests.rollout.sampled import CONFIG, completions, mismatch, prompts, settings

from lifecycle.batch import Rollout
from lifecycle.errors import UserError
from lifecycle.losses import token_logprobs
from lifecycle.model import Decoder, build
from lifecycle.rollout import Engine, generate


@pytest.fixture(scope="module")
def model() -> Decoder:
    return build(CONFIG, seed=1)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.7, "top_k": 10},
    {"top_p": 0.8},
    {"min_p": 0.1, "temperature": 1.4},
    {"repetition_penalty": 1.5, "top_k": 20},
    {"banned_ids": (3, 4, 5), "top_p": 0.95},
    {"stop_ids": (1, 2, 3, 4, 5, 6, 7, 8), "samples": 3},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_gives_what_the_naive_sampler_gives(model: Decoder, options: dict[str, Any]) -> None:
    sampling, asked = settings(**options), prompts(6)
    rollout = generate(model, asked, sampling, seed=7, step=3, slots=4, prefill_chunk=16)
    for (number, sample), found in completions(rollout).items():
        wanted = complete(model, asked[number], sampling, seed=7, step=3, prompt_id=number, sample=sample)
        assert found == wanted
    assert mismatch(model, rollout, sampling) < 1e-5


@pytest.mark.parametrize("name", VARIANTS)
def test_every_kind_of_model_agrees_with_its_own_scoring_pass(name: str) -> None:
    kind = build(VARIANTS[name], seed=1)
    sampling = settings(top_k=20, samples=2)
    rollout = generate(kind, prompts(5, longest=14), sampling, seed=0, slots=4, prefill_chunk=8)
    worst = mismatch(kind, rollout, sampling)
    print(f"\n{name}: greatest difference {worst:.1e}")
    assert worst < 1e-5


def test_log_probabilities_are_those_that_training_computes(model: Decoder) -> None:
    sampling = settings(temperature=0.8, top_p=0.9)
    rollout = generate(model, prompts(8), sampling, seed=5)
    worst = 0.0
    for row, prompt in enumerate(rollout.prompts):
        ids, mask = rollout.completion(row), rollout.sampled[row]
        whole = torch.tensor([prompt + ids[:-1]])
        hidden = model(whole, torch.arange(whole.shape[1])[None])[0, len(prompt) - 1 :].detach()
        logp, entropy = token_logprobs(
            hidden,
            model.head_weight.detach(),
            torch.tensor(ids),
            temperature=sampling.temperature,
            kept=rollout.rows([row]).kept_of(mask[None]),
        )
        worst = max(worst, float((logp - rollout.logprobs[row][mask]).abs().max()))
        worst = max(worst, float((entropy - rollout.entropy[row][mask]).abs().max()))
    print(f"\ngreatest difference {worst:.1e}")
    assert worst < 1e-5


@pytest.mark.slow
def test_a_thousand_sequences_do_not_depend_on_their_batch(model: Decoder) -> None:
    asked, sampling = prompts(250, seed=2), settings(samples=4, temperature=0.9, top_k=40, max_new_tokens=8)
    wanted = completions(generate(model, asked, sampling, seed=1, slots=32))
    assert len(wanted) == 1000
    order = random.Random(0).sample(range(250), 250)
    differ = {}
    for slots in (1, 7):
        found = generate(model, [asked[i] for i in order], sampling, seed=1, prompt_ids=order, slots=slots)
        differ[slots] = sum(ids != wanted[name] for name, ids in completions(found).items())
    print(f"\nsequences of 1,000 that differ, by slots: {differ}")
    assert all(count <= 2 for count in differ.values())


@pytest.mark.parametrize("name", [None, *VARIANTS])
def test_deterministic_sequences_depend_on_their_batch_in_no_bit(model: Decoder, name: str | None) -> None:
    count, decoder = (60, model) if name is None else (12, build(VARIANTS[name], seed=4))
    asked, sampling = prompts(count, seed=3, longest=20), settings(samples=2, top_k=40, max_new_tokens=8)
    facts = []
    for slots, shuffled in ((16, False), (1, False), (7, True)):
        order = random.Random(slots).sample(range(count), count) if shuffled else list(range(count))
        found = generate(
            decoder,
            [asked[i] for i in order],
            sampling,
            seed=1,
            prompt_ids=order,
            slots=slots,
            deterministic=True,
        )
        rows = found.rows(sorted(range(len(found)), key=lambda r: (int(found.prompt_id[r]), int(found.sample[r]))))
        facts.append(
            (rows.token_ids, rows.logprobs, rows.full_logprobs, rows.entropy, rows.kept.ids, rows.kept.offsets)
        )
    for other in facts[1:]:
        assert all(torch.equal(a, b) for a, b in zip(facts[0], other, strict=True))


def test_seed_step_prompt_and_sample_each_matter(model: Decoder) -> None:
    sampling = settings(samples=2)
    base = completions(generate(model, [[1, 2, 3]], sampling, seed=0))
    others = [
        generate(model, [[1, 2, 3]], sampling, seed=1),
        generate(model, [[1, 2, 3]], sampling, seed=0, step=1),
        generate(model, [[1, 2, 3]], sampling, seed=0, prompt_ids=[5]),
    ]
    assert base[0, 0] != base[0, 1]
    assert all(list(completions(other).values()) != list(base.values()) for other in others)


def test_changed_weights_are_seen_and_the_cache_is_kept() -> None:
    changing, sampling, asked = build(CONFIG, seed=2), settings(), prompts(5)
    engine = Engine(changing, slots=3)
    engine.generate(asked, sampling, seed=0)
    with torch.no_grad():
        for parameter in changing.parameters():
            parameter.mul_(1.1)
    again = engine.generate(asked, sampling, seed=0)
    assert torch.equal(again.token_ids, generate(changing, asked, sampling, seed=0, slots=3).token_ids)
    longer = engine.generate(asked, settings(max_new_tokens=40), seed=0)
    assert longer.token_ids[:, :12].tolist() == again.token_ids.tolist()
    assert mismatch(changing, longer, sampling) < 2e-5  # without a compiler the sums are in another order


def test_weights_that_did_not_change_are_not_laid_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    kind, sampling, asked = build(CONFIG, seed=2), settings(), prompts(2)
    engine = Engine(kind, slots=2)
    first = engine.generate(asked, sampling, seed=0)
    step = engine._step
    assert step is not None
    refresh = Mock(wraps=step.decode.refresh)
    monkeypatch.setattr(step.decode, "refresh", refresh)
    assert torch.equal(engine.generate(asked, sampling, seed=0).token_ids, first.token_ids)
    assert refresh.call_count == 0
    with torch.no_grad():
        kind.blocks[0].ffn.down_proj.weight.add_(0.5)  # type: ignore[union-attr,operator]
    changed = engine.generate(asked, sampling, seed=0)
    assert refresh.call_count == 1 and mismatch(kind, changed, sampling) < 1e-5


class Letters:
    """A tokenizer whose ids are letters."""

    def decode(self, ids: Any) -> str:
        return "".join(chr(33 + i) for i in ids)


def test_a_completion_ends_at_a_stop_and_holds_it(model: Decoder) -> None:
    tokenizer, asked = Letters(), prompts(20)
    free = generate(model, asked, settings(), seed=4, tokenizer=tokenizer)
    assert set(free.stop_reason) == {"length"} and all(len(text) == 12 for text in free.text)
    string, last = free.text[0][3:5], free.completion(1)[6]
    stopped = generate(
        model, asked, settings(stop_strings=(string,), stop_ids=(last,)), seed=4, tokenizer=tokenizer, slots=3
    )
    for row in range(20):
        whole, text, reason = free.text[row], stopped.text[row], stopped.stop_reason[row]
        assert whole.startswith(text)
        if reason == "stop_string":
            assert text.endswith(string) and string not in text[:-1]
        elif reason == "stop_id":
            assert stopped.completion(row)[-1] == last and last not in stopped.completion(row)[:-1]
        else:
            assert text == whole and string not in text and last not in stopped.completion(row)
    assert stopped.stop_reason[0] == "stop_string" and stopped.stop_reason[1] == "stop_id"


def test_the_models_last_position_ends_a_completion(model: Decoder) -> None:
    rollout = generate(model, [[1] * 60, [1] * 63, [1] * 10], settings(), seed=0)
    assert rollout.stop_reason == ["capacity", "capacity", "length"]
    assert rollout.length.tolist() == [4, 1, 12]


@pytest.mark.parametrize("by", ["mean", "sum"])
def test_the_best_of_n_have_the_greatest_log_probability(model: Decoder, by: Any) -> None:
    asked, stops = prompts(4), tuple(range(0, 96, 7))
    every = generate(model, asked, settings(samples=6, stop_ids=stops), seed=2)
    best = generate(model, asked, settings(samples=2, best_of=6, best_by=by, stop_ids=stops), seed=2)
    assert len(best) == 8
    for number in range(4):
        rows = [row for row in range(24) if int(every.prompt_id[row]) == number]
        sums = {row: every.full_logprobs[row].sum().item() for row in rows}
        worth = {row: s / (int(every.length[row]) if by == "mean" else 1) for row, s in sums.items()}
        ranked = sorted(rows, key=lambda row: -worth[row])[:2]
        assert [best.completion(2 * number + i) for i in range(2)] == [every.completion(row) for row in ranked]
        assert best.sample[2 * number : 2 * number + 2].tolist() == [int(every.sample[row]) for row in ranked]


def test_the_stream_is_the_rollout_token_by_token(model: Decoder) -> None:
    asked, sampling = prompts(5), settings(samples=2, stop_ids=(1, 2, 3, 4, 5))
    engine = Engine(model, slots=3)
    heard: dict[tuple[int, int], list[int]] = {}
    rollout = engine.generate(asked, sampling, seed=0, on_token=lambda p, s, t: heard.setdefault((p, s), []).append(t))
    assert heard == completions(rollout)
    streamed: dict[tuple[int, int], list[int]] = {}
    reasons = {}
    for new in engine.stream(asked, sampling, seed=0):
        assert (new.prompt, new.sample) not in reasons
        streamed.setdefault((new.prompt, new.sample), []).append(new.token)
        if new.stop_reason is not None:
            reasons[new.prompt, new.sample] = new.stop_reason
    assert streamed == heard
    assert [reasons[p, s] for p in range(5) for s in range(2)] == rollout.stop_reason


def test_an_engine_takes_one_call_at_a_time(model: Decoder) -> None:
    asked, engine = prompts(3), Engine(model, slots=3)
    wanted = generate(model, asked, settings(), seed=0)
    stream = engine.stream(asked, settings(), seed=0)
    next(stream)
    for other in (
        lambda: engine.generate(asked, settings(), seed=1),
        lambda: next(engine.stream(asked, settings(), seed=1)),
    ):
        with pytest.raises(UserError, match="in the middle of another call.*close"):
            other()
    stream.close()
    with pytest.raises(UserError, match="prompt 0 is empty"):
        engine.generate([[]], settings(), seed=0)  # a call that is refused lets go, too
    assert torch.equal(engine.generate(asked, settings(), seed=0).token_ids, wanted.token_ids)


def test_what_runs_eagerly_is_not_said_to_be_compiled(model: Decoder) -> None:
    ways: list[dict[str, Any]] = [{"compiled": True}, {"graphs": True}]
    for how in ways:
        with pytest.raises(UserError, match="run eagerly: leave out"):
            Engine(model, deterministic=True, **how)


def test_a_rollout_enters_a_loss_and_survives_a_checkpoint(model: Decoder) -> None:
    rollout = generate(model, prompts(3), settings(stop_ids=(1, 2, 3)), seed=0)
    weight = torch.ones((), requires_grad=True)
    (rollout.logprobs * weight).exp().sum().backward()  # tensors of inference mode would be refused here
    file = io.BytesIO()
    torch.save(rollout.state(), file)
    file.seek(0)
    back = Rollout.of_state(torch.load(file, weights_only=True))
    assert torch.equal(back.token_ids, rollout.token_ids) and back.stop_reason == rollout.stop_reason
    assert not rollout.token_ids[~rollout.sampled].any() and not rollout.logprobs[~rollout.sampled].any()


def test_no_prompts_give_an_empty_rollout(model: Decoder) -> None:
    assert len(generate(model, [], settings(), seed=0)) == 0


def test_faults_are_named(model: Decoder) -> None:
    with pytest.raises(
        UserError, match=r"(?s)prompt 0 is empty.*prompt 1 has 64 tokens.*prompt 2 holds ids from 1 to 96"
    ):
        generate(model, [[], [1] * 64, [1, 96]], settings(), seed=0)
    with pytest.raises(UserError, match="no tokenizer"):
        generate(model, [[1]], settings(stop_strings=("x",)), seed=0)
    with pytest.raises(UserError, match="prompt_ids"):
        generate(model, [[1], [2]], settings(), seed=0, prompt_ids=[4, 4])
    with pytest.raises(UserError, match="slots=0"):
        Engine(model, slots=0)


def test_logits_that_are_no_numbers_end_it() -> None:
    broken = build(CONFIG, seed=1)
    with torch.no_grad():
        broken.norm.weight[3] = math.nan
    with pytest.raises(UserError, match="logits of prompt 0 are not finite at token 0"):
        generate(broken, [[1, 2]], settings(), seed=0)
