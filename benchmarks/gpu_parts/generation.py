"""Part 8: GPT-XL's ids/s against batch size, beside what the device allows and a plain loop."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.generate import (
    BATCHES,
    BOTH,
    COMPILED,
    EAGER,
    PLAIN,
    QUICK,
    QUICK_BATCHES,
    RECORDED,
    Bench,
    Generated,
    Rates,
)
from benchmarks.gpu_session import Job, Session
from benchmarks.measuring import copy_rate
from lactok.models.gpt import GPTConfig

COMPARED = (1, 32)
"""Batches that the plain loop is timed at, which takes long."""


def measure(session: Session) -> None:
    """The recorded step, compiled and not, and the loop that it is compared with."""
    quick = session.quick
    batches, compared = (QUICK_BATCHES, QUICK_BATCHES[-1:]) if quick else (BATCHES["cuda"], COMPARED)
    first, compiled = (EAGER, COMPILED) if quick else (RECORDED, BOTH)
    made: list[Bench] = []

    def bench() -> Bench:
        if not made:
            rates = Rates(session.rate, copy_rate(session.settings)[1])
            config, name = (QUICK, "GPT-small") if quick else (GPTConfig(), "GPT-XL")
            made.append(Bench(name, config, session.settings, rates))
        return made[0]

    def job(way: str, batch: int) -> Job:
        def call() -> Iterator[Generated]:
            yield bench().measure(way, batch)

        return Job(f"{way}, batch {batch}", call)

    # what the limits are held against first: one prompt, then the largest batch; then what they are compared with
    wanted = [(way, batch) for batch in (batches[0], batches[-1]) for way in (compiled, first)]
    wanted += [(PLAIN, batch) for batch in compared]
    wanted += [(way, batch) for batch in batches[1:-1] for way in (compiled, first)]
    session.each([job(*one) for one in wanted])
