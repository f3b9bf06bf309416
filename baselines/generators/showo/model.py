"""Show-o's transformer: transformers' stock `PhiForCausalLM` over text and image ids in one sequence."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from baselines.generators.showo.prompting import Vocabulary, additive, attention_allowed, sequences
from baselines.generators.showo.sampler import Predict, guided


@dataclass(frozen=True)
class ShowoConfig:
    """Sizes of a `Showo`; the defaults are the published ones (phi-1_5's config.json, but for qk_layernorm, which
    Show-o forces on, and the vocabulary).

    max_seq_length: positions of a prompt's text but one.
    """

    hidden_size: int = 2048
    num_hidden_layers: int = 24
    num_attention_heads: int = 32
    intermediate_size: int = 8192
    partial_rotary_factor: float = 0.5
    layer_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    hidden_act: str = "gelu_new"
    max_position_embeddings: int = 2048
    vocab_size: int = 58498
    max_seq_length: int = 128
    vocabulary: Vocabulary = field(default_factory=Vocabulary)


class Showo(nn.Module):
    """Ids (R, L) to logits over text and image codes; positions count from 0, padding included."""

    def __init__(self, config: ShowoConfig | None = None) -> None:
        from transformers import PhiForCausalLM

        super().__init__()
        self.config = config = config or ShowoConfig()
        self.showo: Any = PhiForCausalLM(_phi_config(config))

    def with_rotary_tables(self) -> Showo:
        """Itself, with the rotary frequencies, which no checkpoint holds, made anew off the meta device."""
        from transformers.models.phi.modeling_phi import PhiRotaryEmbedding

        with torch.device(self.showo.lm_head.weight.device):
            self.showo.model.rotary_emb = PhiRotaryEmbedding(self.showo.config)
        return self

    def logits(self, rows: Tensor, mask: Tensor, keep: Tensor | int = 0) -> Tensor:
        """Ids (R, L) with an additive mask (R, 1, L, L) to logits (R, L, vocab_size), or those at positions `keep`."""
        return self.showo(input_ids=rows, attention_mask=mask, logits_to_keep=keep, use_cache=False).logits

    def predictor(self, texts: Tensor, uncond: Tensor | None, positions: int, scale: float) -> Predict:
        """What a sampler calls on a canvas (B, positions): logits of image codes after guidance, float32.

        texts: text rows (B, T); uncond: those of the empty prompt, None where there is no guidance.
        A code is predicted at its own position; the mask's own logit is left out.
        """
        v, count = self.config.vocabulary, len(texts)
        rows = texts if uncond is None else torch.cat([texts, uncond])
        copies = 1 if uncond is None else 2
        empty = torch.zeros(len(rows), positions, dtype=torch.long, device=rows.device)
        mask = additive(attention_allowed(sequences(rows, empty, v), v))
        keep = torch.arange(positions, device=rows.device) + texts.shape[1] + 1

        def predict(canvas: Tensor) -> Tensor:
            logits = self.logits(sequences(rows, canvas.repeat(copies, 1), v), mask, keep)
            logits = logits[..., v.first_code : v.first_code + v.codes].float()
            return logits if uncond is None else guided(logits[:count], logits[count:], scale)

        return predict


def _phi_config(config: ShowoConfig) -> Any:
    from transformers import PhiConfig

    return PhiConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        hidden_act=config.hidden_act,
        max_position_embeddings=config.max_position_embeddings,
        layer_norm_eps=config.layer_norm_eps,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": config.rope_theta,
            "partial_rotary_factor": config.partial_rotary_factor,
        },
        tie_word_embeddings=False,
        qk_layernorm=True,
        use_cache=False,
        attn_implementation="sdpa",
    )
