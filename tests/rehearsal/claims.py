"""A CUDA device that is rehearsed on the CPU: tensors that say they are on it, with real numbers.

    with rehearsal() as device:                    # device: what was looked at by the host, and where
        model = build(config, seed=1, device=torch.device("cuda"))

Every tensor is one of the CPU's; a memory that was asked for on CUDA is marked, and what is made from it is marked too.
So autograd, optimizers and the Trainer run as they do, and what a GPU would refuse is refused: operations on tensors of
both devices, and `.numpy()` of one that is there. Where the host waits for the device (`.item()`, `.tolist()`,
`bool()`, `nonzero`, copies back, shapes that hang on content) must stand in WAITS, or it is refused. Kernels that
exist on CUDA alone need stand-ins. Autocast of the CPU stands in for that of CUDA.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch._dynamo  # noqa: F401  it looks at torch once, which should be before anything is replaced
import torch.utils.checkpoint
from tests.rollout.tape import Tape, record
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lifecycle.losses import cross_entropy
from lifecycle.model.layers.cpu import block_parts, packed_attention
from lifecycle.model.layers.gpu import available

HOST, DEVICE = torch.device("cpu"), torch.device("cuda", 0)

WAITS = {
    "stages/step/collectives.py any_rank": "once a step and micro-batch of a validation: all finite, does a rank stop",
    "stages/step/metrics.py flush": "once every logging.every_steps",
    "stages/step/metrics.py _usage": "once every logging.every_steps",
    "stages/step/metrics.py validation_metrics": "once a domain of a validation",
    "stages/step/bad_steps.py skip": "in a step that is not taken",
    "stages/step/bad_steps.py state": "once a checkpoint",
    "runs/trainer.py fit": "once a run: the Trainer takes model and optimizer back to the host",
    "runs/results.py full_weights": "once a run: the weights to export",
    "stages/preference/cached.py _add": "a micro-batch that a cached reference is computed for, before the first step",
    "stages/distillation/known.py _add": "a micro-batch that a teacher's output is kept of, before the first step",
    "rollout/decode_step.py run": "once in up to eight decode steps, or in each where somebody waits: the drawn tokens",
    "rollout/decode_step.py tiles": "once a tile of a deterministic decode step",
    "rollout/output.py rollout": "once a call of the engine, at its end",
    "rollout/weights_version.py surely_is": "once a call of a kept engine: some numbers of every weight",
    "rollout/sampling/score.py _score": "four times a completion that somebody else drew",
    "model/layers/experts.py _visits": "a layer with experts in deterministic decoding",
    "model/layers/experts.py forward": "a layer with experts in fp32 or of odd widths, which multiply one by one",
    "model/layers/experts.py _by_expert_grads": "the same in its backward pass",
}
"""Where the host may wait for the device, by file and function, and how often that is."""

READS = set(
    "_local_scalar_dense nonzero masked_select equal is_nonzero _unique2 bincount by_expert by_expert_backward".split()
)
OURS = "/src/lifecycle/"
INNER = {"<genexpr>", "<listcomp>", "<dictcomp>", "<setcomp>"}
ALIKE = {"cat", "stack", "_fused_adamw_"}
"""Operations that do not take a scalar of the host beside tensors of the device."""


class Refused(AssertionError):
    """What a GPU would refuse, or would be kept waiting by."""


class Device(TorchDispatchMode):
    """The marks of memory, and what was looked at: `waits` counts the places."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.recording = False  # a graph is: nothing may come from the host
        self.to_host = False  # Python asks for it; C++ says "the CPU", too, for the device that a tensor is on already
        self._marked: dict[int, StorageWeakRef] = {}

    def has(self, tensor: Tensor) -> bool:
        with torch._C.DisableTorchFunction():
            return tensor.layout == torch.strided and tensor.untyped_storage()._cdata in self._marked

    def _mark(self, tensor: Tensor) -> None:
        with torch._C.DisableTorchFunction():
            storage = tensor.untyped_storage()
        self._marked[storage._cdata] = StorageWeakRef(storage)
        if len(self._marked) % 4096 == 0:
            self._marked = {key: ref for key, ref in self._marked.items() if not ref.expired()}

    def wait(self, what: str) -> None:
        """The host waits: where is it written?"""
        frame: Any = sys._getframe()
        while frame is not None and (
            "/src/lifecycle/" not in frame.f_code.co_filename or frame.f_code.co_name in INNER
        ):
            frame = frame.f_back
        if frame is None:
            return  # the test itself looks
        place = f"{frame.f_code.co_filename.partition(OURS)[2]} {frame.f_code.co_name}"
        if place not in WAITS or self.recording:
            raise Refused(f"{place} line {frame.f_lineno}: {what} waits for the device")
        self.waits[place] += 1

    @contextmanager
    def asked(self, device: torch.device) -> Iterator[torch.device]:
        """Within it a tensor is asked for on this device."""
        before, self.to_host = self.to_host, device == HOST
        try:
            yield device
        finally:
            self.to_host = before

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunction():
            return self._run(function, function.overloadpacket.__name__, args, dict(kwargs or {}))

    def _run(self, function: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        there = any(self.has(x) for x in tensors)
        if name in ("_to_copy", "copy_"):
            there = self._copies(name, args, kwargs)
        elif kwargs.get("device") is not None:
            there = kwargs["device"].type == "cuda" or (there and not self.to_host)
        elif there:
            self._check(function, name, args, tensors)
        for generator in tree_leaves((args, kwargs)):
            if isinstance(generator, torch.Generator) and there != (generator.device.type == "cuda"):
                raise Refused(f"{function}: a generator of another device")
        if kwargs.get("device") is not None:
            kwargs["device"] = HOST
        out = function(*args, **kwargs)
        for made in tree_leaves(out):
            if there and isinstance(made, Tensor) and not self.has(made):
                self._mark(made)
        return out

    def _copies(self, name: str, args: Any, kwargs: dict[str, Any]) -> bool:
        source = self.has(args[1] if name == "copy_" else args[0])
        asked = kwargs.get("device")
        if name == "copy_":
            target = self.has(args[0])
        else:
            target = (source and not self.to_host) or (asked is not None and asked.type == "cuda")
        if source and not target:
            self.wait("a copy to the host")
        if target and not source and self.recording:
            raise Refused("a copy from the host cannot be recorded")
        return target

    def _check(self, function: Any, name: str, args: Any, tensors: list[Tensor]) -> None:
        indexed = name in ("index", "index_put_", "index_put")
        if name in READS or (indexed and any(x.dtype == torch.bool for x in tree_leaves(args[1]) if x is not None)):
            if not (name.startswith("index_put") and args[2].numel() == 1):
                self.wait(name)
        indices = tree_leaves(args[1]) if indexed else []
        for x in tensors:
            scalar = x.dim() == 0 and name not in ALIKE
            if self.has(x) or any(x is index for index in indices) or (scalar and any(y.dim() for y in tensors)):
                continue
            if scalar and all(y.dim() == 0 for y in tensors):
                continue
            kinds = [(tuple(y.shape), "cuda" if self.has(y) else "cpu") for y in tensors]
            raise Refused(f"{function}: tensors of both devices: {kinds}")
        if any(x.dim() for x in tensors) and not any(self.has(x) for x in tensors if x.dim()):
            raise Refused(f"{function}: a scalar of the device among tensors of the host")


class Names(TorchFunctionMode):
    """What Python asks of a tensor's device, and how it is moved."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        asked = ASKED.get(function)
        if asked is not None:
            there = self._device.has(args[0])
            if asked == "device":
                return DEVICE if there else HOST
            return there if asked == "is_cuda" else not there
        if function in (Tensor.numpy, Tensor.__array__) and self._device.has(args[0]):
            raise Refused("numpy() of a tensor on the device: it must be copied to the host first")
        if function is Tensor.tolist and self._device.has(args[0]):
            self._device.wait("tolist")
        if function is Tensor.pin_memory:
            return args[0]
        if function in (Tensor.to, Tensor.cpu, Tensor.cuda):
            return self._moved(function, args, kwargs)
        if function is Tensor.new_tensor:  # as torch.tensor below
            made = function(*args, **kwargs)
            return self._moved(Tensor.to, (made, DEVICE), {}) if self._device.has(args[0]) else made
        if kwargs.get("device") is None:
            return function(*args, **kwargs)
        if function in (torch.tensor, torch.as_tensor):  # they copy behind the back of a dispatch mode
            made = function(*args, **{name: value for name, value in kwargs.items() if name != "device"})
            return self._moved(Tensor.to, (made, kwargs["device"]), {})
        with self._device.asked(_named(kwargs["device"])) as device:
            return function(*args, **kwargs | {"device": device})

    def _moved(self, function: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
        if function is not Tensor.to:
            args, kwargs = (args[0], HOST if function is Tensor.cpu else DEVICE), {}
        tensor, given = args[0], [*args[1:], kwargs.get("device"), kwargs.get("dtype")]
        given += [DEVICE if self._device.has(x) else HOST for x in given if isinstance(x, Tensor)]
        given += [x.dtype for x in given if isinstance(x, Tensor)]
        target = next((_named(x) for x in given if isinstance(x, torch.device | str)), None)
        dtype = next((x for x in given if isinstance(x, torch.dtype)), tensor.dtype)
        if target is None or (target == DEVICE) == self._device.has(tensor):
            return Tensor.to(tensor, dtype, copy=kwargs.get("copy", False))
        with self._device.asked(target):
            moved: Tensor = torch.ops.aten._to_copy(tensor, dtype=dtype, device=target)
        return moved


ASKED = {
    Tensor.device.__get__: "device",
    Tensor.is_cuda.__get__: "is_cuda",  # type: ignore[attr-defined]
    Tensor.is_cpu.__get__: "is_cpu",  # type: ignore[attr-defined]
}


def _named(device: torch.device | str | int) -> torch.device:
    made = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    return DEVICE if made.type == "cuda" else made


def _on_the_cpu(given: Any) -> Any:
    return "cpu" if str(given).startswith("cuda") else given


@contextmanager
def rehearsal() -> Iterator[Device]:
    """Within it there is one CUDA device, with units for bf16 and with tapes for graphs (see tape.py)."""
    device, autocast = Device(), torch.autocast
    is_enabled, get_dtype = torch.is_autocast_enabled, torch.get_autocast_dtype

    class Autocast(autocast):  # type: ignore[misc,valid-type]
        def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
            super().__init__(_on_the_cpu(device_type), *args, **kwargs)

    @contextmanager
    def recorded(tape: Tape, pool: Any = None) -> Iterator[None]:
        device.recording = True
        try:
            with record(tape, pool):
                yield
        finally:
            device.recording = False

    nothing = lambda *_, **__: None  # noqa: E731
    library = SimpleNamespace(cudaHostRegister=nothing, cudaHostUnregister=nothing)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "is_available": lambda: True,
            "is_bf16_supported": lambda *_, **__: True,
            "device_count": lambda: 1,
            "current_device": lambda: 0,
            "get_device_name": lambda *_: "a rehearsal",
            "get_device_capability": lambda *_: (9, 0),
            "mem_get_info": lambda *_: (1 << 36, 1 << 36),
            **dict.fromkeys(("max_memory_allocated", "memory_allocated", "memory_reserved"), lambda *_: 0),
            "cudart": lambda: library,
            "CUDAGraph": Tape,
            "graph": recorded,
            **dict.fromkeys(("_lazy_init", "synchronize", "set_device", "empty_cache", "manual_seed_all"), nothing),
        }.items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(torch, "autocast", Autocast)
        patch.setattr(torch, "is_autocast_enabled", lambda kind="cuda": is_enabled(_on_the_cpu(kind)))
        patch.setattr(torch, "get_autocast_dtype", lambda kind="cuda": get_dtype(_on_the_cpu(kind)))
        # what is computed again asks for devices where `Names` does not hear it
        shape = lambda x: {"shape": x.shape, "dtype": x.dtype}  # noqa: E731
        patch.setitem(torch.utils.checkpoint._allowed_determinism_checks_to_fns, "default", shape)
        patch.setattr(packed_attention, "is_there", lambda: False)  # ... and would take the host's own kernels
        patch.setattr(block_parts, "takes", lambda *_: False)
        patch.setattr(available, "is_there", lambda device: False)  # kernels of a GPU need a real one
        patch.setattr(cross_entropy, "kernel_is_there", lambda device: False)
        with device, Names(device):
            yield device
