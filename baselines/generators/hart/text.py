"""The text half of HART: a Qwen2 language model reads the prompt behind a fixed instruction; nothing is generated.

transformers' stock `Qwen2Model` and tokenizer. Facts from the published hart/utils/tools.py and constants.py.
"""

from __future__ import annotations

import json
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from baselines.generators.hart.sampler import Context
from lactok.state_dict import StateDictAdapter, find_state_dict, meta_skeleton
from lactok.weights import CheckpointMismatch, WeightsError, load_state_dict

SYSTEM_PROMPT = """Given a user prompt, generate an "Enhanced prompt" that provides detailed visual descriptions suitable for image generation.

Examples:
- User Prompt: A cat sleeping -> A small, fluffy white cat curled up in a round shape, sleeping peacefully on a warm sunny windowsill, surrounded by pots of blooming red flowers.
- User Prompt: A busy city street -> A bustling city street scene at dusk, featuring glowing street lamps, a diverse crowd of people in colorful clothing, and a double-decker bus passing by towering glass skyscrapers.

Please generate only the enhanced description for the prompt below and DO NOT include any additional sentences. Start your response with "Enhanced Prompt:".

User Prompt:\n"""  # noqa: E501
"""Word for word what the checkpoint was trained behind (published hart/utils/constants.py, MIT)."""


class _Qwen2StateDict(StateDictAdapter[Any]):
    """A file of the language model: with or without the prefix and the head of `Qwen2ForCausalLM`."""

    model_name = "the configured Qwen2 language model"

    def published_name(self, name: str) -> str:
        return name

    def is_unused(self, published_name: str, model: Any) -> bool:
        return published_name == "lm_head.weight"


class TextEncoder(nn.Module):
    """A prompt to the states of `length` positions (300), padded or cut, on the side that the tokenizer says."""

    def __init__(self, model: Any, tokenizer: Any, length: int) -> None:
        super().__init__()
        self.model, self.tokenizer, self.length = model, tokenizer, length

    def why_not(self, prompt: str, with_system_prompt: bool) -> str | None:
        """Why a prompt can't be encoded; None where it can."""
        held = next((token for token in self.tokenizer.all_special_tokens if token in prompt), None)
        if held is not None:
            return f"the prompt holds {held}, which the text model reads as a control token"
        if not with_system_prompt and not self.tokenizer(prompt).input_ids:
            return "the prompt has no token, and there is no system prompt before it"
        return None

    def forward(self, prompt: str, with_system_prompt: bool) -> Context:
        """The states of one prompt. Padding's states are given too; the transformer attends to them, as published."""
        device = self.model.embed_tokens.weight.device
        ids = self._ids(prompt, device, padding="max_length")
        mask = ids != self.tokenizer.pad_token_id
        before = self._ids(SYSTEM_PROMPT, device) if with_system_prompt else ids[:, :0]
        states = self.model(
            input_ids=torch.cat([before, ids], 1),
            attention_mask=torch.cat([torch.ones_like(before, dtype=torch.bool), mask], 1).long(),
            use_cache=False,
        ).last_hidden_state
        return Context(states[:, before.shape[1] :].float(), mask, mask.cumsum(1) - 1)

    def _ids(self, text: str, device: torch.device, **padding: str) -> Tensor:
        tokens = self.tokenizer(text, return_tensors="pt", max_length=self.length, truncation=True, **padding)
        return tokens.input_ids.to(device).long()


def load_text_encoder(folder: Path, weights: Path, length: int, width: int) -> TextEncoder:
    """The language model of a folder with config.json and a tokenizer, float32 as published; weights: its first file.

    Raises WeightsError for one that is no Qwen2 of that width, CheckpointMismatch for tensors that do not fit.
    """
    from transformers import AutoTokenizer, Qwen2Config, Qwen2Model
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

    path = folder / "config.json"
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        if tree.get("model_type") != "qwen2" or tree.get("hidden_size") != width:
            raise WeightsError(
                f"{path}: model_type {tree.get('model_type')!r} of width {tree.get('hidden_size')}, expected 'qwen2' "
                f"of width {width}"
            )
        tree.pop("rope_scaling", None)  # no setting of Qwen2 in the transformers that HART pins (4.42.2)
        config = Qwen2Config.from_dict(tree)
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise WeightsError(f"{folder} can't be loaded as HART's text model: {' '.join(str(error).split())}") from error
    if tokenizer.pad_token_id is None:
        raise WeightsError(f"{folder}: the tokenizer names no padding token, which HART's mask needs")
    state = _without_prefix(find_state_dict(load_state_dict(weights)))
    try:
        model = _Qwen2StateDict().load(meta_skeleton(Qwen2Model, config), state)
    except CheckpointMismatch as error:
        raise CheckpointMismatch(f"{weights}: {error}") from error
    model.rotary_emb = Qwen2RotaryEmbedding(config)  # no checkpoint holds its table
    return TextEncoder(model, tokenizer, length)


def _without_prefix(state: MutableMapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("model."): tensor for name, tensor in state.items()}
