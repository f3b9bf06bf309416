"""Trains from a JSON configuration and kills itself (SIGKILL) after step N, or in the middle of its N-th checkpoint."""

import json
import os
import signal
import sys

from accelerate import Accelerator

from lactok.train.loop import Progress
from tests.test_train import train_tiny

where, count, settings = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
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


if where == "step":
    Progress.tick = die_after_a_step
else:
    Accelerator.save_state = die_in_a_save
train_tiny(**settings)
