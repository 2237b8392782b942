"""`python -m benchmarks [NAME ...]`: run all benchmarks, or those named; results go to benchmarks/results/NAME.json."""

from __future__ import annotations

import subprocess
import sys

NAMES = ("pretrain_step", "families", "generate", "score", "data", "quality", "checkpoint", "resume")


def main() -> int:
    """Exit code of the first benchmark that failed, else 0."""
    for name in sys.argv[1:] or NAMES:
        print(f"-- {name}", flush=True)
        code = subprocess.run([sys.executable, "-m", f"benchmarks.{name}"]).returncode
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
