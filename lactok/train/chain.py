"""`recipe=mini-all`: LacTok in miniature by one command, each part of it a run of its own, in the order of need.

The VQ encoder and the autoencoder are those that ship (or the runs vq-mini and vae-mini, if they exist). A part
that is finished is left as it is; the one that was interrupted resumes from its last checkpoint.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lactok.registry import nearest
from lactok.train.config import CHAIN, TrainConfig, TrainConfigError, compose_config

if TYPE_CHECKING:
    from lactok.train.recipe import Recipe

SHARED_ONLY = (
    *("recipe", "scale", "accelerator", "out", "dry_run", "stop_after_minutes", "data.root", "data.pack"),
    *("device", "precision", "threads"),
)
"""Keys that no part has for itself."""


@dataclass(frozen=True)
class Part:
    """One run of the chain."""

    recipe: str
    accelerator: str | None = None

    @property
    def name(self) -> str:
        """By which its own keys begin on the command line."""
        return "-".join(filter(None, (self.recipe, self.accelerator)))


PARTS = (
    Part("ldm"),
    Part("accelerator", "hypersd"),
    Part("accelerator", "tlcm"),
    Part("diffusion"),
    Part("pixel", "hypersd"),
    Part("pixel", "tlcm"),
)
"""In the order in which they need one another."""

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
        whole, _ = compose_config([f"recipe={PARTS[0].recipe}", *self._shared.values()])
        self.folder = Path(whole.out).expanduser() if whole.out else Path("runs") / CHAIN
        self._shared.pop("out", None)
        self._shared.setdefault("data.pack", f"data.pack='{self.folder / 'images'}'")
        self.settings = [config for config, _ in self.compose_all()]

    def compose_all(self) -> list[tuple[TrainConfig, type[Recipe]]]:
        """Settings and recipe of every part."""
        return [self.compose(part) for part in PARTS]

    def compose(self, part: Part) -> tuple[TrainConfig, type[Recipe]]:
        """A part's settings, with the files that those before it have left by now."""
        keys = self._shared | self._own[part.recipe] | self._own[part.name]
        accelerator = [f"accelerator={part.accelerator}"] if part.accelerator else []
        out = f"out='{self.folder / f'{part.name}-mini'}'"
        return compose_config([f"recipe={part.recipe}", "scale=mini", *accelerator, out, *keys.values()])

    def run(self, check_held_out: bool = True) -> list[Finished] | Stopped:
        """Train what is not trained yet. check_held_out: see `lactok.train.loop.train`, whose errors it raises, too."""
        started = time.monotonic()
        part = PARTS[0]
        try:
            with _interruptible():
                for place, part in enumerate(PARTS, start=1):
                    stopped = self._run_part(part, f"[{place}/{len(PARTS)}]", started, check_held_out)
                    if stopped:
                        return stopped
        except _Interrupted as signalled:
            return Stopped(f"{part.name}-mini", str(signalled), None)
        return self.finished()

    def _run_part(self, part: Part, place: str, started: float, check_held_out: bool) -> Stopped | None:
        from accelerate import PartialState

        from lactok.train.loop import TrainingDiverged, train
        from lactok.train.run_folder import finished

        config, recipe_class = self.compose(part)
        state = PartialState(cpu=config.device == "cpu")
        with state.main_process_first():
            done = finished(config, recipe_class, check_held_out, state.num_processes)
        if done:
            state.print(f"{place} {config.name}: finished, {config.steps} steps; {config.export_path}")
            return None
        budget = config.stop_after_minutes
        left = None if budget is None else max(0.0, budget - (time.monotonic() - started) / 60)
        state.print(f"{place} {config.name}")
        try:
            outcome = train(replace(config, stop_after_minutes=left), recipe_class, check_held_out)
        except TrainingDiverged as error:
            raise TrainingDiverged(f"{config.name}: {error}") from error
        state.wait_for_everyone()  # the next part reads what the first process has written
        if outcome.finished:
            return None
        by_signal = outcome.reason.startswith("SIG")
        return Stopped(config.name, outcome.reason if by_signal else f"stop_after_minutes={budget:g}", outcome.step)

    def finished(self) -> list[Finished]:
        """Every part, all of them done."""
        from lactok.checkpoint_file import read_checkpoint

        compute = {c.name: read_checkpoint(c.export_path)[1].training for c in self.settings}
        done = []
        for part, config in zip(PARTS, self.settings, strict=True):
            cost = compute[config.name]
            hours = {name: spent.gpu_hours or spent.core_hours or 0.0 for name, spent in compute.items()}
            before = (
                hours["diffusion-mini"] if part.recipe == "pixel" else 0.0
            )  # a trainable copy's file counts stage 1, too
            own = max(0.0, hours[config.name] - before)
            done.append(Finished(config.name, cost.steps or 0, own, cost.gpu_hours is not None, config.export_path))
        return done


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
