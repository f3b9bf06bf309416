"""Part 7: optimizer steps of LacTok's stages at paper scale."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.gpu_session import Job, Session
from benchmarks.measuring import gib
from benchmarks.training_steps import Row, measure_step, stage_config

PRESET_BATCH = 4
"""Of `scale=paper`. One image leaves the device waiting for launches: results/gpu/h200.json."""
STEPS = (
    ("diffusion", 1024, PRESET_BATCH, None),
    ("diffusion", 512, PRESET_BATCH, None),
    ("hypersd", 1024, 1, None),
    ("diffusion", 1024, PRESET_BATCH, False),
)
"""Stage, side in pixels, images, gradient checkpointing (None: as the preset has it)."""
QUICK_STEPS = (("diffusion", 64, 1, None), ("hypersd", 64, 1, None))
TIMED = 4.0
"""Times the seconds of other figures: a step takes longer than a call."""


@dataclass(frozen=True)
class TrainingStep(Row):
    """See benchmarks/training_steps.py."""

    precision: str = ""

    def __str__(self) -> str:
        return (
            f"step of {self.stage}, {self.side} px, batch {self.batch}, {self.precision}, "
            f"{'with' if self.checkpointing else 'without'} gradient checkpointing: "
            f"{self.seconds_per_step:.4g} s, {self.flops_per_step / self.seconds_per_step / 1e12:.4g} TFLOP/s "
            f"({self.share:.1%}), {gib(self.peak_bytes)} GiB, loss {self.loss:.4g}; ms: "
            + ", ".join(f"{part} {1e3 * seconds:.4g}" for part, seconds in self.parts.items())
        )


def measure(session: Session) -> None:
    def job(stage: str, side: int, batch: int, checkpointing: bool | None) -> Job:
        how = "" if checkpointing is None else f", gradient_checkpointing={str(checkpointing).lower()}"
        what = f"step of {stage}, {side} px, batch {batch}{how}"
        return Job(what, lambda: step(session, stage, side, batch, checkpointing))

    session.each([job(*one) for one in (QUICK_STEPS if session.quick else STEPS)])


def step(session: Session, stage: str, side: int, batch: int, checkpointing: bool | None) -> Iterator[TrainingStep]:
    precision = stage_config(stage, side, session.quick)[0].precision
    settings = dataclasses.replace(session.settings, precision=precision, seconds=TIMED * session.settings.seconds)
    row = measure_step(stage, side, settings, session.rate, batch, checkpointing)
    yield TrainingStep(**dataclasses.asdict(row), precision=precision)
