"""The results of a run: ledger, lineage, exported model, samples, baselines, report."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from lifecycle.checkpoint import list_committed, step_of
from lifecycle.checkpoint.weights import load_weights
from lifecycle.data.clean.contamination_report import write_row_reports
from lifecycle.data.module import DataModule
from lifecycle.data.survey.ngram_baselines import baselines
from lifecycle.data.validation import described
from lifecycle.errors import UserError
from lifecycle.lineage.parent import Parent, history
from lifecycle.lineage.run_folder import RunFolder
from lifecycle.model import Decoder
from lifecycle.model.adapters import base_of, factors_of, merged
from lifecycle.model.huggingface import export
from lifecycle.model.huggingface.export_folder import generation_config, write_padding
from lifecycle.model.huggingface.lazy_tensors import GENERATION
from lifecycle.model.huggingface.peft_folder import CONFIG as ADAPTER
from lifecycle.model.huggingface.peft_folder import write_adapter
from lifecycle.model.layers.initial import SCORE, ending_in
from lifecycle.model.lora import Adapter
from lifecycle.report.write import terminal_summary, write_report
from lifecycle.rollout.engine import generate
from lifecycle.rollout.sampling.parameters import Sampling
from lifecycle.runs.answers.given import answers, right_by_rewards
from lifecycle.runs.answers.scores import held_out_scores
from lifecycle.runs.begin_end import RunResult, result_of
from lifecycle.runs.plan import RunPlan
from lifecycle.stages.base import Stage
from lifecycle.system import atomic

PROMPTS_A_DOMAIN = 2
ANSWERS_A_DOMAIN = 4
PROMPT_TOKENS = 16
SAMPLE_TOKENS = 64


def finish(plan: RunPlan, stage: Stage, data: DataModule) -> RunResult:
    """Write the results of a run that trained and return its outcome; every rank must call, rank 0 writes.

    Raises on rank 0 the error that ended its data early, and UserError where a guard found no checkpoint good enough.
    """
    folder, done = plan.folder, data.is_last(stage.global_step)
    restored = stage.guard.restore_step
    over = done if restored is None else restored > 0
    write_results(plan, stage, data, finished=over)
    fault = data.fault()
    status: Literal["finished", "stopped"] = "finished" if over else "stopped"
    if not stage.trainer.is_global_zero:
        return result_of(folder, status)
    if restored == 0:
        raise UserError(
            f"the guard ended the run at step {stage.global_step}: it forgets more than "
            f"guard.stop={plan.config.guard.stop:g}, and no checkpoint was below: the parent is still the better model "
            f"({folder.path / 'forgetting.json'} has the history). Try more replay (stage.replay.share) or a lower "
            "rate (stage.peak_ratio)"
        )
    if fault is not None:
        raise fault
    if not over:
        print(f"stopped after step {stage.global_step}, which is saved: the same command goes on", file=sys.stderr)
    return result_of(folder, status)


def write_results(plan: RunPlan, stage: Stage, data: DataModule, *, finished: bool) -> None:
    """Ledger, lineage, model, samples, baselines and report. A stopped run leaves ledger and lineage only."""
    folder, given = plan.folder, plan.config.export
    ledger, restored, best = data.ledger(), stage.guard.restore_step, stage.best
    weights = _weights(folder, stage) if finished else {}
    if not stage.trainer.is_global_zero:
        return
    _write_json(folder.path / "ledger.json", ledger)
    folder.update(
        status="running" if finished else "stopped",
        steps=stage.global_step,
        tokens=int(stage.meter.tokens),
        seconds=round(stage.meter.seconds, 3),
        result={"valid/loss": best.loss, "step": best.step} if best.step is not None else None,
        data=folder.lineage().get("data", {}) | _used(ledger, data),
        **({"restored": restored} if restored is not None else {}),
    )
    if not finished:
        write_row_reports(folder.path)
        return
    at = restored or stage.global_step
    stage.enter(at - 1)  # the phase of the restored step may have another base
    with torch.device("meta"):
        model = Decoder(stage.config)
    if plan.adapter is not None:
        weights = _write_adapter(plan, plan.adapter, weights, stage, data)
    model.load_state_dict(weights, assign=True)
    if plan.adapter is None or plan.adapter.merge:
        export(
            model,
            folder.path / "model",
            tokenizer=data.tokenizer,
            dtype=given.dtype,
            shard_gb=given.shard_gb,
            history=history(folder),
            generation=plan.generation,
        )
    _write_samples(plan, stage, model.to(stage.trainer.strategy.root_device).eval(), data, step=at)
    _write_json(folder.path / "baselines.json", baselines(data) if stage.measures is None else {})
    write_row_reports(folder.path)  # the baselines, too, read the rows
    folder.update(status="finished")  # not before: what a kill leaves out of the above is made at the next start
    write_report(folder.path)
    Console(soft_wrap=False).print(terminal_summary(folder.path))


def _write_samples(plan: RunPlan, stage: Stage, model: Decoder, data: DataModule, *, step: int) -> None:
    """samples.json, of what the model writes; or of what it says of held-out answers, and calibration.json."""
    folder = plan.folder.path
    if stage.ends_in_score:
        said, found = held_out_scores(model, data, step=step)
        _write_json(folder / "calibration.json", found)
    else:
        said = [*_answers(plan, stage, model, data, step), *samples(model, data, stage)]
    _write_json(folder / "samples.json", said)


def _weights(folder: RunFolder, stage: Stage) -> dict[str, Tensor]:
    """The state dict of the network as it was left; where a guard went back, as it was then. Of an adapted one, whose
    checkpoints hold the adapter alone, with the frozen weights. Empty but on rank 0."""
    if not stage.guard.restore_step:
        return full_weights(stage)
    frozen = full_weights(stage) if stage.network.adapter is not None else {}
    return {**frozen, **restored_weights(folder, stage)}


def _write_adapter(
    plan: RunPlan, adapter: Adapter, weights: Mapping[str, Tensor], stage: Stage, data: DataModule
) -> dict[str, Tensor]:
    """Write adapter/, with the files of the tokenizer and of sampling. Returns the weights of the plain network with
    the adapter in them: those of the parent, whole, where the run held them in 4 bits."""
    model, parent, folder = stage.config, plan.parent, plan.folder.path / "adapter"
    frozen = stage.setup_facts.parent
    assert parent is not None and frozen is not None
    found, score = factors_of(weights, model, adapter), weights.get(SCORE)
    with atomic.replace_files(folder, marker=ADAPTER, stale=()) as aside:
        data.tokenizer.save(aside)
        _write_json(aside / GENERATION, generation_config(data.tokenizer, plan.generation))
        base = _base_name(parent, merged=adapter.merge)
        if score is not None:
            write_padding(data.tokenizer, aside)
        write_adapter(aside, model, adapter, found, base=base, score=score)
    whole = base_of(weights) if adapter.bits is None else frozen.read()
    return merged(whole if score is None else ending_in(whole, score), found, adapter)


def _base_name(parent: Parent, *, merged: bool) -> str:
    """What `peft` loads before the adapter: a folder or a hub id. Says so where there is none."""
    if parent.commit is not None:
        return parent.name
    if (parent.folder / "config.json").is_file():
        return str(parent.folder.resolve())
    step = step_of(parent.folder)
    name = parent.name if step is None else f"{parent.name}@{step}"
    if not merged:
        print(
            f"the adapter sits on {name}, of which there is no Hugging Face folder: a run can go on from it, but peft "
            "has nothing to load (adapter.merge=true would write the whole model)",
            file=sys.stderr,
        )
    return name


def restored_weights(folder: RunFolder, stage: Stage) -> dict[str, Tensor]:
    """The weights of the checkpoint that a guard ended the run with, on every rank."""
    step = stage.guard.restore_step
    path = next((path for path in list_committed(folder.checkpoints) if step_of(path) == step), None)
    if path is None:
        raise UserError(
            f"the guard ended the run {folder.path} with the checkpoint of step {step}, which is not in "
            f"{folder.checkpoints} any more: put it back and start the same command again, or take another checkpoint "
            f"(init_from={folder.path.name}@STEP)"
        )
    state = load_weights(path).items()
    return {name.removeprefix("model."): value.float() for name, value in state if name.startswith("model.")}


def full_weights(stage: Stage) -> dict[str, Tensor]:
    """The whole weights on the CPU (rank 0; empty on the others), gathered from the shards where there are any."""
    stage.network.to(stage.trainer.strategy.root_device)  # where the ranks can talk: Lightning leaves it on the CPU
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(stage.network, options=options)
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _answers(plan: RunPlan, stage: Stage, model: Decoder, data: DataModule, step: int) -> list[dict[str, Any]]:
    measured = plan.config.validation
    asked = data.questions(min(measured.answers or 0, ANSWERS_A_DOMAIN))
    most, right = measured.answer_tokens, right_by_rewards(stage)
    return answers(model, asked, data.tokenizer, most_tokens=most, step=step, right=right)


def samples(model: Decoder, data: DataModule, stage: Stage) -> list[dict[str, Any]]:
    """Continuations of the beginnings of held-out items, but for conversations, which `answers` are given to: the
    schema of `samples.json`."""
    tokenizer = data.tokenizer
    chosen = [
        (domain, prompt)
        for domain, held in data.held_out.items()
        if not held.questions
        for prompt in held.beginnings(tokenizer.bos_id, PROMPT_TOKENS)[:PROMPTS_A_DOMAIN]
    ]
    room = stage.config.max_positions - 1
    domains, prompts = [domain for domain, _ in chosen], [prompt[:room] for _, prompt in chosen]
    special = set(range(tokenizer.vocab_size, stage.config.vocab)) | {tokenizer.bos_id, tokenizer.pad_id}
    sampling = Sampling(
        max_new_tokens=SAMPLE_TOKENS,
        temperature=0.8,
        top_k=50,
        stop_ids=(tokenizer.eos_id,),
        banned_ids=tuple(sorted(special - {tokenizer.eos_id})),
    )
    rollout = generate(model, prompts, sampling, seed=stage.setup_facts.seed, tokenizer=tokenizer)
    return [
        {
            "prompt": tokenizer.decode(prompt[prompt[0] == tokenizer.bos_id :]),
            "completion": completion,
            "step": stage.global_step,
            "domain": domain,
        }
        for prompt, completion, domain in zip(prompts, rollout.text, domains, strict=True)
    ]


def _used(ledger: Mapping[str, Any], data: DataModule) -> dict[str, Any]:
    return {
        "sources": {
            name: {"tokens": row["seen_tokens"], "epochs": row["epochs"]} for name, row in ledger["sources"].items()
        },
        "validation": described(data.held_out),
    }


def _write_json(path: Path, content: Any) -> None:
    atomic.write(path, json.dumps(content, indent=1, ensure_ascii=False))
