"""The cache: an entry is whole or absent, whatever happens."""

import errno
import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from evals.engine.job import Artifact
from evals.engine.store import Cache, StoreError, write_atomically

ONE, OTHER = Artifact("kind", {"of": 1}), Artifact("kind", {"of": 2})


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", {"device": "a processor", "threads": 1})


def test_round_trip(cache: Cache):
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([1, 2], np.int32)}
    cache.write(ONE, arrays, {"seconds": 1.5})
    entry = cache.read(ONE)
    assert entry.meta == {"seconds": 1.5}
    assert entry.origin == {"device": "a processor", "threads": 1}, "who made it"
    assert all(np.array_equal(entry.arrays[k], v) and entry.arrays[k].dtype == v.dtype for k, v in arrays.items())
    assert cache.has(ONE)
    assert not cache.has(OTHER)
    assert cache.read(OTHER) is None


def test_arrays_come_in_one_order(cache: Cache):
    names = [f"column {i}" for i in range(20)]
    cache.write(ONE, {name: np.zeros(1, np.float32) for name in reversed(names)}, {})
    assert all(list(cache.read(ONE).arrays) == sorted(names) for _ in range(20))


@pytest.mark.parametrize("damage", ["truncate", "flip", "meta", "no data", "no meta"])
def test_a_damaged_entry_is_absent_and_can_be_made_again(cache: Cache, damage: str):
    cache.write(ONE, {"a": np.zeros(100, np.float32)}, {})
    data = cache.root / "kind" / ONE.key / "data.safetensors"
    meta = cache.root / "kind" / ONE.key / "meta.json"
    if damage == "truncate":
        data.write_bytes(data.read_bytes()[:-10])
    elif damage == "flip":
        content = bytearray(data.read_bytes())
        content[-1] ^= 1
        data.write_bytes(content)
    elif damage == "meta":
        meta.write_text(meta.read_text()[:-20])
    else:  # a folder that was copied in part
        (data if damage == "no data" else meta).unlink()
    assert cache.read(ONE) is None
    assert not cache.has(ONE)
    cache.write(ONE, {"a": np.ones(1, np.float32)}, {})
    assert cache.read(ONE).arrays["a"][0] == 1


def test_what_is_left_of_an_entry_does_not_keep_a_new_one_out(cache: Cache):
    """Nobody has read it before."""
    cache.write(ONE, {"a": np.zeros(1, np.float32)}, {})
    (cache.root / "kind" / ONE.key / "meta.json").unlink()
    cache.write(ONE, {"a": np.ones(1, np.float32)}, {})
    assert cache.read(ONE).arrays["a"][0] == 1


def test_the_first_writer_stays(cache: Cache):
    cache.write(ONE, {"a": np.zeros(1, np.float32)}, {})
    cache.write(ONE, {"a": np.ones(1, np.float32)}, {})
    assert cache.read(ONE).arrays["a"][0] == 0
    assert [p.name for p in (cache.root / "kind").iterdir()] == [ONE.key]


def test_killed_in_the_middle_of_a_write(tmp_path: Path):
    """A process killed between writing the data and the rename leaves nothing that counts, and it is cleaned up."""
    code = textwrap.dedent("""
        import sys, time, numpy as np
        from evals.engine import store
        from evals.engine.job import Artifact
        from lactok import files
        def stop(path, content):
            path.write_bytes(content[: len(content) // 2]); print("half", flush=True); time.sleep(60)
        cache = store.Cache(sys.argv[1])
        files.write_synced = stop
        cache.write(Artifact("kind", {"of": 1}), {"a": np.zeros(1000, np.float32)}, {})
    """)
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "half\n"
    process.kill()
    process.wait()
    assert len(list((tmp_path / "kind").iterdir())) == 1
    cache = Cache(tmp_path)
    assert cache.read(ONE) is None
    assert list((tmp_path / "kind").iterdir()) == []


def test_a_full_disk_is_explained_and_leaves_nothing(cache: Cache, monkeypatch: pytest.MonkeyPatch):
    def full(path: Path, content: bytes) -> None:
        path.write_bytes(content[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("lactok.files.write_synced", full)
    with pytest.raises(StoreError, match=r"disk is full.*Finished work is kept"):
        cache.write(ONE, {"a": np.zeros(10, np.float32)}, {})
    with pytest.raises(StoreError, match="disk is full"):
        write_atomically(cache.root / "run.json", b"{}")
    monkeypatch.undo()
    assert not cache.has(ONE)
    assert [p for p in cache.root.rglob("*") if p.is_file()] == []


def test_a_folder_that_cannot_be_written_is_explained(tmp_path: Path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError, match="out=DIR"):
        Cache(tmp_path / "file" / "cache")


def test_entries_of_living_processes_are_left_alone(tmp_path: Path):
    import socket

    mine = tmp_path / "kind" / f".tmp-{socket.gethostname()}-{os.getpid()}-0123abcd"
    mine.mkdir(parents=True)
    Cache(tmp_path)
    assert mine.is_dir()


def test_entries_of_machines_with_a_longer_name_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("socket.gethostname", lambda: "gpu")
    theirs = [tmp_path / "kind" / f".tmp-gpu-{rest}-0123abcd" for rest in ("login-123", "4000000-99")]
    dead = tmp_path / "kind" / ".tmp-gpu-4000000-0123abcd"
    for folder in (*theirs, dead):
        folder.mkdir(parents=True)
    Cache(tmp_path)
    assert [folder.is_dir() for folder in (*theirs, dead)] == [True, True, False]


def test_writing_atomically_replaces(tmp_path: Path):
    path = tmp_path / "deep" / "run.json"
    write_atomically(path, b"1")
    write_atomically(path, json.dumps({"t": time.time()}).encode())
    assert json.loads(path.read_text())["t"] > 0
    assert len(list(path.parent.iterdir())) == 1


def test_an_entry_that_another_process_has_just_placed_stays(cache: Cache, monkeypatch: pytest.MonkeyPatch):
    read = Cache._entry

    def placed_in_between(self: Cache, folder: Path):
        try:
            return read(self, folder)
        except FileNotFoundError:
            Cache(cache.root).write(ONE, {"a": np.zeros(1, np.float32)}, {})
            raise

    monkeypatch.setattr(Cache, "_entry", placed_in_between)
    assert cache.read(ONE) is not None
    assert cache.has(ONE)
