"""What a run builds is the same whatever device and dtype torch makes tensors on by default.

Lightning calls `configure_model` with the accelerator as the default device; what is meant for the host must say so.
"""

import ast
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.model.variants import LLAMA, VARIANTS
from tests.stages.test_step import stage, whole

from lifecycle.model import ModelConfig, build
from lifecycle.optim import AdamW, Muon
from lifecycle.rollout import Sampling, generate
from lifecycle.stages.step.collectives import count_tokens

SOURCE = Path(__file__).parents[1] / "src" / "lifecycle"
MAKERS = (
    "arange as_tensor empty eye full linspace logspace ones rand randint randn randperm scalar_tensor tensor zeros "
    "Generator"
).split()
FLOATS = "empty eye linspace logspace ones rand randn zeros".split()
"""Those that make floats of the default dtype."""
ADAMW = AdamW(lr=1e-3, embedding_lr=None, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8, grad_clip=1.0)
MUON = Muon(
    lr=1e-3,
    adamw_lr=None,
    embedding_lr=None,
    weight_decay=0.1,
    momentum=0.9,
    nesterov=True,
    newton_schulz_steps=5,
    scale="original",
    betas=(0.9, 0.95),
    eps=1e-8,
    grad_clip=1.0,
)


@pytest.mark.parametrize("default", ["meta", "cuda"])  # without a GPU whatever is made on cuda by default fails
@pytest.mark.parametrize("config", VARIANTS.values(), ids=list(VARIANTS))
def test_a_run_builds_the_same_weights_whatever_the_default_device(config: ModelConfig, default: str) -> None:
    setup, wanted = stage().setup_facts, build(config, seed=1)
    with torch.device(default):
        fresh = setup.build(config, None)
        from_parent = replace(setup, read_weights=wanted.state_dict).build(config, None)
    for made in (fresh, from_parent):
        assert {name: tensor.device.type for name, tensor in made.state_dict().items()} == dict.fromkeys(
            wanted.state_dict(), "cpu"
        )
        assert all(
            torch.equal(a, b) for a, b in zip(made.state_dict().values(), wanted.state_dict().values(), strict=True)
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_are_fp32_whatever_the_default_dtype(dtype: torch.dtype) -> None:
    wanted = build(VARIANTS["deepseek_v3"], seed=1).state_dict()
    try:
        torch.set_default_dtype(dtype)
        made = build(VARIANTS["deepseek_v3"], seed=1).state_dict()
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(made, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("default", ["meta", "cuda"])
@pytest.mark.parametrize("spec", [ADAMW, MUON], ids=["adamw", "muon"])
def test_a_step_is_the_same_whatever_the_default_device(spec: AdamW | Muon, default: str) -> None:
    def trained(place: str) -> tuple[list[torch.Tensor], list[float]]:
        model = build(LLAMA, seed=1)
        batch = whole(0)[0]
        with torch.device(place):
            optimizer = spec.build(model)
            counts = count_tokens([batch], 2, torch.device("cpu"))
            model(batch.input_ids, batch.position_ids, None).square().sum().backward()
            optimizer.step()
        moments = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
        return [*moments, *model.parameters()], counts.tolist()

    for a, b in zip(trained(default)[0], trained("cpu")[0], strict=True):
        assert a.device.type == "cpu" and torch.equal(a, b)
    assert trained(default)[1] == trained("cpu")[1]


@pytest.mark.parametrize("default", ["meta", "cuda"])
@pytest.mark.parametrize("name", ["llama", "mistral", "deepseek_v3"])
def test_sampling_is_the_same_whatever_the_default_device(name: str, default: str) -> None:
    model = build(VARIANTS[name], seed=1)
    sampling = Sampling(max_new_tokens=4, top_p=0.9, samples=2, repetition_penalty=1.1, banned_ids=(3,))
    wanted = generate(model, [[1, 2, 3], [4]], sampling, seed=0)
    with torch.device(default):
        found = generate(model, [[1, 2, 3], [4]], sampling, seed=0)
    assert torch.equal(found.token_ids, wanted.token_ids) and torch.equal(found.logprobs, wanted.logprobs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "plain16", "deepseek_v3"])
def test_sampling_is_the_same_whatever_the_default_dtype(name: str, dtype: torch.dtype) -> None:
    config = replace(VARIANTS["llama"], width=32) if name == "plain16" else VARIANTS[name]  # one that C can take
    model = build(config, seed=1)
    sampling = Sampling(max_new_tokens=4, top_p=0.9, samples=2, repetition_penalty=1.1, banned_ids=(3,))
    wanted = generate(model, [[1, 2, 3], [4]], sampling, seed=0)
    try:
        torch.set_default_dtype(dtype)
        found = generate(model, [[1, 2, 3], [4]], sampling, seed=0)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found.token_ids, wanted.token_ids) and torch.equal(found.logprobs, wanted.logprobs)
    assert found.logprobs.dtype == torch.float32


def unplaced(file: Path) -> list[str]:
    """Lines that make a tensor where, or of floats of the kind that, torch takes by default, other than the weights of
    a module."""
    tree = ast.parse(file.read_text())
    modules = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and "Module" in ast.unparse(node)]
    weights = {
        id(call)
        for module in modules
        for method in module.body
        if isinstance(method, ast.FunctionDef) and method.name == "__init__"
        for call in ast.walk(method)
    }
    found = []
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and ast.unparse(node.func).startswith("torch.")) or id(node) in weights:
            continue
        named, maker = {keyword.arg for keyword in node.keywords}, ast.unparse(node.func).removeprefix("torch.")
        placed = named & {"device", None} or (node.args and maker == "Generator")
        typed = named & {"dtype", None} or maker not in FLOATS
        if maker in MAKERS and not (placed and typed):
            found.append(f"{file.name}:{node.lineno}: {ast.unparse(node)}")
    return found


def test_every_tensor_that_is_made_says_where_and_of_what() -> None:
    assert [line for file in sorted(SOURCE.rglob("*.py")) for line in unplaced(file)] == []
