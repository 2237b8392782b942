"""Several processes by the real command line, on gloo: the tokens of one process, stopped and resumed on any number."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.run.cli import (
    Run,
    assert_same_run,
    environment,
    facts,
    lifecycle,
    make_place,
    metrics,
    newest,
    started,
    step_folder,
    wait_for,
    words,
)
from tests.run.processes import assert_all_end, children, processes

from lifecycle.__main__ import LOST
from lifecycle.checkpoint import CheckpointError, list_committed, load
from lifecycle.system.owner import LOCK

STEPS = 60
LONG = 4000  # steps of a run that is stopped before


def ranks(number: int, strategy: str = "ddp", steps: int = STEPS) -> list[str]:
    """What a run on so many processes adds to the command."""
    wanted = strategy if number > 1 or strategy == "fsdp" else "auto"
    return [
        f"hardware.devices={number}",
        f"hardware.strategy={wanted}",
        "hardware.workers=1",
        "validation.tokens=4000",
        f"stage.max_steps={steps}",
    ]


def assert_same_tokens(run: Path, other: Path) -> None:
    """The same tokens at every step, exactly; losses as close as sums in another order are."""
    here, there = metrics(run), metrics(other)
    assert here.keys() == there.keys() and here["step"] == there["step"]
    for name in here:
        if name == "tokens" or name.endswith(("/tokens", "/dropped")):
            assert here[name] == there[name], name
        elif name.startswith(("train/", "valid/")) or name.endswith("/epochs"):
            assert [v or 0.0 for v in here[name]] == pytest.approx([v or 0.0 for v in there[name]], rel=1e-5), name
    assert facts(run, "ledger.json") == facts(other, "ledger.json")


def copied(run: Path, name: str) -> Path:
    """The run under another name."""
    return Path(shutil.copytree(run, run.with_name(name)))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the finished run `one`, of one process."""
    folder = make_place(tmp_path_factory.mktemp("ranks"))
    lifecycle(folder, "run=one", *ranks(1))
    return folder


@pytest.fixture(scope="module")
def outputs(place: Path) -> Path:
    """Its runs, among them `two`, of two processes, started in a batch script of SLURM without srun."""
    batch = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    lifecycle(place, "run=two", *ranks(2), env=batch)
    return place / "outputs"


@pytest.fixture(scope="module")
def sharded(place: Path) -> Path:
    """The finished run `sharded`, of two processes that share the weights out."""
    lifecycle(place, "run=sharded", *ranks(2, "fsdp"))
    return place / "outputs" / "sharded"


def test_two_ranks_take_the_tokens_of_one(outputs: Path) -> None:
    assert_same_tokens(outputs / "two", outputs / "one")


@pytest.mark.slow
def test_four_ranks_take_the_tokens_of_one(place: Path) -> None:
    lifecycle(place, "run=four", *ranks(4))
    assert_same_tokens(place / "outputs" / "four", place / "outputs" / "one")


@pytest.mark.slow
def test_two_ranks_stopped_by_sigterm_go_on_exactly_on_two_and_with_the_same_tokens_on_one_and_four(
    place: Path, outputs: Path
) -> None:
    with started(place, "run=stopped", *ranks(2)) as process:
        wait_for(lambda: newest(outputs / "stopped") >= 6, process)
        os.kill(process.pid, signal.SIGTERM)
        done = process.end(seconds=60)
    assert done.code == 143, done.err
    assert_all_end(process.pid)
    stopped = facts(outputs / "stopped")
    assert stopped["status"] == "stopped" and 6 <= stopped["steps"] < STEPS
    assert list_committed(outputs / "stopped" / "checkpoints")[-1] == step_folder(outputs / "stopped", stopped["steps"])
    for number in (1, 2, 4):
        run = copied(outputs / "stopped", f"stopped-{number}")
        lifecycle(place, f"run={run.name}", *ranks(number))
        (assert_same_run if number == 2 else assert_same_tokens)(run, outputs / "two")


@pytest.mark.slow
def test_sharded_ranks_take_the_tokens_of_one_and_prune_their_checkpoints(place: Path, sharded: Path) -> None:
    assert_same_tokens(sharded, place / "outputs" / "one")
    kept = list_committed(sharded / "checkpoints")
    assert kept[-1] == step_folder(sharded, STEPS) and len(kept) in (3, 4)  # the last three, and the best
    with pytest.raises(CheckpointError, match="hardware.strategy=fsdp"):
        load(kept[-1])


@pytest.mark.slow
def test_sharded_ranks_that_were_killed_go_on_exactly_on_two_and_with_the_same_tokens_on_one(
    place: Path, sharded: Path
) -> None:
    outputs = place / "outputs"
    with started(place, "run=killed", *ranks(2, "fsdp")) as process:
        wait_for(lambda: newest(outputs / "killed") >= 12, process)
        os.kill(process.pid, signal.SIGKILL)
        process.end()
    assert_all_end(process.pid)
    for number in (1, 2):
        run = copied(outputs / "killed", f"killed-{number}")
        lifecycle(place, f"run={run.name}", *ranks(number, "fsdp"))
        (assert_same_run if number == 2 else assert_same_tokens)(run, sharded)


@pytest.mark.slow
def test_what_sharded_ranks_export_loads_in_transformers(sharded: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(sharded / "model")
    tokenizer = AutoTokenizer.from_pretrained(sharded / "model")
    ids = torch.tensor([tokenizer("the cat sat on a mat").input_ids])
    loss = model(input_ids=ids, labels=ids).loss.item()
    assert loss < 6.0  # a model of even chances has log(448) = 6.1


@pytest.mark.slow
def test_torchrun_launches_a_run_and_goes_on_with_it(place: Path, outputs: Path) -> None:
    for run in (outputs / "torchrun", copied(outputs / "one", "longer")):
        given = words(f"run={run.name}", *ranks(2, steps=STEPS + 20 * (run.name == "longer")))
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
        process = subprocess.Popen([*torchrun, "lifecycle", *given], cwd=place, env=environment())
        try:
            assert process.wait(timeout=120) == 0
        finally:
            process.terminate()  # torchrun ends its ranks
            process.wait()
    assert_same_run(outputs / "torchrun", outputs / "two")
    assert facts(outputs / "longer")["resumed"] == 1 and metrics(outputs / "longer")["step"][-1] == STEPS + 20


def rank_1(process: Run) -> int:
    """The process of the second rank."""
    table = processes(process.pid)
    return next(pid for pid in children(process.pid) if "train_ddp_process_1" in table.get(pid, ""))


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["rank 0", "rank 1", "a worker of rank 1"])
def test_one_process_that_dies_ends_them_all(place: Path, victim: str) -> None:
    name = victim.replace(" ", "-")
    with started(place, f"run={name}", *ranks(2, steps=LONG)) as process:
        wait_for(lambda: newest(place / "outputs" / name) >= 6, process)
        dies = process.pid if victim == "rank 0" else rank_1(process)
        os.kill(children(dies)[-1] if "worker" in victim else dies, signal.SIGKILL)
        assert process.end(seconds=30).code not in (0, 2, 143)
        assert_all_end(process.pid)


@pytest.mark.slow
def test_sigterm_while_the_ranks_start_ends_them_all(place: Path) -> None:
    with started(place, "run=early", *ranks(2, steps=LONG)) as process:
        wait_for(lambda: len(processes(process.pid)) > 1, process)  # rank 1 is there and imports
        time.sleep(0.5)
        os.kill(process.pid, signal.SIGTERM)
        assert process.end(seconds=60).code == 143
        assert_all_end(process.pid)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_ranks_whose_folder_was_taken_over_end_together_and_write_nothing_more(place: Path, strategy: str) -> None:
    run = place / "outputs" / f"taken-{strategy}"
    with started(place, f"run={run.name}", *ranks(2, strategy, steps=LONG)) as process:
        wait_for(lambda: newest(run) >= 8 and list_committed(run / "checkpoints"), process)
        os.killpg(process.pid, signal.SIGSTOP)  # as a laptop that sleeps
        other = {**facts(run, LOCK), "host": "far", "token": "another"}
        (run / LOCK).write_text(json.dumps(other))
        saved, told = list_committed(run / "checkpoints"), (run / "run.json").read_bytes()
        os.killpg(process.pid, signal.SIGCONT)
        done = process.end(seconds=60)
        assert done.code == LOST and "was taken over by process" in done.err and "on far" in done.err, done
        assert "Traceback" not in done.err
        assert_all_end(process.pid)
    assert list_committed(run / "checkpoints") == saved and (run / "run.json").read_bytes() == told
    assert facts(run, LOCK) == other
