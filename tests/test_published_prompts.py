"""GenEval's prompts and COCO's captions: what is read of the published files, and how they are fetched."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from evals.__main__ import main
from evals.config import compose_config
from evals.datasets.base import DataError, DatasetError, DatasetRequest, MissingData
from evals.datasets.images import coco
from evals.datasets.prompts.published import CocoCaptions, GenEvalPrompts
from evals.datasets.registry import open_dataset
from evals.engine.run import run
from evals.metrics.judges.geneval.logic import TASKS
from evals.metrics.judges.geneval.score import metadata_of
from lactok.items import prompt_hash
from tests import geneval_twin, twins
from tests.geneval_twin import write_geneval
from tests.test_download import Server, download_of


def opened(name: str, root: Path | None, **options):
    return open_dataset(name, DatasetRequest(Path("unused"), None if root is None else str(root), **options))


# --- GenEval


def test_geneval_keeps_the_files_order_and_its_metadata(tmp_path: Path):
    dataset = opened("geneval", write_geneval(tmp_path), expect=geneval_twin.COUNT)
    lines = [json.loads(line) for line in geneval_twin.lines()]
    assert [item.id for item in dataset.items] == [f"{number:05d}" for number in range(len(lines))]
    assert [item.payload for item in dataset.items] == [line["prompt"] for line in lines]
    for item, line in zip(dataset.items, lines):
        assert metadata_of(item) == {key: value for key, value in line.items() if key != "prompt"}
        assert (item.content_hash, item.cluster) == (prompt_hash(item.payload), item.id)
    assert {item.tags["tag"] for item in dataset.items} == set(TASKS)


def test_the_file_itself_may_be_the_root(tmp_path: Path):
    folder = write_geneval(tmp_path)
    both = [opened("geneval", root, expect=12) for root in (folder, folder / "evaluation_metadata.jsonl")]
    assert both[0].fingerprint == both[1].fingerprint


def test_another_number_of_prompts_stops_unless_a_part_is_wanted(tmp_path: Path):
    root = write_geneval(tmp_path)
    with pytest.raises(DatasetError, match=r"12 prompts, expected 553; .*data get geneval.*dataset\.expect=12"):
        opened("geneval", root)
    with pytest.raises(DatasetError, match="12 prompts, expected 13"):
        opened("geneval", root, expect=13)
    assert len(opened("geneval", root, limit=5).items) == 5


@pytest.mark.parametrize(
    ("line", "reason"),
    [("{", "JSONDecodeError"), ('{"tag": "counting"}', "KeyError: 'prompt'"), ('"a dog"', "AttributeError")],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str, reason: str):
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text(f"{geneval_twin.lines()[0]}\n{line}\n")
    with pytest.raises(DataError, match=rf"evaluation_metadata\.jsonl, line 2: {reason}.*get it again"):
        opened("geneval", tmp_path)


# --- COCO's captions


@pytest.mark.parametrize("form", ["zip", "folder"])
def test_a_caption_an_image_of_the_smallest_id(form: str, tmp_path: Path):
    dataset = opened("coco-captions", twins.coco(tmp_path, form), expect=twins.COUNT)
    assert [item.payload for item in dataset.items] == [f"A photograph, number {i}." for i in range(twins.COUNT)]
    assert [item.id for item in dataset.items] == [f"{139 + 146 * i:012d}" for i in range(twins.COUNT)]
    assert any("of the smallest id" in note for note in dataset.notes)


def test_the_images_are_not_needed(tmp_path: Path):
    twins.write_folder(tmp_path, {"annotations/captions_val2017.json": twins.coco_captions()})
    assert len(opened("coco-captions", tmp_path, expect=12).items) == 12
    assert len(opened("coco-captions", tmp_path, limit=3).items) == 3


def test_captions_run_through_the_engine_by_name(tmp_path: Path):
    """The note of which caption is taken stands in the record. The generator shows images of a folder."""
    root, pictures = twins.coco(tmp_path / "coco", "folder"), tmp_path / "pictures"
    twins.write_folder(pictures, {f"{139 + 146 * i:012d}.jpg": twins.jpeg(i) for i in range(twins.COUNT)})
    finished = run(
        compose_config([
            "suite=generate", "dataset=coco-captions", f"dataset.root='{root}'", "dataset.expect=12", "limit=4",
            "generators=[folder]", f"options.folder.root='{pictures}'", "calibration=false", "device=cpu",
            "workers=1", f"out='{tmp_path / 'out'}'",
        ]),
        quiet=True,
    )  # fmt: skip
    assert finished.record.items == 4
    assert any("of the smallest id" in note for note in finished.record.notes)


# --- what is missing, and how it is fetched


@pytest.mark.parametrize("name", ["geneval", "coco-captions"])
def test_without_a_root_data_of_the_name_is_looked_for(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingData, match=rf"{name}: no prompts in data/{name} .*`python -m evals data get {name}`"):
        opened(name, None)
    (tmp_path / "data").mkdir()
    write_geneval(tmp_path / "data" / "geneval")
    twins.coco(tmp_path / "data" / "coco-captions", "folder")
    assert len(opened(name, None, expect=12).items) == 12


@pytest.fixture
def server() -> Iterator[Server]:
    content = ("\n".join(geneval_twin.lines()) + "\n").encode()
    with Server(content) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_get_of_geneval_end_to_end(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)
    wanted = download_of(server, file="evaluation_metadata.jsonl")
    monkeypatch.setattr(GenEvalPrompts, "downloads", (wanted,))
    assert main(["data", "get", "geneval"]) == 0
    told = capsys.readouterr().out
    assert sha256(server.content).hexdigest() in told
    assert told.endswith("done\n"), "verify reads images alone"
    assert len(opened("geneval", None, expect=12).items) == 12
    (tmp_path / "data" / "geneval" / "evaluation_metadata.jsonl").write_text("mine")
    assert main(["data", "get", "geneval"]) == 1
    assert "evaluation_metadata.jsonl is not " in capsys.readouterr().err


def test_captions_are_in_the_annotations_that_coco_publishes():
    assert CocoCaptions.downloads == (coco.FILES[1],)
    assert coco.FILES[1].file == "annotations_trainval2017.zip"


def test_data_list_names_them_and_how_to_get_them(capsys):
    assert main(["data", "list"]) == 0
    told = capsys.readouterr().out
    for name in ("geneval", "coco-captions"):
        assert f"\n{name}: " in f"\n{told}"
        assert f"`python -m evals data get {name}` fetches" in told


def test_prompts_are_not_verified_as_images(capsys):
    assert main(["data", "verify", "geneval"]) == 2
    assert "unknown dataset 'geneval'" in capsys.readouterr().err


def test_lists_show_suites_and_datasets(capsys):
    assert main(["list", "suites"]) == 0
    suites = capsys.readouterr().out
    assert all(name in suites for name in ("geneval", "preference", "table3", "table6"))
    assert main(["list", "datasets"]) == 0
    datasets = capsys.readouterr().out
    assert all(name in datasets for name in ("geneval", "coco-captions", "scene-prompts"))
