"""What `evals.evaluate` returns: a run's figures as pandas tables, paired tests, and the run's folder on demand."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tempfile import TemporaryDirectory

    import pandas as pd

    from evals.engine.run import Finished
    from evals.record import RunRecord


class RowsFailed(RuntimeError):
    """Rows of an evaluation could not be measured; the message has the reasons, `results` all that was measured."""

    def __init__(self, results: Results) -> None:
        self.results = results
        super().__init__("; ".join(f"{label}: {reason}" for label, reason in results.errors.items()))


class Results:
    """The figures of an evaluation.

    table: a line a row, by its label, as in table.csv; per_image: a line a row, an item and a seed index; errors: by
    label, why a row was not measured, and `traces` its traceback; record: all that run.json holds.
    """

    def __init__(self, finished: Finished, command: str, folders: list[TemporaryDirectory[str]]) -> None:
        from evals.report.output import per_image_frame
        from evals.report.table import raw_frame

        self._finished, self._command = finished, command
        self._folders = folders  # what `save` still reads; they go with this object
        self.record: RunRecord = finished.record
        self.record.command = command
        frame = raw_frame(self.record)
        self.table: pd.DataFrame = frame.set_index(frame.columns[0])
        self.per_image: pd.DataFrame = per_image_frame(finished)

    @property
    def errors(self) -> dict[str, str]:
        """By label, why a row was not measured."""
        return {row.label: f"{row.status}: {row.error}" for row in self.record.rows if row.status != "ok"}

    @property
    def traces(self) -> dict[str, str]:
        """By label, the traceback of a row that failed."""
        return {row.label: row.trace for row in self.record.rows if row.trace}

    def compare(self, a: str, b: str) -> pd.DataFrame:
        """The paired test of row b less row a, as `python -m evals compare` makes it: a line a per-image metric.

        Columns: mean, low and high (95 % interval of the mean difference), won and tied (shares of the items), p,
        count, infinite, refused; None where it is not defined. Raises evals.cli.compare.NotComparable for a row that is
        not here or has no figures.
        """
        import pandas as pd

        from evals.cli.compare import Paired, Run, paired, row_of, row_values

        run = Run(self._finished.folder, self.record, self.per_image)
        a, b = (row_of(run, label).label for label in (a, b))
        tests = paired(row_values(self.per_image, a), row_values(self.per_image, b), self.record.columns)
        columns = [one.name for one in dataclasses.fields(Paired)]
        return pd.DataFrame([dataclasses.asdict(test) for test in tests], columns=columns).set_index("column")

    def save(self, folder: str | Path) -> Path:
        """Write the run's folder: report.md, table.csv, per_image.parquet, contact.png, run.json, errors/; its path.

        `python -m evals compare` and `check` read it. Raises StoreError where it can't be written.
        """
        from evals.report.output import write_run

        path = Path(folder).expanduser()
        write_run(dataclasses.replace(self._finished, folder=path), self._command)
        return path

    def __str__(self) -> str:
        from evals.report.markdown import main_table
        from evals.report.table import shown_table

        table = shown_table(self.record)
        notes = [f"{number}. {note}" for number, note in enumerate(table.footnotes, 1)]
        return "\n".join([*main_table(table), *(["", *notes] if notes else [])])

    def __repr__(self) -> str:
        rows = ", ".join(row.label for row in self.record.rows)
        return f"<Results of {rows} on {self.record.items} {self.record.unit} of {self.record.dataset}>"

    def _repr_markdown_(self) -> str:
        return str(self)

    def checked(self) -> Results:
        """These results. Raises RowsFailed where a row was not measured; warns of metrics that were not computed."""
        for line in self.record.missing_metrics:
            warnings.warn(f"metric not computed: {line}", stacklevel=3)
        if self.errors:
            raise RowsFailed(self)
        return self
