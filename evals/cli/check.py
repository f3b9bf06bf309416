"""`python -m evals check FILE`: re-run a small subset and compare with committed figures; the guard of a CI."""

from __future__ import annotations

import json
import math
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.engine.store import write_atomically

if TYPE_CHECKING:
    from evals.engine.run import Finished

HELP = """\
usage: python -m evals check FILE [--update] [key=value ...]

Runs what FILE names, in a store of its own, and compares: PSNR within 2e-4 dB, SSIM within 1e-5, shifts of colour and
brightness within 1e-4, Frechet, kernel and perceptual distances within 1e-4 relative, top-1 within one picture, at
least 99.9 % of all ids equal, hashes of protocol, pictures and weights exactly. Prints what moved. Exit status: 0
nothing moved, 1 something did, 2 it could not be run.

    python -m evals check results/mini/recon.json            in a CI
    python -m evals check results/mini/recon.json --update   write the present figures, after a wanted change
"""

# By how a column's name starts: (absolute tolerance, relative tolerance). Columns that follow from the ids alone
# (codebook use, perplexity, entropy) are covered by comparing the ids.
TOLERANCES = {
    "PSNR": (2e-4, 0.0),
    "SSIM": (1e-5, 0.0),
    "colour-": (1e-4, 0.0),
    "brightness-": (1e-4, 0.0),
    "FD-": (1e-6, 1e-4),
    "rFID": (1e-6, 1e-4),
    "perc-": (1e-9, 1e-4),
    "LPIPS": (1e-9, 1e-4),
    "KID": (1e-6, 1e-4),  # a difference of means: its rounding does not shrink with it
}
# Shares of pictures: one of them may change sides.
SHARES = "top1-"
IDS_EQUAL = 0.999


@dataclass(frozen=True)
class Moved:
    """One figure that is not what was committed."""

    row: str
    what: str
    committed: Any
    now: Any
    allowed: str

    def __str__(self) -> str:
        return f"{self.row}: {self.what}: committed {self.committed}, now {self.now} (allowed: {self.allowed})"


def main(argv: list[str]) -> int:
    """See HELP."""
    if any(a in ("-h", "--help") for a in argv):
        print(HELP, end="")
        return 0
    files = [a for a in argv if not a.startswith("--") and "=" not in a]
    flags = {a for a in argv if a.startswith("--")}
    if len(files) != 1 or flags - {"--update"}:
        print(HELP, file=sys.stderr, end="")
        return 2
    from evals.config import ConfigError
    from evals.datasets.base import DatasetError
    from evals.engine.store import StoreError
    from lactok.registry import RegistryError

    path = Path(files[0])
    try:
        committed = json.loads(path.read_text(encoding="utf-8"))
        overrides = [*committed["config"], *(a for a in argv if "=" in a)]
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        print(f"error: {path} is no file of this command: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    try:
        now = measure(overrides)
    except (ConfigError, DatasetError, StoreError, RegistryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if "--update" in flags:
        write_atomically(path, (json.dumps(now, indent=1) + "\n").encode())
        print(f"wrote {path}: {len(now['rows'])} rows")
        return 0
    moved = compare(committed, now)
    print("\n".join(map(str, moved)) or f"nothing moved: {len(now['rows'])} rows, {now['pictures']} pictures")
    if moved:
        print(f"{len(moved)} figure(s) moved; made with {committed['versions']}, now {now['versions']}")
    return 1 if moved else 0


def measure(overrides: list[str]) -> dict[str, Any]:
    """The present figures of the run that a file's overrides name, made in an empty store that is then removed."""
    from evals.config import compose_config

    with tempfile.TemporaryDirectory(prefix="lactok-check-") as out:
        return snapshot(recon.run(compose_config([*overrides, f"out='{out}'"]), quiet=True), overrides)


def snapshot(finished: Finished, overrides: list[str]) -> dict[str, Any]:
    """What FILE holds: configuration, hashes, and each row's figures and ids. Reads the store."""
    run = finished.record
    rows = {}
    for work, row in zip(finished.job.rows, run.rows):
        cells = {name: _plain(cell.value) for name, cell in row.cells.items() if _tolerance(name, run.pictures)}
        rows[row.label] = {"status": row.status, "weights": [w.sha256 for w in row.weights], "cells": cells}
        if row.status == "ok" and row.ids_per_image is not None:
            rows[row.label]["ids"] = _ids(finished, work)
    return {
        "config": overrides,
        "protocol_hash": run.protocol_hash,
        "dataset_fingerprint": run.dataset_fingerprint,
        "pictures": run.pictures,
        "versions": run.versions,
        "device": run.device,
        "rows": rows,
    }


def _ids(finished: Finished, work: Any) -> list[str]:
    """A line a picture: its ids, separated by spaces."""
    job = finished.job
    pieces = [job.cache.read("ids", job.keys.ids(c, work.identity.parts)) for c in job.chunks]
    return [" ".join(map(str, picture.ravel().tolist())) for piece in pieces for picture in piece.arrays["ids"]]


def _plain(value: float | None) -> float | str | None:
    return str(value) if value is not None and not math.isfinite(value) else value


def _tolerance(column: str, pictures: int) -> tuple[float, float] | None:
    """(absolute, relative) of a column's figures; None where they follow from others."""
    if column.startswith(SHARES):
        return 1.000001 / pictures, 0.0  # a share is rounded
    return next((t for start, t in TOLERANCES.items() if column.startswith(start)), None)


def compare(committed: dict[str, Any], now: dict[str, Any]) -> list[Moved]:
    """All that moved, from two snapshots."""
    moved = [
        Moved("run", what, committed[what], now[what], "nothing")
        for what in ("protocol_hash", "dataset_fingerprint", "pictures")
        if committed[what] != now[what]
    ]
    for label, before in committed["rows"].items():
        after = now["rows"].get(label)
        if after is None:
            moved.append(Moved(label, "row", "present", "absent", "nothing"))
            continue
        moved += [
            Moved(label, what, before[what], after[what], "nothing")
            for what in ("status", "weights")
            if before[what] != after[what]
        ]
        moved += _moved_cells(label, before["cells"], after["cells"], committed["pictures"])
        if "ids" in before:
            moved += _moved_ids(label, before["ids"], after.get("ids", []))
    return moved


def _moved_cells(label: str, before: dict[str, Any], after: dict[str, Any], pictures: int) -> list[Moved]:
    moved = []
    for name, value in before.items():
        now = after.get(name)
        if value == now:  # a missing figure, too
            continue
        if value is None or now is None:
            moved.append(Moved(label, name, value, now, "nothing"))
            continue
        absolute, relative = _tolerance(name, pictures) or (0.0, 0.0)
        a, b = float(value), float(now)
        allowed = absolute + relative * abs(a) if math.isfinite(a) else 0.0
        if not abs(a - b) <= allowed:
            moved.append(Moved(label, name, a, b, f"{allowed:.2g}"))
    return moved


def _moved_ids(label: str, before: list[str], after: list[str]) -> list[Moved]:
    a, b = " ".join(before).split(), " ".join(after).split()
    equal = sum(x == y for x, y in zip(a, b)) / max(len(a), len(b), 1)
    if equal >= IDS_EQUAL and len(a) == len(b):
        return []
    return [Moved(label, "ids", f"{len(a)} ids", f"{equal:.2%} of them equal", f"at least {IDS_EQUAL:.1%}")]
