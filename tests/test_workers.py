"""`workers=N`: processes of this machine that share a run's chunks, whatever happens to them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from evals.config import ConfigError, compose_config
from evals.engine import workers
from evals.engine.job import CHUNK
from evals.record import read
from evals.run import main
from tests.commands import Command
from tests.support import TOY, environment, install_plugin, pictures, the_run

# Notes which process decodes, waits until `TOGETHER` of them do, so that no start is missed, then for `PAUSE` seconds.
NOTING = (
    TOY.replace("        grey =", "        note()\n        grey =")
    + """

class Noisy(Toy):
    noise = True

def note():
    import os, time
    folder, until = os.environ["SEEN"], time.monotonic() + 60
    open(os.path.join(folder, str(os.getpid())), "w").close()
    while len(os.listdir(folder)) < int(os.environ["TOGETHER"]) and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(float(os.environ["PAUSE"]))
"""
)
TABLES = ("table.csv", "table.parquet", "per_image.parquet", "contact.png")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("data"), 70)


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plugin") / "plugin"
    return install_plugin(folder, "noting", NOTING, {"toy": "Toy", "noisy": "Noisy"})


def arguments(data: Path, out: Path, count: object = 2) -> list[str]:
    """Five chunks of two rows."""
    return [
        "tokenizers=[toy,noisy]", "metrics=[psnr,codes]", "seeds=2", "batch_size=8", "dataset=folder",
        f"dataset.root={data}", f"out={out}", f"workers={count}", "device=cpu", "protocol.eval_size=64",
    ]  # fmt: skip


class Run:
    """`python -m evals.run` in a process group of its own. Which processes decoded is seen in `seen`."""

    def __init__(self, plugins: Path, seen: Path, given: list[str], together: int, pause: float) -> None:
        seen.mkdir()
        self.seen = seen
        surroundings = {"SEEN": str(seen), "TOGETHER": str(together), "PAUSE": str(pause)}
        self.process = Command(["-m", "evals.run", *given], environment(plugins) | surroundings)

    def decoding(self) -> set[int]:
        """Process numbers of those that have decoded by now."""
        return {int(path.name) for path in self.seen.iterdir()}

    def wait_for_both(self) -> int:
        """Until this process and a worker decode; the worker's number."""
        until = time.monotonic() + 90
        while len(self.decoding()) < 2 and self.process.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        (worker,) = self.decoding() - {self.process.pid}
        return worker

    def end(self) -> tuple[int, str]:
        done = self.process.end(120)
        return done.returncode, done.stderr


@contextlib.contextmanager
def command(plugins: Path, seen: Path, given: list[str], together: int = 1, pause: float = 0.0) -> Iterator[Run]:
    running = Run(plugins, seen, given, together, pause)
    try:
        yield running
    finally:
        running.process.kill_group()


def gone(number: int) -> bool:
    """Whether that process ends within ten seconds."""
    until = time.monotonic() + 10
    while psutil.pid_exists(number) and psutil.Process(number).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


@pytest.fixture(scope="module")
def alone(plugins: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one process."""
    root = tmp_path_factory.mktemp("alone")
    with command(plugins, root / "seen", arguments(data, root / "out", 1)) as one:
        status, errors = one.end()
        assert status == 0, errors
        assert one.decoding() == {one.process.pid}
    return the_run(root / "out")


def assert_same(folder: Path, alone: Path) -> None:
    for name in TABLES:
        assert (folder / name).read_bytes() == (alone / name).read_bytes(), name


def test_two_give_the_table_of_one_and_none_is_awaited_where_all_is_done(
    plugins: Path, data: Path, alone: Path, tmp_path: Path
):
    given = arguments(data, tmp_path / "out")
    with command(plugins, tmp_path / "seen", given, together=2) as both:
        worker = both.wait_for_both()
        status, errors = both.end()
        assert status == 0, errors
        assert gone(worker)
    folder = the_run(tmp_path / "out")
    assert_same(folder, alone)
    record = read(folder / "run.json")
    assert record.ranks == 2
    for row in record.rows:
        (origin,) = row.origins
        assert origin.threads == 1, "a core each"

    with command(plugins, tmp_path / "again", given) as again:
        first = time.monotonic()
        assert again.end()[0] == 0
        took = time.monotonic() - first
        assert again.decoding() == set()
    with command(plugins, tmp_path / "one", arguments(data, tmp_path / "out", 1)) as one:
        first = time.monotonic()
        assert one.end()[0] == 0
        assert took < 2 * (time.monotonic() - first) + 2, "the worker's imports are not waited for"
    assert_same(folder, alone)


def test_one_that_is_killed_ends_the_run_and_the_same_command_resumes(
    plugins: Path, data: Path, alone: Path, tmp_path: Path
):
    given = arguments(data, tmp_path / "out")
    with command(plugins, tmp_path / "seen", given, together=2, pause=0.3) as both:
        os.kill(both.wait_for_both(), signal.SIGKILL)
        status, errors = both.end()
    assert status == 2
    assert "worker 1 of 2 was killed by signal 9" in errors
    assert "the same command resumes" in errors
    assert not list((tmp_path / "out").glob("runs/*/run.json"))
    assert list((tmp_path / "out").glob("cache/scores/*/meta.json")), "what was finished is kept"
    with command(plugins, tmp_path / "again", given) as again:
        status, errors = again.end()
    assert status == 0, errors
    assert_same(the_run(tmp_path / "out"), alone)


@pytest.mark.parametrize("whole_group", [True, False])
def test_ctrl_c_ends_all(plugins: Path, data: Path, tmp_path: Path, whole_group: bool):
    """A terminal sends SIGINT to all processes; `kill -INT` to one."""
    with command(plugins, tmp_path / "seen", arguments(data, tmp_path / "out"), together=2, pause=0.3) as both:
        worker = both.wait_for_both()
        send = os.killpg if whole_group else os.kill
        send(both.process.pid, signal.SIGINT)
        status, errors = both.end()
        assert gone(worker)
    assert status == 130, errors
    assert "all finished work is kept" in errors
    assert "workers=2" in errors, "the command to go on with"


def test_a_worker_whose_starter_is_killed_ends_by_itself(plugins: Path, data: Path, tmp_path: Path):
    with command(plugins, tmp_path / "seen", arguments(data, tmp_path / "out"), together=2, pause=0.3) as both:
        worker = both.wait_for_both()
        os.kill(both.process.pid, signal.SIGKILL)
        assert gone(worker)


def test_a_command_line_that_is_wrong_is_told_once(capfd: pytest.CaptureFixture[str], tmp_path: Path):
    assert main(["tokenizers=nonesuch", "workers=2", "device=cpu", f"out='{tmp_path}'"]) == 2
    assert capfd.readouterr().err.count("unknown tokenizer") == 1


@pytest.mark.parametrize("device", ["cuda", "auto"])
def test_several_on_a_gpu_are_refused_by_name(monkeypatch: pytest.MonkeyPatch, device: str):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ConfigError, match=r"workers=2 are processes on CPU cores; for GPUs .*torchrun"):
        workers.worker_count(compose_config(["workers=2", f"device={device}"]), CHUNK)
    for one in ("auto", "1"):
        assert workers.worker_count(compose_config([f"workers={one}", f"device={device}"]), CHUNK) == 1
    assert workers.worker_count(compose_config(["workers=2", "device=cpu"]), CHUNK) == 2


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5", "null", "true"])
def test_another_number_is_refused(value: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(ConfigError, match="expected auto, or a whole number of at least 1"):
        compose_config([f"workers={value}"])
    assert main([f"workers={value}"]) == 2
    assert "workers=" in capsys.readouterr().err


def test_auto_is_a_process_a_core_as_far_as_memory_and_work_reach(monkeypatch: pytest.MonkeyPatch):
    def count(*given: str) -> int:
        return workers.worker_count(compose_config(["device=cpu", *given]), CHUNK)

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    free = psutil.virtual_memory()._replace(available=1000 * 2**30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    assert count() == 12
    assert count(f"limit={CHUNK}") == 1, "a chunk has no use for two"
    assert count(f"limit={8 * CHUNK}") == 4
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert count() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    free = free._replace(available=9 * 2**30)
    assert count() == int(9 / workers.MEMORY["mini"])
    assert count("weights=paper") == 1, "one is started however little memory there is"
