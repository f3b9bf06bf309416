"""Where a run happens: device, precision, package versions, code revision."""

from __future__ import annotations

import contextlib
import functools
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evals.config import ConfigError
from evals.engine.ranks import Ranks
from lactok.interface import Model

# Where Linux says which NVIDIA driver is loaded.
DRIVER = Path("/proc/driver/nvidia/version")

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


def why_no_gpu() -> str:
    """Why torch sees no CUDA device here, and the way out; "" where it sees one."""
    if torch.cuda.is_available():
        return ""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA: install a build with it (https://pytorch.org)"
    if driver := nvidia_driver():
        return (
            f"torch {torch.__version__} is built for CUDA {torch.version.cuda} and can't use this machine's NVIDIA "
            f"driver {driver}, which is too old for it or not loaded: update the driver, or install a torch that is "
            "built for the CUDA version that `nvidia-smi` shows"
        )
    return f"torch {torch.__version__} sees no CUDA device, and no NVIDIA driver is installed here"


def nvidia_driver() -> str:
    """The version of the NVIDIA driver on this machine, "of unknown version" where only its tool is; "" without one."""
    with contextlib.suppress(OSError):
        found = re.search(r"\d+\.\d+(?:\.\d+)?", DRIVER.read_text())
        return found[0] if found else "of unknown version"
    return "of unknown version" if shutil.which("nvidia-smi") else ""


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device={name}: expected auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device={name}: {why_no_gpu()}; or use device=cpu")
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
    """The numeric settings of a model's calls: "fp32" (no TF32), "tf32", or "bf16" (autocast; see `hold_in_bf16`).

    Under bf16, convolutions that a model holds in float32 (LacTok's and FlexTok's autoencoders) take TF32: torch's
    default, with which the published code ran. Matrix products in float32 (the nearest code) do not.
    """
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = name != "fp32"
    try:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=name == "bf16"):
            yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


# What autocast casts to bfloat16 at each call.
CAST = (nn.Linear, nn.modules.conv._ConvNd)


def hold_in_bf16(model: Model) -> None:
    """Hold the weights of linear and convolution layers in bfloat16, in place: half the memory, and no cast at a call.

    Results are those of autocast over float32 weights, which casts the same weights; norms, embeddings, codebooks and
    single parameters stay float32. What `model.dtypes` names is held in that dtype whole.
    """
    done: set[int] = set()
    for name, dtype in model.dtypes.items():
        top, _, part = name.partition(".")
        kept = model.networks()[top].get_submodule(part)
        for tensor in (*kept.parameters(), *kept.buffers()):
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(dtype)
        done |= {id(module) for module in kept.modules()}
    for network in model.networks().values():
        for module in network.modules():
            if isinstance(module, CAST) and id(module) not in done:
                for parameter in module.parameters(recurse=False):
                    parameter.data = parameter.data.to(torch.bfloat16)


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
