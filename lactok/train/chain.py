"""`recipe=mini-all`: every miniature by one command, each part of it a run of its own, in the order of need.

A part reads the files of those that it needs from their runs next to it; one that is not among `parts` ships. A
finished part is left as it is; one that was interrupted resumes from its last checkpoint. With jobs=N up to N parts are
trained at once, each in a process of its own; with minutes=M each has a window of the time, see `Part`.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import signal
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, cast

from lactok.registry import nearest
from lactok.train.config import CHAIN, TrainConfig, TrainConfigError, compose_config

if TYPE_CHECKING:
    from lactok.train.recipe import Recipe
    from lactok.train.schedule import StopRequest

SHARED_ONLY = (
    *("recipe", "scale", "accelerator", "out", "dry_run", "stop_after_minutes", "data.root", "data.pack"),
    *("device", "precision", "threads", "jobs", "parts"),
)
"""Keys that no part has for itself."""
JOBS, PARTS_KEY = "jobs", "parts"
"""Keys of the chain alone."""
JOBS_OF_WINDOWS = 3
"""How many parts `Part.until` takes to be trained at once."""
POLL = 0.2
"""Seconds between looks for a signal while parts are trained by other processes."""


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
        own = next((f"{prefix}.{keys['minutes']}" for prefix, keys in self._own.items() if "minutes" in keys), None)
        if self.minutes is not None and own:
            raise TrainConfigError(
                f"minutes={self.minutes:g} {own}: by the former each part has its window of the time; leave one of the "
                "two out"
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
        it go on; then the first one is told of, or its error raised. After SIGINT or SIGTERM none begins any more, and
        those that are being trained are told once, by SIGTERM: they save, as alone."""
        from lactok.train.schedule import StopRequest

        waiting, done, workers = list(self.parts), set[str](), list[_Worker]()
        chosen = {part.name for part in self.parts}
        stops: list[Stopped | BaseException] = []
        with StopRequest().listening() as stop, _ended(workers):
            while True:
                for part in [p for p in waiting if {name for name in p.needs if name in chosen} <= done]:
                    idle = next((worker for worker in workers if worker.part is None), None)
                    if stop.name or (not idle and len(workers) == self.jobs):
                        break
                    if not idle:
                        workers.append(idle := _Worker(self, check_held_out))
                    waiting.remove(part)
                    idle.begin(part, ends)
                running = {worker.connection: worker for worker in workers if worker.part}
                if stop.name:
                    for worker in running.values():
                        worker.stop()
                if not running:
                    break
                for connection in wait(list(running), POLL):
                    worker = running[cast("Connection", connection)]
                    part, ended = worker.result()
                    if ended:
                        stops.append(ended)
                    else:
                        done.add(part.name)
                    if worker.lost:
                        workers.remove(worker)
        for ended in stops:
            if isinstance(ended, Stopped):
                return replace(ended, reason=stop.name or ended.reason)
            raise ended
        unfinished = [part for part in self.parts if part.name not in done]
        return Stopped(f"{unfinished[0].name}-mini", stop.name, None) if unfinished else None

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
        if not outcome.reason:
            return None
        by_time = outcome.reason.startswith("stop_after_minutes")  # of which the part has had what was left
        reason = f"stop_after_minutes={ends.stop_after_minutes:g}" if by_time else outcome.reason
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


class _Worker:
    """A process that trains one part after the other. part: the one that it trains, None where it is idle; lost:
    whether the process has ended.

    No pool of the standard library: one idle process that a signal ends would break it, and with it the others.
    """

    def __init__(self, chain: Chain, check_held_out: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.part: Part | None = None
        self.lost = False
        self._told = False
        self._process = context.Process(target=_work, args=(theirs, chain, check_held_out))
        resource_tracker.ensure_running()  # which would unblock the signals
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        try:
            self._process.start()  # blocked there, too, until `_work` handles them
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()

    def begin(self, part: Part, ends: Ends) -> None:
        """Train a part."""
        self.part = part
        with contextlib.suppress(OSError):  # the process has ended: `result` says so
            self.connection.send((part, ends))

    def result(self) -> tuple[Part, Stopped | BaseException | None]:
        """The part that has ended, and what `Chain.run_part` returned or raised."""
        part, self.part = self.part, None
        assert part is not None, "result() of an idle process"
        try:
            return part, self.connection.recv()
        except (EOFError, OSError):
            self.lost = True
            self.connection.close()
            self.join()
            status = self._process.exitcode or 0
            how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
            return part, RuntimeError(
                f"{part.name}-mini: the process that trained it {how}; the same command goes on from its last "
                "checkpoint"
            )

    def stop(self) -> None:
        """Tell it once to save and to end the part."""
        if not self._told:
            self._told = True
            self._process.terminate()

    def finish(self) -> None:
        """End as soon as it is idle."""
        with contextlib.suppress(OSError):
            self.connection.send(None)
        self.connection.close()

    def join(self) -> None:
        """Wait for its end."""
        self._process.join()


@contextlib.contextmanager
def _ended(workers: Sequence[_Worker]) -> Iterator[None]:
    """After the block they end."""
    try:
        yield
    finally:
        for worker in workers:
            worker.finish()
        for worker in workers:
            worker.join()


def _work(connection: Connection, chain: Chain, check_held_out: bool) -> None:
    """What a `_Worker`'s process does until it is told to finish, or the first process is no more.

    A terminal sends SIGINT to all processes: it stays blocked here, and the first process tells by SIGTERM whom it
    concerns. A SIGTERM to an idle process is kept in mind, as it may have been for the part that comes.
    """
    from lactok.train.schedule import StopRequest

    with StopRequest().listening() as stop, connection:
        signal.pthread_sigmask(signal.SIG_SETMASK, (signal.SIGINT,))
        with contextlib.suppress(EOFError, OSError):
            while task := connection.recv():
                part, ends = task
                connection.send(_trained(chain, part, ends, check_held_out, stop))


def _trained(
    chain: Chain, part: Part, ends: Ends, check_held_out: bool, stop: StopRequest
) -> Stopped | BaseException | None:
    """What `Chain.run_part` returns or raises, or that it was stopped before."""
    try:
        with _interruptible():
            if stop.name:
                raise _Interrupted(stop.name)
            return chain.run_part(part, ends, check_held_out)
    except _Interrupted as signalled:
        return Stopped(f"{part.name}-mini", str(signalled), None)
    except BaseException as error:
        lines = "".join(traceback.format_exception(error))
        error.add_note(f"In the process that trained {part.name}-mini:\n{lines}")
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # not every one can be told to another process
            return RuntimeError(f"{part.name}-mini: {lines}")
        return error


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
