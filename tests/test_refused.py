"""An item that a tokenizer refuses is counted and named; the others are scored as if it were not there."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from evals.config import ConfigError, Limit, compose_config
from evals.engine import run as engine
from evals.record import RowRecord, read
from evals.run import publish
from tests.plugin_runs import plugin, rows, run
from tests.support import TOY, pictures

PICKY = (
    TOY
    + """
from lactok.interface import ItemsRefused, Latents

def too_dark(images):
    return {i: f"mean {m:.2f} is too dark" for i, m in enumerate(images.mean(dim=(1, 2, 3)).tolist()) if m < LIMIT}

class AtEncode(Toy):
    def encode(self, images):
        if refused := too_dark(images):
            raise ItemsRefused(refused)
        return super().encode(images)

class AtDecode(Toy):
    def decode(self, encoded, seeds):
        images = super().decode(encoded, seeds)
        if refused := too_dark(images):
            raise ItemsRefused(refused)
        return images

class Continuous(AtEncode):
    @property
    def info(self):
        return TokenizerInfo("toy", tokens_per_image=None, codebook_size=None, input_size=64, output_size=64)

    def encode(self, images):
        if refused := too_dark(images):
            raise ItemsRefused(refused)
        return Latents(images)

    def decode(self, encoded, seeds):
        return encoded.values

class Noisy(AtEncode):
    noise = True

class All(AtEncode):
    def encode(self, images):
        raise ItemsRefused({i: "none is good enough" for i in range(len(images))})

class Nonsense(Toy):
    def encode(self, images):
        raise ItemsRefused({99: "not in the batch"})

class Nothing(Toy):
    def encode(self, images):
        raise ItemsRefused({})
"""
)
NAMES = {
    "toy": "Toy", "at-encode": "AtEncode", "at-decode": "AtDecode", "continuous": "Continuous", "noisy": "Noisy",
    "all-refused": "All", "nonsense": "Nonsense", "nothing": "Nothing",
}  # fmt: skip
METRICS = "metrics=[psnr,ssim,effnet,fd-effnet,codes]"
ANY = "max_refused=100%"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """17 images: a chunk of 16, and one of which every image may be refused."""
    return pictures(tmp_path_factory.mktemp("data"), 17)


@pytest.fixture
def picky(tmp_path: Path) -> Iterator[None]:
    """About a third of the images is too dark, the last one among them."""
    with plugin(tmp_path / "plugin", PICKY.replace("LIMIT", "0.4"), NAMES):
        yield


def refused_places(finished: engine.Finished, row: RowRecord) -> list[int]:
    return [i for i, item in enumerate(finished.job.dataset.items) if item.id in row.refused]


@pytest.mark.usefixtures("picky")
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_others_are_scored_as_if_it_were_not_there(tmp_path: Path, data: Path, ranks: int):
    wanted = "tokenizers=[toy,at-encode,at-decode]"
    finished = run(data, tmp_path / "out", ANY, wanted, METRICS, ranks=ranks)
    found = rows(finished)
    assert publish(finished, []) == 0
    frame = pd.read_parquet(finished.folder / "per_image.parquet")
    whole = frame[frame.row == "toy"].reset_index()
    for name in ("at-encode", "at-decode"):
        row = found[name]
        places = refused_places(finished, row)
        assert 0 < len(places) < 16
        assert all("is too dark" in reason for reason in row.refused.values())
        part = frame[frame.row == name].reset_index()
        kept = ~part.index.isin(places)
        for column in ("PSNR", "SSIM", "perc-effnet"):
            assert part[column][~kept].isna().all()
            np.testing.assert_allclose(part[column][kept], whole[column][kept], rtol=1e-5)
            cell = row.cells[column]
            assert cell.value == pytest.approx(whole[column][kept].mean(), rel=1e-5)
            assert (cell.count, cell.note) == (17 - len(places), f"incomplete: {len(places)} of 17 items refused")
        assert row.cells["FD-effnet"].count == 17 - len(places)
        assert row.cells["FD-effnet"].value > 0
        assert row.cells["FD-effnet"].note.endswith(f"incomplete: {len(places)} of 17 items refused")
    assert "FD-effnet" in found["toy"].cells
    assert "incomplete" not in found["toy"].cells["FD-effnet"].note + found["at-decode"].cells["entropy"].note
    assert found["at-encode"].cells["entropy"].note.startswith("incomplete: ")
    assert found["at-encode"].cells["entropy"].count == 17 - len(refused_places(finished, found["at-encode"]))
    assert found["at-decode"].cells["entropy"].count == 17, "it has tokens"
    assert found["toy"].refused == {}
    assert found["toy"].cells["PSNR"].note == ""
    report = (finished.folder / "report.md").read_text()
    assert next(iter(found["at-encode"].refused)) in report
    assert read(finished.folder / "run.json").rows == finished.record.rows


@pytest.mark.usefixtures("picky")
@pytest.mark.parametrize("name", ["at-encode", "at-decode", "continuous"])
def test_a_run_that_finds_all_done_names_them_too(tmp_path: Path, data: Path, name: str):
    first, again = (run(data, tmp_path / "out", ANY, f"tokenizers={name}", METRICS) for _ in range(2))
    assert first.record.rows[0].refused
    assert again.record.rows == first.record.rows
    later = run(data, tmp_path / "out", ANY, f"tokenizers={name}", "metrics=[colour]")
    assert later.record.rows[0].refused == first.record.rows[0].refused


@pytest.mark.usefixtures("picky")
def test_saved_images_and_several_seeds(tmp_path: Path, data: Path):
    both = ["tokenizers=noisy", "metrics=[psnr]", "seeds=2"]
    plain = run(data, tmp_path / "plain", ANY, *both)
    run(data, tmp_path / "out", ANY, *both, "save_images=true")
    saved = run(data, tmp_path / "out", ANY, "tokenizers=noisy", "metrics=[psnr,ssim]", "seeds=2", "save_images=true")
    assert saved.record.rows[0].refused == plain.record.rows[0].refused != {}
    assert saved.record.rows[0].cells["PSNR"] == plain.record.rows[0].cells["PSNR"]
    assert saved.record.rows[0].cells["SSIM"].count == plain.record.rows[0].cells["PSNR"].count
    values = saved.per_image["noisy"].values["PSNR"]
    assert values.shape == (2, 17)
    assert (np.isnan(values[0]) == np.isnan(values[1])).all()


@pytest.mark.usefixtures("picky")
def test_two_round_trips_leave_out_what_either_refuses(tmp_path: Path, data: Path):
    (row,) = run(data, tmp_path / "out", ANY, "tokenizers=at-encode", "metrics=[psnr]", "round_trips=2").record.rows
    assert (row.status, row.error) == ("ok", "")
    assert row.cells["PSNR"].count == 17 - len(row.refused) < 17


@pytest.mark.usefixtures("picky")
def test_where_all_are_refused_there_is_no_figure(tmp_path: Path, data: Path):
    finished = run(data, tmp_path / "out", ANY, "tokenizers=[all-refused,toy]", METRICS)
    found = rows(finished)
    assert len(found["all-refused"].refused) == 17
    for column in ("PSNR", "SSIM", "FD-effnet"):
        assert found["all-refused"].cells[column].value is None
    assert found["all-refused"].cells["PSNR"].note == "incomplete: 17 of 17 items refused"
    assert math.isfinite(found["toy"].cells["PSNR"].value)
    assert publish(finished, []) == 0


@pytest.mark.usefixtures("picky")
@pytest.mark.parametrize(("name", "seen"), [("nonsense", r"items [99]"), ("nothing", "items []")])
def test_a_refusal_that_names_no_item_of_the_batch_fails_the_row(tmp_path: Path, data: Path, name: str, seen: str):
    found = rows(run(data, tmp_path / "out", ANY, f"tokenizers=[{name},toy]", "metrics=[psnr]"))
    assert found[name].status == "failed"
    assert seen in found[name].error
    assert "positions 0 to 15" in found[name].error
    assert found["toy"].status == "ok"


@pytest.mark.usefixtures("picky")
@pytest.mark.parametrize("limit", [[], ["max_refused=2"], ["max_refused=10%"]])
def test_a_row_that_refuses_more_than_the_limit_fails_with_the_first_reasons(
    tmp_path: Path, data: Path, limit: list[str]
):
    found = rows(run(data, tmp_path / "out", "tokenizers=[at-encode,toy]", "metrics=[psnr]", *limit))
    row = found["at-encode"]
    assert (row.status, row.cells) == ("failed", {})
    assert f"{len(row.refused)} of 17 images refused, max_refused={limit[0][12:] if limit else '1%'}" in row.error
    assert "is too dark" in row.error
    assert next(iter(row.refused)) in row.error
    assert found["toy"].status == "ok"


@pytest.mark.usefixtures("picky")
def test_a_row_that_refuses_as_many_as_the_limit_is_measured(tmp_path: Path, data: Path):
    (row,) = run(data, tmp_path / "out", ANY, "tokenizers=at-encode", "metrics=[psnr]").record.rows
    (same,) = run(
        data, tmp_path / "out", f"max_refused={len(row.refused)}", "tokenizers=at-encode", "metrics=[psnr]"
    ).record.rows
    assert same == row


@pytest.mark.parametrize(("text", "items", "most"), [("1%", 5000, 50), ("1%", 99, 0), ("3", 10, 3), ("100%", 7, 7)])
def test_a_limit_is_a_number_or_a_share(text: str, items: int, most: int):
    assert Limit(text).of(items) == most


@pytest.mark.parametrize("given", ["-1", "101%", "many", "1.5", "-1%"])
def test_a_limit_that_is_none_is_refused(given: str):
    with pytest.raises(ConfigError, match="max_refused="):
        compose_config([f"max_refused={given}"])


BROKEN = (
    TOY
    + """
class Stated(Toy):
    fields = {}

    @property
    def info(self):
        import dataclasses
        return dataclasses.replace(super().info, **self.fields)

ONE = RuntimeError("the network broke")

class Breaks(Toy):
    def encode(self, images):
        raise ONE

class BreaksToo(Breaks):
    pass
"""
)


def stating(number: int, fields: str) -> str:
    return f"\nclass Stated{number}(Stated):\n    fields = {fields}\n"


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("few"), 5)


def test_what_a_plugin_states_wrongly_fails_its_row_alone(tmp_path: Path, few: Path):
    wrong = {
        "dict(codebook_size=0)": "info.codebook_size is 0, expected a whole number of at least 1",
        "dict(tokens_per_image=16.5)": "info.tokens_per_image is 16.5, expected a whole number",
        "dict(output_size=-1)": "info.output_size is -1, expected 1 to",
    }
    source = BROKEN + "".join(stating(i, fields) for i, fields in enumerate(wrong))
    source += "\nclass None_(Toy):\n    info = None\n"
    names = {f"stated-{i}": f"Stated{i}" for i in range(len(wrong))} | {"none": "None_", "toy": "Toy"}
    with plugin(tmp_path / "plugin", source, names):
        finished = run(few, tmp_path / "out", f"tokenizers=[{','.join(names)}]", "metrics=[psnr,codes]")
        assert publish(finished, []) == 1
    found = rows(finished)
    for i, message in enumerate(wrong.values()):
        assert found[f"stated-{i}"].status == "failed"
        assert message in found[f"stated-{i}"].error
    assert "info is NoneType, expected lactok.interface.TokenizerInfo" in found["none"].error
    assert found["toy"].status == "ok"
    assert read(finished.folder / "run.json").rows == finished.record.rows


def test_an_error_names_the_images_it_was_given(tmp_path: Path, few: Path):
    with plugin(tmp_path / "plugin", BROKEN, {"breaks": "Breaks", "too": "BreaksToo"}):
        finished = run(few, tmp_path / "out", "tokenizers=[breaks,too]", "metrics=[psnr]")
        alone = run(few, tmp_path / "out", "tokenizers=breaks", "metrics=[psnr]", "batch_size=1")
    items = [item.id for item in finished.job.dataset.items]
    for row in finished.record.rows:
        assert row.error == f"RuntimeError: the network broke (in a batch of 5: {', '.join(items[:4])}, ...)"
    assert alone.record.rows[0].error == f"RuntimeError: the network broke (at {items[0]})"
