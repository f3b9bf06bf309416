"""Names of the published `LaCTok-T.pth` (hub OPPOer/LaCTok, flat) <-> those of `LacTok`.

Published: `encoder.`, `quantize.`, `quant_conv.` (LlamaGen's VQ names), `post_quant_conv.` (stored, never used),
`decoder.unet.` wrapped by peft (`base_model.model.`, un-merged adapters), `decoder.controlnet.`, `vae.`. Within the
last three the names are diffusers' own, as here. The same file without adapters, its UNet's names plain, is the form
in which a decoder without adapters, or with merged ones, is kept (`to_official`).
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

from torch import Tensor

from lactok.models.lactok import LacTok
from lactok.models.lora import A_WEIGHT, B_WEIGHT, BASE, LoRAConfig, merge
from lactok.models.vq_keymap import official_name as vq_name
from lactok.models.vq_keymap import official_shape as vq_shape
from lactok.weights import require_entries

UNET = "decoder.unet."
PEFT = UNET + "base_model.model."
UNUSED = "post_quant_conv."
"""Entries of the VQ decoder's side, which the release keeps and never runs; they are checked and left out."""

_VQ = "vq."


def official_name(name: str) -> str:
    """The published name of one entry of `LacTok.state_dict()`, where the UNet has no adapters."""
    return vq_name(name.removeprefix(_VQ)) if name.startswith(_VQ) else name


def _official_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return vq_shape(name.removeprefix(_VQ), shape) if name.startswith(_VQ) else shape


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A `LacTok` state dict under the published names and shapes, the UNet's plain."""
    return {official_name(name): t.reshape(_official_shape(name, tuple(t.shape))) for name, t in state.items()}


def unused_shapes(model: LacTok) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the entries that a published checkpoint holds and this model leaves out."""
    config = model.config.vq
    weight = (config.z_channels, config.codebook_embed_dim, 1, 1)
    return {UNUSED + "weight": weight, UNUSED + "bias": weight[:1]}


def plain_shapes(model: LacTok) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a checkpoint without adapters: those of `to_official`."""
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return {official_name(name): _official_shape(name, shape) for name, shape in ours.items()}


def published_shapes(model: LacTok, lora: LoRAConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a checkpoint whose UNet is wrapped by peft: 4498 for the released LaCTok-T."""
    shapes = {}
    for name, shape in plain_shapes(model).items():
        if not name.startswith(UNET):
            shapes[name] = shape
            continue
        layer, _, leaf = name.removeprefix(UNET).rpartition(".")
        if not lora.covers(layer):
            shapes[f"{PEFT}{layer}.{leaf}"] = shape
            continue
        shapes[f"{PEFT}{layer}{BASE}{leaf}"] = shape
        if leaf == "weight":
            shapes[PEFT + layer + A_WEIGHT], shapes[PEFT + layer + B_WEIGHT] = lora.shapes(shape)
    return shapes | unused_shapes(model)


def is_wrapped(state: Mapping[str, Tensor]) -> bool:
    """Whether the checkpoint's UNet is wrapped by peft, as the released one's is."""
    return any(name.startswith(PEFT) for name in state)


def with_base_layers(state: MutableMapping[str, Tensor], lora: LoRAConfig) -> None:
    """Give the wrapped layers of a checkpoint by an old peft, which says no `base_layer`, today's names, in place."""
    for name in [name for name in state if name.startswith(PEFT) and BASE not in name and ".lora_" not in name]:
        layer, _, leaf = name.rpartition(".")
        if lora.covers(layer.removeprefix(PEFT)):
            state[f"{layer}{BASE}{leaf}"] = state.pop(name)


def from_official(state: MutableMapping[str, Tensor], model: LacTok, lora: LoRAConfig) -> dict[str, Tensor]:
    """A published state dict under the names of `model`, float32, adapters merged; `model` may be on the meta device.

    Takes a checkpoint wrapped by peft (of any version), or a plain one. Empties `state` as it goes, so that 16 GB are
    not held twice. Raises lactok.weights.CheckpointMismatch listing what is missing, unexpected, or of another shape.
    """
    if is_wrapped(state):
        with_base_layers(state, lora)
        require_entries(state, published_shapes(model, lora), "the configured LacTok")
        merge(state, lora.scale)
        for name in [name for name in state if name.startswith(PEFT)]:
            state[UNET + name.removeprefix(PEFT)] = state.pop(name)
        for name in unused_shapes(model):
            del state[name]
    else:
        require_entries(state, plain_shapes(model), "the configured LacTok without adapters")
    ours = model.state_dict()
    return {name: state.pop(official_name(name)).reshape(tensor.shape).float() for name, tensor in ours.items()}


def load_official(model: LacTok, state: MutableMapping[str, Tensor], lora: LoRAConfig | None = None) -> LacTok:
    """Give `model` the weights of a published state dict (strictly); returns it, off the meta device.

    Empties `state`. Raises lactok.weights.CheckpointMismatch as `from_official`.
    """
    model.load_state_dict(from_official(state, model, lora or LoRAConfig()), strict=True, assign=True)
    return model


def load_unmerged(model: LacTok, state: Mapping[str, Tensor]) -> LacTok:
    """Give a `model` whose UNet was wrapped by `lora.add_lora` a published checkpoint's tensors, adapters apart.

    To train them on. Raises lactok.weights.CheckpointMismatch as `from_official`.
    """
    unused = unused_shapes(model)
    peft = {
        name: name.replace(UNET, PEFT, 1) if name.startswith(UNET) else official_name(name)
        for name in model.state_dict()
    }
    want = {peft[name]: _official_shape(name, tuple(t.shape)) for name, t in model.state_dict().items()} | unused
    require_entries(state, want, "the configured LacTok with adapters")
    ours = {name: state[peft[name]].reshape(t.shape).float() for name, t in model.state_dict().items()}
    model.load_state_dict(ours, strict=True, assign=True)
    return model
