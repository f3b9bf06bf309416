"""Part 5: how fast the preference judges look at images and read their prompts.

The aim on an H100 is 100 images/s for ImageReward and HPSv2, float32 without TF32, as a run computes metrics.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.device_weights import draw_weights
from benchmarks.gpu_session import Job, Session
from benchmarks.measuring import call_times, gib, peak_bytes
from evals.engine.environment import precision
from evals.metrics.judges import hpsv2, image_reward, mps
from evals.metrics.judges.base import CLIP_VOCABULARY, Judge
from lactok.interface import Item
from lactok.state_dict import meta_skeleton
from lactok.weights import locate

SIDE, BATCH = 1024, 16
"""Pixels a side of what the generators make, and the batch that a run takes on a GPU."""
QUICK_SIDE, QUICK_BATCH = 96, 2
PROMPT = "a watercolour of two red foxes asleep under a wooden table, morning light"

QUICK_TEXT = dict(hidden_size=32, intermediate_size=64, num_attention_heads=4, num_hidden_layers=1, vocab_size=49408)
QUICK_VISION = dict(hidden_size=40, intermediate_size=80, num_attention_heads=5, num_hidden_layers=1, image_size=28)


@dataclass(frozen=True)
class JudgeRate:
    """One judge, its preprocessing and its tokens included, weights drawn. stages: seconds an image of preprocessing,
    image features, and text with the score, each alone."""

    judge: str
    dtype: str
    side: int
    batch: int
    calls: int
    images_per_second: float
    peak_bytes: int | None
    stages: dict[str, float]

    def __str__(self) -> str:
        stages = ", ".join(f"{name} {1e3 * seconds:.3g} ms" for name, seconds in self.stages.items())
        return (
            f"{self.judge} ({self.dtype}, drawn weights), {self.side} px, batch {self.batch}: "
            f"{self.images_per_second:.4g} images/s ({stages}), {gib(self.peak_bytes)} GiB"
        )


def measure(session: Session) -> None:
    session.each([Job(name, lambda build=build: rate(session, build)) for name, build in JUDGES.items()])


def rate(session: Session, build: Callable[[Session], Judge]) -> Iterator[JudgeRate]:
    """As the engine scores: one batch is embedded, then scored with its prompts."""
    side, batch = (QUICK_SIDE, QUICK_BATCH) if session.quick else (SIDE, BATCH)
    judge, device = build(session), session.device
    draws = torch.Generator(device).manual_seed(0)
    images = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, generator=draws, device=device)
    items = [Item(str(n), str(n), str(n), f"{PROMPT}, number {n}") for n in range(batch)]
    with precision("fp32", device):
        pixels = judge.preprocess(images)
        embedding = judge.features_of(pixels)

    def inside(call: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            with precision("fp32", device):
                call()

        return run

    whole = inside(lambda: judge.score(None, judge.embed(images, items), items))
    parts = {
        "preprocessing": inside(lambda: judge.preprocess(images)),
        "image": inside(lambda: judge.features_of(pixels)),
        "text and score": inside(lambda: judge.score(None, embedding, items)),
    }
    call_times(whole, device, 0)
    times = call_times(whole, device, session.settings.seconds)
    stages = {
        name: statistics.median(call_times(part, device, session.settings.seconds / 2)) / batch
        for name, part in parts.items()
    }
    dtype = str(embedding.dtype).removeprefix("torch.")
    seconds = statistics.median(times) / batch
    yield JudgeRate(judge.name, dtype, side, batch, len(times), 1 / seconds, peak_bytes(whole, device), stages)


def drawn(network: nn.Module, device: torch.device) -> nn.Module:
    """Weights on the device, and the buffers that are counted rather than drawn."""
    draw_weights(network, device)
    for part in network.modules():
        for name, buffer in part.named_buffers(recurse=False):
            if name == "position_ids":
                part.register_buffer(name, torch.arange(buffer.shape[-1], device=device)[None], persistent=False)
            elif name == "attn_mask":
                part.register_buffer(name, torch.full_like(buffer, -torch.inf).triu(1), persistent=False)
    return network.eval().requires_grad_(False)


def of_image_reward(session: Session) -> Judge:
    """Its words are those of the prompt; the vocabulary is not needed for a rate."""
    quick = image_reward.ImageRewardConfig(
        32,
        16,
        vision_width=48,
        vision_depth=1,
        vision_heads=4,
        text_width=32,
        text_depth=1,
        text_heads=4,
        text_hidden=64,
    )
    words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(PROMPT.replace(",", " ,").split()))
    net = meta_skeleton(image_reward.ImageRewardNet, quick if session.quick else image_reward.ImageRewardConfig())
    tokenizer = image_reward.tokenizer({word: place for place, word in enumerate(words)})
    return image_reward.ImageReward(drawn(net, session.device), tokenizer)


def of_mps(session: Session, cls: type[mps.Mps]) -> Judge:
    quick = mps.MpsConfig(
        projection_dim=32,
        cross_layers=1,
        cross_heads=2,
        text={**QUICK_TEXT, "max_position_embeddings": 77, "hidden_act": "gelu"},
        vision={**QUICK_VISION, "patch_size": 14, "hidden_act": "gelu"},
    )
    net = meta_skeleton(mps.MpsNet, quick if session.quick else mps.MpsConfig())
    return cls(drawn(net, session.device), mps.tokenizer(locate(CLIP_VOCABULARY)))


def of_hpsv2(session: Session) -> Judge:
    """2.0 and 2.1 are the same network."""
    from open_clip.tokenizer import SimpleTokenizer

    quick = hpsv2.HpsConfig(
        embed_dim=24,
        vision=dict(image_size=28, layers=1, width=40, head_width=20, patch_size=14),
        text=dict(context_length=77, vocab_size=49408, width=32, heads=4, layers=1),
    )
    net = meta_skeleton(hpsv2.empty, quick if session.quick else hpsv2.HpsConfig())
    tokenizer = SimpleTokenizer(bpe_path=str(locate(CLIP_VOCABULARY)), context_length=77)
    return hpsv2.HpsV21(drawn(net, session.device), tokenizer)


JUDGES: dict[str, Callable[[Session], Judge]] = {
    "imagereward": of_image_reward,
    "hpsv2-2.1": of_hpsv2,
    "mps": lambda session: of_mps(session, mps.Mps),
    "mps-fp16": lambda session: of_mps(session, mps.MpsHalf),
}
