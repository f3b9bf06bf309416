"""Runs golden cases of TiTok: everything is read from the case, every stored output is checked.

Each part is fed what is stored, so that one that differs does not spoil the next: the image to the encoder, the
stored codes to the decoder, the stored ids to `reconstruction_from_ids`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from baselines.tokenizers.titok.model import TiTok, TiTokConfig
from baselines.tokenizers.titok.state_dict import TiTokStateDict
from lactok.conformance import CaseError, CaseFolder, CheckLine, compare_floats, compare_ids, failure
from lactok.state_dict import meta_skeleton

_INPUTS = ("image", "image_uint8")

_CUTS: dict[str, Callable[[Tensor], Tensor]] = {  # how a stored tensor was cut down, from the full one
    "decoder_logits": lambda x: x[:, ::16],
    "decoder_logits_strided": lambda x: x[:, ::16, ::2, ::2],
    "soft_codes_strided": lambda x: x[:, ::8],
    "reconstruction_strided": lambda x: x[:, :, ::4, ::4],
    "reconstruction_from_ids_strided": lambda x: x[:, :, ::4, ::4],
    "reconstruction_mean_std": lambda x: _mean_std(x),
    "reconstruction_from_ids_mean_std": lambda x: _mean_std(x),
}

_FIXED = {"finetune_decoder": True, "quantize_mode": "vq"}
"""Published settings that this port does not vary, by the value that TiTok-S-128 has."""


def _mean_std(images: Tensor) -> Tensor:
    """(2, 3): mean and unbiased standard deviation of each channel."""
    channels = images.double().transpose(0, 1).flatten(1)
    return torch.stack([channels.mean(1), channels.std(1)])


def case_config(case: CaseFolder) -> TiTokConfig:
    """The architecture in a case's `config.json`, which is nested as published.

    Raises CaseError for a setting that is missing, or that this port does not have.
    """
    try:
        published = case.setting("model")["vq_model"]
        image_size = case.setting("dataset")["preprocessing"]["crop_size"]
    except (KeyError, TypeError) as error:
        raise CaseError(f"{case.path / 'config.json'} lacks the published nesting: {error!r}") from error
    fields = {f.name for f in dataclasses.fields(TiTokConfig)}
    for key, value in published.items():
        if key not in fields and (key not in _FIXED or value != _FIXED[key]):
            raise CaseError(
                f"{case.path / 'config.json'}: model.vq_model.{key} is {value!r}, which this port does not have"
            )
    return TiTokConfig(image_size=image_size, **{k: v for k, v in published.items() if k in fields})


def case_weights(case: CaseFolder) -> dict[str, Tensor]:
    """Seeded weights under the official names, those whose name ends as `scale_after_seeding` says multiplied."""
    state = case.seeded(case.manifest(), case.setting("seed"))
    for ending, factor in case.config.get("scale_after_seeding", {}).items():
        for name in state:
            if name.endswith(ending):
                state[name] *= factor
    return state


@torch.no_grad()
def run(case: CaseFolder) -> Iterator[CheckLine]:
    """Every stored output of a `titok` case, one line each. Raises CaseError for a case that is incomplete."""
    if case.path.suffix == ".jsonl":
        raise CaseError(f"{case.path}: titok has no .jsonl cases")
    model = TiTokStateDict().load(meta_skeleton(TiTok, case_config(case)), case_weights(case)).eval().to(case.device)
    outputs = set(case.names) - set(_INPUTS)
    for make in (_encode, _decode, _decode_ids):
        full = make(case, model, outputs)
        for name in [n for n in case.names if n in outputs and _base(n) in full]:
            outputs.remove(name)
            yield _compare(name, full[_base(name)], case[name])
    for name in sorted(outputs):
        yield failure(name, CaseError("stored, but no check of this port knows what it is"))


def _base(name: str) -> str:
    """What a stored tensor is, without how it was cut down ("reconstruction_strided": "reconstruction")."""
    return name.removesuffix("_strided").removesuffix("_mean_std")


def _compare(name: str, full: Tensor, want: Tensor) -> CheckLine:
    if name == "token_ids":
        return compare_ids(name, full, want)
    if name != _base(name) and name not in _CUTS:
        return failure(name, CaseError(f"this port does not know how {_base(name)} was cut down"))
    return compare_floats(name, _CUTS.get(name, lambda x: x)(full), want)


def _encode(case: CaseFolder, model: TiTok, wanted: set[str]) -> dict[str, Tensor]:
    if not wanted & {"latent_z", "token_ids", "quantized"}:
        return {}
    images = case["image_uint8"].float() / 255 if "image_uint8" in case else case["image"]
    encoded = model.encode(images)
    return {"latent_z": encoded.pre_quant, "token_ids": encoded.ids, "quantized": encoded.quantized}


def _decode(case: CaseFolder, model: TiTok, wanted: set[str]) -> dict[str, Tensor]:
    bases = {_base(name) for name in wanted}
    if not bases & {"decoder_logits", "soft_codes", "reconstruction"}:
        return {}
    logits = model.decode_logits(case["quantized"])
    codes = model.soft_codes(logits)
    full = {"decoder_logits": logits, "soft_codes": codes}
    return full | ({"reconstruction": model.paint(codes)} if "reconstruction" in bases else {})


def _decode_ids(case: CaseFolder, model: TiTok, wanted: set[str]) -> dict[str, Tensor]:
    if "reconstruction_from_ids" not in {_base(name) for name in wanted}:
        return {}
    return {"reconstruction_from_ids": model.decode_ids(case["token_ids"])}
