"""Runs golden cases of LlamaGen's VQ tokenizer: everything is read from the case, every stored output is checked.

A stored name is [s<size>_] + what it is + how it was cut down ("s256_recon_avgpool8"). The decoder is checked on the
stored ids, so that an id that is a matter of rounding (see the stored gaps) does not spoil the images. LlamaGen's own
crop and rounding to uint8, which the cases hold, are here too; the benchmark resizes and rounds by its protocol
(evals/tasks/protocol.py). Facts from the published dataset/augmentation.py and
tokenizer/tokenizer_image/reconstruction_vq_ddp.py.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from lactok.conformance import (
    GAP_MARGIN,
    CaseError,
    CaseFolder,
    CheckLine,
    compare_floats,
    compare_ids,
    failure,
    recorded,
)
from lactok.models.vq import VQConfig, VQModel
from lactok.models.vq_state_dict import VQStateDict
from lactok.state_dict import meta_skeleton

_RESTS: tuple[tuple[str, Callable[..., Tensor]], ...] = (  # how a stored tensor was cut down, from the full one
    (r"_ch(\d+)_(\d+)", lambda x, low, high: x[:, low:high]),
    (r"_avgpool(\d+)", lambda x, side: F.avg_pool2d(x, side)),
    (r"_crop_y(\d+)_x(\d+)_(\d+)", lambda x, y, left, side: x[..., y : y + side, left : left + side]),
    (r"_corner_(\d+)", lambda x, side: x[..., :side, :side]),
    (r"_channel_mean", lambda x: x.double().mean((0, 2, 3))),
    (r"_channel_std", lambda x: x.double().transpose(0, 1).flatten(1).std(1)),
    (r"_stats_mean_std_min_max", lambda x: _stats(x, x.min(), x.max())),
    (r"_stats", lambda x: _stats(x, x[0, 0, 0, 0], x[-1, -1, -1, -1])),
    (r"_uint8_nhwc", lambda x: to_uint8(x).permute(0, 2, 3, 1)),
    (r"", lambda x: x),
)
_ENCODER = re.compile(r"enc_down\d+|enc_mid_attn|enc_out|pre_quant|quant_straight_through|indices|input")
_DECODER = re.compile(r"codebook_entry|post_quant|dec_mid_attn|dec_up\d+|recon")


def _stats(x: Tensor, *rest: Tensor) -> Tensor:
    x = x.double()
    return torch.stack([x.mean(), x.std(), *(value.double() for value in rest)])


@dataclass(frozen=True)
class _Stored:
    """One stored output: its full name, what it is ("recon"), and how it follows from the full tensor."""

    name: str
    base: str
    cut: Callable[[Tensor], Tensor]

    @staticmethod
    def parse(name: str, prefix: str, bases: re.Pattern[str]) -> _Stored | None:
        """None when `name` is not `prefix` + one of `bases` + a known way of cutting down."""
        if not name.startswith(prefix):
            return None
        for pattern, function in _RESTS:
            if match := re.fullmatch(rf"({bases.pattern}){pattern}", name[len(prefix) :]):
                return _Stored(name, match[1], _with_numbers(function, [int(group) for group in match.groups()[1:]]))
        return None


def _with_numbers(function: Callable[..., Tensor], numbers: list[int]) -> Callable[[Tensor], Tensor]:
    return lambda x: function(x, *numbers)


@torch.no_grad()
def run(case: CaseFolder) -> Iterator[CheckLine]:
    """Every stored output of a `llamagen_vq` case, one line each. Raises CaseError for a case that is incomplete."""
    if case.path.suffix == ".jsonl":
        raise CaseError(f"{case.path}: llamagen_vq has no .jsonl cases")
    fields = {f.name for f in dataclasses.fields(VQConfig)}
    config = VQConfig(**{key: value for key, value in case.config.items() if key in fields})
    model = VQStateDict().load(meta_skeleton(VQModel, config), case.seeded_weights()).eval().to(case.device)
    checked = {name for name in case.names if name in ("input", "random_tokens") or name.endswith("_gap")}
    for line in _lines(case, model):
        checked.add(line.tensor)
        if match := re.fullmatch(r"(preprocess\d+_)out", line.tensor):
            checked.add(f"{match[1]}in")
        yield line
    for name in case.names:
        if name not in checked:
            yield failure(name, CaseError("stored, but no check of this port knows what it is"))


def _lines(case: CaseFolder, model: VQModel) -> Iterator[CheckLine]:
    if "input" in case:
        yield from _encode_lines(case, model, "", lambda: case["input"])
        yield from _decode_lines(case, model, "", "indices")
    for size in case.config.get("sizes", []):
        prefix = f"s{size}_"
        yield from _encode_lines(case, model, prefix, partial(_input_by_rule, case, model, size))
        yield from _decode_lines(case, model, prefix, f"{prefix}indices")
    yield from _decode_lines(case, model, "random_tokens_", "random_tokens")
    yield from _train_lines(case, model)
    yield from _no_l2_lines(case, model)
    yield from _preprocess_lines(case)


def _input_by_rule(case: CaseFolder, model: VQModel, size: int) -> Tensor:
    """Coarse noise, one value for each id's area, plus fine noise (`input_rule` of the full case)."""
    cell = model.downsample_factor
    coarse = np.random.RandomState(case.setting("input_seed_lo")).uniform(-1, 1, (1, 3, size // cell, size // cell))
    fine = np.random.RandomState(case.setting("input_seed_hi")).uniform(-0.25, 0.25, (1, 3, size, size))
    images = np.clip(coarse.repeat(cell, 2).repeat(cell, 3) + fine, -1, 1).astype(np.float32)
    return torch.from_numpy(images).to(case.device)


def _encode_lines(
    case: CaseFolder, model: VQModel, prefix: str, make_input: Callable[[], Tensor]
) -> Iterator[CheckLine]:
    stored = [s for name in case.names if name != "input" and (s := _Stored.parse(name, prefix, _ENCODER))]
    if not stored:
        return
    images = make_input()
    modules: dict[str, nn.Module] = {"enc_out": model.encoder, "enc_mid_attn": model.encoder.mid_block.attentions[0]}
    for level, block in enumerate(model.encoder.down_blocks):
        if block.downsamplers:
            modules[f"enc_down{level}"] = block.downsamplers[0]
    with recorded(modules) as full:
        encoded = model.encode(images)
    full |= {"input": images, "pre_quant": encoded.pre_quant, "indices": encoded.ids}
    full["quant_straight_through"] = encoded.quantized
    ids, gap = f"{prefix}indices", f"{prefix}indices_gap"
    if ids in case and gap in case and case[ids].shape == encoded.ids.shape:
        flipped = ((case[ids] != encoded.ids) & (case[gap] < GAP_MARGIN)).unsqueeze(1)
        full["quant_straight_through"] = torch.where(flipped, model.lookup(case[ids]), encoded.quantized)
    yield from _compare(case, stored, full, gap)


def _decode_lines(case: CaseFolder, model: VQModel, prefix: str, ids: str) -> Iterator[CheckLine]:
    stored = [s for name in case.names if (s := _Stored.parse(name, prefix, _DECODER))]
    if not stored:
        return
    modules: dict[str, nn.Module] = {
        "post_quant": model.post_quant_conv,
        "dec_mid_attn": model.decoder.mid_block.attentions[0],
    }
    for level, block in enumerate(model.decoder.up_blocks):
        if block.upsamplers:
            modules[f"dec_up{level}"] = block.upsamplers[0]
    embeddings = model.lookup(case[ids])
    with recorded(modules) as full:
        reconstruction = model.decode(embeddings)
    full |= {"codebook_entry": embeddings, "recon": reconstruction}
    yield from _compare(case, stored, full, "")


def _compare(case: CaseFolder, stored: list[_Stored], full: dict[str, Tensor], gap: str) -> Iterator[CheckLine]:
    """One line for each stored tensor; one whose part this model does not have is a failure."""
    for item in stored:
        if item.base not in full:
            yield failure(item.name, CaseError(f"the configured model has no {item.base}"))
            continue
        got, want = item.cut(full[item.base]), case[item.name]
        if item.base == "indices":
            yield compare_ids(item.name, got, want, case.get(gap))
        elif want.dtype == torch.uint8:
            yield compare_floats(item.name, got, want, rel=0.0, atol=1.0)
        else:
            yield compare_floats(item.name, got, want)


def _vectors(case: CaseFolder, model: VQModel) -> Tensor:
    stored = case.get("pre_quant")
    return model.pre_quant(case["input"]) if stored is None else stored


def _train_lines(case: CaseFolder, model: VQModel) -> Iterator[CheckLine]:
    """The quantizer's losses in train mode, the record of used codes being zero before."""
    if not any(name.startswith("train_") for name in case.names):
        return
    quantizer = model.quantizer
    if quantizer.track_usage:
        quantizer.codebook_used.zero_()
    quantizer.train()
    losses = quantizer.losses(_vectors(case, model), case.get("indices"))
    quantizer.eval()
    values = {
        "train_vq_loss": losses.codebook,
        "train_commit_loss": losses.commitment,
        "train_entropy_loss": losses.entropy,
        "train_codebook_usage": torch.tensor(losses.usage or 0.0, dtype=torch.float64),
    }
    for name, value in values.items():
        if name in case:
            yield compare_floats(name, value.reshape(case[name].shape), case[name])


def _no_l2_lines(case: CaseFolder, model: VQModel) -> Iterator[CheckLine]:
    """The same quantizer with its l2-norm off."""
    if not any(name.startswith("no_l2_") for name in case.names):
        return
    quantizer = model.quantizer
    quantizer.l2_norm = False
    ids = quantizer.search(_vectors(case, model))
    entry = quantizer.lookup(case.get("no_l2_indices", ids))
    quantizer.l2_norm = model.config.codebook_l2_norm
    if "no_l2_indices" in case:
        yield compare_ids("no_l2_indices", ids, case["no_l2_indices"], case.get("no_l2_indices_gap"))
    if "no_l2_codebook_entry" in case:
        yield compare_floats("no_l2_codebook_entry", entry, case["no_l2_codebook_entry"])


def _preprocess_lines(case: CaseFolder) -> Iterator[CheckLine]:
    for name in case.names:
        if match := re.fullmatch(r"(preprocess\d+_)out", name):
            image = Image.fromarray(case[f"{match[1]}in"].cpu().numpy())
            got = torch.from_numpy(np.array(centre_crop(image, case[name].shape[0])))
            yield compare_floats(name, got, case[name], rel=0.0)


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """The central size x size square of `image` after its shorter side was brought to `size`.

    Both sides are halved (BOX) while the shorter is at least twice the target, then scaled by BICUBIC.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    sides = (round(image.width * scale), round(image.height * scale))
    image = image.resize(sides, Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def to_uint8(images: Tensor) -> Tensor:
    """Images around [-1, 1] to uint8 of the same shape: clamp(127.5 x + 128, 0, 255), truncated."""
    return (127.5 * images + 128).clamp(0, 255).byte()
