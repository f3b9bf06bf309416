"""HART behind the benchmark's interface: the published 0.7b checkpoint for 1024 pixels."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from baselines.generators.hart.config import Parsed, listed, parse_tokenizer, parse_transformer
from baselines.generators.hart.sampler import Context, Sampling, SeededNoise, generate
from baselines.generators.hart.state_dict import HartStateDict, TokenizerStateDict
from baselines.generators.hart.text import load_text_encoder
from baselines.generators.hart.tokenizer import HartTokenizer
from baselines.generators.hart.transformer import HartTransformer
from lactok.generators.calls import in_dtype, prompts_of, require_dtype
from lactok.interface import Generator, GeneratorInfo, Item, TrainingCompute
from lactok.state_dict import errors_name, find_state_dict, meta_skeleton
from lactok.weights import (
    HubWeights,
    LocalWeights,
    WeightsError,
    WeightsSource,
    load_state_dict,
    locate_all,
    saved_network,
)

logger = logging.getLogger(__name__)


@dataclass
class HartOptions:
    """What may be set; the defaults are those of the published sample.py.

    weights: a local copy of mit-han-lab/hart-0.7b-1024px, the folder that holds `llm/` and `tokenizer/` (or `llm/`
    itself); text_model: one of mit-han-lab/Qwen2-VL-1.5B-Instruct.
    ema: whether the averaged weights are used (`ema_model.bin`). guidance_scale, more_smooth: see `Sampling`.
    system_prompt: whether the text model reads a fixed instruction before the prompt.
    dtype: of autocast (float16 as published, bfloat16, float32), whatever the run's precision is.
    """

    weights: str | None = None
    text_model: str | None = None
    ema: bool = True
    guidance_scale: float = 4.5
    more_smooth: bool = True
    system_prompt: bool = True
    dtype: str = "float16"


@dataclass(frozen=True)
class _Parts:
    """The sources of each part; of tensors in several files the first is for `load_state_dict`."""

    transformer_config: WeightsSource
    transformer: WeightsSource
    tokenizer_config: WeightsSource
    tokenizer: tuple[WeightsSource, ...]
    text_config: WeightsSource
    text: tuple[WeightsSource, ...]
    text_tokenizer: tuple[WeightsSource, ...]

    def all(self) -> tuple[WeightsSource, ...]:
        """All sources, in order."""
        first = (self.transformer_config, self.transformer, self.tokenizer_config, *self.tokenizer)
        return (*first, self.text_config, *self.text, *self.text_tokenizer)


class Hart(Generator):
    """0.7 billion parameters, 14 maps of tokens and a residual for each token of the last, 1024 pixels.

    Published with GenEval 0.56, its settings unstated. The published demo replaces prompts that a filter dislikes; this
    one takes them as they are. Images are made one by one, so that none depends on what else is in the batch.
    """

    Options = HartOptions
    path_options = ("weights", "text_model")
    scale = "paper"
    code_licence = "MIT"
    weights_licence = "not checked (see the hub's page), text model: not checked"
    # `dtype` rules, under precision=bf16 too
    dtypes: ClassVar[Mapping[str, torch.dtype]] = {
        "model": torch.float32,
        "tokenizer": torch.float32,
        "text": torch.float32,
    }
    REPO: ClassVar[str] = "mit-han-lab/hart-0.7b-1024px"
    TEXT_REPO: ClassVar[str] = "mit-han-lab/Qwen2-VL-1.5B-Instruct"

    def __init__(self, options: HartOptions, device: torch.device) -> None:
        super().__init__(options, device)
        require_dtype(options.dtype)
        self.sampling = Sampling(options.guidance_scale, options.more_smooth)
        parts = self._parts(options)
        paths = dict(zip(parts.all(), locate_all(parts.all())))
        tokenizer_config = _read(paths[parts.tokenizer_config], parse_tokenizer)
        config = _read(paths[parts.transformer_config], parse_transformer)
        channels, codes = tokenizer_config.z_channels, tokenizer_config.vocab_size
        with errors_name(path := paths[parts.transformer]):
            state = find_state_dict(load_state_dict(path))
            model = HartStateDict().load(meta_skeleton(HartTransformer, config, channels, codes), state)
        with errors_name(path := paths[parts.tokenizer[0]]):
            skeleton = meta_skeleton(HartTokenizer, tokenizer_config)
            tokenizer = TokenizerStateDict(skeleton).load(skeleton, find_state_dict(load_state_dict(path)))
        folder = paths[parts.text_config].parent
        text = load_text_encoder(folder, paths[parts.text[0]], config.context_token, config.context_dim)
        self.model = model.eval().requires_grad_(False).to(device)
        self.tokenizer = tokenizer.eval().requires_grad_(False).to(device)
        self.text = text.eval().requires_grad_(False).to(device)

    @classmethod
    def weights(cls, options: HartOptions) -> tuple[WeightsSource, ...]:
        """Configuration and tensors of the transformer, of the tokenizer and of the text model, with its tokenizer."""
        return cls._parts(options).all()

    @classmethod
    def _parts(cls, options: HartOptions) -> _Parts:
        own, text = cls._own(options), cls._text(options)
        return _Parts(*own, *text)

    @classmethod
    def _own(
        cls, options: HartOptions
    ) -> tuple[WeightsSource, WeightsSource, WeightsSource, tuple[WeightsSource, ...]]:
        file = "ema_model.bin" if options.ema else "pytorch_model.bin"
        if options.weights is not None:
            folder = _root(Path(options.weights).expanduser())
            tensors = tuple(LocalWeights(str(path)) for path in saved_network(folder / "tokenizer", "transformers")[1])
            configs = [LocalWeights(str(folder / part / "config.json")) for part in ("llm", "tokenizer")]
            return configs[0], LocalWeights(str(folder / "llm" / file)), configs[1], tensors
        # The names in `tokenizer/` are those that transformers 4.42 saves under by default; the hub was not seen.
        names = ("llm/config.json", f"llm/{file}", "tokenizer/config.json", "tokenizer/model.safetensors")
        otherwise = (
            f"get all of it by `hf download {cls.REPO} --local-dir DIR` and name the folder by options.NAME.weights=DIR"
        )
        sources = [HubWeights(cls.REPO, name, otherwise=otherwise) for name in names]
        return sources[0], sources[1], sources[2], (sources[3],)

    @classmethod
    def _text(cls, options: HartOptions) -> tuple[WeightsSource, tuple[WeightsSource, ...], tuple[WeightsSource, ...]]:
        if options.text_model is not None:
            folder = Path(options.text_model).expanduser()
            tensors = saved_network(folder, "transformers")[1]
            others = sorted({*folder.glob("*.json"), *folder.glob("*.txt")} - {folder / "config.json", *tensors})
            config = LocalWeights(str(folder / "config.json"))
            return config, _local(tensors), _local(others)
        otherwise = (
            f"get all of it by `hf download {cls.TEXT_REPO} --local-dir DIR` and name the folder by "
            "options.NAME.text_model=DIR"
        )
        names = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
        sources = [HubWeights(cls.TEXT_REPO, name, otherwise=otherwise) for name in names]
        return sources[0], (sources[1],), tuple(sources[2:])

    @property
    def _output_size(self) -> int:
        return self.model.config.patch_nums[-1] * self.tokenizer.config.downsample_factor

    @property
    def info(self) -> GeneratorInfo:
        return GeneratorInfo(
            family="HART",
            output_size=self._output_size,
            settings={
                "steps": len(self.model.config.patch_nums),
                "residual_steps": self.model.config.num_sampling_steps,
                "guidance_scale": self.sampling.guidance_scale,
                "more_smooth": self.sampling.more_smooth,
                "ema": self.options.ema,
                "system_prompt": self.options.system_prompt,
                "dtype": self.options.dtype,
            },
            training=TrainingCompute(),
        )

    @torch.no_grad()
    def generate(self, items: Sequence[Item], seed_indices: Sequence[int], seeds: Sequence[int]) -> list[Tensor]:
        """An image for each prompt, float32 (3, S, S) in [0, 1]; all noise of image i follows from seeds[i] alone.

        A prompt of more than 300 ids is cut, as published. Raises ItemsRefused for one that holds a control token of
        the text model.
        """
        prompts = prompts_of(items, seeds, lambda prompt: self.text.why_not(prompt, self.options.system_prompt))
        images = []
        for prompt, seed in zip(prompts, seeds):
            with in_dtype(self.options.dtype, self.device):
                context: Context = self.text(prompt, self.options.system_prompt)
                noise = SeededNoise([seed], self.device)
                latents = generate(self.model, self.tokenizer, context, self.sampling, noise)
                pixels = self.tokenizer.decode(latents)[0]
            images.append((pixels.float().clamp(-1, 1) + 1) / 2)
        return images


def _root(folder: Path) -> Path:
    """The folder that holds `llm/`, of itself or of `llm/`, which the published scripts take."""
    return folder.parent if folder.name == "llm" and not (folder / "llm").is_dir() else folder


def _local(paths: Sequence[Path]) -> tuple[WeightsSource, ...]:
    return tuple(LocalWeights(str(path)) for path in paths)


def _read(path: Path, parse: Callable[[Mapping[str, Any]], tuple[Any, Parsed]]) -> Any:
    """What a config.json says; its keys that are unknown, or missing, so that published defaults apply, are logged."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} can't be read as JSON: {error}") from error
    with errors_name(path):
        config, parsed = parse(tree)
    if parsed.unknown:
        logger.warning(
            "%s: unknown keys %s, which the published code does not read either", path, listed(parsed.unknown)
        )
    if parsed.missing:
        defaults = listed(f"{key}={getattr(config, key)!r}" for key in parsed.missing)
        logger.warning("%s: missing keys, the published defaults apply: %s", path, defaults)
    return config
