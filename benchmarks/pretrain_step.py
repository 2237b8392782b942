"""Training speed of one model (8 x 384, 17.3M parameters, vocabulary 8,192, rows of 512, 8 a step, AdamW, clip 1.0).

    python -m benchmarks.pretrain_step --peers-python PATH

ours_run_*   `python -m lifecycle` as a user types it: real text, tokenised and packed while it trains, document masks,
             Trainer, logging, a validation and a checkpoint at the end; positions a second between logged steps
ours_bare_*  the same model and loss on the same packed rows in a bare loop: what the Trainer path costs
hf_*, litgpt_*  the peers on random rows of one document each: bare loop, compiled, their trainers

`ours_run_auto` is hardware=cpu out of the box. Timed blocks of 3 steps after 2 untimed ones (compiled: 3).
`first_step_s` is the first step, compilation included. The peers come from the environment of `--peers-python`.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import machine, main, peak_mb, spread, undisturbed
from benchmarks.reference import MODEL, VOCABULARY, hf_config, litgpt_model, our_config

ROWS, LENGTH, STEPS = 8, 512, 3
OURS = ("fp32", "bf16", "compile_fp32", "compile_bf16")
VARIANTS = {
    "ours_run_auto": "ours",
    **{f"ours_run_{name}": "ours" for name in OURS},
    **{f"ours_bare_{name}": "ours" for name in OURS},
    **{f"hf_bare_{name}": "peers" for name in OURS},
    "hf_trainer_fp32": "peers",
    "litgpt_bare_fp32": "peers",
    "litgpt_bare_bf16": "peers",
    "litgpt_bare_compile_fp32": "peers",
}


def settings() -> list[str]:
    """What turns the default command into this benchmark's shapes."""
    return [
        *(f"model.{key}={value}" for key, value in MODEL.items()),
        f"data.tokenizer.vocab_size={VOCABULARY}",
        f"stage.sequence_length={LENGTH}",
        f"stage.global_batch_tokens={ROWS * LENGTH}",
        *undisturbed(STEPS),
    ]


def ours_run(name: str, runs: int) -> dict[str, Any]:
    """The command line's own run; rates from the time between logged steps."""
    warm = 2 * STEPS
    steps = warm + runs * STEPS
    # The real run is long: auto must choose as for a long run, and the timed part of it is its beginning.
    chosen = {
        "auto": [],
        **{n: [f"hardware.precision={n[-4:]}", f"hardware.compile={'compile' in n}"] for n in OURS},
    }[name]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "lifecycle", "run=bench", *settings(), *chosen, f"stage.max_steps={steps}"]
        if name == "auto":
            command[-1] = "stage.max_tokens=200_000_000"
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        metrics = Path(folder, "outputs", "bench", "metrics.csv")
        rows: list[dict[str, str]] = []
        while len(rows) < 2 + runs and (process.poll() is None or len(rows) == 0):
            time.sleep(2)
            if metrics.exists():
                with metrics.open() as file:
                    rows = [row for row in csv.DictReader(file) if row.get("perf/step_s")]
            if process.poll() not in (None, 0):
                raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
        process.kill()
        process.wait()
    timed = rows[2 : 2 + runs]
    return {
        "tokens_per_s": spread([ROWS * LENGTH / float(row["perf/step_s"]) for row in timed]),
        "peak_rss_mb": round(float(timed[-1]["perf/memory_gb"]) * 1024),
        "first_block_s": round(float(rows[0]["perf/step_s"]) * STEPS, 2),
    }


def packed() -> Iterator[Any]:
    """Packed rows of the run's own data, as the stage gets them."""
    from lifecycle import config
    from lifecycle.data.corpus import Corpus
    from lifecycle.data.mixture.batch_plan import phases_of
    from lifecycle.data.module import DataModule
    from lifecycle.duration import Limits

    cfg = config.compose([*settings(), "stage.max_steps=1000"])
    config.check(cfg)
    limits: Limits = config.build_limits(cfg.stage)
    data = DataModule(
        corpus=Corpus(config.build(cfg.data), view="text", seed=1, processes=0, folder=None),
        steps=1000,
        phases=phases_of(limits.timeline(int, lambda _: 0.0).segments),
        last=1000,
        row_length=limits.sequence_length,
        micro_batch_tokens=4096,
        validation_tokens=0,
        workers=0,
    )
    for step in data.train_dataloader():
        yield step.micro[0]


def ours_bare(name: str, runs: int) -> dict[str, Any]:
    from lifecycle.losses import linear_cross_entropy
    from lifecycle.model import DocumentMask, build, compile_model
    from lifecycle.optim import clip_gradients

    model = build(our_config(), seed=0)
    compiled = "compile" in name
    if compiled:
        compile_model(model, unit="model")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    data = packed()
    batches = [next(data) for _ in range(3 + runs * STEPS)]

    def step(index: int) -> Tensor:
        batch = batches[index]
        documents = None if batch.single else DocumentMask.from_ids(batch.document_ids, kernel="sdpa")
        with torch.autocast("cpu", torch.bfloat16, enabled=name.endswith("bf16")):
            hidden = model(batch.input_ids, batch.position_ids, documents)
            loss, _ = linear_cross_entropy(
                hidden.flatten(0, 1), model.head_weight, batch.labels.flatten(), compiled=compiled
            )
        (loss / batch.trained.sum()).backward()
        clip_gradients(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return timed(step, runs, warm=3)


def random_rows(count: int, length: int = LENGTH) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, VOCABULARY, (ROWS, length), generator=generator) for _ in range(count)]


def hf_bare(name: str, runs: int) -> dict[str, Any]:
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(hf_config(use_cache=False))
    run = torch.compile(model) if "compile" in name else model
    batches = random_rows(3 + runs * STEPS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step(index: int) -> Tensor:
        rows = batches[index]
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=name.endswith("bf16")):
            loss = run(input_ids=rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    return timed(step, runs, warm=3)


def hf_trainer(name: str, runs: int) -> dict[str, Any]:
    from transformers import LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

    torch.manual_seed(0)
    steps = 2 + runs * STEPS
    data = [{"input_ids": row, "labels": row} for batch in random_rows(steps) for row in batch]
    marks: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            marks.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=ROWS,
            max_steps=steps,
            learning_rate=3e-4,
            adam_beta2=0.95,
            weight_decay=0.1,
            max_grad_norm=1.0,
            logging_steps=1000,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            optim="adamw_torch_fused",
            lr_scheduler_type="constant",
            disable_tqdm=True,
        )
        model = LlamaForCausalLM(hf_config(use_cache=False))
        Trainer(model=model, args=arguments, train_dataset=data, callbacks=[Clock()]).train()
    ends = [marks[1 + block * STEPS] for block in range(runs + 1)]
    rates = [ROWS * LENGTH * STEPS / (after - before) for before, after in zip(ends, ends[1:], strict=False)]
    return {"tokens_per_s": spread(rates), "peak_rss_mb": round(peak_mb())}


def litgpt_bare(name: str, runs: int) -> dict[str, Any]:
    from torch.nn import functional as F

    model = litgpt_model(block_size=LENGTH)
    run = torch.compile(model) if "compile" in name else model
    batches = random_rows(3 + runs * STEPS, LENGTH + 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step(index: int) -> Tensor:
        rows = batches[index]
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=name.endswith("bf16")):
            logits = run(rows[:, :-1])
            loss = F.cross_entropy(logits.reshape(-1, VOCABULARY).float(), rows[:, 1:].reshape(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    return timed(step, runs, warm=3)


def timed(step: Callable[[int], Tensor], runs: int, *, warm: int, rows: int = ROWS) -> dict[str, Any]:
    """Positions a second over `runs` blocks, after `warm` untimed steps."""
    started = time.perf_counter()
    float(step(0))
    first = time.perf_counter() - started
    for index in range(1, warm):
        step(index)
    rates = []
    for block in range(runs):
        started = time.perf_counter()
        for index in range(warm + block * STEPS, warm + (block + 1) * STEPS):
            last = step(index)
        float(last)
        rates.append(rows * LENGTH * STEPS / (time.perf_counter() - started))
    return {"tokens_per_s": spread(rates), "peak_rss_mb": round(peak_mb()), "first_step_s": round(first, 2)}


def measure(variant: str, runs: int) -> dict[str, Any]:
    torch.set_num_threads(os.cpu_count() or 1)
    kinds = {"ours_run": ours_run, "ours_bare": ours_bare, "hf_bare": hf_bare, "hf_trainer": hf_trainer}
    for kind, function in {**kinds, "litgpt_bare": litgpt_bare}.items():
        if variant.startswith(kind):
            return function(variant.removeprefix(f"{kind}_"), runs)
    raise ValueError(variant)


if __name__ == "__main__":
    native = machine()["native_bf16"]  # emulated bf16 takes minutes a step and says nothing
    kept = {name: who for name, who in VARIANTS.items() if native or not name.endswith("bf16")}
    main("benchmarks.pretrain_step", kept, measure, __doc__ or "")
