"""Runs the benchmark as several ranks, forked from a process that has imported all; some are killed on the way.

    python -m tests.forked_ranks RANKS:KILLS:OUT,... ARGUMENT...

KILLS times a random rank gets SIGKILL when a random number of new cache entries has been written; the others are then
ended as torchrun and srun do it. Then all run to the end. Prints OUT and the entries there were at each kill.
"""

import contextlib
import os
import random
import signal
import socket
import sys
import time
from pathlib import Path

import torch

from evals.run import main
from tests.fork_server import warm


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(ranks: int, arguments: list[str]) -> list[int]:
    """Process numbers of the ranks."""
    port, children = free_port(), []
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            os.environ |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }  # fmt: skip
            status = 3
            try:
                status = main(arguments)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        children.append(child)
    return children


def entries(out: Path) -> int:
    return sum(1 for _ in out.glob("cache/*/*/meta.json"))


def killed(ranks: int, chance: random.Random, out: Path, arguments: list[str]) -> None:
    """A run of which one rank is killed; returns when all are gone."""
    until, children = entries(out) + chance.randrange(1, 6), start(ranks, arguments)
    running = set(children)
    while entries(out) < until and running == set(children):
        running = {child for child in children if os.waitpid(child, os.WNOHANG)[0] == 0}
        time.sleep(0.002)
    victim = chance.choice(children)
    for child in [victim, *children]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL if child == victim else signal.SIGTERM)
    for child in running:
        os.waitpid(child, 0)


def main_process(plans: list[str], arguments: list[str]) -> int:
    chance = random.Random(7)
    for plan in plans:
        ranks, kills, folder = plan.split(":")
        out, counts = Path(folder), []
        given = [*arguments, f"out={out}"]
        for _ in range(int(kills)):
            killed(int(ranks), chance, out, given)
            counts.append(entries(out))
        statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in start(int(ranks), given)]
        if any(statuses):
            return max(statuses)
        print("counts", out.name, *counts, flush=True)
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    warm()
    sys.exit(main_process(sys.argv[1].split(","), sys.argv[2:]))
