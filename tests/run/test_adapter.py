"""An adapter by the command line: what is trained, saved and handed over, resumed to the bit, and refused."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.run.cli import (
    assert_same_losses,
    assert_same_run,
    cut_back,
    facts,
    kill_after,
    lifecycle,
    metrics,
    step_folder,
)

from lifecycle.lineage.parent import find_parent
from lifecycle.lineage.parent.parent import Parent

STEPS = 12
LORA = (
    "stage=midtrain",
    "init_from=whole",
    "adapter=lora",
    "adapter.rank=4",
    "stage.optimizer.lr=1e-3",
    f"stage.max_steps={STEPS}",
    "checkpoint.every_steps=4",
    "checkpoint.keep_last=99",
    "validation.every_steps=6",
)


@pytest.fixture(scope="module")
def tuned(place: Path, whole: Path) -> Path:
    """A run of an adapter, which is also merged."""
    lifecycle(place, "run=tuned", *LORA, "adapter.merge=true")
    return place / "outputs/tuned"


@pytest.fixture(scope="module")
def apart(place: Path, whole: Path) -> Path:
    """The same run, which leaves the adapter alone."""
    lifecycle(place, "run=apart", *LORA)
    return place / "outputs/apart"


def found(run: Path, at: str = "") -> Parent:
    return find_parent(f"{run}{at}")


def assert_same_adapter(run: Path, other: Path) -> None:
    """File by file, but for where the base lies."""
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (run / "adapter" / name).read_bytes() == (other / "adapter" / name).read_bytes(), name


def test_a_checkpoint_holds_the_adapter_and_its_optimizer_alone(whole: Path, tuned: Path) -> None:
    saved, of_all = (load_file(step_folder(run, 8) / "weights.safetensors") for run in (tuned, whole))
    assert saved and all(".lora_" in name for name in saved)
    trained = sum(weight.numel() for weight in saved.values())
    assert facts(tuned)["adapter"] == {"rank": 4, "bits": None, "layers": 14, "of": 14, "parameters": trained}
    size = sum(file.stat().st_size for file in step_folder(tuned, 8).iterdir())
    assert size < 4 * 3 * trained + 80_000 < 4 * 3 * sum(weight.numel() for weight in of_all.values())


def test_the_merged_model_is_that_of_peft_on_the_parents_export(whole: Path, tuned: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    ids = torch.randint(300, (2, 40), generator=torch.Generator().manual_seed(0))
    merged = AutoModelForCausalLM.from_pretrained(tuned / "model")
    base = AutoModelForCausalLM.from_pretrained(whole / "model")
    with pytest.warns(FutureWarning, match="is_gradient_checkpointing"):  # peft asks transformers
        adapted = PeftModel.from_pretrained(base, str(tuned / "adapter"))
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, rtol=1e-4, atol=1e-5)
        with adapted.disable_adapter():
            assert not torch.allclose(merged(ids).logits, adapted(ids).logits, atol=1e-3)


def test_it_learns_at_a_multiple_of_the_rate_which_it_hands_over_as_it_was(tuned: Path) -> None:
    rates = [rate for rate in metrics(tuned)["train/lr"] if rate is not None]
    assert max(rates) == pytest.approx(10 * 1e-3) and facts(tuned)["peak_lr"] == 1e-3
    losses = [loss for loss in metrics(tuned)["valid/loss"] if loss is not None]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_resumed_run_is_the_one_that_was_never_stopped(place: Path, tuned: Path, dropout: float) -> None:
    more = ("adapter.merge=true", f"adapter.dropout={dropout}")
    run = tuned
    if dropout:
        run = place / "outputs/dropped"
        lifecycle(place, "run=dropped", *LORA, *more)
    again = place / f"outputs/again{dropout}"
    cut_back(run, again, 4)
    shutil.rmtree(again / "adapter")
    lifecycle(place, f"run={again.name}", *LORA, *more)
    assert_same_run(again, run)
    assert_same_adapter(again, run)


def test_a_base_that_changed_is_refused(place: Path, whole: Path) -> None:
    other = place / "outputs/other"
    shutil.copytree(whole, other)
    lifecycle(place, "run=moved", *LORA, "init_from=other", "stage.max_steps=4")
    child = found(place / "outputs/moved")
    shutil.copy(place / "outputs/whole/model/config.json", other / "model/config.json")
    (other / "model/generation_config.json").write_text("{}")
    done = lifecycle(place, "run=moved", *LORA, "init_from=other", "stage.max_steps=8", code=2)
    assert "began with weights of hash" in done.err and "put them back there" in done.err
    with pytest.raises(Exception, match="belongs to weights of hash"):
        child.read()


def test_the_next_stage_and_jobs_begin_with_the_merged_model(
    place: Path, whole: Path, tuned: Path, apart: Path
) -> None:
    merged, of_both = found(tuned).weights, found(apart).weights
    assert not (apart / "model").exists()
    assert all(torch.equal(of_both[name], merged[name]) for name in merged)
    last, best = found(apart, f"@{STEPS}").weights, found(apart, "@best").weights
    assert all(torch.equal(last[name], merged[name]) for name in merged) and best.keys() == merged.keys()
    earlier, some = found(apart, "@4").weights, "blocks.0.attention.q_proj.weight"
    assert not torch.equal(earlier[some], last[some])
    lifecycle(place, "run=next", "stage=midtrain", "init_from=apart", "stage.max_steps=2", "validation.every_steps=2")
    told = facts(place / "outputs/next")
    assert told["parent"]["path"] == str(apart) and [one["path"] for one in told["ancestors"]] == [str(whole)]
    more = ("adapter.merge=true", "stage.ewc={strength: 1.0, rows: 4}", "hardware.activation_checkpointing=true")
    lifecycle(place, "run=second", *LORA, "init_from=apart", "stage.max_steps=2", *more)
    assert found(place / "outputs/second").weights.keys() == merged.keys()


@pytest.mark.parametrize("parent", ["whole@8", "apart"])
def test_a_base_that_peft_cannot_load_is_told_by_its_whole_name(place: Path, apart: Path, parent: str) -> None:
    done = lifecycle(place, f"run=on-{parent}", *LORA, f"init_from={parent}", "stage.max_steps=2")
    base = f"{place / 'outputs' / parent}"
    assert f"the adapter sits on {base}, of which there is no Hugging Face folder" in done.err
    assert facts(place / f"outputs/on-{parent}", "adapter/adapter_config.json")["base_model_name_or_path"] == base


def test_a_dry_run_counts_what_is_trained(place: Path, whole: Path) -> None:
    whole_run = lifecycle(place, "run=planned", *LORA[:2], *LORA[4:], "dry_run=true").out
    done = lifecycle(place, "run=planned", *LORA, "dry_run=true").out
    assert "trained beside them, of the adapter" in done and "trained beside" not in whole_run


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("init_from=null", "stage=pretrain"), "init_from is null: type init_from=RUN"),
        (("optimizer=muon",), "type optimizer=adamw"),
        (("stage.optimizer_state=parent",), "type stage.optimizer_state=fresh"),
        (("stage.new_tokens=['<x>']",), "type stage.new_tokens=[] stage.split_digits=false (a parent"),
        (("stage.phases=[{at_steps: 0, rope_theta: 5e4}]",), "changes the frozen model"),
        (("adapter.targets=[q_prj]",), "did you mean q_proj"),
        (("adapter=qlora",), "type adapter=lora"),
        (("stage=generate", "stage.prompt=a"), "trains nothing: type adapter=none"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_with_what_to_type(
    place: Path, whole: Path, words: tuple[str, ...], said: str
) -> None:
    given = {word.partition("=")[0]: word for word in (*LORA, *words)}
    if "stage=generate" in words:
        given = {key: word for key, word in given.items() if not key.startswith("stage.") or key == "stage.prompt"}
    if "stage=pretrain" in words:
        given.pop("init_from")
    assert said in lifecycle(place, "run=refused", *given.values(), code=2).err


@pytest.mark.parametrize("word", ["adapter.alpha=16", "adapter.rank=2", "adapter.targets=[q_proj]"])
def test_a_changed_adapter_is_another_run(place: Path, tuned: Path, word: str) -> None:
    given = {one.partition("=")[0]: one for one in (*LORA, "adapter.merge=true", word)}
    done = lifecycle(place, "run=tuned", *given.values(), code=2)
    assert f"started with other values of: {word.partition('=')[0]}" in done.err


@pytest.mark.slow
def test_killed_at_many_moments_it_ends_as_the_run_that_nobody_touched(place: Path, whole: Path) -> None:
    words = (*LORA, "adapter.merge=true", "stage.max_steps=60", "checkpoint.every_steps=3")
    lifecycle(place, "run=long", *words)
    draw, run = random.Random(1), place / "outputs/killed"
    for _ in range(10):
        steps, wait = draw.randint(1, 5), draw.uniform(0.0, 0.05)
        if not kill_after(place, "run=killed", *words, checkpoints=steps, wait=wait, group=True):
            break
    lifecycle(place, "run=killed", *words)
    assert_same_run(run, place / "outputs/long")
    assert_same_adapter(run, place / "outputs/long")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_ranks_train_the_same_adapter(place: Path, tuned: Path, strategy: str) -> None:
    words = (*LORA, "adapter.merge=true", "hardware.devices=2", f"hardware.strategy={strategy}")
    lifecycle(place, f"run={strategy}", *words, cold=True)
    run = place / "outputs" / strategy
    here, there = (load_file(folder / "adapter/adapter_model.safetensors") for folder in (run, tuned))
    for name, weight in here.items():
        torch.testing.assert_close(weight, there[name], rtol=1e-3, atol=2e-4, msg=name)
    again = place / f"outputs/again-{strategy}"
    cut_back(run, again, 4)
    lifecycle(place, f"run={again.name}", *words, cold=True)
    assert_same_losses(again, run)
    assert_same_adapter(again, run)
    assert json.loads((run / "run.json").read_text())["adapter"]["layers"] == 14
