"""A checkpoint as two plain parts: files of raw tensors, and the tree of containers around them.

    {"state_dict": {...}, "optimizer_states": [...], ...}
      = weights.safetensors  (every tensor of state_dict, under its own name)
      + state.safetensors    (every other tensor, under its dotted path)
      + state.pt             (the same tree with a name in the place of each tensor; read with weights_only)

The memory a snapshot is copied into is laid out as the files are, so it goes to disk without another copy.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from lifecycle.checkpoint.manifest import CHUNK

WEIGHTS, STATE, TREE = "weights.safetensors", "state.safetensors", "state.pt"
SLOT = "\0tensor"  # {SLOT: [file, name]} stands where a tensor stood
DTYPES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.uint64: "U64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
_BY_NAME = {name: dtype for dtype, name in DTYPES.items()}
_ATOMS = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
_TENSORS = (Tensor, torch.nn.Parameter, torch.nn.Buffer)
_ALIGN = 64


def plain(value: Any, path: str = "checkpoint") -> None:
    """Raise TypeError with the dotted path of the first thing that `torch.load(weights_only=True)` could not read back.

    Allowed: tensors, and exact dict, OrderedDict, list, tuple, set, str, bytes, numbers, None, torch dtypes, devices.
    """
    kind = type(value)
    if kind in _ATOMS or (kind in _TENSORS and value.layout == torch.strided):
        return
    if kind in (dict, OrderedDict):
        for key, item in value.items():
            if type(key) not in (str, int, float, bool, tuple, type(None)) or key == SLOT:
                raise TypeError(f"{path} has the key {key!r} of type {type(key).__name__}: use strings or numbers")
            plain(key, f"{path} (key)")
            plain(item, f"{path}.{key}")
    elif kind in (list, tuple, set):
        for number, item in enumerate(value):
            plain(item, f"{path}.{number}")
    else:
        raise TypeError(
            f"{path} is a {kind.__module__}.{kind.__qualname__}; a checkpoint holds only tensors and plain containers, "
            "strings and numbers: convert it in the state_dict() or on_save_checkpoint that returns it"
        )


@dataclass(frozen=True)
class TensorFile:
    """One file of raw tensors: `header` then the bytes `start:end` of the pool."""

    name: str
    header: bytes
    start: int
    end: int


@dataclass(frozen=True)
class Frozen:
    """A snapshot: it lives in the pool it was copied into until the next one is taken."""

    tree: Any
    blocks: list[TensorFile]
    memory: memoryview

    @property
    def bytes(self) -> int:
        """Size on disk, less the small tree."""
        return sum(len(block.header) + block.end - block.start for block in self.blocks)


class Pool:
    """Memory for one snapshot at a time, taken once and used again while it is large enough."""

    def __init__(self) -> None:
        self._memory: mmap.mmap | None = None
        self._bytes = torch.empty(0, dtype=torch.uint8, device="cpu")

    def take(self, checkpoint: dict[str, Any]) -> Frozen:
        """Copy `checkpoint` into the pool: when this returns, its tensors and containers may change."""
        split = _Split()
        tree = split.value(checkpoint, ())
        blocks, places, size = _layout(split.tensors)
        devices = {tensor.device for tensor in split.tensors.values()}
        self._reserve(size, pinned=any(device.type == "cuda" for device in devices))
        self._copy([(tensor.detach(), *places[key]) for key, tensor in split.tensors.items()])
        for device in devices:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        return Frozen(tree, blocks, memoryview(self._memory) if self._memory else memoryview(b""))

    def _copy(self, tensors: list[tuple[Tensor, int, int]]) -> None:
        """Fill the pool, in as many threads as torch may use, each with an equal share of the bytes.

        Not one parallel torch copy a tensor: hundreds of those wait for one another where the cores are shared.
        """
        shares: list[list[tuple[Tensor, int, int]]] = [[] for _ in range(min(torch.get_num_threads(), 8))]
        loads = [0] * len(shares)
        for item in sorted(tensors, key=lambda item: item[1] - item[2]):
            least = loads.index(min(loads))
            shares[least].append(item)
            loads[least] += item[2] - item[1]
        with ThreadPoolExecutor(max_workers=len(shares), thread_name_prefix="snapshot") as threads:
            list(threads.map(self._copy_share, shares))

    def _copy_share(self, share: list[tuple[Tensor, int, int]]) -> None:
        for tensor, start, end in share:
            target = self._bytes[start:end]
            if tensor.is_cpu and tensor.is_contiguous() and not tensor.is_neg() and tensor.numel():
                np.copyto(target.numpy(), tensor.reshape(-1).view(torch.uint8).numpy())
            else:
                target.view(tensor.dtype).view(tensor.shape).copy_(tensor, non_blocking=True)

    def release(self) -> None:
        """Free the memory."""
        if self._memory is not None and self._bytes.is_pinned():
            torch.cuda.cudart().cudaHostUnregister(self._bytes.data_ptr())
        self._bytes, self._memory = torch.empty(0, dtype=torch.uint8, device="cpu"), None

    def _reserve(self, size: int, *, pinned: bool) -> None:
        if size <= self._bytes.numel():
            return
        self.release()
        self._memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._bytes = torch.frombuffer(self._memory, dtype=torch.uint8)
        if pinned:  # twice the speed over PCIe; where the limit on locked memory forbids it, the copy is only slower
            torch.cuda.cudart().cudaHostRegister(self._bytes.data_ptr(), size, 0)


class _Split:
    """Takes the tensors out of a tree; the same tensor at two places (tied weights) is stored once."""

    def __init__(self) -> None:
        self.tensors: dict[tuple[str, str], Tensor] = {}
        self._seen: dict[tuple[Any, ...], tuple[str, str]] = {}

    def value(self, value: Any, path: tuple[Any, ...]) -> Any:
        """`value` with new containers and a slot for every tensor."""
        kind = type(value)
        if kind is OrderedDict:
            ordered = OrderedDict((key, self.value(item, (*path, key))) for key, item in value.items())
            ordered.__dict__.update(self.value(dict(value.__dict__), (*path, "__dict__")))  # modules' versions
            return ordered
        if kind is dict:
            return {key: self.value(item, (*path, key)) for key, item in value.items()}
        if kind in (list, tuple):
            return kind(self.value(item, (*path, number)) for number, item in enumerate(value))
        if kind is set:
            return set(value)
        return self._tensor(value, path) if isinstance(value, Tensor) else value

    def _tensor(self, tensor: Tensor, path: tuple[Any, ...]) -> Any:
        if tensor.dtype not in DTYPES:
            return tensor.detach().cpu().clone()
        same = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.is_neg())
        if tensor.numel() == 0 or same not in self._seen:
            weights = path[0] == "state_dict"
            file, name = WEIGHTS if weights else STATE, ".".join(map(str, path[1:] if weights else path))
            while (file, name) in self.tensors:  # "a.b" in one dict and "b" in the dict "a"
                name += "'"
            self.tensors[file, name] = tensor
            self._seen[same] = (file, name)
        return {SLOT: list(self._seen[same])}


def join(tree: Any, tensors: dict[tuple[str, str], Tensor]) -> Any:
    """Put the tensors back into their slots (in place where the containers allow it)."""
    if isinstance(tree, dict):
        if SLOT in tree:
            return tensors[tree[SLOT][0], tree[SLOT][1]]
        for key in tree:
            tree[key] = join(tree[key], tensors)
    elif type(tree) in (list, tuple):
        return type(tree)(join(item, tensors) for item in tree)
    return tree


def _layout(
    tensors: dict[tuple[str, str], Tensor],
) -> tuple[list[TensorFile], dict[tuple[str, str], tuple[int, int]], int]:
    """Where each tensor lies in the pool, and the files' headers.

    The safetensors format allows no gaps; large items first keeps every tensor aligned to its item.
    """
    blocks, places, position = [], {}, 0
    for file in (WEIGHTS, STATE):
        start, header = position, {}
        own = [key for key in tensors if key[0] == file]
        for key in sorted(own, key=lambda key: -tensors[key].element_size()):
            tensor = tensors[key]
            end = position + tensor.numel() * tensor.element_size()
            places[key] = (position, end)
            offsets = [position - start, end - start]
            header[key[1]] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
            position = end
        blocks.append(TensorFile(file, _header(header), start, position))
        position = -(-position // _ALIGN) * _ALIGN
    return blocks, places, position


def _header(entries: dict[str, Any]) -> bytes:
    text = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    text += b" " * (-(8 + len(text)) % _ALIGN)
    return len(text).to_bytes(8, "little") + text


class HashingReader:
    """Reads a file front to back and hashes what it reads."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.hash = file, hashlib.sha256()

    def fill(self, target: memoryview) -> None:
        """Read exactly as many bytes as `target` has, or to the end of the file."""
        for start in range(0, len(target), CHUNK):
            chunk = target[start : start + CHUNK]
            self.hash.update(chunk[: self._file.readinto(chunk)])  # type: ignore[attr-defined]

    def read(self, size: int) -> bytes:
        """The next `size` bytes, fewer at the end of the file."""
        content = self._file.read(size)
        self.hash.update(content)
        return content


def read_tensors(file: str, size: int, reader: HashingReader) -> dict[tuple[str, str], Tensor] | None:
    """All tensors of one file of `size` bytes, each in its own memory; None if it is no such file.

    Own memory, as any fresh tensor has: a resumed run then computes on the same alignment as one that never stopped.
    """
    length = int.from_bytes(reader.read(8), "little")
    entries = _parse(reader.read(length), size - 8 - length) if 8 + length <= size else None
    if entries is None:
        return None
    tensors = {}
    for name, dtype, shape in entries:
        tensor = torch.empty(shape, dtype=dtype, device="cpu")
        if tensor.numel():
            reader.fill(tensor.view(-1).view(torch.uint8).numpy().data)
        tensors[file, name] = tensor
    return tensors


def _parse(header: bytes, size: int) -> list[tuple[str, torch.dtype, list[int]]] | None:
    """Name, dtype and shape of the tensors in the order of their `size` bytes; None for anything but such a header."""
    found, position = [], 0
    try:
        raw = json.loads(header)
        raw.pop("__metadata__", None)
        for name, entry in sorted(raw.items(), key=lambda item: item[1]["data_offsets"]):
            dtype, shape, (start, end) = _BY_NAME[entry["dtype"]], entry["shape"], entry["data_offsets"]
            if start != position or end - start != math.prod(shape) * dtype.itemsize or min(shape, default=0) < 0:
                return None
            position = end
            found.append((name, dtype, shape))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):  # any bytes may stand in a damaged file
        return None
    return found if position == size else None
