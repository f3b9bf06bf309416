"""Runs golden cases of FlexTok: everything is read from the case, every stored output is checked.

A case covers encoder, quantizer, decoder and sampler on latents; the VAE is diffusers' own. The decoder is checked on
the stored ids and inputs, so that one part that differs does not spoil the next. The full checkpoints' manifests that
lie in the folder above are loaded strictly on the meta device, one line each.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from baselines.tokenizers.flextok.checkpoint_config import parse_config
from baselines.tokenizers.flextok.config import FlexTokConfig, published
from baselines.tokenizers.flextok.model import FlexTok
from baselines.tokenizers.flextok.sampler import ProjectedGuidance, Sampling, projected_guidance
from baselines.tokenizers.flextok.state_dict import FlexTokStateDict
from baselines.tokenizers.flextok.transformer import sincos_positions
from lactok.conformance import (
    COMPRESSED,
    CaseError,
    CaseFolder,
    CheckLine,
    compare_floats,
    compare_ids,
    failure,
    read_manifest,
)
from lactok.state_dict import meta_skeleton
from lactok.weights import CheckpointMismatch

_INPUTS = ("latents", "noise", "noised_latents", "timesteps", "keep_k")
_POSITIONS = "posemb_module.posembs"
_MANIFEST = re.compile(r"manifest(?:_d(\d+)_d(\d+))?\.json(?:\.gz)?")
_MAX_TIMESTEP = re.compile(r"velocity_full_max_timestep_(\d+)")


def case_weights(case: CaseFolder, config: FlexTokConfig) -> dict[str, Tensor]:
    """Seeded weights under the official names, some multiplied, the sin-cos tables as the model computes them.

    The VAE's are left out where the case's configuration has no VAE.
    Raises CaseError for a name in `scale_after_seeding` or `keep_initial_value` that the port can't serve.
    """
    manifest = {name: spec for name, spec in case.manifest().items() if config.vae or not name.startswith("vae.")}
    state = case.seeded(manifest, case.setting("seed"))
    for name, factor in case.config.get("scale_after_seeding", {}).items():
        if name not in state:
            raise CaseError(f"{case.path / 'config.json'} scales {name}, which the manifest does not have")
        state[name] = state[name] * factor
    for name in case.config.get("keep_initial_value", []):
        if name not in state or not name.endswith(_POSITIONS):
            raise CaseError(f"{case.path / 'config.json'} keeps {name}, which is no table of positions")
        state[name] = sincos_positions(state[name].shape[1], config.grid).to(case.device)
    return state


@torch.no_grad()
def run(case: CaseFolder) -> Iterator[CheckLine]:
    """Every stored output of a `flextok` case, one line each. Raises CaseError for a case that is incomplete."""
    if case.path.suffix == ".jsonl":
        raise CaseError(f"{case.path}: flextok has no .jsonl cases")
    config = parse_config(case.setting("model"))
    model = FlexTokStateDict().load(meta_skeleton(FlexTok, config), case_weights(case, config)).eval().to(case.device)
    makers = _makers(case, model)
    for name in case.names:
        if name in _INPUTS or name.endswith("_gap"):
            continue
        make = makers.get(name) or _with_max_timestep(case, model, name)
        if make is None:
            yield failure(name, CaseError("stored, but no check of this port knows what it is"))
        elif name == "token_ids":
            yield compare_ids(name, make(), case[name], case.get("token_ids_gap"))
        else:
            yield compare_floats(name, make(), case[name])
    yield from _manifest_lines(case)


def _makers(case: CaseFolder, model: FlexTok) -> dict[str, Callable[[], Tensor]]:
    """What makes each tensor that a case may store, by its name."""
    decoder, registers = model.decoder, model.config.registers

    def full() -> Tensor:
        return torch.full((len(case["token_ids"]),), registers, device=case.device)

    def velocity(keep: Tensor) -> Tensor:
        condition = decoder.condition(model.lookup(case["token_ids"]), keep)
        return decoder(case["noised_latents"], case["timesteps"], condition)

    def unconditional() -> Tensor:
        condition = decoder.null_condition(len(case["noised_latents"]))
        return decoder(case["noised_latents"], case["timesteps"], condition)

    def samples(keep: Tensor, sampling: Sampling) -> Tensor:
        return model.decode_latents(case["token_ids"], keep, case["noise"], sampling)

    return {
        "register_latents": lambda: model.encoder(case["latents"]),
        "token_ids": lambda: model.encode_latents(case["latents"]).ids,
        "quantized": lambda: model.encode_latents(case["latents"]).embeddings,
        "embedding_of_ids": lambda: model.lookup(case["token_ids"]),
        "posembs_encoder": lambda: model.encoder.positions,
        "posembs_decoder_patches": lambda: decoder.positions,
        "timestep_frequencies": lambda: decoder.time_frequencies(case["timesteps"]),
        "time_embedding": lambda: decoder.time_embed(decoder.time_frequencies(case["timesteps"])),
        "velocity_full": lambda: velocity(full()),
        "velocity_keep_k": lambda: velocity(case["keep_k"]),
        "velocity_uncond": unconditional,
        "apg_first_call": lambda: _guided(case, 1),
        "apg_second_call_same_inputs": lambda: _guided(case, 2),
        "sample_no_guidance": lambda: samples(full(), dataclasses.replace(_sampling(case), guidance_scale=1.0)),
        "sample_cfg": lambda: samples(full(), dataclasses.replace(_sampling(case), projection=None)),
        "sample_apg": lambda: samples(full(), _sampling(case)),
        "sample_apg_keep_k": lambda: samples(case["keep_k"], _sampling(case)),
    }


def _with_max_timestep(case: CaseFolder, model: FlexTok, name: str) -> Callable[[], Tensor] | None:
    """What makes "velocity_full_max_timestep_1000": the same weights under another scale of time."""
    if not (match := _MAX_TIMESTEP.fullmatch(name)):
        return None
    other = meta_skeleton(FlexTok, dataclasses.replace(model.config, max_timestep=float(match[1])))
    other.load_state_dict(model.state_dict(), assign=True)
    return _makers(case, other.eval())["velocity_full"]


def _sampling(case: CaseFolder) -> Sampling:
    """The case's own settings. Raises CaseError when one is not there."""
    given = case.setting("sampling")
    try:
        projection = ProjectedGuidance(given["apg_momentum"], given["apg_eta"], given["apg_norm_threshold"])
        return Sampling(given["steps"], given["guidance_scale"], projection)
    except KeyError as error:
        raise CaseError(f"{case.path / 'config.json'}: sampling is missing {error}") from error


def _guided(case: CaseFolder, calls: int) -> Tensor:
    """The last of `calls` guided velocities of as many images as are stored, from the stored velocities."""
    sampling, running = _sampling(case), None
    assert sampling.projection is not None, "a case's sampling always states its projection"
    count = len(case["apg_first_call"])
    cond, uncond = case["velocity_full"][:count], case["velocity_uncond"][:count]
    for _ in range(calls):
        guided, running = projected_guidance(cond, uncond, sampling.guidance_scale, sampling.projection, running)
    return guided


def _manifest_lines(case: CaseFolder) -> Iterator[CheckLine]:
    """The manifests of full checkpoints next to the case: "manifest.json" is d18-d28's, the others say theirs.

    One that the case itself takes its weights from is no full checkpoint's.
    """
    if not case.own_manifest():
        return
    for path in sorted(case.path.absolute().parent.glob("manifest*.json*")):
        if match := _MANIFEST.fullmatch(path.name):
            config = published(int(match[1] or 18), int(match[2] or 28))
            name = path.name.removesuffix(COMPRESSED)
            state = {key: torch.empty(spec.shape, device="meta") for key, spec in read_manifest(path).items()}
            try:
                FlexTokStateDict().load(meta_skeleton(FlexTok, config), state)
            except CheckpointMismatch as error:
                yield failure(name, error)
            else:
                yield CheckLine(
                    path.name.removesuffix(COMPRESSED), None, None, None, True, f"{len(state)} tensors load strictly"
                )
