"""`python -m evals selftest NAME`: whether a tokenizer keeps the interface's word, before an expensive run."""

from __future__ import annotations

import contextlib
import itertools
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lactok.interface import Latents, TokenizerInfo, Tokens

HELP = """\
usage: python -m evals selftest NAME [options.KEY=VALUE ...] [device=auto] [seconds=20]

Builds a tokenizer (a registered name, or FILE.py:CLASS) and checks what lactok/interface.py promises: its facts, the
form of its tokens and images, that the same input gives the same output whatever came before, beside it, or in which
batch, that noise comes from the seeds alone, and how fast it is. One line a check: ok, failed or skipped, and why.

    python -m evals selftest ./my_tok.py:MyTok options.grid=16

seconds=N: about how long speed is measured. Exit status: 0 all that applies is ok, 1 a check failed, 2 wrong arguments.
"""
KEYS = ("device", "seconds")
# Images of the checks: cut from the photographs that ship, all different.
IMAGES = 6
# Two outputs of the same input: convolutions may differ in the last bits between batch sizes.
CLOSE = 1e-3
# Ids that may differ between batch sizes: an image near the border of two codes.
FEW_IDS = 0.01


# A wrong convention of colours is told where it leaves less than this share of the squared error.
CLEARLY = 0.7


class Wrong(Exception):
    """What a check found; the message is in the words of the interface."""


class Skipped(Exception):
    """Why a check does not apply."""


@dataclass
class Subject:
    """What the checks look at. images: float32 (IMAGES, 3, S, S); encoded, decoded: of the first calls."""

    model: Any
    device: torch.device
    seconds: float
    side: int = 0
    images: Any = None
    encoded: Any = None
    decoded: Any = None

    @property
    def info(self) -> TokenizerInfo:
        return self.model.info

    def encode(self, images: Tensor) -> Tokens | Latents:
        """A copy of what encode gives for a copy of these images, checked."""
        from evals.engine.checks import check_encoded

        with _calling(self.device):
            return check_encoded(self.model.encode(images.clone()), len(images), self.info)

    def decode(self, encoded: Tokens | Latents, seeds: list[int]) -> Tensor:
        import torch

        from evals.engine.checks import PluginError

        with _calling(self.device):
            images = self.model.decode(encoded.owned(), seeds)
            if not isinstance(images, torch.Tensor):
                raise PluginError(f"decode returned {type(images).__name__}, expected a float tensor (B, 3, H, W)")
            return images.clone()


_calls = itertools.count(1)


@contextlib.contextmanager
def _calling(device: torch.device) -> Iterator[None]:
    """As the harness calls a model, but for the global random states, which are others at each call."""
    import random

    import numpy as np
    import torch

    from evals.engine.environment import precision
    from evals.engine.isolation import isolated

    with isolated(), precision("fp32", device):
        seed = next(_calls)
        random.seed(seed)
        np.random.seed(seed)  # it is the global state that a plugin may draw from
        torch.manual_seed(seed)
        yield


def main(argv: list[str]) -> int:
    """Run the checks in turn and print a line each; see HELP for the exit status."""
    if not argv or {"-h", "--help"} & set(argv):
        print(HELP, end="")
        return 0 if argv else 2
    from evals.config import ConfigError
    from lactok.registry import RegistryError
    from lactok.weights import WeightsError

    try:
        row, device, seconds = _asked(argv)
    except (ConfigError, RegistryError, WeightsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"selftest of {row.label} on {device}")
    if row.cls is None:
        print(f"failed   import          {row.error}")
        print(row.trace, file=sys.stderr)
        return 1
    try:
        with _calling(device):
            subject = Subject(_told_an_item(row.cls(row.options, device)), device, seconds)
    except (Exception, SystemExit) as error:  # a plugin may fail in any way
        print(f"failed   build           {type(error).__name__}: {error}")
        traceback.print_exception(error)
        return 1
    failed = 0
    for name, check in CHECKS:
        status, said = _outcome(check, subject)
        failed += status == "failed"
        print(f"{status:<8} {name:<15} {said}", flush=True)
        if status == "failed" and name in NEEDED:
            print(f"The other checks need {name}.")
            break
    print("all that applies is ok" if not failed else f"{failed} check(s) failed")
    return 1 if failed else 0


def _asked(argv: list[str]) -> tuple[Any, torch.device, float]:
    """The row to check, the device, and seconds of speed. Raises ConfigError."""
    from evals.config import ConfigError, compose_config
    from evals.engine.environment import choose_device
    from evals.engine.rows import Wanted, resolve_rows
    from lactok.interface import Tokenizer
    from lactok.registry import is_target, short_name, unknown

    names = [a for a in argv if "=" not in a]
    if len(names) != 1:
        raise ConfigError(
            f"{len(names)} names ({', '.join(names)}): expected one, as `python -m evals list` shows them"
        )
    name = names[0]
    short = short_name(name) if is_target(name) else name
    overrides, given = [], {}
    for argument in argv:
        key, equals, value = argument.partition("=")
        if not equals:
            continue
        if key.startswith("options."):
            overrides.append(f"options.{short}.{key.removeprefix('options.')}={value}")
        elif key in KEYS:
            given[key] = value
        else:
            raise ConfigError(unknown("key", key, [*KEYS, "options.KEY"]))
    config = compose_config(overrides)
    wanted = Wanted("tokenizers", [name], "mini", False, config.options, (Tokenizer,))
    rows = resolve_rows(wanted)
    if len(rows) > 1:
        raise ConfigError(f"{len(rows)} rows ({', '.join(row.label for row in rows)}): give an option one value")
    try:
        seconds = float(given.get("seconds", 20))
    except ValueError as error:
        raise ConfigError(f"seconds={given['seconds']}: expected a number") from error
    return rows[0], choose_device(given.get("device", "auto")), seconds


def _told_an_item(model: Any) -> Any:
    """The model; calls that ask for items are given the same one for every image, with its name and no metadata."""
    from lactok.interface import Item, asks_for_items

    one = Item("selftest.png", "selftest.png", "0" * 64)
    for name in ("encode", "decode"):
        if asks_for_items(call := getattr(model, name)):
            setattr(model, name, lambda of, *rest, call=call: call(of, *rest, items=[one] * len(of)))
    return model


def _outcome(check: Callable[[Subject], str], subject: Subject) -> tuple[str, str]:
    from evals.engine.checks import PluginError

    try:
        return "ok", check(subject)
    except Skipped as reason:
        return "skipped", str(reason)
    except (Wrong, PluginError) as error:
        return "failed", " ".join(str(error).split())
    except (Exception, SystemExit) as error:  # a plugin may fail in any way
        frames = traceback.extract_tb(error.__traceback__)
        where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
        return "failed", " ".join(f"{type(error).__name__}: {error}{where}".split())


def _info(subject: Subject) -> str:
    from evals.engine.checks import check_info
    from lactok.interface import TokenizerInfo

    info = check_info(subject.model.info, type(subject.model))
    if subject.model.info != info:
        raise Wrong("info is another one at each access: expected the same facts")
    assert isinstance(info, TokenizerInfo)
    if (size := info.input_size) is not None and info.output_size is None:
        means = "which means the evaluation's size"
        raise Wrong(f"info.output_size is None, {means}, and input_size is {size}: expected the decoded images' side")
    tokens = f"{info.tokens_per_image} x {info.codebook_size}" if info.tokens_per_image else "no tokens"
    return f"{info.family}, {tokens}"


def _encode(subject: Subject) -> str:
    from lactok.interface import Tokens

    subject.side = subject.info.input_size or 128
    subject.images = _photographs(subject.side).to(subject.device)
    subject.encoded = subject.encode(subject.images)
    if isinstance(subject.encoded, Tokens):
        distinct = len({tuple(ids.flatten().tolist()) for ids in subject.encoded.ids})
        if distinct == 1:
            raise Wrong(f"{IMAGES} different images have the same ids: encode does not see its images")
        used = subject.encoded.ids
        return f"ids {used.dtype} {tuple(used.shape)} from {int(used.min())} to {int(used.max())}"
    return f"latents {tuple(subject.encoded.values.shape)}"


def _decode(subject: Subject) -> str:
    from evals.engine.checks import check_images

    size = subject.info.output_size or subject.side
    subject.decoded = check_images(subject.decode(subject.encoded, _seeds()), IMAGES, size)
    low, high = float(subject.decoded.min()), float(subject.decoded.max())
    return f"{tuple(subject.decoded.shape)}, values from {low:.2f} to {high:.2f}"


def _content(subject: Subject) -> str:
    """No wrong order or sign of colours fits better; most reconstructions are nearest to their own image."""
    import torch
    import torch.nn.functional as F

    ours = F.adaptive_avg_pool2d(subject.decoded.float().clamp(0, 1), 8)
    images = F.adaptive_avg_pool2d(subject.images, 8)
    error = float((ours - images).square().mean())
    for name, other in (("inverted (1 - x)", 1 - ours), ("in the order BGR", ours.flip(1))):
        if float((other - images).square().mean()) < CLEARLY * error:
            raise Wrong(f"decode(encode(x)) has its colours {name}: expected RGB in [0, 1]")
    distances = (ours[:, None] - images[None]).flatten(2).square().mean(2)
    right = int((distances.argmin(1).cpu() == torch.arange(len(distances))).sum())
    said = f"{right} of {IMAGES} reconstructions are nearest to their own image"
    if right <= IMAGES // 2:
        raise Skipped(f"{said}: can't tell, where a tokenizer keeps meaning and no pixels")
    return said


def _encode_repeats(subject: Subject) -> str:
    again = subject.encode(subject.images)
    if (share := _differing(subject.encoded, again)) > 0:
        raise Wrong(f"encode gave other results for the same images ({share:.1%} differ): it must be deterministic")
    return "the same images, the same tokens"


def _decode_repeats(subject: Subject) -> str:
    again = subject.decode(subject.encoded, _seeds())
    if (gap := _gap(again, subject.decoded)) > 0:
        raise Wrong(
            f"decode gave another image for the same tokens and seeds (up to {gap:.2g} apart): noise must come from "
            "seeds[i] alone (torch.Generator().manual_seed(seeds[i]))"
        )
    return "the same tokens and seeds, the same images"


def _seeds_matter(subject: Subject) -> str:
    other = subject.decode(subject.encoded, [seed + 1000 for seed in _seeds()])
    gap = _gap(other, subject.decoded)
    if subject.info.deterministic and gap > 0:
        raise Wrong(f"other seeds give another image ({gap:.2g} apart), but info.deterministic is True")
    if not subject.info.deterministic and gap == 0:
        raise Wrong(
            "other seeds give the same image, but info.deterministic is False: seeds=K would measure it K times"
        )
    return (
        "other seeds, the same image" if subject.info.deterministic else f"other seeds, another image ({gap:.2g} apart)"
    )


def _batch_size(subject: Subject) -> str:
    """One at a time gives what a batch gives."""
    import torch

    single = [subject.encode(subject.images[i : i + 1]) for i in range(IMAGES)]
    share = _differing(subject.encoded, type(subject.encoded).cat(single))
    if share > FEW_IDS:
        raise Wrong(f"encode depends on the batch: {share:.1%} of the tokens differ when images come one at a time")
    seeds = _seeds()
    images = [subject.decode(subject.encoded[i : i + 1], seeds[i : i + 1]) for i in range(IMAGES)]
    if (gap := _gap(torch.cat(images), subject.decoded)) > CLOSE:
        raise Wrong(f"decode depends on the batch: images are up to {gap:.2g} apart when they come one at a time")
    return f"one at a time as in a batch of {IMAGES} ({share:.1%} of tokens, {gap:.1g} in images)"


def _order(subject: Subject) -> str:
    back = list(range(IMAGES))[::-1]
    share = _differing(subject.encoded[back], subject.encode(subject.images[back]))
    if share > FEW_IDS:
        raise Wrong(f"encode depends on the order: {share:.1%} of the tokens differ when the batch is reversed")
    seeds = [_seeds()[i] for i in back]
    if (gap := _gap(subject.decode(subject.encoded[back], seeds), subject.decoded[back])) > CLOSE:
        raise Wrong(f"decode depends on the order: images are up to {gap:.2g} apart when the batch is reversed")
    return "a reversed batch gives the reversed result"


def _state(subject: Subject) -> str:
    """After other work, the first results come again."""
    other = subject.encode(1 - subject.images[:2])
    gap = _gap(subject.decode(subject.encoded, _seeds()), subject.decoded)
    subject.decode(other, _seeds()[:2])
    share = _differing(subject.encoded, subject.encode(subject.images))
    if share > 0 or gap > 0:
        raise Wrong(
            f"a call changes later ones ({share:.1%} of tokens, {gap:.2g} in images): state is kept between calls (a "
            "network in train mode, a cache, a counter)"
        )
    return "other calls between change nothing"


def _arguments(subject: Subject) -> str:
    images = subject.images.clone()
    with _calling(subject.device):
        encoded = subject.model.encode(images).owned()
    kept = encoded.owned()
    with _calling(subject.device):
        subject.model.decode(encoded, _seeds())
    changed = [name for name, same in (("encode its images", _gap(images, subject.images) == 0),
                                       ("decode its tokens", _differing(kept, encoded) == 0)) if not same]  # fmt: skip
    if changed:
        return f"{' and '.join(changed)} overwritten; the harness gives copies, other callers may not"
    return "arguments are left as they were"


def _buffers(subject: Subject) -> str:
    with _calling(subject.device):
        first, second = (
            subject.model.encode(subject.images[:1].clone()),
            subject.model.encode(subject.images[1:2].clone()),
        )
        tokens = subject.encoded[:2]
        one, two = (subject.model.decode(tokens[i : i + 1].owned(), _seeds()[i : i + 1]) for i in range(2))
    shared = [n for n, a, b in (("encode", _values(first), _values(second)), ("decode", one, two))
              if a.data_ptr() == b.data_ptr()]  # fmt: skip
    if shared:
        return f"{' and '.join(shared)} gives the same buffer at each call; the harness copies, other callers must"
    return "each call gives memory of its own"


def _ids(subject: Subject) -> str:
    """Any ids in range decode, the first and the last one too."""
    import torch

    from evals.engine.checks import check_images
    from lactok.interface import Tokens

    if not isinstance(subject.encoded, Tokens):
        raise Skipped("a continuous autoencoder has no ids")
    sizes = torch.as_tensor(subject.info.codebook_size, device=subject.device)
    edges = [torch.zeros_like(subject.encoded.ids[:1]), (sizes - 1).expand_as(subject.encoded.ids[:1]).clone()]
    lengths = subject.encoded.lengths
    tokens = Tokens(torch.cat(edges), None if lengths is None else lengths[:1].expand(2).clone())
    size = subject.info.output_size or subject.side
    try:
        check_images(subject.decode(tokens, _seeds()[:2]), 2, size)
    except (IndexError, RuntimeError, ValueError) as error:
        raise Wrong(f"decode can't take ids 0 and {subject.info.codebook_size} - 1: {error}") from error
    return f"ids 0 and {subject.info.codebook_size} - 1 decode"


def _sizes(subject: Subject) -> str:
    """Where it takes any size: images that are not square come back in their shape."""
    if subject.info.input_size is not None or subject.info.output_size is not None:
        raise Skipped(
            f"it states native sizes ({subject.info.input_size} in, {subject.info.output_size} out); all are square"
        )
    images = subject.images[:1, :, :64, :]
    decoded = subject.decode(subject.encode(images), _seeds()[:1])
    if decoded.shape != images.shape:
        raise Wrong(f"input_size None takes any size: {tuple(images.shape)} came back as {tuple(decoded.shape)}")
    return f"{tuple(images.shape[2:])} comes back in its shape"


def _speed(subject: Subject) -> str:
    """Images a second of encode and decode at batch 1, and at the best batch that is tried; peak memory."""
    from evals.engine.batches import Batcher, is_out_of_memory

    best: dict[str, tuple[float, int]] = {}
    single: dict[str, float] = {}
    peak, began, batch = 0.0, time.monotonic(), 1
    while batch <= 64 and (batch == 1 or time.monotonic() - began < subject.seconds):
        rows = [i % IMAGES for i in range(batch)]
        calls = {
            "encode": partial(_whole, subject.encode, subject.images[rows]),
            "decode": partial(_whole, subject.decode, subject.encoded[rows], list(range(batch))),
        }
        try:
            for step, call in calls.items():
                _, timed = Batcher(batch, subject.device).run(batch, call)
                rate, peak = batch / max(timed.seconds, 1e-9), max(peak, timed.peak_mib)
                single.setdefault(step, rate)
                if rate > best.get(step, (0.0, 0))[0]:
                    best[step] = rate, batch
        except (RuntimeError, MemoryError) as error:
            if batch == 1 or not is_out_of_memory(error):
                raise
            break
        batch *= 2
    rates = ", ".join(f"{s} {single[s]:,.1f} images/s at batch 1, {r:,.1f} at {b}" for s, (r, b) in best.items())
    return f"{rates}; peak memory {peak:,.0f} MiB" + (" of the process" if subject.device.type == "cpu" else "")


def _whole(call: Callable[..., Any], *arguments: Any) -> Any:
    """A call of the whole batch; the last argument is the slice that a Batcher asks for."""
    return call(*arguments[:-1])


CHECKS: tuple[tuple[str, Callable[[Subject], str]], ...] = (
    ("info", _info),
    ("encode", _encode),
    ("decode", _decode),
    ("content", _content),
    ("encode repeats", _encode_repeats),
    ("decode repeats", _decode_repeats),
    ("seeds", _seeds_matter),
    ("batch size", _batch_size),
    ("order", _order),
    ("state", _state),
    ("arguments", _arguments),
    ("buffers", _buffers),
    ("ids", _ids),
    ("other sizes", _sizes),
    ("speed", _speed),
)
NEEDED = ("info", "encode", "decode")
"""Checks without which the others have nothing to look at."""


def _photographs(side: int) -> Tensor:
    """float32 (IMAGES, 3, side, side) in [0, 1]: squares of scikit-image's photographs, all different."""
    import torch
    from skimage import data

    from evals.tasks.protocol import ReconstructionProtocol
    from evals.tasks.reconstruction import evaluation_image, to_tensor

    protocol = ReconstructionProtocol("selftest", eval_size=max(side, 16), fit="crop")
    sources = [data.astronaut(), data.coffee(), data.chelsea()]
    cuts = [cut for image in sources for cut in (image[:300, :300], image[-280:, -280:])]
    return torch.as_tensor(to_tensor([evaluation_image(cut, protocol) for cut in cuts[:IMAGES]])).float() / 255


def _seeds() -> list[int]:
    return [7_919 * (i + 1) for i in range(IMAGES)]


def _values(encoded: Tokens | Latents) -> Tensor:
    from lactok.interface import Tokens

    return encoded.ids if isinstance(encoded, Tokens) else encoded.values


def _differing(a: Tokens | Latents, b: Tokens | Latents) -> float:
    """The share of tokens that differ; of latents, of values that are not close."""
    from lactok.interface import Tokens

    x, y = _values(a), _values(b)
    if x.shape != y.shape:
        return 1.0
    if not isinstance(a, Tokens):
        return float(((x - y).abs() > CLOSE * (1 + x.abs())).float().mean())
    lengths = (
        isinstance(b, Tokens) and a.lengths is not None and b.lengths is not None and (a.lengths != b.lengths).any()
    )
    return 1.0 if lengths else float((x != y).float().mean())


def _gap(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).abs().max()) if a.shape == b.shape else float("inf")
