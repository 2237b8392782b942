"""Files of remote places, as fsspec lists them, and of data sets of the Hugging Face hub."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Mapping
from typing import Any

from lifecycle.data.read.files.retrying import is_of_network
from lifecycle.data.read.files.selection import excused, sift
from lifecycle.data.read.spec import SourceSpec
from lifecycle.errors import UserError

CONTENT_STAMPS = ("blob_id", "md5Hash", "md5", "content_md5", "ETag", "etag", "sha", "generation")
"""Names under which stores give a hash of a file's content, the most reliable first."""

TIME_STAMPS = ("LastModified", "last_modified", "mtime", "created")


ADVICE = (
    "Check the network, and that HF_HUB_OFFLINE is not set; where there is no network, name local files by path, or "
    "prepare the data elsewhere (stage=prepare, then data.prepared=RUN)"
)

Remote = tuple[dict[str, tuple[int, str]], dict[str, str]]
"""Size and stamp of each file that is read, by address, and why others that were met are not."""


def find_remote(url: str, *, where: str, split: str) -> Remote:
    """The files that an address or a pattern stands for. Raises UserError, which names the key `where`, if none."""
    import fsspec  # a remote source is the exception: its packages load only when there is one

    cause: BaseException | None = None
    try:
        fs, path = fsspec.core.url_to_fs(url)
        infos: Mapping[str, Any] = fs.glob(path, detail=True) if glob.has_magic(path) else _listed(fs, path)
    except FileNotFoundError as error:  # HTTP says so of an unreachable server as well, and keeps the cause
        infos, cause = {}, error.__cause__
    except Exception as error:
        if not (is_of_network(error) or isinstance(error, ImportError | ValueError)):
            raise
        raise UserError(f"{where}: {url} cannot be reached ({type(error).__name__}: {error}). {ADVICE}") from error
    found = {
        fs.unstrip_protocol(path): (int(info.get("size") or 0), _stamp(info))
        for path, info in infos.items()
        if info.get("type") != "directory"
    }
    _say_weak([url for url, (_, stamp) in found.items() if not stamp.startswith(CONTENT_STAMPS)], where)
    if not found:
        because = f" ({type(cause).__name__}: {cause})" if cause else ""
        raise UserError(f"{where}: nothing matches {url}{because}; check the address, the network and your access")
    if len(found) == 1 or glob.has_magic(path):
        return found, {}
    base = os.path.commonprefix([os.path.dirname(one) + "/" for one in found]).rpartition("/")[0] + "/"
    kept, passed = sift({one.removeprefix(base): size for one, (size, _) in found.items()}, split)
    if not kept:
        raise UserError(f"{where}: {url} holds nothing that is read: {excused(passed)}")
    return {base + one: found[base + one] for one in kept}, {base + one: why for one, why in passed.items()}


def _stamp(info: Mapping[str, Any]) -> str:
    """The most reliable identification of a file's content that the store gives, with its name."""
    return next((f"{key} {info[key]}" for key in (*CONTENT_STAMPS, *TIME_STAMPS) if info.get(key)), "")


def _say_weak(urls: list[str], where: str) -> None:
    if urls:
        sys.stderr.write(
            f"{where}: the store of {urls[0]} gives no hash of what a file holds: that one has changed is noticed by "
            "its size and time alone\n"
        )


def _listed(fs: Any, path: str) -> Mapping[str, Any]:
    info = fs.info(path)
    return fs.find(path, detail=True) if info.get("type") == "directory" else {path: info}


def hub_files(spec: SourceSpec, local: str, split: str, *, where: str) -> list[str]:
    """The data files of one split of a hub data set, or of the folder `local` if it is laid out like one."""
    import datasets  # takes a second to import, and only hub names need it

    hub = str(spec.hub)
    found, revision = (local, None) if os.path.isdir(local) else (hub, spec.revision)
    if revision != spec.revision:
        sys.stderr.write(f"{where}.revision is {spec.revision}, and {local} is a folder here, read as it is\n")
    try:
        builder = datasets.load_dataset_builder(found, spec.config, data_dir=spec.data_dir, revision=revision)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise UserError(
            f"{where}.hub is {hub!r}: {error} Check the name; a gated set needs `hf auth login`."
        ) from error
    except Exception as error:
        if not (is_of_network(error) or isinstance(error, ValueError | RuntimeError | ImportError)):
            raise
        raise UserError(
            f"{where}.hub: {hub!r} cannot be resolved ({type(error).__name__}: {error}). {ADVICE}"
        ) from error
    by_split = builder.config.data_files or {}
    if split not in by_split:
        raise UserError(f"{where}: {hub!r} has no split {split!r}; it has {', '.join(by_split) or 'no data files'}")
    return [str(url) for url in by_split[split]]
