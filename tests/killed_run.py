"""Runs the benchmark and kills itself (SIGKILL) at the N-th new piece: `before` it, or in the `middle` of its write."""

import os
import signal
import sys
from pathlib import Path

from evals import store
from evals.run import main

count, where = int(sys.argv[1]), sys.argv[2]
new = 0
write = store.Cache.write


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_half_way(path: Path, content: bytes) -> None:
    path.write_bytes(content[: len(content) // 2])
    die()


def counting_write(self, kind, key, arrays, meta):
    global new
    new += not self.has(kind, key)
    if new == count and where == "before":
        die()
    if new == count:
        store._write_synced = die_half_way
    write(self, kind, key, arrays, meta)


store.Cache.write = counting_write
sys.exit(main(sys.argv[3:]))
