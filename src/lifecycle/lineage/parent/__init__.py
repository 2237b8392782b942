"""The model that a run starts from: everything that `init_from` can name."""

from lifecycle.lineage.parent.find import find_parent, finished_runs
from lifecycle.lineage.parent.parent import Parent, history

__all__ = ["Parent", "find_parent", "finished_runs", "history"]
