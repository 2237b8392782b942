"""Callbacks that observe a run: progress display, profiler, guard, saving. `observers` is the `callbacks` group."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback

from lifecycle.bounds import Every, FromZero, NotNegative
from lifecycle.callbacks.profile import Profile
from lifecycle.callbacks.progress import ProgressDisplay

__all__ = ["Profile", "ProgressDisplay", "observers"]


def observers(
    *,
    folder: Path | str,
    progress: bool,
    progress_seconds: NotNegative,
    profile_steps: Every,
    profile_after_steps: FromZero,
) -> list[Callback]:
    """The callbacks that the config asks for; `folder` is the run's. 0 and None for `profile_steps` profile nothing."""
    chosen: list[Callback] = [ProgressDisplay(every_seconds=progress_seconds)] if progress else []
    if profile_steps:
        chosen.append(Profile(folder=Path(folder), steps=profile_steps, after_steps=profile_after_steps))
    return chosen
