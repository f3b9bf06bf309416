"""What a generator trains on: token ids and captions from the shards of `recipe=tokens`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import sha256

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from lactok.data.batches import SampleOrder, by_folder, rng
from lactok.data.folder import DataError
from lactok.data.token_shards import TokenShards
from lactok.train.config import TrainConfig
from lactok.train.data import Share, TrainingData, step_seeds
from lactok.train.recipe import Recipe
from lactok.train.sheet import SHOWN

HELD_BACK = 5
"""RNG stream that says which samples are held back."""


@dataclass(frozen=True)
class TokenBatch:
    """One micro-batch. ids: int64 (B, N); captions: of each; seeds, step: as in `lactok.train.recipe.Batch`.

    states: float (B, L, D), left-padded with zeros, of captions whose features were extracted, with seen, bool (B, L);
    else None, both.
    """

    ids: Tensor
    captions: tuple[str, ...]
    seeds: tuple[int, ...]
    step: int
    states: Tensor | None = None
    seen: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> TokenBatch:
        """On a device."""
        states, seen = (None if part is None else part.to(device) for part in (self.states, self.seen))
        return replace(self, ids=self.ids.to(device), states=states, seen=seen)

    def __getitem__(self, rows: slice) -> TokenBatch:
        states, seen = (None if part is None else part[rows] for part in (self.states, self.seen))
        return TokenBatch(self.ids[rows], self.captions[rows], self.seeds[rows], self.step, states, seen)


class TokenData(TrainingData):
    """Samples of one folder of shards or of several, which one tokenizer and one text encoder made."""

    unit = "token samples"

    def __init__(self, parts: Sequence[TokenShards]) -> None:
        """Raises DataError for folders of which each was made by something else."""
        self.parts = list(parts)
        self.index = first = parts[0].index
        for part in parts[1:]:
            for what in ("tokenizer", "tokens", "codebook_size", "vq", "text_encoder"):
                seen, expected = getattr(part.index, what), getattr(first, what)
                if seen != expected:
                    raise DataError(
                        f"data.root: {part.folder} has {what} {seen or 'none'}, {parts[0].folder} "
                        f"{expected or 'none'}: expected folders of one kind"
                    )
        self._counts = [len(part) for part in parts]
        self._ends = np.cumsum(self._counts)
        self._pool: ThreadPoolExecutor | None = None

    @classmethod
    def open(cls, config: TrainConfig) -> TokenData:
        """The shards below data.root. Raises DataError."""
        return cls([TokenShards(root) for root in config.data.roots])

    @property
    def fingerprint(self) -> str:
        """Over the indices, which have the sha256 of every shard."""
        return sha256(json.dumps([asdict(part.index) for part in self.parts], sort_keys=True).encode()).hexdigest()

    @property
    def of_what(self) -> str:
        return "sha256 of the folders' indices, which have that of every shard"

    def __len__(self) -> int:
        return int(self._ends[-1])

    def begin(self, recipe: Recipe, config: TrainConfig, share: Share) -> None:
        count, held = len(self), config.data.validation
        if held >= count:
            raise DataError(
                f"data.root holds {count} samples, data.validation={held} of them held back: none is left to train on"
            )
        back = np.sort(rng(HELD_BACK).permutation(count)[:held])
        training = np.setdiff1d(np.arange(count), back)
        weights = config.data.weights
        folders = by_folder(training, self._counts) if weights else [training]
        if weights and not all(len(indices) for indices in folders):
            raise DataError("data.root: all samples of a folder are held back; leave it out, or lower data.validation")
        self._order = SampleOrder(folders, config.seed, weights or (1.0,))
        self._seed, self._share, self._steps = config.seed, share, config.steps
        self._pool = ThreadPoolExecutor(1)
        self._waiting: tuple[int, Future[list[TokenBatch]]] | None = None
        self.measured = self._gather(back.tolist(), [0] * held, 0)
        self.shown = self.measured[:SHOWN]

    def at(self, step: int) -> list[TokenBatch]:
        assert self._pool is not None, "begin was not called"
        batches = self._waiting[1].result() if self._waiting and self._waiting[0] == step else self._made(step)
        if step + 1 < self._steps:
            self._waiting = step + 1, self._pool.submit(partial(self._made, step + 1))
        return [batch.to(self._share.device) for batch in batches]

    def _made(self, step: int) -> list[TokenBatch]:
        first = step * self._share.per_step
        return [
            self._gather([self._order.at(first + i) for i in rows], step_seeds(self._seed, step, rows), step)
            for rows in self._share.rows
        ]

    def _gather(self, places: Sequence[int], seeds: Sequence[int], step: int) -> TokenBatch:
        samples = []
        for place in places:
            part = int(np.searchsorted(self._ends, place, side="right"))
            samples.append(self.parts[part][place - (int(self._ends[part - 1]) if part else 0)])
        ids = torch.stack([sample.ids for sample in samples]).long()
        batch = TokenBatch(ids, tuple(sample.caption for sample in samples), tuple(seeds), step)
        found = [sample.states for sample in samples if sample.states is not None]
        if not found:
            return batch
        length = self.index.positions
        states = torch.stack([pad(one, (0, 0, length - len(one), 0)) for one in found])
        seen = torch.stack([torch.arange(length) >= length - len(one) for one in found])
        return replace(batch, states=states, seen=seen)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
