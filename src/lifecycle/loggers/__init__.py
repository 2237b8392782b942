"""Where metrics go: `metrics.csv` of the run's folder always (`csv_logger.py`); TensorBoard or W&B beside it by
`logger=...`, whose functions stand here and import Lightning late, for the check of a config reads their signatures.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from lifecycle.errors import UserError
from lifecycle.loggers.metrics_file import read_metrics
from lifecycle.system.ranks import rank

__all__ = ["read_metrics", "tensorboard", "wandb"]


def tensorboard(*, folder: Path | str) -> Any:
    """`logger=tensorboard`: event files in the run's own folder (`tensorboard --logdir outputs`)."""
    from lightning.pytorch.loggers import TensorBoardLogger

    return TensorBoardLogger(save_dir=str(folder), name="", version="tensorboard")


def wandb(
    *, folder: Path | str, project: str, entity: str | None, offline: bool, tags: list[str], notes: str | None
) -> Any:
    """`logger=wandb`: the run's folder gives its name and its id, so that a resumed run goes on with its own curves.

    Raises UserError where W&B wants a login and has none.
    """
    from lightning.pytorch.loggers import WandbLogger

    if not offline and os.environ.get("WANDB_MODE", "online") == "online":
        if rank() == 0:
            _log_in()
    place = Path(folder).resolve()
    return WandbLogger(
        name=place.name,
        id=hashlib.sha256(str(place).encode()).hexdigest()[:16],
        save_dir=str(folder),
        project=project,
        entity=entity,
        offline=offline,
        tags=tags,
        notes=notes,
        resume=None if offline else "allow",
        log_model=False,
    )


def _log_in() -> None:
    import wandb as library
    from wandb.errors import Error

    cure = "type `wandb login` (or set WANDB_API_KEY), or logger.offline=true, which `wandb sync` sends later"
    try:
        known = library.login()
    except Error as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"logger=wandb: no login at Weights & Biases ({reason}); {cure}") from error
    if not known:
        raise UserError(f"logger=wandb: no login at Weights & Biases; {cure}")
