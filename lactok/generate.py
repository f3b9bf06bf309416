"""`python -m lactok.generate "a red circle" out=scene.png`: images from prompts, by any registered generator."""

from __future__ import annotations

import io
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from lactok.interface import Generator

DEFAULT = "lactokgen-t-mini"
USAGE = f"""usage: python -m lactok.generate PROMPT [PROMPT ...] out=FILE.png|DIR [key=value ...]

Makes images of prompts and writes a grid (FILE.png: a row a prompt), or each image and the grid (DIR).

  out              FILE.png, or a folder: 00000-0.png (prompt, output), prompts.txt, grid.png unless it is too large;
                   a folder with images of other prompts is refused
  prompts=FILE     more prompts, one a line
  generator=NAME   a registered generator; default {DEFAULT}, which ships and draws scenes of coloured
                   shapes alone; options.gpt=FILE takes one of `python -m lactok.train recipe=generator`
  count=1          images a prompt
  seed=0           the same seed gives the same images, and those of `python -m evals.run suite=generate seed=0`
  device=auto      auto, cpu or cuda
  batch=8          prompts that are generated together
  options.KEY=V    the generator's own: options.guidance_scale=2

    python -m lactok.generate "two red circles" out=circles.png
    python -m lactok.generate "a red circle left of a blue square" "three keys" count=4 out=scenes.png
    python -m lactok.generate prompts=prompts.txt out=images generator=lactokgen-t-star

`python -m evals list generators` lists the generators and what each needs.
"""
KEYS = ("out", "prompts", "generator", "count", "seed", "device", "batch")
NUMBERS = {"count": 1, "seed": 0, "batch": 1}
"""Keys that take whole numbers, and the least of each."""
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP", ".tiff": "TIFF"}
"""Pillow's formats of images by the ending of their file."""
SIDES = {"JPEG": 65500, "WEBP": 16383}
"""The longest side of an image that Pillow writes in these formats."""
MARGIN = 4
"""Pixels between the images of a grid."""
KEPT = "Images that are in the folder stay there; the same command makes all of them again"
LOST = "No image is kept; the same command makes them again"


class UsageError(Exception):
    """Wrong arguments; the message says what was found and what is expected."""


@dataclass
class Request:
    """What the command line asks for. prompts: in order; options: of the generator, as text."""

    prompts: list[str]
    out: Path
    generator: str = DEFAULT
    count: int = 1
    seed: int = 0
    device: str = "auto"
    batch: int = 8
    options: dict[str, str] = field(default_factory=dict)

    @property
    def is_file(self) -> bool:
        """Whether `out` is one file, not a folder."""
        return bool(self.out.suffix) and not self.out.is_dir()


def parse(arguments: Sequence[str]) -> Request:
    """Arguments of the form key=value with a known key are settings, all others prompts. Raises UsageError."""
    prompts, given, options = [], {}, {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and key in KEYS:
            given[key] = value
        elif equals and re.fullmatch(r"options\.\w+", key):
            options[key.removeprefix("options.")] = value
        elif (equals and re.fullmatch(r"options\..*|[a-z][a-z0-9_.-]*", key)) or re.fullmatch(r"--?[a-z][\w.-]*", key):
            known = ", ".join(KEYS)
            raise UsageError(
                f"{argument!r}: expected KEY=VALUE with KEY one of {known}, options.KEY, or a prompt; a prompt of this "
                "form stands in prompts=FILE"
            )
        else:
            prompts.append(argument)
    prompts += _from_file(given["prompts"]) if "prompts" in given else []
    if not prompts:
        raise UsageError('no prompt: python -m lactok.generate "a red circle" out=scene.png')
    for prompt in prompts:
        if any("\ud800" <= letter <= "\udfff" for letter in prompt):
            raise UsageError(f"the prompt {ascii(prompt)[:80]} is no valid Unicode: give it as UTF-8")
    if not given.get("out"):
        raise UsageError("out is missing: out=scene.png, or out=DIR for a file an image")
    out = Path(given["out"]).expanduser()
    if out.suffix.lower() not in FORMATS and not out.is_dir() and out.suffix:
        raise UsageError(f"out={given['out']}: expected a file ending in {', '.join(FORMATS)}, or a folder")
    device = given.get("device", "auto")
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"device={device}: expected auto, cpu or cuda")
    numbers = {key: _whole(given, key, least) for key, least in NUMBERS.items() if key in given}
    return Request(prompts, out, given.get("generator", DEFAULT), device=device, options=options, **numbers)


def _from_file(name: str) -> list[str]:
    path = Path(name).expanduser()
    try:
        lines = io.StringIO(path.read_bytes().decode("utf-8-sig"), newline=None)  # as dataset=prompts reads them
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"prompts={name} can't be read: {error}; expected UTF-8 text, a prompt a line") from error
    if not (found := [line.strip() for line in lines if line.strip()]):
        raise UsageError(f"prompts={name} holds no prompt")
    return found


def _whole(given: dict[str, str], key: str, least: int) -> int:
    try:
        value = int(given[key])
    except ValueError:
        value = least - 1
    if value < least:
        raise UsageError(f"{key}={given[key]}: expected a whole number of at least {least}")
    return value


def build(request: Request) -> Generator:
    """The generator with its options, on its device. Raises UsageError, WeightsError, RegistryError."""
    import torch

    from lactok import registry
    from lactok.interface import Generator

    plugin = registry.load("generators", request.generator)
    if not issubclass(plugin, Generator):
        raise UsageError(f"generator={request.generator} holds images that others made: expected one that makes them")
    options = _typed_options(plugin.Options, request.options)
    if request.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device=cuda: torch finds no CUDA device here; leave device out, or name device=cpu")
    torch.backends.cudnn.allow_tf32 = False  # as evals.run: else a GPU's images are not those of suite=generate
    chosen = "cpu" if request.device == "cpu" or not torch.cuda.is_available() else "cuda"
    try:
        return plugin(options, torch.device(chosen))
    except ValueError as error:  # an option out of range
        raise UsageError(f"options: {error}") from error


def _typed_options(kind: type, given: dict[str, str]) -> Any:
    """An instance of a generator's `Options`. Raises UsageError for a key that it has not and a value of another type.

    What declares text takes a value as it stands; null is None; lists are written as in JSON.
    """
    import json

    from lactok.registry import unknown
    from lactok.typed import typed

    declared = [f"options.{one.name}" for one in fields(kind)]
    values: dict[str, Any] = {}
    for key, text in given.items():
        if f"options.{key}" not in declared:
            raise UsageError(unknown("option", f"options.{key}", declared))
        value = None if text == "null" else text
        try:
            values |= typed(kind, {key: value}, "options.")
        except ValueError as error:
            try:
                values |= typed(kind, {key: json.loads(text)}, "options.")
            except ValueError:
                raise UsageError(str(error)) from error
    try:
        return kind(**values)
    except (ValueError, TypeError) as error:
        raise UsageError(f"options: {error}") from error


def images_of(generator: Generator, request: Request) -> Iterator[tuple[int, int, Tensor]]:
    """(prompt, output, image (3, H, W)) of each, in order. Raises UsageError naming prompts that it can't take."""
    from lactok.interface import Item, ItemsRefused
    from lactok.items import item_seed, prompt_hash

    items = [Item(str(i), str(i), prompt_hash(prompt), prompt) for i, prompt in enumerate(request.prompts)]
    wanted = [(place, index) for place in range(len(items)) for index in range(request.count)]
    for start in range(0, len(wanted), request.batch):
        part = wanted[start : start + request.batch]
        chosen, indices = [items[place] for place, _ in part], [index for _, index in part]
        seeds = [item_seed(request.seed, index, item.content_hash) for item, index in zip(chosen, indices)]
        try:
            made = generator.generate(chosen, indices, seeds)
        except ItemsRefused as refused:
            reasons = {chosen[place].payload: why for place, why in refused.reasons.items()}
            raise UsageError("\n".join(f"prompt {p[:80]!a}: {why}" for p, why in reasons.items())) from refused
        for (place, index), image in zip(part, made, strict=True):
            yield place, index, image


def run(request: Request) -> int:
    """Make the images and write them; the exit status. Raises what its parts raise, and WriteError."""
    import torch
    from PIL import Image

    from lactok.images.folder import printable
    from lactok.progress import Meter

    started = time.monotonic()
    generator = build(request)
    prepare(request)
    tell_unknown_words(generator, request.prompts)
    rows: list[list[Tensor]] = [[] for _ in request.prompts]
    too_large, made = None, 0
    with Meter(len(request.prompts) * request.count, "generating") as meter:
        for place, index, image in images_of(generator, request):
            pixels = (image.float().clamp(0, 1) * 255 + 0.5).floor().byte().cpu()
            if not made and (too_large := why_no_grid(request, pixels)) and request.is_file:
                raise UsageError(f"out={request.out}: {too_large}; name a folder, which holds each image")
            if not too_large:
                rows[place].append(pixels)
            if not request.is_file:
                _save(Image, pixels, request.out / f"{place:05d}-{index}.png", KEPT)
            made += 1
            meter.advance()
    if not too_large:
        grid = torch.cat([_row(row) for row in rows], 1) if made > 1 else rows[0][0]
        to, then = (request.out, LOST) if request.is_file else (request.out / "grid.png", KEPT)
        _save(Image, grid, to, then)
    settings = ", ".join(f"{key} {value}" for key, value in generator.info.settings.items())
    seconds = time.monotonic() - started
    print(f"done: {made} image(s) in {printable(request.out)} by {request.generator}, {seconds:.1f} s")
    print(f"  {settings}, seed {request.seed}")
    if too_large:
        print(f"  without grid.png: {too_large}")
    return 0


def prepare(request: Request) -> None:
    """See that `out` can be written, and note a folder's prompts, before the work. Raises UsageError, WriteError."""
    from lactok.files import explained, write_atomically

    nothing_yet = "Nothing was generated"
    if request.is_file:
        probe = request.out.with_name(f".{request.out.name}.probe")
        write_atomically(probe, b"", nothing_yet)
        probe.unlink(missing_ok=True)
        return
    with explained(request.out, nothing_yet):
        request.out.mkdir(parents=True, exist_ok=True)
    listed = request.out / "prompts.txt"
    lines = [re.sub(r"[\r\n]+", " ", prompt) for prompt in request.prompts]  # a line each, by its number
    content = ("\n".join(lines) + "\n").encode()
    with explained(listed, nothing_yet):
        if listed.is_file() and listed.read_bytes() != content:
            raise UsageError(f"out={request.out} holds images of other prompts ({listed}): name another folder")
        made = {f"{place:05d}-{index}.png" for place in range(len(request.prompts)) for index in range(request.count)}
        found = sorted(one.name for one in request.out.glob("*.png") if re.fullmatch(r"\d{5,}-\d+\.png", one.name))
        if more := [name for name in found if name not in made]:
            raise UsageError(
                f"out={request.out} holds {more[0]}, which this command would not make: name another folder"
            )
    write_atomically(listed, content, nothing_yet)


def why_no_grid(request: Request, image: Tensor) -> str | None:
    """Why no grid of images like this, uint8 (3, H, W), can be written; None where one can."""
    from PIL import Image

    if (count := len(request.prompts) * request.count) == 1:
        return None
    height, width = (image.shape[1] + MARGIN) * len(request.prompts), (image.shape[2] + MARGIN) * request.count
    kind = FORMATS[request.out.suffix.lower()] if request.is_file else "PNG"
    seen = f"a grid of {count:,} images would have {width:,} x {height:,} pixels"
    if (most := SIDES.get(kind)) and max(height, width) > most:
        return f"{seen}, and {kind} holds {most:,} a side"
    if (most := Image.MAX_IMAGE_PIXELS) and height * width > most:
        return f"{seen}, more than the {most:,} that Pillow opens"
    return None


def tell_unknown_words(generator: Any, prompts: Sequence[str]) -> None:
    """A line on stderr for words that a generator with a vocabulary of its own does not know."""
    find = getattr(generator, "unknown_words", None)
    found = sorted({word for prompt in prompts for word in find(prompt)}) if find else []
    if found:  # a control character is told, not sent to the terminal
        told = [word if word.isprintable() else ascii(word)[1:-1] for word in found[:20]]
        print(f"note: not in the vocabulary, all taken for one word: {', '.join(told)}", file=sys.stderr)


def _row(images: Sequence[Tensor]) -> Tensor:
    """uint8 (3, H + margin, W), one beside the other on white."""
    import torch.nn.functional as F
    from torch import cat

    return cat([F.pad(image, (0, MARGIN, 0, MARGIN), value=255) for image in images], 2)


def _save(image_module: Any, pixels: Tensor, path: Path, then: str) -> None:
    from io import BytesIO

    from lactok.files import write_atomically

    content = BytesIO()
    image_module.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(content, FORMATS[path.suffix.lower()])
    write_atomically(path, content.getvalue(), then)


def main(arguments: list[str]) -> int:
    """Exit status: 0 done, 2 wrong arguments or weights that are missing, 130 stopped by Ctrl-C."""
    if not arguments or {"--help", "-h"} & set(arguments):
        print(USAGE)
        return 0 if arguments else 2
    try:
        request = parse(arguments)
        from lactok.files import WriteError
        from lactok.registry import RegistryError
        from lactok.weights import WeightsError

        try:
            return run(request)
        except (WeightsError, RegistryError, WriteError, ModuleNotFoundError) as error:
            raise UsageError(str(error).replace("options.NAME.", "options.")) from error
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    from lactok.pipes import run_command

    sys.exit(run_command(main))
