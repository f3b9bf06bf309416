"""Names of TiTok's published checkpoint (bytedance/1d-tokenizer) <-> those of `TiTok`.

Only the transformer blocks are named otherwise: timm's here, torch's MultiheadAttention and CLIP's MLP there. Shapes
and the order of queries, keys and values inside the fused projection are the same.
"""

from __future__ import annotations

from baselines.tokenizers.titok.model import TiTok
from lactok.state_dict import StateDictAdapter, rename

_BLOCK = r"^((?:en|de)coder\.transformer\.\d+\.)"
_RULES = (  # ours, published
    (_BLOCK + r"norm([12])\.", r"\1ln_\2."),
    (_BLOCK + r"attn\.qkv\.", r"\1attn.in_proj_"),
    (_BLOCK + r"attn\.proj\.", r"\1attn.out_proj."),
    (_BLOCK + r"mlp\.fc1\.", r"\1mlp.c_fc."),
    (_BLOCK + r"mlp\.fc2\.", r"\1mlp.c_proj."),
)


class TiTokStateDict(StateDictAdapter[TiTok]):
    """The published `model.safetensors` and `tokenizer_titok_s128.bin`, both flat."""

    model_name = "the configured TiTok"

    def published_name(self, name: str) -> str:
        return rename(name, _RULES)
