"""Experts on a GPU: the kernels choose and multiply as the model does, and the engine notes what they chose."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from benchmarks.decode_counts import Launched
from tests.interpreted import DEVICES, INTERPRETED, interpret_tests
from tests.model.variants import GATED, SIGMOID, SOFTMAX, V2, VARIANTS
from tests.rollout.sampled import prompts, settings
from tests.rollout.tape import FORBIDDEN
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lifecycle.model import MoE, build
from lifecycle.model.layers.moe import MoEFeedForward, choose
from lifecycle.rollout import Engine
from lifecycle.rollout.decoder import backend, fused, packed_linear
from lifecycle.rollout.decoder.joined_blocks import Joined
from lifecycle.rollout.decoder.joined_matrices import JoinedExperts

WIDE = MoE(experts=160, active=6, ffn_width=16, groups=8, active_groups=3, scale=16.0, normalise=False)
ROUTED = {
    "softmax": SOFTMAX,
    "softmax of groups": V2,
    "sigmoid of groups": SIGMOID,
    "sigmoid": replace(SIGMOID, groups=1, active_groups=1),
    "many": WIDE,
    "all": replace(SOFTMAX, active=6),
}


@pytest.mark.skipif(INTERPRETED, reason="it is what starts this process")
def test_the_kernels_in_the_interpreter() -> None:
    interpret_tests(__file__)


def routed(logits: Tensor, bias: Tensor | None, moe: MoE) -> tuple[Tensor, Tensor]:
    """Experts, in the second of three layers' room, and weights, by the kernel."""
    from lifecycle.rollout.decoder.gpu.route import route

    room = torch.full((len(logits), 3, moe.active), -1, device=logits.device)
    weights = logits.new_empty(len(logits), moe.active)
    route(logits, bias, moe, room[:, 1], weights)
    assert bool((room[:, [0, 2]] == -1).all())
    return room[:, 1], weights


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("name", ROUTED)
def test_a_row_visits_the_experts_that_the_model_chooses(name: str, biased: bool, device: str) -> None:
    moe, generator = ROUTED[name], torch.Generator().manual_seed(2)
    logits = torch.randn(23, moe.experts, generator=generator).to(device)
    bias = torch.randn(moe.experts, generator=generator).to(device) if biased else None
    chosen, weights = routed(logits, bias, moe)
    wanted_weights, wanted = choose(logits.softmax(-1) if moe.score == "softmax" else logits.sigmoid(), bias, moe)
    assert torch.equal(chosen.sort(-1).values, wanted.sort(-1).values)
    aligned = (weights.gather(1, chosen.argsort(-1)), wanted_weights.gather(1, wanted.argsort(-1)))
    torch.testing.assert_close(*aligned, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:(invalid value|All-NaN):RuntimeWarning")  # NumPy's, in the interpreter
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ROUTED)
@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_no_numbers_choose_experts_that_exist(broken: float, name: str, device: str) -> None:
    moe = ROUTED[name]
    chosen, _ = routed(torch.full((3, moe.experts), broken, device=device), None, moe)
    assert bool(((chosen >= 0) & (chosen < moe.experts)).all())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("skewed", [False, True])
@pytest.mark.parametrize("rows", [1, 4, 5, 150])
def test_visits_multiply_by_their_experts(
    rows: int, skewed: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Widths that no block divides; skewed: nearly all visit the same two experts."""
    from lifecycle.rollout.decoder.gpu import experts, norm_gate

    monkeypatch.setattr(packed_linear, "packs", lambda weight: False)
    monkeypatch.setattr(experts, "CHUNK", 64)
    ffn = MoEFeedForward(replace(GATED, ffn_width=37), width=45, bias=True).to(device)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in ffn.parameters():
            weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
        if skewed and ffn.router.bias is not None:
            ffn.router.bias[2:4] = 100.0
        x = torch.randn(rows, 45, generator=generator).to(device)
        chosen = torch.empty(rows, 2, dtype=torch.long, device=device)
        shared, visits = experts.ExpertsOnGPU(JoinedExperts(ffn, rows=None))(x, chosen)
        plain: list[Tensor] = []
        wanted = ffn(x[:, None], visited=plain)[0][:, 0]
        norm = torch.nn.Module()
        norm.weight, norm.eps = torch.ones(45, device=device), 1e-6  # type: ignore[assignment]
        found = norm_gate.add_norm(torch.zeros_like(x), shared, norm, visits)[0]  # type: ignore[arg-type]
    assert torch.equal(chosen.sort(-1).values, plain[0].sort(-1).values)
    assert not skewed or bool((chosen.sort(-1).values == torch.tensor([2, 3], device=device)).all())
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rows", [3, 40])
def test_the_bits_of_a_row_depend_on_no_other_row(rows: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from lifecycle.rollout.decoder.gpu.experts import ExpertsOnGPU

    monkeypatch.setattr(packed_linear, "packs", lambda weight: False)
    ffn, generator = MoEFeedForward(SOFTMAX, width=48, bias=False).to(device), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in ffn.parameters():
            weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    x, outs = torch.randn(2 * rows, 48, generator=generator).to(device), []
    for others in (x[1:rows], x[rows + 1 :]):
        chosen = torch.empty(rows, 2, dtype=torch.long, device=device)
        with torch.inference_mode():
            _, visits = ExpertsOnGPU(JoinedExperts(ffn, rows=None))(torch.cat((others, x[:1])), chosen)
        outs.append(torch.cat((visits.out_BAD[-1].flatten(), visits.weights_BA[-1], chosen[-1])))
    assert torch.equal(*outs)


class Recordable(TorchDispatchMode):
    """Refuses what a graph cannot hold."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert function.overloadpacket.__name__ not in FORBIDDEN, f"{function} cannot be recorded"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["qwen2_moe", "deepseek_v3"])
def test_the_engine_samples_by_the_kernels_what_it_samples_without(
    name: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens, log-probabilities and experts, also behind a change of the weights; on a GPU in recorded graphs."""
    model = build(replace(VARIANTS[name], layers=2), seed=1, device=torch.device(device))
    monkeypatch.setattr(fused, "fits", lambda model: False)
    monkeypatch.setattr(packed_linear, "packs", lambda weight: False)
    sampling = settings(max_new_tokens=4, top_k=10, samples=2)
    engines = []
    for kernels in (True, False):
        if device == "cpu" or not kernels:
            monkeypatch.setattr(backend, "has_kernels", lambda *_, kernels=kernels, **__: kernels)
        engine = Engine(model, slots=8, notes_experts=True, graphs=None if kernels else False)
        engine.generate(prompts(1), sampling, seed=0)
        assert engine._step is not None and isinstance(engine._step.decode, Joined) == kernels
        assert engine.graphs == (kernels and device == "cuda")
        engines.append(engine)
    for call in range(2):
        asked = prompts(3, longest=6)
        found, wanted = (engine.generate(asked, sampling, seed=call) for engine in engines)
        assert torch.equal(found.token_ids, wanted.token_ids)
        torch.testing.assert_close(found.logprobs, wanted.logprobs, rtol=1e-3, atol=1e-3)
        assert found.experts is not None and wanted.experts is not None
        assert torch.equal(found.experts.sort(-1).values, wanted.experts.sort(-1).values)
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1.2)
        model.weights_changed()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["qwen2_moe", "deepseek_v3"])
@pytest.mark.parametrize("rows", [2, 6])
def test_a_step_starts_nothing_that_a_graph_cannot_hold(
    rows: int, name: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lifecycle.model import Cache

    monkeypatch.setattr(packed_linear, "packs", lambda weight: False)
    model = build(VARIANTS[name], seed=1, device=torch.device(device))
    step = Joined(model, rows=rows, refresh_model=None, kernels=True, notes_experts=True)
    cache = Cache.empty(model.config, rows=rows, capacity=16, device=model.embedding.weight.device, dtype=torch.float32)
    ids = torch.arange(rows, device=device)[:, None]
    with torch.inference_mode(), Recordable():
        step(ids, torch.zeros_like(ids), cache, None)
    moe = model.config.moe
    assert moe is not None and step.visited is not None
    assert step.visited.shape == (rows, model.config.layers - moe.first_dense, moe.active)


@pytest.mark.skipif(not INTERPRETED, reason="runs in the process that the file's first test starts")
@pytest.mark.parametrize("rows", [2, 6])
@pytest.mark.parametrize(
    ("name", "most"), [("qwen3_moe", 11), ("qwen2_moe", 17), ("deepseek_v3", 19), ("plain_queries", 10)]
)
def test_a_layer_starts_few_kernels(name: str, most: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The difference of two depths, our own kernels and torch's; a product counts as one."""
    from triton.runtime.interpreter import GridExecutor

    from lifecycle.model import Cache

    monkeypatch.setattr(packed_linear, "packs", lambda weight: False)
    launched, counts, run = Launched(), list[int](), GridExecutor.__call__

    def start(grid: Any, *given: Any, **more: Any) -> None:
        before = launched.count
        run(grid, *given, **more)
        launched.count = before + 1

    monkeypatch.setattr(GridExecutor, "__call__", start)
    for layers in (2, 3):
        model = build(replace(VARIANTS[name], layers=layers), seed=1).half()
        step = Joined(model, rows=rows, refresh_model=None, kernels=True, notes_experts=True)
        cache = Cache.empty(model.config, rows=rows, capacity=16, device=torch.device("cpu"), dtype=torch.float16)
        ids, launched.count = torch.arange(rows)[:, None], 0
        with torch.inference_mode(), launched:
            step(ids, torch.zeros_like(ids), cache, None)
        counts.append(launched.count)
    assert counts[1] - counts[0] <= most
