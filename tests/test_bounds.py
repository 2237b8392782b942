"""Every number of a config has bounds: what cannot be meant is refused before anything is built, by its key."""

import dataclasses
import inspect
import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest
from omegaconf import OmegaConf

from lifecycle import config
from lifecycle.bounds import Bounds, Count, Every, Part, Positive, due
from lifecycle.config.build import SUPPLIED, parts_of
from lifecycle.config.schema import RunConfig
from lifecycle.config.signature import Walk
from lifecycle.config.wording import describe
from lifecycle.duration import Limits
from lifecycle.errors import UserError
from lifecycle.model import ModelConfig

CONFIGS = {
    "midtrain": "stage=midtrain optimizer=muon curriculum=competence callbacks=profile hardware=a100x8_fsdp",
    "pretrain": "curriculum=math data=fineweb_medqa",
    "phases": "experiment=four_stage/interleaved data=files data.sources.mine.path=x",
    "limits": "hardware.peak_tflops=1 stage.max_steps=1 stage.max_epochs=1",
    "generate": "stage=generate stage.top_k=1 stage.top_p=0.5 stage.min_p=0.1 stage.best_of=1",
    "traces": "stage=traces stage.top_k=1 stage.top_p=0.5 stage.min_p=0.1",
    "analyze": "stage=analyze",
    "tokenizer": "stage=tokenizer",
}
"""Between them they have every kind of key."""

ANY = {"seed", "validation.seed", "levels", "value", "threshold", "rewards"}
"""Labels of a draw, levels that rows carry, scores of a function of the user's, weights of rewards: any number may be
meant."""


def leaves(node: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Places of the numbers."""
    if isinstance(node, dict | list):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from leaves(value, (*at, key))
    elif isinstance(node, int | float) and not isinstance(node, bool):
        yield at


def replaced(node: Any, value: Any, leave: set[str], at: tuple[str, ...] = ()) -> Any:
    """The config with `value` for every number, but for those that are to be left."""
    if isinstance(node, dict):
        return {key: replaced(item, value, leave, (*at, str(key))) for key, item in node.items()}
    if isinstance(node, list):
        return [replaced(item, value, leave, (*at, str(n))) for n, item in enumerate(node)]
    number = isinstance(node, int | float) and not isinstance(node, bool)
    return value if number and not leave & set(at) else node


@pytest.mark.parametrize("value", [-1, math.nan])
@pytest.mark.parametrize("name", CONFIGS)
def test_no_number_of_a_config_may_be_negative_or_none(name: str, value: float) -> None:
    cfg = config.compose(CONFIGS[name].split())
    # a job does not read the optimizer; the model, whose config also comes from elsewhere, looks at itself
    aside = {"model", *(["optimizer"] if config.is_job(cfg.stage) else [])}
    plain = OmegaConf.to_container(cfg, resolve=True)
    with pytest.raises(UserError) as raised:
        config.check(OmegaConf.create(replaced(plain, value, aside | (ANY if value == -1 else set()))))
    for at in leaves(plain):
        key = at[-1] if isinstance(at[-1], str) else at[-2]
        taken = {*map(str, at)} & (aside | ANY)
        if not taken:
            assert f"{key}" in str(raised.value), f"{'.'.join(map(str, at))}={value} is taken"


def numbers(hint: Any, name: str, seen: set[Any], bounded: bool = False) -> Iterator[str]:
    """Names of the numbers below an annotation that have no bounds."""
    if get_origin(hint) is Annotated:
        bounded = any(isinstance(part, Bounds) for part in get_args(hint)[1:])
        yield from numbers(get_args(hint)[0], name, seen, bounded)
    elif hint in (int, float):
        if not bounded:
            yield name
    elif dataclasses.is_dataclass(hint) and hint is not ModelConfig:
        if hint not in seen:
            seen.add(hint)
            for field, inner in get_type_hints(hint, include_extras=True).items():
                yield from numbers(inner, field, seen)
    elif get_origin(hint) is not Literal:
        for inner in get_args(hint):
            yield from numbers(inner, name, seen)


def targets() -> Iterator[Any]:
    yield from (RunConfig, Limits)
    for words in ([], *(words.split() for words in CONFIGS.values())):
        cfg = config.compose(words)
        for group in ("data", "stage", "hardware", "callbacks"):
            yield Walk().locate(cfg[group]._target_, (group,))
        yield from parts_of(Walk().locate(cfg.stage._target_, ("stage",)))


def test_every_number_in_a_signature_has_bounds() -> None:
    """Also those that no YAML file names; but for the model's."""
    seen: set[Any] = set()
    supplied = {name for names in SUPPLIED.values() for name in names}
    for target in dict.fromkeys(targets()):
        function = target.__init__ if inspect.isclass(target) and not dataclasses.is_dataclass(target) else target
        for name, hint in get_type_hints(function, include_extras=True).items():
            if name not in supplied | {"return"}:
                assert set(numbers(hint, name, seen)) <= ANY, f"{target.__qualname__}.{name}"


@pytest.mark.parametrize(
    ("hint", "value", "said"),
    [
        (Count, 0, "key is 0; wanted a whole number from 1 on: type key=N"),
        (Every, -5, "key is -5; wanted a whole number from 0 on or null: type key=N"),
        (Positive | None, 0.0, "key is 0.0; wanted a number above 0 or null: type key=null"),
        (Part, 1, "key is 1; wanted a number between 0 and 1: type key=0.1"),
        (Annotated[float, Bounds(above=1)], 0.5, "wanted a number above 1: type key=2"),
        (Annotated[int, Bounds(least=16, most=4096)], 8, "wanted a whole number from 16 to 4096"),
        (float, math.nan, "key is nan; wanted a number"),
        (float, math.inf, "key is inf; wanted a number"),
        (int, 1e30, "key is 1e+30, more than 64 bits hold; wanted a whole number"),
        (int, 2**63, "key is 9223372036854775808, more than 64 bits hold; wanted a whole number"),
        (Count, "many", "key is 'many'; wanted a whole number from 1 on"),
        (list[Count], [1, 0], "key.1 is 0; wanted a whole number from 1 on"),
    ],
)
def test_a_number_out_of_bounds_is_named_with_what_is_wanted(hint: Any, value: Any, said: str) -> None:
    walk = Walk()
    walk.read(value, hint, ("key",))
    assert len(walk.faults) == 1 and said in walk.faults[0]


def test_a_number_within_is_read_as_its_type() -> None:
    walk = Walk()
    assert (walk.read(2e3, Count, ("key",)), walk.read(None, Every, ("key",)), walk.read(1, Positive, ("key",))) == (
        2000,
        None,
        1.0,
    )
    assert walk.faults == [] and walk.changed == {("key",): 2000}
    assert describe(Every) == "a whole number from 0 on or null"


def test_zero_and_null_are_never() -> None:
    assert [due(step, 3) for step in (2, 3, 6)] == [False, True, True]
    assert not any(due(step, never) for step in (0, 1, 6) for never in (0, None))


@pytest.mark.parametrize("value", ["0", "null"])
def test_every_interval_may_be_never(value: str) -> None:
    keys = ("checkpoint.every_steps", "validation.every_steps", "logging.every_steps", "callbacks.profile_steps")
    config.check(config.compose([f"{key}={value}" for key in keys]))
