"""Values are read as the annotation wants them, and what does not fit is a fault that says what to type."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from lifecycle.bounds import Keys, Positive
from lifecycle.config.signature import Walk
from lifecycle.config.targets import TARGETS
from lifecycle.config.wording import describe
from lifecycle.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leaf:
    ratio: float = 0.5
    name: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.ratio <= 1:
            raise UserError(f"ratio is {self.ratio}; wanted 0 to 1")


def target(*, count: int, leaf: Leaf, sizes: tuple[int, int] = (1, 2), made: str = "") -> None:
    """A signature to read against."""


def read(value: Any, hint: Any) -> tuple[Any, list[str]]:
    walk = Walk()
    return walk.read(value, hint, ("key",)), walk.faults


def shares(*, leaf: Keys[Leaf], count: int) -> None:
    """One whose keys are those of a leaf, and its own."""


@pytest.mark.parametrize(
    ("value", "hint", "result"),
    [
        (3, int, 3),
        (2e9, int, 2_000_000_000),
        (3, float, 3.0),
        (7, str, "7"),
        ("7", str, "7"),
        (True, bool, True),
        (None, int | None, None),
        (3, str | int, 3),
        ("auto", int | str, "auto"),
        ("auto", bool | Literal["auto"], "auto"),
        ([1, 2], tuple[int, int], (1, 2)),
        ([1, 2, 3], tuple[int, ...], (1, 2, 3)),
        ([1.0], list[int], [1]),
        ("a", str | list[str] | dict[str, str | list[str]], "a"),
        ({"train": ["a", "b"]}, str | list[str] | dict[str, str | list[str]], {"train": ["a", "b"]}),
        ({"ratio": 1}, Leaf, Leaf(ratio=1.0)),
        ({"ratio": 1}, str | Leaf | dict[str, Any] | None, Leaf(ratio=1.0)),
        ({"x": {"name": "n"}}, dict[str, Leaf], {"x": Leaf(name="n")}),
        ("a/b", Path, Path("a/b")),
        (object, Any, object),
    ],
)
def test_what_fits_is_read_as_the_annotation_says(value: Any, hint: Any, result: Any) -> None:
    got, faults = read(value, hint)
    assert faults == []
    assert got == result
    assert type(got) is type(result)


Many = Literal["sigmoid", "robust", "hinge", "ipo", "kto", "nll"]


@pytest.mark.parametrize(
    ("value", "hint", "said"),
    [
        ("abc", int, "key is 'abc'; wanted a whole number: type key=N"),
        (1.5, int, "key is 1.5; wanted a whole number: type key=N"),
        (True, int, "key is true; wanted a whole number"),
        (1, bool, "key is 1; wanted true or false: type key=true"),
        ("fast", float, "wanted a number: type key=0.1"),
        (None, int, "key is null; wanted a whole number"),
        (True, str, "key is true; wanted text"),
        ("bf32", Literal["auto", "fp32", "bf16"], "wanted auto or fp32 or bf16: type key=fp32"),
        ("x", int | None, "wanted a whole number or null: type key=N"),
        (0, Positive | None, "wanted a number above 0 or null: type key=null"),  # 0.1 may ruin a model
        (0, tuple[float, float] | None, "wanted a list of 2: a number, a number or null: type key=null"),
        (
            "dpo",
            Many | list[Many],
            "wanted sigmoid, robust, hinge, ipo, kto or nll or a list of them: type key=sigmoid",
        ),
        (3, Literal["all"] | list[str], "wanted all or a list of (text)"),
        ([1], tuple[int, int], "wanted a list of 2: a whole number, a whole number"),
        ([1, "b"], list[int], "key.1 is 'b'; wanted a whole number"),
        ({"ratoi": 1}, Leaf, "key.ratoi=1: there is no such key; did you mean key.ratio? Type key.ratio=1"),
        ({"ratio": 2}, Leaf, "ratio is 2.0; wanted 0 to 1"),
        ({"x": {"ratio": "a"}}, dict[str, Leaf], "key.x.ratio is 'a'; wanted a number"),
        ({"ratio": "a"}, str | Leaf | None, "key.ratio is 'a'; wanted a number"),
        (3, Leaf, "wanted a mapping with ratio, name"),
    ],
)
def test_what_does_not_fit_is_one_fault_that_names_key_and_cure(value: Any, hint: Any, said: str) -> None:
    _, faults = read(value, hint)
    assert len(faults) == 1
    assert said in faults[0]


def test_all_faults_of_a_node_are_found_in_one_walk() -> None:
    walk = Walk()
    walk.arguments(target, {"count": "x", "szies": [1, 2], "made": "m"}, ("node",), supplied=("made",))
    text = "\n".join(walk.faults)
    assert "node.count is 'x'" in text
    assert "node.szies=[1,2]: there is no such key; did you mean node.sizes?" in text
    assert "node.made is set by the run itself" in text
    assert "node.leaf is missing; wanted a mapping" in text
    assert len(walk.faults) == 4


def test_a_key_at_the_wrong_level_is_found_where_it_belongs() -> None:
    walk = Walk(known=["stage.max_steps"])
    walk.arguments(target, {"count": 1, "leaf": {}, "max_steps": 3}, ())
    assert walk.faults == ["max_steps=3: there is no such key; did you mean stage.max_steps? Type stage.max_steps=3"]


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "lifecycle.checkpoint.protocol.remove",
        "lifecycle.system.atomic.write",
        "lifecycle.hardware.Hardware",  # of another group
        "lightning.pytorch.core.saving._load_from_checkpoint",
        "lifecycle.nowhere.f",
        "lifecycle",
        3,
        None,
        ["lifecycle.model.ModelConfig"],
    ],
)
def test_a_place_takes_its_own_kinds_and_nothing_else(name: Any) -> None:
    walk = Walk()
    assert walk.locate(name, ("model",)) is None
    assert len(walk.faults) == 1
    assert walk.locate("lifecycle.model.ModelConfig", ("elsewhere",)) is None


def test_what_a_place_takes_is_there_and_is_defined_here() -> None:
    for place, targets in TARGETS.items():
        for target in targets:
            found = Walk().locate(target, tuple(place.split(".")))
            assert found is not None and found.__module__.startswith("lifecycle.")


def test_a_misspelt_target_gets_the_nearest_name() -> None:
    walk = Walk()
    walk.locate("lifecycle.hardware.Hardwear", ("hardware",))
    assert walk.faults[0].endswith("did you mean lifecycle.hardware.Hardware?")


def test_a_nested_target_is_a_dataclass_of_the_annotation_or_partial_and_listed() -> None:
    def fault(node: dict[str, Any], hint: Any) -> str:
        walk = Walk()
        walk.read(node, hint, ("stage", "optimizer"))
        return walk.faults[0] if walk.faults else ""

    adamw = {"_target_": "lifecycle.optim.AdamW"}
    assert "wanted" in fault(adamw, Leaf)
    assert "needs _partial_: true" in fault(adamw, Callable[..., Any])
    assert "wanted lifecycle.optim.AdamW or" in fault({"_target_": "shutil.rmtree", "_partial_": True}, Any | None)
    assert fault({**adamw, "_partial_": True}, Callable[..., Any]) == ""


def test_a_group_of_keys_is_made_of_the_keys_beside_the_others() -> None:
    walk = Walk()
    assert walk.arguments(shares, {"ratio": 1, "count": 2}, ("stage",)) == {"leaf": Leaf(ratio=1.0), "count": 2}
    assert not walk.faults
    for node, said in (
        ({"ratio": "half", "count": 2}, "stage.ratio is 'half'; wanted a number"),
        ({"ratio": 7.0, "count": 2}, "ratio is 7.0; wanted 0 to 1"),
        ({"ratoi": 1, "count": 2}, "did you mean stage.ratio?"),
        ({"leaf": {"ratio": 1}, "count": 2}, "stage.leaf: there is no such key"),
    ):
        walk = Walk()
        walk.arguments(shares, node, ("stage",))
        assert len(walk.faults) == 1 and said in walk.faults[0], node


def test_types_are_described_in_words() -> None:
    assert describe(dict[str, Leaf] | list[int] | None) == "a mapping or a list of (a whole number) or null"
