"""Doing the work that the store lacks: for each chunk of pictures and each row, encode, decode, score, commit.

Rows are resident together in groups, and the originals of a chunk are looked at once for all rows of a group. What
a row returns is checked; a row that fails is named and left, the others go on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from typing import Protocol as Interface

import numpy as np
import torch
from torch import Tensor

from evals.datasets.base import Dataset
from evals.engine.batches import Batcher, Timed, out_of_memory
from evals.engine.guard import PluginError, check_codes, check_images, owned
from evals.engine.isolation import isolated
from evals.engine.ranks import Ranks
from evals.engine.rows import Identity, Row, identify
from evals.engine.seeds import image_seed
from evals.engine.source import Originals, read_chunks
from evals.engine.work import Chunk, Keys
from evals.environment import precision
from evals.metrics.base import Probe
from evals.protocol import Protocol, native_pictures, reconstruction
from evals.store import Cache, StoreError, key_of
from lactok.interface import Codes, Tokenizer, TokenizerInfo, TrainingCompute
from lactok.weights import WeightsError


class Progress(Interface):
    """Where the engine tells how far it is."""

    def start(self, total: int) -> None: ...

    def advance(self, row: str, pictures: int, worked: bool) -> None: ...


@dataclass(frozen=True)
class ProbePlan:
    """A probe to be built when it is first needed. identity: what determines its values, for keys."""

    name: str
    identity: dict[str, Any]
    make: Callable[[torch.device], Probe]
    has_features: bool


@dataclass
class RowWork:
    """A row in execution. status and error as in RowRecord; info and identity are None until they are known.

    metric_errors: why a metric could not be computed for this row, by the metric's name.
    """

    row: Row
    identity: Identity | None = None
    info: TokenizerInfo | None = None
    tokenizer: Tokenizer | None = None
    encode_batch: Batcher | None = None
    decode_batch: Batcher | None = None
    status: str = "ok"
    error: str = ""
    metric_errors: dict[str, str] = field(default_factory=dict)

    def repeats(self, seeds: int) -> list[int | None]:
        """The decodings of a picture: [None] for a deterministic tokenizer, else 0 to seeds - 1."""
        return [None] if self.info.deterministic else list(range(seeds))

    def fail(self, error: BaseException, status: str = "failed") -> None:
        """Leave this row with the reason; what it had finished stays in the store."""
        self.status = status
        self.error = reason_of(error)
        self.tokenizer = None


def reason_of(error: BaseException) -> str:
    """What a table says of an error; the type's name stands before the message of one that is not ours."""
    known = isinstance(error, (PluginError, WeightsError))
    return str(error) if known else f"{type(error).__name__}: {error}"


@dataclass(frozen=True)
class Job:
    """All that the engine needs; see evals/config.py for the settings. shown: dataset indices on the contact sheet."""

    dataset: Dataset
    chunks: Sequence[Chunk]
    rows: Sequence[RowWork]
    probes: Sequence[ProbePlan]
    protocol: Protocol
    keys: Keys
    cache: Cache
    device: torch.device
    precision: str
    batch_size: int
    seeds: int = 1
    resident: int | None = None
    save_pictures: bool = False
    shown: frozenset[int] = frozenset()
    ranks: Ranks = field(default_factory=Ranks)
    built_probes: dict[str, Probe] = field(default_factory=dict)
    probe_batches: dict[str, Batcher] = field(default_factory=dict)

    def probe(self, plan: ProbePlan) -> Probe:
        """The built probe (built once)."""
        if plan.name not in self.built_probes:
            with isolated():
                self.built_probes[plan.name] = plan.make(self.device)
        return self.built_probes[plan.name]

    def probe_batch(self, plan: ProbePlan) -> Batcher:
        """The probe's batches: a size for which memory did not suffice is not tried again."""
        return self.probe_batches.setdefault(plan.name, Batcher(self.batch_size, self.device))


def execute(job: Job, progress: Progress, attempt: int = 0) -> None:
    """Make every piece of the job that the store lacks, together with the other ranks, if any.

    Row failures are noted in job.rows; StoreError and bad pictures are raised. attempt: a number that all ranks share
    and no earlier call of this run had.
    """
    with job.ranks.zero_first(f"rows/{attempt}"):
        for work in job.rows:
            if work.status == "ok":
                _identify(work)
    active = [work for work in job.rows if work.status == "ok"]
    progress.start(len(active) * len(job.chunks))
    size = job.resident or max(1, len(active))
    for work in job.rows:
        if job.ranks.rank == 0 and work.status != "ok":  # another rank, where it is, is not to wait
            with job.ranks.zero_first(_facts(attempt, work)):
                pass
    for first in range(0, len(active), size):
        group = active[first : first + size]
        for work in group:
            _find_facts(work, job, attempt)
        labels = [work.row.label for work in group]
        try:
            _run_group(job, group, progress, f"{attempt}/{key_of(rows=labels)}")
        finally:
            _release(group, job.device)


def _release(group: Sequence[RowWork], device: torch.device) -> None:
    """Free the group's models before the next one's are built, those that hold references to themselves included."""
    for work in group:
        work.tokenizer = None
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _identify(work: RowWork) -> None:
    """Find the row's checkpoints."""
    if work.row.cls is None:
        work.status, work.error = "failed", work.row.error
        return
    try:
        work.identity = identify(work.row)
        _info_key(work)  # fails for an identity that is no plain JSON
    except WeightsError as error:
        work.fail(error, "missing")
    except Exception as error:  # a plugin may fail in any way
        work.fail(error)


def _facts(attempt: int, work: RowWork) -> str:
    return f"facts/{attempt}/{work.row.label}"


def _find_facts(work: RowWork, job: Job, attempt: int) -> None:
    """The row's facts, from the store or from the tokenizer, which is then built; on rank 0 first.

    A model is built when its group starts, so no more than `resident` of them are held.
    """
    known = job.ranks.rank > 0 and job.cache.has("info", _info_key(work))
    with contextlib.nullcontext() if known else job.ranks.zero_first(_facts(attempt, work)):
        try:
            kept = job.cache.read("info", _info_key(work))
            work.info = _info_from(kept.meta) if kept else _told_info(work, job)
            if kept is None:
                job.cache.write("info", _info_key(work), {}, dataclasses.asdict(work.info))
        except WeightsError as error:
            work.fail(error, "missing")
        except StoreError:
            raise
        except Exception as error:  # a plugin's constructor may fail in any way
            work.fail(error)


def _told_info(work: RowWork, job: Job) -> TokenizerInfo:
    tokenizer = _built(work, job)
    with isolated():
        return tokenizer.info


def _info_key(work: RowWork) -> str:
    return key_of(info=work.identity.parts)


def _info_from(meta: dict[str, Any]) -> TokenizerInfo:
    training = TrainingCompute(**meta["training"]) if meta["training"] else None
    vocabulary = tuple(meta["vocabulary"]) if isinstance(meta["vocabulary"], list) else meta["vocabulary"]
    return TokenizerInfo(**{**meta, "training": training, "vocabulary": vocabulary})


def _built(work: RowWork, job: Job) -> Tokenizer:
    if work.tokenizer is None:
        with isolated():
            work.tokenizer = work.row.cls(work.row.options, job.device)
        work.encode_batch = work.encode_batch or Batcher(job.batch_size, job.device)
        work.decode_batch = work.decode_batch or Batcher(job.batch_size, job.device)
    return work.tokenizer


@dataclass
class Missing:
    """What the store lacks of one row for one chunk."""

    work: RowWork
    scores: dict[int | None, list[ProbePlan]]
    contact: bool
    pictures: list[int | None]
    ids: bool

    @property
    def any(self) -> bool:
        return self.contact or self.ids or bool(self.pictures) or any(self.scores.values())

    @property
    def repeats(self) -> list[int | None]:
        """The decodings that are needed."""
        first = self.work.repeats(1)[0]
        return [r for r in self.scores if self.scores[r] or r in self.pictures or (self.contact and r == first)]


def _missing(job: Job, work: RowWork, chunk: Chunk) -> Missing:
    identity, keys, has = work.identity.parts, job.keys, job.cache.has
    repeats = work.repeats(job.seeds)
    probes = [p for p in job.probes if p.name not in work.metric_errors]
    scores = {
        repeat: [p for p in probes if not has(f"scores-{p.name}", keys.scores(chunk, identity, repeat, p.identity))]
        for repeat in repeats
    }
    shown = shown_in(job, chunk)
    contact = bool(shown) and not has("contact", keys.contact(chunk, identity, shown))
    pictures = (
        [r for r in repeats if not has("pictures", keys.pictures(chunk, identity, r))] if job.save_pictures else []
    )
    ids = work.info.ids_per_image is not None and not has("ids", keys.ids(chunk, identity))
    return Missing(work, scores, contact, pictures, ids)


def shown_in(job: Job, chunk: Chunk) -> list[int]:
    """Indices within the chunk of the samples that the contact sheet shows."""
    return [i for i in range(len(chunk)) if chunk.start + i in job.shown]


def remove_damaged(job: Job) -> None:
    """Read every piece that the job's figures are made from; reading removes a damaged one (evals/store.py)."""
    for chunk in job.chunks:
        for plan in job.probes:
            job.cache.read(f"originals-{plan.name}", job.keys.originals(chunk, plan.identity))
        for work in job.rows:
            if work.status == "ok":
                job.cache.read("ids", job.keys.ids(chunk, work.identity.parts))
                for repeat in work.repeats(job.seeds):
                    for plan in job.probes:
                        key = job.keys.scores(chunk, work.identity.parts, repeat, plan.identity)
                        job.cache.read(f"scores-{plan.name}", key)


def _run_group(job: Job, group: list[RowWork], progress: Progress, counter: str) -> None:
    def lacking() -> Iterator[Chunk]:
        for chunk in _claimed(job, counter):
            going = [work for work in group if work.status == "ok"]
            lacks = any(_missing(job, work, chunk).any for work in going)
            if lacks or (going and _originals_lacking(job, chunk, going)):
                yield chunk
            else:
                for work in group:
                    progress.advance(work.row.label, len(chunk), worked=False)

    for originals in read_chunks(job.dataset, lacking(), job.protocol, job.device):
        _run_chunk(job, group, originals, progress)


def _claimed(job: Job, counter: str) -> Iterator[Chunk]:
    """The chunks that fall to this rank: each is some rank's, and no two ranks have the same."""
    while (number := job.ranks.claim(counter)) < len(job.chunks):
        yield job.chunks[number]


def _originals_lacking(job: Job, chunk: Chunk, going: list[RowWork]) -> list[ProbePlan]:
    """The probes of `going` rows whose features of the originals the store lacks."""
    return [
        p
        for p in job.probes
        if p.has_features
        and any(p.name not in work.metric_errors for work in going)
        and not job.cache.has(f"originals-{p.name}", job.keys.originals(chunk, p.identity))
    ]


def _run_chunk(job: Job, group: list[RowWork], originals: Originals, progress: Progress) -> None:
    evaluation = originals.evaluation
    todo = [_missing(job, work, originals.chunk) for work in group if work.status == "ok"]
    made: list[tuple[Missing, int | None, Tensor]] = []
    for missing in todo:
        if missing.any:
            try:
                made.extend((missing, r, p) for r, p in _reconstruct(job, missing, originals, evaluation))
            except StoreError:
                raise
            except Exception as error:  # a plugin may fail in any way; the other rows go on
                missing.work.fail(error)
    for plan in job.probes:
        wanted = [(m, r, p) for m, r, p in made if m.work.status == "ok" and plan in m.scores[r]]
        _score(job, plan, originals.chunk, evaluation, wanted, [work for work in group if work.status == "ok"])
    for work in group:
        progress.advance(work.row.label, len(originals.chunk), worked=True)


def _reconstruct(
    job: Job, missing: Missing, originals: Originals, evaluation: Tensor
) -> Iterator[tuple[int | None, Tensor]]:
    """(repeat, uint8 (B, 3, E, E)) for every decoding that the row lacks a score of; stores ids, contact pictures."""
    work, chunk = missing.work, originals.chunk
    identity = work.identity.parts
    codes = _codes(job, work, originals, evaluation) if missing.ids else None
    for repeat in missing.repeats:
        kept = job.cache.read("pictures", job.keys.pictures(chunk, identity, repeat))
        if kept is not None:
            pictures = torch.from_numpy(kept.arrays["pictures"]).to(job.device)
        else:
            codes = codes if codes is not None else _codes(job, work, originals, evaluation)
            pictures, timed = _decode(job, work, chunk, codes, repeat)
            job.cache.write("timing", job.keys.pictures(chunk, identity, repeat), {}, _timing(timed, chunk))
        if repeat in missing.pictures:
            key = job.keys.pictures(chunk, identity, repeat)
            job.cache.write("pictures", key, {"pictures": pictures.cpu().numpy()}, {})
        if missing.contact and repeat in (None, 0):
            shown = shown_in(job, chunk)
            key = job.keys.contact(chunk, identity, shown)
            job.cache.write("contact", key, {"pictures": pictures[shown].cpu().numpy()}, {"shown": shown})
        yield repeat, pictures


def _timing(timed: Timed, chunk: Chunk) -> dict[str, Any]:
    return {"images": len(chunk), "threads": torch.get_num_threads(), **dataclasses.asdict(timed)}


def _codes(job: Job, work: RowWork, originals: Originals, evaluation: Tensor) -> Codes:
    """The chunk's codes from the store, or encoded now. A continuous autoencoder's latents are not stored."""
    key = job.keys.ids(originals.chunk, work.identity.parts)
    kept = job.cache.read("ids", key)
    if kept is not None:
        return Codes(**{name: torch.from_numpy(array.astype(np.int64)) for name, array in kept.arrays.items()}).to(
            job.device
        )
    tokenizer = _built(work, job)
    native = native_pictures(evaluation, originals.sources, work.info.input_size, job.protocol)

    def encode(part: slice) -> Codes:
        with isolated(), precision(job.precision, job.device):
            return owned(check_codes(tokenizer.encode(native[part].clone()), part.stop - part.start, work.info))

    parts, timed = work.encode_batch.run(len(native), encode)
    codes = Codes.cat(parts)
    if codes.ids is not None:
        arrays = {name: t.cpu().numpy().astype(np.int32) for name, t in codes.tensors().items()}
        job.cache.write("ids", key, arrays, _timing(timed, originals.chunk))
    return codes


def _decode(job: Job, work: RowWork, chunk: Chunk, codes: Codes, repeat: int | None) -> tuple[Tensor, Timed]:
    tokenizer = _built(work, job)
    seeds = [image_seed(job.keys.conditions.seed, repeat or 0, s.content) for s in chunk.samples]
    size = work.info.output_size or job.protocol.eval_size

    def decode(part: slice) -> Tensor:
        with isolated(), precision(job.precision, job.device):
            images = tokenizer.decode(owned(codes[part]), seeds[part])
        return check_images(images, part.stop - part.start, size).clone()

    parts, timed = work.decode_batch.run(len(chunk), decode)
    return torch.cat([reconstruction(p, job.protocol) for p in parts]), timed


def _score(
    job: Job,
    plan: ProbePlan,
    chunk: Chunk,
    evaluation: Tensor,
    wanted: list[tuple[Missing, int | None, Tensor]],
    going: list[RowWork],
) -> None:
    """One probe over the originals (once) and all reconstructions of a chunk; commits values and features.

    Where it fails on a row's reconstructions that row goes without it; where it fails otherwise all `going` rows do.
    """
    keep_originals = plan in _originals_lacking(job, chunk, going)
    if not wanted and not keep_originals:
        return
    try:
        joined, batch = _looks(job, plan, evaluation, [(m.work, pictures) for m, _, pictures in wanted], keep_originals)
    except Exception as error:  # a metric may fail in any way; the others go on
        for work in going:
            work.metric_errors.setdefault(plan.name, reason_of(error))
        return
    if keep_originals:
        job.cache.write(f"originals-{plan.name}", job.keys.originals(chunk, plan.identity), joined[0], {})
    for (missing, repeat, _), arrays in zip(wanted, joined[1:], strict=True):
        if plan.name not in missing.work.metric_errors:
            key = job.keys.scores(chunk, missing.work.identity.parts, repeat, plan.identity)
            job.cache.write(f"scores-{plan.name}", key, arrays, {"batch": min(batch, len(chunk))})


def _looks(
    job: Job, plan: ProbePlan, evaluation: Tensor, wanted: list[tuple[RowWork, Tensor]], keep_originals: bool
) -> tuple[list[dict[str, np.ndarray]], int]:
    """Arrays of the originals ({} without `keep_originals`), then of each reconstruction; and the batch size.

    {} for a row on whose reconstructions the probe failed, which is noted in the row. Raises what the probe raises
    otherwise.
    """
    probe = job.probe(plan)

    def compare(view: Any, pictures: Tensor) -> dict[str, Tensor]:
        seen = probe.view(pictures)
        arrays = dict(probe.compare(view, seen))
        if plan.has_features:
            arrays["features"] = probe.features(seen)
        return arrays

    def look(part: slice) -> list[dict[str, Tensor]]:
        with isolated(), precision("fp32", job.device):
            view = probe.view(evaluation[part])
            found = [{"features": probe.features(view)} if keep_originals else {}]
            for work, pictures in wanted:
                found.append({})
                if plan.name not in work.metric_errors:
                    try:
                        with isolated():
                            found[-1] = compare(view, pictures[part])
                    except Exception as error:  # a metric may fail in any way
                        if out_of_memory(error):
                            raise
                        work.metric_errors[plan.name] = reason_of(error)
            return found

    parts, timed = job.probe_batch(plan).run(len(evaluation), look)
    return [_joined([part[i] for part in parts]) for i in range(len(wanted) + 1)], timed.batch


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, np.ndarray]:
    """Arrays of the batches put together; {} where one of the batches has none."""
    return {name: torch.cat([p[name] for p in parts]).cpu().numpy() for name in parts[0]} if all(parts) else {}
