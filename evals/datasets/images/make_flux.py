"""Makes FLUX-5K: an image for each prompt of a file, by FLUX.1-dev, with a seed that follows from the prompt.

Killed at any moment, the same command resumes: an image is written whole or not at all, then recorded; what is
recorded and unchanged is not made again. A folder that was begun with other settings or prompts is refused.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from PIL import Image

from evals.datasets.base import DatasetError, MissingData
from evals.datasets.images import coco
from evals.datasets.images.flux import IMAGES, MANIFEST, SETTINGS, Made, manifest_line, read_manifest
from evals.datasets.prompts.prompts import read_text
from lactok.files import append_line, write_atomically

REPOSITORY = "black-forest-labs/FLUX.1-dev"
# The revision that public projects pin, e.g. in the paths of their model caches.
REVISION = "3de623fc3c33e44ffbe2bad470d0f45bccf2eb21"

# Files of the repository that hold the same weights in another layout.
LEFT_OUT = ("flux1-dev.safetensors", "ae.safetensors")

# (prompt, seed) to an image.
Painter = Callable[[str, int], Image.Image]


@dataclass(frozen=True)
class Settings:
    """What a folder is made with. side: pixels of a square; steps, guidance, tokens (of the prompt): those of the
    example for FLUX.1-dev in diffusers' documentation; prompts_sha256: hex, of the prompts joined by line ends."""

    prompts_sha256: str
    prompts: int
    repository: str = REPOSITORY
    revision: str = REVISION
    side: int = 1024
    steps: int = 50
    guidance: float = 3.5
    tokens: int = 512


def read_prompts(path: Path) -> list[str]:
    """A text file's lines, or of a COCO captions json the first caption (smallest id) of each image, by image.

    Raises MissingData, DatasetError for an empty line, no line or more than 5,000, DataError for a bad json.
    """
    if not path.is_file():
        raise MissingData(
            f"prompts={path} does not exist (absolute: {path.absolute()}): expected a text file of a prompt a line, or "
            "COCO's captions_val2017.json, of which the first caption of each image is taken"
        )
    if path.suffix == ".json":
        first = {c.image: c.text for c in reversed(coco.parse_captions(path.read_bytes(), str(path)))}
        prompts = [first[image] for image in sorted(first)]
    else:
        prompts = [line.strip() for line in read_text(path).splitlines()]
    if not 1 <= len(prompts) <= IMAGES or not all(prompts):
        empty = next((f"; line {n} is empty" for n, prompt in enumerate(prompts, 1) if not prompt), "")
        raise DatasetError(f"prompts={path} has {len(prompts):,} prompts{empty}: expected 1 to {IMAGES:,}, none empty")
    return prompts


def seed_of(index: int, prompt: str) -> int:
    """The seed of a prompt's noise, 0 to 2^63 - 1: the first 8 bytes of sha256 over index and text, less a bit."""
    return int.from_bytes(sha256(f"{index}\n{prompt}".encode()).digest()[:8], "big") >> 1


def settings_for(prompts: list[str]) -> Settings:
    """The settings of a folder of these prompts."""
    return Settings(sha256("\n".join(prompts).encode()).hexdigest(), len(prompts))


def pending(prompts: list[str], out: Path) -> list[int]:
    """Begin the folder, or resume it: the indices of the prompts whose images are not there as recorded.

    Raises DatasetError for a folder that was begun otherwise, WriteError when it can't be written.
    """
    _begin(settings_for(prompts), out)
    kept = [made for made in read_manifest(out) if _as_recorded(out, made)]
    write_atomically(out / MANIFEST, "".join(map(manifest_line, kept)).encode())
    there = {made.index for made in kept}
    return [i for i in range(len(prompts)) if i not in there]


def make(prompts: list[str], todo: Iterable[int], out: Path, paint: Painter) -> Iterator[Made]:
    """Paint, write and record the images of `todo`, one after another. Raises WriteError."""
    for index in todo:
        seed = seed_of(index, prompts[index])
        buffer = io.BytesIO()
        paint(prompts[index], seed).save(buffer, format="PNG")
        data = buffer.getvalue()
        made = Made(index, f"{index:05d}.png", prompts[index], seed, sha256(data).hexdigest())
        write_atomically(out / made.file, data)
        append_line(out / MANIFEST, manifest_line(made).encode())
        yield made


def _begin(settings: Settings, out: Path) -> None:
    path = out / SETTINGS
    wanted = asdict(settings)
    try:
        begun = json.loads(path.read_bytes())
    except FileNotFoundError:
        write_atomically(path, (json.dumps(wanted, indent=1) + "\n").encode())
        return
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} can't be read ({error}): name another folder by out=DIR") from error
    differing = sorted(k for k in wanted if begun.get(k) != wanted[k])
    if differing:
        was = ", ".join(f"{k}={begun.get(k)} (now {wanted[k]})" for k in differing)
        raise DatasetError(f"{out} was begun with {was}: name another folder by out=DIR")


def _as_recorded(out: Path, made: Made) -> bool:
    try:
        return sha256((out / made.file).read_bytes()).hexdigest() == made.sha256
    except OSError:
        return False


def _get(settings: Settings) -> str:
    left_out = " ".join(f"--exclude {name}" for name in LEFT_OUT)  # the option takes one name; more would be FILENAMES
    return f"hf download {settings.repository} --revision {settings.revision} {left_out}"


def flux_painter(settings: Settings) -> Painter:
    """FLUX.1-dev on this machine's GPU, in bfloat16. Raises MissingData with all that is missing."""
    import torch
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    missing = []
    if not torch.cuda.is_available():
        missing.append("a CUDA device with about 40 GB (torch sees none)")
    try:
        folder = snapshot_download(
            settings.repository, revision=settings.revision, local_files_only=True,
            ignore_patterns=["*.md", "*.jpg", *LEFT_OUT],
        )  # fmt: skip
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError):
        missing.append(
            f"the weights of {settings.repository} at {settings.revision}, looked for in Hugging Face's cache: accept "
            f"their licence (non-commercial) at https://huggingface.co/{settings.repository}, then `{_get(settings)}`"
        )
    if missing:
        raise MissingData("make-flux needs " + "; and ".join(missing))
    from diffusers import FluxPipeline

    try:
        pipeline = FluxPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16, local_files_only=True).to("cuda")
    except (OSError, ValueError) as error:
        raise MissingData(f"the weights in {folder} are not whole ({error}): run `{_get(settings)}` again") from error
    pipeline.set_progress_bar_config(disable=True)

    def paint(prompt: str, seed: int) -> Image.Image:
        return pipeline(
            prompt,
            height=settings.side,
            width=settings.side,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance,
            max_sequence_length=settings.tokens,
            generator=torch.Generator("cpu").manual_seed(seed),
        ).images[0]

    return paint
