"""Commands as users run them, each in a process of its own that does not import torch and the rest anew."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from socket import socketpair

from tests.fork_server import Request
from tests.support import ROOT, environment


class Command:
    """A command that runs, in a process group of its own. The one before it must have ended."""

    def __init__(self, arguments: list[str], surroundings: dict[str, str]) -> None:
        self._files = tempfile.TemporaryDirectory()
        self._out, self._err = (Path(self._files.name) / name for name in ("out", "err"))
        self._server = _server()
        self._server.send(Request(arguments, surroundings, str(ROOT), str(self._out), str(self._err)))
        self.pid: int = self._server.recv()
        self._status: int | None = None

    def poll(self) -> int | None:
        """Its exit status, minus a signal's number; None while it runs."""
        if self._status is None and self._server.poll():
            self._status = self._server.recv()
        return self._status

    def wait(self, seconds: float) -> int:
        """The status once it has ended. Where it does not end in time it is killed: the next one has to wait for it."""
        if self._status is None and not self._server.poll(seconds):
            self._kill()
            self._status = self._server.recv()
            raise subprocess.TimeoutExpired(f"process {self.pid}", seconds)
        status = self.poll()
        assert status is not None
        return status

    def kill_group(self) -> None:
        """End it and what it has started, whatever of them is left, and wait for it."""
        self._kill()
        self.wait(30)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def end(self, seconds: float = 300) -> subprocess.CompletedProcess[str]:
        """What it gave once it has ended."""
        status = self.wait(seconds)
        return subprocess.CompletedProcess([], status, self._out.read_text(), self._err.read_text())


def evals(*arguments: object, plugins: tuple[Path, ...] = (), module: str = "evals.run"):
    """`python -m evals.run ...` as a user runs it, in one process unless the arguments say otherwise."""
    given = [str(argument) for argument in arguments]
    if module == "evals.run" and not any(argument.startswith("workers=") for argument in given):
        given.append("workers=1")
    return Command(["-m", module, *given], environment(*plugins)).end()


@cache
def _server() -> Connection:
    """The process that forks the commands; it ends with this one."""
    ours, theirs = socketpair()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.fork_server", str(theirs.fileno())],
        cwd=ROOT,
        env=environment(),
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
    )
    theirs.close()
    connection = Connection(ours.detach())
    atexit.register(process.wait)
    atexit.register(connection.close)
    return connection
