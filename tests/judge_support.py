"""Judges of a few thousand weights with whole vocabularies, for tests."""

from __future__ import annotations

import torch

from evals.metrics.judges import hpsv2, image_reward, mps
from evals.metrics.judges.base import CLIP_VOCABULARY, Judge
from lactok.interface import Item
from lactok.seeded import TensorSpec, seeded_state_dict
from lactok.state_dict import meta_skeleton
from lactok.weights import locate

PROMPTS = (
    "a red fox in the snow",
    "He said \"hello\",\nand left\tat 'noon'",
    "café ☕ 🦊🏳️‍🌈 &amp; naïve <b>bold</b>",
    "$HOME %s {0} \\n ; DROP TABLE",
    "很多 文字",
    "word " * 200,
    ".",
)
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "fox", "in", "the", "snow", "word", ".", '"', "##s")

TEXT = dict(hidden_size=32, intermediate_size=64, num_attention_heads=4, num_hidden_layers=2, vocab_size=49408)
VISION = dict(hidden_size=40, intermediate_size=80, num_attention_heads=5, num_hidden_layers=2, image_size=28)
MPS = mps.MpsConfig(
    projection_dim=32,
    cross_layers=2,
    cross_heads=2,
    text={**TEXT, "max_position_embeddings": 77, "hidden_act": "gelu"},
    vision={**VISION, "patch_size": 14, "hidden_act": "gelu"},
)
HPS = hpsv2.HpsConfig(
    embed_dim=24,
    vision=dict(image_size=28, layers=2, width=40, head_width=20, patch_size=14),
    text=dict(context_length=77, vocab_size=49408, width=32, heads=4, layers=2),
)
IMAGE_REWARD = image_reward.ImageRewardConfig(
    image_size=32, vision_width=48, vision_depth=2, vision_heads=4, text_width=32, text_depth=2, text_heads=4,
    text_hidden=64, vocabulary=len(WORDS) + 2, positions=64,
)  # fmt: skip


def seeded(adapter, empty, config, seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights of a network under its published names."""
    shapes = adapter.published_shapes(meta_skeleton(empty, config))
    return seeded_state_dict({name: TensorSpec(shape) for name, shape in shapes.items()}, seed)


def mps_weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """As published: biases that are zero, rotary frequencies, and counters of positions."""
    state = seeded(mps.MpsAdapter(), mps.MpsNet, MPS, seed)
    for name, value in state.items():
        if name.endswith(".norm.bias"):
            value.zero_()
        elif name.endswith(".inv_freq"):
            value.copy_(10000.0 ** (-torch.arange(0, 64, 2) / 64))
    return state


def clip_tokenizer():
    return mps.tokenizer(locate(CLIP_VOCABULARY))


def tiny(name: str, seed: int = 0, cls: type[Judge] | None = None) -> Judge:
    """The judge of that name with a small network."""
    if name == "imagereward":
        weights = seeded(image_reward.ImageRewardAdapter(), image_reward.ImageRewardNet, IMAGE_REWARD, seed)
        words = {word: place for place, word in enumerate(WORDS)}
        return image_reward.ImageReward(image_reward.build(weights, IMAGE_REWARD), image_reward.tokenizer(words))
    if name.startswith("mps"):
        return (cls or mps.Mps)(mps.build(mps_weights(seed), MPS), clip_tokenizer())
    from open_clip.tokenizer import SimpleTokenizer

    net = hpsv2.build(seeded(hpsv2.HpsAdapter(), hpsv2.empty, HPS, seed), HPS)
    tokenizer = SimpleTokenizer(bpe_path=str(locate(CLIP_VOCABULARY)), context_length=77)
    return {"hpsv2-2.0": hpsv2.HpsV20, "hpsv2-2.1": hpsv2.HpsV21}[name](net, tokenizer)


def items(prompts) -> list[Item]:
    return [Item(str(place), str(place), str(place), prompt) for place, prompt in enumerate(prompts)]


def noise(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """uint8 (count, 3, height, width)."""
    draws = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=draws)
