"""Runs with small third-party tokenizers in the test's own process: alone, or as two ranks."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from torch.distributed import HashStore

from evals.config import compose_config
from evals.engine import run as engine
from evals.engine.ranks import Ranks
from evals.record import RowRecord
from lactok import registry
from tests.support import install_plugin


@contextlib.contextmanager
def plugin(folder: Path, source: str, names: dict[str, str], module: str = "testplugin") -> Iterator[ModuleType]:
    """A plugin that this process can import, as its module. names: entry name to attribute."""
    sys.path.insert(0, str(install_plugin(folder, module, source, names)))
    registry.entries.cache_clear()
    try:
        yield __import__(module)
    finally:
        sys.path.remove(str(folder))
        registry.entries.cache_clear()
        sys.modules.pop(module, None)


def together(given: list[str], store: HashStore | None = None) -> tuple[engine.Finished, list[BaseException]]:
    """Rank 0's result of a run by two ranks, and what ended rank 1."""
    store, errors = store or HashStore(), []

    def assist() -> None:
        try:
            engine.assist(compose_config(given), Ranks(1, 2, 1, store))
        except BaseException as error:
            errors.append(error)

    # Hydra's state is one for the process, so rank 0 composes before rank 1 does
    config = compose_config(given)
    other = threading.Thread(target=assist, name="rank-1")
    other.start()
    try:
        return engine.run(config, quiet=True, ranks=Ranks(0, 2, 0, store)), errors
    finally:
        other.join(60)
        assert not other.is_alive(), "rank 1 was left behind"


def given(data: Path, out: Path, *more: str) -> list[str]:
    """The arguments of a run over a folder of images, without calibration rows unless `more` says so."""
    return ["dataset=folder", f"dataset.root='{data}'", f"out='{out}'", "calibration=false", *more]


def run(data: Path, out: Path, *more: str, ranks: int = 1) -> engine.Finished:
    """A run of one process, or of two ranks."""
    if ranks == 1:
        return engine.run(compose_config(given(data, out, *more)), quiet=True)
    finished, errors = together(given(data, out, *more))
    assert errors == []
    return finished


def rows(finished: engine.Finished) -> dict[str, RowRecord]:
    """The run's rows by label."""
    return {row.label: row for row in finished.record.rows}
