import pytest
import torch

from lifecycle.hardware.device_specs import find_device, measure_peak, peak_flops

# Names as torch.cuda.get_device_name() gives them, and the dense bf16 rate of the maker's data sheet in TFLOP/s.
SHEETS = {
    "NVIDIA H200": 989.4,
    "NVIDIA H200 NVL": 835.5,
    "NVIDIA H100 80GB HBM3": 989.4,
    "NVIDIA H100 NVL": 835.5,
    "NVIDIA H100 PCIe": 756.5,
    "NVIDIA H800": 989.4,
    "NVIDIA H20": 148,
    "NVIDIA GH200 480GB": 989.4,
    "NVIDIA B200": 2250,
    "NVIDIA GB200": 2500,
    "NVIDIA A100-SXM4-80GB": 312,
    "NVIDIA A100-PCIE-40GB": 312,
    "NVIDIA A800-SXM4-80GB": 312,
    "NVIDIA A10": 125,
    "NVIDIA L4": 121,
    "NVIDIA L40": 181,
    "NVIDIA L40S": 362,
    "NVIDIA GeForce RTX 3090": 71,
    "NVIDIA GeForce RTX 4090": 165.2,
    "NVIDIA GeForce RTX 5090": 209.5,
    "AMD Instinct MI300X": 1307.4,
}


@pytest.mark.parametrize(("name", "rate"), SHEETS.items())
def test_table_gives_the_dense_rate_of_the_data_sheet(name: str, rate: float) -> None:
    assert peak_flops(name, torch.bfloat16) == pytest.approx(rate * 1e12)


@pytest.mark.parametrize("name", ["NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB", "NVIDIA L40S", "NVIDIA B200"])
def test_no_rate_is_one_with_sparsity(name: str) -> None:
    # With 2:4 sparsity the data sheets print exactly twice as much; bf16 is about twice tf32 in either.
    bf16, tf32, fp32 = (peak_flops(name, dtype) for dtype in ("bf16", "tf32", "fp32"))
    assert bf16 and tf32 and fp32
    assert fp32 < tf32 < bf16
    assert bf16 / tf32 == pytest.approx(2, rel=0.02)


@pytest.mark.parametrize(
    "name", ["NVIDIA A100-SXM4-80GB MIG 3g.40gb", "NVIDIA GeForce RTX 4090 Laptop GPU", "Foo 9000"]
)
def test_unknown_devices_and_slices_have_no_peak(name: str) -> None:
    assert find_device(name) is None
    assert peak_flops(name, torch.bfloat16) is None


def test_a_device_without_bf16_units_has_no_bf16_peak() -> None:
    assert peak_flops("Tesla V100-SXM2-16GB", torch.bfloat16) is None
    assert peak_flops("Tesla V100-SXM2-16GB", torch.float16) == 125e12
    assert peak_flops("Tesla T4", "bf16") is None


@pytest.mark.parametrize(
    ("name", "device"), [("a100", "A100/A800 80 GB"), ("h100", "H100/H800 SXM"), ("h200", "H200 SXM")]
)
def test_names_of_hardware_configs_are_found(name: str, device: str) -> None:
    found = find_device(name)
    assert found is not None and found.name == device


def test_a100_of_40_gb_is_told_apart() -> None:
    small, large = find_device("NVIDIA A100-PCIE-40GB"), find_device("NVIDIA A100 80GB PCIe")
    assert small is not None and large is not None
    assert (small.memory_gb, large.memory_gb) == (40, 80)


def test_measured_peak_is_the_rate_of_a_matrix_product() -> None:
    rate = measure_peak(torch.float32, seconds=0.2)
    assert 1e9 < rate < 1e14


@pytest.mark.parametrize(
    ("name", "rate"), [("NVIDIA H200", 4.8), ("NVIDIA H100 80GB HBM3", 3.35), ("NVIDIA A100-PCIE-40GB", 1.555)]
)
def test_the_table_gives_how_fast_memory_is_read(name: str, rate: float) -> None:
    device = find_device(name)
    assert device is not None and device.bandwidth == rate
