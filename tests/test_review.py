"""What suite=review adds: costs seen from outside, codecs at the tokenizers' rates, drift, few-step curves."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from evals import run as command
from evals.config import ConfigError, compose_config
from evals.engine.examine import _of_call, _storage
from evals.engine.rows import Wanted, references_at, resolve_rows
from evals.metrics.image.hue import HUES, HueDrift
from evals.record import CostsOfStep, from_json, to_json
from lactok.interface import Tokenizer
from tests.metrics_support import scores
from tests.plugin_runs import plugin, run
from tests.support import ROOT, TOY, pictures

# A decoder that passes its network `steps` times, each time on the image and on a second one (guidance).
NETWORK = (
    TOY
    + """
from dataclasses import dataclass
from torch import nn


@dataclass
class Options:
    steps: int = 2
    broken: bool = False


class Steps(Toy):
    Options = Options

    def __init__(self, options, device):
        super().__init__(options, device)
        self.encoder = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        wide, narrow = (nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in ((3, 8), (8, 3)))
        self.decoder = nn.Sequential(wide, narrow)
        for p in (*self.encoder.parameters(), *self.decoder.parameters()):
            nn.init.zeros_(p)
        self.calls = 0

    def encode(self, images):
        self.encoder(images)
        return super().encode(images)

    def decode(self, encoded, seeds):
        self.calls += 1
        if self.options.broken and self.calls > 1:
            raise RuntimeError("it decodes once")
        images = super().decode(encoded, seeds)
        for _ in range(self.options.steps):
            images = images + self.decoder(torch.cat([images, images]))[: len(images)]
        return images
"""
)
CODECS = "jpeg,jpeg-payload,webp,webp-thumbnail"
REVIEW = ["suite=review", f"tokenizers=[steps,{CODECS}]", "options.steps.steps=[1,2,4]", "drift=3", "workers=1"]
METRICS = "metrics=[psnr,hue-drift,codes,duplicate-ids]"


@pytest.fixture(autouse=True)
def toys(tmp_path: Path):
    with plugin(tmp_path / "plugin", NETWORK, {"steps": "Steps"}):
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("data"), 4)


def test_a_review_has_costs_rates_drift_and_steps(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]):
    given = [*REVIEW, METRICS, "calibration=false", "dataset=folder", f"dataset.root='{data}'", f"out='{tmp_path}'"]
    assert command.main([*given, "--quiet"]) == 0, "unreachable rates are no fault"
    said = capsys.readouterr().out
    assert "unreachable" in said
    assert said.rstrip().endswith("report.html"), "what is to be opened stands last"
    (folder,) = tmp_path.glob("runs/review-*")
    record = from_json((folder / "run.json").read_text())
    assert from_json(to_json(record)) == record
    found = {row.label: row for row in record.rows}

    # what is known of the toy: 3x4x9 weights at 64x64 pixels; 3x8x9 and 8x3x9, twice an evaluation
    for label, steps in (("steps[steps=1]", 1), ("steps", 2), ("steps[steps=4]", 4)):
        costs = found[label].costs
        assert costs is not None
        assert costs.parameters == 108 + 216 + 216
        assert costs.steps["encode"].parameters == 108
        assert costs.steps["encode"].flops == 2 * 108 * 64 * 64
        assert costs.steps["decode"].parameters == 432
        assert costs.steps["decode"].flops == steps * 2 * 2 * 432 * 64 * 64
        assert costs.steps["decode"].evaluations == 2 * steps
    weights, image = 4 * 540, 4 * 64 * 64
    peak = costs.steps["decode"].peak_mib * 2**20
    assert weights + 2 * (3 + 8) * image < peak < weights + 40 * image

    assert found["webp-thumbnail"].status == found["jpeg-payload"].status == "ok"  # the usual rate
    assert found["jpeg"].status == found["webp"].status == "unreachable"
    assert found["jpeg"].error.startswith("headers alone exceed the rate")
    assert found["jpeg"].trace == ""
    at_toy = found["webp-thumbnail[bytes=64]"]  # the toy's 64 tokens of 8 bits
    assert at_toy.bits_per_image <= at_toy.max_bits_per_image == 512
    assert sum(at_toy.rate_parts.values()) * 8 == pytest.approx(at_toy.bits_per_image)
    assert at_toy.rate_parts["header"] == 29
    assert found["steps"].rate_parts == {}

    drift = found["steps"].drift
    assert set(drift) == {"PSNR", "PSNR-pooled", *(f"drift-{name}" for name in (*HUES, "grey")), "chroma-dc"}
    assert drift["PSNR"][0] == pytest.approx(found["steps"].cells["PSNR"].value, rel=1e-6), "four images: all of them"
    assert drift["PSNR"][0] >= drift["PSNR"][2]

    report = (folder / "report.md").read_text()
    assert "## Costs" in report
    assert "| jpeg-payload | 80 |" in report
    assert "| steps\\[steps=4\\] | 8 |" in report
    assert "PSNR ↑ (dB):\n\n| tokenizer | after 1 | after 2 | after 3 |" in report
    html = (folder / "report.html").read_text()
    for heading in ("Costs", "Few steps", "What files are made of", "Colour by hue", "Round trips"):
        assert f"<h2>{heading}</h2>" in html
    assert (folder / "few_steps.png").stat().st_size > 5000
    assert (folder / "round_trips.png").stat().st_size > 5000
    table = pd.read_csv(folder / "costs.csv").set_index("tokenizer")
    assert table.loc["steps", "decode_flops"] == found["steps"].costs.steps["decode"].flops
    assert list(pd.read_csv(folder / "round_trips.csv").query("tokenizer == 'steps'")["round_trips"]) == [1, 2, 3]

    assert command.main([*given, "--quiet"]) == 0
    again = from_json((folder / "run.json").read_text())
    assert [(r.label, r.status, r.cells, r.costs, r.drift) for r in again.rows] == [
        (r.label, r.status, r.cells, r.costs, r.drift) for r in record.rows
    ]


def test_a_row_that_fails_while_it_is_watched_keeps_its_figures(tmp_path: Path, data: Path):
    once = ["tokenizers=steps", "options.steps.broken=true", "metrics=[psnr]", "costs=true", "drift=2", "limit=1"]
    (row,) = run(data, tmp_path / "out", *once).record.rows
    assert row.status == "ok"
    assert row.cells["PSNR"].value is not None
    assert row.costs is not None
    assert row.costs.note.startswith("RuntimeError: it decodes once")


def test_nothing_is_watched_unless_it_is_asked_for(tmp_path: Path, data: Path):
    (row,) = run(data, tmp_path / "out", "tokenizers=steps", "metrics=[psnr]").record.rows
    assert row.costs is None
    assert row.drift == {}


def test_costs_and_drift_are_of_tokenizers():
    with pytest.raises(ConfigError, match=r"drift=-1: expected a number of round trips"):
        compose_config(["drift=-1"])
    with pytest.raises(ConfigError, match="costs and drift are of tokenizers, and suite=generate has none"):
        compose_config(["suite=generate", "costs=true"])


def test_a_suites_options_are_of_rows_that_the_command_has():
    assert "    python -m evals.run suite=review   " in (ROOT / "README.md").read_text()
    assert compose_config(["suite=review"]).options == {"lactok-t-mini": {"steps": [1, 2, 4]}}
    assert compose_config(["suite=review", "tokenizers=[llamagen,avif]"]).options == {}
    assert compose_config(["suite=review", "tokenizers=lactok-t"]).options == {"lactok-t-mini": {"steps": [1, 2, 4]}}
    paper = compose_config(["suite=review", "scale=paper"])
    assert set(paper.options) == {"lactok-t", "lactok-t-star"}
    assert paper.costs
    assert paper.drift == 10


def test_two_rates_of_one_thumbnail_are_one_row():
    there = resolve_rows(Wanted("tokenizers", ["llamagen"], "mini", True, {}, (Tokenizer,)))
    added = references_at(there, [640.0, 638.4, 288.0], "mini")
    assert [row.label for row in added["downsample-bits"]] == ["downsample-bits[bits=288]"]


def test_a_call_is_seen_through_attention_and_views():
    weight = torch.zeros(64, 64)
    q = torch.zeros(1, 2, 16, 32)

    def call() -> None:
        torch.nn.functional.scaled_dot_product_attention(q, q, q) @ torch.zeros(32, 64) @ weight.t()

    with torch.inference_mode():
        found = _of_call(call, {_storage(weight): weight.numel()}, 0)
    flops = 4 * 2 * 16 * 16 * 32 + 2 * 2 * 16 * 32 * 64 + 2 * 2 * 16 * 64 * 64
    assert (found.parameters, found.flops, found.evaluations) == (4096, flops, None)
    assert found == CostsOfStep(found.parameters, found.flops, None, found.peak_mib)


def test_hues_are_told_apart():
    pure = {"red": (255, 0, 0), "yellow": (255, 255, 0), "green": (0, 255, 0)}
    pure |= {"cyan": (0, 255, 255), "blue": (0, 0, 255), "magenta": (255, 0, 255), "grey": (90, 90, 90)}
    images = torch.tensor(list(pure.values()), dtype=torch.uint8)[:, :, None, None].expand(-1, -1, 16, 16).contiguous()
    found = scores(HueDrift(), images, images // 2)
    for place, name in enumerate(pure):
        assert found[f"{name}-cells"].tolist() == [64.0 * (i == place) for i in range(len(pure))]
    figures = HueDrift.summarise({key: value.numpy()[None] for key, value in found.items()}, [])
    assert all(figures[f"drift-{name}"] > 10 for name in pure)
    assert figures["chroma-dc"] < -20
    alone = {key: value.numpy()[None, 6:] for key, value in found.items()}
    assert pd.isna(HueDrift.summarise(alone, [])["chroma-dc"])
