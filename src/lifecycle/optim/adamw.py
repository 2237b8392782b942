"""AdamW (arXiv 1711.05101): decoupled weight decay, fused where torch has the kernel, state in fp32."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from lifecycle.bounds import NotNegative, PartOrNone, Positive
from lifecycle.optim.groups import fusable, parameter_groups


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Settings under `stage.optimizer`; `build` makes the optimizer for a model.

    lr, embedding_lr: peak rates; lr None: the parent's, which the run puts in, embedding_lr None: lr. weight_decay: per
    step, times the rate; not on norms and biases. grad_clip: global L2 norm of the gradients, None for no clipping; the
    stage applies it before the step.
    """

    lr: Positive | None
    embedding_lr: Positive | None
    weight_decay: NotNegative
    betas: tuple[PartOrNone, PartOrNone]
    eps: Positive
    grad_clip: Positive | None

    def build(self, model: nn.Module) -> torch.optim.AdamW:
        """The optimizer over the trainable parameters of a model (plain or sharded), in the groups of `groups`."""
        assert self.lr is not None
        groups = parameter_groups(
            model.named_parameters(), lr=self.lr, embedding_lr=self.embedding_lr, weight_decay=self.weight_decay
        )
        fused = fusable(parameter for entry in groups for parameter in entry["params"])
        beta1, beta2 = self.betas
        return torch.optim.AdamW(groups, lr=self.lr, betas=(beta1, beta2), eps=self.eps, fused=fused)
