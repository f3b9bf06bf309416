"""report.html: a run as one page that opens without a network, with table, plots and an image viewer."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from evals.engine.run import Finished
from evals.engine.store import write_atomically
from evals.metrics.base import ImageMetric
from evals.record import RunRecord
from evals.report.html_data import PageData, ShownItem, headers, page_json, readable, script_json, table_rows
from evals.report.html_images import place_images
from evals.report.html_review import review_of
from evals.report.markdown import interval_note, run_title
from evals.report.table import devices_text, is_mini, items_text, shown_table

NAME = "report.html"
STYLES = ("report.css",)
# In the order in which the page runs them.
SCRIPTS = ("report_table.js", "report_viewer.js", "report_plots.js", "report_review.js")


def write_page(finished: Finished) -> Path:
    """Write report.html into the run's folder, and the images beside it; returns its path. Raises StoreError."""
    told, embedded = place_images(finished)
    items = [
        ShownItem(index, item.id, item.cluster, item.payload) for index, item in enumerate(finished.job.dataset.items)
    ]
    values = {label: found.values for label, found in finished.per_image.items()}
    page = PageData(finished.record, items, values, judged_wrong(finished))
    path = finished.folder / NAME
    write_atomically(path, render(page, told, embedded).encode())
    return path


def judged_wrong(finished: Finished) -> dict[str, dict[str, list[str]]]:
    """By row label and "INDEX/SEED", what a judge says against an image (`ImageMetric.reasons`); {} without a judge."""
    job = finished.job
    found: dict[str, dict[str, list[str]]] = {}
    judges = [plan for plan in job.metrics.image if plan.cls.reasons is not ImageMetric.reasons]
    for run in job.runs if judges else ():
        told = found.setdefault(run.row.label, {})
        for plan in judges if run.status == "ok" else ():
            for seed in run.seed_indices(job.seeds):
                for chunk in job.chunks:
                    entry = job.cache.read(job.scores(run, chunk, seed, plan))
                    for place, reasons in entry.meta.get("reasons", {}).items() if entry is not None else ():
                        told.setdefault(f"{chunk.start + int(place)}/{seed}", []).extend(reasons)
    return found


def render(page: PageData, images: Mapping[str, Any], thumbnails: Mapping[int, Any]) -> str:
    """The page as HTML. images, thumbnails: as `html_images.place_images` gives them."""
    from plotly.offline import get_plotlyjs

    run = page.run
    table = shown_table(run)
    return _template().render(
        title=readable(f"{run_title(run.suite)}: {run.items:,} {run.unit} of {run.dataset}"),
        run=run,
        mini=is_mini(run),
        model=table.model,
        facts=table.facts,
        headers=headers(run),
        rows=table_rows(run),
        footnotes=table.footnotes,
        conditions=_conditions(run),
        interval_note=interval_note(run),
        review=review_of(run),
        has_images=bool(images["shown"]),
        reasons=any(page.reasons.values()),
        data=Markup(script_json(page_json(page, images))),
        thumbnails=Markup(script_json(thumbnails)),
        styles=[Markup(_packaged(name)) for name in STYLES],
        scripts=[Markup(_packaged(name)) for name in SCRIPTS],
        plotly=Markup(get_plotlyjs()),
    )


def _conditions(run: RunRecord) -> list[tuple[str, str]]:
    """What the header says of the run, line by line."""
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    more = [(name, str(value)) for name, value in run.parameters.items()]
    return [
        ("suite", run.suite),
        (
            "scale",
            f"{run.scale} (weights {run.config.get('weights', '?')}, features {run.config.get('features', '?')})",
        ),
        ("dataset", items_text(run)),
        ("dataset fingerprint", run.dataset_fingerprint),
        ("protocol", f"{run.protocol['name']}, hash {run.protocol_hash}"),
        *more,
        ("date", run.started),
        ("measured on", devices_text(run)),
        ("code", run.code_revision),
        ("versions", versions),
        ("command", run.command),
    ]


def _packaged(name: str) -> str:
    """A style or script of ours; it is put into the page as it is, so it must not end its element."""
    text = (files("evals.report") / "templates" / name).read_text(encoding="utf-8")
    assert "</s" not in text, f"{name} would end its own element"
    return text


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("evals.report"),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: readable(value) if type(value) is str else value,
    )
    return environment.get_template("report.html.j2")
