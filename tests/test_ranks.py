"""Several processes give the table of one, to the last digit, whatever happens to them."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from torch.distributed import HashStore

from evals.config import ConfigError, compose_config, compose_runs
from evals.engine import execute
from evals.engine.missing import MissingInputs
from evals.engine.progress import LiveProgress, RankProgress
from evals.engine.ranks import RankError, Ranks, join
from evals.engine.store import StoreError
from evals.record import read
from evals.run import _measure, main
from lactok import registry
from tests import twins
from tests.plugin_runs import together
from tests.support import ROOT, TOY, environment, install_plugin, pictures, the_run

TABLES = ("table.csv", "table.parquet", "per_image.parquet", "contact.png")
PLUGIN = TOY + "\n\nclass Noisy(Toy):\n    noise = True\n"


@pytest.fixture(scope="module")
def plugin(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("plugin")
    return install_plugin(folder / "plugin", "rankplugin", PLUGIN, {"toy": "Toy", "noisy": "Noisy"})


@pytest.fixture
def toy(plugin: Path, monkeypatch: pytest.MonkeyPatch):
    """The toy tokenizers, in this process."""
    monkeypatch.syspath_prepend(str(plugin))
    registry.entries.cache_clear()
    yield
    registry.entries.cache_clear()
    sys.modules.pop("rankplugin", None)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return pictures(tmp_path_factory.mktemp("data"), count=70)


def arguments(data: Path, *more: object) -> list[str]:
    """Five chunks of two rows and their calibration, pixel metrics and the codebook's use."""
    return [
        "tokenizers=[toy,noisy]", "metrics=[psnr,ssim,colour,codes]", "dataset=folder", f"dataset.root={data}",
        "protocol.eval_size=64", *map(str, more),
    ]  # fmt: skip


def surroundings(plugin: Path) -> dict[str, str]:
    return environment(plugin) | {"PYTHONPATH": f"{ROOT}:{plugin}", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Runs:
    """The folders of finished runs by name, and entries in the cache at each kill."""

    folders: dict[str, Path]
    counts: dict[str, list[int]]


PLANS = {"one": (1, 0), "two": (2, 0), "four": (4, 0), "killed": (2, 10)}
"""By name: ranks, kills."""


@pytest.fixture(scope="module")
def runs(plugin: Path, data: Path, tmp_path_factory) -> Runs:
    root = tmp_path_factory.mktemp("runs")
    plans = ",".join(f"{ranks}:{kills}:{root / name}" for name, (ranks, kills) in PLANS.items())
    done = subprocess.run(
        [sys.executable, "-m", "tests.forked_ranks", plans, *arguments(data)],
        cwd=ROOT,
        env=surroundings(plugin),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("counts ")]
    return Runs({n: the_run(root / n) for n in PLANS}, {name: [int(c) for c in counts] for _, name, *counts in lines})


def assert_same(folder: Path, runs: Runs) -> None:
    assert folder.name == runs.folders["one"].name
    for name in TABLES:
        assert (folder / name).read_bytes() == (runs.folders["one"] / name).read_bytes(), name


@pytest.mark.parametrize("name", ["two", "four"])
def test_several_ranks_give_the_table_of_one(name: str, runs: Runs):
    assert_same(runs.folders[name], runs)
    assert read(runs.folders[name] / "run.json").ranks == PLANS[name][0]


def test_ten_kills_change_nothing(runs: Runs):
    counts = runs.counts["killed"]
    assert len(counts) == 10
    assert counts == sorted(counts), "a kill loses no finished work"
    assert len(set(counts)) > 5, "kills fell at different points of the work"
    assert_same(runs.folders["killed"], runs)


@pytest.fixture(scope="module")
def table_of_two_datasets(tmp_path_factory) -> list[str]:
    """A paper's table on twins of both its datasets, of the toy tokenizers."""
    root = tmp_path_factory.mktemp("twins")
    return [
        "suite=table1", "device=cpu", "tokenizers=[toy,noisy]", "metrics=[psnr]", "protocol.eval_size=64",
        "calibration=false",
        f"roots.imagenet-val={twins.imagenet(root / 'imagenet', 'flat')}", f"dataset.expect={twins.COUNT}",
        f"roots.coco-val2017={twins.coco(root / 'coco', 'folder')}",
    ]  # fmt: skip


def test_a_table_of_two_datasets_by_several_ranks(plugin: Path, table_of_two_datasets: list[str], tmp_path: Path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.forked_ranks",
            f"1:0:{tmp_path}/one,3:0:{tmp_path}/three",
            *table_of_two_datasets,
        ],
        cwd=ROOT,
        env=surroundings(plugin),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    runs = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").glob("runs/*"))
    datasets = {read(tmp_path / "three" / run / "run.json").dataset for run in runs}
    assert datasets == {"imagenet-val", "coco-val2017"}
    for run in runs:
        for name in TABLES:
            assert (tmp_path / "one" / run / name).read_bytes() == (tmp_path / "three" / run / name).read_bytes()
    assert (tmp_path / "three" / "tables" / "table1.md").is_file()


@pytest.mark.usefixtures("toy")
def test_what_a_table_lacks_ends_every_rank(table_of_two_datasets: list[str], tmp_path: Path):
    lacking = [o for o in table_of_two_datasets if not o.startswith("roots.coco")]
    runs, store, seen = compose_runs([*lacking, f"out={tmp_path / 'out'}"]), HashStore(), []

    def other() -> None:
        try:
            _measure(runs, Ranks(1, 2, 1, store), [], True)
        except RankError as error:
            seen.append(str(error))

    thread = threading.Thread(target=other, name="rank-1")
    thread.start()
    with pytest.raises(MissingInputs, match="dataset coco-val2017"):
        _measure(runs, Ranks(0, 2, 0, store), [], True)
    thread.join(30)
    assert seen == ["rank 0 has ended"]
    assert not list((tmp_path / "out").glob("runs/*")), "nothing began"


def test_torchrun(plugin: Path, data: Path, runs: Runs, tmp_path: Path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "evals.run"]
    done = subprocess.run(
        [*launch, *arguments(data, f"out={tmp_path / 'out'}")],
        cwd=tmp_path,
        env=surroundings(plugin),
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run.json") == 1, "one of them prints the table"
    assert_same(the_run(tmp_path / "out"), runs)


def test_submitted_as_a_job(plugin: Path, data: Path, runs: Runs, tmp_path: Path):
    pytest.importorskip("submitit")
    job = [
        "launcher=slurm", "slurm.cluster=local", "slurm.tasks_per_node=2", "slurm.gpus_per_node=0", "slurm.minutes=4",
    ]  # fmt: skip
    given = arguments(data, f"out={tmp_path / 'out'}", *job)
    done = subprocess.run(
        [sys.executable, "-m", "evals.run", *given],
        cwd=tmp_path,
        env=surroundings(plugin),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "submitted job" in done.stdout
    deadline = time.monotonic() + 120
    while not list((tmp_path / "out").glob("runs/*/run.json")):
        assert time.monotonic() < deadline, [p.read_text()[-2000:] for p in tmp_path.glob("out/slurm/*/*.err")]
        time.sleep(0.2)
    assert_same(the_run(tmp_path / "out"), runs)


# --- Two ranks in one process, where a test can reach into them ------------------------------------------------------


def on_rank_1(call: Callable, error: Exception) -> Callable:
    def failing(*given, **more):
        if threading.current_thread().name == "rank-1":
            raise error
        time.sleep(0.02)  # rank 1 comes to its turn
        return call(*given, **more)

    return failing


@pytest.mark.usefixtures("toy")
def test_a_row_that_fails_on_one_rank_has_failed(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import rankplugin

    monkeypatch.setattr(rankplugin.Toy, "decode", on_rank_1(rankplugin.Toy.decode, RuntimeError("bad card")))
    finished, errors = together(arguments(data, f"out={tmp_path / 'out'}"))
    assert errors == []
    status = {row.label: (row.status, row.error) for row in finished.record.rows}
    assert status["toy"][0] == "failed"
    assert status["toy"][1].startswith("on rank 1: RuntimeError: bad card (in a batch of ")
    assert status["identity"][0] == status["mean-colour"][0] == "ok"


@pytest.mark.usefixtures("toy")
def test_a_rank_that_stops_is_named_and_no_table_is_written(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(execute, "_run_chunk", on_rank_1(execute._run_chunk, StoreError("the disk is full")))
    with pytest.raises(RankError, match=r"rank 1 on \S+ stopped: the disk is full\n.*the same command resumes"):
        together(arguments(data, f"out={tmp_path / 'out'}"))
    assert not list((tmp_path / "out").glob("runs/*"))


@pytest.mark.usefixtures("toy")
def test_damaged_entries_are_made_anew_by_all(data: Path, tmp_path: Path):
    given = arguments(data, f"out={tmp_path / 'out'}")
    before, _ = together(given)
    for path in (tmp_path / "out" / "cache").glob("scores/*/data.safetensors"):
        path.write_bytes(path.read_bytes()[:-3])
    after, errors = together(given)
    assert errors == []
    assert [row.cells for row in after.record.rows] == [row.cells for row in before.record.rows]


def test_no_rank_waits_for_one_that_never_began(data: Path, tmp_path: Path):
    """Rank 0 ends with its own error, and the other one with it."""
    with pytest.raises(Exception, match="unknown tokenizer"):
        together(["tokenizers=nonesuch", "dataset=folder", f"dataset.root={data}", f"out={tmp_path / 'out'}"])


def test_a_rank_whose_folder_is_another_is_named(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("evals.engine.ranks.SEEN", 0.2)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    store, seen = HashStore(), []

    def other() -> None:
        try:
            Ranks(1, 2, 1, store).check_shared(tmp_path / "b")
        except RankError as error:
            seen.append(str(error))

    thread = threading.Thread(target=other)
    thread.start()
    Ranks(0, 2, 0, store).check_shared(tmp_path / "a")
    thread.join(10)
    (message,) = seen
    assert list((tmp_path / "a").iterdir()), "the mark stays until the run ends"
    assert str(tmp_path / "b") in message
    assert "out=DIR" in message


def test_who_waits_for_a_rank_0_that_has_ended_ends():
    store = HashStore()
    Ranks(0, 2, 0, store).end()
    with pytest.raises(RankError, match="rank 0 has ended"):
        Ranks(1, 2, 1, store).wait("anything")


def test_claims_are_each_made_once():
    store = HashStore()
    ranks = [Ranks(i, 3, i, store) for i in range(3)]
    assert sorted(rank.claim("a") for rank in [*ranks, *reversed(ranks)]) == list(range(6))
    assert ranks[0].claim("b") == 0
    one = Ranks()
    assert [one.claim("a"), one.claim("a"), one.claim("b")] == [0, 1, 0]


def test_a_part_of_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(RankError, match=r"RANK, LOCAL_RANK.* not set.*torchrun"):
        join()
    assert main(["tokenizers=llamagen"]) == 2
    assert "torchrun --nproc-per-node" in capsys.readouterr().err


def test_settings_of_a_job_are_checked():
    with pytest.raises(ConfigError, match=r"slurm\.nodes=0"):
        compose_config(["launcher=slurm", "slurm.nodes=0"])
    with pytest.raises(ConfigError, match="launcher=condor: expected here or slurm"):
        compose_config(["launcher=condor"])
    assert compose_config(["slurm.more.partition=gpu"]).slurm.more == {"partition": "gpu"}


def test_progress_adds_up_all_ranks():
    store, now = HashStore(), [0.0]
    first, second = (Ranks(i, 2, i, store) for i in range(2))
    with LiveProgress(False, first, clock=lambda: now[0]) as live:
        other = RankProgress(second)
        live.start(10)
        other.start(10)
        other.advance("titok-mini", 16, worked=True)
        other.advance("titok-mini", 16, worked=False)
        now[0] = 4.0
        live.advance("llamagen-mini", 16, worked=True)
        assert live.line(4.0) == ("llamagen-mini, titok-mini: 3/10 chunks, 8.0 images/s, 2 processes, about 14 s left")
