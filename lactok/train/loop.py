"""The one training loop. A recipe says what is trained and what the loss is; everything else is here.

All randomness is a pure function of (seed, step, sample), so a killed run that resumes from its last checkpoint gives
the same weights, bit for bit on the CPU, as one that was never interrupted.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import AutocastKwargs, DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lactok.checkpoint_file import read_checkpoint
from lactok.data.folder import DataError
from lactok.files import write_atomically
from lactok.train.checkpoints import JOINT, CheckpointFolder, written
from lactok.train.codebook import collapse_warning
from lactok.train.config import TrainConfig, require_start
from lactok.train.data import Share
from lactok.train.log import LOG, CsvLog, Reporter, plot
from lactok.train.optimizer import SMALLEST, build_optimizers, muon_matrices, require_optimizer
from lactok.train.precision import resolve, slow_bfloat16
from lactok.train.recipe import Losses, Provenance, Recipe, build_recipe, checkpoint_names
from lactok.train.run_folder import (
    RunFolderError,
    code_revision,
    command_line,
    open_run,
    sheet_path,
    sole_training,
    time_is_over,
    training_compute,
)
from lactok.train.schedule import Progress, StopRequest, learning_rate
from lactok.train.sharding import ONE_PROCESS, Shards, held, refuse_other_sharding, whole
from lactok.train.sheet import fixed_seeds, save_sheet

LARGEST = torch.finfo(torch.float16).max
"""Of a weight, as exports are float16."""


class TrainingDiverged(Exception):
    """The loss or its gradient is not finite; the message names the last good checkpoint."""


@dataclass(frozen=True)
class Outcome:
    """How a call ended. step: optimizer steps done in all; finished: whether that is all of them.

    reason: why it stopped; when finished, the signal that came too late to stop it, else "". export: the exported
    checkpoint, or None before the first one.
    """

    step: int
    finished: bool
    reason: str
    export: Path | None


def accumulate_gradients(accelerator: Accelerator, model: nn.Module, batches: Sequence[Any]) -> dict[str, Tensor]:
    """Add the gradient of the mean loss over equal micro-batches; returns the mean of the loss parts.

    Raises TrainingDiverged (without a checkpoint's name) when a loss is not finite.
    """
    sums: dict[str, Tensor] = {}
    for place, batch in enumerate(batches):
        last = place == len(batches) - 1
        torch.manual_seed(batch.seeds[0])  # for recipes with dropout: it, too, is a function of (seed, step, sample)
        with contextlib.nullcontext() if last else accelerator.no_sync(model):
            with accelerator.autocast():
                losses: Losses = model(batch)
            if not torch.isfinite(losses.total):
                raise TrainingDiverged(f"the loss of step {batch.step} is {losses.total.item()}")
            accelerator.backward(losses.total / len(batches))
        for name, value in {"loss": losses.total, **losses.parts}.items():
            sums[name] = sums.get(name, 0) + value.detach().float() / len(batches)
    return sums


def train(config: TrainConfig, recipe_class: type[Recipe], check_held_out: bool = True) -> Outcome:
    """Start or resume a training run until its last step, a signal, or `stop_after_minutes`.

    check_held_out: refuse the evaluation set's photographs; off only in tests of the mechanics.
    Raises TrainingDiverged, DataError, or RunFolderError for a folder that holds another run, or one that goes on.
    """
    refuse_other_sharding()  # before accelerate itself fails at it
    main = PartialState(cpu=config.device == "cpu").is_main_process
    with sole_training(config.folder) if main else contextlib.nullcontext():
        return _Run(config, recipe_class, check_held_out).go()


class _Run:
    """One call of `train`: what its parts share."""

    def __init__(self, config: TrainConfig, recipe_class: type[Recipe], check_held_out: bool) -> None:
        self.config, self.folder = config, config.folder
        self.reporter: Reporter  # from `go` on, which knows the first step
        self.started = time.monotonic()
        if config.threads:
            torch.set_num_threads(config.threads)
        require_start(config, recipe_class)  # as the next, before the folder is bound to the settings
        require_optimizer(config.optimizer.name)
        self.precision = resolve(config.precision, config.device)
        self.accelerator = Accelerator(
            mixed_precision="no" if self.precision == "fp32" else self.precision,
            log_with=list(config.trackers) or None,
            project_dir=str(self.folder),
            cpu=config.device == "cpu",
            # sharded, the cache would keep a bfloat16 copy of every gathered weight for a whole step
            kwargs_handlers=[
                AutocastKwargs(cache_enabled=config.sharding == "none"),
                DistributedDataParallelKwargs(find_unused_parameters=recipe_class.rests),
            ],
        )
        if config.device == "cuda" and self.accelerator.device.type != "cuda":
            raise DataError("device=cuda: torch finds no CUDA device here; leave device out, or name device=cpu")
        self.main = self.accelerator.is_main_process
        with self.accelerator.main_process_first():
            self.data = open_run(config, recipe_class, check_held_out, self.accelerator.num_processes)
        self._build(recipe_class)
        self._make_data()
        self.logs = CsvLog(self.folder / LOG), CsvLog(self.folder / "validation.csv")
        self.checkpoints = CheckpointFolder(self.folder)

    def _build(self, recipe_class: type[Recipe]) -> None:
        """The networks, the optimizer, the average, and what a checkpoint holds of them."""
        config, optimizer = self.config, self.config.optimizer
        torch.manual_seed(config.seed)
        self.recipe = build_recipe(config, recipe_class)
        if config.init:
            self.recipe.start_from(Path(config.init).expanduser())
        self.recipe.to(memory_format=torch.channels_last)
        if config.gradient_checkpointing:
            self.recipe.checkpoint_activations()
        self.recipe.to(self.accelerator.device)
        self.recipe.note_data(self.data)
        self.shards: Shards | None = None
        if config.sharding == "full" and self.accelerator.num_processes > 1:
            self.shards = Shards(self.recipe, self.accelerator)
        self.trained = [p for p in self.recipe.parameters() if p.requires_grad]
        optimizers = build_optimizers(self.recipe, optimizer, self.accelerator.device)
        self.model: nn.Module = self.recipe if self.shards else self.accelerator.prepare(self.recipe)
        self.optimizers = [self.accelerator.prepare(one) for one in optimizers]
        self.averaged = nn.ParameterList(self.trained)
        self.average = AveragedModel(self.averaged, multi_avg_fn=get_ema_multi_avg_fn(optimizer.ema_decay))
        if self.shards:
            [adam] = optimizers  # muon is refused with the settings
            self.shards.keep_whole(adam, self.average)
        self._time_is_over = False
        self.progress = Progress()
        self.accelerator.register_for_checkpointing(self.average, self.progress)
        self.accelerator.register_save_state_pre_hook(self._save_trained)
        self.accelerator.register_load_state_pre_hook(self._load_trained)

    def _save_trained(self, models: list, weights: list, folder: str) -> None:
        from safetensors.torch import save_file

        weights.clear()  # accelerate would save the frozen networks too
        state = (self.shards or self.recipe).state_dict()
        if self.main:
            save_file(
                {n: state[n].contiguous() for n in checkpoint_names(self.recipe)}, Path(folder) / "trained.safetensors"
            )

    def _load_trained(self, models: list, folder: str) -> None:
        from safetensors.torch import load_file

        models.clear()
        state = load_file(Path(folder) / "trained.safetensors")
        missing = sorted(set(checkpoint_names(self.recipe)) ^ set(state))
        if missing:
            raise DataError(
                f"{folder} is a checkpoint of another version of the recipe (differs in {', '.join(missing[:3])}); "
                "start anew with another out="
            )
        if self.shards:
            self.shards.load_state_dict(state)
        else:
            self.recipe.load_state_dict(state, strict=False)

    def _make_data(self) -> None:
        config = self.config
        ranks, rank, per_rank = self.accelerator.num_processes, self.accelerator.process_index, config.batch_size
        self.per_step = per_rank * config.accumulation * ranks
        starts = [(micro * ranks + rank) * per_rank for micro in range(config.accumulation)]
        rows = tuple(range(start, start + per_rank) for start in starts)
        self.data.begin(self.recipe, config, Share(rows, self.per_step, self.accelerator.device))

    def go(self) -> Outcome:
        config = self.config
        notes = self._resume()
        if config.minutes is not None:  # on which all ranks agreed when it was saved
            self._time_is_over = self.progress.wall_seconds >= 60 * config.minutes
        self.reporter = Reporter(config.steps, self.progress.step, self.main)
        if config.sharding == "full" and not self.shards:
            notes.append(ONE_PROCESS)
        if warning := slow_bfloat16(self.precision, self.accelerator.device):
            notes.append(warning)
        for note in notes:
            self.reporter.say(note)
        self.reporter.say(self._headline())
        self.accelerator.init_trackers(config.name, config=_flat(asdict(config)))
        try:
            with StopRequest().listening() as stop:
                reason = self._steps(stop)
                finished = self._done()
                self._save()
                if finished:
                    self._sample()
                    if config.minutes is not None and self.main:
                        write_atomically(time_is_over(self.folder), f"{self.progress.step} steps\n".encode())
                    _, reason = self._agree(False, stop.name)
            return Outcome(self.progress.step, finished, reason, self.config.export_path)
        except TrainingDiverged as error:
            last = self.checkpoints.last()
            good = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
            raise TrainingDiverged(
                f"{error}; stopped without saving. {good}; a lower optimizer.learning_rate (with another out=) may help"
            ) from None
        finally:
            self.data.close()
            self.reporter.close()
            self.accelerator.end_training()

    def _headline(self) -> str:
        trained = sum(p.numel() for p in self.trained) / 1e6
        start = f"going on from step {self.progress.step}" if self.progress.step else "starting"
        return (
            f"{self.config.name}: {start} of {self.config.steps}, {trained:.2f} M trained "
            f"parameters, {self._by_muon()}{len(self.data)} {self.data.unit}, {self.per_step} a step, "
            f"{self.accelerator.device}, {self.precision}, "
            f"{f'sharded among {self.accelerator.num_processes} processes, ' if self.shards else ''}"
            f"run folder {self.folder}"
        )

    def _by_muon(self) -> str:
        if self.config.optimizer.name != "muon":
            return ""
        taken = sum(p.numel() for p in muon_matrices(self.recipe)) / 1e6
        why = "" if taken else f" (no matrix of {SMALLEST} rows and columns or more: AdamW steps all)"
        return f"{taken:.2f} M of them by Muon{why}, "

    def _resume(self) -> list[str]:
        """Go on from the newest intact checkpoint; returns what there is to say about damaged ones.

        Raises RunFolderError when all are damaged.
        """
        notes = []
        with self.accelerator.main_process_first():
            if self.main:
                self.checkpoints.clean()
                notes = self._without_damaged()
        if last := self.checkpoints.last():
            self.accelerator.load_state(str(last))
        if self.main:
            for log in self.logs:
                log.rewind(self.progress.step if last else -1)  # the rows of step 0 are written again, too
        return notes

    def _without_damaged(self) -> list[str]:
        """Set damaged checkpoints aside where there is an intact one before them."""
        damaged = self.checkpoints.damaged()
        if damaged and len(damaged) == len(self.checkpoints.all()):
            lines = "\n".join(f"  {one.path.name}: {one.reason}" for one in damaged)
            raise RunFolderError(
                f"no checkpoint in {self.checkpoints.root} is intact:\n{lines}\nPut back a copy of one, or delete that "
                "folder to start from step 0"
            )
        return [
            f"warning: checkpoint {one.path.name} is damaged: {one.reason}; set aside as "
            f"{self.checkpoints.set_aside(one.path)}, the run goes on from the one before it"
            for one in damaged
        ]

    def _steps(self, stop: StopRequest) -> str:
        """Train until done or told to stop; returns why it stopped, "" when done."""
        config = self.config
        since, saved_at = (time.monotonic(), self.progress.step), time.monotonic()
        if self.progress.step == 0:
            self._sample()
        self.model.train()
        while not self._done():
            self.progress.add(self._one_step(self.progress.step))
            done = self.progress.step
            self.reporter.step(done)
            if done % config.log_every == 0 or self._done():
                self._log(done, self.progress.take_means(), since)
                since = (time.monotonic(), done)
            if done % config.sample_every == 0 and not self._done():
                self._sample()
            save, reason = self._agree(*self._wishes(stop, saved_at))
            if reason:
                return reason
            if save and not self._done():
                self._save()
                saved_at = time.monotonic()
        return ""

    def _done(self) -> bool:
        """Whether its steps are all taken, or its minutes over (as of the last step, on which all ranks agree)."""
        return self.progress.step >= self.config.steps or self._time_is_over

    def _wishes(self, stop: StopRequest, saved_at: float) -> tuple[bool, str]:
        config, now = self.config, time.monotonic()
        late = config.stop_after_minutes is not None and now - self.started > 60 * config.stop_after_minutes
        reason = stop.name or (f"stop_after_minutes={config.stop_after_minutes:g}" if late else "")
        due = now - saved_at > 60 * config.checkpoint_minutes
        return due or self.progress.step % config.checkpoint_every == 0, reason

    def _shared(self, share: float) -> float:
        """The largest share of any rank: all end together."""
        if self.accelerator.num_processes == 1:
            return share
        return max(self.accelerator.gather(torch.tensor([share], device=self.accelerator.device)).tolist())

    def _agree(self, save: bool, reason: str) -> tuple[bool, str]:
        """What any rank wants, all do: saving is a joint act."""
        if self.accelerator.num_processes == 1:
            return save, reason
        wishes = torch.tensor([save, bool(reason)], dtype=torch.float32, device=self.accelerator.device)
        any_save, any_stop = (self.accelerator.reduce(wishes, "sum") > 0).tolist()
        return any_save, (reason or "another process was told to stop") if any_stop else ""

    def _over_ranks(self, values: Sequence[Tensor]) -> Sequence[Tensor]:
        """The mean of each scalar over all processes."""
        device = self.accelerator.device
        return self.accelerator.reduce(torch.stack([value.to(device) for value in values]), "mean").unbind()

    def _one_step(self, step: int) -> dict[str, Tensor]:
        steps = self.config.steps
        if self.config.minutes is not None:  # as many as the clock says that there will be
            share = self._shared(self.progress.share(steps, self.config.minutes))
            self._time_is_over = share >= 1
            steps = self.recipe.total_steps = min(steps, max(step + 1, round(step / share))) if step else steps
        rate = learning_rate(self.config.optimizer, step, steps)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
        losses = accumulate_gradients(self.accelerator, self.model, self.data.at(step))
        norm = whole(self.accelerator.clip_grad_norm_(self.trained, self.config.optimizer.clip_norm))
        if not torch.isfinite(norm):
            raise TrainingDiverged(f"the gradient norm of step {step} is {norm.item()}")
        for optimizer in self.optimizers:
            optimizer.step()
        with torch.no_grad():
            self.recipe.after_step(step)
        self.average.update_parameters(self.averaged)
        self.progress.tick(self.per_step)
        return {**losses, "gradient_norm": norm.detach(), "learning_rate": torch.tensor(rate)}

    def _log(self, done: int, values: dict[str, float], since: tuple[float, int]) -> None:
        if self.accelerator.num_processes > 1:
            means = self._over_ranks([torch.tensor(value) for value in values.values()])
            values = dict(zip(values, (mean.item() for mean in means)))
        seconds = (time.monotonic() - since[0]) / (done - since[1])
        rate = self.per_step / seconds
        self.accelerator.log(values, step=done)
        if self.main:
            values |= self.recipe.rates(rate)
            self.logs[0].append(done, {**values, "images_per_second": rate})
        steps, minutes = self.config.steps, self.config.minutes
        left = seconds * (steps - done)
        if minutes is not None:
            left = min(left, 60 * minutes * (1 - self.progress.share(steps, minutes)))
        self.reporter.values(done, values, rate, left)

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[Recipe]:
        """A recipe in which the averaged weights stand inside the block; all processes enter where they are sharded."""
        if self.shards:
            with self.shards.gathered(list(self.average.module.parameters())) as recipe:
                yield recipe
            return
        own = [p.detach().clone() for p in self.trained]
        means = own  # before the first step the average holds the initial weights anyway
        if self.progress.step > 0:
            means = list(self.average.module.parameters())
        with torch.no_grad():
            for parameter, mean in zip(self.trained, means):
                parameter.copy_(mean)
            self.recipe.eval()
            try:
                yield self.recipe
            finally:
                for parameter, value in zip(self.trained, own):
                    parameter.copy_(value)
                self.recipe.train()

    def _sample(self) -> None:
        """Sample images and measurements on validation images, with the averaged weights."""
        if not self.main and not self.shards:
            return
        with self._averaged() as recipe:
            if self.main:
                self._show(recipe)

    def _show(self, recipe: Recipe) -> None:
        with self.accelerator.autocast():
            shown, measured = (part.to(self.accelerator.device) for part in (self.data.shown, self.data.measured))
            sheet = recipe.reconstruct(shown, fixed_seeds(len(shown))).float().cpu()
            values = recipe.measure(measured, fixed_seeds(len(measured)))
            originals = recipe.originals(shown).float().cpu()
        save_sheet(originals, sheet, sheet_path(self.folder, self.progress.step))
        if values:
            self.logs[1].rewind(self.progress.step - 1)  # the command of a finished run measures its last step again
            self.logs[1].append(self.progress.step, values)
            self.accelerator.log({f"validation/{k}": v for k, v in values.items()}, step=self.progress.step)
            self.reporter.say(
                f"validation at step {self.progress.step}: " + "  ".join(f"{k} {v:.4g}" for k, v in values.items())
            )
        if warning := collapse_warning(self.progress.step, values):
            self.reporter.say(warning)
        plot(list(self.logs), self.folder / "log.png")

    def _save(self) -> None:
        """A checkpoint to resume from, and the averaged weights exported for use."""
        step = self.progress.step
        self._refuse_what_is_not_finite()
        if self.accelerator.num_processes == 1:
            saved = self.checkpoints.save(step, lambda folder: self.accelerator.save_state(str(folder)))
        else:
            saved = self._save_jointly(step)
        if self.main or self.shards:
            with self._averaged() as recipe:
                if self.main:
                    recipe.export(self.config.export_path, self._provenance())
        self.reporter.say(f"checkpoint {saved}")

    def _refuse_what_is_not_finite(self) -> None:
        """Raises TrainingDiverged for weights that no export can hold: a step after a finite gradient may make them."""
        parts = [part.detach() for parameter in self.trained if (part := held(parameter)).numel()]
        if self._shared(float(any(not (part.abs().max() <= LARGEST).item() for part in parts))):
            raise TrainingDiverged(f"after step {self.progress.step - 1} a weight is not within float16's range")

    def _save_jointly(self, step: int) -> Path:
        """Every rank writes its part of one folder, which rank 0 then renames into place."""
        shared = self.checkpoints.root / JOINT
        if self.progress.sums:  # of which one process's are saved
            self.progress.sums = dict(zip(self.progress.sums, self._over_ranks(list(self.progress.sums.values()))))
        with written(shared):
            self.accelerator.save_state(str(shared))
        self.accelerator.wait_for_everyone()
        saved = self.checkpoints.root / f"step-{step:08d}"
        if self.main:
            self.checkpoints.save(step, lambda folder: shared.replace(folder))
        self.accelerator.wait_for_everyone()
        return saved

    def _provenance(self) -> Provenance:
        roots = self.config.data.roots
        named = f"folder{'s' if len(roots) > 1 else ''} {', '.join(Path(root).name for root in roots)}"
        data = self.config.data.description or f"{len(self.data)} {self.data.unit} of the {named}"
        compute = training_compute(self.progress, self.accelerator, data)
        if self.config.init:
            compute = compute.after(read_checkpoint(Path(self.config.init).expanduser())[1].training)
        command = command_line(self.config, self.recipe.path_options, self.accelerator.num_processes)
        return Provenance(command, self.recipe.image_size, compute, code_revision())


def _flat(tree: dict, prefix: str = "") -> dict[str, str | float | int | bool]:
    """Nested settings as one level of plain values, which trackers accept."""
    flat: dict = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value if isinstance(value, (int, float, bool, str)) else str(value)
    return flat
