"""The report of a run: report.md and report.html in its folder, and the short table on the terminal (`write.py`).

    python -m lifecycle.report outputs/NAME

writes the report of any run anew, also of one that is still running.
"""
