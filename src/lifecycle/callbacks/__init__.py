"""Callbacks that observe a run: progress display, profiler, guard, saving. `observers` is the `callbacks` group."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lifecycle.bounds import Every, FromZero, NotNegative


def observers(
    *,
    folder: Path | str,
    progress: bool,
    progress_seconds: NotNegative,
    profile_steps: Every,
    profile_after_steps: FromZero,
) -> list[Any]:
    """The callbacks that the config asks for; `folder` is the run's. 0 and None for `profile_steps` profile nothing."""
    from lifecycle.callbacks.profile import Profile  # here: the check of a config, which reads the keys above, does
    from lifecycle.callbacks.progress import ProgressDisplay  # without Lightning

    chosen: list[Any] = [ProgressDisplay(every_seconds=progress_seconds)] if progress else []
    if profile_steps:
        chosen.append(Profile(folder=Path(folder), steps=profile_steps, after_steps=profile_after_steps))
    return chosen
