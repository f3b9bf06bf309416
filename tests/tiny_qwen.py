"""Qwen2.5-VL at a size that a test can afford, in the published folder layout: seeded weights, a few words."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

WORDS = (
    "a",
    "red",
    "cat",
    "on",
    "the",
    "sofa",
    "dog",
    "left",
    "of",
    "blue",
    "box",
    "two",
    "white",
    "cups",
    "near",
    "it",
)
STOPS = ("<|im_end|>", "<|endoftext|>", "!", "?", ";")
"""Words that end an answer: many, so that drawn answers are short."""
MARKS = ("<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
TEMPLATE = (
    "{% for message in messages %}<|im_start|> {{ message['role'] }} {% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}<|vision_start|> <|image_pad|> <|vision_end|> {% else %}{{ content['text'] }} "
    "{% endif %}{% endfor %}<|im_end|> {% endfor %}{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)


def write_qwen(folder: Path, seed: int = 0) -> Path:
    """The network, its configuration and its processor's files."""
    names = ["<unk>", *STOPS, *MARKS, *WORDS]
    place = {name: number for number, name in enumerate(names)}
    words = Tokenizer(models.WordLevel(place, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"additional_special_tokens": [*STOPS, *MARKS]}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", pad_token="<|endoftext|>", eos_token="<|im_end|>", **special
    )
    pixels = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2, "min_pixels": 64, "max_pixels": 1024}
    transformers.Qwen2_5_VLProcessor(
        transformers.Qwen2VLImageProcessor(**pixels),
        tokenizer,
        transformers.Qwen2VLVideoProcessor(**pixels),
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    config = transformers.Qwen2_5_VLConfig(
        image_token_id=place["<|image_pad|>"],
        video_token_id=place["<|video_pad|>"],
        vision_start_token_id=place["<|vision_start|>"],
        vision_end_token_id=place["<|vision_end|>"],
        text_config={
            "vocab_size": len(names), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512,
            "bos_token_id": None, "eos_token_id": place["<|im_end|>"], "pad_token_id": place["<|endoftext|>"],
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
        },
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32,
            "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 16,
            "fullatt_block_indexes": [1],
        },
    )  # fmt: skip
    torch.manual_seed(seed)
    network = transformers.Qwen2_5_VLForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    network.generation_config = transformers.GenerationConfig(
        eos_token_id=[place[name] for name in STOPS], pad_token_id=place["<|endoftext|>"]
    )
    network.save_pretrained(folder)
    return folder
