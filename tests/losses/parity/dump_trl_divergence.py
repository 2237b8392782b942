"""What TRL's distillation makes of given logits: losses and gradients, as numbers in a file of the tests.

python tests/losses/parity/dump_trl_divergence.py      in an environment with trl 1.16.0; writes trl_divergence.json
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import torch

TOKENS, VOCAB = 3, 5
CASES = [(beta, temperature) for beta in (0.0, 0.25, 0.5, 1.0) for temperature in (1.0, 2.0)]


def main() -> None:
    """Write the file; TRL leaves the factor T^2 to others."""
    from trl.experimental.gkd import GKDTrainer

    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randint(-3000, 3000, (2, TOKENS, VOCAB), generator=generator).double() / 1000
    cases = []
    for beta, temperature in CASES:
        logits = student.clone().requires_grad_()
        loss = GKDTrainer.generalized_jsd_loss(
            logits[None], teacher[None], beta=beta, temperature=temperature, reduction="sum"
        )
        loss.backward()
        assert logits.grad is not None
        gradient = logits.grad.tolist()
        cases.append({"beta": beta, "temperature": temperature, "loss": float(loss.detach()), "gradient": gradient})
    made_by = f"trl {version('trl')}, torch {version('torch')}"
    content = {"made_by": made_by, "student": student.tolist(), "teacher": teacher.tolist(), "cases": cases}
    Path(__file__).with_name("trl_divergence.json").write_text(json.dumps(content))


if __name__ == "__main__":
    main()
