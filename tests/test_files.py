"""Files are written whole or not at all; progress is a line now and then where there is no terminal."""

import errno
import os
from pathlib import Path

import pytest

from lactok import files, progress
from lactok.files import WriteError, append_line, write_atomically


def test_a_file_is_whole_or_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "folder" / "a.json"
    write_atomically(path, b"1")
    append_line(path, b"2\n")
    assert path.read_bytes() == b"12\n"

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(WriteError, match=r"a\.json: the disk is full: free some space\. Finished work is kept"):
        write_atomically(path, b"3")
    assert path.read_bytes() == b"12\n"
    assert os.listdir(path.parent) == ["a.json"]


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path):
    (tmp_path / "file").write_text("a file where the folder should be")
    with pytest.raises(WriteError, match="name another by out=DIR"):
        write_atomically(tmp_path / "file" / "a.json", b"")


def test_progress_says_a_line_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.Meter(40, "checking images") as meter:
        for now[0] in range(1, 13):
            meter.advance()
    assert capsys.readouterr().err == "checking images: 11/40, 1 images/s, 29 s left\n"
    now[0] = 0.0
    with progress.Meter(40, "decoding images") as meter:
        now[0] = 60.0
        meter.advance()
    assert capsys.readouterr().err == "decoding images: 1/40\n", "one says nothing of the others"
    now[0] = 0.0
    with progress.Meter(10**8, "val2017.zip", "byte", done=5 * 10**7) as meter:
        now[0] = 20.0
        meter.at(7 * 10**7)
    assert capsys.readouterr().err == "val2017.zip: 70,000,000/100,000,000, 1.0 MB/s, 30 s left\n"
