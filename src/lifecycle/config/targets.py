"""What a `_target_` may name, place by place.

Lists, not prefixes: a config may come from an untrusted run folder, and a package also contains functions that write,
delete and load. A stage and a job are named as their files: `stages/pretrain.py` defines the
stage `Pretrain`, `jobs/prepare.py` the job `prepare`. Beside these only the dataclass that a constructor's annotation
asks for may be named. A user's own functions (`filters.classifier`) are named as text, and are not taken over from a
parent.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]


def _stages() -> tuple[str, ...]:
    """The class of each file in stages/ that is named as the file and is a `Stage`."""
    names = {
        file: "".join(word.capitalize() for word in file.stem.split("_")) for file in (ROOT / "stages").glob("*.py")
    }
    return tuple(f"lifecycle.stages.{f.stem}.{name}" for f, name in names.items() if f"class {name}(Stage)" in _text(f))


def _jobs() -> tuple[str, ...]:
    """The function of each file in jobs/ that is named as the file."""
    files = (ROOT / "jobs").glob("*.py")
    return tuple(f"lifecycle.jobs.{f.stem}.{f.stem}" for f in files if f"\ndef {f.stem}(" in _text(f))


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8")


TARGETS: dict[str, tuple[str, ...]] = {
    "model": ("lifecycle.model.ModelConfig",),
    "data": ("lifecycle.data.corpus.DataConfig",),
    "stage": tuple(sorted(_stages() + _jobs())),
    "stage.optimizer": ("lifecycle.optim.AdamW", "lifecycle.optim.Muon"),
    "adapter": ("lifecycle.model.lora.Adapter",),
    "hardware": ("lifecycle.hardware.Hardware",),
    "logger": ("lifecycle.loggers.tensorboard", "lifecycle.loggers.wandb"),
    "callbacks": ("lifecycle.callbacks.observers",),
}
