"""What `precision=auto` means on a machine: bfloat16 autocast where the hardware multiplies it fast, else float32."""

from __future__ import annotations

from pathlib import Path

import torch

CPUINFO = Path("/proc/cpuinfo")
AMX = "amx_bf16"
"""The flag of Intel's tile instructions for bfloat16 (Sapphire Rapids and later)."""


def resolve(precision: str, device: str) -> str:
    """ "fp32" or "bf16" of "fp32", "bf16" or "auto"; device: "auto", "cpu" or "cuda", as the trainer takes it.

    auto: bf16 on CUDA, and on a CPU with AMX; fp32 elsewhere.
    """
    if precision != "auto":
        return precision
    on_cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    return "bf16" if on_cuda or has_amx() else "fp32"


def has_amx() -> bool:
    """Whether this machine's CPU has AMX for bfloat16, by Linux's list of its flags; False where there is none."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return False
    return any(AMX in line.partition(":")[2].split() for line in lines if line.startswith("flags"))
