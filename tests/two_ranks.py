"""Two gloo processes of one test: how they are started, and how they end."""

import os
import subprocess
import sys
from pathlib import Path

import torch.distributed as dist


def run_two(script: Path, folder: Path) -> None:
    """Run `script` as rank 0 and 1, each with RANK STORE_FILE FOLDER; both must end well."""
    words = [[sys.executable, str(script), str(rank), str(folder / "store"), str(folder)] for rank in range(2)]
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'src'}"}
    ranks = [
        subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
        for line in words
    ]
    said = [rank.communicate(timeout=180)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(said)


def leave() -> None:
    """End one of the two: a thread of gloo that is still there would abort Python's own end."""
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)
