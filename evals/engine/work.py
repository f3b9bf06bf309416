"""The unit of work (a fixed chunk of consecutive samples) and the key of every piece that is made from it.

A key holds what determines a piece's content and nothing else: the pictures, the protocol's fields that the step
depends on, the tokenizer's identity, the row's conditions, and the step's version. Raise a version when the step gives
another result for the same inputs; tests/test_pinned.py fails when a result changes and its version does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evals.datasets.base import Sample
from evals.protocol import Protocol
from evals.store import key_of

# Samples a chunk: resume and sharding act on whole chunks. 16 pictures of 1024 px decode in minutes even where a
# decoder takes seconds a picture, and fill a batch on a GPU.
CHUNK = 16

# Versions of the engine's own steps (see the module's docstring).
EVALUATION_STEP = 1  # source to evaluation picture
ENCODE_STEP = 1  # evaluation picture to ids
DECODE_STEP = 1  # ids to uint8 reconstruction
SCORE_STEP = 1  # uint8 pair to per-image values and features


@dataclass(frozen=True)
class Chunk:
    """Consecutive samples. start: index of the first one in the dataset's order."""

    start: int
    samples: tuple[Sample, ...]

    def __len__(self) -> int:
        return len(self.samples)


def chunks_of(samples: Sequence[Sample]) -> list[Chunk]:
    """The dataset cut into chunks of CHUNK samples; the last one may be shorter."""
    return [Chunk(i, tuple(samples[i : i + CHUNK])) for i in range(0, len(samples), CHUNK)]


@dataclass(frozen=True)
class Conditions:
    """What is no convention but a condition of a row: device type, precision, and the seed of its decoder's noise."""

    device: str
    precision: str
    seed: int


@dataclass(frozen=True)
class Keys:
    """Keys of the pieces of one run; every method is a pure function of its arguments and of these two."""

    protocol: Protocol
    conditions: Conditions

    def evaluation(self, chunk: Chunk) -> dict[str, Any]:
        """What determines the evaluation pictures of a chunk."""
        return {
            "content": [s.content for s in chunk.samples],
            "protocol": self.protocol.evaluation_fields,
            "step": EVALUATION_STEP,
        }

    def originals(self, chunk: Chunk, probe: dict[str, Any]) -> str:
        """Feature rows of the originals, shared by all tokenizers."""
        return key_of(evaluation=self.evaluation(chunk), probe=probe, device=self.conditions.device, step=SCORE_STEP)

    def _encoded(self, chunk: Chunk, identity: dict[str, Any]) -> dict[str, Any]:
        return {
            "evaluation": self.evaluation(chunk),
            "native": self.protocol.native_fields,
            "tokenizer": identity,
            "device": self.conditions.device,
            "precision": self.conditions.precision,
            "step": ENCODE_STEP,
        }

    def ids(self, chunk: Chunk, identity: dict[str, Any]) -> str:
        """The ids of a chunk's pictures."""
        return key_of(**self._encoded(chunk, identity))

    def _decoded(self, chunk: Chunk, identity: dict[str, Any], repeat: int | None) -> dict[str, Any]:
        return {
            "encoded": self._encoded(chunk, identity),
            "back": self.protocol.back_fields,
            "noise": None if repeat is None else [self.conditions.seed, repeat],
            "step": DECODE_STEP,
        }

    def pictures(self, chunk: Chunk, identity: dict[str, Any], repeat: int | None) -> str:
        """The uint8 reconstructions. repeat: which decoding; None for a deterministic tokenizer."""
        return key_of(**self._decoded(chunk, identity, repeat))

    def contact(self, chunk: Chunk, identity: dict[str, Any], repeat: int | None, shown: Sequence[int]) -> str:
        """The reconstructions of the samples (indices in the chunk) that the contact sheet shows."""
        return key_of(decoded=self._decoded(chunk, identity, repeat), shown=list(shown))

    def scores(self, chunk: Chunk, identity: dict[str, Any], repeat: int | None, probe: dict[str, Any]) -> str:
        """A probe's per-image values and feature rows of the reconstructions."""
        return key_of(decoded=self._decoded(chunk, identity, repeat), probe=probe, step=SCORE_STEP)
