"""Images' ids from a `GPT` and prompts: `generate`, and `IdGenerator`, which keeps its buffers between calls.

A row of the batch is a prompt's; under guidance its conditional and its unconditional sequence are neighbours in one
pass. A row whose image is finished takes the next prompt, whatever the others are doing. Nothing is left in the model.
Guidance and masks as published (FoundationVision/LlamaGen, autoregressive/models/generate.py): the unconditional
half has the caption's mask.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lactok.models.gpt import GPT, TEXT
from lactok.models.gpt_cache import MULTIPLE, TEXT_SLOTS, BlockStep, Cache, block_step, id_turns, prefill, step
from lactok.models.gpt_sampling import Sampling, draw, guide, probabilities, prompt_numbers

LENGTHS = 4
"""Lengths of the cache that a compiled or recorded step is made for; one that is neither reads what it needs."""

POLL = 1
"""Steps until a source that had no prompt is asked again."""


@dataclass(frozen=True)
class Prompt:
    """What one image is made of.

    condition: states of a caption (L, caption_dim), left-padded with zeros, or a class, int64 ().
    seen: bool or int (L,), nonzero where the caption is; None: everywhere, padding too. seed: 63-bit integer >= 0.
    """

    condition: Tensor
    seen: Tensor | None = None
    seed: int = 0


Source = Iterable[Prompt | None]
"""Prompts in order; None says that there is none at the moment, and the source is asked again some steps later."""


class IdGenerator:
    """Generates ids with one cache, kept from call to call.

    batch: most prompts at a time. compiled: torch.compile takes the blocks' part of the step. recorded: CUDA graphs of
    the step are recorded and replayed, at the full batch; on CUDA alone (ValueError elsewhere). backend: of
    torch.compile.

    Raises ValueError for guidance of a model that has no unconditional embedding.
    """

    def __init__(
        self,
        model: GPT,
        batch: int,
        sampling: Sampling | None = None,
        *,
        compiled: bool = False,
        recorded: bool = False,
        backend: str = "inductor",
    ) -> None:
        self.model, self.batch, self.sampling = model, batch, sampling or Sampling()
        config, device = model.config, model.output.weight.device
        if batch < 1:
            raise ValueError(f"batch {batch}: expected at least 1")
        if self.sampling.guided and not config.has_unconditional:
            raise ValueError("guidance needs an unconditional embedding, which class_dropout_prob 0 leaves out")
        if recorded and device.type != "cuda":
            raise ValueError(f"CUDA graphs on {device.type}: expected a model on a CUDA device")
        self.halves = 2 if self.sampling.guided else 1
        self.cache = Cache(model, batch * self.halves)
        self._turn = id_turns(model)
        self._at = torch.zeros(batch, dtype=torch.int64, device=device)
        self._ids = torch.zeros(batch, config.block_size, dtype=torch.int64, device=device)
        self._numbers = torch.zeros(batch, config.block_size, dtype=torch.float64, device=device)
        self._fixed = compiled or recorded
        slots = math.ceil(self.cache.slots / LENGTHS / MULTIPLE) * MULTIPLE if self._fixed else MULTIPLE
        self._lengths = [*range(slots, self.cache.slots, slots), self.cache.slots]
        self._graphs: dict[int, torch.cuda.CUDAGraph] | None = {} if recorded else None
        self._through: BlockStep = block_step
        if compiled:  # a block, not the step: all blocks are alike, and are compiled once for each length
            self._through = torch.compile(block_step, dynamic=False, backend=backend)

    @torch.no_grad()
    def stream(self, prompts: Source) -> Iterator[tuple[int, Tensor]]:
        """(place among the prompts, ids int64 (N,) row by row, on the model's device) of each image when it is done.

        Prompts are taken when a row is free for them. Raises ValueError for a prompt of another shape.
        """
        was_training = self.model.training
        self.model.eval()
        try:
            yield from self._stream(iter(prompts))
        finally:
            self.model.train(was_training)

    def _stream(self, source: Iterator[Prompt | None]) -> Iterator[tuple[int, Tensor]]:
        last = self.model.config.block_size - 1
        rows: dict[int, tuple[int, int]] = {}  # row: place of its prompt, place of its latest id
        taken, open_ = 0, True
        while open_ or rows:
            new: dict[int, Prompt] = {}
            waiting = False
            for row in (row for row in range(self.batch) if row not in rows):
                try:
                    prompt = next(source) if open_ else None
                except StopIteration:
                    open_ = False
                    break
                if prompt is None:
                    waiting = open_
                    break
                new[row], rows[row] = prompt, (taken, 0)
                taken += 1
            if new:
                self._begin(list(new), list(new.values()))
            if not rows:
                continue
            steps = min(last - at for _, at in rows.values())
            steps = min(steps, POLL) if waiting else steps
            for number in range(steps):
                self._go(max(rows) + 1, 1 + number + max(at for _, at in rows.values()))
            for row, (place, at) in sorted(rows.items()):
                rows[row] = (place, at + steps)
                if at + steps == last:
                    del rows[row]
                    yield place, self._ids[row].clone()

    def _begin(self, rows: Sequence[int], prompts: Sequence[Prompt]) -> None:
        """Prefixes and first ids of prompts, into these rows."""
        device, sampling = self._at.device, self.sampling
        index = torch.tensor(rows, device=device)
        condition, seen = gather(self.model, prompts)
        first = _first_seen(prompts)
        prefix, seen = self.model.prefix(condition)[:, first:], seen[:, first:]
        if sampling.guided:
            nothing = self.model.prefix(condition, torch.ones(len(rows), dtype=torch.bool, device=device))[:, first:]
            prefix = torch.stack([prefix, nothing], 1).flatten(0, 1)
        rows_of = (index[:, None] * self.halves + torch.arange(self.halves, device=device)).flatten()
        logits = prefill(self.model, self.cache, rows_of, prefix, seen.repeat_interleave(self.halves, 0))
        count = self.model.config.block_size
        self._numbers[index] = torch.stack([prompt_numbers(prompt.seed, count) for prompt in prompts]).to(device)
        self._ids[index, 0] = self._draw(logits, self._numbers[index, 0], None)
        self._at[index] = 0

    def _draw(self, logits: Tensor, numbers: Tensor, at: Tensor | None) -> Tensor:
        """Ids (B,) of the logits of both halves. at: the step of each after the prefix; None: of the prefix."""
        sampling = self.sampling
        if sampling.guided:
            conditional, unconditional = logits.view(-1, 2, logits.shape[-1]).unbind(1)
            logits = guide(conditional, unconditional, sampling.guidance_scale)
            if at is not None and sampling.guidance_interval >= 0:
                logits = torch.where((at <= sampling.guidance_interval)[:, None], logits, conditional)
        return draw(probabilities(logits, sampling), numbers)

    def _advance(self, count: int, length: int) -> None:
        """One id more in each of the first `count` rows; one that has them all gets its last one anew."""
        at = self._at[:count].clamp(max=self._ids.shape[1] - 2)
        rows = torch.arange(count, device=at.device)
        fed, place = self._ids[rows, at], at
        if self.halves == 2:
            fed, place = fed.repeat_interleave(2), at.repeat_interleave(2)
        logits = step(self.model, self.cache, fed, place, self._turn, length, self._through)
        self._ids[rows, at + 1] = self._draw(logits, self._numbers[rows, at + 1], at)
        self._at[:count] = at + 1

    def _go(self, count: int, latest: int) -> None:
        """A step of the first `count` rows; latest: place of the id that the foremost of them gets."""
        length = next(length for length in self._lengths if length >= TEXT_SLOTS + latest)
        count = self.batch if self._fixed else count
        if self._graphs is None:
            self._advance(count, length)
        else:
            if length not in self._graphs:
                self._graphs[length] = self._record(count, length)
            self._graphs[length].replay()

    def _record(self, count: int, length: int) -> torch.cuda.CUDAGraph:
        """A graph of the step; what the steps before the recording change is put back, or written anew by a replay."""
        state = self._at.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self._advance(count, length)
                self._at.copy_(state)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._advance(count, length)
        return graph


def _first_seen(prompts: Sequence[Prompt]) -> int:
    """The first position that any of the prompts sees: padding before it reaches no id. The last one always counts."""
    if any(prompt.seen is None for prompt in prompts):
        return 0
    seen = torch.stack([prompt.seen.bool().cpu() for prompt in prompts if prompt.seen is not None]).any(0)
    seen[-1] = True
    return int(seen.int().argmax())


def gather(model: GPT, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
    """Conditions (B, L, caption_dim) or (B,) of prompts, and where they are seen, bool (B, L), on the model's device.

    Raises ValueError for a prompt of another shape.
    """
    config, device = model.config, model.output.weight.device
    shape = (config.cls_token_num, config.caption_dim) if config.model_type == TEXT else ()
    for prompt in prompts:
        if prompt.condition.shape != shape:
            raise ValueError(f"a condition of shape {tuple(prompt.condition.shape)}, expected {shape}")
        if prompt.seen is not None and prompt.seen.shape != (config.cls_token_num,):
            raise ValueError(f"seen of shape {tuple(prompt.seen.shape)}, expected ({config.cls_token_num},)")
    everywhere = torch.ones(config.cls_token_num, dtype=torch.bool)
    seen = [everywhere if prompt.seen is None else prompt.seen.bool().cpu() for prompt in prompts]
    return torch.stack([prompt.condition.to(device) for prompt in prompts]), torch.stack(seen).to(device)


def generate(
    model: GPT, prompts: Sequence[Prompt], sampling: Sampling | None = None, batch: int = 16, *, compiled: bool = False
) -> Tensor:
    """Ids int64 (len(prompts), N) of the prompts' images, in their order, on the model's device.

    batch: most prompts at a time. compiled: torch.compile takes the step. On CUDA the step is recorded as a graph.
    """
    ids = torch.zeros(len(prompts), model.config.block_size, dtype=torch.int64, device=model.output.weight.device)
    if prompts:
        batch = min(batch, len(prompts))
        generator = IdGenerator(model, batch, sampling, compiled=compiled, recorded=ids.is_cuda)
        for place, found in generator.stream(prompts):
            ids[place] = found
    return ids
