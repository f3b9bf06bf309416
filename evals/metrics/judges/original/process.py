"""A published package at work in a process of its own: loaded once, batches in, values out (`worker.py` answers)."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

WORKER = Path(__file__).with_name("worker.py")
SHOWN = 8
"""Last lines of a dead process's stderr in its error."""
_OF_PYTHON = ("PYTHON", "VIRTUAL_ENV", "CONDA")
"""How variables begin that concern this Python alone."""


class OriginalError(Exception):
    """A published package failed; the message has its error, or the last lines of its process's stderr."""


class OriginalProcess:
    """The process of one package, started at once; it ends with this object or this process."""

    def __init__(self, package: str, python: Path, worker: Path = WORKER) -> None:
        """package: a key of ENVIRONMENTS; python: its environment's; worker: the script that answers."""
        self.name = package
        self._folder = tempfile.TemporaryDirectory(prefix="judge-")
        self._stderr = open(Path(self._folder.name) / "stderr", "w+b")  # noqa: SIM115 closed by _end
        keep = {name: value for name, value in os.environ.items() if not name.startswith(_OF_PYTHON)}
        self._process = subprocess.Popen(
            [str(python), "-I", str(worker), package],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=keep | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(torch.get_num_threads())},
            text=True,
        )
        self._end = weakref.finalize(self, _end, self._process, self._stderr, self._folder)

    def load(self, tensors: Mapping[str, Tensor], device: torch.device, **settings: Any) -> dict[str, str]:
        """Build the package's network with these tensors; gives the versions of its packages. Raises OriginalError."""
        file = self._write(tensors)
        try:
            answer = self._ask({"do": "load", "tensors": str(file), "device": str(device), **settings})
        finally:
            file.unlink(missing_ok=True)
        return dict(answer["versions"])

    def versions(self) -> dict[str, str]:
        """Of the environment's packages, which are imported. Raises OriginalError."""
        return dict(self._ask({"do": "check"})["versions"])

    def score(self, images: Sequence[Tensor], **more: Any) -> dict[str, Tensor]:
        """The package's answer for a batch. images: uint8 (3, H, W) RGB, of any sizes. Raises OriginalError."""
        file = self._write({str(n): image.permute(1, 2, 0) for n, image in enumerate(images)})
        answer = file.with_name("answer.safetensors")
        try:
            self._ask({"do": "score", "tensors": str(file), "answer": str(answer), **more})
            return load_file(answer)
        finally:
            file.unlink(missing_ok=True)
            answer.unlink(missing_ok=True)

    def close(self) -> None:
        """End the process."""
        self._end()

    def _write(self, tensors: Mapping[str, Tensor]) -> Path:
        file = Path(self._folder.name) / "request.safetensors"
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, file)
        return file

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = ""
        with contextlib.suppress(OSError, ValueError):  # it is gone; why, its stderr says
            print(json.dumps(request), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        try:
            answer = json.loads(line)
        except ValueError:
            raise OriginalError(self._death(line)) from None
        if "error" in answer:
            raise OriginalError(f"the package {self.name} failed: {answer['error']}")
        return answer

    def _death(self, line: str) -> str:
        if line.strip():
            return f"the process of {self.name} answered {line.strip()[:200]!r}, expected a line of JSON"
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._stderr.seek(0)
        told = self._stderr.read().decode(errors="replace").splitlines()[-SHOWN:]
        said = "".join(f"\n  {text}" for text in told) or " nothing"
        return f"the process of {self.name} ended (exit status {self._process.poll()}); last lines of its stderr:{said}"


def _end(process: subprocess.Popen[str], stderr: IO[bytes], folder: tempfile.TemporaryDirectory[str]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, stderr):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    folder.cleanup()
