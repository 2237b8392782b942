"""A run's folder as a real run leaves it: two domains, three sources, a falling loss, one incident of each kind."""

import json
import math
import random
from pathlib import Path

import pytest
import yaml

from lifecycle.loggers.csv_logger import CsvLogger

STEPS, TOKENS_PER_STEP = 400, 16_384
CONFIG = {
    "run": "demo",
    "seed": 42,
    "model": {"layers": 6, "width": 192, "heads": 6, "kv_heads": 2, "vocab_size": 4096},
    "stage": {
        "max_steps": STEPS,
        "max_tokens": None,
        "global_batch_tokens": TOKENS_PER_STEP,
        "sequence_length": 512,
        "optimizer": {"_target_": "lifecycle.optim.AdamW", "lr": 0.003},
        "schedule": {"name": "cosine"},
    },
    "hardware": {"precision": "auto", "compile": "auto"},
}
RUN = {
    "status": "finished",
    "stage": "pretrain",
    "steps": STEPS,
    "tokens": STEPS * TOKENS_PER_STEP,
    "seconds": 287.4,
    "parameters": 3_412_992,
    "resumed": 2,
    "damaged": ["checkpoints/step-00000200 (a file has another hash)"],
    "overrides": ["experiment=demo"],
    "choice": {
        "precision": "bf16",
        "compile": False,
        "reasons": [
            "precision bf16: measured 210 GFLOP/s against 95 in fp32, 2.2 x",
            "compile false: what finishes first",
        ],
        "peak_flops": 2.1e11,
        "peak_source": "best matrix product measured on this machine",
    },
    "versions": {"python": "3.12.3", "torch": "2.13.0", "lightning": "2.6.6"},
    "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": False},
    "device": "x86_64, 2 threads",
    "started": 1_790_000_000.0,
    "data": {
        "levels": {
            "topics": {
                "topics.level1-2": {"rows": 90, "bytes": 4000.0, "weight": {"0.0": 0.2, "0.5": 0.02}},
                "topics.level2-5": {"rows": 70, "bytes": 9000.0, "weight": {"0.0": 0.0, "0.5": 0.18}},
            }
        }
    },
}
BASELINES = {
    "prose": {"unigram": 812.4, "bigram": 141.9, "bytes_per_token": 3.31},
    "code": {"unigram": 390.2, "bigram": 61.7, "bytes_per_token": 2.87},
}
SAMPLES = [
    {
        "prompt": "The for statement",
        "completion": " is an early, unready model's words.",
        "step": 100,
        "domain": "prose",
    },
    {
        "prompt": "The for statement",
        "completion": " is used to iterate over the elements of a sequence.",
        "step": STEPS,
        "domain": "prose",
    },
    {
        "prompt": "def read_lines(",
        "completion": "path):\n    with open(path) as file:\n        return <list>(file)\n",
        "step": STEPS,
        "domain": "code",
    },
]


def _look(step: int, old: float, level: str, **decided: object) -> dict[str, object]:
    perplexity = {"old": 20 * (1 + old), "prose": 40 - step / 20}
    return {"step": step, "perplexity": perplexity, "forgetting": {"old": old}, "level": level, **decided}


FORGETTING = {
    "retained": ["old"],
    "measurements": [
        _look(0, 0.0, "fine"),
        _look(50, 0.12, "act", action="replay", share=0.0, to=0.1),
        _look(100, 0.15, "act", action="rate", share=0.1, to=0.5),
        _look(150, 0.08, "watch", advice=""),
    ],
}


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run. Tests that change it copy it first."""
    folder = tmp_path_factory.mktemp("outputs") / "demo"
    folder.mkdir()
    _metrics(folder)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    for name, content in {"run": RUN, "baselines": BASELINES, "samples": SAMPLES, "ledger": _ledger()}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    (folder / "forgetting.json").write_text(json.dumps(FORGETTING))
    (folder / "quarantine").mkdir()
    (folder / "quarantine" / "stdlib_code.jsonl").write_text('{"line": 3}\n{"line": 9}\n')
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    return folder


def _metrics(folder: Path) -> None:
    draw = random.Random(7)
    logger = CsvLogger(folder=folder, flush_rows=10_000, flush_seconds=1e9)
    for step in range(1, STEPS + 1):
        loss = 2.9 + 5.4 * math.exp(-step / 45) + 1.1 * math.exp(-step / 250) + draw.gauss(0, 0.09)
        rate = 0.003 * min(1, step / 40, 0.1 + 0.45 * (1 + math.cos(math.pi * step / STEPS)))
        row = {"train/loss": loss, "train/grad_norm": 0.4 + 3 * math.exp(-step / 20) + abs(draw.gauss(0, 0.12))}
        row |= {"train/lr": rate, "train/skipped": int(step > 250), "train/tokens": float(step * TOKENS_PER_STEP)}
        row |= {f"data/{name}/tokens": 0.5 * step * TOKENS_PER_STEP for name in ("topics", "stdlib_code")}
        if step % 5 == 0:
            speed = 23_500 + draw.gauss(0, 500) - (9_000 if step == 5 else 0)
            row |= {"perf/tokens_per_second": speed, "perf/mfu": speed * 2.6e7 / 2.1e12, "perf/memory_gb": 1.27}
            row |= {"perf/data_wait": abs(draw.gauss(0.004, 0.003)), "perf/checkpoint_s": 0.02}
        if step % 50 == 0:
            row |= _validation(loss)
        logger.log_metrics(row, step)
    logger.finalize("success")


def _validation(loss: float) -> dict[str, float]:
    losses = {"prose": loss + 0.35, "code": loss - 0.4}
    found = {f"valid/{name}/loss": value for name, value in losses.items()}
    found |= {f"valid/{name}/perplexity": math.exp(value) for name, value in losses.items()}
    sizes = {name: BASELINES[name]["bytes_per_token"] for name in losses}
    found |= {f"valid/{name}/bits_per_byte": value / math.log(2) / sizes[name] for name, value in losses.items()}
    return found | {"valid/loss": 0.6 * losses["prose"] + 0.4 * losses["code"]}


def _ledger() -> dict[str, object]:
    tokens = STEPS * TOKENS_PER_STEP
    rows = {"topics": ("prose", 0.2, 1.93), "docstrings": ("prose", 0.4, 0.92), "stdlib_code": ("code", 0.4, 0.31)}
    sources = {
        name: {
            "domain": domain,
            "weight": weight,
            "planned_tokens": round(weight * tokens),
            "seen_tokens": round(weight * tokens) - 37,
            "epochs": epochs,
            "rows": 4211,
            "dropped": {"too short": 31, "duplicate": 112},
            "bad": {"not UTF-8": 2} if name == "stdlib_code" else {},
            "held_out": 204,
        }
        for name, (domain, weight, epochs) in rows.items()
    }
    return {"tokens": tokens, "sources": sources, "padding_share": 0.0021}
