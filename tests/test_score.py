"""Images that exist are scored as a run's own are, and a run's images are taken along."""

import csv
import dataclasses
import json
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from evals import record
from evals.cli.export import main as export
from evals.cli.score import main as score
from evals.report.export import file_names, score_command
from evals.report.symbols import folder_names
from evals.run import main as run
from lactok.items import Item
from tests.support import ROOT, TOY, pictures, the_run

FAST = ["workers=1", "metrics=[psnr,ssim]"]


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two chunks with one row of tokens; its reconstructions are not stored."""
    out = tmp_path_factory.mktemp("native")
    asked = ["tokenizers=[llamagen,mean-colour]", "calibration=false", "limit=18"]
    assert run([*asked, f"out={out}", "workers=1", "--quiet"]) == 0
    return the_run(out)


@pytest.fixture(scope="module")
def exported(native: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "files"
    assert export([str(native), f"out={out}"]) == 0
    return out


def figures(folder: Path, label: str) -> dict[str, tuple]:
    """All figures of a row but those of its tokens, exactly."""
    found = record.read(folder / "run.json")
    kinds = {column.name: column.kind for column in found.columns}
    (row,) = [row for row in found.rows if row.label == label]
    assert row.status == "ok"
    cells = {name: cell for name, cell in row.cells.items() if kinds.get(name) != "token"}
    return {name: (c.value, c.low, c.high, c.count, c.infinite, c.note) for name, c in cells.items()}


def test_an_export_scores_as_the_run_did_to_the_last_digit(
    native: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    manifest = json.loads((exported / "manifest.json").read_text())
    monkeypatch.chdir(exported)
    words = shlex.split(manifest["score_in_this_folder"])
    assert words[:4] == ["python", "-m", "evals", "score"]
    assert score([*words[4:], f"out={tmp_path}", "workers=1", "--quiet"]) == 0
    scored = the_run(tmp_path)
    for label in ("llamagen-mini", "mean-colour"):
        want = figures(native, label)
        assert {"PSNR", "LPIPS-alex", "FD-effnet", "SSIM", "colour-de00"} <= {n for n, v in want.items() if v[0]}
        assert want["LPIPS-alex"][1] is not None, "intervals are compared, too"
        assert figures(scored, label) == want
    assert record.read(scored / "run.json").protocol_hash == manifest["protocol_hash"]
    one, other = (pd.read_parquet(folder / "per_image.parquet") for folder in (native, scored))
    values = ["row", *one.columns[4:]]
    assert one["item"].tolist() == [name.removesuffix(".png") for name in other["item"]]
    pd.testing.assert_frame_equal(one[values], other[values], check_exact=True)


def test_what_an_export_holds(native: Path, exported: Path):
    manifest = json.loads((exported / "manifest.json").read_text())
    assert manifest["run"] == native.name
    found = {row["label"]: row for row in manifest["rows"]}
    assert found["llamagen-mini"]["stored"] == 0, "decoded again"
    assert found["llamagen-mini"]["compared"] == 8
    assert found["llamagen-mini"]["differing"] == 0
    references = sorted(path.name for path in (exported / "references").iterdir())
    assert len(references) == 18
    ids = np.load(exported / "llamagen-mini" / "ids.npz")
    assert ids["ids"].shape == (18, 64)
    assert ids["files"].tolist() == references
    frame = pd.read_csv(exported / "per_image.csv")
    native_frame = pd.read_parquet(native / "per_image.parquet")
    assert len(frame) == len(native_frame) == 36
    assert frame["LPIPS-alex"].tolist() == native_frame["LPIPS-alex"].tolist(), "no digit is lost"
    for line in frame.itertuples():
        assert Image.open(exported / str(line.image)).size == (128, 128)
    with (exported / "clusters.csv").open() as file:
        assert {line["file"]: line["cluster"] for line in csv.DictReader(file)}.keys() == set(references)


def test_an_export_is_whole_or_nothing(
    native: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    assert export([str(native), f"out={tmp_path / 'full'}"]) == 2
    assert "is not empty: name a folder that does not exist yet" in capsys.readouterr().err
    assert export([str(native), f"out={tmp_path / 'x'}", "rows=zzz"]) == 2
    assert "it has llamagen-mini, mean-colour" in capsys.readouterr().err
    assert export([str(tmp_path), f"out={tmp_path / 'x'}"]) == 2
    assert "holds no run.json" in capsys.readouterr().err

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numpy.savez_compressed", full)
    assert export([str(native), f"out={tmp_path / 'x'}", "rows=llamagen-mini"]) == 2
    assert "the disk is full" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_a_run_that_is_not_what_was_measured_is_not_exported(
    native: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """A copy of the run's folder without its store, and one whose keys are of other code."""
    moved = tmp_path / "elsewhere" / "runs" / native.name
    moved.mkdir(parents=True)
    for name in ("run.json", "per_image.parquet"):
        (moved / name).write_bytes((native / name).read_bytes())
    assert export([str(moved), f"out={tmp_path / 'x'}"]) == 2
    assert "save_images=true" in capsys.readouterr().err
    (moved.parent.parent / "cache").symlink_to(native.parent.parent / "cache")
    found = record.read(moved / "run.json")
    found.rows[0].keys = {name: ["0" * 32] for name in found.rows[0].keys}
    (moved / "run.json").write_text(record.to_json(found))
    assert export([str(moved), f"out={tmp_path / 'x'}"]) == 1
    assert f"left out: {found.rows[0].label}: it is not what was measured" in capsys.readouterr().err


def test_stored_images_are_taken_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The model is not built; a broken record and images that changed since are told."""
    images, out = pictures(tmp_path / "pictures"), tmp_path / "out"
    asked = ["tokenizers=mean-colour", "calibration=false", "dataset=folder", f"dataset.root={images}"]
    assert run([*asked, "save_images=true", f"out={out}", *FAST]) == 0
    made = the_run(out)
    assert export([str(made), f"out={tmp_path / 'files'}"]) == 0
    assert "4 images in mean-colour (from the store), ids.npz" in capsys.readouterr().out
    first = np.asarray(Image.open(tmp_path / "files" / "mean-colour" / "picture 00.png"))
    assert len(np.unique(first.reshape(-1, 3), axis=0)) == 1, "one colour"
    (images / "picture 00.png").write_bytes((images / "picture 01.png").read_bytes())
    assert export([str(made), f"out={tmp_path / 'more'}"]) == 2
    assert "the dataset is another now" in capsys.readouterr().err
    (made / "run.json").write_text('{"suite": "recon", "rows": [], "schema": 99}')
    assert export([str(made), f"out={tmp_path / 'more'}"]) == 2
    assert "written by a newer version of lactok" in capsys.readouterr().err
    assert not (tmp_path / "more").exists()


DARK = """
from lactok.interface import ItemsRefused


class Choosy(Toy):
    def encode(self, images):
        if dark := {place: "too dark" for place, image in enumerate(images) if image.mean() < 0.2}:
            raise ItemsRefused(dark)
        return super().encode(images)
"""


def test_an_export_of_a_row_with_refused_images_scores_as_the_run_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    images, plugin = pictures(tmp_path / "pictures"), tmp_path / "choosy.py"
    for place in range(2):
        Image.new("RGB", (96, 96), (20 * place, 10, 10)).save(images / f"dark {place}.png")
    plugin.write_text(TOY + DARK)
    asked = [f"tokenizers={plugin}:Choosy", "calibration=false", "dataset=folder", f"dataset.root={images}"]
    more = ["protocol.fit=crop", "max_refused=2", *FAST]  # and another field of the protocol
    assert run([*asked, f"out={tmp_path / 'out'}", *more]) == 0
    made = the_run(tmp_path / "out")
    refused = record.read(made / "run.json").rows[0].refused
    assert len(refused) == 2
    assert export([str(made), f"out={tmp_path / 'files'}"]) == 0
    monkeypatch.chdir(tmp_path / "files")
    words = shlex.split(json.loads(Path("manifest.json").read_text())["score_in_this_folder"])
    assert score([*words[4:], f"out={tmp_path / 'scored'}", "workers=1", "--quiet"]) == 0
    assert figures(the_run(tmp_path / "scored"), "Choosy") == figures(made, "Choosy")


def test_an_export_of_prompts_scores_as_the_run_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A part of a data set that has no file, whose prompts are judged by their tags."""
    given = ["suite=geneval", "generators=[rendered,rendered-llamagen]", "calibration=false", "limit=6", "seeds=2"]
    assert (
        run([*given, "metrics=[geneval-small]", "device=cpu", f"out={tmp_path / 'out'}", "workers=1", "--quiet"]) == 0
    )
    assert export([str(the_run(tmp_path / "out")), f"out={tmp_path / 'files'}"]) == 0
    monkeypatch.chdir(tmp_path / "files")
    words = shlex.split(json.loads(Path("manifest.json").read_text())["score_in_this_folder"])
    assert score([*words[4:], f"out={tmp_path / 'scored'}", "device=cpu", "workers=1", "--quiet"]) == 0
    for label in ("rendered", "rendered-llamagen"):
        want = figures(the_run(tmp_path / "out"), label)
        assert want["GenEval-small"][0] > 0.5
        assert figures(the_run(tmp_path / "scored"), label) == want


def test_the_command_of_an_export_names_another_judge_as_the_run_did(native: Path):
    found = record.read(native / "run.json")
    name = "as-generated with fit=crop with judges=original"
    protocol = found.protocol | {"name": name, "judges": "original", "fit": "crop"}
    words = shlex.split(score_command(dataclasses.replace(found, unit="prompts", protocol=protocol), []))
    assert words[-3:] == ["protocol=as-generated", "protocol.fit=crop", "judges.backend=original"]


def test_names_of_files_are_different_and_sorted():
    def named(*ids: str) -> list[str]:
        names = file_names([Item(i, i, i) for i in ids])
        assert len(set(names)) == len(ids)
        assert sorted(names) == names
        return names

    assert named("a.jpg", "sub/b.PNG") == ["a.png", "sub/b.png"]
    assert named("a.jpg", "a.png") == ["0-a.png", "1-a.png"]
    assert named("b", "a") == ["0-b.png", "1-a.png"]
    assert named("../a", "b")[0].startswith("0-")
    assert folder_names(["a", "x[bits=3]", "x[bits,3]", "references"], ("references",)) == {
        "a": "a", "x[bits=3]": "x_bits_3", "x[bits,3]": "x_bits_3-2", "references": "references-2",
    }  # fmt: skip


def blurred(folder: Path, to: Path, ending: str = ".png", size: tuple[int, int] | None = None) -> Path:
    to.mkdir()
    for path in folder.iterdir():
        image = Image.open(path)
        image.resize((40, 40)).resize(size or image.size).save(to / f"{path.stem}{ending}")
    return to


def squares(folder: Path, side: int = 64) -> Path:
    for path in pictures(folder).iterdir():
        Image.open(path).crop((0, 0, side, side)).save(path)
    return folder


def psnr(out: Path, label: str) -> float:
    (row,) = [row for row in record.read(the_run(out) / "run.json").rows if row.label == label]
    value = row.cells["PSNR"].value
    assert value is not None
    return value


def test_square_references_are_scored_at_their_size(tmp_path: Path):
    """PSNR by its definition, on the pixels of the files."""
    references = squares(tmp_path / "references")
    images = blurred(references, tmp_path / "mine")
    assert score([f"references={references}", f"images={images}", f"out={tmp_path / 'out'}", *FAST]) == 0
    assert record.read(the_run(tmp_path / "out") / "run.json").protocol["eval_size"] == 64
    errors = [
        np.mean((np.asarray(Image.open(path), float) - np.asarray(Image.open(images / path.name), float)) ** 2)
        for path in sorted(references.iterdir())
    ]
    want = np.mean([10 * np.log10(255**2 / error) for error in errors])
    assert psnr(tmp_path / "out", "mine") == pytest.approx(want, abs=1e-4)


def test_stems_and_tables_pair(tmp_path: Path):
    references = squares(tmp_path / "references")
    images = blurred(references, tmp_path / "mine", ".bmp")
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    lines = ["reference,image"]
    for number, path in enumerate(sorted(references.iterdir())):
        (renamed / f"{9 - number}.bmp").write_bytes((images / f"{path.stem}.bmp").read_bytes())
        lines.append(f"{path.name},{9 - number}.bmp")
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    for out, folder, pair in (("a", images, "stem"), ("b", renamed, tmp_path / "pairs.csv")):
        asked = [f"references={references}", f"images.mine={folder}", f"pair={pair}", f"out={tmp_path / out}"]
        assert score([*asked, *FAST]) == 0
    assert psnr(tmp_path / "a", "mine") == psnr(tmp_path / "b", "mine")


def test_all_that_does_not_fit_is_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    references = squares(tmp_path / "references")
    images = blurred(references, tmp_path / "mine")
    other = blurred(references, tmp_path / "other", size=(32, 32))
    names = sorted(path.name for path in images.iterdir())
    (images / names[0]).unlink()
    (images / "more.png").write_bytes((images / names[1]).read_bytes())
    (images / names[1]).write_bytes(b"no image")
    asked = [f"references={references}", f"images={images}", f"images.other={other}", f"out={tmp_path / 'out'}", *FAST]
    assert score(asked) == 2
    told = capsys.readouterr().err
    for line in (
        f"mine: 1 references without an image (pair=name): {names[0]}",
        "mine: 1 images without a reference (pair=name): more.png",
        f"mine: 1 images that can't be read: {names[1]}",
        f"other: 4 images of neither their reference's size nor 64 x 64: {names[0]} 32 x 32 of 64 x 64",
        "Ways out: pair=stem or pair=CSV; unpaired=skip",
    ):
        assert line in told
    assert not (tmp_path / "out").exists()
    (other / f"{Path(names[0]).stem}.bmp").write_bytes((other / names[0]).read_bytes())
    (references / f"{Path(names[3]).stem}.bmp").write_bytes((references / names[3]).read_bytes())
    assert score([*asked, "pair=stem"]) == 2
    told = capsys.readouterr().err
    assert f"2 images have its stem: {Path(names[0]).stem}.bmp, {names[0]}" in told
    assert f"1 stems shared by several files: {Path(names[3]).stem}.bmp and {names[3]}" in told


def test_ways_out_are_counted_in_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    references = squares(tmp_path / "references")
    images = blurred(references, tmp_path / "mine", size=(32, 32))
    first = sorted(images.iterdir())[0]
    first.unlink()
    asked = [f"references={references}", f"images={images}", f"out={tmp_path / 'out'}", *FAST]
    assert score([*asked, "resize=true", "unpaired=skip", "max_refused=1"]) == 0
    (row,) = record.read(the_run(tmp_path / "out") / "run.json").rows
    assert row.refused == {first.name: f"there is no image {first.name}"}
    assert row.cells["PSNR"].count == 3
    assert "note: mine: 1 references without an image" in capsys.readouterr().err


def test_a_row_of_the_engine_never_resizes_unasked(tmp_path: Path):
    """Without the command's own check, as a plugin or an option would have it."""
    references = squares(tmp_path / "references")
    images = blurred(references, tmp_path / "mine", size=(32, 32))
    asked = ["dataset=folder", f"dataset.root={references}", "tokenizers=folder", "calibration=false"]
    asked += [f"options.folder.root='odd={images}'", "protocol.eval_size=64", f"out={tmp_path / 'out'}", *FAST]
    assert run(asked) == 1
    (row,) = record.read(the_run(tmp_path / "out") / "run.json").rows
    assert row.label == "odd"
    assert "the image has 32 x 32 pixels: expected its reference's 64 x 64 or the evaluation image's" in row.error


def test_an_image_of_its_references_size_takes_its_references_way(tmp_path: Path):
    """A protocol that crops and resizes does so with both: equal files stay equal."""
    references = pictures(tmp_path / "references")
    asked = [f"references={references}", f"images.same={references}", "protocol=native-256", "protocol.eval_size=96"]
    assert score([*asked, "protocol.rounding=truncate", f"out={tmp_path / 'out'}", *FAST]) == 0
    assert psnr(tmp_path / "out", "same") == np.inf


def test_images_of_prompts(tmp_path: Path):
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    pictures(tmp_path / "images", 2)
    (tmp_path / "images.csv").write_text("prompt,file\na dog,images/picture 01.png\na cat,images/picture 00.png\n")
    asked = [f"prompts={tmp_path / 'prompts.txt'}", f"images.mine={tmp_path / 'images.csv'}"]
    assert score([*asked, f"out={tmp_path / 'out'}", "workers=1"]) == 0
    made = the_run(tmp_path / "out")
    (row,) = record.read(made / "run.json").rows
    assert (row.label, row.status) == ("mine", "ok")
    assert export([str(made), f"out={tmp_path / 'taken'}"]) == 0
    taken = {path.name: np.asarray(Image.open(path)) for path in (tmp_path / "taken" / "mine").glob("*.png")}
    assert len(taken) == 2
    with (tmp_path / "taken" / "mine" / "images.csv").open() as file:
        (cat,) = [line["file"] for line in csv.DictReader(file) if line["prompt"] == "a cat"]
    assert (taken[cat] == np.asarray(Image.open(tmp_path / "images" / "picture 00.png"))).all()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["images=x"], "name references=DIR"),
        (["references=x"], "name the images that are to be scored"),
        (["references=x", "images=a/y", "images.y=b"], "two rows are called y"),
        (["references=nowhere", "images=x"], "references=nowhere is no folder"),
        (["references=x", "images=x", "tokenizers=titok"], "tokenizers= is set by this command: name images"),
        (["references=x", "images="], "images= is empty"),
        (["references=x", "images=x", "unpaired=no"], "unpaired=no: expected stop or skip"),
        (["prompts=x", "images=x", "pair=stem"], "pair= is for references"),
        (["references=x", "images=x", "word"], "'word' is not of the form key=value"),
    ],
)
def test_a_command_that_can_not_be_used_exits_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
):
    monkeypatch.chdir(tmp_path)
    assert score(words) == 2
    assert said in capsys.readouterr().err


def test_references_of_several_sizes_need_a_protocol(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    references = pictures(tmp_path / "references")
    assert score([f"references={references}", f"images={references}", f"out={tmp_path / 'out'}"]) == 2
    assert "no one square size (4 of 190 x 150), so name the size" in capsys.readouterr().err


def test_a_table_that_can_not_be_used_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    references = squares(tmp_path / "references")
    table = tmp_path / "pairs.csv"
    for content, said in (
        ("reference,file\na,b\n", "has the columns reference, file: expected name, stem, or a CSV"),
        ("reference,image\na,b\na,c\nd,\n", "2 lines can't be used:\n  line 3: a has the images b and c: expected one"),
    ):
        table.write_text(content)
        assert score([f"references={references}", f"images={references}", f"pair={table}"]) == 2
        assert said in capsys.readouterr().err


def test_the_readme_s_lines_run(native: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The lines of README that show both commands, at most three each, with folders in place of DIR and RUN."""
    lines = [line.split("#")[0].split() for line in (ROOT / "README.md").read_text().splitlines()]
    shown = [words for words in lines if words[:3] == ["python", "-m", "evals"] and words[3] in ("score", "export")]
    assert sorted(words[3] for words in shown) == ["export", "score"]
    references = squares(tmp_path / "references")
    named = {"RUN": str(native), "images=DIR": f"images={blurred(references, tmp_path / 'mine')}"}
    named |= {"references=DIR": f"references={references}", "out=DIR": "out=taken"}
    monkeypatch.chdir(tmp_path)
    for words in shown:
        arguments = [named.get(word, word) for word in words[4:]]
        assert export(arguments) == 0 if words[3] == "export" else score([*arguments, *FAST]) == 0
