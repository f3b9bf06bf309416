"""Runs golden cases of SEED-2: everything is read from the case, every stored output is checked.

A stored `[prefix]token_ids` is followed to `[prefix]query_output_up` and `[prefix]image_embeds`, so that an id that
differs does not spoil what comes after. The painter's conditioning is a file of tensors beside the model's cases.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from baselines.tokenizers.seedtok.model import QFormerConfig, SeedConfig, SeedModel, ViTConfig, normalise
from baselines.tokenizers.seedtok.state_dict import VIT_PREFIX, SeedStateDict
from baselines.tokenizers.seedtok.unclip import class_labels
from lactok.conformance import CaseError, CaseFolder, CheckLine, compare_floats, compare_ids, failure
from lactok.state_dict import meta_skeleton

CONDITIONING = "unclip_conditioning.safetensors"
VIT_MANIFEST = "manifest_visual_encoder.json"

_FIXED = {"recon_s": True, "blocks_for_image": True, "use_qformer_image": False}
"""Published settings that this port does not vary, by the value of SEED-2."""

_SHAPES_NOTHING = {"max_position_embeddings"}
"""Published settings of parts that images do not use."""

_PICTURES = ("image_unit_range", "image_normalised")
_LABELS = re.compile(r"class_labels_noise_level_(\d+)")
_LABELS_FROM = ("normalizer_mean", "normalizer_std", "image_embeds", "noise")


def case_config(case: CaseFolder) -> SeedConfig:
    """The architecture in a case's `config.json`, which is nested as published.

    Raises CaseError for a setting that is missing, or that this port does not have.
    """
    for key, value in _FIXED.items():
        if case.config.get(key, value) != value:
            raise CaseError(
                f"{case.path / 'config.json'}: {key} is {case.config[key]!r}, which this port does not have"
            )
    named = ("vit", "qformer", "down_widths")  # the last is fixed in the published code
    plain = [f.name for f in dataclasses.fields(SeedConfig) if f.name not in named]
    return SeedConfig(
        vit=_section(case, "vit", ViTConfig),
        qformer=_section(case, "qformer", QFormerConfig),
        **{name: case.setting(name) for name in plain},
    )


def _section(case: CaseFolder, key: str, kind: Callable[..., Any]) -> Any:
    values = {name: value for name, value in case.setting(key).items() if name not in _SHAPES_NOTHING}
    try:
        return kind(**values)
    except TypeError as error:
        raise CaseError(f"{case.path / 'config.json'}: {key}: {error}") from error


def case_weights(case: CaseFolder) -> dict[str, Tensor]:
    """Seeded weights under the official names, each times the factor of its longest ending in `scale_after_seeding`.

    The ViT's names come from a manifest of their own where the first has none.
    """
    manifest = dict(case.manifest())
    if not any(name.startswith(VIT_PREFIX) for name in manifest):
        manifest |= case.manifest(VIT_MANIFEST)
    state = case.seeded(manifest, case.setting("seed"))
    factors = case.config.get("scale_after_seeding", {})
    for name in state:
        if endings := [ending for ending in factors if name.endswith(ending)]:
            state[name] *= factors[max(endings, key=len)]
    return state


@torch.no_grad()
def run(case: CaseFolder) -> Iterator[CheckLine]:
    """Every stored output of a `seed` case, and of the conditioning beside it, one line each.

    Raises CaseError for a case that is incomplete.
    """
    if case.path.suffix == ".jsonl":
        raise CaseError(f"{case.path}: seed has no .jsonl cases")
    given = {name for name in case.names if name in _PICTURES or name.endswith(("token_ids", "_gap"))}
    if any(_LABELS.fullmatch(name) for name in case.names):  # a case of the conditioning alone
        yield from conditioning_lines({name: case[name] for name in case.names})
        return
    model = SeedStateDict().load(meta_skeleton(SeedModel, case_config(case)), case_weights(case)).eval().to(case.device)
    checked = set()
    for line in (*_encode_lines(case, model), *_decode_lines(case, model)):
        checked.add(line.tensor)
        yield line
    for name in sorted(set(case.names) - given - checked):
        yield failure(name, CaseError("stored, but no check of this port knows what it is"))
    for folder in (case.path, case.path.absolute().parent):
        if (folder / CONDITIONING).is_file():
            yield from conditioning_lines(load_file(folder / CONDITIONING, device=str(case.device)))
            return


def _encode_lines(case: CaseFolder, model: SeedModel) -> Iterator[CheckLine]:
    """From the image to the ids; an image in [0, 1] is normalised here."""
    if not any(name in case for name in _PICTURES):
        return
    images = normalise(case["image_unit_range"]) if "image_unit_range" in case else case["image_normalised"]
    encoded = model.encode(images)
    full = {field.name: getattr(encoded, field.name) for field in dataclasses.fields(encoded)}
    if "image_unit_range" in case:
        full["image_normalised"] = images
    for name, tensor in full.items():
        if name in case:
            yield compare_floats(name, tensor, case[name])
    if "token_ids" in case:
        yield compare_ids("token_ids", encoded.ids, case["token_ids"], case.get("token_ids_gap"))


def _decode_lines(case: CaseFolder, model: SeedModel) -> Iterator[CheckLine]:
    for name in case.names:
        if name.endswith("token_ids"):
            prefix = name.removesuffix("token_ids")
            lifted = model.lift(case[name])
            for what, tensor in (("query_output_up", lifted), ("image_embeds", model.image_embeds(lifted))):
                if prefix + what in case:
                    yield compare_floats(prefix + what, tensor, case[prefix + what])


@torch.no_grad()
def conditioning_lines(tensors: Mapping[str, Tensor]) -> Iterator[CheckLine]:
    """The class labels at each stored noise level. Raises CaseError when what they are made from is not there."""
    if lacking := [name for name in _LABELS_FROM if name not in tensors]:
        raise CaseError(f"the conditioning lacks {', '.join(lacking)}; it has {', '.join(sorted(tensors))}")
    mean, std, embeds, noise = (tensors[name] for name in _LABELS_FROM)
    for name, want in sorted(tensors.items()):
        if match := _LABELS.fullmatch(name):
            yield compare_floats(name, class_labels(mean, std, embeds, noise, int(match[1])), want)
        elif name not in _LABELS_FROM:
            yield failure(name, CaseError("stored, but no check of this port knows what it is"))
