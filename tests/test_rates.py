"""A table has a reference of equal rate for every rate that its models spend."""

from pathlib import Path

import pytest

from evals.config import compose_config
from evals.engine import run as engine
from evals.engine.rows import Wanted, references_at, resolve_rows
from evals.record import RowRecord
from evals.report.rate import rate_points
from lactok.interface import Tokenizer
from tests.plugin_runs import plugin, rows, run, together
from tests.support import TOY, pictures

# 512 bits, 96 bits, and a mean between those that depends on the images.
RATES = (
    TOY
    + """
class Small(Toy):
    @property
    def info(self):
        return TokenizerInfo("toy", tokens_per_image=12, codebook_size=256, input_size=64, output_size=64)

    def encode(self, images):
        return Tokens(super().encode(images).ids[:, :12])

    def decode(self, encoded, seeds):
        return super().decode(Tokens(F.pad(encoded.ids, (0, 52))), seeds)


class Variable(Toy):
    def encode(self, images):
        return Tokens(super().encode(images).ids, (images.mean(dim=(1, 2, 3)) * 60).long())


class Breaks(Small):
    def encode(self, images):
        raise RuntimeError("no rate was measured")
"""
)
NAMES = {"toy": "Toy", "toy-too": "Toy", "small": "Small", "variable": "Variable", "breaks": "Breaks"}
USUAL = ["metrics=[psnr]", "calibration=true"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("data"), 18)


@pytest.fixture(autouse=True)
def toys(tmp_path: Path):
    with plugin(tmp_path / "plugin", RATES, NAMES):
        yield


def references(found: dict[str, RowRecord]) -> list[str]:
    return [label for label, row in found.items() if row.name == "downsample-bits"]


def test_every_measured_rate_has_its_reference(tmp_path: Path, data: Path):
    names = "tokenizers=[toy,toy-too,small,variable]"
    finished = run(data, tmp_path / "out", names, *USUAL)
    found = rows(finished)
    spent = round(found["variable"].bits_per_image)
    assert 96 < spent < 512
    assert references(found) == ["downsample-bits", *(f"downsample-bits[bits={b}]" for b in (512, spent, 96))]
    assert list(found)[-1] == "mean-colour", "references stand together, in the place of the first"
    for label, limit in zip(references(found), (640, 512, spent, 96)):
        assert found[label].status == "ok"
        assert 0.7 * limit < found[label].bits_per_image <= limit
    curve = rate_points(finished.record, "PSNR")["downsample-bits"]
    assert len(curve) == 4
    alone = rows(run(data, tmp_path / "alone", "tokenizers=toy", *USUAL, "options.downsample-bits.bits=[640,100]"))
    assert references(alone) == ["downsample-bits", "downsample-bits[bits=100]"], (
        "a run that sets the rates itself has those"
    )
    assert alone["downsample-bits"].cells == found["downsample-bits"].cells
    again = run(data, tmp_path / "out", names, *USUAL)
    assert again.record.rows == finished.record.rows
    assert again.folder == finished.folder


def test_two_ranks_agree_on_them(tmp_path: Path, data: Path):
    names = ["tokenizers=[toy,variable]", *USUAL, "dataset=folder", f"dataset.root='{data}'"]
    finished, errors = together([*names, f"out='{tmp_path / 'two'}'"])
    assert errors == []
    one = engine.run(compose_config([*names, f"out='{tmp_path / 'one'}'"]), quiet=True)
    assert [(r.label, r.cells) for r in finished.record.rows] == [(r.label, r.cells) for r in one.record.rows]
    assert len(references(rows(finished))) == 3


def test_a_lost_artifact_is_made_again_and_the_references_come(tmp_path: Path, data: Path, monkeypatch):
    names = ["tokenizers=[toy,variable]", *USUAL]
    first = run(data, tmp_path / "out", *names)
    variable = next(r for r in first.job.runs if r.row.label == "variable")
    lost = [first.job.cache._folder(first.job.task.tokens(variable, chunk)) for chunk in first.job.chunks]
    (lost[1] / "data.safetensors").write_bytes(b"damaged")
    again = run(data, tmp_path / "out", *names)
    assert [(r.label, r.status, r.cells) for r in again.record.rows] == [
        (r.label, r.status, r.cells) for r in first.record.rows
    ]


def test_without_calibration_or_a_measured_rate_there_is_none(tmp_path: Path, data: Path):
    assert references(rows(run(data, tmp_path / "out", "tokenizers=toy", "metrics=[psnr]"))) == []
    failed = rows(run(data, tmp_path / "out", "tokenizers=breaks", "metrics=[psnr]", "calibration=true"))
    assert references(failed) == ["downsample-bits"]


def wanted(options: dict) -> list:
    return resolve_rows(Wanted("tokenizers", ["toy"], "mini", True, options, (Tokenizer,)))


def test_rates_that_round_to_one_or_are_there_already_add_nothing():
    added = references_at(wanted({}), [640.0, 640.4, 72.4, 72.1, 2.0], "mini")
    assert {name: [row.label for row in rows] for name, rows in added.items()} == {
        "downsample-bits": ["downsample-bits[bits=72]"]
    }
    assert references_at(wanted({"downsample-bits": {"bits": [100, 200]}}), [72.0], "mini") == {}
    assert references_at(wanted({}), [], "mini") == {}
