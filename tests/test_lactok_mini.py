"""LacTok in miniature as it ships: six files that belong together, and what its second stage is for."""

from __future__ import annotations

import pytest
import torch
from skimage import data
from torch import Tensor

from evals.metrics.image.colour import Colour
from lactok.interface import Tokenizer
from lactok.registry import load
from lactok.weights import locate, verify
from tests.metrics_support import scores

CPU = torch.device("cpu")
FIRST = ["vq-ladd-hypersd-mini", "vq-ladd-tlcm-mini"]
SECOND = ["lactok-h-mini", "lactok-t-mini"]
NAMES = ["vq-ladd-mini", *FIRST, *SECOND]
TILES = [(40, 150), (90, 120), (150, 60), (10, 250)]


@pytest.fixture(scope="module")
def photographs() -> Tensor:
    """(8, 3, 128, 128) in [0, 1]: tiles of the cat and of the coffee cup, of which no training image is a part."""
    pictures = [torch.tensor(p).permute(2, 0, 1) / 255 for p in (data.chelsea(), data.coffee())]
    return torch.stack([p[:, y : y + 128, x : x + 128] for p in pictures for y, x in TILES])


@pytest.fixture(scope="module")
def seen(photographs: Tensor) -> Tensor:
    """What the encoder gets: (8, 3, 64, 64)."""
    return torch.nn.functional.interpolate(photographs, size=64, mode="bilinear", antialias=True).clamp(0, 1)


def make(name: str, **options: object) -> Tokenizer:
    cls = load("tokenizers", name)
    return cls(cls.Options(**options), CPU)


@pytest.fixture(scope="module")
def painted(seen: Tensor) -> dict[str, Tensor]:
    """By name: images (8, 3, 128, 128)."""
    with torch.inference_mode():
        return {name: t.decode(t.encode(seen), list(range(8))) for name in NAMES for t in (make(name),)}


@pytest.mark.parametrize("name", NAMES)
def test_every_file_ships_and_is_the_one_that_was_measured(name: str):
    cls = load("tokenizers", name)
    sources = cls.weights(cls.Options())
    assert len(sources) == (4 if name == "vq-ladd-mini" else 5)
    for source in sources:
        assert source.sha256, f"{source} is not pinned"
        verify(locate(source), source)


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_llamagens(name: str, seen: Tensor):
    """Same encoder, same codebook: rows differ by their decoders alone."""
    with torch.inference_mode():
        assert torch.equal(make(name).encode(seen).ids, make("llamagen-mini").encode(seen).ids)


@pytest.mark.parametrize(("size", "ids"), [(56, 49), (64, 64), (72, 81)])
def test_the_encoders_size_sets_the_number_of_ids(size: int, ids: int, photographs: Tensor):
    tokenizer = make("lactok-h-mini", input_size=size)
    assert (tokenizer.info.input_size, tokenizer.info.tokens_per_image) == (size, ids)
    small = torch.nn.functional.interpolate(photographs[:1], size=size, mode="bilinear", antialias=True)
    with torch.inference_mode():
        codes = tokenizer.encode(small)
        assert codes.ids.shape == (1, ids)
        assert tokenizer.decode(codes, [0]).shape == (1, 3, 128, 128)


@pytest.mark.parametrize("name", SECOND)
def test_no_picture_depends_on_its_batch_and_all_on_their_seed(name: str, seen: Tensor, painted: dict[str, Tensor]):
    tokenizer = make(name)
    with torch.inference_mode():
        codes = tokenizer.encode(seen[[5, 2]])
        again = tokenizer.decode(codes, [5, 2])
        other = tokenizer.decode(codes, [5, 3])
    assert (again - painted[name][[5, 2]]).abs().max() < 1e-5
    assert (other[0] - again[0]).abs().max() < 1e-5
    assert (other[1] - again[1]).abs().max() > 1e-3


@pytest.mark.parametrize(("first", "second"), list(zip(FIRST, SECOND, strict=True)))
def test_fine_tuning_in_pixels_is_nearer_and_mends_colours(
    first: str, second: str, photographs: Tensor, painted: dict[str, Tensor]
):
    """The paper's reason for stage 2. Measured on these tiles: see docs/training.md for the benchmark's own."""
    errors = {name: (painted[name] - photographs).square().mean((1, 2, 3)) for name in (first, second)}
    psnr = {name: -10 * error.log10().mean().item() for name, error in errors.items()}
    assert psnr[second] > psnr[first] + 1
    original = (photographs * 255).round().to(torch.uint8)
    shift = {}
    for name in (first, second):
        back = (painted[name].clamp(0, 1) * 255).round().to(torch.uint8)
        shift[name] = scores(Colour(), original, back)["colour-de00"].mean().item()
    assert shift[second] < 0.8 * shift[first]
