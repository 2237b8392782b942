"""The content of a run's folder, which is all that a report is made from; every file may be missing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lifecycle.loggers import read_metrics

BOUNDS = "_low", "_high"
"""Behind the name of a measure: the ends of its interval."""
CROSS_ENTROPIES = "train/nll", "train/cross_entropy"
"""Of losses that weigh tokens by their probability, and of distillation."""
Series = tuple[list[float], list[float]]
"""x and y of one curve."""


@dataclass(frozen=True, kw_only=True)
class RunData:
    """The content of a run's folder. missing: a line for each file that is absent or cannot be read."""

    folder: Path
    config: Mapping[str, Any]
    run: Mapping[str, Any]
    metrics: Mapping[str, list[float | None]]
    ledger: Mapping[str, Any]
    samples: Sequence[Mapping[str, Any]]
    answers: Sequence[Mapping[str, Any]]
    baselines: Mapping[str, Mapping[str, float]]
    forgetting: Mapping[str, Any]
    calibration: Mapping[str, Any]
    preflight: Mapping[str, Any]
    noticed: Sequence[Mapping[str, Any]]
    quarantined: Mapping[str, int]
    missing: tuple[str, ...]

    def setting(self, key: str) -> Any:
        """The config's value at a dotted key, or None."""
        return dig(self.config, key)

    def series(self, name: str, x: str) -> Series:
        """The steps at which a metric was logged with a finite x: (x, y), both possibly empty."""
        xs, ys = self.metrics.get(x, []), self.metrics.get(name, [])
        pairs = [(a, b) for a, b in zip(xs, ys, strict=False) if a is not None and b is not None]
        return [float(a) for a, _ in pairs], [float(b) for _, b in pairs]

    def last(self, name: str) -> float | None:
        """The last logged value of a metric."""
        return next((v for v in reversed(self.metrics.get(name, [])) if v is not None), None)

    @property
    def domains(self) -> list[str]:
        """The domains that were validated, in order of appearance."""
        ends = "/loss", "/perplexity", "/bits_per_byte"
        names = [key.split("/", 1)[1] for key in self.metrics if key.startswith("valid/") and key.endswith(ends)]
        return list(dict.fromkeys(name.rsplit("/", 1)[0] for name in names if "/" in name))

    @property
    def is_likelihood(self) -> bool:
        """Whether its loss is the likelihood of text, which has units of its own; by the view that it trained on, where
        nothing was held out."""
        if not self.domains:
            return self.setting("stage.view") in (None, "text", "chat")
        return any(self.last(f"valid/{name}/perplexity") is not None for name in self.domains)

    @property
    def training_loss(self) -> str:
        """The metric of training that the held-out loss is compared with: the cross-entropy of the same tokens, where
        the loss is another."""
        beside = [name for name in CROSS_ENTROPIES if name in self.metrics]
        return beside[0] if beside and self.is_likelihood else "train/loss"

    @property
    def learns_from_samples(self) -> bool:
        """Whether it was trained on samples of its own, by their rewards."""
        return "rollout/reward" in self.metrics

    @property
    def measures(self) -> dict[str, dict[str, float]]:
        """By domain, what was last measured on its held-out data, by name."""
        found: dict[str, dict[str, float]] = {name: {} for name in self.domains}
        for key in self.metrics:
            domain, _, name = key.removeprefix("valid/").rpartition("/")
            if key.startswith("valid/") and domain in found and (value := self.last(key)) is not None:
                found[domain][name] = value
        bounds = {f"{name}{end}" for measured in found.values() for name in measured for end in BOUNDS}
        return {domain: {n: v for n, v in one.items() if n not in bounds} for domain, one in found.items()}

    def interval(self, domain: str, name: str) -> tuple[float, float] | None:
        """Of what was last measured under that name, where it has one."""
        low, high = (self.last(f"valid/{domain}/{name}{end}") for end in BOUNDS)
        return None if low is None or high is None else (low, high)

    @property
    def held_out_items(self) -> dict[str, int]:
        """By domain, how many held-out documents, pairs or answers it was measured on."""
        measured = dig(self.run, "data.validation") or {}
        return {name: int(found["documents"]) for name, found in measured.items() if "documents" in found}

    @property
    def domain_weights(self) -> dict[str, float]:
        """The share of each validated domain, as the ledger planned it; equal shares where it says nothing."""
        weights = dict.fromkeys(self.domains, 0.0)
        for source in self.ledger.get("sources", {}).values():
            if source.get("domain") in weights:
                weights[source["domain"]] += source.get("weight") or 0.0
        whole = sum(weights.values())
        return {name: weight / whole if whole else 1 / len(weights) for name, weight in weights.items()}

    @property
    def status(self) -> str:
        """running, finished, stopped, failed, or unknown."""
        return str(self.run.get("status", "unknown"))


def dig(mapping: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key, or None where the path ends early."""
    value: Any = mapping
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


def read_run(folder: Path) -> RunData:
    """Read what is there. A file that is absent, cut short or of another shape is named in `missing`, and no more."""
    missing: list[str] = []
    quarantine = sorted((folder / "quarantine").glob("*.jsonl"))
    metrics = read_metrics(folder / "metrics.csv")
    if not metrics.get("step"):
        missing.append("metrics.csv (no step was logged)")
    return RunData(
        folder=folder,
        config=_load(folder / "config.yaml", {}, missing),
        run=_load(folder / "run.json", {}, missing),
        metrics=metrics,
        ledger=_load(folder / "ledger.json", {}, missing),
        samples=_load(folder / "samples.json", [], missing),
        answers=_answers(folder / "answers.jsonl", missing),
        baselines=_load(folder / "baselines.json", {}, missing),
        forgetting=_load(folder / "forgetting.json", {}, []),  # only runs that could forget have one
        calibration=_load(folder / "calibration.json", {}, []),  # only reward models have one
        preflight=_load(folder / "preflight.json", {}, []),  # only runs that learn from samples have one
        noticed=_load(folder / "noticed.json", [], []),  # ... of which something was said
        quarantined={path.stem: _lines(path) for path in quarantine},
        missing=tuple(missing),
    )


def _answers(path: Path, missing: list[str]) -> list[dict[str, Any]]:
    """The answers to held-out prompts, of a run that was asked."""
    if not path.exists():
        return []
    try:
        return [json.loads(line) for line in path.read_text(errors="replace").splitlines()]
    except json.JSONDecodeError:
        missing.append(f"{path.name} (damaged)")
        return []


def _load(path: Path, empty: Any, missing: list[str]) -> Any:
    if not path.exists():
        missing.append(path.name)
        return empty
    text = path.read_text(errors="replace")
    # A run that was killed leaves files half written: the report is then the place that says so, not one more victim.
    try:
        value = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    except (json.JSONDecodeError, yaml.YAMLError):
        missing.append(f"{path.name} (damaged)")
        return empty
    if not isinstance(value, type(empty)):
        missing.append(f"{path.name} (not a {type(empty).__name__})")
        return empty
    return value


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON Lines, up to the first line that is none; none where there is no file."""
    found: list[dict[str, Any]] = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return found


def _lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))
