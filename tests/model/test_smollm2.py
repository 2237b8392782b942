"""A real checkpoint, SmolLM2-135M-Instruct: in, asked, trained on, out and in again. Skipped where it was not made."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model import smollm2
from tests.real import opened
from transformers import AutoModelForCausalLM, AutoTokenizer

from lifecycle import config
from lifecycle.model import Decoder
from lifecycle.model.huggingface import load_pretrained
from lifecycle.run import run
from lifecycle.tokenizer.tokenizer import Tokenizer, load

FOLDER = smollm2.folder()
QUESTION = "What is the capital of France?"
pytestmark = pytest.mark.skipif(
    not (FOLDER / "model.safetensors").is_file(), reason=f"{FOLDER} is not there: {smollm2.MAKE}"
)


@pytest.fixture(scope="module")
def ours() -> Decoder:
    described, weights = load_pretrained(FOLDER)
    model = Decoder(described)
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def theirs() -> Any:
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load(str(FOLDER))


def real_text(name: str, characters: int) -> str:
    with opened(f"pretrain/{name}") as file:
        return file.read(characters)


def logits(model: Decoder, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(model(ids, torch.arange(ids.shape[1])[None]))


def mean_loss(logits_BTV: torch.Tensor, ids: torch.Tensor) -> float:
    return float(torch.nn.functional.cross_entropy(logits_BTV[0, :-1], ids[0, 1:]))


def test_it_is_the_model_that_its_card_describes(ours: Decoder) -> None:
    assert ours.config.parameters() == 134_515_008
    sizes = ours.config
    assert (sizes.family, sizes.layers, sizes.width, sizes.tied_head) == ("llama", 30, 576, True)


@pytest.mark.slow
def test_the_folder_holds_what_the_reader_of_transformers_finds_in_the_gguf_file(ours: Decoder) -> None:
    file = smollm2.gguf()
    if file is None:
        pytest.skip("the GGUF file is not installed")
    again, weights = load_pretrained(file)
    # the file says no spread of fresh weights, and what it does not say is a default either way
    assert (again.layers, again.width, again.rope_theta) == (30, 576, ours.config.rope_theta)
    for name, weight in ours.state_dict().items():
        assert torch.equal(weight, weights[name]), name


def test_logits_and_perplexity_on_real_text_are_those_of_transformers(
    ours: Decoder, theirs: Any, tokenizer: Tokenizer
) -> None:
    ids = torch.tensor(tokenizer.encode_batch([real_text("wikitext2.valid.txt.gz", 4000)])[0][:512])[None].long()
    mine = logits(ours, ids)
    with torch.no_grad():
        expected = theirs(ids).logits
    worst = float((mine - expected).abs().max() / expected.abs().max())
    here, there = (math.exp(mean_loss(x, ids)) for x in (mine, expected))
    print(f"largest relative difference of logits {worst:.1e}; perplexity {here:.4f} and {there:.4f}")
    assert worst < 1e-4
    assert here == pytest.approx(there, rel=1e-4)
    assert here < 60  # text of the kind it has read: far below 49,152


def test_the_tokenizer_gives_the_ids_of_transformers(tokenizer: Tokenizer) -> None:
    text = real_text("wikitext2.valid.txt.gz", 20_000)
    assert tokenizer.encode_batch([text])[0].tolist() == AutoTokenizer.from_pretrained(FOLDER)(text)["input_ids"]


def test_it_answers_that_the_capital_of_france_is_paris(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [f"init_from={FOLDER}", "hardware.precision=fp32", "stage.temperature=0", "stage.max_new_tokens=20"]
    run(config.compose(["stage=generate", *words, f"stage.prompt={QUESTION}", "run=paris"]))
    [row] = map(json.loads, (tmp_path / "outputs/paris/completions.jsonl").read_text().splitlines())
    assert row["completion"] == "The capital of France is Paris."
    assert row["stop_reason"] == "stop_id"
    assert "Paris" in capsys.readouterr().out


@pytest.mark.slow
def test_pre_training_goes_on_with_falling_loss_and_the_export_loads_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lifecycle.runs.results.write_report", lambda folder: None)
    text = real_text("tinyshakespeare.txt.gz", 400_000)
    pieces = [text[i : i + 4000] for i in range(0, len(text), 4000)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": piece}) + "\n" for piece in pieces))
    words = ["data=files", "data.sources.mine.path=text.jsonl", "data.sources.mine.validation={ratio: 0.1, seed: 1}"]
    words += ["stage.max_steps=20", "stage.sequence_length=128", "stage.global_batch_tokens=256"]
    words += ["stage.optimizer.lr=1e-4", "validation.every_steps=10", "validation.tokens=2000"]
    words += ["hardware.precision=fp32", "hardware.compile=false", "hardware.workers=0", "hardware.peak_tflops=1"]
    words += ["logger=csv", "callbacks.progress=false", "run=on", f"init_from={FOLDER}"]
    run(config.compose(words))

    columns = (tmp_path / "outputs/on/metrics.csv").read_text().splitlines()
    at = columns[0].split(",").index("train/loss")
    losses = [float(line.split(",")[at]) for line in columns[1:] if line.split(",")[at]]
    first, last = sum(losses[:5]) / 5, sum(losses[-5:]) / 5
    print(f"training loss {first:.3f} in the first five steps, {last:.3f} in the last five of {len(losses)}")
    assert len(losses) == 20 and last < first - 0.1

    described, weights = load_pretrained(tmp_path / "outputs/on/model")
    model = Decoder(described)
    model.load_state_dict(weights)
    ids = torch.tensor(tokenizer.encode_batch([text[:600]])[0][:128])[None].long()
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "outputs/on/model", dtype=torch.float32).eval()
    with torch.no_grad():
        expected = again(ids).logits
    assert float((logits(model, ids) - expected).abs().max() / expected.abs().max()) < 1e-4
    assert mean_loss(expected, ids) < first
