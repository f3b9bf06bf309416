"""`python -m evals export RUN out=DIR`: a run's images, tokens and figures as files, or in a format of others."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evals.report.export import Exported

# The formats of others, with the keys of each.
FORMATS = {"every-eval-ever": ("organization", "relationship"), "eval-results": ("benchmark", "source")}
HELP = """\
usage: python -m evals export RUN out=DIR [rows=NAME,NAME]
       python -m evals export RUN out=DIR format=every-eval-ever organization=WHO [relationship=HOW] [rows=...]
       python -m evals export RUN out=DIR format=eval-results benchmark=OWNER/NAME [source=URL] [rows=...]

Writes the run of the folder RUN (OUT/runs/...), whose store OUT/cache is still there, to the new folder DIR:

  references/IMAGE.png    the images that were compared with, at the evaluation size
  ROW/IMAGE.png           each row's images, as its metrics saw them; several seeds: ROW.seed1/IMAGE.png, ... (of
                          prompts ROW/ITEM-SEED.png, and ROW/images.csv with the prompts)
  ROW/ids.npz             the row's tokens: ids, lengths where they vary, files
  per_image.csv           a line an image, row and seed index: all per-image metrics
  clusters.csv            what intervals resample
  manifest.json           run, protocol, versions, and the command that scores the folder: its figures are the run's

Images are in the store with save_images=true (those of prompts always). Where they are not they are decoded again from
the stored tokens, and compared with those that are kept for the contact sheet. rows= names some rows [all with
figures]. DIR appears when it is whole.

With format= the figures alone, of the rows that are no calibration rows (rows= names those, too); no store is needed:

  every-eval-ever   data/lactok/DEVELOPER/MODEL/UUID.json of each row, in the schema 0.3.0 of Every Eval Ever, whose
                    `every_eval_ever validate` takes them. organization= says who evaluated; relationship= of the
                    evaluator to the models: first_party, third_party [default], collaborative, other
  eval-results      ROW/.eval_results/lactok.yaml of each row, as the model hub takes it in the model's repository.
                    benchmark= is the dataset on the hub whose leaderboard it is, with a task for each column, its
                    name in lower case; source= an address of the run

Figures that a format can't hold (infinite ones, columns of which neither side is better) are left out and named.

Exit status: 0 all rows written; 1 a row could not be, or was decoded otherwise than before; 2 nothing was written; 130
stopped by Ctrl-C, and nothing was written.
"""


def main(argv: list[str]) -> int:
    """See HELP."""
    if not argv or any(a in ("-h", "--help", "help") for a in argv):
        print(HELP, end="", file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    runs = [word for word in argv if "=" not in word]
    given = dict(word.split("=", 1) for word in argv if "=" in word)
    form = given.get("format", "")
    if form and form not in FORMATS:
        print(f"error: format={form}: expected {' or '.join(FORMATS)}, or none for images", file=sys.stderr)
        return 2
    known = ("out", "rows", *(("format", *FORMATS[form]) if form else ()))
    wrong = [key for key in given if key not in known] + [word for word in runs if word.startswith("-")]
    if wrong or len(runs) != 1 or not given.get("out", "").strip():
        reason = f"unknown {wrong[0]}" if wrong else "name one run's folder and out=DIR, the new folder"
        print(f"error: {reason}; python -m evals export RUN out=DIR [rows=NAME,NAME]", file=sys.stderr)
        return 2
    if form:
        return _figures(Path(runs[0]), given)
    from evals.cli.arguments import listed
    from evals.cli.compare import NotComparable
    from evals.config import ConfigError
    from evals.datasets.base import DatasetError
    from evals.engine.reopen import NotReopened
    from evals.record import RecordError
    from evals.report.export import ExportError, export
    from lactok.files import WriteError
    from lactok.registry import RegistryError

    out, rows = Path(given["out"]).expanduser(), listed(given.get("rows", ""))
    try:
        exported = export(Path(runs[0]), out, rows)
    except (ExportError, NotReopened, NotComparable, RecordError, ConfigError, DatasetError, RegistryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (WriteError, OSError) as error:
        print(f"error: {error}; nothing was written", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; nothing was written", file=sys.stderr)
        return 130
    return _told(exported, out)


def _figures(folder: Path, given: dict[str, str]) -> int:
    """Write the run's figures in a format of others."""
    from evals.cli.arguments import listed
    from evals.record import RecordError, of_folder
    from evals.report.interchange import InterchangeError, every_eval_ever, hub_results
    from lactok.files import WriteError

    out, rows = Path(given["out"]).expanduser(), listed(given.get("rows", ""))
    try:
        run = of_folder(folder)
        if given["format"] == "every-eval-ever":
            who, how = given.get("organization", ""), given.get("relationship", "third_party")
            written = every_eval_ever(run, out, who, how, rows)
        else:
            written = hub_results(run, out, given.get("benchmark", ""), given.get("source", ""), rows)
    except (InterchangeError, RecordError, WriteError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for row in written:
        print(f"{row.label}: {row.figures} figures in {out / row.file}")
        for reason in row.left_out:
            print(f"left out: {row.label}: {reason}", file=sys.stderr)
    return 0


def _told(rows: list[Exported], out: Path) -> int:
    status = 0
    for row in rows:
        if row.why:
            print(f"left out: {row.label}: {row.why}", file=sys.stderr)
            status = 1
            continue
        how = "from the store" if row.stored == row.images else f"{row.images - row.stored:,} decoded again"
        more = ", ids.npz" * row.tokens + (f", {len(row.refused):,} refused" if row.refused else "")
        print(f"{row.label}: {row.images:,} images in {', '.join(row.folders)} ({how}){more}")
        if row.differing:
            print(
                f"{row.label}: {row.differing} of {row.compared} images that were compared differ from those that were "
                "scored: another machine, number of threads or batch decoded them",
                file=sys.stderr,
            )
            status = 1
    print(out)
    return status
