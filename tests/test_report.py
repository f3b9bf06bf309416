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
from evals.engine.store import StoreError
from evals.record import ColumnRecord, Origin, RowRecord, RunRecord, Speed, Value, WeightsRecord
from evals.report.console import print_run
from evals.report.contact import LABELS, contact_sheet, wrapped
from evals.report.markdown import MOST_LEFT_OUT, cell, render, write_report
from evals.report.rate import rate_columns, rate_points
from evals.report.table import interval_text, number_text, raw_frame, shown_table, traceback_name

PSNR = ColumnRecord("PSNR", "higher", 2, "dB", "mean over images")
PERC = ColumnRecord("perc-effnet", "lower", 4, "", "perceptual distance")
TOP1 = ColumnRecord("top1-effnet", "higher", 1, "%", "images whose predicted class is kept")
FD = ColumnRecord("FD-effnet", "lower", 2, "", "Fréchet distance", kind="set")
ENTROPY = ColumnRecord("entropy", None, 2, "bits", kind="token", shown=False)
POOLED = ColumnRecord("PSNR-pooled", "higher", 2, "dB", mean=False)
BIASED = "N=200 < 1280 dims: biased"
SHA = "0123456789abcdef" * 4
HERE = Origin("a processor", 2, {"python": "3.11.7", "torch": "2.7.0"}, "f9eacdf01234+changes")
THERE = Origin("NVIDIA H100", 8, {"python": "3.12.1", "torch": "2.6.0"}, "0d15ea5e0000")


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
    b["entropy"] = Value(8.5, count=200)
    resized = cells(31.75, 0.7, 0.81, 67.0)
    resized["PSNR"].infinite = 3
    speed = {
        "encode": Speed(312.04, [16], [2], ["a processor"], 640.0),
        "decode": Speed(280.0, [8, 16], [8], ["NVIDIA H100"], 812.3),
    }
    rows = [
        RowRecord("identity", "identity", family="calibration", calibration=-3, cells=perfect, origins=[HERE]),
        RowRecord(
            "resize-64",
            "resize-64",
            family="calibration",
            calibration=-2,
            input_size=64,
            output_size=64,
            cells=resized,
            origins=[HERE],
        ),
        RowRecord(
            "a-mini",
            "a-mini",
            family="A",
            tokens_per_image=64,
            codebook_size=1024,
            bits_per_image=640.0,
            input_size=64,
            output_size=64,
            training="900 steps, 0.97 core-h",
            weights=weights,
            precision="fp32",
            speed=speed,
            origins=[HERE, THERE],
            cells=a,
        ),
        RowRecord(
            "b-mini[steps=2]", "b-mini", {"steps": 2}, family="B", deterministic=False, cells=b, seeds=3, origins=[HERE]
        ),
        RowRecord("c-mini", "c-mini", status="missing", error="c.safetensors is not here:\nrun `hf download x/c`"),
        RowRecord(
            "d|toy",
            "d",
            status="failed",
            family="D",
            error="decode gave 12 NaN values",
            bits_per_image=640.0,
            trace="Traceback (most recent call last): ...",
        ),
    ]
    fields = {
        "suite": "recon",
        "task": "reconstruction",
        "scale": "mini",
        "config_hash": "0a1b2c3d4e",
        "config": {"weights": "mini", "features": "effnet", "seed": 0},
        "protocol": {"name": "mini-128", "eval_size": 128, "fit": "squash", "rounding": "half_up"},
        "protocol_hash": "e2a4c96a10ff",
        "dataset": "photos",
        "dataset_fingerprint": SHA[::-1],
        "items": 200,
        "clusters": 5,
        "columns": [PSNR, PERC, TOP1, FD, ENTROPY],
        "rows": rows,
        "command": "python -m evals.run suite=recon tokenizers=all",
        "device": "this processor, 1 thread",
        "versions": {"python": "3.13.0", "torch": "2.9.0"},
        "code_revision": "cafe00000000",
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
    shift = ColumnRecord("brightness-dl", "zero", 2, "", "too bright above 0")
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
        "3 of 200 images are identical: infinite, not averaged",
        "c-mini: missing: c.safetensors is not here: run `hf download x/c`",
        "d|toy: failed: decode gave 12 NaN values (traceback: errors/d_toy.txt)",
    ]
    assert [row.cells[3].marks for row in table.rows[:4]] == ["¹"] * 4
    assert table.rows[1].cells[0].marks == "²"
    assert table.rows[0].cells[0].marks == ""  # all infinite: the figure says so itself
    assert [row.marks for row in table.rows] == ["", "", "", "", "³", "⁴"]


# --- markdown


def test_a_long_label_has_a_file_of_its_own_for_its_traceback(tmp_path):
    """It may hold the path of a checkpoint."""
    run = make_run()
    run.rows += [RowRecord(f"{'a' * 300}{end}", "a", status="failed", error="no", trace="why") for end in "bc"]
    names = {traceback_name(row) for row in run.rows[-2:]}
    assert len(names) == 2
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("why")


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
        "| tokenizer | bits | PSNR ↑ (dB) | perc-effnet ↓ | top1-effnet ↑ (%) | FD-effnet ↓ | entropy (bits) "
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
        "200 images of photos from 5 sources",
        "95 % interval clustered by the 5 sources",
        "hash `e2a4c96a10ff`",
        "| `rounding` | half\\_up |",
        f"`{SHA[::-1]}`",
        f"sha256 `{SHA}` (pinned)",
        "scale | mini (weights mini, features effnet)",
        "measured on a processor, NVIDIA H100.",
        "| a processor | 2 | f9eacdf01234+changes | python 3.11.7, torch 2.7.0 | all |",
        "| NVIDIA H100 | 8 | 0d15ea5e0000 | python 3.12.1, torch 2.6.0 | a-mini |",
        "This report was made by:\n\n| | |\n|:--|:--|\n| device | this processor, 1 thread |\n",
        "| code | `cafe00000000` |",
        "| versions | python 3.13.0, torch 2.9.0 |",
        "| PSNR | higher | dB | mean over images |",
        "| a-mini | A | 64 → 64 | 64 × 1,024 | 640 | 0.0391 | deterministic | 900 steps, 0.97 core-h |",
        "| identity | calibration | 128 → 128 | – | – | – | deterministic | – |",
        "| a-mini | fp32 | 1 | encode | 312.0 | 16 | 2 | 640 | a processor |",
        "| a-mini | fp32 | 1 | decode | 280.0 | 8, 16 | 8 | 812 | NVIDIA H100 |",
        "| identity | – | 1 | – | – | – | – | – | – |",
        "- d\\|toy: [errors/d\\_toy.txt](errors/d_toy.txt)",
        "- b-mini\\[steps=2\\]: PSNR 0.031",
    ],
)
def test_the_report_says(part):
    assert part in render(make_run())


def test_notes_and_images_left_out():
    bad = [{"path": f"/data/{i:03}_x.png", "reason": "the file is empty (0 bytes)"} for i in range(MOST_LEFT_OUT + 7)]
    text = render(make_run(left_out=bad, notes=["2 image(s): several frames"], missing_metrics=["rfid: not here"]))
    assert f"({len(bad)} unreadable left out)" in text
    assert "- /data/000\\_x.png: the file is empty (0 bytes)" in text
    assert text.count("the file is empty") == MOST_LEFT_OUT
    assert "run.json has all" in text
    assert "- 2 image(s): several frames" in text
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
    left = " ".join(text.split()).split("Not shown here, in the report: ")[1]
    assert left.startswith("entropy"), "the record says that it is not shown here, wide as the console may be"
    assert ("long metric 5" in left) == (width < 200)


def test_the_printed_table_says_what_failed_and_why():
    text = printed(make_run(missing_metrics=["rfid: weights [x] are not here"]))
    assert "c-mini missing³" in text
    assert "4 d|toy: failed: decode gave 12 NaN values" in text
    assert "b-mini[steps=2]" in text
    assert "900 steps, 0.97 core-h" in text
    assert "rfid: weights [x] are not here" in text
    assert "protocol mini-128 (e2a4c96a10ff)" in text


# --- files


def test_notes_are_printed_too():
    printed = io.StringIO()
    print_run(make_run(notes=["3 .heic left aside", "2 image(s) are enlarged"]), Console(file=printed, width=100))
    assert "Note: 3 .heic left aside" in printed.getvalue()
    assert "Note: 2 image(s) are enlarged" in printed.getvalue()


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
    assert by_name.loc["a-mini", "tokens_per_image"] == 64
    assert set(csv["images"]) == {200}
    timed = pd.read_csv(paths[3])
    assert timed.to_dict("records") == [
        {
            "tokenizer": "a-mini", "step": "encode", "device": "a processor", "images_per_second": 312.04,
            "batch": "16", "threads": 2, "peak_mib": 640.0,
        },
        {
            "tokenizer": "a-mini", "step": "decode", "device": "NVIDIA H100", "images_per_second": 280.0,
            "batch": "8 16", "threads": 8, "peak_mib": 812.3,
        },
    ]  # fmt: skip
    assert not set(timed.columns) & set(csv.columns) - {"tokenizer"}, "what is timed is in no table of results"
    raw = raw_frame(run).set_index("tokenizer")
    figures = ["PSNR", "PSNR_low", "perc-effnet", "entropy_high", "bits_per_image"]
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


def images(count: int, height: int, width: int, seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8))


def test_contact_sheet_shows_the_very_pixels():
    references, rows = images(8, 128, 128), [("a-mini", images(8, 128, 128, 1)), ("b", images(8, 128, 128, 2))]
    sheet = np.asarray(contact_sheet(references, rows))
    assert sheet.shape == (3 * 132 - 4, 1220, 3)
    for line, (_, shown) in enumerate([("", references), *rows]):
        for column in range(8):
            top, left = line * 132, LABELS + column * 132
            assert np.array_equal(sheet[top : top + 128, left : left + 128], shown[column])
    for line in range(3):  # every line has its label
        assert (sheet[line * 132 : line * 132 + 128, :LABELS] < 128).any()


def test_small_images_are_enlarged_without_smoothing():
    references = images(8, 40, 60)
    sheet = np.asarray(contact_sheet(references, []))
    assert np.array_equal(sheet[:80, LABELS : LABELS + 120], references[0].repeat(2, axis=0).repeat(2, axis=1))


@pytest.mark.parametrize(("count", "side"), [(8, 1024), (1, 128), (3, 1), (8, 256)])
def test_contact_sheet_keeps_to_its_width(count, side):
    references = images(count, side, side)
    sheet = contact_sheet(references, [("identity", references)])
    assert sheet.mode == "RGB"
    assert sheet.width <= 1220
    assert sheet.height <= 2 * 256 + 4


def test_contact_sheet_without_references_starts_with_the_first_row():
    (image,) = images(1, 256, 256)
    sheet = np.asarray(contact_sheet([], [("a", [image]), ("b", [image])]))
    assert sheet.shape == (2 * 260 - 4, LABELS + 256, 3)
    assert np.array_equal(sheet[:256, LABELS:], image)


def test_images_of_different_sizes_are_fitted_into_equal_cells():
    """Nothing is cut, nothing loses its shape, and the smallest is enlarged twice at most."""
    wide, tall, tiny = images(1, 256, 512)[0], images(1, 512, 256)[0], np.full((8, 8, 3), 9, np.uint8)
    sheet = np.asarray(contact_sheet([], [("a", [wide, tall]), ("b", [tiny, wide])]))
    cell = (sheet.shape[1] - LABELS - 4) // 2
    assert sheet.shape == (2 * cell + 4, LABELS + 2 * cell + 4, 3)
    assert cell == 256
    white = (sheet == 255).all(axis=2)
    assert white[:64, LABELS : LABELS + cell].all()
    assert not white[64:192, LABELS : LABELS + cell].all(axis=0).any()
    assert white[:256, LABELS + cell + 4 : LABELS + cell + 4 + 64].all()
    assert (sheet[cell + 4 :, LABELS : LABELS + cell] == 9).all(axis=2).sum() == 16 * 16


def test_a_contact_sheet_of_nothing_is_refused():
    with pytest.raises(ValueError, match="without images"):
        contact_sheet([], [("a", [])])


def test_long_labels_are_wrapped_whole():
    font = ImageFont.load_default(17)
    for label in ("b-mini[steps=2,guidance=1.5,weights=/a/very/long/path.safetensors]", "x" * 60, "short"):
        lines = wrapped(label, LABELS - 12, font)
        assert "".join(lines) == label
        assert all(font.getlength(line) <= LABELS - 12 for line in lines)


def test_the_rate_plot_joins_the_rows_of_one_tokenizer(tmp_path):
    run = make_run()
    row = next(r for r in run.rows if r.bits_per_image and r.status == "ok" and r.calibration is None)
    half = dataclasses.replace(row, label=f"{row.label}[keep_tokens=1]", bits_per_image=row.bits_per_image / 2)
    run.rows.append(half)
    points = rate_points(run, "PSNR")[row.name]
    assert [bits for bits, _, _ in points] == sorted(bits for bits, _, _ in points)
    assert len(points) >= 2
    write_report(run, tmp_path)
    with Image.open(tmp_path / "rate.png") as plot:
        assert min(plot.size) > 300
    assert "rate.png" in (tmp_path / "report.md").read_text()


def test_no_rate_no_plot(tmp_path):
    run = make_run()
    run.rows = [r for r in run.rows if r.bits_per_image is None]
    write_report(run, tmp_path)
    assert not (tmp_path / "rate.png").exists()
    assert "rate.png" not in (tmp_path / "report.md").read_text()


def test_the_rate_plot_has_no_panel_of_tokens_nor_of_a_second_summary():
    run = make_run()
    use = ColumnRecord("codebook use", "higher", 1, "%", kind="token")
    run.columns = [*run.columns, use, POOLED]
    for row in run.rows[:4]:
        row.bits_per_image = 640.0
        row.cells |= {name: Value(0.5) for name in ("codebook use", "PSNR-pooled")}
    assert [c.name for c in rate_columns(run)] == ["PSNR", "perc-effnet", "top1-effnet", "FD-effnet"]


# --- refused items, a generation run, a console without the symbols


def test_refused_items_are_told_with_their_first_reasons():
    run = make_run()
    run.rows[2].refused = {f"photo {i}": "too dark" for i in range(5)}
    assert (
        "- a-mini: 5 of 200 items refused: photo 0: too dark; photo 1: too dark; photo 2: too dark; ... (run.json has "
        "all)" in render(run)
    )
    assert "a-mini: 5 of 200 items refused" in printed(run)
    assert "refused" not in render(make_run())


def generation_run() -> RunRecord:
    clip = ColumnRecord("CLIPScore", "higher", 2)
    rows = [
        RowRecord(
            name, name, family="diffusion", output_size=size, deterministic=False, seeds=4, settings=settings,
            cells={"CLIPScore": Value(score, count=553)}, origins=[THERE],
            speed={"generate": Speed(1.5, [4], [8], ["NVIDIA H100"], 9000.0)},
        )
        for name, size, settings, score in (
            ("a", 512, {"steps": 4, "guidance_scale": 1.5}, 31.2), ("b", None, {}, 30.1),
        )
    ]  # fmt: skip
    return make_run(
        suite="no such suite", task="generation", unit="prompts", items=553, clusters=553, dataset="some-prompts",
        columns=[clip], rows=rows, protocol={"name": "as-generated", "image_size": None},
    )  # fmt: skip


def test_a_generation_run_has_settings_where_a_reconstruction_has_bits(tmp_path):
    run = generation_run()
    text = render(run)
    assert "No such suite, scale mini: 553 prompts of some-prompts" in text
    assert line_of(text, "| generator | settings |") == "| generator | settings | CLIPScore ↑ | training |"
    assert line_of(text, "| a | steps") == "| a | steps=4, guidance\\_scale=1.5 | **31.20** | – |"
    assert "| a | diffusion | 512 | steps=4, guidance\\_scale=1.5 | draws noise | – |" in text
    assert "| a | – | 4 | generate | 1.5 | 4 | 8 | 9,000 | NVIDIA H100 |" in text
    assert "bits" not in text.lower()
    assert "the best of the generators" in text
    shown = printed(run)
    assert "553 prompts of some-prompts" in shown
    assert "guidance_scale=1.5" in shown
    assert "bits" not in shown
    paths = write_report(run, tmp_path)
    assert not (tmp_path / "rate.png").exists()
    frame = pd.read_csv(paths[1]).set_index("generator")
    assert frame.loc["a", "settings"] == '{"steps": 4, "guidance_scale": 1.5}'
    assert set(frame["prompts"]) == {553}


@pytest.mark.parametrize("suite", ["recon", "table1"])
def test_the_title_is_the_suites(suite):
    title = {"recon": "# Reconstruction, scale", "table1": "# Table 1: reconstruction at 1024 pixels, ImageNet and"}
    assert render(make_run(suite=suite)).startswith(title[suite])


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_console_without_the_symbols_shows_ascii(encoding):
    """Every line is laid out as it is shown, and no figure vanishes."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    run = make_run(missing_metrics=["rfid: ↯"], dataset="фото")
    print_run(run, Console(file=file, width=160, color_system=None))
    text = file.buffer.getvalue().decode(encoding)
    assert "22.49" in text
    assert "->0 closer to 0" in text
    assert "c-mini missing[3]" in text or "c-mini missing³" in text
    assert "\\u0444\\u043e" in text
    assert max(map(len, text.splitlines())) <= 160


def test_a_utf8_console_shows_the_symbols():
    assert "±1.2" in printed(make_run())
    assert "210.00¹" in printed(make_run())
