"""Every mixture for preference optimisation gives pairs, from rows of the form that its sets have."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import open_dict
from tests.real import REAL, needs_real

from lifecycle import config
from lifecycle.batch import Pair
from lifecycle.data.corpus import Corpus, DataConfig
from lifecycle.data.read.spec import ValidationRatio

CONF = config.conf_dir() / "data"
MIXTURES = sorted(path.stem for path in (CONF / "dpo").glob("*.yaml"))
OFFLINE = sorted(path.stem for path in (CONF / "offline/dpo").glob("*.yaml"))
RECIPE = "data.tokenizer={vocab_size: 320, digits: 1, max_bytes: 20000}"


def row(source: str, number: int) -> dict[str, object]:
    """A row of UltraFeedback, whose answers repeat the prompt; or of hh-rlhf, where it is what both begin with."""
    asked = f"{number} What is it?"
    if source == "ultrafeedback":
        user = {"role": "user", "content": asked}
        sides = [[user, {"role": "assistant", "content": text}] for text in ("It is so.", "No idea!")]
        return {"prompt": asked, "chosen": sides[0], "rejected": sides[1], "score_chosen": 8.0}
    return {k: f"\n\nHuman: {asked}\n\nAssistant: {text}" for k, text in (("chosen", "So."), ("rejected", "Who knows"))}


@pytest.mark.parametrize("name", MIXTURES)
def test_every_source_of_a_mixture_gives_pairs(name: str, tmp_path: Path) -> None:
    made: DataConfig = config.build(config.compose([f"data=dpo/{name}", RECIPE]).data)
    local = {}
    for key, source in made.sources.items():
        (tmp_path / f"{key}.jsonl").write_text("".join(json.dumps(row(key, n)) + "\n" for n in range(60)))
        held, path = ValidationRatio(ratio=0.2), str(tmp_path / f"{key}.jsonl")
        local[key] = replace(source, hub=None, data_dir=None, path=path, split="train", validation=held)
    corpus = Corpus(replace(made, sources=local), view="preference", seed=1, processes=0, folder=tmp_path / "run")
    for one in corpus.sources:
        item = corpus.documents(one.name).next()
        assert isinstance(item, Pair) and corpus.tokenizer.decode(item.prompt).count("What is it?") == 1
        assert item.chosen.trained is not None and item.chosen.trained[len(item.prompt) :].all()


@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_passes_the_check_with_the_stage_that_it_is_for(name: str) -> None:
    cfg = config.compose(["stage=dpo", f"data=dpo/{name}", "init_from=any"])
    config.check(cfg)
    assert cfg.stage.sequence_length == {"safety": 1024}.get(name, 2048)


@needs_real
@pytest.mark.parametrize("name", OFFLINE)
def test_rows_in_a_folder_stand_in_for_them(name: str, tmp_path: Path) -> None:
    assert name in MIXTURES
    cfg = config.compose([f"data=offline/dpo/{name}", RECIPE])
    with open_dict(cfg):
        cfg.data.root = str(REAL)
    made: DataConfig = config.build(cfg.data)
    few = {key: replace(source, max_rows=60) for key, source in made.sources.items()}
    corpus = Corpus(replace(made, sources=few), view="preference", seed=1, processes=0, folder=tmp_path)
    for source in corpus.sources:
        assert all(isinstance(corpus.documents(source.name).next(), Pair) for _ in range(5))
    assert any(corpus.held_out(source, 500) for source in corpus.whole)
