"""Runs commands in processes forked from this one, which has imported what runs import.

    python -m tests.fork_server FD

FD is a connection that gives a `Request` each; the answers are the command's process number and, once it has ended, its
exit status. A command finds what it would find if Python were started for it, but for the imports that are made.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import runpy
import signal
import sys
import threading
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import NoReturn

# Nothing of the plugins, which a command has to look for itself, nor the commands' own modules.
MODULES = (
    "diffusers.models.autoencoders.vae", "diffusers.models.resnet", "evals.cli.list", "evals.config",
    "evals.engine.run", "evals.engine.workers", "evals.metrics.image.lpips", "evals.report.console",
    "evals.report.output", "evals.report.rate", "evals.streams", "hydra.compose", "jinja2",
    "lactok.feature_extractors.effnet", "lactok.models.vq", "lpips", "matplotlib.backends.backend_agg",
    "matplotlib.figure", "pyarrow.parquet", "timm", "torch.distributed",
)  # fmt: skip


def warm() -> None:
    """Import what runs import, and take it for what is never garbage."""
    gc.disable()
    for module in MODULES:
        importlib.import_module(module)
    gc.freeze()
    gc.enable()
    atexit.register(gc.unfreeze)  # at its end Python collects all


@dataclass(frozen=True)
class Request:
    """arguments: those of Python, "-m" and a module first; out, err: files that get what the command writes."""

    arguments: list[str]
    environment: dict[str, str]
    folder: str
    out: str
    err: str


def forked(requests: Connection) -> Request:
    """Starts and waits for a process a request, in which it returns; ends with the connection."""
    while True:
        try:
            request: Request = requests.recv()
        except EOFError:
            os._exit(0)
        child = os.fork()
        if child == 0:
            requests.close()
            return request
        requests.send(child)
        requests.send(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def become(request: Request) -> None:
    """This process becomes the command: a session, streams, environment, folder and paths as it is to have."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for path, stream in ((request.out, 1), (request.err, 2)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, stream)
        os.close(file)
    os.environ.clear()
    os.environ.update(request.environment)
    os.chdir(request.folder)
    sys.path[:1] = [request.folder, *filter(None, request.environment.get("PYTHONPATH", "").split(os.pathsep))]
    importlib.invalidate_caches()
    flag, module, *given = request.arguments
    assert flag == "-m", request.arguments
    sys.argv = [module, *given]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        if not isinstance(ended.code, int | None):
            raise
        end(ended.code or 0)
    end(0)


def end(status: int) -> NoReturn:
    """What Python does at its end but for its last step, the two seconds in which it takes every module apart."""
    threading._shutdown()
    atexit.unregister(gc.unfreeze)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    warm()
    become(forked(Connection(int(sys.argv[1]))))
