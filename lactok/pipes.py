"""A command whose reader has gone (`python -m evals list | head`) ends quietly, as other tools do. No torch here."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO

# What a shell reports of a tool that SIGPIPE ended: 128 + 13.
CLOSED = 141


def run_command(main: Callable[[list[str]], int]) -> int:
    """`main` with the words of the command line; its exit status, or 141 where nobody reads stdout or stderr any more.

    The signal itself is not used: it would also end a run whose connection to another process broke.
    """
    sys.stdout, sys.stderr = _Output(sys.stdout), _Output(sys.stderr)
    try:
        status = main(sys.argv[1:])
        sys.stdout.flush()
        return status
    except SystemExit as done:
        if isinstance(done.code, str):
            raise
        return done.code or 0


class _Output:
    """A standard stream. A write that nobody reads raises SystemExit: no handler takes it for an error of a file."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with _leaving(self._stream):
            return self._stream.write(text)
        return 0

    def flush(self) -> None:
        with _leaving(self._stream):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _leaving(stream: TextIO) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())  # what is left in the buffer is written at the end of the process
        os.close(nowhere)
        raise SystemExit(CLOSED) from None
