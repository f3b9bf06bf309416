"""LlamaGen's GPT, which is LacTokGen's: golden cases, published names, prefixes, masks, training passes."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lactok import registry
from lactok.conformance import CaseFolder, CheckLine
from lactok.generators.conformance import case_config
from lactok.models.gpt import CLASS, GPT, SIZES, GPTConfig, attend, padding_mask, rotary_table, token_loss
from lactok.models.gpt_state_dict import NESTED, GPTStateDict
from lactok.seeded import manifest_of, seeded_state_dict
from lactok.state_dict import find_state_dict, meta_skeleton
from lactok.weights import CheckpointMismatch

GOLDEN = Path(__file__).parent / "golden"
XL = GPTConfig()
CLASSES = dataclasses.replace(XL, model_type=CLASS, cls_token_num=1)
SMALL = GPTConfig(
    dim=48, n_layer=3, n_head=2, vocab_size=64, block_size=16, cls_token_num=12, caption_dim=32,
    token_dropout_p=0.0, resid_dropout_p=0.0, ffn_dropout_p=0.0, class_dropout_prob=0.0,
)  # fmt: skip
FULL = {
    "llamagen_gpt/manifest.json": (XL, 777_678_080),
    "lactok/manifest_gen.json": (XL, 777_678_080),
    "llamagen_gpt/manifest_c2i_XL.json": (CLASSES, 774_699_520),
    "llamagen_gpt/manifest_c2i_B.json": (dataclasses.replace(CLASSES, **SIZES["B"]), 110_888_448),
}


def seeded(config: GPTConfig, seed: int = 0) -> GPT:
    skeleton = meta_skeleton(GPT, config)
    return GPTStateDict().load(skeleton, seeded_state_dict(manifest_of(skeleton), seed)).eval()


def run(path: Path) -> list[CheckLine]:
    return list(registry.load("conformance", path.parent.name)(CaseFolder(path)))


@pytest.mark.parametrize(
    ("case", "count"),
    [("llamagen_gpt/tiny", 24), ("llamagen_gpt/tiny_c2i", 5), ("lactok/tiny_gpt", 15)],
)
def test_golden_case(case: str, count: int):
    lines = run(GOLDEN / case)
    assert [line for line in lines if not line.passed] == []
    assert len(lines) == count
    assert max(line.max_rel for line in lines if line.max_rel is not None) < 5e-6
    stored = {name for name in CaseFolder(GOLDEN / case).names if not name.endswith("_gap")}
    given = {"caption_embs_right_padded", "emb_masks_right_padded", "tokens", "labels", "train_valid", "force_drop_ids"}
    assert {line.tensor for line in lines} == stored - given - {"filt_logits"}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    folder = tmp_path / "llamagen_gpt" / "changed"
    shutil.copytree(GOLDEN / "lactok" / "tiny_gpt", folder)
    return folder


def edit(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def test_what_is_wrong_fails(copy: Path):
    tensors = load_file(copy / "case.safetensors")
    tensors["gen_cfg_ids"][1, 3] += 1
    tensors["secret"] = torch.zeros(1)
    tensors["gen_other_ids"] = tensors["gen_cfg_ids"].clone()
    save_file(tensors, copy / "case.safetensors")
    failed = {line.tensor: line.note for line in run(copy) if not line.passed}
    assert failed.keys() == {"gen_cfg_ids", "gen_cfg_raw_logits", "secret", "gen_other_ids"}
    assert failed["gen_cfg_ids"].endswith("of 48 differ")  # the wrong one, and what comes from being fed it
    assert "no generation run 'other'" in failed["gen_other_ids"]
    edit(copy, weights_seed=4)
    assert "eval_logits_causal_first8" in {line.tensor for line in run(copy) if not line.passed}


def test_a_drawn_id_must_be_a_candidate(copy: Path):
    (settings,) = json.loads((copy / "config.json").read_text())["generation_runs"]
    edit(copy, generation_runs=[settings | {"top_k": 5}])
    by_name = {line.tensor: line for line in run(copy)}
    assert by_name["gen_cfg_ids"].passed
    tensors = load_file(copy / "case.safetensors")
    tensors["gen_cfg_ids"][0, -1] = tensors["gen_cfg_raw_logits"][0, -1].argmin()
    save_file(tensors, copy / "case.safetensors")
    by_name = {line.tensor: line for line in run(copy)}
    assert by_name["gen_cfg_ids"].note == "1 of 48 are no candidates"


@pytest.mark.parametrize("file", FULL)
def test_full_manifest_loads_strictly_without_memory(file: str):
    config, count = FULL[file]
    manifest = CaseFolder(GOLDEN / Path(file).parent / "any").manifest(Path(file).name)
    state = {name: torch.empty(spec.shape, device="meta") for name, spec in manifest.items()}
    model = GPTStateDict().load(meta_skeleton(GPT, config), state)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert model.state_dict().keys() == manifest.keys()


def test_another_checkpoint_is_refused_and_leftovers_of_generation_are_not():
    model = seeded(SMALL)
    state = dict(model.state_dict())
    cached = {f"layers.{i}.attention.kv_cache.{name}_cache": torch.zeros(2) for i in range(3) for name in "kv"}
    nested = {"model": state | cached, "optimizer": None}
    GPTStateDict().load(meta_skeleton(GPT, SMALL), find_state_dict(nested, NESTED))
    del state["norm.weight"]
    with pytest.raises(CheckpointMismatch, match=r"1 missing: norm\.weight; 1 unexpected: head\.weight"):
        GPTStateDict().load(meta_skeleton(GPT, SMALL), state | {"head.weight": torch.zeros(1)})


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"model_type": "t2v"}, "expected 't2i' or 'c2i'"),
        ({"model_type": CLASS}, "a class takes 1 position"),
        ({"n_head": 5}, "dim 48 with 5 heads"),
        ({"n_head": 8}, "multiple of 4"),
        ({"n_kv_head": 3}, "expected a divisor"),
        ({"block_size": 15}, "expected a square"),
    ],
)
def test_impossible_architectures_are_refused(wrong: dict, reason: str):
    with pytest.raises(ValueError, match=reason):
        dataclasses.replace(SMALL, **wrong)


def test_width_of_the_feed_forward():
    assert [XL.ffn_dim, dataclasses.replace(XL, dim=1024, n_head=16).ffn_dim] == [3584, 2816]
    assert dataclasses.replace(XL, ffn_dim_multiplier=1.5).ffn_dim == 5120


def test_the_prefix_has_no_rotary_rows_and_ids_turn_with_their_cell():
    table = rotary_table(SMALL)
    assert table.shape == (28, 12, 2)
    assert not table[:12].any()
    grid = table[12:].view(4, 4, 12, 2)
    assert torch.equal(grid[:, :1, :6].expand(4, 4, 6, 2), grid[:, :, :6])  # the row
    assert torch.equal(grid[:1, :, 6:].expand(4, 4, 6, 2), grid[:, :, 6:])  # the column
    assert torch.equal(grid[2, 0, :6], grid[0, 2, 6:])
    assert grid[3, 0, 1].tolist() == pytest.approx([math.cos(3 * 10000 ** (-2 / 12)), math.sin(3 * 10000 ** (-2 / 12))])


def test_padding_is_seen_by_itself_alone():
    mask = padding_mask(torch.tensor([[0, 0, 1]]), 5)[0].int().tolist()
    assert mask == [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 1, 1]]


def test_attention_written_out_for_training_is_the_fused_one():
    """In bfloat16 on the CPU gradients take another way than inference, with the same result."""
    torch.manual_seed(0)
    config = GPTConfig(
        dim=32, n_layer=2, n_head=4, multiple_of=16, vocab_size=20, block_size=16, cls_token_num=6, caption_dim=8
    )
    gpt = GPT(config).eval()
    torch.nn.init.normal_(gpt.output.weight)
    ids, states = torch.randint(20, (3, 16)), torch.randn(3, 6, 8)
    mask = padding_mask(torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6, [0] * 5 + [1]]), config.positions)
    with torch.autocast("cpu", torch.bfloat16):
        trained = gpt.training_logits(ids, states, mask)
        with torch.no_grad():
            assert torch.allclose(trained, gpt.training_logits(ids, states, mask), atol=0.1)
    q, k, v = (torch.randn(3, 4, 22, 8, requires_grad=True) for _ in range(3))
    given = torch.randn(3, 4, 22, 8)
    ways = (
        attend(q, k, v, mask[:, None], 0.0),
        torch.nn.functional.scaled_dot_product_attention(q, k, v, mask[:, None]),
    )
    ours, fused = (torch.autograd.grad(way, (q, k, v), given) for way in ways)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours, fused))


def test_a_condition_may_be_dropped_in_training():
    model = seeded(dataclasses.replace(SMALL, class_dropout_prob=0.5))
    condition = torch.randn(64, 12, 32, generator=torch.Generator().manual_seed(0))
    nothing = model.prefix(condition, torch.ones(64, dtype=torch.bool))
    assert torch.equal(nothing[0], nothing[1])
    dropped = (model.train().prefix(condition) == nothing).flatten(1).all(1)
    assert 16 < dropped.sum() < 48
    assert not (model.eval().prefix(condition) == nothing).flatten(1).all(1).any()
    assert "cls_embedding.uncond_embedding" not in dict(model.named_parameters())


def test_unconditional_embeddings_that_do_not_exist_are_refused():
    everything = torch.ones(2, dtype=torch.bool)
    with pytest.raises(ValueError, match="12 text positions, but the unconditional embedding has 120"):
        GPT(dataclasses.replace(SMALL, uncond_positions=120)).prefix(torch.zeros(2, 12, 32), everything)
    classes = dataclasses.replace(SMALL, model_type=CLASS, cls_token_num=1, num_classes=7)
    assert GPT(classes).cls_embedding.embedding_table.weight.shape == (7, 48)
    with pytest.raises(ValueError, match="no unconditional row"):
        GPT(classes).prefix(torch.zeros(2, dtype=torch.int64), everything)


def batch(config: GPTConfig, count: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    condition = torch.randn(count, config.cls_token_num, config.caption_dim, generator=generator)
    return torch.randint(config.vocab_size, (count, config.block_size), generator=generator), condition


def test_it_starts_with_no_idea_and_learns():
    torch.manual_seed(0)
    model = GPT(dataclasses.replace(SMALL, token_dropout_p=0.1, ffn_dropout_p=0.1, drop_path_rate=0.2)).train()
    tokens, condition = batch(SMALL)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(30):
        loss = token_loss(model.training_logits(tokens, condition), tokens)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(64))
    assert losses[-1] < losses[0] - 1


def test_samples_that_do_not_count_are_left_out_of_the_loss():
    tokens, _ = batch(SMALL)
    logits = torch.randn(4, 16, 64, generator=torch.Generator().manual_seed(2))
    some = token_loss(logits, tokens, torch.tensor([1, 0, 1, 0]))
    assert some.item() == pytest.approx(token_loss(logits[::2], tokens[::2]).item(), rel=1e-6)
    assert token_loss(logits, tokens, torch.zeros(4)) == 0


def test_more_ids_than_an_image_has_are_refused():
    with pytest.raises(ValueError, match="17 ids of an image that has 16"):
        seeded(SMALL)(torch.zeros(1, 17, dtype=torch.int64), torch.zeros(1, 12, 32))


def test_a_case_s_unconditional_embedding_is_as_long_as_its_manifest_says(copy: Path):
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["cls_embedding.uncond_embedding"]["shape"][0] = 120
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert case_config(CaseFolder(copy)).uncond_positions == 120
    failed = {line.tensor for line in run(copy) if not line.passed}
    assert failed == {"uncond_proj_head4", "force_drop_proj_head4", "gen_cfg_ids", "gen_cfg_raw_logits"}
