"""What a plugin's or a metric's code does to its process ends with the call.

A tokenizer that sets another precision, default type, random state or working folder would move the figures of the rows
that come after it, and the store would keep them. `isolated` puts all that back after each call. Environment variables,
warning filters and imported modules stay as the call left them: plugins set them once for their own later calls.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

from evals.engine.checks import PluginError

# Every (backend, operation) of `torch.backends.*.fp32_precision`; a parent comes before its children.
FP32 = (("generic", "all"), *((b, o) for b in ("cuda", "mkldnn") for o in ("all", "matmul", "conv", "rnn")))
# Other numeric settings: (module, attribute).
FLAGS = (
    (torch.backends.cudnn, "enabled"),
    (torch.backends.cudnn, "benchmark"),
    (torch.backends.cudnn, "deterministic"),
    (torch.backends.mkldnn, "enabled"),
    (torch.backends.mkldnn, "deterministic"),
    (torch.backends.cuda.matmul, "allow_fp16_reduced_precision_reduction"),
    (torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction"),
)
ATTENTION = ("flash", "mem_efficient", "math", "cudnn")
DEVICES = ("cpu", "cuda")


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """The state of the process as before, after the block and after an error in it.

    An attempt to end the process (sys.exit, or another exception that is no Exception; not KeyboardInterrupt) is
    raised as PluginError.
    """
    restore = _saved()
    # also undoes a mode that the block entered and never left
    modes = torch.inference_mode(torch.is_inference_mode_enabled()), torch.set_grad_enabled(torch.is_grad_enabled())
    try:
        with modes[0], modes[1]:
            yield
    except (Exception, KeyboardInterrupt):
        raise
    except SystemExit as error:
        raise PluginError(f"called sys.exit({'' if error.code is None else repr(error.code)})") from error
    except BaseException as error:
        raise PluginError(f"raised {type(error).__name__}, which is no Exception: {error}") from error
    finally:
        for put_back in restore:
            put_back()


def _saved() -> list[Callable[[], None]]:
    """What puts each setting back to its present value, in the order in which to call them."""
    return [*_precision(), *_numerics(), *_defaults(), *_random(), *_process()]


def _precision() -> list[Callable[[], None]]:
    """float32's. The older settings are put back before the newer ones, which setting them changes."""
    put_back: list[Callable[[], None]] = []
    with contextlib.suppress(RuntimeError):  # torch refuses to tell while older and newer settings disagree
        matmul = torch.get_float32_matmul_precision()
        put_back.append(lambda: torch.set_float32_matmul_precision(matmul))
    with contextlib.suppress(RuntimeError):
        convolutions = torch.backends.cudnn.allow_tf32
        put_back.append(lambda: setattr(torch.backends.cudnn, "allow_tf32", convolutions))
    values = [(pair, torch._C._get_fp32_precision_getter(*pair)) for pair in FP32]

    def newer() -> None:
        for pair, value in values:
            torch._C._set_fp32_precision_setter(*pair, value)

    return [*put_back, newer]


def _numerics() -> list[Callable[[], None]]:
    flags = [(module, name, getattr(module, name)) for module, name in FLAGS]
    attention = [(name, getattr(torch.backends.cuda, f"{name}_sdp_enabled")()) for name in ATTENTION]
    deterministic = _deterministic()
    casts = [(device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in DEVICES]

    def put_back() -> None:
        for module, name, value in flags:
            if getattr(module, name) != value:
                setattr(module, name, value)
        for name, enabled in attention:
            getattr(torch.backends.cuda, f"enable_{name}_sdp")(enabled)
        if _deterministic() != deterministic:  # setting it imports torch's compiler, which takes two seconds
            torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
        for device, enabled, dtype in casts:
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, dtype)

    return [put_back]


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _defaults() -> list[Callable[[], None]]:
    dtype, device, threads = torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads()
    gpu = torch.cuda.current_device() if torch.cuda.is_initialized() else None

    def put_back() -> None:
        torch.set_default_dtype(dtype)
        if torch.get_default_device() != device:
            torch.set_default_device(None if device.type == "cpu" else device)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        if gpu is not None:
            torch.cuda.set_device(gpu)

    return [put_back]


def _random() -> list[Callable[[], None]]:
    """The global random states; those of GPUs where CUDA is in use, NumPy's where it is loaded."""
    states: list[tuple[Callable[[Any], object], Any]] = [
        (random.setstate, random.getstate()),
        (torch.random.default_generator.set_state, torch.random.default_generator.get_state()),
    ]
    if "numpy" in sys.modules:
        numpy = sys.modules["numpy"]
        states.append((numpy.random.set_state, numpy.random.get_state()))
    if torch.cuda.is_initialized():
        states += [(gpu.set_state, gpu.get_state()) for gpu in torch.cuda.default_generators]

    def put_back() -> None:
        for put, state in states:
            put(state)

    return [put_back]


def _process() -> list[Callable[[], None]]:
    try:
        folder = os.getcwd()
    except FileNotFoundError:  # it was removed before
        return []
    return [lambda: os.chdir(folder)]
