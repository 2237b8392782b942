"""How large a cache a call needs, at first and at most, and whether the device has that much memory.

A cache begins with room for the prompts and grows with its longest row, so that no more is allocated than is used. The
most that all rows may reach is checked beforehand: a call that could run out of memory in the middle does not begin.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from lifecycle.errors import UserError
from lifecycle.model import Cache, ModelConfig

MEMORY = Path("/proc/meminfo")
GROUP = Path("/sys/fs/cgroup")
LEAST_BUCKET = 64
FIRST = 64
"""Positions behind the longest prompt that there is room for from the beginning."""


def bucket(positions: int) -> int:
    """Positions rounded up to one of few sizes: multiples of 64, further up of a quarter of the power of two below."""
    size = max(LEAST_BUCKET, (1 << (max(positions, 1).bit_length() - 1)) // 4)
    return -(-positions // size) * size


@dataclass(frozen=True, kw_only=True)
class Room:
    """Rows of a cache, and positions of each row: at the beginning (`now`) and at most."""

    rows: int
    now: int
    most: int

    @classmethod
    def of(cls, *, sequences: int, slots: int, prompt: int, longest: int) -> Room:
        """prompt: positions of the longest prompt; longest: the most that a sequence may reach."""
        rows = min(1 << max(sequences - 1, 0).bit_length(), slots)
        return cls(rows=rows, now=bucket(min(longest, prompt + FIRST)), most=bucket(longest))

    def after(self, capacity: int, positions: int) -> int:
        """The next capacity, in positions, when it is too small for `positions`: half as much again, or more."""
        return max(bucket(positions), min(bucket(capacity + capacity // 2), self.most))

    def check(self, config: ModelConfig, dtype: torch.dtype, device: torch.device, *, held: int) -> None:
        """Refuse a cache that free memory cannot hold. held: bytes of the present cache, which is freed for it.

        Errors: `UserError`.
        """
        free = free_bytes(device)
        row = Cache.position_bytes(config, dtype) * (self.most + 1)
        if free is None or row * self.rows <= free + held:
            return
        fit, gb = (free + held) // row, 1 / 2**30
        fewer = f"slots to {fit} (stage.slots), or " if fit else ""
        raise UserError(
            f"sampling: {self.rows} sequences of up to {self.most:,} positions need {row * self.rows * gb:.1f} GB for "
            f"their keys and values, and {(free + held) * gb:.1f} GB are free on {device}: lower {fewer}the length of "
            "completions (stage.max_new_tokens) or of prompts"
        )


def free_bytes(device: torch.device) -> int | None:
    """Bytes that can be allocated on the device; None where that is not known."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    if device.type != "cpu" or not MEMORY.exists():
        return None
    lines = [line.split() for line in MEMORY.read_text().splitlines()]
    kilobytes = [int(words[1]) for words in lines if words[:1] == ["MemAvailable:"]]  # not before Linux 3.14
    return min(kilobytes[0] * 1024, _free_in_group()) if kilobytes else None


def _free_in_group() -> int:
    """Free bytes under a container's limit (cgroup v2); 2^62 without a limit."""
    limit, used, parts = (GROUP / name for name in ("memory.max", "memory.current", "memory.stat"))
    if not limit.exists() or not limit.read_text().strip().isdigit():
        return 1 << 62
    files = next((line.split()[1] for line in parts.read_text().splitlines() if line.startswith("inactive_file")), "0")
    return max(0, int(limit.read_text()) - int(used.read_text()) + int(files))
