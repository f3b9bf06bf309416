"""The small text encoder: padding changes nothing, and any text has states."""

from __future__ import annotations

import pytest
import torch

from lactok.data.scenes import scenes
from lactok.generators.word_encoder import END, PAD, UNKNOWN, WordEncoder, WordEncoderConfig, scene_words, words_of

LONG = "a red circle left of a blue square, " * 139  # 5,004 characters


@pytest.fixture(scope="module")
def encoder() -> WordEncoder:
    torch.manual_seed(0)
    return WordEncoder(WordEncoderConfig(dim=32, heads=4, layers=2, ffn_dim=64)).eval()


@pytest.mark.parametrize("text", ["", "a", "two red circles", "a red circle left of a blue square", LONG])
@torch.no_grad()
def test_padding_never_changes_states(encoder: WordEncoder, text: str):
    ids, seen = encoder.tokenize([text, "a", LONG, ""])
    states = encoder(ids, seen)
    length = len(encoder.ids(text))
    assert seen[0].tolist() == [False] * (24 - length) + [True] * length
    alone = encoder.encoder(input_ids=torch.tensor([encoder.ids(text)])).last_hidden_state[0]
    torch.testing.assert_close(states[0, -length:], alone, rtol=1e-5, atol=1e-5)
    assert not states[0, :-length].any()
    assert alone.abs().max() > 0.1
    torch.testing.assert_close(encoder(*encoder.tokenize([text]))[0], states[0], rtol=1e-5, atol=1e-5)


def test_ids_of_any_text(encoder: WordEncoder):
    known = [UNKNOWN + 1 + scene_words().index(word) for word in ("a", "red", "circle")]
    assert encoder.ids("A red, CIRCLE")[:2] == known[:2]
    assert encoder.ids("a red circle") == encoder.ids("  a\tRED\n\ncircle ") == [*known, END]
    assert encoder.ids("a_red_circle") == [*known, END]
    assert encoder.ids("") == encoder.ids(" \n\u2028") == [END]
    assert encoder.ids("a zebra 🦓 \x00\x07") == [known[0], *[UNKNOWN] * 4, END]
    assert encoder.unknown("a zebra 🦓 and a RED circle") == ["zebra", "🦓"]
    assert len(encoder.ids(LONG)) == 24
    assert encoder.ids(LONG)[-1] == END
    assert len(encoder.ids("👩🏽‍🚀" * 2000)) == 24
    assert PAD not in encoder.ids("قطة حمراء İstanbul ß ½ e\u0301 \ud800")


@torch.no_grad()
def test_odd_texts_have_finite_states(encoder: WordEncoder):
    texts = ["", "\x00", "👩🏽‍🚀" * 500, "قطة", "a=b {x} <b>", LONG]
    states = encoder(*encoder.tokenize(texts))
    assert states.shape == (6, 24, 32)
    assert states.isfinite().all()
    assert states[:, -1].abs().amax(1).min() > 0.1


@torch.no_grad()
def test_words_and_their_order_count(encoder: WordEncoder):
    texts = ["a red circle left of a blue square", "a blue square left of a red circle", "a red circle"]
    states = encoder(*encoder.tokenize(texts))
    assert (states[0, -9:] - states[1, -9:]).abs().max() > 1e-3
    assert (states[0, -1] - states[2, -1]).abs().max() > 1e-3


def test_every_scene_caption_is_known(encoder: WordEncoder):
    captions = [made.caption for made in scenes(0, 60, 64)]
    assert [encoder.unknown(caption) for caption in captions] == [[]] * 60
    assert max(len(words_of(caption)) for caption in captions) < 24
    assert 30 < len(scene_words()) < 200


def test_no_weights_have_two_names(encoder: WordEncoder):
    storages = [tensor.data_ptr() for tensor in encoder.state_dict().values()]
    assert len(set(storages)) == len(storages)
    assert encoder.state_dict().keys() == {name for name, _ in encoder.named_parameters()}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"vocabulary": ("a", "a")}, "each one once"),
        ({"vocabulary": ("Red",)}, "lower-case words"),
        ({"vocabulary": ("two words",)}, "lower-case words"),
        ({"vocabulary": ("",)}, "lower-case words"),
        ({"dim": 30, "heads": 4}, "dim 30 with 4 heads: expected a multiple"),
        ({"positions": 1}, "positions 1: expected at least 2"),
    ],
)
def test_what_can_not_be_is_refused(wrong: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        WordEncoderConfig(**wrong)
