"""Peak rates of GPUs by the names that torch reports for them."""

import pytest
import torch

from learners.peak_flops import PEAK_FLOPS, peak_flops, peak_of


@pytest.mark.parametrize(
    ("device", "teraflops"),
    [
        # Dense bfloat16 of the data sheets (half of the figure with sparsity).
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA GB200", 2500),
        ("NVIDIA B200", 2250),
        ("NVIDIA H20", 148),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L40", 181),
        ("NVIDIA L4", 121),
        ("NVIDIA A10G", 70),
        ("NVIDIA A10", 125),
        ("AMD Instinct MI300X", 1307),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_peak_of_a_device(device, teraflops):
    assert peak_of(device) == (None if teraflops is None else teraflops * 1e12)


def test_no_name_hides_a_longer_one():
    names = list(PEAK_FLOPS)
    for i, shorter in enumerate(names):
        hidden = [longer for longer in names[i + 1 :] if shorter in longer]
        assert not hidden, f"{shorter} comes before {hidden}"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_cpu_has_no_peak():
    assert peak_flops() is None
