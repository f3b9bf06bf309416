"""Ray's datasinks: units to their files, and indices of images to shards. Imported where Ray is installed.

Ray repeats a write whose process died; a file that stands is then written again, with the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from ray.data import Datasink
from ray.data.block import BlockAccessor

from lactok.data.construct import inspection, shards, units
from lactok.data.construct.items import WorkItem, unpacked
from lactok.data.construct.spec import Spec


class UnitsSink(Datasink):
    """Rows of packed units."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def write(self, blocks: Iterable[Any], ctx: Any) -> int:
        count = 0
        for block in blocks:
            for row in BlockAccessor.for_block(block).iter_rows(public_row_format=True):
                unit = unpacked({"content": [row["content"]]})
                inspection.previews(unit.items)
                units.write(self.out, unit)
                count += 1
        return count


class ShardsSink(Datasink):
    """Rows of a shard's number and the indices of its images."""

    def __init__(self, spec: Spec, models: Mapping[str, Any]) -> None:
        self.spec, self.models = spec, models

    def write(self, blocks: Iterable[Any], ctx: Any) -> list[str]:
        written = []
        schema = shards.index_schema(list(self.spec.judges))
        for block in blocks:
            for row in BlockAccessor.for_block(block).iter_rows(public_row_format=True):
                samples = self._samples([int(index) for index in row["indices"]])
                written.append(shards.write_shard(self.spec.out, int(row["number"]), samples, schema).name)
        return written

    def _samples(self, indices: Sequence[int]) -> Iterator[shards.Sample]:
        """The samples of items, in order; one unit is in memory at a time."""
        held, table = -1, None
        for index in indices:
            number = index // self.spec.unit
            if number != held:
                columns = [name for name in units.SCHEMA.names if name not in ("thumbnail", "preview", "signature")]
                held, table = number, pq.read_table(units.path_of(self.spec.out, number), columns=columns)
            assert table is not None
            (row,) = table.slice(index % self.spec.unit, 1).to_pylist()
            item = units.item_of(row)
            yield shards.Sample(item.key, item.image, item.format, item.caption, self._facts(item))

    def _facts(self, item: WorkItem) -> dict[str, Any]:
        return {
            "raw_caption": item.raw_caption or None,
            "width": item.width,
            "height": item.height,
            "pixels_sha256": item.pixels_sha256,
            "source": item.source,
            "source_id": item.source_id,
            "source_index": item.index,
            "seed": item.seed,
            "synthesiser": _short(self.models["synthesiser"]) if item.seed is not None else None,
            "captioner": _short(self.models["captioner"]),
            "judges": "; ".join(_short(judge) for judge in self.models["judges"].values()),
            **{f"score_{name}": item.scores.get(name) for name in self.spec.judges},
        }


def _short(model: Mapping[str, Any]) -> str:
    """A model as a sample names it: its name, its revision or hash, what it was set to."""
    named = [str(model.get("name", ""))]
    named += [str(model[key]) for key in ("revision", "sha256") if model.get(key)]
    rest = {key: value for key, value in model.items() if key not in ("name", "revision", "sha256")}
    return "@".join(named) + (f" {json.dumps(rest, sort_keys=True)}" if rest else "")
