"""Experts: the sorted products are a plain sum over experts, routing is each token's own, and loads even out."""

from dataclasses import replace

import pytest
import torch
from tests.model.variants import DEEPSEEK, GATED, SIGMOID, SOFTMAX, V2, VARIANTS
from torch import Tensor, nn
from torch.nn import functional as F

from lifecycle.model import Decoder, MoE, build
from lifecycle.model.layers.experts import Experts, by_expert, combined, inverse, padded, spread
from lifecycle.model.layers.moe import MoEFeedForward, balance_loss, balanced, choose

KINDS = {"softmax": SOFTMAX, "gated": GATED, "grouped_softmax": V2, "grouped_sigmoid": SIGMOID}


def layer(moe: MoE, seed: int = 0) -> MoEFeedForward:
    """One layer in float64 with random weights and choice biases."""
    made = MoEFeedForward(moe, width=12, bias=moe.bias_rate > 0).double()
    generator = torch.Generator().manual_seed(seed)
    for tensor in [*made.parameters(), *made.buffers()]:
        nn.init.normal_(tensor, 0.0, 0.3, generator=generator)
    return made


def tokens(rows: int = 3, length: int = 10, seed: int = 1) -> Tensor:
    return torch.randn(rows, length, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_token(made: MoEFeedForward, x_D: Tensor) -> Tensor:
    """The formula, one token and one expert at a time."""
    moe, experts = made.moe, made.experts
    logits = made.router.weight @ x_D
    scores = logits.softmax(0) if moe.score == "softmax" else logits.sigmoid()
    ranked = scores.detach() if made.router.bias is None else scores.detach() + made.router.bias
    size = moe.experts // moe.groups
    worth = [sum(sorted(ranked[g * size : (g + 1) * size].tolist())[-1 if moe.score == "softmax" else -2 :])
             for g in range(moe.groups)]  # fmt: skip
    open_groups = sorted(range(moe.groups), key=lambda g: -worth[g])[: moe.active_groups]
    allowed = [e for e in range(moe.experts) if e // size in open_groups]
    chosen = sorted(allowed, key=lambda e: -float(ranked[e]))[: moe.active]
    total = sum(scores[e] for e in chosen) if moe.normalise else 1.0
    out = torch.zeros_like(x_D)
    for e in chosen:
        inner = F.silu(experts.gate_proj[e] @ x_D) * (experts.up_proj[e] @ x_D)
        out = out + moe.scale * scores[e] / total * (experts.down_proj[e] @ inner)
    if made.shared is not None:
        gate = 1.0 if made.shared_gate is None else made.shared_gate(x_D).sigmoid()
        out = out + gate * made.shared(x_D)
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_the_layer_is_the_formula_with_its_gradients(kind: str) -> None:
    made, x = layer(KINDS[kind]), tokens().requires_grad_()
    found, _ = made(x)
    wanted = torch.stack([by_token(made, row) for row in x.flatten(0, 1)]).view_as(x)
    torch.testing.assert_close(found, wanted)
    up = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    inputs = [x, *made.parameters()]
    theirs = torch.autograd.grad(wanted, inputs, up)
    torch.testing.assert_close(torch.autograd.grad(found, inputs, up), theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_is_routed_alone(kind: str) -> None:
    made, x = layer(KINDS[kind]), tokens()
    together, _ = made(x)
    torch.testing.assert_close(made(x.flip(0))[0].flip(0), together)
    torch.testing.assert_close(made(torch.cat([x, tokens(seed=9)]))[0][:3], together)
    torch.testing.assert_close(made(x[1:2, 4:5])[0], together[1:2, 4:5])


def sorted_visits() -> tuple[tuple[Tensor, ...], tuple[Tensor, Tensor]]:
    """Tokens, weights and matrices of four experts in float64, two visits a token, none to expert 1; the order of the
    visits, and their ends."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((5, 4), (5, 2), (4, 3, 4), (4, 3, 4), (4, 4, 3))
    given = tuple(torch.randn(*s, dtype=torch.float64, generator=generator, requires_grad=True) for s in shapes)
    chosen = torch.tensor([[0, 2], [2, 0], [3, 0], [0, 2], [2, 0]])
    visited, order = chosen.flatten().sort(stable=True)
    return given, (order, torch.searchsorted(visited, torch.arange(4), right=True))


def test_the_products_have_their_gradients_and_an_expert_without_tokens_none() -> None:
    (x, weights, *matrices), visits = sorted_visits()
    assert torch.autograd.gradcheck(lambda a, w, *m: by_expert(a, w, *visits, *m)[0], (x, weights, *matrices))
    by_expert(x, weights, *visits, *matrices)[0].sum().backward()
    for matrix in matrices:
        assert matrix.grad is not None
        assert bool((matrix.grad[1] == 0).all()) and all(bool((matrix.grad[e] != 0).any()) for e in (0, 2, 3))


def test_padded_products_are_the_same() -> None:
    (x, weights, *matrices), visits = sorted_visits()
    found = padded(x, weights, *visits, *matrices)
    torch.testing.assert_close(found, by_expert(x, weights, *visits, *matrices)[0])


def test_rows_go_to_their_visits_and_come_back_weighted() -> None:
    (x, weights, *_), (order, _) = sorted_visits()
    back = inverse(order)
    assert torch.autograd.gradcheck(lambda a: spread(a, order, back), (x,))
    assert torch.equal(spread(x, order, back), x[order // 2])
    torch.testing.assert_close(combined(spread(x, order, back), weights, order, back), weights.sum(1, keepdim=True) * x)


def test_the_bias_chooses_but_does_not_weigh() -> None:
    moe = MoE(experts=4, active=2, ffn_width=8, score="sigmoid", normalise=False)
    scores = torch.tensor([[0.9, 0.8, 0.2, 0.1]])
    weights, chosen = choose(scores, torch.tensor([0.0, 0.0, 0.0, 1.0]), moe)
    assert dict(zip(chosen[0].tolist(), weights[0].tolist(), strict=True)) == pytest.approx({3: 0.1, 0: 0.9})


def test_the_balance_loss_is_the_hand_worked_number() -> None:
    # one row of two tokens, two experts, one visit each: both tokens visit expert 0
    scores = torch.tensor([[[0.8, 0.2], [0.6, 0.4]]])
    visits = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    counted = torch.ones(1, 2, dtype=torch.bool)
    # n sum_e f_e P_e = 2 * [ (2 / (1 * 2) * 2) * 0.7 + 0 ]
    assert float(balance_loss(scores, visits, counted)) == pytest.approx(2 * 2 * 0.7)
    even = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    assert float(balance_loss(torch.full((1, 2, 2), 0.5), even, counted)) == pytest.approx(2.0)  # the least: n
    none = torch.zeros(1, 2, dtype=torch.bool)
    assert float(balance_loss(scores, visits * 0, none)) == 0.0


def routing_of(model: Decoder, ids: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    model(ids, torch.arange(ids.shape[1]).expand_as(ids), counted=counted)
    assert model.routing is not None
    return model.routing.loads, model.routing.balance


def test_loads_and_balance_loss_add_up_over_rows_without_padding() -> None:
    model = build(DEEPSEEK, seed=1).double()
    ids = torch.randint(0, 96, (4, 12), generator=torch.Generator().manual_seed(0))
    counted = torch.ones(4, 12, dtype=torch.bool)
    counted[1, 7:] = False
    loads, balance = routing_of(model, ids, counted)
    assert loads.shape == (2, 8) and loads.sum(1).tolist() == [2 * (48 - 5)] * 2
    parts = [routing_of(model, ids[i : i + 1], counted[i : i + 1]) for i in range(4)]
    assert torch.equal(sum(part[0] for part in parts), loads)  # type: ignore[arg-type]
    torch.testing.assert_close(sum(part[1] for part in parts), balance)
    short = routing_of(model, ids[1:2, :7], counted[1:2, :7])  # padding is as if it were not there
    assert torch.equal(short[0], parts[1][0])
    torch.testing.assert_close(short[1], parts[1][1])


def test_recomputing_blocks_counts_once_and_changes_no_gradient() -> None:
    kept, lean = build(DEEPSEEK, seed=1), build(DEEPSEEK, seed=1, activation_checkpointing=True)
    ids = torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(0))
    for model in (kept, lean):
        out = model(ids, torch.arange(12).expand(2, 12))
        assert model.routing is not None
        (out.square().sum() + model.routing.balance).backward()
    assert kept.routing is not None and lean.routing is not None
    assert torch.equal(kept.routing.loads, lean.routing.loads)
    for (name, one), (_, two) in zip(kept.named_parameters(), lean.named_parameters(), strict=True):
        assert one.grad is not None and two.grad is not None, name
        assert torch.equal(one.grad, two.grad), name


def test_the_bias_evens_out_a_skewed_load() -> None:
    moe = replace(SOFTMAX, score="sigmoid", bias_rate=0.02)
    bias, generator = torch.zeros(6), torch.Generator().manual_seed(0)
    skew = torch.tensor([2.0, 1.0, 0.0, 0.0, -1.0, -2.0])
    spread = []
    for _ in range(120):
        scores = (torch.randn(2000, 6, generator=generator) + skew).sigmoid()
        _, chosen = choose(scores, bias, moe)
        loads = torch.bincount(chosen.flatten(), minlength=6)
        spread.append(float(loads.max() / loads.double().mean()))
        bias = balanced(bias, loads, moe.bias_rate)
    assert spread[0] > 2.0 and max(spread[-10:]) < 1.3


def test_the_bias_moves_by_its_rate_towards_the_mean() -> None:
    loads = torch.tensor([[4, 0, 2, 2]])
    assert balanced(torch.zeros(1, 4), loads, 0.5).tolist() == [[-0.5, 0.5, 0.0, 0.0]]
    model = build(DEEPSEEK, seed=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.move_router_biases(torch.arange(16).view(2, 8))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"blocks.1.ffn.router.bias", "blocks.2.ffn.router.bias"}


def test_nothing_is_counted_where_nothing_is_trained() -> None:
    model = build(VARIANTS["mixtral"], seed=1)
    ids = torch.zeros(1, 4, dtype=torch.long)
    with torch.no_grad():
        model(ids, torch.arange(4)[None])
    assert model.routing is None
    model.eval()(ids, torch.arange(4)[None])
    assert model.routing is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch imports it
def test_one_graph_holds_the_experts_too() -> None:
    shallow = replace(DEEPSEEK, layers=2)
    plain, compiled = build(shallow, seed=1), build(shallow, seed=1)
    compiled.compile(dynamic=False, fullgraph=True)
    ids = torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(0))
    up = torch.randn(2, 12, 24, generator=torch.Generator().manual_seed(1))
    for model in (plain, compiled):
        out = model(ids, torch.arange(12).expand(2, 12))
        assert model.routing is not None
        ((out * up).sum() + model.routing.balance).backward()
    assert plain.routing is not None and compiled.routing is not None
    assert torch.equal(plain.routing.loads, compiled.routing.loads)
    for (key, one), (_, two) in zip(plain.named_parameters(), compiled.named_parameters(), strict=True):
        assert one.grad is not None and two.grad is not None, key
        assert (two.grad - one.grad).norm() < 1e-4 * (1 + one.grad.norm()), key


CUDA = pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")])


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_experts_in_bf16_are_those_in_float64(device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    made, results = Experts(5, width=32, ffn_width=48), []
    for matrix in made.parameters():
        nn.init.normal_(matrix, 0.0, 0.2, generator=generator)
    x, weights = torch.randn(96, 32, generator=generator), torch.rand(96, 2, generator=generator)
    chosen = torch.rand(96, 4, generator=generator).topk(2).indices  # none visits the last
    for place, dtype in (("cpu", torch.float64), (device, torch.bfloat16)):
        made.to(place, dtype)
        a, w = (t.to(place, dtype).requires_grad_() for t in (x, weights))
        out = made(a, w, chosen.to(place))
        results.append((out, *torch.autograd.grad(out, (a, w, *made.parameters()), torch.ones_like(out))))
    for found, wanted in zip(results[1], results[0], strict=True):
        assert (found.cpu().double() - wanted).norm() / wanted.norm() < 3e-2
