"""An environment by its name, or by what is wrong with it."""

from pathlib import Path

import pytest

from lifecycle.errors import UserError
from lifecycle.rollout.environments.calculator import Calculator
from lifecycle.rollout.environments.named import environment

OWN = """
from lifecycle.rollout.environments.environment import Observation
from pathlib import Path


class Good:
    stops = ("</ask>",)

    def reset(self, record):
        return None

    def step(self, text):
        return Observation(text="yes")


class Mute:
    stops = ("</ask>",)

    def reset(self, record):
        return None


class Endless(Good):
    stops = ()


class Text(Good):
    stops = "</ask>"


def function():
    pass
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_tools_of_a_test.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "own_tools_of_a_test"


def test_names_are_classes(module: str) -> None:
    assert environment("calculator") is Calculator
    assert environment(f"{module}:Good")().stops == ("</ask>",)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("abacus", "'abacus'; wanted calculator, or a class of your own, MODULE:CLASS"),
        ("MODULE:", "wanted MODULE:CLASS"),
        ("MODULE:Nothing", "has no class Nothing"),
        ("MODULE:function", "has no class function"),
        ("MODULE:Path", "only imports"),
        ("MODULE:Mute", "it lacks step"),
        ("MODULE:Endless", "is no environment"),
        ("MODULE:Text", "is no environment"),
        ("subprocess:Popen", "of Python's own library"),
        ("no_such_module_here:Tool", "importing no_such_module_here fails"),
    ],
)
def test_others_are_refused(name: str, said: str, module: str) -> None:
    with pytest.raises(UserError, match="stage.environment.name is") as error:
        environment(name.replace("MODULE", module))
    assert said in str(error.value)
