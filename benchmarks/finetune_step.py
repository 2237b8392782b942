"""Fine-tuning speed of one model (8 x 384, 17.3M parameters, vocabulary 8,192): SFT and DPO beside TRL.

    python -m benchmarks.finetune_step --peers-python PATH       PATH: a Python that has trl

Conversations of one question and one answer, lengths log-uniform (10 to 60 and 20 to 180 words of Python's own
documentation), in one chat template and one tokenizer for all. About 4,096 positions a step: SFT 8 packed rows of 512,
DPO 8 pairs. Both sides count what they computed on: `tokens_per_s` without padding, `trained_per_s` those with a label,
`pairs_per_s` for DPO. AdamW, clip 1.0.

ours_*   `python -m lifecycle stage=sft|dpo` as a user types it, data read, packed and logged; `auto`: out of the box
trl_*    its SFTTrainer (packed best-fit; padding-free; padded, its default) and DPOTrainer (a second
         model; log-probabilities made before)
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import machine, main, peak_mb, spread, undisturbed
from benchmarks.conversations import conversations, counting, trainer_keys
from benchmarks.reference import export_with_tokenizer

INPUTS = "LIFECYCLE_FINETUNE_INPUTS"
"""The folder that both sides read: `model/`, a Hugging Face folder, `chat.jsonl` and `pairs.jsonl`."""

STEPS, WARM, LENGTH, ROWS, PAIRS = 4, 4, 512, 8, 8
CONVERSATIONS = 4000

PRECISIONS = ("fp32", "bf16")
VARIANTS = {
    **{f"ours_sft_{name}": "ours" for name in ("auto", *PRECISIONS)},
    **{f"trl_sft_packed_{name}": "peers" for name in PRECISIONS},
    **{f"trl_sft_{form}_{name}": "peers" for form in ("padding_free", "padded") for name in PRECISIONS},
    **{f"ours_dpo_{name}": "ours" for name in ("auto", *PRECISIONS)},
    **{f"ours_dpo_cached_{name}": "ours" for name in PRECISIONS},
    **{f"trl_dpo_{name}": "peers" for name in PRECISIONS},
    **{f"trl_dpo_precomputed_{name}": "peers" for name in PRECISIONS},
}


def make_inputs(folder: Path) -> None:
    """A model with fresh weights and a trained tokenizer, conversations, and pairs."""
    texts, _ = export_with_tokenizer(folder / "model")
    words = " ".join(texts).split()
    with (folder / "chat.jsonl").open("w") as chat, (folder / "pairs.jsonl").open("w") as pairs:
        for parts in conversations(words, CONVERSATIONS):
            asked, better, worse = map(" ".join, parts)
            turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": better}]
            chat.write(json.dumps({"messages": turns}) + "\n")
            sides = [[{"role": "assistant", "content": side}] for side in (better, worse)]
            pair = {"prompt": turns[:1], "chosen": sides[0], "rejected": sides[1]}
            pairs.write(json.dumps(pair) + "\n")


def read(name: str) -> list[dict[str, Any]]:
    """The rows of one input."""
    return [json.loads(line) for line in Path(os.environ[INPUTS], name).read_text().splitlines()]


# -- ours


def ours(stage: str, chosen: str, runs: int) -> dict[str, Any]:
    """The command line's own run: rates from what metrics.csv says between logged steps."""
    inputs, steps = Path(os.environ[INPUTS]), WARM + runs * STEPS
    reference, _, precision = chosen.rpartition("_")
    rows = inputs / ("chat.jsonl" if stage == "sft" else "pairs.jsonl")
    given = [
        f"stage={stage}",
        f"init_from={inputs / 'model'}",
        "data=files",
        f"data.sources.mine.path={rows}",
        "data.sources.mine.validation=null",
        "stage.optimizer.lr=1e-4",
        f"stage.max_steps={steps}",
        f"stage.sequence_length={LENGTH if stage == 'sft' else 2 * LENGTH}",
        f"stage.global_batch_tokens={ROWS * LENGTH}",
        *undisturbed(STEPS),
        *([] if precision == "auto" else [f"hardware.precision={precision}", "hardware.compile=false"]),
        *([f"stage.reference={reference}"] if reference else []),
    ]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "lifecycle", "run=bench", *given]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr[-500:]}")
        run = Path(folder, "outputs", "bench")
        with (run / "metrics.csv").open() as file:
            logged = [row for row in csv.DictReader(file) if row.get("perf/step_s")]
        ledger = json.loads((run / "ledger.json").read_text())
    return rates(logged, ledger, stage)


def rates(logged: Sequence[Mapping[str, str]], ledger: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """Trained tokens a second between logged steps; all tokens by their number beside the trained ones in the run."""
    share = ledger["tokens"] / float(logged[-1]["tokens"])
    trained = [
        (float(row["tokens"]) - float(before["tokens"])) / (STEPS * float(row["perf/step_s"]))
        for before, row in zip(logged[WARM // STEPS - 1 :], logged[WARM // STEPS :], strict=False)
    ]
    found: dict[str, Any] = {
        "tokens_per_s": spread([rate * share for rate in trained]),
        "trained_per_s": spread(trained),
        "peak_rss_mb": round(float(logged[-1]["perf/memory_gb"]) * 1024),
    }
    if stage == "dpo":
        found["pairs_per_s"] = spread([rate * share / tokens_of_a_pair() for rate in trained], digits=2)
    return found


def tokens_of_a_pair() -> float:
    """The mean over all pairs, both sides with their prompt."""
    tokenizer = hf_tokenizer()
    texts = [
        tokenizer.apply_chat_template([*row["prompt"], *row[side]], tokenize=False)
        for row in read("pairs.jsonl")
        for side in ("chosen", "rejected")
    ]
    return 2 * sum(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"])) / len(texts)


# -- TRL


def trl(stage: str, kind: str, runs: int) -> dict[str, Any]:
    """Its trainer on the same rows; what its collator makes is counted."""
    from transformers import TrainerCallback

    form, _, precision = kind.rpartition("_")
    total = WARM + runs * STEPS
    marks: list[float] = []
    counts: list[tuple[int, int]] = []

    class Clock(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            counts.clear()  # of the pass that computes a reference's log-probabilities

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            marks.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as out:
        arguments = trl_arguments(out, total, precision)
        trainer = sft_trainer(form, arguments) if stage == "sft" else dpo_trainer(form, arguments)
        trainer.add_callback(Clock())
        trainer.data_collator = counting(trainer.data_collator, counts)
        trainer.train()
    blocks = [(WARM + block * STEPS, WARM + (block + 1) * STEPS) for block in range(runs)]
    seconds = [marks[last - 1] - marks[first - 1] for first, last in blocks]
    sums = [[sum(part) for part in zip(*counts[first:last], strict=True)] for first, last in blocks]
    found: dict[str, Any] = {
        "tokens_per_s": spread([present / taken for (present, _), taken in zip(sums, seconds, strict=True)]),
        "trained_per_s": spread([trained / taken for (_, trained), taken in zip(sums, seconds, strict=True)]),
        "peak_rss_mb": round(peak_mb()),
    }
    if stage == "dpo":
        found["pairs_per_s"] = spread([PAIRS * STEPS / taken for taken in seconds], digits=2)
    return found


def trl_arguments(out: str, steps: int, precision: str) -> dict[str, Any]:
    """What its trainers share with ours, as arguments of their configs."""
    own = dict(learning_rate=1e-4, use_cpu=True, bf16=precision == "bf16", max_length=LENGTH)
    return trainer_keys(out, steps, ROWS) | own


def sft_trainer(form: str, arguments: Mapping[str, Any]) -> Any:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    packed = form == "packed"
    forms: dict[str, dict[str, Any]]
    forms = {"packed": {"packing": True}, "padding_free": {"padding_free": True, "max_length": None}, "padded": {}}
    # a packed row holds some four conversations
    data = Dataset.from_list(read("chat.jsonl")[: ROWS * arguments["max_steps"] * (8 if packed else 1)])
    config = SFTConfig(**{**arguments, **forms[form], "assistant_only_loss": True})
    return SFTTrainer(model=hf_model(), args=config, train_dataset=data, processing_class=hf_tokenizer())


def dpo_trainer(form: str, arguments: Mapping[str, Any]) -> Any:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    data = Dataset.from_list(read("pairs.jsonl")[: PAIRS * arguments["max_steps"]])
    config = DPOConfig(**{**arguments, "precompute_ref_log_probs": form == "precomputed"})
    models = {"model": hf_model(), "ref_model": hf_model()}
    return DPOTrainer(**models, args=config, train_dataset=data, processing_class=hf_tokenizer())


def hf_model() -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(os.cpu_count() or 1)
    folder = str(Path(os.environ[INPUTS], "model"))
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")


def hf_tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(Path(os.environ[INPUTS], "model")))


def measure(variant: str, runs: int) -> dict[str, Any]:
    who, stage, kind = variant.split("_", 2)
    return ours(stage, kind, runs) if who == "ours" else trl(stage, kind if "_" in kind else f"_{kind}", runs)


if __name__ == "__main__":
    native = machine()["native_bf16"]  # emulated bf16 takes minutes a step and says nothing
    kept = {name: who for name, who in VARIANTS.items() if native or not name.endswith("bf16")}
    with tempfile.TemporaryDirectory() as made:
        if INPUTS not in os.environ:
            make_inputs(Path(made))
            os.environ[INPUTS] = made
        main("benchmarks.finetune_step", kept, measure, __doc__ or "")
