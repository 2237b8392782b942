"""Adapters in a decoder: `peft` puts them beside the chosen matrices, only they are trained, and they can be set aside.

The score of a reward model, which has never been trained before, is trained whole beside them.

    add_adapter(model, adapter, seed=seed)          in place; the weights must be there
    with adapter_off(model): ...                    the network as it was without, for a reference
    plain_weights(model)                            W' under the decoder's own names, for an export or another layout

A matrix is a *place*, named as in the plain decoder ("blocks.0.attention.q_proj", "blocks.0.ffn.experts.up_proj").
`peft` moves what it wraps: `live_names` says where a place's tensors stand in the state dict of an adapted decoder.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lifecycle.errors import UserError
from lifecycle.model.config import ModelConfig
from lifecycle.model.decoder import Decoder
from lifecycle.model.families import family_of
from lifecycle.model.layers.experts import Experts
from lifecycle.model.layers.four_bits import quantise, whole_weight
from lifecycle.model.lora import Adapter, Factors, applied, chosen, first_factors
from lifecycle.system.seeds import derive

INNER = ".base_layer"
GATE = "shared_gate"
"""A row that tokens are measured against, as the router is."""


def places(config: ModelConfig, adapter: Adapter) -> list[str]:
    """The matrices that the adapter sits on. Raises UserError for targets that name none."""
    return chosen({place: _called(place, config) for place in matrices(config)}, adapter)


@functools.cache
def matrices(config: ModelConfig) -> dict[str, torch.Size]:
    """All matrices that an adapter can sit on, and their shapes: linear layers of the blocks, and stacks of experts."""
    with torch.device("meta"):
        model = Decoder(config)
    found: dict[str, torch.Size] = {}
    for name, module in model.blocks.named_modules(prefix="blocks"):
        if isinstance(module, Experts):
            found |= {f"{name}.{own}": weight.shape for own, weight in module.named_parameters()}
        elif isinstance(module, nn.Linear) and not name.endswith(GATE):
            found[name] = module.weight.shape
    return found


def _called(place: str, config: ModelConfig) -> list[str]:
    """Our name of a matrix, and that in the files of its family."""
    inside = family_of(config.family).tensors
    rest = place.split(".", 2)[2]
    theirs = inside[rest if rest in inside else f"{rest}.weight"].removesuffix(".weight")
    return [place, theirs.replace(".*", "")]


def check_adapter(config: ModelConfig, adapter: Adapter) -> None:
    """Raise UserError for targets that name nothing, for what `peft` cannot express, and where it is not installed."""
    if importlib.util.find_spec("peft") is None:
        raise UserError("adapter=lora needs peft, which is not installed here: pip install 'lifecycle[lora]'")
    if adapter.bits is not None:
        _check_bits(config, adapter)
    found, cannot = places(config, adapter), [f"adapter.{key}" for key in ("dora", "dropout") if getattr(adapter, key)]
    parameters = [place for place in found if is_parameter(place, config)]
    if parameters and cannot:
        raise UserError(
            f"{' and '.join(cannot)} cannot be used on the feed-forward parts of a family with experts, which peft "
            f"adapts as bare parameters ({parameters[0]}): leave it out, or type adapter.targets=[attention]"
        )


def _check_bits(config: ModelConfig, adapter: Adapter) -> None:
    stack = next((place for place in matrices(config) if is_stack(place)), None)
    if stack is not None:
        raise UserError(
            f"adapter.bits is {adapter.bits}, and bitsandbytes makes linear layers small, not experts, which lie in "
            f"one tensor ({stack}) and are most of this model: type adapter=lora"
        )
    if adapter.dora:
        raise UserError("adapter.dora needs the lengths of whole weights, and adapter.bits rounds them: leave one out")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "adapter=qlora needs bitsandbytes, which is not installed here: pip install 'lifecycle[qlora]', or type "
            "adapter=lora"
        )


@dataclass(frozen=True, kw_only=True)
class AdapterSize:
    """How large an adapter is. layers: matrices that have one, each stack of experts is one; of: that could.
    parameters: all that are trained, those of a score too."""

    layers: int
    of: int
    parameters: int


def size_of(config: ModelConfig, adapter: Adapter) -> AdapterSize:
    """Counted before anything is built."""
    every, parameters = matrices(config), config.width if config.score_head else 0
    found = places(config, adapter)
    for place in found:
        *experts, out, inner = every[place]
        parameters += math.prod(experts) * adapter.rank * (out + inner) + (out if adapter.dora else 0)
    return AdapterSize(layers=len(found), of=len(every), parameters=parameters)


def is_parameter(place: str, config: ModelConfig) -> bool:
    """Whether `peft` adapts it as a bare parameter in the family's model of `transformers`: stacks of experts, and what
    has the names of their parts."""
    return family_of(config.family).switches.experts is not None and place.split(".")[2] == "ffn"


def add_adapter(model: Decoder, adapter: Adapter, *, seed: int) -> None:
    """Wrap the chosen matrices of a decoder in place and freeze all else, but for a score. Of one without memory (meta)
    only the structure is made."""
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora.layer import ParamWrapper

    found, empty = places(model.config, adapter), model.embedding.weight.is_meta
    weights = {} if empty else {name: weight.detach() for name, weight in model.state_dict().items()}
    how = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,  # type: ignore[arg-type]
        lora_dropout=adapter.dropout,
        use_rslora=adapter.rslora,
        use_dora=adapter.dora,
        target_modules=[place for place in found if not is_stack(place)],
        target_parameters=[place for place in found if is_stack(place)] or None,
    )
    if adapter.bits is not None:
        quantise(model, matrices(model.config))
        model.is_loaded_in_4bit = True  # type: ignore[assignment]  # what peft looks at
    with torch.device(model.embedding.weight.device):  # a Trainer builds under another, and peft would copy it back
        inject_adapter_in_model(how, model, low_cpu_mem_usage=empty)
    if empty:
        model.float()  # without weights to go by, peft takes the default type
    for module in model.modules():
        if isinstance(module, ParamWrapper):  # it changes the class of what it wraps in every pass: no compiler follows
            module.forward = torch.compiler.disable(module.forward)  # type: ignore[method-assign]
    if model.score is not None:
        model.score.requires_grad_(True)
    model.adapter = adapter
    if not empty:
        first = first_weights(model.config, adapter, weights, seed=seed)
        model.load_state_dict(first, strict=False)


def first_weights(
    config: ModelConfig, adapter: Adapter, weights: Mapping[str, Tensor], *, seed: int
) -> dict[str, Tensor]:
    """The adapter's tensors under their names in an adapted decoder, from the plain weights."""
    found: dict[str, Tensor] = {}
    for place, live in live_names(config, adapter).items():
        factors = first_factors(place, weights[_plain(place)], adapter, seed=seed)
        found |= {name: part for name, part in zip(live, factors, strict=True) if part is not None}
    return found


def live_names(config: ModelConfig, adapter: Adapter) -> dict[str, tuple[str, str, str]]:
    """Place -> names of A, B and magnitude in the state dict of an adapted decoder.

    The stacks of one module are wrapped one around the other, the first innermost.
    """
    found, out = places(config, adapter), {}
    for place in found:
        around = place
        if is_stack(place):
            module = place.rpartition(".")[0]
            beside = [other for other in found if other.rpartition(".")[0] == module]
            around = module + INNER * (len(beside) - 1 - beside.index(place))
        out[place] = (
            f"{around}.lora_A.default.weight",
            f"{around}.lora_B.default.weight",
            f"{around}.lora_magnitude_vector.default.weight",
        )
    return out


def factors_of(state: Mapping[str, Tensor], config: ModelConfig, adapter: Adapter) -> dict[str, Factors]:
    """By place, from the state dict of an adapted decoder, or from its trained part alone."""
    return {
        place: Factors(state[a], state[b], state[magnitude] if adapter.dora else None)
        for place, (a, b, magnitude) in live_names(config, adapter).items()
    }


def merged(weights: Mapping[str, Tensor], factors: Mapping[str, Factors], adapter: Adapter) -> dict[str, Tensor]:
    """The weights of a plain decoder with the adapter in them; those it does not touch are shared."""
    moved = {_plain(place): applied(weights[_plain(place)], own, adapter) for place, own in factors.items()}
    return {**weights, **moved}


def base_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the plain decoder in the state dict of an adapted one, without the adapter."""
    return {name.replace(INNER, ""): weight for name, weight in state.items() if ".lora_" not in name}


def live_base(weights: Mapping[str, Tensor], config: ModelConfig, adapter: Adapter) -> dict[str, Tensor]:
    """The inverse of `base_of`: plain weights under their names in an adapted decoder."""
    with torch.device("meta"):
        model = Decoder(config)
    add_adapter(model, adapter, seed=0)
    return {name: weights[name.replace(INNER, "")] for name in model.state_dict() if ".lora_" not in name}


@torch.no_grad()
def plain_weights(model: Decoder) -> dict[str, Tensor]:
    """The state dict of the plain decoder that computes what this one does now."""
    state, adapter = model.state_dict(), model.adapter
    if adapter is None:
        return state
    base = base_of(state) if adapter.bits is None else _whole_base(model, adapter, state)
    if model.adapter_is_off:
        return base
    with torch.autocast(model.embedding.weight.device.type, enabled=False):
        return merged(base, factors_of(state, model.config, adapter), adapter)


def _whole_base(model: Decoder, adapter: Adapter, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`base_of` where layers are small: their weights as they are multiplied."""
    chosen, small = set(places(model.config, adapter)), matrices(model.config)
    kept = {name: w for name, w in base_of(state).items() if not name.startswith(tuple(f"{p}.weight" for p in small))}
    layers = {place: model.get_submodule(place + INNER * (place in chosen)) for place in small}
    return {**kept, **{f"{place}.weight": whole_weight(layer) for place, layer in layers.items()}}


@contextlib.contextmanager
def adapter_off(model: Decoder) -> Iterator[None]:
    """The decoder without its adapter: what it was before any training. Not within another such context."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    assert model.adapter is not None and not model.adapter_is_off
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]

    def switch(*, on: bool) -> None:
        for layer in layers:
            layer.enable_adapters(on)
        model.adapter_is_off = not on

    switch(on=False)
    try:
        yield
    finally:
        switch(on=True)


@contextlib.contextmanager
def dropout_off(model: Decoder) -> Iterator[None]:
    """The decoder without what its adapter zeroes in training, where a text is sampled from it."""
    drops = [module for module in model.modules() if isinstance(module, nn.Dropout) and module.training]
    for module in drops:
        module.eval()
    try:
        yield
    finally:
        for module in drops:
            module.train()


def seed_dropout(model: Decoder, seed: int, *, step: int, rank: int) -> None:
    """What an adapter's dropout draws in a step follows from the run's seed, the step and the rank, so that a resumed
    run draws it again. Nothing else in training draws from torch's own generator."""
    if model.adapter is not None and model.adapter.dropout:
        torch.manual_seed(derive(seed, "dropout", step, rank))


def is_stack(place: str) -> bool:
    """Whether a place is a stack of experts."""
    return place.rpartition(".")[0].endswith(".experts")


def _plain(place: str) -> str:
    """The name of a place's weight in a plain decoder."""
    return place if is_stack(place) else f"{place}.weight"
