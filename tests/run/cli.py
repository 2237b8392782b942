"""A toy run by the command line in its own process: three tiny sources, packing, a small model, and ways to compare.

place = make_place(tmp_path)
done = lifecycle(place, "run=whole", "stage.max_steps=40")
place / "outputs/whole"
"""

import atexit
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load_file

from lifecycle.checkpoint import list_committed, step_of
from lifecycle.loggers import read_metrics

WORDS = "the cat sat on a mat and then it ran far away from that old grey house near some river bank".split()
SOURCES = {"long": (0.5, 120, 300), "short": (0.3, 400, 30), "tiny": (0.2, 24, 60)}
"""Weight, documents and longest document in words: 40 steps pass over `tiny` several times."""

TOY = (
    "data=toy",
    "logger=csv",
    "model.layers=2",
    "model.width=32",
    "model.heads=2",
    "model.kv_heads=1",
    "model.head_dim=16",
    "model.ffn_width=64",
    "stage.global_batch_tokens=1024",
    "stage.sequence_length=128",
    "stage.max_steps=40",
    "hardware.compile=false",
    "hardware.precision=fp32",
    "hardware.peak_tflops=1",  # nothing is measured at the start
    "hardware.workers=0",
    "checkpoint.every_steps=8",
    "validation.every_steps=20",
    "validation.tokens=40000",
    "logging.every_steps=1",
    "callbacks.progress=false",
)
COMPARED = ("step", "tokens", "train/loss", "train/grad_norm", "train/skipped", "valid/loss")


@dataclass(frozen=True)
class Done:
    """What a finished process left: exit code, and its two streams as text."""

    code: int
    out: str
    err: str


def write_rows(path: Path, texts: Sequence[str]) -> None:
    """JSON Lines of `texts`."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def make_texts(name: str, documents: int, longest: int) -> list[str]:
    """Documents of random words, the same for the same arguments."""
    rng = np.random.default_rng([len(name), documents])
    return [f"{name} {n} " + " ".join(rng.choice(WORDS, int(rng.integers(5, longest)))) for n in range(documents)]


def make_place(folder: Path) -> Path:
    """Fill `folder` with the sources and the config folder `conf` that `data=toy` comes from."""
    sources: dict[str, dict[str, Any]] = {}
    for name, (weight, documents, longest) in SOURCES.items():
        write_rows(folder / f"{name}.jsonl", make_texts(name, documents, longest))
        sources[name] = {"path": f"{name}.jsonl", "weight": weight, "validation": {"ratio": 0.1, "seed": 1}}
    write_rows(folder / "held.jsonl", make_texts("held", 400, 200))
    sources["long"]["validation"] = "held.jsonl"  # a validation takes long enough to be met by a signal
    config = {
        "defaults": ["_engine", "_self_"],
        "tokenizer": {"vocab_size": 400, "digits": 1, "max_bytes": 50_000},
        "shuffle_buffer": 64,
        "sources": sources,
    }
    (folder / "conf/data").mkdir(parents=True)
    (folder / "conf/data/toy.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return folder


@dataclass
class Run:
    """A run that was started; `poll` gives its exit code (negative: a signal's number), None while it goes on."""

    pid: int
    notes: Path
    process: "subprocess.Popen[bytes] | None" = None

    def poll(self) -> int | None:
        """The exit code, if it has ended."""
        if self.process is not None:
            return self.process.poll()
        code = self.notes / "code"
        return int(code.read_text()) if code.exists() else None

    def end(self, *, seconds: float = 120) -> Done:
        """Wait until it has ended by itself."""
        until = time.monotonic() + seconds
        while (code := self.poll()) is None:
            assert time.monotonic() < until, f"still running\n{self._said()}"
            time.sleep(0.01)
        return Done(code, *self._said())

    def _said(self) -> tuple[str, str]:
        return (self.notes / "out").read_text(), (self.notes / "err").read_text()


def environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's variables without what a launcher leaves, and one thread a process."""
    launcher = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "NODE_RANK", "LIFECYCLE_LAUNCH", "HYDRA_FULL_ERROR")
    kept = {key: value for key, value in os.environ.items() if key not in launcher}
    return {**kept, "OMP_NUM_THREADS": "1", **(changes or {})}


def words(*overrides: str) -> list[str]:
    """The command line of a toy run after `python -m lifecycle`; `overrides` win, and a parent brings its own model."""
    keys = {word.partition("=")[0] for word in overrides}
    toy = [word for word in TOY if word.partition("=")[0] not in keys]
    if "init_from" in keys:
        toy = [word for word in toy if not word.startswith("model.")]
    if "stage=prepare" in overrides:  # a job takes no steps
        toy = [word for word in toy if not word.startswith("stage.")]
    return ["--config-dir", "conf", *toy, *overrides]


@cache
def _warm() -> "subprocess.Popen[str]":
    """The process that runs are forked from; it ends when this one does."""
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("warm.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )

    def stop() -> None:
        server.communicate()

    atexit.register(stop)
    return server


@contextmanager
def started(place: Path, *overrides: str, env: Mapping[str, str] | None = None, cold: bool = False) -> Iterator[Run]:
    """A run that goes on while the block does something to it; nothing of it is left after the block.

    `cold`: by a new Python, as a user would; else forked from one that has imported everything (and so has the hash
    seed of the other runs).
    """
    notes = Path(tempfile.mkdtemp(prefix=".notes-", dir=place))
    run = _cold(place, notes, overrides, env) if cold else _forked(place, notes, overrides, env)
    try:
        yield run
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
            run.end()


def _cold(place: Path, notes: Path, overrides: Sequence[str], env: Mapping[str, str] | None) -> Run:
    with (notes / "out").open("wb") as out, (notes / "err").open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "lifecycle", *words(*overrides)],
            cwd=place,
            env=environment(env),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
    return Run(process.pid, notes, process)


def _forked(place: Path, notes: Path, overrides: Sequence[str], env: Mapping[str, str] | None) -> Run:
    server = _warm()
    assert server.stdin is not None and server.stdout is not None
    job: dict[str, Any] = {"words": words(*overrides), "cwd": str(place), "env": environment(env)}
    job |= {name: str(notes / name) for name in ("out", "err", "code")}
    server.stdin.write(json.dumps(job) + "\n")
    server.stdin.flush()
    return Run(int(server.stdout.readline()), notes)


def lifecycle(
    place: Path, *overrides: str, code: int = 0, env: Mapping[str, str] | None = None, cold: bool = False
) -> Done:
    """One run to its end, which must be with exit code `code`."""
    with started(place, *overrides, env=env, cold=cold) as run:
        done = run.end()
    assert done.code == code, f"exit code {done.code}, wanted {code}\n{done.out[-2000:]}\n{done.err[-4000:]}"
    return done


def wait_for(condition: Callable[[], Any], run: Run, *, seconds: float = 60) -> None:
    """Return when `condition` holds; the run must still be there then."""
    until = time.monotonic() + seconds
    while not condition():
        assert run.poll() is None, f"the run has ended: {run.end()}"
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.002)


def kill_after(
    place: Path, *overrides: str, checkpoints: int = 0, wait: float = 0.0, group: bool = False, cold: bool = False
) -> bool:
    """Start or resume the run that `overrides` name, kill -9 it once its newest checkpoint is `checkpoints` steps
    further and `wait` seconds have passed; False where it had ended by itself. group: with all its children."""
    name = next(word.removeprefix("run=") for word in overrides if word.startswith("run="))
    run = place / "outputs" / name
    with started(place, *overrides, cold=cold) as process:
        wanted = newest(run) + checkpoints
        wait_for(lambda: process.poll() is not None or newest(run) >= wanted, process)
        time.sleep(wait)
        if process.poll() is not None:
            return False
        (os.killpg if group else os.kill)(process.pid, signal.SIGKILL)
        assert process.end().code == -signal.SIGKILL
    return True


def step_folder(run: Path, step: int) -> Path:
    """The checkpoint after `step` steps."""
    return run / "checkpoints" / f"step-{step:08d}"


def cut_back(run: Path, copy: Path, step: int) -> None:
    """`copy` as `run` was when it stopped after the checkpoint of `step`."""
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "model", ignore_errors=True)
    for path in list_committed(copy / "checkpoints"):
        if (step_of(path) or 0) > step:
            shutil.rmtree(path)
    told = facts(copy)
    (copy / "run.json").write_text(json.dumps({**told, "status": "stopped"}))


def newest(run: Path) -> int:
    """The step of the newest committed checkpoint, 0 without one."""
    return max((step_of(path) or 0 for path in list_committed(run / "checkpoints")), default=0)


def metrics(run: Path) -> dict[str, list[float | None]]:
    """Columns of metrics.csv."""
    return read_metrics(run / "metrics.csv")


def facts(run: Path, name: str = "run.json") -> dict[str, Any]:
    """A JSON file of the run."""
    content: dict[str, Any] = json.loads((run / name).read_text())
    return content


def assert_same_losses(run: Path, other: Path) -> None:
    """Every logged number that the data and the weights decide is the same, bit for bit."""
    here, there = metrics(run), metrics(other)
    names = {*COMPARED, *(name for name in here if name.startswith(("valid/", "data/")))}
    for name in sorted(names):
        assert list(map(repr, here[name])) == list(map(repr, there[name])), name  # nan is nan


def assert_same_weights(run: Path, other: Path) -> None:
    """The exported weights are the same, bit for bit."""
    here, there = (load_file(folder / "model" / "model.safetensors") for folder in (run, other))
    assert here.keys() == there.keys()
    for name, value in here.items():
        assert torch.equal(value, there[name]), name


def assert_same_run(run: Path, other: Path) -> None:
    """Losses, weights and ledger of two finished runs are the same."""
    assert_same_losses(run, other)
    assert_same_weights(run, other)
    assert facts(run, "ledger.json") == facts(other, "ledger.json")


def times(run: Path) -> dict[str, tuple[int, int]]:
    """Change time and size of every file of the run."""
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(run.rglob("*")) if p.is_file()}
