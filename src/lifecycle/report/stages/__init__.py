"""The stages of one model's life on one page: what each of them bought.

python -m lifecycle.report --stages outputs/demo-stages outputs/demo outputs/demo-midtrain outputs/demo-sft ...
"""

from lifecycle.report.stages.page import table, write_stages
from lifecycle.report.stages.results import read_stages

__all__ = ["read_stages", "table", "write_stages"]
