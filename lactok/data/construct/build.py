"""A build from settings to shards, in steps that each go on where a kill left them.

1. the sources are listed (work/listing); 2. Ray Data carries every unit that has no file yet through the stages, and a
datasink writes its file (work/units); 3. Ray groups what is kept to find duplicates (work/duplicates.parquet); 4. a
datasink writes the shards that do not stand yet; 5. the books are checked, then build.json is written.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lactok.data.construct import duplicates, listing, needs, recipes, report, shards, units
from lactok.data.construct.books import Books
from lactok.data.construct.cluster import connected, pool, unwrapped
from lactok.data.construct.items import packed
from lactok.data.construct.spec import STAGES, Spec, SpecError
from lactok.data.construct.stages import StageActor, StageBroken
from lactok.data.construct.view import View
from lactok.data.folder import DataError
from lactok.data.tar_roots import BUILD, FORMAT, FORMAT_VERSION
from lactok.files import WriteError, write_atomically
from lactok.locks import LockHeld, sole_lock

SETTINGS = "settings.json"
DUPLICATES = "duplicates.parquet"
_BLOCKS = 5000
"""Of the units in Ray, at most."""


def build(spec: Spec, say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Make the shards of the settings in spec.out, or what is left of them; build.json's content.

    Raises SpecError, NoCluster, WriteError, StageBroken, BooksDoNotBalance.
    """
    out = spec.out
    if manifest := finished(spec):
        return manifest
    listing.sources_of(spec)
    needs.require(spec)
    lock = out / "work" / "lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with sole_lock(lock):
            _begin(spec)
            return _build(spec, say)
    except LockHeld as error:
        owner = f"process {error.owner.pid} on {error.owner.host}" if error.owner else "another process"
        raise SpecError(f"{owner} is building in {out}: wait for it, or delete {lock} if it is dead") from None


def finished(spec: Spec) -> dict[str, Any] | None:
    """What build.json says if the build is finished. Raises SpecError where it is one of other settings."""
    path = spec.out / BUILD
    if not path.is_file():
        return None
    manifest = json.loads(path.read_bytes())
    if manifest.get("settings_sha256") != spec.sha256():
        raise SpecError(_other_settings(spec, manifest.get("settings") or {}))
    for shard in manifest["shards"]:
        file = spec.out / shard["name"]
        if not file.is_file() or file.stat().st_size != shard["bytes"]:
            raise SpecError(f"{file} is not as {path} says: restore it, or delete build.json and run again")
    return manifest


def _begin(spec: Spec) -> None:
    """Write down the settings. Raises SpecError where the folder was begun with others."""
    path = spec.out / "work" / SETTINGS
    wanted = {"settings": spec.that_matters(), "models": recipes.models(spec)}
    if path.is_file():
        stored = json.loads(path.read_bytes())
        if stored["settings"] != json.loads(json.dumps(wanted["settings"])):
            raise SpecError(_other_settings(spec, stored["settings"]))
        if stored["models"] != json.loads(json.dumps(wanted["models"])):
            raise SpecError(f"{spec.out} was begun with other checkpoints: {stored['models']}; name another by out=DIR")
        return
    write_atomically(path, json.dumps(wanted, indent=1, sort_keys=True).encode())


def _other_settings(spec: Spec, stored: Mapping[str, Any]) -> str:
    now = json.loads(json.dumps(spec.that_matters()))
    other = [key for key in sorted({*stored, *now}) if stored.get(key) != now.get(key)]
    shown = ", ".join(f"{key}={stored.get(key)} (now {now.get(key)})" for key in other[:4])
    return f"{spec.out} was begun with other settings: {shown}; give those, or name another folder by out=DIR"


def _build(spec: Spec, say: Callable[[str], None]) -> dict[str, Any]:
    out = spec.out
    listed = listing.make(spec, out)
    done = units.finished(out, listed.units)
    say(f"{listed.items:,} items in {listed.units:,} units, {len(done):,} of them done")
    with connected(spec), unwrapped(WriteError, StageBroken, SpecError, DataError):
        todo = [number for number in range(listed.units) if number not in done]
        if todo:
            _make_units(spec, todo, listed)
        books, kept = _count(out, listed)
        dropped = _duplicates(spec, out, listed, books.kept)
        for reason, _ in dropped.values():
            books.kept -= 1
            books.dropped[reason] += 1
        indices = [index for index in kept if index not in dropped]
        say(f"{books.items:,} items, {books.kept:,} kept; writing shards")
        made = _make_shards(spec, indices)
    books.require_balance()
    if sum(shard.samples for shard in made) != books.kept:
        raise SpecError(f"the shards of {out} hold other samples than are kept: delete shard-* there and run again")
    manifest = _declare(spec, made, books)
    report.write(spec, manifest, listed.units, dropped)
    return manifest


def _make_units(spec: Spec, todo: Sequence[int], listed: listing.Listing) -> None:
    """Carry units through the stages, each to its file."""
    import ray.data

    from lactok.data.construct import sinks

    (units.folder(spec.out)).mkdir(parents=True, exist_ok=True)
    stages: dict[str, Any] = recipes.stages(spec)
    count = min(len(todo), _BLOCKS)
    data = ray.data.from_items([{"id": number} for number in todo], override_num_blocks=count)
    read = {"out": str(spec.out), "unit": listed.unit}
    hands = max(1, count // 100)  # few units: each process costs more to start than it has to read or write
    data = data.map_batches(_read_unit, batch_size=1, fn_kwargs=read, num_cpus=0.1, concurrency=hands)
    for name in STAGES:
        data = data.map_batches(StageActor, fn_constructor_args=(stages[name], spec), **pool(spec.stage(name)))
    with View(spec, listed.units):
        data.write_datasink(sinks.UnitsSink(spec.out), ray_remote_args={"num_cpus": 0.1}, concurrency=hands)


def _read_unit(batch: Mapping[str, Any], out: str, unit: int) -> dict[str, Any]:
    return packed(listing.read_unit(Path(out), int(batch["id"][0]), unit))


def _count(out: Path, listed: listing.Listing) -> tuple[Books, list[int]]:
    """The books of the units, and the indices of the items that they keep, in order."""
    books, kept = Books(), []
    for table in units.rows(out, range(listed.units), ["index", "reason"]):
        indices, reasons = table["index"].to_pylist(), table["reason"].to_pylist()
        books.items += len(indices)
        books.dropped.update(reason for reason in reasons if reason)
        kept += [index for index, reason in zip(indices, reasons, strict=True) if not reason]
    books.kept = len(kept)
    if books.items != listed.items:
        books.require_balance()
        raise SpecError(
            f"{units.folder(out)} holds {books.items:,} items, the sources {listed.items:,}: "
            f"delete {units.folder(out).parent}"
        )
    return books, kept


def _duplicates(spec: Spec, out: Path, listed: listing.Listing, kept: int) -> dict[int, tuple[str, int]]:
    """What de-duplication drops, found once: index to (reason, index of what stays)."""
    path = out / "work" / DUPLICATES
    if not path.is_file():
        found = sorted(duplicates.find(spec, out, listed.units, kept).items())
        table = pa.table(
            {
                "index": pa.array([index for index, _ in found], pa.int64()),
                "reason": pa.array([reason for _, (reason, _) in found], pa.string()),
                "stays": pa.array([stays for _, (_, stays) in found], pa.int64()),
            }
        )
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        write_atomically(path, buffer.getvalue())
    rows = pq.read_table(path).to_pylist()
    return {row["index"]: (row["reason"], row["stays"]) for row in rows}


def _make_shards(spec: Spec, indices: Sequence[int]) -> list[shards.Shard]:
    """Write the shards that do not stand yet; all of them, in order."""
    import ray.data

    from lactok.data.construct import sinks

    parts = [indices[start : start + spec.shard] for start in range(0, len(indices), spec.shard)]
    todo = [number for number in range(len(parts)) if not shards.standing(spec.out, number)]
    if todo:
        rows = [{"number": number, "indices": np.array(parts[number], np.int64)} for number in todo]
        data = ray.data.from_items(rows, override_num_blocks=min(len(rows), _BLOCKS))
        data.write_datasink(sinks.ShardsSink(spec, recipes.models(spec)))
    made = [shards.standing(spec.out, number) for number in range(len(parts))]
    if missing := [shards.name_of(number) for number, shard in enumerate(made) if shard is None]:
        raise SpecError(f"{', '.join(missing[:3])} of {spec.out} is not as it was written: run the same command again")
    return [shard for shard in made if shard]


def _declare(spec: Spec, made: Sequence[shards.Shard], books: Books) -> dict[str, Any]:
    """Write build.json, without which no trainer takes the shards."""
    manifest = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "recipe": spec.recipe,
        "settings": spec.that_matters(),
        "settings_sha256": spec.sha256(),
        "samples": books.kept,
        "bytes": sum(shard.bytes for shard in made),
        "shards": [asdict(shard) for shard in made],
        "books": books.as_json(),
        "models": recipes.models(spec),
    }
    content = json.dumps(manifest, indent=1, sort_keys=True)
    write_atomically(spec.out / BUILD, content.encode())
    return json.loads(content)
