"""The report of a run: report.md and report.html in its folder, and the short table on the terminal.

    python -m lifecycle.report outputs/NAME

writes the report of any run anew, also of one that is still running.
"""

from __future__ import annotations

from lifecycle.report.write import terminal_summary, write_report

__all__ = ["terminal_summary", "write_report"]
