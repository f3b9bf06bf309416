"""`recipe=generator`: kill and resume give the same bits, all is seen once an epoch, the file says its parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lactok.checkpoint_file import read_checkpoint
from lactok.data.folder import DataError
from lactok.data.token_shards import TokenShards
from lactok.generators.captioned_gpt import ENCODER, load_captioned_gpt
from lactok.generators.word_encoder import scene_words
from lactok.models.gpt import GPT, GPTConfig, padding_mask
from lactok.models.gpt_state_dict import GPTStateDict
from lactok.seeded import manifest_of, seeded_state_dict
from lactok.state_dict import meta_skeleton
from lactok.train.codebook_embeddings import codebook_of, start_from_codebook
from lactok.train.data import Share
from lactok.train.log import CsvLog
from lactok.train.loop import _Run, accumulate_gradients
from lactok.train.noise import uniform
from lactok.train.recipes.generator import DROP, GeneratorRecipe
from lactok.train.simulate import recomputed_as_on_cuda, step_cost
from lactok.train.token_data import TokenBatch, TokenData
from tests.commands import Command
from tests.support import ROOT, environment
from tests.tiny_generator import quick, scene_shards, settings, train_tiny, write_flan

CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    with quick():
        yield


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten scenes."""
    return scene_shards(tmp_path_factory.mktemp("captions"))


@pytest.fixture(scope="module")
def flan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_flan(tmp_path_factory.mktemp("flan"))


@pytest.fixture(scope="module")
def with_states(flan: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six scenes with states of 16 values."""
    folder = tmp_path_factory.mktemp("states")
    return scene_shards(folder, 6, "options.text=flan-t5-xl", f"options.text_encoder='{flan}'")


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing interrupted."""
    return train_tiny(shards, tmp_path_factory.mktemp("whole") / "run").parent


def of_states(shards: Path, out: Path, *more: str):
    """Settings of a GPT of stored states."""
    return settings(shards, out, "options.words=null", "options.model.cls_token_num=120", *more)


def recipe_of(config, seed: int = 0) -> GeneratorRecipe:
    """With weights that make a difference: the output's begin with zero."""
    torch.manual_seed(seed)
    recipe = GeneratorRecipe(config.options, config.steps, config.seed)
    torch.nn.init.normal_(recipe.model.gpt.output.weight, std=0.2)
    return recipe


def batch_of(config, step: int = 0, rows: tuple[range, ...] = (range(4),)) -> list[TokenBatch]:
    data = GeneratorRecipe.open_data(config)
    recipe = GeneratorRecipe(config.options, config.steps, config.seed)
    data.begin(recipe, config, Share(rows, sum(map(len, rows)), CPU))
    try:
        return data.at(step)
    finally:
        data.close()


def tensors_of(run: Path) -> dict[str, Tensor]:
    """What the last checkpoint and the export hold, flattened."""
    last = sorted((run / "checkpoints").glob("step-*"))[-1]
    found = load_file(last / "trained.safetensors")
    found |= {f"export {k}": v for k, v in load_file(run / "generator-mini.safetensors").items()}
    optimizer = torch.load(last / "optimizer.bin", weights_only=True)["state"]
    found |= {f"adam {i} {k}": v for i, state in optimizer.items() for k, v in state.items()}
    return found | {f"mean {k}": v for k, v in torch.load(last / "custom_checkpoint_0.pkl", weights_only=True).items()}


KILLS = {"step,2": None, "step,5": 3, "save,2": 3}
"""When a run is killed, and the step of the checkpoint that it leaves."""


@pytest.fixture(scope="module")
def killed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {moment: tmp_path_factory.mktemp("killed") / "run" for moment in KILLS}
    runs = (f"{moment},{out}" for moment, out in folders.items())
    done = Command(["-m", "tests.killed_generator", str(shards), *runs], environment()).end()
    assert done.returncode == 0, done.stderr
    return folders


@pytest.mark.parametrize(("moment", "last"), KILLS.items())
def test_kill_and_the_same_command_give_the_same_bits(
    shards: Path, whole: Path, killed: dict[str, Path], moment: str, last: int | None
):
    out = killed[moment]
    complete = sorted(path.name for path in (out / "checkpoints").glob("step-*"))
    assert complete == ([f"step-{last:08}"] if last else [])
    train_tiny(shards, out)
    wanted, got = tensors_of(whole), tensors_of(out)
    assert wanted.keys() == got.keys()
    assert [name for name in wanted if not torch.equal(wanted[name], got[name])] == []
    assert CsvLog(whole / "validation.csv").rows() == CsvLog(out / "validation.csv").rows()


def test_what_a_run_leaves(whole: Path, shards: Path):
    rows = CsvLog(whole / "log.csv").rows()
    assert [row["step"] for row in rows] == [2, 4, 6]
    for row in rows:
        assert row["cross_entropy"] == row["loss"] > 0
        assert row["tokens_per_second"] == pytest.approx(64 * row["images_per_second"], rel=1e-3)
        assert 0 < row["matrix_share"] < 1
    measured = CsvLog(whole / "validation.csv").rows()
    assert [row["step"] for row in measured] == [0, 6]
    assert measured[0]["cross_entropy"] == pytest.approx(torch.tensor(1024.0).log().item(), abs=1e-4)
    assert measured[0].keys() == {"step", "cross_entropy", "cross_entropy_unconditional"}
    sheet = Image.open(whole / "samples" / "step-00000006.png")
    assert sheet.width > 2 * 64
    assert sheet.convert("RGB").getextrema() != ((255, 255),) * 3


def test_the_file_says_its_parts_and_gives_the_same_logits(whole: Path, shards: Path):
    model, metadata = load_captioned_gpt(whole / "generator-mini.safetensors")
    index = TokenShards(shards).index
    assert (model.config.tokenizer, model.config.text_encoder) == (index.tokenizer, "")
    assert index.tokenizer.startswith("llamagen-mini ")
    assert metadata.made_with == {ENCODER: index.vq}
    assert model.config.words is not None
    assert model.config.words.vocabulary == scene_words()
    assert metadata.recipe.startswith("python -m lactok.train recipe=generator scale=mini data.root=DIR steps=6 ")
    assert " options.model.dim=32 " in metadata.recipe, "and whatever else differs from the preset"
    assert metadata.training.data == "10 token samples of the folder shards"
    assert metadata.image_size == 64

    config = settings(shards, whole)
    recipe = GeneratorRecipe(config.options, config.steps, config.seed).eval()
    state, _ = read_checkpoint(whole / "generator-mini.safetensors")
    recipe.model.load_state_dict(state)
    (batch,) = batch_of(config)
    with torch.no_grad():
        wanted = recipe.model.logits(batch.ids, *recipe.model.conditions(batch.captions))
        got = model.eval().logits(batch.ids, *model.conditions(batch.captions))
    assert wanted.std() > 1e-3
    assert torch.equal(wanted, got)


def test_every_sample_comes_once_an_epoch_and_none_that_is_held_back(shards: Path, tmp_path: Path):
    config = settings(shards, tmp_path, "steps=8")
    data = GeneratorRecipe.open_data(config)
    recipe = GeneratorRecipe(config.options, config.steps, config.seed)
    data.begin(recipe, config, Share((range(0, 2), range(2, 4)), 4, CPU))
    held = set(data.measured.captions)
    seen = [[row for batch in data.at(step) for row in batch.captions] for step in range(8)]
    data.close()
    captions = Counter(sample.caption for sample in TokenShards(shards))
    assert len(captions) == 10
    assert len(held) == 2
    for epoch in range(4):  # eight samples an epoch
        assert Counter(seen[2 * epoch] + seen[2 * epoch + 1]) == captions - Counter(held)
    assert seen[0] + seen[1] != seen[2] + seen[3]


def test_a_resumed_run_gets_the_same_samples(shards: Path, tmp_path: Path):
    config = settings(shards, tmp_path, "steps=8")
    data = GeneratorRecipe.open_data(config)
    data.begin(GeneratorRecipe(config.options, 8, 0), config, Share((range(4),), 4, CPU))
    in_order = [data.at(step)[0] for step in range(4)]
    data.close()
    (later,) = batch_of(config, 3)
    assert later.captions == in_order[3].captions
    assert torch.equal(later.ids, in_order[3].ids)
    assert later.seeds == in_order[3].seeds
    (other,) = batch_of(settings(shards, tmp_path, "seed=1"), 3)
    assert other.captions != later.captions
    by_caption = {sample.caption: sample.ids for sample in TokenShards(shards)}
    assert all(torch.equal(ids.int(), by_caption[caption]) for ids, caption in zip(later.ids, later.captions))


def test_several_folders_by_weight(shards: Path, with_states: Path, tmp_path: Path):
    config = settings(shards, tmp_path, "data.weights=[1,3]", f"data.root=['{shards}','{shards}']")
    data = GeneratorRecipe.open_data(config)
    assert isinstance(data, TokenData)
    assert len(data) == 20
    data.begin(GeneratorRecipe(config.options, 6, 0), config, Share((range(4),), 4, CPU))
    drawn = [data._order.at(place) for place in range(1000)]
    data.close()
    assert sum(place >= 10 for place in drawn) / 1000 == pytest.approx(0.75, abs=0.05)
    with pytest.raises(DataError, match=r"data\.root: .*has text_encoder \w.*none: expected folders of one kind"):
        TokenData([TokenShards(shards), TokenShards(with_states)])


def test_captions_are_dropped_by_their_seeds_alone(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = settings(shards, tmp_path, "options.model.class_dropout_prob=0.3")
    recipe = recipe_of(config)
    drops: list[Tensor] = []
    logits = type(recipe.model).logits

    def noting(self, ids, states, seen, drop=None):
        drops.append(drop)
        return logits(self, ids, states, seen, drop)

    monkeypatch.setattr(type(recipe.model), "logits", noting)
    (batch,) = batch_of(config)
    recipe(batch)
    torch.manual_seed(5)
    recipe(batch[1:3])
    assert torch.equal(drops[1], drops[0][1:3])
    assert torch.equal(drops[0], uniform(batch.seeds, CPU, DROP) < 0.3)
    assert (uniform(range(4000), CPU, DROP) < 0.3).float().mean().item() == pytest.approx(0.3, abs=0.03)


def test_the_loss_is_token_loss_by_hand(shards: Path, tmp_path: Path):
    config = settings(shards, tmp_path, "options.model.class_dropout_prob=0.4")
    recipe = recipe_of(config)
    (batch,) = batch_of(config)
    drop = uniform(batch.seeds, CPU, DROP) < 0.4
    assert 0 < drop.sum() < 4
    total = 0.0
    with torch.no_grad():
        got = recipe(batch)
        for ids, caption, dropped in zip(batch.ids, batch.captions, drop):
            states, seen = recipe.model.conditions([caption])
            given = recipe.model.gpt.cls_embedding.uncond_embedding[None] if dropped else states
            mask = padding_mask(seen, 12 + 64)[:, :-1, :-1]
            nothing = torch.zeros(1, dtype=torch.bool)
            logits = recipe.model.gpt(ids[None, :-1], given, mask, nothing)[0, 11:]
            total -= logits.log_softmax(-1).gather(1, ids[:, None]).mean().item() / 4
    assert got.total.item() == pytest.approx(total, rel=1e-5)
    assert total != pytest.approx(torch.tensor(1024.0).log().item(), abs=1e-3)


def test_the_loss_falls_on_a_few_scenes(shards: Path, tmp_path: Path):
    """Whole images are learned by heart, and their captions say which."""
    more = ("steps=60", "log_every=10", "optimizer.learning_rate=2e-2", "batch_size=8", "checkpoint_every=100")
    train_tiny(shards, tmp_path / "run", *more)
    log = CsvLog(tmp_path / "run" / "log.csv").rows()
    assert log[-1]["loss"] < 0.6 * log[0]["loss"]


def test_micro_batches_add_up_to_one_large_batch(shards: Path, tmp_path: Path):
    config = settings(shards, tmp_path)
    micro = batch_of(config, 1, (range(0, 2), range(2, 4)))
    large = batch_of(config, 1)
    recipe = recipe_of(config)

    def gradients(batches: list[TokenBatch]) -> Tensor:
        recipe.zero_grad()
        accumulate_gradients(Accelerator(cpu=True), recipe, batches)
        return torch.cat([p.grad.flatten() for p in recipe.parameters() if p.requires_grad])

    one, several = gradients(large), gradients(micro)
    assert one.abs().max() > 1e-3
    assert (one - several).abs().max() < 1e-5 * one.abs().max()


def test_fewer_activations_give_the_same_gradients(shards: Path, tmp_path: Path):
    """Dropout draws the same numbers in the second pass through a block."""
    config = settings(shards, tmp_path, "options.model.resid_dropout_p=0.2", "options.model.ffn_dropout_p=0.2")
    (batch,) = batch_of(config)
    found = []
    for checkpointed in (False, True):
        recipe = recipe_of(config).train()
        if checkpointed:
            recipe.checkpoint_activations()
        torch.manual_seed(3)
        recipe(batch).total.backward()
        found.append(torch.cat([p.grad.flatten() for p in recipe.parameters() if p.grad is not None]))
    assert torch.equal(*found)
    costs = []
    for checkpointed in (False, True):
        recipe = recipe_of(config).to("meta").train()
        if checkpointed:
            recipe.checkpoint_activations(recomputed_as_on_cuda(False))
        costs.append(step_cost(recipe, (4, 64), 0, 1, False))
    assert costs[1].activation_bytes < 0.8 * costs[0].activation_bytes


def test_all_that_should_learn_changes(shards: Path, tmp_path: Path):
    run = _Run(settings(shards, tmp_path / "run"), GeneratorRecipe, check_held_out=True)
    before = {name: value.clone() for name, value in run.recipe.state_dict().items()}
    assert run.go().finished
    changed = {name for name, value in run.recipe.state_dict().items() if not torch.equal(value, before[name])}
    assert before.keys() - changed == {"model.gpt.cls_embedding.uncond_embedding"}
    assert any(name.startswith("model.words.") for name in changed)


def test_bf16_runs(shards: Path, tmp_path: Path):
    AcceleratorState._reset_state(reset_partial_state=True)  # one process has one precision
    try:
        file = train_tiny(shards, tmp_path / "run", "precision=bf16", "steps=3")
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert all(tensor.isfinite().all() for tensor in load_file(file).values())
    assert (tmp_path / "run" / "samples" / "step-00000003.png").is_file()


def test_words_learn_where_the_shards_hold_states(with_states: Path, tmp_path: Path):
    file = train_tiny(with_states, tmp_path / "run", "steps=2")
    model, _ = load_captioned_gpt(file)
    assert model.words is not None
    assert model.config.text_encoder == ""


def test_stored_states_stand_at_the_end(with_states: Path, tmp_path: Path):
    config = of_states(with_states, tmp_path / "run", "steps=2")
    (batch,) = batch_of(config)
    assert batch.states is not None
    assert batch.seen is not None
    assert batch.states.shape == (4, 120, 16)
    by_caption = {sample.caption: sample.states for sample in TokenShards(with_states)}
    for caption, states, seen in zip(batch.captions, batch.states, batch.seen):
        length = len(by_caption[caption])
        assert seen.tolist() == [False] * (120 - length) + [True] * length
        assert torch.equal(states[-length:], by_caption[caption])
        assert not states[:-length].any()


def test_a_published_file_is_where_it_starts(with_states: Path, tmp_path: Path):
    given = GPTConfig(
        dim=32, n_layer=2, n_head=2, multiple_of=64, vocab_size=1024, block_size=64, cls_token_num=120, caption_dim=16
    )
    skeleton = meta_skeleton(GPT, given)
    published = seeded_state_dict(manifest_of(skeleton), 3)
    file = tmp_path / "t2i.pt"
    torch.save({"model": {name: value.bfloat16() for name, value in published.items()}, "steps": 5}, file)
    config = of_states(with_states, tmp_path / "run", f"options.start='{file}'", "steps=2")
    run = _Run(config, GeneratorRecipe, check_held_out=True)
    state = run.recipe.model.gpt.state_dict()
    assert state.keys() == published.keys()
    assert all(torch.equal(state[name], value.bfloat16().float()) for name, value in published.items())
    assert run.go().finished
    _, metadata = load_captioned_gpt(config.export_path)
    assert metadata.config["text_encoder"] == TokenShards(with_states).index.text_encoder
    narrow = of_states(with_states, tmp_path / "other", f"options.start='{file}'", "options.model.n_layer=1")
    with pytest.raises(Exception, match=r"t2i\.pt: .*unexpected: layers\.1"):
        _Run(narrow, GeneratorRecipe, check_held_out=True)
    GPTStateDict().load(meta_skeleton(GPT, given), published)


def test_embeddings_start_as_the_decoders_codebook(shards: Path, tmp_path: Path):
    """Codes that point the same way have embeddings and rows of the output that do."""
    config = settings(shards, tmp_path / "run", "options.embeddings=codebook")
    gpt = GeneratorRecipe(config.options, config.steps, config.seed).model.gpt
    vectors = load_file(ROOT / "lactok/tokenizers/checkpoints/llamagen-mini.safetensors")["quantizer.embedding.weight"]
    vectors = torch.nn.functional.normalize(vectors.float(), dim=1)
    output = gpt.output.weight.detach()
    assert torch.allclose(output @ output.T, vectors @ vectors.T, atol=1e-4)
    alike = torch.corrcoef(
        torch.stack([gpt.tok_embeddings.weight @ gpt.tok_embeddings.weight.T, vectors @ vectors.T]).flatten(1)
    )
    assert alike[0, 1] > 0.9
    assert not GeneratorRecipe(settings(shards, tmp_path / "run").options, 6, 0).model.gpt.output.weight.any()
    GeneratorRecipe(config.options, config.steps, config.seed).note_data(GeneratorRecipe.open_data(config))
    shipped = ROOT / "lactok/tokenizers/checkpoints/llamagen-mini.safetensors"
    other = load_file(shipped)
    other["quantizer.embedding.weight"] = other["quantizer.embedding.weight"].flip(0).contiguous()
    with safe_open(shipped, "pt") as file:
        save_file(other, tmp_path / "other.safetensors", file.metadata())
    more = f"options.decoder_weights='{tmp_path / 'other.safetensors'}'"
    config = settings(shards, tmp_path / "run", "options.embeddings=codebook", more)
    recipe = GeneratorRecipe(config.options, config.steps, config.seed)
    with pytest.raises(DataError, match=r"the codebook of options\.decoder=llamagen-mini is another; name its file by"):
        recipe.note_data(GeneratorRecipe.open_data(config))
    with pytest.raises(ValueError, match="a codebook of 1024 vectors of width 8: expected 512, of at most 16"):
        start_from_codebook(GPT(GPTConfig(dim=16, n_layer=1, n_head=2, vocab_size=512)), vectors)
    assert codebook_of([torch.nn.Linear(2, 2)]) is None
