"""Tiny runs that die by SIGKILL, each in a child process: `step N` after step N, `save N` in the N-th checkpoint.

Arguments: the data's folder, then `WHERE,COUNT,OUT` for each run. The imports are paid once, before the children.
"""

import os
import signal
import sys

from accelerate import Accelerator

from lactok.train import loop
from lactok.train.schedule import Progress
from tests.test_train import train_tiny

loop.plot = lambda logs, target: None
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
        with open(os.path.join(folder, "optimizer.bin"), "r+b") as file:
            file.truncate(1000)
        os.kill(os.getpid(), signal.SIGKILL)


for run in sys.argv[2:]:
    where, count, out = run.split(",")
    count = int(count)
    child = os.fork()
    if not child:
        if where == "step":
            Progress.tick = die_after_a_step
        else:
            Accelerator.save_state = die_in_a_save
        train_tiny(sys.argv[1], out)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status), f"{run} was not killed: status {status}"
    assert os.WTERMSIG(status) == signal.SIGKILL, f"{run} was not killed: status {status}"
