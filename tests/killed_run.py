"""Runs the benchmark in processes forked from one that has run it; each kills itself (SIGKILL) at a new cache entry.

    python tests/killed_run.py OUT,OUT,... ARGUMENT...

The first OUT is filled by a run that nothing disturbs. Then each of the others is killed at its first, a middle and its
last new entry, `before` it or in the `middle` of its write, and runs to the end. Prints, for each OUT, the entries
there were after each run, and fails when a run that was to be killed was not, or left a table.
"""

import gc
import os
import signal
import sys
from pathlib import Path

import torch

from evals.engine import store
from evals.run import main
from lactok import files


def entries(out: Path) -> int:
    return sum(1 for _ in out.glob("cache/*/*/meta.json"))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_half_way(path: Path, content: bytes) -> None:
    path.write_bytes(content[: len(content) // 2])
    die()


def die_at(count: int, where: str) -> None:
    """From now on this process ends at its `count`-th new entry."""
    write, new = store.Cache.write, 0

    def counting_write(self, artifact, arrays, meta):
        nonlocal new
        new += not self.has(artifact)
        if new == count and where == "before":
            die()
        if new == count:
            files.write_synced = die_half_way
        write(self, artifact, arrays, meta)

    store.Cache.write = counting_write


def forked(arguments: list[str], kill: tuple[int, str] | None = None) -> int:
    """Exit code of a run in a process of its own; minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        status = 3
        try:
            if kill is not None:
                die_at(*kill)
            status = main(arguments)
        finally:
            sys.stderr.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main_process(outs: list[Path], arguments: list[str]) -> None:
    clean, *others = outs
    assert main([*arguments, f"out={clean}"]) == 0  # here, so that the others find everything imported
    gc.freeze()  # nor look for garbage in what is imported
    total = entries(clean)
    print(clean.name, total)
    for out in others:
        counts = []
        for at, where in ((1, "before"), (1, "middle"), (total // 2, "before"), (total // 4, "middle"), (0, "before")):
            assert forked([*arguments, f"out={out}"], (at or total - entries(out), where)) == -signal.SIGKILL
            assert not list(out.glob("runs/*/run.json")), "an unfinished run has no table"
            counts.append(entries(out))
        assert forked([*arguments, f"out={out}"]) == 0
        print(out.name, *counts, entries(out))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main_process([Path(out) for out in sys.argv[1].split(",")], ["workers=1", *sys.argv[2:]])
