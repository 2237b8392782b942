"""The place in which the pages' commands are typed: a checkout, with what the pages say that a user has there.

with shell(make_place(folder)) as run:
    run("lifecycle experiment=demo")

A set of the hub is a folder of its name with rows of its form; so is a model of the hub. Nothing asks a network.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tests.docs.pages import ROOT, blocks
from tests.docs.server import CLIENT
from tests.run.cli import WORDS

Shell = Callable[[str], subprocess.CompletedProcess[str]]

MODELS = (
    "HuggingFaceTB/SmolLM2-135M",
    "home/.cache/lifecycle/smollm2-135m-instruct",
    "gpt2",
    "outputs/demo-sft/model",
)
"""Where the pages have a model or a tokenizer from elsewhere; HOME is home."""


def make_place(folder: Path) -> Path:
    """Fill `folder` with a checkout, texts, rows of every view and the sets of the hub."""
    for name in ("src", "conf"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("texts", "more"):
        (folder / name).mkdir()
        with gzip.open(folder / name / "a.jsonl.gz", "wt") as file:
            file.writelines(lines(row(name, n) for n in range(300)))
        long = ({"text": " ".join(row(name, n)["text"] for n in range(m, m + 15))} for m in range(300, 900, 15))
        write(folder / name / "b.jsonl", long)  # of enough sentences for the classifier of docs/data.md
    turns = ({"messages": row("chats", n)["messages"]} for n in range(200))
    pairs = ({"prompt": f"Say {n}.", "chosen": f"I say {n}.", "rejected": "No, not that!"} for n in range(200))
    judged = ({"prompt": f"Say {n}.", "completion": f"I say {n}.", "label": n % 2 == 0} for n in range(200))
    for name, made in (("chats", turns), ("pairs", pairs), ("judged", judged)):
        write(folder / f"{name}.jsonl", made)
    for part in (1, 2):
        write(folder / f"rows/hh_harmless_base_part{part}.jsonl", (conversation(part, n) for n in range(150)))
    for split in ("train", "dev"):
        write(folder / f"rows/commonsenseqa.{split}.jsonl", (common_sense(split, n) for n in range(100)))
    write(folder / "prompts.jsonl", ({"prompt": text} for text in ("The cat", "Far away")))
    (folder / "prompts.txt").write_text("The cat\nFar away\n")
    write(folder / "papers.jsonl", (row("papers", n) for n in range(400)))
    own = (
        ("docs/data.md", "my_filters.py"),
        ("docs/environments.md", "my_tools.py"),
        ("docs/rewards.md", "my_rewards.py"),
    )
    for page, name in own:
        (folder / name).write_text(next(block for block in blocks(page) if f"# {name}" in block))
    for hub, parts in hub_sets().items():
        make_set(folder / hub, parts)
    return folder


def row(name: str, number: int) -> dict[str, Any]:
    """A row that has the columns of every set; what it says is its own."""
    rng = np.random.default_rng([zlib.crc32(name.encode()), number])
    said = [f"{number} " + " ".join(rng.choice(WORDS, 24)) + "." for _ in range(4)]
    turns = [
        {"role": "user", "content": f"{said[0]} Why?"},
        {"role": "assistant", "content": f"<think>So.</think> {said[1]}"},
    ]
    options = dict(zip("ABCD", ("cold", "heat", "rain", "snow"), strict=True))
    return {
        "text": " ".join(said),
        "content": " ".join(said),
        "title": f"{name} {number}",
        "messages": turns,
        "question": f"{said[0]} Which?",
        "options": options,
        "answer_idx": "ABCD"[number % 4],
        "answer": f"{said[1]} 3+4=<<3+4=7>>7.\n#### 7",
        **{f"op{letter.lower()}": option for letter, option in options.items()},
        "cop": number % 4,
        "exp": said[2],
        "long_answer": said[1],
        "problem": f"{said[0]} How many?",
        "solution": said[1],
        "level": f"Level {1 + number % 5}",
        "max_stars_count": number,
    }


def common_sense(split: str, number: int) -> dict[str, Any]:
    """A question as CommonsenseQA writes it."""
    said = row(split, number)
    choices = [{"label": letter, "text": option} for letter, option in said["options"].items()]
    return {"answerKey": said["answer_idx"], "question": {"stem": said["question"], "choices": choices}}


def conversation(part: int, number: int) -> dict[str, str]:
    """A pair as hh-rlhf writes it."""
    asked = f"\n\nHuman: Say {number} of {part}.\n\nAssistant:"
    return {"chosen": f"{asked} I say {number}.", "rejected": f"{asked} No, not that!"}


def lines(rows: Iterator[dict[str, Any]]) -> Iterator[str]:
    """JSON Lines."""
    return (json.dumps(row) + "\n" for row in rows)


def write(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    """A file of JSON Lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines(rows)))


def hub_sets() -> dict[str, set[tuple[str | None, str | None]]]:
    """The sets that conf/data names, each with its configurations and folders."""
    found: dict[str, set[tuple[str | None, str | None]]] = {}

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            if node.get("hub"):
                found.setdefault(node["hub"], set()).add((node.get("config"), node.get("data_dir")))
            for child in node.values():
                walk(child)

    for file in sorted((ROOT / "conf/data").rglob("*.yaml")):
        walk(yaml.safe_load(file.read_text()))
    return found


def make_set(folder: Path, parts: set[tuple[str | None, str | None]]) -> None:
    """A data set as the hub lays it out: a folder a configuration, a file a split."""
    configs = []
    for config, data_dir in sorted(parts, key=str):
        inner = data_dir or config or "data"
        for split in ("train", "validation", "test"):
            write(folder / inner / f"{split}.jsonl", (row(f"{folder.name} {inner} {split}", n) for n in range(400)))
        files = [{"split": split, "path": f"{inner}/{split}.jsonl"} for split in ("train", "validation", "test")]
        configs.append({"config_name": config or "default", "data_files": files})
    if not any(data_dir for _, data_dir in parts):
        (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n")


def put_models(place: Path, run: Shell) -> None:
    """The model of the finished demo run, under the names of models from elsewhere."""
    done = run("lifecycle experiment=demo")
    assert done.returncode == 0, done.stderr[-3000:]
    for name in MODELS:
        shutil.copytree(place / "outputs/demo/model", place / name)


@contextmanager
def shell(place: Path) -> Iterator[Shell]:
    """A shell in `place`, whose `lifecycle` and `python` answer quickly and run at toy size."""
    address = str(place / "socket")
    (place / "bin").mkdir()
    for name, words in (("lifecycle", ["-m", "lifecycle"]), ("python", [])):
        client = place / "bin" / name
        client.write_text(CLIENT.format(python=sys.executable, address=address, words=words))
        client.chmod(0o755)
    paths = {"PYTHONPATH": f"{place / 'src'}:{ROOT}", "PATH": f"{place / 'bin'}:{os.environ['PATH']}"}
    env = (
        os.environ
        | paths
        | {"HOME": str(place / "home"), "LIFECYCLE_CACHE": str(place / "cache"), "OMP_NUM_THREADS": "1"}
    )
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.docs.server", address], cwd=place, env=env, stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None and server.stdout.readline() == "ready\n"

    def run(line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "-c", line],
            cwd=place,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )

    try:
        yield run
    finally:
        server.terminate()
        server.communicate()
