"""Where a run's first weights come from: `init_from`, which names

    demo, outputs/demo            the exported model of a finished run
    demo@best, demo@400           a checkpoint of a run, finished or not: the best one, or that of a step
    FOLDER, FILE.gguf             a Hugging Face folder, or a GGUF file (or a folder with one)
    HuggingFaceTB/SmolLM2-135M    an id on the Hugging Face hub

Architecture and tokenizer are the parent's; a `model=` that says otherwise is refused. The architecture is read at
once, the weights are read (and fetched) when they are asked for: a dry run or a resumed one never does.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, open_dict
from torch import Tensor

from lifecycle import config
from lifecycle.checkpoint import list_committed, read_best, step_of
from lifecycle.checkpoint.weights import load_stage, load_weights
from lifecycle.errors import UserError
from lifecycle.lineage.run_folder import RunFolder
from lifecycle.model import ModelConfig
from lifecycle.model.huggingface import load_pretrained, read_config
from lifecycle.model.huggingface.gguf import gguf_file, tokenizer_gguf
from lifecycle.model.huggingface.lazy_tensors import CONFIG, EOS, GENERATION
from lifecycle.system.atomic import publish_folder
from lifecycle.system.cache import cache_folder
from lifecycle.system.foreign import read_object
from lifecycle.system.hub import TOKENIZER, fetched
from lifecycle.tokenizer.tokenizer import Tokenizer
from lifecycle.tokenizer.tokenizer import load as load_tokenizer

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
HUB_ID = re.compile(r"(?!outputs/)\w[\w.-]*/[\w.-]+")
SMALL_FILES = (*TOKENIZER, "generation_config.json")
ADAPTER = "adapter_config.json"
WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")


@dataclass(frozen=True, kw_only=True)
class Parent:
    """Sizes now, weights when asked for.

    folder: where the model lies (a checkpoint's for RUN@...); run: the run it is of, None for a model from elsewhere;
    tokenizer: a place that `data.tokenizer` understands, None where the parent has none; name: what lineage calls it;
    grown_from: tokens that it knew, where the run has given it more.
    """

    folder: Path
    run: RunFolder | None
    model: ModelConfig
    tokenizer: str | None
    name: str
    read: Callable[[], dict[str, Tensor]] = field(repr=False)
    grown_from: int | None = None

    @property
    def weights(self) -> dict[str, Tensor]:
        """fp32, by our names; read from the files by every call. Errors: `UserError` where they do not fit."""
        return self.read()

    @property
    def generation(self) -> dict[str, Any]:
        """Its generation_config.json (what ends a completion, how one is drawn); where there is none, the ends that its
        config.json names, as older folders do."""
        places = [self.folder, *([self.run.path / "model"] if self.run else [])]
        found = next((place / GENERATION for place in places if (place / GENERATION).is_file()), None)
        if found:
            return read_object(found)
        path = self.folder / CONFIG
        named = read_object(path).get(EOS) if path.is_file() else None
        return {} if named is None else {EOS: named}

    @property
    def domains(self) -> set[str]:
        """Those that its run was measured on; none of a model from elsewhere."""
        return set(filter(None, str(self.run.lineage().get("domain") or "").split(","))) if self.run else set()

    def lineage(self) -> dict[str, Any]:
        """For run.json: the parent and its own ancestors."""
        before = self.run.lineage() if self.run else {}
        files = [path for kind in ("*.json", "*.safetensors", "*.gguf") for path in sorted(self.folder.glob(kind))]
        parent: dict[str, Any] = {"path": self.name, "sha256": _sha256(*files)}
        if step_of(self.folder) is not None:
            parent["step"] = step_of(self.folder)
        ancestors = [*before.get("ancestors", []), *([before["parent"]] if before.get("parent") else [])]
        return {"parent": _with_data(parent), "ancestors": [_with_data(one) for one in ancestors]}


def adopt_parent(cfg: DictConfig) -> Parent | None:
    """Find what `init_from` names and write its architecture and tokenizer into `cfg`; None for fresh weights.

    Raises UserError where there is no such parent, or `cfg` asks for another model or tokenizer than the parent's.
    """
    if cfg.init_from is None:
        return None
    parent = find_parent(str(cfg.init_from))
    typed = [word for word in config.overrides() if word.startswith(("model=", "model.", "data.tokenizer"))]
    if typed:
        raise UserError(
            f"init_from={cfg.init_from} brings its own architecture and tokenizer, but {', '.join(typed)} asks for "
            "another: leave it out"
        )
    with open_dict(cfg):
        cfg.model = {"_target_": "lifecycle.model.ModelConfig", **_stated(parent.model)}
        if parent.tokenizer is not None:
            cfg.data.tokenizer = config.literal(parent.tokenizer)
    return parent


def _stated(model: ModelConfig) -> dict[str, Any]:
    """The keys that a file of this model would hold: those that are not what they are by default."""
    values = asdict(model)
    return {key.name: values[key.name] for key in fields(model) if getattr(model, key.name) != key.default}


def find_parent(name: str) -> Parent:
    """The parent that `init_from=name` means. Raises UserError where there is none."""
    name = os.path.expanduser(name)
    for place in (Path(name), Path("outputs") / name):
        if (place / "config.json").is_file() or gguf_file(place):
            return _from_files(place)
        if (place / "model" / "config.json").is_file():
            return _from_files(place / "model", run=RunFolder(place))
        if (place / "run.json").is_file():
            status = RunFolder(place).lineage().get("status")
            raise UserError(
                f"init_from={name}: run {place} has no model/ yet (it is {status}); let it finish first, or take one "
                f"of its checkpoints: {_checkpoints(place)}"
            )
    stem, mark, which = name.rpartition("@")
    for place in (Path(stem), Path("outputs") / stem) if mark else ():
        if (place / "run.json").is_file():
            return _from_checkpoint(RunFolder(place), which, name)
    if (Path(name) / ADAPTER).is_file():
        raise UserError(f"init_from={name} holds an adapter: merge it into its base model, and name the folder of that")
    if HUB_ID.fullmatch(name) and not Path(name).parent.exists():  # else a misspelt folder of this machine
        return _from_hub(name)
    raise UserError(
        f"init_from={name} is neither a run, nor a checkpoint (RUN@best, RUN@STEP), nor a folder with config.json "
        f"and safetensors, nor a GGUF file, nor a hub id (OWNER/NAME); {finished_runs()}"
    )


def finished_runs() -> str:
    """Those under outputs/ that can be a parent, in words."""
    runs = sorted(p.parent.parent.name for p in Path("outputs").glob("*/model/config.json"))
    return f"finished runs here: {', '.join(runs)}" if runs else "there is no finished run under outputs/ here"


def history(folder: RunFolder) -> list[Mapping[str, Any]]:
    """The `run.json` of every stage that made a run's weights, first to last and itself; a `path` where one is gone."""
    lineage = folder.lineage()
    before = [*lineage.get("ancestors", []), *([lineage["parent"]] if lineage.get("parent") else [])]
    return [*(RunFolder(Path(entry["path"])).lineage() or entry for entry in before), lineage]


def _with_data(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry of the lineage with the fingerprint of the data that made it, where that is known."""
    data = RunFolder(Path(entry["path"])).lineage().get("data", {})
    return {**({"data_fingerprint": data["fingerprint"]} if "fingerprint" in data else {}), **entry}


def _from_files(place: Path, run: RunFolder | None = None) -> Parent:
    """A Hugging Face folder, or GGUF."""
    file = gguf_file(place)
    folder = place if file is None else file.parent
    tokenizer = str(folder.resolve()) if any((folder / name).exists() for name in TOKENIZER_FILES) else None
    if tokenizer is None and file is not None:
        tokenizer = _unpacked_tokenizer(file.resolve())
    if run is not None and tokenizer is not None:
        _trained_with(run, folder, run.path.name)
    return Parent(
        folder=folder,
        run=run,
        model=read_config(place),
        tokenizer=tokenizer,
        name=str((run.path if run else place).resolve()),
        read=lambda: _read_export(place, run),
    )


def _read_export(place: Path, run: RunFolder | None) -> dict[str, Tensor]:
    """Its weights, asked for by a new run alone. Raises UserError where the run that wrote them has gone on since."""
    status = run.lineage().get("status") if run else None
    if run is None or status in (None, "finished"):
        return load_pretrained(place)[1]
    raise UserError(
        f"init_from: run {run.path} was started again and is {status}, so {place} is from before: let it finish "
        f"first, take one of its checkpoints ({_checkpoints(run.path)}), or type init_from={place} for the older model"
    )


def _unpacked_tokenizer(file: Path) -> str | None:
    """The tokenizer of a GGUF file as a folder in the cache; None where the file has none."""
    about = file.stat()
    key = hashlib.sha256(f"{file}:{about.st_size}:{about.st_mtime_ns}".encode()).hexdigest()[:16]
    folder = cache_folder() / "gguf" / key
    if not folder.is_dir():
        tokenizer = tokenizer_gguf(file)
        if tokenizer is None:
            return None
        with publish_folder(folder, replace=False) as aside:
            tokenizer.save_pretrained(aside)
    return str(folder)


def _from_checkpoint(run: RunFolder, which: str, name: str) -> Parent:
    """The weights inside a checkpoint; sizes and tokenizer are in the run's folder."""
    steps = {step_of(path): path for path in list_committed(run.checkpoints)}
    best = read_best(run.checkpoints)
    wanted = best["step"] if best and which == "best" else int(which) if which.isdecimal() else None
    written = run.config()
    if wanted not in steps or written is None:
        raise UserError(f"init_from={name}: there is no such checkpoint; run {run.path} has {_checkpoints(run.path)}")
    if not written.get("model"):
        raise UserError(f"{run.path / 'config.yaml'} says nothing of the run's model; get the file again")
    tokenizer = _trained_with(run, run.path / "tokenizer", name)
    sizes = DictConfig({"model": config.literal(written["model"])})
    model: ModelConfig = config.build(sizes.model)
    path = steps[wanted]
    theta = load_stage(path).get("rope_theta", model.rope_theta)  # a phase may have changed it on the way
    return Parent(
        folder=path,
        run=run,
        model=replace(model.with_vocab(tokenizer.vocab_size), rope_theta=theta),
        tokenizer=str((run.path / "tokenizer").resolve()),
        name=str(run.path.resolve()),
        read=lambda: _stripped(load_weights(path)),
    )


def _trained_with(run: RunFolder, place: Path, name: str) -> Tokenizer:
    """The tokenizer in a folder of a run. Raises UserError where it is another than the run's weights know."""
    found, known = load_tokenizer(str(place)), run.lineage().get("tokenizer")
    if known is not None and found.sha256 != known:
        raise UserError(
            f"init_from={name}: {place} has a tokenizer of hash {found.sha256[:16]}, and the run was trained with that "
            f"of hash {known[:16]}: put back what the run wrote there, or its words and ids do not belong together"
        )
    return found


def _stripped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's own names: a checkpoint holds those of the stage, whose network is called model."""
    return {name.removeprefix("model."): value.float() for name, value in state.items()}


def _checkpoints(place: Path) -> str:
    """What can stand after the @."""
    run = RunFolder(place)
    steps = [f"{place.name}@{step_of(path)}" for path in list_committed(run.checkpoints)]
    best = read_best(run.checkpoints)
    if best and any(step_of(path) == best["step"] for path in list_committed(run.checkpoints)):
        steps.append(f"{place.name}@best")
    return ", ".join(steps) or "none"


def _from_hub(name: str) -> Parent:
    """The small files now, the weights (of the same commit) when they are asked for."""
    folder = _fetched(name, SMALL_FILES, None)
    if not (folder / "config.json").is_file():
        raise UserError(f"init_from={name}: there is no config.json in this repository, so it is no model for here")
    commit = folder.name
    found = any((folder / file).exists() for file in TOKENIZER_FILES)
    return Parent(
        folder=folder,
        run=None,
        model=read_config(folder),
        tokenizer=str(folder) if found else None,
        name=name,
        read=lambda: load_pretrained(_fetched(name, SMALL_FILES + WEIGHT_FILES, commit))[1],
    )


def _fetched(name: str, patterns: Sequence[str], commit: str | None) -> Path:
    try:
        return fetched(name, patterns, commit)
    except UserError as error:
        raise UserError(
            f"init_from={name} is no place here, and was not found on the Hugging Face hub either ({error}). Without "
            "a network, fetch it elsewhere (hf download) and give its folder; a gated one wants `hf auth login`; a run "
            "is named by its folder under outputs/"
        ) from error


def _sha256(*files: Path) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()
