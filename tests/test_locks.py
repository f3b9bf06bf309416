"""Locks: one training a folder, a dead process's lock is taken over, another machine's is not."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lactok import locks
from lactok.locks import LockHeld, sole_lock
from lactok.train.run_folder import RunFolderError, sole_training
from tests.support import ROOT

HOLDER = """
import sys
from pathlib import Path
from lactok.locks import sole_lock
with sole_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path):
    """A living process that trains in a folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "lock")],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_two_trainings_in_one_folder_are_refused(tmp_path: Path, holder: subprocess.Popen):
    by = f"process {holder.pid} on {socket.gethostname()}"
    with (
        pytest.raises(RunFolderError, match=rf"is being trained in by {by}: expected no other.*another out=$"),
        sole_training(tmp_path),
    ):
        pytest.fail("held twice")
    assert json.loads((tmp_path / "lock").read_text())["pid"] == holder.pid, "a refusal leaves the lock as it was"


def test_a_lock_is_free_after_its_owner_ended_or_was_killed(tmp_path: Path, holder: subprocess.Popen):
    holder.kill()
    holder.wait()
    assert (tmp_path / "lock").is_file()
    for _ in range(2):
        with sole_training(tmp_path):
            assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("left", [b"", b'{"pid": 12'])
def test_half_a_lock_of_a_dead_process_is_taken_over(tmp_path: Path, left: bytes):
    (tmp_path / "lock").write_bytes(left)
    with sole_training(tmp_path):
        pass


def test_another_machines_lock_is_not_taken_over(tmp_path: Path):
    lock = tmp_path / "lock"
    lock.write_text('{"pid": 7, "host": "node-9"}')
    with (
        pytest.raises(RunFolderError, match=rf"process 7 on node-9.*if that process is no more.*delete {lock}"),
        sole_training(tmp_path),
    ):
        pytest.fail("taken over")
    lock.unlink()
    with sole_training(tmp_path):
        pass


def test_a_file_system_without_locks_goes_by_the_process(tmp_path: Path, monkeypatch, holder: subprocess.Popen):
    def unsupported(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", unsupported)
    with pytest.raises(LockHeld), sole_lock(tmp_path / "lock"):
        pytest.fail("held twice")
    holder.kill()
    holder.wait()
    with sole_lock(tmp_path / "lock"):
        pass
