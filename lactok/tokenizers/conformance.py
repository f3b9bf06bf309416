"""Runs golden cases of the released LaCTok-T: everything is read from the case, every stored output is checked.

Each part is fed what is stored, so that one that differs does not spoil the next. Noise predictions come from the
network with merged adapters, those without from peft's un-merged one. The manifest of the full checkpoint in the folder
above loads strictly on the meta device, one line more. Cases of the release's GPT go to
lactok/generators/conformance.py.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from lactok.conformance import (
    CaseError,
    CaseFolder,
    CheckLine,
    UnhandledCase,
    compare_floats,
    compare_ids,
    failure,
    recorded,
)
from lactok.generators.conformance import run as run_gpt
from lactok.models.autoencoder import AutoencoderConfig
from lactok.models.lactok import LacTok, LacTokConfig, build_lactok
from lactok.models.lactok_state_dict import PEFT, LacTokStateDict
from lactok.models.ladd import LatentDecoderConfig, UNetConfig
from lactok.models.lora import BASE, LoRAConfig, add_lora
from lactok.models.samplers import NoiseSchedule, consistency_sampler
from lactok.models.vq import VQConfig
from lactok.state_dict import meta_skeleton
from lactok.weights import CheckpointMismatch

_INPUTS = (
    "tokens",
    "alt_tokens",
    "vq_input",
    "sample",
    "sampling_noise_init",
    "sampling_noise_1",
    "sampling_noise_2",
    "vae_input",
)
_NOISE = re.compile(r"(alt_)?noise_pred_t(\d+)_scale([\d.]+)(_lora_disabled)?")
_ADDED = re.compile(r"add_noise_t(\d+)")
_STEP = re.compile(r"sampling_(eps|x_before)_step(\d+)")
_MERGED = re.compile(r"merged_(.+)")
_PROBE = (499, 0.8)
"""Timestep and scale of the call inside which the stored intermediate tensors were taken."""

_FIXED: dict[str, dict[str, Any]] = {  # published settings that this port does not vary, by the release's values
    "unet": {
        "center_input_sample": False,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "only_cross_attention": False,
        "downsample_padding": 1,
        "mid_block_scale_factor": 1,
        "act_fn": "silu",
        "norm_eps": 1e-5,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "upcast_attention": None,
        "resnet_time_scale_shift": "default",
        "time_embedding_type": "positional",
        "conv_in_kernel": 3,
        "conv_out_kernel": 3,
    },
    "vae": {"in_channels": 3, "out_channels": 3, "act_fn": "silu", "force_upcast": True},
    "scheduler": {
        "beta_schedule": "scaled_linear",
        "trained_betas": None,
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "prediction_type": "epsilon",
        "sample_max_value": 1.0,
        "timestep_spacing": "leading",
    },
}
_FREE = {  # what says nothing about the arithmetic, or follows from the rest
    "unet": ("sample_size",),
    "vae": ("sample_size", "down_block_types", "up_block_types"),
    "scheduler": (),
}
_RENAMED = {"num_train_timesteps": "timesteps"}


def _build(case: CaseFolder, part: str, kind: type, **more: Any) -> Any:
    """The typed configuration of one part. Raises CaseError for a setting that this port does not have."""
    fields = {f.name for f in dataclasses.fields(kind)}
    known = {}
    for key, value in case.setting(part).items():
        ours = _RENAMED.get(key, key)
        if ours in fields:
            known[ours] = value
        elif key not in _FREE[part] and (key not in _FIXED[part] or value != _FIXED[part][key]):
            raise CaseError(f"{case.path / 'config.json'}: {part}.{key} is {value!r}, which this port does not have")
    return kind(**known, **more)


def case_config(case: CaseFolder) -> LacTokConfig:
    """The architecture in a case's or a model's `config.json`. Raises CaseError for what this port does not have."""
    fields = {f.name for f in dataclasses.fields(VQConfig)}
    vq = VQConfig(**{key: value for key, value in case.setting("vq").items() if key in fields})
    autoencoder = _build(case, "vae", AutoencoderConfig)
    text = case.config.get("zero_text_shape", (LatentDecoderConfig.text_positions, None))
    decoder = LatentDecoderConfig(
        unet=_build(case, "unet", UNetConfig),
        condition_channels=vq.codebook_embed_dim,
        condition_widths=tuple(case.setting("conditioning_embedding_out_channels")),
        text_positions=text[0],
        pixels_per_latent=autoencoder.downsample_factor,
        schedule=_build(case, "scheduler", NoiseSchedule),
    )
    return LacTokConfig(vq, decoder, autoencoder)


def case_lora(case: CaseFolder) -> LoRAConfig:
    """The adapters' settings in a `config.json`."""
    given = case.setting("lora")
    patterns = (dict(given.get(name) or {}) for name in ("rank_pattern", "alpha_pattern"))
    return LoRAConfig(given["r"], given["lora_alpha"], tuple(given["target_modules"]), *patterns)


def case_weights(case: CaseFolder) -> dict[str, Tensor]:
    """Seeded weights under the official names, those that `weight_scale` picks multiplied."""
    state = case.seeded_weights()
    if rule := case.config.get("weight_scale"):
        for name in state:
            if name.startswith(rule["prefix"]) and name.endswith(rule["suffix"]):
                state[name] = state[name] * rule["factor"]
    return state


def unmerged_model(config: LacTokConfig, lora: LoRAConfig, state: Mapping[str, Tensor]) -> LacTok:
    """The network with its adapters apart, as peft runs them."""
    with torch.device("meta"):
        model = build_lactok(config)
        add_lora(model.decoder.unet, lora)
    return LacTokStateDict(lora).load_unmerged(model, state).eval()


@torch.no_grad()
def run(case: CaseFolder) -> Iterator[CheckLine]:
    """Every stored output of a `lactok` case, one line each. Raises CaseError for a case that is incomplete."""
    if case.path.suffix == ".jsonl":
        raise CaseError(f"{case.path}: lactok has no .jsonl cases")
    if "n_layer" in case.config:
        yield from run_gpt(case)
        return
    if "unet" not in case.config:
        raise UnhandledCase("not covered: it has neither the decoder nor the GPT of the release")
    checks = _Checks(case)
    for name in case.names:
        if name in _INPUTS or name.endswith("_gap"):
            continue
        if line := checks.merged_line(name):
            yield line
            continue
        make = checks.maker(name)
        if make is None:
            yield failure(name, CaseError("stored, but no check of this port knows what it is"))
        elif name == "vq_indices":
            yield compare_ids(name, make(), case[name], case.get("vq_indices_gap"))
        elif name == "image_uint8_nhwc":  # truncated, so a rounding error may cross a border
            yield compare_floats(name, make(), case[name], rel=0.0, atol=1.0)
        else:
            yield compare_floats(name, make(), case[name])
    yield from _manifest_lines(case)


class _Checks:
    """What makes each tensor that a case may store, by its name; the networks and shared results are made once."""

    def __init__(self, case: CaseFolder) -> None:
        self.case, self.config, self.lora = case, case_config(case), case_lora(case)
        self.scale, self.timesteps = case.setting("cond_scale"), tuple(case.setting("timesteps"))
        state = case_weights(case)
        self._bases = {name: state[key] for name, key in case.config.get("merged_weight_keys", {}).items()}
        self.model = (
            LacTokStateDict(self.lora).load(meta_skeleton(build_lactok, self.config), state).eval().to(case.device)
        )
        self._inside: dict[str, Tensor] | None = None
        self._sampled: dict[str, Tensor] | None = None

    def maker(self, name: str) -> Callable[[], Tensor] | None:
        case, model = self.case, self.model
        plain: dict[str, Callable[[], Tensor]] = {
            "alphas_cumprod": lambda: self.config.schedule.alphas_cumprod,
            "vq_indices": lambda: model.encode(case["vq_input"]).ids,
            "quant": lambda: model.lookup(case["tokens"]),
            "cond_resized": lambda: self._condition(case["quant"]),
            "alt_cond_resized": lambda: self._condition(model.lookup(case["alt_tokens"])),
            "sampling_timesteps": lambda: torch.tensor(self.timesteps),
            "sampling_latent": lambda: self._sampling()["latent"],
            "image_preclip": lambda: model.images_of(case["sampling_latent"]),
            "image_uint8_nhwc": lambda: _to_uint8(case["image_preclip"]),
            "vae_posterior_mean": lambda: model.vae.encode(case["vae_input"]).latent_dist.mean,
            "vae_posterior_logvar": lambda: model.vae.encode(case["vae_input"]).latent_dist.logvar,
        }
        if name in plain:
            return plain[name]
        if name in _INSIDE:
            return lambda: self._inside_call()[name]
        if match := _NOISE.fullmatch(name):
            other, t, scale, disabled = match.groups()
            return lambda: self._noise(other, t, scale, disabled)
        if match := _ADDED.fullmatch(name):
            added = int(match[1])
            return lambda: self.config.schedule.noised(case["sample"], case["sampling_noise_1"], added)
        if match := _STEP.fullmatch(name):
            step = f"{match[1]}{match[2]}"
            return lambda: self._sampling()[step]
        return None

    def merged_line(self, name: str) -> CheckLine | None:
        """The corner of a merged weight; None where `name` is none.

        Where the stored one has no adapter in it (cases were kept after peft had taken the adapters out again, in
        place), it is compared with the weight that is left then, and the line says so.
        """
        match, want = _MERGED.fullmatch(name), self.case[name]
        if not match or match[1] not in self._bases:
            return None
        key, base = self.case.config["merged_weight_keys"][match[1]], self._bases[match[1]]
        merged = self.model.decoder.unet.get_parameter(key.removeprefix(PEFT).replace(BASE, "."))
        rows, columns = want.shape

        def corner(weight: Tensor) -> Tensor:
            return weight.flatten(1)[:rows, :columns]

        plain = compare_floats(name, corner(merged - (merged - base)), want)
        if not plain.passed:
            return compare_floats(name, corner(merged), want)
        return dataclasses.replace(plain, note="the case holds the weight after the adapter was taken out again")

    def _condition(self, embeddings: Tensor) -> Tensor:
        return self.model.decoder.condition(embeddings, self.case["sample"].shape[-2:])

    def _noise(self, other: str | None, t: str, scale: str, disabled: str | None) -> Tensor:
        embeddings = self.model.lookup(self.case["alt_tokens"]) if other else self.case["quant"]
        model = self.model
        if disabled:
            model = unmerged_model(self.config, self.lora, case_weights(self.case)).to(self.case.device)
            model.decoder.unet.disable_adapters()
        return model.decoder.predict(self.case["sample"], int(t), embeddings, float(scale))

    def _inside_call(self) -> dict[str, Tensor]:
        if self._inside is None:
            decoder = self.model.decoder
            modules = {
                "cond_embedding": decoder.controlnet.controlnet_cond_embedding,
                "add_embedding": decoder.controlnet.add_embedding,
                "controlnet": decoder.controlnet,
                "unet_mid_block_out": decoder.unet.mid_block,
            }
            with recorded(modules) as seen:
                decoder.predict(self.case["sample"], _PROBE[0], self.case["quant"], _PROBE[1])
            down, mid = seen.pop("controlnet")
            seen |= {"controlnet_down_first": down[0], "controlnet_down_last": down[-1], "controlnet_mid": mid}
            seen["controlnet_down_means"] = torch.stack([residual.mean() for residual in down])
            seen["controlnet_down_stds"] = torch.stack([residual.std() for residual in down])
            self._inside = seen
        return self._inside

    def _sampling(self) -> dict[str, Tensor]:
        """The latents, and what went in and out of the network at each step ("x_before0", "eps0")."""
        if self._sampled is None:
            case, seen = self.case, {}
            names = ["sampling_noise_init", *(f"sampling_noise_{i}" for i in range(1, len(self.timesteps)))]

            def predict(x: Tensor, t: int) -> Tensor:
                step = self.timesteps.index(t)
                seen[f"x_before{step}"] = x
                seen[f"eps{step}"] = self.model.decoder.predict(x, t, case["quant"], self.scale)
                return seen[f"eps{step}"]

            noises = torch.stack([case[name] for name in names], 1)
            seen["latent"] = consistency_sampler(self.timesteps)(predict, noises, self.config.schedule)
            self._sampled = seen
        return self._sampled


_INSIDE = (
    "cond_embedding",
    "add_embedding",
    "controlnet_down_first",
    "controlnet_down_last",
    "controlnet_mid",
    "controlnet_down_means",
    "controlnet_down_stds",
    "unet_mid_block_out",
)


def _to_uint8(images: Tensor) -> Tensor:
    """The release's rounding of (B, 3, H, W) around [-1, 1]: clipped, scaled to 255, truncated; (B, H, W, 3)."""
    return ((images.clamp(-1, 1) + 1) / 2 * 255).byte().permute(0, 2, 3, 1)


def _manifest_lines(case: CaseFolder) -> Iterator[CheckLine]:
    """The full checkpoint's manifest next to a case that has its own, with the configuration next to it."""
    above = CaseFolder(case.path.absolute().parent)
    if not (case.own_manifest() and above.own_manifest() and (above.path / "config.json").is_file()):
        return
    state = {name: torch.empty(spec.shape, device="meta") for name, spec in above.manifest().items()}
    count = len(state)
    try:
        LacTokStateDict(case_lora(above)).load(meta_skeleton(build_lactok, case_config(above)), state)
    except CheckpointMismatch as error:
        yield failure("manifest.json", error)
    else:
        yield CheckLine("manifest.json", None, None, None, True, f"{count} tensors load strictly")
