"""`recipe=tokens`: ids, captions and states come back from the shards; a killed run goes on; what is bad is named."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from skimage import data as photographs

from lactok.checkpoint_file import tensors_sha256
from lactok.data.batches import centre_crop, to_tensor
from lactok.data.captioned import captioned_images, list_captioned
from lactok.data.folder import DataError
from lactok.data.scenes import write_folder
from lactok.data.token_shards import ShardIndex, TokenShards
from lactok.generators.text_encoder import TextEncoder
from lactok.images.decode import decode
from lactok.registry import load
from lactok.train import tokens
from lactok.train.__main__ import main
from lactok.train.run_folder import RunFolderError
from lactok.train.tokens import TokenExtraction
from lactok.weights import locate
from tests.commands import Command
from tests.support import environment
from tests.tiny_generator import extracted, extraction, quick, write_captioned, write_flan

CPU = torch.device("cpu")
CAPTIONS = [
    "a fox 🦊 and an astronaut 👩🏽‍🚀",
    "قطة حمراء على الأريكة \u200f\u202b",
    "two\u2028lines, \x85 three\u2029lines\x0b\x0c\x1c and a\ttab\nand one more",
    "the red cat on the sofa " * 4200,
    "  spaces around  ",
    "zero\x00 and \x1b[31m",
    "a red cat",
    "the sofa",
]
STATES = "options.text=flan-t5-xl"


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    with quick():
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_captioned(tmp_path_factory.mktemp("images") / "captioned", CAPTIONS)


@pytest.fixture(scope="module")
def flan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_flan(tmp_path_factory.mktemp("flan"))


@pytest.fixture(scope="module")
def whole(images: Path, flan: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an extraction, with states, that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "shards"
    extracted(images, out, STATES, f"options.text_encoder='{flan}'")
    return out


def content(folder: Path) -> dict[str, bytes]:
    """Every file of an extraction but what says whether it is the same."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "config.json"}


def texts(shard: Path, name: str) -> list[str]:
    """As the file's format says, without the reader."""
    tensors = load_file(shard)
    octets, ends = bytes(tensors[name].tolist()), [0, *tensors[f"{name}_ends"].tolist()]
    return [octets[a:b].decode() for a, b in pairwise(ends)]


def test_captions_and_names_come_back_exactly(whole: Path):
    shards = TokenShards(whole)
    assert [sample.caption for sample in shards] == CAPTIONS
    files = sorted(whole.glob("tokens-*.safetensors"))
    assert [len(load_file(file)["ids"]) for file in files] == [3, 3, 2]
    assert [name for file in files for name in texts(file, "names")] == [f"{i:03}.png" for i in range(8)]
    assert [caption for file in files for caption in texts(file, "captions")] == CAPTIONS


def test_ids_are_the_tokenizers_of_the_centre_square(whole: Path, images: Path):
    pixels = [decode(path).pixels for path in sorted(images.glob("*.png"))]
    assert {p.shape for p in pixels} == {(96, 80, 3), (96, 96, 3), (96, 112, 3)}
    squares = [centre_crop(p, 64, min(p.shape[:2])) for p in pixels]
    plugin = load("tokenizers", "llamagen-mini")
    with torch.no_grad():
        wanted = plugin(plugin.Options(), CPU).encode(to_tensor(squares)).ids
    shards = TokenShards(whole)
    got = torch.stack([sample.ids for sample in shards])
    assert got.dtype == torch.int32
    assert torch.equal(got.long(), wanted)
    assert len(got.unique()) > 30
    assert shards.index.vq == tensors_sha256(locate(plugin.weights(plugin.Options())[0]))
    assert (shards.index.tokens, shards.index.codebook_size, shards.index.count) == (64, 1024, 8)


def test_states_are_the_text_encoders_without_padding(whole: Path, flan: Path):
    encode = TextEncoder.load(CPU, str(flan), torch.bfloat16)
    shards = TokenShards(whole)
    assert (shards.index.positions, shards.index.caption_dim) == (120, 16)
    for caption, sample in zip(CAPTIONS, shards, strict=True):
        states, mask = encode([caption])
        assert sample.states is not None
        assert sample.states.dtype == torch.bfloat16
        assert len(sample.states) == mask.sum()
        torch.testing.assert_close(sample.states, states[0, mask[0].bool()], rtol=2e-2, atol=2e-2)
    assert [len(shards[i].states) for i in (3, 6, 7)] == [120, 4, 3]


def test_uncleaned_captions_have_other_states(images: Path, flan: Path, whole: Path, tmp_path: Path):
    shards = extracted(images, tmp_path / "raw", STATES, f"options.text_encoder='{flan}'", "options.clean=false")
    seen = [len(sample.states) for sample in shards]
    assert seen != [len(sample.states) for sample in TokenShards(whole)]
    with pytest.raises(RunFolderError, match=r"text: .* clean=True in the folder, .* clean=False now"):
        TokenExtraction(extraction(images, whole, STATES, f"options.text_encoder='{flan}'", "options.clean=false"))


def test_three_kinds_of_folders(tmp_path: Path):
    write_folder(tmp_path / "scenes", 3, 0, 64)
    scenes = list_captioned(tmp_path / "scenes")
    table = [json.loads(line) for line in (tmp_path / "scenes" / "captions.jsonl").read_text().splitlines()]
    assert [(image.name, image.caption) for image in scenes] == [(row["file"], row["caption"]) for row in table]

    hub = write_captioned(tmp_path / "hub", CAPTIONS, "metadata.jsonl")
    table_file = hub / "metadata.jsonl"
    table_file.write_bytes(b"\xef\xbb\xbf" + table_file.read_bytes().replace(b"}\n", b"}\r\n\r\n"))
    assert [image.caption for image in list_captioned(hub)] == CAPTIONS

    beside = write_captioned(tmp_path / "beside", ["none"] * 3)
    (beside / "captions.jsonl").unlink()
    (beside / "deeper").mkdir()
    (beside / "002.png").rename(beside / "deeper" / "c.d.png")
    (beside / "000.txt").write_text("\ufeff a caption\n", encoding="utf-8")
    (beside / "deeper" / "c.d.txt").write_text("🦊")
    found = [(image.name, image.caption) for image in list_captioned(beside)]
    assert found == [("000.png", "a caption"), ("deeper/c.d.png", "🦊")]


def test_every_bad_entry_is_listed(tmp_path: Path):
    folder = write_captioned(tmp_path / "bad", ["good"] * 2)
    rows = [
        "no JSON",
        '["000.png", "a list"]',
        '{"file": "000.png"}',
        '{"file": "000.png", "caption": "  "}',
        '{"file": "000.png", "caption": 5}',
        '{"file": "../bad/000.png", "caption": "outside"}',
        json.dumps({"file": str(folder / "000.png"), "caption": "absolute"}),
        '{"file": "absent.png", "caption": "none"}',
        '{"file": "000.png", "caption": "half \\ud83e"}',
        '{"file": "caf\\udce9.png", "caption": "bytes"}',
        json.dumps({"file": "x" * 5000, "caption": "long"}),
        json.dumps({"file": "a\x00b", "caption": "zero"}),
        "[" * 100_000,
    ]
    (folder / "captions.jsonl").write_text("\n".join(['{"file": "001.png", "caption": "good"}', *rows]) + "\n")
    with pytest.raises(DataError) as caught:
        list_captioned(folder)
    said = str(caught.value)
    assert said.startswith(f"13 entries of {folder} can't be used:\n")
    assert "and 3 more\nMend or remove them" in said
    for part in (
        "line 2: expected JSON with file and caption", "line 3: expected JSON", "line 4: expected JSON",
        "line 5: the caption is '  ': expected text", "line 6: the caption is '5'", "line 7: the file is '../bad/000",
        "line 8: the file is", "line 9: there is no file 'absent.png'", "line 10: the caption holds half of a",
        "line 11: the file is 'caf\\udce9.png': half of a surrogate pair",
    ):  # fmt: skip
        assert part in said
    (folder / "metadata.jsonl").write_text("")
    with pytest.raises(DataError, match=r"captions\.jsonl and metadata\.jsonl: expected one of them"):
        list_captioned(folder)


@pytest.mark.parametrize("kind", ["absent", "no captions", "not text", "bad text"])
def test_a_folder_without_captions_is_named(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]):
    folder, wanted = tmp_path / "images", "no such folder"
    if kind != "absent":
        write_captioned(folder, ["a", "b"])
        (folder / "captions.jsonl").unlink()
        wanted = "no captions; expected one of captions.jsonl, metadata.jsonl, or NAME.txt beside NAME.jpg"
    if kind == "not text":
        (folder / "captions.jsonl").write_bytes(b"\xff\xfe\x00")
        wanted = "captions.jsonl can't be read: "
    if kind == "bad text":
        (folder / "000.txt").write_bytes(b"\xff")
        (folder / "001.txt").write_text(" \n")
        wanted = "2 entries of"
    assert main(["recipe=tokens", f"data.root='{folder}'", f"out='{tmp_path / 'out'}'"]) == 2
    assert wanted in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_unreadable_images_and_evaluation_photographs_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A shard of which nothing is left is there all the same, and empty."""
    folder = write_captioned(tmp_path / "images", [f"caption {i}" for i in range(7)])
    (folder / "000.png").write_bytes(b"no")
    for number in (1, 5):
        Image.fromarray(photographs.coffee()).save(folder / f"00{number}.png")
    (folder / "002.png").write_bytes((folder / "003.png").read_bytes()[:200])
    out = tmp_path / "out"
    arguments = ["recipe=tokens", f"data.root='{folder}'", f"out='{out}'", "device=cpu", "batch_size=2"]
    assert main([*arguments, "options.shard_size=3"]) == 0
    said = capsys.readouterr().out
    shards = TokenShards(out)
    assert [shard.count for shard in shards.index.shards] == [0, 2, 1]
    assert [sample.caption for sample in shards] == ["caption 3", "caption 4", "caption 6"]
    assert sum(shards.index.left_out.values()) == 4
    (photograph,) = [why for why, count in shards.index.left_out.items() if count == 2]
    assert photograph == "is coffee.png of scikit-image, which the benchmark evaluates"
    assert f"left out: 2 ({photograph})" in said
    assert "done: 3 images in 3 shards" in said
    names = [name for file in sorted(out.glob("left-out-*.json")) for name, _ in json.loads(file.read_bytes())]
    assert names == ["000.png", "001.png", "002.png", "005.png"]


def test_a_caption_that_can_not_be_cleaned_is_left_out(flan: Path, tmp_path: Path):
    folder = write_captioned(tmp_path / "images", ["a red cat", "the <![<![ sofa"])
    index = extracted(folder, tmp_path / "out", STATES, f"options.text_encoder='{flan}'").index
    assert index.count == 1
    assert index.left_out == {"it can't be cleaned: its markup is broken in a way that no parser takes": 1}
    for number, more in enumerate((["options.text=none"], [STATES, "options.clean=false"])):
        given = [*more, f"options.text_encoder='{flan}'"]
        assert extracted(folder, tmp_path / f"whole-{number}", *given).index.count == 2, "it is text all the same"


def test_nothing_usable_is_an_error(tmp_path: Path):
    folder = write_captioned(tmp_path / "images", ["a"])
    (folder / "000.png").write_bytes(b"no")
    with pytest.raises(DataError, match="none of the 1 images could be used"):
        extracted(folder, tmp_path / "out")
    assert not (tmp_path / "out" / "index.json").exists()


KILLS = {"middle,1": 0, "middle,2": 1, "after,1": 1, "after,3": 3, "together,2": 3}
"""What is killed and where, and how many shards it leaves: in the middle of a shard, or after one."""


@pytest.fixture(scope="module")
def killed(images: Path, flan: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {moment: tmp_path_factory.mktemp("killed") / "shards" for moment in KILLS}
    runs = (f"{moment},{out}" for moment, out in folders.items())
    done = Command(["-m", "tests.killed_extraction", str(images), str(flan), *runs], environment()).end()
    assert done.returncode == 0, done.stderr
    return folders


@pytest.mark.parametrize(("moment", "left"), KILLS.items())
def test_kill_and_the_same_command_give_the_same_bytes(
    images: Path, flan: Path, whole: Path, killed: dict[str, Path], moment: str, left: int
):
    out = killed[moment]
    assert len(list(out.glob("tokens-*.safetensors"))) == left
    assert (out / "index.json").is_file() == moment.startswith("together")
    extracted(images, out, STATES, f"options.text_encoder='{flan}'")
    wanted = content(whole)
    assert {name: value for name, value in content(out).items() if not name.startswith(".")} == wanted
    assert not any(name.startswith(".") for name in wanted)


def test_a_finished_folder_is_left_as_it_is(images: Path, flan: Path, whole: Path, monkeypatch: pytest.MonkeyPatch):
    before = {path.name: path.stat().st_mtime_ns for path in whole.iterdir()}
    monkeypatch.setattr(tokens, "_Encoder", None)
    extracted(images, whole, STATES, f"options.text_encoder='{flan}'")
    assert {path.name: path.stat().st_mtime_ns for path in whole.iterdir()} == before


def test_something_else_in_the_folder_is_refused_by_name(images: Path, tmp_path: Path):
    out = tmp_path / "out"
    extracted(images, out)
    with pytest.raises(RunFolderError, match="shard_size: 3 in the folder, 4 now"):
        TokenExtraction(extraction(images, out, "options.shard_size=4"))
    with pytest.raises(RunFolderError, match=r"tokenizer: llamagen-mini \w+ in the folder, seedtok-mini \w+ "):
        TokenExtraction(extraction(images, out, "options.tokenizer=seedtok-mini"))
    other = write_captioned(tmp_path / "other", [*CAPTIONS[:-1], "another"])
    with pytest.raises(RunFolderError, match=r"data: \w{64} in the folder, \w{64} now\nName another out="):
        TokenExtraction(extraction(other, out))
    for damaged in ("{", "[]"):
        (out / "config.json").write_text(damaged)
        with pytest.raises(RunFolderError, match=r"config\.json can't be read"):
            TokenExtraction(extraction(images, out))
    (out / "config.json").unlink()
    with pytest.raises(RunFolderError, match=r"tokens-00000\.safetensors, but no config\.json"):
        TokenExtraction(extraction(images, out))


def test_damaged_shards_are_named(images: Path, tmp_path: Path):
    out = tmp_path / "out"
    extracted(images, out)
    last = out / "tokens-00002.safetensors"
    whole = last.read_bytes()
    last.write_bytes(whole[:-5])
    shards = TokenShards(out)
    assert shards[5].caption == CAPTIONS[5]
    with pytest.raises(DataError, match=r"tokens-00002\.safetensors can't be read"):
        shards[6]
    last.write_bytes((out / "tokens-00000.safetensors").read_bytes())
    with pytest.raises(DataError, match=r"tokens-00002\.safetensors holds 3 samples, the index says 2"):
        TokenShards(out)[6]
    save_file({"other": torch.zeros(1)}, last)
    with pytest.raises(DataError, match=r"tokens-00002\.safetensors can't be read: .*ids"):
        TokenShards(out)[6]
    last.unlink()
    with pytest.raises(DataError, match=r"tokens-00002\.safetensors is missing: the index counts 2"):
        TokenShards(out)
    extracted(images, out)  # the same command makes it anew
    assert last.read_bytes() == whole
    for text, said in (
        ("{", "can't be understood"),
        ("[]", "can't be understood"),
        ('{"version": 9}', "version 9, exp"),
    ):
        (out / "index.json").write_text(text)
        with pytest.raises(DataError, match=rf"{said}.*recipe=tokens data\.root=IMAGES"):
            ShardIndex.read(out)
    (out / "index.json").unlink()
    with pytest.raises(DataError, match=r"holds no token shards \(index\.json: .*recipe=tokens"):
        TokenShards(out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["options.tokenizer=llamagen-minni"], "did you mean 'llamagen-mini'"),
        (["options.tokenizer=autoencoder-mini"], "expected one with one id a position, of one size"),
        (["options.tokenizer_weights=absent.safetensors"], "absent.safetensors"),
        (["scale=paper"], "or name a local file by options.tokenizer_weights=PATH"),
        (["scale=paper"], "or name a local folder that holds it by options.text_encoder=DIR"),
        (["options.text=t5"], "options: text=t5: expected flan-t5-xl or none"),
        (["options.shard_size=0"], "shard_size=0: expected at least 1"),
        (["options.shard_sise=3"], "did you mean options.shard_size"),
        (["options.text=flan-t5-xl", "options.text_encoder=absent"], "config.json"),
        (["device=cuda"], "device=cuda: torch finds no CUDA device here"),
        (
            ["init=a.safetensors", "minutes=3"],
            "recipe=tokens does not use init, minutes: leave it out; it uses recipe,",
        ),
    ],
)
def test_a_wrong_command_is_explained(
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
):
    if "device=cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["recipe=tokens", f"data.root='{images}'", f"out='{tmp_path / 'out'}'", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "config.json").exists(), "the corrected command is not refused"


def test_two_folders_are_too_many(images: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["recipe=tokens", f"data.root=['{images}','{images}']"]) == 2
    assert "expected one folder; extract each into a folder of its own" in capsys.readouterr().err


@pytest.mark.parametrize("scale", ["mini", "paper"])
def test_a_dry_run_writes_nothing(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, scale: str
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    arguments = ["recipe=tokens", f"scale={scale}", "dry_run=true", f"data.root='{images}'", f"out='{out}'"]
    assert main([*arguments, "options.shard_size=3"]) == 0
    said = capsys.readouterr().out
    assert "8 images below" in said
    assert "for 3 shards" in said
    assert "1 of 1 files are here" in said if scale == "mini" else "missing: " in said
    assert not out.exists()
    assert main(["recipe=tokens", f"scale={scale}", "dry_run=true"]) == 0


def test_ctrl_c_stops_and_the_same_command_goes_on(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    write, count = tokens.write_shard, 0

    def stopped(path: Path, tensors):
        nonlocal count
        count += 1
        if count == 2:
            raise KeyboardInterrupt
        return write(path, tensors)

    arguments = ["recipe=tokens", f"data.root='{images}'", f"out='{tmp_path / 'out'}'", "device=cpu"]
    monkeypatch.setattr(tokens, "write_shard", stopped)
    assert main([*arguments, "options.shard_size=3"]) == 130
    assert "the same command resumes" in capsys.readouterr().out
    assert main([*arguments, "options.shard_size=3"]) == 0
    assert TokenShards(tmp_path / "out").index.count == 8


def test_what_cleans_captions_is_asked_for_at_once(
    images: Path, flan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "ftfy", None)
    given = (STATES, f"options.text_encoder='{flan}'")
    with pytest.raises(DataError, match=r"options\.clean=true: .*ftfy is not installed: pip install"):
        TokenExtraction(extraction(images, tmp_path / "out", *given))
    TokenExtraction(extraction(images, tmp_path / "out", *given, "options.clean=false"))


def test_grey_and_transparent_images_do_too(tmp_path: Path):
    folder = write_captioned(tmp_path / "images", ["grey", "clear", "small"])
    Image.fromarray(np.full((70, 90), 99, np.uint8)).save(folder / "000.png")
    Image.fromarray(np.full((70, 90, 4), 99, np.uint8)).save(folder / "001.png")
    Image.fromarray(np.full((3, 2, 3), 99, np.uint8)).save(folder / "002.png")
    assert len(extracted(folder, tmp_path / "out")) == 3


def test_a_mended_image_joins_when_its_shard_is_made_again(tmp_path: Path):
    """The index is of the shards that are there: it counts the new one, and no longer what was left out of the old."""
    images, out = write_captioned(tmp_path / "images", CAPTIONS), tmp_path / "out"
    broken = sorted(images.glob("*.png"))[7]
    whole = broken.read_bytes()
    broken.write_bytes(whole[:40] + bytes(len(whole) - 40))
    extracted(images, out)
    assert (ShardIndex.read(out).count, sum(ShardIndex.read(out).left_out.values())) == (7, 1)
    broken.write_bytes(whole)
    (out / "tokens-00002.safetensors").unlink()
    extracted(images, out)
    assert (ShardIndex.read(out).count, ShardIndex.read(out).left_out) == (8, {})
    assert len(TokenShards(out)) == 8
    assert not list(out.glob("left-out-*"))


def test_it_stops_when_it_was_told_to_and_goes_on(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["recipe=tokens", f"data.root='{images}'", f"out='{tmp_path / 'out'}'", "options.shard_size=3"]
    assert main([*arguments, "stop_after_minutes=0.000001"]) == 0
    assert "stopped (stop_after_minutes), finished shards are kept; the same command res" in capsys.readouterr().out
    assert not list((tmp_path / "out").glob("tokens-*"))
    assert main([*arguments, "stop_after_minutes=5"]) == 0
    assert TokenShards(tmp_path / "out").index.count == 8


def test_a_lock_of_another_machine_is_waited_for_and_named(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    out.mkdir()
    lock = out / ".tokens-00001.safetensors.lock"
    lock.write_text('{"pid": 4242, "host": "node17"}')
    arguments = ["recipe=tokens", f"data.root='{images}'", f"out='{out}'", "options.shard_size=3"]
    assert main([*arguments, "stop_after_minutes=0.05"]) == 0
    said = capsys.readouterr().err
    assert "waiting for 1 shard(s) of process 4242 on node17; if that process is no more" in said
    assert f"delete {lock}" in said
    lock.unlink()
    assert main(arguments) == 0


def test_images_without_a_text_are_left_out_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = write_captioned(tmp_path / "beside", ["a", "b", "c", "d"])
    (folder / "captions.jsonl").unlink()
    for number, caption in ((0, "a"), (2, " c \n"), (3, "d")):
        (folder / f"00{number}.txt").write_text(caption)
    out = tmp_path / "out"
    arguments = ["recipe=tokens", f"data.root='{folder}'", "device=cpu", "options.shard_size=2"]
    assert main([*arguments, f"out='{out}'"]) == 0
    shards = TokenShards(out)
    assert shards.index.left_out == {"no NAME.txt beside it": 1}
    assert [shard.count for shard in shards.index.shards] == [1, 2]
    assert [sample.caption for sample in shards] == ["a", "c", "d"]
    assert "left out: 1 (no NAME.txt beside it); see" in capsys.readouterr().out
    assert json.loads((out / "left-out-00000.json").read_bytes()) == [["001.png", "no NAME.txt beside it"]]
    partly = captioned_images(folder).identity
    (folder / "001.txt").write_text("b")
    rows = [(f"00{i}.png", caption, (folder / f"00{i}.png").stat().st_size) for i, caption in enumerate("abcd")]
    assert captioned_images(folder).identity == sha256(json.dumps(rows).encode()).hexdigest() != partly
