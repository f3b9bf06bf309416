"""Several processes on one machine's CPU cores: `workers=auto` starts them, and they share chunks as torchrun's do.

Each computes on one thread, so that the table is the same whatever their number (OMP_NUM_THREADS=N gives each N).
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from evals.config import ConfigError, RunConfig
from evals.engine.ranks import RankError, Ranks

# Resident memory of a worker, GiB, by the `weights` preset: 1.5 measured for all miniatures at once; the largest
# published model (LacTok-T, 15.7 GB of float32 weights) with its activations.
MEMORY = {"mini": 2.0, "paper": 24.0}
# Chunks that a worker should find, or starting it costs more than it gains (5 s of imports).
CHUNKS_EACH = 2
# Tells a worker its place: "RANK/SIZE/PORT".
PLACE = "LACTOK_WORKER"
HOST = "127.0.0.1"

_log = logging.getLogger("lactok")


def threads() -> int:
    """Threads of each worker."""
    return int(os.environ.get("OMP_NUM_THREADS") or 1)


def worker_count(config: RunConfig, chunk: int) -> int:
    """How many processes `workers=` means. chunk: items of a chunk. Raises ConfigError where there can't be several."""
    import torch

    on_cpu = config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available())
    if not on_cpu:
        if config.workers not in ("auto", 1):
            raise ConfigError(
                f"workers={config.workers} are processes on CPU cores; for GPUs start one process each by "
                "`torchrun --nproc-per-node=N -m evals.run ...`"
            )
        return 1
    if config.workers != "auto":
        return int(config.workers)
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    fitting = int(psutil.virtual_memory().available / 2**30 / MEMORY[config.weights])
    useful = cores if config.limit is None else -(-config.limit // chunk) // CHUNKS_EACH
    return max(1, min(cores // threads(), fitting, useful))


def attach_place() -> bool:
    """Whether another process started this one as a worker; its output goes to a log that the other one reads."""
    return PLACE in os.environ


def attach() -> Ranks | None:
    """This process's place among the workers that another one started; None where it is no worker."""
    place = os.environ.get(PLACE)
    if place is None:
        return None
    import torch
    from torch.distributed import TCPStore

    torch.set_num_threads(threads())
    rank, size, port = map(int, place.split("/"))
    try:
        return Ranks(rank, size, rank, TCPStore(HOST, port, None, False, wait_for_workers=False))
    except RuntimeError as error:
        raise RankError(f"worker {rank} does not find the process that started it: {error}") from error


@contextlib.contextmanager
def started(count: int, argv: Sequence[str]) -> Iterator[Ranks]:
    """Start count - 1 workers for the command line `argv`; this process is rank 0. They end with the block.

    A worker that ends early is noticed where rank 0 waits for it, which then raises RankError with its last words.
    """
    import torch

    torch.set_num_threads(threads())
    if count == 1:
        yield Ranks()
        return
    from torch.distributed import TCPStore

    store = TCPStore(HOST, 0, None, True, wait_for_workers=False)
    with tempfile.TemporaryDirectory(prefix="lactok-workers-") as folder, contextlib.ExitStack() as stack:
        workers = []
        for rank in range(1, count):
            log = stack.enter_context(open(Path(folder) / f"{rank}.log", "wb"))
            environment = os.environ | {PLACE: f"{rank}/{count}/{store.port}", "OMP_NUM_THREADS": str(threads())}
            command = [sys.executable, "-m", "evals.run", *argv]
            workers.append(subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment))
        _log.info("%d workers, %d thread(s) each", count, threads())

        def watch() -> None:
            for rank, worker in enumerate(workers, start=1):
                if (status := worker.poll()) is not None and status != 0:
                    said = (Path(folder) / f"{rank}.log").read_text(errors="replace").strip().splitlines()[-3:]
                    how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
                    raise RankError(
                        f"worker {rank} of {count} {how}{': ' if said else ''}{' / '.join(said)}\nAll finished work is "
                        "kept; the same command resumes. Where memory is short, use workers=1"
                    )

        try:
            yield Ranks(0, count, 0, store, watch, started_here=True)
        finally:
            for worker in workers:  # all is done, or left to the next run: an entry is whole or absent
                worker.terminate()
            for worker in workers:
                worker.wait()
