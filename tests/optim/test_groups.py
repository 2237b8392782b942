"""Laws of the parameter groups: each parameter once, told apart by shape and name."""

import pytest
import torch
from tests.model.variants import VARIANTS
from tests.toy import toy
from torch import nn

from lifecycle.errors import UserError
from lifecycle.model import Decoder
from lifecycle.model.decoder import build
from lifecycle.model.sharding import kept_whole
from lifecycle.optim import AdamW, Muon, parameter_groups


def decoder(*, tied: bool) -> Decoder:
    config = toy(
        family="qwen3",
        width=16,
        heads=2,
        kv_heads=1,
        ffn_width=24,
        vocab_size=64,
        max_positions=32,
        norm_eps=1e-6,
        qk_norm=True,
        tied_head=tied,
        init_std=0.02,
    )
    return build(config, seed=0)


def names_by_group(model: nn.Module, groups: list[dict]) -> dict[str, set[str]]:
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    return {entry["name"]: {name_of[id(p)] for p in entry["params"]} for entry in groups}


@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_of_the_decoder_is_in_exactly_one_group(tied: bool) -> None:
    model = decoder(tied=tied)
    groups = parameter_groups(model.named_parameters(), lr=1e-3, embedding_lr=5e-3, weight_decay=0.1)
    members = [id(p) for entry in groups for p in entry["params"]]
    assert sorted(members) == sorted({id(p) for p in model.parameters()})
    by_group = names_by_group(model, groups)
    assert by_group["embedding"] == {"embedding.weight"}
    assert by_group["norm"] == {name for name, p in model.named_parameters() if "norm" in name}
    assert ("head.weight" in by_group["decay"]) != tied
    assert {e["name"]: (e["lr"], e["lr_peak"], e["weight_decay"]) for e in groups} == {
        "decay": (1e-3, 1e-3, 0.1),
        "norm": (1e-3, 1e-3, 0.0),
        "embedding": (5e-3, 5e-3, 0.1),
    }


@pytest.mark.parametrize("tied", [True, False])
def test_muon_takes_the_hidden_matrices_and_nothing_else(tied: bool) -> None:
    model = decoder(tied=tied)
    optimizer = MUON.build(model)
    by_group = names_by_group(model, optimizer.param_groups)
    assert by_group["muon"] == {n for n, p in model.named_parameters() if n.startswith("blocks.") and p.ndim == 2}
    assert sum(len(members) for members in by_group.values()) == len(list(model.parameters()))
    rates = {entry["name"]: entry["lr_peak"] for entry in optimizer.param_groups}
    assert rates == {"muon": 0.02, "norm": 3e-4, "embedding": 3e-4} | ({} if tied else {"decay": 3e-4})


MUON = Muon(
    lr=0.02,
    adamw_lr=3e-4,
    embedding_lr=None,
    weight_decay=0.1,
    momentum=0.95,
    nesterov=True,
    newton_schulz_steps=5,
    scale="original",
    betas=(0.9, 0.95),
    eps=1e-8,
    grad_clip=None,
)


ADAMW = AdamW(lr=1e-3, embedding_lr=None, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8, grad_clip=None)


def test_a_tied_parameter_counts_once_and_under_its_first_name() -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(8, 4), "head": nn.Linear(4, 8, bias=False)})
    model["head"].weight = model["embedding"].weight
    both = model.named_parameters(remove_duplicate=False)
    (entry,) = parameter_groups(both, lr=1.0, embedding_lr=None, weight_decay=0.0)
    assert entry["name"] == "embedding" and len(entry["params"]) == 1 and entry["lr"] == 1.0


def test_frozen_parameters_are_left_out_and_all_frozen_is_refused() -> None:
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    (entry,) = parameter_groups(model.named_parameters(), lr=1.0, embedding_lr=None, weight_decay=0.0)
    assert entry["name"] == "decay"
    model.weight.requires_grad_(False)
    with pytest.raises(UserError, match="every parameter of the model is frozen"):
        parameter_groups(model.named_parameters(), lr=1.0, embedding_lr=None, weight_decay=0.0)


def test_half_precision_weights_are_refused() -> None:
    with pytest.raises(UserError, match="needs float32 weights, but 2 are not, weight"):
        parameter_groups(
            nn.Linear(2, 2, dtype=torch.bfloat16).named_parameters(), lr=1.0, embedding_lr=None, weight_decay=0.0
        )


@pytest.mark.parametrize("name", ["qwen2_moe", "deepseek_v3"])
def test_biases_and_routers_do_not_decay_and_stacked_experts_are_matrices(name: str) -> None:
    model = build(VARIANTS[name], seed=0)
    by_group = names_by_group(model, MUON.build(model).param_groups)
    still = {n for n, p in model.named_parameters() if p.ndim == 1 or "router" in n or "shared_gate" in n}
    assert by_group["norm"] | by_group.get("no_decay", set()) == still
    assert {n for n in by_group["muon"] if "experts" in n} == {n for n, p in model.named_parameters() if p.ndim == 3}
    assert by_group["embedding"] == {"embedding.weight"} and by_group.get("decay", set()) <= {"head.weight"}


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_what_shards_leave_whole_is_a_group_of_its_own(name: str) -> None:
    """One optimizer kernel takes plain tensors or shards, never both."""
    model = build(VARIANTS[name], seed=0)
    whole = {id(parameter) for parameter in kept_whole(model)}
    for groups in (MUON.build(model).param_groups, ADAMW.build(model).param_groups):
        members = {entry["name"]: {id(parameter) for parameter in entry["params"]} for entry in groups}
        assert members.pop("norm") == whole
        assert not any(ids & whole for ids in members.values())
