"""The samples of a run of reinforcement learning as a page: the best, the worst, and the answers that changed most.

python -m lifecycle.report --rollouts outputs/taught                    outputs/taught/rollouts.html
python -m lifecycle.report --rollouts outputs/taught outputs/other      ... with what the other run answers to the same
"""

from lifecycle.report.rollouts.page import write_rollouts

__all__ = ["write_rollouts"]
