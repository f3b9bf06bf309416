"""`data get`: resume, servers that misbehave, and another file in the place of the published one."""

import http.server
import threading
from hashlib import sha256

import pytest

from evals.__main__ import main
from evals.datasets.base import DataError
from evals.datasets.images import coco, download
from evals.datasets.images.download import Download, DownloadError, fetch
from tests import twins


class Server(http.server.ThreadingHTTPServer):
    """Serves one file; `drops`: after how many bytes each of the next answers breaks off; `ranges`: what was asked."""

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.drops, self.ranges, self.honours = content, [], [], True
        self.url = f"http://127.0.0.1:{self.server_port}/val2017.zip"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range")
        server.ranges.append(asked)
        begin = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and server.honours else 0
        body = server.content[begin:]
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(server.content) - 1}/{len(server.content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.drops.pop(0)] if server.drops else body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server():
    content = twins.coco_files()["val2017/000000000139.jpg"] * 40
    with Server(content) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def download_of(server: Server, **other) -> Download:
    size, digest = len(server.content), sha256(server.content).hexdigest()
    return Download(**{"url": server.url, "file": "val2017.zip", "size": size, "sha256": digest} | other)


def test_get_resumes_where_the_connection_broke(server, tmp_path):
    server.drops = [10_000, 5_000]
    path = fetch(download_of(server), tmp_path, pause=0)
    assert path.read_bytes() == server.content
    assert server.ranges == [None, "bytes=10000-", "bytes=15000-"]
    assert [p.name for p in tmp_path.iterdir()] == ["val2017.zip"]
    fetch(download_of(server), tmp_path)
    assert len(server.ranges) == 3, "a whole file is not fetched again"


def test_get_resumes_from_the_part_of_an_earlier_process(server, tmp_path):
    (tmp_path / "val2017.zip.part").write_bytes(server.content[:7_000])
    assert fetch(download_of(server), tmp_path).read_bytes() == server.content
    assert server.ranges == ["bytes=7000-"]


def test_a_server_that_ignores_ranges_begins_anew(server, tmp_path):
    server.honours = False
    (tmp_path / "val2017.zip.part").write_bytes(b"x" * 7_000)
    assert fetch(download_of(server), tmp_path).read_bytes() == server.content


def test_get_gives_up_when_nothing_comes_and_keeps_the_part(server, tmp_path):
    server.drops = [10_000, 0, 0, 0, 0, 0]
    with pytest.raises(DownloadError, match=r"10,000 of .* bytes are kept in .*val2017\.zip\.part; the same command"):
        fetch(download_of(server), tmp_path, pause=0)
    assert fetch(download_of(server), tmp_path).read_bytes() == server.content


def test_another_file_is_not_taken_for_it(server, tmp_path):
    with pytest.raises(DataError, match=rf"sha256 {sha256(server.content).hexdigest()}; expected .* It was removed"):
        fetch(download_of(server, sha256="0" * 64), tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DownloadError, match="larger than the published 100 bytes"):
        fetch(download_of(server, size=100), tmp_path)
    (tmp_path / "val2017.zip").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"val2017\.zip is not .* 4 bytes.*Remove it"):
        fetch(download_of(server), tmp_path)
    assert (tmp_path / "val2017.zip").read_bytes() == b"mine"


def test_get_of_coco_end_to_end(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(coco.CocoVal2017, "downloads", (download_of(server),))
    assert main(["data", "get", "coco", f"root={tmp_path / 'coco'}"]) == 0
    assert sha256(server.content).hexdigest() in capsys.readouterr().out
    server.shutdown()
    server.server_close()
    (tmp_path / "coco" / "val2017.zip").unlink()
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    assert main(["data", "get", "coco", f"root={tmp_path / 'coco'}"]) == 2
    assert "can't be fetched: [Errno 111]" in capsys.readouterr().err
