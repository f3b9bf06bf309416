"""Runs golden cases of LlamaGen's GPT and of the released LaCTokGen's: every stored output is checked.

Each step of a generation is fed the stored ids, so that one that is a matter of rounding (see the stored gaps) does not
spoil the later ones; it runs through the cache. A draw at more than one candidate can't be repeated: its ids must be
among the candidates. A `.jsonl` case is of caption cleaning.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from lactok.conformance import CaseError, CaseFolder, CheckLine, compare_floats, compare_ids, failure, is_rows
from lactok.generators.captions import CLEANINGS, clean_caption, clean_once
from lactok.generators.text_encoder import left_pad
from lactok.models.gpt import GPT, TEXT, GPTConfig, padding_mask, rotary_table, token_loss
from lactok.models.gpt_cache import Cache, id_turns, prefill, step
from lactok.models.gpt_sampling import Sampling, guide, probabilities
from lactok.models.gpt_state_dict import GPTStateDict
from lactok.state_dict import meta_skeleton

_INPUTS = (
    "caption_embs_right_padded",
    "emb_masks_right_padded",
    "tokens",
    "labels",
    "train_valid",
    "force_drop_ids",
    "filt_logits",
)
_EVAL = re.compile(r"eval_logits_(causal|padmask)(?:_(from_last_cond)|_first(\d+))?")
_RUN = re.compile(r"gen_(.+)_(ids|raw_logits|gap)")
_LEAST_TOP_P = 1e-9
"""At 0, which `Sampling` has not, the published filter leaves the likeliest id, as it does here."""
_UNCONDITIONAL = "cls_embedding.uncond_embedding"


def case_config(case: CaseFolder) -> GPTConfig:
    """The architecture in a case's `config.json`; the unconditional embedding is as long as its manifest says."""
    fields = {f.name for f in dataclasses.fields(GPTConfig)}
    known = {key: value for key, value in case.config.items() if key in fields}
    unconditional = case.manifest().get(_UNCONDITIONAL)
    return GPTConfig(**known, uncond_positions=unconditional.shape[0] if unconditional else None)


@torch.no_grad()
def run(case: CaseFolder) -> Iterator[CheckLine]:
    """Every stored output of a GPT case, one line each. Raises CaseError for a case that is incomplete."""
    if is_rows(case.path):
        yield from _cleaning_lines(case)
        return
    checks = _Checks(case)
    for name in case.names:
        if name in _INPUTS:
            continue
        try:
            lines = list(checks.lines(name))
        except (ValueError, CaseError) as error:
            lines = [failure(name, error)]
        yield from lines


def _cleaning_lines(case: CaseFolder) -> Iterator[CheckLine]:
    """A line for each caption and number of passes that is stored with it."""
    for number, row in enumerate(case.rows(), 1):
        for key, clean in (("clean_once", clean_once), ("output", clean_caption)):
            if key in row:
                got = clean(row["input"])
                note = "" if got == row[key] else f"{got!r}, expected {row[key]!r}"
                yield CheckLine(f"caption {number}, {key}", None, None, None, not note, note)
        if not {"clean_once", "output"} & row.keys():
            yield failure(f"caption {number}", CaseError(f"neither clean_once nor output, of {CLEANINGS} passes"))


class _Checks:
    """What makes each tensor that a case may store, by its name."""

    def __init__(self, case: CaseFolder) -> None:
        self.case, self.config = case, case_config(case)
        state = case.seeded_weights()
        self.model = GPTStateDict().load(meta_skeleton(GPT, self.config), state).eval().to(case.device)
        self.prefix_length = self.config.cls_token_num
        self._generated: dict[str, tuple[Tensor, Tensor]] = {}

    def lines(self, name: str) -> Iterator[CheckLine]:
        """The checks of one stored tensor; none for a gap, a failure for what is not known."""
        case = self.case
        if match := _RUN.fullmatch(name):
            yield from self._generation_lines(name, match[1], match[2])
        elif match := re.fullmatch(r"filt_probs(\d+)", name):
            settings = case.setting("sampling_filter_cases")[int(match[1])]
            got = probabilities(case["filt_logits"][:, -1].clone(), _sampling(settings))
            yield compare_floats(name, got, case[name])
        elif make := self._maker(name):
            got, want = make(), case[name]
            if want.is_floating_point():
                yield compare_floats(name, got.reshape(want.shape) if want.numel() == 1 else got, want)
            else:
                yield compare_ids(name, got.to(want.dtype), want)
        else:
            yield failure(name, CaseError("stored, but no check of this port knows what it is"))

    def _maker(self, name: str) -> Callable[[], Tensor] | None:
        case, last = self.case, self.prefix_length - 1
        if match := _EVAL.fullmatch(name):
            kind, from_last, first = match.groups()
            part = slice(last, None) if from_last else slice(int(first)) if first else slice(None)
            return lambda: self._eval_logits(kind == "padmask")[:, part]
        if match := re.fullmatch(r"cap_proj_prompt(\d+)", name):
            prompt = int(match[1])
            return lambda: self.model.prefix(self._condition())[prompt]
        if match := re.fullmatch(r"uncond_proj_head(\d+)", name):
            rows = int(match[1])
            return lambda: self.model.prefix(self._condition(), self._all())[0, :rows]
        if match := re.fullmatch(r"force_drop_proj_head(\d+)", name):
            rows = int(match[1])
            return lambda: self.model.prefix(self._condition(), case["force_drop_ids"] == 1)[:, :rows]
        if match := re.fullmatch(r"train_attn_mask_prompt(\d+)", name):
            prompt = int(match[1])
            return lambda: padding_mask(self._seen(), self.config.positions)[prompt]
        plain: dict[str, Callable[[], Tensor]] = {
            "cond_left_padded_masked": lambda: self._left_padded()[0],
            "emb_masks_left_padded": lambda: self._left_padded()[1],
            "freqs_cis": lambda: rotary_table(self.config)[last:],
            "train_logits": self._training_logits,
            "train_loss": lambda: token_loss(self._training_logits(), case["tokens"]),
            "train_loss_valid": lambda: token_loss(self._training_logits(), case["tokens"], case["train_valid"]),
        }
        return plain.get(name)

    def _all(self) -> Tensor:
        return torch.ones(len(self.case["tokens"]), dtype=torch.bool, device=self.case.device)

    def _left_padded(self) -> tuple[Tensor, Tensor]:
        return left_pad(self.case["caption_embs_right_padded"], self.case["emb_masks_right_padded"])

    def _condition(self) -> Tensor:
        if self.config.model_type != TEXT:
            return self.case["labels"]
        stored = self.case.get("cond_left_padded_masked")
        return self._left_padded()[0] if stored is None else stored

    def _seen(self) -> Tensor:
        stored = self.case.get("emb_masks_left_padded")
        return self._left_padded()[1] if stored is None else stored

    def _eval_logits(self, masked: bool) -> Tensor:
        mask = padding_mask(self._seen(), self.config.positions) if masked else None
        return self.model(self.case["tokens"], self._condition(), mask)

    def _training_logits(self) -> Tensor:
        """In train mode, where a case's shares of dropout are 0."""
        mask = padding_mask(self._seen(), self.config.positions) if self.config.model_type == TEXT else None
        self.model.train()
        try:
            return self.model.training_logits(self.case["tokens"], self._condition(), mask)
        finally:
            self.model.eval()

    def _generation_lines(self, name: str, run: str, what: str) -> Iterator[CheckLine]:
        if what == "gap":
            return
        settings = next((s for s in self.case.config.get("generation_runs", []) if s["name"] == run), None)
        if settings is None:
            raise CaseError(f"config.json has no generation run {run!r}")
        if run not in self._generated:
            self._generated[run] = self._generate(run, settings)
        raw, guided = self._generated[run]
        if what == "raw_logits":
            yield compare_floats(name, raw, self.case[name])
            return
        want, sampling = self.case[name], _sampling(settings)
        if sampling.top_k == 1:
            yield compare_ids(name, guided.argmax(-1), want, self.case.get(f"gen_{run}_gap"))
            return
        candidates = probabilities(guided.flatten(0, 1), sampling).view_as(guided)
        outside = int((candidates.gather(-1, want.long()[..., None]) == 0).sum())
        note = f"{outside} of {want.numel()} are no candidates" if outside else "drawn: each is among the candidates"
        yield CheckLine(name, None, None, not outside, not outside, note)

    def _generate(self, run: str, settings: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Logits of every step of one run: the model's, (2 B or B, N, V), conditional ones first; guided, (B, N, V)."""
        model, ids, sampling = self.model, self.case[f"gen_{run}_ids"].long(), _sampling(settings)
        condition, halves = self._condition(), 2 if sampling.guided else 1
        prefix, seen = model.prefix(condition), torch.ones(len(ids), self.prefix_length, device=ids.device)
        if self.config.model_type == TEXT and settings.get("uses_emb_masks", False):
            seen = self._seen()
        if sampling.guided:
            prefix = torch.cat([prefix, model.prefix(condition, self._all())])
        rows = torch.arange(len(prefix), device=ids.device)
        cache = Cache(model, len(rows))
        raw = [prefill(model, cache, rows, prefix, seen.bool().repeat(halves, 1))]
        for place in range(ids.shape[1] - 1):
            at = torch.full_like(rows, place)
            raw.append(step(model, cache, ids[:, place].repeat(halves), at, id_turns(model), cache.slots))
        logits = torch.stack(raw, 1)
        if not sampling.guided:
            return logits, logits
        conditional, unconditional = logits.chunk(2)
        guided = guide(conditional, unconditional, sampling.guidance_scale)
        if sampling.guidance_interval >= 0:  # the prefix' logits, and those of steps 0 to the interval
            guided[:, sampling.guidance_interval + 2 :] = conditional[:, sampling.guidance_interval + 2 :]
        return logits, guided


def _sampling(settings: dict[str, Any]) -> Sampling:
    """Settings by the names of a case; guidance is off where they name none."""
    return Sampling(
        guidance_scale=settings.get("cfg_scale", 1.0),
        guidance_interval=settings.get("cfg_interval", -1),
        temperature=settings.get("temperature", 1.0),
        top_k=settings.get("top_k", 0),
        top_p=max(settings.get("top_p", 1.0), _LEAST_TOP_P),
    )
