"""The trainer's settings: typed dataclasses, and how the command line becomes one of them.

No torch here: `--help` and a wrong key must be answered at once. The loop takes the dataclasses and knows no Hydra.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args, get_type_hints

from lactok.registry import entries, load, nearest, unknown

if TYPE_CHECKING:
    from lactok.train.recipe import Recipe

CHAIN = "mini-all"
"""`recipe=` of all of LacTok in miniature: lactok/train/chain.py; no plugin, as it trains nothing itself."""
SCALES = ("mini", "paper")
SHARDINGS = ("none", "full")
PRECISIONS = ("fp32", "bf16", "auto")
OPTIMIZERS = ("adamw", "muon")


class TrainConfigError(Exception):
    """The command line can't be used; the message says the value seen, the value expected and the way out."""


def _key(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass
class DataConfig:
    """Where images come from and how they are cut."""

    root: Any = field(
        default=None,
        metadata={
            "help": "folder of images, searched with its subfolders; WebDataset tar, brace pattern or folder of tars; "
            "or a list of such (required)"
        },
    )
    weights: list[float] | None = field(
        default=None,
        metadata={"help": "share of the samples from each folder of root, in their order; default: all images alike"},
    )
    side: int = _key(288, "pixels: images are kept with a shorter side of at most this")
    smallest_crop: int = _key(96, "pixels of a kept image: smallest side of the square that becomes one sample")
    largest_crop: int = _key(224, "pixels: largest side of that square; log-uniform in between")
    pack: str | None = _key(None, "folder for the decoded images; default the run's own; runs may share one")
    stream: bool | None = _key(
        None, "read and decode each image when a sample needs it: no pack; default: tars are, folders are not"
    )
    on_bad_image: str = _key(
        "stop", "stop: streamed images are all decoded once before, and bad ones listed; skip: another takes its place"
    )
    description: str = _key("", "one line for the exported checkpoint: what the images are, and under which terms")
    workers: int | None = _key(
        None, "processes that cut samples ahead; default: on a GPU one a core, 8 at most, on a CPU none but two threads"
    )
    validation: int = _key(32, "images held back: sample images and measurements come from them")

    @property
    def roots(self) -> tuple[str, ...]:
        """The folders of images, or tars."""
        if self.root is None:
            return ()
        return (self.root,) if isinstance(self.root, str) else tuple(self.root)


@dataclass
class OptimizerConfig:
    """The step's rule; cosine decay to zero after a linear warm-up, functions of the step alone."""

    name: str = _key(
        "adamw",
        "adamw, or muon: torch's Muon on the matrices of linear layers and convolutions, AdamW on the rest; learning "
        "rate and weight decay are of both",
    )
    learning_rate: float = _key(1e-4, "peak learning rate")
    beta1: float = _key(0.9, "AdamW's beta1")
    beta2: float = _key(0.95, "AdamW's beta2")
    weight_decay: float = _key(0.0, "decoupled weight decay")
    warmup_steps: int = _key(100, "steps of linear warm-up")
    final_fraction: float = _key(0.0, "learning rate at the last step, as a fraction of the peak")
    clip_norm: float = _key(1.0, "largest gradient norm")
    ema_decay: float = _key(0.999, "decay a step of the averaged weights, which are sampled, measured and exported")


@dataclass
class TrainConfig:
    """One training run."""

    recipe: str = _key("", "what is trained (required); see the list above")
    scale: str = _key("mini", "mini or paper: which defaults the recipe takes")
    out: str | None = _key(
        None, "the run's folder; default runs/NAME, see above. The same command resumes where it stopped"
    )
    steps: int = _key(1000, "optimizer steps in all")
    minutes: float | None = _key(
        None,
        "train for so long in all, on a machine that is lent for a time: learning rate and schedules follow the clock, "
        "steps is the most; not reproducible bit for bit",
    )
    init: str | None = _key(None, "checkpoint of this recipe whose weights it begins with; default: random ones")
    batch_size: int = _key(32, "images a micro-batch and process")
    accumulation: int = _key(1, "micro-batches an optimizer step")
    precision: str = _key(
        "fp32",
        "fp32, bf16 (autocast), or auto: bf16 on CUDA and on CPUs that multiply it (AMX, AVX-512 BF16), else fp32",
    )
    sharding: str = _key(
        "none",
        "full: weights, gradients, AdamW's moments and the average are divided among the processes, so that each of N "
        "holds 1/N of 20 bytes a parameter; recipe=generator alone. none: each holds all",
    )
    device: str = _key("auto", "auto, cpu or cuda")
    threads: int | None = _key(None, "CPU threads; default: torch's own choice")
    seed: int = _key(0, "all randomness is a function of (seed, step, sample)")
    gradient_checkpointing: bool = _key(
        False,
        "keep fewer activations, and compute them again in the backward pass: less memory, about 1.3 times the time",
    )
    dry_run: bool = _key(
        False, "train nothing and load no weights: parameters, FLOPs and memory of a step, and a look at the data"
    )
    stop_after_minutes: float | None = _key(None, "minutes of wall clock after which this call saves and stops")
    log_every: int = _key(10, "steps between lines of log.csv")
    sample_every: int = _key(500, "steps between sample images and measurements on validation images")
    checkpoint_every: int = _key(1000, "steps between checkpoints")
    checkpoint_minutes: float = _key(10.0, "minutes between checkpoints, whichever comes first")
    trackers: list[str] = field(
        default_factory=list, metadata={"help": "accelerate's trackers by name: [tensorboard], [wandb], ..."}
    )
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    options: Any = None

    @property
    def name(self) -> str:
        """Of the run's default folder and of its export: RECIPE-SCALE, with the few-step LoRA where there is one."""
        accelerator = getattr(self.options, "accelerator", None)
        return "-".join(part for part in (self.recipe, accelerator, self.scale) if part)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.out).expanduser() if self.out else Path("runs") / self.name

    @property
    def export_path(self) -> Path:
        """The checkpoint that it publishes."""
        return self.folder / f"{self.name}.safetensors"


SHORT = {"accelerator": "options.accelerator"}
"""Keys that stand for longer ones."""

FREE_ON_RESUME = (
    *("out", "device", "threads", "sharding", "stop_after_minutes", "log_every", "sample_every"),
    *("checkpoint_every", "checkpoint_minutes", "trackers", "gradient_checkpointing", "dry_run", "minutes"),
    *("data.pack", "data.workers", "data.on_bad_image"),
)
"""Settings that may change when a run resumes: they don't move its weights (device, threads and sharding only by
rounding); minutes does, as a run by the clock repeats no other."""


def loop_keys() -> dict[str, dataclasses.Field]:
    """All keys but the recipe's own, dotted, with their dataclass fields."""
    keys: dict[str, dataclasses.Field] = {}
    for outer in dataclasses.fields(TrainConfig):
        nested = {"data": DataConfig, "optimizer": OptimizerConfig}.get(outer.name)
        if nested:
            keys |= {f"{outer.name}.{f.name}": f for f in dataclasses.fields(nested)}
        elif outer.name != "options":
            keys[outer.name] = outer
    return keys


def preset_path(recipe: str, scale: str) -> Path:
    """The YAML file with a recipe's defaults at a scale; a third-party recipe may have none."""
    return Path(__file__).parent / "conf" / "preset" / f"{recipe}-{scale}.yaml"


def compose_config(overrides: list[str], earlier_runs: bool = True) -> tuple[TrainConfig, type[Recipe]]:
    """Command-line overrides ("key=value", Hydra syntax) to a checked TrainConfig, and the recipe's class.

    earlier_runs: name the files that runs next to this one have left, where the overrides name none.
    Raises TrainConfigError, or a RegistryError of lactok.registry for a recipe that can't be imported.
    """
    overrides = [_in_full(override) for override in overrides]
    given = _split(overrides)
    recipe, scale = _choose(given)
    _check_keys(given, recipe, scale)
    composed = _compose(overrides, recipe, scale)
    recipe_class = load("recipes", recipe)
    _check_used(given, recipe, recipe_class)
    config = _typed(composed, recipe_class, given)
    _check_values(config)
    _check_sharding(config, recipe_class)
    require_start(config, recipe_class)
    if earlier_runs:
        config.options = recipe_class.with_inputs(config.options, config.folder.parent)
    return config, recipe_class


def require_start(config: TrainConfig, recipe_class: type[Recipe]) -> None:
    """Raises TrainConfigError where a run needs init= and none is given."""
    if not config.init and (missing := recipe_class.missing_start(config.options)):
        raise TrainConfigError(f"recipe={config.recipe}: {missing}")


def _in_full(override: str) -> str:
    key, equals, value = override.partition("=")
    return f"{SHORT.get(key.lstrip('+'), key)}{equals}{value}"


def _split(overrides: list[str]) -> dict[str, str]:
    given: dict[str, str] = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise TrainConfigError(
                f"{override!r} is not of the form key=value; `python -m lactok.train --help` lists the keys"
            )
        given[key.lstrip("+")] = value
    return given


def _choose(given: dict[str, str]) -> tuple[str, str]:
    known = [*entries("recipes"), CHAIN]
    recipe, scale = given.get("recipe", ""), given.get("scale", "mini")
    if not recipe:
        raise TrainConfigError(f"no recipe named: add recipe=NAME; recipes: {', '.join(known)}")
    if recipe not in known:
        raise TrainConfigError(unknown("recipe", recipe, known))
    if scale not in SCALES:
        raise TrainConfigError(f"scale={scale}: expected {' or '.join(SCALES)}")
    return recipe, scale


def _check_keys(given: dict[str, str], recipe: str, scale: str) -> None:
    """Name a key that doesn't exist with the nearest that does, before anything slow is imported."""
    known = list(loop_keys())
    preset = preset_path(recipe, scale)
    if preset.is_file():
        from omegaconf import OmegaConf

        defaults = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(preset)))
        known += _flat(defaults.get("options", {}), "options")
    theirs: list[str] = []
    for key in given:
        if key in known or (key.startswith("options.") and not preset.is_file()):
            continue
        if key.startswith("options."):  # a preset need not name them all
            theirs = theirs or _option_keys(load("recipes", recipe).Options, "options")
            if key in theirs:
                continue
            known = [*known, *(one for one in theirs if one not in known)]
        if key in SHORT.values():
            raise TrainConfigError(f"recipe={recipe} scale={scale} has no {key.removeprefix('options.')}: leave it out")
        close = nearest(key, known)
        hint = f"did you mean {' or '.join(close)}?" if close else "nothing is close to it;"
        raise TrainConfigError(f"unknown key {key!r}: {hint} `python -m lactok.train --help` lists all keys")
    if "dry_run" not in given:
        _require_data(given.get("data.root"))


def _option_keys(options_class: type, prefix: str) -> list[str]:
    """The keys of a recipe's options, dotted, those of the records in it, too."""
    hints = get_type_hints(options_class)
    keys: list[str] = []
    for one in dataclasses.fields(options_class):
        keys.append(key := f"{prefix}.{one.name}")
        for kind in (hints[one.name], *get_args(hints[one.name])):
            if dataclasses.is_dataclass(kind):
                keys += _option_keys(cast(type, kind), key)
    return keys


def _check_used(given: dict[str, str], recipe: str, recipe_class: type[Recipe]) -> None:
    """Refuse what a recipe that does not train would ignore."""
    used: tuple[str, ...] = getattr(recipe_class, "used", ())
    ignored = [key for key in given if used and key not in used and not key.startswith("options.")]
    if ignored:
        raise TrainConfigError(
            f"recipe={recipe} does not use {', '.join(ignored)}: leave it out; it uses {', '.join(used)} and options"
        )


def _check_weights(data: DataConfig) -> None:
    if not all(isinstance(root, str) and root for root in data.roots):
        raise TrainConfigError(f"data.root={data.root}: expected a folder, or a list of them: data.root=[DIR,DIR]")
    weights = data.weights
    if weights is None:
        return
    if len(weights) != len(data.roots):
        raise TrainConfigError(
            f"data.weights={weights} has {len(weights)} number(s), data.root {len(data.roots)} folder(s): expected one "
            "for each"
        )
    if not all(0 < weight < float("inf") for weight in weights):
        raise TrainConfigError(f"data.weights={weights}: expected numbers above 0")


def _require_data(root: Any) -> None:
    if root in (None, "", "null", "[]", []):
        raise TrainConfigError("data.root is missing: add data.root=DIR, a folder of images (or tars) to train on")


def _flat(tree: dict[str, Any], prefix: str) -> list[str]:
    """The keys of a tree, dotted, those of its branches, too: options.words=null."""
    keys: list[str] = []
    for name, value in tree.items():
        keys += [f"{prefix}.{name}"] + (_flat(value, f"{prefix}.{name}") if isinstance(value, dict) else [])
    return keys


def _compose(overrides: list[str], recipe: str, scale: str) -> Any:
    from hydra import compose, initialize_config_module
    from hydra.errors import HydraException

    preset = [f"+preset={recipe}-{scale}"] if preset_path(recipe, scale).is_file() else []
    try:
        with initialize_config_module("lactok.train.conf", version_base="1.3"):
            return compose("train", overrides=preset + [f"++{o.lstrip('+')}" for o in overrides])
    except HydraException as error:
        reason = str(error).strip().splitlines()[0]
        raise TrainConfigError(
            f"the command line can't be parsed: {reason}. A value with '=', a comma, a bracket, a brace or a space is "
            "quoted twice: \"data.root='/my images/a=b'\""
        ) from error


def _typed(composed: Any, recipe_class: type[Recipe], given: dict[str, str]) -> TrainConfig:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        settings = cast(dict[str, Any], OmegaConf.to_container(composed))
        options = settings.pop("options", None) or {}
        typed = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrainConfig), settings))
        config = cast(TrainConfig, typed)  # of a structured configuration it is an object of that class
        config.options = _typed_options(recipe_class.Options, options)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "?"
        seen = f"={given[key]}" if key in given else ""
        raise TrainConfigError(f"{key}{seen}: {str(error).strip().splitlines()[0]}") from error
    except (TypeError, ValueError) as error:  # a recipe's own dataclass refuses a value
        raise TrainConfigError(f"options: {error}") from error
    return config


def _typed_options(options_class: type, options: dict[str, Any]) -> Any:
    from omegaconf import OmegaConf

    defaults = OmegaConf.structured(options_class)
    _begin(defaults, options)
    _unlock(defaults)
    return OmegaConf.to_object(OmegaConf.merge(defaults, options))


def _begin(tree: Any, given: dict[str, Any]) -> None:
    """A nested dataclass that is None by default takes its own defaults where some of its fields are given."""
    from omegaconf import OmegaConf

    for name, value in given.items():
        if isinstance(value, dict) and name in tree and tree._get_node(name)._is_none():
            OmegaConf.set_readonly(tree, False)
            tree[name] = OmegaConf.structured(tree._get_node(name)._metadata.ref_type)


def _unlock(tree: Any) -> None:
    """OmegaConf takes a frozen dataclass, at any depth, for one that can't be set."""
    from omegaconf import DictConfig, OmegaConf

    if isinstance(tree, DictConfig) and not tree._is_none():
        OmegaConf.set_readonly(tree, False)
        for name in tree:
            _unlock(tree._get_node(name))


def _check_values(config: TrainConfig) -> None:
    if not config.dry_run:
        _require_data(config.data.root)
    if config.precision not in PRECISIONS:
        raise TrainConfigError(f"precision={config.precision}: expected fp32, bf16 or auto")
    if config.sharding not in SHARDINGS:
        raise TrainConfigError(f"sharding={config.sharding}: expected none or full")
    if config.optimizer.name not in OPTIMIZERS:
        raise TrainConfigError(f"optimizer.name={config.optimizer.name}: expected adamw or muon")
    if config.device not in ("auto", "cpu", "cuda"):
        raise TrainConfigError(f"device={config.device}: expected auto, cpu or cuda")
    positive = ["steps", "batch_size", "accumulation", "log_every", "sample_every", "checkpoint_every"]
    for name, value in [(n, getattr(config, n)) for n in positive] + [
        (f"data.{n}", getattr(config.data, n)) for n in ("side", "smallest_crop", "largest_crop", "validation")
    ]:
        if value < 1:
            raise TrainConfigError(f"{name}={value}: expected a whole number of at least 1")
    _check_optimizer(config.optimizer)
    if config.threads is not None and config.threads < 1:
        raise TrainConfigError(f"threads={config.threads}: expected 1 or more, or leave it out")
    if config.data.workers is not None and config.data.workers < 0:
        raise TrainConfigError(f"data.workers={config.data.workers}: expected 0 or more")
    if config.data.on_bad_image not in ("stop", "skip"):
        raise TrainConfigError(f"data.on_bad_image={config.data.on_bad_image}: expected stop or skip")
    if config.data.smallest_crop > config.data.largest_crop:
        raise TrainConfigError(
            f"data.smallest_crop={config.data.smallest_crop} is larger than "
            f"data.largest_crop={config.data.largest_crop}"
        )
    if config.minutes is not None and not config.minutes > 0:
        raise TrainConfigError(f"minutes={config.minutes:g}: expected more than 0")
    _check_weights(config.data)
    if not 0 <= config.seed < 2**63:
        raise TrainConfigError(f"seed={config.seed}: expected 0 to 2^63 - 1")


def _check_optimizer(optimizer: OptimizerConfig) -> None:
    for name in ("learning_rate", "weight_decay", "warmup_steps"):
        if not 0 <= (value := getattr(optimizer, name)) < float("inf"):
            raise TrainConfigError(f"optimizer.{name}={value}: expected 0 or more")
    for name in ("beta1", "beta2", "ema_decay"):
        if not 0 <= (value := getattr(optimizer, name)) < 1:
            raise TrainConfigError(f"optimizer.{name}={value}: expected 0 or more, below 1")
    if not 0 <= optimizer.final_fraction <= 1:
        raise TrainConfigError(f"optimizer.final_fraction={optimizer.final_fraction}: expected 0 to 1")
    if not optimizer.clip_norm > 0:
        raise TrainConfigError(f"optimizer.clip_norm={optimizer.clip_norm}: expected more than 0 (inf: no clipping)")


def _check_sharding(config: TrainConfig, recipe_class: type[Recipe]) -> None:
    if config.sharding != "none" and config.optimizer.name == "muon":
        raise TrainConfigError(
            f"optimizer.name=muon sharding={config.sharding}: Muon needs each matrix whole; expected optimizer.name="
            "adamw, or sharding=none"
        )
    if config.sharding != "none" and getattr(recipe_class, "sharded_by", None) is None:
        raise TrainConfigError(
            f"sharding={config.sharding}: recipe={config.recipe} trains whole networks; recipe=generator can be "
            "sharded. Leave it out: precision=bf16 and gradient_checkpointing=true lower the memory, too"
        )
