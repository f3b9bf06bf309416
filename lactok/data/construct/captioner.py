"""New captions by Qwen2.5-VL, through transformers: main objects, attributes, spatial relations, at most 20 words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lactok.data.construct.items import WorkItem
from lactok.data.construct.spec import Spec, SpecError
from lactok.data.construct.stages import StageWork

if TYPE_CHECKING:
    from PIL import Image

SIZES = {
    "72b": ("Qwen/Qwen2.5-VL-72B-Instruct", "89c86200743eec961a297729e7990e8f2ddbc4c5", 38),
    "7b": ("Qwen/Qwen2.5-VL-7B-Instruct", "cc594898137f460bfe9f0759e9844b3ce807cfb5", 5),
}
"""By captioner=..., the hub's repository, its revision, and the files that the network's tensors are in."""
FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
    "model.safetensors.index.json",
)
PROMPT = (
    "Describe this image in one sentence of at most {words} words for training a text-to-image model. Name the main "
    "objects, their attributes, and the spatial relations among them. Say only what can be seen. Answer with the "
    "sentence alone.{known}"
)
KNOWN = ' The original caption, which may be wrong: "{raw}"'
MOST_PIXELS = 1024 * 1024
"""Of an image as the model sees it: 1,369 positions."""
RAW = 300
"""Characters of a source's caption that the model is told."""
_REFUSAL = re.compile(
    r"\b(i'?m sorry|i am sorry|i apologi[sz]e|i can(no|')t|i can not|i am unable|i'?m unable|as an ai|not able to)\b",
    re.I,
)
_OPENING = re.compile(r"^(here('s| is) [^:]{0,60}:|caption:|sentence:|answer:)\s*", re.I)
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\ufffd]")


def checked(text: str, words: int) -> tuple[str, str]:
    """(caption, reason): an answer's sentence, and why it can't be used, "" for a good one.

    Quotes and openings as "Caption:" are taken off; more than `words` words are refused, and never cut: half a sentence
    says something else.
    """
    caption = " ".join(_OPENING.sub("", " ".join(text.replace("’", "'").split())).split()).strip("\"'“”* ")
    if _CONTROL.search(caption):
        return "", "control characters"
    if not any(letter.isalnum() for letter in caption):
        return "", "empty"
    if _REFUSAL.search(caption):
        return "", "refusal"
    count = len(caption.split())
    return (caption, "") if count <= words else ("", "too long")


def weights(spec: Spec) -> tuple[Any, ...]:
    """The files of the captioner's network. Raises SpecError for what is neither a size nor a folder."""
    from lactok.weights import HubWeights, LocalWeights

    if spec.captioner not in SIZES:
        folder = Path(spec.captioner).expanduser()
        if not folder.is_dir():
            raise SpecError(f"captioner={spec.captioner}: expected {', '.join(SIZES)} or a folder of such a network")
        tensors = sorted(folder.glob("*.safetensors")) or [folder / "model.safetensors"]
        needed = [folder / "config.json", folder / "tokenizer_config.json", *tensors]
        return tuple(LocalWeights(str(file)) for file in needed)
    repo, revision, shards = SIZES[spec.captioner]
    files = [*FILES, *(f"model-{place:05d}-of-{shards:05d}.safetensors" for place in range(1, shards + 1))]
    otherwise = "name a local folder of the network by captioner=DIR"
    return tuple(HubWeights(repo, file, revision, None, otherwise) for file in files)


def model(spec: Spec) -> dict[str, Any]:
    """What build.json says of the captioner."""
    if spec.captioner not in SIZES:
        return {"name": Path(spec.captioner).name, "revision": "a local folder", "words": spec.words}
    repo, revision, _ = SIZES[spec.captioner]
    return {"name": repo, "revision": revision, "words": spec.words}


def _reduced(picture: Image.Image) -> Image.Image:
    """A picture of more than MOST_PIXELS at that size: the network's own limit is twelve times as much."""
    by = (MOST_PIXELS / (picture.width * picture.height)) ** 0.5
    if by >= 1:
        return picture
    size = (max(1, round(picture.width * by)), max(1, round(picture.height * by)))
    return picture.resize(size, reducing_gap=2.0)


class QwenCaptioner(StageWork):
    """A caption from the image and what the source says of it; asked again with other seeds where it is not as it must
    be, then dropped."""

    name = "caption"

    def __init__(self, spec: Spec) -> None:
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        from lactok.weights import locate_all

        self.batch, self.spec = spec.stages.caption.batch, spec
        on_gpu = spec.stages.caption.gpus > 0
        folder = str(locate_all(weights(spec))[0].parent)
        self.processor = AutoProcessor.from_pretrained(folder, local_files_only=True, padding_side="left")
        self.network = AutoModelForImageTextToText.from_pretrained(
            folder,
            local_files_only=True,
            dtype=torch.bfloat16 if on_gpu else torch.float32,
            device_map="auto" if on_gpu else None,
        ).eval()

    def device(self) -> str:
        import torch

        cuda = self.network.device.type == "cuda"
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}" if cuda else "cpu"

    def work(self, items: Sequence[WorkItem]) -> None:
        from PIL import Image

        pictures = {}
        for item in items:
            if (pixels := item.decoded()) is not None:
                pictures[item.index] = _reduced(Image.fromarray(pixels))
        waiting = [item for item in items if not item.reason]
        why: dict[int, str] = {}
        for attempt in range(self.spec.tries):
            if not waiting:
                return
            answers = self.answers([pictures[i.index] for i in waiting], [self.prompt(i) for i in waiting], attempt)
            for item, answer in zip(waiting, answers, strict=True):
                item.caption, why[item.index] = checked(answer, self.spec.words)
                item.detail = "" if item.caption else f"{why[item.index]}: {answer[:120]!r}"
            waiting = [item for item in waiting if not item.caption]
        for item in waiting:
            detail, item.detail = item.detail, ""
            item.drop(f"caption: {why[item.index]}", detail)

    def prompt(self, item: WorkItem) -> str:
        """What the model is asked of an item."""
        raw = item.raw_caption[:RAW].replace('"', "'")
        return PROMPT.format(words=self.spec.words, known=KNOWN.format(raw=raw) if raw else "")

    def answers(self, pictures: Sequence[Any], prompts: Sequence[str], attempt: int) -> list[str]:
        """The model's texts. The first attempt takes the likeliest words, later ones are drawn, seeded by `attempt`."""
        import torch

        talks = [
            [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": prompt}]}]
            for picture, prompt in zip(pictures, prompts, strict=True)
        ]
        texts = self.processor.apply_chat_template(talks, add_generation_prompt=True, tokenize=False)
        inputs = self.processor(images=list(pictures), text=texts, padding=True, return_tensors="pt")
        inputs = inputs.to(self.network.device)
        drawn = {"do_sample": True, "temperature": 0.7, "top_p": 0.9} if attempt else {"do_sample": False}
        torch.manual_seed(attempt)
        with torch.inference_mode():
            made = self.network.generate(**inputs, max_new_tokens=4 * self.spec.words, **drawn)
        return self.processor.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
