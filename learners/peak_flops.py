"""Peak rates of GPUs, against which a learner's rate is a utilization (MFU)."""

from __future__ import annotations

import torch

# Dense peak in bfloat16, FLOP/s, from the manufacturers' data sheets, by a part of the name that torch
# reports. The first match counts, so of two names the one that holds the other comes first. Variants of a
# chip for PCIe run slower than those on a carrier board (SXM), to which a bare name belongs.
PEAK_FLOPS = {
    "GB200": 2500e12,
    "B200": 2250e12,
    "GH200": 989e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H800": 989e12,
    "H20": 148e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A40": 150e12,
    "A30": 165e12,
    "A10G": 70e12,
    "A10": 125e12,
    "MI325X": 1307e12,
    "MI300X": 1307e12,
}


def peak_flops() -> float | None:
    """Of this process's GPU; None without one, or if it is not in the table."""
    if not torch.cuda.is_available():
        return None
    return peak_of(torch.cuda.get_device_name())


def peak_of(device: str) -> float | None:
    """Of the GPU with the name that torch reports; None if it is not in the table."""
    for name, peak in PEAK_FLOPS.items():
        if name in device:
            return peak
    return None
