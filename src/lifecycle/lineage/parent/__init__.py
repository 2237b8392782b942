"""The model that a run starts from: what `init_from` can name, and what is known of each."""

from lifecycle.lineage.parent.find import find_parent, finished_runs
from lifecycle.lineage.parent.parent import Parent, history

__all__ = ["Parent", "find_parent", "finished_runs", "history"]
