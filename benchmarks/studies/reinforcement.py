"""What reinforcement learning adds to few demonstrations: GRPO against more fine-tuning, against shuffled rewards, and
against PPO, RLOO and SPO at equal numbers of samples.

    python benchmarks/studies/reinforcement.py              every run, then the table and the picture
    python benchmarks/studies/reinforcement.py few_s42 ...  these runs alone, then what is there as table and picture

Runs go to outputs/reinforcement/. One that is finished is left alone, one that was stopped goes on. All are greedily
asked the same 1,000 expressions, which none is trained on. The start is the demo's second stage, which is run first.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from reinforcement_results import write

HERE = Path(__file__).parent
OUTPUTS = Path("outputs/reinforcement")
SEEDS = (42, 43, 44)
STEPS = 200  # of GRPO
TUNED = 300  # of more fine-tuning, which takes no less time
STEPS_OF_METHODS = 100  # in which each method, and the control, draws 25,600 samples

PLAIN = ["logger=csv", "hardware.compile=false", "hardware.precision=fp32", "hardware.workers=0"]
SIZE = ["stage.max_epochs=null", "stage.sequence_length=256", "validation.answer_tokens=24"]
DEMONSTRATED = [  # 600 expressions with their values: 13 passes and 8 more, each to a rate of 0
    *("stage=sft", "data=offline/expressions", "data.sources.expressions.path=python://demonstrations"),
    *("stage.optimizer.lr=1e-3", "stage.global_batch_tokens=2048", "validation.tokens=2048", *SIZE, *PLAIN),
]
WATCHED = [  # 495 of the prompts that are practised later say when fine-tuning has gone far enough
    "data.sources.expressions.validation=null",
    '+data.sources.asked={path: "python://expressions", format: messages, weight: 0, '
    "validation: {ratio: 0.05, seed: 42}, validation_tokens: 40000}",
    "validation.answers=500",
]
PRACTISED = [  # up to 10,000 other expressions, each with the value that its samples are marked by
    *("data=offline/expressions", "stage.sampling.max_new_tokens=24", "stage.slots=256", "stage.rewards=exact_match"),
    *("stage.optimizer.lr=1e-4", "stage.optimizer.grad_clip=null", "stage.normaliser=constant"),
    *("stage.keep_rollouts=50", *SIZE, *PLAIN),
]
GROUPS = ["stage.prompts_per_step=32", "stage.samples_per_prompt=8"]
VARYING = ["stage.varying_prompts=32"]  # a group whose samples are marked alike has no gradient: it is not computed
SINGLE = [  # 800 prompts: 6,400 samples start their trackers, and 100 x 192 follow
    *("data.sources.expressions.max_rows=800", "stage.prompts_per_step=256", "stage.chosen_per_step=192"),
]


def arguments(kind: str, seed: int) -> list[str]:
    """What a run is told."""
    start = f"init_from=reinforcement/few_s{seed}"
    practised = [start, *PRACTISED, "validation.answers=1000"]
    tuned = _steps(TUNED, measured=100)
    groups, short = [*practised, *GROUPS], _steps(STEPS_OF_METHODS, measured=50)
    kinds = {
        "begun": [*DEMONSTRATED, *WATCHED, "init_from=demo-midtrain", *_steps(160, measured=80)],
        "few": [*DEMONSTRATED, *WATCHED, f"init_from=reinforcement/begun_s{seed}", *_steps(100, measured=50)],
        "continued": [*DEMONSTRATED, start, "validation.answers=1000", *tuned],
        "gently": [*DEMONSTRATED, start, "stage.optimizer.lr=3e-4", "validation.answers=1000", *tuned],
        "grpo": ["stage=grpo", *groups, *VARYING, *_steps(STEPS, measured=100)],
        "shuffled": ["stage=grpo", *groups, *VARYING, *short],
        "grpo_short": ["stage=grpo", *groups, *VARYING, *short],
        "rloo": ["stage=rloo", *groups, *VARYING, *short],
        "ppo": ["stage=ppo", *groups, *short],
        "spo": ["stage=spo", *practised, *SINGLE, *short],
    }
    return [f"run=reinforcement/{kind}_s{seed}", f"seed={seed}", *kinds[kind]]


def _steps(steps: int, *, measured: int) -> list[str]:
    return [f"stage.max_steps={steps}", f"validation.every_steps={measured}", f"checkpoint.every_steps={measured}"]


def runs() -> list[str]:
    """All runs, those that decide most first."""
    first, then = ("begun", "few", "grpo", "continued"), ("gently", "shuffled", "grpo_short", "rloo", "ppo", "spo")
    return [f"{kind}_s{seed}" for kinds in (first, then) for seed in SEEDS for kind in kinds]


def take(name: str) -> None:
    """Run `name` to its end, and add the seconds of computing that it took to outputs/reinforcement/NAME.cpu.json."""
    kind, seed = name.rsplit("_s", 1)
    if status(OUTPUTS / name) == "finished":
        return
    start = [str(HERE / "shuffled_rewards.py")] if kind == "shuffled" else ["-m", "lifecycle"]
    before = _children()
    code = subprocess.run([sys.executable, *start, *arguments(kind, int(seed))]).returncode
    file = OUTPUTS / f"{name}.cpu.json"
    earlier = json.loads(file.read_text()) if file.exists() else 0.0
    OUTPUTS.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(round(earlier + _children() - before, 1)))
    if code:
        sys.exit(f"{name} ended with {code}; the same command goes on from its last checkpoint")


def status(run: Path) -> str | None:
    """What the run's own notes say of it; None: it never began."""
    notes = run / "run.json"
    return str(json.loads(notes.read_text())["status"]) if notes.exists() else None


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(names: Sequence[str]) -> None:
    """The runs, then what they show."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for stage in ("demo", "demo/midtrain"):
        if status(Path("outputs") / stage.replace("/", "-")) != "finished":
            subprocess.run([sys.executable, "-m", "lifecycle", f"experiment={stage}"], check=True)
    for name in names or runs():
        take(name)
    write(OUTPUTS)


if __name__ == "__main__":
    main(sys.argv[1:])
