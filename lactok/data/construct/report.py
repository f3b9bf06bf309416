"""A finished build as report.json and report.html: books, stages, scores, what was kept and what was dropped."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from lactok.data.construct import accuracy, units
from lactok.data.construct.spec import Spec
from lactok.data.construct.view import Totals
from lactok.files import write_atomically
from lactok.images.decode import ImageError, decode

BINS = 40
SHOWN = 24
"""Images of each grid."""
SIDE = 96


def write(spec: Spec, manifest: Mapping[str, Any], total: int, dropped: Mapping[int, tuple[str, int]]) -> Path:
    """Write both files into spec.out; the page's path. total: units; dropped: what de-duplication dropped.

    Raises WriteError.
    """
    facts = facts_of(spec, manifest, total, dropped)
    write_atomically(spec.out / "report.json", json.dumps(facts, indent=1).encode())
    kept, gone = _grids(spec, total, dropped)
    path = spec.out / "report.html"
    write_atomically(path, _page(facts, kept, gone).encode())
    return path


def facts_of(
    spec: Spec, manifest: Mapping[str, Any], total: int, dropped: Mapping[int, tuple[str, int]]
) -> dict[str, Any]:
    """What report.json holds."""
    totals = Totals(spec.out)
    totals.read()
    books = manifest["books"]
    facts = {
        "out": str(spec.out),
        "recipe": spec.recipe,
        "books": books,
        "accepted": books["kept"] / books["in"],
        "shards": len(manifest["shards"]),
        "bytes": manifest["bytes"],
        "models": manifest["models"],
        "stages": {name: {**asdict(stage), "images_per_second": stage.rate} for name, stage in totals.stages.items()},
        "scores": histograms(spec, total),
        "duplicates": [
            {"index": index, "reason": reason, "stays": stays} for index, (reason, stays) in sorted(dropped.items())
        ][:1000],
        "leaks": list(_leaks(spec, total))[:1000],
    }
    if spec.recipe == "mini":
        facts["planted"] = {k: v.as_json() for k, v in accuracy.of_plants(spec.out, total, dropped).items()}
    return facts


def histograms(spec: Spec, total: int) -> dict[str, dict[str, Any]]:
    """By judge: edges and counts of all scores that it gave, its threshold, their number. Two passes over the units,
    one table in memory at a time."""
    low, high = dict.fromkeys(spec.judges, np.inf), dict.fromkeys(spec.judges, -np.inf)
    for scores in _scores(spec, total):
        for name, values in scores.items():
            low[name], high[name] = min(low[name], values.min()), max(high[name], values.max())
    made: dict[str, dict[str, Any]] = {}
    for name, threshold in spec.judges.items():
        if low[name] > high[name]:
            continue
        edges = np.linspace(low[name], high[name] if high[name] > low[name] else low[name] + 1, BINS + 1)
        made[name] = {"threshold": threshold, "edges": edges, "counts": np.zeros(BINS, np.int64)}
    for scores in _scores(spec, total):
        for name, values in scores.items():
            made[name]["counts"] += np.histogram(values, made[name]["edges"])[0]
    return {
        name: {**one, "edges": one["edges"].tolist(), "counts": one["counts"].tolist()} for name, one in made.items()
    }


def _scores(spec: Spec, total: int) -> Iterator[dict[str, np.ndarray]]:
    for table in units.rows(spec.out, range(total), ["scores"]):
        rows = [json.loads(text) for text in table["scores"].to_pylist()]
        found = {name: np.array([row[name] for row in rows if name in row], float) for name in spec.judges}
        yield {name: values for name, values in found.items() if len(values)}


def _leaks(spec: Spec, total: int) -> Iterator[dict[str, Any]]:
    for table in units.rows(spec.out, range(total), ["index", "reason", "detail"]):
        for row in table.to_pylist():
            if row["reason"].startswith("leak"):
                yield {"index": row["index"], "reason": row["reason"], "image": row["detail"]}


def _grids(
    spec: Spec, total: int, dropped: Mapping[int, tuple[str, int]]
) -> tuple[list[tuple[bytes, str]], list[tuple[bytes, str]]]:
    """(JPEG, text) of kept and of dropped images: kept ones from units spread over the build; of dropped ones, reasons
    take turns."""
    kept: list[tuple[bytes, str]] = []
    by_reason: dict[str, list[tuple[bytes, str]]] = {}
    for number in sorted({round(place) for place in np.linspace(0, total - 1, min(total, SHOWN))}):
        columns = ["index", "image", "caption", "reason", "detail", "preview"]
        table = pq.read_table(units.path_of(spec.out, number), columns=columns)
        mine = 0
        for row in table.to_pylist():
            reason, _ = dropped.get(row["index"], (row["reason"], -1))
            if reason:
                shown = by_reason.setdefault(reason, [])
                if len(shown) < SHOWN and (small := row["preview"] or _small(row["image"])):
                    shown.append((small, f"{reason}: {row['detail'] or row['caption']}"))
            elif mine < -(-SHOWN // min(total, SHOWN)) and len(kept) < SHOWN and (small := _small(row["image"])):
                kept.append((small, row["caption"]))
                mine += 1
    gone: list[tuple[bytes, str]] = []
    for turn in range(SHOWN):
        gone += [shown[turn] for _, shown in sorted(by_reason.items()) if turn < len(shown)]
    return kept, gone[:SHOWN]


def _small(image: bytes) -> bytes:
    if not image:
        return b""
    try:
        picture = Image.fromarray(decode(image).pixels)
    except ImageError:
        return b""
    picture.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


_STYLE = """
body{font:15px system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse}td,th{padding:.2rem .8rem;text-align:left;border-bottom:1px solid #ddd}
td.n{text-align:right;font-variant-numeric:tabular-nums}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(110px,1fr));gap:.6rem}
figure{margin:0}figcaption{font-size:11px;overflow-wrap:anywhere}img{width:96px;image-rendering:auto}
"""


def _page(facts: Mapping[str, Any], kept: Sequence[tuple[bytes, str]], gone: Sequence[tuple[bytes, str]]) -> str:
    books = facts["books"]
    reasons = sorted(books["dropped"].items(), key=lambda one: -one[1])
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>Training data</title>",
        f"<style>{_STYLE}</style><h1>Training data, recipe {html.escape(facts['recipe'])}</h1>",
        f"<p>{books['in']:,} items = {books['kept']:,} kept ({facts['accepted']:.1%}) + "
        f"{sum(books['dropped'].values()):,} dropped; {facts['shards']:,} shards, {facts['bytes'] / 1e6:,.1f} MB</p>",
        "<h2>Dropped</h2>",
        _table(("reason", "items"), [(reason, f"{count:,}") for reason, count in reasons]),
        "<h2>Stages</h2>",
        _table(
            ("stage", "in", "out", "items a second of one process", "device", "GPU busy", "GPU memory"),
            [
                (
                    name,
                    f"{stage['items_in']:,}",
                    f"{stage['items_out']:,}",
                    f"{stage['images_per_second']:.4g}",
                    stage["device"],
                    "" if stage["gpu_busy"] is None else f"{stage['gpu_busy']:.0f} %",
                    "" if stage["gpu_bytes"] is None else f"{stage['gpu_bytes'] / 2**30:.1f} GiB",
                )
                for name, stage in facts["stages"].items()
            ],
        ),
    ]
    for name, one in facts["scores"].items():
        parts.append(f"<h2>Scores: {html.escape(name)}, must exceed {one['threshold']:g}</h2>{_histogram(one)}")
    if planted := facts.get("planted"):
        rows = [
            (kind, str(one["planted"]), str(one["found"]), f"{one['false']} of {one['clean']}")
            for kind, one in planted.items()
        ]
        parts += ["<h2>Planted</h2>", _table(("kind", "planted", "found", "others taken for one"), rows)]
    parts += ["<h2>Kept</h2>", _grid(kept), "<h2>Dropped, with reasons</h2>", _grid(gone), "</html>"]
    return "".join(parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    body = "".join(
        "<tr>"
        + "".join(f"<td{' class=n' if i else ''}>{html.escape(cell)}</td>" for i, cell in enumerate(row))
        + "</tr>"
        for row in rows
    )
    return f"<table><tr>{top}</tr>{body}</table>"


def _histogram(one: Mapping[str, Any]) -> str:
    """Bars in grey below the threshold and green above it, as SVG."""
    most, edges, bars = max([*one["counts"], 1]), one["edges"], []
    for place, count in enumerate(one["counts"]):
        height = 100 * count / most
        colour = "#3a7d44" if edges[place] >= one["threshold"] else "#999"
        bars.append(f'<rect x="{place * 12}" y="{100 - height:.1f}" width="11" height="{height:.1f}" fill="{colour}"/>')
    ends = f"<text x=0 y=115 font-size=11>{edges[0]:.3g}</text>"
    ends += f'<text x="{BINS * 12}" y=115 font-size=11 text-anchor=end>{edges[-1]:.3g}</text>'
    return f'<svg width="{BINS * 12}" height=120 role=img>{"".join(bars)}{ends}</svg>'


def _grid(images: Sequence[tuple[bytes, str]]) -> str:
    cells = [
        f'<figure><img alt="" src="data:image/jpeg;base64,{base64.b64encode(image).decode()}">'
        f"<figcaption>{html.escape(text[:160])}</figcaption></figure>"
        for image, text in images
    ]
    return f"<div class=grid>{''.join(cells) or 'none'}</div>"
