"""Several runs side by side, each by what it measured: as a table, and as pictures.

python -m lifecycle.report --compare outputs/comparison outputs/a outputs/b outputs/sweep/0 ...
"""

from lifecycle.report.comparison.page import table, write_comparison
from lifecycle.report.comparison.recipes import compare

__all__ = ["compare", "table", "write_comparison"]
