"""The report: what is shown, what is marked, what is written, for a run in which everything happens at once."""

import dataclasses
import io
import math

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageFont
from rich.console import Console

from evals import record
from evals.record import ColumnRecord, RowRecord, RunRecord, Value, WeightsRecord
from evals.report.console import print_run
from evals.report.contact import LABELS, contact_sheet, wrapped
from evals.report.markdown import MOST_LEFT_OUT, cell, render, write_report
from evals.report.rate import rate_points
from evals.report.table import interval_text, number_text, raw_frame, shown_table
from evals.store import StoreError

PSNR = ColumnRecord("PSNR", "higher", 2, "dB", "mean over pictures", per_image=True)
PERC = ColumnRecord("perc-effnet", "lower", 4, "", "perceptual distance", per_image=True)
TOP1 = ColumnRecord("top1-effnet", "higher", 1, "%", "pictures whose predicted class is kept", per_image=True)
FD = ColumnRecord("FD-effnet", "lower", 2, "", "Fréchet distance")
ENTROPY = ColumnRecord("id entropy", None, 2, "bits")
BIASED = "N=200 < 1280 dims: biased"
SHA = "0123456789abcdef" * 4


def cells(psnr: float, perc: float, top1: float, fd: float) -> dict[str, Value]:
    return {
        "PSNR": Value(psnr, psnr - 1.2, psnr + 1.2, 200),
        "perc-effnet": Value(perc, perc - 0.1, perc + 0.3, 200),
        "top1-effnet": Value(top1, count=200),
        "FD-effnet": Value(fd, count=200, note=BIASED),
        "MSE": Value(100 / psnr, count=200),
    }


def make_run(**changes) -> RunRecord:
    weights = [WeightsRecord("lactok:checkpoints/a-mini.safetensors", SHA, True)]
    perfect = {
        "PSNR": Value(math.inf, count=200, infinite=200),
        "perc-effnet": Value(0.0, 0.0, 0.0, 200),
        "top1-effnet": Value(1.0, count=200),
        "FD-effnet": Value(-1e-9, count=200, note=BIASED),
    }
    a = cells(22.494, 3.0, 0.31, 210.0)
    b = cells(21.9, 2.8, 0.31, 190.0)
    b["PSNR"].seeds = 0.0312
    b["id entropy"] = Value(8.5, count=200)
    resized = cells(31.75, 0.7, 0.81, 67.0)
    resized["PSNR"].infinite = 3
    conditions = {
        "precision": "fp32",
        "seeds": 1,
        "encode_batch": [16],
        "decode_batch": [8, 16],
        "encode_images_per_second": 312.04,
        "decode_images_per_second": 280.0,
        "peak_mib": 812.3,
        "threads": [2],
    }
    rows = [
        RowRecord("identity", "identity", family="calibration", cells=perfect),
        RowRecord("resize-64", "resize-64", family="calibration", input_size=64, output_size=64, cells=resized),
        RowRecord(
            "a-mini",
            "a-mini",
            family="A",
            ids_per_image=64,
            vocabulary=1024,
            bits_per_image=640.0,
            input_size=64,
            output_size=64,
            training="900 steps, 0.97 core-h",
            weights=weights,
            conditions=conditions,
            cells=a,
        ),
        RowRecord("b-mini[steps=2]", "b-mini", {"steps": 2}, family="B", deterministic=False, cells=b),
        RowRecord("c-mini", "c-mini", status="missing", error="c.safetensors is not here:\nrun `hf download x/c`"),
        RowRecord("d|toy", "d", status="failed", family="D", error="decode gave 12 NaN values", bits_per_image=640.0),
    ]
    fields = {
        "suite": "recon",
        "scale": "mini",
        "config_hash": "0a1b2c3d4e",
        "config": {"weights": "mini", "features": "effnet", "seed": 0},
        "protocol": {"name": "mini-128", "eval_size": 128, "fit": "squash", "rounding": "half_up"},
        "protocol_hash": "e2a4c96a10ff",
        "dataset": "photos",
        "dataset_fingerprint": SHA[::-1],
        "pictures": 200,
        "clusters": 5,
        "columns": [PSNR, PERC, TOP1, FD, ENTROPY],
        "rows": rows,
        "command": "python -m evals.run suite=recon tokenizers=all",
        "device": "a processor, 2 threads",
        "versions": {"python": "3.11.7", "torch": "2.7.0"},
        "code_revision": "f9eacdf01234+changes",
        "started": "2025-01-01T00:00:00+00:00",
        "seconds": 71.3,
        "complete": True,
    }
    return RunRecord(**(fields | changes))


def without_intervals(run: RunRecord) -> RunRecord:
    for row in run.rows:
        for value in row.cells.values():
            value.low = value.high = None
    return run


def line_of(text: str, start: str) -> str:
    (line,) = [line for line in text.splitlines() if line.startswith(start)]
    return line


def printed(run: RunRecord, width: int = 120) -> str:
    console = Console(width=width, record=True, file=io.StringIO(), color_system=None)
    print_run(run, console)
    return console.export_text()


# --- figures


@pytest.mark.parametrize(
    ("value", "column", "text"),
    [
        (22.495001, PSNR, "22.50"),
        (math.inf, PSNR, "∞"),
        (-math.inf, PSNR, "−∞"),
        (-1e-9, FD, "0.00"),
        (-1.5, FD, "−1.50"),
        (12345.678, FD, "12,345.68"),
        (0.3149, TOP1, "31.5"),
        (1.0, TOP1, "100.0"),
    ],
)
def test_numbers(value, column, text):
    assert number_text(value, column) == text


@pytest.mark.parametrize(
    ("value", "column", "text"),
    [
        (Value(22.0, 20.8, 23.2), PSNR, "±1.2"),
        (Value(22.0, 21.988, 22.012), PSNR, "±0.01"),
        (Value(22.0, 21.8, 22.7), PSNR, "+0.70/−0.20"),
        (Value(210.0, 202.0, 222.0), FD, "+12/−8"),
        (Value(0.5, 0.44, 0.56), TOP1, "±6.0"),
        (Value(5.0, 6.0, 7.0), FD, "[6.00, 7.00]"),
        (Value(5.0, None, None), FD, ""),
        (Value(1.0, 1.0, 1.0), TOP1, ""),
        (Value(-1e-9, -1e-6, 1e-6), FD, ""),
        (Value(math.inf, 1.0, 2.0), PSNR, ""),
    ],
)
def test_intervals(value, column, text):
    assert interval_text(value, column) == text


def test_best_is_the_best_tokenizer_and_never_a_calibration_row():
    run = make_run()
    run.rows[1].cells["PSNR"] = Value(22.494, count=200)  # as good as the best tokenizer, and still no competitor
    table = shown_table(run)
    bold = {(row.label, c.name) for row in table.rows for c, cell in zip(table.columns, row.cells) if cell.best}
    assert bold == {
        ("a-mini", "PSNR"),
        ("b-mini[steps=2]", "perc-effnet"),
        ("a-mini", "top1-effnet"),  # they look the same, so both are marked
        ("b-mini[steps=2]", "top1-effnet"),
        ("b-mini[steps=2]", "FD-effnet"),
    }


def test_the_figure_closest_to_zero_is_best():
    """Of either sign; two that look the same but for the sign are both marked."""
    shift = ColumnRecord("brightness-dl", "zero", 2, "", "too bright above 0", per_image=True)
    run = make_run(columns=[shift])
    for row, value in zip(run.rows[1:4], (0.0, -0.501, 0.7), strict=True):
        row.cells["brightness-dl"] = Value(value)
    assert [row.cells[0].best for row in shown_table(run).rows[:4]] == [False, False, True, False]
    assert shown_table(run).rows[2].cells[0].text == "−0.50"
    run.rows[3].cells["brightness-dl"] = Value(0.4999)
    assert [row.cells[0].best for row in shown_table(run).rows[:4]] == [False, False, True, True]
    assert "| brightness-dl →0 |" in render(run)
    assert "| brightness-dl | zero | – | too bright above 0 |" in render(run)
    assert "→0 closer to 0" in render(run)
    assert "→0 closer to 0" in printed(run)
    assert record.from_json(record.to_json(run)).columns == [shift]


def test_nothing_is_best_where_nothing_competes():
    run = make_run()
    run.rows = run.rows[:3]
    assert not any(cell.best for row in shown_table(run).rows for cell in row.cells)


def test_footnotes_are_shared_and_numbered_in_order():
    table = shown_table(make_run())
    assert table.footnotes == [
        BIASED,
        "3 of 200 pictures are identical: infinite, not averaged",
        "c-mini: missing: c.safetensors is not here: run `hf download x/c`",
        "d|toy: failed: decode gave 12 NaN values",
    ]
    assert [row.cells[3].marks for row in table.rows[:4]] == ["¹"] * 4
    assert table.rows[1].cells[0].marks == "²"
    assert table.rows[0].cells[0].marks == ""  # all infinite: the figure says so itself
    assert [row.marks for row in table.rows] == ["", "", "", "", "³", "⁴"]


# --- markdown


def test_mini_is_warned_of_and_paper_is_not():
    warning = "never compare with the paper's"
    assert warning in render(make_run())
    paper = {"scale": "paper", "config": {"weights": "paper", "features": "inception", "seed": 0}}
    assert warning not in render(make_run(**paper))
    assert warning in render(make_run(scale="paper"))  # miniatures' weights under the paper's protocol
    assert warning in printed(make_run())
    assert warning not in printed(make_run(**paper))


def test_the_table_in_markdown():
    text = render(make_run())
    header = line_of(text, "| tokenizer | bits |")
    assert header == (
        "| tokenizer | bits | PSNR ↑ (dB) | perc-effnet ↓ | top1-effnet ↑ (%) | FD-effnet ↓ | id entropy (bits) "
        "| training |"
    )
    main = text.split("## Metrics")[0]
    assert line_of(main, "| identity") == "| identity | – | ∞ | 0.0000 | 100.0 | 0.00¹ | – | – |"
    assert line_of(main, "| a-mini") == (
        "| a-mini | 640 | **22.49** ±1.2 | 3.0000 +0.30/−0.10 | **31.0** | 210.00¹ | – | 900 steps, 0.97 core-h |"
    )
    assert line_of(main, "| c-mini") == "| c-mini **missing**³ | – | – | – | – | – | – | – |"
    assert line_of(main, "| d") == "| d\\|toy **failed**⁴ | 640 | – | – | – | – | – | – |"
    assert "3. c-mini: missing: c.safetensors is not here: run \\`hf download x/c\\`" in main
    assert "4. d\\|toy: failed: decode gave 12 NaN values" in main


def test_every_table_in_markdown_is_well_formed():
    rows = 0
    for block in render(make_run()).split("\n\n"):
        lines = block.strip().splitlines()
        if lines and lines[0].startswith("|"):
            rows += len(lines)
            widths = {line.replace("\\|", "").count("|") for line in lines}
            assert len(widths) == 1, block
            assert all(line.startswith("|") and line.endswith("|") for line in lines), block
    assert rows > 30


@pytest.mark.parametrize(
    "part",
    [
        "python -m evals.run suite=recon tokenizers=all",
        "200 pictures of photos from 5 sources",
        "95 % interval clustered by the 5 sources",
        "hash `e2a4c96a10ff`",
        "| `rounding` | half\\_up |",
        f"`{SHA[::-1]}`",
        f"sha256 `{SHA}` (pinned)",
        "scale | mini (weights mini, features effnet)",
        "a processor, 2 threads",
        "python 3.11.7, torch 2.7.0",
        "`f9eacdf01234+changes`",
        "| PSNR | higher | dB | mean over pictures |",
        "| a-mini | A | 64 → 64 | 64 × 1,024 | 640 | 0.0391 | deterministic | 900 steps, 0.97 core-h |",
        "| identity | calibration | 128 → 128 | – | – | – | deterministic | – |",
        "| a-mini | fp32 | 1 | 16 / 8, 16 | 2 | 312.0 | 280.0 | 812 |",
        "- b-mini\\[steps=2\\]: PSNR 0.031",
    ],
)
def test_the_report_says(part):
    assert part in render(make_run())


def test_notes_and_pictures_left_out():
    bad = [{"path": f"/data/{i:03}_x.png", "reason": "the file is empty (0 bytes)"} for i in range(MOST_LEFT_OUT + 7)]
    text = render(make_run(left_out=bad, notes=["2 picture(s): several frames"], missing_metrics=["rfid: not here"]))
    assert f"({len(bad)} unreadable left out)" in text
    assert "- /data/000\\_x.png: the file is empty (0 bytes)" in text
    assert text.count("the file is empty") == MOST_LEFT_OUT
    assert "run.json has all" in text
    assert "- 2 picture(s): several frames" in text
    assert "- rfid: not here" in text
    assert "left out" not in render(make_run())


def test_an_incomplete_run_says_so():
    assert "not complete" in render(make_run(complete=False))
    assert "not complete" in printed(make_run(complete=False))
    assert "not complete" not in render(make_run()) + printed(make_run())


def test_no_interval_is_promised_where_there_is_none():
    assert "interval" not in render(without_intervals(make_run()))


def test_text_cannot_break_a_table():
    assert cell("a|b\nc `d` *e* <f> [g](h)") == "a\\|b c \\`d\\` \\*e\\* \\<f> \\[g\\](h)"


# --- the terminal


@pytest.mark.parametrize("width", [80, 120, 200])
def test_the_printed_table_fits(width):
    run = make_run()
    run.columns = [*run.columns, *(ColumnRecord(f"long metric {i}", "lower", 4) for i in range(6))]
    for row in run.rows:
        row.cells |= {f"long metric {i}": Value(0.5, 0.4, 0.6) for i in range(6)}
    text = printed(run, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for column in run.columns:
        assert column.name in " ".join(text.split())  # in the table, or named below it
    assert ("Not shown here, in the report: " in text) == (width < 200)


def test_the_printed_table_says_what_failed_and_why():
    text = printed(make_run(missing_metrics=["rfid: weights [x] are not here"]))
    assert "c-mini missing³" in text
    assert "4 d|toy: failed: decode gave 12 NaN values" in text
    assert "b-mini[steps=2]" in text
    assert "900 steps, 0.97 core-h" in text
    assert "rfid: weights [x] are not here" in text
    assert "protocol mini-128 (e2a4c96a10ff)" in text


# --- files


def test_files_hold_raw_numbers(tmp_path):
    run = record.from_json(record.to_json(make_run()))
    paths = write_report(run, tmp_path)
    assert [p.name for p in paths] == ["report.md", "table.csv", "table.parquet", "speed.csv"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in paths)
    csv, parquet = pd.read_csv(paths[1]), pd.read_parquet(paths[2])
    assert list(csv["tokenizer"]) == [row.label for row in run.rows]
    assert list(csv.columns) == list(parquet.columns)
    by_name = csv.set_index("tokenizer")
    assert by_name.loc["identity", "PSNR"] == math.inf
    assert by_name.loc["identity", "PSNR_infinite"] == 200
    assert tuple(by_name.loc["a-mini", ["PSNR", "PSNR_low", "PSNR_high"]]) == (22.494, 22.494 - 1.2, 22.494 + 1.2)
    assert by_name.loc["b-mini[steps=2]", "PSNR_seeds"] == 0.0312
    assert by_name.loc["a-mini", "top1-effnet"] == 0.31
    assert by_name.loc["a-mini", "bits_per_pixel"] == 640 / 128**2
    assert by_name.loc["a-mini", "MSE"] == 100 / 22.494  # no column of the shown table
    assert math.isnan(by_name.loc["c-mini", "PSNR"])
    assert by_name.loc["c-mini", "status"] == "missing"
    assert set(csv["protocol_hash"]) == {"e2a4c96a10ff"}
    assert set(csv["scale"]) == {"mini"}
    timed = pd.read_csv(paths[3])
    assert timed["encode_images_per_second"].notna().any()
    assert not set(timed.columns) & set(csv.columns) - {"tokenizer"}, "what is timed is in no table of results"
    raw = raw_frame(run).set_index("tokenizer")
    figures = ["PSNR", "PSNR_low", "perc-effnet", "id entropy_high", "bits_per_image"]
    for frame in (by_name, parquet.set_index("tokenizer")):
        np.testing.assert_array_equal(frame[figures].to_numpy(float), raw[figures].to_numpy(float))


def test_the_contact_sheet_is_shown_where_there_is_one(tmp_path):
    write_report(make_run(), tmp_path)
    assert "contact.png" not in (tmp_path / "report.md").read_text()
    (tmp_path / "contact.png").write_bytes(b"x")
    write_report(make_run(), tmp_path)
    assert "](contact.png)" in (tmp_path / "report.md").read_text()


def test_a_folder_that_cannot_be_written_keeps_the_old_report(tmp_path, monkeypatch):
    write_report(make_run(), tmp_path)
    before = (tmp_path / "report.md").read_text()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lactok.files.write_synced", full)
    with pytest.raises(StoreError, match="the disk is full"):
        write_report(make_run(complete=False), tmp_path)
    assert (tmp_path / "report.md").read_text() == before


# --- the contact sheet


def pictures(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8)


def test_contact_sheet_shows_the_very_pixels():
    originals, rows = pictures(8, 128, 128), [("a-mini", pictures(8, 128, 128, 1)), ("b", pictures(8, 128, 128, 2))]
    sheet = np.asarray(contact_sheet(originals, rows))
    assert sheet.shape == (3 * 132 - 4, 1220, 3)
    for line, (_, shown) in enumerate([("", originals), *rows]):
        for column in range(8):
            top, left = line * 132, LABELS + column * 132
            assert np.array_equal(sheet[top : top + 128, left : left + 128], shown[column])
    for line in range(3):  # every line has its label
        assert (sheet[line * 132 : line * 132 + 128, :LABELS] < 128).any()


def test_small_pictures_are_enlarged_without_smoothing():
    originals = pictures(8, 40, 60)
    sheet = np.asarray(contact_sheet(originals, []))
    assert np.array_equal(sheet[:80, LABELS : LABELS + 120], originals[0].repeat(2, axis=0).repeat(2, axis=1))


@pytest.mark.parametrize(("count", "side"), [(8, 1024), (1, 128), (3, 1), (8, 256)])
def test_contact_sheet_keeps_to_its_width(count, side):
    originals = pictures(count, side, side)
    sheet = contact_sheet(originals, [("identity", originals)])
    assert sheet.mode == "RGB"
    assert sheet.width <= 1220
    assert sheet.height <= 2 * 256 + 4


def test_long_labels_are_wrapped_whole():
    font = ImageFont.load_default(17)
    for label in ("b-mini[steps=2,guidance=1.5,weights=/a/very/long/path.safetensors]", "x" * 60, "short"):
        lines = wrapped(label, LABELS - 12, font)
        assert "".join(lines) == label
        assert all(font.getlength(line) <= LABELS - 12 for line in lines)


def test_the_rate_picture_joins_the_rows_of_one_tokenizer(tmp_path):
    run = make_run()
    row = next(r for r in run.rows if r.bits_per_image and r.status == "ok" and r.family != "calibration")
    half = dataclasses.replace(row, label=f"{row.label}[keep_ids=1]", bits_per_image=row.bits_per_image / 2)
    run.rows.append(half)
    points = rate_points(run, "PSNR")[row.name]
    assert [bits for bits, _, _ in points] == sorted(bits for bits, _, _ in points)
    assert len(points) >= 2
    write_report(run, tmp_path)
    with Image.open(tmp_path / "rate.png") as picture:
        assert min(picture.size) > 300
    assert "rate.png" in (tmp_path / "report.md").read_text()


def test_no_rate_no_picture(tmp_path):
    run = make_run()
    run.rows = [r for r in run.rows if r.bits_per_image is None]
    write_report(run, tmp_path)
    assert not (tmp_path / "rate.png").exists()
    assert "rate.png" not in (tmp_path / "report.md").read_text()
