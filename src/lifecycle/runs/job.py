"""A job on a finished model, such as `stage=generate`: it needs a parent and no data.

    python -m lifecycle stage=generate init_from=outputs/demo stage.prompt='Return the'

Its folder is written at the end, so a job that failed or was killed leaves none, and the last result stays. Without
run=NAME the folder is for the last result only, and the next call replaces it; a named one is kept as any run is.
"""

from __future__ import annotations

import time
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from lifecycle import config
from lifecycle.errors import UserError
from lifecycle.hardware import Hardware, device_name
from lifecycle.lineage.load_model import load_model
from lifecycle.lineage.parent import Parent, finished_runs
from lifecycle.lineage.run_folder import RunFolder, origin
from lifecycle.model.huggingface.lazy_tensors import ends_of
from lifecycle.tokenizer.tokenizer import Tokenizer, load

TRAINING_KEYS = tuple(
    f"hardware.{key}="
    for key in ("activation_checkpointing", "attention", "micro_batch_tokens", "peak_tflops", "workers")
)
"""What a job on a model has no use for, as it would be typed."""


def replaces_last(cfg: DictConfig, folder: RunFolder) -> bool:
    """Whether this call may write over what is in its folder: nobody named the run, and the same job made it."""
    if not config.is_model_job(cfg) or any(word.startswith("run=") for word in config.overrides()):
        return False
    then = folder.config()
    return then is None or then["stage"].get("_target_") == cfg.stage._target_


def run_model_job(cfg: DictConfig, folder: RunFolder, parent: Parent | None) -> None:
    """Load the parent, run the job on it, and write its folder. Raises UserError without `init_from`."""
    name = str(HydraConfig.get().runtime.choices["stage"])
    if parent is None:
        raise UserError(
            f"stage={name} works with a finished model, and init_from is null: type init_from=RUN, a Hugging Face "
            f"folder, or a GGUF file; {finished_runs()}"
        )
    started, began = time.perf_counter(), origin()
    hardware: Hardware = config.build(cfg.hardware)
    _check_hardware(name, hardware)
    model, tokenizer = load_model(parent, hardware), _tokenizer(cfg, parent)
    supplies: dict[str, Any] = {
        "model": model,
        "tokenizer": tokenizer,
        "parent_view": _view(parent),
        "parent_ends": ends_of(parent.generation),
        "parent_folder": parent.folder if (parent.folder / "config.json").is_file() else None,
        "seed": cfg.seed,
        "deterministic": cfg.deterministic,
        "compiled": None if hardware.compile == "auto" else hardware.compile,
        "folder": folder.path,
    }
    wanted = config.needs(cfg.stage)
    result = config.build(cfg.stage, without=config.JOB_ASIDE, **{k: v for k, v in supplies.items() if k in wanted})
    folder.write_config(config.resolved(cfg))
    folder.update(
        **began,
        status="finished",
        stage=name,
        **parent.lineage(),
        tokenizer=tokenizer.sha256,
        parameters=parent.model.parameters(),
        precision=str(model.head_weight.dtype).removeprefix("torch."),
        device=device_name(hardware.device_type()),
        overrides=config.overrides(),
        result=result,
        error=None,
        seconds=round(time.perf_counter() - started, 3),
    )


def _check_hardware(name: str, hardware: Hardware) -> None:
    """Refuse what a job on one device would leave unread. Raises UserError that lists all of it."""
    devices = hardware.devices if hardware.devices == "auto" else int(hardware.devices)
    faults = [
        f"hardware.{key} is {value}; type hardware.{key}={wanted}"
        for key, value, wanted in (
            ("devices", devices, 1),
            ("num_nodes", hardware.num_nodes, 1),
            ("strategy", hardware.strategy, "auto"),
        )
        if value not in ("auto", wanted)
    ]
    typed = [word for word in config.overrides() if word.startswith(TRAINING_KEYS)]
    faults += [f"{word} is of training alone; leave it out" for word in typed]
    if faults:
        lines = "\n".join(f"  - {fault}" for fault in faults)
        raise UserError(f"stage={name} runs in one process on one device:\n{lines}")


def _tokenizer(cfg: DictConfig, parent: Parent) -> Tokenizer:
    if parent.tokenizer is None:
        raise UserError(
            f"init_from={cfg.init_from}: {parent.folder} holds no tokenizer (tokenizer.json, tokenizer_config.json): "
            "put the files of the model's tokenizer there"
        )
    return load(parent.tokenizer)


def _view(parent: Parent) -> str | None:
    """What the model was last trained on (text, chat, ...); None for a model from elsewhere."""
    run = parent.run
    if run is None and parent.folder.name == "model" and (parent.folder.parent / "run.json").is_file():
        run = RunFolder(parent.folder.parent)
    stage = ((run.config() if run else None) or {}).get("stage", {})
    return stage.get("view")
