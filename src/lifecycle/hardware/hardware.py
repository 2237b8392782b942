"""Hardware settings, and the two choices that are made for the machine: precision and compilation.

A choice is made once, before anything is built, from what was measured and from how long the run is; the caller stores
it, and a resumed run keeps it. `compile` pays when the run is long: what finishes first is chosen,

    eager:     work / rate        compiled:  compile time + work / (rate * gain).
"""

from __future__ import annotations

import importlib.util
import platform
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from lifecycle.bounds import Count, FromZero, Positive
from lifecycle.errors import UserError
from lifecycle.hardware.device_specs import measure_peak, peak_flops

__all__ = ["Choice", "Hardware", "Probe", "choose", "device_name", "native_bf16", "peak_flops", "measure_peak", "probe"]

Accelerator = Literal["auto", "cpu", "gpu"]
Precision = Literal["auto", "fp32", "bf16"]
Strategy = Literal["auto", "ddp", "fsdp"]
Attention = Literal["auto", "sdpa", "varlen", "flash", "cudnn"]
Fp8 = Literal["tensorwise", "rowwise", "rowwise_with_gw_hp"]

CPUINFO = Path("/proc/cpuinfo")
BF16_PAYS_FROM = 1.3
"""Ratio of the measured bf16 to the fp32 matrix rate from which bf16 is chosen: casts take a part of the gain."""

COMPILE_GAIN = {("cpu", "fp32"): 1.0, ("cpu", "bf16"): 1.05, ("cuda", "fp32"): 1.2, ("cuda", "bf16"): 1.3}
"""Compiled over eager training rate: rough figures of small and middle-sized decoders."""

EAGER_SHARE = {("cpu", "fp32"): 0.6, ("cpu", "bf16"): 0.6, ("cuda", "fp32"): 0.3, ("cuda", "bf16"): 0.3}
"""Share of the matrix peak that eager training reaches: rough, used only to guess how long a run is."""

FP8_FROM = (8, 9)
"""Compute capability of the first NVIDIA GPUs that multiply fp8: Ada (8.9), Hopper (9.0)."""

COMPILE_SECONDS = {"cpu": 60.0, "cuda": 60.0}


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """The `hardware` group: where a run runs, and how it uses it. Each key is explained in conf/hardware/cpu.yaml.

    `peak_tflops` is the dense peak of one device in TFLOP/s (None: from the table, or measured on a CPU).
    """

    accelerator: Accelerator
    devices: Count | Literal["auto"]
    num_nodes: Count
    precision: Precision
    strategy: Strategy
    compile: bool | Literal["auto"]
    micro_batch_tokens: Count
    peak_tflops: Positive | None
    activation_checkpointing: bool
    workers: FromZero
    attention: Attention
    fp8: Fp8 | None

    def __post_init__(self) -> None:
        """Raises UserError for values that are none of the choices."""
        _one_of("accelerator", self.accelerator, get_args(Accelerator))
        _one_of("precision", self.precision, get_args(Precision))
        _one_of("strategy", self.strategy, get_args(Strategy))
        _one_of("attention", self.attention, get_args(Attention))
        _one_of("fp8", self.fp8, (*get_args(Fp8), None))
        _one_of("compile", self.compile, ("auto", True, False))

    def device_type(self) -> Literal["cpu", "cuda"]:
        """`auto` is a GPU where torch sees one. Raises UserError where a GPU is asked for and there is none."""
        if self.accelerator == "cpu":
            return "cpu"
        if torch.cuda.is_available():
            return "cuda"
        if self.accelerator == "auto":
            return "cpu"
        raise UserError(
            "hardware.accelerator is gpu, but torch sees no GPU here: use hardware=cpu, or install a CUDA build"
        )

    def devices_per_node(self) -> int:
        """`auto` is every GPU that torch sees, and one process on a CPU."""
        if self.devices != "auto":
            return int(self.devices)
        return torch.cuda.device_count() if self.device_type() == "cuda" else 1

    def world_size(self) -> int:
        """Processes of a run: one a device."""
        return self.devices_per_node() * self.num_nodes

    def peak(self, name: str, dtype: torch.dtype | str) -> float | None:
        """Dense peak of one device in FLOP/s: the config's own figure, else the table's, else None."""
        return self.peak_tflops * 1e12 if self.peak_tflops is not None else peak_flops(name, dtype)


def _one_of(key: str, value: object, wanted: tuple[object, ...]) -> None:
    if not any(value is w or (value == w and type(value) is type(w)) for w in wanted):
        raise UserError(f"hardware.{key} is {value!r}; wanted one of {', '.join(map(str, wanted))}")


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Measurements of this machine. Rates in FLOP/s of a matrix product; None where not measured."""

    device_type: Literal["cpu", "cuda"]
    name: str
    fp32_flops: float | None
    bf16_flops: float | None
    has_bf16: bool
    compiler: str | None
    has_fp8: bool = False


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The choices, with a line on the reason of each. peak_flops: of one device, which MFU is a share of."""

    precision: Literal["fp32", "bf16"]
    compile: bool
    reasons: tuple[str, ...]
    peak_flops: float | None
    peak_source: str


def native_bf16(cpuinfo: Path = CPUINFO) -> bool:
    """Whether this CPU says that it multiplies bf16 in hardware (x86: AVX512-BF16 or AMX; ARM: bf16)."""
    if not cpuinfo.exists():
        return False
    flags = re.findall(r"^(?:flags|Features)\s*:(.*)$", cpuinfo.read_text(errors="replace"), re.MULTILINE)
    return bool(flags) and bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags[0].split()))


def device_name(device_type: str) -> str:
    """The name of this machine's device, as its maker gives it."""
    if device_type == "cuda":
        return str(torch.cuda.get_device_name())
    model = re.findall(
        r"^model name\s*:\s*(.*)$", CPUINFO.read_text(errors="replace") if CPUINFO.exists() else "", re.M
    )
    return f"{model[0] if model else platform.machine()}, {torch.get_num_threads()} threads"


def probe(device_type: Literal["cpu", "cuda"], seconds: float = 0.2) -> Probe:
    """Measure a CPU (about 2 x `seconds`); of a GPU only its capabilities are read."""
    if device_type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        triton = "triton" if importlib.util.find_spec("triton") else None
        name = device_name(device_type)
        fp8 = torch.version.cuda is not None and torch.cuda.get_device_capability() >= FP8_FROM
        units = {"has_bf16": native, "has_fp8": fp8}
        return Probe(device_type="cuda", name=name, fp32_flops=None, bf16_flops=None, compiler=triton, **units)
    native = native_bf16()
    return Probe(
        device_type="cpu",
        name=device_name(device_type),
        fp32_flops=measure_peak(torch.float32, seconds),
        # Without the unit a bf16 product is emulated and slow beyond doubt: nothing to measure.
        bf16_flops=measure_peak(torch.bfloat16, seconds) if native else None,
        has_bf16=native,
        compiler=next((name for name in ("g++", "clang++", "c++") if shutil.which(name)), None),
    )


def choose(
    hardware: Hardware,
    machine: Probe,
    *,
    steps: int,
    tokens_per_step: int,
    flops_per_token: float,
    compile_seconds: float | None = None,
    samples: bool = False,
    begun: Mapping[str, Any] | None = None,
) -> Choice:
    """Settle what the config left at `auto`. `tokens_per_step` is one device's share of a step; `samples`: whether its
    rows are samples of the model, which have other shapes in every step; `begun` has what was settled when the run
    began, which stays."""
    kept = {key: value for key, value in (begun or {}).items() if getattr(hardware, key) == "auto"}
    if hardware.fp8 is not None:
        kept.pop("compile", None)  # it may be switched on in a run that has begun without it
    hardware = replace(hardware, **kept)
    precision, why_precision = _choose_precision(hardware, machine)
    peak = hardware.peak(machine.name, precision)
    source = "hardware.peak_tflops" if hardware.peak_tflops is not None else "table of data sheets, dense"
    if peak is None and machine.device_type == "cpu":
        peak = machine.bf16_flops if precision == "bf16" else machine.fp32_flops
        peak = peak if peak is not None else measure_peak(torch.bfloat16)
        source = "best matrix product measured on this machine"
    if peak is None:
        source = f"unknown device {machine.name}: set hardware.peak_tflops to see MFU"
    work = steps * tokens_per_step * flops_per_token
    compiled, why_compile = _choose_compile(hardware, machine, precision, work, peak, compile_seconds)
    if samples and compiled and hardware.compile == "auto":
        compiled, why_compile = False, "compile false: samples have other shapes in every step, each compiled for anew"
    said = {"precision": why_precision, "compile": why_compile}
    if hardware.fp8 is not None:
        said["fp8"] = _fp8(hardware.fp8, machine, precision, compiled)
    said |= {key: f"{key} {str(value).lower()}: as it was when the run began" for key, value in kept.items()}
    return Choice(
        precision=precision, compile=compiled, reasons=tuple(said.values()), peak_flops=peak, peak_source=source
    )


def _choose_precision(hardware: Hardware, machine: Probe) -> tuple[Literal["fp32", "bf16"], str]:
    if hardware.precision != "auto":
        return hardware.precision, f"precision {hardware.precision}: set by hardware.precision"
    if not machine.has_bf16:
        return "fp32", f"precision fp32: {machine.name} has no bf16 units (bf16 would be emulated)"
    if machine.fp32_flops is None or machine.bf16_flops is None:
        return "bf16", f"precision bf16: {machine.name} has bf16 units"
    ratio = machine.bf16_flops / machine.fp32_flops
    rates = f"{machine.bf16_flops / 1e9:,.0f} GFLOP/s against {machine.fp32_flops / 1e9:,.0f} in fp32, {ratio:.1f} x"
    if ratio >= BF16_PAYS_FROM:
        return "bf16", f"precision bf16: measured {rates}"
    return "fp32", f"precision fp32: bf16 does not pay here (measured {rates}; wanted {BF16_PAYS_FROM} x)"


def _choose_compile(
    hardware: Hardware, machine: Probe, precision: str, work: float, peak: float | None, seconds: float | None
) -> tuple[bool, str]:
    if hardware.compile != "auto":
        return hardware.compile, f"compile {str(hardware.compile).lower()}: set by hardware.compile"
    if hardware.fp8 is not None and machine.compiler is not None:
        return True, "compile true: hardware.fp8 wants it"
    if machine.compiler is None:
        missing = "triton" if machine.device_type == "cuda" else "a C++ compiler (g++ or clang++)"
        return False, f"compile false: torch.compile needs {missing}, which is not installed"
    if peak is None:
        return True, "compile true: the device's peak is unknown, so the run is taken to be long"
    kind = (machine.device_type, precision)
    cost = COMPILE_SECONDS[machine.device_type] if seconds is None else seconds
    eager = work / (peak * EAGER_SHARE[kind])
    compiled = cost + eager / COMPILE_GAIN[kind]
    guess = f"guessed {_span(eager)} eager against {_span(compiled)} with {_span(cost)} of compilation"
    return compiled < eager, f"compile {str(compiled < eager).lower()}: what finishes first ({guess})"


def _fp8(recipe: Fp8, machine: Probe, precision: str, compiled: bool) -> str:
    """A line on what is multiplied in fp8. Raises UserError where that cannot be, or is slower than bf16."""
    fault = None
    if not machine.has_fp8:
        fault = f"{machine.name} has no units for it; wanted an NVIDIA GPU of Ada or Hopper or later (L40S, H100, H200)"
    elif importlib.util.find_spec("torchao") is None:
        fault = "torchao, which scales and rounds, is not installed here: pip install 'lifecycle[fp8]'"
    elif precision != "bf16":
        fault = f"the rest would be in {precision}: type hardware.precision=bf16"
    elif machine.compiler is None:
        fault = "without compilation, for which triton is missing here, it is slower than bf16"
    elif not compiled:
        fault = "without compilation it is slower than bf16, each cast a kernel of its own: type hardware.compile=true"
    if fault is not None:
        raise UserError(f"hardware.fp8 is {recipe}, and {fault}; or go on in bf16: hardware.fp8=null")
    return f"fp8 {recipe}: linear layers of the blocks, in training; what is held out is measured in {precision}"


def _span(seconds: float) -> str:
    """A length of time in the unit that a person would use."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.0f} s"
