"""Captions: cleaning as published, a text encoder of its folder, and the layout of its states."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from lactok import registry
from lactok.conformance import CaseFolder
from lactok.generators import text_encoder
from lactok.generators.captions import CaptionError, clean_caption, clean_once, why_not_clean
from lactok.generators.text_encoder import FILES, REPOSITORY, TextEncoder, left_pad, text_encoder_sources
from lactok.models.gpt import GPTConfig
from lactok.weights import CheckpointMismatch, MissingWeights, WeightsError
from tests.tiny_generator import WORDS, write_flan

CLEANING = Path(__file__).parent / "golden" / "llamagen_gpt" / "text_cleaning.jsonl"
CPU = torch.device("cpu")


def test_golden_captions():
    lines = list(registry.load("conformance", "llamagen_gpt")(CaseFolder(CLEANING)))
    assert len(lines) == 2 * len(CLEANING.read_text().splitlines()) == 80
    assert [line for line in lines if not line.passed] == []


def test_a_caption_that_is_cleaned_otherwise_fails(tmp_path: Path):
    file = tmp_path / "captions.jsonl"
    rows = [{"input": "A cat", "output": "a dog"}, {"input": "A cat"}, {"input": "A cat", "clean_once": "a cat"}]
    file.write_text("\n".join(map(json.dumps, rows)))
    lines = list(registry.load("conformance", "llamagen_gpt")(CaseFolder(file)))
    assert [line.passed for line in lines] == [False, False, True]
    assert lines[0].note == "'a cat', expected 'a dog'"


@pytest.mark.parametrize(
    ("caption", "clean"),
    [
        ("look at https://images.site.org/a/b-c/ now", "look at now"),
        ("mail me@site.com today", "mail me today"),
        ("ひらがな 漢字 cat", "ひらがな cat"),
        ("a-b_c-d_e", "a b c d e"),
        ("in 2023, room 101", "in 2023, room 101"),
        ("AT&AMP;T", "at t"),
        ("12x34", ""),
        ("click on it. page 3", "."),
    ],
)
def test_quirks_of_the_published_steps(caption: str, clean: str):
    assert clean_caption(caption) == clean


def test_a_second_pass_removes_what_the_first_one_leaves():
    caption = "worldwide free shipping today, click for details"
    assert clean_once(caption) == "today,"
    assert clean_caption(caption) == "today"


def test_markup_that_no_parser_takes_is_an_error_with_the_reason():
    assert why_not_clean("<!-- a cat <b") is None
    assert why_not_clean("a cat <![<![") == "it can't be cleaned: its markup is broken in a way that no parser takes"
    with pytest.raises(CaptionError):
        clean_caption("a cat <![<![")


@pytest.mark.parametrize("missing", ["ftfy", "bs4"])
def test_what_is_not_installed_is_named_with_its_command(missing: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ModuleNotFoundError, match=rf"{missing} is not installed: pip install 'lactok\[generators\]'"):
        clean_once("a cat")


def test_states_are_moved_to_the_end_and_padding_is_zero():
    states = torch.arange(1.0, 13).view(2, 3, 2)
    padded, mask = left_pad(states, torch.tensor([[1, 0, 0], [1, 1, 0]]))
    assert mask.tolist() == [[0, 0, 1], [0, 1, 1]]
    assert padded.tolist() == [[[0, 0], [0, 0], [1, 2]], [[0, 0], [7, 8], [9, 10]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_flan(tmp_path_factory.mktemp("flan"))


def test_captions_become_left_padded_states(folder: Path):
    from transformers import T5EncoderModel

    encode = TextEncoder.load(CPU, str(folder))
    states, mask = encode(["A RED cat", "the sofa on the cat", ""])
    assert states.shape == (3, 120, 16)
    assert mask.sum(1).tolist() == [4, 6, 1]  # the end of the sequence counts
    assert mask[:, -1].tolist() == [1, 1, 1]
    assert not states[mask == 0].any()
    published = T5EncoderModel.from_pretrained(folder).eval()
    ids = [3 + WORDS.index(word) for word in ("a", "red", "cat")]
    with torch.no_grad():
        alone = published(input_ids=torch.tensor([[*ids, 1]])).last_hidden_state
    torch.testing.assert_close(states[0, -4:], alone[0], rtol=1e-5, atol=1e-6)
    assert encode(["cat " * 200])[1].sum() == 120
    assert GPTConfig().cls_token_num == encode.positions


def test_the_dtype_is_what_was_asked_for(folder: Path):
    states, _ = TextEncoder.load(CPU, str(folder), torch.bfloat16)(["a cat"])
    assert states.dtype == torch.bfloat16


@pytest.mark.parametrize("index", [False, True])
def test_pickles_do_too(folder: Path, tmp_path: Path, index: bool):
    """One file or shards; older files hold the tied tensor twice."""
    for file in folder.iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    state = load_file(folder / "model.safetensors")
    state["encoder.embed_tokens.weight"] = state["shared.weight"]
    if index:
        names = {name: f"pytorch_model-0000{1 + name.startswith('decoder')}-of-00002.bin" for name in state}
        for file in set(names.values()):
            torch.save({name: value for name, value in state.items() if names[name] == file}, tmp_path / file)
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))
    else:
        torch.save(state, tmp_path / "pytorch_model.bin")
    first, second = (TextEncoder.load(CPU, str(path))(["a red cat"])[0] for path in (folder, tmp_path))
    assert torch.equal(first, second)


def test_a_folder_that_lacks_something_is_refused(folder: Path, tmp_path: Path):
    with pytest.raises(MissingWeights, match=r"config\.json"):
        TextEncoder.load(CPU, str(tmp_path))
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = load_file(folder / "model.safetensors")
    del state["encoder.final_layer_norm.weight"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointMismatch, match=r"model\.safetensors: .*1 missing: encoder\.final_layer_norm\.weight"):
        TextEncoder.load(CPU, str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(WeightsError, match="can't be loaded as a T5 encoder with its tokenizer"):
        TextEncoder.load(CPU, str(tmp_path))


def test_missing_files_of_the_hub_are_named_with_their_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(MissingWeights) as caught:
        TextEncoder.load(CPU)
    message = str(caught.value)
    assert f"hf download {REPOSITORY}" in message
    assert all(name in message for name in FILES)
    assert f"--revision {text_encoder.REVISION}" in message
    assert "text_encoder=DIR" in message
    assert [source.filename for source in text_encoder_sources()] == list(FILES)
