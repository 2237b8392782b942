"""What a teacher thinks of what its students write, beside what the students think of held-out text.

    python benchmarks/studies/judged.py TEACHER STUDENT...           runs of one kind end in _s and their seed

Each student answers the same held-out questions at temperature 1. In nats a token, the end of the answer included:

    held-out loss    -log p(label) of the student on the answers of the data
    reverse KL       KL(student, teacher) at each token of its own answers, over the whole vocabulary
    teacher's nll    -log q of the tokens that it drew

Printed: mean and standard deviation over the seeds.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch

from lifecycle import config
from lifecycle.lineage.load_model import load_model
from lifecycle.lineage.parent import find_parent
from lifecycle.loggers import read_metrics
from lifecycle.model import Decoder
from lifecycle.rollout.engine import generate
from lifecycle.rollout.sampling.parameters import Sampling
from lifecycle.runs.data import load_data
from lifecycle.runs.plan import make_plan
from lifecycle.tokenizer.tokenizer import Tokenizer

QUESTIONS = 200
SEED = 17
COLUMNS = ("held-out loss", "reverse KL", "teacher's nll")


def main(teacher: str, *students: str) -> None:
    """Judge the runs, and print the table."""
    cfg = config.compose(
        ["stage=distill", f"stage.teacher={teacher}", f"init_from={teacher}", "data=offline/questions"]
        + ["stage.sequence_length=256", "stage.max_steps=1", "hardware.precision=fp32"]
    )
    plan = make_plan(cfg)
    data, _ = load_data(plan)
    prompts = [one.prompt.tolist() for _, one in data.questions(QUESTIONS)]
    judge = load_model(find_parent(teacher), plan.hardware)
    found: dict[str, list[list[float]]] = defaultdict(list)
    for student in students:
        loss = [value for value in read_metrics(Path(student) / "metrics.csv")["valid/loss"] if value is not None][-1]
        told = judged(load_model(find_parent(student), plan.hardware), judge, prompts, data.tokenizer)
        found[re.sub(r"_s\d+$", "", Path(student).name)].append([loss, *told])
    print("| student | " + " | ".join(COLUMNS) + " |\n" + "| --- |" + " ---: |" * len(COLUMNS))
    for name, rows in found.items():
        seeds = torch.tensor(rows, dtype=torch.float64, device="cpu")
        spread = seeds.std(0, correction=1).tolist() if len(rows) > 1 else [0.0] * len(COLUMNS)
        cells = [f"{mean:.3f} ± {sd:.3f}" for mean, sd in zip(seeds.mean(0).tolist(), spread, strict=True)]
        print(f"| {name} | " + " | ".join(cells) + " |")


@torch.no_grad()
def judged(
    student: Decoder, teacher: Decoder, prompts: Sequence[list[int]], tokenizer: Tokenizer
) -> tuple[float, float]:
    """Reverse KL and the teacher's nll of a token that the student writes."""
    banned = tuple(range(tokenizer.vocab_size, student.config.vocab))
    sampling = Sampling(max_new_tokens=64, temperature=1.0, stop_ids=tokenizer.end_ids, banned_ids=banned)
    rollout = generate(student, prompts, sampling, seed=SEED)
    apart = surprise = 0.0
    for n, prompt in enumerate(prompts):
        ids = torch.tensor([*prompt, *rollout.completion(n)], device="cpu")
        logp, logq = (_log_softmax(model, ids, tokenizer.vocab_size)[len(prompt) - 1 :] for model in (student, teacher))
        apart += float((logp.exp() * (logp - logq)).sum())
        surprise -= float(logq.gather(1, ids[len(prompt) :, None]).sum())
    tokens = int(rollout.length.sum())
    return apart / tokens, surprise / tokens


def _log_softmax(model: Decoder, ids: torch.Tensor, vocab: int) -> torch.Tensor:
    """(n - 1, vocab) fp64: what follows each token but the last, among tokens that can be drawn."""
    hidden = model(ids[None, :-1], torch.arange(len(ids) - 1, device="cpu")[None])[0]
    return (hidden @ model.head_weight[:vocab].T).double().log_softmax(-1)


if __name__ == "__main__":
    main(*sys.argv[1:])
