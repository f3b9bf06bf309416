"""`recipe=tokens`: the token ids of captioned images, and where asked the states of their captions, once, into shards.

What a generator trains on (paper, section 4.3): the ids of the frozen tokenizer and flan-t5-xl's features, which would
cost more than the training if every epoch made them again. Shards are made one by one, each by whichever process takes
it first, and written whole; the same command, in as many processes as one likes, makes those that are missing.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lactok import registry
from lactok.checkpoint_file import tensors_sha256
from lactok.data.batches import centre_crop, to_tensor
from lactok.data.captioned import CaptionedImage, captioned_images
from lactok.data.folder import DataError, decoded
from lactok.data.held_out import held_out_name
from lactok.data.token_shards import INDEX, ShardIndex, ShardRecord, pack_texts, record_of, write_shard
from lactok.files import explained, write_atomically
from lactok.images.decode import ImageError
from lactok.interface import Tokenizer, Tokens
from lactok.locks import LockHeld, Owner, sole_lock
from lactok.progress import Meter
from lactok.train.dry_run import described_weights
from lactok.train.precision import resolve
from lactok.train.run_folder import RunFolderError
from lactok.weights import LocalWeights, WeightsSource, identity_of, locate, locate_all, told_as

if TYPE_CHECKING:
    from lactok.generators.text_encoder import TextEncoder
    from lactok.train.config import TrainConfig

FLAN, NONE = "flan-t5-xl", "none"
TEXTS = (FLAN, NONE)
POLL = 1.0
"""Seconds between looks for shards that other processes are making."""


@dataclass
class TokensOptions:
    """tokenizer: registered name of what makes the ids; tokenizer_weights: a local checkpoint of it.

    text: "flan-t5-xl", whose states are stored, or "none": captions alone, for a generator with a text encoder of its
    own. text_encoder: a local folder of flan-t5-xl. clean: whether captions are cleaned before they are encoded, as by
    LlamaGen's scripts. shard_size: images a shard.
    """

    tokenizer: str = "llamagen-t2i"
    tokenizer_weights: str | None = None
    text: str = FLAN
    text_encoder: str | None = None
    clean: bool = True
    shard_size: int = 1000

    def __post_init__(self) -> None:
        if self.text not in TEXTS:
            raise ValueError(f"text={self.text}: expected {' or '.join(TEXTS)}")
        if self.shard_size < 1:
            raise ValueError(f"shard_size={self.shard_size}: expected at least 1")


class TokenExtraction:
    """Stands among the recipes, but nothing is trained: `run` makes the shards."""

    Options: ClassVar[type] = TokensOptions
    path_options: ClassVar[tuple[str, ...]] = ("tokenizer_weights", "text_encoder")
    used: ClassVar[tuple[str, ...]] = (
        "recipe", "scale", "data.root", "out", "batch_size", "precision", "device", "threads", "stop_after_minutes",
        "dry_run",
    )  # fmt: skip
    """The loop's keys that mean something here."""

    @classmethod
    def with_inputs(cls, options: TokensOptions, runs: Path) -> TokensOptions:
        """`options`: no earlier run leaves it anything."""
        return options

    @classmethod
    def missing_start(cls, options: TokensOptions) -> None:
        """It starts from nothing."""

    @classmethod
    def sources(cls, options: TokensOptions) -> tuple[WeightsSource, ...]:
        """The tokenizer's checkpoints, then the text encoder's files."""
        plugin, chosen = _plugin(options)
        ids = (told_as(one, "weights", "options.tokenizer_weights") for one in plugin.weights(chosen))
        return (*ids, *_text_sources(options))

    def __init__(self, config: TrainConfig, check_held_out: bool = True) -> None:
        """List the images, load the networks where shards are missing, and claim the folder.

        Raises DataError, WeightsError, RunFolderError.
        """
        self.started = time.monotonic()
        if len(config.data.roots) != 1:
            raise DataError(f"data.root={config.data.root}: expected one folder; extract each into a folder of its own")
        self.config, self.options, self.folder = config, config.options, config.folder
        self.check_held_out = check_held_out
        locate_all(self.sources(self.options))
        if self.options.text != NONE and self.options.clean:
            _require_cleaning()
        self.images = captioned_images(config.data.roots[0], self.folder)
        plugin, chosen = _plugin(self.options)
        sources = plugin.weights(chosen)
        self.tokenizer_identity = " ".join([self.options.tokenizer, *(identity_of(source) for source in sources)])
        alone = sources[0] if len(sources) == 1 else None  # of several files, none is the encoder's alone
        self.vq = tensors_sha256(locate(alone)) if isinstance(alone, LocalWeights) else ""
        self.text_identity = " ".join(identity_of(source) for source in _text_sources(self.options))
        self._claim(write=False)
        missing = any(not self._path(number).is_file() for number in range(len(self._parts)))
        self.encoder = _Encoder(self) if missing else None  # what it refuses, it refuses before the folder is bound
        self._claim()

    def _claim(self, write: bool = True) -> None:
        """Compare what the folder's shards are made from with what stands there, or note it."""
        wanted = {
            "data": self.images.identity,
            "tokenizer": self.tokenizer_identity,
            "text": f"{self.text_identity} clean={self.options.clean}" if self.text_identity else NONE,
            "shard_size": self.options.shard_size,
            "precision": resolve(self.config.precision, self.config.device),
        }
        path = self.folder / "config.json"
        try:
            seen = json.loads(path.read_bytes())
            if not isinstance(seen, dict):
                raise ValueError(f"it holds a {type(seen).__name__}")
        except FileNotFoundError:
            if shards := sorted(self.folder.glob("tokens-*.safetensors")):
                raise RunFolderError(
                    f"{self.folder} has {shards[0].name}, but no {path.name} that says of what: put a copy of it back, "
                    "name another out=, or delete the folder"
                ) from None
            if write:
                write_atomically(path, (json.dumps(wanted, indent=1) + "\n").encode())
            return
        except (OSError, ValueError) as error:
            raise RunFolderError(f"{path} can't be read ({error}): delete {self.folder} to start anew") from error
        differ = [key for key in sorted(seen.keys() | wanted.keys()) if seen.get(key) != wanted.get(key)]
        if differ:
            lines = "\n".join(f"  {key}: {seen.get(key)} in the folder, {wanted.get(key)} now" for key in differ)
            raise RunFolderError(
                f"{self.folder} holds shards of something else:\n{lines}\nName another out=, or delete the folder"
            )

    @property
    def _parts(self) -> list[range]:
        size, count = self.options.shard_size, len(self.images)
        return [range(start, min(start + size, count)) for start in range(0, count, size)]

    def run(self) -> ShardIndex | None:
        """Make the shards that are missing, wait for those that others make, and write the index.

        None after `stop_after_minutes`, which is looked at between shards: some are still missing.
        Raises WriteError, and DataError when no image could be used.
        """
        parts = self._parts
        waiting = {number: part for number, part in enumerate(parts) if not self._path(number).is_file()}
        total, told = len(self.images), False
        done = total - sum(map(len, waiting.values()))
        with Meter(total, "extracting tokens", done=done) as meter:
            while waiting:
                held: str | None = None
                for number, part in list(waiting.items()):
                    if self._time_is_over():
                        return None
                    with contextlib.ExitStack() as lock:
                        try:
                            self._lock(number, lock)
                        except LockHeld as error:
                            held = self._holder(number, error.owner)
                            continue
                        if not self._path(number).is_file():
                            self.encoder = self.encoder or _Encoder(self)  # a shard was deleted meanwhile
                            self._make(number, part, self.encoder, meter, done)
                    del waiting[number]
                    done += len(part)
                    meter.at(done)
                if held and not told:
                    told = True
                    print(f"waiting for {len(waiting)} shard(s) of {held}", file=sys.stderr)
                if held:
                    if self._time_is_over():
                        return None
                    time.sleep(POLL)
        return self._index(len(parts))

    def _time_is_over(self) -> bool:
        limit = self.config.stop_after_minutes
        return limit is not None and time.monotonic() - self.started >= 60 * limit

    def _holder(self, number: int, owner: Owner | None) -> str:
        """Who holds a shard's lock. Whether a process of another machine still runs can't be seen."""
        if owner is None:
            return "another process"
        name, here = f"process {owner.pid} on {owner.host}", socket.gethostname()
        if owner.host == here:
            return name
        return f"{name}; if that process is no more (from {here} it can't be seen), delete {self._lock_path(number)}"

    def _lock_path(self, number: int) -> Path:
        return self.folder / f".{self._path(number).name}.lock"

    def _lock(self, number: int, until: contextlib.ExitStack) -> None:
        """Hold a shard's lock for as long as the stack is open. Raises LockHeld, WriteError."""
        lock = self._lock_path(number)
        with explained(lock):
            until.enter_context(sole_lock(lock))

    def _path(self, number: int) -> Path:
        return self.folder / f"tokens-{number:05d}.safetensors"

    def _left_out_path(self, number: int) -> Path:
        return self.folder / f"left-out-{number:05d}.json"

    def _make(self, number: int, part: Sequence[int], encoder: _Encoder, meter: Meter, done: int) -> None:
        """One shard. What could not be used is noted beside it, before it. An index of other shards goes first."""
        for stale in (self.folder / INDEX, self._left_out_path(number)):
            with explained(stale):
                stale.unlink(missing_ok=True)
        rows: list[Tensor] = []
        states: list[Tensor] = []
        kept: list[CaptionedImage] = []
        left_out: list[tuple[str, str]] = []
        for start in range(0, len(part), self.config.batch_size):
            batch = [self.images[i] for i in part[start : start + self.config.batch_size]]
            pixels = [self._pixels(image, encoder) for image in batch]
            left_out += [(image.name, why) for image, why in zip(batch, pixels) if isinstance(why, str)]
            good = [(image, p) for image, p in zip(batch, pixels) if not isinstance(p, str)]
            if good:
                rows.append(encoder.ids([p for _, p in good]))
                states += encoder.states([image.caption for image, _ in good])
                kept += [image for image, _ in good]
            meter.at(done + start + len(batch))
        if left_out:
            write_atomically(self._left_out_path(number), (json.dumps(left_out, indent=1) + "\n").encode())
        ids = torch.cat(rows) if rows else torch.zeros(0, encoder.tokens, dtype=torch.int32)
        tensors = {"ids": ids, **pack_texts("captions", [image.caption for image in kept])}
        tensors |= pack_texts("names", [image.name for image in kept])
        if encoder.text is not None:
            lengths = np.cumsum([len(one) for one in states], dtype=np.int64)
            width = encoder.text.encoder.config.d_model
            joined = torch.cat(states) if states else torch.zeros(0, width, dtype=torch.bfloat16)
            tensors |= {"states": joined, "states_ends": torch.from_numpy(lengths)}
        write_shard(self._path(number), tensors)

    def _pixels(self, image: CaptionedImage, encoder: _Encoder) -> np.ndarray | str:
        """The centre square, uint8 (size, size, 3), by Pillow's antialiased bicubic filter; or why it is left out."""
        if problem := image.problem or encoder.why_not(image.caption):
            return problem
        try:
            data = image.read()
            pixels = decoded(data)
        except ImageError as error:
            return error.reason
        if self.check_held_out and (name := held_out_name(sha256(data).hexdigest(), pixels)):
            return f"is {name} of scikit-image, which the benchmark evaluates"
        return centre_crop(pixels, encoder.size, min(pixels.shape[:2]))

    def _index(self, count: int) -> ShardIndex:
        index = self._written()
        if index is not None and [shard.file for shard in index.shards] == [self._path(i).name for i in range(count)]:
            return index
        records: list[ShardRecord] = [record_of(self._path(number)) for number in range(count)]
        reasons: Counter[str] = Counter()
        for number in range(count):
            if self._left_out_path(number).is_file():
                reasons.update(why for _, why in json.loads(self._left_out_path(number).read_bytes()))
        if not sum(record.count for record in records):
            raise DataError(f"none of the {len(self.images)} images could be used: {dict(reasons)}")
        info = _info(self.options)
        codebook = info.codebook_size
        assert isinstance(codebook, int), "ids of several codebooks"
        index = ShardIndex(
            tokenizer=self.tokenizer_identity,
            tokens=info.tokens_per_image or 0,
            codebook_size=codebook,
            vq=self.vq,
            text_encoder=self.text_identity,
            positions=_positions() if self.text_identity else 0,
            caption_dim=_width(self._path(0)) if self.text_identity else 0,
            shards=tuple(records),
            left_out=dict(reasons),
        )
        index.write(self.folder)
        return index

    def _written(self) -> ShardIndex | None:
        return ShardIndex.read(self.folder) if (self.folder / INDEX).is_file() else None


def _plugin(options: TokensOptions) -> tuple[type[Tokenizer], Any]:
    """The tokenizer's class and its options. Raises RegistryError for a name that is none."""
    plugin = registry.load("tokenizers", options.tokenizer)
    try:
        return plugin, plugin.Options(**({"weights": options.tokenizer_weights} if options.tokenizer_weights else {}))
    except TypeError as error:
        raise DataError(f"options.tokenizer_weights: {options.tokenizer} takes no file of weights") from error


def _require_cleaning() -> None:
    """Raises DataError where what cleans captions is not installed."""
    from lactok.generators.captions import clean_caption

    try:
        clean_caption("")
    except ModuleNotFoundError as error:
        raise DataError(f"options.clean=true: {error}") from error


def _info(options: TokensOptions) -> Any:
    plugin, chosen = _plugin(options)
    return plugin(chosen, torch.device("cpu")).info


def _text_sources(options: TokensOptions) -> tuple[WeightsSource, ...]:
    if options.text == NONE:
        return ()
    from lactok.generators.text_encoder import text_encoder_sources

    sources = text_encoder_sources(options.text_encoder)
    return tuple(told_as(source, "text_encoder", "options.text_encoder") for source in sources)


def _positions() -> int:
    from lactok.generators.text_encoder import POSITIONS

    return POSITIONS


def _width(path: Path) -> int:
    from safetensors import safe_open

    with safe_open(str(path), "pt") as file:
        return file.get_slice("states").get_shape()[1]


class _Encoder:
    """The networks on their device. text: None where no states are wanted."""

    def __init__(self, extraction: TokenExtraction) -> None:
        from accelerate import PartialState

        config, options = extraction.config, extraction.options
        if config.threads:
            torch.set_num_threads(config.threads)
        self.device = PartialState(cpu=config.device == "cpu").device
        if config.device == "cuda" and self.device.type != "cuda":
            raise DataError("device=cuda: torch finds no CUDA device here; leave device out, or name device=cpu")
        plugin, chosen = _plugin(options)
        self.tokenizer = plugin(chosen, self.device)
        info = self.tokenizer.info
        if not isinstance(info.codebook_size, int) or info.tokens_per_image is None or info.input_size is None:
            raise DataError(f"options.tokenizer={options.tokenizer}: expected one with one id a position, of one size")
        self.size, self.tokens = info.input_size, info.tokens_per_image
        self.autocast = resolve(config.precision, config.device) == "bf16"
        self.clean = options.clean
        self.text: TextEncoder | None = None
        if options.text == FLAN:
            from lactok.generators.text_encoder import TextEncoder

            self.text = TextEncoder.load(self.device, options.text_encoder, torch.bfloat16)

    @torch.no_grad()
    def ids(self, pixels: Sequence[np.ndarray]) -> Tensor:
        """int32 (B, N) of uint8 (S, S, 3) each."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            encoded = self.tokenizer.encode(to_tensor(pixels, self.device))
        if not isinstance(encoded, Tokens) or encoded.ids.ndim != 2:
            raise DataError("the tokenizer gives no ids (B, N): expected one with one id a position")
        return encoded.ids.to("cpu", torch.int32)

    def why_not(self, caption: str) -> str | None:
        """Why a caption can't be encoded; None where it can."""
        from lactok.generators.captions import why_not_clean

        return why_not_clean(caption) if self.text is not None and self.clean else None

    def states(self, captions: Sequence[str]) -> list[Tensor]:
        """bfloat16 (L, D) each, without padding; none where no states are wanted."""
        if self.text is None:
            return []
        states, seen = self.text(captions, self.clean)
        return [one[mask.bool()].to("cpu", torch.bfloat16) for one, mask in zip(states, seen)]


def report(index: ShardIndex, folder: Path) -> Iterator[str]:
    """What was extracted, line by line."""
    yield f"done: {index.count:,} images in {len(index.shards):,} shards in {folder}"
    yield f"  {index.tokens} ids of {index.codebook_size:,} an image, by {index.tokenizer.split()[0]}"
    for reason, count in sorted(index.left_out.items(), key=lambda pair: -pair[1])[:10]:
        yield f"  left out: {count:,} ({reason}); see {folder}/left-out-*.json"


def describe(config: TrainConfig) -> Iterator[str]:
    """What a dry run says: the weights and the images. Raises DataError."""
    yield f"{config.name}: a dry run; nothing is extracted, fetched or written"
    yield from described_weights(TokenExtraction.sources(config.options))
    for root in config.data.roots:
        count = len(captioned_images(root))
        shards = -(-count // config.options.shard_size)
        yield f"{'data':<12}{count:,} images below {root}, for {shards:,} shards"


def extract(config: TrainConfig, check_held_out: bool = True) -> int:
    """Make all shards, or describe that for a dry run; the exit status. Raises what `TokenExtraction` raises."""
    try:
        lines = describe(config) if config.dry_run else _made(config, check_held_out)
        for line in lines:
            print(line, file=sys.stdout)
    except KeyboardInterrupt:
        print("stopped (SIGINT); the same command resumes")
        return 130
    return 0


def _made(config: TrainConfig, check_held_out: bool) -> Iterator[str]:
    index = TokenExtraction(config, check_held_out).run()
    if index is None:
        return iter(["stopped (stop_after_minutes), finished shards are kept; the same command resumes"])
    return report(index, config.folder)
