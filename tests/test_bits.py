"""Bits of an image are those that its tokens take, not the most that they may take."""

import io
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from evals.metrics.tokens import mean_bits
from evals.report.markdown import render
from evals.report.rate import rate_plot, rate_points
from evals.report.table import bits_text, raw_frame
from evals.run import publish
from lactok.interface import TokenizerInfo, Tokens
from tests.plugin_runs import plugin, rows, run
from tests.support import TOY, pictures

# A file format in small: brighter images take more of 200 positions, and so do finer steps.
VARIABLE = (
    TOY
    + """
from dataclasses import dataclass


@dataclass
class Options:
    quality: int = 1


class Variable(Toy):
    Options = Options

    @property
    def info(self):
        return TokenizerInfo("toy", tokens_per_image=200, codebook_size=256, input_size=64, output_size=64)

    def encode(self, images):
        ids = torch.nn.functional.pad(super().encode(images).ids, (0, 136))
        return Tokens(ids, (images.mean(dim=(1, 2, 3)) * 40 * self.options.quality).long() + 64)

    def decode(self, encoded, seeds):
        return super().decode(Tokens(encoded.ids[:, :64]), seeds)


class Breaks(Variable):
    def encode(self, images):
        raise RuntimeError("no encoder here")
"""
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("data"), 5)


def test_the_bits_of_a_row_are_the_mean_over_its_images(tmp_path: Path, data: Path):
    with plugin(tmp_path / "plugin", VARIABLE, {"variable": "Variable", "breaks": "Breaks", "toy": "Toy"}):
        finished = run(
            data, tmp_path / "out", "tokenizers=[variable,breaks,toy]", "options.variable.quality=[1,2,3]",
            "metrics=[psnr,ssim]",
        )  # fmt: skip
        publish(finished, [])
    found = rows(finished)
    for work in finished.job.runs:
        if work.row.name == "variable":
            entries = [finished.job.cache.read(finished.job.task.tokens(work, c)) for c in finished.job.chunks]
            lengths = np.concatenate([entry.arrays["lengths"] for entry in entries])
            row = found[work.row.label]
            assert row.bits_per_image == pytest.approx(8 * lengths.mean())
            assert 64 * 8 < row.bits_per_image < row.max_bits_per_image == 1600
    bits = [found[label].bits_per_image for label in ("variable", "variable[quality=2]", "variable[quality=3]")]
    assert bits == sorted(set(bits))
    assert (found["toy"].bits_per_image, found["toy"].max_bits_per_image) == (512, 512)
    assert (found["breaks"].bits_per_image, found["breaks"].max_bits_per_image) == (None, 1600)
    table = pd.read_csv(finished.folder / "table.csv", index_col=0)
    assert table.loc["variable", "bits_per_image"] == pytest.approx(bits[0])
    assert table.loc["variable", "max_bits_per_image"] == 1600
    assert table.loc["variable", "bits_per_pixel"] == pytest.approx(bits[0] / 128**2)
    assert bits_text(found["variable"]) == f"{bits[0]:,.0f} (≤ 1,600)"
    assert bits_text(found["breaks"]) == "≤ 1,600"
    assert bits_text(found["toy"]) == "512"
    assert bits_text(found["variable"]) in render(finished.record)
    assert [point[0] for point in rate_points(finished.record, "PSNR")["variable"]] == pytest.approx(bits)
    assert Image.open(io.BytesIO(rate_plot(finished.record))).size[0] > 400
    assert raw_frame(finished.record)["max_bits_per_image"].dtype == "float64"


def test_a_tokenizer_that_keeps_a_prefix_of_fixed_length_spends_its_maximum(tmp_path: Path, data: Path):
    finished = run(
        data, tmp_path / "out", "tokenizers=flextok", "options.flextok.keep_ids=[8,64]", "metrics=[psnr]", "limit=2"
    )
    for row in finished.record.rows:
        assert row.bits_per_image == row.max_bits_per_image == row.tokens_per_image * math.log2(row.codebook_size)
    assert [row.tokens_per_image for row in finished.record.rows] == [8, 64]


@pytest.mark.parametrize(
    ("shape", "codebook", "lengths", "bits"),
    [
        ((2, 4), 1000, None, 4 * math.log2(1000)),
        ((2, 4), 16, [4, 4], 16.0),
        ((2, 4), 16, [1, 2], 6.0),
        ((2, 4), 16, [0, 0], 0.0),
        ((2, 4, 3), (2, 4, 16), [4, 2], 3 * 7.0),
        ((2, 4, 3), 8, [1, 1], 9.0),
    ],
)
def test_mean_bits(shape: tuple[int, ...], codebook, lengths, bits: float):
    tokens = Tokens(torch.zeros(shape, dtype=torch.int64), None if lengths is None else torch.tensor(lengths))
    info = TokenizerInfo("test", math.prod(shape[1:]), codebook, 8, 8)
    assert mean_bits(tokens, info) == pytest.approx(bits)


def test_no_codebook_no_bits():
    assert mean_bits(Tokens(torch.zeros(1, 4, dtype=torch.int64)), TokenizerInfo("test", None, None, 8, 8)) is None
