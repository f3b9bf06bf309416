"""What a port's conformance code is made of: a golden case on disk, comparisons, and the lines that they give.

A port registers a runner `run(case: CaseFolder) -> Iterator[CheckLine]` under the entry-point group
`lactok.conformance`, by the name of its model's folder. A case is a folder (`config.json`, `case.safetensors`, and a
`manifest.json` here or in the folder above), a `.jsonl` file next to such folders, or a `NAME.safetensors` there with
its `NAME.json`. Manifests and `.jsonl` files may be compressed (`.gz`). Nothing in a case is ever run.

A runner works on `case.device`: the case's tensors and seeded weights lie there, and what a runner makes anew it puts
there. Comparisons are made on the CPU.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor, nn

from lactok.seeded import Manifest, TensorSpec, seeded_state_dict

REL_TOLERANCE = 1e-4
"""Of float tensors, relative to the largest absolute value of the expected tensor."""

GAP_MARGIN = 1e-4
"""An id may differ where the best code was less than this ahead of the second best."""

COMPRESSED = ".gz"
"""Ending of files that gzip wrote."""


class CaseError(Exception):
    """A case can't be used as it is; the message names the file and what is missing."""


class UnhandledCase(Exception):
    """Raised by a runner for a `.jsonl` file that is data of its model and no case."""


@dataclass(frozen=True)
class CheckLine:
    """The outcome for one expected tensor.

    max_abs: largest absolute error; max_rel: max_abs / largest absolute expected value; None where only ids count.
    ids_equal: whether all ids that must agree do; None for other tensors. note: why it failed, or what was allowed.
    """

    tensor: str
    max_abs: float | None
    max_rel: float | None
    ids_equal: bool | None
    passed: bool
    note: str = ""


Runner = Callable[["CaseFolder"], Iterator[CheckLine]]


class CaseFolder:
    """One golden case: `path` is its folder, or a file (`.jsonl`, `.safetensors`). Files are read when first asked for.

    device: where its tensors are given, and where the port runs.
    """

    def __init__(self, path: str | Path, device: torch.device | str = "cpu") -> None:
        self.path = Path(path)
        self.device = torch.device(device)

    def __repr__(self) -> str:
        return f"CaseFolder({str(self.path)!r})"

    @property
    def name(self) -> str:
        """The folder's or file's own name ("tiny")."""
        return self.path.name

    @property
    def model(self) -> str:
        """The name of the model's folder, which is the port's name ("llamagen_vq")."""
        return self.path.absolute().parent.name

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of `config.json`, or of a `.safetensors` file's own. Raises CaseError when there is none."""
        return _read_json(self._config_file)

    @property
    def _config_file(self) -> Path:
        return self.path.with_suffix(".json") if self._is_file else self.path / "config.json"

    @property
    def _tensor_file(self) -> Path:
        return self.path if self._is_file else self.path / "case.safetensors"

    @property
    def _is_file(self) -> bool:
        return self.path.suffix == ".safetensors"

    def has_manifest(self, filename: str = "manifest.json") -> bool:
        """Whether `manifest` finds a file of that name."""
        return self.own_manifest(filename) is not None or self._above.own_manifest(filename) is not None

    def own_manifest(self, filename: str = "manifest.json") -> Path | None:
        """The manifest in the case's own folder, as `filename` or `filename.gz`; None when it has neither."""
        files = (self.path / filename, self.path / f"{filename}{COMPRESSED}")
        return next((file for file in files if file.is_file()), None)

    @property
    def _above(self) -> CaseFolder:
        return CaseFolder(self.path.absolute().parent)

    def manifest(self, filename: str = "manifest.json") -> dict[str, TensorSpec]:
        """Names and shapes of the weights: the case's own file, else the one in the folder above.

        Raises CaseError when neither folder has it.
        """
        file = self.own_manifest(filename) or self._above.own_manifest(filename)
        if file is None:
            raise CaseError(f"no {filename} in {self.path} nor in the folder above")
        return read_manifest(file)

    def seeded_weights(self, filename: str = "manifest.json") -> dict[str, Tensor]:
        """The weights of the case by the rule of lactok/seeded.py, with `weights_seed` of its configuration."""
        return self.seeded(self.manifest(filename), self.setting("weights_seed"))

    def seeded(self, manifest: Manifest, seed: int) -> dict[str, Tensor]:
        """Weights by the rule of lactok/seeded.py on the case's device; the values are the same on every one."""
        return {name: value.to(self.device) for name, value in seeded_state_dict(manifest, seed).items()}

    def setting(self, key: str) -> Any:
        """A value of `config.json` that the case can't do without. Raises CaseError when it is not there."""
        if key not in self.config:
            raise CaseError(f"{self._config_file} has no {key!r}; it has {', '.join(self.config)}")
        return self.config[key]

    @cached_property
    def _file(self) -> Any:
        from safetensors import SafetensorError, safe_open

        file = self._tensor_file
        try:
            return safe_open(file, framework="pt")
        except (OSError, SafetensorError) as error:
            raise CaseError(f"{file} can't be read: {error}") from error

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the stored tensors, sorted."""
        return tuple(sorted(self._file.keys()))

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> Tensor:
        """A stored tensor, on the case's device. Raises CaseError when there is none of that name."""
        if name not in self:
            raise CaseError(f"{self._tensor_file} has no tensor {name!r}; it has {', '.join(self.names)}")
        return self._file.get_tensor(name).to(self.device)

    @overload
    def get(self, name: str, default: Tensor) -> Tensor: ...

    @overload
    def get(self, name: str) -> Tensor | None: ...

    def get(self, name: str, default: Tensor | None = None) -> Tensor | None:
        """A stored tensor, or `default` when there is none of that name."""
        if name not in self:
            return default
        return self[name]

    def rows(self) -> Iterator[Any]:
        """The objects of a `.jsonl` case, in order. Raises CaseError naming a line that is not JSON."""
        for number, line in enumerate(_text(self.path).split("\n"), 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except json.JSONDecodeError as error:
                    raise CaseError(f"{self.path}, line {number}: not JSON: {error}") from error


def is_rows(path: Path) -> bool:
    """Whether a file is one of rows by its name: `.jsonl`, or that compressed."""
    return path.name.endswith((".jsonl", f".jsonl{COMPRESSED}"))


def read_manifest(path: Path) -> dict[str, TensorSpec]:
    """Names and shapes of weights from a file `{name: {"shape": [...], "dtype": ...}}`, which may be compressed.

    Raises CaseError when it can't be read.
    """
    return {name: TensorSpec(tuple(e["shape"]), e["dtype"]) for name, e in _read_json(path).items()}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(_text(path))
    except ValueError as error:
        raise CaseError(f"{path} can't be read: {error}") from error


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == COMPRESSED else data).decode()
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise CaseError(f"{path} can't be read: {error}") from error


def compare_floats(name: str, got: Tensor, want: Tensor, rel: float = REL_TOLERANCE, atol: float = 0.0) -> CheckLine:
    """Compare in float64: passes when the largest absolute error is within rel x largest |want|, or within atol.

    Infinities and NaNs must stand at the same places; they do not count for the largest value.
    """
    if got.shape != want.shape:
        return _wrong_shape(name, got, want)
    got, want = got.detach().cpu().double(), want.cpu().double()
    same = (got == want) | (got.isnan() & want.isnan())
    error = torch.where(same, 0.0, (got - want).abs()).nan_to_num(nan=torch.inf)
    largest = want[want.isfinite()].abs().max().item() if want.isfinite().any() else 0.0
    max_abs = error.max().item() if error.numel() else 0.0
    max_rel = max_abs / largest if largest else (0.0 if max_abs == 0 else torch.inf)
    tolerance = max(rel * largest, atol)
    passed = max_abs <= tolerance
    return CheckLine(name, max_abs, max_rel, None, passed, "" if passed else f"allowed: {tolerance:.3g}")


def compare_ids(
    name: str, got: Tensor, want: Tensor, gap: Tensor | None = None, margin: float = GAP_MARGIN
) -> CheckLine:
    """Compare integers: equal, except where `gap` (same shape: the lead of the best code) is below `margin`."""
    if got.shape != want.shape:
        return _wrong_shape(name, got, want)
    differs = got.detach().cpu().long() != want.cpu().long()
    close = torch.zeros_like(differs) if gap is None else gap.cpu() < margin
    wrong = int((differs & ~close).sum())
    allowed = int((differs & close).sum())
    notes = [f"{wrong} of {want.numel()} differ"] if wrong else []
    if allowed:
        notes.append(f"{allowed} differ where the gap is below {margin:g}, which is allowed")
    return CheckLine(name, None, None, wrong == 0, wrong == 0, "; ".join(notes))


def _wrong_shape(name: str, got: Tensor, want: Tensor) -> CheckLine:
    return CheckLine(name, None, None, None, False, f"shape {tuple(got.shape)}, expected {tuple(want.shape)}")


def failure(name: str, error: BaseException) -> CheckLine:
    """The line for a check that could not be made."""
    return CheckLine(name, None, None, None, False, f"{type(error).__name__}: {' '.join(str(error).split())}")


@contextmanager
def recorded(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Any]]:
    """Outputs of `modules` by the keys given, filled while the model runs inside the block."""
    seen: dict[str, Any] = {}
    hooks = [
        module.register_forward_hook(lambda _module, _args, output, key=key: seen.__setitem__(key, output))
        for key, module in modules.items()
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
