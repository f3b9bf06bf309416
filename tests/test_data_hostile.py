"""Sources that break or were made to do harm: told or counted with the reason, and nothing else suffers."""

from __future__ import annotations

import os
import pickle
import struct
import time
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from skimage import data

from lactok.data.__main__ import main
from lactok.data.construct import listing, stages
from lactok.data.construct.inspection import Inspection, encoded
from lactok.data.construct.items import Unit, WorkItem
from lactok.data.construct.spec import Spec, SpecError, parse
from lactok.data.construct.stages import StageWork, run, run_watched

CAT = encoded(data.chelsea(), "jpg", 95)


def paper(tmp_path: Path, **sources: object) -> Spec:
    given = {"leakage": "[]", "leak_cosine": "1", **sources}
    return parse(["recipe=paper", f"out={tmp_path / 'out'}", *(f"{key}={value}" for key, value in given.items())])


def read(spec: Spec) -> list[WorkItem]:
    """The items of all units, images inspected."""
    made, stage = listing.make(spec, spec.out), Inspection(spec)
    items = []
    for number in range(made.units):
        unit = listing.read_unit(spec.out, number, spec.unit)
        if spec.images:
            run(stage, unit)
        items += unit.items
    return items


def table(path: Path, **columns: list) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_a_caption_list_of_another_encoding_is_counted_as_such(tmp_path: Path):
    (tmp_path / "latin.txt").write_bytes("caf\xe9 au lait\na plain cat\n".encode("latin-1"))
    items = read(paper(tmp_path, captions=tmp_path / "latin.txt"))
    assert [(item.reason, item.raw_caption) for item in items] == [("caption is not UTF-8", ""), ("", "a plain cat")]
    assert "caf\\xe9" in items[0].detail


def test_a_line_without_end_costs_no_memory_and_no_time(tmp_path: Path):
    (tmp_path / "long.txt").write_bytes(b"y" * 40_000_000 + b"\na cat\n")
    started = time.process_time()
    items = read(paper(tmp_path, captions=tmp_path / "long.txt"))
    assert time.process_time() - started < 3
    assert [(item.reason, item.raw_caption) for item in items] == [("caption too long", ""), ("", "a cat")]


def test_lines_of_json_that_hold_no_caption_are_counted(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('[1]\n"text"\nnull\n{"caption": 5}\n{"caption": "ok"}\n' + "[" * 100_000 + "\n")
    items = read(paper(tmp_path, captions=tmp_path / "a.jsonl"))
    assert [item.reason for item in items] == [*["caption is no text"] * 4, "", "caption is no text"]
    assert items[0].detail == "b'[1]\\n'"


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("foo.parquet", "captions", "expected a column caption or TEXT or text or prompt, it has foo"),
        ("foo.parquet", "images", "expected a column image or jpg"),
        ("bad.parquet", "captions", "bad.parquet is no Parquet file"),
        ("bad.parquet", "images", "bad.parquet is no Parquet file"),
        ("a.tar.gz", "images", "not compressed"),
        ("a.md", "images", "expected a folder"),
        ("a.md", "captions", "a caption a line"),
        ("empty.txt", "captions", "hold no item"),
        ("nothing", "images", "no file of this kind"),
    ],
)
def test_a_file_that_is_no_source_is_named_with_what_is_expected(tmp_path: Path, name: str, kind: str, said: str):
    table(tmp_path / "foo.parquet", foo=["x"])
    (tmp_path / "empty.txt").touch()
    (tmp_path / "nothing").mkdir()
    for other in ("bad.parquet", "a.tar.gz", "a.md"):
        (tmp_path / other).write_bytes(b"not what it is called")
    with pytest.raises(SpecError, match=said) as seen:
        read(paper(tmp_path, **{kind: tmp_path / name}))
    assert name in str(seen.value)


def test_columns_of_other_types_are_counted_and_no_path_in_them_is_opened(tmp_path: Path):
    (tmp_path / "secret.jpg").write_bytes(CAT)
    files = [
        table(tmp_path / "a.parquet", image=[str(tmp_path / "secret.jpg")]),
        table(tmp_path / "b.parquet", image=[7], caption=["x"]),
        table(tmp_path / "c.parquet", image=[None, CAT, b""], caption=["x", None, "y"]),
        table(tmp_path / "d.parquet", image=[{"path": "x", "bytes": None}, {"path": "y", "bytes": CAT}]),
        table(tmp_path / "e.parquet", image=[CAT], caption=[5]),
    ]
    items = read(paper(tmp_path, images=",".join(map(str, files))))
    unread = "image can't be read"
    assert [i.reason for i in items] == [
        unread, unread, unread, "", "image is empty", unread, "", "caption is no text",
    ]  # fmt: skip
    assert "holds str, expected the bytes of an image file" in items[0].detail
    (tmp_path / "n").mkdir()
    numbers = read(paper(tmp_path / "n", captions=table(tmp_path / "f.parquet", TEXT=[1, None])))
    assert [item.reason for item in numbers] == ["caption is no text"] * 2


def header(width: int, height: int) -> bytes:
    """A PNG that says to be of this size, and holds next to nothing."""
    made = b"\x89PNG\r\n\x1a\n"
    facts = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    for kind, content in ((b"IHDR", facts), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")):
        made += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return made


def test_folders_of_broken_images_links_that_loop_and_equal_names(tmp_path: Path):
    first, second = tmp_path / "one" / "d", tmp_path / "two" / "d"
    for folder in (first, second):
        folder.mkdir(parents=True)
        (folder / "ok.jpg").write_bytes(CAT)
    (first / "bomb.png").write_bytes(header(50_000, 50_000))
    (first / "cut.jpg").write_bytes(CAT[: len(CAT) // 2])
    (first / "zero.jpg").touch()
    os.symlink(first, first / "loop")
    os.symlink(first / "b.jpg", first / "a.jpg")
    os.symlink(first / "a.jpg", first / "b.jpg")
    items = read(paper(tmp_path, images=f"{first},{second}"))
    seen = {(item.source_id, item.index): item.reason for item in items}
    assert sorted(seen.values()) == [
        "", "", "image can't be decoded", "image can't be decoded", "image can't be read", "image can't be read",
        "image is empty",
    ]  # fmt: skip
    assert len([key for key, reason in seen.items() if key[0] == "ok.jpg" and not reason]) == 2, "equal names are two"
    assert len({item.key for item in items}) == 7


def test_a_source_that_was_edited_is_named_though_its_size_is_the_same(tmp_path: Path):
    (tmp_path / "a.txt").write_text("a cat\n")
    spec = paper(tmp_path, captions=tmp_path / "a.txt")
    read(spec)
    (tmp_path / "a.txt").write_text("a dog\n")
    os.utime(tmp_path / "a.txt", (1, 1))
    with pytest.raises(SpecError, match=r"a\.txt \(6 bytes before, 6 now\)"):
        read(spec)


class Deadly(StageWork):
    """A stage whose process one caption kills. For tests alone."""

    name, batch = "deadly", 8

    def work(self, items):
        for item in items:
            if item.raw_caption == "poison":
                os._exit(9)
            item.caption = "done"


@pytest.mark.parametrize("poisons", [(4,), (0,), (5,), (1, 4)])
def test_an_item_that_kills_its_process_again_and_again_is_dropped_and_no_other(
    tmp_path: Path, poisons: tuple[int, ...]
):
    """Each process is a fork, as Ray's next actor would be; what a death leaves behind lies in the build's folder."""
    deaths, made = 0, tmp_path / "unit"
    while deaths < 10:
        unit = Unit(3, [WorkItem(i, "s", "", "poison" if i in poisons else "good") for i in range(6)])
        child = os.fork()
        if not child:
            run_watched(Deadly(), unit, tmp_path)
            made.write_bytes(pickle.dumps(unit))
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            break
        deaths += 1
    assert deaths == stages.DEATHS + stages.DEATHS_ALONE * len(poisons)
    assert list((tmp_path / "work" / stages.TRYING).iterdir()) == [], "a unit that is finished leaves no note"
    unit = pickle.loads(made.read_bytes())
    assert [item.reason for item in unit.items] == ["deadly died" if i in poisons else "" for i in range(6)]
    assert {item.detail for item in unit.items if item.reason} == {"2 processes were killed at this item"}
    assert [item.caption for item in unit.items if item.index not in poisons] == ["done"] * (6 - len(poisons))
    assert (unit.works[0].items_in, unit.works[0].items_out) == (6, 6 - len(poisons))


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("size=huge", "size=huge: "),
        ("quality=5", "quality=5: "),
        ("leak_cosine=2", "leak_cosine=2: "),
        ("keep_format=gif", "keep_format=gif: "),
        ("duplicates=[pixels]", "'content', 'perceptual' or 'caption'"),
        ("stages.judge.actors=x", "stages.judge.actors"),
        ("stages.draw.gpus=1", "stages.draw: no such key; known: synthesise, caption, judge, inspect"),
        ("stages.judge.speed=1", "stages.judge.speed: no such key; known: actors, cpus, gpus, batch"),
        ("judges=[niceness>1]", "niceness"),
        ("options.colour=red", "options.colour: flux.1-dev has no such option"),
        ("generator=flux", "flux"),
        ("captioner=8b", "captioner=8b: expected 72b, 7b or a folder"),
    ],
)
def test_wrong_settings_say_what_was_seen_and_what_is_expected(
    tmp_path: Path, word: str, said: str, capsys: pytest.CaptureFixture
):
    (tmp_path / "a.txt").write_text("a cat\n")
    assert main(["build", "recipe=paper", f"captions={tmp_path / 'a.txt'}", f"out={tmp_path / 'o'}", word]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert "Traceback" not in told
    assert not (tmp_path / "o").exists()
