"""`python -m evals check FILE`: re-run a small subset and compare with committed figures; the guard of a CI."""

from __future__ import annotations

import json
import math
import shlex
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from evals.cli.arguments import as_options
from evals.engine.store import write_atomically
from evals.record import RecordError

if TYPE_CHECKING:
    from evals.engine.models import ModelRun
    from evals.engine.run import Finished

HELP = """\
usage: python -m evals check FILE [update=true] [summary=PATH] [key=value ...]

Runs what FILE names, in a cache of its own, and compares: PSNR within 2e-4 dB, SSIM within 1e-5, shifts of colour and
brightness within 1e-4, top-1 and GenEval within one image, other figures within 1e-4 relative, at least 99.9 % of all
tokens equal, hashes of protocol, items and weights exactly. Prints what moved. Exit status: 0 nothing moved, 1
something did, 2 it could not be run.

    python -m evals check results/mini/engine.json            in a CI
    python -m evals check results/mini/engine.json update=true   write the present figures, after a wanted change

summary=PATH appends what moved to a file, as markdown ($GITHUB_STEP_SUMMARY of a workflow).
"""

# By how a column's name starts: (absolute tolerance, relative tolerance). Columns that follow from the tokens alone are
# covered by comparing the tokens.
TOLERANCES = {
    "PSNR": (2e-4, 0.0),
    "SSIM": (1e-5, 0.0),
    "colour-": (1e-4, 0.0),
    "brightness-": (1e-4, 0.0),
    "perc-": (1e-9, 1e-4),
    "LPIPS": (1e-9, 1e-4),
}
# Of every other column. Distances between sets are differences of means: their rounding does not shrink with them.
OTHERS = (1e-6, 1e-4)
SHARE, GENEVAL = "top1-", "GenEval"
"""How names of shares of images start, of which one image may change sides."""
LITTLE_MORE = 1.000001
"""Of one image: a share is rounded."""
TOKENS_EQUAL = 0.999
SUMMARY = "summary="
_CONFIG = ConfigDict(extra="forbid")


@checked(config=_CONFIG)
class RowSnapshot:
    """One row. weights: sha256 of each; cells: column to figure, "inf" and "nan" as text; tokens: a line an image, its
    ids separated by spaces."""

    status: str
    weights: list[str] = field(default_factory=list)
    cells: dict[str, float | str | None] = field(default_factory=dict)
    tokens: list[str] = field(default_factory=list)


@checked(config=_CONFIG)
class Snapshot:
    """What FILE holds: the command's settings, hashes, and each row's figures and tokens.

    tasks: of GenEval, a row's images of each.
    """

    config: list[str]
    protocol_hash: str = ""
    dataset_fingerprint: str = ""
    items: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    device: str = ""
    rows: dict[str, RowSnapshot] = field(default_factory=dict)
    tasks: dict[str, int] = field(default_factory=dict)


_SNAPSHOT = TypeAdapter(Snapshot)


def read(path: Path) -> Snapshot:
    """A file of this command. Raises RecordError for another one, and when it can't be read."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RecordError(
            f"{path} can't be read ({error.strerror}): expected a file, results/mini/NAME.json"
        ) from error
    _refuse_a_run(path, content)
    try:
        return _SNAPSHOT.validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise RecordError(
            f"{path} is no file of this command: {where + ': ' if where else ''}{first['msg']} "
            f"({error.error_count()} such); a file that holds its config alone is filled by update=true"
        ) from error


def _refuse_a_run(path: Path, content: bytes) -> None:
    """Raises RecordError, with the way to this command's own file, for the run.json of a run."""
    try:
        found = json.loads(content)
    except ValueError:
        return
    if not (isinstance(found, dict) and {"suite", "rows", "schema"} <= set(found)):
        return
    words = shlex.split(str(found.get("command", "")))[3:]
    config = [word for word in words if not word.startswith(("-", "out=", "workers="))]
    raise RecordError(
        f"{path} is the record of a run; this command reads a file of its own. Write its settings alone into one, then "
        f"fill it by update=true:\n  echo {shlex.quote(json.dumps({'config': config}))} > check.json\n"
        "  python -m evals check check.json update=true"
    )


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
    argv = as_options(argv, flags=("update",))
    summaries = [Path(a.removeprefix(SUMMARY)) for a in argv if a.startswith(SUMMARY)]
    argv = [a for a in argv if not a.startswith(SUMMARY)]
    files = [a for a in argv if not a.startswith("--") and "=" not in a]
    flags = {a for a in argv if a.startswith("--")}
    if len(files) != 1 or flags - {"--update"}:
        print(HELP, file=sys.stderr, end="")
        return 2
    from evals.config import ConfigError
    from evals.datasets.base import DatasetError
    from evals.engine.store import StoreError
    from lactok.registry import RegistryError

    path, update = Path(files[0]), "--update" in flags
    if chosen := next((a for a in argv if a.startswith("out=")), None):
        print(f"error: {chosen}: a check measures anew in an empty folder of its own; leave it out", file=sys.stderr)
        return 2
    try:
        committed = read(path)
        if not committed.rows and not update:
            raise RecordError(f"{path} has no rows to compare with: write them by update=true")
    except (RecordError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        now = measure([*committed.config, *(a for a in argv if "=" in a)])
    except (ConfigError, DatasetError, StoreError, RegistryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if update:
        write_atomically(path, (json.dumps(_SNAPSHOT.dump_python(now), indent=1) + "\n").encode())
        print(f"wrote {path}: {len(now.rows)} rows")
        return 0
    moved = compare(committed, now)
    print("\n".join(map(str, moved)) or f"nothing moved: {len(now.rows)} rows, {now.items} items")
    if moved:
        print(f"{len(moved)} figure(s) moved; made with {committed.versions}, now {now.versions}")
    try:
        for summary in summaries:
            with summary.open("a", encoding="utf-8") as file:
                file.write(as_markdown(path, moved, now))
    except OSError as error:
        print(f"error: summary={error.filename} can't be written: {error.strerror}", file=sys.stderr)
        return 2
    return 1 if moved else 0


def as_markdown(path: Path, moved: Sequence[Moved], now: Snapshot) -> str:
    """What moved of a file's figures, as a section with a table."""
    made = f"{len(now.rows)} rows, {now.items} items, {now.device}"
    if not moved:
        return f"### {path.name}: nothing moved\n\n{made}\n\n"
    cells = [[one.row, one.what, one.committed, one.now, one.allowed] for one in moved]
    lines = [
        "| " + " | ".join(str(cell).replace("|", r"\|").replace("\n", " ") for cell in row) + " |" for row in cells
    ]
    head = ["| row | figure | committed | now | allowed |", "| :-- | :-- | --: | --: | --: |"]
    return f"### {path.name}: {len(moved)} figure(s) moved\n\n{made}\n\n" + "\n".join([*head, *lines]) + "\n\n"


def measure(overrides: list[str]) -> Snapshot:
    """The present figures of the run that a file's overrides name, made in an empty cache that is then removed."""
    from evals.config import compose_config
    from evals.engine import run as engine

    with tempfile.TemporaryDirectory(prefix="lactok-check-") as out:
        return snapshot(engine.run(compose_config([*overrides, f"out='{out}'"]), quiet=True), overrides)


def snapshot(finished: Finished, overrides: list[str]) -> Snapshot:
    """What FILE holds of a finished run. Reads its cache."""
    run = finished.record
    of_tokens = {column.name for column in run.columns if column.kind == "token"}
    rows = {}
    for work, row in zip(finished.job.runs, run.rows, strict=True):
        cells = {name: _plain(cell.value) for name, cell in row.cells.items() if name not in of_tokens}
        tokens = _tokens(finished, work) if row.status == "ok" else []
        rows[row.label] = RowSnapshot(row.status, [w.sha256 for w in row.weights], cells, tokens)
    seeds = finished.job.seeds
    tasks = Counter(str(item.tags["tag"]) for item in finished.job.dataset.items if "tag" in item.tags)
    return Snapshot(
        overrides, run.protocol_hash, run.dataset_fingerprint, run.items, run.versions, run.device, rows,
        {task: seeds * count for task, count in sorted(tasks.items())},
    )  # fmt: skip


def _tokens(finished: Finished, work: ModelRun) -> list[str]:
    """A line an image: its ids, separated by spaces; [] where the row has no tokens."""
    job, lines = finished.job, []
    for chunk in job.chunks:
        artifact = job.task.tokens(work, chunk)
        entry = job.cache.read(artifact) if artifact is not None else None
        if entry is not None:
            lines += [" ".join(map(str, ids.ravel().tolist())) for ids in entry.arrays["ids"]]
    return lines


def _plain(value: float | None) -> float | str | None:
    return str(value) if value is not None and not math.isfinite(value) else value


def _tolerance(column: str, items: int, tasks: Mapping[str, int]) -> tuple[float, float]:
    """(absolute, relative) of a column's figures."""
    if column.startswith(SHARE):
        return LITTLE_MORE / items, 0.0
    if column.startswith(GENEVAL) and tasks:  # the figure over all is the mean of the tasks'
        if column.endswith("-images"):
            return LITTLE_MORE / sum(tasks.values()), 0.0
        of_task = next((count for task, count in tasks.items() if column.endswith(f"-{task}")), None)
        return LITTLE_MORE / (of_task or len(tasks) * min(tasks.values())), 0.0
    return next((t for start, t in TOLERANCES.items() if column.startswith(start)), OTHERS)


def compare(committed: Snapshot, now: Snapshot) -> list[Moved]:
    """All that moved, from two snapshots."""
    moved = [
        Moved("run", what, getattr(committed, what), getattr(now, what), "nothing")
        for what in ("protocol_hash", "dataset_fingerprint", "items")
        if getattr(committed, what) != getattr(now, what)
    ]
    for label, before in committed.rows.items():
        after = now.rows.get(label)
        if after is None:
            moved.append(Moved(label, "row", "present", "absent", "nothing"))
            continue
        moved += [
            Moved(label, what, getattr(before, what), getattr(after, what), "nothing")
            for what in ("status", "weights")
            if getattr(before, what) != getattr(after, what)
        ]
        moved += _moved_cells(label, before.cells, after.cells, now)
        if before.tokens:
            moved += _moved_tokens(label, before.tokens, after.tokens)
    return moved


def _moved_cells(
    label: str, before: dict[str, float | str | None], after: dict[str, float | str | None], now: Snapshot
) -> list[Moved]:
    moved = []
    for name, value in before.items():
        present = after.get(name)
        if value == present:  # a missing figure, too
            continue
        if value is None or present is None:
            moved.append(Moved(label, name, value, present, "nothing"))
            continue
        absolute, relative = _tolerance(name, now.items, now.tasks)
        a, b = float(value), float(present)
        allowed = absolute + relative * abs(a) if math.isfinite(a) else 0.0
        if not abs(a - b) <= allowed:
            moved.append(Moved(label, name, a, b, f"{allowed:.2g}"))
    return moved


def _moved_tokens(label: str, before: list[str], after: list[str]) -> list[Moved]:
    a, b = " ".join(before).split(), " ".join(after).split()
    equal = sum(x == y for x, y in zip(a, b)) / max(len(a), len(b), 1)
    if equal >= TOKENS_EQUAL and len(a) == len(b):
        return []
    return [Moved(label, "tokens", f"{len(a)} tokens", f"{equal:.2%} of them equal", f"at least {TOKENS_EQUAL:.1%}")]
