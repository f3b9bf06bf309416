"""Names of the published `LaCTok-T.pth` (hub OPPOer/LaCTok, flat) <-> those of `LacTok`.

Published: `encoder.`, `quantize.`, `quant_conv.` (LlamaGen's VQ names), `post_quant_conv.` (stored, never used),
`decoder.unet.` wrapped by peft (`base_model.model.`, un-merged LoRA), `decoder.controlnet.`, `vae.`. Within the last
three the names are diffusers' own, as here. The same file without LoRA, its UNet's names plain, is the form in which a
decoder without LoRA, or with a merged one, is kept (`to_published`).
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

from torch import Tensor

from lactok.models.lactok import LacTok
from lactok.models.lora import A_WEIGHT, B_WEIGHT, BASE, LoRAConfig, merge
from lactok.models.vq_state_dict import VQStateDict
from lactok.state_dict import Shape, StateDictAdapter
from lactok.weights import require_entries

UNET = "decoder.unet."
PEFT = UNET + "base_model.model."
UNUSED = "post_quant_conv."
"""Entries of the VQ decoder's side, which the release keeps and never runs; they are checked and left out."""

_VQ = "vq."


class LacTokStateDict(StateDictAdapter[LacTok]):
    """A checkpoint wrapped by peft (of any version) with `lora`'s settings, or a plain one.

    `from_published` merges the LoRA and empties the state dict that it reads, so that 16 GB are not held twice.
    """

    model_name = "the configured LacTok without LoRA"

    def __init__(self, lora: LoRAConfig | None = None) -> None:
        self.lora, self._vq = lora or LoRAConfig(), VQStateDict()

    def published_name(self, name: str) -> str:
        """The published name where the UNet is plain."""
        return self._vq.published_name(name.removeprefix(_VQ)) if name.startswith(_VQ) else name

    def published_shape(self, name: str, shape: Shape) -> Shape:
        return self._vq.published_shape(name.removeprefix(_VQ), shape) if name.startswith(_VQ) else shape

    def join(self, name: str, shape: Shape, published: MutableMapping[str, Tensor]) -> Tensor:
        return published.pop(self.published_name(name)).reshape(shape)

    def wrapped_shapes(self, model: LacTok) -> dict[str, Shape]:
        """Names and shapes of a checkpoint whose UNet is wrapped by peft: 4498 for the released LaCTok-T."""
        shapes = {}
        for name, shape in self.published_shapes(model).items():
            if not name.startswith(UNET):
                shapes[name] = shape
                continue
            layer, _, leaf = name.removeprefix(UNET).rpartition(".")
            if not self.lora.covers(layer):
                shapes[f"{PEFT}{layer}.{leaf}"] = shape
                continue
            shapes[f"{PEFT}{layer}{BASE}{leaf}"] = shape
            if leaf == "weight":
                shapes[PEFT + layer + A_WEIGHT], shapes[PEFT + layer + B_WEIGHT] = self.lora.shapes(layer, shape)
        return shapes | _unused_shapes(model)

    def from_published(self, published: MutableMapping[str, Tensor], model: LacTok) -> dict[str, Tensor]:
        if is_wrapped(published):
            self._rename_old_base_layers(published)
            require_entries(published, self.wrapped_shapes(model), "the configured LacTok")
            merge(published, self.lora, PEFT)
            for name in [name for name in published if name.startswith(PEFT)]:
                published[UNET + name.removeprefix(PEFT)] = published.pop(name)
            for name in _unused_shapes(model):
                del published[name]
        return super().from_published(published, model)

    def _rename_old_base_layers(self, published: MutableMapping[str, Tensor]) -> None:
        """Rename, in place, the wrapped layers of an old peft, which says no `base_layer`."""
        for name in [n for n in published if n.startswith(PEFT) and BASE not in n and ".lora_" not in n]:
            layer, _, leaf = name.rpartition(".")
            if self.lora.covers(layer.removeprefix(PEFT)):
                published[f"{layer}{BASE}{leaf}"] = published.pop(name)

    def load_unmerged(self, model: LacTok, published: Mapping[str, Tensor]) -> LacTok:
        """Load a wrapped checkpoint into a `model` whose UNet was wrapped by `lora.add_lora`, to train the LoRA on.

        Raises lactok.weights.CheckpointMismatch as `from_published`.
        """
        ours = model.state_dict()
        peft = {n: n.replace(UNET, PEFT, 1) if n.startswith(UNET) else self.published_name(n) for n in ours}
        needed = {peft[name]: self.published_shape(name, tuple(tensor.shape)) for name, tensor in ours.items()}
        require_entries(published, needed | _unused_shapes(model), "the configured LacTok with LoRA")
        state = {name: published[peft[name]].reshape(tensor.shape).float() for name, tensor in ours.items()}
        model.load_state_dict(state, strict=True, assign=True)
        return model


def is_wrapped(state: Mapping[str, Tensor]) -> bool:
    """Whether the checkpoint's UNet is wrapped by peft, as the released one's is."""
    return any(name.startswith(PEFT) for name in state)


def _unused_shapes(model: LacTok) -> dict[str, Shape]:
    """Names and shapes of the entries that a wrapped checkpoint holds and `model` leaves out."""
    config = model.config.vq
    weight = (config.z_channels, config.codebook_embed_dim, 1, 1)
    return {UNUSED + "weight": weight, UNUSED + "bias": weight[:1]}
