"""The engine's small parts: batches, what plugins may return, seeds, chunks, keys."""

import dataclasses

import pytest
import torch
from evals.engine.seeds import image_seed

from evals.engine.batches import Batcher
from evals.engine.checks import PluginError, check_codes, check_images
from evals.engine.job import CHUNK, Conditions, Keys, chunks_of
from evals.tasks.protocol import ReconstructionProtocol
from lactok.interface import Item, Latents, TokenizerInfo, Tokens

INFO = TokenizerInfo("test", tokens_per_image=4, codebook_size=10, input_size=8, output_size=8)
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_batches_halve_when_memory_runs_out(error: Exception):
    seen = []

    def call(part: slice) -> list[int]:
        if part.stop - part.start > 3:
            raise error
        seen.append(part.stop - part.start)
        return list(range(part.start, part.stop))

    batcher = Batcher(16, CPU)
    results, timed = batcher.run(16, call)
    assert [i for r in results for i in r] == list(range(16))
    assert max(seen) <= 2 == timed.batch == batcher.size


def test_out_of_memory_at_batch_one_and_other_errors_are_raised():
    def always(part: slice) -> None:
        raise torch.OutOfMemoryError("no")

    with pytest.raises(torch.OutOfMemoryError):
        Batcher(8, CPU).run(8, always)

    def wrong(part: slice) -> None:
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        Batcher(8, CPU).run(8, wrong)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (Tokens(torch.full((2, 4), 10)), "below the vocabulary, 10"),
        (Tokens(torch.full((2, 4), -1)), "ids from -1"),
        (Tokens(torch.zeros(2, 5, dtype=torch.int64)), "5 ids an image"),
        (Tokens(torch.zeros(2, 4, dtype=torch.int32)), "torch.int32"),
        (Tokens(torch.zeros(3, 4, dtype=torch.int64)), "3 pictures for a batch of 2"),
        (Latents(torch.full((2, 4), torch.nan)), "NaN"),
        (Tokens(torch.zeros(2, 4, dtype=torch.int64), lengths=torch.tensor([5, 4])), "at most 4"),
        (torch.zeros(2, 4), "expected lactok.interface.Codes"),
    ],
)
def test_wrong_codes_are_named(codes: object, message: str):
    with pytest.raises(PluginError, match=message):
        check_codes(codes, 2, INFO)


def test_right_codes_pass():
    codes = Tokens(torch.tensor([[0, 9, 3, 4], [1, 2, 3, 4]]), lengths=torch.tensor([4, 1]))
    assert check_codes(codes, 2, INFO) is codes
    pairs = dataclasses.replace(INFO, vocabulary=(10, 3), tokens_per_image=4)
    assert check_codes(Tokens(torch.tensor([[[9, 2], [0, 0]]])), 1, pairs)
    with pytest.raises(PluginError):
        check_codes(Tokens(torch.tensor([[[2, 9], [0, 0]]])), 1, pairs)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.full((2, 3, 8, 8), torch.nan), "NaN or infinite values in 2 of 2"),
        (torch.rand(2, 3, 8, 9), "expected float"),
        (torch.rand(2, 8, 8, 3), "expected float"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "torch.uint8"),
        (torch.rand(2, 3, 8, 8) * 255, r"expected RGB in \[0, 1\]"),
        (torch.linspace(-1, 1, 2 * 3 * 64).view(2, 3, 8, 8), r"\(x \+ 1\) / 2"),
        ([1, 2], "list"),
    ],
)
def test_wrong_pictures_are_named(images: object, message: str):
    with pytest.raises(PluginError, match=message):
        check_images(images, 2, 8)


def test_a_little_overshoot_is_not_an_error():
    images = torch.rand(2, 3, 8, 8) * 1.2 - 0.1
    assert check_images(images, 2, 8) is images


def test_seeds_depend_on_seed_repeat_and_content_alone():
    assert image_seed(0, 0, "a") == image_seed(0, 0, "a")
    assert len({image_seed(s, r, c) for s in range(3) for r in range(3) for c in "abc"}) == 27
    assert all(0 <= image_seed(s, 0, "x") < 2**63 for s in range(100))


def test_chunks_are_consecutive_and_a_longer_run_shares_them():
    samples = [Item(f"{i}", "c", f"{i:064}") for i in range(40)]
    chunks = chunks_of(samples)
    assert [len(c) for c in chunks] == [CHUNK, CHUNK, 40 - 2 * CHUNK]
    assert [s for c in chunks for s in c.samples] == samples
    assert chunks_of(samples[:CHUNK])[0] == chunks[0]


def test_keys_change_with_what_determines_a_piece():
    chunk = chunks_of([Item("a", "a", "1" * 64)])[0]
    other = chunks_of([Item("a", "a", "2" * 64)])[0]
    protocol = ReconstructionProtocol("p", 128, "squash")
    keys = Keys(protocol, Conditions("cpu", "fp32", 0))
    assert keys.ids(chunk, {"v": 1}) != keys.ids(other, {"v": 1})
    assert keys.ids(chunk, {"v": 1}) != keys.ids(chunk, {"v": 2})
    rounding = Keys(dataclasses.replace(protocol, rounding="truncate"), keys.conditions)
    assert rounding.ids(chunk, {}) == keys.ids(chunk, {}), "ids do not depend on the way back"
    assert rounding.pictures(chunk, {}, None) != keys.pictures(chunk, {}, None)
    seed = Keys(protocol, Conditions("cpu", "fp32", 1))
    assert seed.pictures(chunk, {}, None) == keys.pictures(chunk, {}, None), "no noise, no seed"
    assert seed.pictures(chunk, {}, 0) != keys.pictures(chunk, {}, 0)
    assert seed.contact(chunk, {}, None, [0]) == keys.contact(chunk, {}, None, [0])
    assert seed.contact(chunk, {}, 0, [0]) != keys.contact(chunk, {}, 0, [0])
    assert keys.pictures(chunk, {}, 1) != keys.pictures(chunk, {}, 0)
    renamed = chunks_of([Item("b", "b", "1" * 64)])[0]
    assert keys.scores(renamed, {}, None, {}) == keys.scores(chunk, {}, None, {}), "a name determines nothing"
