"""Every family against the network of `transformers`: logits, gradients, greedy words from a cache; out and back to
the bit."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tests.model.huggingface.families import CONFIGS, IDS, made, our_logits, theirs
from torch import Tensor

from lifecycle.model import Cache, Decoder
from lifecycle.model.huggingface import export, from_huggingface, load_pretrained, names, to_huggingface
from lifecycle.model.huggingface.names import parts, rows


@dataclass(frozen=True)
class Pair:
    """Our network, the folder it was exported to, and their network from that folder."""

    ours: Decoder
    folder: Path
    theirs: Any


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    model, folder = made(CONFIGS[request.param]), tmp_path_factory.mktemp(request.param)
    export(model, folder)
    yield Pair(model, folder, theirs(folder))


def test_logits_are_those_of_their_network(pair: Pair) -> None:
    with torch.no_grad():
        ours, other = our_logits(pair.ours), pair.theirs(input_ids=IDS).logits
    torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()) / 10)


def test_every_gradient_is_theirs(pair: Pair) -> None:
    for logits in (our_logits(pair.ours), pair.theirs(input_ids=IDS).logits):
        logits.square().mean().backward()
    config = pair.ours.config
    for ours, parameter in pair.ours.named_parameters():
        assert parameter.grad is not None, ours
        order = rows(ours, config)
        mine = parameter.grad if order is None else parameter.grad[order]
        other = their_gradient(pair.theirs, names(config)[ours])
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5, msg=partial(in_words, ours))


def in_words(name: str, difference: str) -> str:
    return f"{name}: {difference}"


def their_gradient(network: torch.nn.Module, name: str) -> Tensor:
    """Of a tensor of the folder: their network names Mixtral's parts like the others', and holds experts fused."""
    name = name.replace("block_sparse_moe", "mlp")
    stem, apart, matrix = name.removesuffix(".weight").partition(".experts.*.")
    wanted = name
    if apart:
        wanted = f"{stem}.experts.{'down_proj' if matrix in ('down_proj', 'w2') else 'gate_up_proj'}"
    gradient = dict(network.named_parameters())[wanted].grad
    assert gradient is not None
    if wanted.endswith("gate_up_proj"):
        return gradient.chunk(2, dim=1)[0 if matrix in ("gate_proj", "w1") else 1]
    return gradient


def test_greedy_words_from_a_cache_are_theirs(pair: Pair) -> None:
    start = IDS[:, :6]
    words = pair.theirs.generate(
        start,
        attention_mask=torch.ones_like(start),
        max_new_tokens=12,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    assert torch.equal(greedy(pair.ours, start, 12), words)


@torch.no_grad()
def greedy(model: Decoder, start_BT: Tensor, steps: int) -> Tensor:
    B, T = start_BT.shape
    cache = Cache.empty(model.config, rows=B, capacity=T + steps, device=torch.device("cpu"), dtype=torch.float32)
    words, new, positions = start_BT, start_BT, torch.arange(T).expand(B, T)
    for step in range(steps):
        hidden = model(new, positions, cache=cache)
        new = model.logits(hidden[:, -1:]).argmax(-1)
        words, positions = torch.cat((words, new), dim=1), torch.full((B, 1), T + step)
    return words


def test_out_and_back_is_the_same_to_the_bit(pair: Pair) -> None:
    for config, weights in (load_pretrained(pair.folder), from_huggingface(*to_huggingface(pair.ours))):
        assert config == pair.ours.config
        assert_same(weights, pair.ours)


def test_out_in_and_out_again_writes_the_same_bytes(pair: Pair, tmp_path: Path) -> None:
    config, weights = load_pretrained(pair.folder)
    again = Decoder(config)
    again.load_state_dict(weights)
    export(again, tmp_path)
    for file in ("model.safetensors", "config.json"):
        assert (pair.folder / file).read_bytes() == (tmp_path / file).read_bytes()


def test_what_they_save_and_what_they_hold_in_memory_is_read(pair: Pair, tmp_path: Path) -> None:
    pair.theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    held = dict(pair.theirs.state_dict())
    for config, weights in (load_pretrained(tmp_path), from_huggingface(pair.theirs.config.to_dict(), held)):
        assert config == pair.ours.config
        assert_same(weights, pair.ours)


def test_a_folder_holds_the_tensors_that_they_would_save(pair: Pair, tmp_path: Path) -> None:
    pair.theirs.save_pretrained(tmp_path)
    assert stored_names(pair.folder) == stored_names(tmp_path)
    config = pair.ours.config
    experts = config.moe.experts if config.moe else 0
    assert stored_names(pair.folder) == {part for their in names(config).values() for part in parts(their, experts)}


def assert_same(weights: dict[str, Tensor], model: Decoder) -> None:
    assert weights.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(weights[name], value), name


def stored_names(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", framework="pt") as opened:
        return set(opened.keys())
