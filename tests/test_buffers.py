"""Plugins that return the same memory every call, or write into what they are given, as exported runtimes do."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plugin_runs import plugin, rows, run
from tests.support import TOY, pictures

BUFFERS = (
    TOY
    + """

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
        return Codes(ids=self.own("ids", ids), lengths=self.own("lengths", lengths))

    def decode(self, codes, seeds):
        for field in ("ids", "lengths"):
            self.own(field, torch.zeros_like(getattr(codes, field)))
        return self.own("images", super().decode(codes, seeds))

class Fresh(Reuses):
    def own(self, name, tensor):
        return tensor

class Latents(Toy):
    @property
    def info(self):
        return TokenizerInfo("toy", ids_per_image=None, vocabulary=None, input_size=64, output_size=64)

    def own(self, name, tensor):
        return tensor

    def encode(self, images):
        return Codes(latents=self.own("latents", F.adaptive_avg_pool2d(images, 16)))

    def decode(self, codes, seeds):
        return self.own("images", F.interpolate(codes.latents, size=64))

class ReusesLatents(Latents):
    kept = {}
    own = Reuses.own

class Writes(Fresh):
    noise = True

    def encode(self, images):
        codes = super().encode(images)
        images.zero_()
        return codes

    def decode(self, codes, seeds):
        images = super().decode(codes, seeds)
        codes.ids.zero_(), codes.lengths.zero_()
        seeds.clear()
        return images

class ReadsOnly(Fresh):
    noise = True
"""
)
PAIRS = [("reuses", "Reuses", "Fresh"), ("reuses", "ReusesLatents", "Latents"), ("writes", "Writes", "ReadsOnly")]


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
