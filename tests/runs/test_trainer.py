"""Who starts the processes of a run: SLURM where srun did, the run itself everywhere else."""

import warnings
from pathlib import Path

import pytest
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy

from lifecycle import config
from lifecycle.checkpoint.io import CommittedCheckpointIO
from lifecycle.errors import UserError
from lifecycle.hardware import Choice, Hardware
from lifecycle.runs.trainer import build_trainer, check_tasks
from lifecycle.system.ranks import started_by_srun

LOGIN: dict[str, str] = {}
BATCH = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
TASK = {**BATCH, "SLURM_STEP_ID": "0", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
NO_TASK = {
    "a login node": LOGIN,
    "a shell of salloc": {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_JOB_NAME": "interactive"},
    "a batch script": BATCH,
    "a batch script that is told its step": {**BATCH, "SLURM_STEP_ID": "4294967291"},
    "bash by srun": {**TASK, "SLURM_JOB_NAME": "bash"},
    "another shell by srun --pty": {**TASK, "SLURM_JOB_NAME": "zsh", "SLURM_PTY_PORT": "40001"},
}


@pytest.fixture(autouse=True)
def no_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has srun, and nothing of a launcher in its environment."""
    for name in (*TASK, "SLURM_PTY_PORT", "RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "srun").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")


def hardware(devices: int) -> Hardware:
    made: Hardware = config.build(config.compose([f"hardware.devices={devices}"]).hardware)
    return made


def environment(devices: int) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer = build_trainer(
            hardware(devices),
            Choice(precision="fp32", compile=False, peak_flops=1e12, reasons=(), peak_source="said"),
            total_steps=1,
            callbacks=[],
            loggers=[],
            writer=CommittedCheckpointIO(),
            deterministic=False,
        )
    strategy = trainer.strategy
    return strategy.cluster_environment if isinstance(strategy, DDPStrategy) else None


@pytest.mark.parametrize("place", NO_TASK)
@pytest.mark.parametrize("devices", [1, 2])
def test_where_srun_did_not_start_it_a_run_starts_its_own_ranks_and_greets_nobody(
    monkeypatch: pytest.MonkeyPatch, place: str, devices: int
) -> None:
    for name, value in NO_TASK[place].items():
        monkeypatch.setenv(name, value)
    assert not started_by_srun()
    check_tasks(hardware(devices))
    assert devices == 1 or isinstance(environment(devices), LightningEnvironment)


def test_the_tasks_of_srun_are_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TASK.items():
        monkeypatch.setenv(name, value)
    assert started_by_srun()
    check_tasks(hardware(2))
    assert isinstance(environment(2), SLURMEnvironment)


@pytest.mark.parametrize("change", [{"SLURM_NTASKS": "4"}, {"SLURM_NTASKS_PER_NODE": ""}])
def test_another_number_of_tasks_is_the_users_fault(monkeypatch: pytest.MonkeyPatch, change: dict[str, str]) -> None:
    for name, value in {**TASK, **change}.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"srun has started \d tasks, .* srun --nodes=1 --ntasks-per-node=2"):
        check_tasks(hardware(2))
