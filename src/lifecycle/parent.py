"""Where a run's first weights come from: `init_from`, a finished run or a Hugging Face folder.

Architecture and tokenizer are the parent's; a `model=` that says otherwise is refused.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, open_dict
from torch import Tensor

from lifecycle import config
from lifecycle.errors import UserError
from lifecycle.model import ModelConfig
from lifecycle.model.huggingface import load_pretrained
from lifecycle.runfolder import RunFolder

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True, kw_only=True)
class Parent:
    """Weights (fp32, by our names) and sizes; `run` is the run's folder, None for a Hugging Face folder."""

    folder: Path
    run: RunFolder | None
    model: ModelConfig
    weights: dict[str, Tensor]

    def lineage(self) -> dict[str, Any]:
        """For run.json: the parent and its own ancestors."""
        before = self.run.lineage() if self.run else {}
        place = str((self.run.path if self.run else self.folder).resolve())
        parent = {
            "path": place,
            "sha256": _sha256(self.folder / "config.json", *sorted(self.folder.glob("*.safetensors"))),
        }
        ancestors = [*before.get("ancestors", []), *([before["parent"]] if before.get("parent") else [])]
        return {"parent": parent, "ancestors": ancestors}


def adopt_parent(cfg: DictConfig) -> Parent | None:
    """Load what `init_from` names and write its architecture and tokenizer into `cfg`; None for fresh weights.

    Raises UserError where there is no such parent, or `cfg` asks for another model or tokenizer than the parent's.
    """
    if cfg.init_from is None:
        return None
    folder, run = _find(str(cfg.init_from))
    model, weights = load_pretrained(folder)
    typed = [word for word in config.overrides() if word.startswith(("model=", "model.", "data.tokenizer"))]
    if typed:
        raise UserError(
            f"init_from={cfg.init_from} brings its own architecture and tokenizer, but {', '.join(typed)} asks for "
            "another: leave it out"
        )
    with open_dict(cfg):
        cfg.model = {"_target_": "lifecycle.model.ModelConfig", **asdict(model)}
        if any((folder / name).exists() for name in TOKENIZER_FILES):
            cfg.data.tokenizer = str(folder.resolve())
    return Parent(folder=folder, run=run, model=model, weights=weights)


def _find(name: str) -> tuple[Path, RunFolder | None]:
    """The model folder, and the run that it belongs to."""
    for place in (Path(name), Path("outputs") / name):
        if (place / "config.json").is_file():
            return place, None
        if (place / "model" / "config.json").is_file():
            return place / "model", RunFolder(place)
        if (place / "run.json").is_file():
            status = RunFolder(place).lineage().get("status")
            raise UserError(f"init_from={name}: run {place} has no model/ yet (it is {status}); let it finish first")
    runs = sorted(p.parent.parent.name for p in Path("outputs").glob("*/model/config.json"))
    known = f"finished runs here: {', '.join(runs)}" if runs else "there is no finished run under outputs/ here"
    raise UserError(f"init_from={name} is neither a run nor a folder with config.json and safetensors; {known}")


def _sha256(*files: Path) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()
