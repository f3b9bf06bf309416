"""`python -m evals conformance FOLDER... [device=cuda]`: run golden cases through the ports and say what agrees.

A folder is one case's, a model's (every case in it, `.jsonl` files and pairs of NAME.safetensors and NAME.json too), or
one that holds several models' folders.
The port is the one registered under the name of the model's folder. `device=` is cpu, cuda or cuda:N, by default the
CPU; arithmetic is float32 without TF32 on every one.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lactok import registry

if TYPE_CHECKING:
    import torch

    from lactok.conformance import CheckLine

CASE_FILE = "case.safetensors"
DEVICE = "device="


@dataclass(frozen=True)
class Target:
    """One case to run. path: its folder or file; model: name of its model's folder, hence of the port.

    named: whether the user named its model or the case itself, rather than a folder of several models.
    alone: whether the user named the case itself.
    """

    path: Path
    model: str
    named: bool
    alone: bool = False

    @property
    def label(self) -> str:
        return f"{self.model}/{self.path.name}"


def is_case(path: Path) -> bool:
    """Whether a folder is a case's; one with only a `config.json` counts too, so that what it lacks is named.

    A model's own `config.json`, beside its folders of cases, does not make it one.
    """
    if (path / CASE_FILE).is_file():
        return True
    return (path / "config.json").is_file() and not any(path.glob(f"*/{CASE_FILE}"))


def is_case_file(path: Path) -> bool:
    """Whether a file is a case by itself: a `.jsonl` file, or a `.safetensors` file with a `.json` of its name."""
    from lactok.conformance import is_rows

    return is_rows(path) or (path.suffix == ".safetensors" and path.with_suffix(".json").is_file())


def cases_of(model_folder: Path) -> list[Path]:
    """The cases of a model's folder, sorted by name: folders and files."""
    return sorted(p for p in model_folder.iterdir() if (is_case(p) if p.is_dir() else is_case_file(p)))


def targets(folder: Path) -> list[Target]:
    """What to run for one argument; [] when there is no case in it."""
    folder = Path(os.path.abspath(folder))  # keeps the name of a symbolic link, unlike resolve()
    if folder.is_file() or (folder / CASE_FILE).is_file():
        return [Target(folder, folder.parent.name, named=True, alone=True)]
    if cases := cases_of(folder):
        return [Target(path, folder.name, named=True) for path in cases]
    if is_case(folder):
        return [Target(folder, folder.parent.name, named=True, alone=True)]
    models = sorted(p for p in folder.iterdir() if p.is_dir() and cases_of(p))
    return [Target(path, model.name, named=False) for model in models for path in cases_of(model)]


def run_target(target: Target, device: torch.device | str = "cpu") -> Iterator[CheckLine]:
    """All lines of one case on `device`; a port that breaks, or checks nothing, gives a line that says so.

    Raises lactok.conformance.UnhandledCase for a `.jsonl` file that the port says is no case.
    """
    from lactok.conformance import CaseError, CaseFolder, UnhandledCase, failure, is_rows

    count = 0
    try:
        with _float32():
            for line in registry.load("conformance", target.model)(CaseFolder(target.path, device)):
                count += 1
                yield line
        if not count:
            yield failure("(case)", CaseError("the port checked nothing in it"))
    except UnhandledCase:
        if target.alone or not is_rows(target.path):
            yield failure("(case)", CaseError(f"the port does not handle {target.path.name}"))
        else:
            raise
    except Exception as error:  # a port may break in any way; the other cases go on
        yield failure("(case)", error)


@contextmanager
def _float32() -> Iterator[None]:
    """No TF32, which a GPU's convolutions use by default and which keeps 10 bits of the mantissa."""
    import torch

    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def show(label: str, line: CheckLine) -> str:
    """One line of output: case, tensor, errors, whether ids agree, verdict, note."""
    errors = "abs -        rel -      "
    if line.max_abs is not None and line.max_rel is not None:
        errors = f"abs {line.max_abs:<8.2e} rel {line.max_rel:<8.2e}"
    ids = {None: "", True: "ids equal", False: "ids differ"}[line.ids_equal]
    verdict = "PASS" if line.passed else "FAIL"
    return f"{label}  {line.tensor:<36} {errors} {ids:<10} {verdict}{f'  ({line.note})' if line.note else ''}"


def main(argv: list[str]) -> int:
    """The command. Returns 0 when all was checked and passed, 1 on any FAIL or when nothing was checked."""
    usage = "python -m evals conformance [-h] FOLDER [FOLDER ...] [device=cpu|cuda|cuda:N]"
    parser = argparse.ArgumentParser(usage=usage, description=__doc__)
    parser.add_argument(
        "folders", nargs="+", metavar="FOLDER", type=Path, help="a case, a model's folder of cases, or several of those"
    )
    named = [text for text in argv if text.startswith(DEVICE)]
    folders = parser.parse_args([text for text in argv if text not in named]).folders
    device = _device([text.removeprefix(DEVICE) for text in named], parser)
    for folder in folders:
        if not folder.is_dir() and not (folder.is_file() and is_case_file(folder)):
            parser.error(f"{folder} is neither a folder nor a .jsonl case, nor a .safetensors case with its .json")

    counts: Counter[str] = Counter()

    def say(verdict: str, text: str) -> None:
        counts[verdict] += 1
        print(text, flush=True)

    known = registry.entries("conformance")
    for folder in folders:
        found = targets(folder)
        if not found:
            say("failed", f"{folder}  nothing to check in it: no {CASE_FILE} and no .jsonl file  FAIL")
        for model, group in _by_model(found):
            if model not in known:
                reason = registry.unknown("port", model, list(known))
                if group[0].named:
                    say("failed", f"{model}  {reason}  FAIL")
                else:
                    say("left out", f"{model}  no port, left out")
                continue
            for target in group:
                _run_and_show(target, device, say)
    checked = counts["passed"] + counts["failed"]
    left_out = f", {counts['left out']} left out" if counts["left out"] else ""
    print(f"{checked} checked: {counts['passed']} passed, {counts['failed']} failed{left_out}")
    return 0 if counts["passed"] and not counts["failed"] else 1


def _device(named: list[str], parser: argparse.ArgumentParser) -> torch.device:
    """The device that is named, else the CPU; ends with status 2 where there are two, or it is not here."""
    from evals.config import ConfigError
    from evals.engine.environment import choose_device

    if len(named) > 1:
        parser.error(f"{len(named)} devices named ({', '.join(named)}): expected one")
    try:
        return choose_device(named[0] if named else "cpu")
    except ConfigError as error:
        parser.error(str(error))


def _run_and_show(target: Target, device: torch.device, say) -> None:
    from lactok.conformance import UnhandledCase

    try:
        for line in run_target(target, device):
            say("passed" if line.passed else "failed", show(target.label, line))
    except UnhandledCase as reason:
        say("left out", f"{target.label}  {reason}, left out")


def _by_model(found: list[Target]) -> Iterator[tuple[str, list[Target]]]:
    groups: dict[str, list[Target]] = {}
    for target in found:
        groups.setdefault(target.model, []).append(target)
    yield from groups.items()
