"""What `precision=auto` means on a machine: bfloat16 autocast where the hardware multiplies it fast, else float32."""

from __future__ import annotations

from pathlib import Path

import torch

CPUINFO = Path("/proc/cpuinfo")
FAST = frozenset({"amx_bf16", "avx512_bf16"})
"""Flags of instructions that multiply bfloat16: Intel's tiles (Sapphire Rapids and later), and AVX-512's dot product
(Cooper Lake, Zen 4 and later)."""


def resolve(precision: str, device: str) -> str:
    """ "fp32" or "bf16" of "fp32", "bf16" or "auto"; device: "auto", "cpu" or "cuda", as the trainer takes it.

    auto: bf16 on CUDA, and on a CPU that multiplies it; fp32 elsewhere.
    """
    if precision != "auto":
        return precision
    on_cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    return "bf16" if on_cuda or multiplies_bfloat16() else "fp32"


def slow_bfloat16(precision: str, device: torch.device) -> str | None:
    """A warning where float32 would be the faster one; precision: of `resolve`."""
    if precision != "bf16" or device.type != "cpu" or multiplies_bfloat16():
        return None
    return (
        "warning: precision=bf16 on a CPU that does not multiply bfloat16 (no amx_bf16, no avx512_bf16): each product "
        "is emulated, and steps take much longer; precision=fp32, or auto, is the faster one here"
    )


def multiplies_bfloat16() -> bool:
    """Whether this machine's CPU has one of FAST, by Linux's list of its flags; False where there is none."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return False
    return any(FAST & set(line.partition(":")[2].split()) for line in lines if line.startswith("flags"))
