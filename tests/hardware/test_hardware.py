from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lifecycle.errors import UserError
from lifecycle.hardware import Hardware, Probe, choose, device_name, native_bf16, probe

CPU = Hardware(
    accelerator="cpu",
    devices=1,
    num_nodes=1,
    precision="auto",
    strategy="auto",
    compile="auto",
    micro_batch_tokens=4096,
    peak_tflops=None,
    activation_checkpointing=False,
    workers=1,
    attention="auto",
    fp8=None,
)
FAST_BF16 = Probe(device_type="cpu", name="a CPU", fp32_flops=1e11, bf16_flops=3e11, has_bf16=True, compiler="g++")
SHORT: dict[str, Any] = {"steps": 10, "tokens_per_step": 1000, "flops_per_token": 1e7}
LONG: dict[str, Any] = {"steps": 100_000, "tokens_per_step": 16_384, "flops_per_token": 1e8}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("accelerator", "tpu"),
        ("precision", "fp16"),
        ("strategy", "deepspeed"),
        ("attention", "fast"),
        ("compile", "yes"),
        ("compile", 1),
        ("fp8", "e4m3"),
        ("fp8", True),
    ],
)
def test_what_cannot_be_meant_is_refused_by_its_dotted_key(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"hardware.{key} is .*{value}.*wanted"):
        Hardware(**{**asdict(CPU), key: value})


def test_a_gpu_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="hardware=cpu"):
        replace(CPU, accelerator="gpu").device_type()
    assert replace(CPU, accelerator="auto").device_type() == "cpu"


def test_auto_is_one_process_on_a_cpu_and_a_number_is_taken_as_it_is() -> None:
    assert replace(CPU, devices="auto").devices_per_node() == 1
    assert replace(CPU, devices=4).devices_per_node() == 4


@pytest.mark.parametrize(
    ("flags", "native"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 amx_tile", True),
        ("flags\t\t: fpu amx_bf16", True),
        ("Features\t: fp asimd bf16", True),
        ("flags\t\t: fpu avx512f avx2", False),
        ("bugs\t\t: bf16", False),
        ("", False),
    ],
)
def test_native_bf16_is_what_the_cpu_says(tmp_path: Path, flags: str, native: bool) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{flags}\nmodel\t: 1\n")
    assert native_bf16(tmp_path / "cpuinfo") is native


def test_bf16_is_chosen_where_it_was_measured_to_be_faster() -> None:
    assert choose(CPU, FAST_BF16, **SHORT).precision == "bf16"
    assert choose(CPU, replace(FAST_BF16, bf16_flops=1.1e11), **SHORT).precision == "fp32"
    emulated = replace(FAST_BF16, has_bf16=False, bf16_flops=None)
    assert choose(CPU, emulated, **SHORT).precision == "fp32"


def test_a_short_run_is_not_compiled_and_a_long_one_is() -> None:
    assert choose(CPU, FAST_BF16, **SHORT).compile is False
    assert choose(CPU, FAST_BF16, **LONG).compile is True
    assert choose(CPU, FAST_BF16, **LONG, samples=True).compile is False  # a shape of its own in every step
    assert choose(replace(CPU, compile=True), FAST_BF16, **LONG, samples=True).compile is True


def test_compilation_is_chosen_at_the_length_where_it_finishes_first() -> None:
    # bf16 on a CPU: eager reaches 0.6 of 3e11 FLOP/s, compiled 1.05 times that. Equal ends at work / 18e10 = T with
    # T = 60 + T / 1.05, so T = 1,260 s.
    def compiled(seconds: float) -> bool:
        work = seconds * 18e10
        choice = choose(CPU, FAST_BF16, steps=1, tokens_per_step=1, flops_per_token=work, compile_seconds=60)
        return choice.compile

    assert not compiled(1250)
    assert compiled(1270)


def test_without_a_compiler_nothing_is_compiled_and_the_reason_is_said() -> None:
    choice = choose(CPU, replace(FAST_BF16, compiler=None), **LONG)
    assert choice.compile is False
    assert "C++ compiler" in choice.reasons[1]


def test_what_the_config_says_is_not_chosen() -> None:
    choice = choose(replace(CPU, precision="fp32", compile=True), FAST_BF16, **SHORT)
    assert (choice.precision, choice.compile) == ("fp32", True)
    assert all("set by hardware." in reason for reason in choice.reasons)


def test_what_a_run_began_with_stays_unless_the_config_says_otherwise() -> None:
    begun = {"precision": "fp32", "compile": True}
    choice = choose(replace(CPU, compile=False), FAST_BF16, begun=begun, **SHORT)
    assert (choice.precision, choice.compile) == ("fp32", False)
    assert choice.reasons == (
        "precision fp32: as it was when the run began",
        "compile false: set by hardware.compile",
    )


def test_the_peak_is_the_configs_own_else_the_tables_else_measured() -> None:
    assert choose(replace(CPU, peak_tflops=0.5), FAST_BF16, **SHORT).peak_flops == 0.5e12
    gpu = Probe(
        device_type="cuda", name="NVIDIA H200", fp32_flops=None, bf16_flops=None, has_bf16=True, compiler="triton"
    )
    assert choose(CPU, gpu, **SHORT).peak_flops == pytest.approx(989.4e12)
    measured = choose(CPU, FAST_BF16, **SHORT)
    assert (measured.peak_flops, "measured" in measured.peak_source) == (3e11, True)


def test_an_unknown_gpu_has_no_peak_and_says_what_to_set() -> None:
    gpu = Probe(device_type="cuda", name="Foo 9000", fp32_flops=None, bf16_flops=None, has_bf16=True, compiler="triton")
    choice = choose(CPU, gpu, **SHORT)
    assert choice.peak_flops is None
    assert "hardware.peak_tflops" in choice.peak_source


def test_this_machine_can_be_probed() -> None:
    found = probe("cpu", seconds=0.05)
    assert found.fp32_flops and found.fp32_flops > 0
    assert (found.bf16_flops is not None) == found.has_bf16
    assert device_name("cpu")


HOPPER = Probe(
    device_type="cuda",
    name="NVIDIA H100",
    fp32_flops=None,
    bf16_flops=None,
    has_bf16=True,
    compiler="triton",
    has_fp8=True,
)
FP8 = replace(CPU, accelerator="gpu", fp8="tensorwise")


def test_fp8_is_compiled_however_short_the_run_and_the_rest_is_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    choice = choose(FP8, HOPPER, **SHORT)
    assert (choice.precision, choice.compile) == ("bf16", True)
    assert choice.reasons[1:] == (
        "compile true: hardware.fp8 wants it",
        "fp8 tensorwise: linear layers of the blocks, in training; what is held out is measured in bf16",
    )
    assert choice.peak_flops == choose(replace(FP8, fp8=None), HOPPER, **SHORT).peak_flops  # MFU: of the bf16 peak
    begun = {"precision": "bf16", "compile": False}  # a run that has begun without
    assert choose(FP8, HOPPER, begun=begun, **SHORT).compile is True
    assert choose(replace(FP8, fp8=None), HOPPER, begun=begun, **SHORT).compile is False


@pytest.mark.parametrize(
    ("changes", "machine", "said"),
    [
        ({}, replace(HOPPER, name="NVIDIA A100", has_fp8=False), "NVIDIA A100 has no units for it; wanted"),
        ({}, FAST_BF16, "a CPU has no units for it"),
        ({"precision": "fp32"}, HOPPER, "type hardware.precision=bf16"),
        ({"compile": False}, HOPPER, "type hardware.compile=true"),
        ({}, replace(HOPPER, compiler=None), "for which triton is missing"),
    ],
)
def test_fp8_that_cannot_be_or_does_not_pay_is_refused(
    changes: dict[str, Any], machine: Probe, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    with pytest.raises(UserError, match="hardware.fp8 is tensorwise, and .*hardware.fp8=null") as raised:
        choose(replace(FP8, **changes), machine, **SHORT)
    assert said in str(raised.value)


def test_fp8_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'lifecycle\[fp8\]'"):
        choose(FP8, HOPPER, **SHORT)


@pytest.mark.parametrize(
    ("capability", "cuda", "has"), [((8, 0), "13", False), ((8, 9), "13", True), ((9, 4), None, False)]
)
def test_units_for_fp8_are_those_of_nvidia_from_ada_on(
    capability: tuple[int, int], cuda: str | None, has: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert probe("cuda").has_fp8 is has
