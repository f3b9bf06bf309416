"""SeedTok in miniature: the tokenizer and its painter as one network with one configuration and one checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from baselines.tokenizers.seedtok.model import SeedConfig, SeedModel
from baselines.tokenizers.seedtok.painter import PainterConfig, build_unet


@dataclass(frozen=True)
class SeedMiniConfig:
    """tokenizer, painter: the two networks."""

    tokenizer: SeedConfig = field(default_factory=SeedConfig)
    painter: PainterConfig = field(default_factory=PainterConfig)

    def __post_init__(self) -> None:
        for name, cls in (("tokenizer", SeedConfig), ("painter", PainterConfig)):
            if isinstance(value := getattr(self, name), dict):  # JSON gives mappings
                object.__setattr__(self, name, cls(**value))


class SeedMini(nn.Module):
    """Both networks, under one state dict."""

    def __init__(self, config: SeedMiniConfig) -> None:
        super().__init__()
        self.tokenizer = SeedModel(config.tokenizer)
        self.unet = build_unet(config.painter, config.tokenizer.image_features_dim)
