"""Trainings of a tiny generator that die by SIGKILL, each in a child process: `step N` after step N, `save N` in the
middle of the N-th checkpoint.

Arguments: the folder of shards, then `WHERE,COUNT,OUT` for each run.
"""

import os
import signal
import sys
from pathlib import Path

from accelerate import Accelerator

from lactok.train.schedule import Progress
from tests.tiny_generator import quick, train_tiny, warm

tick, save_state, saves = Progress.tick, Accelerator.save_state, 0


def die_after_a_step(self, images):
    tick(self, images)
    if self.step == count:
        os.kill(os.getpid(), signal.SIGKILL)


def die_in_a_save(self, folder, **more):
    global saves
    save_state(self, folder, **more)
    saves += 1
    if saves == count:
        os.truncate(os.path.join(folder, "optimizer.bin"), 1000)
        os.kill(os.getpid(), signal.SIGKILL)


warm()
for run in sys.argv[2:]:
    where, number, out = run.split(",")
    count = int(number)
    child = os.fork()
    if not child:
        if where == "step":
            Progress.tick = die_after_a_step
        else:
            Accelerator.save_state = die_in_a_save
        with quick():
            train_tiny(Path(sys.argv[1]), Path(out))
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == -signal.SIGKILL, f"{run}: status {status}"
