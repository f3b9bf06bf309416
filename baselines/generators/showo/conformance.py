"""Runs golden cases of Show-o: everything is read from the case, every stored output is checked.

Each step of the sampler is checked on the stored inputs of that step, so that a draw that is a matter of rounding (see
the stored gaps) does not spoil the next; the whole run is repeated freely for its result.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from baselines.generators.golden import case_weights, only, require_known_names, truncated_uint8
from baselines.generators.showo.magvit import HalfConfig, Magvit, MagvitConfig, code_vectors
from baselines.generators.showo.model import Showo, ShowoConfig
from baselines.generators.showo.prompting import (
    MASKED,
    Vocabulary,
    additive,
    attention_allowed,
    sequences,
    text_row,
)
from baselines.generators.showo.sampler import Draws, Sampling, sample, take_step
from baselines.generators.showo.state_dict import MagvitStateDict, ShowoStateDict
from lactok.conformance import (
    GAP_MARGIN,
    CaseError,
    CaseFolder,
    CheckLine,
    compare_floats,
    compare_ids,
    failure,
)
from lactok.state_dict import meta_skeleton

_FIXED_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_seq_length")
_NOISE = re.compile(r"(.+)_(?:exponential|uniform)")


@torch.no_grad()
def run(case: CaseFolder) -> Iterator[CheckLine]:
    """Every stored output of a `showo` case, one line each. Raises CaseError for a case that is incomplete."""
    if case.path.suffix == ".jsonl":
        raise CaseError(f"{case.path}: showo has no .jsonl cases")
    parts = {"transformer": _transformer_lines, "magvitv2": _magvit_lines}
    part = case.setting("part")
    if part not in parts:
        raise CaseError(f"{case.path / 'config.json'}: part is {part!r}, expected {' or '.join(parts)}")
    checked = {name for name in case.names if name.endswith("_gap") or _NOISE.fullmatch(name)}
    for line in parts[part](case):
        checked.add(line.tensor)
        yield line
    for name in case.names:
        if name not in checked and name not in ("image", "generated_tokens", "bits_check_indices"):
            yield failure(name, CaseError("stored, but no check of this port knows what it is"))


# The transformer


def transformer_config(case: CaseFolder) -> ShowoConfig:
    """The sizes and ids in a case's `config.json`. Raises CaseError for one that is missing."""
    fields = {f.name for f in dataclasses.fields(ShowoConfig)} - {"vocabulary"}
    for name in (*_FIXED_SIZES, "vocab_size"):
        case.setting(name)
    special, text_size = case.setting("special_token_ids"), case.setting("llm_vocab_size")
    try:
        vocabulary = Vocabulary(
            text_size=text_size,
            bos=case.setting("bos_token_id"),
            eos=case.setting("eos_token_id"),
            pad=special["[PAD]"],
            soi=special["<|soi|>"],
            eoi=special["<|eoi|>"],
            t2i=special["<|t2i|>"],
            first_code=text_size + case.setting("num_new_special_tokens"),
            codes=case.setting("codebook_size"),
            mask=case.setting("mask_token_id"),
        )
    except KeyError as error:
        raise CaseError(f"{case.path / 'config.json'}: special_token_ids has no {error}") from error
    return ShowoConfig(**{k: v for k, v in case.config.items() if k in fields}, vocabulary=vocabulary)


def _transformer_lines(case: CaseFolder) -> Iterator[CheckLine]:
    config, manifest = transformer_config(case), case.manifest()
    require_known_names(case, manifest)
    model = meta_skeleton(Showo, config)
    model = ShowoStateDict().load(model, case_weights(case, manifest)).with_rotary_tables().eval().to(case.device)
    prompts, positions = case.setting("prompt_token_ids"), case.setting("num_vq_tokens")
    rows = [text_row(ids, config.vocabulary, config.max_seq_length) for ids in prompts]
    texts = torch.tensor(rows, device=case.device)
    canvas = torch.full((len(texts), positions), MASKED, device=case.device)
    built = sequences(texts, canvas, config.vocabulary)
    if "prompt_sequences" in case:
        yield compare_ids("prompt_sequences", built, case["prompt_sequences"])
    if "attn_allowed" in case:
        yield compare_ids("attn_allowed", attention_allowed(built, config.vocabulary), case["attn_allowed"])
    runs = case.config.get("runs", {})
    if "first_logits" in case:
        yield _first_logits(case, model, runs)
    chosen = texts[case.setting("generation_prompts")] if runs else texts
    for name, settings in runs.items():
        yield from _run_lines(case, model, name, sampling_of(case, name, settings), chosen, positions)


def _first_logits(case: CaseFolder, model: Showo, runs: dict[str, Any]) -> CheckLine:
    """Of the first call of the run `cfg`, or of the first run whose inputs have as many rows."""
    want = case["first_logits"]
    names = [name for name in ("cfg", *runs) if f"{name}_model_inputs" in case]
    fitting = [name for name in names if case[f"{name}_model_inputs"].shape[1] == len(want)]
    if not fitting:
        return failure("first_logits", CaseError("no run has stored inputs of as many rows"))
    rows = case[f"{fitting[0]}_model_inputs"][0].long()
    mask = additive(attention_allowed(rows, model.config.vocabulary))
    return compare_floats("first_logits", model.logits(rows, mask), want)


def sampling_of(case: CaseFolder, name: str, settings: dict[str, Any]) -> Sampling:
    """The settings of a run; those of the sigmoid may stand beside the others or in a mapping of their own.

    Raises CaseError for one that is missing, unknown or out of range.
    """
    own = ("start", "end", "tau", "clip_min")
    schedule = {key: settings[key] for key in own if key in settings}
    for value in settings.values():
        schedule |= value if isinstance(value, dict) else {}
    rest = {key: v for key, v in settings.items() if key not in own and not isinstance(v, dict)}
    only(case, rest, {"guidance", "steps", "schedule", "temperature"}, f"runs.{name}")
    try:
        return Sampling(
            rest["steps"], rest["guidance"], rest.get("temperature", 1.0), rest.get("schedule", "cosine"), schedule
        )
    except (KeyError, ValueError) as error:
        raise CaseError(f"{case.path / 'config.json'}: runs.{name}: {error}") from error


def _run_lines(
    case: CaseFolder, model: Showo, name: str, sampling: Sampling, texts: Tensor, positions: int
) -> Iterator[CheckLine]:
    """All that is stored of a run, and its result."""
    v = model.config.vocabulary
    uncond = None
    if sampling.guided:
        empty = torch.tensor([text_row([], v, model.config.max_seq_length)], device=case.device)
        uncond = empty.expand(len(texts), -1)
    predict = model.predictor(texts, uncond, positions, sampling.guidance_scale)
    start = torch.full((len(texts), positions), MASKED, device=case.device)
    exponential, uniform = case[f"{name}_exponential"], case[f"{name}_uniform"]

    def noise(step: int) -> Draws:
        return Draws(exponential[step], uniform[step])

    rows = texts if uncond is None else torch.cat([texts, uncond])
    canvases = _stored_canvases(case, name, v, len(texts), positions)
    inputs, steps, canvas = [], [], start
    for step in range(sampling.steps):
        inputs.append(sequences(rows, canvas.repeat(len(rows) // len(texts), 1), v))
        given = canvas if canvases is None else canvases[step]
        steps.append(take_step(predict(given), given, step, sampling, noise(step)))
        canvas = steps[-1].canvas
    ids_gap, masking_gap = case.get(f"{name}_ids_gap"), case.get(f"{name}_conf_gap")
    close = [step for step in range(sampling.steps) if _is_close(ids_gap, step) or _is_close(masking_gap, step)]
    free = sample(predict, start, sampling, noise)
    masking = torch.stack([one.masking for one in steps])
    floats = {
        "probs_first": steps[0].probabilities,
        "probs_last": steps[-1].probabilities,
        "mask_len": torch.stack([one.mask_len[:, 0] for one in steps]),
        "temperature": torch.tensor([sampling.temperature_at(step) for step in range(sampling.steps)]),
    }
    ids = {
        # one that follows on a close draw or a close masking may differ where these do
        "model_inputs": (torch.stack(inputs), _per_step([_after(close, s) for s in range(sampling.steps)])),
        "masking": (masking, _per_step([1.0 if s not in close else 0.0 for s in range(sampling.steps)])),
        "ids": (free if not close else steps[-1].codes, _last(ids_gap)),
    }
    for what, value in floats.items():
        if (stored := f"{name}_{what}") in case:
            yield compare_floats(stored, value, case[stored])
    for what, (value, gap) in ids.items():
        if (stored := f"{name}_{what}") in case:
            want = case[stored]
            shape = (-1, *(1,) * (want.ndim - 1))
            yield compare_ids(stored, value, want, None if gap is None else gap.view(shape).expand(want.shape))


def _is_close(gap: Tensor | None, step: int) -> bool:
    return gap is not None and float(gap[step].min()) < GAP_MARGIN


def _after(close: list[int], step: int) -> float:
    return 0.0 if step - 1 in close else 1.0


def _per_step(values: list[float]) -> Tensor:
    return torch.tensor(values)


def _last(gap: Tensor | None) -> Tensor | None:
    return None if gap is None else gap[-1].min()[None]


def _stored_canvases(case: CaseFolder, name: str, vocabulary: Vocabulary, count: int, positions: int) -> Tensor | None:
    """The canvas (B, N) at the start of each step, from the stored inputs of the model; None where none are stored."""
    stored = case.get(f"{name}_model_inputs")
    if stored is None:
        return None
    image = stored[:, :count, -positions - 1 : -1].long()
    return torch.where(image == vocabulary.mask, MASKED, image - vocabulary.first_code)


# The tokenizer


def magvit_config(case: CaseFolder) -> MagvitConfig:
    """The sizes in a case's `config.json`. Raises CaseError for what this port does not have."""
    halves = {}
    fields = {f.name for f in dataclasses.fields(HalfConfig)}
    for half in ("encoder", "decoder"):
        settings = case.setting(half)
        only(case, settings, fields, half)
        halves[half] = HalfConfig(**settings)
    bits = case.setting("codebook_dim")
    if case.config.get("z_channels", bits) != bits:
        raise CaseError(f"{case.path / 'config.json'}: z_channels is not codebook_dim, {bits}")
    return MagvitConfig(bits, **halves)


def _magvit_lines(case: CaseFolder) -> Iterator[CheckLine]:
    config = magvit_config(case)
    manifest = case.manifest() if case.own_manifest() else case.manifest("manifest_magvitv2.json")
    require_known_names(case, manifest)
    kept = {"quantize.embedding": code_vectors(config.codebook_dim)}
    state, model = case_weights(case, manifest, kept.get), meta_skeleton(Magvit, config)
    model = MagvitStateDict(len(config.decoder.ch_mult)).load(model, state).eval().to(case.device)

    def latents() -> Tensor:
        stored = case.get("encoder_out")
        return model.latents(case["image"]) if stored is None else stored

    def entries() -> Tensor:
        factor = config.downsample_factor
        return model.lookup(case["tokens"], case["image"].shape[2] // factor, case["image"].shape[3] // factor)

    def pixels() -> Tensor:
        side = round(case["generated_tokens"].shape[1] ** 0.5)
        return model.decode_codes(case["generated_tokens"], side, side)

    def unit() -> Tensor:
        stored = case.get("generated_pixels")
        return ((pixels() if stored is None else stored) + 1).div(2).clamp(0, 1)

    makers = {
        "encoder_out": lambda: model.latents(case["image"]),
        "codebook_entry": entries,
        "reconstruction": lambda: model.decode(entries()),
        "generated_pixels": pixels,
        "bits_check_entries": lambda: model.codes[case["bits_check_indices"]],
    }
    for name, make in makers.items():
        if name in case:
            yield compare_floats(name, make(), case[name])
    if "tokens" in case:
        gap = case.get("tokens_gap")
        everywhere = None if gap is None else gap.min().expand(case["tokens"].shape)
        yield compare_ids("tokens", model.quantize(latents()), case["tokens"], everywhere)
    if (name := "uint8_from_stored_generated_pixels_nhwc") in case:
        yield compare_floats(name, truncated_uint8(unit()), case[name], rel=0.0, atol=1.0)
