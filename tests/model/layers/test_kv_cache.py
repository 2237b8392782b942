"""Decoding with a cache gives what the whole rows give, whatever the switches, the cuts and the neighbours."""

from dataclasses import replace

import pytest
import torch
from tests.model.variants import DEEPSEEK, LLAMA, VARIANTS
from torch import Tensor

from lifecycle.model import Cache, Decoder, ModelConfig, build

T, CPU = 24, torch.device("cpu")


def made(config: ModelConfig) -> Decoder:
    """A float64 model whose choice biases and projection biases are not zero."""
    model = build(config, seed=1).double().eval()
    generator = torch.Generator().manual_seed(2)
    for name, tensor in model.state_dict().items():
        if name.endswith("bias"):
            tensor.normal_(0.0, 0.1, generator=generator)
    return model


def empty(config: ModelConfig, *, rows: int, capacity: int = T) -> Cache:
    return Cache.empty(config, rows=rows, capacity=capacity, device=CPU, dtype=torch.float64)


def ids(rows: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 96, (rows, T), generator=torch.Generator().manual_seed(seed))


def whole(model: Decoder, ids_BT: Tensor) -> Tensor:
    positions = torch.arange(ids_BT.shape[1]).expand_as(ids_BT)
    with torch.no_grad():
        return model.logits(model(ids_BT, positions))


def cached(model: Decoder, ids_BT: Tensor, cache: Cache, cuts: list[int]) -> Tensor:
    """Logits of the tokens fed in pieces that end at `cuts`."""
    parts, positions = [], torch.arange(ids_BT.shape[1]).expand_as(ids_BT)
    with torch.no_grad():
        for start, stop in zip([0, *cuts], [*cuts, ids_BT.shape[1]], strict=True):
            cache.limit = stop
            parts.append(model.logits(model(ids_BT[:, start:stop], positions[:, start:stop], cache=cache)))
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("name", VARIANTS)
def test_cached_logits_are_those_of_the_whole_row(name: str) -> None:
    config = VARIANTS[name]
    model, tokens = made(config), ids(3)
    wanted = whole(model, tokens)
    for cuts in ([9, *range(10, T)], [4, 11, 12, 22], [T - 1]):  # token by token, chunks, all but one
        torch.testing.assert_close(cached(model, tokens, empty(config, rows=3), cuts), wanted)


@pytest.mark.parametrize("name", ["llama", "mistral", "yarn", "deepseek_v3", "qwen3"])
def test_rows_that_begin_with_a_call_read_nothing_that_was_there(name: str) -> None:
    config = VARIANTS[name]
    model, tokens = made(config), ids(5)
    wanted, lengths, width = whole(model, tokens), [12, 20], 20
    cache = empty(config, rows=5)
    for stored in (*cache.keys, *cache.values):
        stored.fill_(torch.nan)  # of sequences before
    positions = torch.full((2, width), -1)
    for row, n in enumerate(lengths):
        positions[row, :n] = torch.arange(n)
    with torch.no_grad():
        cache.begins = True
        found = model.logits(model(tokens[:2, :width], positions, cache=cache, rows=slice(2, 4)))
        for row, n in enumerate(lengths):
            torch.testing.assert_close(found[row, :n], wanted[row, :n])
        for stored in (*cache.keys, *cache.values):
            stored.nan_to_num_()
        cache.begins = False
        now = torch.tensor(lengths)[:, None]
        found = model.logits(model(tokens[:2].gather(1, now), now, cache=cache, rows=slice(2, 4)))
    for row, n in enumerate(lengths):
        torch.testing.assert_close(found[row, 0], wanted[row, n])


@pytest.mark.parametrize("name", ["qwen2", "deepseek_v3"])
def test_rows_of_any_length_padded_anywhere_keep_to_themselves(name: str) -> None:
    config = VARIANTS[name]
    model, tokens = made(config), ids(3)
    wanted, lengths, width = whole(model, tokens), [7, 12, 3], 12
    positions = torch.full((3, width), -1)
    prompt = torch.zeros(3, width, dtype=torch.long)
    for row, n in enumerate(lengths):  # padding on the left, none, padding on the right
        place = slice(width - n, width) if row == 0 else slice(0, n)
        positions[row, place], prompt[row, place] = torch.arange(n), tokens[row, :n]
    cache = empty(config, rows=3)
    with torch.no_grad():
        found = model.logits(model(prompt, positions, cache=cache))
        for row, n in enumerate(lengths):
            torch.testing.assert_close(found[row][positions[row] >= 0], wanted[row, :n])
        for step in range(8):  # the second row ends early: from then on it is padding
            now = torch.tensor([[n + step] for n in lengths])
            now[1] = now[1] if step < 3 else -1
            found = model.logits(model(tokens.gather(1, now.clamp(min=0)), now, cache=cache))
            for row in range(3):
                if now[row] >= 0:
                    torch.testing.assert_close(found[row, 0], wanted[row, int(now[row])])


@pytest.mark.parametrize("name", ["mistral", "deepseek_v3"])
def test_a_prompt_is_prefilled_once_and_copied(name: str) -> None:
    config = VARIANTS[name]
    model, tokens = made(config), ids(4)
    tokens[:, :9] = tokens[0, :9]  # one prompt, four ways on
    wanted, cache = whole(model, tokens), empty(config, rows=6)
    with torch.no_grad():
        model(tokens[:1, :9], torch.arange(9)[None], cache=cache, rows=torch.tensor([4]))
        rows = torch.tensor([5, 0, 2, 3])
        cache.copy_rows(4, rows, length=9)
        for position in range(9, 14):
            now = torch.full((4, 1), position)
            found = model.logits(model(tokens[:, position : position + 1], now, cache=cache, rows=rows))
            torch.testing.assert_close(found[:, 0], wanted[:, position])


def test_a_row_taken_again_shows_nothing_of_what_it_held() -> None:
    model, cache = made(LLAMA), empty(LLAMA, rows=1)
    cached(model, ids(1, seed=5), cache, [T - 1])
    again = ids(1)[:, :6]
    torch.testing.assert_close(cached(model, again, cache, [2, 3]), whole(model, again))


def test_the_limit_changes_no_answer() -> None:
    model, tokens = made(LLAMA), ids(2)
    short, long = empty(LLAMA, rows=2), empty(LLAMA, rows=2, capacity=40)
    with torch.no_grad():
        for position in range(6):
            now = torch.full((2, 1), position)
            short.limit = position + 1
            near = model(tokens[:, position : position + 1], now, cache=short)
            torch.testing.assert_close(model(tokens[:, position : position + 1], now, cache=long), near)


def test_latent_attention_keeps_the_compressed_vectors_only() -> None:
    assert empty(LLAMA, rows=1).bytes_per_position == 8 * 3 * 2 * 2 * 8  # float64, layers, keys and values, G, K
    assert empty(DEEPSEEK, rows=1).bytes_per_position == 8 * 3 * (12 + 4)


def test_autocast_decodes_near_the_exact_answer() -> None:
    for name in ("qwen3", "deepseek_v3", "mixtral"):
        config = replace(VARIANTS[name], init_std=0.05)
        model, tokens = build(config, seed=1).eval(), ids(2)
        wanted = whole(model, tokens)
        cache = Cache.empty(config, rows=2, capacity=T, device=CPU, dtype=torch.bfloat16)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = cached(model, tokens, cache, [9, 10, 11, 12])
        assert (found.float() - wanted).norm() / wanted.norm() < 5e-2, name
