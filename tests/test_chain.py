"""recipe=mini-all: the chain's parts in order, by one command that can be stopped anywhere and goes on."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lactok.checkpoint_file import read_checkpoint, tensors_sha256
from lactok.train import run_folder
from lactok.train.__main__ import main
from lactok.train.chain import PARTS, Chain, Ends, Finished, Stopped, closing_table
from lactok.train.config import TrainConfigError
from lactok.train.help import help_text
from lactok.train.run_folder import RunFolderError
from lactok.train.schedule import Progress, StopRequest
from lactok.weights import WeightsError
from tests.support import pictures
from tests.tiny_lactok import SHARED, TINY, quick_training

CHOSEN = [part for part in PARTS if part.name not in ("vae", "vq", "titok", "flextok", "seed")]
"""LacTok's own; the parts on which they build ship."""
NAMES = [f"{part.name}-mini" for part in CHOSEN]
SHIPPED = ("ldm.options.model.unet.in_channels=8", "ldm.options.model.unet.out_channels=8")
"""Latents of the autoencoder that ships have 8 channels."""


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    with quick_training():
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return pictures(tmp_path_factory.mktemp("data"), count=6)


def command(data: Path, out: Path, *more: str) -> list[str]:
    """A chain of parts with two tiny steps each."""
    own = [
        f"{recipe}.{override}" for recipe in ("ldm", "accelerator", "diffusion", "pixel") for override in TINY[recipe]
    ]
    return [
        "recipe=mini-all",
        f"data.root='{data}'",
        f"out='{out}'",
        "steps=2",
        f"parts=[{','.join(part.name for part in CHOSEN)}]",
        *SHARED,
        "data.validation=1",
        *own,
        *SHIPPED,
        *more,
    ]


@dataclass(frozen=True)
class Stopping:
    """A chain that was stopped three times before it came to its end. asked: parts begun before the second stop."""

    out: Path
    stops: list[list[Finished] | Stopped]
    asked: list[str]
    early: bool
    handler_kept: bool


@pytest.fixture(scope="module")
def stopping(data: Path, tmp_path_factory) -> Stopping:
    """By Ctrl-C in the first part's first step, by SIGTERM while the second opens its images, by a budget."""
    out = tmp_path_factory.mktemp("stopping") / "chain"
    chain, stops = Chain(command(data, out)), []
    tick, open_run, asked = Progress.tick, run_folder.open_run, []
    before = signal.getsignal(signal.SIGTERM)

    def interrupted_in_the_first_step(self, images):
        tick(self, images)
        if self.step == 1:
            os.kill(os.getpid(), signal.SIGINT)

    def interrupted_before_it_trains(config, *more):
        asked.append(config.name)
        if config.name == "diffusion-mini":
            os.kill(os.getpid(), signal.SIGTERM)
        return open_run(config, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "tick", interrupted_in_the_first_step)
        stops.append(chain.run())
    early = files(out)["accelerator-hypersd-mini"].parent.exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lactok.train.loop.open_run", interrupted_before_it_trains)
        stops.append(chain.run())
    kept = signal.getsignal(signal.SIGTERM) is before
    stops.append(Chain(command(data, out, "stop_after_minutes=0")).run())
    stops.append(chain.run())
    return Stopping(out, stops, asked, early, kept)


def files(out: Path) -> dict[str, Path]:
    return {name: out / name / f"{name}.safetensors" for name in NAMES}


def test_it_stops_anywhere_and_the_same_command_goes_on(stopping: Stopping):
    *stops, done = stopping.stops
    assert stops == [
        Stopped("ldm-mini", "SIGINT", 1),
        Stopped("diffusion-mini", "SIGTERM", None),
        Stopped("diffusion-mini", "stop_after_minutes=0", 1),
    ]
    assert [(part.name, part.steps, part.file) for part in done] == [(n, 2, f) for n, f in files(stopping.out).items()]
    assert not stopping.early, "no part begins before the one that it needs is done"
    assert stopping.asked == NAMES[:2]
    assert stopping.handler_kept


def test_each_part_starts_from_the_files_of_those_before_it(stopping: Stopping):
    made = {name: read_checkpoint(file)[1].config for name, file in files(stopping.out).items()}
    tensors = {name: tensors_sha256(file) for name, file in files(stopping.out).items()}
    for name in NAMES[1:]:
        assert made[name]["base"] == tensors["ldm-mini"]
    for accelerator in ("hypersd", "tlcm"):
        assert made[f"pixel-{accelerator}-mini"]["adapter"] == tensors[f"accelerator-{accelerator}-mini"]
    assert sorted(p.name for p in stopping.out.iterdir()) == sorted([*NAMES, "images"])
    assert not list(stopping.out.glob("*-mini/images.bin")), "the parts share one pack of images"


def test_the_same_command_again_trains_nothing_and_shows_what_there_is(data: Path, stopping: Stopping, capsys):
    before = {p: p.stat().st_mtime_ns for p in stopping.out.rglob("*") if p.is_file()}
    assert main(command(data, stopping.out)) == 0
    out = capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in stopping.out.rglob("*") if p.is_file()} == before
    for place, (name, file) in enumerate(files(stopping.out).items(), start=1):
        assert f"[{place}/6] {name}: finished, 2 steps; {file}" in out
    header, *rows, total = out.splitlines()[-8:]
    assert header.split() == ["part", "steps", "core-hours", "file"]
    assert [row.split()[0] for row in rows] == NAMES
    assert [row.split()[3] for row in rows] == [str(file) for file in files(stopping.out).values()]
    assert total.split()[:2] == ["all", "12"]


def test_other_settings_are_refused_in_its_folder(data: Path, stopping: Stopping):
    with pytest.raises(RunFolderError, match="accelerator-tlcm-mini holds a run with other settings:\n  batch_size: 4"):
        Chain(command(data, stopping.out, "accelerator-tlcm.batch_size=3")).run()


def test_keys_of_a_part_win_over_those_of_its_recipe_and_of_all(data: Path, tmp_path: Path):
    chain = Chain(command(data, tmp_path / "a b", "pixel.steps=5", "pixel-tlcm.steps=7", "ldm.optimizer.beta2=0.9"))
    assert {c.name: c.steps for c in chain.settings} == dict(zip(NAMES, (2, 2, 2, 2, 5, 7)))
    assert [c.optimizer.beta2 for c in chain.settings] == [0.9] + [0.99] * 5
    assert [c.folder for c in chain.settings] == [tmp_path / "a b" / name for name in NAMES]
    assert {c.data.pack for c in chain.settings} == {str(tmp_path / "a b" / "images")}
    assert [c.options.accelerator for c in chain.settings if c.recipe == "pixel"] == ["hypersd", "tlcm"]


def test_each_part_has_its_preset(data: Path):
    chain = Chain(["recipe=mini-all", f"data.root='{data}'"])
    assert chain.folder == Path("runs/mini-all")
    assert all(c.steps > 10 for c in chain.settings)
    assert {c.options.image_size for c in chain.settings if c.recipe in ("ldm", "accelerator")} == {128}


def test_without_a_choice_every_miniature_is_a_part(data: Path):
    chain = Chain(["recipe=mini-all", f"data.root='{data}'"])
    assert [part.name for part in chain.parts] == [part.name for part in PARTS]
    for place, part in enumerate(PARTS):
        assert set(part.needs) <= {before.name for before in PARTS[:place]}


def test_parts_at_once_give_the_same_files_and_one_that_fails_leaves_the_others_alone(
    data: Path, stopping: Stopping, tmp_path: Path
):
    more = "jobs=2", "parts=[ldm,accelerator-hypersd,accelerator-tlcm]", "accelerator-tlcm.options.base=/nowhere"
    with pytest.raises(WeightsError, match="nowhere"):
        Chain(command(data, tmp_path / "chain", *more)).run()
    made = {name: file for name, file in files(tmp_path / "chain").items() if file.is_file()}
    assert list(made) == ["ldm-mini", "accelerator-hypersd-mini"]
    for name, file in made.items():
        assert tensors_sha256(file) == tensors_sha256(files(stopping.out)[name]), name


def test_windows_are_for_three_parts_at_once(data: Path):
    with pytest.raises(TrainConfigError, match=r"minutes=8 jobs=1: the parts' windows are made for jobs=3"):
        Chain(["recipe=mini-all", f"data.root='{data}'", "minutes=8"])
    chain = Chain(["recipe=mini-all", f"data.root='{data}'", "vq.minutes=5"])
    assert {c.name: c.minutes for c in chain.settings if c.minutes} == {"vq-mini": 5}


def test_a_late_part_is_told_of():
    ldm = next(part for part in PARTS if part.name == "ldm")
    began = max(part.until for part in PARTS if part.name in ldm.needs)
    assert Ends(time.time() - 600 * began, None, 10.0).late(ldm) == ""
    assert "ldm has 1 s left of its window" in Ends(time.time() - 600 * ldm.until, None, 10.0).late(ldm)
    assert Ends(time.time() - 6000, None, None).late(ldm) == ""


def test_each_part_has_its_window_of_the_minutes():
    ends = Ends(began=time.time() - 60, stop_after_minutes=None, all_minutes=10.0)
    vae, last = PARTS[0], PARTS[-1]
    assert ends.minutes(vae) == pytest.approx(10 * vae.until - 1, abs=0.01)
    assert ends.minutes(last) == pytest.approx(9, abs=0.01)
    assert Ends(time.time() - 6000, None, 10.0).minutes(last) == 0.01, "a late part is taken nevertheless"
    assert Ends(time.time(), None, None).minutes(last) is None
    assert Ends(time.time() - 60, 3.0, None).budget() == pytest.approx(2, abs=0.01)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["options.colour=1"],
            r"options\.colour is of one part: write PART\.options\.colour=VALUE, where PART is one of vae",
        ),
        (["lmd.steps=3"], "mini-all has no part 'lmd'; did you mean ldm"),
        (["accelerator=tlcm"], "trains both few-step LoRAs; leave it out"),
        (["scale=paper"], "at scale=paper run its stages by recipe=diffusion and recipe=pixel"),
        (["ldm.out=x"], r"ldm\.out: all parts of mini-all share out; write out=VALUE"),
        (["pixel.steps=0"], "steps=0: expected a whole number"),
        (["pixel.options.color=1"], r"did you mean options\.colour"),
        (["stepz=3"], "did you mean steps"),
        (["jobs=none"], "jobs=none: expected how many parts are trained at once"),
        (["parts=[vae,ldmm]"], "mini-all has no part 'ldmm'; did you mean ldm"),
        (["parts=[]"], "expected some of vae, vq"),
        (["init=x"], r"init=x: it is of one part: write PART\.init=x"),
        (["vae.jobs=2"], r"vae\.jobs: all parts of mini-all share jobs"),
        (["steps"], "not of the form key=value"),
    ],
)
def test_a_wrong_command_line_is_explained(more: list[str], message: str):
    with pytest.raises(TrainConfigError, match=message):
        Chain(["recipe=mini-all", "data.root=x", *more])


def test_a_misspelt_chain_is_recognised(capsys):
    assert main(["recipe=mini-al", "data.root=x"]) == 2
    assert "did you mean 'mini-all'" in capsys.readouterr().err
    assert main(["recipe=mini-all"]) == 2
    assert "data.root is missing" in capsys.readouterr().err


def test_help_teaches_the_chain():
    text = help_text()
    assert "mini-all" in text
    assert ", ".join(part.name for part in PARTS) in text
    assert "python -m lactok.train recipe=mini-all" in text


def test_the_table_adds_up():
    parts = [Finished("a", 1000, 0.5, False, Path("a.safetensors")), Finished("bb", 20, 0.25, False, Path("b"))]
    assert closing_table(parts).splitlines() == [
        "part  steps  core-hours  file",
        "a     1,000        0.50  a.safetensors",
        "bb       20        0.25  b",
        "all   1,020        0.75",
    ]


def test_a_parts_minutes_beside_those_of_the_chain_are_refused(data: Path):
    arguments = ["recipe=mini-all", f"data.root='{data}'", "jobs=3", "minutes=8", "pixel-tlcm.minutes=2"]
    with pytest.raises(TrainConfigError, match=r"minutes=8 pixel-tlcm\.minutes=2: by the former each part has"):
        Chain(arguments)
    assert Chain(arguments[:-1]).minutes == 8


def test_a_signal_in_the_last_step_of_a_part_stops_the_chain(data: Path, tmp_path: Path):
    tick = Progress.tick

    def interrupted_in_the_last_step(self, images):
        tick(self, images)
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "tick", interrupted_in_the_last_step)
        stopped = Chain(command(data, tmp_path / "chain", "parts=[ldm,accelerator-tlcm]")).run()
    assert stopped == Stopped("ldm-mini", "SIGTERM", 2)
    assert [path.name for path in (tmp_path / "chain").glob("*-mini")] == ["ldm-mini"]


@dataclass(frozen=True)
class AtOnce:
    """Parts at once whose training is a wait, in forked processes, which need not import anything."""

    data: Path
    folder: Path
    patch: pytest.MonkeyPatch

    def run(self, parts: dict[str, Callable[[Path], Stopped | None]]) -> list[Finished] | Stopped:
        fork = multiprocessing.get_context("fork")
        self.patch.setattr("lactok.train.chain.multiprocessing.get_context", lambda method: fork)
        self.patch.setattr(Chain, "run_part", lambda chain, part, *more: parts[part.name](self.folder / part.name))
        self.patch.setattr(Chain, "finished", lambda chain: [])
        own = f"parts=[{','.join(parts)}]", f"out='{self.folder}'"
        return Chain(["recipe=mini-all", f"data.root='{self.data}'", "jobs=3", *own]).run()


@pytest.fixture
def at_once(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AtOnce:
    return AtOnce(data, tmp_path, monkeypatch)


def trained_until_told(place: Path) -> Stopped:
    """As the training loop: it saves for a while, and says by what it was told."""
    with StopRequest().listening() as stop:
        place.with_suffix(".began").touch()
        for _ in range(200):
            if stop.name:
                break
            time.sleep(0.05)
        time.sleep(0.3)
        place.with_suffix(".saved").write_text(stop.name)
    return Stopped(f"{place.name}-mini", stop.name, 7)


def done_at_once(place: Path) -> None:
    place.with_suffix(".began").touch()


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_command_makes_each_of_several_parts_save(at_once: AtOnce, by: signal.Signals):
    """Ctrl-C goes to all processes, an idle one among them, kill to the first."""

    def tell() -> None:
        names = ("vae", "titok", "vq")
        while not all((at_once.folder / f"{name}.began").is_file() for name in names):
            time.sleep(0.02)
        time.sleep(0.3)
        for pid in [*(p.pid for p in multiprocessing.active_children() if by == signal.SIGINT), os.getpid()]:
            assert pid is not None
            os.kill(pid, by)

    before = signal.getsignal(by)
    teller = threading.Thread(target=tell)
    teller.start()
    stopped = at_once.run({"vae": trained_until_told, "vq": done_at_once, "titok": trained_until_told})
    teller.join()
    assert isinstance(stopped, Stopped)
    assert stopped.part in ("vae-mini", "titok-mini")
    assert (stopped.reason, stopped.step) == (by.name, 7)
    assert {path.name: path.read_text() for path in at_once.folder.glob("*.saved")} == {
        "vae.saved": "SIGTERM",
        "titok.saved": "SIGTERM",
    }
    assert signal.getsignal(by) is before
    assert not multiprocessing.active_children()


def test_no_part_begins_after_a_signal(at_once: AtOnce):
    def telling(place: Path) -> Stopped:
        os.kill(os.getppid(), signal.SIGTERM)
        return trained_until_told(place)

    stopped = at_once.run({"vae": telling, "seed": done_at_once})  # which needs vae
    assert stopped == Stopped("vae-mini", "SIGTERM", 7)
    assert not (at_once.folder / "seed.began").exists()


def test_a_part_whose_process_is_killed_is_named_and_the_others_go_on(at_once: AtOnce):
    def killed(place: Path) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(RuntimeError, match="vq-mini: the process that trained it was killed by signal 9; the same com"):
        at_once.run({"vae": done_at_once, "vq": killed, "seed": done_at_once})
    assert {path.name for path in at_once.folder.glob("*.began")} == {"vae.began", "seed.began"}


def test_an_error_that_can_not_be_told_to_another_process_is_told_as_text(at_once: AtOnce):
    class Untold(Exception):
        def __init__(self, one: int, two: int) -> None:
            super().__init__(f"{one} and {two}")

    def failing(place: Path) -> None:
        raise Untold(1, 2)

    with pytest.raises(RuntimeError, match=r"(?s)^vae-mini: Traceback.*Untold: 1 and 2"):
        at_once.run({"vae": failing})
