"""The experts of the sampler's pass are noted, compared, and where they are kept, the loss is that of a pass through
them by hand."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.stages.reinforcement.made import POLICY, grpo, prompts
from tests.stages.reinforcement.test_grpo import train, weights
from torch import Tensor
from torch.nn import functional as F

from lifecycle.batch import Rollout, SampleBatch
from lifecycle.errors import UserError
from lifecycle.model import Decoder, MoE, build
from lifecycle.model.layers.moe import MoEFeedForward
from lifecycle.model.layers.rope import rotary_angles
from lifecycle.rollout.decoder import fused
from lifecycle.rollout.engine import Engine
from lifecycle.rollout.sampling.parameters import Sampling
from lifecycle.stages.reinforcement.learning import policy
from lifecycle.stages.reinforcement.learning.experience import Experience, RowsOfSamples, micro_batches
from lifecycle.stages.reinforcement.learning.policy import rerouted, sample_logprobs, sample_states
from lifecycle.stages.step.on_device import on_device

SIGMOID = MoE(experts=8, active=2, ffn_width=16, shared=1, first_dense=1, score="sigmoid", bias_rate=0.01, scale=1.7)
SOFTMAX = MoE(experts=8, active=3, ffn_width=16)
KINDS = {
    "sigmoid": replace(POLICY, family="glm4_moe", layers=3, moe=SIGMOID),
    "softmax": replace(POLICY, family="mixtral", layers=2, moe=SOFTMAX),
}
SAMPLING = Sampling(max_new_tokens=9, samples=3, stop_ids=(0,), banned_ids=(62, 63), temperature=0.8)
CPU = torch.device("cpu")


def model_of(kind: str, *, seed: int) -> Decoder:
    """Routers far apart, so that no rounding decides, and biases that count."""
    model = build(KINDS[kind], seed=seed)
    with torch.no_grad():
        for number, ffn in enumerate(experts_of(model)):
            ffn.router.weight.mul_(3.0)
            if ffn.router.bias is not None:
                ffn.router.bias.normal_(0.0, 0.2, generator=torch.Generator().manual_seed(seed + number))
    return model


def experts_of(model: Decoder) -> Iterator[MoEFeedForward]:
    return (block.ffn for block in model.blocks if isinstance(block.ffn, MoEFeedForward))


def by_hand(model: Any, ids: list[int], known: dict[int, Tensor]) -> tuple[Tensor, list[list[set[int]]]]:
    """(T, D) hidden states, token by token and expert by expert, and what each router would choose, by token and layer.
    known: position -> (layers, A), the experts that it visits all the same."""
    T = len(ids)
    angles = rotary_angles(torch.arange(T)[None], model.config)
    x, own, layer = model.embedding(torch.tensor(ids))[None], [list[set[int]]() for _ in range(T)], 0
    for block in model.blocks:
        x = x + block.attention(block.attention_norm(x), angles, None)
        y = block.ffn_norm(x)
        if not isinstance(block.ffn, MoEFeedForward):
            x = x + block.ffn(y)
            continue
        ffn, moe, outs = block.ffn, block.ffn.moe, []
        for t in range(T):
            logits = ffn.router.weight @ y[0, t]
            scores = logits.sigmoid() if moe.score == "sigmoid" else logits.softmax(-1)
            ranks = scores.detach() + (0 if ffn.router.bias is None else ffn.router.bias)
            own[t].append(set(ranks.argsort(descending=True)[: moe.active].tolist()))
            visited = known[t][layer].tolist() if t in known else sorted(own[t][-1])
            total = sum(scores[e] for e in visited) if moe.normalise else 1.0
            gate, up, down = ffn.experts.gate_proj, ffn.experts.up_proj, ffn.experts.down_proj
            out = sum(
                moe.scale * scores[e] / total * (down[e] @ (F.silu(gate[e] @ y[0, t]) * (up[e] @ y[0, t])))
                for e in visited
            )
            outs.append(out if ffn.shared is None else out + ffn.shared(y[0, t]))
        x, layer = x + torch.stack(outs), layer + 1
    return model.norm(x)[0], own


def rollout_of(model: Decoder, **engine: Any) -> Rollout:
    given = prompts(0)
    engine = {"slots": 5, "notes_experts": True, **engine}
    return Engine(model, **engine).generate(given.ids, SAMPLING, seed=1, prompt_ids=given.number.tolist())


def known_of(rollout: Rollout, n: int) -> dict[int, Tensor]:
    """By position of prompt and completion: those that were drawn after."""
    assert rollout.experts is not None
    before = len(rollout.prompts[n]) - 1
    return {before + t: rollout.experts[n, t] for t in range(int(rollout.length[n]))}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["fused", "as it is", "deterministic"])
@torch.no_grad()
def test_the_engine_notes_the_experts_that_were_visited_before_each_token(
    form: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(kind, seed=1)
    if form == "fused" and not fused.fits(model):
        pytest.skip("needs a C compiler")
    if form != "fused":
        monkeypatch.setattr(fused, "fits", lambda model: False)
    rollout = rollout_of(model, deterministic=form == "deterministic")
    assert rollout.experts is not None and rollout.experts.dtype == torch.int16
    assert rollout.experts.shape[2:] == (2, KINDS[kind].moe.active)  # type: ignore[union-attr]
    for n in range(len(rollout)):
        _, own = by_hand(model, [*rollout.prompts[n], *rollout.completion(n)], {})
        for place, experts_LA in known_of(rollout, n).items():
            assert [set(layer.tolist()) for layer in experts_LA] == own[place]
    again = rollout.rows([3, 1])
    assert again.experts is not None and again.experts.equal(rollout.experts[[3, 1]])
    wide = Rollout.joined([rollout, rollout.rows([0])])
    assert wide.experts is not None and len(wide.experts) == len(rollout) + 1
    nothing = Engine(model, notes_experts=True).generate([], SAMPLING, seed=1)
    assert nothing.experts is not None and Rollout.joined([nothing, rollout]).experts is not None
    assert rollout_of(model, notes_experts=False).experts is None
    assert rollout_of(build(POLICY, seed=1)).experts is None


def batches_of(rollout: Rollout, *, shared: bool, most: int) -> list[SampleBatch]:
    advantage = torch.linspace(-1, 1, len(rollout))
    experience = Experience.of(prompts(0), rollout, advantage, mask_unfinished=False)
    layout = RowsOfSamples(width=POLICY.width, most=most, shared=shared)
    return micro_batches(experience, range(len(rollout)), replace(grpo().policy, length=9), layout, device=CPU)


def summed(model: Decoder, batches: list[SampleBatch], *, keep: bool) -> tuple[Tensor, Tensor]:
    """The sum of advantage times log-probability, and (2,) what is told of the routes."""
    total, told = torch.zeros(()), torch.zeros(2, dtype=torch.float64)
    for batch in batches:
        moved, documents = on_device(batch, CPU, kernel="sdpa", compiled=False)
        hidden_ND = sample_states(model, moved, documents, keep_routing=keep)
        told = told + rerouted(model, len(hidden_ND))["policy/rerouted"]
        logp, _ = sample_logprobs(model, hidden_ND, moved, temperature=0.8, banned=torch.tensor([62, 63]), head=None)
        total = total + (logp * moved.advantage).sum()
    return total, told


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize(("shared", "most"), [(True, 256), (False, 64)])
def test_with_moved_weights_the_loss_is_that_of_a_pass_by_hand(keep: bool, kind: str, shared: bool, most: int) -> None:
    rollout, model = rollout_of(model_of(kind, seed=1)), model_of(kind, seed=2)
    advantage = torch.linspace(-1, 1, len(rollout))
    wanted, other, count = torch.zeros(()), 0, 0
    for n in range(len(rollout)):
        ids, before = [*rollout.prompts[n], *rollout.completion(n)], len(rollout.prompts[n]) - 1
        known = known_of(rollout, n)
        hidden, own = by_hand(model, ids, known if keep else {})
        logits = (hidden @ model.head_weight.T / 0.8)[before:-1]
        logits = logits.masked_fill(torch.arange(64) >= 62, -torch.inf)
        wanted = wanted + advantage[n] * logits.log_softmax(-1).gather(1, torch.tensor(ids)[before + 1 :, None]).sum()
        for place, experts_LA in known.items():
            moved = [set(a.tolist()) != b for a, b in zip(experts_LA, own[place], strict=True)]
            other, count = other + sum(moved), count + len(moved)
    model.train()
    found, told = summed(model, batches_of(rollout, shared=shared, most=most), keep=keep)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert told.tolist() == [other, count] and other > count / 4
    names = [name for name, _ in model.named_parameters()]
    mine, theirs = (torch.autograd.grad(of, list(model.parameters())) for of in (found, wanted))
    for name, a, b in zip(names, mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-4, msg=name)


@pytest.mark.parametrize("keep", [True, False])
def test_a_stage_tells_what_was_rerouted_whether_it_keeps_it_or_not(keep: bool, tmp_path: Path) -> None:
    facts: dict[str, Any] = {"read_weights": lambda: model_of("sigmoid", seed=1).state_dict()}
    made = grpo(model=KINDS["sigmoid"], updates=2, passes=2, keep_routing=keep, setup=facts, steps=2)
    rows = train(made, tmp_path, 2)
    assert all(0.1 < row["policy/rerouted"] < 0.9 and row["policy/ratio_max_deviation"] < 1e-4 for row in rows.values())
    once = grpo(model=KINDS["sigmoid"], keep_routing=keep, setup=facts, steps=1)
    assert train(once, tmp_path / "once", 1)[1]["policy/rerouted"] == 0


def test_routing_that_is_not_kept_is_as_if_it_were_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(name: str, *, keep: bool = False) -> list[Tensor]:
        facts: dict[str, Any] = {"read_weights": lambda: model_of("softmax", seed=1).state_dict()}
        made = grpo(model=KINDS["softmax"], updates=2, keep_routing=keep, lr=3e-2, setup=facts, steps=2)
        train(made, tmp_path / name, 2)
        return weights(made)

    off, kept = run("off"), run("kept", keep=True)
    monkeypatch.setattr(policy, "known_routes", lambda batch, keep: None)
    assert all(torch.equal(a, b) for a, b in zip(off, run("unknown"), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(off, kept, strict=True))


def test_a_model_without_experts_has_no_routing_to_keep(tmp_path: Path) -> None:
    assert "policy/rerouted" not in train(grpo(steps=1), tmp_path, 1)[1]
    with pytest.raises(UserError, match="the model has no experts"):
        grpo(keep_routing=True)
