"""How many models are held at once, and how often each is built."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from evals.engine.progress import LiveProgress, RankProgress
from tests.plugin_runs import plugin, rows, run
from tests.support import TOY, pictures

COUNTED = (
    TOY
    + """
import threading, weakref

live, most, built = {}, {}, []

def count(model):
    thread = threading.current_thread().name
    held = live.setdefault(thread, weakref.WeakSet())
    held.add(model)
    most[thread] = max(most.get(thread, 0), len(held))
    built.append(type(model).__name__)

class One(Toy):
    def __init__(self, options, device):
        super().__init__(options, device)
        self.cycle = self  # as networks with hooks have them
        count(self)

class Two(One):
    noise = True

class Three(One):
    pass

class Broken(One):
    def __init__(self, options, device):
        super().__init__(options, device)
        raise RuntimeError("no such layer")
"""
)
NAMES = {"one": "One", "broken": "Broken", "three": "Three", "two": "Two"}
WANTED = "tokenizers=[one,broken,two,three]"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("data"), 40)


@pytest.fixture
def one_collection_at_a_time(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ranks are threads here: `gc.collect` of one returns at once while another one's runs, and frees nothing."""
    collect, lock = gc.collect, threading.Lock()

    def alone(*arguments: int) -> int:
        with lock:
            return collect(*arguments)

    monkeypatch.setattr(gc, "collect", alone)
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("one_collection_at_a_time")
@pytest.mark.parametrize(("resident", "ranks"), [(1, 1), (2, 1), (1, 2)])
def test_no_more_models_than_resident_are_alive(tmp_path: Path, data: Path, resident: int, ranks: int):
    with plugin(tmp_path / "plugin", COUNTED, NAMES) as module:
        finished = run(data, tmp_path / "out", WANTED, f"resident={resident}", "metrics=[psnr]", ranks=ranks)
        assert max(module.most.values()) == resident
        for name in ("One", "Two", "Three"):
            assert module.built.count(name) <= ranks, "built once on each rank"
    found = rows(finished)
    assert [found[name].status for name in ("one", "two", "three")] == ["ok"] * 3
    assert "no such layer" in found["broken"].error


def test_nothing_is_built_where_all_is_stored(tmp_path: Path, data: Path):
    with plugin(tmp_path / "plugin", COUNTED, NAMES) as module:
        first = run(data, tmp_path / "out", "tokenizers=[one,two,three]", "resident=1", "metrics=[psnr]")
        module.built.clear()
        again = run(data, tmp_path / "out", "tokenizers=[one,two,three]", "resident=1", "metrics=[psnr]")
        assert module.built == []
    assert [row.cells for row in again.record.rows] == [row.cells for row in first.record.rows]


@pytest.mark.parametrize("ranks", [1, 2])
def test_progress_ends_at_its_total(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, ranks: int):
    totals, done = [], []
    for kind in (LiveProgress, RankProgress):
        start, advance = kind.start, kind.advance
        monkeypatch.setattr(kind, "start", lambda s, total, start=start: totals.append(total) or start(s, total))
        monkeypatch.setattr(kind, "advance", lambda s, *a, _of=advance, **k: done.append(a) or _of(s, *a, **k))
    with plugin(tmp_path / "plugin", COUNTED, NAMES):
        run(data, tmp_path / "out", WANTED, "resident=1", "metrics=[psnr]", ranks=ranks)
    assert totals == [len(done)] * ranks
