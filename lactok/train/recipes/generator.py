"""Recipe `generator`: a GPT over token ids, conditioned on captions (paper, section 4.3 and appendix A).

Cross entropy of the next id (equation 7); a share of the captions is replaced by the unconditional embedding, for
classifier-free guidance: 0.1, LlamaGen's (arXiv 2406.06525, section 3), as the paper gives none. The samples are shards
of `recipe=tokens`. With `words` a small text encoder learns with the GPT; else the shards must hold states.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import torch
from accelerate import PartialState
from torch import Tensor, nn

from lactok import registry
from lactok.checkpoint_file import tensors_sha256
from lactok.data.folder import DataError
from lactok.data.token_shards import ShardIndex
from lactok.generators.captioned_gpt import ENCODER, CaptionedGPT, CaptionedGPTConfig, own_seed
from lactok.generators.word_encoder import WordEncoderConfig
from lactok.interface import Tokenizer, Tokens
from lactok.models.gpt import GPTConfig, token_loss
from lactok.models.gpt_generation import Prompt, generate
from lactok.models.gpt_sampling import Sampling
from lactok.models.gpt_state_dict import NESTED, GPTStateDict
from lactok.state_dict import errors_name, find_state_dict, meta_skeleton
from lactok.train.codebook_embeddings import codebook_of, start_from_codebook
from lactok.train.config import DataConfig, TrainConfig
from lactok.train.data import TrainingData
from lactok.train.noise import uniform
from lactok.train.parts import is_dry_run
from lactok.train.recipe import Losses, Provenance, Recipe, export_model
from lactok.train.token_data import TokenBatch, TokenData
from lactok.weights import HubWeights, WeightsSource, load_state_dict, locate, override, told_as

DROP = 1
"""RNG stream of a sample: whether its caption is dropped."""

MEASURED_AT_ONCE = 32

STAGE_1 = HubWeights(
    "peizesun/llamagen_t2i",
    "t2i_XL_stage1_256.pt",
    "276f5c5a3d915b922899a03f1912605531574747",
    otherwise="name a local copy of that file by options.start=PATH, or train from scratch: options.start=null",
)
"""LlamaGen's GPT-XL from text at 256 pixels, from which the paper's generator starts."""

HUB = "hub"
RANDOM, CODEBOOK = "random", "codebook"


@dataclass
class GeneratorOptions:
    """model: the network; words: a text encoder that learns with it, null for states in the shards. image_size: pixels,
    side of the images that the ids are of.

    start: "hub" for LlamaGen's GPT-XL, a local file of it, or null for random weights. embeddings: of the ids at such a
    random start alone (before `init`), "random", or "codebook" for the decoder's code vectors. decoder: registered name
    of the tokenizer that decodes sample images, decoder_weights: a local checkpoint of it. compile: torch.compile of
    each block.
    guidance_scale, temperature, top_k: of sample images.
    """

    model: GPTConfig = field(default_factory=GPTConfig)
    words: WordEncoderConfig | None = None
    image_size: int = 256
    start: str | None = None
    embeddings: str = RANDOM
    decoder: str = "llamagen-t2i"
    decoder_weights: str | None = None
    compile: bool = False
    guidance_scale: float = 7.5
    temperature: float = 1.0
    top_k: int = 1000

    def __post_init__(self) -> None:
        self.sampling()
        CaptionedGPTConfig(self.model, self.words)  # they must fit
        if not 0 <= self.model.class_dropout_prob < 1:
            raise ValueError(f"model.class_dropout_prob={self.model.class_dropout_prob}: expected 0 or more, below 1")
        if self.embeddings not in (RANDOM, CODEBOOK):
            raise ValueError(f"embeddings={self.embeddings}: expected {RANDOM} or {CODEBOOK}")
        if self.start is not None and self.words is not None:
            raise ValueError("start and words: published weights go with flan-t5-xl's states; leave one of them out")

    def sampling(self) -> Sampling:
        """How sample images are drawn. Raises ValueError for numbers out of range."""
        return Sampling(self.guidance_scale, temperature=self.temperature, top_k=self.top_k)


class GeneratorRecipe(Recipe):
    """Trains a `CaptionedGPT`; the sheet shows what held-back captions give, below the images that they describe."""

    Options = GeneratorOptions
    path_options: ClassVar[tuple[str, ...]] = ("start", "decoder_weights")
    sharded_by: ClassVar[str | None] = "model.gpt.layers"
    options: GeneratorOptions

    @classmethod
    def sources(cls, options: GeneratorOptions) -> tuple[WeightsSource, ...]:
        """The weights that it starts from, if any, and the decoder's."""
        start = () if options.start is None else (_start(options.start),)
        plugin, chosen = _decoder(options)
        return (*start, *(told_as(one, "weights", "options.decoder_weights") for one in plugin.weights(chosen)))

    @classmethod
    def open_data(cls, config: TrainConfig, check_held_out: bool = True) -> TokenData:
        """The shards of data.root, which must fit the options. Evaluation images were refused when they were made."""
        data = TokenData.open(config)
        options, index = config.options, data.index
        seen = index.tokens, index.codebook_size
        if seen != (expected := (options.model.block_size, options.model.vocab_size)):
            raise DataError(
                f"data.root has {seen[0]} ids of {seen[1]} an image: options.model has block_size {expected[0]} and "
                f"vocab_size {expected[1]}"
            )
        if options.words is None and not index.text_encoder:
            raise DataError(
                "data.root has no states of captions: extract them (recipe=tokens options.text=flan-t5-xl), or set "
                "options.words, a text encoder that learns"
            )
        seen = index.positions, index.caption_dim
        if options.words is None and seen != (expected := (options.model.cls_token_num, options.model.caption_dim)):
            raise DataError(
                f"data.root has states of {seen[0]} positions and width {seen[1]}: options.model has cls_token_num "
                f"{expected[0]} and caption_dim {expected[1]}"
            )
        return data

    @classmethod
    def described_data(cls, data: DataConfig) -> Iterator[str]:
        """Of a dry run: what the shards hold. Raises DataError."""
        if not data.roots:
            yield f"{'data':<12}not looked at: name data.root=DIR"
        for root in data.roots:
            index = ShardIndex.read(Path(root).expanduser())
            text = index.text_encoder.split()[0] if index.text_encoder else "captions alone"
            yield (
                f"{'data':<12}{index.count:,} samples of {index.tokens} ids in {len(index.shards):,} shards below "
                f"{root}; {index.tokenizer.split()[0]}, {text}"
            )

    @classmethod
    def meta_batch(cls, options: GeneratorOptions, count: int, side: int, step: int) -> TokenBatch:
        """ids, and states, on the meta device."""
        model = options.model
        ids = torch.zeros(count, model.block_size, dtype=torch.int64, device="meta")
        states = torch.empty(count, model.cls_token_num, model.caption_dim, device="meta")
        seen = torch.ones(count, model.cls_token_num, dtype=torch.bool, device="meta")
        return TokenBatch(ids, ("",) * count, tuple(range(count)), step, states, seen)

    def __init__(self, options: GeneratorOptions, total_steps: int, seed: int) -> None:
        super().__init__(options, total_steps, seed)
        self.model = CaptionedGPT(CaptionedGPTConfig(options.model, options.words))
        if options.start is not None and not is_dry_run():
            path = locate(_start(options.start))
            with errors_name(path):
                state = find_state_dict(load_state_dict(path), NESTED)
                gpt = GPTStateDict().load(meta_skeleton(type(self.model.gpt), options.model), state)
            self.model.gpt.load_state_dict(gpt.state_dict())
        if self._from_codebook and not is_dry_run():
            codebook = codebook_of(self._fitting_decoder(torch.device("cpu")).networks().values())
            if codebook is None:
                raise DataError(f"options.embeddings={CODEBOOK}: {options.decoder} has no codebook of one vector an id")
            start_from_codebook(self.model.gpt, codebook)
        if options.compile:
            for layer in self.model.gpt.layers:
                layer.compile()
        self._made_with: dict[str, str] = {}
        self._tokenizer: Tokenizer | None = None
        self._matrix_rate: float | None = None
        self._dtype = torch.float32

    @property
    def _from_codebook(self) -> bool:
        return self.options.start is None and self.options.embeddings == CODEBOOK

    def exported(self) -> tuple[nn.Module, Mapping[str, Tensor]]:
        return self.model, self.model.state_dict()

    def checkpoint_activations(self, function: Callable[..., Tensor] | None = None) -> None:
        super().checkpoint_activations(function)
        self.model.gpt.checkpoint_activations(function)

    @property
    def image_size(self) -> int:
        return self.options.image_size

    def note_data(self, data: TrainingData) -> None:
        """What made the ids and the states stands in the file."""
        assert isinstance(data, TokenData)
        index = data.index
        states_of = "" if self.model.words is not None else index.text_encoder
        self.model.config = replace(self.model.config, tokenizer=index.tokenizer, text_encoder=states_of)
        self._made_with = {ENCODER: index.vq} if index.vq else {}
        if self._from_codebook and index.vq:
            plugin, chosen = _decoder(self.options)
            if all(tensors_sha256(locate(source)) != index.vq for source in plugin.weights(chosen)):
                raise DataError(
                    f"options.embeddings={CODEBOOK}: the ids of data.root are by {index.tokenizer}; the codebook of "
                    f"options.decoder={self.options.decoder} is another; name its file by options.decoder_weights, "
                    f"or set options.embeddings={RANDOM}"
                )

    def _decoded(self, ids: Tensor, seeds: Sequence[int]) -> Tensor:
        if self._tokenizer is None:
            self._tokenizer = self._fitting_decoder(ids.device)
        with torch.autocast(ids.device.type, enabled=False):
            return self._tokenizer.decode(Tokens(ids), list(seeds)).float()

    def _fitting_decoder(self, device: torch.device) -> Tokenizer:
        """The tokenizer that decodes. Raises DataError for one of other ids."""
        plugin, chosen = _decoder(self.options)
        tokenizer = plugin(chosen, device)
        seen = tokenizer.info.tokens_per_image, tokenizer.info.codebook_size
        model = self.options.model
        if seen != (model.block_size, model.vocab_size):
            raise DataError(
                f"options.decoder={self.options.decoder} takes {seen[0]} ids of {seen[1]} an image: options.model has "
                f"block_size {model.block_size} and vocab_size {model.vocab_size}"
            )
        return tokenizer

    def _conditions(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        if self.model.words is not None:
            return self.model.conditions(batch.captions)
        assert batch.states is not None, "`open_data` lets no samples without states pass"
        assert batch.seen is not None, "states come with where they are"
        return batch.states, batch.seen

    def _losses(self, batch: TokenBatch, drop: Tensor | None = None) -> Tensor:
        """Cross entropy of each sample in nats an id, (B,)."""
        states, seen = self._conditions(batch)
        if drop is None:
            drop = torch.zeros(len(batch), dtype=torch.bool, device=batch.ids.device)
        logits = self.model.logits(batch.ids, states, seen, drop)
        return torch.stack([token_loss(one[None], ids[None]) for one, ids in zip(logits, batch.ids)])

    def forward(self, batch: TokenBatch) -> Losses:
        kind = batch.ids.device.type
        if kind != "meta":  # which has no autocast
            self._dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        share = self.options.model.class_dropout_prob
        drop = uniform(batch.seeds, batch.ids.device, DROP) < share
        states, seen = self._conditions(batch)
        loss = token_loss(self.model.logits(batch.ids, states, seen, drop), batch.ids)
        return Losses(loss, {"cross_entropy": loss.detach()})

    @torch.no_grad()
    def reconstruct(self, images: TokenBatch, seeds: Sequence[int]) -> Tensor:
        """Images of held-back captions."""
        states, seen = self._conditions(images)
        prompts = [Prompt(*given) for given in zip(states, seen, seeds)]
        ids = generate(self.model.gpt, prompts, self.options.sampling())
        return self._decoded(ids, [own_seed(seed, 1) for seed in seeds])

    def originals(self, images: TokenBatch) -> Tensor:
        """What the held-back ids decode to."""
        return self._decoded(images.ids, [0] * len(images))

    @torch.no_grad()
    def measure(self, images: TokenBatch, seeds: Sequence[int]) -> dict[str, float]:
        """Cross entropy of held-back samples, with their captions and without."""
        values: dict[str, list[Tensor]] = {"cross_entropy": [], "cross_entropy_unconditional": []}
        for start in range(0, len(images), MEASURED_AT_ONCE):
            part = images[start : start + MEASURED_AT_ONCE]
            dropped = torch.ones(len(part), dtype=torch.bool, device=part.ids.device)
            values["cross_entropy"].append(self._losses(part))
            values["cross_entropy_unconditional"].append(self._losses(part, dropped))
        return {name: torch.cat(found).mean().item() for name, found in values.items()}

    def rates(self, images_per_second: float) -> dict[str, float]:
        """Ids a second, and the share of what one large matrix product reaches on these devices in this dtype."""
        device = self.model.gpt.output.weight.device
        if self._matrix_rate is None:
            self._matrix_rate = matrix_rate(device, self._dtype)
        flops = images_per_second * training_flops(self.options.model)
        return {
            "tokens_per_second": images_per_second * self.options.model.block_size,
            "matrix_share": flops / (self._matrix_rate * PartialState().num_processes),
        }

    def export(self, path: Path, provenance: Provenance) -> None:
        """The networks, for `lactok.generators.captioned_gpt.load_captioned_gpt`."""
        export_model(path, self.model, self.model.config, provenance, self._made_with)


def _start(start: str) -> WeightsSource:
    return STAGE_1 if start == HUB else override(STAGE_1, start)


def _decoder(options: GeneratorOptions) -> tuple[type[Tokenizer], object]:
    plugin = registry.load("tokenizers", options.decoder)
    try:
        return plugin, plugin.Options(**({"weights": options.decoder_weights} if options.decoder_weights else {}))
    except TypeError as error:
        raise DataError(f"options.decoder_weights: {options.decoder} takes no file of weights") from error


def training_flops(config: GPTConfig) -> int:
    """FLOPs of the GPT's forward and backward pass over one image: 6 a weight and position, 12 a pair of positions
    and value of attention, halved as it is causal."""
    heads = config.n_head + 2 * config.kv_heads
    block = config.dim * (heads + config.n_head) * config.head_dim + 3 * config.dim * config.ffn_dim
    weights = config.n_layer * block + config.dim * config.vocab_size
    length = config.positions - 1
    return 6 * weights * length + 6 * config.n_layer * length**2 * config.n_head * config.head_dim


def matrix_rate(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """FLOPs a second of a large matrix product, the best of some within about so many seconds."""
    side = 8192 if device.type == "cuda" else 1024
    a = torch.randn(side, side, device=device).to(dtype)
    best, until = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < until or not best:
        start = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = max(best, 2 * side**3 / (time.perf_counter() - start))
    return best
