"""Part 6: optimizer steps of LacTok's stages at paper scale."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.gpu_session import Job, Session
from benchmarks.measuring import gib
from benchmarks.training_steps import Row, measure_step, stage_config

STEPS = (("diffusion", 512), ("diffusion", 1024), ("hypersd", 1024))
QUICK_STEPS = (("diffusion", 64), ("hypersd", 64))


@dataclass(frozen=True)
class TrainingStep(Row):
    """See benchmarks/training_steps.py."""

    precision: str = ""

    def __str__(self) -> str:
        return (
            f"step of {self.stage}, {self.side} px, batch {self.batch}, {self.precision}: "
            f"{self.seconds_per_step:.4g} s, {self.flops_per_step / self.seconds_per_step / 1e12:.4g} TFLOP/s "
            f"({self.share:.1%}), {gib(self.peak_bytes)} GiB, loss {self.loss:.4g}; ms: "
            + ", ".join(f"{part} {1e3 * seconds:.4g}" for part, seconds in self.parts.items())
        )


def measure(session: Session) -> None:
    steps = QUICK_STEPS if session.quick else STEPS
    session.each(
        [Job(f"step of {stage}, {side} px", lambda pair=(stage, side): step(session, *pair)) for stage, side in steps]
    )


def step(session: Session, stage: str, side: int) -> Iterator[TrainingStep]:
    precision = stage_config(stage, side, session.quick)[0].precision
    settings = dataclasses.replace(session.settings, precision=precision)
    row = measure_step(stage, side, settings, session.rate)
    yield TrainingStep(**dataclasses.asdict(row), precision=precision)
