"""What a `_target_` may name, place by place. A stage, a job, a logger of a new kind is one more line here.

A list, not a prefix: a config may come from a stranger's run folder, and among all that lives in a package there are
functions that write, delete and load. Beside these only the dataclass that a constructor's annotation asks for may be
named. A user's own functions (`filters.classifier`) are named as text, and are not taken over from a parent.
"""

from __future__ import annotations

TARGETS: dict[str, tuple[str, ...]] = {
    "model": ("lifecycle.model.ModelConfig",),
    "data": ("lifecycle.data.config.DataConfig",),
    "stage": (
        "lifecycle.stages.pretrain.Pretrain",
        "lifecycle.stages.midtrain.Midtrain",
        "lifecycle.jobs.analyze.analyze",
        "lifecycle.jobs.prepare.prepare",
        "lifecycle.jobs.tokenizer.train",
        "lifecycle.jobs.generate.generate",
    ),
    "stage.optimizer": ("lifecycle.optim.AdamW", "lifecycle.optim.Muon"),
    "hardware": ("lifecycle.hardware.Hardware",),
    "logger": ("lifecycle.loggers.tensorboard", "lifecycle.loggers.wandb"),
    "callbacks": ("lifecycle.callbacks.observers",),
}
