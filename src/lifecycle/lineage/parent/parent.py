"""A model that a run starts from, and the runs that made it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from lifecycle.checkpoint import step_of
from lifecycle.errors import UserError
from lifecycle.lineage.run_folder import RunFolder
from lifecycle.model import ModelConfig
from lifecycle.model.huggingface.lazy_tensors import CONFIG, EOS, GENERATION
from lifecycle.system.foreign import read_object
from lifecycle.tokenizer.tokenizer import Tokenizer, load

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True, kw_only=True)
class Parent:
    """The model in `folder`: its sizes, and a function that reads its weights.

    folder: of the model, or of the checkpoint for RUN@... run: that made it; None for a model from elsewhere.
    tokenizer: as `data.tokenizer` names it; None where the parent has none. name: in the lineage of run.json. read: the
    weights. commit: of a hub repository, which identifies its files; None elsewhere. grown_from: tokens of its
    vocabulary before the run added some; None where it added none.
    """

    folder: Path
    run: RunFolder | None
    model: ModelConfig
    tokenizer: str | None
    name: str
    read: Callable[[], dict[str, Tensor]] = field(repr=False)
    commit: str | None = None
    grown_from: int | None = None

    @property
    def weights(self) -> dict[str, Tensor]:
        """fp32 weights under our names; every call reads the files. Errors: `UserError` where they do not fit."""
        return self.read()

    @property
    def generation(self) -> dict[str, Any]:
        """Its generation_config.json (stop ids, sampling settings); where there is none, the stop ids of its
        config.json, as in older folders."""
        places = [self.folder, *([self.run.path / "model"] if self.run else [])]
        found = next((place / GENERATION for place in places if (place / GENERATION).is_file()), None)
        if found:
            return read_object(found)
        path = self.folder / CONFIG
        named = read_object(path).get(EOS) if path.is_file() else None
        return {} if named is None else {EOS: named}

    @property
    def domains(self) -> set[str]:
        """Validation domains of its run; empty for a model from elsewhere."""
        return set(filter(None, str(self.run.lineage().get("domain") or "").split(","))) if self.run else set()

    def stated(self) -> dict[str, Any]:
        """Its model as keys of a config file: those whose value is not the default."""
        values = asdict(self.model)
        return {
            key.name: values[key.name] for key in fields(self.model) if getattr(self.model, key.name) != key.default
        }

    def sha256(self) -> str:
        """Of its files, whole; of a hub repository, whose files may be here or not yet, of its commit."""
        if self.commit is not None:
            return hashlib.sha256(f"{self.name}@{self.commit}".encode()).hexdigest()
        return _sha256(*(p for kind in ("*.json", "*.safetensors", "*.gguf") for p in sorted(self.folder.glob(kind))))

    def lineage(self) -> dict[str, Any]:
        """For run.json: the parent and its own ancestors."""
        before = self.run.lineage() if self.run else {}
        parent: dict[str, Any] = {"path": self.name, "sha256": self.sha256()}
        if step_of(self.folder) is not None:
            parent["step"] = step_of(self.folder)
        ancestors = [*before.get("ancestors", []), *([before["parent"]] if before.get("parent") else [])]
        return {"parent": _with_data(parent), "ancestors": [_with_data(one) for one in ancestors]}


def history(folder: RunFolder) -> list[Mapping[str, Any]]:
    """The `run.json` of every run that led to this one, first to last, itself included; only `path` for one whose
    folder is gone."""
    lineage = folder.lineage()
    before = [*lineage.get("ancestors", []), *([lineage["parent"]] if lineage.get("parent") else [])]
    return [*(RunFolder(Path(entry["path"])).lineage() or entry for entry in before), lineage]


def trained_with(run: RunFolder, place: Path, asked: str) -> Tokenizer:
    """The tokenizer in a folder of a run. Raises UserError where it is another than the run's weights know."""
    found, known = load(str(place)), run.lineage().get("tokenizer")
    if known is not None and found.sha256 != known:
        raise UserError(
            f"{asked}: {place} has a tokenizer of hash {found.sha256[:16]}, and the run was trained with that "
            f"of hash {known[:16]}: put back what the run wrote there, or its words and ids do not belong together"
        )
    return found


def _with_data(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry of the lineage with the fingerprint of the data that made it, where that is known."""
    data = RunFolder(Path(entry["path"])).lineage().get("data", {})
    return {**({"data_fingerprint": data["fingerprint"]} if "fingerprint" in data else {}), **entry}


def _sha256(*files: Path) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()
