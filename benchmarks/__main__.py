"""Run all benchmarks, or those named; the results go to benchmarks/results/NAME.json.

python -m benchmarks [NAME ...] [--peers-python PATH]
"""

from __future__ import annotations

import argparse
import subprocess
import sys

NAMES = (
    *("pretrain_step", "finetune_step", "grpo_step", "families", "generate", "score"),
    *("data", "quality", "checkpoint", "resume"),
)


def main() -> int:
    """Exit code of the first benchmark that failed, else 0; those after it run all the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; none: all")
    parser.add_argument("--peers-python", default=sys.executable, help="Python of an environment with the peers")
    given = parser.parse_args()
    if unknown := [name for name in given.names if name not in NAMES]:
        parser.error(f"there is no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}")
    codes = []
    for name in given.names or NAMES:
        print(f"-- {name}", flush=True)
        command = [sys.executable, "-m", f"benchmarks.{name}", "--peers-python", given.peers_python]
        codes.append(subprocess.run(command).returncode)
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(main())
