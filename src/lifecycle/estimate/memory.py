"""The memory of one device in training, by part, before anything is built.

N parameters, D width, F ffn width, V vocab. Weights, gradients and optimizer state are exact; activations count what
the backward pass of the decoder keeps with a fused attention kernel (no T x T scores), a layer and token, in numbers:

    2 D      the residual stream before each norm: in the compute type in eager, in fp32 where it is compiled
    2 D + 2 (heads + kv_heads) head_dim + 3 F       norm outputs, q k v, attention out; gate, up, product

where 3 F becomes, in a block with A active experts of width F_e: 3 (4 in eager) (A F_e + shared) + 2 A D, for each
token stands once for every expert it visits. The sums agree with the tensors that autograd saves; what a compiler
recomputes, peaks between steps, fragmentation and workspaces are stated guesses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

FP32, BF16 = 4, 2
IN_4_BITS = 0.5 + 0.127 / 8
"""Bytes of a weight in nf4 with quantised scales of 64 weights (arXiv 2305.14314, section 3)."""
GB = 10**9
WORKSPACE_GUESS = {"cuda": 1.5 * GB, "cpu": 0.3 * GB}
"""Context, workspaces and fragmentation: what a process needs beyond its tensors."""


class ModelLike(Protocol):
    """The part of a model config that an estimate reads."""

    @property
    def layers(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def outputs(self) -> int: ...

    def feed_forward_widths(self) -> tuple[float, float]:
        """Mean over blocks: inner width of what a token visits, and copies of the token, one for each expert."""
        ...

    def parameters(self) -> int:
        """The number of all parameters."""
        ...

    def edge_parameters(self) -> int:
        """Those of embedding and head."""
        ...

    def active_parameters(self) -> int:
        """Parameters that take part in one token's forward pass."""
        ...

    def flops_per_token(self, sequence_length: int) -> float:
        """FLOPs of forward and backward for one trained token, see `ModelSizes.flops_per_token`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device, by part. `kept_copies`: of the whole weights, beside them. `frozen`: networks that are only
    asked. `checkpointed`: what the activations are with hardware.activation_checkpointing. `cache`: keys and values of
    the samples that are drawn, which is over when training on them begins."""

    weights: float
    gradients: float
    optimizer: float
    kept_copies: float
    frozen: float
    compute_copies: float
    activations: float
    checkpointed: float
    logits: float
    workspace: float
    checkpointing: bool
    cache: float = 0.0

    @property
    def total(self) -> float:
        """The sum of the parts, with activations as the config has them; of cache and activations the larger."""
        kept = self.checkpointed if self.checkpointing else self.activations
        return self.state + max(kept + self.logits, self.cache)

    @property
    def state(self) -> float:
        """Bytes that do not grow with the micro-batch."""
        copies = self.kept_copies + self.frozen + self.compute_copies
        return self.weights + self.gradients + self.optimizer + copies + self.workspace

    def rows_that_fit(self, room: float | None, per_row: float) -> int | None:
        """Sequences of a micro-batch that `room` bytes hold, `per_row` bytes each; None where the room is unknown."""
        return None if room is None else max(0, int((room - self.state - self.logits) // per_row))


@dataclass(frozen=True, kw_only=True)
class TrainedAdapter:
    """What is trained where not all weights are. parameters: its own. in_4_bits: frozen weights that are held so.
    merge: the whole model is exported beside it."""

    parameters: int
    in_4_bits: int = 0
    merge: bool = False


def memory_of(
    model: ModelLike,
    *,
    adapter: TrainedAdapter | None = None,
    rows: int,
    length: int,
    precision: str,
    states: int,
    kept: float,
    frozen: int,
    shards: int,
    chunk: int,
    checkpointing: bool,
    compiled: bool,
    workspace: float,
) -> tuple[Memory, float]:
    """Memory of a micro-batch, and the bytes of activations that one sequence more would take.

    adapter: what is trained; None: all weights. rows, length: sequences of the micro-batch, positions of each. states:
    numbers that the optimizer keeps of each trained parameter. kept: copies of the weights beside them. frozen:
    parameters of networks that make forward passes alone; where they are not sharded, in the compute type. shards:
    devices that divide weights, gradients, optimizer state and frozen networks. chunk: tokens whose logits exist at one
    time. workspace: bytes.
    """
    count = model.parameters()
    moving, small = (count, 0) if adapter is None else (adapter.parameters, adapter.in_4_bits)
    held = FP32 * (count - small) + IN_4_BITS * small + (0 if adapter is None else FP32 * moving)
    size = BF16 if precision == "bf16" else FP32
    full, saved = (rows * length * each for each in _activations(model, size, compiled))
    memory = Memory(
        weights=held / shards,
        gradients=FP32 * moving / shards,
        optimizer=FP32 * states * moving / shards,
        kept_copies=FP32 * kept * moving,
        frozen=(size if shards == 1 else FP32) * frozen / shards,
        compute_copies=_compute_copies(model, precision, shards) * (1 - small / count),
        activations=full,
        checkpointed=saved,
        logits=min(chunk, rows * length) * model.outputs * (FP32 + FP32 + size),
        workspace=workspace,
        checkpointing=checkpointing,
    )
    return memory, (saved if checkpointing else full) / rows


def _compute_copies(model: ModelLike, precision: str, shards: int) -> float:
    """Bytes of the weights in the compute type; where they are sharded, of those that are whole at one time."""
    count, size = model.parameters(), BF16 if precision == "bf16" else FP32
    if shards == 1:
        return BF16 * count if precision == "bf16" else 0
    # the root group and two blocks are whole at a time: weights, and gradients until they are summed in fp32
    root = model.edge_parameters()
    block = (count - root) / model.layers
    return 2 * size * min(count, root + 2 * block) + FP32 * max(root, 2 * block)


def _activations(model: ModelLike, size: int, compiled: bool) -> tuple[float, float]:
    """Bytes of activations a token, without and with checkpointing; size: bytes of a number in the compute type."""
    stream = model.width * (FP32 if compiled else size)
    block, edge = 2 * stream + _inner_elements(model, compiled) * size, (2 if compiled else 1) * stream
    return model.layers * block + edge, model.layers * stream + block + edge


def _inner_elements(model: ModelLike, compiled: bool) -> float:
    """Elements a token that a layer keeps in the compute type."""
    attention = 2 * (model.heads + model.kv_heads) * model.head_dim
    inner, copies = model.feed_forward_widths()
    return 2 * model.width * (1 + copies) + attention + (4 if copies and not compiled else 3) * inner
