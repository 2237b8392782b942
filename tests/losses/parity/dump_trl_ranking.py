"""What TRL's RewardTrainer makes of given scores: losses and gradients, as numbers in a file of the tests.

python tests/losses/parity/dump_trl_ranking.py      in an environment with trl 1.16.0; writes trl_ranking.json
"""

from __future__ import annotations

import json
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

PAIRS = 5
CASES = [(margin, centring) for margin in (False, True) for centring in (None, 0.01, 0.3)]


def main() -> None:
    """Write the file."""
    from trl.trainer.reward_trainer import RewardTrainer

    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(-3000, 3000, (2 * PAIRS,), generator=generator).double() / 1000
    margins = torch.randint(0, 2000, (PAIRS,), generator=generator).double() / 1000
    cases = []
    for margin, centring in CASES:
        given = scores.clone().requires_grad_()
        inputs: dict[str, Any] = {"attention_mask": torch.ones(2 * PAIRS, 1, dtype=torch.long)}
        inputs |= {"margin": margins} if margin else {}
        loss = RewardTrainer.compute_loss(_trainer(centring), _model(given), inputs)
        loss.backward()
        assert given.grad is not None
        found = {"loss": float(loss.detach()), "gradient": given.grad.tolist()}
        cases.append({"margin": margin, "centring": centring, **found})
    made_by = f"trl {version('trl')}, torch {version('torch')}"
    content = {"made_by": made_by, "scores": scores.tolist(), "margins": margins.tolist(), "cases": cases}
    Path(__file__).with_name("trl_ranking.json").write_text(json.dumps(content))
    print(made_by, *(f"{c['margin']} {c['centring']}: {c['loss']:.6f}" for c in cases), sep="\n")


def _model(scores: Tensor) -> Any:
    return lambda **inputs: SimpleNamespace(logits=scores[:, None])


def _trainer(centring: float | None) -> Any:
    """What the method reads of a trainer."""
    one = SimpleNamespace(gather=lambda value: value, gather_for_metrics=lambda value: value)
    return SimpleNamespace(
        model=torch.nn.Identity(),
        args=SimpleNamespace(center_rewards_coefficient=centring),
        accelerator=one,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )


if __name__ == "__main__":
    main()
