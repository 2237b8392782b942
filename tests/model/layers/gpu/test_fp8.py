"""Products in fp8 are those of operands rounded by hand, of the blocks' linear layers alone, in training alone; and
what is trained so is the same model to everything else. On a CPU torchao multiplies the rounded operands in fp32."""

import copy
import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file
from tests.apart import run_tests_apart
from tests.model.variants import VARIANTS
from tests.stages.test_step import MODEL, STEPS, Batches, reordered, stage, trainer_of, weights, whole
from torch import Tensor, nn
from torch.nn import functional as F

from lifecycle import config
from lifecycle.checkpoint.io import CommittedCheckpointIO
from lifecycle.hardware.hardware import Fp8
from lifecycle.model import Decoder, build, compile_model
from lifecycle.model.layers.cpu import block_parts, packed_attention
from lifecycle.model.layers.gpu import available
from lifecycle.model.layers.gpu.fp8 import Fp8Linear, Recipe, _made, is_plain, product, use_fp8
from lifecycle.model.layers.joined import as_one, joined
from lifecycle.model.sharding import shard
from lifecycle.run import run
from lifecycle.runs import resume
from lifecycle.stages.pretrain import Pretrain

THERE = importlib.util.find_spec("torchao") is not None
HERE = pytest.mark.skipif(not THERE, reason="runs in the process that the file's first test starts")
GPU = pytest.mark.skipif(not torch.cuda.is_available() or not THERE, reason="needs a GPU, and torchao")
RECIPES: list[Any] = list(get_args(Recipe))
E4M3, E5M2 = (3, -6, 448.0), (2, -14, 57344.0)
"""Bits behind the leading one, exponent of the least number that has it, largest number."""


@pytest.mark.skipif(THERE, reason="it is what starts this process")
def test_the_products_where_torchao_is() -> None:
    run_tests_apart("torchao", __file__)


@pytest.mark.slow
@pytest.mark.skipif(THERE, reason="it is what starts this process")
def test_a_run_where_torchao_is() -> None:
    run_tests_apart("torchao", __file__, slow=True)


def test_the_config_names_the_recipes_that_there_are() -> None:
    assert set(get_args(Fp8)) == set(get_args(Recipe))


# -- the product


def rounded(x: Tensor, form: tuple[int, int, float], *, dim: int | None, power: bool) -> Tensor:
    """x as numbers of the format, scaled by the largest of all (dim None) or along `dim`; in float64, by hand."""
    bits, least, largest = form
    amax = x.double().abs().amax() if dim is None else x.double().abs().amax(dim, keepdim=True)
    scale = (largest / amax).float().double()
    scale = 2.0 ** scale.log2().floor() if power else scale
    scaled = (x.double() * scale).float().double().clamp(-largest, largest)
    exponent = scaled.abs().clamp(min=2.0**least).log2().floor()
    step = 2.0 ** (exponent - bits)
    return (scaled / step).round() * step / scale


def by_hand(x: Tensor, w: Tensor, g: Tensor, recipe: Recipe) -> list[Tensor]:
    """The output and both gradients, for (M, D) x, (N, D) w and (M, N) g, the gradient of the output."""
    if recipe == "tensorwise":
        x8, w8 = (rounded(one, E4M3, dim=None, power=False) for one in (x, w))
        g8 = rounded(g, E5M2, dim=None, power=False)
        return [x8 @ w8.T, g8 @ w8, g8.T @ x8]
    out = rounded(x, E4M3, dim=1, power=True) @ rounded(w, E4M3, dim=1, power=True).T
    of_rows = rounded(g, E4M3, dim=1, power=True)
    if recipe == "rowwise_with_gw_hp":
        return [out, of_rows @ rounded(w, E4M3, dim=None, power=True), g.double().T @ x.double()]
    of_x = of_rows @ rounded(w, E4M3, dim=0, power=True)
    return [out, of_x, rounded(g, E4M3, dim=0, power=True).T @ rounded(x, E4M3, dim=0, power=True)]


def drawn(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@HERE
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_product_is_that_of_operands_rounded_by_hand(recipe: Any) -> None:
    x, w, g = drawn(64, 32, seed=0), 0.02 * drawn(48, 32, seed=1), 1e-6 * drawn(64, 48, seed=2)
    x[3] *= 100  # one row is far from the others
    x.requires_grad_(), w.requires_grad_()
    out = product(x, w, None, _made(recipe))
    found = [out, *torch.autograd.grad(out, (x, w), g)]
    for one, wanted in zip(found, by_hand(x.detach(), w.detach(), g, recipe), strict=True):
        assert (one.double() - wanted).norm() <= 1e-5 * wanted.norm()
    exact = [x @ w.T, g @ w, g.T @ x]
    for one, whole_product in zip(found, exact, strict=True):  # roundings of 2^-4, of e5m2's 2^-3, are of either sign
        assert (one - whole_product).norm() <= 0.08 * whole_product.norm()


@HERE
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_instruction_of_torch_gives_what_is_emulated(recipe: Any) -> None:
    made, dtype = _made(recipe), torch.bfloat16
    x, w, g = (drawn(*shape, seed=i, dtype=dtype) for i, shape in enumerate([(64, 32), (48, 32), (64, 48)]))
    x.requires_grad_(), w.requires_grad_()
    for how in (made.by_units, made.emulated):
        out = product(x, w, None, replace(made, emulated=how))
        found = [out, *torch.autograd.grad(out, (x, w), g)]
        assert all(one.dtype == dtype for one in found)
        wanted = by_hand(x.detach(), w.detach(), g, recipe)
        assert all((one.double() - two).norm() <= 4e-3 * two.norm() for one, two in zip(found, wanted, strict=True))


@HERE
def test_zeros_and_what_is_not_finite_stay_what_they_are() -> None:
    x, w = drawn(16, 32, seed=0).requires_grad_(), torch.zeros(16, 32, device="cpu").requires_grad_()
    out = product(x, w, None, _made("tensorwise"))
    of_x, of_w = torch.autograd.grad(out, (x, w), drawn(16, 16, seed=1))
    assert not out.any() and not of_x.any() and of_w.any() and of_w.isfinite().all()
    for bad in (torch.inf, torch.nan):  # a step with such a loss is not taken
        spoilt = x.detach().clone()
        spoilt[0, 0] = bad
        assert not product(spoilt, drawn(16, 32, seed=2), None, _made("tensorwise")).isfinite().all()


# -- which layers, and when


@HERE
def test_the_linear_layers_of_the_blocks_are_changed_and_nothing_else() -> None:
    plain, model = build(MODEL, seed=1), build(MODEL, seed=1)
    names = use_fp8(model, "tensorwise")
    inside = [f"attention.{part}_proj" for part in "qkvo"] + [f"ffn.{part}_proj" for part in ("gate", "up", "down")]
    assert names == [f"blocks.{layer}.{name}" for layer in range(MODEL.layers) for name in inside]
    changed = [name for name, module in model.named_modules() if isinstance(module, Fp8Linear)]
    assert changed == names and all(is_plain(model.get_submodule(name)) for name in names)
    for (name, one), (other, two) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
        assert name == other and type(one) is nn.Parameter and one.dtype == two.dtype and torch.equal(one, two)
    assert list(model.state_dict()) == list(plain.state_dict())


@HERE
@pytest.mark.parametrize("name", ["untied", "glm4_moe", "qwen2_moe", "deepseek_v3", "plain_queries"])
def test_head_router_gate_experts_and_odd_sizes_stay(name: str) -> None:
    shape = replace(VARIANTS[name], width=32, vocab_size=96)
    model = build(shape, seed=1)
    linear = {key: module for key, module in model.blocks.named_modules(prefix="blocks") if type(module) is nn.Linear}
    wanted = [key for key, one in linear.items() if one.in_features % 16 == 0 and one.out_features % 16 == 0]
    assert use_fp8(model, "tensorwise") == wanted and 0 < len(wanted) < len(linear)
    assert not any("router" in key or "shared_gate" in key for key in wanted)
    assert model.head is None or type(model.head) is nn.Linear


def passed(model: Decoder, *, rows: int = 2, grad: bool = True, autocast: bool = True) -> Tensor:
    ids = torch.randint(MODEL.vocab, (rows, 24), generator=torch.Generator().manual_seed(0))
    with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out: Tensor = model(ids, torch.arange(24, device="cpu").expand(rows, 24))
    return out


def gradients(model: Decoder, **how: Any) -> dict[str, Tensor]:
    out = passed(model, **how)
    (out.float() * drawn(*out.shape, seed=3)).sum().backward()
    found = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    model.zero_grad()
    return found


@HERE
def test_what_is_not_differentiated_is_in_bf16_bit_for_bit() -> None:
    plain, model = build(MODEL, seed=1), build(MODEL, seed=1)
    use_fp8(model, "tensorwise")
    assert torch.equal(passed(model, grad=False), passed(plain, grad=False))
    assert not torch.equal(passed(model), passed(plain))
    assert torch.equal(passed(model, rows=1), passed(plain, rows=1))  # 24 positions, which are no multiple of 16
    assert torch.equal(passed(copy.deepcopy(model)), passed(model))
    assert passed(model, rows=0).shape == passed(plain, rows=0).shape


@HERE
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("recipe", RECIPES)
def test_layers_of_one_input_are_one_product_in_fp8_too(recipe: Any, bias: bool) -> None:
    model = nn.Module()
    model.blocks = nn.ModuleList([nn.Linear(32, n, bias=bias, device="cpu") for n in (32, 16)])
    use_fp8(model, recipe)
    layers: Any = list(model.blocks)
    x, g = drawn(2, 24, 32, seed=0).requires_grad_(), drawn(2, 24, 48, seed=1)
    out = as_one(x, layers)
    weight = torch.cat([layer.weight for layer in layers])
    biases = torch.cat([layer.bias for layer in layers]) if bias else torch.zeros(48, device="cpu")
    wanted = by_hand(x.detach().flatten(0, 1), weight.detach(), g.flatten(0, 1), recipe)
    of_x, *of_weights = torch.autograd.grad(out, [x, *(layer.weight for layer in layers)], g)
    found = [(out - biases).flatten(0, 1), of_x.flatten(0, 1), torch.cat(of_weights)]
    assert all((a.double() - b).norm() <= 1e-5 * b.norm() for a, b in zip(found, wanted, strict=True))
    layers[1].__class__ = nn.Linear  # one that is not in fp8: none is
    torch.testing.assert_close(as_one(x, layers), F.linear(x, weight, biases if bias else None))


@HERE
def test_joined_layers_are_those_of_before(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(MODEL, seed=1)
    use_fp8(model, "tensorwise")
    block: Any = model.blocks[0]
    monkeypatch.setattr("torch.compiler.is_compiling", lambda: True)
    monkeypatch.setattr("lifecycle.model.layers.gpu.available.is_there", lambda device: True)
    assert joined(drawn(16, 32, seed=0), (block.ffn.gate_proj, block.ffn.up_proj)) is not None


# -- training


@HERE
@pytest.mark.parametrize("recipe", RECIPES)
def test_blocks_that_are_computed_again_give_the_same_gradients(recipe: Any) -> None:
    found = []
    for checkpointing in (False, True):
        model = build(MODEL, seed=1, activation_checkpointing=checkpointing)
        use_fp8(model, recipe)
        found.append(gradients(model))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@HERE
@pytest.mark.parametrize("checkpointing", [True, False])
def test_a_compiler_sees_one_graph_and_the_same_numbers(checkpointing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_parts, "takes", lambda *_: False)  # the plain steps, as the compiler sees them
    torch.compiler.reset()
    compiled, model = (build(MODEL, seed=1, activation_checkpointing=checkpointing) for _ in range(2))
    use_fp8(compiled, "tensorwise"), use_fp8(model, "tensorwise")
    packed_attention.is_there(), available.is_there(torch.device("cpu"))  # as `compile_model` looks, before
    compiled.compile(dynamic=False, fullgraph=True, backend="aot_eager")
    two, one = gradients(compiled), gradients(model)  # what is compiled first has imported nothing before
    assert all(torch.equal(one[name], two[name]) for name in one)


@HERE
def test_joined_layers_are_compiled_in_one_graph_too() -> None:
    torch.compiler.reset()
    model = build(MODEL, seed=1)
    use_fp8(model, "tensorwise")
    block: Any = model.blocks[0]
    layers = (block.attention.q_proj, block.attention.k_proj, block.attention.v_proj)
    x = drawn(2, 24, 32, seed=0).requires_grad_()
    compiled = torch.compile(lambda x: as_one(x, layers), fullgraph=True, dynamic=False, backend="aot_eager")
    found = []
    for function in (compiled, lambda x: as_one(x, layers)):
        with torch.autocast("cpu", torch.bfloat16):
            out = function(x)
        found.append([out, *torch.autograd.grad(out.float().square().sum(), [x, *(one.weight for one in layers)])])
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


@HERE
def test_gradients_add_up_over_micro_batches() -> None:
    model = build(MODEL, seed=1)
    use_fp8(model, "tensorwise")
    once = gradients(model)
    for _ in range(2):
        passed(model).float().mul(drawn(2, 24, MODEL.width, seed=3)).sum().backward()
    assert all(torch.equal(one.grad, 2 * once[name]) for name, one in model.named_parameters() if one.grad is not None)


@HERE
def test_a_sharded_model_trains_in_fp8(tmp_path: Path) -> None:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor

    whole_one, parts = build(MODEL, seed=1), build(MODEL, seed=1)
    use_fp8(whole_one, "rowwise"), use_fp8(parts, "rowwise")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        shard(parts, mesh, param_dtype=torch.float32, reduce_dtype=torch.float32)
        one, two = (gradients(model, autocast=False) for model in (whole_one, parts))
        for name, grad in two.items():
            assert torch.equal(grad.full_tensor() if isinstance(grad, DTensor) else grad, one[name]), name
    finally:
        dist.destroy_process_group()


FARTHEST = 2 * STEPS * 1.05e-2
"""That steps of AdamW at a rate of 0.01 can take two weights apart."""


def trained(recipe: Recipe | None, folder: Path, *, stop: int = STEPS, begun: Path | None = None) -> Pretrain:
    made = stage()
    made.setup_facts = replace(made.setup_facts, bf16=True, fp8=recipe)
    options: dict[str, Any] = {"precision": "bf16-mixed", "plugins": [CommittedCheckpointIO(async_save=False)]}
    trainer = trainer_of(stop, folder, logger=False, **options)
    data = Batches([form(step) for step, form in enumerate((whole, reordered, whole))][:stop])
    data.first = 2 if begun else 0
    trainer.fit(made, data, ckpt_path=begun)
    trainer.save_checkpoint(folder / f"step-{stop:08}")
    return made


def apart(one: Pretrain, other: Pretrain) -> float:
    first, second = weights(one), weights(other)
    assert [(name, one.dtype) for name, one in first.items()] == [(name, one.dtype) for name, one in second.items()]
    return max(float((first[name] - second[name]).abs().max()) for name in first)


@HERE
def test_a_run_in_fp8_goes_on_bit_for_bit_and_the_switch_may_be_turned(tmp_path: Path) -> None:
    plain, whole_run = trained(None, tmp_path / "bf16"), trained("tensorwise", tmp_path / "fp8")
    assert 0 < apart(plain, whole_run) <= FARTHEST
    trained("tensorwise", tmp_path / "half", stop=2), trained(None, tmp_path / "plain half", stop=2)
    half, plain_half = tmp_path / "half" / "step-00000002", tmp_path / "plain half" / "step-00000002"
    assert apart(trained("tensorwise", tmp_path / "a", begun=half), whole_run) == 0
    assert apart(trained(None, tmp_path / "b", begun=plain_half), plain) == 0
    assert 0 < apart(trained(None, tmp_path / "c", begun=half), whole_run) <= FARTHEST
    assert 0 < apart(trained("rowwise", tmp_path / "d", begun=plain_half), plain) <= FARTHEST


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")  # by torch's compiler
@HERE
def test_a_run_says_that_it_is_in_fp8_and_exports_what_others_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    measured = resume.probe
    monkeypatch.setattr(resume, "probe", lambda kind: replace(measured(kind), has_fp8=True, compiler="g++"))
    words = ["stage=pretrain", "model=tiny", "data=python_stdlib", "logger=csv", "hardware.accelerator=auto"]
    words += ["model.layers=1", "model.width=64", "model.heads=2", "model.kv_heads=1", "model.head_dim=32"]
    words += ["model.ffn_width=96", "data.tokenizer={vocab_size: 320, digits: 1, max_bytes: 50000}"]
    words += ["stage.sequence_length=64", "stage.global_batch_tokens=256", "stage.max_tokens=512", "hardware.workers=0"]
    words += ["hardware.precision=bf16", "hardware.fp8=tensorwise", "validation.tokens=200", "run=eight"]
    run(config.compose(words))
    assert "fp8 tensorwise: linear layers of the blocks" in capsys.readouterr().err
    assert "fp8, tensorwise" in Path("outputs/eight/report.md").read_text()
    weights = load_file("outputs/eight/model/model.safetensors")
    assert "model.layers.0.self_attn.q_proj.weight" in weights and len(weights) == 11


# -- on a GPU


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_gpu_multiplies_what_is_emulated(recipe: Any) -> None:
    made, dtype = _made(recipe), torch.bfloat16
    shapes: Sequence[tuple[int, int]] = [(256, 128), (96, 128), (256, 96)]
    x, w, g = (drawn(*shape, seed=i, dtype=dtype).cuda() for i, shape in enumerate(shapes))
    x.requires_grad_(), w.requires_grad_()
    out = product(x, w, None, made)
    found = [out, *torch.autograd.grad(out, (x, w), g)]
    wanted = by_hand(x.detach().cpu(), w.detach().cpu(), g.cpu(), recipe)
    for one, two in zip(found, wanted, strict=True):
        assert (one.double().cpu() - two).norm() <= 6e-3 * two.norm()


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_compiled_model_on_a_gpu_is_near_to_bf16(recipe: Any, checkpointing: bool) -> None:
    shape = replace(MODEL, width=128, head_dim=64, ffn_width=256)
    found = []
    for how in (None, recipe):
        model = build(shape, seed=1, device=torch.device("cuda"), activation_checkpointing=checkpointing)
        if how is not None:
            use_fp8(model, how)
        compile_model(model, unit="model")
        ids = torch.randint(shape.vocab, (4, 64), generator=torch.Generator().manual_seed(0)).cuda()
        with torch.autocast("cuda", torch.bfloat16):
            out = model(ids, torch.arange(64, device="cuda").expand(4, 64))
        out.float().square().sum().backward()
        found.append([out.float(), *(one.grad for one in model.parameters())])
    assert not torch.equal(found[0][0], found[1][0])
    for one, two in zip(*found, strict=True):
        assert two.isfinite().all() and (one - two).norm() <= 0.25 * one.norm()
