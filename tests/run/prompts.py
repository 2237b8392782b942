"""Data of short prompts with a known answer, for the runs that sample."""

import json
from pathlib import Path

import yaml
from tests.run.cli import make_texts


def write_prompts(place: Path, name: str) -> None:
    """`data=NAME` in a place of toy runs: 60 prompts, which come again."""
    rows = [{"prompt": text[:12], "completion": text[12:20] or "."} for text in make_texts(name, 60, 20)]
    (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"path": f"{name}.jsonl", "format": "prompt_completion", "validation": {"ratio": 0.2, "seed": 1}}
    node = {
        "defaults": ["_engine", "_self_"],
        "tokenizer": "unused",
        "shuffle_buffer": 64,
        "sources": {name: source},
    }
    (place / f"conf/data/{name}.yaml").write_text(yaml.safe_dump(node, sort_keys=False))
