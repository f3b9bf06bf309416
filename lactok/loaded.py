"""`lactok.load("llamagen-mini")`: a tokenizer for use from Python, on PIL images, arrays and tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from lactok import registry
from lactok.items import Item

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image

    from lactok.interface import Latents, Tokenizer, TokenizerInfo, Tokens

Form = Literal["tensor", "numpy", "pil"]
# Images that a tokenizer is given at a time, as the harness gives them.
BATCH = 16


class Loaded:
    """A built tokenizer. name: as it was asked for; tokenizer: the plugin itself; both calls track no gradients."""

    def __init__(self, name: str, tokenizer: Tokenizer) -> None:
        self.name, self.tokenizer = name, tokenizer

    @property
    def info(self) -> TokenizerInfo:
        """Its facts: tokens an image, codebook size, native sizes, training."""
        return self.tokenizer.info

    def __repr__(self) -> str:
        info = self.info
        tokens = f"{info.tokens_per_image} x {info.codebook_size}" if info.tokens_per_image else "continuous"
        return f"<{self.name}: {tokens}, {info.input_size} -> {info.output_size} pixels, {self.tokenizer.device}>"

    def encode(
        self,
        images: Any,
        fit: Literal["crop", "squash"] | None = None,
        items: Sequence[Item | str] | None = None,
        progress: bool = True,
    ) -> Tokens | Latents:
        """Images to tokens (`.ids`: int64 (B, N)), or to latents where the tokenizer is continuous.

        images: one, a batch or a list of PIL images, NumPy arrays (H, W, 3) or tensors (3, H, W); uint8, or float in
        [0, 1]. Those of another size than info.input_size are resized as the protocols do: torch's antialiased bicubic,
        clamped. fit: what becomes of images that are not square, the centre or the whole. items: for a tokenizer that
        asks for them, a file name or a lactok.items.Item an image. progress: show it, of more than BATCH images, which
        go BATCH at a time. Raises ValueError.
        """
        import torch

        from lactok.images.arrays import floats, separate
        from lactok.interface import with_items

        size, device, given = self.info.input_size, self.tokenizer.device, separate(images)
        told = self._told(self.tokenizer.encode, items, len(given))
        shapes: set[tuple[int, ...]] = set()
        parts = []
        for part in _parts(len(given), f"{self.name}: encoding", progress):
            ready = [_fitted(floats(image).to(device), size, fit) for image in given[part]]
            shapes |= {tuple(image.shape) for image in ready}
            if len(shapes) > 1:
                raise ValueError(f"images of {len(shapes)} shapes: {self.name} takes any size, and one size in a batch")
            with torch.no_grad():
                parts.append(with_items(self.tokenizer.encode, told[part])(torch.stack(ready)).owned())
        return parts[0] if len(parts) == 1 else type(parts[0]).cat(parts)

    def _told(self, call: Any, items: Sequence[Item | str] | None, count: int) -> list[Item]:
        """The items that a call asks for. Raises ValueError where it has none, or another number of them."""
        from lactok.interface import asks_for_items

        if not asks_for_items(call):
            return []
        if items is None or isinstance(items, str) or len(items) != count:
            seen = "none" if items is None else repr(items) if isinstance(items, str) else len(items)
            raise ValueError(
                f"{self.name} asks for the items of {count} images, given: {seen}; items=[...] takes a file name or a "
                "lactok.items.Item an image"
            )
        return [Item(i, i, "") if isinstance(i, str) else i for i in items]

    def decode(
        self,
        tokens: Tokens | Latents | torch.Tensor,
        seeds: int | Sequence[int] = 0,
        form: Form = "tensor",
        items: Sequence[Item | str] | None = None,
        progress: bool = True,
    ) -> torch.Tensor | np.ndarray | list[Image.Image]:
        """Tokens (or their ids alone) to images: float32 (B, 3, H, W) in [0, 1]; form="numpy": uint8 (B, H, W, 3);
        form="pil": a list of PIL images.

        seeds: of a decoder that draws noise: one an image, or an int from which they count up. items, progress: as of
        `encode`. Raises ValueError.
        """
        import torch

        from lactok.interface import Tokens, with_items

        if form not in ("tensor", "numpy", "pil"):
            raise ValueError(f"form={form!r}: expected tensor, numpy or pil")
        encoded = Tokens(tokens) if isinstance(tokens, torch.Tensor) else tokens
        given = list(range(seeds, seeds + len(encoded))) if isinstance(seeds, int) else list(seeds)
        if len(given) != len(encoded):
            raise ValueError(f"{len(given)} seeds for {len(encoded)} images: expected one each, or an int")
        told, device = self._told(self.tokenizer.decode, items, len(encoded)), self.tokenizer.device
        parts = []
        for part in _parts(len(encoded), f"{self.name}: decoding", progress):
            with torch.no_grad():
                decoded = with_items(self.tokenizer.decode, told[part])(encoded[part].to(device).owned(), given[part])
            parts.append(decoded.detach().float().clamp(0, 1).clone())
        images = torch.cat(parts)
        if form == "tensor":
            return images
        arrays = (images * 255 + 0.5).floor().byte().permute(0, 2, 3, 1).cpu().numpy()
        if form == "numpy":
            return arrays
        from PIL import Image

        return [Image.fromarray(array) for array in arrays]


def load(name: str, weights: str | None = None, device: Any = "auto", **options: Any) -> Loaded:
    """A registered tokenizer, or one of FILE.py:CLASS, built on a device.

    weights: a local checkpoint in place of its own; device: "auto" (CUDA where there is one), or torch's; options: the
    plugin's own, as `python -m evals list tokenizers` shows them. Raises registry.UnknownName, weights.MissingWeights,
    ValueError for an option that it does not have.
    """
    import torch

    from lactok.interface import Tokenizer

    cls = registry.load("tokenizers", name)
    if not (isinstance(cls, type) and issubclass(cls, Tokenizer)):
        raise registry.BrokenPlugin(f"{name} is {cls!r}: expected a subclass of lactok.interface.Tokenizer")
    given = options if weights is None else {**options, "weights": weights}
    declared = [field.name for field in dataclasses.fields(cls.Options)]
    for key in given:
        if key not in declared:
            raise ValueError(f"{name} has no option {key!r}; it has {', '.join(declared) or 'none'}")
    chosen = "cuda" if torch.cuda.is_available() else "cpu"
    return Loaded(name, cls(cls.Options(**given), torch.device(chosen if device == "auto" else device)))


def _parts(count: int, doing: str, progress: bool) -> Iterator[slice]:
    """Ranges of BATCH images, with progress where there are several."""
    from lactok.progress import Meter, silent

    with silent(not progress or count <= BATCH):
        meter = Meter(count, doing)
    with meter:
        for start in range(0, max(count, 1), BATCH):
            stop = min(start + BATCH, count)
            yield slice(start, stop)
            meter.at(stop)


def _fitted(image: torch.Tensor, size: int | None, fit: str | None) -> torch.Tensor:
    """float (3, H, W) to (3, size, size); as it is where any size will do."""
    import torch.nn.functional as F

    height, width = image.shape[-2:]
    if fit not in (None, "crop", "squash"):
        raise ValueError(f"fit={fit!r}: expected crop or squash")
    if size is None or (height, width) == (size, size):
        return image
    if height != width and fit is None:
        raise ValueError(
            f"an image of {width} x {height} pixels, expected a square one; fit='crop' takes its centre, fit='squash' "
            "all of it"
        )
    if fit == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        image = image[:, top : top + side, left : left + side]
    resized = F.interpolate(image[None], size=(size, size), mode="bicubic", antialias=True, align_corners=False)
    return resized[0].clamp(0, 1)
