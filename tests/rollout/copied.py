"""How many bytes operations that only move numbers write: gathers, scatters, copies, changes of type."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MOVES = {"index", "index_select", "gather", "cat", "stack", "clone", "copy_", "_to_copy", "index_put_", "index_copy_"}


class Copied(TorchDispatchMode):
    """`bytes` by operation. least: smaller results are not counted, such as a look-up of angles."""

    def __init__(self, *, least: int = 0) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()
        self._least = least

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunction():
            out = function(*args, **(kwargs or {}))
            name = function.overloadpacket.__name__
            if name in MOVES:
                # of what is written into a larger tensor, the part that is
                written = {"index_put_": args[2:3], "index_copy_": args[3:4], "copy_": args[:1]}.get(name, out)
                size = sum(x.numel() * x.element_size() for x in tree_leaves(written) if isinstance(x, Tensor))
                self.bytes[name] += size if size >= self._least else 0
        return out
