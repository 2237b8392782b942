"""Tensors of a folder, not read yet: shapes at once, numbers when they are needed.

A 7B model is read one tensor at a time into its place, and a folder whose shapes do not fit is refused before any of
it is read. Fused experts and 8-bit floats appear as the plain matrices that they stand for.

Shapes: E experts, F width of the feed-forward part, D width, R rows, C columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from lifecycle.errors import UserError
from lifecycle.model.interchange import MATRICES
from lifecycle.system.foreign import mistaken_file, read_object

CONFIG, GENERATION = "config.json", "generation_config.json"
EOS = "eos_token_id"
"""Key of both: the token that ends a completion, or a list of them."""
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

FUSED = "gate_up_proj"  # the name under which transformers holds two matrices of all experts in memory
SCALE = "_scale_inv"


@dataclass(frozen=True)
class Stored:
    """A tensor in a file or in memory, in the dtype it has there: `read(None)` whole, `read(i)` its i-th part along
    the first dimension."""

    shape: tuple[int, ...]
    read: Callable[[int | None], Tensor]


def ends_of(generation: Mapping[str, Any]) -> list[int]:
    """The stop ids of a generation_config.json, in its order; empty where it names none. Errors: `UserError`."""
    named = generation.get(EOS)
    ends = [token for token in (named if isinstance(named, list) else [named]) if token is not None]
    if any(type(token) is not int for token in ends):
        raise UserError(
            f"{EOS} is {named!r}; wanted the number of a token, or a list of them: mend it in {GENERATION} (or "
            f"{CONFIG}, where there is none) of the model"
        )
    return ends


def from_memory(weights: Mapping[str, Tensor]) -> dict[str, Stored]:
    """A state dict."""

    def stored(weight: Tensor) -> Stored:
        return Stored(tuple(weight.shape), lambda part: weight if part is None else weight[part])

    return {name: stored(weight) for name, weight in weights.items()}


def from_files(folder: Path) -> dict[str, Stored]:
    """The tensors of a folder's safetensors file or files. Errors: `UserError` where files are absent or broken."""

    def stored(opened: Any, name: str) -> Stored:
        lying = opened.get_slice(name)
        return Stored(tuple(lying.get_shape()), lambda part: opened.get_tensor(name) if part is None else lying[part])

    found: dict[str, Stored] = {}
    for path in weight_files(folder):
        came = mistaken_file(path)
        if came is not None:
            raise UserError(f"{path} is {came}")
        try:
            opened: Any = safe_open(path, framework="pt")
        except SafetensorError as error:
            raise UserError(f"{path} is no whole safetensors file ({error}); get it again") from error
        found |= {name: stored(opened, name) for name in opened.keys()}  # noqa: SIM118 (it is no mapping)
    return found


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, in order. Errors: `UserError` where one is absent."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        raise UserError(
            f"{folder}: neither {SINGLE} nor {INDEX} is there; weights are read from safetensors files only (others "
            "become them by AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(FOLDER))"
        )
    where = read_object(folder / INDEX).get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(name, str) for name in where.values()):
        raise UserError(f"{folder / INDEX} names no files under weight_map; get it again")
    names = sorted(set(where.values()))
    if outside := [name for name in names if Path(name).name != name]:
        raise UserError(f"{folder}: {INDEX} names files outside the folder: {', '.join(outside)}; get the folder again")
    files = [folder / name for name in names]
    absent = [path.name for path in files if not path.is_file()]
    if absent:
        raise UserError(f"{folder}: {INDEX} names files that are not there: {', '.join(absent)}; get them too")
    return files


def plain(
    found: Mapping[str, Stored], tensors: Mapping[str, str], *, block: tuple[int, int] | None = None
) -> dict[str, Stored]:
    """The same tensors under the names that folders on the hub have: one matrix for each expert, and no scales.

    tensors: the family's names inside a block. block: rows and columns that share a scale in 8-bit files.
    """
    lie = {matrix: tensors.get(f"ffn.experts.{matrix}", f"mlp.experts.*.{matrix}.weight") for matrix in MATRICES}
    place = lie["gate_proj"].partition(".")[0]  # which transformers calls mlp in memory, whatever it is in a folder
    gate, up, down = (lie[matrix].split(".")[-2] for matrix in MATRICES)
    out: dict[str, Stored] = {}
    for name, stored in (_unscaled(found, block) if block else found).items():
        if "ffn.experts.gate_proj" in tensors:
            name = name.replace(".mlp.", f".{place}.")
        stem, _, last = name.rpartition(".")
        if not stem.endswith(".experts") or len(stored.shape) != 3:
            out[name] = stored
            continue
        E, rows, columns = stored.shape
        halves = {gate: slice(0, rows // 2), up: slice(rows // 2, rows)} if last == FUSED else {down: slice(0, rows)}
        for e in range(E):
            for matrix, cut in halves.items():
                shape = (cut.stop - cut.start, columns)
                out[f"{stem}.{e}.{matrix}.weight"] = Stored(shape, _cut(stored, e, cut))
    return out


def _cut(stored: Stored, expert: int, rows: slice) -> Callable[[int | None], Tensor]:
    def read(part: int | None) -> Tensor:
        whole = stored.read(expert)[rows]
        return whole if part is None else whole[part]

    return read


def _unscaled(found: Mapping[str, Stored], block: tuple[int, int]) -> dict[str, Stored]:
    """8-bit floats times the scales of their blocks (DeepSeek-V3's files: arXiv 2412.19437, section 3.3)."""
    out = {name: stored for name, stored in found.items() if not name.endswith(SCALE)}
    for name, stored in found.items():
        weight = name.removesuffix(SCALE)
        if name.endswith(SCALE) and weight in out:
            out[weight] = Stored(out[weight].shape, _scaled(out[weight], stored, block))
    return out


def _scaled(weight: Stored, scale: Stored, block: tuple[int, int]) -> Callable[[int | None], Tensor]:
    def read(part: int | None) -> Tensor:
        w_RC, s = weight.read(None).float(), scale.read(None).float()
        R, C = w_RC.shape
        whole = w_RC * s.repeat_interleave(block[0], 0)[:R].repeat_interleave(block[1], 1)[:, :C]
        return whole if part is None else whole[part]

    return read
