"""`python -m lifecycle.report RUN_FOLDER ...`: write the report of each run anew and show its short table."""

from __future__ import annotations

import sys

from rich.console import Console

from lifecycle.errors import UserError
from lifecycle.report import terminal_summary, write_report


def main(arguments: list[str]) -> int:
    """Exit code: 0 done, 2 where a folder is not a run."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    try:
        for folder in arguments:
            write_report(folder)
            Console(soft_wrap=False).print(terminal_summary(folder))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
