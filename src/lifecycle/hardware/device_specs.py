"""Peak rates of devices: a table of dense peaks from the makers' data sheets, and a measurement for CPUs.

Every figure is the DENSE rate of one device in TFLOP/s with 32-bit accumulation: data sheets often print the rate with
2:4 sparsity, which is twice as much and which training never reaches. MFU is a share of the dense bf16 peak. Bandwidths
are the slowest of the forms that one name stands for (A100 80 GB: PCIe 1.935, SXM 2.039 TB/s).

Sources: NVIDIA data sheets A100 (1758950), A30, A40, A10, H100 (2430615), H200 (3002446), H20, L4, L40/L40S, V100, T4,
RTX A6000, RTX 6000 Ada, HGX B200/B300 and GB200/GB300 NVL72; architecture papers GA102 (RTX 3090), AD102 (RTX 4090) and
GB202 (RTX 5090); AMD data sheets Instinct MI210, MI250X, MI300A, MI300X, MI325X, MI355X.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

import torch

GB = 10**9
TERA = 10**12

FLOPS_CONVENTION = (
    "FLOPs a token = 6 N + 12 layers x heads x head_dim x context, forward and backward: N leaves out an untied input "
    "embedding, attention is counted whole (not its causal half), recomputation is not counted"
)
"""Stands beside every MFU figure; `ModelConfig.flops_per_token` is where it is computed."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """One kind of accelerator: dense peaks in TFLOP/s (None: it has no such unit), memory in GB (10^9 bytes), and how
    many TB (10^12 bytes) of it are read in a second."""

    name: str
    bf16: float | None
    tf32: float | None
    fp32: float
    memory_gb: float
    bandwidth: float
    fp16: float | None = None


def _row(
    pattern: str,
    name: str,
    bf16: float | None,
    tf32: float | None,
    fp32: float,
    memory_gb: float,
    bandwidth: float,
    fp16: float | None = None,
) -> tuple[re.Pattern[str], Device]:
    device = Device(
        name=name,
        bf16=bf16,
        tf32=tf32,
        fp32=fp32,
        memory_gb=memory_gb,
        bandwidth=bandwidth,
        fp16=bf16 if fp16 is None else fp16,
    )
    return re.compile(pattern, re.IGNORECASE), device


# The first pattern that matches wins, so the special stands before the general (H100 NVL before H100). `(?<![a-z0-9])`
# keeps H200 from matching GH200, and A10 from matching A100.
_START, _END = r"(?<![a-z0-9])", r"(?![a-z0-9])"
_TABLE = [
    _row(_START + "GB300", "GB300", 2500, 1250, 80, 279, 8),
    _row(_START + "GB200", "GB200", 2500, 1250, 80, 186, 8),
    _row(_START + "B300", "B300", 2250, 1125, 75, 268, 8),
    _row(_START + "B200", "B200", 2250, 1125, 75, 180, 8),
    _row(_START + "GH200.*144G", "GH200 144 GB", 989.4, 494.7, 67, 144, 4.9),
    _row(_START + "GH200", "GH200", 989.4, 494.7, 67, 96, 4.0),
    _row(_START + "H200.*NVL", "H200 NVL", 835.5, 417.5, 60, 141, 4.8),
    _row(_START + "H200", "H200 SXM", 989.4, 494.7, 67, 141, 4.8),
    _row(_START + "H100.*NVL", "H100 NVL", 835.5, 417.5, 60, 94, 3.9),
    _row(_START + "H[18]00.*PCIe", "H100/H800 PCIe", 756.5, 378, 51, 80, 2.0),
    _row(_START + "H[18]00", "H100/H800 SXM", 989.4, 494.7, 67, 80, 3.35),
    _row(_START + "H20" + _END, "H20", 148, 74, 44, 96, 4.0),
    _row(_START + "A[18]00.*40GB", "A100 40 GB", 312, 156, 19.5, 40, 1.555),
    _row(_START + "A[18]00", "A100/A800 80 GB", 312, 156, 19.5, 80, 1.935),
    _row(_START + "A30" + _END, "A30", 165, 82, 10.3, 24, 0.933),
    _row(_START + "A40" + _END, "A40", 149.7, 74.8, 37.4, 48, 0.696),
    _row(_START + "A10" + _END, "A10", 125, 62.5, 31.2, 24, 0.6),
    _row(_START + "L40S", "L40S", 362, 183, 91.6, 48, 0.864),
    _row(_START + "L40" + _END, "L40", 181, 90.5, 90.5, 48, 0.864),
    _row(_START + "L4" + _END, "L4", 121, 60, 30.3, 24, 0.3),
    _row(_START + "RTX A6000", "RTX A6000", 154.8, 77.4, 38.7, 48, 0.768),
    _row(_START + "RTX 6000 Ada", "RTX 6000 Ada", 364.2, 182.1, 91.1, 48, 0.96),
    _row(_START + "RTX ?5090$", "RTX 5090", 209.5, 104.8, 104.8, 32, 1.792),
    _row(_START + "RTX ?4090$", "RTX 4090", 165.2, 82.6, 82.6, 24, 1.008),
    _row(_START + "RTX ?3090 Ti", "RTX 3090 Ti", 80, 40, 40, 24, 1.008),
    _row(_START + "RTX ?3090$", "RTX 3090", 71, 35.6, 35.6, 24, 0.936),
    _row(_START + "V100.*PCIe", "V100 PCIe", None, None, 14, 16, 0.9, fp16=112),
    _row(_START + "V100", "V100 SXM2", None, None, 15.7, 16, 0.9, fp16=125),
    _row(_START + "T4" + _END, "T4", None, None, 8.1, 16, 0.32, fp16=65),
    _row(_START + "MI355X", "MI355X", 2516.6, None, 157.3, 288, 8),
    _row(_START + "MI325X", "MI325X", 1307.4, 653.7, 163.4, 256, 6),
    _row(_START + "MI300X", "MI300X", 1307.4, 653.7, 163.4, 192, 5.3),
    _row(_START + "MI300A", "MI300A", 980.6, 490.3, 122.6, 128, 5.3),
    _row(_START + "MI250X", "MI250X (one of its two dies)", 191.5, None, 47.9, 64, 1.6384),
    _row(_START + "MI210", "MI210", 181, None, 45.3, 64, 1.6384),
]


def find_device(name: str) -> Device | None:
    """The table's entry for a name as `torch.cuda.get_device_name()` gives it, or for a config's name (`a100x8_fsdp`).

    None for what the table does not hold; also for a slice of a device (MIG) and laptop variants: their peaks differ.
    """
    if re.search(r"\bMIG\b|Laptop", name):
        return None
    return next((device for pattern, device in _TABLE if pattern.search(name)), None)


def peak_flops(device_name: str, dtype: torch.dtype | str) -> float | None:
    """Dense peak in FLOP/s of one device, or None where the table does not hold it.

    `dtype` is a torch dtype or one of bf16, fp16, tf32, fp32 (torch.float32 means plain fp32, not TF32).
    """
    device = find_device(device_name)
    if device is None:
        return None
    names = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
    kind = names.get(dtype, "") if isinstance(dtype, torch.dtype) else dtype
    rates = {"bf16": device.bf16, "fp16": device.fp16, "tf32": device.tf32, "fp32": device.fp32}
    rate = rates.get(kind)
    return None if rate is None else rate * TERA


def measure_peak(dtype: torch.dtype, seconds: float = 0.2, device: str = "cpu") -> float:
    """The best matrix-product rate of this machine in FLOP/s, over growing square sizes within about `seconds`.

    The size grows only while a product fits into an eighth of the time, so that a machine that emulates `dtype` (a bf16
    product can be 50 times slower than a fp32 one) does not spend minutes here.
    """
    best, size, deadline = 0.0, 256, time.perf_counter() + seconds
    while True:
        left = torch.ones(size, size, dtype=dtype, device=device)
        right, out = left.clone(), left.clone()
        torch.mm(left, right, out=out)  # the first product pays for threads and memory
        spent = _best_time(left, right, out, deadline=deadline, seconds=seconds / 4)
        best = max(best, 2 * size**3 / spent)
        if time.perf_counter() >= deadline or spent * 8 * 2 > seconds / 4 or size >= 2048:
            return best
        size *= 2


def _best_time(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor, *, deadline: float, seconds: float) -> float:
    best, stop = float("inf"), min(deadline, time.perf_counter() + seconds)
    while best == float("inf") or time.perf_counter() < stop:
        start = time.perf_counter()
        torch.mm(left, right, out=out)
        if left.is_cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best
