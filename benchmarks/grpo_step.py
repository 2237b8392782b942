"""Speed of a GRPO step of one model (8 x 384, 17.3M parameters, vocabulary 8,192) beside TRL.

    python -m benchmarks.grpo_step --peers-python PATH       PATH: a Python that has trl

4 prompts of 64 tokens, 8 completions each of up to 64 new ones, temperature 1, one update, no reference (`kl`: one); a
reward for the number of words on both sides, which differs within every group; AdamW, clip 1.0. `step_s`: of the whole
step; `sampling_s`, `grading_s` inside it.

ours_*      `python -m lifecycle stage=grpo` as a user types it; `auto`: out of the box
ours_ppo_*  stage=ppo with a score on the policy as its critic: values, advantages by token, and the loss of both
ours_N      one prompt more often: 4 prompts x N samples, by which the cost of a prompt must not grow
trl_*       its GRPOTrainer with transformers' generate; fp32 or bf16
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import machine, main, peak_mb, spread, undisturbed
from benchmarks.conversations import trainer_keys
from benchmarks.reference import export_with_tokenizer

INPUTS = "LIFECYCLE_GRPO_INPUTS"
"""The folder that both sides read: `model/`, a Hugging Face folder, and `prompts.jsonl`."""

STEPS, WARM, PROMPTS, SAMPLES, LENGTH, NEW = 2, 2, 4, 8, 64, 64
WORDS = 40
"""At which a completion has its full reward: rewards differ within every group, so that no sample is without work."""
VARIANTS = {
    **{f"ours_{name}": "ours" for name in ("auto", "fp32", "bf16", "kl_fp32", "ppo_fp32", "ppo_auto")},
    **{f"trl_{name}": "peers" for name in ("fp32", "bf16", "kl_fp32")},
    **{f"ours_{samples}_fp32": "ours" for samples in (1, 4, 16, 64)},
}


def make_inputs(folder: Path, config: Any = None) -> None:
    """A model with fresh weights, a trained tokenizer, and prompts of `LENGTH` of its tokens."""
    texts, tokenizer = export_with_tokenizer(folder / "model", config)
    ids = [int(i) for text in texts for i in tokenizer.encode_batch([text])[0]]
    with (folder / "prompts.jsonl").open("w") as file:
        for at in range(0, 400 * LENGTH, LENGTH):
            text = tokenizer.decode(ids[at : at + LENGTH])
            file.write(json.dumps({"prompt": text, "completion": "unknown"}) + "\n")


# -- ours


def keys(inputs: Path, *, prompts: int, samples: int, new: int, words: int) -> list[str]:
    """Of a command that trains the model of `inputs` on its prompts, as nothing else is done meanwhile."""
    return [
        f"init_from={inputs / 'model'}",
        "data=files",
        f"data.sources.mine.path={inputs / 'prompts.jsonl'}",
        "data.sources.mine.validation=null",
        "data.chat_template=none",
        "stage.rewards=length",
        f"stage.grading.target_words={words}",
        "stage.preflight.prompts=0",
        "stage.optimizer.lr=1e-5",
        "stage.max_epochs=null",
        f"stage.prompts_per_step={prompts}",
        f"stage.samples_per_prompt={samples}",
        f"stage.sequence_length={2 * LENGTH + new}",
        f"stage.sampling.max_new_tokens={new}",
        "stage.keep_rollouts=null",
    ]


def ours(kind: str, runs: int) -> dict[str, Any]:
    """The command line's own run: seconds of its steps from metrics.csv."""
    inputs, steps = Path(os.environ[INPUTS]), WARM + runs * STEPS
    precision = kind.rpartition("_")[2]
    samples = next((int(part) for part in kind.split("_") if part.isdigit()), SAMPLES)
    given = [
        f"stage={'ppo' if 'ppo' in kind else 'grpo'}",
        *keys(inputs, prompts=PROMPTS, samples=samples, new=NEW, words=WORDS),
        f"stage.max_steps={steps}",
        *undisturbed(STEPS),
        *(["stage.advantage=batch"] if samples == 1 else []),  # a sample alone is compared with those of other prompts
        *(["stage.kl.coefficient=0.04", "stage.kl.kind=k3"] if "kl" in kind else []),
        *([] if precision == "auto" else [f"hardware.precision={precision}", "hardware.compile=false"]),
    ]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "lifecycle", "run=bench", *given]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr[-500:]}")
        rows = metrics(Path(folder, "outputs/bench"))
    blocks = [row for row in rows if row.get("perf/step_s")][WARM // STEPS :]
    timed = rows[WARM:]
    return {
        "step_s": spread([float(row["perf/step_s"]) for row in blocks], digits=3),
        "sampling_s": round(mean(timed, "perf/sampling_s"), 3),
        "grading_s": round(mean(timed, "perf/grading_s"), 4),
        "completion": round(mean(timed, "rollout/length"), 1),
        "peak_rss_mb": round(float(blocks[-1]["perf/memory_gb"]) * 1024),
    }


def metrics(run: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv."""
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def mean(rows: Sequence[dict[str, str]], name: str) -> float:
    """Of a column, where it is there."""
    found = [float(row[name]) for row in rows if row.get(name)]
    return sum(found) / len(found)


# -- TRL


def trl(kind: str, runs: int) -> dict[str, Any]:
    """Its trainer on the same prompts; completions have their whole length."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(os.cpu_count() or 1)
    inputs, total, marks, sampled = Path(os.environ[INPUTS]), WARM + runs * STEPS, list[float](), list[float]()

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            marks.append(time.perf_counter())

    def reward(completions: Sequence[str], **rest: Any) -> list[float]:
        return [max(0.0, 1 - abs(len(text.split()) - WORDS) / WORDS) for text in completions]

    rows = [json.loads(line) for line in (inputs / "prompts.jsonl").read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(str(inputs / "model"))
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(str(inputs / "model"), dtype=torch.float32, attn_implementation="sdpa")
    with tempfile.TemporaryDirectory() as out:
        own = dict(
            learning_rate=1e-5,
            use_cpu=True,
            bf16=kind.endswith("bf16"),
            num_generations=SAMPLES,
            max_completion_length=NEW,
            temperature=1.0,
            top_k=0,
            beta=0.04 if "kl" in kind else 0.0,
            generation_kwargs={"min_new_tokens": NEW},
        )
        config = GRPOConfig(**{**trainer_keys(out, total, PROMPTS * SAMPLES), **own})
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=reward,
            args=config,
            train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in rows]),
            processing_class=tokenizer,
            callbacks=[Clock()],
        )
        generate = trainer._generate_single_turn

        def timed(*given: Any, **named: Any) -> Any:
            began = time.perf_counter()
            found = generate(*given, **named)
            sampled.append(time.perf_counter() - began)
            return found

        trainer._generate_single_turn = timed
        trainer.train()
    seconds = [(marks[WARM + (n + 1) * STEPS - 1] - marks[WARM + n * STEPS - 1]) / STEPS for n in range(runs)]
    return {
        "step_s": spread(seconds, digits=3),
        "sampling_s": round(sum(sampled[WARM:]) / len(sampled[WARM:]), 3),
        "peak_rss_mb": round(peak_mb()),
    }


def measure(variant: str, runs: int) -> dict[str, Any]:
    who, kind = variant.split("_", 1)
    return ours(kind, runs) if who == "ours" else trl(kind, runs)


if __name__ == "__main__":
    native = machine()["native_bf16"]  # emulated bf16 takes minutes a step and says nothing
    kept = {name: who for name, who in VARIANTS.items() if native or not name.endswith("bf16")}
    with tempfile.TemporaryDirectory() as made:
        if INPUTS not in os.environ:
            make_inputs(Path(made))
            os.environ[INPUTS] = made
        main("benchmarks.grpo_step", kept, measure, __doc__ or "")
