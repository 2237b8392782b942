"""The commit of every hub data set that a run reads: looked up once, when the run begins, and written into its config.

    data.sources.web: {hub: OWNER/NAME, revision: null}      ->  revision: <commit of main now>
    data.sources.web: {hub: OWNER/NAME, revision: v1.0}      ->  revision: <commit of v1.0 now>

run.json keeps the revision of the command beside the commit, so the same command resumes with the same commit, whatever
was pushed since, without a look-up; a run that starts from this one replays that commit. Shards need no look-up.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator, Mapping

from omegaconf import DictConfig, open_dict

from lifecycle.data.read.files.listing import place
from lifecycle.data.read.files.remote import ADVICE
from lifecycle.data.stream.prepared import prepared_folder
from lifecycle.errors import UserError
from lifecycle.lineage.run_folder import RunFolder
from lifecycle.system.hub_files import reason

COMMIT = re.compile(r"[0-9a-f]{40}")
Pinned = dict[str, dict[str, str | None]]  # by dotted key: hub, asked, commit


def pin(cfg: DictConfig, folder: RunFolder) -> Pinned:
    """The commits of all hub sets, for run.json and for `with_revisions`. Raises UserError where the hub, or the
    revision, cannot be reached."""
    pinned: Pinned = dict(folder.lineage().get("revisions", {}))
    begun, shards = folder.config(), _of_shards(cfg.data)
    out: Pinned = {}
    for where, node in _hub_sets(cfg.data):
        hub, asked = str(node["hub"]), node.get("revision")
        known = pinned.get(where, {})
        if known.get("hub") == hub and asked in (known.get("asked"), known.get("commit")):
            commit, asked = known["commit"], known.get("asked")
        elif asked is not None and COMMIT.fullmatch(asked):
            commit = asked
        elif begun is not None and not pinned:  # by a version that read what was there
            continue
        elif where in shards:
            commit = shards[where].get("commit") if shards[where].get("hub") == hub else None
        else:
            commit = commit_of(hub, asked, where)
        if commit is not None:
            out[where] = {"hub": hub, "asked": asked, "commit": commit}
    return out


def with_revisions(cfg: DictConfig, pinned: Pinned) -> DictConfig:
    """A copy of `cfg` that names the commits."""
    made = copy.deepcopy(cfg)
    for where, node in _hub_sets(made.data):
        if where in pinned:
            with open_dict(node):
                node["revision"] = pinned[where]["commit"]
    return made


def commit_of(hub: str, revision: str | None, where: str) -> str:
    """The commit that a revision (None: the main branch) of a hub data set is at now."""
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(hub, revision=revision).sha)
    except Exception as error:  # of whichever HTTP library it is built on
        raise UserError(
            f"{where}.hub is {hub!r}, and its revision {revision or 'main'} cannot be found ({reason(error)}). Check "
            f"the name; a gated set needs `hf auth login`. {ADVICE}"
        ) from error


def _hub_sets(data: DictConfig) -> Iterator[tuple[str, DictConfig]]:
    """The sources and evaluation sets that are read from the hub, by their dotted keys."""
    sets = (data.get("decontaminate") or {}).get("sets") or {}
    places = [(f"data.sources.{name}", node) for name, node in data.sources.items()]
    places += [(f"data.decontaminate.sets.{name}", node) for name, node in sets.items()]
    for where, node in places:
        hub = node.get("hub")
        if hub is not None and not os.path.isdir(place(str(hub), data.get("root"))):
            yield where, node


def _of_shards(data: DictConfig) -> Mapping[str, Mapping[str, str | None]]:
    """What is not read because prepared shards stand for it, by dotted key, and what they were made from: the sources
    that they have, and the evaluation sets where they have all."""
    if data.get("prepared") is None:
        return {}
    folder = prepared_folder(str(data.prepared))
    pinned: Pinned = RunFolder(folder).lineage().get("revisions", {})
    have = {path.name for path in (folder / "prepared").iterdir()}
    places = [f"data.sources.{name}" for name in data.sources if name in have]
    if have >= set(data.sources):
        places += [where for where, _ in _hub_sets(data)]
    return {where: pinned.get(where, {}) for where in places}
