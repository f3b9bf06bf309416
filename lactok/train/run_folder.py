"""A run's folder: which settings it belongs to, and what its exported checkpoint says about its making."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from accelerate import Accelerator

from lactok.checkpoint_file import tensors_sha256
from lactok.files import explained, write_atomically
from lactok.interface import TrainingCompute
from lactok.locks import LockHeld, Owner, sole_lock
from lactok.train.checkpoints import CheckpointFolder
from lactok.train.config import FREE_ON_RESUME, TrainConfig, TrainConfigError, compose_config
from lactok.train.log import LOG
from lactok.train.precision import resolve
from lactok.weights import LocalWeights, NetworkWeights, WeightsSource, identity_of, locate, locate_all

if TYPE_CHECKING:
    from lactok.train.data import TrainingData
    from lactok.train.recipe import Recipe


class RunFolderError(Exception):
    """The folder holds a run with other settings or data; the message names what differs."""


class Cost(Protocol):
    """What a run has cost so far: `lactok.train.loop.Progress`."""

    step: int
    images: int
    cpu_seconds: float
    wall_seconds: float


def inputs_fingerprint(sources: Sequence[WeightsSource]) -> list[str]:
    """What a run starts from: sha256 of the tensors of local files and of networks that several files hold; the name
    and revision of published ones.

    Raises one MissingWeights for all that is not available.
    """
    locate_all(sources)
    return [_fingerprint(source) for source in sources]


def _fingerprint(source: WeightsSource) -> str:
    if isinstance(source, LocalWeights):
        return tensors_sha256(locate(source))
    return identity_of(source) if isinstance(source, NetworkWeights) else str(source)


def open_run(
    config: TrainConfig, recipe_class: type[Recipe], check_held_out: bool = True, processes: int = 1
) -> TrainingData:
    """The run's data, after its folder was claimed. processes: in which it trains.

    Raises WeightsError for what it starts from, DataError, or RunFolderError for a folder that holds another run.
    """
    start = (LocalWeights(str(Path(config.init).expanduser())),) if config.init else ()
    inputs = inputs_fingerprint((*recipe_class.sources(config.options), *start))
    data = recipe_class.open_data(config, check_held_out)
    inputs_now = Inputs(data.fingerprint, processes, tuple(recipe_class.path_options), tuple(inputs), data.of_what)
    claim(config.folder, config, inputs_now)
    return data


@contextlib.contextmanager
def sole_training(folder: Path) -> Iterator[None]:
    """The folder belongs to this process inside the block. Raises RunFolderError, WriteError.

    A folder that is made for it, and in which nothing is written then, is removed again.
    """
    path = folder / "lock"
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    with contextlib.ExitStack() as held:
        held.callback(_remove_empty, made)
        try:
            with explained(path):
                folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(sole_lock(path))
        except LockHeld as error:
            raise RunFolderError(_held(folder, path, error.owner)) from None
        yield


def _remove_empty(folders: Sequence[Path]) -> None:
    """Remove those that are empty, the innermost first."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _held(folder: Path, path: Path, owner: Owner | None) -> str:
    by = f"process {owner.pid} on {owner.host}" if owner else "another process"
    here = socket.gethostname()
    elsewhere = owner and owner.host != here
    gone = f"; if that process is no more (from {here} it can't be seen), delete {path}" if elsewhere else ""
    return (
        f"{folder} is being trained in by {by}: expected no other training there, as two would overwrite one another. "
        f"Wait for it or stop it, or name another out={gone}"
    )


def sheet_path(folder: Path, step: int) -> Path:
    """Where the sample images of a step lie; those of the last step are the last thing that a run writes."""
    return folder / "samples" / f"step-{step:08d}.png"


def time_is_over(folder: Path) -> Path:
    """The file that a run with `minutes` writes last; its number of steps is not known before."""
    return folder / "minutes-are-over"


def finished(config: TrainConfig, recipe_class: type[Recipe], check_held_out: bool = True, processes: int = 1) -> bool:
    """Whether the folder holds this very run, and all of it. Raises what `open_run` raises."""
    ended = sheet_path(config.folder, config.steps) if config.minutes is None else time_is_over(config.folder)
    if not (ended.is_file() and config.export_path.is_file()):
        return False
    open_run(config, recipe_class, check_held_out, processes)
    return True


@dataclass(frozen=True)
class Inputs:
    """What moves a run's weights beside its settings.

    data: fingerprint of the data, made `of_what`; processes: which share a step's samples; paths: options that name
    files; files: what those hold, which is compared in their place.
    """

    data: str
    processes: int = 1
    paths: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    of_what: str = "sha256 of the data"


def claim(folder: Path, config: TrainConfig, inputs: Inputs) -> None:
    """Note the run's settings in `config.json`, or compare with those that stand there.

    Raises WriteError, and RunFolderError when a setting that moves the weights differs from the run in the folder.
    """
    named = {f"options.{name}" for name in inputs.paths}
    wanted = {k: v for k, v in _binding(asdict(config)).items() if k not in named}
    wanted |= {"data": inputs.data, "processes": inputs.processes}
    wanted["precision"] = resolve(config.precision, config.device)  # auto may mean another one elsewhere
    if inputs.files:
        wanted["inputs"] = list(inputs.files)
    wanted = _as_json(wanted)
    path = folder / "config.json"
    seen = _settings_there(path)
    if seen is None:
        _write_settings(path, wanted)
        return
    defaults = {key: value for key, value in _as_json(_defaults(config)).items() if key in wanted}
    added = _before_they_were(seen, defaults)
    seen |= added
    differ = [k for k in sorted(seen.keys() | wanted.keys()) if seen.get(k) != wanted.get(k)]
    if differ:
        meaning = _MEANING | {"data": f"data ({inputs.of_what})"}
        lines = "\n".join(f"  {meaning.get(k, k)}: {seen.get(k)} in the folder, {wanted.get(k)} now" for k in differ)
        raise RunFolderError(
            f"{folder} holds a run with other settings:\n{lines}\nGive them as they were to resume it, "
            "name another out= for a new run, or delete the folder"
        )
    if added:  # from now on they are written, whatever becomes of the defaults
        _write_settings(path, wanted)


def _as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(settings, default=str))


def _write_settings(path: Path, settings: Mapping[str, Any]) -> None:
    write_atomically(path, (json.dumps(settings, indent=2) + "\n").encode())


def _defaults(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Defaults of a configuration's fields, dotted: what held before a key existed."""
    found: dict[str, Any] = {}
    for key in fields(settings):
        if is_dataclass(value := getattr(settings, key.name)):
            found |= _defaults(value, f"{prefix}{key.name}.")
            continue
        default = key.default if key.default_factory is MISSING else key.default_factory()
        if default is not MISSING:
            record = is_dataclass(default) and not isinstance(default, type)
            found |= _binding({key.name: asdict(default) if record else default}, prefix)
    return found


def _before_they_were(seen: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of keys that a folder's settings lack: its run began before they existed.

    Not those below a key that stands there: options.words=null has no options.words.dim.
    """
    return {
        key: value
        for key, value in defaults.items()
        if key not in seen and not any(key.startswith(f"{there}.") for there in seen)
    }


def _settings_there(path: Path) -> dict[str, Any] | None:
    """What a folder's `config.json` says; None for a folder whose run has neither a checkpoint nor a logged step.

    So settings that were refused after they had been noted can be put right. Raises RunFolderError where there are
    checkpoints, and nothing that says of which run.
    """
    checkpoints = CheckpointFolder(path.parent)
    try:
        seen = json.loads(path.read_bytes())
        if isinstance(seen, dict):
            begun = checkpoints.all() or (path.parent / LOG).is_file()
            return seen if begun or "recipe" not in seen else None  # others write a config.json, too
        reason = f"holds a {type(seen).__name__}"
    except FileNotFoundError:
        reason = "is missing"
    except (OSError, ValueError) as error:
        reason = f"can't be read ({error})"
    if not checkpoints.all():
        return None
    raise RunFolderError(
        f"{path} {reason}: expected the settings of the run whose checkpoints stand in {checkpoints.root}. Put a copy "
        f"of it back, name another out= for a new run, or delete {checkpoints.root} to start from step 0"
    )


_MEANING = {
    "inputs": "inputs (sha256 of the files that it starts from)",
    "processes": "processes (which share a step's samples)",
}
"""What a message says for a line of `config.json` that is no key of the command line."""


def _binding(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings that determine the weights, dotted; the data stands there by its fingerprint."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            flat |= _binding(value, f"{key}.")
        elif _is_bound(key):
            flat[key] = value
    return flat


def _is_bound(key: str) -> bool:
    return key not in FREE_ON_RESUME and key not in ("data.root", "data.description", "init")


def code_revision() -> str:
    """The checkout's commit (with -dirty when files differ from it), or the installed version outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    try:
        if Path(_git(root, "rev-parse", "--show-toplevel")).resolve() != root:
            raise ValueError("installed inside another checkout")
        return _git(root, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    except (OSError, ValueError, subprocess.SubprocessError):
        return f"lactok {version('lactok')}"


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def command_line(config: TrainConfig, paths: Sequence[str] = (), processes: int = 1) -> str:
    """The command that makes the run, with all that moves its weights and differs from the preset.

    paths: options that name files (`Recipe.path_options`); they stand as FILE, the images as DIR. `precision=auto`
    stands as what it was on this machine. processes: which share a step's samples.
    """
    accelerator = getattr(config.options, "accelerator", None)
    chosen = [f"recipe={config.recipe}", *([f"accelerator={accelerator}"] if accelerator else [])]
    chosen += [f"scale={config.scale}"]
    try:
        usual = _settings(compose_config([*chosen, "dry_run=true"], earlier_runs=False)[0])
    except TrainConfigError:  # a recipe that no package has registered: there is no preset to differ from
        usual = {}
    more = ["init=FILE"] if config.init else []
    more += [f"minutes={_as_override(config.minutes)}"] if config.minutes is not None else []
    named = {f"options.{name}" for name in paths}
    for key, value in _differing(_settings(config), usual):
        if _is_bound(key) and key not in ("recipe", "scale", "options.accelerator"):
            file = key in named and value is not None and not str(value).isidentifier()  # options.start=hub is none
            more.append(f"{key}={'FILE' if file else _as_override(value)}")
    images = "DIR" if len(config.data.roots) < 2 else f"[{','.join(['DIR'] * len(config.data.roots))}]"
    launched = ["python"] if processes == 1 else ["accelerate", "launch", "--num_processes", str(processes)]
    return shlex.join([*launched, "-m", "lactok.train", *chosen, f"data.root={images}", *more])


def _settings(config: TrainConfig) -> dict[str, Any]:
    return asdict(config) | {"precision": resolve(config.precision, config.device)}


def _differing(settings: Mapping[str, Any], usual: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Keys, dotted, and values of the settings that are not as usual: whole branches where one has none."""
    for name, value in settings.items():
        key, before = f"{prefix}{name}", usual.get(name, _ABSENT)
        if isinstance(value, Mapping) and (isinstance(before, Mapping) or before is _ABSENT):
            yield from _differing(value, before if isinstance(before, Mapping) else {}, f"{key}.")
        elif value != before:
            yield key, value


_ABSENT = object()
_PLAIN = re.compile(r"(?!(null|true|false|nan|inf)$)[a-z_][\w.-]*", re.IGNORECASE | re.ASCII)
"""Text that Hydra takes for text without quotes."""


def _as_override(value: Any) -> str:
    """A value as Hydra's command line takes it."""
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{name}:{_as_override(one)}' for name, one in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"[{','.join(_as_override(one) for one in value)}]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if isinstance(value, int):
        return str(value)
    text = value.name if isinstance(value, Enum) else str(value)
    if _PLAIN.fullmatch(text):
        return text
    escaped = re.sub(r"(\\*)('|\Z)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), text)
    return f"'{escaped}'"


def training_compute(cost: Cost, accelerator: Accelerator, data: str) -> TrainingCompute:
    """What the run cost: CPU time of this process on a CPU, wall clock times devices on GPUs."""
    on_gpu = accelerator.device.type == "cuda"
    return TrainingCompute(
        steps=cost.step,
        images=cost.images,
        core_hours=None if on_gpu else round(cost.cpu_seconds / 3600 * accelerator.num_processes, 3),
        gpu_hours=round(cost.wall_seconds / 3600 * accelerator.num_processes, 3) if on_gpu else None,
        gpu=torch.cuda.get_device_name(accelerator.device) if on_gpu else None,
        data=data,
    )
