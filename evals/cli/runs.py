"""`python -m evals runs`: finished runs and their store, listed, named, merged and pruned."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from evals import record
from evals.cli.compare import NotComparable

HELP = """\
usage: python -m evals runs list [out=DIR]
       python -m evals runs name RUN NAME
       python -m evals runs merge RUN RUN ... out=DIR
       python -m evals runs prune [out=DIR] [days=N] [yes=true]

  list    the runs of OUT/runs: name, suite, images, date, rows, size; and the size of the store OUT/cache
  name    renames the folder RUN to NAME beside it; the same command, given again, writes to its own name
  merge   the rows of several runs as one run in the new folder DIR. They must have one protocol, the same images,
          clusters and seeds; what differs is named
  prune   what no run of OUT/runs refers to is removed from the store: a dry run, unless yes=true is given. Work of the
          last N days [1] stays, so that runs that are not finished do. Where it can't be told what a run refers to,
          nothing is removed

out is the folder of cache and runs [results]. Exit status: 0 done, 2 it can't be, 130 stopped by Ctrl-C.
"""
COMMANDS = {"list": ("out",), "name": (), "merge": ("out",), "prune": ("out", "days", "yes")}


class RunsError(Exception):
    """The command can't be used; the message says why and the way out. Exit status 2."""


def main(argv: list[str]) -> int:
    """See HELP."""
    if not argv or any(a in ("-h", "--help", "help") for a in argv):
        print(HELP, end="", file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    from evals.engine.store import StoreError

    try:
        return _dispatch(argv[0], argv[1:])
    except (RunsError, NotComparable, record.RecordError, StoreError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130


def _dispatch(name: str, rest: list[str]) -> int:
    from lactok.registry import unknown

    if name not in COMMANDS:
        raise RunsError(unknown("command", f"runs {name}", [f"runs {c}" for c in COMMANDS]))
    given = {key: value for key, equals, value in (word.partition("=") for word in rest) if equals and key in ALL_KEYS}
    words = [word for word in rest if word.partition("=")[0] not in given]
    for key in given:
        if key not in COMMANDS[name]:
            raise RunsError(f"runs {name} takes no {key}=: expected {', '.join(COMMANDS[name]) or 'no keys'}")
    if name == "name":
        return _name(words)
    if name == "merge":
        return _merge(words, given, shlex.join(["python", "-m", "evals", "runs", name, *rest]))
    if words:
        raise RunsError(f"runs {name} takes {', '.join(COMMANDS[name])}, got {words[0]!r}")
    out = Path(given.get("out", "results")).expanduser()
    if not (out / "runs").is_dir():
        raise RunsError(f"{out} holds no runs (absolute: {out.absolute()}): name the folder that runs had as out=DIR")
    return _list(out) if name == "list" else _prune(out, given)


ALL_KEYS = {key for keys in COMMANDS.values() for key in keys}


def _folders(out: Path) -> list[Path]:
    """The folders below OUT/runs, hidden ones (half-written) aside."""
    return sorted(path for path in (out / "runs").iterdir() if path.is_dir() and not path.name.startswith("."))


def _list(out: Path) -> int:
    from rich.console import Console
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("name", "suite", "items", "date", "rows", "size"):
        shown.add_column(title, justify="right" if title in ("rows", "size") else "left", overflow="fold")
    bad = []
    found: list[tuple[str, list[str]]] = []
    for folder in _folders(out):
        try:
            run = record.read(folder / "run.json")
        except (record.RecordError, OSError) as error:
            bad.append(f"{folder.name}: no run that can be read: {error}")
            continue
        rows = f"{sum(row.status == 'ok' for row in run.rows)} of {len(run.rows)}"
        items = f"{run.items:,} {run.unit} of {run.dataset}, {run.protocol.get('name', '?')}"
        line = [folder.name, f"{run.suite}, {run.scale}", items, run.started, rows, _size(bytes_of(folder))]
        found.append((run.started, line))
    for _, cells in sorted(found, reverse=True):
        shown.add_row(*cells)
    Console(width=None if sys.stdout.isatty() else 160).print(shown)
    print(f"\n{len(found)} runs in {out / 'runs'}; store {out / 'cache'}: {_size(bytes_of(out / 'cache'))}")
    for reason in bad:
        print(reason, file=sys.stderr)
    return 0


def _name(words: Sequence[str]) -> int:
    if len(words) != 2:
        raise RunsError(
            f"expected RUN and NAME, got {' '.join(words) or 'nothing'}: python -m evals runs name RUN NAME"
        )
    folder, name = Path(words[0]), words[1]
    record.read(_run_json(folder))
    if not re.fullmatch(r"[\w+-][\w.+-]*", name):
        raise RunsError(f"NAME is {name!r}: expected letters, digits and . _ + -, not beginning with a dot")
    target = folder.absolute().parent / name
    if os.path.lexists(target):
        raise RunsError(f"{target} exists already: choose another name")
    try:
        os.rename(folder, target)
    except OSError as error:
        raise RunsError(f"{folder} can't be renamed: {error.strerror or error}") from error
    print(target)
    return 0


def _run_json(folder: Path) -> Path:
    path = folder / "run.json"
    if not path.is_file():
        raise RunsError(f"{folder} holds no run.json: expected the folder of a finished run (results/runs/...)")
    return path


def _merge(words: Sequence[str], given: dict[str, str], command: str) -> int:
    if len(words) < 2 or not given.get("out", "").strip():
        raise RunsError("expected two runs or more and a new folder: python -m evals runs merge RUN RUN out=DIR")
    from evals.report.console import print_run
    from evals.report.merge import merge

    out = Path(given["out"]).expanduser()
    print_run(merge([Path(word) for word in words], out, command))
    print(out)
    return 0


def _prune(out: Path, given: dict[str, str]) -> int:
    days, yes = given.get("days", "1"), given.get("yes", "false")
    if not re.fullmatch(r"\d{1,6}", days):
        raise RunsError(f"days={days}: expected a whole number of at least 0")
    if yes not in ("true", "false"):
        raise RunsError(f"yes={yes}: expected true or false")
    referred = _referred(out)
    before = time.time() - int(days) * 86400
    doomed = [entry for entry in _entries(out / "cache") if entry not in referred and _changed(entry) <= before]
    sizes: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for entry in doomed:
        sizes[entry.parent.name] += bytes_of(entry)
        counts[entry.parent.name] += 1
    for kind, size in sizes.most_common():
        print(f"{kind}: {counts[kind]:,} entries, {_size(size)}")
    total = f"{len(doomed):,} entries, {_size(sizes.total())}, that no run of {out / 'runs'} refers to"
    if yes == "false":
        print(f"dry run: {total}; yes=true removes them")
        return 0
    for entry in doomed:
        shutil.rmtree(entry, ignore_errors=True)
    if left := [entry for entry in doomed if entry.exists()]:
        raise RunsError(f"{len(left):,} entries could not be removed, the first: {left[0]}")
    print(f"removed {total}")
    return 0


def _referred(out: Path) -> set[Path]:
    """The entries of the store that a run refers to. Raises RunsError naming each run of which it can't be told."""
    from evals.config import ConfigError
    from evals.datasets.base import DatasetError
    from evals.engine.reopen import MERGED, NotReopened, artifacts_of, is_same, reopened
    from lactok.registry import RegistryError

    found: set[Path] = set()
    unknown: list[str] = []
    for folder in _folders(out):
        try:
            run = record.read(_run_json(folder))
            found |= {
                out / "cache" / _kind(name) / key for row in run.rows for name, keys in row.keys.items() for key in keys
            }
            if run.command.startswith(MERGED):
                continue
            job = reopened(folder, run)
            runs = {one.row.label: one for one in job.runs if one.status == "ok"}
            wrong = [
                row.label
                for row in run.rows
                if row.status == "ok" and not (row.label in runs and is_same(job, runs[row.label], row))
            ]
            if wrong:
                unknown.append(f"{folder.name}: {', '.join(wrong)}: the model, code or device changed since")
            found |= {out / "cache" / artifact.kind / artifact.key for artifact in artifacts_of(job)}
        except (RunsError, NotReopened, record.RecordError, ConfigError, DatasetError, RegistryError, OSError) as error:
            unknown.append(f"{folder.name}: {error}")
    if unknown:
        listed = "".join(f"\n  {line}" for line in unknown)
        raise RunsError(
            f"it can't be told what {len(unknown)} run(s) refer to, so nothing is removed; run their commands again, "
            f"or move their folders away:{listed}"
        )
    return found


def _kind(name: str) -> str:
    """The folder of a record's keys: those of scores stand under the metric's name, too."""
    return "scores" if name.startswith("scores-") else name


def _entries(cache: Path) -> list[Path]:
    """All whole entries of a store. Its index of checked images is small and stays."""
    return sorted(path.parent for path in cache.glob("*/*/meta.json"))


def _changed(entry: Path) -> float:
    try:
        return (entry / "meta.json").stat().st_mtime
    except OSError:  # another process has removed it
        return time.time()


def bytes_of(folder: Path) -> int:
    """Bytes of all files below a folder; 0 where there is none."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() or path.is_symlink())


def _size(count: int) -> str:
    """Bytes for people: 12.3 MB."""
    power = min(4, (len(str(count)) - 1) // 3)
    return f"{count / 1000**power:.{min(power, 1)}f} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
