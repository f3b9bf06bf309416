"""Runs the benchmark and kills itself (SIGKILL) at the N-th commit: `before` it, or in the `middle` of its write."""

import os
import signal
import sys

from evals import store
from evals.run import main

count, where = int(sys.argv[1]), sys.argv[2]
commits = 0
write_synced = store._write_synced


def die_in_the_middle(path, content):
    global commits
    commits += path.name == "data.safetensors"
    if commits == count:
        if where == "middle":
            path.write_bytes(content[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    write_synced(path, content)


store._write_synced = die_in_the_middle
sys.exit(main(sys.argv[3:]))
