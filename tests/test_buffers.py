"""Plugins that return the same memory every call, or write into what they are given, as exported runtimes do."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plugin_runs import plugin, rows, run
from tests.support import TOY, pictures

BUFFERS = (
    TOY
    + """
from lactok.interface import Latents

class Reuses(Toy):
    kept = {}

    def own(self, name, tensor):
        kept = self.kept.get(name)
        if kept is None or len(kept) < len(tensor):
            kept = self.kept[name] = tensor.clone()
        kept[:len(tensor)] = tensor
        return kept[:len(tensor)]

    def encode(self, images):
        ids = super().encode(images).ids
        lengths = (ids[:, 0] % 64) + 1
        return Tokens(self.own("ids", ids), self.own("lengths", lengths))

    def decode(self, tokens, seeds):
        for field in ("ids", "lengths"):
            self.own(field, torch.zeros_like(getattr(tokens, field)))
        return self.own("images", super().decode(tokens, seeds))

class Fresh(Reuses):
    def own(self, name, tensor):
        return tensor

class Continuous(Toy):
    @property
    def info(self):
        return TokenizerInfo("toy", tokens_per_image=None, codebook_size=None, input_size=64, output_size=64)

    def own(self, name, tensor):
        return tensor

    def encode(self, images):
        return Latents(self.own("latents", F.adaptive_avg_pool2d(images, 16)))

    def decode(self, latents, seeds):
        return self.own("images", F.interpolate(latents.values, size=64))

class ReusesLatents(Continuous):
    kept = {}
    own = Reuses.own

class Writes(Fresh):
    noise = True

    def encode(self, images):
        tokens = super().encode(images)
        images.zero_()
        return tokens

    def decode(self, tokens, seeds):
        images = super().decode(tokens, seeds)
        tokens.ids.zero_(), tokens.lengths.zero_()
        seeds.clear()
        return images

class ReadsOnly(Fresh):
    noise = True
"""
)
PAIRS = [("reuses", "Reuses", "Fresh"), ("reuses", "ReusesLatents", "Continuous"), ("writes", "Writes", "ReadsOnly")]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("data"), 20)


@pytest.mark.parametrize(("name", "rude", "polite"), PAIRS)
def test_memory_that_is_used_again_changes_no_figure(tmp_path: Path, data: Path, name: str, rude: str, polite: str):
    with plugin(tmp_path / "plugin", BUFFERS, {name: rude, "polite": polite}):
        more = ["metrics=[psnr,ssim,codes]", "batch_size=4", "seeds=2"]
        found = rows(run(data, tmp_path / "out", f"tokenizers=[{name},polite]", *more))
    assert found[name].status == found["polite"].status == "ok", found[name].error
    assert found[name].cells == found["polite"].cells
    assert len(found["polite"].cells) > 3
