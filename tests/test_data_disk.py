"""A disk that fills under a build on Ray is told, nothing is half-written; the build goes on once there is room."""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="Ray is not installed: pip install 'lactok[cluster]'")

from lactok.data.__main__ import main
from lactok.data.construct import build as building
from lactok.data.construct import cluster, units
from lactok.data.construct.spec import Spec, parse
from lactok.data.tar_roots import BUILD
from lactok.files import WriteError

FULL = '''
import errno, os, pathlib

_real, _folder = os.fsync, pathlib.Path(__file__).parent


def fsync(file):
    """The disk is full for files whose path holds a word that lies in the folder of words."""
    path = os.readlink(f"/proc/self/fd/{file if isinstance(file, int) else file.fileno()}")
    if any(word.name in path and int(word.read_text()) <= _written(path) for word in (_folder / "full").iterdir()):
        raise OSError(errno.ENOSPC, "No space left on device")
    return _real(file)


def _written(path):
    return sum(not name.startswith(".") for name in os.listdir(os.path.dirname(path)))


os.fsync = fsync
'''


def spec_of(out: Path) -> Spec:
    words = ["recipe=mini", "items=60", "unit=10", "shard=25", "leakage=[scenes:5]", "size=48", f"out={out}"]
    return parse([*words, "stages.inspect.cpus=0.2", "stages.judge.cpus=0.2"])


def digests(out: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.glob("shard-*"))}


@contextlib.contextmanager
def full(folder: Path, word: str, after: int) -> Iterator[None]:
    """The disk is full for files of that name once `after` stand in their folder."""
    (folder / "full" / word).write_text(str(after))
    try:
        yield
    finally:
        (folder / "full" / word).unlink()


def strays(out: Path) -> list[Path]:
    return [path for path in out.rglob("*") if path.is_file() and path.name.endswith(".tmp")]


@pytest.mark.slow
def test_a_disk_that_fills_is_told_and_the_build_goes_on_once_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """Three runs on one cluster: the disk fills while units are written, while shards are; then there is room."""
    site = tmp_path / "site"
    (site / "full").mkdir(parents=True)
    (site / "sitecustomize.py").write_text(FULL)
    monkeypatch.setenv("PYTHONPATH", f"{site}:{Path(__file__).parent.parent}")
    assert Path(sys.executable).exists()
    spec = spec_of(tmp_path / "o")
    with cluster.connected(spec):
        with full(site, "units", 2), pytest.raises(WriteError, match="the disk is full"):
            building.build(spec)
        done = units.finished(spec.out, 6)
        assert len(done) == 2, "what was written before counts"
        assert strays(spec.out) == []
        with full(site, "shard-00001", 0), pytest.raises(WriteError, match="the disk is full"):
            building.build(spec)
        assert units.finished(spec.out, 6) == set(range(6))
        assert strays(spec.out) == []
        assert not (spec.out / BUILD).exists()
        assert not (spec.out / "shard-00001.tar").exists()
        manifest = building.build(spec)
        other = spec_of(tmp_path / "other")
        building.build(other)
    assert manifest["books"]["in"] == 60
    assert digests(spec.out) == digests(other.out)
    assert main(["build", "recipe=mini", "items=60", "out=" + str(spec.out)]) == 2
    assert "begun with other settings" in capsys.readouterr().err


def raised_by_ray(how: str) -> Exception:
    """What Ray may raise for a full disk that one of its tasks met."""
    from ray.exceptions import RayTaskError, UserCodeException

    own = WriteError("can't write /x/y.tar: the disk is full")
    trace = (
        f"ray::Write() (pid=7)\nTraceback (most recent call last):\nlactok.files.WriteError: {own}\nFailed to apply\n"
    )
    task = RayTaskError("write", trace, own)
    if how == "task":
        return task
    if how == "class made of both":
        return task.as_instanceof_cause()
    error: Exception = UserCodeException(trace) if how == "text alone" else RuntimeError("Ray Data's own")
    if how != "text alone":
        error.__cause__ = task.as_instanceof_cause()
    return error


@pytest.mark.parametrize("how", ["task", "class made of both", "text alone", "another error's cause"])
def test_a_full_disk_in_a_process_of_ray_is_told_in_one_line(how: str):
    with pytest.raises(WriteError) as seen, cluster.unwrapped(WriteError):
        raise raised_by_ray(how)
    assert str(seen.value) == "can't write /x/y.tar: the disk is full"


def test_an_error_of_rays_own_says_that_the_same_command_goes_on():
    from ray.exceptions import RayError

    with (
        pytest.raises(cluster.NoCluster, match="node died; finished units are kept"),
        cluster.unwrapped(WriteError),
    ):
        raise RayError("node died")
    with pytest.raises(ZeroDivisionError), cluster.unwrapped(WriteError):
        raise ZeroDivisionError
