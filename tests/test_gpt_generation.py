"""Generation from a GPT's cache: the ids of the uncached pass, whatever the batch; draws that are a prompt's own."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from lactok.models import gpt_generation
from lactok.models.gpt import CLASS, GPT, GPTConfig, padding_mask, rotary_table, rotate
from lactok.models.gpt_cache import Cache, text_weights
from lactok.models.gpt_generation import IdGenerator, Prompt, generate
from lactok.models.gpt_sampling import Sampling, draw, guide, probabilities, prompt_numbers
from tests.test_gpt import SMALL, seeded

GROUPED = dataclasses.replace(SMALL, dim=64, n_head=4, n_kv_head=2)
GREEDY = Sampling(guidance_scale=1.0, top_k=1)
GUIDED = dataclasses.replace(GREEDY, guidance_scale=3.0)
DRAWN = Sampling(guidance_scale=2.0, top_k=20, temperature=1.2)
MARGIN = 1e-4
"""Of the two best logits, below which rounding may choose."""
LENGTHS = (1, 12, 5, 3, 12, 7, 2)


def prompts(config: GPTConfig, lengths: tuple[int, ...] = LENGTHS) -> list[Prompt]:
    made = []
    for place, length in enumerate(lengths):
        generator = torch.Generator().manual_seed(place)
        states = torch.zeros(config.cls_token_num, config.caption_dim)
        states[-length:] = torch.randn(length, config.caption_dim, generator=generator)
        made.append(Prompt(states, torch.arange(config.cls_token_num) >= config.cls_token_num - length, 100 + place))
    return made


@torch.no_grad()
def uncached(model: GPT, prompt: Prompt, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Greedy ids (N,) of one prompt by the whole forward pass for each id, and the margin of each."""
    ids, margins = torch.zeros(1, 0, dtype=torch.int64), []
    for place in range(model.config.block_size):
        length = model.config.cls_token_num + place
        mask = None if prompt.seen is None else padding_mask(prompt.seen[None], length)
        logits = model(ids, prompt.condition[None], mask)[:, -1]
        if sampling.guided and (sampling.guidance_interval < 0 or place <= sampling.guidance_interval + 1):
            nothing = model(ids, prompt.condition[None], mask, drop=torch.ones(1, dtype=torch.bool))[:, -1]
            logits = guide(logits, nothing, sampling.guidance_scale)
        best = logits[0].topk(2).values
        margins.append(best[0] - best[1])
        ids = torch.cat([ids, logits.argmax(-1)[None]], 1)
    return ids[0], torch.stack(margins)


def agree(got: Tensor, want: Tensor, margins: Tensor) -> int:
    """Assert equal ids up to the first that rounding may choose; how many that are."""
    close = (margins < MARGIN).nonzero()
    sure = int(close[0]) if len(close) else len(want)
    assert got[:sure].tolist() == want[:sure].tolist()
    return sure


@pytest.mark.parametrize("config", [SMALL, GROUPED], ids=["heads", "grouped"])
@pytest.mark.parametrize(
    "sampling",
    [
        GREEDY,
        GUIDED,
        dataclasses.replace(GUIDED, guidance_interval=4),
        dataclasses.replace(GUIDED, guidance_interval=0),
    ],
    ids=["plain", "guided", "interval-4", "interval-0"],
)
def test_cached_ids_are_those_of_the_whole_forward_pass(config: GPTConfig, sampling: Sampling):
    model, given = seeded(config), prompts(config)
    wanted = [uncached(model, prompt, sampling) for prompt in given]
    assert len(torch.unique(torch.stack([ids for ids, _ in wanted]))) > 10
    sure = 0
    for batch in (1, 3, 7, 16):
        for order in (range(7), (4, 0, 6, 2, 1, 5, 3)):
            found = generate(model, [given[i] for i in order], sampling, batch)
            sure += sum(agree(ids, *wanted[i]) for i, ids in zip(order, found))
    assert sure > 0.9 * 8 * 7 * config.block_size


def test_padding_that_is_seen_counts():
    model = seeded(SMALL)
    given = [dataclasses.replace(prompt, seen=None) for prompt in prompts(SMALL)]
    found = generate(model, given, GUIDED, 4)
    sure = sum(agree(ids, *uncached(model, prompt, GUIDED)) for ids, prompt in zip(found, given))
    assert sure > 0.9 * found.numel()
    assert not torch.equal(found, generate(model, prompts(SMALL), GUIDED, 4))


def test_classes():
    config = dataclasses.replace(
        SMALL, model_type=CLASS, cls_token_num=1, num_classes=10, class_dropout_prob=0.1, token_dropout_p=0.1
    )
    model = seeded(config)
    given = [Prompt(torch.tensor(label), seed=label) for label in (3, 9, 0, 3)]
    found = generate(model, given, GUIDED, 3)
    sure = sum(agree(ids, *uncached(model, prompt, GUIDED)) for ids, prompt in zip(found, given))
    assert sure > 0.9 * found.numel()
    with pytest.raises(ValueError, match="class_dropout_prob 0"):
        generate(seeded(dataclasses.replace(config, class_dropout_prob=0.0)), given, GUIDED)


def test_an_image_of_one_id():
    model = seeded(dataclasses.replace(SMALL, block_size=1))
    (prompt,) = prompts(SMALL, (4,))
    assert generate(model, [prompt], GUIDED).tolist() == [uncached(model, prompt, GUIDED)[0].tolist()]
    assert generate(model, []).shape == (0, 1)


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 7])
def test_draws_do_not_depend_on_batch_order_or_neighbours(batch: int):
    model, given = seeded(SMALL), prompts(SMALL)
    wanted = torch.cat([generate(model, [prompt], DRAWN) for prompt in given])
    assert len(wanted.unique(dim=0)) == len(given)
    assert torch.equal(generate(model, given, DRAWN, batch), wanted)
    assert torch.equal(generate(model, given[::-1], DRAWN, batch), wanted.flip(0))
    assert torch.equal(generate(model, given[2:5], DRAWN, batch), wanted[2:5])


def test_a_seed_makes_the_difference():
    model, (prompt, *_) = seeded(SMALL), prompts(SMALL)
    same = [dataclasses.replace(prompt, seed=seed) for seed in (7, 8, 7)]
    first, second, third = generate(model, same, DRAWN)
    assert torch.equal(first, third)
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(generate(model, same, DRAWN)[0], first)  # no global state is used


def arriving(given: list[Prompt], pauses: int) -> Iterator[Prompt | None]:
    """Prompts of which none waits for some steps after each, so that rows are at different ids."""
    for prompt in given:
        yield prompt
        yield from [None] * pauses


@pytest.mark.parametrize("pauses", [1, 4, 20])
def test_a_free_row_takes_the_next_prompt_whatever_the_others_do(pauses: int):
    model, given = seeded(SMALL), prompts(SMALL)
    wanted = generate(model, given, DRAWN)
    generator = IdGenerator(model, 3, DRAWN)
    found = dict(generator.stream(arriving(given, pauses)))
    assert torch.equal(torch.stack([found[place] for place in range(len(given))]), wanted)
    again = dict(generator.stream(given[:2]))  # the cache is what the last call left
    assert torch.equal(torch.stack([again[0], again[1]]), wanted[:2])


def test_prompts_are_taken_when_there_is_room():
    model, given, taken = seeded(SMALL), prompts(SMALL), []

    def source() -> Iterator[Prompt]:
        for place, prompt in enumerate(given):
            taken.append(place)
            yield prompt

    stream = IdGenerator(model, 2, DRAWN).stream(source())
    assert next(stream)[0] == 0
    assert taken == [0, 1]
    assert [place for place, _ in stream] == [1, 2, 3, 4, 5, 6]


def test_the_cache_leaves_no_trace_in_the_model():
    model, given = seeded(SMALL), prompts(SMALL)
    ids, condition = torch.arange(16)[None], given[0].condition[None]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    with torch.no_grad():
        logits = model(ids, condition)
        model.train()
        generate(model, given, DRAWN, 3)
        assert model.training
        assert torch.equal(model.eval()(ids, condition), logits)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert not any(parameter.grad is not None for parameter in model.parameters())


def test_a_compiled_step_gives_the_same_ids():
    model, given = seeded(SMALL), prompts(SMALL)
    generator = IdGenerator(model, 3, DRAWN, compiled=True, backend="eager")
    found = dict(generator.stream(given))
    torch._dynamo.reset()
    assert torch.equal(torch.stack([found[place] for place in range(7)]), generate(model, given, DRAWN))


def test_blocks_are_compiled_once_for_all_and_each_length():
    made: list[int] = []

    def count(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        made.append(len(graph.graph.nodes))
        return graph.forward

    model = seeded(dataclasses.replace(SMALL, n_layer=5))
    generator = IdGenerator(model, 3, DRAWN, compiled=True, backend=count)
    list(generator.stream(prompts(SMALL)))
    torch._dynamo.reset()
    assert 1 <= len(made) <= gpt_generation.LENGTHS


def test_turning_is_the_same_compiled_and_not():
    """Complex numbers are no good to a compiler, so that it gets the products written out."""
    turn = rotary_table(SMALL)[-5:, None, None]
    x = torch.randn(5, 3, 4, 2 * turn.shape[-2])
    compiled = torch.compile(rotate, backend="eager", dynamic=False)
    assert torch.allclose(compiled(x, turn), rotate(x, turn), rtol=0, atol=1e-6)
    torch._dynamo.reset()


def test_what_can_not_be_is_refused():
    model = seeded(SMALL)
    with pytest.raises(ValueError, match="CUDA graphs on cpu"):
        IdGenerator(model, 2, recorded=True)
    with pytest.raises(ValueError, match="batch 0"):
        IdGenerator(model, 0)
    with pytest.raises(ValueError, match=r"a condition of shape \(3, 32\), expected \(12, 32\)"):
        generate(model, [Prompt(torch.zeros(3, 32))])
    with pytest.raises(ValueError, match=r"seen of shape \(3,\), expected \(12,\)"):
        generate(model, [Prompt(torch.zeros(12, 32), torch.ones(3))])
    for wrong in ({"top_p": 0.0}, {"temperature": -1.0}, {"top_k": -1}):
        with pytest.raises(ValueError, match="expected temperature"):
            Sampling(**wrong)
    for wrong in ({"temperature": math.nan}, {"guidance_scale": math.inf}, {"guidance_scale": math.nan}):
        with pytest.raises(ValueError, match="that are finite"):
            Sampling(**wrong)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_weight_of_a_prefix_survives_rounding(dtype: torch.dtype):
    counts = torch.arange(1, 121)
    total = text_weights(counts, dtype).double().exp().sum(1)
    torch.testing.assert_close(total, counts.double(), rtol=1e-6 if dtype == torch.float32 else 1e-3, atol=0)
    assert text_weights(torch.zeros(1), dtype).tolist() == [[-torch.inf, -torch.inf]]


def test_bfloat16_is_near_float32():
    model, (prompt, *_) = seeded(SMALL), prompts(SMALL, (5,))
    exact = generate(model, [prompt], GREEDY)
    half = generate(model.bfloat16(), [prompt], GREEDY)
    assert half.dtype == torch.int64
    assert int(half[0, 0]) == int(exact[0, 0])
    assert Cache(model, 2).keys.dtype == torch.bfloat16


def test_draws_have_the_probabilities():
    probability = torch.tensor([[0.0, 0.5, 0.0, 0.2, 0.3, 0.0]])
    numbers = prompt_numbers(0, 20_000)
    ids = draw(probability.expand(20_000, 6), numbers)
    shares = ids.bincount(minlength=6) / 20_000
    torch.testing.assert_close(shares, probability[0], rtol=0, atol=0.012)
    assert shares[[0, 2, 5]].tolist() == [0, 0, 0]
    edges = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert draw(probability.expand(3, 6), edges).tolist() == [1, 3, 4]


def test_filters():
    logits = torch.tensor([[1.0, 3.0, 2.0, 2.0, 0.0]])

    def left(**settings: float) -> list[int]:
        return probabilities(logits, Sampling(**{"top_k": 0} | settings))[0].nonzero()[:, 0].tolist()

    assert left(top_k=2) == [1, 2, 3]  # a tie stays
    assert left(top_k=9) == left() == [0, 1, 2, 3, 4]
    assert left(top_p=0.5) == [1]
    assert left(top_p=0.56) in ([1, 2], [1, 3])  # the one that passes it stays
    assert left(top_k=1, top_p=0.9) == [1]
    assert probabilities(logits, Sampling(temperature=0.0, top_k=0))[0].tolist() == [0, 1, 0, 0, 0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("compiled", [False, True])
def test_recorded_steps_give_the_same_ids(compiled: bool):
    model, given = seeded(SMALL).cuda(), prompts(SMALL)
    plain = dict(IdGenerator(model, 3, DRAWN).stream(given))
    generator = IdGenerator(model, 3, DRAWN, compiled=compiled, recorded=True)
    for source in (given, list(arriving(given, 4))):
        found = dict(generator.stream(source))
        assert all(torch.equal(found[place], ids) for place, ids in plain.items())
    torch._dynamo.reset()
