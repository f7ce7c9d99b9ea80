"""The catalog of hardware, as far as training needs it: what the share of peak FLOP/s (MFU) is measured against."""

from __future__ import annotations

# Dense bf16 FLOP/s of one device, as its data sheet states them without sparsity. Keys begin the name that torch gives.
PEAK_BF16_FLOPS = {
    "NVIDIA A100": 312e12,  # NVIDIA A100 Tensor Core GPU data sheet
    "NVIDIA H100 80GB HBM3": 989e12,  # SXM; NVIDIA H100 Tensor Core GPU data sheet
    "NVIDIA H100 PCIe": 756e12,  # the same
    "NVIDIA H200": 989e12,  # NVIDIA H200 Tensor Core GPU data sheet
}


def peak_bf16_flops(device: str) -> float | None:
    """Peak FLOP/s of a device by its name; None where the catalog does not know it."""
    return next((flops for name, flops in PEAK_BF16_FLOPS.items() if device.startswith(name)), None)
