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
"""Batches that the plain loop and the compiled step are timed at; compiling takes a minute."""


def measure(session: Session) -> None:
    """The recorded step at all batches, before what takes longer and what it is compared with."""
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

    wanted = [(first, batch) for batch in batches]
    wanted += [(way, batch) for batch in reversed(compared) for way in (PLAIN, compiled)]
    session.each([job(*one) for one in wanted])
