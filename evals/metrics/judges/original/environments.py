"""The environments of the published packages: which versions they hold, where they are, and how they are made.

An environment is a virtual environment of this Python. torch and torchvision are those of the environment that makes
it, seen through a .pth file: they are 5 GB, and with the same torch a difference is the package's. The file shows the
other packages there, too; what a judge's package needs in another version is installed, and comes first.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from evals.metrics.judges.original.process import OriginalError
from lactok.files import explained, write_atomically
from lactok.weights import MissingWeights

MANIFEST = "environment.json"
"""Written last: an environment without it is not complete."""
BORROWED = "torch-of-lactok.pth"
_TOLD = ("Collecting ", "Processing ", "Downloading ", "Building ", "Installing ", "Successfully ", "ERROR")
_SHOWN = 6  # last lines of a command that failed


class InstallError(Exception):
    """An environment can't be made; the message names the step, what it said, and the way out."""


@dataclass(frozen=True)
class Environment:
    """One environment. requirements: exact, dependencies included, for pip without its resolver; megabytes: on disk,
    measured; judges: the metrics that it serves."""

    name: str
    requirements: tuple[str, ...]
    megabytes: int
    judges: str

    @property
    def command(self) -> str:
        """What installs it."""
        return f"python -m evals judges install {self.name}"

    @property
    def folder(self) -> Path:
        """Below XDG_CACHE_HOME or ~/.cache; a link where it was installed elsewhere."""
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        return cache / "lactok" / "judges" / self.name

    @property
    def pins(self) -> str:
        """16 hex digits that stand for the requirements, this Python and its torch."""
        determining = [self.requirements, sys.version_info[:2], str(_site_of_torch())]
        return hashlib.sha256(json.dumps(determining).encode()).hexdigest()[:16]

    def require(self) -> Path:
        """Its Python. Raises MissingWeights with the command that installs it."""
        if self.manifest() is None:
            state = "is not complete" if self.folder.exists() else "is not here"
            raise MissingWeights(
                f"the environment of the package {self.name} {state}: looked in {self.folder}; run `{self.command}`, "
                "or leave judges.backend=original out"
            )
        return python_of(self.folder)

    def manifest(self) -> dict[str, object] | None:
        """What was installed; None where the environment is not complete, or of another Python or other versions."""
        try:
            found = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if found.get("pins") == self.pins and python_of(self.folder).is_file() else None

    def identity(self) -> dict[str, object]:
        """What determines its values, for keys: the versions of its packages and the code that calls them.

        Raises MissingWeights.
        """
        self.require()
        files = [Path(__file__).with_name(name) for name in ("worker.py", "process.py", "judges.py")]
        code = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
        return {"package": self.name, "versions": (self.manifest() or {}).get("versions"), "code": code}


_COMMON = ("numpy==1.26.4", "pillow==11.3.0")
ENVIRONMENTS: dict[str, Environment] = {
    one.name: one
    for one in (
        Environment(
            "image-reward",
            (
                "image-reward==1.5", "transformers==4.55.4", "tokenizers==0.21.4", "huggingface_hub==0.36.0",
                "timm==0.6.13", "fairscale==0.4.13", "openai-clip==1.0.1", "ftfy==6.3.1", "regex==2025.9.18",
                "requests==2.32.5", "setuptools==69.5.1", *_COMMON,
            ),
            270,
            "imagereward",
        ),
        Environment(
            "mmdet",
            (
                "mmdet==3.3.0", "mmengine==0.10.7", "mmcv-lite==2.1.0", "addict==2.4.0", "yapf==0.43.0",
                "platformdirs==4.3.8", "terminaltables==3.1.10", "termcolor==3.1.0", "pycocotools==2.0.11",
                "shapely==2.1.2", "opencv-python-headless==4.11.0.86", "scipy==1.15.3", "matplotlib==3.10.8",
                "python-dateutil==2.9.0.post0", "six==1.17.0", *_COMMON,
            ),
            490,
            "geneval",
        ),
    )
}  # fmt: skip


def python_of(folder: Path) -> Path:
    """The Python of a virtual environment."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def pip_command(folder: Path, requirements: tuple[str, ...]) -> list[str]:
    """What installs the requirements: no dependency is added, and what is there already is kept."""
    quiet = ["--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
    return [str(python_of(folder)), "-m", "pip", "install", *quiet, "--no-deps", *requirements]


def _site_of_torch() -> Path:
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.origin:
        raise InstallError("torch is not installed here, and the environment takes it from here: install lactok")
    return Path(spec.origin).resolve().parent.parent


Run = Callable[[list[str], Callable[[str], None]], int]
"""Runs a command, tells each line of its output, and gives its exit status."""


def run_command(command: list[str], tell: Callable[[str], None]) -> int:
    """See `Run`. Raises OSError."""
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=variables
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            tell(line.rstrip())
    return process.returncode


def install(
    environment: Environment,
    folder: Path | None = None,
    versions: Callable[[str, Path], Mapping[str, str]] | None = None,
    run: Run = run_command,
) -> Path:
    """Make the environment, or go on where an earlier call stopped; gives its folder at once where it is complete.

    folder: where, in place of `Environment.folder`, which then links to it. versions: imports the packages of an
    environment, given its name and Python, and gives their versions. Progress goes to stderr.

    Raises InstallError, lactok.files.WriteError.
    """
    if environment.manifest() is not None and folder in (None, environment.folder.resolve()):
        _say(f"{environment.name}: complete in {environment.folder}")
        return environment.folder
    place = (folder or environment.folder.resolve()).absolute()
    _check_space(environment, place)
    with explained(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        (place / MANIFEST).unlink(missing_ok=True)
        _link(environment.folder, place)
    if not python_of(place).is_file():
        _step(1, "a virtual environment", [sys.executable, "-m", "venv", str(place)], environment, run)
    site = next(iter(sorted(place.glob("lib/python*/site-packages"))), place / "Lib" / "site-packages")
    write_atomically(site / BORROWED, f"{_site_of_torch()}\n".encode())
    requirements = environment.requirements
    _step(2, f"{len(requirements)} packages", pip_command(place, requirements), environment, run)
    found: Mapping[str, str] = {}
    if versions is not None:
        _say(f"{environment.name}: step 3 of 3: importing the packages (a minute or two the first time)")
        try:
            found = versions(environment.name, python_of(place))
        except OriginalError as error:
            told = f"the packages of {environment.name} can't be imported: {error}\n{_way_out(place)}"
            raise InstallError(told) from error
    content = {"pins": environment.pins, "versions": dict(found), "requirements": list(requirements)}
    write_atomically(place / MANIFEST, json.dumps(content, indent=1).encode())
    _say(f"{environment.name}: complete in {place}; {environment.judges} runs with judges.backend=original")
    return place


def _check_space(environment: Environment, place: Path) -> None:
    existing = next(folder for folder in (place, *place.parents) if folder.exists())
    free = shutil.disk_usage(existing).free // 1_000_000
    _say(
        f"{environment.name}: about {environment.megabytes} MB in {place} ({free:,} MB are free there); torch is taken "
        f"from {_site_of_torch()}"
    )
    if free < environment.megabytes:
        raise InstallError(
            f"{environment.name} needs about {environment.megabytes} MB, and {free:,} MB are free in {existing}: free "
            "some, or name another folder by --dir DIR"
        )


def _link(usual: Path, place: Path) -> None:
    """Let the usual place lead to `place`. Raises OSError, InstallError where an environment lies there."""
    if usual.is_symlink():
        usual.unlink()
    if place in (usual.absolute(), usual.parent.resolve() / usual.name):  # the way there may hold a link
        return
    if usual.exists():
        raise InstallError(f"{usual} holds an environment: remove it, or leave --dir out")
    usual.parent.mkdir(parents=True, exist_ok=True)
    usual.symlink_to(place, target_is_directory=True)


def _step(number: int, what: str, command: list[str], environment: Environment, run: Run) -> None:
    _say(f"{environment.name}: step {number} of 3: {what}")
    began, told, last = time.monotonic(), [""], [0.0]

    def tell(line: str) -> None:
        told.append(line)
        elapsed = time.monotonic() - began
        if line.strip().startswith(_TOLD) or elapsed - last[0] > 10:
            last[0] = elapsed
            _say(f"  {elapsed:4.0f} s  {line.strip()[:120]}")

    try:
        status = run(command, tell)
    except OSError as error:
        status, told = 1, [str(error)]
    if status:
        said = "".join(f"\n  {line}" for line in told[-_SHOWN:] if line.strip())
        raise InstallError(
            f"step {number} of {environment.name} failed (exit status {status}), {what}:{said}\n"
            f"{_way_out(environment.folder)}; the command was: {' '.join(command)}"
        )


def _way_out(folder: Path) -> str:
    return (
        "What is installed is kept, and the same command goes on; a package index must be reachable (pip's settings "
        f"say which). To begin anew, remove {folder}"
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
