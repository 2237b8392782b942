"""Every mixture for supervised fine-tuning gives conversations, from rows of the form that its sets have."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from omegaconf import open_dict
from tests.real import REAL, needs_real

from lifecycle import config
from lifecycle.batch import Example
from lifecycle.data.corpus import Corpus, DataConfig
from lifecycle.data.read.spec import ValidationRatio

CONF = config.conf_dir() / "data"
MIXTURES = sorted(path.stem for path in (CONF / "sft").glob("*.yaml"))
OFFLINE = sorted(path.stem for path in (CONF / "offline/sft").glob("*.yaml"))
ROW = {
    "messages": [{"role": "user", "content": "And why is that?"}, {"role": "assistant", "content": "Because."}],
    "instruction": "Say it briefly.",
    "context": "A long story.",
    "response": "A story.",
    "input": "What is it?",
    "output": "It is so.",
    "problem": "Sort a list.",
    "solution": "Use sorted().",
    "question": "What is the cause of it?",
    "answer": "It is four. #### 4",
    "Question": "What may it be?",
    "Complex_CoT": "Let me see.",
    "Response": "It may be so.",
    "long_answer": "It is the fever.",
    "text": "Write a function that sorts.",
    "code": "def f(x):\n    return sorted(x)",
    "test_list": ["assert f([2, 1]) == [1, 2]"],
    "test_setup_code": "",
    "options": {"A": "cold", "B": "heat", "C": "rain", "D": "snow"},
    "answer_idx": "B",
    **{"opa": "cold", "opb": "heat", "opc": "rain", "opd": "snow", "cop": 1, "exp": "Heat makes fever."},
}
NUMBERED = ("question", "Question", "instruction", "problem", "input", "text")
RECIPE = "data.tokenizer={vocab_size: 320, digits: 1, max_bytes: 20000}"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A file whose rows have the columns of every set."""
    lines = [json.dumps(ROW | {key: f"{n} {ROW[key]}" for key in NUMBERED}) for n in range(60)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    return tmp_path / "rows.jsonl"


@pytest.mark.parametrize("name", MIXTURES)
def test_every_source_of_a_mixture_gives_conversations(name: str, rows: Path, tmp_path: Path) -> None:
    cfg = config.compose([f"data=sft/{name}", RECIPE])
    made: DataConfig = config.build(cfg.data)
    assert all(source.hub is not None for source in made.sources.values())
    local = {
        key: replace(
            source, hub=None, config=None, path=str(rows), split="train", validation=ValidationRatio(ratio=0.2)
        )
        for key, source in made.sources.items()
    }
    corpus = Corpus(
        replace(made, sources=local, decontaminate=None), view="chat", seed=1, processes=0, folder=tmp_path / "run"
    )
    for source in corpus.sources:
        item = corpus.documents(source.name).next()
        assert isinstance(item, Example) and item.trained is not None and item.trained[-1] and not item.trained[0]
    assert corpus.epoch_source in local and len({source.domain for source in corpus.sources}) == len(local)


@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_passes_the_check_with_the_stage_that_it_is_for(name: str) -> None:
    cfg = config.compose(["stage=sft", f"data=sft/{name}", "init_from=any"])
    config.check(cfg)
    assert cfg.stage.sequence_length == {"reasoning": 4096, "test": 512}.get(name, 2048)
    assert bool(cfg.stage.new_tokens) == (name == "reasoning")


@needs_real
@pytest.mark.parametrize("name", OFFLINE)
def test_rows_in_a_folder_stand_in_for_them(name: str, tmp_path: Path) -> None:
    assert name in MIXTURES
    cfg = config.compose([f"data=offline/sft/{name}", RECIPE])
    with open_dict(cfg):
        cfg.data.root = str(REAL)
    made: DataConfig = config.build(cfg.data)
    few = {key: replace(source, max_rows=60) for key, source in made.sources.items()}
    corpus = Corpus(replace(made, sources=few), view="chat", seed=1, processes=0, folder=tmp_path)
    for source in corpus.sources:
        items = [corpus.documents(source.name).next() for _ in range(5)]
        assert all(isinstance(item, Example) and np.any(item.trained) for item in items)
    assert any(corpus.held_out(source, 500) for source in corpus.whole)
