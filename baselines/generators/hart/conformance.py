"""Runs golden cases of HART: everything is read from the case, every stored output is checked.

Ids that are drawn or found are compared; what follows is computed from the stored ones, so that one that is a matter of
rounding (see the stored gaps) does not spoil the next. Pixels are decoded from the stored latents.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from baselines.generators.golden import case_weights, require_known_names, truncated_uint8
from baselines.generators.hart.config import (
    Parsed,
    TokenizerConfig,
    TransformerConfig,
    listed,
    parse_tokenizer,
    parse_transformer,
)
from baselines.generators.hart.sampler import Context, Sampling, generate
from baselines.generators.hart.state_dict import HartStateDict, TokenizerStateDict, level_index
from baselines.generators.hart.tokenizer import HartTokenizer
from baselines.generators.hart.transformer import HartTransformer
from lactok.conformance import CaseError, CaseFolder, CheckLine, compare_floats, compare_ids, failure
from lactok.seeded import Manifest
from lactok.state_dict import meta_skeleton
from lactok.weights import CheckpointMismatch

_INPUTS = ("context", "context_mask", "context_position_ids", "image")
_SCALE = re.compile(r"scale(\d+)_(\w+)")
_CUTS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {  # what is stored of a scale: of what, and how it is cut
    "hidden_first3": ("hidden", lambda x: x[:, :3]),
    "hidden_last": ("hidden", lambda x: x[:, -1]),
    "logits_last_position": ("logits", lambda x: x[:, -1]),
    "guided_logits_first3": ("guided_logits", lambda x: x[:, :3]),
    "ids": ("ids", lambda x: x),
    "h": ("h", lambda x: x),
    "f_hat": ("f_hat", lambda x: x),
    "next_map": ("next_map", lambda x: x),
}
_FIRST = 8  # tokens that are stored of the diffusion's inner values


@torch.no_grad()
def run(case: CaseFolder) -> Iterator[CheckLine]:
    """Every stored output of a `hart` case, one line each. Raises CaseError for a case that is incomplete."""
    if case.path.suffix == ".jsonl":
        raise CaseError(f"{case.path}: hart has no .jsonl cases")
    parts = {"transformer": _transformer_lines, "tokenizer": _tokenizer_lines}
    part = case.setting("part")
    if part not in parts:
        raise CaseError(f"{case.path / 'config.json'}: part is {part!r}, expected {' or '.join(parts)}")
    checked = {name for name in case.names if name.endswith("_gap") or name in _INPUTS}
    for line in parts[part](case):
        checked.add(line.tensor)
        yield line
    for name in case.names:
        if name not in checked:
            yield failure(name, CaseError("stored, but no check of this port knows what it is"))


def _config(case: CaseFolder, key: str, parse: Callable[[Mapping[str, Any]], tuple[Any, Parsed]]) -> Any:
    """What `config.json` says under `key`. Raises CaseError for what this port does not know or have."""
    try:
        config, parsed = parse(case.setting(key))
    except CheckpointMismatch as error:
        raise CaseError(f"{case.path / 'config.json'}: {key}: {error}") from error
    if parsed.unknown:
        raise CaseError(f"{case.path / 'config.json'}: {key} has {listed(parsed.unknown)}, which this port has not")
    return config


def case_tokenizer(case: CaseFolder, manifest: Manifest) -> HartTokenizer:
    """The tokenizer with the case's weights."""
    config: TokenizerConfig = _config(case, "tokenizer", parse_tokenizer)
    model = meta_skeleton(HartTokenizer, config)
    return TokenizerStateDict(model).load(model, case_weights(case, manifest)).eval().to(case.device)


def case_transformer(case: CaseFolder, manifest: Manifest, tokenizer: TokenizerConfig) -> HartTransformer:
    """The transformer with the case's weights."""
    config: TransformerConfig = _config(case, "transformer", parse_transformer)

    def computed(name: str) -> Tensor | None:
        if name.endswith("zero_k_bias"):
            return torch.zeros(manifest[name].shape)
        return level_index(config) if name == "lvl_1L" else None

    model = meta_skeleton(HartTransformer, config, tokenizer.z_channels, tokenizer.vocab_size)
    return HartStateDict().load(model, case_weights(case, manifest, computed)).eval().to(case.device)


class CaseNoise:
    """Noise by the case's rule: numpy's legacy generators, seeded by `noise_seed_base` and what the noise is for."""

    def __init__(self, case: CaseFolder) -> None:
        self.base, self.device = int(case.setting("noise_seed_base")), case.device

    def ids(self, scale: int, shape: tuple[int, int, int]) -> Tensor:
        """See `Noise`."""
        return self._exponential(1000 + scale, shape)

    def smoothing(self, scale: int, shape: tuple[int, int, int]) -> Tensor:
        """See `Noise`."""
        return self._exponential(2000 + scale, shape)

    def start(self, shape: tuple[int, int, int]) -> Tensor:
        """See `Noise`."""
        return self._tensor(np.random.RandomState(self.base + 3000).standard_normal(shape))

    def step(self, step: int, shape: tuple[int, int, int]) -> Tensor:
        """See `Noise`; of both halves."""
        both = (2 * shape[0], *shape[1:])
        return self._tensor(np.random.RandomState(self.base + 4000 + step).standard_normal(both))

    def _exponential(self, place: int, shape: tuple[int, int, int]) -> Tensor:
        return self._tensor(np.random.RandomState(self.base + place).standard_exponential(shape))

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values.astype(np.float32)).to(self.device)


def _transformer_lines(case: CaseFolder) -> Iterator[CheckLine]:
    manifest, other = case.manifest(), case.manifest(case.config.get("tokenizer_manifest", "manifest_tokenizer.json"))
    require_known_names(case, manifest, other)
    if case.config.get("num_maskgit_iters", 1) != 1:
        raise CaseError(f"{case.path / 'config.json'}: num_maskgit_iters is not 1, which is all that this port has")
    tokenizer = case_tokenizer(case, other)
    model = case_transformer(case, manifest, tokenizer.config)
    context = Context(case["context"], case["context_mask"], case["context_position_ids"])
    sampling = Sampling(case.setting("cfg"), case.setting("more_smooth"), case.config.get("top_p", 0.0))
    seen: dict[str, list[Tensor]] = {}
    known = {int(match[1]): case[name] for name in case.names if (match := re.fullmatch(r"scale(\d+)_ids", name))}
    latents = generate(
        model,
        tokenizer,
        context,
        sampling,
        CaseNoise(case),
        lambda name, value: seen.setdefault(name, []).append(value),
        known,
    )
    gaps = case.get("ids_gap")
    for name in case.names:
        match = _SCALE.fullmatch(name)
        if match is None or match[2] not in _CUTS or f"scale{match[1]}_{_CUTS[match[2]][0]}" not in seen:
            continue
        what, cut = _CUTS[match[2]]
        got = cut(seen[f"scale{match[1]}_{what}"][0])
        if what == "ids":
            yield compare_ids(name, got, case[name], _gap(gaps, int(match[1]), case[name]))
        else:
            yield compare_floats(name, got, case[name])
    whole = {name: values[0] for name, values in seen.items() if name.startswith("diffusion_") and len(values) == 1}
    whole |= {
        "diffusion_x_cond_half": torch.stack([x[:_FIRST] for x in seen["diffusion_x"]]),
        "diffusion_net_out_first": seen["diffusion_net_out"][0][:_FIRST],
        "diffusion_net_out_last": seen["diffusion_net_out"][-1][:_FIRST],
        "f_hat_final": latents,
    }
    whole |= _pixels(case, tokenizer, latents)
    for name, got in whole.items():
        if name in case:
            rel, atol = (0.0, 1.0) if name.startswith("uint8_") else (1e-4, 0.0)
            yield compare_floats(name, got, case[name], rel, atol)


def _pixels(case: CaseFolder, tokenizer: HartTokenizer, latents: Tensor) -> dict[str, Tensor]:
    """The images of the stored latents, or of those computed where none are stored."""
    pixels = tokenizer.decode(case.get("f_hat_final", latents)).clamp(-1, 1)
    unit = (pixels + 1) / 2
    stored = case.get("image_unit", unit)
    return {
        "pixels_minus1_to_1": pixels,
        "image_unit": unit,
        "uint8_from_stored_image_unit_nhwc": truncated_uint8(stored),
    }


def _gap(gaps: Tensor | None, scale: int, ids: Tensor) -> Tensor | None:
    return None if gaps is None else gaps[scale].expand(ids.shape)


def _tokenizer_lines(case: CaseFolder) -> Iterator[CheckLine]:
    manifest = case.manifest() if case.own_manifest() else case.manifest("manifest_tokenizer.json")
    require_known_names(case, manifest)
    model = case_tokenizer(case, manifest)
    sides, gaps = model.config.v_patch_nums, case.get("ids_gap")
    latents = model.latents(case["image"])
    if "latent" in case:
        yield compare_floats("latent", latents, case["latent"])
        latents = case["latent"]
    names = [f"ids_scale{scale}" for scale in range(len(sides))]
    known = {scale: case[name] for scale, name in enumerate(names) if name in case}
    found = model.quantize(latents, known=known)
    for scale, name in enumerate(names):
        if name in case:
            yield compare_ids(name, found.ids[scale], case[name], _gap(gaps, scale, case[name]))
    ids = [known.get(scale, found.ids[scale]) for scale in range(len(sides))]
    # the last scale is each path's own; the ones before are found alike in all
    last, before = len(sides) - 1, {scale: one for scale, one in known.items() if scale < len(sides) - 1}

    def ids_last(name: str, hybrid_target: bool) -> Tensor:
        return model.quantize(latents, hybrid_target=hybrid_target, known=before).ids[last]

    for name, hybrid_target in (("hybrid_ids_last", True), ("forward_discrete_ids_last", False)):
        if name in case:
            yield compare_ids(name, ids_last(name, hybrid_target), case[name], _gap(gaps, last, case[name]))
    own = case.get("forward_discrete_ids_last")
    forward = model.quantize(latents, known=before if own is None else before | {last: own})
    target = model.quantize(latents, hybrid_target=True, known=before)
    sums = model.sums(ids, sides[-1])
    inputs = [
        F.interpolate(total, size=(side, side), mode="area").flatten(2).transpose(1, 2)
        for total, side in zip(sums, sides[1:])
    ]
    floats = {
        "reconstruction_var_discrete": model.decode(sums[-1]).clamp(-1, 1),
        "hybrid_residual_target": target.before_last.flatten(2).transpose(1, 2),
        "var_input": torch.cat(inputs, 1),
        "forward_discrete_f_hat": forward.sum,
        "forward_discrete": model.decode(forward.sum),
        "forward_discrete_loss": forward.loss[None],
        "forward_hybrid_f_hat": forward.sum + forward.rest,
        "forward_hybrid": model.decode(forward.sum + forward.rest),
        "forward_hybrid_loss": forward.loss[None],
        "decoded_from_latent": model.decode(latents).clamp(-1, 1),
    }
    for name, got in floats.items():
        if name in case:
            yield compare_floats(name, got, case[name])
