"""Calls of one tokenizer's encoder and decoder: what they compute, and the batch at which a GPU is full."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measuring import Settings, call_times
from benchmarks.tokenizer_networks import Subject
from evals.engine.environment import precision
from lactok.interface import Latents, Tokens

PARTS = ("encode", "decode")
RISE = 1.03
"""A doubling that gains less than this ends the search for the batch."""
LARGEST_BATCH = 1024
LONGEST = 4.0
"""Seconds of a call after which no larger batch is tried."""


class Work:
    """The calls of one subject; inputs are made once a batch size."""

    def __init__(self, subject: Subject, settings: Settings) -> None:
        self.subject, self.settings = subject, settings
        size = 1, 3, subject.side, subject.side
        self.image = torch.rand(size, generator=torch.Generator().manual_seed(0)).to(settings.device)
        self._encoded: Tokens | Latents | None = None

    def call(self, part: str, batch: int, numbers: str | None = None) -> Callable[[], object]:
        """A call of `part` on `batch` images, in the settings' precision where no other is named."""
        tokenizer = self.subject.tokenizer
        if part == "encode":
            images = self.image.repeat(batch, 1, 1, 1)
            run = lambda: tokenizer.encode(images)  # noqa: E731
        else:
            if self._encoded is None:
                with precision(self.settings.precision, self.settings.device):  # as the weights may be held in it
                    self._encoded = tokenizer.encode(self.image)
            encoded, seeds = type(self._encoded).cat([self._encoded] * batch), list(range(batch))
            run = lambda: tokenizer.decode(encoded, seeds)  # noqa: E731

        def within() -> object:
            with precision(numbers or self.settings.precision, self.settings.device):
                return run()

        return within

    def flops(self, part: str) -> int:
        """Of one image, counted in float32: the counter takes products apart, past what autocast does to them."""
        call = self.call(part, 1, "fp32")
        with FlopCounterMode(display=False) as counter:
            call()
        return counter.get_total_flops()

    def best_batch(self, part: str, largest: int = LARGEST_BATCH) -> tuple[int, str]:
        """The batch after which doubling no longer pays, and why the search ended. Not compiled: it would take long."""
        best, rate, batch = 1, 0.0, 1
        while batch <= largest:
            try:
                call = self.call(part, batch)
                call_times(call, self.settings.device, 0)
                times = call_times(call, self.settings.device, self.settings.seconds)
            except RuntimeError as error:  # of memory, or of a kernel's largest tensor
                if batch == 1:
                    raise
                return best, f"{batch} does not fit: {str(error).splitlines()[0]}"
            finally:
                call = None
                if self.settings.device.type == "cuda":
                    torch.cuda.empty_cache()
            seen = batch / statistics.median(times)
            if seen < RISE * rate:
                return best, f"{batch} gives {seen:.4g} images/s, {best} gives {rate:.4g}, not compiled"
            best, rate, batch = batch, seen, 2 * batch
            if min(times) > LONGEST:
                return best, f"a call of {best} takes {min(times):.1f} s, longer ones are not tried"
        return best, f"{largest} is the largest that is tried"
