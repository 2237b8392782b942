"""What a GPU would be asked to do in a call of the engine, counted on a rehearsed one (tests/rehearsal); no times.

    PYTHONPATH=src:. python -m benchmarks.decode_counts [--prompts 64] [--samples 1] [--new 32] [--calls 2]

By call: passes      of prefill, and decode steps
         waits       how often the host waited for the device
         recorded    CUDA graphs
         gathered    bytes that `index` wrote, the copies of cache rows among them, as a multiple of what the prompts
                     take in the cache
         launched_in_prefill    operations that start a kernel there
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from tests.rehearsal.claims import rehearsal
from tests.rollout.copied import Copied
from tests.rollout.tape import Tape
from tests.toy import toy
from torch.utils._pytree import tree_leaves

from lifecycle.model import build
from lifecycle.rollout import Engine, Sampling
from lifecycle.rollout.decode_step import DecodeStep

CONFIG = toy(width=32, ffn_width=48, init_std=0.3, max_positions=1024)


ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}


class Launched(Copied):
    """All operations that start a kernel: those that are no views of what they are given, and do more than allocate."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunction():
            given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
            out = super().__torch_dispatch__(function, types, args, kwargs)
            made = {x.untyped_storage()._cdata for x in tree_leaves(out) if isinstance(x, torch.Tensor)}
            allocates = function.overloadpacket.__name__ in ALLOCATIONS
            self.count += function._schema.is_mutable or not (allocates or made <= given)
        return out


def counted(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Of every call of one engine."""
    asked = [[1 + n % 90] * given.length for n in range(given.prompts)]
    sampling = Sampling(max_new_tokens=given.new, top_k=10, samples=given.samples)
    made, passes, real, replay = list[Tape](), Counter[str](), DecodeStep.prefill, Tape.replay
    found, launched = [], Launched()

    def prefill(step: DecodeStep, *words: Any, **more: Any) -> None:
        passes["prefill"] += 1
        with launched:
            real(step, *words, **more)

    def replayed(tape: Tape) -> None:
        passes["decode"] += 1
        replay(tape)

    def new() -> Tape:
        made.append(Tape())
        return made[-1]

    with (
        rehearsal() as device,
        patch.object(torch.cuda, "CUDAGraph", new),
        patch.object(Tape, "replay", replayed),
        patch.object(DecodeStep, "prefill", prefill),
    ):
        model = build(replace(CONFIG, layers=given.layers), seed=1, device=torch.device("cuda")).bfloat16()
        engine = Engine(model, slots=given.prompts * given.samples)
        for _ in range(given.calls):
            for counter in (made, passes, launched.bytes, device.waits):
                counter.clear()
            launched.count = 0
            engine.generate(asked, sampling, seed=0)
            assert engine._step is not None and engine._step.cache is not None
            prompts = given.prompts * (given.length - 1) * engine._step.cache.bytes_per_position
            gathered = round(launched.bytes["index"] / prompts, 2)
            facts = {"passes": dict(passes), "waits": dict(device.waits), "recorded": len(made)}
            found.append({**facts, "gathered": gathered, "launched_in_prefill": launched.count})
    return found


def main() -> None:
    """One JSON line a call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, number in {"prompts": 64, "samples": 1, "length": 64, "new": 32, "calls": 2, "layers": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=number)
    for facts in counted(parser.parse_args()):
        print(json.dumps(facts))


if __name__ == "__main__":
    main()
