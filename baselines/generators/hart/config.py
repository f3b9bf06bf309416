"""The sizes of a HART, and how the published configurations state them.

A published `config.json` leaves out what equals its class's default, so defaults here are those of the published
classes (hart/modules/models/transformer/configuration.py and autoencoder/configuration.py). `HART_700M` and its
tokenizer are what the 0.7b checkpoint is taken to be; its own files rule.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lactok.weights import CheckpointMismatch


@dataclass(frozen=True)
class TransformerConfig:
    """A transformer whose attention has rotary positions (`attn_type` llama), by the published names.

    context_token, context_dim: positions and width of the text's states. patch_nums: sides of the token maps, the last
    that of the latents. mlp_type: "llama" or "gpt2". disable_aln: blocks without adaptive norms, but for the table that
    shared_aln gives them. use_timestep_embed: levels are embedded by a sinusoid, else by a table. sep_aln_pooling_mode:
    "max" or "avg", of the adaptive norms' condition. diff_width, diff_depth, num_sampling_steps: of the residual head.
    """

    context_token: int = 77
    context_dim: int = 768
    depth: int = 16
    embed_dim: int = 1024
    num_heads: int = 16
    mlp_ratio: float = 4.0
    norm_eps: float = 1e-6
    shared_aln: bool = False
    attn_l2_norm: bool = False
    patch_nums: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    mlp_type: str = "gpt2"
    disable_aln: bool = False
    use_timestep_embed: bool = False
    sep_aln_pooling_mode: str = "max"
    use_context_norm: bool = False
    diff_width: int = 1024
    diff_depth: int = 6
    num_sampling_steps: int = 8

    def __post_init__(self) -> None:
        object.__setattr__(self, "patch_nums", tuple(self.patch_nums))  # JSON gives lists
        object.__setattr__(self, "num_sampling_steps", int(self.num_sampling_steps))  # published as text
        if len(self.patch_nums) < 2:
            raise ValueError(f"patch_nums {list(self.patch_nums)}: expected two or more")
        if self.embed_dim % (4 * self.num_heads):
            raise ValueError(f"embed_dim {self.embed_dim}: expected a multiple of 4 x num_heads, {4 * self.num_heads}")
        if self.mlp_type not in ("llama", "gpt2"):
            raise ValueError(f"mlp_type {self.mlp_type!r}: expected llama or gpt2")
        if self.sep_aln_pooling_mode not in ("max", "avg"):
            raise ValueError(f"sep_aln_pooling_mode {self.sep_aln_pooling_mode!r}: expected max or avg")
        if not 1 <= self.num_sampling_steps <= 1000:
            raise ValueError(f"num_sampling_steps {self.num_sampling_steps}: expected 1 to 1000")

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.embed_dim // self.num_heads

    @property
    def feed_forward(self) -> int:
        """Width inside the feed-forward network; the gated one is rounded up to a multiple of 256."""
        if self.mlp_type == "gpt2":
            return round(self.embed_dim * self.mlp_ratio)
        return int(self.embed_dim * self.mlp_ratio * 2 / 3 + 255) // 256 * 256

    @property
    def positions(self) -> int:
        """Of a whole sequence: the context in the place of the first map, then the other maps (9750)."""
        return self.context_token + sum(side**2 for side in self.patch_nums[1:])


@dataclass(frozen=True)
class TokenizerConfig:
    """The tokenizer, by the published names. quantizer_type: "var_hybrid" (discrete and continuous) or "var".

    quant_resi: share of the convolution in a map's contribution; share_quant_resi: how many convolutions all scales
    share, 0 for one each (then default_qresi_counts or as many as v_patch_nums). double_decoder: whether the file holds
    a second decoder, which generation does not use. beta: weight in the training loss.
    """

    vocab_size: int = 4096
    z_channels: int = 32
    ch: int = 160
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    beta: float = 0.25
    using_znorm: bool = False
    quant_conv_ks: int = 3
    quant_resi: float = 0.5
    share_quant_resi: int = 4
    default_qresi_counts: int = 0
    v_patch_nums: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    quantizer_type: str = "var"
    double_decoder: bool = False

    def __post_init__(self) -> None:
        for name in ("ch_mult", "v_patch_nums"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON gives lists
        if self.ch_mult[0] != 1:
            raise ValueError(f"ch_mult starts with {self.ch_mult[0]}, expected 1: change ch instead")
        if self.quantizer_type not in ("var", "var_hybrid"):
            raise ValueError(f"quantizer_type {self.quantizer_type!r}: expected var or var_hybrid")

    @property
    def downsample_factor(self) -> int:
        """Pixels of a latent's side (16)."""
        return 2 ** (len(self.ch_mult) - 1)

    @property
    def convolutions(self) -> int:
        """How many residual convolutions there are."""
        if abs(self.quant_resi) <= 1e-6:
            return 0
        return self.share_quant_resi or self.default_qresi_counts or len(self.v_patch_nums)


SCALES = (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64)
"""Sides of the 0.7b checkpoint's maps, for images of 1024 pixels (quoted by a public fork of the published code)."""

HART_700M = TransformerConfig(
    context_token=300,
    context_dim=1536,
    depth=24,
    embed_dim=1536,
    num_heads=24,
    attn_l2_norm=True,
    patch_nums=SCALES,
    mlp_type="llama",
    disable_aln=True,
    use_timestep_embed=True,
    use_context_norm=True,
)
"""What fits the 0.7b checkpoint's published number of parameters, 732,399,744."""

HART_TOKENIZER = TokenizerConfig(v_patch_nums=SCALES, quantizer_type="var_hybrid")

# The value that a setting must have, where the port does not vary it, and the published default.
_FIXED_TRANSFORMER = {
    "attn_type": ("llama", "gpt2"),
    "use_cross_attn": (False, False),
    "sampler": ("iddpm", "iddpm"),
    "model_type": ("hart_transformer_t2i", "hart_transformer_t2i"),
}
_FIXED_TOKENIZER = {"model_type": ("hart_autoencoder_with_disc", "hart_autoencoder_with_disc")}
# Settings of training, of speed, or starting values: no result of a loaded model depends on them.
_WITHOUT_EFFECT = {
    "vae_path", "num_classes", "drop_rate", "attn_drop_rate", "drop_path_rate", "cond_drop_rate", "flash_if_available",
    "fused_if_available", "diffusion_batch_mul", "diffusion_head_repeats", "latent_condition_weight",
    "context_norm_scale", "dropout", "test_mode", "levels", "hybrid", "disable_quant_resi",
    "freeze_codebook_for_hybrid",
    # what transformers writes itself
    "architectures", "torch_dtype", "dtype", "transformers_version", "_name_or_path", "auto_map",
}  # fmt: skip


@dataclass(frozen=True)
class Parsed:
    """What a configuration says. unknown: its keys that neither the port nor the published class knows; missing: keys
    of the class that it lacks, whose published defaults apply."""

    settings: dict[str, Any]
    unknown: tuple[str, ...]
    missing: tuple[str, ...]


def _parse(tree: Mapping[str, Any], cls: type[Any], fixed: Mapping[str, tuple[Any, Any]], what: str) -> Parsed:
    fields = [field.name for field in dataclasses.fields(cls)]
    problems = [
        f"{key} is {seen!r}, expected {wanted!r}{'' if key in tree else ' (the published default)'}"
        for key, (wanted, default) in fixed.items()
        if (seen := tree.get(key, default)) != wanted
    ]
    if problems:
        raise CheckpointMismatch(f"this is no {what} as the port computes it: {'; '.join(problems)}")
    unknown = tuple(key for key in tree if key not in (*fields, *fixed) and key not in _WITHOUT_EFFECT)
    missing = tuple(key for key in fields if key not in tree)
    return Parsed({key: tree[key] for key in fields if key in tree}, unknown, missing)


def parse_transformer(tree: Mapping[str, Any]) -> tuple[TransformerConfig, Parsed]:
    """The transformer of a published `llm/config.json`.

    Raises CheckpointMismatch listing each setting that this port does not have, or a value that is out of range.
    """
    parsed = _parse(tree, TransformerConfig, _FIXED_TRANSFORMER, "HART transformer")
    return _built(TransformerConfig, parsed.settings), parsed


def parse_tokenizer(tree: Mapping[str, Any]) -> tuple[TokenizerConfig, Parsed]:
    """The tokenizer of a published `tokenizer/config.json`. Raises CheckpointMismatch as `parse_transformer`."""
    parsed = _parse(tree, TokenizerConfig, _FIXED_TOKENIZER, "HART tokenizer")
    return _built(TokenizerConfig, parsed.settings), parsed


def _built(cls: type[Any], settings: Mapping[str, Any]) -> Any:
    try:
        return cls(**settings)
    except (TypeError, ValueError) as error:
        raise CheckpointMismatch(f"the configuration is none of a HART: {error}") from error


def listed(names: Iterable[str]) -> str:
    """Names for a message."""
    return ", ".join(names)
