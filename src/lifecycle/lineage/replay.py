"""Data that a run takes over from its ancestors: sources to replay, and evaluation sets to decontaminate against.

    replay.NAME, replay.1.NAME, ...   the own sources of the parent, of its parent, ...

Every generation is included, so that forgetting of all of them is measured. Those that `stage.replay.ancestors` does
not choose have weight 0: measured, and never trained on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from itertools import chain, count, takewhile
from pathlib import Path
from typing import Any

from lifecycle.data.clean.contamination import RULE, Decontaminate, EvaluationSet
from lifecycle.data.conversation.template_check import TEXT
from lifecycle.data.curriculum.buckets import is_bucket
from lifecycle.data.mixture.batch_plan import REPLAY
from lifecycle.data.mixture.replay_names import generation_of, replay_name, replayed_later
from lifecycle.data.mixture.weight import Weight
from lifecycle.data.read.files.listing import place
from lifecycle.data.read.spec import SourceSpec
from lifecycle.errors import UserError
from lifecycle.lineage.parent import Parent
from lifecycle.lineage.run_folder import RunFolder

AMOUNTS = ("domain", "weight", "max_epochs", "tokens", "prompts", "validation_tokens", "rewards", "shuffle_options")
"""Keys of a source that do not change its text: its domain, and how much of it is read and measured."""


def replayed_sources(
    parent: Parent, ancestors: Any, *, share: float, view: str, functions: Collection[str] = ()
) -> dict[str, Any]:
    """The sources of the ancestors' mixtures, by the names that they have here; `ancestors` as in `stage.replay`.

    view: what this run trains on. functions: the modules whose functions they may call, named by this run itself.
    Raises UserError for another.
    """
    runs = _ancestry(parent)
    if not runs and not share:
        return {}
    if not runs:
        raise UserError(
            f"stage.replay.share is {share:g}, but {parent.name} is no run, and what it was trained on is not known: "
            f"name a source {REPLAY} in the mixture (data.sources.{REPLAY}.hub=...), or type stage.replay.share=0"
        )
    out: dict[str, Any] = {}
    for generation, (run, weight) in enumerate(zip(runs, _weights(ancestors, len(runs)), strict=True)):
        own = _mixture(run, view)
        total = sum(source["weight"] for source in own.values())
        for name, source in own.items():
            made = {**source, "weight": weight * source["weight"] / total}
            if made["weight"] or _can_be_measured(made, out.values()):
                out[replay_name(generation, name)] = made
    for name, source in runs[-1].lineage()["data"]["config"]["sources"].items():
        # of runs whose folders are gone: the oldest that is there knows what it took over from them
        if (older := replayed_later(name, len(runs))) and _can_be_measured(source, out.values()):
            out[older] = {**source, "weight": 0.0}
    for name, source in out.items():
        _refuse_code(name, source, parent, functions)
    return out


def _refuse_code(name: str, source: Mapping[str, Any], parent: Parent, functions: Collection[str]) -> None:
    """Raise UserError for a function of the user's that this run has not allowed: it is code, and the folder of a
    parent may be untrusted."""
    function = str(((source.get("filters") or {}).get("classifier") or {}).get("function", ""))
    module = function.partition(":")[0]
    if function and module not in functions:
        raise UserError(
            f"source {name}, taken over from {parent.name}, is filtered by the function {function}. A function is "
            "code, and is not taken over with a folder: look at it, and where you trust it type "
            f"'stage.replay.functions=[{','.join([*functions, module])}]'; or replay text of your own choice, as a "
            f"source named {REPLAY} (data.sources.{REPLAY}.path=...)"
        )


def kept_out(own: Mapping[str, Any] | None, root: str | None, parent: Parent) -> dict[str, Any] | None:
    """`data.decontaminate` with the evaluation sets of all ancestors added, so that text which an ancestor left out for
    contamination is left out of replayed and of new text. A set keeps the rule of its run.

    own: `data.decontaminate` of this run, whose relative paths start at `root`.
    """
    merged = dict(own) if own else None
    for run in _ancestry(parent):
        theirs = run.lineage()["data"]["config"].get("decontaminate")
        if theirs:
            merged = _joined(merged, root, theirs, _root(run))
    return merged


# -- domains


def told_apart(found: Mapping[str, Any], own: Mapping[str, Any], root: str | None) -> dict[str, Any]:
    """The replayed sources, each with a domain that is measured by itself.

    A domain keeps the name that it had, unless the run's own sources (`own`, whose relative paths start at `root`), or
    those of a later generation, have that domain with other text: then it is `replay.NAME`, as a source would be.
    """
    taken = {domain: texts(members.values(), root) for domain, members in by_domain(own).items()}
    out = dict(found)
    for generation in sorted({generation_of(name) or 0 for name in found}):
        here = {name: source for name, source in found.items() if generation_of(name) == generation}
        for domain, members in by_domain(here).items():
            held = texts(members.values(), None)
            if taken.setdefault(domain, held) != held:
                domain = replay_name(generation, domain)
                taken[domain] = held
            out |= {name: {**source, "domain": domain} for name, source in members.items()}
    return out


def trained_on(parent: Parent) -> set[str]:
    """Identities (see `texts`) of the sources that the parent's run was trained on, or an ancestor whose text it has
    from replay; empty for a model from elsewhere. What was measured and never trained on is nothing to forget."""
    if parent.run is None or not (data := parent.run.lineage().get("data")):
        return set()
    sources, seen = data["config"]["sources"], data.get("sources", {})
    trained = [one for name, one in sources.items() if name.startswith(f"{REPLAY}.") or _amount(name, one, seen)]
    return texts(trained, _root(parent.run))


def by_domain(sources: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The sources of each domain, by name."""
    out: dict[str, dict[str, Any]] = {}
    for name, source in sources.items():
        out.setdefault(source.get("domain") or name, {})[name] = source
    return out


def texts(sources: Iterable[Mapping[str, Any]], root: str | None) -> set[str]:
    """The identity of each source's text: where its files are and how they are read, not how much of it is read. A key
    with its default value counts as absent, since older versions did not write it."""
    default = {key.name: key.default for key in fields(SourceSpec)}
    kept = (
        {k: v for k, v in source.items() if k not in AMOUNTS and v is not None and v != default.get(k)}
        for source in sources
    )
    return {json.dumps(_placed(source, root), sort_keys=True) for source in kept}


def _weights(ancestors: Any, generations: int) -> list[float]:
    """Of the parent, its parent, ...: as many as there are."""
    if ancestors == "all":
        return [1.0] * generations
    chosen = [1.0] * ancestors if isinstance(ancestors, int) else [float(weight) for weight in ancestors]
    return [*chosen, *[0.0] * generations][:generations]


def _ancestry(parent: Parent) -> list[RunFolder]:
    """The runs that made the parent, itself first; it ends where a folder is gone or was not a run."""
    if parent.run is None:
        return []
    lineage = parent.run.lineage()
    before = [*lineage.get("ancestors", []), *([lineage["parent"]] if lineage.get("parent") else [])]
    runs = [parent.run, *(RunFolder(Path(entry["path"])) for entry in reversed(before))]
    return list(takewhile(lambda run: run.lineage().get("data"), runs))


def _mixture(run: RunFolder, view: str) -> dict[str, Any]:
    """The sources that a run was trained on, but for those of its ancestors, as they are read from anywhere: what it
    knows as documents are documents also in a run on another `view`."""
    data, root = run.lineage()["data"], _root(run)
    measured = {name: n for one in data.get("validation", {}).values() for name, n in one.get("wanted", {}).items()}
    seen: Mapping[str, Any] = data.get("sources", {})
    out = {}
    for name, source in data["config"]["sources"].items():
        if name.startswith(f"{REPLAY}."):
            continue
        weight = _amount(name, source, seen)
        if not weight:  # measured, never trained on
            continue
        kept = {key: value for key, value in source.items() if key not in ("max_epochs", "rewards", "weight")}
        # so many as that run has measured: what it reports and what this one begins with are numbers of the same text
        kept |= {"validation_tokens": measured[name]} if measured.get(name) else {}
        if view != TEXT and (run.config() or {}).get("stage", {}).get("view") == TEXT:
            kept["view"] = TEXT
        out[name] = {**_placed(kept, root), "domain": source.get("domain") or name, "weight": weight}
    return out


def _amount(name: str, source: Mapping[str, Any], seen: Mapping[str, Any]) -> float:
    """How much of a source its run was trained on, beside its others: the tokens that it has seen, where they are known
    (a source that was used up has less than its weight), else its weight; 0: it was measured alone."""
    tokens = sum(float(row["tokens"]) for part, row in seen.items() if part == name or is_bucket(part, name))
    return tokens or _mean(source.get("weight", 1.0))


def _can_be_measured(source: Mapping[str, Any], others: Iterable[Mapping[str, Any]]) -> bool:
    """Whether it has held-out text that no source of `others` measures already."""
    held_out = source.get("validation", True) is not None
    aside = {"weight": 0.0, "validation_tokens": None}
    return held_out and all({**other, **aside} != {**source, **aside} for other in others)


def _mean(weight: Any) -> float:
    made = Weight.of(weight, "weight")
    return sum(made.at(step / 100) for step in range(101)) / 101


# -- places


def _root(run: RunFolder) -> str:
    """Where the relative paths in a run's config start."""
    data = run.lineage()["data"]
    # a run of an earlier version has not written it down: it ran in the folder that outputs/ lies in
    return data.get("root") or place(data["config"].get("root") or "", os.fspath(run.path.resolve().parents[1]))


def _placed(source: Mapping[str, Any], root: str | None) -> dict[str, Any]:
    """A source, or an evaluation set, whose files are found from any folder."""
    out = dict(source)
    if source.get("path") is not None:
        out["path"] = _from_root(source["path"], root)
    if source.get("hub") is not None and os.path.isdir(local := place(source["hub"], root)):
        out["hub"] = local
    if "validation" in source and (file := SourceSpec(**source).validation_file) is not None:
        out["validation"] = place(file, root)
    return out


def _from_root(path: Any, root: str | None) -> Any:
    if isinstance(path, str):
        return place(path, root)
    if isinstance(path, Sequence):
        return [_from_root(part, root) for part in path]
    return {split: _from_root(part, root) for split, part in path.items()}


# -- evaluation sets


def _joined(own: dict[str, Any] | None, root: str | None, theirs: Mapping[str, Any], their_root: str) -> dict[str, Any]:
    """`own` and those of `theirs` that it does not have."""
    their_rule = _rule(theirs)
    rule = _rule(own) if own else their_rule
    sets = dict(own["sets"]) if own else {}
    known = [_looked_for(one, rule, root or "") for one in sets.values()]
    for name, one in theirs["sets"].items():
        looked_for = _looked_for(one, their_rule, their_root)
        if looked_for in known:
            continue
        differs = {key: value for key, value in their_rule.items() if value != rule[key]}
        known.append(looked_for)
        sets[_free(name, sets)] = {**differs, **_given(_placed(one, their_root))}
    return {**rule, "sets": sets}


def _rule(decontaminate: Mapping[str, Any]) -> dict[str, Any]:
    return {key: decontaminate.get(key, getattr(Decontaminate, key)) for key in RULE}


def _looked_for(one: Mapping[str, Any], rule: Mapping[str, Any], root: str) -> EvaluationSet:
    """An evaluation set with all that is looked for by: equal ones are the same set."""
    return EvaluationSet(**{**rule, **_given(_placed(one, root))})


def _given(one: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in one.items() if value is not None}


def _free(name: str, taken: Mapping[str, Any]) -> str:
    """The name, or with a number where another set has it."""
    return next(one for one in chain([name], (f"{name}_{n}" for n in count(2))) if one not in taken)
