"""`recipe=mini-all`: every miniature by one command, each part of it a run of its own, in the order of need.

A part reads the files of those that it needs from their runs next to it; one that is not among `parts` ships. A
finished part is left as it is; one that was interrupted resumes from its last checkpoint. With jobs=N up to N parts are
trained at once, each in a process of its own; with minutes=M each has a window of the time, see `Part`.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lactok.registry import nearest
from lactok.train.config import CHAIN, TrainConfig, TrainConfigError, compose_config

if TYPE_CHECKING:
    from lactok.train.recipe import Recipe

SHARED_ONLY = (
    *("recipe", "scale", "accelerator", "out", "dry_run", "stop_after_minutes", "data.root", "data.pack"),
    *("device", "precision", "threads", "jobs", "parts"),
)
"""Keys that no part has for itself."""
JOBS, PARTS_KEY = "jobs", "parts"
"""Keys of the chain alone."""
JOBS_OF_WINDOWS = 3
"""How many parts `Part.until` takes to be trained at once."""


@dataclass(frozen=True)
class Part:
    """One run of the chain. needs: names of the parts whose files it reads.

    until: with minutes=M and jobs=3, the part has to be done when this share of them is over; a part's own minutes are
    what is left until then when it begins.
    """

    recipe: str
    accelerator: str | None = None
    needs: tuple[str, ...] = ()
    until: float = 1.0

    @property
    def name(self) -> str:
        """By which its own keys begin on the command line."""
        return "-".join(filter(None, (self.recipe, self.accelerator)))


PARTS = (
    Part("vae", until=0.30),
    Part("vq", until=0.46),
    Part("titok", until=0.34),
    Part("ldm", needs=("vae",), until=0.46),
    Part("diffusion", needs=("ldm", "vq"), until=0.60),
    Part("accelerator", "hypersd", needs=("ldm",), until=0.55),
    Part("flextok", needs=("vae",), until=0.68),
    Part("accelerator", "tlcm", needs=("ldm",), until=0.63),
    Part("pixel", "hypersd", needs=("diffusion", "accelerator-hypersd")),
    Part("pixel", "tlcm", needs=("diffusion", "accelerator-tlcm")),
    Part("seed", needs=("vae",)),
)
"""In the order in which they begin; each stands behind those that it needs."""

PREFIXES = tuple(dict.fromkeys(name for part in PARTS for name in (part.recipe, part.name)))


@dataclass(frozen=True)
class Stopped:
    """Why the chain has not come to its end. part: at which; step: of it, None where it was not being trained."""

    part: str
    reason: str
    step: int | None


@dataclass(frozen=True)
class Finished:
    """A part that is done. hours: its own, of CPU cores or (gpu) of GPUs."""

    name: str
    steps: int
    hours: float
    gpu: bool
    file: Path


class Chain:
    """The chain that a command line asks for; its settings are checked before anything is trained."""

    def __init__(self, overrides: Sequence[str]) -> None:
        """Raises TrainConfigError, RegistryError."""
        self._shared, self._own = _split(overrides)
        self.jobs, self.parts = _jobs(self._shared.pop(JOBS, None)), _parts(self._shared.pop(PARTS_KEY, None))
        whole, _ = compose_config(
            [f"recipe={self.parts[0].recipe}", *_accelerator(self.parts[0]), *self._shared.values()]
        )
        self.folder = Path(whole.out).expanduser() if whole.out else Path("runs") / CHAIN
        self.minutes = whole.minutes
        if self.minutes is not None and self.jobs != JOBS_OF_WINDOWS:
            raise TrainConfigError(
                f"minutes={self.minutes:g} jobs={self.jobs}: the parts' windows are made for jobs={JOBS_OF_WINDOWS}; "
                "with another number give PART.minutes"
            )
        for key in ("out", "minutes"):
            self._shared.pop(key, None)
        self._shared.setdefault("data.pack", f"data.pack='{self.folder / 'images'}'")
        self.settings = [config for config, _ in self.compose_all()]

    def compose_all(self) -> list[tuple[TrainConfig, type[Recipe]]]:
        """Settings and recipe of every part."""
        return [self.compose(part) for part in self.parts]

    def compose(self, part: Part) -> tuple[TrainConfig, type[Recipe]]:
        """A part's settings, with the files that those before it have left by now."""
        keys = self._shared | self._own[part.recipe] | self._own[part.name]
        out = f"out='{self.folder / f'{part.name}-mini'}'"
        return compose_config([f"recipe={part.recipe}", "scale=mini", *_accelerator(part), out, *keys.values()])

    def run(self, check_held_out: bool = True) -> list[Finished] | Stopped:
        """Train what is not trained yet. check_held_out: see `lactok.train.loop.train`, whose errors it raises, too."""
        ends = Ends(time.time(), self.settings[0].stop_after_minutes, self.minutes)
        if self.jobs > 1:
            stopped = self._run_jobs(ends, check_held_out)
            return stopped or self.finished()
        part = self.parts[0]
        try:
            with _interruptible():
                for part in self.parts:
                    stopped = self.run_part(part, ends, check_held_out)
                    if stopped:
                        return stopped
        except _Interrupted as signalled:
            return Stopped(f"{part.name}-mini", str(signalled), None)
        return self.finished()

    def _run_jobs(self, ends: Ends, check_held_out: bool) -> Stopped | None:
        """Parts at once, each as soon as those that it needs are done. Where one stops or fails, those that do not need
        it go on; then the first one is told of, or its error raised."""
        waiting, running = list(self.parts), dict[Future[Stopped | None], Part]()
        chosen, done = {part.name for part in self.parts}, set[str]()
        stops: list[Stopped | BaseException] = []
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self.jobs, context) as pool:
            while True:
                for part in [p for p in waiting if {name for name in p.needs if name in chosen} <= done]:
                    if len(running) < self.jobs:
                        waiting.remove(part)
                        running[pool.submit(self.run_part, part, ends, check_held_out)] = part
                if not running:
                    break
                try:
                    ended, _ = wait(running, return_when=FIRST_COMPLETED)
                except KeyboardInterrupt:  # the processes have got it, too: they save, and say so
                    waiting.clear()
                    continue
                for future in ended:
                    part = running.pop(future)
                    if stop := future.exception() or future.result():
                        stops.append(stop)
                    else:
                        done.add(part.name)
        for stop in stops:
            if isinstance(stop, Stopped):
                return stop
            raise stop
        return None

    def run_part(self, part: Part, ends: Ends, check_held_out: bool) -> Stopped | None:
        """Train one part, unless it is finished. Raises what `lactok.train.loop.train` does."""
        from accelerate import PartialState

        from lactok.train.loop import TrainingDiverged, train
        from lactok.train.run_folder import finished

        place = f"[{self.parts.index(part) + 1}/{len(self.parts)}]"
        config, recipe_class = self.compose(part)
        window = ends.minutes(part)
        config = replace(config, minutes=config.minutes if window is None else window, stop_after_minutes=ends.budget())
        state = PartialState(cpu=config.device == "cpu")
        with state.main_process_first():
            done = finished(config, recipe_class, check_held_out, state.num_processes)
        if done:
            state.print(f"{place} {config.name}: finished, {config.steps} steps; {config.export_path}")
            return None
        state.print(f"{place} {config.name}")
        if warning := ends.late(part):
            state.print(warning)
        try:
            outcome = train(config, recipe_class, check_held_out)
        except TrainingDiverged as error:
            raise TrainingDiverged(f"{config.name}: {error}") from error
        state.wait_for_everyone()  # the next part reads what the first process has written
        if outcome.finished:
            return None
        by_signal = outcome.reason.startswith("SIG")
        reason = outcome.reason if by_signal else f"stop_after_minutes={ends.stop_after_minutes:g}"
        return Stopped(config.name, reason, outcome.step)

    def finished(self) -> list[Finished]:
        """Every part, all of them done."""
        from lactok.checkpoint_file import read_checkpoint

        compute = {c.name: read_checkpoint(c.export_path)[1].training for c in self.settings}
        done = []
        for part, config in zip(self.parts, self.settings, strict=True):
            cost = compute[config.name]
            hours = {name: spent.gpu_hours or spent.core_hours or 0.0 for name, spent in compute.items()}
            # a trainable copy's file counts stage 1, too
            before = hours.get("diffusion-mini", 0.0) if part.recipe == "pixel" else 0.0
            own = max(0.0, hours[config.name] - before)
            done.append(Finished(config.name, cost.steps or 0, own, cost.gpu_hours is not None, config.export_path))
        return done


@dataclass(frozen=True)
class Ends:
    """When a call has to be over. began: seconds since the epoch; minutes: of the whole chain, see `Part.until`."""

    began: float
    stop_after_minutes: float | None
    all_minutes: float | None

    def budget(self) -> float | None:
        """Minutes that are left until `stop_after_minutes`."""
        if self.stop_after_minutes is None:
            return None
        return max(0.0, self.stop_after_minutes - self._gone())

    def minutes(self, part: Part) -> float | None:
        """That are left of a part's window, 0.01 at least: a late part is trained too little, see `late`."""
        if self.all_minutes is None:
            return None
        return max(0.01, part.until * self.all_minutes - self._gone())

    def late(self, part: Part) -> str:
        """A warning where less than half of a part's window is left, else ""."""
        left = self.minutes(part)
        if left is None or self.all_minutes is None:
            return ""
        began = max((other.until for other in PARTS if other.name in part.needs), default=0.0)
        window = (part.until - began) * self.all_minutes
        if left >= window / 2:
            return ""
        return (
            f"warning: {part.name} has {60 * left:.0f} s left of its window of {60 * window:.0f} s: expect it to be "
            "trained too little, and what builds on it"
        )

    def _gone(self) -> float:
        return (time.time() - self.began) / 60


def _accelerator(part: Part) -> list[str]:
    return [f"accelerator={part.accelerator}"] if part.accelerator else []


def _jobs(override: str | None) -> int:
    value = (override or "jobs=1").partition("=")[2]
    if not value.isdecimal() or int(value) < 1:
        raise TrainConfigError(f"jobs={value}: expected how many parts are trained at once, 1 or more")
    return int(value)


def _parts(override: str | None) -> tuple[Part, ...]:
    if override is None:
        return PARTS
    names = [name.strip() for name in override.partition("=")[2].strip("[]").split(",") if name.strip()]
    known = [part.name for part in PARTS]
    if unknown := [name for name in names if name not in known]:
        close = nearest(unknown[0], known)
        hint = f"did you mean {' or '.join(close)}?" if close else f"expected some of {', '.join(known)}"
        raise TrainConfigError(f"parts: {CHAIN} has no part {unknown[0]!r}; {hint}")
    if not names:
        raise TrainConfigError(f"parts=[]: expected some of {', '.join(known)}")
    return tuple(part for part in PARTS if part.name in names)


def _split(overrides: Sequence[str]) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """Overrides by key: those of all parts, and by prefix those of a part or of both parts of a recipe."""
    shared: dict[str, str] = {}
    own: dict[str, dict[str, str]] = {prefix: {} for prefix in PREFIXES}
    for override in overrides:
        key = override.partition("=")[0].lstrip("+")
        prefix, _, rest = key.partition(".")
        if prefix in own and rest:
            if rest in SHARED_ONLY:
                raise TrainConfigError(f"{key}: all parts of {CHAIN} share {rest}; write {rest}=VALUE")
            own[prefix][rest] = override.lstrip("+")[len(prefix) + 1 :]
        elif key == "scale" and override != "scale=mini":
            raise TrainConfigError(
                f"{override}: recipe={CHAIN} is the miniature's chain; at scale=paper run its stages by "
                "recipe=diffusion and recipe=pixel"
            )
        elif key == "accelerator":
            raise TrainConfigError(f"{override}: recipe={CHAIN} trains both few-step LoRAs; leave it out")
        elif key == "init":
            raise TrainConfigError(f"{override}: it is of one part: write PART.{override}")
        elif prefix == "options":
            raise TrainConfigError(
                f"{key} is of one part: write PART.{key}=VALUE, where PART is one of {', '.join(PREFIXES)}"
            )
        elif rest and prefix not in ("data", "optimizer"):
            close = nearest(prefix, list(PREFIXES))
            hint = f"did you mean {' or '.join(close)}?" if close else f"expected one of {', '.join(PREFIXES)}"
            raise TrainConfigError(f"{key}: {CHAIN} has no part {prefix!r}; {hint}")
        elif key not in ("recipe", "scale"):
            shared[key] = override
    return shared, own


class _Interrupted(BaseException):
    """A signal came while nothing was being trained, so nothing has to be saved."""


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGINT and SIGTERM raise _Interrupted inside the block; the training loop has handlers of its own, which save."""

    def stop(number: int, frame: object) -> None:
        raise _Interrupted(signal.Signals(number).name)

    before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def closing_table(parts: Sequence[Finished]) -> str:
    """What was trained: part, steps, hours, file."""
    unit = "GPU-hours" if any(part.gpu for part in parts) else "core-hours"
    rows = [("part", "steps", unit, "file")]
    rows += [(p.name, f"{p.steps:,}", f"{p.hours:.2f}", str(p.file)) for p in parts]
    rows.append(("all", f"{sum(p.steps for p in parts):,}", f"{sum(p.hours for p in parts):.2f}", ""))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d}".rstrip() for a, b, c, d in rows]
    return "\n".join(lines)
