"""The file in which our trainers publish a model: safetensors with float16 weights and what one must know of them.

Written whole or not at all; small enough to ship inside the package (lactok/tokenizers/checkpoints).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from lactok.files import write_atomically
from lactok.interface import TrainingCompute
from lactok.weights import WeightsError, load_state_dict, read_metadata, sha256_of

Config = TypeVar("Config")


LATENTS = "latents"
"""In an autoencoder's `made_with`: the file whose latents it has, having kept the encoder and trained the decoder."""


@dataclass(frozen=True)
class CheckpointMetadata:
    """The header of a checkpoint.

    config: the fields of the model's configuration dataclass, as JSON values; see `build_config`.
    image_size: side in pixels of the images that it was trained for.
    training: what it cost; recipe: the command that makes it; code_revision: of this repository; data: what it saw.
    made_with: sha256 of the tensors of the frozen parts that it was trained with, by part ("autoencoder"); files of
        before this field, and those without such parts, have none.
    """

    config: dict[str, Any]
    image_size: int
    training: TrainingCompute
    recipe: str
    code_revision: str
    data: str
    made_with: dict[str, str] = field(default_factory=dict)

    def require_part(self, file: str | os.PathLike, part: str, path: str | os.PathLike) -> None:
        """Raises WeightsError if `file`, whose header this is, was trained with another `part` than that at `path`."""
        if (expected := self.made_with.get(part)) is not None:
            require_made_with(file, part, expected, path)

    def build_config(self, config_class: type[Config]) -> Config:
        """`config` as an instance of the dataclass. Raises WeightsError when the fields are not its own."""
        try:
            return config_class(**self.config)
        except (TypeError, ValueError) as error:
            raise WeightsError(f"the checkpoint's config is none of {config_class.__name__}: {error}") from error

    def to_strings(self) -> dict[str, str]:
        """The header's string fields."""
        parts = {"made_with": json.dumps(self.made_with, sort_keys=True)} if self.made_with else {}
        return parts | {
            "config": json.dumps(self.config, sort_keys=True),
            "image_size": str(self.image_size),
            "training": json.dumps(dataclasses.asdict(self.training), sort_keys=True),
            "recipe": self.recipe,
            "code_revision": self.code_revision,
            "data": self.data,
        }

    @staticmethod
    def from_strings(strings: Mapping[str, str]) -> CheckpointMetadata:
        """The record of `to_strings`. Raises WeightsError naming what is missing or malformed."""
        needed = [f.name for f in dataclasses.fields(CheckpointMetadata) if f.name != "made_with"]
        missing = [name for name in needed if name not in strings]
        if missing:
            raise WeightsError(f"the header is missing {', '.join(missing)}: not a checkpoint of our trainers")
        try:
            return CheckpointMetadata(
                config=json.loads(strings["config"]),
                image_size=int(strings["image_size"]),
                training=TrainingCompute(**json.loads(strings["training"])),
                recipe=strings["recipe"],
                code_revision=strings["code_revision"],
                data=strings["data"],
                made_with=json.loads(strings.get("made_with", "{}")),
            )
        except (TypeError, ValueError) as error:
            raise WeightsError(f"the header can't be understood: {error}") from error


def save_checkpoint(path: str | os.PathLike, module_state: Mapping[str, Tensor], metadata: CheckpointMetadata) -> None:
    """Write `module_state` (floats as float16) with `metadata`, by an atomic rename; same content, same bytes.

    Raises ValueError for a value that is not finite in float16, WriteError for a file that can't be written.
    """
    from safetensors.torch import save

    state = {name: _half(name, tensor) for name, tensor in module_state.items()}
    data = _canonical(save(state, metadata=metadata.to_strings()))
    write_atomically(Path(path), data)


def _canonical(data: bytes) -> bytes:
    """The same safetensors file with its metadata sorted; the library writes them in the order of a hash table."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the tensors to 8 bytes
    return len(text).to_bytes(8, "little") + text + data[end:]


def _half(name: str, tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point():
        tensor = tensor.to(torch.float16)
        if not tensor.isfinite().all():
            raise ValueError(f"{name} holds values that are not finite in float16 (largest allowed: 65504)")
    return tensor.clone(memory_format=torch.contiguous_format)


def read_checkpoint(path: str | os.PathLike) -> tuple[dict[str, Tensor], CheckpointMetadata]:
    """The state dict (floats as float32) and metadata of a file that `save_checkpoint` wrote.

    Raises WeightsError naming the file when it is another one.
    """
    state = load_state_dict(path)
    try:
        metadata = CheckpointMetadata.from_strings(read_metadata(path))
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    return {name: t.float() if t.is_floating_point() else t for name, t in state.items()}, metadata


def tensors_sha256(path: str | os.PathLike) -> str:
    """sha256 hex of a safetensors file's tensors, whatever its header says; of any other file, of all of it."""
    if Path(path).suffix != ".safetensors":
        return sha256_of(path)
    with open(path, "rb") as file:
        file.seek(int.from_bytes(file.read(8), "little"), os.SEEK_CUR)
        return hashlib.file_digest(file, "sha256").hexdigest()


def latents_sha256(path: str | os.PathLike) -> str:
    """What an autoencoder's latents go by: sha256 of the tensors of the file whose encoder it kept, else of its own."""
    return _latents(path) or tensors_sha256(path)


def require_made_with(file: str | os.PathLike, what: str, expected: str, path: str | os.PathLike) -> None:
    """Raises WeightsError unless `path` holds the tensors, or has the latents, of the part that `file` was made with.

    expected: sha256 of that part's tensors, or of what its latents go by; what: the part, for the message.
    """
    seen = tensors_sha256(path)
    if expected not in (seen, _latents(path)):
        raise WeightsError(
            f"{file} was trained with another {what}: tensors with sha256 {expected[:12]}..., those of {path} have "
            f"{seen[:12]}...; name the file that it was trained with, or train it anew"
        )


def _latents(path: str | os.PathLike) -> str | None:
    """sha256 of the tensors of the autoencoder whose encoder a file kept; None where it says of none."""
    if Path(path).suffix != ".safetensors":
        return None
    return json.loads(read_metadata(path).get("made_with", "{}")).get(LATENTS)
