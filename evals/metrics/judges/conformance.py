"""Runs the golden cases of the preference judges: `imagereward`, `mps` and `hpsv2`. Everything is read from the case.

Weights are seeded by `weights_seed` or `seed` of the configuration, else by 0. On top of seeding, in this order, the
entries that end with a key of `add_after_seeding` and `scale_after_seeding` are changed (the longest ending wins), and
those that end with an entry of `keep_initial_value` keep the network's own value.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from evals.metrics.judges import hpsv2, image_reward, mps
from evals.metrics.judges.base import normalised, shortest_to, torchvision_offset
from lactok.conformance import CaseError, CaseFolder, CheckLine, compare_floats, compare_ids, failure
from lactok.state_dict import StateDictAdapter, meta_skeleton

if TYPE_CHECKING:
    from open_clip.model import CLIP


def _weights(case: CaseFolder, adapter: StateDictAdapter, make: Callable[[], nn.Module]) -> dict[str, Tensor]:
    """The case's weights under the published names. What is to keep its initial value has that of `make()`."""
    config = case.config
    state = case.seeded(case.manifest(), config.get("weights_seed", config.get("seed", 0)))
    added, factors = (config.get(key) or {} for key in ("add_after_seeding", "scale_after_seeding"))
    for name in state:
        state[name] = (state[name] + _longest(added, name, 0.0)) * _longest(factors, name, 1.0)
    if kept := tuple(config.get("keep_initial_value") or ()):
        own = adapter.to_published(make().state_dict())
        state |= {name: value.to(case.device) for name, value in own.items() if name.endswith(kept)}
    return state


def _longest(values: Mapping[str, float], name: str, otherwise: float) -> float:
    """The value of the longest key that `name` ends with."""
    return values[max(fits, key=len)] if (fits := [key for key in values if name.endswith(key)]) else otherwise


class _Lines:
    """Compares what is stored under the names that a port knows, and says which stored tensors nobody asked for."""

    def __init__(self, case: CaseFolder) -> None:
        self.case, self.claimed = case, set[str]()

    def floats(self, found: Mapping[str, Tensor]) -> Iterator[CheckLine]:
        for name, got in found.items():
            if name in self.case:
                self.claimed.add(name)
                yield compare_floats(name, got, self.case[name])

    def unclaimed(self) -> Iterator[CheckLine]:
        inputs = re.compile(r"(feat\.)?in\.")
        for name in self.case.names:
            if name not in self.claimed and not inputs.match(name):
                yield failure(name, CaseError("stored, but no check knows what it is"))


def _pictures(case: CaseFolder) -> dict[int, Tensor]:
    """Stored images by number, uint8 (1, 3, H, W); one without a number is 0."""
    found = {}
    for name in case.names:
        if match := re.fullmatch(r"in\.image_uint8(?:_(\d+))?", name):
            pixels = case[name]
            found[int(match[1] or 0)] = (pixels if pixels.ndim == 4 else pixels[None])[..., :3].permute(0, 3, 1, 2)
    return found


def _fields(cls: type, values: Mapping[str, Any], what: str) -> dict[str, Any]:
    """`values` that a dataclass of an installed library takes. Raises CaseError for others."""
    known = {field.name for field in dataclasses.fields(cls)}
    if strange := [name for name in values if name not in known]:
        raise CaseError(f"{what} has {', '.join(strange)}, which {cls.__name__} does not take")
    return dict(values)


# --- ImageReward -----------------------------------------------------------------------------------------------------


def image_reward_config(config: Mapping[str, Any]) -> image_reward.ImageRewardConfig:
    """The sizes that a case's `config.json` states. Raises CaseError for a network of another kind."""
    vision, text = config["vision"], config["text"]
    if (text.get("hidden_act", "gelu"), text.get("layer_norm_eps", 1e-12)) != ("gelu", 1e-12):
        raise CaseError("a text encoder of another activation or epsilon than ImageReward's")
    published = image_reward.ImageRewardConfig()
    return image_reward.ImageRewardConfig(
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        vision_width=vision["width"],
        vision_depth=vision["depth"],
        vision_heads=vision["heads"],
        text_width=text["hidden_size"],
        text_depth=text["num_hidden_layers"],
        text_heads=text["num_attention_heads"],
        text_hidden=text["intermediate_size"],
        vocabulary=text["vocab_size"],
        positions=text["max_position_embeddings"],
        reward_mean=config.get("mean", published.reward_mean),
        reward_std=config.get("std", published.reward_std),
    )


@torch.no_grad()
def run_imagereward(case: CaseFolder) -> Iterator[CheckLine]:
    """Preprocessing, stages and rewards, also of images and texts moved on by one place."""
    config = image_reward_config(case.config)
    weights = _weights(case, image_reward.ImageRewardAdapter(), lambda: image_reward.ImageRewardNet(config))
    net = image_reward.build(weights, config).to(case.device)
    judge, lines = image_reward.ImageReward(net, None), _Lines(case)
    pictures = _pictures(case)
    yield from lines.floats({f"out.preprocessed_{i}": judge.preprocess(image)[0] for i, image in pictures.items()})
    if "in.input_ids" in case:
        ids, mask = case["in.input_ids"], case["in.attention_mask"]
        image = net.image_features(case["in.pixel_values"])
        states = net.text_states(image, ids, mask)
        yield from lines.floats(
            {
                "mid.image_embeds": image,
                "mid.text_last_hidden": states,
                "mid.mlp_raw": net.raw(states),
                "out.reward": net(image, ids, mask),
                "out.reward_images_rolled": net(image.roll(1, dims=0), ids, mask),
                "out.reward_texts_rolled": net(image, ids.roll(1, dims=0), mask.roll(1, dims=0)),
            }
        )
    yield from lines.unclaimed()


# --- MPS -------------------------------------------------------------------------------------------------------------


def mps_config(config: Mapping[str, Any]) -> mps.MpsConfig:
    """The sizes that a case's `config.json` states. Raises CaseError for cross layers of another width than CLIP's."""
    dim = config["projection_dim"]
    if config.get("cross_dim", dim) != dim:
        raise CaseError(f"cross_dim {config['cross_dim']}, projection_dim {dim}: they are one width")
    return mps.MpsConfig(
        projection_dim=dim,
        cross_layers=config["cross_layers"],
        cross_heads=config["cross_heads"],
        text=config["text_config"],
        vision=config["vision_config"],
    )


@torch.no_grad()
def run_mps(case: CaseFolder) -> Iterator[CheckLine]:
    """Features, similarities and scores of every image with every text; the forward of pairs; the layers alone."""
    config = mps_config(case.config)
    adapter = mps.MpsAdapter()
    weights = _weights(case, adapter, lambda: mps.MpsNet(config))
    for name, shape in adapter.published_shapes(meta_skeleton(mps.MpsNet, config)).items():
        if name not in weights and name.endswith(".norm.bias"):  # buffers, which seeding may leave out
            weights[name] = torch.zeros(shape, device=case.device)
        elif name not in weights and name.endswith(".inv_freq"):
            weights[name] = mps.rotary_frequencies().to(case.device)
    net = mps.build(weights, config).to(case.device)
    lines, above = _Lines(case), case.config.get("threshold", mps.KEPT_ABOVE)
    if "in.input_ids" in case:
        yield from lines.floats(_of_whole(case, net, above))
    if "feat.in.text_all" in case:
        tokens, condition, image = (case[f"feat.in.{part}_all"] for part in ("text", "condition", "image"))
        kept = net.similarity(tokens, condition) > above
        if "feat.mid.kept" in case:
            lines.claimed.add("feat.mid.kept")
            yield compare_ids("feat.mid.kept", kept, case["feat.mid.kept"])
        yield from lines.floats(
            {"feat.out.score": net.cosine(net.fused(image, tokens, kept), case["feat.in.text_eos"])}
        )
    yield from lines.unclaimed()


def _of_whole(case: CaseFolder, net: mps.MpsNet, above: float) -> dict[str, Tensor]:
    """What the whole network gives, by the names of the stored tensors."""
    text = net.text_features(case["in.input_ids"])
    condition = net.text_features(case["in.condition_ids"])[0]
    image = net.image_features(case["in.pixel_values"])
    similarity = net.similarity(text[0], condition)
    found = {
        "mid.text_features_all": text[0],
        "mid.text_features_eos": text[1],
        "mid.condition_features_all": condition,
        "mid.image_features_all": image,
        "mid.similarity": similarity,
        "out.score_image_i_text_j": torch.stack([_with_all_texts(net, one, text, condition, above) for one in image]),
    }
    if len(image) == len(similarity):
        found["mid.cross_pooled"] = net.fused(image, text[0], similarity > above)
    if "out.pair_scores_forward_001" in case:
        pairs = len(case["out.pair_scores_forward_001"])
        some = (text[0][:pairs], text[1][:pairs])
        sides = (image[:pairs], image[pairs : 2 * pairs])
        scores = [net(one, some, condition, mps.FORWARD_KEPT_ABOVE, of_batch=True) for one in sides]
        found["out.pair_scores_forward_001"] = torch.stack(scores, dim=1)
        found["out.pair_probs_forward_001"] = torch.stack(scores, dim=1).softmax(dim=1)
    return found


def _with_all_texts(
    net: mps.MpsNet, image: Tensor, text: tuple[Tensor, Tensor], condition: Tensor, above: float
) -> Tensor:
    return net(image.expand(len(text[0]), -1, -1), text, condition, above)


# --- HPSv2 -----------------------------------------------------------------------------------------------------------


def hps_config(config: Mapping[str, Any]) -> hpsv2.HpsConfig:
    """What a case's `config.json` states, open_clip's own form. Raises CaseError for fields that open_clip lacks."""
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    more = {key: config[key] for key in ("quick_gelu", "init_logit_scale", "init_logit_bias") if key in config}
    return hpsv2.HpsConfig(
        config["embed_dim"],
        _fields(CLIPVisionCfg, config["vision_cfg"], "vision_cfg"),
        _fields(CLIPTextCfg, config["text_cfg"], "text_cfg"),
        more,
    )


@torch.no_grad()
def run_hpsv2(case: CaseFolder) -> Iterator[CheckLine]:
    """Preprocessing (with and without antialiasing; open_clip's own for comparison), features and cosines."""
    config = hps_config(case.config)
    weights = _weights(case, hpsv2.HpsAdapter(), lambda: hpsv2.empty(config))
    net = hpsv2.build(weights, config).to(case.device)
    lines, side = _Lines(case), hpsv2.side_of(net)
    for i, picture in _pictures(case).items():
        yield from lines.floats(
            {
                f"out.preprocessed_{i}": hpsv2.HpsV20(net, None).preprocess(picture)[0],
                f"out.preprocessed_no_antialias_{i}": hpsv2.HpsV20(net, None, antialias=False).preprocess(picture)[0],
                f"out.open_clip_default_preprocess_{i}": normalised(
                    shortest_to(picture, side, torchvision_offset).float() / 255
                )[0],
            }
        )
    if "in.text_ids" in case:
        yield from lines.floats(_cosines(net, case["in.pixel_values"], case["in.text_ids"]))
    yield from lines.unclaimed()


def _cosines(net: CLIP, pixels: Tensor, ids: Tensor) -> dict[str, Tensor]:
    """Features, and the cosine of every image with every text, by the names of the stored tensors."""
    image, text = net.encode_image(pixels, normalize=True), net.encode_text(ids, normalize=True)
    table = image @ text.T
    found = {
        "out.image_features": image,
        "out.text_features": text,
        "out.logit_scale_exp": net.logit_scale.exp(),
        "out.similarity_image_i_text_j": table,
    }
    if len(image) == len(text):
        found |= {"out.hps_score": table.diagonal(), "out.hps_benchmark_score_x100": 100 * table.diagonal()}
    return found
