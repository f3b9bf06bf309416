"""Reconstruction: an image is encoded and decoded, and the result is scored against the image itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from evals.datasets.base import ImageDataset
from evals.engine.batches import Timed
from evals.engine.checks import check_encoded, check_image_list, check_images
from evals.engine.job import Artifact, Chunk
from evals.engine.models import Called, ModelRun
from evals.engine.store import Cache
from evals.tasks.base import Batch, Outputs, Task, plain
from evals.tasks.protocol import Filter, ReconstructionProtocol
from lactok.interface import (
    Item,
    ItemsRefused,
    Latents,
    Recorded,
    RecordedInfo,
    Tokenizer,
    TokenizerInfo,
    Tokens,
    asks_for_items,
    with_items,
)
from lactok.items import item_seed

# Versions of the steps: raise one when the same inputs give another result.
EVALUATION_STEP = 1  # source to evaluation image
ENCODE_STEP = 1  # evaluation image to tokens
DECODE_STEP = 1  # tokens to uint8 reconstruction
RECORDED_STEP = 3  # an image that was made elsewhere to uint8
# Pillow's decoding and resizing release the interpreter's lock.
THREADS = 4


@dataclass(frozen=True)
class _Encoded:
    """A batch's tokens or latents. positions: of the items in the batch that they belong to, in order."""

    encoded: Tokens | Latents
    positions: list[int]
    refused: dict[int, str]


class Reconstruction(Task):
    """round_trips: how often an image passes through the tokenizer; the images of the last one are scored."""

    name = "reconstruction"
    takes = (Tokenizer, Recorded)
    dataset_kind = ImageDataset
    has_references = True
    protocol: ReconstructionProtocol
    output_step, unit = "decode", "images"
    max_refused = "1%"  # a tokenizer that leaves out its hardest images would look better than it is

    def __init__(self, dataset: ImageDataset, protocol: ReconstructionProtocol, round_trips: int = 1) -> None:
        self.dataset, self.protocol, self.round_trips = dataset, protocol, round_trips
        self._pool = ThreadPoolExecutor(THREADS)

    @property
    def parameters(self) -> dict[str, Any]:
        return {} if self.round_trips == 1 else {"round_trips": self.round_trips}

    def image_side(self) -> int:
        return self.protocol.eval_size

    def inputs(self, chunk: Chunk) -> Artifact:
        content = [item.content_hash for item in chunk.items]
        params = {"content": content, "protocol": self.protocol.evaluation_fields, "step": EVALUATION_STEP}
        return Artifact("references", params)

    def load(self, chunk: Chunk) -> Batch:
        read = list(self._pool.map(self._read, chunk.items))
        sources = [source for _, source, _ in read if source is not None]
        return Batch(chunk, to_tensor([evaluation for evaluation, _, _ in read]), sources, [size for *_, size in read])

    def _read(self, item: Item) -> tuple[np.ndarray, np.ndarray | None, tuple[int, int]]:
        """The evaluation image, the source where it is needed later, and the source's height and width."""
        source = self.dataset.read(item)
        kept = source if self.protocol.native_from == "source" else None
        return evaluation_image(source, self.protocol), kept, (source.shape[0], source.shape[1])

    def tokens(self, run: ModelRun, chunk: Chunk) -> Artifact | None:
        info = run.info
        stored = isinstance(info, TokenizerInfo) and info.tokens_per_image is not None
        return self._encoding(run, self.inputs(chunk), chunk) if stored else None

    def _encoding(self, run: ModelRun, images: Artifact, chunk: Chunk) -> Artifact:
        params = {"native": self.protocol.native_fields, "step": ENCODE_STEP} | _told(run, "encode", chunk)
        if isinstance(run.info, TokenizerInfo) and _id_type(run.info) is np.int64:
            params["ids"] = "int64"
        return Artifact("tokens", params, (images, run.node))

    def images(self, run: ModelRun, chunk: Chunk, seed_index: int) -> Artifact:
        params: dict[str, Any] = {
            "backward": self.protocol.backward_fields,
            "noise": run.noise(seed_index),
            "step": RECORDED_STEP if isinstance(run.info, RecordedInfo) else DECODE_STEP,
        } | _told(run, "decode", chunk)
        images = self.inputs(chunk)
        for _ in range(self.round_trips):
            images = Artifact("images", params, (self._encoding(run, images, chunk),))
        return images

    def run(self, run: ModelRun, batch: Batch, seed_indices: Sequence[int], cache: Cache) -> Iterator[Outputs]:
        """The reconstructions of each seed index; the first encoding serves all of them."""
        assert batch.references is not None
        if isinstance(run.built(), Recorded):
            for seed_index in seed_indices:
                yield self._recorded(run, batch, seed_index)
            return
        artifact = self.tokens(run, batch.chunk)
        encoded = self._stored(artifact, batch, run, cache) or self._encode(
            run, batch.references, batch, artifact, cache
        )
        for seed_index in seed_indices:
            yield next(islice(self._trips(run, batch, encoded, seed_index, cache), self.round_trips - 1, None))

    def _trips(
        self, run: ModelRun, batch: Batch, encoded: _Encoded, seed_index: int, cache: Cache
    ) -> Iterator[Outputs]:
        """The reconstructions of `encoded`, then those of these images, and so on without end."""
        while True:
            outputs = self._decode(run, batch, encoded, seed_index)
            yield outputs
            assert isinstance(outputs.images, Tensor)
            encoded = self._encode(run, outputs.images, batch, None, cache, without=outputs.refused)

    def round_trip(self, run: ModelRun, batch: Batch, count: int, cache: Cache) -> Iterator[Outputs]:
        """Of seed index 0; none of images that were made elsewhere."""
        if isinstance(run.built(), Recorded):
            return
        assert batch.references is not None
        encoded = self._encode(run, batch.references, batch, None, cache)
        yield from islice(self._trips(run, batch, encoded, 0, cache), count)

    def calls(self, run: ModelRun, batch: Batch) -> Mapping[str, Callable[[], Any]]:
        """encode, of the native image, and decode, of what that gave."""
        tokenizer, info = run.built(), run.info
        if not isinstance(info, TokenizerInfo):
            return {}
        assert batch.references is not None
        native = native_images(batch.references, batch.sources, info.input_size, self.protocol)
        seeds = self._seeds(run, batch.chunk, 0)
        encoded: list[Tokens | Latents] = []
        encode, decode = (with_items(call, batch.chunk.items) for call in (tokenizer.encode, tokenizer.decode))
        return {
            "encode": lambda: encoded.append(encode(native.clone())),
            "decode": lambda: decode(encoded[0], seeds),
        }

    def _stored(self, artifact: Artifact | None, batch: Batch, run: ModelRun, cache: Cache) -> _Encoded | None:
        entry = cache.read(artifact) if artifact is not None else None
        if entry is None:
            return None
        device = run.conditions.device
        ids = torch.from_numpy(entry.arrays["ids"].astype(np.int64))
        lengths = entry.arrays.get("lengths")
        tokens = Tokens(ids, None if lengths is None else torch.from_numpy(lengths.astype(np.int64)))
        refused = {int(place): reason for place, reason in entry.meta["refused"].items()}
        positions = [p for p in range(len(batch.chunk)) if p not in refused]
        return _Encoded(tokens[positions].to(device) if refused else tokens.to(device), positions, refused)

    def _encode(
        self,
        run: ModelRun,
        images: Tensor,
        batch: Batch,
        artifact: Artifact | None,
        cache: Cache,
        without: Mapping[int, str] | None = None,
    ) -> _Encoded:
        """Stores tokens as `artifact`. images: uint8 (B, 3, E, E); without: positions that an earlier step refused."""
        info = run.info
        assert isinstance(info, TokenizerInfo)
        tokenizer = run.built()
        protocol = self.protocol
        if images is not batch.references:  # a later round trip: there is no source of these images
            protocol = dataclasses.replace(protocol, native_from="evaluation")
        native = native_images(images, batch.sources, info.input_size, protocol)
        earlier = dict(without or {})
        positions = [p for p in range(len(batch.chunk)) if p not in earlier]

        def encode(wanted: list[int]) -> Any:
            call = with_items(tokenizer.encode, [batch.chunk.items[p] for p in wanted])
            return call(pick(native, wanted).clone())

        called: Called[Tokens | Latents] = run.call(
            "encode", batch.chunk.items, positions, encode, lambda result, count: check_encoded(result, count, info)
        )
        refused = earlier | called.refused
        kept = [place for part, _ in called.parts for place in part]
        encoded: Tokens | Latents
        if called.parts:
            encoded = _joined([part for _, part in called.parts])
        else:  # all refused: how many tokens an image has is not known
            encoded = Latents(torch.empty(0)) if artifact is None else Tokens(torch.empty(0, 0, dtype=torch.int64))
        if artifact is not None and isinstance(encoded, Tokens):
            full = _spread(encoded, kept, len(batch.chunk)) if refused else encoded
            arrays = {"ids": full.ids.cpu().numpy().astype(_id_type(info))}
            if full.lengths is not None:
                arrays["lengths"] = full.lengths.cpu().numpy().astype(np.int32)
            meta = {"images": len(kept), "refused": {str(p): why for p, why in refused.items()}, **plain(called.timed)}
            cache.write(artifact, arrays, meta)
        return _Encoded(encoded, kept, refused)

    def _decode(self, run: ModelRun, batch: Batch, encoded: _Encoded, seed_index: int) -> Outputs:
        info = run.info
        assert isinstance(info, TokenizerInfo)
        assert batch.references is not None
        tokenizer, size = run.built(), info.output_size or self.protocol.eval_size
        seeds = self._seeds(run, batch.chunk, seed_index)
        place_of = {position: place for place, position in enumerate(encoded.positions)}

        def decode(wanted: list[int]) -> Any:
            rows = [place_of[p] for p in wanted]
            call = with_items(tokenizer.decode, [batch.chunk.items[p] for p in wanted])
            return call(encoded.encoded[_as_slice(rows)].owned(), [seeds[p] for p in wanted])

        def consume(result: Any, count: int) -> Tensor:
            return scored_images(check_images(result, count, size), self.protocol)

        called = run.call("decode", batch.chunk.items, encoded.positions, decode, consume)
        return _outputs(called, batch.references, encoded.refused | called.refused, called.timed)

    def _recorded(self, run: ModelRun, batch: Batch, seed_index: int) -> Outputs:
        model, items, info = run.built(), batch.chunk.items, run.info
        assert isinstance(model, Recorded)
        assert isinstance(info, RecordedInfo)
        assert batch.references is not None

        model.colour = self.protocol.colour

        def images(wanted: list[int]) -> list[Tensor]:
            found = model.images([items[p] for p in wanted], [seed_index] * len(wanted))
            checked = check_image_list(found, len(wanted), "images")
            sized = [
                recorded_image(image, batch.sizes[p], self.protocol, info.any_size)
                for image, p in zip(checked, wanted, strict=True)
            ]
            if wrong := {place: image for place, image in enumerate(sized) if isinstance(image, str)}:
                raise ItemsRefused(wrong)
            return [image for image in sized if isinstance(image, Tensor)]

        called = run.call("images", items, range(len(items)), images, lambda result, _: torch.stack(result))
        return _outputs(called, batch.references, called.refused, called.timed)

    def _seeds(self, run: ModelRun, chunk: Chunk, seed_index: int) -> list[int]:
        return [item_seed(run.conditions.seed, seed_index, item.content_hash) for item in chunk.items]


def _id_type(info: TokenizerInfo) -> type[np.int32] | type[np.int64]:
    """That stored ids have."""
    sizes = info.codebook_size if isinstance(info.codebook_size, tuple) else (info.codebook_size or 0,)
    return np.int32 if max(sizes) <= 2**31 else np.int64


def _told(run: ModelRun, call: str, chunk: Chunk) -> dict[str, Any]:
    """What of a key a model's `encode` or `decode` adds that asks for items: their names and what is known of them."""
    if not asks_for_items(getattr(run.kind, call, None)):
        return {}
    return {"items": [[item.id, item.cluster, dict(item.tags), dict(item.metadata)] for item in chunk.items]}


def _outputs(called: Called[Tensor], references: Tensor, refused: dict[int, str], timed: Timed) -> Outputs:
    if not refused:
        return Outputs(torch.cat([images for _, images in called.parts]), refused, timed)
    images = torch.zeros_like(references)
    for positions, part in called.parts:
        images[positions] = part.to(images.device)
    return Outputs(images, refused, timed)


def _joined(parts: list[Tokens | Latents]) -> Tokens | Latents:
    tokens = [p for p in parts if isinstance(p, Tokens)]
    return (
        Tokens.cat(tokens) if len(tokens) == len(parts) else Latents.cat([p for p in parts if isinstance(p, Latents)])
    )


def _spread(tokens: Tokens, positions: list[int], count: int) -> Tokens:
    """Tokens of `count` items from those at `positions`; 0 for the others."""
    ids = tokens.ids.new_zeros((count, *tokens.ids.shape[1:]))
    ids[positions] = tokens.ids
    if tokens.lengths is None:
        return Tokens(ids)
    lengths = tokens.lengths.new_zeros(count)
    lengths[positions] = tokens.lengths
    return Tokens(ids, lengths)


def pick(images: Tensor, positions: list[int]) -> Tensor:
    """The images at these positions; a view where they are consecutive."""
    return images[_as_slice(positions)]


def _as_slice(positions: list[int]) -> slice | list[int]:
    first, last = positions[0], positions[-1]
    return slice(first, last + 1) if last - first + 1 == len(positions) else positions


def evaluation_image(source: np.ndarray, protocol: ReconstructionProtocol) -> np.ndarray:
    """The image that metrics see: uint8 (eval_size, eval_size, 3) from uint8 (H, W, 3). Pillow resizes."""
    return _fitted(source, protocol.eval_size, protocol)


def _fitted(source: np.ndarray, size: int, protocol: ReconstructionProtocol) -> np.ndarray:
    height, width = source.shape[:2]
    resample = Image.Resampling[protocol.eval_filter.upper()]
    box = (0, 0, width, height)
    if protocol.fit == "crop":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        box = (left, top, left + side, top + side)
    if box == (0, 0, size, size):
        return source
    return np.asarray(Image.fromarray(source).resize((size, size), resample, box=box))


def to_tensor(images: list[np.ndarray]) -> Tensor:
    """uint8 HWC arrays of one size to a uint8 tensor (B, 3, H, W)."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def native_images(
    evaluation: Tensor, sources: Sequence[np.ndarray], size: int | None, protocol: ReconstructionProtocol
) -> Tensor:
    """What a tokenizer of input size `size` is given: float32 (B, 3, size, size) in [0, 1].

    evaluation: uint8 (B, 3, E, E); sources: the B decoded originals, read only when native_from is "source".
    """
    if size is None or size == protocol.eval_size:
        return evaluation.float() / 255
    if protocol.native_from == "source":
        return to_tensor([_fitted(s, size, protocol) for s in sources]).to(evaluation.device).float() / 255
    return resize(evaluation.float() / 255, size, protocol.native_filter, protocol.native_antialias).clamp(0, 1)


def scored_images(output: Tensor, protocol: ReconstructionProtocol) -> Tensor:
    """A tokenizer's output to the uint8 (B, 3, E, E) that metrics see: clamp, resize back, clamp, round once."""
    images = resize(output.float().clamp(0, 1), protocol.eval_size, protocol.back_filter, protocol.back_antialias)
    scaled = images.clamp(0, 1) * 255
    return (scaled + 0.5 if protocol.rounding == "half_up" else scaled).floor().byte()


def recorded_image(
    image: Tensor, source: tuple[int, int], protocol: ReconstructionProtocol, any_size: bool
) -> Tensor | str:
    """An image that was made elsewhere as the uint8 (3, E, E) that metrics see, or why it is refused.

    image: float (3, H, W) in [0, 1]. One of the evaluation size is taken as it is; one of its reference's size (source:
    height, width) goes the reference's own way to the evaluation size, by Pillow; any other is refused or, with
    any_size, resized as a tokenizer's output is. Its 8 bits are kept, whichever way outputs are rounded.
    """
    size = (image.shape[1], image.shape[2])
    exact = dataclasses.replace(protocol, rounding="half_up")
    if size == source and size != (protocol.eval_size, protocol.eval_size):
        pixels = ((image.float().clamp(0, 1) * 255) + 0.5).floor().byte().permute(1, 2, 0).cpu().numpy()
        return to_tensor([evaluation_image(pixels, protocol)])[0].to(image.device)
    if any_size or size == (protocol.eval_size, protocol.eval_size):
        return scored_images(image[None], exact)[0]
    return (
        f"the image has {size[1]} x {size[0]} pixels: expected its reference's {source[1]} x {source[0]} or the "
        f"evaluation image's {protocol.eval_size} x {protocol.eval_size}"
    )


def resize(images: Tensor, size: int, filter: Filter, antialias: bool) -> Tensor:
    """Float (B, 3, H, W) to (B, 3, size, size) by torch's filter; untouched where it has that size already."""
    if tuple(images.shape[-2:]) == (size, size):
        return images
    interpolate = partial(F.interpolate, images, size=(size, size), mode=filter)
    return interpolate() if filter == "nearest" else interpolate(antialias=antialias, align_corners=False)
