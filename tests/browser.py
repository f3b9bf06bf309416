"""A headless Chromium for tests of pages, driven through its debugging pipe; no package is needed for it."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome-headless-shell")
# Those that a container without a GPU, sandbox or second process needs.
FLAGS = (
    "--headless", "--no-sandbox", "--single-process", "--no-zygote", "--in-process-gpu", "--use-gl=angle",
    "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-first-run", "--no-pings", "--window-size=1280,900",
    "--remote-debugging-pipe",
)  # fmt: skip


def find() -> str:
    """A Chromium's path: LACTOK_CHROMIUM, or one that is installed; skips the test where there is none."""
    named = os.environ.get("LACTOK_CHROMIUM")
    for name in [named] if named else NAMES:
        if found := shutil.which(name):
            return found
    pytest.skip(f"no browser: LACTOK_CHROMIUM is {named!r}, and none of {', '.join(NAMES)} is installed")


class Browser:
    """One page. events: all that the browser has told so far, by method (Network, Runtime and Log are on)."""

    def __init__(self, program: str, profile: Path) -> None:
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        redirected = f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}'
        self._process = subprocess.Popen(
            ["bash", "-c", redirected, program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(to_read, to_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_read)
        os.close(to_write)
        self._buffer, self._number, self._session = b"", 0, ""
        self.events: list[tuple[str, dict[str, Any]]] = []
        target = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)

    def call(self, method: str, seconds: float = 30, **params: Any) -> dict[str, Any]:
        """A command's result. Raises RuntimeError for the browser's error, TimeoutError."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + seconds
        while True:
            answer = self._next(end - time.monotonic())
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append((answer.get("method", ""), answer.get("params", {})))

    def _next(self, seconds: float) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, end - time.monotonic()))
            if not ready or not (data := os.read(self._read, 1 << 20)):
                raise TimeoutError("the browser does not answer")
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(line)

    def evaluate(self, code: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        found = self.call("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(json.dumps(found["exceptionDetails"])[:2000])
        return found["result"].get("value")

    def until(self, code: str, seconds: float = 30) -> None:
        """Wait until an expression is true. Raises TimeoutError."""
        end = time.monotonic() + seconds
        while not self.evaluate(code):
            if time.monotonic() > end:
                raise TimeoutError(f"never true: {code}")
            time.sleep(0.05)

    def requests(self) -> list[str]:
        """The addresses that were asked for, those inside the page (data:) left out."""
        asked = [p["request"]["url"] for method, p in self.events if method == "Network.requestWillBeSent"]
        return [url for url in asked if not url.startswith(("data:", "about:"))]

    def problems(self) -> list[str]:
        """Uncaught errors, and errors and warnings of the console."""
        found = [json.dumps(p) for method, p in self.events if method == "Runtime.exceptionThrown"]
        found += [json.dumps(p) for m, p in self.events if m == "Log.entryAdded" and p["entry"]["level"] != "verbose"]
        said = [p for method, p in self.events if method == "Runtime.consoleAPICalled"]
        return found + [json.dumps(p) for p in said if p["type"] in ("error", "warning", "assert")]
