"""The processes of one run, as torchrun, accelerate or srun start them, and what they publish to one another.

They share the store's folder and torch.distributed's key-value store, and need no collective operation: chunks are
claimed one at a time from a counter, so no item is padded or counted twice and a slow rank takes fewer. A rank that
dies loses its unfinished chunk alone, which the same command does again.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.distributed import Store

ENDED = "ended"  # published by rank 0
SEEN = 60.0  # seconds in which a file has to appear on another machine
POLL = 0.1  # seconds between polls of what others have published
REACH = timedelta(minutes=10)  # for all ranks to come up
ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets; https://docs.pytorch.org/docs/stable/elastic/run.html."""


class RankError(Exception):
    """The ranks can't work together, or one of them stopped; the message says which and what to do."""


@dataclass
class Ranks:
    """This process among `size`. rank: its number, 0 reduces and writes; local: its number on this machine.

    watch: called by rank 0 while it waits; raises RankError when a process that it started has ended.
    started_here: whether rank 0 started the others, and need not wait for one that has not begun.
    """

    rank: int = 0
    size: int = 1
    local: int = 0
    store: Store | None = None
    watch: Callable[[], None] = lambda: None
    started_here: bool = False
    _counters: dict[str, int] = field(default_factory=dict)
    _mark: Path | None = None

    def claim(self, counter: str) -> int:
        """0 for the first process that asks, 1 for the next one, and so on."""
        if self.store is not None:
            return self.store.add(f"claim/{counter}", 1) - 1
        self._counters[counter] = self._counters.get(counter, -1) + 1
        return self._counters[counter]

    def publish(self, key: str, value: Any) -> None:
        """Write a JSON value that the other ranks can read."""
        if self.store is not None:
            self.store.set(key, json.dumps(value))

    def poll(self, key: str) -> Any:
        """The value of `key` now; None where no rank has published it."""
        if self.store is None or not self.store.check([key]):
            return None
        return json.loads(self.store.get(key))

    def wait(self, key: str, meanwhile: Callable[[], None] = lambda: None) -> Any:
        """The value of `key`, once a rank has published it. Raises RankError when rank 0 has ended."""
        assert self.store is not None, "a process alone has nothing to wait for"
        while not self.store.check([key]):
            if self.rank and self.poll(ENDED):
                raise RankError("rank 0 has ended")
            meanwhile()
            self.watch()
            time.sleep(POLL)
        return json.loads(self.store.get(key))

    def end(self) -> None:
        """Rank 0 needs the others no more."""
        self.publish(ENDED, True)
        if self._mark is not None:
            self._mark.unlink(missing_ok=True)

    def part(self, name: str) -> Ranks:
        """The same processes for one of several runs: one part sees nothing of another."""
        if self.store is None:
            return Ranks(self.rank, self.size, self.local, watch=self.watch, started_here=self.started_here)
        from torch.distributed import PrefixStore

        return Ranks(self.rank, self.size, self.local, PrefixStore(name, self.store), self.watch, self.started_here)

    def check_shared(self, folder: Path) -> None:
        """Raises RankError on a rank that does not see in `folder` what rank 0 writes there."""
        if self.size == 1:
            return
        if self.rank == 0:
            self._mark = folder / f".ranks-{uuid.uuid4().hex[:8]}"
            self._mark.touch()
            self.publish("shared", self._mark.name)
            return
        mark, until = folder / self.wait("shared"), time.monotonic() + SEEN
        while not mark.exists():
            if time.monotonic() > until:
                raise RankError(
                    f"rank {self.rank} on {socket.gethostname()} does not find {mark}, which rank 0 wrote: "
                    "name a folder that all machines share by out=DIR"
                )
            time.sleep(POLL)

    @contextlib.contextmanager
    def zero_first(self, what: str) -> Iterator[None]:
        """Rank 0 does the block alone, then all others: what it downloaded or indexed is there for them."""
        if self.rank:
            self.wait(f"first/{what}")
        try:
            yield
        finally:
            if self.rank == 0:
                self.publish(f"first/{what}", True)


def join() -> Ranks:
    """The ranks that the environment describes; one alone where it describes none.

    Raises RankError when only a part of it is set, or not all ranks come up.
    """
    given = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    if int(given.get("WORLD_SIZE", "1")) == 1:
        return Ranks()
    if missing := [name for name in ENVIRONMENT if name not in given]:
        raise RankError(
            f"WORLD_SIZE={given['WORLD_SIZE']}, but {', '.join(missing)} not set: start several processes by "
            "`torchrun --nproc-per-node=N -m evals.run ...`"
        )
    from torch.distributed import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    try:
        store, rank, size = next(rendezvous("env://", timeout=REACH))
    except (RuntimeError, ValueError) as error:
        raise RankError(f"rank {given['RANK']} on {socket.gethostname()} finds no other: {error}") from error
    return Ranks(rank, size, int(given["LOCAL_RANK"]), PrefixStore("lactok", store))
