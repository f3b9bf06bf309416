"""Trainings of a tiny generator in pairs of processes, forked from one that has imported all; some die by SIGKILL.

    python -m tests.sharded_runs SHARDS GROUP...

A group is a JSON list of runs, [OUT, DEATH, SETTING...] each, that one pair of processes does one after another. DEATH
is "" or `step,N`: after step N; or `save,N`: in the middle of the N-th checkpoint. What a process holds of a run stands
in OUT/rank-R.json.
"""

import contextlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.distributed.tensor import DTensor

from lactok.train.loop import _Run
from lactok.train.recipes.generator import GeneratorRecipe
from lactok.train.schedule import Progress
from tests.forked_ranks import free_port
from tests.tiny_generator import quick, settings, warm

tick, save_state, saves = Progress.tick, Accelerator.save_state, 0


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dying(where: str, count: int) -> None:
    """From now on a run dies there."""

    def after_a_step(self: Progress, images: int) -> None:
        tick(self, images)
        if self.step == count:
            die()

    def in_a_save(self: Accelerator, folder: str, **more: object) -> None:
        global saves
        save_state(self, folder, **more)
        saves += 1
        if saves == count and self.is_main_process:
            os.truncate(os.path.join(folder, "optimizer.bin"), 1000)
            die()

    if where == "step":
        Progress.tick = after_a_step  # type: ignore[method-assign]
    else:
        Accelerator.save_state = in_a_save


def held(run: _Run) -> dict[str, int]:
    """Numbers that this process holds of the parameters, the moments and the average."""

    def count(tensors: Iterable[torch.Tensor]) -> int:
        return sum((t.to_local() if isinstance(t, DTensor) else t).numel() for t in tensors)

    moments = [
        value
        for one in run.optimizers
        for state in one.state.values()
        for name, value in state.items()
        if name != "step"
    ]
    return {
        "parameters": count(run.trained),
        "moments": count(moments),
        "average": count(run.average.module.parameters()),
        "all": sum(p.numel() for p in run.trained),
    }


def rank(number: int, ports: list[int], shards: Path, runs: list[list[str]]) -> None:
    os.environ |= {
        "RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
    }  # fmt: skip
    for port, (out, death, *more) in zip(ports, runs):
        AcceleratorState._reset_state(reset_partial_state=True)  # a run ends its process group
        os.environ["MASTER_PORT"] = str(port)
        if death:
            where, count = death.split(",")
            dying(where, int(count))
        with quick():
            run = _Run(settings(shards, Path(out), *more), GeneratorRecipe, check_held_out=True)
            assert run.go().finished
        (Path(out) / f"rank-{number}.json").write_text(json.dumps(held(run)))


def pair(shards: Path, runs: list[list[str]]) -> None:
    """Raises AssertionError where the processes end otherwise than they should."""
    ports, children = [free_port() for _ in runs], []
    for number in range(2):
        child = os.fork()
        if not child:
            status = 1
            try:
                rank(number, ports, shards, runs)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        children.append(child)
    expected = -signal.SIGKILL if runs[-1][1] else 0
    status = os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1])
    if expected:
        with contextlib.suppress(ProcessLookupError):
            os.kill(children[1], signal.SIGKILL)
    other = os.waitstatus_to_exitcode(os.waitpid(children[1], 0)[1])
    assert status == expected, f"{runs}: status {status}"
    assert expected or not other, f"{runs}: status {other}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    warm()
    for group in sys.argv[2:]:
        pair(Path(sys.argv[1]), json.loads(group))
