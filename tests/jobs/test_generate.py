"""`stage=generate` from the command line's side: what goes in, what is left, and what is never half left."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.rollout.vllm_stand_in import stand_in
from tests.toy import toy

from lifecycle import config
from lifecycle.batch import Rollout
from lifecycle.errors import UserError
from lifecycle.lineage.parent import find_parent
from lifecycle.model import Decoder, build
from lifecycle.model.huggingface import export
from lifecycle.model.huggingface.export_folder import generation_config
from lifecycle.rollout import Engine, Sampling
from lifecycle.run import run
from lifecycle.tokenizer.tokenizer import train_bpe

TOKENIZER = train_bpe(["def return the value of it " * 5] * 20, vocab_size=320, digits=1)
MODEL = toy(width=32, heads=2, kv_heads=1, head_dim=16, ffn_width=48, vocab_size=320, max_positions=128)
SEED = 12  # what these weights say greedily to "return the" is encoded again as it was drawn
SMALL = ["hardware.precision=fp32", "stage.max_new_tokens=12", "stage.temperature=1.0"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run in, with `theirs`, a model from elsewhere, and `outputs/mine`, a run that trained on text."""
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path / "theirs", tmp_path / "outputs/mine/model"):
        export(build(MODEL, seed=SEED), folder, tokenizer=TOKENIZER)
    mine = tmp_path / "outputs/mine"
    (mine / "run.json").write_text(json.dumps({"status": "finished", "stage": "pretrain"}))
    (mine / "config.yaml").write_text(yaml.safe_dump({"stage": {"view": "text"}}))
    return tmp_path


def generate(*words: str) -> None:
    chosen = [] if any(word.startswith("init_from=") for word in words) else ["init_from=mine"]
    run(config.compose(["stage=generate", *SMALL, *chosen, *words]))


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def facts(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return found


def test_it_needs_a_model_and_no_data(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generate("stage.prompt=return the", "stage.samples=2", "data.sources.prose.path=nowhere.jsonl")
    folder = place / "outputs/generate"
    first, second = rows(folder / "completions.jsonl")
    assert (first["prompt"], first["sample"], second["sample"]) == ("return the", 0, 1)
    assert first["completion"] != second["completion"]
    assert first["tokens"] <= 12 and first["logprob"] < 0
    assert capsys.readouterr().out == "".join(
        f"return the{row['completion']}\n{end}" for row, end in ((first, "\n"), (second, ""))
    )
    done = facts(folder)
    assert (done["status"], done["stage"], done["error"]) == ("finished", "generate", None)
    assert done["parent"]["path"] == str(place / "outputs/mine")
    assert done["result"]["file"] == str(folder / "completions.jsonl")
    assert (done["result"]["prompts"], done["result"]["completions"]) == (1, 2)
    assert yaml.safe_load((folder / "config.yaml").read_text())["stage"]["prompt"] == "return the"


def test_a_completion_does_not_depend_on_the_prompts_beside_it(place: Path) -> None:
    texts = []
    for words in (["stage.prompt=[return]"], ["stage.prompt=[return,the value]", "stage.slots=1"], ["stage.slots=2"]):
        asked = words if words[0].startswith("stage.prompt") else [*words, "stage.prompt=[return,the value,of it]"]
        generate(*asked, "stage.samples=2", "deterministic=true")
        texts.append([row["completion"] for row in rows(place / "outputs/generate/completions.jsonl")])
    assert texts[0] == texts[1][:2] == texts[2][:2]
    assert texts[1] == texts[2][:4]


def test_another_prompt_replaces_an_unnamed_result_and_never_a_named_one(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for prompt in ("return", "the"):
        generate(f"stage.prompt={prompt}")
        assert [row["prompt"] for row in rows(place / "outputs/generate/completions.jsonl")] == [prompt]
    generate("stage.prompt=return", "run=kept")
    capsys.readouterr()
    generate("stage.prompt=return", "run=kept")
    assert "is finished; nothing to do" in capsys.readouterr().out
    with pytest.raises(UserError, match="was started with other values of: stage.prompt"):
        generate("stage.prompt=the", "run=kept")
    assert [row["prompt"] for row in rows(place / "outputs/kept/completions.jsonl")] == ["return"]


def test_what_ends_a_completion_for_the_parent_ends_it_here(place: Path) -> None:
    words = ["init_from=theirs", "stage.prompt=return the", "stage.temperature=0"]
    generate(*words)
    (whole,) = rows(place / "outputs/generate/completions.jsonl")
    settings = place / "theirs/generation_config.json"
    drawn = TOKENIZER.encode_batch([whole["completion"]])[0]
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"eos_token_id": [int(drawn[2])]}))
    generate(*words)
    (ended,) = rows(place / "outputs/generate/completions.jsonl")
    assert ended["stop_reason"] != "length" and ended["tokens"] <= 3 < whole["tokens"]


def test_ends_that_only_the_config_names_end_a_completion_too(place: Path) -> None:
    words = ["init_from=theirs", "stage.prompt=return the", "stage.temperature=0"]
    generate(*words)
    (whole,) = rows(place / "outputs/generate/completions.jsonl")
    (place / "theirs/generation_config.json").unlink()
    path = place / "theirs/config.json"
    drawn = TOKENIZER.encode_batch([whole["completion"]])[0]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [TOKENIZER.eos_id, int(drawn[2])]}))
    generate(*words)
    (ended,) = rows(place / "outputs/generate/completions.jsonl")
    assert (ended["stop_reason"], ended["sampled"]) == ("stop_id", ended["tokens"]) and ended["tokens"] <= 3
    exported = generation_config(TOKENIZER, find_parent("theirs").generation)
    assert exported["do_sample"] and exported["eos_token_id"] == [*TOKENIZER.end_ids, int(drawn[2])]


def test_stops_are_read_as_they_are_typed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Sampling] = []

    class Watched(Engine):
        def generate(self, prompts: Any, sampling: Sampling, **more: Any) -> Rollout:
            asked.append(sampling)
            return super().generate(prompts, sampling, **more)

    monkeypatch.setattr("lifecycle.jobs.drawing.Engine", Watched)
    number, name = max((int(i), str(t)) for i, t in TOKENIZER.hf.added_tokens_decoder.items() if t.special)
    generate("stage.prompt=return", f"stage.stop=['{name}',\"\\n\\n\",'END']")
    assert asked[0].stop_strings == ("\n\n", "END") and number in asked[0].stop_ids


def test_damaged_weights_are_the_users_to_mend(place: Path) -> None:
    broken = build(MODEL, seed=SEED)
    broken.norm.weight.data[3] = float("nan")
    export(broken, place / "broken", tokenizer=TOKENIZER)
    with pytest.raises(UserError, match="logits of prompt 0 are not finite at token 0.*weights are damaged"):
        generate("init_from=broken", "stage.prompt=return")


def test_a_call_that_fails_leaves_the_last_result_as_it_was(place: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        generate("stage.file=absent.jsonl")
    folder = place / "outputs/generate"
    assert not (folder / "run.json").exists() and not (folder / "config.yaml").exists()
    generate("stage.prompt=return")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match="cannot be read"):
        generate("stage.file=absent.jsonl")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_of_another_stage_is_not_written_over(place: Path) -> None:
    (place / "outputs/mine").rename(place / "outputs/generate")
    (place / "outputs/generate/config.yaml").write_text(yaml.safe_dump({"stage": {"_target_": "x", "view": "text"}}))
    before = facts(place / "outputs/generate")
    with pytest.raises(UserError, match="was started as stage=x"):
        generate("init_from=outputs/generate", "stage.prompt=return")
    assert facts(place / "outputs/generate") == before


def test_a_model_is_asked_in_the_form_that_it_was_taught(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    completions = {}
    for name, words in {
        "text": ["init_from=mine"],
        "folder of text": ["init_from=outputs/mine/model"],
        "elsewhere": ["init_from=theirs"],
        "told to": ["init_from=mine", "stage.chat=true"],
    }.items():
        generate(*words, "stage.prompt=return", "stage.temperature=0")
        completions[name] = rows(place / "outputs/generate/completions.jsonl")[0]["completion"]
        said = capsys.readouterr().out
        assert said.startswith("return\n" if name in ("elsewhere", "told to") else f"return{completions[name]}")
    assert completions["text"] == completions["folder of text"]
    assert completions["elsewhere"] == completions["told to"] != completions["text"]


def test_what_is_measured_alone_does_not_say_how_a_model_is_asked(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for weight, opening in ((0, "return"), (0.4, "return\n")):
        sources = {"prose": {"view": "text", "weight": 0.6}, "asked": {"view": None, "weight": weight}}
        written = {"stage": {"view": "chat"}, "data": {"sources": sources}}
        (place / "outputs/mine/config.yaml").write_text(yaml.safe_dump(written))
        generate("stage.prompt=return", "stage.temperature=0")
        completion = rows(place / "outputs/generate/completions.jsonl")[0]["completion"]
        assert capsys.readouterr().out == f"{opening}{completion}\n"


def test_the_best_of_several_is_the_most_probable_of_them(place: Path) -> None:
    def logprobs(*words: str) -> list[float]:
        generate("stage.prompt=return", *words)
        return [row["logprob"] for row in rows(place / "outputs/generate/completions.jsonl")]

    assert logprobs("stage.best_of=6", "stage.best_by=sum") == [max(logprobs("stage.samples=6"))]


def test_without_a_model_it_says_what_to_type(place: Path) -> None:
    with pytest.raises(UserError, match="init_from=RUN.*finished runs here: mine"):
        run(config.compose(["stage=generate", "stage.prompt=return"]))
    assert not (place / "outputs/generate/run.json").exists()


def test_with_vllm_the_mismatch_is_in_the_result_and_said(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = stand_in(build(MODEL, seed=SEED), shift=0.5)
    monkeypatch.setitem(sys.modules, "vllm", module)
    generate("stage.prompt=return the", "stage.engine=vllm", "stage.slots=3", "hardware.compile=false")
    result = facts(place / "outputs/generate")["result"]
    assert result["rollout/mismatch_mean"] == pytest.approx(0.5, abs=1e-3)
    assert result["rollout/mismatch_max"] == pytest.approx(0.5, abs=1e-3)
    assert "rollout/mismatch_mean 0.5  rollout/mismatch_max 0.5" in capsys.readouterr().err
    told = {key: module.settings[key] for key in ("model", "max_num_seqs", "enforce_eager")}
    assert told == {"model": "outputs/mine/model", "max_num_seqs": 3, "enforce_eager": True}
    generate("stage.prompt=return the")
    assert "rollout/mismatch_max" not in facts(place / "outputs/generate")["result"]


def test_a_model_that_vllm_cannot_read_as_it_lies_is_exported_for_it(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = stand_in(build(MODEL, seed=SEED))
    monkeypatch.setitem(sys.modules, "vllm", module)
    read: list[bool] = []

    class LLM(module.LLM):  # type: ignore[name-defined]
        def __init__(self, **settings: Any) -> None:
            read.append((Path(settings["model"]) / "model.safetensors").is_file())
            super().__init__(**settings)

    module.LLM = LLM  # type: ignore[attr-defined]
    theirs = find_parent("theirs")
    as_gguf = replace(theirs, folder=place / "elsewhere")
    monkeypatch.setattr("lifecycle.lineage.inherit.find_parent", lambda name: as_gguf)
    generate("init_from=theirs", "stage.prompt=return the", "stage.engine=vllm")
    assert read == [True] and not Path(module.settings["model"]).exists()


def test_the_engine_is_as_hardware_and_stage_say(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []

    class Watched(Engine):
        def __init__(self, model: Decoder, **settings: Any) -> None:
            made.append(settings)
            super().__init__(model, **settings | {"compiled": False})  # it takes a minute

    monkeypatch.setattr("lifecycle.jobs.drawing.Engine", Watched)
    for words in ([], ["hardware.compile=true", "stage.slots=3", "stage.prefill_chunk=5"]):
        generate("stage.prompt=return the", *words)
    wanted = [(False, 16, 1024), (True, 3, 5)]
    assert [(s["compiled"], s["slots"], s["prefill_chunk"]) for s in made] == wanted


def test_what_an_engine_would_leave_aside_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    for words, said in (
        (["stage.engine=vllm"], r"pip install 'lifecycle\[vllm\]'.*stage.engine=own"),
        (["stage.engine=vllm", "deterministic=true"], "deterministic=true, but vLLM's draws depend on"),
        (["hardware.compile=true", "deterministic=true"], "deterministic steps run eagerly.*hardware.compile=false"),
    ):
        with pytest.raises(UserError, match=said):
            generate("stage.prompt=return", *words)


def test_calls_are_answered_and_counted(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "tools_of_a_generation.py").write_text(
        "from lifecycle.rollout.environments.environment import Observation\n\n\n"
        "class Tool:\n    stops = tuple('aeiourtlns')\n\n"
        "    def reset(self, record):\n        return record.prompt.upper()\n\n"
        "    def step(self, text):\n        return Observation(text='<|end|>', failed=True)\n"
    )
    monkeypatch.syspath_prepend(str(place))
    words = ("stage.prompt=return the", "stage.environment.name=tools_of_a_generation:Tool", "stage.max_new_tokens=60")
    generate(*words, "stage.environment.max_turns=2")
    (row,) = rows(place / "outputs/generate/completions.jsonl")
    assert row["completion"].startswith("RETURN THE") and row["sampled"] < row["tokens"]
    assert row["calls"] == row["calls_failed"] == 2 and row["stop_reason"] == "turns"
    assert row["completion"].count("<|end|>") == 2  # text, and no mark
    with pytest.raises(UserError, match="vLLM asks no environment: type stage.engine=own"):
        generate(*words, "stage.engine=vllm")
