"""How far a run has come, the learning rate that follows from it, and the signals that end it."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from lactok.train.config import OptimizerConfig


class Progress:
    """What a run has cost so far, and the sums of the stretch of steps that is not logged yet; in every checkpoint."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.summed = 0
        self.step, self.images, self.cpu_seconds, self.wall_seconds = 0, 0, 0.0, 0.0
        self._cpu, self._wall = time.process_time(), time.monotonic()

    def tick(self, images: int) -> None:
        """One optimizer step over so many images is done."""
        cpu, wall = time.process_time(), time.monotonic()
        self.step, self.images = self.step + 1, self.images + images
        self.cpu_seconds, self.wall_seconds = self.cpu_seconds + cpu - self._cpu, self.wall_seconds + wall - self._wall
        self._cpu, self._wall = cpu, wall

    def share(self, steps: int, minutes: float | None) -> float:
        """Of the run that is done, 0 to 1: of its steps, or of its minutes."""
        if minutes is None:
            return min(1.0, self.step / steps)
        return min(1.0, max(self.step / steps, (self.wall_seconds + time.monotonic() - self._wall) / (60 * minutes)))

    def add(self, values: dict[str, Tensor]) -> None:
        """Add one step's values to the sums."""
        self.summed += 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0) + value

    def take_means(self) -> dict[str, float]:
        """Means over the steps since the last call."""
        means = {name: (total / self.summed).item() for name, total in self.sums.items()}
        self.sums, self.summed = {}, 0
        return means

    def state_dict(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if not k.startswith("_")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


class StopRequest:
    """SIGINT and SIGTERM ask the loop to save and stop after the current step."""

    def __init__(self) -> None:
        self.name = ""

    @contextlib.contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Handles the two signals inside the block."""
        before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        self.name = signal.Signals(number).name


def learning_rate(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """Rate of a step (from 0): linear warm-up, then half a cosine down to final_fraction of the peak."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return config.learning_rate * (config.final_fraction + (1 - config.final_fraction) * cosine)
