"""A build on Ray whose worker and driver are killed gives the shards that the stages give when called in turn."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

pytest.importorskip("ray", reason="Ray is not installed: pip install 'lactok[cluster]'")

from lactok.data.__main__ import main
from lactok.data.construct import build as building
from lactok.data.construct import duplicates, inspection, listing, recipes, shards, units
from lactok.data.construct.sinks import ShardsSink
from lactok.data.construct.spec import STAGES, Spec, parse
from lactok.data.construct.stages import run
from lactok.data.tar_roots import BUILD
from lactok.train.__main__ import main as train
from tests.support import ROOT

WORDS = [
    *("recipe=mini", "items=150", "size=64", "unit=10", "shard=40", "leakage=[scenes:20]", "seed=4"),
    *("plant.duplicates=0.1", "plant.leaks=0.05", "plant.broken=0.05", "plant.hostile=0.05"),
]


def of(out: Path) -> Spec:
    return parse([*WORDS, f"out={out}"])


def built_in_turn(spec: Spec) -> dict[str, str]:
    """The shards' sha256, made in this process without Ray."""
    listed = listing.make(spec, spec.out)
    stages = [recipes.stages(spec)[name](spec) for name in STAGES]
    for number in range(listed.units):
        unit = listing.read_unit(spec.out, number, spec.unit)
        for stage in stages:
            run(stage, unit)
        inspection.previews(unit.items)
        units.write(spec.out, unit)
    rules = {"rules": list(spec.duplicates), "copies": spec.copies, "buckets": 1}
    shared = duplicates._shared({"id": np.arange(listed.units)}, str(spec.out), **rules)
    same = duplicates._confirmed(duplicates._alike(shared, spec.copies), str(spec.out), spec.unit)
    edges: dict[str, set[tuple[int, int]]] = {reason: set() for reason in duplicates.RULES.values()}
    for rule, later, first in zip(same["rule"], same["later"], same["first"], strict=True):
        edges[duplicates.RULES[rule]].add((int(later), int(first)))
    dropped = duplicates._resolved(edges, spec.copies)
    _, kept = building._count(spec.out, listed)
    indices = [index for index in kept if index not in dropped]
    sink = ShardsSink(spec, recipes.models(spec))
    for number, start in enumerate(range(0, len(indices), spec.shard)):
        part = indices[start : start + spec.shard]
        shards.write_shard(spec.out, number, sink._samples(part), shards.index_schema(list(spec.judges)))
    return digests(spec.out)


def digests(out: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.glob("shard-*"))}


def wait_for(what: Callable[[], bool], driver: subprocess.Popen, seconds: float = 240) -> None:
    until = time.monotonic() + seconds
    while not what() and driver.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    assert what() or driver.poll() is not None, "the build does not get on"


def done_units(out: Path) -> int:
    return sum(path.stem.isdecimal() for path in units.folder(out).glob("*.parquet"))


def start(out: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "lactok.data", "build", *WORDS, f"out={out}"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A build whose worker is killed after the first unit, and whose driver after the third; then finished."""
    out = tmp_path_factory.mktemp("b") / "o"
    driver = start(out)
    try:
        wait_for(lambda: done_units(out) >= 1, driver)
        started = psutil.Process(driver.pid).children(recursive=True)
        workers = [process for process in started if process.name().startswith("ray::MapWorker")]
        assert workers, "no actor of a stage runs"
        workers[0].kill()
        wait_for(lambda: done_units(out) >= 3, driver)
        left = done_units(out)
    finally:
        driver.kill()
        driver.communicate()
    assert not (out / BUILD).exists()
    assert left < 15, "the driver was killed after all units were done"
    again = start(out)
    said, errors = again.communicate(timeout=280)
    assert again.returncode == 0, errors
    return out, said


def test_kills_change_no_byte_of_the_shards(killed: tuple[Path, str], tmp_path: Path):
    out, _ = killed
    assert digests(out) == built_in_turn(of(tmp_path / "reference"))


def test_the_books_are_exact_and_what_was_planted_is_found(killed: tuple[Path, str]):
    out, said = killed
    manifest = json.loads((out / BUILD).read_bytes())
    books, facts = manifest["books"], json.loads((out / "report.json").read_bytes())
    assert books["in"] == 150 == books["kept"] + sum(books["dropped"].values())
    assert manifest["samples"] == books["kept"] == sum(shard["samples"] for shard in manifest["shards"])
    for kind in ("duplicates", "leaks"):
        found = facts["planted"][kind]
        assert found["planted"] >= 3
        assert (found["recall"], found["false"]) == (1.0, 0)
    assert f"150 items = {books['kept']} kept" in said
    assert {"image can't be decoded", "score: confidence", "caption has control characters"} <= set(books["dropped"])
    page = (out / "report.html").read_text()
    for part in ("Dropped, with reasons", "leak: perceptual hash", "<svg", "items a second of one process"):
        assert part in page


def test_the_shards_are_as_the_manifest_and_the_index_say(killed: tuple[Path, str]):
    out, _ = killed
    manifest = json.loads((out / BUILD).read_bytes())
    keys: list[str] = []
    for shard in manifest["shards"]:
        content = (out / shard["name"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == shard["sha256"]
        rows = pq.read_table(out / shard["index"]).to_pylist()
        with tarfile.open(out / shard["name"]) as tar:
            names = tar.getnames()
        assert names == [
            name for row in rows for name in (row["image_name"], f"{row['key']}.txt", f"{row['key']}.json")
        ]
        for row in rows:
            assert content[row["image_offset"] :][:4] == b"\x89PNG"[:4]
            assert row["judges"].startswith("efficientnet-lite0@5793")
            assert row["score_confidence"] > 0.03
        keys += [row["key"] for row in rows]
    assert keys == sorted(set(keys))


def test_the_same_command_changes_nothing_and_another_is_refused(
    killed: tuple[Path, str], capsys: pytest.CaptureFixture
):
    out, _ = killed
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert main(["build", *WORDS, f"out={out}"]) == 0
    assert "was finished before" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before
    assert main(["build", *WORDS[:-1], "plant.hostile=0.1", f"out={out}"]) == 2
    assert "begun with other settings: plant" in capsys.readouterr().err


def test_lactokgen_trains_on_the_shards(killed: tuple[Path, str], tmp_path: Path):
    """The commands of docs/data-construction.md: token ids of every kept image with its caption, then a GPT."""
    out, _ = killed
    kept = json.loads((out / BUILD).read_bytes())["samples"]
    common = ["device=cpu", "threads=1"]
    tokens = tmp_path / "tokens"
    assert train(["recipe=tokens", f"data.root='{out}'", f"out='{tokens}'", *common]) == 0
    assert sum(shard["count"] for shard in json.loads((tokens / "index.json").read_bytes())["shards"]) == kept
    more = ["steps=2", "batch_size=4", "data.validation=8", "log_every=1", "checkpoint_every=2", "sample_every=100"]
    assert train(["recipe=generator", f"data.root='{tokens}'", f"out='{tmp_path / 'gpt'}'", *common, *more]) == 0
    assert (tmp_path / "gpt" / "generator-mini.safetensors").is_file()
