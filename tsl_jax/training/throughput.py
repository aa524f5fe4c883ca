"""How fast a run is: tokens a second, and the share of the devices' peak that its model makes use of.

    utilisation = FLOPs a token x tokens/s / (devices x peak),   FLOPs of the model alone, without what is made again

Peaks are those of dense bfloat16 products in the makers' data sheets; for other devices nothing is said. Source of
the measure: Chowdhery et al. 2022 (PaLM, arXiv 2204.02311), appendix B.
"""

from __future__ import annotations

# The beginning of a device's name -> FLOP/s. Cards for a PCIe slot are slower under nearly the same name.
PEAKS = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H200": 989e12, "NVIDIA A100": 312e12}


def peak(device_kind: str) -> float | None:
    """FLOP/s of one device, or None where it is not known."""
    if "NVL" in device_kind:
        return None
    return next((value for name, value in PEAKS.items() if device_kind.startswith(name)), None)


def rates(tokens: int, seconds: float, flops_per_token: int, peak: float | None) -> dict[str, float]:
    """What is said of some steps: tokens_per_second, and utilisation where the peak of all devices is known."""
    per_second = tokens / max(seconds, 1e-9)
    said = {"tokens_per_second": round(per_second, 1)}
    return said if peak is None else said | {"utilisation": round(flops_per_token * per_second / peak, 4)}
