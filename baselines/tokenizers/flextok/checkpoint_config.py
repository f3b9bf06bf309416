"""The configuration that a published checkpoint carries, read into a `FlexTokConfig`.

It is a tree of the published classes' arguments (`encoder.module_dict.enc_transformer.dim`). It stands in the hub's
`config.json`, and as Python literals in the header of `model.safetensors`. Nothing named in it is imported or run.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from baselines.tokenizers.flextok.config import FlexTokConfig, VAEConfig
from lactok.tensor_file import not_a_checkpoint
from lactok.weights import CheckpointMismatch, WeightsError, read_metadata

_ABSENT = object()

_CLASSES = {  # the modules of each half, in order, and the published class of each
    "encoder": {
        "enc_channels_to_last": "PerSampleOp",
        "enc_patch_emb": "PatchEmbedder",
        "enc_posemb_module": "PositionalEmbeddingAdder",
        "enc_register_module": "Registers1D",
        "enc_seq_packer": "BlockWiseSequencePacker",
        "enc_transformer": "FlexTransformer",
        "enc_unpacker": "SequenceUnpacker",
        "enc_to_latents": "LinearHead",
    },
    "decoder": {
        "dec_from_latents": "LinearLayer",
        "dec_registers_posemb_module": "PositionalEmbeddingAdder",
        "dec_nested_dropout": "MaskedNestedDropout",
        "dec_latent_dropout": "LearnedNullCond",
        "dec_noise_channels_to_last": "PerSampleOp",
        "dec_noise_patch_emb": "PatchEmbedder",
        "dec_patches_posemb_module": "PositionalEmbeddingAdder",
        "dec_seq_packer": "BlockWiseSequencePacker",
        "dec_time_embedder": "TimestepEmbedder",
        "dec_transformer": "FlexTransformer",
        "dec_unpacker": "SequenceUnpacker",
        "dec_to_patches": "ToPatchesLinearHead",
        "dec_channels_to_first": "PerSampleOp",
    },
}

REPA = "dec_repa"
"""Start of the names of modules that only the training loss on intermediate features uses (REPA)."""

_TRUNK = {"qkv_bias": False, "proj_bias": False, "mlp_bias": False, "gated_mlp": True, "qk_norm": True}
_FIXED: dict[str, dict[str, Any]] = {  # settings that the port does not vary: the value it has, the published default
    "encoder.enc_posemb_module": {"posemb_type": "sincos", "posemb_scaling": "absolute"},
    "encoder.enc_register_module": {"ordering_mode": "nested", "extra_registers_write_key": None},
    "encoder.enc_transformer": {**_TRUNK, "adaLN_emb_read_key": None, "rope_forward_read_key": None},
    "encoder.enc_to_latents": {"adaLN_emb_read_key": None, "proj_bias": True},
    "decoder.dec_latent_dropout": {"replace_with_single_token": False},
    "decoder.dec_seq_packer": {"mask_mode": "full"},
    "decoder.dec_patches_posemb_module": {"posemb_type": "sincos", "posemb_scaling": "absolute"},
    "decoder.dec_time_embedder": {"temb_as_tokens": False},
    "decoder.dec_transformer": {**_TRUNK, "rope_forward_read_key": None},
    "decoder.dec_to_patches": {"adaLN_bias": True, "proj_bias": True},
}
_REQUIRED: dict[str, dict[str, Any]] = {  # the same where there is no default, or the port needs another value
    "encoder.enc_seq_packer": {"mask_mode": "causal_last"},
    "encoder.enc_to_latents": {"use_mup_readout": False},
    "decoder.dec_registers_posemb_module": {"posemb_type": "learnable_sum"},
    "decoder.dec_seq_packer": {"per_subseq_embs": True},
    "decoder.dec_transformer": {"adaLN_expansion": 2},
    "decoder.dec_to_patches": {"use_mup_readout": False},
}


def read_config(path: Path | None, checkpoint: Path) -> dict[str, Any]:
    """The tree in the JSON file `path`, else (None) in the header of `checkpoint`. Raises WeightsError."""
    for file in (path, checkpoint):
        if file is not None and (what := not_a_checkpoint(file)):
            raise WeightsError(f"{file}: {what}")
    if path is not None:
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise WeightsError(f"{path} can't be read as JSON: {error}") from error
    try:
        header = read_metadata(checkpoint)
    except Exception as error:  # safetensors' own error, which is no OSError
        raise WeightsError(f"{checkpoint} can't be read as a safetensors file: {error}") from error
    if "encoder" not in header:
        raise WeightsError(
            f"{checkpoint}: its header holds no configuration ({', '.join(header) or 'nothing'}), and there is no "
            "config.json next to it; put the hub's config.json there"
        )
    try:
        return {key: _literal(text) for key, text in header.items()}
    except (ValueError, SyntaxError) as error:
        raise WeightsError(f"{checkpoint}: the configuration in its header is no Python literal: {error}") from error


def _literal(text: str) -> Any:
    return ast.literal_eval(text) if text.startswith(("{", "[")) else text  # _target_ and format are plain words


def vae_repo(config: Mapping[str, Any]) -> str | None:
    """The hub repository that the configuration names for its VAE's scaling factor; None where it needs none."""
    vae = _mapping(config.get("vae"))
    return None if vae.get("scaling_factor") else vae.get("hf_hub_path")


def read_scaling_factor(path: Path) -> float:
    """That in a VAE's config.json, as diffusers writes it. Raises WeightsError."""
    try:
        return float(json.loads(path.read_text(encoding="utf-8"))["scaling_factor"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path} states no scaling_factor of a VAE: {error!r}") from error


def parse_config(
    config: Mapping[str, Any], vae_base: VAEConfig | None = None, vae_scaling_factor: float | None = None
) -> FlexTokConfig:
    """The sizes in a checkpoint's configuration.

    vae_base: what the published code fixes of the VAE, of which the configuration says only channels and scaling
    factor; None for a model that works on latents alone. vae_scaling_factor: taken instead of the one in it.

    Raises CheckpointMismatch listing every difference from what this port computes: modules, their classes, their
    settings, and sizes that do not agree with one another.
    """
    reader = _Reader(config)
    for half, modules in _CLASSES.items():
        reader.modules(half, modules)
    for module, settings in _FIXED.items():
        for key, value in settings.items():
            reader.same(module, key, value, default=value)
    for module, settings in _REQUIRED.items():
        for key, value in settings.items():
            reader.same(module, key, value)
    found = _sizes(reader)
    vae = None if vae_base is None else _vae(reader, vae_base, vae_scaling_factor)
    if reader.problems:
        raise CheckpointMismatch(
            f"the configuration is not that of a FlexTok as this port computes it: {'; '.join(reader.problems)}"
        )
    try:
        return FlexTokConfig(**found, vae=vae)
    except (TypeError, ValueError) as error:
        raise CheckpointMismatch(f"the configuration is none of a FlexTok: {error}") from error


class _Reader:
    """Looks settings up by "half.module" and name, and notes in `problems` what is missing or different."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self.problems: list[str] = []

    def module(self, path: str) -> Mapping[str, Any]:
        half, name = path.split(".")
        return _mapping(_mapping(_mapping(self.config.get(half)).get("module_dict")).get(name))

    def modules(self, half: str, expected: Mapping[str, str]) -> None:
        """Note modules of a half that are missing, unknown, or of another class."""
        given = _mapping(_mapping(self.config.get(half)).get("module_dict"))
        self.problems += [f"{half} has no module {name}" for name in expected if name not in given]
        for name, settings in given.items():
            seen = str(_mapping(settings).get("_target_", "")).rpartition(".")[2]
            if name in expected and seen != expected[name]:
                self.problems.append(f"{half}.{name} is a {seen or 'nameless class'}, expected {expected[name]}")
            elif name not in expected and not name.startswith(REPA):
                self.problems.append(f"{half} has the unknown module {name} ({seen})")

    def get(self, path: str, key: str, default: Any = _ABSENT) -> Any:
        """A setting (lists as tuples); None, and noted, where there is neither it nor a default."""
        value = self.module(path).get(key, default)
        if value is _ABSENT:
            if self.module(path):  # a module that is missing was noted already
                self.problems.append(f"{path} has no {key}")
            return None
        return tuple(value) if isinstance(value, list) else value

    def same(self, path: str, key: str, expected: Any, default: Any = _ABSENT) -> None:
        """Note a setting that is not `expected`."""
        count = len(self.problems)
        seen = self.get(path, key, default)
        if seen != expected and len(self.problems) == count and self.module(path):
            self.problems.append(f"{path}.{key} is {seen!r}, expected {expected!r}")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _sizes(reader: _Reader) -> dict[str, Any]:
    """The fields of a FlexTokConfig but its VAE; sizes that are said in several places are compared."""
    trunks = {}
    for half, name in (("encoder", "enc_transformer"), ("decoder", "dec_transformer")):
        path = f"{half}.{name}"
        trunks[half] = {
            "dim": reader.get(path, "dim"),
            "depth": reader.get(path, "depth"),
            "head_dim": reader.get(path, "head_dim", 64),
            "mlp_ratio": reader.get(path, "mlp_ratio", 4.0),
        }
        for module in _CLASSES[half]:
            if "dim" in reader.module(f"{half}.{module}"):
                reader.same(f"{half}.{module}", "dim", trunks[half]["dim"])
    levels = tuple(_mapping(reader.config.get("regularizer")).get("levels", ()))
    if not levels:
        reader.problems.append("regularizer: levels is missing")
    registers = reader.get("encoder.enc_register_module", "n_max")
    channels = reader.get("encoder.enc_patch_emb", "channels_in")
    grid = _square(reader, "encoder.enc_posemb_module", "max_sizes")
    patch = _square(reader, "encoder.enc_patch_emb", "patch_sizes")
    if reader.get("encoder.enc_register_module", "n_eval", None) is not None:  # published: n_eval or n_max
        reader.same("encoder.enc_register_module", "n_eval", registers)
    reader.same("encoder.enc_to_latents", "dim_out", len(levels))
    reader.same("decoder.dec_from_latents", "dim_in", len(levels))
    reader.same("decoder.dec_registers_posemb_module", "max_sizes", (registers,))
    reader.same("decoder.dec_noise_patch_emb", "channels_in", channels)
    reader.same("decoder.dec_noise_patch_emb", "patch_sizes", (patch, patch))
    reader.same("decoder.dec_patches_posemb_module", "max_sizes", (grid, grid))
    reader.same("decoder.dec_to_patches", "channels_out", channels)
    reader.same("decoder.dec_to_patches", "patch_sizes", (patch, patch))
    return {
        **trunks,
        "registers": registers,
        "levels": levels,
        "latent_channels": channels,
        "patch_size": patch,
        "grid": grid,
        "frequencies": reader.get("decoder.dec_time_embedder", "frequency_embedding_size", 256),
        "max_timestep": reader.get("decoder.dec_time_embedder", "max_timestep", 1000.0),
    }


def _square(reader: _Reader, path: str, key: str) -> int | None:
    sizes = reader.get(path, key)
    if sizes is None:
        return None
    if len(sizes) != 2 or sizes[0] != sizes[1]:
        reader.problems.append(f"{path}.{key} is {list(sizes)}, expected two equal numbers")
    return sizes[0]


def _vae(reader: _Reader, base: VAEConfig, scaling_factor: float | None) -> VAEConfig:
    """`base` with what the configuration says; 16 latent channels where it does not (the published default)."""
    vae = _mapping(reader.config.get("vae"))
    factor = scaling_factor or vae.get("scaling_factor")
    if not factor:
        where = f"; that of {vae['hf_hub_path']} applies, see its config.json" if vae.get("hf_hub_path") else ""
        reader.problems.append(f"vae has no scaling_factor{where}: give it by options.NAME.vae_scaling_factor=NUMBER")
        return base
    return replace(base, latent_channels=vae.get("latent_channels") or 16, scaling_factor=float(factor))
