"""What an export holds beside the weights, in how many files, and what stays whole when it is cut short."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.model.huggingface.families import DEEPSEEK, IDS, LLAMA, made, our_logits, theirs
from transformers import AutoTokenizer

from lifecycle.errors import UserError
from lifecycle.model import build
from lifecycle.model.huggingface import export, load_pretrained
from lifecycle.model.huggingface import export_folder as writing
from lifecycle.tokenizer.tokenizer import train_bpe

TIED = replace(LLAMA, tied_head=True)


class Marks:
    """The part of a tokenizer that an export needs."""

    bos_id, eos_id, pad_id = 5, 7, 7

    def __init__(self, template: str | None = None, *, end_ids: tuple[int, ...] = (7,)) -> None:
        self.template, self.end_ids = template, end_ids
        self.special_names = {5: "<s>", 7: "</s>"}

    def save(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{}")
        (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
        if self.template is not None:
            (folder / "chat_template.jinja").write_text(self.template)


@pytest.mark.parametrize("config", [LLAMA, DEEPSEEK], ids=["llama", "deepseek"])
def test_half_precision_is_stated_and_leaves_the_model_alone(config: Any, tmp_path: Path) -> None:
    model = made(config)
    export(model, tmp_path, dtype="bf16")
    assert model.embedding.weight.dtype == torch.float32
    assert theirs(tmp_path).dtype == torch.bfloat16
    for name, weight in load_pretrained(tmp_path)[1].items():
        value = model.state_dict()[name]
        # the bias decides between experts: it is never rounded
        assert torch.equal(weight, value if name.endswith("router.bias") else value.bfloat16().float()), name
    with pytest.raises(UserError, match="export.dtype is 'int8'; choose one of fp32, bf16, fp16"):
        export(model, tmp_path, dtype="int8")


def test_the_tokenizers_marks_go_along_and_pad_freezes_nothing(tmp_path: Path) -> None:
    export(build(LLAMA, seed=1), tmp_path, tokenizer=Marks())
    assert (tmp_path / "tokenizer.json").exists()
    other = theirs(tmp_path)
    assert (other.config.bos_token_id, other.config.eos_token_id) == (5, 7)
    assert other.generation_config.pad_token_id == 7
    assert other.get_input_embeddings().padding_idx is None


def test_a_chat_model_stops_at_the_end_of_its_turn_in_transformers(tmp_path: Path) -> None:
    tokenizer = train_bpe(["what is this? it is a word. " * 5] * 20, vocab_size=300, digits=1)
    model, end = build(replace(LLAMA, vocab_size=320, tied_head=False), seed=1), tokenizer.end_ids[1]
    with torch.no_grad():  # every hidden state is the same, and the head answers it with the end of the turn
        model.embedding.weight.fill_(1.0)
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.zero_()
        model.head_weight.zero_()[end] = 1.0
    export(model, tmp_path, tokenizer=tokenizer)
    other, words = theirs(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert other.generation_config.eos_token_id == list(tokenizer.end_ids)
    asked: Any = words.apply_chat_template(
        [{"role": "user", "content": "what?"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = other.generate(**asked, max_new_tokens=8, do_sample=False)[0, asked["input_ids"].shape[1] :]
    assert answer.tolist() == [end] and words.decode(answer) == "<|end|>"


def test_the_parents_generation_settings_go_on(tmp_path: Path) -> None:
    theirs_was = {"eos_token_id": [9, 7], "temperature": 0.6, "bos_token_id": 3, "transformers_version": "4.0.0"}
    export(build(LLAMA, seed=1), tmp_path, tokenizer=Marks(end_ids=(7, 8)), generation=theirs_was)
    written = json.loads((tmp_path / "generation_config.json").read_text())
    assert written == {"bos_token_id": 3, "pad_token_id": 7, "temperature": 0.6, "eos_token_id": [7, 8, 9]}
    assert json.loads((tmp_path / "config.json").read_text())["eos_token_id"] == 7
    export(build(LLAMA, seed=1), tmp_path, tokenizer=Marks(), generation={"eos_token_id": 7})
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == 7


def test_a_large_model_is_cut_into_files_that_load_as_one(tmp_path: Path) -> None:
    model = made(DEEPSEEK)
    export(model, tmp_path, shard_gb=20e-6)
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    tensors = [load_file(tmp_path / file) for file in files]
    assert all(sum(t.nbytes for t in held.values()) <= 20_000 or len(held) == 1 for held in tensors)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for held in tensors for t in held.values())
    assert index["weight_map"] == {name: file for file, held in zip(files, tensors, strict=True) for name in held}
    weights = load_pretrained(tmp_path)[1]
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    torch.testing.assert_close(our_logits(model), theirs(tmp_path)(input_ids=IDS).logits, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match=r"export.shard_gb is 0; it is the size of a weight file in GB, above 0"):
        export(model, tmp_path, shard_gb=0)


def test_an_export_leaves_nothing_but_its_files_and_replaces_an_older_one(tmp_path: Path) -> None:
    beside = {"config.json", "generation_config.json", "README.md"}
    index = "model.safetensors.index.json"
    one, four = {"model.safetensors"}, {index, *(f"model-0000{n}-of-00004.safetensors" for n in (1, 2, 3, 4))}
    for seed, shard_gb, files in ((1, 5, one), (2, 3e-5, four), (3, 5, one)):
        export(build(TIED, seed=seed), tmp_path, shard_gb=shard_gb)
        assert {path.name for path in tmp_path.iterdir()} == beside | files
        embedding = load_pretrained(tmp_path)[1]["embedding.weight"]
        assert torch.equal(embedding, build(TIED, seed=seed).embedding.weight)


def test_a_full_disk_leaves_the_older_model_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(build(TIED, seed=1), tmp_path, shard_gb=3e-5)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    written = []

    def full_disk(weights: dict[str, Any], path: Path, **kwargs: Any) -> None:
        written.append(path)
        if len(written) == 2:
            raise OSError(28, "No space left on device", str(path))
        path.write_bytes(b"")

    monkeypatch.setattr(writing, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        export(build(TIED, seed=2), tmp_path, shard_gb=3e-5)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("older", [5.0, 3e-5], ids=["one file", "several"])
@pytest.mark.parametrize("newer", [5.0, 3e-5], ids=["by one file", "by several"])
def test_a_kill_never_leaves_new_files_beside_old_ones(
    older: float, newer: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before every change in the folder itself, in turn; nothing is put in order behind a kill."""
    wider = replace(TIED, rope_theta=5e5)  # the same shapes: weights and config.json of two models would load
    allowed, ends = 0, 0

    def until_killed(change: Any) -> Any:
        def changed(*arguments: Any, **named: Any) -> None:
            nonlocal allowed
            allowed -= 1
            if allowed < 0:
                raise KeyboardInterrupt
            change(*arguments, **named)

        return changed

    for number in range(20):
        folder, allowed = tmp_path / str(number), number
        export(build(TIED, seed=1), folder, shard_gb=older)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", until_killed(Path.unlink))
            patch.setattr(Path, "replace", until_killed(Path.replace))
            patch.setattr(shutil, "rmtree", lambda *a, **k: None)
            try:
                export(build(wider, seed=2), folder, shard_gb=newer)
            except KeyboardInterrupt:
                ends += 1
        found = _held(folder)
        assert found in (None, (TIED.rope_theta, 1), (wider.rope_theta, 2))
        export(build(wider, seed=2), folder, shard_gb=newer)
        assert _held(folder) == (wider.rope_theta, 2) and not list(folder.glob(".*"))
    assert 3 < ends < 20


def _held(folder: Path) -> tuple[float, int] | None:
    """Whose sizes and whose weights a folder holds; None where it is not taken for a model."""
    if not (folder / "config.json").is_file():
        return None
    config, weights = load_pretrained(folder)
    seeds = [s for s in (1, 2) if torch.equal(weights["embedding.weight"], build(TIED, seed=s).embedding.weight)]
    return config.rope_theta, seeds[0]


RUNS: list[dict[str, Any]] = [
    {"path": "/somewhere/gone", "sha256": "0"},
    {
        "stage": "pretrain",
        "steps": 1200,
        "peak_lr": 0.001,
        "data": {"fingerprint": "abc", "sources": {"books": {"tokens": 1_234_567, "epochs": 0.51234}, "wiki": {}}},
        "result": {"valid/loss": 2.51234, "step": 1200},
    },
]


def test_the_card_tells_what_the_model_was_trained_on_stage_by_stage(tmp_path: Path) -> None:
    export(made(DEEPSEEK), tmp_path / "demo" / "model", history=RUNS, tokenizer=Marks())
    card = (tmp_path / "demo" / "model" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    for line in (
        "# demo",
        "| architecture | DeepseekV3ForCausalLM |",
        f"| parameters | {DEEPSEEK.parameters():,}, of which {DEEPSEEK.active_parameters():,} work on a token |",
        "| 1. `gone`, of which no record is left here |  |  |  |",
        "| 2. pretrain | books | 1,234,567 | 0.512 |",
        "| 2. pretrain | wiki |  |  |",
        "- best loss on held-out text: 2.5123",
    ):
        assert line in card.splitlines(), line
    assert "/somewhere" not in card and "apply_chat_template" not in card
    export(made(DEEPSEEK), tmp_path, tokenizer=Marks("{{ messages }}"))
    assert "apply_chat_template" in (tmp_path / "README.md").read_text()


def test_a_soft_cap_that_their_class_leaves_out_comes_back_and_the_card_says_how(tmp_path: Path) -> None:
    model = made(replace(LLAMA, logit_softcap=3.0))
    export(model, tmp_path)
    assert load_pretrained(tmp_path)[0].logit_softcap == 3.0
    code = (tmp_path / "README.md").read_text().split("```python\n")[1].split("\n")[0]
    names: dict[str, Any] = {}
    exec(code, names)
    inputs = {"input_ids": IDS[:1], "attention_mask": torch.ones_like(IDS[:1])}
    other, ours = theirs(tmp_path), our_logits(model)[:1, -1].detach()
    assert not torch.allclose(other(**inputs).logits[:, -1].detach(), ours, rtol=0.1)
    found = other.generate(
        **inputs,
        max_new_tokens=1,
        do_sample=False,
        logits_processor=names["cap"],
        output_scores=True,
        return_dict_in_generate=True,
    )
    torch.testing.assert_close(found.scores[0], ours, rtol=1e-4, atol=1e-4)
