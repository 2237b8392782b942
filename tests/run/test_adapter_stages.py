"""An adapter in every stage by the command line: resumed it is the run that was never stopped, and both `peft` on the
parent's export and the merged export are the model that it leaves."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tests.run.cli import assert_same_run, cut_back, facts, lifecycle, make_texts, metrics, step_folder
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from lifecycle.lineage.parent import find_parent
from lifecycle.model import Decoder

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated"),  # peft asks transformers
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled"),  # shards, read by one process
]

LORA = (
    "adapter=lora",
    "adapter.rank=4",
    "adapter.merge=true",
    "stage.max_steps=4",
    "stage.optimizer.lr=1e-3",
    "checkpoint.every_steps=2",
    "checkpoint.keep_last=99",
    "validation.every_steps=2",
    "validation.tokens=1000",
    "validation.answers=2",
    "validation.answer_tokens=4",
)
DPO = ("stage=dpo", "data=pairs", "stage.max_epochs=null")
TEACHER = ("stage=distill", "data=chats", "stage.teacher=whole", "stage.max_tokens=null")
WRITTEN = "{share: 0.5, form: %s, max_new_tokens: 6, temperature: 1.0, slots: 8}"
STAGES: dict[str, tuple[str, ...]] = {
    "sft": ("stage=sft", "data=chats", "stage.max_epochs=null"),
    "dpo": DPO,
    "reward": ("stage=reward", "data=pairs", "stage.max_epochs=null"),
    "distill": (*TEACHER, f"stage.on_policy={WRITTEN % 'supervised'}", "adapter.dropout=0.2"),
}
OTHERS: dict[str, tuple[str, ...]] = {
    "dpo_live": (*DPO, "stage.reference=live", "adapter.dropout=0.2"),
    "dpo_cached": (*DPO, "stage.reference=cached", "adapter.dropout=0.2"),
    "dpo_dora": (*DPO, "adapter.dora=true", "adapter.rslora=true", "adapter.dropout=0.2"),
    "reason": ("stage=distill_reason", "data=traces", "stage.max_epochs=null", "stage.new_tokens=[]"),
    "simpo": (*DPO, "stage.loss=simpo", "stage.reference=null"),
    "aot": (*DPO, "stage.loss=aot", "adapter.dropout=0.2"),
    "kto": ("stage=dpo", "data=judged", "stage.loss=kto", "stage.view=unpaired", "stage.max_epochs=null"),
    "distill_whole": TEACHER,
    "distill_cached": (*TEACHER, "stage.top_k=8"),
    "distill_gradient": (*TEACHER, f"stage.on_policy={WRITTEN % 'policy_gradient'}"),
    "reward_some": ("stage=reward", "data=pairs", "stage.max_epochs=null", "adapter.targets=[q_proj]"),
}


@pytest.fixture(scope="module", autouse=True)
def rows(place: Path, whole: Path) -> None:
    """A data config of each form, whose preferred answers say `river`."""
    found: dict[str, list[dict[str, Any]]] = {"pairs": [], "judged": [], "chats": [], "traces": []}
    for number, text in enumerate(make_texts("asked", 160, 20)):
        prompt, sides = f"Tell me of {number % 50}.", {"chosen": f"{text} river", "rejected": f"{text} cat"}
        found["pairs"].append({"prompt": prompt, **sides})
        found["judged"] += [{"prompt": prompt, "completion": v, "label": k == "chosen"} for k, v in sides.items()]
        found["chats"].append({"prompt": prompt, "completion": text})
        found["traces"].append({"prompt": prompt, "completion": f"<think>{text[:30]}</think>{text[30:60]}."})
    for name, made in found.items():
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
        source = {"path": f"{name}.jsonl", "format": "auto", "validation": {"ratio": 0.1, "seed": 1}}
        node = {"defaults": ["_engine", "_self_"], "tokenizer": "unused", "sources": {name: source}}
        (place / f"conf/data/{name}.yaml").write_text(yaml.safe_dump(node, sort_keys=False))


def thinking(place: Path) -> str:
    """A parent that has the tags of thoughts, which no adapter can add."""
    words = ("stage=midtrain", "init_from=whole", "stage.max_steps=1", "stage.new_tokens=['<think>','</think>']")
    lifecycle(place, "run=thinks", *words, "validation.every_steps=null", "guard=null")
    return "thinks"


def check(place: Path, name: str, words: tuple[str, ...]) -> Path:
    """The law at the top, for one stage."""
    given = {word.partition("=")[0]: word for word in (*LORA, *words)}
    typed = [*given.values(), f"init_from={thinking(place) if name == 'reason' else 'whole'}"]
    run, again = place / f"outputs/{name}", place / f"outputs/{name}-again"
    lifecycle(place, f"run={name}", *typed)
    told = facts(run)
    saved = load_file(step_folder(run, 2) / "weights.safetensors")
    assert told["adapter"]["parameters"] == sum(weight.numel() for weight in saved.values())
    assert [loss for loss in metrics(run)["train/grad_norm"] if loss]
    cut_back(run, again, 2)
    shutil.rmtree(again / "adapter")
    lifecycle(place, f"run={name}-again", *typed)
    assert facts(again)["resumed"] == 1
    assert_same_run(again, run)
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (run / "adapter" / file).read_bytes() == (again / "adapter" / file).read_bytes(), file
    check_exports(run)
    return run


@torch.no_grad()
def check_exports(run: Path) -> None:
    """`peft` on what the adapter says is its base, the merged export, and ours from the last checkpoint: one model."""
    from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification

    found = find_parent(f"{run}@4")
    model, ids = Decoder(found.model), torch.randint(300, (1, 24), generator=torch.Generator().manual_seed(0))
    model.load_state_dict(found.weights)
    hidden = model(ids, torch.arange(24)[None])
    ours = model.logits(hidden) if model.score is None else model.scores(hidden[:, -1])[:, None]
    with_adapter: Any
    plain: Any
    if model.score is None:
        with_adapter = AutoPeftModelForCausalLM.from_pretrained(str(run / "adapter"))
        plain = AutoModelForCausalLM.from_pretrained(run / "model")
    else:
        with_adapter = AutoPeftModelForSequenceClassification.from_pretrained(str(run / "adapter"), num_labels=1)
        plain = AutoModelForSequenceClassification.from_pretrained(run / "model")
    base = find_parent(facts(run)["parent"]["path"]).weights
    assert not torch.equal(base["blocks.0.attention.q_proj.weight"], found.weights["blocks.0.attention.q_proj.weight"])
    for other in (with_adapter, plain):
        torch.testing.assert_close(other(input_ids=ids).logits, ours, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(found.weights[name], weight) for name, weight in find_parent(str(run)).weights.items())


@pytest.mark.parametrize("name", STAGES)
def test_an_adapter_of_every_stage_is_resumed_and_read_by_peft(name: str, place: Path) -> None:
    check(place, name, STAGES[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_so_is_one_of_every_form_of_them(name: str, place: Path) -> None:
    check(place, name, OTHERS[name])


def test_a_reward_model_of_an_adapter_scores_a_padded_batch_and_goes_on_as_one(place: Path) -> None:
    """Beside a base that predicts tokens, and beside one that scores."""
    from peft import AutoPeftModelForSequenceClassification

    words = (*LORA, *STAGES["reward"])
    if not (place / "outputs/reward").exists():
        lifecycle(place, "run=reward", *words, "init_from=whole")
    lifecycle(place, "run=second", *words, "init_from=reward", "adapter.merge=false", "stage.optimizer.lr=1e-4")
    run = place / "outputs/second"
    assert not (run / "model").exists() and find_parent(str(run)).model.score_head
    said = json.loads((run / "samples.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(run / "adapter")
    scores = AutoPeftModelForSequenceClassification.from_pretrained(
        str(run / "adapter"), num_labels=1, pad_token_id=tokenizer.pad_token_id
    )
    texts = [one["prompt"] + one["completion"] for one in said]
    batch = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
    batch.pop("token_type_ids", None)
    with torch.no_grad():
        assert scores(**batch).logits[:, 0].tolist() == pytest.approx([one["score"] for one in said], abs=1e-5)
    done = lifecycle(place, "run=refused", "stage=midtrain", "init_from=second", code=2)
    assert "is a reward model" in " ".join(done.err.split())


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_ranks_train_the_same_score_and_adapter(strategy: str, place: Path) -> None:
    words, run = (*LORA, *STAGES["reward"], "init_from=whole"), place / f"outputs/{strategy}"
    if not (place / "outputs/reward").exists():
        lifecycle(place, "run=reward", *words)
    lifecycle(place, f"run={strategy}", *words, "hardware.devices=2", f"hardware.strategy={strategy}", cold=True)
    here, there = (
        load_file(place / f"outputs/{name}/adapter/adapter_model.safetensors") for name in ("reward", strategy)
    )
    assert here.keys() == there.keys()
    for name, weight in here.items():
        torch.testing.assert_close(weight, there[name], rtol=1e-3, atol=2e-4, msg=name)
    check_exports(run)
