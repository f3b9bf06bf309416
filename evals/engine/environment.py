"""Where a run happens: device, precision, package versions, code revision."""

from __future__ import annotations

import contextlib
import functools
import platform
import subprocess
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from evals.config import ConfigError
from evals.engine.ranks import Ranks

# The packages whose versions can move a number.
PACKAGES = (
    "lactok", "torch", "torchvision", "diffusers", "timm", "lpips", "torch-fidelity", "scikit-image", "pillow", "numpy",
)  # fmt: skip


def choose_device(name: str, ranks: Ranks | None = None) -> torch.device:
    """ "auto": CUDA where there is one, else the CPU; each of several `ranks` on a machine takes a GPU of its own.

    Raises ConfigError for a device that is not here.
    """
    device = _device(name)
    if ranks is None or ranks.size == 1 or device.type != "cuda":
        return device
    if device.index is not None:
        raise ConfigError(f"device={name}: {ranks.size} processes would share one GPU; use device=cuda")
    if ranks.local >= (count := torch.cuda.device_count()):
        raise ConfigError(f"process {ranks.local} of this machine has no GPU: it has {count}; start at most that many")
    device = torch.device("cuda", ranks.local)
    torch.cuda.set_device(device)
    return device


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device={name}: expected auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device={name}: torch {torch.__version__} sees no CUDA device here; use device=cpu")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device={name}: expected auto, cpu, cuda or cuda:N")
    return device


def check_precision(name: str, device: torch.device) -> None:
    """Raises ConfigError for a precision that the device does not have, which would be recorded and not used.

    TF32 is a format of NVIDIA's tensor cores from compute capability 8.0 on (CUDA C++ programming guide, 16.4).
    """
    if name != "tf32":
        return
    if device.type != "cuda":
        raise ConfigError("precision=tf32: a CPU has no TF32; use precision=fp32 or precision=bf16")
    if (seen := torch.cuda.get_device_capability(device)) < (8, 0):
        raise ConfigError(
            f"precision=tf32: {torch.cuda.get_device_name(device)} has compute capability {seen[0]}.{seen[1]}, TF32 "
            "needs 8.0; use precision=fp32"
        )


def describe_device(device: torch.device) -> str:
    """One line for the report."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{_processor()}, {threads} thread{'s' * (threads != 1)}"


@functools.cache
def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


@contextlib.contextmanager
def precision(name: str, device: torch.device) -> Iterator[None]:
    """The numeric settings of a tokenizer's calls: "fp32" (no TF32), "tf32", or "bf16" (autocast)."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = name == "tf32"
    try:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=name == "bf16"):
            yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def process_origin(device: torch.device) -> dict[str, Any]:
    """What is recorded with every artifact of the process that made it; evals.record.Origin has the fields."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "versions": package_versions(),
        "code_revision": code_revision(),
    }


def package_versions() -> dict[str, str]:
    """Versions of what can move a number, and of Python."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


@cache
def code_revision() -> str:
    """The checkout's commit, marked when files differ from it; the installed version outside a checkout."""
    root = Path(__file__).resolve().parent.parent.parent
    git = ["git", "-C", str(root)]
    try:
        top = subprocess.run([*git, "rev-parse", "--show-toplevel", "HEAD"], capture_output=True, text=True, check=True)
        folder, commit = top.stdout.split("\n")[:2]
        if Path(folder).resolve() != root:
            raise ValueError("inside another checkout")
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
        return commit[:12] + ("+changes" if changed.stdout.strip() else "")
    except (OSError, subprocess.CalledProcessError, ValueError):
        return f"version {version('lactok')}"
