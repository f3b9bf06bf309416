"""The published LoRAs that cut SDXL's UNet to few steps: Hyper-SD's (LacTok-H) and TLCM's (LacTok-T).

Each belongs to one sampler (lactok/models/samplers.py); they are not interchangeable.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lactok.models.lora import LoRAConfig, add_to_weights
from lactok.models.samplers import FIRST_TIMESTEP, tlcm_timesteps
from lactok.weights import (
    CheckpointMismatch,
    HubWeights,
    LocalWeights,
    WeightsError,
    WeightsSource,
    load_state_dict,
)

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

_OTHERWISE = "name a local file by options.NAME.accelerator=PATH"

HYPERSD = HubWeights(
    "ByteDance/Hyper-SD",
    "Hyper-SDXL-1step-lora.safetensors",
    "07822d9cde7a6c34b8f35c169a87a9a2885fd929",  # the latest commit that a stored page of the hub shows
    otherwise=_OTHERWISE,
)
"""The one-step "unified" LoRA: one NFE at t = 999 from pure noise. (The repository's full UNet wants t = 800.)"""

TLCM = HubWeights("OPPOer/TLCMSDXL", "adapter_model.safetensors", otherwise=_OTHERWISE)
"""A peft adapter of rank 64; for NFE 1 to 7 on TLCM's grid.

It left OPPOer/TLCM, whose revision 2512d8cbf4f2c1f44089c0168e0cc77b6613811d held it in SDXL_LoRA/. Its present place is
known by the first digits of a commit alone (9534d1f), which the hub's downloads don't take; hence no revision.
"""

TLCM_CONFIG = HubWeights("OPPOer/TLCMSDXL", "lora_model_adapter_config.json", otherwise=_OTHERWISE)
"""Its settings: rank and alpha are read from there."""

_CONFIG_NAMES = (TLCM_CONFIG.filename, "adapter_config.json")
"""Of the settings next to a local LoRA: the published name, and peft's own (as older copies have it)."""

_PEFT_NAME = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")


FEW_STEP_LORAS = ("hypersd", "tlcm")


def tlcm_sources(path: str | None = None) -> tuple[WeightsSource, WeightsSource]:
    """TLCM's LoRA and its settings: the hub's, or the local file and the settings next to it."""
    if path is None:
        return TLCM, TLCM_CONFIG
    folder = Path(path).expanduser().parent
    settings = next((folder / name for name in _CONFIG_NAMES if (folder / name).is_file()), folder / _CONFIG_NAMES[0])
    otherwise = f"put the LoRA's settings there, as {' or '.join(_CONFIG_NAMES)}"
    return LocalWeights(path), LocalWeights(str(settings), otherwise=otherwise)


def require_few_step_lora(name: str | None) -> str:
    """The name. Raises ValueError unless it is a few-step LoRA's."""
    if name is None or name not in FEW_STEP_LORAS:
        seen = "none is named" if name is None else f"accelerator={name}"
        raise ValueError(f"{seen}: expected accelerator={' or accelerator='.join(FEW_STEP_LORAS)}")
    return name


def evaluated_timesteps(name: str, nfe: int) -> tuple[int, ...]:
    """(999,) for hypersd; for tlcm those of its published grid. Raises ValueError for another number."""
    return (FIRST_TIMESTEP,) if name == "hypersd" else tlcm_timesteps(nfe)


@torch.no_grad()
def merge_hypersd(unet: UNet2DConditionModel, path: Path) -> None:
    """Merge a LoRA file for SDXL in any format that diffusers reads (kohya's, its own) into `unet`, at scale 1.

    Adapters of text encoders in it go unused: no text is given. Raises WeightsError for another kind of file, and for
    one with layers that `unet` does not have.
    """
    from diffusers.loaders import StableDiffusionXLLoraLoaderMixin as SDXLLoader
    from diffusers.utils import convert_unet_state_dict_to_peft
    from peft.tuners.tuners_utils import BaseTunerLayer

    state = load_state_dict(path)
    try:
        state, alphas = SDXLLoader.lora_state_dict(state, unet_config=unet.config)
    except (ValueError, KeyError, IndexError, AttributeError) as error:
        raise WeightsError(f"{path} is no LoRA that diffusers knows: {' '.join(str(error).split())}") from error
    names = {name.removeprefix("unet."): tensor for name, tensor in state.items() if name.startswith("unet.")}
    layers = {name.split(".lora_")[0] for name in convert_unet_state_dict_to_peft(names)}
    have = dict(unet.named_modules())
    if not layers or any(layer not in have for layer in layers):
        unexpected = sorted(layers - have.keys())
        what = f"{len(unexpected)} unexpected layers: {', '.join(unexpected[:3])}" if layers else "it has no UNet layer"
        raise CheckpointMismatch(f"{path} is no LoRA of this UNet: {what}")
    unet.load_lora_adapter(state, prefix="unet", network_alphas=alphas)
    wrapped = sum(isinstance(module, BaseTunerLayer) for module in unet.modules())
    unet.fuse_lora()
    unet.unload_lora()
    if wrapped != len(layers):
        raise CheckpointMismatch(f"{path}: diffusers took {wrapped} of its {len(layers)} layers")


def merge_tlcm(unet: UNet2DConditionModel, path: Path, config_path: Path) -> None:
    """Merge a peft adapter, with the settings in its adapter_config.json, into `unet`.

    Raises WeightsError for something else than a LoRA's pairs of matrices, and for layers that `unet` does not have.
    """
    lora = _peft_settings(config_path)
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in load_state_dict(path).items():
        if not (match := _PEFT_NAME.fullmatch(name)):
            raise CheckpointMismatch(f"{path}: {name} is no weight of a LoRA adapter of peft")
        pairs.setdefault(match[1], {})[match[2]] = tensor
    if halves := [layer for layer, pair in pairs.items() if len(pair) != 2]:
        raise CheckpointMismatch(f"{path}: {len(halves)} layers have one of two matrices: {', '.join(halves[:3])}")
    try:
        add_to_weights(unet, {layer: (pair["A"], pair["B"]) for layer, pair in pairs.items()}, lora)
    except ValueError as error:
        raise CheckpointMismatch(f"{path} is no LoRA of this UNet: {error}") from error


def _peft_settings(path: Path) -> LoRAConfig:
    """Ranks, alphas and targets of an adapter_config.json. Raises WeightsError for another kind of adapter."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if config.get("use_rslora") or config.get("use_dora"):
            raise WeightsError(f"{path}: a variant of LoRA (rsLoRA or DoRA), expected the plain one")
        patterns = (dict(config.get(name) or {}) for name in ("rank_pattern", "alpha_pattern"))
        return LoRAConfig(config["r"], config["lora_alpha"], tuple(config["target_modules"]), *patterns)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path} is no adapter_config.json of peft: {error!r}") from error
