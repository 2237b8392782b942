"""`python -m lifecycle.report RUN_FOLDER ...`: write the report of each run anew and show its short table.

python -m lifecycle.report --compare FOLDER RUN_FOLDER ...: write the runs side by side into FOLDER and show that table;
the folder of a sweep stands for its runs.
python -m lifecycle.report --stages FOLDER RUN_FOLDER ...: the same of the stages of one model, the first one first.
python -m lifecycle.report --rollouts RUN_FOLDER [OTHER]: write rollouts.html there, samples of a run of reinforcement
learning: the best, the worst, and what changed most between two steps, or between the other run and this one.
"""

from __future__ import annotations

import argparse
import errno
import sys
from pathlib import Path

from rich.console import Console

from lifecycle.errors import DISK_FULL, NO_ACCESS, TOO_LARGE, UserError
from lifecycle.report import comparison, rollouts, stages
from lifecycle.report.write import sheet, terminal_summary, turned, write_report

WIDE = 10_000  # columns of a terminal on which no table is too wide


def main(arguments: list[str]) -> int:
    """Exit code: 0 done, 2 where a folder is not a run, or cannot be written."""
    parser = argparse.ArgumentParser(
        prog="python -m lifecycle.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN_FOLDER", help="folder of a run, such as outputs/demo")
    side = parser.add_mutually_exclusive_group()
    side.add_argument("--compare", metavar="FOLDER", help="write comparison.md, comparison.html, pictures there")
    side.add_argument("--stages", metavar="FOLDER", help="write stages.md, stages.html and their picture there")
    side.add_argument("--rollouts", action="store_true", help="write rollouts.html into the run's folder")
    chosen = parser.parse_args(arguments)
    if chosen.rollouts and len(chosen.runs) > 2:
        parser.error("--rollouts takes one run, or two: the second is compared with the first")
    console = Console(soft_wrap=False)
    try:
        if chosen.compare:
            path = comparison.write_comparison(chosen.runs, chosen.compare)
            _show(console, comparison.table(comparison.compare(chosen.runs)), path)
            return 0
        if chosen.stages:
            path = stages.write_stages(chosen.runs, chosen.stages)
            _show(console, stages.table(stages.read_stages(chosen.runs)), path)
            return 0
        if chosen.rollouts:
            console.print(str(rollouts.write_rollouts(*chosen.runs)), highlight=False, soft_wrap=True, markup=False)
            return 0
        for folder in chosen.runs:
            write_report(folder)
            console.print(terminal_summary(folder))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in (*DISK_FULL, *NO_ACCESS):
            raise
        what = f"{error.filename or 'the report'} cannot be written or read ({error.strerror})"
        print(f"{what}: {TOO_LARGE}" if error.errno == errno.EFBIG else what, file=sys.stderr)
        return 2
    return 0


def _show(console: Console, table: tuple[list[str], list[list[str]]], path: Path) -> None:
    made = sheet(*table, wrap=True)
    wanted = console.measure(made, options=console.options.update(width=WIDE)).maximum
    if wanted > console.width and len(table[0]) > len(table[1]) + 1:
        made = sheet(*turned(*table), wrap=True)
    console.print(made)
    console.print(f"[dim]{path}[/dim]", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
