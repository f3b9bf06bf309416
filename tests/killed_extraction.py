"""Extractions of token ids that die by SIGKILL, each in a child process; and two at once in one folder.

Arguments: the images' folder, flan-t5's, then `WHERE,COUNT,OUT` for each. WHERE: `middle` of the write of shard COUNT,
`after` it, or `together`, COUNT processes that all end.
"""

import os
import signal
import sys
from pathlib import Path

from lactok import files
from lactok.train import tokens
from tests.tiny_generator import extracted, warm

write_synced, write_shard, shards = files.write_synced, tokens.write_shard, 0


def die_in_the_middle(path: Path, content: bytes) -> None:
    global shards
    shards += ".safetensors" in path.name
    if shards == count:
        path.write_bytes(content[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    write_synced(path, content)


def die_after(path, tensors):
    global shards
    record = write_shard(path, tensors)
    shards += 1
    if shards == count:
        os.kill(os.getpid(), signal.SIGKILL)
    return record


warm()
images, flan = Path(sys.argv[1]), Path(sys.argv[2])
for run in sys.argv[3:]:
    where, number, out = run.split(",")
    count = int(number)
    children = []
    for _ in range(count if where == "together" else 1):
        child = os.fork()
        if not child:
            if where == "middle":
                files.write_synced = die_in_the_middle
            elif where == "after":
                tokens.write_shard = die_after
            else:
                tokens.POLL = 0.05
            extracted(images, Path(out), "options.text=flan-t5-xl", f"options.text_encoder='{flan}'")
            os._exit(0)
        children.append(child)
    wanted = 0 if where == "together" else -signal.SIGKILL
    for child in children:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status == wanted, f"{run}: status {status}"
