"""An adapter <-> a folder in the form of `peft`, with the names of `transformers`.

    write_adapter(folder, config, adapter, factors, base="outputs/demo/model")
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("outputs/demo/model"), folder)
    factors = read_adapter(folder, config, adapter)

`transformers` keeps the experts of a block in two stacks: gate and up, one over the other, and down. Two adapters of
rank R on the halves are one of rank 2 R on the whole:

    [W_g; W_u] + s [B_g 0; 0 B_u] [A_g; A_u]

The score of a reward model stands in the folder whole, as one of `modules_to_save`; its base may be a language model:

    AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=1)

In an architecture with experts `peft` takes every layer called `gate_proj` for experts', so dense and shared parts are
named as parameters there.

Shapes: E experts, R rank, F width of an expert.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lifecycle.errors import UserError
from lifecycle.model.adapters import is_parameter, is_stack, matrices
from lifecycle.model.config import ModelConfig
from lifecycle.model.huggingface.names import names, rows
from lifecycle.model.layers.initial import SCORE
from lifecycle.model.lora import Adapter, Factors
from lifecycle.system.atomic import told_in_words

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
GATE, UP, DOWN, BOTH = "gate_proj", "up_proj", "down_proj", "gate_up_proj"


def write_adapter(
    folder: Path,
    config: ModelConfig,
    adapter: Adapter,
    factors: Mapping[str, Factors],
    *,
    base: str,
    score: Tensor | None = None,
) -> None:
    """Write both files into `folder`. base: folder or hub id of the model that the adapter belongs to. score: the
    weight of a model that ends in one."""
    from peft import LoraConfig

    modules, parameters = targets(config, factors)
    alpha = int(adapter.alpha) if float(adapter.alpha).is_integer() else adapter.alpha
    both = any(name.endswith(BOTH) for name in parameters)
    how = LoraConfig(
        base_model_name_or_path=base,
        task_type="CAUSAL_LM" if score is None else "SEQ_CLS",
        modules_to_save=None if score is None else [SCORE.partition(".")[0]],
        inference_mode=True,
        r=adapter.rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=adapter.dropout,
        use_rslora=adapter.rslora,
        use_dora=adapter.dora,
        target_modules=modules,  # of none [], as peft takes None for the usual ones of the architecture
        target_parameters=parameters or None,
        rank_pattern={BOTH: 2 * adapter.rank} if both else {},
        alpha_pattern={BOTH: alpha * (2**0.5 if adapter.rslora else 2)} if both else {},
    )
    how.target_modules = modules  # it has made a set of them, whose order is another in every process
    tensors = to_peft(config, adapter, factors) | ({} if score is None else {f"{PREFIX}{SCORE}": score})
    how.save_pretrained(str(folder))
    with told_in_words(folder / WEIGHTS):
        save_file({name: one.cpu().contiguous() for name, one in tensors.items()}, folder / WEIGHTS, {"format": "pt"})


def read_adapter(folder: Path, config: ModelConfig, adapter: Adapter, places: Collection[str]) -> dict[str, Factors]:
    """The inverse, but for the score: by place, fp32. Raises UserError for tensors that are not those of this
    adapter."""
    found, made = load_file(folder / WEIGHTS), {}
    score = found.pop(f"{PREFIX}{SCORE}", None)
    wanted = to_peft(config, adapter, {place: _nothing(place, config, adapter) for place in places})
    same = {name: tensor.shape for name, tensor in found.items()} == {name: t.shape for name, t in wanted.items()}
    if not same or (score is not None) != config.score_head:
        raise UserError(
            f"{folder / WEIGHTS} is not the adapter that the run's config.yaml describes (rank {adapter.rank} on "
            f"{len(places)} matrices): get the folder again"
        )
    for place in places:
        made[place] = _factors(found, place, config, adapter, places)
    return made


def read_score(folder: Path) -> Tensor | None:
    """The weight of the score, fp32; None where the model predicts tokens."""
    score = load_file(folder / WEIGHTS).get(f"{PREFIX}{SCORE}")
    return None if score is None else score.float()


def to_peft(config: ModelConfig, adapter: Adapter, factors: Mapping[str, Factors]) -> dict[str, Tensor]:
    """The tensors of the folder, on their device."""
    out: dict[str, Tensor] = {}
    for place, own in factors.items():
        if is_stack(place):
            continue
        order = rows(f"{place}.weight", config)
        a, b, magnitude = own if order is None else (own.a, own.b[order], _at(own.magnitude, order))
        name = f"{PREFIX}{_theirs(place, config)}"
        out |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
        if magnitude is not None:
            out[f"{name}.lora_magnitude_vector"] = magnitude
    for module in dict.fromkeys(place.rpartition(".")[0] for place in factors if is_stack(place)):
        out |= _stacks(module, config, adapter, factors)
    return out


def targets(config: ModelConfig, places: Collection[str]) -> tuple[list[str], list[str]]:
    """What `peft` calls the matrices: modules, and parameters; each by as few last parts as tell it from the others."""
    chosen, every = (_targets(config, found) for found in (places, matrices(config)))
    return _shortened(chosen[0], every[0], least=1), _shortened(chosen[1], every[1], least=2)


def _targets(config: ModelConfig, places: Collection[str]) -> tuple[set[str], set[str]]:
    modules, parameters = set(), set()
    for place in places:
        if is_stack(place):
            inside = DOWN if place.endswith(DOWN) else BOTH
            parameters.add(f"{_experts(place.rpartition('.')[0])}.{inside}")
        elif is_parameter(place, config):
            parameters.add(f"{_theirs(place, config)}.weight")
        else:
            modules.add(_theirs(place, config))
    return modules, parameters


def _shortened(chosen: Collection[str], every: Collection[str], *, least: int) -> list[str]:
    """Ends of the chosen names that no other name has."""
    found = set()
    for name in chosen:
        parts = name.split(".")
        tails = (".".join(parts[-count:]) for count in range(least, len(parts) + 1))
        found.add(next(t for t in tails if all(o in chosen for o in every if f".{o}".endswith(f".{t}"))))
    return sorted(found)


def _theirs(place: str, config: ModelConfig) -> str:
    return names(config)[f"{place}.weight"].removesuffix(".weight")


def _experts(module: str) -> str:
    """The module of `transformers` that holds the stacks of ours, the same in all families."""
    return f"model.layers.{module.split('.')[1]}.mlp.experts"


def _at(vector: Tensor | None, order: Tensor) -> Tensor | None:
    return None if vector is None else vector[order]


def _stack_names(module: str, places: Collection[str]) -> tuple[str | None, str | None]:
    """Before `.lora_A.weight`: of gate and up, and of down; None where they are not adapted. `peft` wraps the module
    once for each, down outermost."""
    down = f"{module}.{DOWN}" in places
    both = f"{module}.{GATE}" in places or f"{module}.{UP}" in places
    around = f"{PREFIX}{_experts(module)}"
    return (f"{around}.base_layer" if down else around) if both else None, around if down else None


def _stacks(module: str, config: ModelConfig, adapter: Adapter, factors: Mapping[str, Factors]) -> dict[str, Tensor]:
    """The tensors of one block's experts. A half of gate and up that has no adapter gets one of zeros."""
    both, down = _stack_names(module, factors)
    out = {}
    if both is not None:
        gate, up = (
            factors.get(f"{module}.{half}") or _nothing(f"{module}.{half}", config, adapter) for half in (GATE, UP)
        )
        experts = matrices(config)[f"{module}.{GATE}"][0]
        a = torch.cat([half.a.unflatten(0, (experts, -1)) for half in (gate, up)], dim=1)
        b = [half.b.unflatten(1, (-1, experts)) for half in (gate, up)]  # (F, R, E)
        none = torch.zeros_like(b[0])
        whole = torch.cat([torch.cat([b[0], none], dim=1), torch.cat([none, b[1]], dim=1)])
        out = {f"{both}.lora_A.weight": a.flatten(0, 1), f"{both}.lora_B.weight": whole.flatten(1)}
    if down is not None:
        own = factors[f"{module}.{DOWN}"]
        out |= {f"{down}.lora_A.weight": own.a, f"{down}.lora_B.weight": own.b}
    return out


def _factors(
    found: Mapping[str, Tensor], place: str, config: ModelConfig, adapter: Adapter, places: Collection[str]
) -> Factors:
    if not is_stack(place):
        name, order = f"{PREFIX}{_theirs(place, config)}", rows(f"{place}.weight", config)
        back = None if order is None else order.argsort()
        b, magnitude = found[f"{name}.lora_B.weight"], found.get(f"{name}.lora_magnitude_vector")
        b, magnitude = (b, magnitude) if back is None else (b[back], _at(magnitude, back))
        return Factors(found[f"{name}.lora_A.weight"].float(), b.float(), magnitude)
    module, _, which = place.rpartition(".")
    both, down = _stack_names(module, places)
    if which == DOWN:
        return Factors(found[f"{down}.lora_A.weight"], found[f"{down}.lora_B.weight"], None)
    experts, half = matrices(config)[place][0], int(which == UP)
    a = found[f"{both}.lora_A.weight"].unflatten(0, (experts, 2, -1))[:, half].flatten(0, 1)
    b = found[f"{both}.lora_B.weight"].unflatten(1, (-1, experts)).unflatten(0, (2, -1))[half]
    return Factors(a, b.unflatten(1, (2, -1))[:, half].flatten(1).contiguous(), None)


def _nothing(place: str, config: ModelConfig, adapter: Adapter) -> Factors:
    """Factors of zeros."""
    shape = matrices(config)[place]
    experts, (out, inner) = shape[0] if len(shape) == 3 else 1, shape[-2:]
    magnitude = torch.zeros(out, dtype=torch.float32, device="cpu") if adapter.dora else None
    rank = adapter.rank * experts
    return Factors(
        torch.zeros(rank, inner, dtype=torch.float32, device="cpu"),
        torch.zeros(out, rank, dtype=torch.float32, device="cpu"),
        magnitude,
    )
