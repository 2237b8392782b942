"""What holds for every test: no network, no files in the user's home, one thread, nothing left of Hydra."""

import gc
import os
import signal
import tempfile
from collections.abc import Iterator

import pytest

# Before anything imports these libraries: they read the environment once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two cores: threads of several tests' processes would fight for them
for name in list(os.environ):  # the tests are no job of a cluster, though they may run in one
    if name.startswith("SLURM_") or name in ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_PORT"):
        del os.environ[name]
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell lets what it starts in the background ignore Ctrl-C, and the runs that tests interrupt would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)

if "PYTEST_XDIST_WORKER" not in os.environ:  # the workers of a session share what one of them has made
    CACHE = tempfile.TemporaryDirectory(prefix="lifecycle-cache-")
    os.environ.setdefault("LIFECYCLE_USER_CACHE", os.environ.get("LIFECYCLE_CACHE", ""))  # where `make smollm2` put it
    os.environ["LIFECYCLE_CACHE"] = CACHE.name


@pytest.fixture(autouse=True)
def collect_garbage() -> Iterator[None]:
    """Training turns Python's collector off; a fit that a test ends by an error outside of `run` leaves it so."""
    yield
    gc.enable()


@pytest.fixture(autouse=True)
def forget_hydra() -> Iterator[None]:
    """Hydra keeps the last config and the way it was composed in globals."""
    full_error = os.environ.get("HYDRA_FULL_ERROR")
    yield
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None
    if full_error is None:
        os.environ.pop("HYDRA_FULL_ERROR", None)
