"""The engine's small parts: batches, what plugins may return, seeds, chunks, keys."""

import dataclasses
import functools
import math
import re
from pathlib import Path

import pytest
import torch

from baselines.tokenizers.calibration.adapter import MeanColour
from evals.config import ConfigError
from evals.engine import environment
from evals.engine.batches import Batcher
from evals.engine.checks import PluginError, check_encoded, check_image_list, check_images, check_info
from evals.engine.environment import check_precision, precision
from evals.engine.job import CHUNK, Artifact, Chunk, Job, chunks_of
from evals.engine.models import Conditions, ModelRun
from evals.engine.progress import LiveProgress, duration
from evals.engine.reduce import trained_on
from evals.engine.rows import Identity, Row
from evals.engine.store import Cache
from evals.metrics.base import Metric
from evals.metrics.image.dists import DistsMetric
from evals.metrics.image.lpips import LpipsAlex, LpipsVgg
from evals.metrics.image.psnr import Psnr
from evals.metrics.plan import plan
from evals.tasks.protocol import ReconstructionProtocol
from evals.tasks.reconstruction import Reconstruction
from lactok.interface import Generator, GeneratorInfo, Item, Latents, TokenizerInfo, Tokens, TrainingCompute
from lactok.items import item_seed

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


@pytest.mark.parametrize(("size", "count", "ran"), [(100_000, 8, 8), (4, 10, 4), (16, 1, 1)])
def test_the_batch_that_is_recorded_is_one_that_was_run(size: int, count: int, ran: int):
    seen = []
    _, timed = Batcher(size, CPU).run(count, lambda part: seen.append(part.stop - part.start))
    assert timed.batch == max(seen) == ran


def test_a_precision_that_a_cpu_does_not_have_is_refused():
    with pytest.raises(ConfigError, match="precision=fp32"):
        check_precision("tf32", CPU)
    check_precision("fp32", CPU)
    check_precision("bf16", CPU)


@pytest.mark.parametrize(
    ("name", "convolutions", "products"),
    [("fp32", False, "highest"), ("tf32", True, "high"), ("bf16", True, "highest")],
)
def test_what_a_precision_lets_float32_take(name: str, convolutions: bool, products: str):
    """Under bf16 a convolution in float32 takes TF32, torch's default; the search for the nearest code does not."""
    before = torch.backends.cudnn.allow_tf32
    with precision(name, CPU):
        assert (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()) == (convolutions, products)
    assert torch.backends.cudnn.allow_tf32 == before


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
    ("wrong", "message"),
    [
        ({"codebook_size": 0}, "codebook_size is 0, expected a whole number of at least 1"),
        ({"codebook_size": ()}, "codebook_size is ()"),
        ({"codebook_size": (16, 0)}, "codebook_size is (16, 0)"),
        ({"codebook_size": math.inf}, "codebook_size is inf"),
        ({"codebook_size": (4, 4, 4)}, "a multiple of the 3 slots"),
        ({"tokens_per_image": 16.5}, "tokens_per_image is 16.5, expected a whole number"),
        ({"tokens_per_image": -64}, "tokens_per_image is -64"),
        ({"tokens_per_image": math.nan}, "tokens_per_image is nan"),
        ({"tokens_per_image": True}, "tokens_per_image is True"),
        ({"input_size": -1}, "input_size is -1, expected 1 to"),
        ({"output_size": 64.0}, "output_size is 64.0, expected 1 to"),
        ({"output_size": 10**6}, "output_size is 1000000"),
        ({"deterministic": None}, "deterministic is None, expected True or False"),
        ({"family": None}, "family is None, expected a text"),
        ({"training": "long"}, "training is 'long', expected lactok.interface.TrainingCompute"),
        ({"training": TrainingCompute(core_hours=math.inf)}, "training.core_hours is inf"),
        ({"training": TrainingCompute(losses="lpips-vgg")}, "training.losses is 'lpips-vgg', expected texts"),
    ],
)
def test_what_a_plugin_states_wrongly_is_told_with_what_was_expected(wrong: dict, message: str):
    with pytest.raises(PluginError, match=re.escape(message)) as caught:
        check_info(dataclasses.replace(INFO, **wrong), MeanColour)
    assert "expected" in str(caught.value)
    check_info(INFO, MeanColour)


@pytest.mark.parametrize("settings", [{"scale": math.nan}, {"dtype": torch.float32}, None])
def test_settings_of_a_generator_are_plain_values(settings: dict):
    with pytest.raises(PluginError, match="settings"):
        check_info(GeneratorInfo("test", settings=settings), Generator)


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        (Tokens(torch.full((2, 4), 10)), "below the codebook size, 10"),
        (Tokens(torch.full((2, 4), -1)), "ids from -1"),
        (Tokens(torch.zeros(2, 5, dtype=torch.int64)), "5 tokens an image"),
        (Tokens(torch.zeros(2, 4, dtype=torch.int32)), "torch.int32"),
        (Tokens(torch.zeros(3, 4, dtype=torch.int64)), "3 images' tokens for a batch of 2"),
        (Latents(torch.full((2, 4), torch.nan)), "NaN"),
        (Tokens(torch.zeros(2, 4, dtype=torch.int64), lengths=torch.tensor([5, 4])), "from 0 to 4"),
        (Latents(torch.zeros(2, 4)), "latents, but info.tokens_per_image is 4"),
        (torch.zeros(2, 4), "expected lactok.interface.Tokens"),
    ],
)
def test_a_wrong_result_of_encode_is_named(encoded: object, message: str):
    with pytest.raises(PluginError, match=message):
        check_encoded(encoded, 2, INFO)


def test_right_tokens_pass_as_a_copy():
    tokens = Tokens(torch.tensor([[0, 9, 3, 4], [1, 2, 3, 4]]), lengths=torch.tensor([4, 1]))
    passed = check_encoded(tokens, 2, INFO)
    assert isinstance(passed, Tokens)
    assert torch.equal(passed.ids, tokens.ids)
    assert torch.equal(passed.lengths, tokens.lengths)
    assert {passed.ids.data_ptr(), passed.lengths.data_ptr()}.isdisjoint(
        {tokens.ids.data_ptr(), tokens.lengths.data_ptr()}
    )
    pairs = dataclasses.replace(INFO, codebook_size=(10, 3), tokens_per_image=4)
    assert check_encoded(Tokens(torch.tensor([[[9, 2], [0, 0]]])), 1, pairs)
    with pytest.raises(PluginError):
        check_encoded(Tokens(torch.tensor([[[2, 9], [0, 0]]])), 1, pairs)
    latents = Latents(torch.rand(2, 4))
    continuous = dataclasses.replace(INFO, codebook_size=None, tokens_per_image=None)
    assert torch.equal(check_encoded(latents, 2, continuous).values, latents.values)
    with pytest.raises(PluginError, match="states no codebook_size"):
        check_encoded(tokens, 2, continuous)


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
def test_wrong_images_are_named(images: object, message: str):
    with pytest.raises(PluginError, match=message):
        check_images(images, 2, 8)


def test_a_little_overshoot_is_not_an_error():
    images = torch.rand(2, 3, 8, 8) * 1.2 - 0.1
    assert check_images(images, 2, 8) is images


def test_images_of_several_sizes_pass_one_by_one():
    images = [torch.rand(3, 8, 8), torch.rand(3, 4, 6)]
    assert all(a is b for a, b in zip(check_image_list(images, 2, "generate"), images, strict=True))
    assert len(check_image_list(torch.rand(2, 3, 8, 8), 2, "generate")) == 2


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([torch.rand(3, 8, 8)], "1 images for a batch of 2"),
        (7, "int for a batch of 2"),
        ([torch.rand(3, 8, 8), torch.rand(1, 8, 8)], r"\(1, 8, 8\), expected float \(3, H, W\)"),
        ([torch.rand(3, 8, 8), "x"], "an image that is str"),
        ([torch.rand(3, 8, 8), torch.full((3, 8, 8), torch.inf)], "NaN or infinite"),
        ([torch.rand(3, 8, 8), torch.rand(3, 8, 8) * 255], r"expected RGB in \[0, 1\]"),
    ],
)
def test_wrong_lists_of_images_are_named(images: object, message: str):
    with pytest.raises(PluginError, match=f"generate returned .*{message}"):
        check_image_list(images, 2, "generate")


def test_seeds_depend_on_seed_index_and_content_alone():
    assert item_seed(0, 0, "a") == item_seed(0, 0, "a")
    assert len({item_seed(s, i, c) for s in range(3) for i in range(3) for c in "abc"}) == 27
    assert all(0 <= item_seed(s, 0, "x") < 2**63 for s in range(100))


def test_chunks_are_consecutive_and_a_longer_run_shares_them():
    items = [Item(f"{i}", "c", f"{i:064}") for i in range(40)]
    chunks = chunks_of(items)
    assert [len(c) for c in chunks] == [CHUNK, CHUNK, 40 - 2 * CHUNK]
    assert [item for c in chunks for item in c.items] == items
    assert chunks_of(items[:CHUNK])[0] == chunks[0]


# --- keys


PROTOCOL = ReconstructionProtocol("p", 128, "squash")


def the_chunk(name: str = "a", content: str = "1") -> Chunk:
    return chunks_of([Item(name, name, content * 64)])[0]


def a_run(seed: int = 0, noise: bool = False, **parts: object) -> ModelRun:
    """A row with a made-up identity; noise: whether its decoder draws any."""
    run = ModelRun(Row("a", "a", MeanColour), Conditions(CPU, "fp32", seed), 1)
    run.identity, run.info = Identity({"v": 1, **parts}, ()), dataclasses.replace(INFO, deterministic=not noise)
    return run


def task(round_trips: int = 1, **changes: object) -> Reconstruction:
    return Reconstruction(None, dataclasses.replace(PROTOCOL, **changes), round_trips)


def a_job(tmp_path: Path, task: Reconstruction, runs: list[ModelRun]) -> Job:
    return Job(task, None, runs, plan(["psnr"], "effnet", task), Cache(tmp_path), CPU, 1, shown=frozenset({0}))


def test_a_key_depends_on_content_not_on_order():
    nodes = Artifact("x"), Artifact("y")
    assert Artifact("k", {"a": 1, "b": {"x": 1, "y": 2}}).key == Artifact("k", {"b": {"y": 2, "x": 1}, "a": 1}).key
    keys = [
        Artifact("k", {"a": 1}).key, Artifact("k", {"a": 2}).key, Artifact("l", {"a": 1}).key,
        Artifact("k", {"a": 1}, nodes).key, Artifact("k", {"a": 1}, nodes[::-1]).key,
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)
    assert all(len(key) == 32 for key in keys)


@pytest.mark.parametrize(
    ("cuda", "driver", "said"),
    [
        (None, "", "is built without CUDA: install a build with it"),
        ("13.2", "", "sees no CUDA device, and no NVIDIA driver is installed here"),
        (
            "13.2",
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun",
            "driver 535.183.01, which is too old",
        ),
    ],
)
def test_why_there_is_no_gpu(cuda: str | None, driver: str, said: str, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(environment, "DRIVER", tmp_path / "version")
    monkeypatch.setattr(environment.shutil, "which", lambda name: None)
    if driver:
        (tmp_path / "version").write_text(driver)
    assert said in environment.why_no_gpu()
    with pytest.raises(ConfigError, match=f"device=cuda: .*{said}.*; or use device=cpu"):
        environment.choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert environment.why_no_gpu() == ""


def test_keys_of_tokens_change_with_what_determines_them():
    chunk, other, plain = the_chunk(), the_chunk(content="2"), task()
    assert plain.tokens(a_run(), chunk).key != plain.tokens(a_run(), other).key
    assert plain.tokens(a_run(), chunk).key != plain.tokens(a_run(v=2), chunk).key
    assert task(rounding="truncate").tokens(a_run(), chunk).key == plain.tokens(a_run(), chunk).key, "the way back"
    assert task(native_filter="bilinear").tokens(a_run(), chunk).key != plain.tokens(a_run(), chunk).key
    half = ModelRun(Row("a", "a", MeanColour), Conditions(CPU, "bf16", 0), 1)
    half.identity, half.info = a_run().identity, INFO
    assert plain.tokens(half, chunk).key != plain.tokens(a_run(), chunk).key


def test_keys_of_images_change_with_the_way_back_the_noise_and_the_round_trips():
    chunk, plain = the_chunk(), task()

    def key(run: ModelRun, seed_index: int = 0, of: Reconstruction = plain) -> str:
        return of.images(run, chunk, seed_index).key

    assert key(a_run(), of=task(rounding="truncate")) != key(a_run())
    assert key(a_run(seed=1)) == key(a_run()), "no noise, no seed"
    assert key(a_run(seed=1, noise=True)) != key(a_run(noise=True))
    assert key(a_run(noise=True), 1) != key(a_run(noise=True), 0)
    twice = task(round_trips=2)
    assert key(a_run(), of=twice) != key(a_run())
    assert twice.tokens(a_run(), chunk).key == plain.tokens(a_run(), chunk).key, "the first encoding is the same"


def test_keys_of_scores_and_contact_images_follow_those_of_the_images(tmp_path: Path):
    runs = [a_run(), a_run(seed=1), a_run(noise=True), a_run(seed=1, noise=True)]
    job = a_job(tmp_path, task(), runs)
    (psnr,) = job.metrics.image
    for of in (lambda run: job.scores(run, the_chunk(), 0, psnr).key, lambda run: job.contact(run, the_chunk()).key):
        assert of(runs[0]) == of(runs[1]), "no noise, no seed"
        assert of(runs[2]) != of(runs[3])
    scores = {job.scores(runs[2], the_chunk(), seed_index, psnr).key for seed_index in (0, 1)}
    assert len(scores) == 2
    assert job.scores(runs[0], the_chunk("b"), 0, psnr).key == job.scores(runs[0], the_chunk("a"), 0, psnr).key, (
        "a name determines nothing"
    )
    version = dataclasses.replace(psnr, identity={**psnr.identity, "version": 99})
    assert job.scores(runs[0], the_chunk(), 0, version).key != job.scores(runs[0], the_chunk(), 0, psnr).key


def test_a_deterministic_model_has_one_output_of_an_item():
    assert a_run().seed_indices(3) == [0]
    assert a_run(noise=True).seed_indices(3) == [0, 1, 2]
    assert a_run().noise(0) is None
    assert a_run(seed=5, noise=True).noise(2) == [5, 2]


def test_the_time_left_is_told_after_the_first_slow_chunk_where_there_is_no_terminal(capsys):
    now = [0.0]
    with LiveProgress(clock=lambda: now[0]) as live:
        live.start(3126)
        now[0] = 9.0
        live.advance("llamagen", 16, True)
        assert capsys.readouterr().err == ""
        now[0] = 21.0
        live.advance("llamagen", 16, True)
    assert capsys.readouterr().err == "llamagen: 2/3126 chunks, 1.5 images/s, about 9 h 07 min left\n"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(45.4, "45 s"), (130, "2 min"), (7 * 3600 + 300, "7 h 05 min"), (76 * 3600, "3 d 4 h")],
)
def test_durations_are_told_in_what_a_person_counts_in(seconds: float, said: str):
    assert duration(seconds) == said


def test_figures_of_a_network_that_trained_the_model_say_so():
    def told(metric: type[Metric], *losses: str) -> str:
        return trained_on(metric, dataclasses.replace(INFO, training=TrainingCompute(losses=losses)))

    assert told(LpipsVgg, "lpips-vgg") == told(DistsMetric, "lpips-vgg") != ""
    assert told(LpipsVgg, "lpips-vgg") == "trained on lpips-vgg: the same network scores here"
    assert told(LpipsAlex, "lpips-vgg") == told(Psnr, "lpips-vgg", "lpips") == told(LpipsVgg) == ""
    assert "a network that is not told" in told(LpipsAlex, "lpips")
    assert trained_on(LpipsVgg, INFO) == trained_on(LpipsVgg, None) == ""


def test_the_cards_of_a_training_in_parts_are_all_named():
    cards = [TrainingCompute(gpu=gpu, gpu_hours=0.5) for gpu in ("H100", None, "H200", "H100")]
    whole = functools.reduce(lambda start, then: then.after(start), cards)
    assert str(whole) == "2 GPU-h H100 + H200", "the hours of each kind of card are under both names"


def test_losses_of_a_frozen_part_count():
    both = TrainingCompute(losses=["lpips-vgg"]).on_top_of(TrainingCompute(losses=("lpips-alex",)))
    assert both.losses == ("lpips-alex", "lpips-vgg")
    assert TrainingCompute().after(both).losses == both.losses
